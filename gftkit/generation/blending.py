"""Blending at inference: the fine-tuned drift moved towards the pretrained one, or away from it."""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gftkit.data import conditions
from gftkit.experiment.networks import adapted_drift, starting_networks
from gftkit.experiment.restore import trained_drift
from gftkit.generation.requested_retention import Retention, check_fitted, retention_at
from gftkit.kernel.contracts import Drift, Profile
from gftkit.kernel.errors import ConfigError, RunError
from gftkit.networks.anchor import AdaptersOffAnchor, Anchor, short_hash
from gftkit.networks.guidance import check_guidance, with_guidance
from gftkit.networks.precision import Precision, in_precision
from gftkit.runs import lineage
from gftkit.runs.folder import RunFolder, Weights, is_run
from gftkit.sampling.integrate import drift_at
from gftkit.storage.tensors import digest
from gftkit.theory import flow

TIMES_KEPT = 4096
"""Flow times whose retention is kept: solvers come back to the same ones with every batch."""


class Blended:
    """b + rho(t) (b_pre - b) at every call: the fine-tuned drift b, with the anchor b_pre as guide.

    A retention rho above 0 moves b towards b_pre: with b = b_tgt it is the optimum of a temperature (T1). One below 0
    moves it on past b, as seen from b_pre: b_pre + w (b - b_pre) with w = 1 - rho > 1 (T20). The anchor is evaluated
    only where rho isn't 0.

    Args:
        drift: b.
        anchor: b_pre; it gets those of the conditions that it takes.
        retention: rho < 1, a number or a profile.

    Raises:
        ValueError: for a number out of range.
        ConfigError: in use by a solver, for a profile that is out of range at a flow time.

    Reference: theory, T1, T20 and T21; Domain Guidance, arXiv:2504.01521; autoguidance, arXiv:2406.02507.

    Example:
        >>> import torch
        >>> beyond = Blended(lambda t, x: 2 * x, lambda t, x: x, -0.5)
        >>> beyond(torch.zeros(1), torch.ones(1, 1))
        tensor([[2.5000]])
    """

    def __init__(self, drift: Drift, anchor: Drift, retention: Retention) -> None:
        rho = retention if isinstance(retention, Profile) else float(retention)
        if isinstance(rho, float) and not -math.inf < rho <= 1:  # 1 by rounding, of a high temperature
            raise ValueError(f"retention: wanted a finite number below 1, got {rho:g}.")
        self._drift, self._anchor, self._retention = drift, anchor, rho
        self._anchor_conditions = conditions.condition_names(anchor)
        self.conditions, self.null = conditions.condition_names(drift), conditions.condition_nulls(drift)
        self._known = lru_cache(TIMES_KEPT)(lambda t: retention_at(rho, t))

    def __call__(self, t: Tensor, x: Tensor, **named: Tensor) -> Tensor:
        """(batch,), (batch, *event), (batch, ...) each -> (batch, *event)."""
        own, rho = self._drift(t, x, **named), self._retention
        if isinstance(rho, float):
            return own if rho == 0 else torch.lerp(own, self._anchored(t, x, named), rho)
        values = rho.retention(t.double())
        # Times of their own: which need the anchor is asked of the device. Solvers call `at_time`.
        needed = values.nonzero().flatten()
        if not len(needed):
            return own
        part = {name: named[name][needed] for name in self._anchor_conditions}
        change = self._anchored(t[needed], x[needed], part) - own[needed]
        return own.index_add(0, needed, flow.expand(values[needed].to(own.dtype), change) * change)

    def at_time(self, t: float) -> Drift:
        """The drift for samples that share the time t: the fine-tuned one alone where the retention is 0."""
        rho, drift, names = self._known(t), drift_at(self._drift, t), self._anchor_conditions
        if rho == 0:
            return drift
        anchor = drift_at(self._anchor, t)
        # Made at every evaluation, so it is a function: an object would take as long as a small network's layer.
        return lambda t, x, **named: torch.lerp(
            drift(t, x, **named), anchor(t, x, **{name: named[name] for name in names}), rho
        )

    def _anchored(self, t: Tensor, x: Tensor, named: dict[str, Tensor]) -> Tensor:
        return self._anchor(t, x, **{name: named[name] for name in self._anchor_conditions})


class SampledDrift(NamedTuple):
    """The drift that is integrated to sample a run.

    Attributes:
        drift: the trained drift, or its blend with the anchor; guided as requested.
        weights: digest of the trained weights.
        anchor: hash of the anchor; None without a blend.
    """

    drift: Drift
    weights: str
    anchor: str | None = None


