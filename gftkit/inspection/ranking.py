"""The convention doctor: which convention and which weights of a file make a network fit data, by measurement.

Each hypothesis is a set of weights and a convention. All are scored on the same pairs: x_t on the run's path, the drift
by ``ForeignDrift`` as training would call it, and

- denoising error: |x1_hat - x1|^2 per value, x1_hat = (sigma' x - sigma b)/(sigma' alpha - sigma alpha') the data that
  the drift points at in one step; hypotheses are ranked by it;
- flow-matching loss: |b - b_t(x|z)|^2 per value;
- slope: ``E<b, b_t(x|z)>/E|b|^2``, which is 1 for every conditional expectation.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy import stats
from torch import nn

from gftkit.data.description import Facts
from gftkit.data.samples import Samples, Source
from gftkit.inspection import probing
from gftkit.inspection.hypotheses import UNTRAINED, Finding, Hypothesis, Trial, estimate, mean
from gftkit.kernel.contracts import Coupling, Estimate, Path
from gftkit.kernel.errors import ConfigError, InspectionError
from gftkit.networks.convention import Convention
from gftkit.networks.foreign_weights import Candidate
from gftkit.theory import flow

BATCHES = 32
"""Independent batches, over which standard errors and tests are."""

FIRST = 4
"""Batches that every hypothesis gets; the others are for those that may still win."""

KEPT = 8
"""Hypotheses that stay in any case."""

HOPELESS = 2.0
"""Denoising error, in units of the best, beyond which a hypothesis is dropped after the first batches."""

FALSE_ALARM = 1e-3
"""The chance that of equally good hypotheses one is called the best: over all rivals together."""

GAINED = 0.5
"""Share of what a linear denoiser gains over the naive predictions that a network must gain at least."""

CALIBRATED = 0.1
"""Distance of the slope from 1 beyond which something is still missing from the best hypothesis."""

ERRORS = 4
"""The same in standard errors."""

PREDICTS = ("velocity", "noise", "data", "score")


@dataclass(frozen=True)
class Inspection:
    """What an inspection found.

    Attributes:
        findings: ranked, the best first.
        rivals: those that aren't told from the best.
        baselines: denoising errors of predictions that need no network, and of the untrained one.
        attempts: the calls that were tried.
        verdict: "clear", "close call" or "none".
        notes: what else is worth knowing, one sentence each.
        samples: pairs that were measured.
    """

    findings: list[Finding]
    rivals: list[Finding]
    baselines: dict[str, Estimate]
    attempts: list[probing.Attempt]
    verdict: str
    notes: list[str]
    samples: int

    @property
    def best(self) -> Finding:
        """The hypothesis with the least denoising error."""
        return self.findings[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "verdict": self.verdict,
            "notes": self.notes,
            "samples": self.samples,
            "test": {
                "kind": "paired t-test of denoising errors over batches, Bonferroni over the rivals",
                "batches": BATCHES,
                "false_alarm_rate": FALSE_ALARM,
            },
            "hypotheses": [found.to_dict() for found in self.findings],
            "rivals": [self.findings.index(found) for found in self.rivals],
            "baselines": {name: vars(value) for name, value in self.baselines.items()},
            "calls": [{**attempt.fields, "failure": attempt.failure or None} for attempt in self.attempts],
        }


def inspect(
    network: nn.Module,
    candidates: Sequence[Candidate],
    data: Samples,
    facts: Facts,
    path: Path,
    source: Source,
    coupling: Coupling,
    fixed: Mapping[str, Any] | None = None,
    path_spec: Mapping[str, Any] | None = None,
    count: int = 2048,
    seed: int = 0,
    device: torch.device | str = "cpu",
    begin: Callable[[int], None] = lambda _: None,
    advance: Callable[[int], None] = lambda _: None,
) -> Inspection:
    """Try every hypothesis about a network on data.

    Args:
        network: as new: its own weights serve as an untrained network to compare with. It is left with others.
        candidates: the sets of weights that may be meant.
        data: samples like those that the network was trained on.
        facts: of these data.
        path: the path that it was trained on; affine.
        source: draws x0.
        coupling: pairs x0 and x1.
        fixed: fields of the convention that are known.
        path_spec: the path as a config names it, for the convention.
        count: pairs to measure on, in ``BATCHES`` batches.
        seed: of everything random.
        device: where the network is evaluated.
        begin: called with the number of steps to come, whenever that is known.
        advance: called with the number of steps done.

    Raises:
        ConfigError: for a path with noise, or a count below two for each batch.
        InspectionError: where the network can't be called in any way that was tried.
    """
    if flow.is_noisy(path) or flow.is_stochastic(path):
        raise ConfigError("path: a path with noise has no one-step denoising error. Inspect on an affine path.")
    if count < 2 * BATCHES:
        raise ConfigError(
            f"--count: wanted at least {2 * BATCHES}, two pairs for each of {BATCHES} batches, got {count}."
        )
    network = network.to(device).eval()
    fixed = {**(fixed or {}), "path": dict(path_spec) if path_spec else None}
    tried = probing.attempts(network, facts, fixed, device)
    working = [attempt for attempt in tried if not attempt.failure]
    if not working:
        lines = "".join(f"\n  {attempt.fields['call']}: {attempt.failure}" for attempt in tried)
        raise InspectionError(
            f"the network can't be called in any way that was tried:{lines}\nGive convention.call, or wrap the network "
            f"in a class with forward(t, x)."
        )
    trial = Trial(network, candidates, data, path, source, coupling, count // BATCHES, seed, device)
    bounded = float(trial.known.abs().max()) <= 1
    ways = [way for attempt in working for way in _ways(attempt, coupling, bounded)]
    findings = [Finding(Hypothesis(candidate.name, way)) for candidate in candidates for way in ways]
    untrained = [Finding(Hypothesis(UNTRAINED, way)) for way in ways]
    begin(len({found.question for found in (*findings, *untrained)}) * FIRST)
    trial.measure([*findings, *untrained], range(FIRST), advance)
    kept, untrained = _promising(findings), _ranked(untrained)[:1]
    begin(len({found.question for found in (*kept, *untrained)}) * (BATCHES - FIRST))
    trial.measure([*kept, *untrained], range(FIRST, BATCHES), advance)
    dropped = [found for found in findings if not any(found is other for other in kept)]
    ranked = _ranked(trial.merged([found for found in findings if any(found is other for other in kept)]))
    return _judged(ranked, _ranked(dropped), untrained[0], trial, tried)


def told_apart(better: Sequence[float], worse: Sequence[float], rivals: int) -> bool:
    """Whether a mean over batches is less than another, by a paired t-test at ``FALSE_ALARM`` over all rivals.

    Two-sided, since the better one was chosen by these numbers.
    """
    differences = (
        torch.tensor(worse[: len(better)], dtype=torch.float64)
        - torch.tensor(better, dtype=torch.float64)[: len(worse)]
    )
    n = len(differences)
    mean, spread = float(differences.mean()), float(differences.std())
    if not math.isfinite(mean):
        return math.isinf(mean) and mean > 0
    bound = stats.t.ppf(1 - FALSE_ALARM / (2 * max(1, rivals)), n - 1)
    return mean > bound * spread / math.sqrt(n)


def _ways(attempt: probing.Attempt, coupling: Coupling, bounded: bool) -> Iterator[Convention]:
    """The conventions with a call that works, the simplest first; other ranges for data in [-1, 1] only."""
    usual = Convention.of(attempt.fields)
    independent = getattr(coupling, "independent", False)
    choices: dict[str, Sequence[Any]] = {
        "range": [(-1.0, 1.0), (0.0, 1.0)] if bounded else [usual.range],
        "rescales": ["data", "state"],
        "time": ["forward", "reversed"],
        "time_scale": [1.0, 1000.0],
        "predicts": [name for name in PREDICTS if name != "score" or independent],
        "sign": [1, -1],
    }
    choices = {key: values for key, values in choices.items() if key not in attempt.fields}
    for values in itertools.product(*choices.values()):
        way = replace(usual, **dict(zip(choices, values, strict=True)))
        if way.rescaled or way.rescales == usual.rescales:
            yield way


def _promising(findings: Sequence[Finding]) -> list[Finding]:
    """Those that may still win: near the best, or not told from it."""
    ranked = _ranked(findings)
    best = ranked[0]

    def near(found: Finding) -> bool:
        return found.score < HOPELESS * best.score or not told_apart(best.denoising, found.denoising, len(findings))

    return [found for rank, found in enumerate(ranked) if rank < KEPT or near(found)]


def _ranked(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda found: found.score)


def _judged(
    ranked: list[Finding], dropped: list[Finding], untrained: Finding, trial: Trial, attempts: list[probing.Attempt]
) -> Inspection:
    """The verdict, with what it rests on."""
    best, notes = ranked[0], []
    others = ranked[1:]
    rivals = [found for found in others if not told_apart(best.denoising, found.denoising, len(others))]
    by_loss = min(ranked, key=lambda found: mean(found.loss))
    if not any(by_loss is found for found in (best, *rivals)) and told_apart(by_loss.loss, best.loss, len(others)):
        rivals.append(by_loss)
        notes.append("Denoising error and flow-matching loss disagree on the best hypothesis.")
    baselines = {name: estimate(values) for name, values in trial.naive.items()}
    baselines["untrained"] = estimate(untrained.denoising)
    naive = min((name for name in trial.naive if name != "linear"), key=lambda name: baselines[name].value)
    wanted = baselines[naive].value - GAINED * max(0.0, baselines[naive].value - baselines["linear"].value)
    fits = (
        best.score <= wanted
        and told_apart(best.denoising, trial.naive[naive], 1)
        and told_apart(best.denoising, untrained.denoising, 1)
    )
    slope, stderr = best.slope.value, best.slope.stderr
    if fits and abs(slope - 1) > max(CALIBRATED, ERRORS * stderr):
        notes.append(
            f"The slope of the best is {slope:.2f} ± {stderr:.2g}, and a conditional expectation has 1: something may "
            f"be missing from the convention (a shift of time, a scale of latents), or the data aren't the network's."
        )
    if best.same:
        notes.append("Hypotheses that give the same drift on these data can't be told apart, and needn't be.")
    verdict = "none" if not fits else "close call" if rivals else "clear"
    samples = BATCHES * trial.size
    return Inspection([*ranked, *dropped], rivals, baselines, attempts, verdict, notes, samples)
