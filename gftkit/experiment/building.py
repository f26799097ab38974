"""The components that a configuration names, built."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gftkit.data import conditions
from gftkit.data.description import Facts
from gftkit.data.samples import Samples, Source, source_of
from gftkit.evaluation.metrics import Metrics
from gftkit.kernel.contracts import Coupling, Path
from gftkit.kernel.errors import ConfigError, GftkitError
from gftkit.kernel.options import plain
from gftkit.kernel.registry import Registry, Spec
from gftkit.networks.adapters import AdaptedDrift
from gftkit.networks.foreign import ForeignDrift, own_network
from gftkit.networks.time_embedding import check_time_scale
from gftkit.runs.schema import DEFAULTS, Config, Evaluate
from gftkit.runtime.randomness import stream
from gftkit.sampling.scheme import Scheme, build_scheme
from gftkit.sampling.stochastic import check_known_score


def make_drift(spec: Spec, facts: Facts, registry: Registry, path: Path, where: str = "") -> nn.Module:
    """The network of a configuration, not evaluated yet, with floating weights in float32; ``where``, for errors.

    Raises:
        ConfigError: for a quantized network.
    """
    drift: nn.Module = registry.build(
        "drift",
        spec,
        where,
        event_shape=facts.event_shape,
        classes=facts.classes,
        condition_shapes=facts.condition_shapes,
        path=path,
    )
    quantized = [
        f"{name} ({weight.dtype})"
        for name, weight in drift.named_parameters()
        if not (weight.is_floating_point() or weight.is_complex())
        or weight.element_size() < 2
        or type(weight.data) is not Tensor
    ]
    if quantized:
        raise ConfigError(
            f"drift '{spec['name']}': wanted floating weights of 16 bits or more, got {', '.join(quantized[:4])}: the "
            f"network is quantized, and no adapter can be merged into it exactly. Load it without quantization; to "
            f"save memory, set adapters.base_type: bfloat16."
        )
    types = {weight.dtype for weight in drift.parameters() if weight.is_floating_point()} - {torch.float32}
    if types:
        # Small updates are lost in half precision, and states and data are float32.
        drift.float()
        names = ", ".join(sorted(str(each).removeprefix("torch.") for each in types))
        note = f"drift '{spec['name']}': its weights are {names}, and are trained as float32."
        drift.notes = (*getattr(drift, "notes", ()), note)  # type: ignore[assignment]
    return drift


def build_drift(spec: Spec, facts: Facts, registry: Registry, path: Path) -> nn.Module:
    """Build the network of a configuration, and evaluate it once on zeros.

    Raises:
        ConfigError: where its output isn't of its input's shape.
    """
    drift = make_drift(spec, facts, registry, path).eval()
    conditions.check_nulls(drift, facts.condition_shapes)
    x = torch.zeros(2, *facts.event_shape)
    try:
        with torch.no_grad():
            out = _evaluate_on_zeros(drift, facts)
            if isinstance(drift, ForeignDrift):
                check_time_scale(drift, lambda t: _evaluate_on_zeros(drift, facts, t))
    except GftkitError as error:
        raise ConfigError(f"drift '{spec['name']}' on a batch of shape {tuple(x.shape)}: {error}") from error
    except Exception as error:
        cure = "`gft --debug` shows the traceback."
        if isinstance(drift, ForeignDrift):
            cure = (
                f"Check drift.options and convention.call ('{drift.convention.call}'): `gft inspect` finds the "
                f"convention of a network. {cure}"
            )
        raise ConfigError(
            f"drift '{spec['name']}' fails on a batch of shape {tuple(x.shape)}: {type(error).__name__}: {error}\n"
            f"{cure}"
        ) from error
    if not isinstance(out, Tensor) or out.shape != x.shape:
        received = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ConfigError(
            f"drift '{spec['name']}': wanted an output of its input's shape {tuple(x.shape)}, got {received}. "
            f"A drift maps (batch, *event) to (batch, *event)."
        )
    return drift


def _evaluate_on_zeros(drift: nn.Module, facts: Facts, t: float = 0.5) -> Any:
    """The drift of two samples of zeros; it is evaluated without its conditions too, where it allows that."""
    zeros = facts.zeros(conditions.condition_names(drift), 2)
    at = torch.full((2,), t), torch.zeros(2, *facts.event_shape)
    drift(*at, **conditions.without_conditions(drift, zeros))
    return drift(*at, **zeros)


def adapt(drift: nn.Module, config: Config, facts: Facts) -> AdaptedDrift:
    """Put the adapters of a configuration into its pretrained drift; their weights depend on the seed only.

    Raises:
        ConfigError: for layers that can't be adapted, and a base in half precision that the drift doesn't support.
    """
    assert config.adapters is not None
    if config.adapters.base_type != "float32" and not isinstance(drift, ForeignDrift):
        raise ConfigError(
            f"adapters.base_type: {config.adapters.base_type} requires a network of `drift: {{name: module, ...}}`, "
            f"got '{config.drift['name']}'. Leave it out."
        )
    run, generator = lambda: _evaluate_on_zeros(drift, facts), stream(config.seed, "adapters")
    return AdaptedDrift(drift, config.adapters, run, generator, own_network(drift))


def build_source(spec: Spec, event_shape: tuple[int, ...], registry: Registry) -> Source:
    """Build the source of a configuration."""
    return source_of(Samples(registry.build("dataset", spec, "source", event_shape=event_shape), "source", event_shape))


def is_standard_normal(source: Spec, registry: Registry) -> bool:
    """True for N(0, I), the default source."""
    return plain(source) == plain(registry.resolve("dataset", DEFAULTS["source"], "source"))


def scheme_of(
    config: Config,
    spec: Spec | None,
    path: Path,
    registry: Registry,
    guidance: float = 1,
    coupling: Coupling | None = None,
) -> Scheme:
    """Build the scheme by which a configuration's flow is sampled.

    Args:
        config: the configuration.
        spec: of the solver, with its steps, grid and diffusion; None for the default one.
        path: of the run.
        registry: components.
        guidance: scale of classifier-free guidance.
        coupling: of the run; None to build it where it is needed.

    Raises:
        ConfigError: for noise that needs a score where none is known, and a solver that doesn't solve this flow.
    """
    scheme = build_scheme(spec, path, registry)
    if scheme.diffusion is not None:
        coupling = coupling or registry.build("coupling", config.coupling)
        check_known_score(path, coupling, normal=is_standard_normal(config.source, registry), guidance=guidance)
    scheme.check(path)
    return scheme


def build_metrics(evaluate: Evaluate, registry: Registry) -> tuple[Metrics, Metrics]:
    """Build the metrics of a section ``evaluate``, each with its place: those along a run, and those at its ends."""

    def build(key: str, specs: Iterable[Any]) -> Metrics:
        places = [(f"evaluate.{key}[{index}]", spec) for index, spec in enumerate(specs)]
        return [(place, registry.build("metric", spec, place)) for place, spec in places]

    along = build("metrics", evaluate.metrics or [])
    return along, [*along, *build("ends", evaluate.ends)]
