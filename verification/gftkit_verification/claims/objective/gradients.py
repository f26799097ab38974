"""The noise of gradients: T9, sample by sample, on closed forms."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.kernel.registry import Registry
from gftkit.theory import flow as paths
from gftkit.theory.objective import blended_loss, penalty_loss, retention, squared_norm
from gftkit.theory.predictions import label_noise
from gftkit.verify.claims import Claim, Measurement, exact
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds import slips
from gftkit_verification.testbeds.loops import LinearModel
from gftkit_verification.testbeds.moments import cpu_generator
from gftkit_verification.testbeds.problems import COUPLINGS, draw_flow, retarget
from gftkit_verification.testbeds.slips import Loss

TEMPERATURES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
DIMENSIONS = (2, 3, 5)
AXES = ("temperature", "variance of the gradient")
CONDITIONS = "Gaussian flows, d = 2, 3, 5, both couplings; a network of one hidden layer; beta 0.01 to 30."

Weights = tuple[Tensor, ...]
Model = Callable[[Weights, Tensor, Tensor], Tensor]
"""A drift as a function of its parameters: (parameters, t (), x (d,)) -> (d,)."""

LOSS_SLIPS = {
    "target and anchor swapped": slips.swapped,
    "beta for rho": slips.beta_for_rho,
    "penalty form": penalty_loss,
    "no anchor": slips.unanchored,
}


@dataclass(frozen=True)
class Problem:
    """States on a target path, with what the objective needs there.

    Attributes:
        flow: the target flow.
        t: (n,).
        x: (n, d).
        label: conditional drift b_t(x|z), (n, d).
        anchor: b_pre, (n, d).
    """

    flow: GaussianFlow
    t: Tensor
    x: Tensor
    label: Tensor
    anchor: Tensor


def problems(path: Path, generator: Generator, n: int = 12) -> Iterator[Problem]:
    """A random problem for each dimension and coupling."""
    for d in DIMENSIONS:
        for coupling in COUPLINGS:
            yield problem(path, draw_flow(d, generator, coupling), n, generator)


def problem(path: Path, flow: GaussianFlow, n: int, generator: Generator) -> Problem:
    """n states of a flow, with another flow's velocity for an anchor."""
    x0, x1 = flow.pairs(n, generator)
    t = torch.rand(n, generator=generator, dtype=torch.float64)
    x = paths.sample(path, t, x0, x1, None)
    return Problem(flow, t, x, paths.drift(path, t, x0, x1, None), retarget(flow, generator).velocity(t, x))


def network(weights: Weights, t: Tensor, x: Tensor) -> Tensor:
    """A network of one hidden layer."""
    inner, bias, outer = weights
    return outer @ torch.tanh(inner @ torch.cat([t[None], x]) + bias)


def random_weights(d: int, generator: Generator, hidden: int = 6) -> Weights:
    """Of ``network``."""
    shapes = (hidden, d + 1), (hidden,), (d, hidden)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def jacobians(model: Model, weights: Weights, at: Problem) -> Tensor:
    """The drift's derivatives by the parameters: (n, d, parameters)."""
    found = torch.func.vmap(torch.func.jacrev(model), in_dims=(None, 0, 0))(weights, at.t, at.x)
    return torch.cat([value.flatten(2) for value in found], 2)


def outputs(model: Model, weights: Weights, at: Problem) -> Tensor:
    """The drift at each state, (n, d)."""
    return torch.func.vmap(model, in_dims=(None, 0, 0))(weights, at.t, at.x).detach()