def sampled_drift(
    run: RunFolder,
    retention: Retention,
    weights: Weights,
    device: torch.device | str,
    *,
    noisy: bool = False,
    precision: Precision = "float32",
    guidance: float = 1.0,
    guidance_key: str = "guidance",
) -> SampledDrift:
    """Build the drift that is integrated to sample a run: its own, or at a retention other than 0 the blend.

    Guidance comes first: both drifts are guided by the same scale, each with its own null, and then blended.

    Args:
        run: a finished run.
        retention: of the blend.
        weights: "ema" or "raw".
        device: where to evaluate.
        noisy: whether the flow is sampled with a diffusion.
        precision: of the layers; guidance and the blend are computed in float32.
        guidance: scale of classifier-free guidance.
        guidance_key: names the scale in errors.

    Raises:
        ConfigError: for a run without an anchor, a blend with a diffusion, a profile that was fitted to another run or
            anchor, and guidance of a drift that wasn't trained for it.
        RunError: see ``drift_and_anchor``.
    """
    dropout = run.config.train.condition_dropout
    if isinstance(retention, float) and retention == 0:
        own, weights_hash = trained_drift(run, weights, device)
        check_guidance(guidance, own, dropout, guidance_key)
        return SampledDrift(with_guidance(in_precision(own, precision, device), guidance), weights_hash)
    _check_blend(run, noisy=noisy)
    check_fitted(retention, run, anchor=str(run.notes["anchor"]))
    blends = blends_of(
        run, weights, device, noisy=noisy, precision=precision, guidance=guidance, guidance_key=guidance_key
    )
    check_fitted(retention, run, weights=blends.weights)
    return SampledDrift(blends.at(retention), blends.weights, blends.anchor.hash)


@dataclass(frozen=True)
class Blends:
    """The drift of a fine-tune and its anchor, of which blends are made at any retention.

    Attributes:
        trained: the trained drift, not guided.
        anchor: its anchor, not guided.
        weights: digest of the trained weights.
        guided: both, guided as requested and in the precision that was asked for.
    """

    trained: Drift
    anchor: Anchor
    weights: str
    guided: tuple[Drift, Drift]

    def at(self, retention: Retention) -> Blended:
        """The blend at a retention."""
        return Blended(*self.guided, retention)


def blends_of(
    run: RunFolder,
    weights: Weights,
    device: torch.device | str,
    *,
    noisy: bool = False,
    precision: Precision = "float32",
    guidance: float = 1.0,
    guidance_key: str = "guidance",
) -> Blends:
    """The blends of a finished fine-tune, whose weights are read once; arguments and errors as of ``sampled_drift``."""
    _check_blend(run, noisy=noisy)
    (trained, anchor), weights_hash = drift_and_anchor(run, weights, device)
    check_guidance(guidance, trained, run.config.train.condition_dropout, guidance_key)
    anchor_scale = guidance if guidance != 1 and _drops_conditions(run, trained, anchor, guidance) else 1.0
    guided = (
        with_guidance(in_precision(trained, precision, device), guidance),
        with_guidance(in_precision(anchor, precision, device), anchor_scale),
    )
    return Blends(trained, anchor, weights_hash, guided)


def _check_blend(run: RunFolder, *, noisy: bool) -> None:
    """Refuse a run without an anchor, and noise."""
    if run.config.kind == "distill":
        raise ConfigError(
            f"retention: {run.folder} is a flow-map student, which has no anchor to blend with, and the flow map of a "
            f"blend is no blend of flow maps. Blend its teacher, if that is a fine-tune, or leave the retention (or "
            f"temperature) out."
        )
    if run.config.kind != "finetune":
        raise ConfigError(
            f"retention: {run.folder} is no fine-tune, so it has no anchor to blend with. Leave the retention (or "
            f"temperature) out, or sample a fine-tune."
        )
    if noisy:
        raise ConfigError(
            "retention: a blend of velocities has no known score, which a diffusion requires (T12). Sample the blend "
            "by its ODE: leave the diffusion out."
        )


def _drops_conditions(run: RunFolder, trained: Drift, anchor: Anchor, guidance: float) -> bool:
    """True where guidance leaves out conditions of the anchor; refused where it can't.

    Raises:
        ConfigError: where the two drifts leave out different conditions, or the anchor wasn't trained without them.
    """
    dropped, own = (set(anchor.conditions) & set(conditions.condition_nulls(drift)) for drift in (trained, anchor))
    if dropped != own:
        names = ", ".join(sorted(dropped ^ own))
        raise ConfigError(
            f"retention: guidance ({guidance:g}) leaves out the same conditions in both drifts, and only one of them "
            f"has a null for {names}. Blend without guidance, or leave the retention (or temperature) out."
        )
    source = (run.config.anchor or {}).get("pretrained") or run.config.start
    before = RunFolder.open(source, run.registry) if source is not None and is_run(Path(source)) else None
    if own and before is not None and before.config.train.condition_dropout == 0:
        raise ConfigError(
            f"retention: guidance ({guidance:g}) evaluates the anchor without its conditions too, and {source} wasn't "
            f"trained for that (train.condition_dropout is 0). Blend without guidance, or leave the retention (or "
            f"temperature) out."
        )
    return bool(own)


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
        if weights == "raw":
            merged: str | None = digest(adapted.merged())
        else:
            merged = run.averages().digest if run.has_base else run.adapted_digest
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
