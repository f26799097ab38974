"""How the drift follows its moving optimum: T13, by gradient descent on the shipped loss and by the shipped loop."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Schedule
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Train
from gftkit.theory.objective import blended_loss, penalty_loss, retention
from gftkit.verify.claims import Claim, Line, Measurement, exact, order, statistical
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds import slips
from gftkit_verification.testbeds.components import components
from gftkit_verification.testbeds.loops import Constant, LinearModel, build_loop, fit_regression
from gftkit_verification.testbeds.moments import cpu_generator, draw_seed
from gftkit_verification.testbeds.problems import COUPLINGS, GaussianData, draw_flow, retarget
from gftkit_verification.testbeds.side_by_side import weight_of
from gftkit_verification.testbeds.slips import LoopBuilder, Loss
from gftkit_verification.testbeds.statistics import cross_fitted_t, equalise_columns

MODES = 4
STEPS = 60
"""Of gradient flow."""

AXES = ("progress", "<b - b_tgt, Delta> / |Delta|^2")
LINEAR = ("linear", "linear")
LOSS_SLIPS = {
    "target and anchor swapped": slips.swapped,
    "beta for rho": slips.beta_for_rho,
    "penalty form": penalty_loss,
    "anchor shares the weights": slips.shared,
}


@dataclass(frozen=True)
class Modes:
    """A model linear in its parameters, b = W phi, whose features have covariance diag(rates): they don't mix.

    Attributes:
        rates: lambda_i per unit of progress, (p,).
        target: W_tgt, (d, p).
        pretrained: W_pre, (d, p).
    """

    rates: Tensor
    target: Tensor
    pretrained: Tensor

    def descend(self, loss: Loss, schedule: Schedule, steps: int) -> Tensor:
        """Gradient descent on the loss's mean from W_pre, over all of progress: W - W_tgt after each step.

        A step is half the gradient over ``steps``, so that progress is the time of gradient flow.

        Returns:
            (steps + 1, d, p).
        """
        return self._moved(
            loss, [schedule.temperature(k / steps) for k in range(steps)], torch.full_like(self.rates, 0.5 / steps)
        )

    def flow(self, loss: Loss, schedule: Schedule, steps: int) -> Tensor:
        """Gradient flow, with the temperature of each step's middle: as ``descend``, and exact for any step.

        The gradient of mode i is 2 lambda_i (W - W_beta), so that (1 - e^(-lambda_i h))/(2 lambda_i) times it is the
        flow over h.
        """
        share = (1 - torch.exp(-self.rates / steps)) / (2 * self.rates)
        return self._moved(loss, [schedule.temperature((k + 0.5) / steps) for k in range(steps)], share)

    def _moved(self, loss: Loss, temperatures: Sequence[float], share: Tensor) -> Tensor:
        """Steps of ``share`` times the gradient.

        The population has p states; in state i only feature i is on: E phi phi^T = diag(rates), without labels' noise.
        """
        count = len(self.rates)
        phi = torch.diag((count * self.rates).sqrt())
        target, anchor = phi @ self.target.mT, phi @ self.pretrained.mT
        weight = self.pretrained.clone()
        found = [weight]
        for beta in temperatures:
            at = weight.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(phi @ at.mT, target, anchor, beta).mean(), at)
            weight = weight - share * gradient
            found.append(weight)
        return torch.stack(found) - self.target

    def along(self, apart: Tensor) -> Tensor:
        """c_i: the share of each mode's gap that is left, (steps + 1, d, p) -> (steps + 1, p)."""
        gap = self.pretrained - self.target
        return (apart * gap).sum(1) / gap.square().sum(0)


def drawn_modes(rates: Sequence[float], generator: Generator) -> Modes:
    """Random weights with these rates; the gap of each mode is 1."""
    target, gap = torch.randn(2, 3, len(rates), generator=generator, dtype=torch.float64)
    return Modes(torch.tensor(rates, dtype=torch.float64), target, target + gap / gap.norm(dim=0))