def slope(loss: Loss, drift: Tensor, label: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    """The derivative of each sample's loss by the drift, by autograd: (n, d). J^T times it is the sample's gradient."""
    drift = drift.detach().requires_grad_()
    (found,) = torch.autograd.grad(loss(drift, label, anchor, temperature).sum(), drift)
    return found


def gradients(loss: Loss, jacobian: Tensor, drift: Tensor, at: Problem, temperature: float) -> Tensor:
    """The gradient of each sample's loss by the parameters, flat: (n, parameters)."""
    return torch.einsum("nip,ni->np", jacobian, slope(loss, drift, at.label, at.anchor, temperature))


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest entry wanted."""
    return float((found - wanted).abs().max() / wanted.abs().max())


# Given (t, x): label noise.


@dataclass(frozen=True)
class LabelNoise:
    """A loss and what is predicted of its label noise."""

    loss: Loss = blended_loss
    predicted: Callable[[float, float], float] = label_noise


LABEL_SLIPS = {
    **{name: LabelNoise(loss=loss) for name, loss in LOSS_SLIPS.items()},
    "1 - rho not squared": LabelNoise(predicted=lambda rho, noise: (1 - rho) * noise),
    "rho for 1 - rho": LabelNoise(predicted=lambda rho, noise: rho**2 * noise),
}


def label_covariance(at: Problem) -> Tensor:
    """Cov(x1 - x0 | x_t) = Cov(x1 - x0) - A S_t A^T for the linear path, with v = A x + c: (n, d, d)."""
    flow = at.flow
    slope, _ = flow.affine(at.t)
    _, cov = flow.marginal(at.t)
    return flow.cov0 + flow.cov1 - flow.cross - flow.cross.mT - slope @ cov @ slope.mT


def sigma_points(mean: Tensor, cov: Tensor) -> Tensor:
    """2d equally likely points with this mean and this covariance, (2d, n, d)."""
    away = math.sqrt(mean.shape[-1]) * torch.linalg.cholesky(cov).movedim(-1, 0)  # (d, n, d)
    return mean + torch.cat([away, -away])


def label_noises(loss: Loss, jacobian: Tensor, drift: Tensor, at: Problem, temperature: float) -> Tensor:
    """The trace of the gradient's covariance given (t, x), (n,). It is exact: the gradient is affine in the label."""
    labels = sigma_points(at.flow.velocity(at.t, at.x), label_covariance(at))  # (2d, n, d)
    drifts, anchors = (values.expand_as(labels).flatten(0, 1) for values in (drift, at.anchor))
    slopes = slope(loss, drifts, labels.flatten(0, 1), anchors, temperature).reshape(labels.shape)
    found = torch.einsum("nip,kni->knp", jacobian, slopes)
    return (found - found.mean(0)).square().sum(-1).mean(0)


def closed_form_noise(jacobian: Tensor, at: Problem) -> Tensor:
    """Plain flow matching's label noise, 4 tr(J^T Cov J) with J = db/dweights: (n,)."""
    return 4 * torch.einsum("nip,nij,njp->n", jacobian, label_covariance(at), jacobian)


def compare_label_noise(subject: LabelNoise, model: Model, weights: Weights, at: Problem) -> Measurement:
    """Measured label noise against (1 - rho)^2 times the closed form of plain flow matching."""
    jacobian, drift = jacobians(model, weights, at), outputs(model, weights, at)
    noise = closed_form_noise(jacobian, at)
    worst, measured, theory = 0.0, [], []
    for beta in TEMPERATURES:
        found = label_noises(subject.loss, jacobian, drift, at, beta)
        worst = max(worst, apart(found, subject.predicted(retention(beta), 1.0) * noise))
        measured.append(float(found.mean()))
        theory.append(subject.predicted(retention(beta), float(noise.mean())))
    return Measurement(worst, {"measured": (TEMPERATURES, measured), "theory": (TEMPERATURES, theory)})


# Linear models W phi, in their population's closed form: the samples are the whole population.


@dataclass(frozen=True)
class Linear:
    """Features of a linear model at the states of a problem.

    Attributes:
        at: the problem.
        phi: (n, p).
        pretrained: W_pre, random, (d, p).
    """

    at: Problem
    phi: Tensor
    pretrained: Tensor

    def optimum(self, loss: Loss, temperature: float) -> Tensor:
        """W where the mean loss is least, (d, p): least squares to the drift at which each sample's loss is least.

        The loss is quadratic in the drift, and of one curvature in all directions: one Newton step finds that drift.
        """
        zero = torch.zeros_like(self.at.x)
        here, there = (slope(loss, drift, self.at.label, self.at.anchor, temperature) for drift in (zero, zero + 1))
        goal = -here / (there - here)
        return torch.linalg.lstsq(self.phi, goal).solution.mT

    def gradients(self, loss: Loss, weight: Tensor, temperature: float) -> Tensor:
        """The gradient of each sample's loss, (n, d, p)."""
        slopes = slope(loss, self.phi @ weight.mT, self.at.label, self.at.anchor, temperature)
        return slopes[:, :, None] * self.phi[:, None]

    def noise(self, loss: Loss, temperature: float) -> float:
        """The trace of the gradient's covariance at the optimum."""
        found = self.gradients(loss, self.optimum(loss, temperature), temperature)
        return float((found - found.mean(0)).square().sum((1, 2)).mean())


def linear_problems(path: Path, generator: Generator) -> Iterator[Linear]:
    """A random problem for each dimension and coupling, with features (1, t, x, t x)."""
    for at in problems(path, generator, n=60):
        model = LinearModel(at.x.shape[1])
        yield Linear(at, model.features(at.t, at.x), random_weight(model, generator))


def random_weight(model: LinearModel, generator: Generator) -> Tensor:
    """Of a linear model's shape, in float64."""
    return torch.randn(model.weight.shape, generator=generator, dtype=torch.float64)


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    path = registry.create("path", "linear")
    yield from _samples(path)
    yield from _linear(path)


def _samples(path: Path) -> Iterator[Claim]:
    def identity(loss: Loss, generator: Generator) -> float:
        generator = cpu_generator(generator)
        worst = 0.0
        for at in problems(path, generator):
            weights = random_weights(at.x.shape[1], generator)
            jacobian, drift = jacobians(network, weights, at), outputs(network, weights, at)
            flow_matching, tied = (gradients(part, jacobian, drift, at, 0.0) for part in (slips.unanchored, _tie))
            for beta in TEMPERATURES:
                wanted = (1 - retention(beta)) * flow_matching + retention(beta) * tied
                worst = max(worst, apart(gradients(loss, jacobian, drift, at, beta), wanted))
        return worst

    def noise(subject: LabelNoise, generator: Generator) -> Measurement:
        generator = cpu_generator(generator)
        found = []
        for d in DIMENSIONS:
            at = problem(path, draw_flow(d, generator), 12, generator)
            found.append(compare_label_noise(subject, network, random_weights(d, generator), at))
        return max(found, key=lambda measurement: measurement.value)

    def first_step(loss: Loss, generator: Generator) -> float:
        generator = cpu_generator(generator)
        worst = 0.0
        for at in problems(path, generator):
            weights = random_weights(at.x.shape[1], generator)
            jacobian, drift = jacobians(network, weights, at), outputs(network, weights, at)
            at = replace(at, anchor=drift)
            flow_matching = gradients(slips.unanchored, jacobian, drift, at, 0.0)
            for beta in TEMPERATURES:
                wanted = (1 - retention(beta)) * flow_matching
                worst = max(worst, apart(gradients(loss, jacobian, drift, at, beta), wanted))
        return worst

    yield Claim(
        name="T09-identity-per-sample",
        statement="Per sample, grad B_beta = (1 - rho) grad FM + rho grad |b - b_pre|^2.",
        reference="theory, T9",
        subject=blended_loss,
        measure=identity,
        bound=exact(),
        mutants=LOSS_SLIPS,
        conditions=CONDITIONS,
        seeds=1,
    )
    yield Claim(
        name="T09a-label-noise-gaussian",
        statement=(
            "Given (t, x), the covariance of the blended form's gradient is (1 - rho)^2 that of plain flow matching, "
            "whatever the drift."
        ),
        reference="theory, T9a",
        subject=LabelNoise(),
        measure=noise,
        bound=exact(),
        mutants=LABEL_SLIPS,
        conditions=(
            "Gaussian flows, d = 2, 3, 5, independent coupling (with the optimal one a label is a function of x_t and "
            "has no noise); a network of one hidden layer with random weights; beta 0.01 to 30."
        ),
        seeds=1,
        axes=AXES,
    )
    yield Claim(
        name="T09b-first-step-gaussian",
        statement="At b = b_pre the gradient of every sample is (1 - rho) times that of plain flow matching.",
        reference="theory, T9b",
        subject=blended_loss,
        measure=first_step,
        bound=exact(),
        mutants=LOSS_SLIPS,
        conditions=CONDITIONS,
        seeds=1,
    )


def _linear(path: Path) -> Iterator[Claim]:
    def compare(loss: Loss, at: Linear, added: Sequence[float]) -> tuple[float, dict[str, list[float]]]:
        """Noise at the optimum of each temperature against (1 - rho)^2 of plain flow matching's, and what is added."""
        flow_matching = at.noise(slips.unanchored, 0.0)
        measured = [at.noise(loss, beta) for beta in TEMPERATURES]
        inside = [label_noise(retention(beta), flow_matching) for beta in TEMPERATURES]
        theory = [less + more for less, more in zip(inside, added, strict=True)]
        worst = max(abs(found / wanted - 1) for found, wanted in zip(measured, theory, strict=True))
        return worst, {"measured": measured, "theory": theory, "b_pre in the class": inside}

    def at_optimum(loss: Loss, generator: Generator) -> Measurement:
        generator = cpu_generator(generator)
        worst = 0.0
        lines: dict[str, list[float]] = {}
        for given in linear_problems(path, generator):
            at = replace(given, at=replace(given.at, anchor=given.phi @ given.pretrained.mT))  # b_pre is in the class
            found, lines = compare(loss, at, [0.0] * len(TEMPERATURES))
            worst = max(worst, found)
        return Measurement(worst, {name: (TEMPERATURES, lines[name]) for name in ("measured", "theory")})

    def outside(loss: Loss, generator: Generator) -> Measurement:
        generator = cpu_generator(generator)
        worst = 0.0
        lines: dict[str, list[float]] = {}
        for given in linear_problems(path, generator):
            at = replace(given, at=replace(given.at, anchor=given.at.anchor + torch.sin(3 * given.at.x)))
            found, lines = compare(loss, at, list(_excess(at)))
            if lines["theory"][-1] < 2 * lines["b_pre in the class"][-1]:  # nothing would be shown
                found = math.inf
            worst = max(worst, found)
        return Measurement(worst, {name: (TEMPERATURES, line) for name, line in lines.items()})

    def curvature(loss: Loss, generator: Generator) -> float:
        generator = cpu_generator(generator)
        worst = 0.0
        for at in linear_problems(path, generator):
            rates, modes = torch.linalg.eigh(2 * at.phi.mT @ at.phi / len(at.phi))  # plain flow matching's curvature
            for beta in TEMPERATURES[1::2]:
                least = at.optimum(penalty_loss, beta)
                for share in (0.95, 1.05):  # of the largest learning rate
                    weight = least + modes[:, -1]
                    rate = share * 2 / ((1 + beta) * float(rates[-1]))
                    for _ in range(STEPS):
                        weight = weight - rate * at.gradients(loss, weight, beta).mean(0)
                    grown = float((weight - least).norm()) / math.sqrt(len(least))
                    worst = max(worst, abs(grown / abs(1 - 2 * share) ** STEPS - 1))
        return worst

    def penalty_noise(loss: Loss, generator: Generator) -> Measurement:
        generator = cpu_generator(generator)
        at = problem(path, draw_flow(3, generator), 12, generator)
        weights = random_weights(3, generator)
        jacobian, drift = jacobians(network, weights, at), outputs(network, weights, at)
        wanted = closed_form_noise(jacobian, at)
        found = [label_noises(loss, jacobian, drift, at, beta) for beta in TEMPERATURES]
        lines = {"measured": found, "theory": [wanted] * len(found)}
        return Measurement(
            max(apart(each, wanted) for each in found),
            {name: (TEMPERATURES, [float(each.mean()) for each in line]) for name, line in lines.items()},
        )

    classes = "W phi, phi = (1, t, x, t x); Gaussian flows, d = 2, 3, 5, both couplings; 60 samples as the population."
    yield Claim(
        name="T09c-optimum-noise",
        statement=(
            "At b_beta the gradient's whole covariance is (1 - rho)^2 that of plain flow matching at its optimum, for "
            "models linear in their parameters whose class contains b_pre."
        ),
        reference="theory, T9c",
        subject=blended_loss,
        measure=at_optimum,
        bound=exact(),
        mutants=LOSS_SLIPS,
        conditions=classes,
        seeds=1,
        axes=AXES,
    )
    yield Claim(
        name="T09c-optimum-noise-counterexample",
        statement=(
            "Where the class doesn't contain b_pre, with r = (Pi - I) b_pre, the trace exceeds (1 - rho)^2 of plain "
            "flow matching's by 4 E|phi|^2 (rho^2 |r|^2 + 2 rho (1 - rho) <b - b_t(x|z), r>) with b plain flow "
            "matching's optimum: it doesn't vanish as beta grows."
        ),
        reference="theory, T9c",
        subject=blended_loss,
        measure=outside,
        bound=exact(),
        mutants=LOSS_SLIPS,
        conditions=f"{classes} b_pre is not affine in x.",
        seeds=1,
        axes=AXES,
    )
    yield Claim(
        name="T09-penalty-curvature",
        statement="The penalty form has 1 + beta times plain flow matching's curvature: gradient descent converges iff "
        "lr (1 + beta) lambda_max < 2.",
        reference="theory, T9",
        subject=penalty_loss,
        measure=curvature,
        bound=exact(),
        mutants={"blended form": blended_loss, "no anchor": slips.unanchored, "twice the tie": _twice_tied},
        conditions=f"{classes} Learning rates 5 % below and above the limit.",
        seeds=1,
    )
    yield Claim(
        name="T09-penalty-label-noise",
        statement="The penalty form has plain flow matching's label noise, at every temperature.",
        reference="theory, T9",
        subject=penalty_loss,
        measure=penalty_noise,
        bound=exact(),
        mutants={
            "blended form": blended_loss,
            "target and anchor swapped": _swapped_penalty,
            "1 + beta times": _scaled_penalty,
        },
        conditions="Gaussian flow, d = 3, independent coupling; a network of one hidden layer; beta 0.01 to 30.",
        axes=AXES,
    )


STEPS = 4
"""Of gradient descent."""


def _excess(linear: Linear) -> Iterator[float]:
    """What a b_pre outside of the class adds to the gradient's variance at b_beta, for each temperature."""
    goals = torch.cat([linear.at.label, linear.at.anchor], 1)
    fitted = linear.phi @ torch.linalg.lstsq(linear.phi, goals).solution
    residual, misfit = (fitted - goals).tensor_split(2, 1)
    size = squared_norm(linear.phi)
    for rho in map(retention, TEMPERATURES):
        cross = 2 * rho * (1 - rho) * (residual * misfit).sum(1)
        yield float(4 * (size * (rho**2 * squared_norm(misfit) + cross)).mean())


def _tie(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:  # noqa: ARG001
    """|b - b_pre|^2."""
    return squared_norm(drift - anchor)


def _twice_tied(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    return penalty_loss(drift, target, anchor, 2 * temperature)


def _swapped_penalty(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    return penalty_loss(drift, anchor, target, temperature)


def _scaled_penalty(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    return (1 + temperature) * penalty_loss(drift, target, anchor, temperature)
