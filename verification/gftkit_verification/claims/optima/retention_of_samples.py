"""The retention that samples want, on Gaussian flows whose lag is known: T20, measured without held-out data."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from gftkit.evaluation import Evaluation, Preference, preferred_retention
from gftkit.generation import Blended
from gftkit.kernel.contracts import Batch, Drift, Path, Profile, Solver
from gftkit.sampling.scheme import Scheme
from gftkit.verify import Measurement, claim, registered, statistical
from gftkit_verification.oracles.gaussian import AffineDrift, GaussianFlow
from gftkit_verification.testbeds.measuring.statistics import cross_fitted_t
from gftkit_verification.testbeds.problems.flows import random_covariance
from gftkit_verification.testbeds.problems.moments import cpu_generator, draw_seed

RUNS = 24
"""Independent data, each with samples of its own."""
COUNT, STEPS = 120, 4
LAG = 0.2
"""The share of the gap that a run has left, where it lags."""
WAY = 3.0
"""Distance between the means of the target's law and of the pretrained one."""
FALSE_ALARMS, POWER = 0.05, 0.9
"""Shares of runs: without lag those with a retention, at most; with lag those with a negative one, at least."""

Choose = Callable[[Callable[[Profile], Tensor], Tensor, Generator], Preference]


@dataclass(frozen=True)
class Changed:
    """A profile of another one's values."""

    profile: Profile
    change: Callable[[Tensor], Tensor]

    def retention(self, t: Tensor) -> Tensor:
        """The changed value at t."""
        return self.change(self.profile.retention(t))


def sign_flipped(samples_at: Callable[[Profile], Tensor], data: Tensor, generator: Generator) -> Preference:
    """Blends beyond the anchor in place of those beyond the drift."""
    return preferred_retention(lambda profile: samples_at(Changed(profile, torch.neg)), data, generator)


def other_law(samples_at: Callable[[Profile], Tensor], data: Tensor, generator: Generator) -> Preference:
    """Data of a law between the target's and the pretrained one."""
    between = samples_at(Changed(_Zero(), lambda rho: rho + 0.5))
    return preferred_retention(samples_at, between[: len(data)], generator)


def not_shrunk(samples_at: Callable[[Profile], Tensor], data: Tensor, generator: Generator) -> Preference:
    """The minimum as it is, whatever its error."""
    found = preferred_retention(samples_at, data, generator)
    return replace(found, early=found.minimum.value, late=found.minimum.value)


@dataclass(frozen=True)
class _Zero:
    def retention(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)


def _drift(affine: AffineDrift) -> Drift:
    """An affine drift of states that share their time."""

    def drift(t: Tensor, x: Tensor, **_: Tensor) -> Tensor:
        slope, shift = affine(t[:1].double())
        return x @ slope[0].mT + shift[0]

    return drift


def choose_once(
    choose: Choose,
    flows: tuple[GaussianFlow, GaussianFlow],
    lag: float,
    generator: Generator,
    path: Path,
    solver: Solver,
) -> Preference:
    """What is chosen for b = b_tgt + c Delta, of exact drifts, on fresh data of the target's law."""
    target, pretrained = (_drift(flow.affine) for flow in flows)
    data, seed = flows[0].pairs(COUNT, generator)[1], draw_seed(generator)

    def lagging(t: Tensor, x: Tensor, **_: Tensor) -> Tensor:
        exact = target(t, x)
        return exact + lag * (pretrained(t, x) - exact)

    def samples_at(profile: Profile) -> Tensor:
        return Evaluation(
            Blended(lagging, pretrained, profile),
            path,
            Scheme(solver, STEPS),
            source=flows[0].starts,
            reference=Batch(data),
            count=COUNT,
            seed=seed,
        ).samples()

    return choose(samples_at, data, generator)


