"""Gradients of the loss by parameters, sample by sample, of a network and of models linear in them; and their noise."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory import flow as paths
from gftkit.theory.objective import blended_loss, penalty_loss, retention
from gftkit.theory.predictions import label_noise
from gftkit.verify.claims import Measurement
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds.loops.shipped import LinearModel
from gftkit_verification.testbeds.measuring.differences import relative_difference
from gftkit_verification.testbeds.problems.flows import COUPLINGS, draw_flow, retarget
from gftkit_verification.testbeds.slips import losses as slips
from gftkit_verification.testbeds.slips.losses import Loss

TEMPERATURES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
DIMENSIONS = (2, 3, 5)
AXES = ("temperature", "variance of the gradient")

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


def draw_problems(path: Path, generator: Generator, n: int = 12) -> Iterator[Problem]:
    """A random problem for each dimension and coupling."""
    for d in DIMENSIONS:
        for coupling in COUPLINGS:
            yield draw_problem(path, draw_flow(d, generator, coupling), n, generator)


def draw_problem(path: Path, flow: GaussianFlow, n: int, generator: Generator) -> Problem:
    """n states of a flow, with another flow's velocity for an anchor."""
    x0, x1 = flow.pairs(n, generator)
    t = torch.rand(n, generator=generator, dtype=torch.float64)
    x = paths.sample(path, t, x0, x1, None)
    return Problem(flow, t, x, paths.drift(path, t, x0, x1, None), retarget(flow, generator).velocity(t, x))


def network(weights: Weights, t: Tensor, x: Tensor) -> Tensor:
    """A network of one hidden layer."""
    inner, bias, outer = weights
    return outer @ torch.tanh(inner @ torch.cat([t[None], x]) + bias)


def draw_weights(d: int, generator: Generator, hidden: int = 6) -> Weights:
    """Random weights of ``network``."""
    shapes = (hidden, d + 1), (hidden,), (d, hidden)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def jacobians(model: Model, weights: Weights, problem: Problem) -> Tensor:
    """The drift's derivatives by the parameters: (n, d, parameters)."""
    derivatives = torch.func.vmap(torch.func.jacrev(model), in_dims=(None, 0, 0))(weights, problem.t, problem.x)
    return torch.cat([derivative.flatten(2) for derivative in derivatives], 2)


def outputs(model: Model, weights: Weights, problem: Problem) -> Tensor:
    """The drift at each state, (n, d)."""
    return torch.func.vmap(model, in_dims=(None, 0, 0))(weights, problem.t, problem.x).detach()


