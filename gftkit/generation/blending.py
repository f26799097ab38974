"""Blending at inference: a dial between the fine-tuned drift and the pretrained one."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gftkit.data import conditions
from gftkit.experiment.building import build_drift
from gftkit.experiment.networks import starting_networks
from gftkit.experiment.restore import adapted_drift, trained_drift
from gftkit.kernel.contracts import Drift
from gftkit.kernel.errors import ConfigError, RunError
from gftkit.networks.anchor import AdaptersOffAnchor, Anchor, short_hash
from gftkit.networks.precision import Precision, in_precision
from gftkit.runs import lineage
from gftkit.runs.folder import RunFolder, Weights, is_run
from gftkit.storage.tensors import digest
from gftkit.theory.objective import blend


class Blended:
    """(b + beta b_pre)/(1 + beta) at every call: the optimum b_beta (T1) with the fine-tuned drift as b_tgt.

    Args:
        drift: b, the fine-tuned drift.
        anchor: b_pre; it gets those of the conditions that it takes.
        temperature: beta >= 0, 0 for the fine-tuned drift, large for the pretrained one.

    Reference: Gradual Fine-Tuning for Flow Matching Models, arXiv:2601.22495; theory, T1.
    """

    def __init__(self, drift: Drift, anchor: Drift, temperature: float) -> None:
        self._drift, self._anchor, self._temperature = drift, anchor, temperature
        self._anchor_conditions = conditions.condition_names(anchor)
        self.conditions, self.null = conditions.condition_names(drift), conditions.condition_nulls(drift)

    def __call__(self, t: Tensor, x: Tensor, **named: Tensor) -> Tensor:
        """(batch,), (batch, *event), (batch, ...) each -> (batch, *event)."""
        anchored = self._anchor(t, x, **{name: named[name] for name in self._anchor_conditions})
        return blend(self._drift(t, x, **named), anchored, self._temperature)


class SampledDrift(NamedTuple):
    """The drift that is integrated to sample a run.

    Attributes:
        drift: the trained drift, or its blend with the anchor.
        weights: digest of the trained weights.
        anchor: hash of the anchor; None without a blend.
    """

    drift: Drift
    weights: str
    anchor: str | None = None


def sampled_drift(
    run: RunFolder,
    temperature: float,
    weights: Weights,
    device: torch.device | str,
    *,
    noisy: bool,
    precision: Precision = "float32",
    guidance: float = 1.0,
) -> SampledDrift:
    """Build the drift that is integrated to sample a run: its own, or at a temperature > 0 the blend with its anchor.

    Args:
        run: a finished run.
        temperature: of the blend, >= 0.
        weights: "ema" or "raw".
        device: where to evaluate.
        noisy: whether the flow is sampled with a diffusion.
        precision: of the layers; the blend itself is computed in float32.
        guidance: scale of classifier-free guidance, under which both drifts are evaluated.

    Raises:
        ConfigError: for a temperature out of range, a run without an anchor, a blend with a diffusion, or guidance of
            an anchor that wasn't trained for it.
        RunError: see ``drift_and_anchor``.
    """
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"temperature: wanted a finite number >= 0, got {temperature}.")
    if temperature == 0:
        own, weights_hash = trained_drift(run, weights, device)
        return SampledDrift(in_precision(own, precision, device), weights_hash)
    if run.config.kind != "finetune":
        raise ConfigError(
            f"temperature: {run.folder} is no fine-tune, so it has no anchor to blend with. Leave the temperature out, "
            f"or sample a fine-tune."
        )
    if noisy:
        raise ConfigError(
            "temperature: a blend of velocities has no known score, which a diffusion requires (T12). Sample the blend "
            "by its ODE: leave the diffusion out."
        )
    _check_guided(run, guidance)
    (trained, anchor), weights_hash = drift_and_anchor(run, weights, device)
    blended = Blended(in_precision(trained, precision, device), in_precision(anchor, precision, device), temperature)
    return SampledDrift(blended, weights_hash, anchor.hash)


def _check_guided(run: RunFolder, guidance: float) -> None:
    """Refuse guidance of an anchor that wasn't trained without conditions, where its run is known."""
    source = (run.config.anchor or {}).get("pretrained") or run.config.start
    if guidance == 1 or source is None or not is_run(Path(source)):
        return
    before = RunFolder.open(source, run.registry)
    untrained = build_drift(before.spec("drift"), before.facts, before.registry, before.path)
    if conditions.condition_nulls(untrained) and before.config.train.condition_dropout == 0:
        raise ConfigError(
            f"temperature: guidance ({guidance:g}) evaluates the anchor without its conditions too, and {source} "
            f"wasn't trained for that (train.condition_dropout is 0). Blend without guidance, or leave the temperature "
            f"out."
        )


def drift_and_anchor(run: RunFolder, weights: Weights, device: torch.device | str) -> tuple[tuple[Drift, Anchor], str]:
    """The trained drift of a fine-tune and its anchor, on a device, and the digest of the trained weights.

    Under ``adapters-off`` both are one network, with its adapters and without them.

    Raises:
        RunError: where the anchor has changed since the run was trained, and where adapters are missing.
    """
    facts, anchor_hash = run.facts, str(run.notes["anchor"])
    if (run.config.anchor or {}).get("name") == lineage.OFF:
        adapted = adapted_drift(run, facts, weights)
        adapted.drift.requires_grad_(False).to(device)
        merged = run.averages().digest if weights == "ema" else digest(adapted.merged())
        return (adapted.drift, AdaptersOffAnchor(adapted, anchor_hash)), str(merged)
    _, anchor = starting_networks(run, facts, anchor=True)
    assert anchor is not None  # only adapters-off has none of its own
    if anchor.hash != anchor_hash:
        raise RunError(
            f"{run.folder}: the anchor has changed since this run was trained: hash {short_hash(anchor_hash)}, now "
            f"{short_hash(anchor.hash)}. The weights at "
            f"{(run.config.anchor or {}).get('pretrained') or run.config.start}, or the spec of their drift, have "
            f"changed. Restore them."
        )
    drift, trained = trained_drift(run, weights, device)
    return (drift, anchor.to(device)), trained
