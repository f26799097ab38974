"""What tells that a run has arrived, and how far it memorises: the statistic T, the position c, nearest neighbours."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Estimate, Path
from gftkit.kernel.registry import Registry
from gftkit.theory import flow, objective
from gftkit.theory import gap as statistics
from gftkit.theory.gap import Statistics
from gftkit.theory.objective import retention
from gftkit.verify.claims import Claim, Measurement, exact, statistical
from gftkit_verification.monitors.memorisation import monitor as memorisation
from gftkit_verification.oracles.empirical import EmpiricalFlow
from gftkit_verification.testbeds.moments import TEMPERATURES, on_cpu

POINTS, STATES = 7, 16 * memorisation.BATCHES
"""Data of the memorising drift, and states at which it is compared."""

DRAWS, MADE, SET = 20_000, 4, 4
"""Draws of samples and data of one law, and how many samples and data."""

Position = Callable[[Tensor, Tensor, Tensor, Tensor | None], Estimate]
Nearest = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Drifts = tuple[Tensor, Tensor, Tensor, Tensor]


def _drifts(path: Path, generator: Generator) -> Drifts:
    """Weights, b_pre, the memorising drift b_emp and a direction orthogonal to their difference, at random states."""
    generator = on_cpu(generator)
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


def _positions(registry: Registry, subject: Position, generator: Generator) -> float:
    """|c - (1 - rho)| at b_beta, also with an orthogonal part; at temperature 0 that is |c - 1|, and c = 0 at b_pre."""
    worst = 0.0
    for name in ("linear", "brownian-bridge"):
        weight, anchor, target, beside = _drifts(registry.create("path", name), generator)
        for w in (None, weight):
            worst = max(worst, abs(subject(anchor, anchor, target, w).value))
            for beta in (0.0, *TEMPERATURES):
                optimum = objective.blend(target, anchor, beta)
                for drift in (optimum, optimum + beside):
                    worst = max(worst, abs(subject(drift, anchor, target, w).value - (1 - retention(beta))))
    return worst


def _arrival(registry: Registry, subject: Callable[..., Statistics], generator: Generator) -> float:
    """|T| at b_beta, and ``|T - <b - b_beta, b - b_pre>|`` elsewhere, by the target drift itself."""
    worst = 0.0
    for name in ("linear", "brownian-bridge"):
        weight, anchor, target, beside = _drifts(registry.create("path", name), generator)
        for beta in (0.0, *TEMPERATURES):
            optimum = (target + beta * anchor) / (1 + beta)
            worst = max(worst, abs(subject(optimum, target, anchor, beta, weight).t))
            drift = 0.7 * optimum + 0.3 * anchor + beside
            wanted = float((weight * ((drift - optimum) * (drift - anchor)).sum(1)).mean())
            worst = max(worst, abs(subject(drift, target, anchor, beta, weight).t - wanted))
    return worst


def _neighbours(subject: Nearest, generator: Generator) -> Measurement:
    """The mean difference of both distances over draws of one law, in standard errors."""
    drawn = torch.randn(DRAWS, MADE + SET, 3, generator=on_cpu(generator), dtype=torch.float64)
    made, data = drawn[:, :MADE], drawn[:, MADE:]
    samples, others = subject(torch.cdist(made, data), torch.cdist(data, data))
    found = statistics.mean_estimate(samples - others)
    return Measurement(found.value / found.stderr)


def _position_with(slip: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], keep: bool = True) -> Position:
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


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims about arrival and memorisation."""
    conditions = (
        f"The exact drifts towards two sets of {POINTS} points in 3 dimensions, linear path and Brownian bridge, "
        f"{STATES} states, temperatures 0 to {max(TEMPERATURES):g}, with and without a weight."
    )
    yield Claim(
        "T01-memorising-position",
        "The position of the monitor `memorisation` is 1 - rho at b_beta: 1 at the memorising drift, 0 at b_pre; what "
        "is orthogonal to their difference doesn't count.",
        "theory, T1 and section 4",
        memorisation.position,
        partial(_positions, registry),
        exact(1e-9),
        {
            "norms for the inner product": _position_with(
                lambda b, a, y: (_dot(b - a, b - a).sqrt() * _dot(y - a, y - a).sqrt(), _dot(y - a, y - a))
            ),
            "distance from zero": _position_with(lambda b, a, y: (_dot(b, y - a), _dot(y - a, y - a))),
            "the gap not squared": _position_with(lambda b, a, y: (_dot(b - a, y - a), _dot(y - a, y - a).sqrt())),
            "divided by the way made": _position_with(lambda b, a, y: (_dot(b - a, y - a), _dot(b - a, b - a) + 1e-9)),
            "ends swapped": _position_with(lambda b, a, y: (_dot(b - y, a - y), _dot(y - a, y - a))),
        },
        conditions,
    )
    yield Claim(
        "T01-arrival-statistic",
        "The statistic T is <b - b_beta, b - b_pre>_w, and so 0 at b_beta.",
        "theory, section 5",
        statistics.statistics,
        partial(_arrival, registry),
        exact(1e-9),
        {
            "at the plain target": _statistics_with(lambda b, y, a, beta: (b, y, a, 0.0 * beta)),
            "temperature inverted": _statistics_with(lambda b, y, a, beta: (b, y, a, 1 / beta if beta else 1.0)),
            "anchor and target swapped": _statistics_with(lambda b, y, a, beta: (b, a, y, beta)),
            "retention for the temperature": _statistics_with(lambda b, y, a, beta: (b, y, a, retention(beta) + 1e-3)),
        },
        conditions,
    )
    yield Claim(
        "memorisation-distances",
        "For samples of the data's own law the mean distance to the nearest of all data but one is that of a datum to "
        "the nearest other one.",
        "theory, section 4",
        memorisation.nearest,
        _neighbours,
        statistical(DRAWS - 1),
        {
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
        f"{DRAWS} draws of {MADE} samples and {SET} data of N(0, I) in 3 dimensions.",
    )