def slope(loss: Loss, drift: Tensor, label: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    """The derivative of each sample's loss by the drift, by autograd: (n, d). J^T times it is the sample's gradient."""
    drift = drift.detach().requires_grad_()
    (derivative,) = torch.autograd.grad(loss(drift, label, anchor, temperature).sum(), drift)
    return derivative


def gradients(loss: Loss, jacobian: Tensor, drift: Tensor, problem: Problem, temperature: float) -> Tensor:
    """The gradient of each sample's loss by the parameters, flat: (n, parameters)."""
    return torch.einsum("nip,ni->np", jacobian, slope(loss, drift, problem.label, problem.anchor, temperature))


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


def label_covariance(problem: Problem) -> Tensor:
    """Cov(x1 - x0 | x_t) = Cov(x1 - x0) - A S_t A^T for the linear path, with v = A x + c: (n, d, d)."""
    flow = problem.flow
    slope, _ = flow.affine(problem.t)
    _, cov = flow.marginal(problem.t)
    return flow.cov0 + flow.cov1 - flow.cross - flow.cross.mT - slope @ cov @ slope.mT


def sigma_points(mean: Tensor, cov: Tensor) -> Tensor:
    """2d equally likely points with this mean and this covariance, (2d, n, d)."""
    away = math.sqrt(mean.shape[-1]) * torch.linalg.cholesky(cov).movedim(-1, 0)  # (d, n, d)
    return mean + torch.cat([away, -away])


def label_noises(loss: Loss, jacobian: Tensor, drift: Tensor, problem: Problem, temperature: float) -> Tensor:
    """The trace of the gradient's covariance given (t, x), (n,). It is exact: the gradient is affine in the label."""
    labels = sigma_points(problem.flow.velocity(problem.t, problem.x), label_covariance(problem))  # (2d, n, d)
    drifts, anchors = (values.expand_as(labels).flatten(0, 1) for values in (drift, problem.anchor))
    slopes = slope(loss, drifts, labels.flatten(0, 1), anchors, temperature).reshape(labels.shape)
    gradient = torch.einsum("nip,kni->knp", jacobian, slopes)
    return (gradient - gradient.mean(0)).square().sum(-1).mean(0)


def closed_form_noise(jacobian: Tensor, problem: Problem) -> Tensor:
    """Plain flow matching's label noise, 4 tr(J^T Cov J) with J = db/dweights: (n,)."""
    return 4 * torch.einsum("nip,nij,njp->n", jacobian, label_covariance(problem), jacobian)


def compare_label_noise(subject: LabelNoise, model: Model, weights: Weights, problem: Problem) -> Measurement:
    """Measured label noise against (1 - rho)^2 times the closed form of plain flow matching."""
    jacobian, drift = jacobians(model, weights, problem), outputs(model, weights, problem)
    plain = closed_form_noise(jacobian, problem)
    worst, measured, theory = 0.0, [], []
    for beta in TEMPERATURES:
        noise = label_noises(subject.loss, jacobian, drift, problem, beta)
        worst = max(worst, relative_difference(noise, subject.predicted(retention(beta), 1.0) * plain))
        measured.append(float(noise.mean()))
        theory.append(subject.predicted(retention(beta), float(plain.mean())))
    return Measurement(worst, {"measured": (TEMPERATURES, measured), "theory": (TEMPERATURES, theory)})


# Linear models W phi, in their population's closed form: the samples are the whole population.


@dataclass(frozen=True)
class Linear:
    """Features of a linear model at the states of a problem.

    Attributes:
        problem: the problem.
        phi: (n, p).
        pretrained: W_pre, random, (d, p).
    """

    problem: Problem
    phi: Tensor
    pretrained: Tensor

    def optimum(self, loss: Loss, temperature: float) -> Tensor:
        """W where the mean loss is least, (d, p): least squares to the drift at which each sample's loss is least.

        The loss is quadratic in the drift, and of one curvature in all directions: one Newton step finds that drift.
        """
        zero = torch.zeros_like(self.problem.x)
        label, anchor = self.problem.label, self.problem.anchor
        at_zero, at_one = (slope(loss, drift, label, anchor, temperature) for drift in (zero, zero + 1))
        goal = -at_zero / (at_one - at_zero)
        return torch.linalg.lstsq(self.phi, goal).solution.mT

    def gradients(self, loss: Loss, weight: Tensor, temperature: float) -> Tensor:
        """The gradient of each sample's loss, (n, d, p)."""
        slopes = slope(loss, self.phi @ weight.mT, self.problem.label, self.problem.anchor, temperature)
        return slopes[:, :, None] * self.phi[:, None]

    def noise(self, loss: Loss, temperature: float) -> float:
        """The trace of the gradient's covariance at the optimum."""
        gradients = self.gradients(loss, self.optimum(loss, temperature), temperature)
        return float((gradients - gradients.mean(0)).square().sum((1, 2)).mean())


def draw_linear_problems(path: Path, generator: Generator) -> Iterator[Linear]:
    """A random problem for each dimension and coupling, with features (1, t, x, t x)."""
    for problem in draw_problems(path, generator, n=60):
        model = LinearModel(problem.x.shape[1])
        yield Linear(problem, model.features(problem.t, problem.x), draw_weight(model, generator))


def draw_weight(model: LinearModel, generator: Generator) -> Tensor:
    """A random weight of a linear model's shape, in float64."""
    return torch.randn(model.weight.shape, generator=generator, dtype=torch.float64)
