"""The monitor ``theory``: a fine-tune measured against what the theory predicts for it, while it runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

import gftkit
from gftkit.kernel.contracts import Estimate, TransportMap
from gftkit.kernel.errors import ConfigError
from gftkit.runs.folder import LOG
from gftkit.runtime.randomness import stream
from gftkit.storage.documents import write_json
from gftkit.storage.log import read_log
from gftkit.theory import flow
from gftkit.theory.gap import Statistics, Summary, mean_estimate, ratio_estimate, root_estimate, statistics, summary
from gftkit.theory.objective import Temperature, blend, retention, squared_norm
from gftkit.theory.retention_fit import RetentionFit, fit_retention
from gftkit.training.state import Draw, TrainingState
from gftkit.training.verdict import Verdict
from gftkit_verification.monitors.probes import (
    concatenate,
    evaluate_in_chunks,
    exact_drift,
    first_states,
    oracle_obstacles,
)
from gftkit_verification.monitors.theory.document import build_document, middles_of

if TYPE_CHECKING:
    from gftkit.recording.html import Section
    from gftkit.runs.folder import RunFolder

NAME = "theory"
FILE = "theory.json"


@dataclass(frozen=True)
class Probe:
    """Batches of states that are drawn once and measured at every evaluation.

    Attributes:
        states: times, states, conditional drifts and conditions, batch after batch, (batches * states, ...).
        anchor: b_pre at all of them.
        weight: w(t), or None for 1.
        exact: b_tgt at the first ``exact.shape[1]`` states of each batch, (batches, few, *event), or None.
    """

    states: Draw
    anchor: Tensor
    weight: Tensor | None
    exact: Tensor | None = None


class Theory:
    """A fine-tune beside the theory: its distance from each temperature's optimum b_beta, at every evaluation.

    On training targets with fresh source samples, times and noise, and on held-out ones, it measures T (theory,
    section 5), the share of the way from the pretrained drift to b_beta, and the two estimates of |Delta|^2, with
    standard errors over independent batches. Where the target drift b_tgt is known exactly it measures |b - b_tgt|,
    |b - b_beta| and |Delta| too: with the source N(0, I), the coupling ``independent``, an affine path or the Brownian
    bridge, a finite training set that is not augmented and a drift without conditions; then b_tgt is the drift that
    reproduces the training set. Where it isn't known theory.json and the report say why.

    In equal parts of flow time it measures the best retention r* of a blend with the anchor (T20, T21): on training
    targets, where it shows the lag c = -r*/(1 - r*), and on held-out ones, where it is what the run should end at.

    The same states serve all evaluations, so that curves are comparable and most of the work is done once. The raw
    weights are measured. A fine-tune only: a pretraining has no anchor.

    Args:
        batches: independent batches, each paired as in training: standard errors are over them.
        states: states of each batch that are measured, at most ``train.pairing_batch``.
        parts: of flow time, for lag and best retention.
        oracle: measure against the exact target drift where it is known.

    Raises:
        ConfigError: beside a pretraining.

    Reference: theory, T1, T4, T7, T13, T19 to T21 and section 5; arXiv:2601.22495.

    Example:
        >>> import gftkit
        >>> gftkit.load().create("monitor", "theory", batches=8).states
        64
    """

    def __init__(
        self,
        batches: Annotated[int, Field(ge=2)] = 16,
        states: Annotated[int, Field(gt=0)] = 64,
        parts: Annotated[int, Field(gt=0)] = 8,
        *,
        oracle: bool = True,
    ) -> None:
        self.batches, self.states, self.parts, self.oracle = batches, states, parts, oracle
        self._probes: dict[str, Probe] = {}
        self._edges: list[float] = []
        self._obstacle = ""
        """Why b_tgt isn't known; empty where it is."""

    @torch.no_grad()
    def observe(self, state: TrainingState) -> dict[str, Any]:
        """Measurements of an evaluation by name; at step 0 also the setting."""
        if state.anchor is None:
            raise ConfigError(
                f"monitors: '{NAME}' measures a fine-tune against the drift it started from, and a pretraining has "
                f"none. Remove it from this config and add it to the fine-tune's."
            )
        if not self._probes:
            self._prepare(state)
        measured: dict[str, Any] = {"temperature": state.temperature, "retention": retention(state.temperature)}
        for name, probe in self._probes.items():
            drift = evaluate_in_chunks(state.drift, probe.states)
            temperature = state.temperature_at(probe.states.t)
            batches = self._statistics(drift, probe, temperature)
            values = {**flatten_summary(summary(batches)), **flatten_fit(self._fit(drift, probe, probe.states.target))}
            measured |= {f"{name}{key}": value for key, value in values.items()}
            if name == "":
                measured |= {"G_batches": [batch.g for batch in batches], "R_batches": [batch.r for batch in batches]}
            if name == "" and isinstance(temperature, Tensor):
                measured["gap_batches"] = [batch.by_loss for batch in batches]
                measured |= self._by_time(state, drift, probe, temperature)
            if probe.exact is not None:
                measured |= self._compare_with_oracle(drift, probe, temperature)
        probe = self._probes[""]
        per_batch = len(probe.anchor) // self.batches
        # Evaluated anew each time, so that an anchor that moves is seen.
        anchor_now = evaluate_in_chunks(state.anchor, first_states(probe.states, per_batch).for_anchor())
        measured["anchor_norm"] = float(squared_norm(anchor_now).double().mean().sqrt())
        if state.step == 0:
            measured |= {
                "oracle": self._obstacle or "applies",
                "batches": self.batches,
                "states": per_batch,
                "edges": self._edges,
                "pairing_batch": _pairing_batch(state),
            }
        return measured

    def finish(self, folder: Path) -> None:
        """Write theory.json."""
        write_json(folder / FILE, build_document(_own_lines(read_log(folder / LOG))))

    def sections(self, lines: Sequence[Mapping[str, Any]]) -> "list[Section]":
        """The run's part of a report: prediction and measurement, as a picture and in words."""
        from gftkit_verification.monitors.theory.report import build_sections

        return build_sections(build_document(lines))

    def verdict(self, run: "RunFolder") -> Verdict:
        """The verdict on a finished run: did it follow the theory and, if not, where did it leave it?"""
        from gftkit_verification.monitors.theory.verdict import judge

        return judge(run, _own_lines(run.history()), run.folder / FILE)

    def _prepare(self, state: TrainingState) -> None:
        """Draw the states, and compute once what stays: the anchor's drift and, where it is known, the target's."""
        obstacles = oracle_obstacles(state) if self.oracle else ["switched off by its option `oracle`"]
        self._obstacle = next(iter(obstacles), "")
        self._edges = [flow.t_end(state.path) * k / self.parts for k in range(self.parts + 1)]
        prefixes = {"": False}
        # A transport map goes to the training data: there are no pairs of held-out samples.
        if state.config.evaluate.data is not None and not isinstance(state.coupling, TransportMap):
            prefixes["held_out_"] = True
        for name, held_out in prefixes.items():
            batches = [
                state.draw(_pairing_batch(state), stream(state.seed, NAME, name, k), held_out, keep=self.states)
                for k in range(self.batches)
            ]
            states = concatenate(batches)
            weight = None if state.weight is None else state.weight(states.t)
            exact = None if held_out or self._obstacle else self._exact(state, batches)
            self._probes[name] = Probe(states, evaluate_in_chunks(state.anchor, states.for_anchor()), weight, exact)

    def _exact(self, state: TrainingState, batches: Sequence[Draw]) -> Tensor | None:
        """b_tgt at as many states of each batch as the work allows, (batches, few, *event); None with the reason."""
        try:
            return self._by_batch(exact_drift(state, batches))
        except ValueError as error:
            self._obstacle = str(error)
            return None

    def _statistics(self, drift: Tensor, probe: Probe, temperature: Temperature) -> list[Statistics]:
        """T, G and R of each batch."""
        weights = [None] * self.batches if probe.weight is None else probe.weight.chunk(self.batches)
        betas = temperature.chunk(self.batches) if isinstance(temperature, Tensor) else [temperature] * self.batches
        parts = (values.chunk(self.batches) for values in (drift, probe.states.target, probe.anchor))
        return [
            statistics(b, target, anchor, beta, weight)
            for b, target, anchor, beta, weight in zip(*parts, betas, weights, strict=True)
        ]

    def _fit(self, drift: Tensor, probe: Probe, target: Tensor) -> RetentionFit:
        """The best retention towards a target, by flow time."""
        # float32 may round a time up to beyond t_end.
        t = probe.states.t.double().clamp(max=self._edges[-1])
        return fit_retention(
            drift, target, probe.anchor, t, batches=self.batches, edges=self._edges, weight=probe.weight
        )

    def _by_time(self, state: TrainingState, drift: Tensor, probe: Probe, temperature: Tensor) -> dict[str, Any]:
        """What the checks of a run with a profile need, by flow time: its retention, T, and P of the parts."""
        assert state.profile is not None
        rho, t = retention(temperature), probe.states.t
        middles = torch.tensor(middles_of(self._edges), dtype=torch.float64)
        part = torch.bucketize(t, torch.tensor(self._edges[1:-1], dtype=t.dtype, device=t.device), right=True)
        low = [float(rho[part == k].min()) if bool((part == k).any()) else math.nan for k in range(self.parts)]
        fit = self._fit(drift, probe, probe.states.target)
        t_by_time = self._fit(drift, probe, blend(probe.states.target, probe.anchor, temperature)).along
        measured: dict[str, Any] = {
            "retention_low": float(rho.min()),
            "retention_high": float(rho.max()),
            "retention_by_time": state.profile.retention(middles).tolist(),
            "retention_low_by_time": low,
        }
        for name, products in (("T", t_by_time), ("towards_target", fit.moved - fit.along)):
            measured |= list_by_time(name, [mean_estimate(values) for values in products.T])
        return measured

    def _compare_with_oracle(self, drift: Tensor, probe: Probe, temperature: Temperature) -> dict[str, Any]:
        """|b - b_tgt|_w, |b - b_beta|_w, |Delta|_w, T without label noise, and what that noise averages to."""
        assert probe.exact is not None
        few = probe.exact.shape[1]
        b, target, anchor = (self._by_batch(values)[:, :few] for values in (drift, probe.states.target, probe.anchor))
        weight = None if probe.weight is None else self._by_batch(probe.weight)[:, :few]

        def over_batches(products: Tensor) -> Any:
            products = products.flatten(2).sum(2).double()
            return mean_estimate((products if weight is None else weight * products).mean(1))

        varies = isinstance(temperature, Tensor)
        beta = self._by_batch(temperature)[:, :few].flatten() if isinstance(temperature, Tensor) else temperature
        optimum = blend(probe.exact.flatten(0, 1), anchor.flatten(0, 1), beta).view_as(b)
        measured: dict[str, Any] = {}
        for name, difference in (
            ("drift_error", b - probe.exact),
            ("distance_to_optimum", b - optimum),
            ("gap", anchor - probe.exact),
            # Otherwise these are |rho| and 1 - rho times the gap.
            *([("optimum_error", optimum - probe.exact), ("optimum_way", optimum - anchor)] if varies else []),
        ):
            norm = root_estimate(over_batches(difference.square()))
            measured |= {name: norm.value, f"{name}_stderr": norm.stderr}
        measured |= self._exact_lag(b, probe.exact, anchor, self._by_batch(probe.states.t)[:, :few], weight)
        exact, noise = over_batches((b - optimum) * (b - anchor)), over_batches((target - probe.exact) * anchor)
        measured |= {"T_exact": exact.value, "T_exact_stderr": exact.stderr}
        return measured | {"label_noise": noise.value, "label_noise_stderr": noise.stderr}

    def _exact_lag(
        self, drift: Tensor, exact: Tensor, anchor: Tensor, t: Tensor, weight: Tensor | None
    ) -> dict[str, list[float]]:
        """c = ``1 - <b_pre - b_tgt, b_pre - b>/|Delta|^2`` in each part of flow time, which noise doesn't lower."""
        options: dict[str, Any] = {
            "t": t.flatten().double().clamp(max=self._edges[-1]),
            "batches": self.batches,
            "edges": self._edges,
            "weight": None if weight is None else weight.flatten(),
        }
        b, target, pretrained = (values.flatten(0, 1) for values in (drift, exact, anchor))
        fit = fit_retention(b, target, pretrained, **options)
        gap = fit_retention(target, target, pretrained, **options).moved
        left = [ratio_estimate(*columns) for columns in zip((gap - fit.moved + fit.along).T, gap.T, strict=True)]
        return list_by_time("exact_lag", left)

    def _by_batch(self, values: Tensor) -> Tensor:
        """(batches * n, ...) -> (batches, n, ...)."""
        return values.reshape(self.batches, -1, *values.shape[1:])


