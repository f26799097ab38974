"""Flow maps: the shipped jump, its solver and its loss, against the flow map of a Gaussian flow in closed form."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Diffusion, Jump
from gftkit.kernel.registry import Registry
from gftkit.networks.flow_map import jump, lagrangian_loss
from gftkit.sampling import integrate
from gftkit.theory import flow
from gftkit.theory.objective import squared_norm
from gftkit.verify.claims import Claim, exact
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds.moments import cpu_generator
from gftkit_verification.testbeds.problems import random_covariance

DIMENSION = 3
COUNT = 40
JUMPS = (1, 2, 5)

Loss = Callable[[Any, Any, Tensor, Tensor, Tensor], Tensor]
"""(student, teacher, t, end, x) -> (batch,), as ``gftkit.networks.flow_map.lagrangian_loss``."""
Jumping = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""(student, t, end, x) -> x's shape, as ``gftkit.networks.flow_map.jump``."""


class Exact:
    """The flow map of the linear path from N(m0, I) to N(m1, S), independent: X(t, s, x) = m_s + R_s R_t^-1 (x - m_t).

    R_t is the root of S_t = (1 - t)^2 I + t^2 S. All of them commute, so that d/dt R_t = D_t S_t^-1 R_t.

    Args:
        generator: draws the laws.
    """

    jumps = True

    def __init__(self, generator: Generator) -> None:
        cov = random_covariance(DIMENSION, generator)
        means = torch.randn(2, DIMENSION, generator=generator, dtype=torch.float64)
        self.flow = GaussianFlow(means[0], torch.eye(DIMENSION, dtype=torch.float64), means[1], cov)
        self._values, self._vectors = torch.linalg.eigh(cov)
        self._means = means

    def __call__(self, t: Tensor, x: Tensor, **given: Tensor) -> Tensor:
        """u(t, end, x), with the end by its name."""
        end = given["end"]
        return (self.lands(t, end, x) - x) / (end - t)[:, None]

    def lands(self, t: Tensor, end: Tensor, x: Tensor) -> Tensor:
        """X(t, end, x)."""
        inner = (x - self._mean(t)) @ self._vectors * (self._scale(end) / self._scale(t))
        return self._mean(end) + inner @ self._vectors.mT

    def teacher(self, t: Tensor, x: Tensor) -> Tensor:
        """v(t, x)."""
        return self.flow.velocity(t, x)

    def _mean(self, t: Tensor) -> Tensor:
        return (1 - t)[:, None] * self._means[0] + t[:, None] * self._means[1]

    def _scale(self, t: Tensor) -> Tensor:
        return ((1 - t)[:, None] ** 2 + t[:, None] ** 2 * self._values).sqrt()


class Off:
    """The flow map's average velocity in a family: (1 + a) u + b k + c (s - t) k + d x, at a = b = c = d = 0 itself.

    Args:
        truth: u.
        direction: k, (d,).
        parameters: (a, b, c, d).
    """

    jumps = True

    def __init__(self, truth: Exact, direction: Tensor, parameters: Tensor) -> None:
        self.truth, self.direction, self.parameters = truth, direction, parameters

    def __call__(self, t: Tensor, x: Tensor, **given: Tensor) -> Tensor:
        """The family's average velocity."""
        end = given["end"]
        a, b, c, d = self.parameters
        return (1 + a) * self.truth(t, x, end=end) + (b + c * (end - t)[:, None]) * self.direction + d * x


def _drawn(generator: Generator) -> tuple[Exact, Tensor, Tensor, Tensor, Tensor]:
    """A flow map, starts, ends, states and a direction."""
    truth = Exact(generator)
    t, end = torch.rand(2, COUNT, generator=generator, dtype=torch.float64).sort(0).values
    x = 2 * torch.randn(COUNT, DIMENSION, generator=generator, dtype=torch.float64)
    return truth, 0.95 * t, 0.05 + 0.95 * end, x, torch.randn(DIMENSION, generator=generator, dtype=torch.float64)


