"""What a study would run into, found before it runs: too few data, metrics that refuse; and how long it takes."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gftkit.api import Run
from gftkit.evaluation.metrics import measure
from gftkit.experiment.build import build
from gftkit.kernel.errors import DataError, unknown
from gftkit.kernel.options import plain
from gftkit.kernel.registry import Registry
from gftkit.networks.anchor import FrozenAnchor
from gftkit.runs import lineage
from gftkit.runs.folder import is_run
from gftkit.runs.schema import Config
from gftkit.runtime.devices import cuda_devices, start_accelerator
from gftkit.storage.log import measured_names
from gftkit.study.methods import Method
from gftkit.study.plan import Plan, Start
from gftkit.training.steps import Steps

TIMED = 5
"""Steps that are timed, after one that isn't."""


@dataclass(frozen=True)
class Pace:
    """How long parts of a run take here, in seconds.

    Attributes:
        step: one step of plain flow matching.
        end: all metrics once.
        evaluation: the metrics along a run, once.
    """

    step: float
    end: float
    evaluation: float

    def seconds(self, config: Config) -> float:
        """About how long a run takes; an anchor, a monitor and what is drawn at the end come on top of it."""
        train, evaluate = config.train, config.evaluate
        assert evaluate.every is not None
        looks = train.steps / evaluate.every * (2 if evaluate.averaged else 1)
        return train.steps * self.step + looks * self.evaluation + 2 * self.end


def try_out(plan: Plan, registry: Registry, device: str = "auto") -> Pace:
    """Build what the cells want, measure an untrained network by their metrics, and take some steps.

    Raises:
        DataError: for a size that is larger than the data.
        ConfigError: for metrics that refuse so few samples or these features.
        UnknownNameError: where no metric measures what the study judges.
        GftkitError: for any other component that can't be made.
    """
    shapes = {_shape(start, registry) for start in plan.starts.values()}
    alike: dict[str, list[tuple[str, str]]] = {}
    for key, template in plan.templates.items():
        data = template.data["target"] if plan.methods[key[0]].replays else template.data
        evaluate = {name: value for name, value in vars(template.evaluate).items() if name not in ("every", "averaged")}
        held = json.dumps([plain(data), plain(evaluate), plain(template.drift), template.train.batch_size])
        alike.setdefault(held, []).append(key)
    paces = []
    for keys in alike.values():
        sizes = [cell.size for cell in plan.cells if (cell.method, cell.coupling) in keys]
        seed = next(cell.seed for cell in plan.cells if (cell.method, cell.coupling) in keys)
        config = _alone(plan.templates[keys[0]], plan.methods[keys[0][0]])
        paces.append(_tried(config, sizes, seed, plan.study.metric, shapes, registry, device))
    return max(paces, key=lambda pace: pace.step)


def _alone(template: Config, method: Method) -> Config:
    """The same data, network and metrics without what is there after the pretraining only."""
    config = replace(template, kind="pretrain", pretrained=None, schedule=None, anchor=None, adapters=None, stop=None)
    data = template.data["target"] if method.replays else template.data
    return replace(config, data=data, objective=replace(template.objective, l2_sp=0.0), monitors=[], track=[])


def _shape(start: Start, registry: Registry) -> tuple[int, ...]:
    """The event shape of a pretrained run; of one that is to be made, which is built here."""
    if is_run(start.folder) and Run.open(start.folder, registry).finished:
        return Run.open(start.folder, registry).facts.event_shape
    with torch.random.fork_rng(devices=[]):
        return build(start.config, registry).facts.event_shape


def _tried(
    config: Config,
    sizes: Sequence[int],
    seed: int,
    metric: str,
    shapes: set[tuple[int, ...]],
    registry: Registry,
    device: str,
) -> Pace:
    """Data at their largest size; metrics, and some steps, at the smallest."""
    most = replace(config, data={**config.data, "count": max(sizes), "seed": seed})
    try:
        registry.build("dataset", most.data, "data")
    except DataError as error:
        raise DataError(f"groups: {max(sizes)} samples of base.data: {error}") from error
    config = replace(config, data={**config.data, "count": min(sizes), "seed": seed}, seed=seed)
    accelerator = start_accelerator(device)
    with torch.random.fork_rng(devices=cuda_devices(accelerator.device)):
        experiment = build(config, registry)
        for shape in shapes - {experiment.facts.event_shape}:
            raise DataError(
                f"base.data: wanted samples of shape {shape}, as the pretrained run has, got "
                f"{experiment.facts.event_shape}. Resize or crop them (image sets take `size`)."
            )
        drift = experiment.networks.drift.to(accelerator.device)
        anchor: Any = FrozenAnchor(drift, lineage.made_of(config.drift, experiment.facts, registry))
        networks = replace(experiment.networks, anchor=anchor.to(accelerator.device))
        watched = replace(experiment, networks=networks)
        took = []
        for metrics in (watched.measurement.final, watched.measurement.metrics):
            before = time.perf_counter()
            values = measure(metrics, watched.evaluation(drift.eval(), accelerator.device), config.seed)
            took.append(time.perf_counter() - before)
        if metric not in (known := measured_names(values)):
            cure = "It must be one that `base.evaluate.metrics` measures along the run."
            raise unknown("metric at metric:", metric, known, cure)
        steps = Steps(replace(experiment, networks=replace(experiment.networks, anchor=None)), accelerator)
        count = min(TIMED, config.train.steps - 1)
        for step in range(count + 1):
            if step <= 1:
                before = time.perf_counter()
            float(steps.take(step)["loss"])
    return Pace((time.perf_counter() - before) / max(1, count), *took)
