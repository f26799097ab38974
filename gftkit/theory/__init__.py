"""The mathematics: paths, objectives, temperature, predictions, and the gap statistics T, G and R."""

from gftkit.theory.expression import (
    compile_formula as compile_formula,
    differentiate as differentiate,
    parse_formula as parse_formula,
    value_at as value_at,
)
from gftkit.theory.flow import expand as expand
from gftkit.theory.gap import (
    Statistics as Statistics,
    Summary as Summary,
    mean_estimate as mean_estimate,
    ratio_estimate as ratio_estimate,
    root_estimate as root_estimate,
    statistics as statistics,
    summary as summary,
)
from gftkit.theory.objective import (
    Form as Form,
    LOSSES as LOSSES,
    blend as blend,
    blended_loss as blended_loss,
    penalty_loss as penalty_loss,
    retention as retention,
    shared_loss as shared_loss,
    squared_norm as squared_norm,
    temperature_of as temperature_of,
)
from gftkit.theory.predictions import (
    best_retention as best_retention,
    best_temperature as best_temperature,
    drift_error as drift_error,
    drift_error_by_time as drift_error_by_time,
    error_with_noise as error_with_noise,
    label_noise as label_noise,
    lag_of as lag_of,
    path_kl_by_time as path_kl_by_time,
    profile_gain as profile_gain,
    sharing_noise as sharing_noise,
    stochastic_drift as stochastic_drift,
)
from gftkit.theory.retention_fit import (
    RetentionFit as RetentionFit,
    fit_retention as fit_retention,
    shrink as shrink,
)
from gftkit.theory.temperature import (
    ROUND_OFF as ROUND_OFF,
    check_schedule as check_schedule,
    has_feedback as has_feedback,
    mean_retention as mean_retention,
    temperatures_of as temperatures_of,
)
