"""Training: the loop, its steps, its evaluations and its records."""

from gftkit.training.state import Draw as Draw, TrainingState as TrainingState
from gftkit.training.steps import Steps as Steps
from gftkit.training.train import changes as changes
from gftkit.training.verdict import Verdict as Verdict, run_sections as run_sections, verify_run as verify_run
