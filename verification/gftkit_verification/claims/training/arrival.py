"""Arrival and memorisation, as monitors measure them: the statistic T, the position c, and nearest neighbours."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Estimate, Path
from gftkit.kernel.registry import Registry
from gftkit.theory import flow, objective
from gftkit.theory import gap as statistics
from gftkit.theory.gap import Statistics
from gftkit.theory.objective import retention
from gftkit.verify.claims import Measurement, exact, statistical
from gftkit.verify.declaration import REGISTRY, claim
from gftkit_verification.monitors import memorisation
from gftkit_verification.monitors.memorisation.monitor import BATCHES
from gftkit_verification.oracles.empirical import EmpiricalFlow
from gftkit_verification.testbeds.problems.moments import TEMPERATURES, cpu_generator

POINTS, STATES = 7, 16 * BATCHES
"""Data of the memorising drift, and states at which it is compared."""

DRAWS, SAMPLES, DATA = 20_000, 4, 4
"""Draws of samples and data of one law, and how many samples and data."""

Position = Callable[[Tensor, Tensor, Tensor, Tensor | None], Estimate]
Nearest = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Drifts = tuple[Tensor, Tensor, Tensor, Tensor]

CONDITIONS = (
    f"The exact drifts towards two sets of {POINTS} points in 3 dimensions, linear path and Brownian bridge, "
    f"{STATES} states, temperatures 0 to {max(TEMPERATURES):g}, with and without a weight."
)


def _draw_drifts(path: Path, generator: Generator) -> Drifts:
    """Weights, b_pre, the memorising drift b_emp and a direction orthogonal to their difference, at random states."""
    generator = cpu_generator(generator)
    old, new = (torch.randn(POINTS, 3, generator=generator, dtype=torch.float64) + shift for shift in (0.0, 1.0))
    t = 0.02 + 0.96 * torch.rand(STATES, generator=generator, dtype=torch.float64)
    x0, noise = torch.randn(2, STATES, 3, generator=generator, dtype=torch.float64)
    x1 = new[torch.randint(POINTS, (STATES,), generator=generator)]
    x = flow.sample(path, t, x0, x1, noise)
    anchor, target = (EmpiricalFlow(points, path).drift(t, x) for points in (old, new))
    weight = torch.rand(STATES, generator=generator, dtype=torch.float64)
    beside = torch.randn(STATES, 3, generator=generator, dtype=torch.float64)
    gap = target - anchor
    beside -= (beside * gap).sum(1, keepdim=True) / gap.square().sum(1, keepdim=True) * gap
    return weight, anchor, target, beside


def _position_with(slip: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], *, keep: bool = True) -> Position:
    """The position with another numerator and denominator for each state, and the weight or not."""

    def position(drift: Tensor, anchor: Tensor, target: Tensor, weight: Tensor | None = None) -> Estimate:
        above, below = slip(drift, anchor, target)
        w = weight if weight is not None and keep else torch.ones(len(above), dtype=above.dtype)
        return Estimate(float((w * above).mean() / (w * below).mean()), 0.0)

    return position


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(1)


def _statistics_with(change: Callable[..., tuple[Tensor, Tensor, Tensor, float]]) -> Callable[..., Statistics]:
    def slipped(drift: Tensor, target: Tensor, anchor: Tensor, beta: float, weight: Tensor | None) -> Statistics:
        return statistics.statistics(*change(drift, target, anchor, beta), weight)

    return slipped


@claim(
    "T01-memorising-position",
    statement="The position of the monitor `memorisation` is 1 - rho at b_beta: 1 at the memorising drift, 0 at b_pre; "
    "what is orthogonal to their difference doesn't count.",
    reference="theory, T1 and section 4",
    subject=memorisation.position,
    bound=exact(1e-9),
    mutants={
        "norms for the inner product": _position_with(
            lambda b, a, y: (_dot(b - a, b - a).sqrt() * _dot(y - a, y - a).sqrt(), _dot(y - a, y - a))
        ),
        "distance from zero": _position_with(lambda b, a, y: (_dot(b, y - a), _dot(y - a, y - a))),
        "the gap not squared": _position_with(lambda b, a, y: (_dot(b - a, y - a), _dot(y - a, y - a).sqrt())),
        "divided by the way made": _position_with(lambda b, a, y: (_dot(b - a, y - a), _dot(b - a, b - a) + 1e-9)),
        "ends swapped": _position_with(lambda b, a, y: (_dot(b - y, a - y), _dot(y - a, y - a))),
    },
    conditions=CONDITIONS,
    uses={"registry": REGISTRY},
)
def position_error(subject: Position, generator: Generator, *, registry: Registry) -> float:
    """The largest |c - (1 - rho)| at b_beta, also with an orthogonal part, at temperatures from 0; and |c| at b_pre."""
    worst = 0.0
    for name in ("linear", "brownian-bridge"):
        weight, anchor, target, beside = _draw_drifts(registry.create("path", name), generator)
        for w in (None, weight):
            worst = max(worst, abs(subject(anchor, anchor, target, w).value))
            for beta in (0.0, *TEMPERATURES):
                optimum = objective.blend(target, anchor, beta)
                for drift in (optimum, optimum + beside):
                    worst = max(worst, abs(subject(drift, anchor, target, w).value - (1 - retention(beta))))
    return worst


@claim(
    "T01-arrival-statistic",
    statement="The statistic T is <b - b_beta, b - b_pre>_w, and so 0 at b_beta.",
    reference="theory, section 5",
    subject=statistics.statistics,
    bound=exact(1e-9),
    mutants={
        "at the plain target": _statistics_with(lambda b, y, a, beta: (b, y, a, 0.0 * beta)),
        "temperature inverted": _statistics_with(lambda b, y, a, beta: (b, y, a, 1 / beta if beta else 1.0)),
        "anchor and target swapped": _statistics_with(lambda b, y, a, beta: (b, a, y, beta)),
        "retention for the temperature": _statistics_with(lambda b, y, a, beta: (b, y, a, retention(beta) + 1e-3)),
    },
    conditions=CONDITIONS,
    uses={"registry": REGISTRY},
)
def statistic_error(subject: Callable[..., Statistics], generator: Generator, *, registry: Registry) -> float:
    """The largest |T| at b_beta, and ``|T - <b - b_beta, b - b_pre>|`` elsewhere, by the target drift itself."""
    worst = 0.0
    for name in ("linear", "brownian-bridge"):
        weight, anchor, target, beside = _draw_drifts(registry.create("path", name), generator)
        for beta in (0.0, *TEMPERATURES):
            optimum = (target + beta * anchor) / (1 + beta)
            worst = max(worst, abs(subject(optimum, target, anchor, beta, weight).t))
            drift = 0.7 * optimum + 0.3 * anchor + beside
            expected = float((weight * ((drift - optimum) * (drift - anchor)).sum(1)).mean())
            worst = max(worst, abs(subject(drift, target, anchor, beta, weight).t - expected))
    return worst


@claim(
    "memorisation-distances",
    statement=(
        "For samples of the data's own law the mean distance to the nearest of all data but one is that of a datum to "
        "the nearest other one."
    ),
    reference="theory, section 4",
    subject=memorisation.nearest,
    bound=statistical(DRAWS - 1),
    mutants={
        "no datum left out": lambda across, within: (
            across.min(-1).values.mean(-1),
            memorisation.nearest(across, within)[1],
        ),
        "the second nearest": lambda across, within: (
            across.topk(2, largest=False).values[..., 1].mean(-1),
            memorisation.nearest(across, within)[1],
        ),
        "a datum its own neighbour": lambda across, within: (
            memorisation.nearest(across, within)[0],
            within.min(-1).values.mean(-1),
        ),
        "samples copied from the data": lambda across, within: (
            torch.zeros(len(across), dtype=across.dtype),
            memorisation.nearest(across, within)[1],
        ),
    },
    conditions=f"{DRAWS} draws of {SAMPLES} samples and {DATA} data of N(0, I) in 3 dimensions.",
)
def difference_of_distances(subject: Nearest, generator: Generator) -> Measurement:
    """The mean difference of both distances over draws of one law, in standard errors."""
    points = torch.randn(DRAWS, SAMPLES + DATA, 3, generator=cpu_generator(generator), dtype=torch.float64)
    samples, data = points[:, :SAMPLES], points[:, SAMPLES:]
    of_samples, of_data = subject(torch.cdist(samples, data), torch.cdist(data, data))
    difference = statistics.mean_estimate(of_samples - of_data)
    return Measurement(difference.value / difference.stderr)