def drawn_rates(generator: Generator, least: float, most: float) -> list[float]:
    """Rates spread over a range, evenly in their logarithm but for chance."""
    exponents = (torch.arange(MODES) + torch.rand(MODES, generator=generator)) / MODES
    return [least * (most / least) ** float(exponent) for exponent in exponents]


def tracked(rates: Tensor, schedule: Schedule, steps: int) -> Tensor:
    """The solution of c' = -lambda (c - rho(s)), c(0) = 1, rho that of each interval's middle: (steps + 1, p).

    c(s) = e^(-lambda s) + int_0^s lambda e^(-lambda (s - u)) rho(u) du, summed over the intervals before s.
    """
    ends = torch.arange(steps + 1, dtype=torch.float64) / steps
    rho = [retention(schedule.temperature((k + 0.5) / steps)) for k in range(steps)]
    since = (ends[:, None] - ends).clamp(min=0)[..., None] * rates  # lambda (s - u), at each u
    weight = torch.exp(-since[:, 1:]) - torch.exp(-since[:, :-1])  # 0 for what is after s
    return torch.exp(-ends[:, None] * rates) + torch.einsum("skp,k->sp", weight, torch.tensor(rho, dtype=torch.float64))


class Rising:
    """A temperature that rises, which Gradual Fine-Tuning's never does: 4 s."""

    def temperature(self, progress: float) -> float:
        """beta at this progress."""
        return 4 * progress


class Slow:
    """rho falls linearly from almost 1 to 0."""

    def temperature(self, progress: float) -> float:
        """beta at this progress."""
        rho = 0.999 * (1 - progress)
        return rho / (1 - rho)


def length(apart: Tensor) -> float:
    """Of the curve of weights, (steps + 1, d, p)."""
    return float((apart[1:] - apart[:-1]).flatten(1).norm(dim=1).sum())


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    schedules = dict(components(registry, "schedule"))
    for name, schedule in schedules.items():
        yield _tracking(name, schedule)
    yield _lag(registry)
    yield _never_ahead(schedules)
    yield from _overshoot(schedules)
    yield _length()
    yield _trained(registry)


def _tracking(name: str, schedule: Schedule) -> Claim:
    def measure(loss: Loss, generator: Generator) -> Measurement:
        generator = cpu_generator(generator)
        modes = drawn_modes(drawn_rates(generator, 1.0, 30.0), generator)
        theory = tracked(modes.rates, schedule, STEPS)
        measured = modes.along(modes.flow(loss, schedule, STEPS))
        progress = [k / STEPS for k in range(STEPS + 1)]
        curves = {"measured": measured, "theory": theory, "plain": tracked(modes.rates, Constant(0.0), STEPS)}
        lines = {name: (progress, curve[:, 1].tolist()) for name, curve in curves.items()}
        return Measurement(float((measured - theory).abs().max()), lines)

    mutants = dict(LOSS_SLIPS)
    if not any(schedule.temperature((k + 0.5) / STEPS) > 0 for k in range(STEPS)):
        mutants = {"target and anchor swapped": slips.swapped, "loss doubled": slips.doubled}
    return Claim(
        name=f"T13-tracking-{name}",
        statement=(
            "Gradient flow on the blended form: b - b_tgt = c Delta in each mode, c' = -lambda (c - rho(s)), c(0) = 1."
        ),
        reference="theory, T13",
        subject=blended_loss,
        measure=measure,
        bound=exact(),
        mutants=mutants,
        conditions=(
            "Model linear in its parameters, 4 modes with lambda 1 to 30; rho of the middle of each of 60 intervals."
        ),
        component=f"schedule:{name}",
        seeds=1,
        axes=AXES,
        scales=LINEAR,
    )