def _apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def semigroup(subject: Jumping, generator: Generator) -> float:
    """How far two jumps are from one, and one from where the flow goes."""
    truth, t, end, x, _ = _drawn(cpu_generator(generator))
    between = t + 0.3 * (end - t)
    once = subject(truth, t, end, x)
    twice = subject(truth, between, end, subject(truth, t, between, x))
    return max(_apart(twice, once), _apart(once, truth.lands(t, end, x)))


def jumps(solver: Any, generator: Generator) -> float:
    """How far N jumps of the sampler are from where the flow goes."""
    generator = cpu_generator(generator)
    truth, _, _, x0, _ = _drawn(generator)
    zeros = torch.zeros(COUNT, dtype=torch.float64)
    wanted = truth.lands(zeros, zeros + 1, x0)
    found = [integrate.generate(truth, _Linear(), solver, steps, x0, generator, batch_size=16) for steps in JUMPS]
    return max(_apart(x1, wanted) for x1 in found)


class _Linear:
    """What the sampler asks of the linear path."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1 - t, t, 0)."""
        return 1 - t, t, torch.zeros_like(t)


def loss_off(subject: Loss, generator: Generator) -> float:
    """The loss at b and c alone, where it is known: |b k + 2 c L k - L A_s (b + c L) k|^2, L = s - t; 0 at 0."""
    truth, t, end, x, k = _drawn(cpu_generator(generator))
    zero = torch.zeros(4, dtype=torch.float64)
    found = [float(subject(Off(truth, k, zero), truth.teacher, t, end, x).abs().max())]
    length, slope = (end - t)[:, None], truth.flow.affine(end)[0]
    for b, c in ((0.5, 0.0), (0.0, 0.7), (-0.4, 1.1)):
        moved = ((b + c * length) * length * k)[:, :, None]
        wanted = squared_norm((b + 2 * c * length) * k - (slope @ moved)[..., 0])
        parameters = torch.tensor([0.0, b, c, 0.0], dtype=torch.float64)
        found.append(_apart(subject(Off(truth, k, parameters), truth.teacher, t, end, x), wanted))
    return max(found)


def _gradient(subject: Loss, drawn: tuple[Exact, Tensor, Tensor, Tensor, Tensor], at: Tensor) -> Tensor:
    """The gradient of the mean loss by the family's parameters."""
    truth, t, end, x, k = drawn
    parameters = at.clone().requires_grad_()
    loss = subject(Off(truth, k, parameters), truth.teacher, t, end, x).mean()
    return torch.autograd.grad(loss, parameters)[0]


def gradient(subject: Loss, generator: Generator) -> float:
    """The gradient by b and c: of the left side alone, 2 r . (k, 2 L k)."""
    drawn = _drawn(cpu_generator(generator))
    truth, t, end, _, k = drawn
    b, c = 0.8, -0.5
    length = (end - t)[:, None]
    moved = ((b + c * length) * length * k)[:, :, None]
    residual = (b + 2 * c * length) * k - (truth.flow.affine(end)[0] @ moved)[..., 0]
    wanted = torch.stack([(2 * residual * k).sum(1).mean(), (4 * residual * length * k).sum(1).mean()])
    found = _gradient(subject, drawn, torch.tensor([0.0, b, c, 0.0], dtype=torch.float64))[1:3]
    return _apart(found, wanted)


def optimum(subject: Loss, generator: Generator) -> float:
    """Where the gradient is 0. It is affine in the parameters, so that one Newton step leads there."""
    drawn = _drawn(cpu_generator(generator))
    start = torch.tensor([0.4, -0.3, 0.5, 0.2], dtype=torch.float64)
    here = _gradient(subject, drawn, start)
    columns = [_gradient(subject, drawn, start + unit) - here for unit in torch.eye(4, dtype=torch.float64)]
    return float((start - torch.linalg.solve(torch.stack(columns, 1), here)).abs().max())


