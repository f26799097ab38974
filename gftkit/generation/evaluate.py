"""Evaluation of a finished run, by its own configuration or with other settings of ``evaluate``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gftkit.data.samples import Samples
from gftkit.evaluation.evaluation import Evaluation
from gftkit.evaluation.metrics import measure
from gftkit.experiment.build import build_measurement
from gftkit.experiment.building import build_source, scheme_of
from gftkit.experiment.restore import samples_of
from gftkit.generation.blending import sampled_drift
from gftkit.generation.requested_retention import RetentionRequest, parse_retention_request
from gftkit.kernel.errors import ConfigError
from gftkit.networks.flow_map import check_jumps
from gftkit.runs.folder import RunFolder, Weights, is_run
from gftkit.runs.overrides import override
from gftkit.runs.resolve import resolve_evaluate
from gftkit.sampling.stochastic import check_unpaired


def evaluate(
    run: RunFolder,
    overrides: Sequence[str] = (),
    *,
    weights: Weights = "ema",
    device: torch.device | str = "cpu",
    temperature: float | None = None,
    retention: RetentionRequest | None = None,
    seed: int | None = None,
) -> dict[str, float]:
    """Evaluate a run by every metric of its ``evaluate`` section; see ``gftkit.Run.evaluate``.

    Raises:
        GftkitError: for an override that has no valid value, data that can't be read, or a blend that isn't one (see
            ``sampled_drift``).
    """
    requested = parse_retention_request(retention, run.registry, temperature)
    raw = run.config.to_dict()
    for setting in overrides:
        if not setting.startswith("evaluate."):
            raise ConfigError(f"--set {setting}: wanted a key of `evaluate`, such as evaluate.count=500.")
        raw = override(raw, setting)
    registry = run.registry
    section = resolve_evaluate(raw["evaluate"], run.config.train, registry, Path.cwd())
    config, facts = replace(run.config, evaluate=section, monitors=[]), run.facts
    path = run.path
    scheme = scheme_of(config, section.solver, path, registry, section.guidance)
    check_unpaired(scheme.diffusion, paired=facts.paired)
    drift = sampled_drift(
        run,
        requested,
        weights,
        device,
        noisy=scheme.diffusion is not None,
        guidance=section.guidance,
        guidance_key="evaluate.guidance",
    ).drift
    check_jumps(scheme.solver, drift)
    training = reference = samples_of(run, facts.event_shape)
    if section.data is not None:
        held_out = registry.build("dataset", section.data, "evaluate.data")
        reference = Samples(held_out, "evaluate.data", facts.event_shape, facts.condition_shapes)
    source = config.pretrained
    parent = RunFolder.open(source, registry) if source is not None and is_run(source) else None
    measurement = build_measurement(config, training, reference, scheme, registry, parent)
    evaluation = Evaluation(
        drift,
        path,
        scheme,
        source=build_source(run.spec("source"), facts.event_shape, registry),
        reference=measurement.reference,
        count=section.count,
        seed=config.seed if seed is None else seed,
        device=device,
        training=measurement.training,
        history=run.history(),
        held_out=section.data is not None,
        inherited=measurement.inherited,
    )
    return measure(measurement.final, evaluation, config.seed)
