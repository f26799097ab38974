"""Pairs of a coupling: each sample is kept once (every registered coupling), and what pairs cost (T10)."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.data import pairing
from gftkit.data.pairing import Pairs
from gftkit.data.samples import Samples, VisitOrder
from gftkit.kernel.contracts import Coupling
from gftkit.verify import Measurement, claim, claim_for_each, exact, registered, statistical
from gftkit_verification.oracles import affine
from gftkit_verification.testbeds.components import each_registered
from gftkit_verification.testbeds.measuring.statistics import student_t
from gftkit_verification.testbeds.problems.flows import GaussianData, draw_flow
from gftkit_verification.testbeds.problems.moments import cpu_generator, draw_seed
from gftkit_verification.testbeds.problems.pairs import independent_cost, lower_bound
from gftkit_verification.testbeds.slips.couplings import (
    Assigned,
    Reordered,
    by_norm,
    greedy,
    largest_cost,
    least_distance,
    one_twice,
    with_replacement,
)

POINTS = 128
BATCHES = 128
"""Independent batches of a statistical claim."""
SIZE = 64
"""Pairs in such a batch."""


@dataclass(frozen=True)
class Pairing:
    """A coupling, and gftkit's function that asks it: the loop pairs by both."""

    coupling: Coupling
    pair: Callable[..., Tensor] = pairing.pair


def forgotten_indices(
    coupling: Coupling,
    x0: Tensor,
    x1: Tensor,
    generator: Generator,
    *,
    label: Tensor,
    within_labels: bool,
    conditions: Mapping[str, Tensor],
) -> Tensor:
    """``pairing.pair`` that takes the indices within a label for those of the batch."""
    if not within_labels:
        return pairing.pair(coupling, x0, x1, generator, label=label, conditions=conditions)
    order = torch.empty(len(x0), dtype=torch.int64)
    for value in torch.unique(label):
        of_label = label == value
        order[of_label] = coupling.pair(x0[of_label], x1[of_label], generator, label[of_label])
    return order


@claim_for_each(
    each_registered("coupling", lambda coupling: isinstance(coupling, Coupling)),
    "coupling-permutation-{name}",
    statement="Every source sample is paired once; where labels are kept apart, with data of its own label.",
    reference="theory, T10",
    subject=Pairing,
    bound=exact(),
    mutants=lambda coupling: {
        "drawn with replacement": Pairing(Reordered(coupling, with_replacement)),
        "one sample twice": Pairing(Reordered(coupling, one_twice)),
        "indices off by one": Pairing(Reordered(coupling, lambda order, _: order + 1)),
        "indices within a label taken for those of the batch": Pairing(coupling, forgotten_indices),
    },
    conditions=(
        "1, 2, 64 samples of shapes (2,) and (1, 2, 2); ties, equal sets, constant sets; with and without "
        "labels; a condition of few values"
    ),
    component="coupling:{name}",
    seeds=1,
)
def lost_share(subject: Pairing, generator: Generator) -> float:
    """The largest share of samples that are not kept once, or kept with another label."""
    generator = cpu_generator(generator)
    worst = 0.0
    for n, shape in itertools.product((1, 2, 64), ((2,), (1, 2, 2))):
        x0, x1 = torch.randn(2, n, *shape, generator=generator)
        ties = torch.randint(2, (2, n, *shape), generator=generator).float()
        label = torch.randint(3, (n,), generator=generator)
        conditions = {"c": torch.randint(3, (n, 2), generator=generator).float()}
        batches = torch.stack([x0, x1]), ties, torch.stack([x0, x0]), torch.zeros_like(ties)
        for (source, data), within in itertools.product([(each[0], each[1]) for each in batches], (False, True)):
            order = subject.pair(
                subject.coupling, source, data, generator, label=label, within_labels=within, conditions=conditions
            )
            lost = 1 - len(set(order.tolist()) & set(range(n))) / n
            astray = float((label[order] != label).double().mean()) if within else 0.0
            worst = max(worst, lost, astray)
    return worst


