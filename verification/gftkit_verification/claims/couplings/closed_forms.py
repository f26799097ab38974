"""Couplings: what every registered one must keep, and what T10 says of couplings, costs and labels."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from gftkit.data import pairing
from gftkit.data.pairing import Pairs
from gftkit.data.samples import Samples, Source, VisitOrder
from gftkit.kernel.contracts import Coupling, Path, Solver
from gftkit.kernel.registry import Registry
from gftkit.sampling import integrate
from gftkit.theory import flow, objective
from gftkit.verify.claims import Claim, Measurement, exact, statistical
from gftkit_verification.oracles import affine
from gftkit_verification.oracles.gaussian import GaussianFlow, bures_map, square_root
from gftkit_verification.testbeds.components import components
from gftkit_verification.testbeds.equations import Equation
from gftkit_verification.testbeds.moments import legendre, on_cpu, seed_of
from gftkit_verification.testbeds.pairs import (
    Function,
    TwoClasses,
    covariance,
    independent_cost,
    joints,
    lower_bound,
    regression,
)
from gftkit_verification.testbeds.problems import GaussianData, drawn_flow
from gftkit_verification.testbeds.statistics import cross_fitted, student

DIMENSIONS = (2, 5)
POINTS = 128
BATCHES = 128
"""Independent batches of a statistical claim."""
SIZE = 64
"""Pairs in such a batch."""
MISS = 1e-5
"""What a blend of two couplings' drifts misses q by, at least, in W2."""


@dataclass(frozen=True)
class Reordered:
    """A coupling whose order is changed afterwards.

    Args:
        coupling: the coupling.
        change: (order, generator) -> another one.
    """

    coupling: Coupling
    change: Callable[[Tensor, Generator], Tensor]

    def pair(self, x0: Tensor, x1: Tensor, generator: Generator, label: Tensor | None = None) -> Tensor:
        """The changed order."""
        return self.change(self.coupling.pair(x0, x1, generator, label), generator)


@dataclass(frozen=True)
class Assigned:
    """A coupling by a rule: (x0, x1) -> order."""

    rule: Callable[[Tensor, Tensor], Tensor]

    def pair(self, x0: Tensor, x1: Tensor, generator: Generator, label: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The rule's order."""
        return self.rule(x0.flatten(1), x1.flatten(1))


def _with_replacement(order: Tensor, generator: Generator) -> Tensor:
    return order[torch.randint(len(order), order.shape, generator=generator)]


def _one_twice(order: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    return torch.cat([order[:1], order[:-1]])


def _assignment(cost: Tensor) -> Tensor:
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])


def largest_cost(x0: Tensor, x1: Tensor) -> Tensor:
    """The permutation of the largest sum of |x0 - x1|^2."""
    return _assignment(x1 @ x0.mT)


def _greedy(x0: Tensor, x1: Tensor) -> Tensor:
    cost, order = torch.cdist(x1, x0), []
    for row in cost:
        order.append(int(row.argmin()))
        cost[:, order[-1]] = math.inf
    return torch.tensor(order)


