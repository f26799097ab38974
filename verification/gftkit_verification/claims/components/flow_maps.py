"""Flow maps: the shipped jump, its solver and its loss, against the flow map of a Gaussian flow in closed form."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.networks.flow_map import jump, lagrangian_loss
from gftkit.sampling import integrate
from gftkit.theory import flow
from gftkit.theory.objective import squared_norm
from gftkit.verify.claims import exact
from gftkit.verify.declaration import claim, registered
from gftkit_verification.testbeds.measuring.differences import relative_difference
from gftkit_verification.testbeds.problems.flow_maps import (
    DIMENSION,
    BareLinearPath,
    ExactFlowMap,
    FlowMapFamily,
    Jumper,
)
from gftkit_verification.testbeds.problems.moments import cpu_generator

COUNT = 40
JUMPS = (1, 2, 5)
CONDITIONS = f"flow from N(m, I) to a normal law in dimension {DIMENSION}, {COUNT} states"

Loss = Callable[[Any, Any, Tensor, Tensor, Tensor], Tensor]
"""(student, teacher, t, end, x) -> (batch,), like ``gftkit.networks.flow_map.lagrangian_loss``."""
Jumping = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""(student, t, end, x) -> x's shape, like ``gftkit.networks.flow_map.jump``."""
Problem = tuple[ExactFlowMap, Tensor, Tensor, Tensor, Tensor]
"""A flow map, starts, ends, states and a direction."""


def _draw_problem(generator: Generator) -> Problem:
    truth = ExactFlowMap(generator)
    t, end = torch.rand(2, COUNT, generator=generator, dtype=torch.float64).sort(0).values
    x = 2 * torch.randn(COUNT, DIMENSION, generator=generator, dtype=torch.float64)
    return truth, 0.95 * t, 0.05 + 0.95 * end, x, torch.randn(DIMENSION, generator=generator, dtype=torch.float64)


# --- jumps ------------------------------------------------------------------------------------------------------------


@claim(
    "flow-map-semigroup",
    statement="X(s, r, X(t, s, x)) = X(t, r, x), and X(t, r, x) is where the flow brings x.",
    reference="Boffi et al. (2024), arXiv:2406.07507",
    subject=jump,
    bound=exact(),
    mutants={
        "length of the wrong sign": lambda u, t, end, x: x - (end - t)[:, None] * u(t, x, end=end),
        "length dropped": lambda u, t, end, x: x + u(t, x, end=end),
        "start and end swapped": lambda u, t, end, x: x + (end - t)[:, None] * u(end, x, end=t),
        "velocity at the start": lambda u, t, end, x: x + (end - t)[:, None] * u.teacher(t, x),
    },
    conditions=CONDITIONS,
)
def semigroup(subject: Jumping, generator: Generator) -> float:
    """The distance of two jumps from one, and of one from the flow's own end."""
    truth, t, end, x, _ = _draw_problem(cpu_generator(generator))
    between = t + 0.3 * (end - t)
    once = subject(truth, t, end, x)
    twice = subject(truth, between, end, subject(truth, t, between, x))
    return max(relative_difference(twice, once), relative_difference(once, truth.landing(t, end, x)))


@claim(
    "flow-map-jumps",
    statement="By the flow map itself the sampler ends where the flow does, for any number of jumps.",
    reference="Boffi et al. (2024), arXiv:2406.07507",
    subject=registered("solver", "flow-map"),
    bound=exact(),
    mutants={
        "always to the end of the flow": Jumper(lambda u, t, h, x: x + h * u(t, x, 1.0)),
        "from the start of the flow": Jumper(lambda u, t, h, x: x + h * u(0.0, x, h)),  # noqa: ARG005
        "half of the step": Jumper(lambda u, t, h, x: x + h * u(t, x, t + h / 2)),
        "length dropped": Jumper(lambda u, t, h, x: x + u(t, x, t + h)),
    },
    conditions=f"{CONDITIONS}; {', '.join(map(str, JUMPS))} jumps of gftkit.sampling.integrate.generate",
    component="solver:flow-map",
)
def sampled_jumps(solver: Any, generator: Generator) -> float:
    """The distance of N jumps of the sampler from the flow's own end."""
    generator = cpu_generator(generator)
    truth, _, _, x0, _ = _draw_problem(generator)
    zeros = torch.zeros(COUNT, dtype=torch.float64)
    end, path = truth.landing(zeros, zeros + 1, x0), BareLinearPath()
    ends = (integrate.generate(truth, path, solver, steps, x0, generator, batch_size=16) for steps in JUMPS)
    return max(relative_difference(x1, end) for x1 in ends)


# --- the loss ---------------------------------------------------------------------------------------------------------


def _slip(
    left: Callable[[Tensor, Tensor, Tensor], Tensor],
    place: Callable[..., tuple[Tensor, Tensor]] = lambda t, end, x, landed: (end, landed),  # noqa: ARG005
    *,
    learns: bool = False,
) -> Loss:
    """The loss with another left side (of u, d/ds u and L), or another time and place of the teacher."""

    def loss(student: Any, teacher: Any, t: Tensor, end: Tensor, x: Tensor) -> Tensor:
        length = flow.expand(end - t, x)
        average = student(t, x, end=end)
        slope = _central(student, t, end, x)
        there = teacher(*place(t, end, x, x + length * average))
        return squared_norm(left(average, slope, length) - (there if learns else there.detach()))

    return loss


