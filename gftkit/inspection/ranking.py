"""The convention doctor: it finds the convention and the weights of a file with which a network fits data.

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
from torch import nn

from gftkit.data.description import Facts
from gftkit.data.samples import Samples, Source
from gftkit.inspection import probing
from gftkit.inspection.hypotheses import UNTRAINED, Finding, Hypothesis, HypothesisTest, estimate, mean
from gftkit.kernel.contracts import Coupling, Estimate, Path
from gftkit.kernel.errors import ConfigError, GftkitError
from gftkit.networks.convention import Convention
from gftkit.networks.foreign_weights import Candidate
from gftkit.theory import flow

BATCHES = 32
"""Independent batches, over which standard errors and tests are taken."""

FIRST = 4
"""Batches that every hypothesis is measured on; the others are for the promising ones."""

KEPT = 8
"""Hypotheses that stay in any case, the best ones."""

HOPELESS = 2.0
"""Denoising error, in units of the best, beyond which a hypothesis is dropped after the first batches."""

FALSE_ALARM = 1e-3
"""The probability that one of equally good hypotheses is called the best, over all rivals together."""

GAINED = 0.5
"""Share of a linear denoiser's gain over the naive predictions that a network must reach."""

CALIBRATED = 0.1
"""Distance of the slope from 1 beyond which the best hypothesis lacks something."""

ERRORS = 4
"""The same in standard errors."""

PREDICTS = ("velocity", "noise", "data", "score")


