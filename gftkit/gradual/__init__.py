"""Gradual Fine-Tuning in a training loop of one's own."""

from gftkit.gradual.gradual import Gradual as Gradual
from gftkit.gradual.objective import GradualObjective as GradualObjective
from gftkit.gradual.lightning import lightning_callback as lightning_callback