def _by_rank(x0: Tensor, x1: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    order = torch.empty(len(x0), dtype=torch.int64)
    order[of(x1).argsort()] = of(x0).argsort()
    return order


@dataclass(frozen=True)
class Pairing:
    """What the loop pairs by: a coupling, and the kernel's function that asks it."""

    coupling: Coupling
    pair: Callable[..., Tensor] = pairing.pair


def _forgotten_indices(
    coupling: Coupling,
    x0: Tensor,
    x1: Tensor,
    generator: Generator,
    label: Tensor | None = None,
    within: bool = False,
    conditions: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """``pairing.pair`` that takes the indices within a label for those of the batch."""
    if label is None or not within:
        return pairing.pair(coupling, x0, x1, generator, label, within, conditions)
    order = torch.empty(len(x0), dtype=torch.int64)
    for value in torch.unique(label):
        chosen = label == value
        order[chosen] = coupling.pair(x0[chosen], x1[chosen], generator, label[chosen])
    return order


def permutation(subject: Pairing, generator: Generator) -> float:
    """The largest share of samples that are not kept once, or kept with another label."""
    generator = on_cpu(generator)
    worst = 0.0
    for n, shape in itertools.product((1, 2, 64), ((2,), (1, 2, 2))):
        x0, x1 = torch.randn(2, n, *shape, generator=generator)
        ties = torch.randint(2, (2, n, *shape), generator=generator).float()
        label = torch.randint(3, (n,), generator=generator)
        given = {"c": torch.randint(3, (n, 2), generator=generator).float()}
        sets = torch.stack([x0, x1]), ties, torch.stack([x0, x0]), torch.zeros_like(ties)
        for (one, other), within in itertools.product([(each[0], each[1]) for each in sets], (False, True)):
            order = subject.pair(subject.coupling, one, other, generator, label, within, given)
            missed = 1 - len(set(order.tolist()) & set(range(n))) / n
            astray = float((label[order] != label).double().mean()) if within else 0.0
            worst = max(worst, missed, astray)
    return worst


def kept(coupling: Coupling, generator: Generator) -> Measurement:
    """The largest share of source samples that are in no pair."""
    generator = on_cpu(generator)
    sizes = (2, 4, 8, 16, 32, 64, 128)
    shares = []
    for n in sizes:
        sets = [torch.randn(2, n, 2, generator=generator, dtype=torch.float64) for _ in range(256 // n)]
        orders = [coupling.pair(x0, x1, generator) for x0, x1 in sets]
        shares.append(sum(1 - len(torch.unique(order)) / n for order in orders) / len(orders))
    lost = [(1 - 1 / n) ** n for n in sizes]
    return Measurement(max(shares), {"measured": (list(sizes), shares), "(1 - 1/n)^n": (list(sizes), lost)})


def _costs(coupling: Coupling, x0: Tensor, x1: Tensor, n: int, generator: Generator) -> Tensor:
    """Mean |x0 - x1|^2 of each batch of n consecutive samples."""
    means = []
    for one, other in zip(x0.reshape(-1, n, x0.shape[1]), x1.reshape(-1, n, x0.shape[1]), strict=True):
        order = pairing.pair(coupling, one, other, generator)
        means.append((one[order] - other).square().sum(1).mean())
    return torch.stack(means)


def minibatch_cost(coupling: Coupling, generator: Generator) -> Measurement:
    """By how much the cost rises with the batch size, or leaves its bounds, relative; 0 where it doesn't."""
    generator = on_cpu(generator)
    gaussian = drawn_flow(2, generator)
    x0, x1 = gaussian.pairs(POINTS, generator)
    least = lower_bound(gaussian, x0, x1)
    sizes = [2**k for k in range(POINTS.bit_length())]
    costs = [_costs(coupling, x0, x1, n, generator) for n in sizes]
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


def independence(coupling: Coupling, generator: Generator) -> float:
    """Standard errors of E (x0 - m0).(x1 - m1) = tr Cov(x0, x1), over the pairs of a run."""
    seed = seed_of(generator)
    data = GaussianData(drawn_flow(2, on_cpu(generator)))
    pairs = Pairs(VisitOrder(Samples(data, "data"), seed), data.source, coupling, SIZE, SIZE, seed, within_labels=False)
    found = []
    for step in range(BATCHES):
        batch = pairs.at(step)
        assert batch.x0 is not None
        found.append(((batch.x0 - data.flow.mean0) * (batch.x1 - data.flow.mean1)).sum(1).mean())
    return student(torch.stack(found))


def label_law(made: Callable[..., Pairs], coupling: Coupling, generator: Generator) -> float:
    """Standard errors of E[x0 | label] from E[x0], over the pairs of a run that pairs within labels."""
    seed = seed_of(generator)
    order = VisitOrder(Samples(TwoClasses(), "data"), seed)
    pairs = made(
        order, lambda n, draws: torch.randn(n, 2, generator=draws), coupling, SIZE // 2, SIZE, seed, within_labels=True
    )
    found = []
    for step in range(0, 2 * BATCHES, 2):
        two = [pairs.at(step), pairs.at(step + 1)]
        x0 = torch.cat([batch.x0 for batch in two if batch.x0 is not None])
        label = torch.cat([batch.label for batch in two if batch.label is not None])
        found.append(x0[label == 0].mean(0))
    return cross_fitted(torch.stack(found), torch.zeros(2))


def _across_labels(
    order: VisitOrder,
    source: Source,
    coupling: Coupling,
    size: int,
    together: int,
    seed: int,
    within_labels: bool,
    instead: Coupling | None = None,
) -> Pairs:
    """``Pairs`` that takes ``within_labels`` for its opposite, and perhaps another coupling."""
    return Pairs(order, source, instead or coupling, size, together, seed, not within_labels)


@dataclass(frozen=True)
class Conditional:
    """What the loop regresses: conditional velocities at samples; and the optimal map between normal laws."""

    sample: Function = flow.sample
    velocity: Function = flow.velocity
    optimal: Callable[[Tensor, Tensor], Tensor] = bures_map


def terminal_law(subject: Conditional, paths: list[Path], generator: Generator) -> float:
    """The largest violation of m' = A m + c and S' = A S + S A^T by the regression, and of the laws at both ends."""
    generator = on_cpu(generator)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    worst = 0.0
    for d, path in itertools.product(DIMENSIONS, paths):
        for joint in joints(d, generator, subject.optimal).values():
            x, v = joint.at(subject.sample, path, t), joint.at(subject.velocity, path, t)
            rate = joint.rate(subject.sample, path, t)
            slope, shift = regression(x, v)
            mean, cov, mean_rate = x.mean(1), covariance(x, x), rate.mean(1)
            cov_rate = covariance(x, rate) + covariance(rate, x)
            moved = slope @ cov
            residuals = (
                (mean_rate - (slope @ mean[..., None])[..., 0] - shift, mean_rate),
                (cov_rate - moved - moved.mT, cov_rate),
                (mean[[0, -1]].flatten() - joint.mean, joint.mean),
                (cov[0] - joint.cov[:d, :d], joint.cov),
                (cov[-1] - joint.cov[d:, d:], joint.cov),
            )
            worst = max(worst, *(float(value.abs().max() / size.abs().max()) for value, size in residuals))
    return worst


def kinetic_energy(subject: Conditional, path: Path, generator: Generator) -> float:
    """How far the optimal coupling's int E|v_t|^2 dt is from W2^2, and others' below it; relative."""
    generator = on_cpu(generator)
    t, weight = legendre(48)
    worst = 0.0
    for d in DIMENSIONS:
        for name, joint in joints(d, generator, subject.optimal).items():
            x, v = joint.at(subject.sample, path, t), joint.at(subject.velocity, path, t)
            slope, shift = regression(x, v)
            cov = covariance(x, x)
            at_mean = (slope @ x.mean(1)[..., None])[..., 0] + shift
            energy = float(weight @ (at_mean.square().sum(1) + ((slope @ cov) * slope).sum((1, 2))))
            m, s = joint.mean, joint.cov
            least = affine.bures_wasserstein(m[:d], s[:d, :d], m[d:], s[d:, d:]) ** 2
            if name == "optimal-transport":
                worst = max(worst, abs(energy / least - 1))
            else:
                worst = max(worst, (1 + 1e-6) * least / energy - 1)
    return worst


def different_couplings(blend: affine.Blend, solver: Solver, generator: Generator) -> float:
    """How far the blend is from the target where the couplings agree; and 1 where they don't and it still hits q."""
    generator = on_cpu(generator)
    independent = drawn_flow(2, generator)
    laws = independent.mean0, independent.cov0, independent.mean1, independent.cov1
    optimal = GaussianFlow(*laws, coupling="optimal-transport")
    root = math.sqrt(2) * square_root(laws[1])
    start = laws[0] + torch.cat([root, -root])  # of exactly the source's mean and covariance
    t = torch.linspace(0, 1, len(start), dtype=torch.float64)
    wanted = independent.velocity(t, start)
    apart = float((blend(wanted, wanted, 1.0) - wanted).abs().max() / wanted.abs().max())

    def mixed(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:  # noqa: ARG001
        return blend(independent.velocity(t, x), optimal.velocity(t, x), 1.0)

    end = integrate.generate(mixed, Equation(mixed), solver, 20, start, generator)  # affine in the start
    centred = end - end.mean(0)
    missed = affine.bures_wasserstein(end.mean(0), centred.mT @ centred / len(end), *laws[2:])
    return max(apart, 0.0 if missed > MISS else 1.0)


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    for name, coupling in components(registry, "coupling"):
        yield Claim(
            f"coupling-permutation-{name}",
            "Every source sample is paired once; where labels are kept apart, with data of its own label.",
            "theory, T10",
            Pairing(coupling),
            permutation,
            exact(),
            {
                "drawn with replacement": Pairing(Reordered(coupling, _with_replacement)),
                "one sample twice": Pairing(Reordered(coupling, _one_twice)),
                "indices off by one": Pairing(Reordered(coupling, lambda order, _: order + 1)),
                "indices within a label taken for those of the batch": Pairing(coupling, _forgotten_indices),
            },
            "1, 2, 64 samples of shapes (2,) and (1, 2, 2); ties, equal sets, constant sets; with and without labels; "
            "a condition of few values",
            f"coupling:{name}",
            seeds=1,
        )
    independent, optimal = registry.create("coupling", "independent"), registry.create("coupling", "optimal-transport")
    yield Claim(
        "T10-kept-samples",
        "A permutation keeps every sample; n draws from the plan miss a share (1 - 1/n)^n -> 37 % of them.",
        "theory, T10",
        optimal,
        kept,
        exact(),
        {
            "drawn from the plan": Reordered(optimal, _with_replacement),
            "nearest source sample": Assigned(lambda x0, x1: torch.cdist(x1, x0).argmin(1)),
            "one sample twice": Reordered(optimal, _one_twice),
        },
        "normal samples in the plane",
        "coupling:optimal-transport",
        seeds=1,
        axes=("batch size", "share of samples missed"),
        scales=("log", "linear"),
    )
    yield Claim(
        "T10-minibatch-cost",
        "Of given samples the cost of minibatch-optimal pairs doesn't rise with the batch size; it is the least of all "
        "permutations and never below the dual bound phi(x0) + psi(x1), of mean W2^2. A batch of one is independent.",
        "theory, T10",
        optimal,
        minibatch_cost,
        exact(),
        {
            "largest cost": Assigned(largest_cost),
            "greedy": Assigned(_greedy),
            "distance for its square": Assigned(lambda x0, x1: _assignment(torch.cdist(x1, x0))),
            "inverse permutation": Reordered(optimal, lambda order, _: order.argsort()),
            "by norm": Assigned(lambda x0, x1: _by_rank(x0, x1, lambda x: x.norm(dim=1))),
        },
        f"two normal laws in the plane, {POINTS} samples, batches of 1 to {POINTS}",
        "coupling:optimal-transport",
        axes=("batch size", "cost E|x0 - x1|^2"),
        seeds=2,
    )
    yield Claim(
        "T10-independent-pairs",
        "Independent pairs cost E|x0 - x1|^2 = |m0 - m1|^2 + tr S0 + tr S1 - 2 tr Cov(x0, x1) with tr Cov(x0, x1) = 0.",
        "theory, T10",
        independent,
        independence,
        statistical(degrees=BATCHES - 1),
        {
            "optimal transport": optimal,
            "distance for its square": Assigned(lambda x0, x1: _assignment(torch.cdist(x1, x0))),
            "largest cost": Assigned(largest_cost),
        },
        f"{BATCHES} batches of {SIZE} pairs of gftkit.data.pairing.Pairs",
        "coupling:independent",
        seeds=2,
    )
    yield Claim(
        "T10-labels",
        "Pairing within each label keeps the law of x0 given the label, which sampling starts from: E[x0|label] = m0.",
        "theory, T10",
        Pairs,
        lambda made, generator: label_law(made, optimal, generator),
        statistical(degrees=BATCHES // 2 - 1),
        {
            "paired across labels": _across_labels,
            "across labels, by the first coordinate": partial(
                _across_labels, instead=Assigned(lambda x0, x1: _by_rank(x0, x1, lambda x: x[:, 0]))
            ),
        },
        f"two classes apart, optimal-transport coupling, {BATCHES} batches of {SIZE} pairs",
        seeds=2,
    )
    paths = [
        path
        for _, path in components(registry, "path")
        if not flow.is_noisy(path) and not flow.is_stochastic(path) and flow.t_end(path) == 1
    ]
    conditional = Conditional()
    yield Claim(
        "T10-terminal-law-gaussian",
        "For every coupling the regression A x + c of the conditional velocity on x_t carries p_t, from p0 to q: "
        "m' = A m + c and S' = A S + S A^T.",
        "theory, T10 and section 1",
        conditional,
        lambda subject, generator: terminal_law(subject, paths, generator),
        exact(),
        {
            "endpoints swapped": replace(conditional, velocity=lambda p, t, x0, x1, e: flow.velocity(p, t, x1, x0, e)),
            "velocity of other pairs": replace(
                conditional, velocity=lambda p, t, x0, x1, e: flow.velocity(p, t, x0.roll(1, 0), x1, e)
            ),
            "rate of x0 dropped": replace(
                conditional, velocity=lambda p, t, x0, x1, e: flow.velocity(p, t, torch.zeros_like(x0), x1, e)
            ),
            "sample at 1 - t": replace(conditional, sample=lambda p, t, x0, x1, e: flow.sample(p, 1 - t, x0, x1, e)),
        },
        f"normal laws, d = {DIMENSIONS}; no, the optimal and a random covariance of x0 and x1; every registered path "
        f"without noise",
        seeds=2,
    )
    linear, rk4 = registry.create("path", "linear"), registry.create("solver", "rk4")
    yield Claim(
        "T10-kinetic-energy",
        "int E|v_t|^2 dt >= W2(p0, q)^2, with equality for the optimal coupling on the linear path, more for others.",
        "theory, T10; Benamou, Brenier (2000)",
        conditional,
        lambda subject, generator: kinetic_energy(subject, linear, generator),
        exact(),
        {
            "map of commuting covariances": replace(
                conditional, optimal=lambda s0, s1: square_root(s1) @ torch.linalg.inv(square_root(s0))
            ),
            "map of the way back": replace(conditional, optimal=lambda s0, s1: bures_map(s1, s0)),
            "sign of x0": replace(conditional, velocity=lambda p, t, x0, x1, e: flow.velocity(p, t, -x0, x1, e)),
            "half of x1": replace(conditional, velocity=lambda p, t, x0, x1, e: flow.velocity(p, t, x0, x1 / 2, e)),
        },
        f"normal laws, d = {DIMENSIONS}; no, the optimal and a random covariance of x0 and x1; linear path",
    )
    yield Claim(
        "T10-different-couplings",
        "For q_pre = q the blend is the target's velocity if both have one coupling; if anchor and target have "
        "different ones, Delta is not 0 and the blend at beta = 1 misses q.",
        "theory, T10",
        objective.blend,
        lambda blend, generator: different_couplings(blend, rk4, generator),
        exact(),
        {
            "anchor forgotten": lambda target, anchor, beta: target,  # noqa: ARG005
            "target forgotten": lambda target, anchor, beta: anchor,  # noqa: ARG005
            "weights that don't add up to 1": lambda target, anchor, beta: (target + beta * anchor) / (1 + beta / 2),
        },
        f"normal laws in the plane; independent and optimal coupling; missed by W2 > {MISS:g}",
        seeds=2,
    )
