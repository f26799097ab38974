"""T10 for conditions that are no labels: what a coupling that heeds them keeps as its weight grows."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from gftkit.data import pairing
from gftkit.data.pairing import Pairs
from gftkit.data.samples import Samples, VisitOrder
from gftkit.kernel.contracts import Batch, Coupling
from gftkit.kernel.registry import Registry
from gftkit.verify.claims import Claim, exact, statistical
from gftkit_verification.testbeds.moments import on_cpu, seed_of
from gftkit_verification.testbeds.statistics import cross_fitted

NAME = "conditional-optimal-transport"
LIMIT = 1e6
"""A weight that leaves the cost of x to decide among equal conditions only."""
VALUES = 4
"""Different conditions in a batch."""
BATCHES, SIZE = 128, 64


class FewConditions:
    """Normal samples in the plane around twice their condition, which takes four values in turn."""

    event_shape: tuple[int, ...] = (2,)
    range: tuple[float, float] | None = None
    condition_shapes: Mapping[str, tuple[int, ...]] = {"c": (2,)}

    def draw(self, n: int, generator: Generator) -> Batch:
        """n samples with their conditions, the corners of a square."""
        corner = torch.arange(n) % VALUES
        c = torch.stack([corner % 2, corner // 2], 1) * 2.0 - 1
        return Batch(2 * c + torch.randn(n, 2, generator=generator), None, None, {"c": c})


@dataclass(frozen=True)
class Signed:
    """The coupling of the largest distance of conditions, or of the distance of the other thing."""

    condition: float
    state: float

    conditional = True

    def pair(
        self,
        x0: Tensor,
        x1: Tensor,
        generator: Generator,  # noqa: ARG002
        label: Tensor | None = None,  # noqa: ARG002
        conditions: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The order of the least cost with these weights."""
        cost = self.state * torch.cdist(x1.flatten(1), x0.flatten(1)).square().double()
        for values in (conditions or {}).values():
            cost += self.condition * torch.cdist(values, values).square()
        return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])


@dataclass(frozen=True)
class Pairing:
    """What the loop pairs by: a coupling, and the kernel's function that asks it."""

    coupling: Coupling
    pair: Callable[..., Tensor] = pairing.pair


def within_conditions(subject: Pairing, optimal: Coupling, generator: Generator) -> float:
    """The largest share of pairs across conditions, or excess over the least cost within each; relative."""
    generator = on_cpu(generator)
    worst = 0.0
    for shape in ((2,), (1, 2, 2)):
        x0, x1 = torch.randn(2, SIZE, *shape, generator=generator)
        corner = torch.randint(VALUES, (SIZE,), generator=generator)
        c = torch.stack([corner % 2, corner // 2], 1).float()
        order = subject.pair(subject.coupling, x0, x1, generator, None, False, {"c": c})
        least = pairing.pair(optimal, x0, x1, generator, corner, within_labels=True)
        cost, wanted = (float((x0[each] - x1).double().square().sum()) for each in (order, least))
        worst = max(worst, float((corner[order] != corner).double().mean()), abs(cost / wanted - 1))
    return worst


def condition_law(made: Callable[..., Pairs], coupling: Coupling, generator: Generator) -> float:
    """Standard errors of E[x0 | c] from E[x0], over the pairs of a run whose coupling is told c."""
    seed = seed_of(generator)
    order = VisitOrder(Samples(FewConditions(), "data"), seed)
    pairs = made(
        order,
        lambda n, draws: torch.randn(n, 2, generator=draws),
        coupling,
        SIZE,
        SIZE,
        seed,
        within_labels=False,
        conditions=("c",),
    )
    found = []
    for step in range(BATCHES):
        batch = pairs.at(step)
        assert batch.x0 is not None
        corner = (batch.conditions["c"] > 0).all(1)
        found.append(batch.x0[corner].mean(0))
    return cross_fitted(torch.stack(found), torch.zeros(2))


def _untold(*arguments: Any, conditions: tuple[str, ...], instead: Coupling | None = None, **more: Any) -> Pairs:
    """``Pairs`` whose coupling isn't told the conditions, or another coupling that is."""
    order, source, coupling, *sizes = arguments
    told = () if instead is None else conditions
    make: Any = Pairs
    found: Pairs = make(order, source, instead or coupling, *sizes, conditions=told, **more)
    return found


def _forgotten(*arguments: Any) -> Tensor:
    """``pairing.pair`` that doesn't hand the conditions on."""
    return pairing.pair(*arguments[:-1])


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    optimal = registry.create("coupling", "optimal-transport")
    conditional = registry.create("coupling", NAME, weight=LIMIT)
    yield Claim(
        "T10-conditions",
        "As the weight of the conditions grows, pairs have equal conditions and, within each, the least cost.",
        "theory, T10; Kerrigan et al. (2024), arXiv:2404.04240",
        Pairing(conditional),
        lambda subject, generator: within_conditions(subject, optimal, generator),
        exact(),
        {
            "paired by x alone": Pairing(optimal),
            "conditions not handed on": Pairing(conditional, _forgotten),
            "weight on the wrong term": Pairing(Signed(1 / LIMIT, 1.0)),
            "sign of the conditions' distance": Pairing(Signed(-LIMIT, 1.0)),
            "x forgotten": Pairing(Signed(LIMIT, 0.0)),
        },
        f"{SIZE} samples of shapes (2,) and (1, 2, 2) under {VALUES} conditions; weight {LIMIT:g}",
        f"coupling:{NAME}",
        seeds=2,
    )
    yield Claim(
        "T10-condition-law",
        "Pairing by x and condition keeps the law of x0 given the condition as its weight grows: E[x0|c] = m0.",
        "theory, T10; Cheng, Schwing (2025), arXiv:2503.10636",
        Pairs,
        lambda made, generator: condition_law(made, conditional, generator),
        statistical(degrees=BATCHES // 2 - 1),
        {
            "coupling not told": _untold,
            "paired by x alone": partial(_untold, instead=optimal),
            "weight on the wrong term": partial(_untold, instead=Signed(1 / LIMIT, 1.0)),
            "a light weight": partial(_untold, instead=registry.create("coupling", NAME, weight=0.3)),
        },
        f"{VALUES} conditions apart, {BATCHES} batches of {SIZE} pairs of gftkit.data.pairing.Pairs; weight {LIMIT:g}",
        f"coupling:{NAME}",
        seeds=2,
    )
