"""A model under evaluation, the metrics that measure it, and the retention that its samples want."""

from gftkit.evaluation.evaluation import Evaluation as Evaluation
from gftkit.evaluation.metrics import (
    Metrics as Metrics,
    Scope as Scope,
    check_metrics as check_metrics,
    measure as measure,
)
from gftkit.evaluation.retentions import (
    ERRORS as ERRORS,
    RETENTIONS as RETENTIONS,
    Preference as Preference,
    beyond as beyond,
    preferred_retention as preferred_retention,
)