# --- slips ------------------------------------------------------------------------------------------------------------


def _slip(
    left: Callable[[Tensor, Tensor, Tensor], Tensor],
    place: Callable[..., tuple[Tensor, Tensor]] = lambda t, end, x, landed: (end, landed),  # noqa: ARG005
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


class Jumper:
    """The solver with another step.

    Args:
        step: (drift, t, h, x) -> the state at t + h.
    """

    ode_order, strong_order, weak_order = 1.0, None, None
    jumps = True

    def __init__(self, step: Callable[[Jump, float, float, Tensor], Tensor]) -> None:
        self._step = step

    def step(self, drift: Jump, diffusion: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:  # noqa: ARG002
        """The state at t + h."""
        return self._step(drift, t, h, x)


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    where = f"flow from N(m, I) to a normal law in dimension {DIMENSION}, {COUNT} states"
    yield Claim(
        name="flow-map-semigroup",
        statement="X(s, r, X(t, s, x)) = X(t, r, x), and X(t, r, x) is where the flow brings x.",
        reference="Boffi et al. (2024), arXiv:2406.07507",
        subject=jump,
        measure=semigroup,
        bound=exact(),
        mutants={
            "length of the wrong sign": lambda u, t, end, x: x - (end - t)[:, None] * u(t, x, end=end),
            "length dropped": lambda u, t, end, x: x + u(t, x, end=end),
            "start and end swapped": lambda u, t, end, x: x + (end - t)[:, None] * u(end, x, end=t),
            "velocity at the start": lambda u, t, end, x: x + (end - t)[:, None] * u.teacher(t, x),
        },
        conditions=where,
    )
    yield Claim(
        name="flow-map-jumps",
        statement="By the flow map itself the sampler ends where the flow does, for any number of jumps.",
        reference="Boffi et al. (2024), arXiv:2406.07507",
        subject=registry.create("solver", "flow-map"),
        measure=jumps,
        bound=exact(),
        mutants={
            "always to the end of the flow": Jumper(lambda u, t, h, x: x + h * u(t, x, 1.0)),
            "from the start of the flow": Jumper(lambda u, t, h, x: x + h * u(0.0, x, h)),  # noqa: ARG005
            "half of the step": Jumper(lambda u, t, h, x: x + h * u(t, x, t + h / 2)),
            "length dropped": Jumper(lambda u, t, h, x: x + u(t, x, t + h)),
        },
        conditions=f"{where}; {', '.join(map(str, JUMPS))} jumps of gftkit.sampling.integrate.generate",
        component="solver:flow-map",
    )
    yield Claim(
        name="flow-map-loss",
        statement="The loss is |d/ds X - v(s, X)|^2: 0 at the flow map, and in closed form beside it.",
        reference="Boffi et al. (2024), arXiv:2406.07507",
        subject=lagrangian_loss,
        measure=loss_off,
        bound=exact(),
        mutants=WRONG,
        conditions=where,
    )
    yield Claim(
        name="flow-map-gradient",
        statement=(
            "The loss's gradient is that of d/ds X = u + (s - t) d/ds u, of both terms; the teacher's side stays."
        ),
        reference="Boffi et al. (2025), arXiv:2505.18825",
        subject=lagrangian_loss,
        measure=gradient,
        bound=exact(),
        mutants={**DETACHED, **WRONG},
        conditions=where,
    )
    yield Claim(
        name="flow-map-optimum",
        statement="Of a family that holds the flow map, the loss's gradient is 0 at the flow map only.",
        reference="Boffi et al. (2024), arXiv:2406.07507",
        subject=lagrangian_loss,
        measure=optimum,
        bound=exact(),
        mutants={
            name: loss for name, loss in WRONG.items() if name != "start and end swapped"
        },  # whose optimum is the same
        conditions=f"{where}; a family of four parameters, linear in them",
    )
