"""The components of a run, built from its configuration and checked against each other."""

from gftkit.experiment.build import (
    Experiment as Experiment,
    Matching as Matching,
    EvaluationPlan as EvaluationPlan,
    build_measurement as build_measurement,
)
from gftkit.experiment.building import build_drift as build_drift, build_source as build_source, scheme_of as scheme_of
from gftkit.experiment.networks import (
    NetworkBuilder as NetworkBuilder,
    Networks as Networks,
    adapted_drift as adapted_drift,
)
from gftkit.experiment.restore import samples_of as samples_of, trained_drift as trained_drift
