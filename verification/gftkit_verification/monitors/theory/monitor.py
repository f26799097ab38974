"""The monitor ``theory``: a fine-tune measured against what the theory predicts for it, while it runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

import gftkit
from gftkit.kernel.errors import ConfigError
from gftkit.runs.folder import LOG
from gftkit.runtime.randomness import stream
from gftkit.storage.documents import write_json
from gftkit.storage.log import read_log
from gftkit.theory.gap import Statistics, Summary, mean_estimate, root_estimate, statistics, summary
from gftkit.theory.objective import blend, retention, squared_norm
from gftkit.training.state import Draw, TrainingState
from gftkit.training.verdict import Verdict
from gftkit_verification.monitors.probes import exact_drift, joined, leading, values_at, why_no_oracle

if TYPE_CHECKING:
    from gftkit.recording.html import Section
    from gftkit.runs.folder import RunFolder

NAME = "theory"
FILE = "theory.json"


@dataclass(frozen=True)
class Probe:
    """Batches of states that are drawn once and measured at every evaluation.

    Attributes:
        drawn: times, states, conditional drifts and conditions, batch after batch, (batches * states, ...).
        anchor: b_pre at all of them.
        weight: w(t), or None for 1.
        exact: b_tgt at the first ``exact.shape[1]`` states of each batch, (batches, few, *event), or None.
    """

    drawn: Draw
    anchor: Tensor
    weight: Tensor | None
    exact: Tensor | None = None


class Theory:
    """How a fine-tune follows the theory: its distance from each temperature's optimum b_beta, at every evaluation.

    On training targets with fresh source samples, times and noise, and on held-out ones, it measures T (theory,
    section 5), the share of the way from the pretrained drift to b_beta, and the two estimates of |Delta|^2, with
    standard errors over independent batches. Where the target drift b_tgt is known exactly it measures |b - b_tgt|,
    |b - b_beta| and |Delta| too: with the source N(0, I), the coupling ``independent``, an affine path or the Brownian
    bridge, a finite training set that is not augmented and a drift without conditions; then b_tgt is the drift that
    reproduces the training set. Where that doesn't apply theory.json and the report say why.

    The same states serve all evaluations, so that curves are comparable and most of the work is done once. The raw
    weights are measured. A fine-tune only: a pretraining has no anchor.

    Args:
        batches: independent batches, each paired as in training: standard errors are over them.
        states: states of each batch that are measured, at most ``train.pairing_batch``.
        oracle: measure against the exact target drift where it is known.

    Raises:
        ConfigError: beside a pretraining.

    Reference: theory, T1, T4, T7, T13 and section 5; arXiv:2601.22495.

    Example:
        >>> import gftkit
        >>> gftkit.load().create("monitor", "theory", batches=8).states
        64
    """

    def __init__(
        self,
        batches: Annotated[int, Field(ge=2)] = 16,
        states: Annotated[int, Field(gt=0)] = 64,
        oracle: bool = True,
    ) -> None:
        self.batches, self.states, self.oracle = batches, states, oracle
        self._probes: dict[str, Probe] = {}
        self._why_not = ""

    @torch.no_grad()
    def observe(self, state: TrainingState) -> dict[str, Any]:
        """What is measured at an evaluation; at step 0 also the setting."""
        if state.anchor is None:
            raise ConfigError(
                f"monitors: '{NAME}' measures a fine-tune against the drift it started from, and a pretraining has "
                f"none. Leave it out here, and name it in the fine-tune's config."
            )
        if not self._probes:
            self._prepare(state)
        found: dict[str, Any] = {"temperature": state.temperature, "retention": retention(state.temperature)}
        for name, probe in self._probes.items():
            drift = values_at(state.drift, probe.drawn)
            batches = self._statistics(drift, probe, state.temperature)
            measured = numbers(summary(batches, state.temperature))
            found |= {f"{name}{key}": value for key, value in measured.items()}
            if name == "":
                found |= {"G_batches": [batch.g for batch in batches], "R_batches": [batch.r for batch in batches]}
            if probe.exact is not None:
                found |= self._against_oracle(drift, probe, state.temperature)
        whole = self._probes[""]
        first = leading(whole.drawn, len(whole.anchor) // self.batches)
        now = squared_norm(values_at(state.anchor, first)).double().mean()
        found["anchor_norm"] = float(now.sqrt())
        if state.step == 0:
            found |= {
                "oracle": self._why_not or "applies",
                "batches": self.batches,
                "states": len(whole.anchor) // self.batches,
                "pairing_batch": _pairing_batch(state),
            }
        return found

    def finish(self, folder: Path) -> None:
        """Write theory.json."""
        from gftkit_verification.monitors.theory.following import record

        write_json(folder / FILE, record(_mine(read_log(folder / LOG))))

    def sections(self, lines: Sequence[Mapping[str, Any]]) -> "list[Section]":
        """The run's part of a report: prediction and measurement, as a picture and in words."""
        from gftkit_verification.monitors.theory.following import record, shown

        return shown(record(lines))

    def verdict(self, run: "RunFolder") -> Verdict:
        """Whether a finished run followed the theory and, if not, where it left it."""
        from gftkit_verification.monitors.theory.following import judge

        return judge(run, _mine(run.history()), run.folder / FILE)

    def _prepare(self, state: TrainingState) -> None:
        """Draw the states, and compute once what stays: the anchor's drift and, where it is known, the target's."""
        reasons = iter(why_no_oracle(state)) if self.oracle else iter(["switched off by its option `oracle`"])
        self._why_not = next(reasons, "")
        held_out = {"held_out_": True} if state.config.evaluate.data is not None else {}
        for name, flag in {"": False, **held_out}.items():
            drawn = [
                state.draw(_pairing_batch(state), stream(state.seed, NAME, name, k), flag, keep=self.states)
                for k in range(self.batches)
            ]
            whole = joined(drawn)
            weight = None if state.weight is None else state.weight(whole.t)
            exact = None if flag or self._why_not else self._exact(state, drawn)
            self._probes[name] = Probe(whole, values_at(state.anchor, whole), weight, exact)

    def _exact(self, state: TrainingState, drawn: Sequence[Draw]) -> Tensor | None:
        """b_tgt at as many states of each batch as the work allows, (batches, few, *event); None with the reason."""
        try:
            return self._by_batch(exact_drift(state, drawn))
        except ValueError as error:
            self._why_not = str(error)
            return None

    def _statistics(self, drift: Tensor, probe: Probe, temperature: float) -> list[Statistics]:
        """T, G and R of each batch."""
        weights = [None] * self.batches if probe.weight is None else probe.weight.chunk(self.batches)
        parts = (values.chunk(self.batches) for values in (drift, probe.drawn.target, probe.anchor))
        return [
            statistics(b, target, anchor, temperature, weight)
            for b, target, anchor, weight in zip(*parts, weights, strict=True)
        ]

    def _against_oracle(self, drift: Tensor, probe: Probe, temperature: float) -> dict[str, Any]:
        """|b - b_tgt|_w, |b - b_beta|_w, |Delta|_w, T without label noise, and what that noise averages to."""
        assert probe.exact is not None
        few = probe.exact.shape[1]
        b, target, anchor = (self._by_batch(values)[:, :few] for values in (drift, probe.drawn.target, probe.anchor))
        weight = None if probe.weight is None else self._by_batch(probe.weight)[:, :few]

        def over_batches(products: Tensor) -> Any:
            products = products.flatten(2).sum(2).double()
            return mean_estimate((products if weight is None else weight * products).mean(1))

        optimum = blend(probe.exact, anchor, temperature)
        found: dict[str, Any] = {}
        for name, apart in (
            ("drift_error", b - probe.exact),
            ("distance_to_optimum", b - optimum),
            ("gap", anchor - probe.exact),
        ):
            norm = root_estimate(over_batches(apart.square()))
            found |= {name: norm.value, f"{name}_stderr": norm.stderr}
        exact, noise = over_batches((b - optimum) * (b - anchor)), over_batches((target - probe.exact) * anchor)
        found |= {"T_exact": exact.value, "T_exact_stderr": exact.stderr}
        return found | {"label_noise": noise.value, "label_noise_stderr": noise.stderr}

    def _by_batch(self, values: Tensor) -> Tensor:
        """(batches * n, ...) -> (batches, n, ...)."""
        return values.reshape(self.batches, -1, *values.shape[1:])


def numbers(measured: Summary) -> dict[str, float]:
    """A summary as it is logged: name -> value, and name + "_stderr"."""
    distance = root_estimate(measured.r)
    estimates = {
        "T": measured.t,
        "reached": measured.reached,
        "distance_from_pretrained": distance,
        "towards_target": measured.p,
        "gap_squared_by_distance": measured.by_distance,
        "gap_squared_by_loss": measured.by_loss,
        "ratio": measured.ratio,
    }
    found: dict[str, float] = {}
    for name, estimate in estimates.items():
        found |= {name: estimate.value, f"{name}_stderr": estimate.stderr}
    return found


def _mine(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["kind"] == "monitor" and line.get("monitor") == NAME]


def _pairing_batch(state: TrainingState) -> int:
    return state.config.train.pairing_batch or state.config.train.batch_size


@gftkit.hookimpl
def gftkit_monitors() -> dict[str, type]:
    """The monitors that need an oracle."""
    from gftkit_verification.monitors.memorisation.monitor import Memorisation

    return {NAME: Theory, "memorisation": Memorisation}
