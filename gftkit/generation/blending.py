"""Blending at inference: a dial between what a fine-tune learned and what it started from."""

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
        anchor: b_pre, given those of the conditions that it uses.
        temperature: beta >= 0: 0 for the fine-tuned drift, large for the pretrained one.

    Reference: Gradual Fine-Tuning for Flow Matching Models, arXiv:2601.22495; theory, T1.
    """

    def __init__(self, drift: Drift, anchor: Drift, temperature: float) -> None:
        self._drift, self._anchor, self._temperature = drift, anchor, temperature
        self._told = conditions.condition_names(anchor)
        self.conditions, self.null = conditions.condition_names(drift), conditions.condition_nulls(drift)

    def __call__(self, t: Tensor, x: Tensor, **given: Tensor) -> Tensor:
        """(batch,), (batch, *event), (batch, ...) each -> (batch, *event)."""
        anchored = self._anchor(t, x, **{name: given[name] for name in self._told})
        return blend(self._drift(t, x, **given), anchored, self._temperature)


class Sampled(NamedTuple):
    """What is integrated of a run.

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
) -> Sampled:
    """Make what is integrated of a run: its drift, or at a temperature > 0 the blend with its anchor.

    Args:
        run: a finished run.
        temperature: beta >= 0.
        weights: "ema" or "raw".
        device: where to evaluate.
        noisy: whether a diffusion of the user's choice is added.
        precision: of the layers; the blend is taken in float32.
        guidance: scale of classifier-free guidance, which both drifts will be under.

    Raises:
        ConfigError: for a temperature that is none, a run without an anchor, a blend with chosen noise, or guidance of
            an anchor that wasn't trained for it.
        RunError: see ``networks``.
    """
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"temperature: wanted a finite number >= 0, got {temperature}.")
    if temperature == 0:
        trained, hashed = trained_drift(run, weights, device)
        return Sampled(in_precision(trained, precision, device), hashed)
    if run.config.kind != "finetune":
        raise ConfigError(
            f"temperature: {run.folder} is no fine-tune and has no anchor to blend with. Leave it out, or "
            f"sample from a fine-tune."
        )
    if noisy:
        raise ConfigError(
            "temperature: a blend of velocities and the blend of the SDEs of their laws end in different laws, and the "
            "score of neither is known (T12). Sample the blend by its ODE: without a diffusion."
        )
    _check_guided(run, guidance)
    parts, hashed = networks(run, weights, device)
    one, other = (in_precision(part, precision, device) for part in parts)
    return Sampled(Blended(one, other, temperature), hashed, parts[1].hash)


def _check_guided(run: RunFolder, guidance: float) -> None:
    """Refuse guidance of an anchor that never learned what it is without conditions, where that can be known."""
    source = (run.config.anchor or {}).get("pretrained") or run.config.start
    if guidance == 1 or source is None or not is_run(Path(source)):
        return
    before = RunFolder.open(source, run.registry)
    untrained = build_drift(before.spec("drift"), before.facts, before.registry, before.path)
    if conditions.condition_nulls(untrained) and before.config.train.condition_dropout == 0:
        raise ConfigError(
            f"temperature: under guidance ({guidance:g}) the anchor is asked without its conditions too, and {source} "
            f"never trained that (train.condition_dropout is 0). Blend without guidance, or leave the temperature out."
        )


def networks(run: RunFolder, weights: Weights, device: torch.device | str) -> tuple[tuple[Drift, Anchor], str]:
    """The trained drift of a fine-tune and its anchor, on a device, and the digest of the trained weights.

    Under ``adapters-off`` both are one network, with its adapters and without them.

    Raises:
        RunError: where the anchor isn't the one that the run was trained with, and where adapters are gone.
    """
    facts, hashed = run.facts, str(run.notes["anchor"])
    if (run.config.anchor or {}).get("name") == lineage.OFF:
        adapted = adapted_drift(run, facts, weights)
        adapted.drift.requires_grad_(False).to(device)
        merged = run.averages().digest if weights == "ema" else digest(adapted.merged())
        return (adapted.drift, AdaptersOffAnchor(adapted, hashed)), str(merged)
    _, anchor = starting_networks(run, facts, anchor=True)
    assert anchor is not None  # only adapters-off has none of its own
    if anchor.hash != hashed:
        raise RunError(
            f"{run.folder}: the anchor isn't the one that this run was trained with: hash {short_hash(hashed)}, now "
            f"{short_hash(anchor.hash)}. The weights at "
            f"{(run.config.anchor or {}).get('pretrained') or run.config.start}, or how their drift is made, have "
            f"changed. Restore them."
        )
    drift, trained = trained_drift(run, weights, device)
    return (drift, anchor.to(device)), trained
