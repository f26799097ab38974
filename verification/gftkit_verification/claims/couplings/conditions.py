"""T10 for labels and conditions: pairing within them keeps the law of x0 given each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.data import pairing
from gftkit.data.pairing import Pairs
from gftkit.data.samples import Samples, VisitOrder
from gftkit.kernel.contracts import Batch, Coupling, Sampler
from gftkit.verify import claim, exact, registered, statistical
from gftkit_verification.claims.couplings.pairs import Pairing
from gftkit_verification.testbeds.measuring.statistics import cross_fitted_t
from gftkit_verification.testbeds.problems.moments import cpu_generator, draw_seed
from gftkit_verification.testbeds.problems.pairs import TwoClasses
from gftkit_verification.testbeds.slips.couplings import Assigned, by_first_coordinate, least_assignment

NAME = "conditional-optimal-transport"
LIMIT = 1e6
"""A weight that leaves the cost of x to decide among equal conditions only."""
VALUES = 4
"""Different conditions in a batch."""
BATCHES, SIZE = 128, 64
"""Independent batches, and pairs in each."""

OPTIMAL = registered("coupling", "optimal-transport")
CONDITIONAL = registered("coupling", NAME, weight=LIMIT)


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
class Weighted:
    """The coupling of the least sum of |c - c'|^2 and |x0 - x1|^2, each times a weight of either sign."""

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
        return least_assignment(cost)


def standard_normal(n: int, generator: Generator) -> Tensor:
    """A source in the plane, (n, 2)."""
    return torch.randn(n, 2, generator=generator)


def run_pairs(build: Callable[..., Pairs], data: Sampler, coupling: Coupling, seed: int, **options: Any) -> Pairs:
    """The pairs of a run, from a normal source."""
    return build(
        order=VisitOrder(Samples(data, "data"), seed),
        source=standard_normal,
        coupling=coupling,
        pairing_batch=SIZE,
        seed=seed,
        **options,
    )


def across_labels(*, coupling: Coupling, within_labels: bool, instead: Coupling | None = None, **options: Any) -> Pairs:
    """``Pairs`` that takes ``within_labels`` for its opposite, and perhaps another coupling."""
    return Pairs(coupling=instead or coupling, within_labels=not within_labels, **options)