def flatten_summary(measured: Summary) -> dict[str, float]:
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
    values: dict[str, float] = {}
    for name, estimate in estimates.items():
        values |= {name: estimate.value, f"{name}_stderr": estimate.stderr}
    return values


def list_by_time(name: str, parts: Sequence[Estimate]) -> dict[str, list[float]]:
    """Estimates of the parts of flow time as they are logged: a list of values, and one of standard errors."""
    return {
        f"{name}_by_time": [estimate.value for estimate in parts],
        f"{name}_by_time_stderr": [estimate.stderr for estimate in parts],
    }


def flatten_fit(fit: RetentionFit) -> dict[str, Any]:
    """The best retention as it is logged: of all flow times, and a list of one for each part."""
    return {
        "best_retention": fit.constant.value,
        "best_retention_stderr": fit.constant.stderr,
        **list_by_time("best_retention", fit.by_time),
    }


def _own_lines(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["kind"] == "monitor" and line.get("monitor") == NAME]


def _pairing_batch(state: TrainingState) -> int:
    return state.config.train.pairing_batch or state.config.train.batch_size


@gftkit.hookimpl
def gftkit_monitors() -> dict[str, type]:
    """The monitors that need an oracle."""
    from gftkit_verification.monitors.memorisation import Memorisation

    return {NAME: Theory, "memorisation": Memorisation}
