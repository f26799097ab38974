"""Claims: statements of the theory that are measured, each with mutants that the measurement must reject.

A claim measures a *subject*: the very function that the loop or the sampler calls, or a component of the registry.
Each mutant is a likely slip in the subject's place. A claim holds if the measurement of the subject stays within the
bound for the worst seed; a mutant is rejected if its measurement exceeds the bound by a margin for its best seed.
"""

import difflib
import fnmatch
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Generator

from gftkit.kernel.errors import GftkitError, UnknownNameError, unknown
from gftkit.runtime.randomness import stream
from gftkit.storage.documents import nan_to_none

BoundKind = Literal["exact", "order", "statistical"]
Profile = Literal["quick", "full"]
Line = tuple[Sequence[float], Sequence[float]]
"""Values of x and of y."""

FALSE_ALARM = 1e-7
"""The probability that a true statistical claim exceeds its bound, for one seed."""

MARGINS: Mapping[BoundKind, float] = {"exact": 1000.0, "order": 3.0, "statistical": 3.0}
"""The factor by which a mutant must exceed the bound."""


@dataclass(frozen=True)
class Bound:
    """The largest measurement with which a claim holds. Made by ``exact``, ``order`` or ``statistical``.

    Attributes:
        kind: "exact": float64 round-off, scaled by size; "order": distance of a measured slope from the declared one;
            "statistical": standard errors.
        value: the bound.
        degrees: of a statistical bound: degrees of freedom of Student's t, infinity for a normal law.
    """

    kind: BoundKind
    value: float
    degrees: float = math.inf

    @property
    def margin(self) -> float:
        """A mutant must measure at least this times the bound."""
        return MARGINS[self.kind]

    @property
    def false_alarm(self) -> float:
        """The probability that the measurement of a true statement exceeds the bound, for one seed."""
        from scipy import stats  # slow to load

        return 2 * float(stats.t.sf(self.value, self.degrees)) if self.kind == "statistical" else 0.0

    def normal(self, measured: float) -> float:
        """A statistical measurement as a standard normal deviate: the same tail probability, and the same sign."""
        from scipy import stats  # slow to load

        tail = stats.t.logsf(abs(measured), self.degrees)
        return math.copysign(float(stats.norm.isf(math.exp(tail))), measured)


def exact(value: float = 1e-9) -> Bound:
    """A bound for what algebra decides: round-off, relative to the size of what is compared."""
    return Bound("exact", value)


def order(value: float) -> Bound:
    """A bound on the distance of a measured slope, or ratio, from the declared one."""
    return Bound("order", value)


def statistical(degrees: float = math.inf, false_alarm: float = FALSE_ALARM) -> Bound:
    """A bound in standard errors, from the false-alarm rate of one seed.

    Args:
        degrees: of freedom of the standard error's estimate; infinity where it is known.
        false_alarm: how often a true statement may exceed the bound.

    Example:
        >>> round(statistical().value, 2), round(statistical(degrees=15).value, 2)
        (5.33, 9.48)
    """
    from scipy import stats  # slow to load

    return Bound("statistical", float(stats.t.isf(false_alarm / 2, degrees)), degrees)


@dataclass(frozen=True)
class Measurement:
    """A measured value, small where the claim holds, with the lines that show how it came about.

    Attributes:
        value: compared with the bound in magnitude; of a statistical claim a signed number of standard errors.
        lines: name -> (x, y), for the report's picture. "measured" is drawn as points for the subject and for every
            mutant, the others as lines for the subject only.
        note: one sentence for the report, such as a fitted slope.
    """

    value: float
    lines: Mapping[str, Line] = field(default_factory=dict)
    note: str = ""


Measure = Callable[[Any, Generator], float | Measurement]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement, how it is measured, and the slips that must be rejected.

    Args:
        name: "T04-drift-error-gaussian": the number of its statement on the theory page, then what it is about.
        statement: one sentence, with the formula.
        reference: where it is derived: "theory, T4".
        subject: what is measured: the very function that the loop or the sampler calls, or a component.
        measure: (subject, generator) -> a number, or a ``Measurement``. The generator's device is the one asked for.
        bound: ``exact``, ``order`` or ``statistical``.
        mutants: name -> a wrong subject; at least two.
        conditions: under what the statement was measured: problem, dimensions, temperatures, coupling.
        component: "kind:name" where the claim is about one component.
        profile: "quick", or "full" where it trains networks.
        seeds: how many problems are drawn.
        axes: labels of the picture's axes, x and y.
        scales: "log" or "linear" for each axis.

    Raises:
        ValueError: for fewer than two mutants.

    Example:
        >>> from gftkit.theory.objective import retention
        >>> claim = Claim(
        ...     name="T01-retention",
        ...     statement="rho (1 + beta) = beta.",
        ...     reference="theory, section 0",
        ...     subject=retention,
        ...     measure=lambda share, _: max(abs(share(beta) * (1 + beta) - beta) for beta in (0.1, 1.0, 10.0)),
        ...     bound=exact(1e-12),
        ...     mutants={"1/(1 + beta)": lambda beta: 1 / (1 + beta), "beta": lambda beta: beta},
        ... )
        >>> result = check(claim)
        >>> result.holds, [mutant.rejected for mutant in result.mutants]
        (True, [True, True])
    """

    name: str
    statement: str
    reference: str
    subject: Any
    measure: Measure
    bound: Bound
    mutants: Mapping[str, Any]
    conditions: str = ""
    component: str = ""
    profile: Profile = "quick"
    seeds: int = 3
    axes: tuple[str, str] | None = None
    scales: tuple[str, str] = ("log", "log")

    def __post_init__(self) -> None:
        if len(self.mutants) < 2:
            raise ValueError(
                f"claim '{self.name}' has {len(self.mutants)} mutants; wanted at least two likely slips that its "
                f"measurement rejects: a check that can't fail checks nothing."
            )
        if self.seeds < 1:
            raise ValueError(f"claim '{self.name}': wanted at least one seed, got {self.seeds}.")

    @property
    def false_alarm(self) -> float:
        """The probability that this claim fails although it is true."""
        return self.seeds * self.bound.false_alarm

    def measure_seeds(self, subject: Any, seed: int, device: torch.device | str = "cpu") -> list[Measurement]:
        """The measurements of a subject, one for each of the claim's seeds; equal for equal ``seed``."""
        measurements = []
        for k in range(self.seeds):
            value = self.measure(subject, stream(seed, "claim", self.name, k, device=device))
            measurements.append(value if isinstance(value, Measurement) else Measurement(float(value)))
        return measurements


