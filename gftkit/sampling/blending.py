"""Blending at inference: a dial between what a fine-tune learned and what it started from."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gftkit import conditions
from gftkit.anchor import AdaptersOffAnchor, Anchor, short
from gftkit.config import Precision
from gftkit.contracts import Drift
from gftkit.errors import ConfigError, RunError
from gftkit.files import read_notes
from gftkit.forward import in_precision
from gftkit.objective import blend

if TYPE_CHECKING:
    from gftkit.run import Run, Weights


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
        self._told = conditions.names(anchor)
        self.conditions, self.null = conditions.names(drift), conditions.nulls(drift)

    def __call__(self, t: Tensor, x: Tensor, **given: Tensor) -> Tensor:
        """(batch,), (batch, *event), (batch, ...) each -> (batch, *event)."""
        anchored = self._anchor(t, x, **{name: given[name] for name in self._told})
        return blend(self._drift(t, x, **given), anchored, self._temperature)


def sampled_drift(
    run: "Run",
    temperature: float,
    weights: "Weights",
    device: torch.device | str,
    noisy: bool,
    precision: Precision = "float32",
    guidance: float = 1.0,
) -> tuple[Drift, str | None]:
    """What is integrated of a run, and the anchor's hash: its drift, or at a temperature > 0 the blend.

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
        return in_precision(run.drift(weights, device), precision, device), None
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
    drift, anchor = networks(run, weights, device)
    one, other = (in_precision(part, precision, device) for part in (drift, anchor))
    return Blended(one, other, temperature), anchor.hash


def _check_guided(run: "Run", guidance: float) -> None:
    """Refuse guidance of an anchor that never learned what it is without conditions, where that can be told."""
    from gftkit.run import Run, is_run

    source = (run.config.anchor or {}).get("pretrained") or run.config.start
    if guidance == 1 or source is None or not is_run(Path(source)):
        return
    before = Run.open(source, run.registry)
    if conditions.nulls(before.drift()) and before.config.train.condition_dropout == 0:
        raise ConfigError(
            f"temperature: under guidance ({guidance:g}) the anchor is asked without its conditions too, and {source} "
            f"never trained that (train.condition_dropout is 0). Blend without guidance, or leave the temperature out."
        )


def networks(run: "Run", weights: "Weights", device: torch.device | str) -> tuple[Drift, Anchor]:
    """The trained drift of a fine-tune and its anchor, on a device.

    Under ``adapters-off`` both are one network, with its adapters and without them.

    Raises:
        RunError: where the anchor isn't the one that the run was trained with, and where adapters are gone.
    """
    from gftkit import lineage
    from gftkit.experiment import anchor_of, starting
    from gftkit.run import MODEL

    facts = run.weights(weights)[1]
    notes = read_notes(run.folder / MODEL)
    if "anchors" not in notes:
        raise RunError(
            f"{run.folder} was written by an earlier version, which knew an anchor by its weights alone: whether it is "
            f"still the same can't be told. Train it again to blend it."
        )
    hashed = str(notes["anchor"])
    if (run.config.anchor or {}).get("name") == lineage.OFF:
        adapted = run.adapted(facts, weights)
        adapted.drift.requires_grad_(False).to(device)
        return adapted.drift, AdaptersOffAnchor(adapted, hashed)
    path = run.registry.build("path", run.config.path)
    anchor = anchor_of(run.config, starting(run.config, facts, run.registry), facts, path, run.registry)[0]
    assert anchor is not None  # only adapters-off has none of its own
    if anchor.hash != hashed:
        raise RunError(
            f"{run.folder}: the anchor isn't the one that this run was trained with: hash {short(hashed)}, now "
            f"{short(anchor.hash)}. The weights at {(run.config.anchor or {}).get('pretrained') or run.config.start}, "
            f"or how their drift is made, have changed. Restore them."
        )
    return run.drift(weights, device), anchor.to(device)
