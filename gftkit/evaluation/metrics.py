"""Metrics, measured on a model under evaluation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gftkit.evaluation.evaluation import Evaluation
from gftkit.kernel.contracts import Metric
from gftkit.kernel.errors import ConfigError, DataError
from gftkit.runtime.randomness import stream

Metrics = Sequence[tuple[str, Metric]]
"""Metrics, each with its place in the configuration."""


@dataclass(frozen=True)
class Scope:
    """The extent of an evaluation, known before anything is sampled.

    Attributes:
        count: number of samples to generate.
        reference: number of reference samples.
        training: number of training samples.
        held_out: whether the reference is held out; otherwise it is training data.
        event_shape: of one sample.
        inherits: whether the pretrained run is known, and its data with it.
    """

    count: int
    reference: int
    training: int
    held_out: bool
    event_shape: tuple[int, ...]
    inherits: bool = False


def measure(metrics: Metrics, evaluation: Evaluation, seed: int) -> dict[str, float]:
    """Every metric's estimates: name -> value, and name + "_stderr" -> its standard error.

    An estimate with an interval has its ends as name + "_low" and name + "_high".

    Raises:
        ConfigError: where a metric refuses its inputs, such as too few samples, or two metrics measure one name.
    """
    values: dict[str, float] = {}
    for index, (place, metric) in enumerate(metrics):
        with _named(place, metric):
            measured = metric.measure(evaluation, stream(seed, "metric", index))
        for name, estimate in measured.items():
            if name in values:
                raise ConfigError(
                    f"{place} ({type(metric).__name__}) measures {name}, as a metric before it does. Keep one of the "
                    f"two."
                )
            values[name] = estimate.value
            values[f"{name}_stderr"] = estimate.stderr
            if estimate.interval is not None:
                values[f"{name}_low"], values[f"{name}_high"] = estimate.interval
    return values


def check_metrics(metrics: Metrics, scope: Scope) -> None:
    """Ask every metric whether it can measure in this scope; nothing is sampled.

    Raises:
        ConfigError: with the reason of the first that can't.
    """
    for place, metric in metrics:
        ask = getattr(metric, "check", None)
        if ask is not None:
            with _named(place, metric):
                ask(scope)


@contextmanager
def _named(place: str, metric: Metric) -> Iterator[None]:
    """Turn a metric's refusal into an error of the configuration that names the metric."""
    try:
        yield
    except (ValueError, DataError) as error:
        raise ConfigError(f"{place} ({type(metric).__name__}): {error}") from error
