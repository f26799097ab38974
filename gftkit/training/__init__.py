"""Training: the loop, its steps, and what is recorded beside it."""

from gftkit.training.state import Draw as Draw, TrainingState as TrainingState
from gftkit.training.steps import Steps as Steps
from gftkit.training.train import changes as changes
from gftkit.training.verdict import Verdict as Verdict, sections_of as sections_of, verify_run as verify_run