@dataclass(frozen=True)
class MutantResult:
    """The measurement of a mutant (infinity where gftkit refused it), and whether it was rejected."""

    name: str
    measured: float
    rejected: bool
    lines: Mapping[str, Line] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The result of a claim.

    Attributes:
        claim: the claim.
        measured: the worst seed's measurement; nan where measuring failed.
        holds: whether it is within the bound.
        seconds: what it took, mutants included.
        mutants: what each mutant measured.
        lines: of the first seed.
        note: of the worst seed.
        error: why measuring failed, "" where it didn't.
    """

    claim: Claim
    measured: float
    holds: bool
    seconds: float
    mutants: tuple[MutantResult, ...] = ()
    lines: Mapping[str, Line] = field(default_factory=dict)
    note: str = ""
    error: str = ""

    @property
    def passed(self) -> bool:
        """True if the claim holds and every mutant is rejected."""
        return self.holds and not self.error and all(mutant.rejected for mutant in self.mutants)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; what isn't finite is None."""
        claim = self.claim
        values = {
            "name": claim.name,
            "statement": claim.statement,
            "reference": claim.reference,
            "kind": claim.bound.kind,
            "measured": self.measured,
            "bound": claim.bound.value,
            "holds": self.holds,
            "seconds": round(self.seconds, 3),
            "mutants": [
                {"name": mutant.name, "measured": mutant.measured, "rejected": mutant.rejected}
                for mutant in self.mutants
            ],
            "conditions": claim.conditions,
            "component": claim.component or None,
            "seeds": claim.seeds,
            "false_alarm": claim.false_alarm,
            "note": self.note,
            "error": self.error or None,
        }
        return dict(nan_to_none(values))


def check(claim: Claim, seed: int = 0, device: torch.device | str = "cpu") -> Result:
    """Measure a claim and each of its mutants.

    A measurement that raises fails the claim; a mutant that gftkit itself refuses (``GftkitError``) is rejected.
    """
    started = time.perf_counter()
    try:
        measurements = claim.measure_seeds(claim.subject, seed, device)
        worst = max(measurements, key=_size)
        mutants = tuple(_check_mutant(claim, name, subject, seed, device) for name, subject in claim.mutants.items())
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return Result(claim, math.nan, False, time.perf_counter() - started, error=text)
    holds = _size(worst) <= claim.bound.value
    seconds = time.perf_counter() - started
    lines, note = measurements[0].lines, worst.note
    return Result(claim, worst.value, holds, seconds, mutants=mutants, lines=lines, note=note)


def _check_mutant(claim: Claim, name: str, subject: Any, seed: int, device: torch.device | str) -> MutantResult:
    try:
        measurements = claim.measure_seeds(subject, seed, device)
    except GftkitError:
        return MutantResult(name, math.inf, True)
    best = min(measurements, key=_size)
    rejected = _size(best) >= claim.bound.margin * claim.bound.value
    return MutantResult(name, best.value, rejected, measurements[0].lines)


def select(
    claims: Sequence[Claim], profile: Profile = "quick", pattern: str | None = None, component: str | None = None
) -> list[Claim]:
    """The claims of a profile; "full" holds every claim.

    Args:
        claims: all of them.
        profile: "quick" or "full"; a claim that is named by ``pattern`` needn't be of the profile.
        pattern: a name with wildcards: "T04*".
        component: "kind:name".

    Raises:
        UnknownNameError: where nothing fits.
    """
    if component is not None:
        known = {claim.component for claim in claims if claim.component}
        if component not in known:
            raise unknown("component", component, known, "Name it as KIND:NAME.")
        claims = [claim for claim in claims if claim.component == component]
    if pattern is not None:
        fitting = [claim for claim in claims if fnmatch.fnmatchcase(claim.name.lower(), pattern.lower())]
        if not fitting:
            nearest = difflib.get_close_matches(pattern, [claim.name for claim in claims], cutoff=0.4)
            near = f" The nearest: {', '.join(nearest)}." if nearest else ""
            raise UnknownNameError(
                f"unknown claim '{pattern}'.{near} Wildcards are allowed: 'T04*'. "
                f"`gft verify --profile full --markdown` lists all of them."
            )
        claims = fitting
    fast = [claim for claim in claims if profile == "full" or claim.profile == "quick"]
    return fast or list(claims)


def _size(measurement: Measurement) -> float:
    return math.inf if math.isnan(measurement.value) else abs(measurement.value)