class InspectionError(GftkitError):
    """A network that fits no convention, or fits several equally well."""

    exit_code = 1


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection.

    Attributes:
        findings: ranked, the best first.
        rivals: those that aren't significantly worse than the best.
        baselines: denoising errors of predictions that need no network, and of the untrained one.
        attempts: the tried calls.
        verdict: "clear", "close call" or "none".
        notes: further remarks, one sentence each.
        samples: pairs that were measured.
        alternatives: other directions and scales of time, measured where these are given; never among the findings.
    """

    findings: list[Finding]
    rivals: list[Finding]
    baselines: dict[str, Estimate]
    attempts: list[probing.Attempt]
    verdict: str
    notes: list[str]
    samples: int
    alternatives: Sequence[Finding] = ()

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
            "hypotheses": [finding.to_dict() for finding in self.findings],
            "alternatives": [finding.to_dict() for finding in self.alternatives],
            "rivals": [self.findings.index(finding) for finding in self.rivals],
            "baselines": {name: vars(value) for name, value in self.baselines.items()},
            "calls": [{**attempt.fields, "failure": attempt.failure or None} for attempt in self.attempts],
        }


def inspect(  # noqa: PLR0913
    network: nn.Module,
    candidates: Sequence[Candidate],
    data: Samples,
    facts: Facts,
    *,
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
    """Measure every hypothesis about a network on data.

    Args:
        network: with new weights, which serve as an untrained network to compare with. Other weights are left in it.
        candidates: the sets of weights that may be meant.
        data: samples like those that the network was trained on.
        facts: of these data.
        path: the path that it was trained on; affine.
        source: draws x0.
        coupling: pairs x0 and x1.
        fixed: known fields of the convention.
        path_spec: the path as in a configuration, for the convention.
        count: pairs to measure on, in ``BATCHES`` batches.
        seed: of everything random.
        device: where the network is evaluated.
        begin: called with the number of steps to come, whenever that is known.
        advance: called with the number of steps done.

    Raises:
        ConfigError: for a path with noise, or a count below two for each batch.
        InspectionError: where the network can't be called in any of the ways tried.
    """
    _check_request(path, count)
    network = network.to(device).eval()
    fixed = {**(fixed or {}), "path": dict(path_spec) if path_spec else None}
    attempts = probing.attempts(network, facts, fixed, device)
    working = _working(attempts)
    size = count // BATCHES
    test = HypothesisTest(
        network, candidates, data, path=path, source=source, coupling=coupling, size=size, seed=seed, device=device
    )
    bounded = float(test.known.abs().max()) <= 1
    conventions = [each for attempt in working for each in _conventions(attempt, coupling, bounded=bounded)]
    findings = [Finding(Hypothesis(candidate.name, each)) for candidate in candidates for each in conventions]
    untrained = [Finding(Hypothesis(UNTRAINED, each)) for each in conventions]
    kept, best_untrained = _measure(test, findings, untrained, begin, advance)
    inspection = _conclude(test, findings, kept, best_untrained, attempts)
    return _with_alternatives(inspection, test, fixed, begin, advance)


def _with_alternatives(
    inspection: Inspection,
    test: HypothesisTest,
    fixed: Mapping[str, Any],
    begin: Callable[[int], None],
    advance: Callable[[int], None],
) -> Inspection:
    """The inspection with other directions and scales of time than the given ones, and a note where one is better."""
    best = inspection.best.hypothesis
    choices: dict[str, Sequence[Any]] = {"time": ("forward", "reversed"), "time_scale": (1.0, 1000.0)}
    choices = {key: values for key, values in choices.items() if key in fixed}
    conventions = [
        replace(best.convention, **dict(zip(choices, values, strict=True)))
        for values in itertools.product(*choices.values())
    ]
    others = [Finding(Hypothesis(best.weights, each)) for each in conventions if each != best.convention]
    if not others:
        return inspection
    begin(_evaluations(others) * BATCHES)
    test.measure(others, range(BATCHES), advance)
    better = min(others, key=lambda finding: finding.score)
    notes = list(inspection.notes)
    if is_significantly_less(better.denoising, inspection.best.denoising, len(others)):
        measured = ", ".join(f"{key}: {getattr(better.hypothesis.convention, key)}" for key in choices)
        notes.append(
            f"With {measured} the denoising error is {better.score:.4g}, and with the given fields "
            f"{inspection.best.score:.4g}: they may be wrong. They weren't changed; leave them out to compare more."
        )
    return replace(inspection, notes=notes, alternatives=_ranked(others))


def _measure(
    test: HypothesisTest,
    findings: list[Finding],
    untrained: list[Finding],
    begin: Callable[[int], None],
    advance: Callable[[int], None],
) -> tuple[list[Finding], Finding]:
    """Measure the findings; returns those that were measured on every batch, and the best of the untrained ones."""
    # Most hypotheses are far off: a few batches drop them, and only the others get all of them.
    begin(_evaluations([*findings, *untrained]) * FIRST)
    test.measure([*findings, *untrained], range(FIRST), advance)
    kept, best_untrained = _promising(findings), _ranked(untrained)[0]
    begin(_evaluations([*kept, best_untrained]) * (BATCHES - FIRST))
    test.measure([*kept, best_untrained], range(FIRST, BATCHES), advance)
    return kept, best_untrained


def _check_request(path: Path, count: int) -> None:
    """Refuse a path without a denoising error, and too few pairs for a test."""
    if flow.is_noisy(path) or flow.is_stochastic(path):
        raise ConfigError("path: a path with noise has no one-step denoising error. Inspect on an affine path.")
    if count < 2 * BATCHES:
        raise ConfigError(
            f"--count: wanted at least {2 * BATCHES}, two pairs for each of {BATCHES} batches, got {count}."
        )


def _working(attempts: Sequence[probing.Attempt]) -> list[probing.Attempt]:
    """The attempts that work.

    Raises:
        InspectionError: where none does.
    """
    working = [attempt for attempt in attempts if not attempt.failure]
    if not working:
        lines = "".join(f"\n  {attempt.fields['call']}: {attempt.failure}" for attempt in attempts)
        raise InspectionError(
            f"the network can't be called in any of the ways tried:{lines}\nSet convention.call, or wrap the network "
            f"in a class with forward(t, x)."
        )
    return working


def _evaluations(findings: Sequence[Finding]) -> int:
    """Network evaluations for a batch."""
    return len({finding.evaluation_key for finding in findings})


def is_significantly_less(better: Sequence[float], worse: Sequence[float], rivals: int) -> bool:
    """Test by a paired t-test whether a mean over batches is below another, at ``FALSE_ALARM`` over all rivals.

    Two-sided, since the better one was chosen by these numbers.
    """
    from scipy import stats

    differences = (
        torch.tensor(worse[: len(better)], dtype=torch.float64)
        - torch.tensor(better, dtype=torch.float64)[: len(worse)]
    )
    n = len(differences)
    mean, spread = float(differences.mean()), float(differences.std())
    # A mean is infinite where a network gave values that aren't finite: worse than any other, without a test.
    if not math.isfinite(mean):
        return math.isinf(mean) and mean > 0
    bound = stats.t.ppf(1 - FALSE_ALARM / (2 * max(1, rivals)), n - 1)
    return mean > bound * spread / math.sqrt(n)


def _conventions(attempt: probing.Attempt, coupling: Coupling, *, bounded: bool) -> Iterator[Convention]:
    """The conventions with a call that works, the simplest first; other ranges for data in [-1, 1] only."""
    default = Convention.of(attempt.fields)
    independent = getattr(coupling, "independent", False)
    # A score determines the velocity for independent pairs only.
    choices: dict[str, Sequence[Any]] = {
        "range": [(-1.0, 1.0), (0.0, 1.0)] if bounded else [default.range],
        "rescales": ["data", "state"],
        "time": ["forward", "reversed"],
        "time_scale": [1.0, 1000.0],
        "predicts": [name for name in PREDICTS if name != "score" or independent],
        "sign": [1, -1],
    }
    choices = {key: values for key, values in choices.items() if key not in attempt.fields}
    for values in itertools.product(*choices.values()):
        convention = replace(default, **dict(zip(choices, values, strict=True)))
        if convention.rescaled or convention.rescales == default.rescales:
            yield convention


def _promising(findings: Sequence[Finding]) -> list[Finding]:
    """Those that may still be the best: near it, or not significantly worse."""
    ranked = _ranked(findings)
    best = ranked[0]

    def near(finding: Finding) -> bool:
        return finding.score < HOPELESS * best.score or not is_significantly_less(
            best.denoising, finding.denoising, len(findings)
        )

    return [finding for rank, finding in enumerate(ranked) if rank < KEPT or near(finding)]


def _ranked(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: finding.score)


def _conclude(
    test: HypothesisTest,
    findings: list[Finding],
    kept: list[Finding],
    untrained: Finding,
    attempts: list[probing.Attempt],
) -> Inspection:
    """The inspection, with its verdict."""
    dropped = [finding for finding in findings if not any(finding is other for other in kept)]
    ranked = _ranked(test.merged([finding for finding in findings if any(finding is other for other in kept)]))
    best, notes = ranked[0], []
    others = ranked[1:]
    rivals = [
        finding for finding in others if not is_significantly_less(best.denoising, finding.denoising, len(others))
    ]
    by_loss = min(ranked, key=lambda finding: mean(finding.loss))
    if not any(by_loss is finding for finding in (best, *rivals)) and is_significantly_less(
        by_loss.loss, best.loss, len(others)
    ):
        rivals.append(by_loss)
        notes.append("Denoising error and flow-matching loss disagree on the best hypothesis.")
    baselines = {name: estimate(values) for name, values in test.naive.items()}
    baselines["untrained"] = estimate(untrained.denoising)
    naive = min((name for name in test.naive if name != "linear"), key=lambda name: baselines[name].value)
    required = baselines[naive].value - GAINED * max(0.0, baselines[naive].value - baselines["linear"].value)
    fits = (
        best.score <= required
        and is_significantly_less(best.denoising, test.naive[naive], 1)
        and is_significantly_less(best.denoising, untrained.denoising, 1)
    )
    slope, stderr = best.slope.value, best.slope.stderr
    if fits and abs(slope - 1) > max(CALIBRATED, ERRORS * stderr):
        notes.append(
            f"The slope of the best hypothesis is {slope:.2f} ± {stderr:.2g}, and that of a conditional expectation is "
            f"1: the convention may lack something (a shift of time, a scale of latents), or the data aren't those "
            f"that the network was trained on."
        )
    if best.same:
        notes.append("Some hypotheses give the same drift on these data: their differences don't matter here.")
    verdict = "none" if not fits else "close call" if rivals else "clear"
    return Inspection(
        findings=[*ranked, *_ranked(dropped)],
        rivals=rivals,
        baselines=baselines,
        attempts=attempts,
        verdict=verdict,
        notes=notes,
        samples=BATCHES * test.size,
    )