def draw_flows(generator: Generator) -> tuple[GaussianFlow, GaussianFlow]:
    """The target's flow and the pretrained one, from N(0, I) in two dimensions, their means ``WAY`` apart."""
    zero, eye = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    angle = 2 * math.pi * torch.rand(1, generator=generator, dtype=torch.float64)
    way = WAY * torch.cat([angle.cos(), angle.sin()])
    return tuple(  # type: ignore[return-value]
        GaussianFlow(zero, eye, mean, 0.3 * random_covariance(2, generator)) for mean in (way / 2, -way / 2)
    )


@claim(
    "T20-minimum-of-samples",
    statement=(
        "The energy distance to as many data is least at the constant retention -c/(1 - c) for a run with c of the gap "
        "left, without held-out data."
    ),
    reference="theory, T20",
    subject=preferred_retention,
    bound=statistical(degrees=RUNS - RUNS // 2 - 1),
    mutants={"sign flipped": sign_flipped, "data of another law": other_law},
    conditions=(
        f"Exact drifts of Gaussian flows in two dimensions, c = {LAG:g}, {RUNS} sets of {COUNT} data and {COUNT} "
        f"samples by {STEPS} steps of Heun's method."
    ),
    seeds=1,
    uses={"path": registered("path", "linear"), "solver": registered("solver", "heun")},
)
def minimum_error(choose: Choose, generator: Generator, *, path: Path, solver: Solver) -> Measurement:
    """Standard errors of the minimum found, over data."""
    cpu = cpu_generator(generator)
    flows = draw_flows(cpu)
    found = [choose_once(choose, flows, LAG, cpu, path, solver).minimum for _ in range(RUNS)]
    values = torch.tensor([each.value for each in found], dtype=torch.float64)
    expected = -LAG / (1 - LAG)
    error = math.sqrt(sum(each.stderr**2 for each in found) / RUNS)
    spread = f"spread {float(values.std()):.3f}, error {error:.3f}"
    note = f"{float(values.mean()):.3f} found, {expected:.3f} expected; {spread}"
    return Measurement(cross_fitted_t(values[:, None], torch.tensor([expected])), note=note)


@claim(
    "T20-retention-only-where-needed",
    statement=(
        "A run without lag keeps retention 0 in at least 95 % of cases; one that lags by a fifth of the gap is given a "
        "negative one in at least 90 %."
    ),
    reference="theory, T20",
    subject=preferred_retention,
    bound=statistical(),
    mutants={
        "no shrinkage": not_shrunk,
        "sign flipped": sign_flipped,
        "data of another law": other_law,
    },
    conditions=(
        f"Exact drifts of Gaussian flows in two dimensions, c = 0 and {LAG:g}, {2 * RUNS} sets of {COUNT} data each, "
        f"as many samples by {STEPS} steps of Heun's method."
    ),
    profile="full",
    seeds=1,
    uses={"path": registered("path", "linear"), "solver": registered("solver", "heun")},
)
def rates_error(choose: Choose, generator: Generator, *, path: Path, solver: Solver) -> Measurement:
    """Standard errors by which a share of runs misses its bound, the larger of the two; 0 where both keep it."""
    cpu, runs = cpu_generator(generator), 2 * RUNS
    flows = draw_flows(cpu)

    def share(lag: float, counts: Callable[[float], bool]) -> float:
        chosen = [choose_once(choose, flows, lag, cpu, path, solver).early for _ in range(runs)]
        return sum(map(counts, chosen)) / runs

    alarms, met = share(0.0, lambda rho: rho != 0), share(LAG, lambda rho: rho < 0)
    misses = (
        (alarms - FALSE_ALARMS) / math.sqrt(FALSE_ALARMS * (1 - FALSE_ALARMS) / runs),
        (POWER - met) / math.sqrt(POWER * (1 - POWER) / runs),
    )
    return Measurement(max(0.0, *misses), note=f"retention in {alarms:.0%} without lag, negative in {met:.0%} with lag")
