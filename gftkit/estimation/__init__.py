"""Standard errors, confidence intervals, distances between samples, and the stability of curves."""

from gftkit.estimation.distances import (
    discrepancy as discrepancy,
    energy_distances as energy_distances,
)
from gftkit.estimation.intervals import (
    log_normal as log_normal,
    percentiles as percentiles,
    proportion as proportion,
    bootstrap_weights as bootstrap_weights,
)
from gftkit.estimation.jackknife import (
    GROUPS as GROUPS,
    Replicates as Replicates,
    jackknife_replicates as jackknife_replicates,
    jackknife_estimate as jackknife_estimate,
    jackknife_estimates as jackknife_estimates,
    jackknife_stderr as jackknife_stderr,
)
from gftkit.estimation.stability import (
    WINDOW as WINDOW,
    first_reaching as first_reaching,
    instant_variance as instant_variance,
    largest_setback as largest_setback,
    spearman as spearman,
    stability_of as stability_of,
)