def _lag(registry: Registry) -> Claim:
    schedule = registry.create("schedule", "exponential")
    steps = 520

    def measure(loss: Loss, generator: Generator) -> Measurement:
        generator = cpu_generator(generator)
        modes = drawn_modes(drawn_rates(generator, 150.0, 450.0), generator)
        share = modes.along(modes.descend(loss, schedule, steps))
        worst, measured, theory = 0.0, [], []
        at = range(steps // 5, steps * 4 // 5, steps // 20)
        for k in at:
            before, rho, after = (retention(schedule.temperature((k + ahead) / steps)) for ahead in (-1, 0, 1))
            lag = (before - after) * steps / 2 / modes.rates  # -rho'/lambda
            worst = max(worst, float(((share[k] - rho) / lag - 1).abs().max()))
            measured.append(float(share[k, 0]) - rho)
            theory.append(float(lag[0]))
        progress = [k / steps for k in at]
        return Measurement(worst, {"measured": (progress, measured), "theory": (progress, theory)})

    return Claim(
        name="T13-lag",
        statement="Where lambda is large the drift lags behind its moving optimum by -rho'/lambda.",
        reference="theory, T13",
        subject=blended_loss,
        measure=measure,
        bound=order(0.05),
        mutants={
            "penalty form": penalty_loss,
            "loss doubled": slips.doubled,
            "target and anchor swapped": slips.swapped,
        },
        conditions="Schedule `exponential`, 4 modes with lambda 150 to 450, s from 0.2 to 0.8.",
        component="schedule:exponential",
        seeds=1,
        axes=("progress", "c - rho"),
        scales=LINEAR,
    )


def _never_ahead(schedules: dict[str, Schedule]) -> Claim:
    def measure(loss: Loss, generator: Generator) -> float:
        generator = cpu_generator(generator)
        modes = drawn_modes(drawn_rates(generator, 0.5, 20.0), generator)
        plain = (1 - modes.rates / 40) ** torch.arange(41)[:, None]  # 40 steps of plain fine-tuning
        ahead = [plain - modes.along(modes.descend(loss, schedule, 40)) for schedule in (*schedules.values(), Rising())]
        return max(0.0, *(float(each.max()) for each in ahead))

    return Claim(
        name="T13-never-ahead",
        statement=(
            "c >= e^{-lambda s} for every schedule: noise-free, at equal learning rate, Gradual Fine-Tuning is never "
            "ahead of plain fine-tuning."
        ),
        reference="theory, T13",
        subject=blended_loss,
        measure=measure,
        bound=exact(),
        mutants={"gap's sign": slips.flipped, "loss doubled": slips.doubled, "anchor behind the target": _behind},
        conditions="Every registered schedule and one that rises; 4 modes, 40 steps with lr lambda up to 1/2.",
        seeds=1,
    )


def _behind(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    return blended_loss(drift, target, 2 * target - anchor, temperature)


def _overshoot(schedules: dict[str, Schedule]) -> Iterator[Claim]:
    steps = 40

    def retentions(schedule: Schedule) -> Tensor:
        return torch.tensor([retention(schedule.temperature(k / steps)) for k in range(steps)], dtype=torch.float64)

    falling = {name: schedule for name, schedule in schedules.items() if (retentions(schedule).diff() <= 0).all()}

    def measure(loss: Loss, generator: Generator) -> float:
        generator = cpu_generator(generator)
        modes = drawn_modes(drawn_rates(generator, 0.5, 30.0), generator)
        worst = 0.0
        for schedule in falling.values():
            share = modes.along(modes.descend(loss, schedule, steps))
            below = retentions(schedule)[:, None] - share[:-1]
            worst = max(worst, float(below.max()), float(share.diff(dim=0).max()))
        return worst

    def rising(loss: Loss, generator: Generator) -> Measurement:
        generator = cpu_generator(generator)
        modes = drawn_modes(drawn_rates(generator, 5.0, 30.0), generator)
        share, rho = modes.along(modes.descend(loss, Rising(), steps)), retentions(Rising())
        theory = [torch.ones(MODES, dtype=torch.float64)]
        for k in range(steps):
            theory.append(theory[-1] - modes.rates / steps * (theory[-1] - rho[k]))
        apart = float((share - torch.stack(theory)).abs().max())
        overshot = float((rho[:, None] - share[:-1]).max()) > 0.02 and bool((share[-1] - share.amin(0) > 0.02).all())
        progress = [k / steps for k in range(steps)]
        lines = {"measured": share[:-1, 0], "theory": torch.stack(theory)[:-1, 0], "rho": rho}
        return Measurement(
            apart if overshot else math.inf, {name: (progress, line.tolist()) for name, line in lines.items()}
        )

    yield Claim(
        name="T13-no-overshoot",
        statement=(
            "Under a rho that never rises, c >= rho(s) and c never rises: the drift goes one way and never overshoots "
            "its optimum."
        ),
        reference="theory, T13",
        subject=blended_loss,
        measure=measure,
        bound=exact(),
        mutants={
            "target and anchor swapped": slips.swapped,
            "beta for rho": slips.beta_for_rho,
            "gap's sign": slips.flipped,
        },
        conditions=f"Schedules {', '.join(falling)}; 4 modes, 40 steps with lr lambda below 1.",
        seeds=1,
    )
    yield Claim(
        name="T13-no-overshoot-counterexample",
        statement=(
            "Under a rho that rises the drift falls below its optimum and turns back, as c' = -lambda (c - rho(s)) has "
            "it."
        ),
        reference="theory, T13",
        subject=blended_loss,
        measure=rising,
        bound=exact(),
        mutants=LOSS_SLIPS,
        conditions="beta = 4 s; 4 modes, gradient descent of 40 steps against its own recursion.",
        seeds=1,
        axes=AXES,
        scales=LINEAR,
    )


def _length() -> Claim:
    steps = 300

    def measure(loss: Loss, generator: Generator) -> Measurement:
        generator = cpu_generator(generator)
        modes = drawn_modes(drawn_rates(generator, 20.0, 3000.0), generator)
        slow, plain = (modes.flow(loss, schedule, steps) for schedule in (Slow(), Constant(0.0)))
        straight = float((modes.pretrained - modes.target).norm())
        value = abs(length(slow) / straight - 1)
        lines = {}
        for name, curve in (("measured", slow), ("plain fine-tuning", plain)):
            share = modes.along(curve)[:: steps // 60]
            lines[name] = share[:, 0].tolist(), share[:, -1].tolist()
        return Measurement(
            value if length(plain) > 1.1 * straight else math.inf,
            {**lines, "straight": ([0.0, 1.0], [0.0, 1.0])},
            f"length/|Delta|: {length(slow) / straight:.3f} gradually, {length(plain) / straight:.3f} plainly",
        )

    return Claim(
        name="T13-path-length",
        statement=(
            "With several modes plain fine-tuning's curve of drifts is longer than |Delta|; under a slow schedule the "
            "curve's length tends to |Delta|."
        ),
        reference="theory, T13",
        subject=blended_loss,
        measure=measure,
        bound=order(0.02),
        mutants={"no anchor": slips.unanchored, "anchor shares the weights": slips.shared, "swapped": slips.swapped},
        conditions=(
            "rho from 1 to 0, linear in s; 4 modes with lambda 20 to 3000; plain fine-tuning's is at least 1.1 |Delta|."
        ),
        seeds=1,
        axes=("c of the slowest mode", "c of the fastest mode"),
        scales=LINEAR,
    )


REPLICAS, LEARNING = 32, 40
"""Runs of the loop, and their steps."""


def _trained(registry: Registry) -> Claim:
    schedule = registry.create("schedule", "exponential")

    def measure(make: LoopBuilder, generator: Generator) -> Measurement:
        here = cpu_generator(generator)
        flows = [draw_flow(d, here, coupling) for d, coupling in zip((2, 3), COUPLINGS, strict=True)]
        parts = [followed(make, flow, here, generator.device) for flow in flows]
        apart = equalise_columns(torch.cat([one for one, _ in parts], 1))
        return Measurement(cross_fitted_t(apart, torch.zeros(apart.shape[1])), parts[0][1])

    def followed(
        make: LoopBuilder, flow: GaussianFlow, here: Generator, device: torch.device
    ) -> tuple[Tensor, dict[str, Line]]:
        """What the runs are off the prediction, (runs, k), and the lines of their mean."""
        d = len(flow.mean0)
        model = LinearModel(d)
        known = fit_regression(flow, model)
        pretrained = fit_regression(retarget(flow, here), model).weight
        gap = pretrained - known.weight
        curvature, modes = torch.linalg.eigh(known.gram)
        eta = 0.5 / float(curvature[-1])
        train = Train(LEARNING, 256, eta * d / 2, {"name": "sgd"}, clip=None, ema=0.9)  # 2 of the square, loss over d

        def shares(apart: Tensor) -> Tensor:
            """c_i of each mode, and last ``<W - W_tgt, Delta> / |Delta|^2``: (..., d, p) -> (..., p + 1)."""
            products, squares = ((apart @ modes) * (gap @ modes)).sum(-2), (gap @ modes).square().sum(0)
            whole = products.sum(-1, keepdim=True) / squares.sum()
            return torch.cat([products / squares, whole], -1)

        def run() -> Tensor:
            loop = make(
                registry=registry,
                drift=LinearModel(d, weight=pretrained),
                data=GaussianData(flow),
                source=flow.starts,
                path=registry.create("path", "linear"),
                coupling=registry.create("coupling", "independent"),
                schedule=schedule,
                train=train,
                seed=draw_seed(here),
                device=device,
            )
            found = []
            for step in range(LEARNING):
                loop.take(step)
                found.append(weight_of(loop).cpu() - known.weight)
            return shares(torch.stack(found))

        apart, theory = gap, []
        for step in range(LEARNING):
            rho = retention(schedule.temperature(step / LEARNING))
            apart = apart - eta * (apart - rho * gap) @ known.gram
            theory.append(shares(apart))
        expected = torch.stack(theory)
        found = torch.stack([run() for _ in range(REPLICAS)])
        looked = slice(LEARNING // 5 - 1, None, LEARNING // 5)
        progress = [(step + 1) / LEARNING for step in range(LEARNING)]
        lines = {"measured": found[:, :, -1].mean(0), "theory": expected[:, -1]}
        lines["rho"] = torch.tensor([retention(schedule.temperature(s)) for s in progress])
        return (found - expected)[:, looked].flatten(1), {
            name: (progress, line.tolist()) for name, line in lines.items()
        }

    return Claim(
        name="T13-tracking-trained",
        statement=(
            "In the shipped loop with SGD the mean of b - b_tgt, mode by mode of the features' covariance, follows c' "
            "= -lambda (c - rho(s)), step for step."
        ),
        reference="theory, T13",
        subject=build_loop,
        measure=measure,
        bound=statistical(degrees=REPLICAS - REPLICAS // 2 - 1),
        mutants={
            "penalty form": slips.penalty_form,
            "temperature never falls": slips.never_cooling,
            "anchor shares the weights": slips.sharing_anchor,
        },
        conditions=(
            "Gaussian flows, dimension 2 with independent and 3 with optimal coupling; linear path; linear model; "
            "schedule `exponential`, temperatures from 4 to 0.02, then 0; 32 runs of 40 steps, batches of 256."
        ),
        component="schedule:exponential",
        profile="full",
        seeds=1,
        axes=AXES,
        scales=LINEAR,
    )
