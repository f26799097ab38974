"""A trial of a study before it runs: errors of its data and metrics, and an estimate of its time."""

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
from gftkit.study.plan import Plan, Pretrained
from gftkit.training.steps import Steps

TIMED = 5
"""Steps that are timed, after one that isn't."""


@dataclass(frozen=True)
class Pace:
    """The time that parts of a run take on this machine, in seconds.

    Attributes:
        step: one step of plain flow matching.
        end: all metrics once.
        evaluation: the metrics along a run, once.
    """

    step: float
    end: float
    evaluation: float

    def seconds(self, config: Config, *, trained: bool = True) -> float:
        """An estimate of the time of a run; an anchor, monitors and the pictures at the end take more.

        Where it isn't trained, of its measurements at a retention: two networks.
        """
        if not trained:
            return 2 * self.end
        train, evaluate = config.train, config.evaluate
        assert evaluate.every is not None
        evaluations = train.steps / evaluate.every * (2 if evaluate.averaged else 1)
        return train.steps * self.step + evaluations * self.evaluation + 2 * self.end


def try_out(plan: Plan, registry: Registry, device: str = "auto") -> Pace:
    """Build the components of the cells, measure an untrained network by their metrics, and take some steps.

    Raises:
        DataError: for a size that is larger than the data.
        ConfigError: for metrics that refuse so few samples or these features.
        UnknownNameError: where no metric measures the judged value.
        GftkitError: for any other component that can't be built.
    """
    shapes = {_shape(start, registry) for start in plan.first_starts.values()}
    # Methods with the same data, network and metrics are tried once.
    alike: dict[str, list[tuple[str, str]]] = {}
    for key, template in plan.templates.items():
        data = template.data["target"] if plan.methods[key[0]].replays else template.data
        evaluate = {name: value for name, value in vars(template.evaluate).items() if name not in ("every", "averaged")}
        key_of_trial = json.dumps([plain(data), plain(evaluate), plain(template.drift), template.train.batch_size])
        alike.setdefault(key_of_trial, []).append(key)
    paces = []
    for keys in alike.values():
        sizes = [cell.size for cell in plan.cells if (cell.method, cell.coupling) in keys]
        seed = next(cell.seed for cell in plan.cells if (cell.method, cell.coupling) in keys)
        # As pretrainings: the pretrained run may not exist yet.
        config = _without_pretraining(plan.templates[keys[0]], plan.methods[keys[0][0]])
        paces.append(
            _time_trial(config, sizes, seed, metric=plan.study.metric, shapes=shapes, registry=registry, device=device)
        )
    return max(paces, key=lambda pace: pace.step)


def _without_pretraining(template: Config, method: Method) -> Config:
    """A template as a pretraining: its data, network and metrics, without the keys that need a pretrained run."""
    config = replace(template, kind="pretrain", pretrained=None, schedule=None, anchor=None, adapters=None, stop=None)
    data = template.data["target"] if method.replays else template.data
    return replace(config, data=data, objective=replace(template.objective, l2_sp=0.0), monitors=[], track=[])


def _shape(start: Pretrained, registry: Registry) -> tuple[int, ...]:
    """The event shape of a pretrained run; of one that doesn't exist yet, by building it."""
    if is_run(start.folder) and Run.open(start.folder, registry).finished:
        return Run.open(start.folder, registry).facts.event_shape
    with torch.random.fork_rng(devices=[]):
        return build(start.config, registry).facts.event_shape


def _time_trial(
    config: Config,
    sizes: Sequence[int],
    seed: int,
    *,
    metric: str,
    shapes: set[tuple[int, ...]],
    registry: Registry,
    device: str,
) -> Pace:
    """Build the data at their largest size; measure, and time some steps, at the smallest."""
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
        anchor: Any = FrozenAnchor(drift, lineage.describe_drift(config.drift, experiment.facts, registry))
        networks = replace(experiment.networks, anchor=anchor.to(accelerator.device))
        anchored = replace(experiment, networks=networks)
        durations = []
        for metrics in (anchored.measurement.final, anchored.measurement.metrics):
            before = time.perf_counter()
            values = measure(metrics, anchored.evaluation(drift.eval(), accelerator.device), config.seed)
            durations.append(time.perf_counter() - before)
        if metric not in (known := measured_names(values)):
            cure = "It must be one that `base.evaluate.metrics` measures along the run."
            raise unknown("metric at metric:", metric, known, cure)
        steps = Steps(replace(experiment, networks=replace(experiment.networks, anchor=None)), accelerator)
        count = min(TIMED, config.train.steps - 1)
        for step in range(count + 1):
            if step <= 1:  # the first step allocates and compiles: the clock starts after it
                before = time.perf_counter()
            float(steps.take(step)["loss"])
    return Pace((time.perf_counter() - before) / max(1, count), *durations)
