"""A model under evaluation and the metrics that measure it."""

from gftkit.evaluation.evaluation import Evaluation as Evaluation
from gftkit.evaluation.retentions import (
    Preference as Preference,
    preferred_retention as preferred_retention,
)
from gftkit.evaluation.metrics import (
    Metrics as Metrics,
    Scope as Scope,
    check_metrics as check_metrics,
    measure as measure,
)