@claim(
    "T10-kept-samples",
    statement="A permutation keeps every sample; n draws from the plan miss a share (1 - 1/n)^n -> 37 % of them.",
    reference="theory, T10",
    subject=registered("coupling", "optimal-transport"),
    bound=exact(),
    mutants=lambda optimal: {
        "drawn from the plan": Reordered(optimal, with_replacement),
        "nearest source sample": Assigned(lambda x0, x1: torch.cdist(x1, x0).argmin(1)),
        "one sample twice": Reordered(optimal, one_twice),
    },
    conditions="normal samples in the plane",
    component="coupling:optimal-transport",
    seeds=1,
    axes=("batch size", "share of samples missed"),
    scales=("log", "linear"),
)
def missed_share(coupling: Coupling, generator: Generator) -> Measurement:
    """The largest share of source samples that are in no pair."""
    generator = cpu_generator(generator)
    sizes = (2, 4, 8, 16, 32, 64, 128)
    shares = []
    for n in sizes:
        batches = [torch.randn(2, n, 2, generator=generator, dtype=torch.float64) for _ in range(256 // n)]
        orders = [coupling.pair(x0, x1, generator) for x0, x1 in batches]
        shares.append(sum(1 - len(torch.unique(order)) / n for order in orders) / len(orders))
    by_draws = [(1 - 1 / n) ** n for n in sizes]
    return Measurement(max(shares), {"measured": (list(sizes), shares), "(1 - 1/n)^n": (list(sizes), by_draws)})


def batch_costs(coupling: Coupling, x0: Tensor, x1: Tensor, n: int, generator: Generator) -> Tensor:
    """Mean |x0 - x1|^2 of each batch of n consecutive samples."""
    costs = []
    for source, data in zip(x0.reshape(-1, n, x0.shape[1]), x1.reshape(-1, n, x0.shape[1]), strict=True):
        order = pairing.pair(coupling, source, data, generator)
        costs.append((source[order] - data).square().sum(1).mean())
    return torch.stack(costs)


@claim(
    "T10-minibatch-cost",
    statement=(
        "Of given samples the cost of minibatch-optimal pairs doesn't rise with the batch size; it is the least "
        "of all permutations and never below the dual bound phi(x0) + psi(x1), of mean W2^2. A batch of one is "
        "independent."
    ),
    reference="theory, T10",
    subject=registered("coupling", "optimal-transport"),
    bound=exact(),
    mutants=lambda optimal: {
        "largest cost": Assigned(largest_cost),
        "greedy": Assigned(greedy),
        "distance for its square": Assigned(least_distance),
        "inverse permutation": Reordered(optimal, lambda order, _: order.argsort()),
        "by norm": Assigned(by_norm),
    },
    conditions=f"two normal laws in the plane, {POINTS} samples, batches of 1 to {POINTS}",
    component="coupling:optimal-transport",
    axes=("batch size", "cost E|x0 - x1|^2"),
    seeds=2,
)
def cost_violation(coupling: Coupling, generator: Generator) -> Measurement:
    """The relative rise of the cost with the batch size, or its distance outside its bounds; 0 where there is none."""
    generator = cpu_generator(generator)
    gaussian = draw_flow(2, generator)
    x0, x1 = gaussian.pairs(POINTS, generator)
    least = lower_bound(gaussian, x0, x1)
    sizes = [2**k for k in range(POINTS.bit_length())]
    costs = [batch_costs(coupling, x0, x1, n, generator) for n in sizes]
    rises = [float((larger / smaller.reshape(-1, 2).mean(1)).max()) for smaller, larger in itertools.pairwise(costs)]
    crossed = [float((least.reshape(-1, n).mean(1) / cost).max()) for n, cost in zip(sizes, costs, strict=True)]
    orders = torch.tensor(list(itertools.permutations(range(4))))  # (24, 4)
    every = (x0.reshape(-1, 4, 2)[:, orders] - x1.reshape(-1, 1, 4, 2)).square().sum(-1).mean(-1)  # (batches, 24)
    beaten = float((costs[2] / every.min(1).values).max())
    w2 = affine.bures_wasserstein(gaussian.mean0, gaussian.cov0, gaussian.mean1, gaussian.cov1)
    lines = {
        "measured": (sizes, [float(cost.mean()) for cost in costs]),
        "W2^2": (sizes, [w2**2] * len(sizes)),
        "independent": (sizes, [independent_cost(gaussian)] * len(sizes)),
    }
    return Measurement(max(*rises, *crossed, beaten, 1) - 1, lines)


@claim(
    "T10-independent-pairs",
    statement=(
        "Independent pairs cost E|x0 - x1|^2 = |m0 - m1|^2 + tr S0 + tr S1 - 2 tr Cov(x0, x1) with tr Cov(x0, x1) = 0."
    ),
    reference="theory, T10",
    subject=registered("coupling", "independent"),
    bound=statistical(degrees=BATCHES - 1),
    mutants={
        "optimal transport": registered("coupling", "optimal-transport"),
        "distance for its square": Assigned(least_distance),
        "largest cost": Assigned(largest_cost),
    },
    conditions=f"{BATCHES} batches of {SIZE} pairs of gftkit.data.pairing.Pairs",
    component="coupling:independent",
    seeds=2,
)
def cross_covariance(coupling: Coupling, generator: Generator) -> float:
    """Standard errors of E (x0 - m0).(x1 - m1) = tr Cov(x0, x1), over the pairs of a run."""
    seed = draw_seed(generator)
    data = GaussianData(draw_flow(2, cpu_generator(generator)))
    pairs = Pairs(
        order=VisitOrder(Samples(data, "data"), seed),
        source=data.source,
        coupling=coupling,
        batch_size=SIZE,
        pairing_batch=SIZE,
        seed=seed,
        within_labels=False,
    )
    traces = []
    for step in range(BATCHES):
        batch = pairs.at(step)
        assert batch.x0 is not None
        traces.append(((batch.x0 - data.flow.mean0) * (batch.x1 - data.flow.mean1)).sum(1).mean())
    return student_t(torch.stack(traces))