@claim(
    "T10-labels",
    statement=(
        "Pairing within each label keeps the law of x0 given the label, which sampling starts from: E[x0|label] = m0."
    ),
    reference="theory, T10",
    subject=Pairs,
    bound=statistical(degrees=BATCHES // 2 - 1),
    mutants={
        "paired across labels": across_labels,
        "across labels, by the first coordinate": partial(across_labels, instead=Assigned(by_first_coordinate)),
    },
    conditions=f"two classes apart, optimal-transport coupling, {BATCHES} batches of {SIZE} pairs",
    seeds=2,
    uses={"coupling": OPTIMAL},
)
def mean_given_label(build: Callable[..., Pairs], generator: Generator, *, coupling: Coupling) -> float:
    """Standard errors of E[x0 | label] from E[x0], over the pairs of a run that pairs within labels."""
    pairs = run_pairs(build, TwoClasses(), coupling, draw_seed(generator), batch_size=SIZE // 2, within_labels=True)
    means = []
    for step in range(0, 2 * BATCHES, 2):
        halves = [pairs.at(step), pairs.at(step + 1)]
        x0 = torch.cat([batch.x0 for batch in halves if batch.x0 is not None])
        label = torch.cat([batch.label for batch in halves if batch.label is not None])
        means.append(x0[label == 0].mean(0))
    return cross_fitted_t(torch.stack(means), torch.zeros(2))


def without_conditions(
    *, coupling: Coupling, conditions: tuple[str, ...], instead: Coupling | None = None, **options: Any
) -> Pairs:
    """``Pairs`` whose coupling isn't given the conditions, or another coupling that is."""
    return Pairs(coupling=instead or coupling, conditions=() if instead is None else conditions, **options)


def conditions_forgotten(*arguments: Any, conditions: Mapping[str, Tensor], **options: Any) -> Tensor:  # noqa: ARG001
    """``pairing.pair`` that doesn't hand the conditions on."""
    return pairing.pair(*arguments, **options)


@claim(
    "T10-conditions",
    statement="As the weight of the conditions grows, pairs have equal conditions and, within each, the least cost.",
    reference="theory, T10; Kerrigan et al. (2024), arXiv:2404.04240",
    subject=CONDITIONAL.then(Pairing),
    bound=exact(),
    mutants=lambda subject: {
        "paired by x alone": OPTIMAL.then(Pairing),
        "conditions not handed on": Pairing(subject.coupling, conditions_forgotten),
        "weight on the wrong term": Pairing(Weighted(1 / LIMIT, 1.0)),
        "sign of the conditions' distance": Pairing(Weighted(-LIMIT, 1.0)),
        "x forgotten": Pairing(Weighted(LIMIT, 0.0)),
    },
    conditions=f"{SIZE} samples of shapes (2,) and (1, 2, 2) under {VALUES} conditions; weight {LIMIT:g}",
    component=f"coupling:{NAME}",
    seeds=2,
    uses={"optimal": OPTIMAL},
)
def across_conditions(subject: Pairing, generator: Generator, *, optimal: Coupling) -> float:
    """The largest share of pairs across conditions, or excess over the least cost within each; relative."""
    generator = cpu_generator(generator)
    worst = 0.0
    for shape in ((2,), (1, 2, 2)):
        x0, x1 = torch.randn(2, SIZE, *shape, generator=generator)
        corner = torch.randint(VALUES, (SIZE,), generator=generator)
        c = torch.stack([corner % 2, corner // 2], 1).float()
        order = subject.pair(subject.coupling, x0, x1, generator, conditions={"c": c})
        best_order = pairing.pair(optimal, x0, x1, generator, corner, within_labels=True)
        cost, least = (float((x0[each] - x1).double().square().sum()) for each in (order, best_order))
        worst = max(worst, float((corner[order] != corner).double().mean()), abs(cost / least - 1))
    return worst


@claim(
    "T10-condition-law",
    statement="Pairing by x and condition keeps the law of x0 given the condition as its weight grows: E[x0|c] = m0.",
    reference="theory, T10; Cheng, Schwing (2025), arXiv:2503.10636",
    subject=Pairs,
    bound=statistical(degrees=BATCHES // 2 - 1),
    mutants={
        "coupling not told": without_conditions,
        "paired by x alone": OPTIMAL.then(lambda optimal: partial(without_conditions, instead=optimal)),
        "weight on the wrong term": partial(without_conditions, instead=Weighted(1 / LIMIT, 1.0)),
        "a light weight": registered("coupling", NAME, weight=0.3).then(
            lambda light: partial(without_conditions, instead=light)
        ),
    },
    conditions=(
        f"{VALUES} conditions apart, {BATCHES} batches of {SIZE} pairs of gftkit.data.pairing.Pairs; weight {LIMIT:g}"
    ),
    component=f"coupling:{NAME}",
    seeds=2,
    uses={"coupling": CONDITIONAL},
)
def mean_given_condition(build: Callable[..., Pairs], generator: Generator, *, coupling: Coupling) -> float:
    """Standard errors of E[x0 | c] from E[x0], over the pairs of a run whose coupling is given c."""
    pairs = run_pairs(
        build,
        FewConditions(),
        coupling,
        draw_seed(generator),
        batch_size=SIZE,
        within_labels=False,
        conditions=("c",),
    )
    means = []
    for step in range(BATCHES):
        batch = pairs.at(step)
        assert batch.x0 is not None
        corner = (batch.conditions["c"] > 0).all(1)
        means.append(batch.x0[corner].mean(0))
    return cross_fitted_t(torch.stack(means), torch.zeros(2))
