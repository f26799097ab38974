"""Refusals of components and data that don't fit together, and warnings about scales."""

from dataclasses import replace

import torch
from torch import nn

from gftkit.data.conditions import condition_nulls
from gftkit.data.description import Facts
from gftkit.data.samples import Samples
from gftkit.experiment.building import is_standard_normal
from gftkit.kernel.contracts import Batch, Coupling, Path, Schedule
from gftkit.kernel.errors import ConfigError, DataError
from gftkit.kernel.options import plain
from gftkit.kernel.registry import Registry, Spec
from gftkit.networks.anchor import Anchor, short_hash
from gftkit.networks.flow_map import is_flow_map
from gftkit.networks.foreign import ForeignDrift, check_score
from gftkit.runs.folder import RunFolder
from gftkit.runs.schema import Config
from gftkit.theory import flow
from gftkit.theory.temperature import profile_at

LARGE = 20.0
"""Root mean square that passes without a warning in pretraining."""

FAR_OUTSIDE = 3.0
"""Largest value that passes without a warning for a drift trained on [-1, 1]."""


def scale_warnings(config: Config, training: Batch, data: Samples, parent: RunFolder | None) -> list[str]:
    """A warning where data that aren't scaled go to a drift that was trained on [-1, 1], and lie far outside.

    Also where a new drift would be trained on values far from size 1.
    """
    if config.kind == "pretrain":
        size = float(training.x1.double().square().mean().sqrt())
        if size <= LARGE:
            return []
        return [
            f"data: the root mean square of the values is {size:.3g}, and drifts are made for values near 1: the loss "
            f"starts near {size**2:.1g}, and training is slow or fails. Scale the values to [-1, 1] or to variance 1 "
            f"first, for example images in 0 to 255 by x / 127.5 - 1."
        ]
    if parent is None or parent.facts.range is None or data.scaling.range is not None:
        return []
    largest = float(training.x1.abs().max())
    if largest <= FAR_OUTSIDE:
        return []
    return [
        f"data: the pretrained drift was trained on values in [-1, 1], and the largest value here is {largest:.4g}; "
        f"data without a range are never rescaled. Scale them to [-1, 1] yourself."
    ]


def check_anchor(anchor: Anchor, drift: nn.Module, config: Config, schedule: Schedule) -> None:
    """Refuse an anchor that the run can't hold on to.

    Raises:
        ConfigError: where the schedule's profile was fitted to another anchor, and where conditions are dropped that
            the anchor can't do without.
    """
    fitted_on = getattr(profile_at(schedule, 1, 1), "fitted_on", None) or {}
    if "anchor" in fitted_on and fitted_on["anchor"] != anchor.hash:
        raise ConfigError(
            f"schedule.end: the profile was fitted to {fitted_on.get('run', 'another run')}, with the anchor "
            f"{short_hash(str(fitted_on['anchor']))}, and this run's anchor is {short_hash(anchor.hash)}. Fit a "
            f"profile to a run with this anchor, or give its values as a `table`."
        )
    dropped = [] if config.train.condition_dropout == 0 else condition_nulls(drift)
    if missing := [name for name in anchor.conditions if name in dropped and name not in condition_nulls(anchor)]:
        raise ConfigError(
            f"anchor: train.condition_dropout leaves out the condition {', '.join(map(repr, missing))}, for which the "
            f"anchor has no `null`. Use an anchor that has one, or set condition_dropout to 0."
        )


def inherit(facts: Facts, parent: RunFolder) -> Facts:
    """The facts of the data, with the number of classes of the pretrained drift."""
    before = parent.facts
    if before.event_shape != facts.event_shape:
        raise DataError(
            f"data: wanted samples of shape {before.event_shape}, as the pretrained run {parent.folder} has, got "
            f"{facts.event_shape}. Resize or crop them (image sets take `size`)."
        )
    changed = [
        f"'{name}' of shape {shape}, got {facts.condition_shapes.get(name, 'none')}"
        for name, shape in before.condition_shapes.items()
        if facts.condition_shapes.get(name) != shape
    ]
    if changed:
        raise DataError(
            f"data: wanted the conditions that the pretrained run {parent.folder} has: {'; '.join(changed)}. "
            f"Give every sample these conditions."
        )
    return replace(facts, classes=before.classes or facts.classes)


def check_labels(samples: Samples, facts: Facts) -> None:
    """Refuse data whose labels a conditional drift can't use; of a subset only its own labels count.

    Raises:
        DataError: for data without labels, or with a label beyond the classes of the drift.
    """
    labels = getattr(samples.data, "labels", None)
    needed = samples.classes if labels is None else int(labels.max()) + 1
    if needed is None:
        raise DataError(
            f"{samples.where}: the drift is conditional and the data have no labels. Add labels, or choose another "
            f"drift."
        )
    if facts.classes is not None and needed > facts.classes:
        raise DataError(
            f"{samples.where}: labels up to {needed - 1}, and the drift has {facts.classes} classes. Choose samples of "
            f"those by `classes`, or train a drift on all classes."
        )


def check_same_path(path: Path, config: Config, parent: RunFolder, key: str = "pretrained") -> None:
    """Refuse a path or diffusion that differs from the anchor's: a blend of the two drifts has no known law.

    Raises:
        ConfigError: with the reason.
    """
    if plain(config.path) == plain(parent.config.path):
        return
    differs = path_differences(path, parent.path)
    if differs:
        raise ConfigError(
            f"path: {config.path} differs from the {key} run's {parent.config.path} in {', '.join(differs)}. "
            f"The anchor is the drift of another process, and the blend of the two would follow the law of neither. "
            f"Leave `path` out to inherit it, or pretrain on this path."
        )


def path_differences(path: Path, other: Path) -> list[str]:
    """The coefficients in which two paths differ, by name."""
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    one, two = ((*p.coefficients(t), flow.diffusion(p, t)) for p in (path, other))
    names = ("sigma", "alpha", "gamma", "diffusion g")
    return [name for name, a, b in zip(names, one, two, strict=True) if not torch.allclose(a, b)]


def check_student(drift: nn.Module, config: Config) -> None:
    """Refuse a network that a distillation can't train, and a flow map anywhere else.

    Raises:
        ConfigError: with the reason.
    """
    if config.kind != "distill":
        if is_flow_map(drift):
            raise ConfigError(
                f"drift: '{config.drift['name']}' is a flow map, which only `gft distill` can train. Pretrain or "
                f"fine-tune the network inside it, then distil that run."
            )
        return
    if not is_flow_map(drift):
        raise ConfigError(
            f"drift: a distillation trains a flow map, and '{config.drift['name']}' doesn't take the end of a jump. "
            f"Leave `drift` out, or set {{name: flow-map}}."
        )


def check_convention(
    drift: ForeignDrift, spec: Spec, path: Path, coupling: Coupling, config: Config, registry: Registry
) -> None:
    """Refuse a network whose convention contradicts the run.

    Raises:
        ConfigError: for another path than the network's, or a score that doesn't determine the velocity here.
    """
    named = drift.convention.path
    trained = (
        [("drift.convention.path", named, registry.build("path", named, "drift.convention.path"))] if named else []
    )
    if "path" in spec:
        trained.append(("drift.path", spec["path"], drift.path))
    for where, of, other in trained:
        differs = path_differences(path, other)
        if differs:
            raise ConfigError(
                f"{where}: the network was trained on {of}, and the run's path {config.path} differs in "
                f"{', '.join(differs)}. Give the run the network's path, or correct the convention."
            )
    normal = is_standard_normal(config.source, registry)
    check_score(drift.convention, independent=getattr(coupling, "independent", False), normal=normal)