def _central(student: Any, t: Tensor, end: Tensor, x: Tensor) -> Tensor:
    """d/ds u by differences, to 1e-9."""
    h = 1e-3
    weights = {1: 2 / 3, 2: -1 / 12}
    parts = [w * (student(t, x, end=end + k * h) - student(t, x, end=end - k * h)) / h for k, w in weights.items()]
    return parts[0] + parts[1]


def _usual(u: Tensor, slope: Tensor, length: Tensor) -> Tensor:
    return u + length * slope


WRONG: dict[str, Loss] = {
    "derivative dropped": _slip(lambda u, slope, length: u),  # noqa: ARG005
    "derivative of the wrong sign": _slip(lambda u, slope, length: u - length * slope),
    "derivative without the length": _slip(lambda u, slope, length: u + slope),  # noqa: ARG005
    "teacher at the start's time": _slip(_usual, lambda t, end, x, landed: (t, landed)),  # noqa: ARG005
    "teacher at the start's state": _slip(_usual, lambda t, end, x, landed: (end, x)),  # noqa: ARG005
    "start and end swapped": lambda student, teacher, t, end, x: lagrangian_loss(student, teacher, end, t, x),
}
DETACHED: dict[str, Loss] = {
    "derivative doesn't learn": _slip(lambda u, slope, length: u + length * slope.detach()),
    "average doesn't learn": _slip(lambda u, slope, length: u.detach() + length * slope),
    "teacher's place learns": _slip(_usual, learns=True),
}


@claim(
    "flow-map-loss",
    statement="The loss is |d/ds X - v(s, X)|^2: 0 at the flow map, and in closed form beside it.",
    reference="Boffi et al. (2024), arXiv:2406.07507",
    subject=lagrangian_loss,
    bound=exact(),
    mutants=WRONG,
    conditions=CONDITIONS,
)
def loss_values(subject: Loss, generator: Generator) -> float:
    """The error of the loss at b and c alone, where it is |b k + 2 c L k - L A_s (b + c L) k|^2, L = s - t; 0 at 0."""
    truth, t, end, x, k = _draw_problem(cpu_generator(generator))
    zero = torch.zeros(4, dtype=torch.float64)
    errors = [float(subject(FlowMapFamily(truth, k, zero), truth.teacher, t, end, x).abs().max())]
    length, slope = (end - t)[:, None], truth.flow.affine(end)[0]
    for b, c in ((0.5, 0.0), (0.0, 0.7), (-0.4, 1.1)):
        moved = ((b + c * length) * length * k)[:, :, None]
        expected = squared_norm((b + 2 * c * length) * k - (slope @ moved)[..., 0])
        parameters = torch.tensor([0.0, b, c, 0.0], dtype=torch.float64)
        loss = subject(FlowMapFamily(truth, k, parameters), truth.teacher, t, end, x)
        errors.append(relative_difference(loss, expected))
    return max(errors)


def _gradient(subject: Loss, problem: Problem, at: Tensor) -> Tensor:
    """The gradient of the mean loss with respect to the family's parameters."""
    truth, t, end, x, k = problem
    parameters = at.clone().requires_grad_()
    loss = subject(FlowMapFamily(truth, k, parameters), truth.teacher, t, end, x).mean()
    return torch.autograd.grad(loss, parameters)[0]


@claim(
    "flow-map-gradient",
    statement="The loss's gradient is that of d/ds X = u + (s - t) d/ds u, of both terms; the teacher's side stays.",
    reference="Boffi et al. (2025), arXiv:2505.18825",
    subject=lagrangian_loss,
    bound=exact(),
    mutants={**DETACHED, **WRONG},
    conditions=CONDITIONS,
)
def gradient(subject: Loss, generator: Generator) -> float:
    """The error of the gradient with respect to b and c: of the left side alone, 2 r . (k, 2 L k)."""
    problem = _draw_problem(cpu_generator(generator))
    truth, t, end, _, k = problem
    b, c = 0.8, -0.5
    length = (end - t)[:, None]
    moved = ((b + c * length) * length * k)[:, :, None]
    residual = (b + 2 * c * length) * k - (truth.flow.affine(end)[0] @ moved)[..., 0]
    expected = torch.stack([(2 * residual * k).sum(1).mean(), (4 * residual * length * k).sum(1).mean()])
    at = torch.tensor([0.0, b, c, 0.0], dtype=torch.float64)
    return relative_difference(_gradient(subject, problem, at)[1:3], expected)


@claim(
    "flow-map-optimum",
    statement="Of a family that holds the flow map, the loss's gradient is 0 at the flow map only.",
    reference="Boffi et al. (2024), arXiv:2406.07507",
    subject=lagrangian_loss,
    bound=exact(),
    mutants={
        name: loss for name, loss in WRONG.items() if name != "start and end swapped"
    },  # whose optimum is the same
    conditions=f"{CONDITIONS}; a family of four parameters, linear in them",
)
def optimum(subject: Loss, generator: Generator) -> float:
    """The parameters where the gradient is 0. It is affine in them, so that one Newton step leads there."""
    problem = _draw_problem(cpu_generator(generator))
    start = torch.tensor([0.4, -0.3, 0.5, 0.2], dtype=torch.float64)
    at_start = _gradient(subject, problem, start)
    columns = [_gradient(subject, problem, start + unit) - at_start for unit in torch.eye(4, dtype=torch.float64)]
    return float((start - torch.linalg.solve(torch.stack(columns, 1), at_start)).abs().max())
