"""Anchors stay b_pre while the weights that they were made of are trained: T18 for networks, and their adapters."""

import copy
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from gftkit.networks.adapters import AdaptedDrift, Adapters
from gftkit.networks.anchor import AdaptersOffAnchor, FrozenAnchor
from gftkit.theory import objective
from gftkit.theory.objective import blended_loss
from gftkit.verify import claim, exact
from gftkit_verification.testbeds.loops.shipped import LinearModel
from gftkit_verification.testbeds.measuring.differences import relative_difference
from gftkit_verification.testbeds.problems.moments import DIMENSIONS, TEMPERATURES, cpu_generator

Drift = Callable[[Tensor, Tensor], Tensor]
MakeAnchor = Callable[[nn.Module], Drift]


class Normalized(nn.Module):
    """A drift that is linear in its parameters, with features that training mode divides by the batch's own spread."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.linear = LinearModel(len(weight), 1, weight).double()
        self.norm = nn.BatchNorm1d(weight.shape[1], affine=False).double()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """W norm(phi(t, x))."""
        return self.norm(self.linear.features(t, x)) @ self.linear.weight.mT


def training_mode(module: nn.Module) -> Drift:
    """A copy that was not put into evaluation mode."""
    network = copy.deepcopy(module).requires_grad_(False)
    return lambda t, x: network(t, x)


def copied_late(module: nn.Module) -> Drift:
    """A copy made when it is first used: of weights that were trained meanwhile."""
    anchors: list[FrozenAnchor] = []

    def drift(t: Tensor, x: Tensor) -> Tensor:
        if not anchors:
            anchors.append(FrozenAnchor(module))
        return anchors[0](t, x)

    return drift


def shared(module: nn.Module) -> Drift:
    """The trained weights themselves, without gradient."""
    return torch.no_grad()(module)


def not_detached(module: nn.Module) -> Drift:
    """A copy whose values carry gradients."""
    network = copy.deepcopy(module).eval()
    return lambda t, x: network(t, x)


def weight_gradient(module: Normalized, loss: Tensor) -> Tensor:
    """The gradient of the mean loss by the weights."""
    (gradient,) = torch.autograd.grad(loss.mean(), module.linear.weight)
    return gradient


@claim(
    "T18-frozen-anchor",
    statement=(
        "The anchor stays b_pre while the weights that it was made of are trained: the optimum is b_beta, not b_tgt."
    ),
    reference="theory, T18",
    subject=FrozenAnchor,
    bound=exact(1e-9),
    mutants={
        "shares the weights": shared,
        "copied at first use": copied_late,
        "not in evaluation mode": training_mode,
        "with gradients": not_detached,
    },
    seeds=1,
    conditions="A network with batch normalization, linear in its parameters, in float64; dimensions 2, 3, 5.",
)
def gradient_at_optimum(make: MakeAnchor, generator: Generator) -> float:
    """The blended form's gradient at b_beta after training there, relative to plain flow matching's at b_pre."""
    worst, generator = 0.0, cpu_generator(generator)
    for d in DIMENSIONS:
        t, x = torch.rand(40, generator=generator).double(), torch.randn(40, d, generator=generator).double()
        pretrained, goal = torch.randn(2, d, 2 + 2 * d, generator=generator, dtype=torch.float64)
        for beta in TEMPERATURES:
            module = Normalized(pretrained).train()
            anchor = make(module)
            module.eval()
            target = Normalized(goal).eval()(t, x).detach()
            start = weight_gradient(module, blended_loss(module(t, x), target, None, 0.0))
            with torch.no_grad():
                module.linear.weight.copy_(objective.blend(goal, pretrained, beta))
            anchored = anchor(t, x)
            end = weight_gradient(module, blended_loss(module(t, x), target, anchored, beta))
            worst = max(worst, float(end.norm() / start.norm()), float(anchored.requires_grad))
    return worst


class Adaptable(nn.Module):
    """A drift that is linear in the weights of one layer, which drops features in training mode."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.model = LinearModel(len(weight), 1, weight).double()
        self.drop = nn.Dropout(0.5)
        self.layer = nn.Linear(weight.shape[1], len(weight), bias=False, dtype=torch.float64)
        self.layer.weight.data.copy_(weight)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """W drop(phi(t, x))."""
        out: Tensor = self.layer(self.drop(self.model.features(t, x)))
        return out


def left_on(adapted: AdaptedDrift, hashed: str) -> Drift:  # noqa: ARG001
    """The network in evaluation mode, its adapters on."""
    return torch.no_grad()(adapted.drift.eval())


def off_in_training_mode(adapted: AdaptedDrift, hashed: str) -> Drift:  # noqa: ARG001
    """Adapters off, and the network in the mode that it is in."""

    @torch.no_grad()
    def drift(t: Tensor, x: Tensor) -> Tensor:
        for layer in adapted.layers.values():
            layer.enable_adapters(False)
        out: Tensor = adapted.drift(t, x)
        for layer in adapted.layers.values():
            layer.enable_adapters(True)
        return out

    return drift


def left_off(adapted: AdaptedDrift, hashed: str) -> Drift:  # noqa: ARG001
    """Adapters off, in evaluation mode, and both stay so."""

    @torch.no_grad()
    def drift(t: Tensor, x: Tensor) -> Tensor:
        for layer in adapted.layers.values():
            layer.enable_adapters(False)
        out: Tensor = adapted.drift.eval()(t, x)
        return out

    return drift


def mode_left(adapted: AdaptedDrift, hashed: str) -> Drift:
    """Adapters off and on again, and the network stays in evaluation mode."""
    anchor = AdaptersOffAnchor(adapted, hashed)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        out = anchor(t, x)
        adapted.drift.eval()
        return out

    return drift


@claim(
    "T18-adapters-off-anchor",
    statement=(
        "The network with its adapters off stays b_pre while they are trained: the optimum is b_beta, not b_tgt."
    ),
    reference="theory, T18",
    subject=AdaptersOffAnchor,
    bound=exact(1e-9),
    mutants={
        "adapters left on": left_on,
        "adapters left off afterwards": left_off,
        "not in evaluation mode": off_in_training_mode,
        "evaluation mode left on": mode_left,
    },
    seeds=1,
    conditions=(
        "LoRA of full rank in a network with dropout, linear in its weights, in float64; dimensions 2, "
        "3, 5. Where the peft library is installed."
    ),
    requires="peft",
)
def adapter_gradient_at_optimum(make: Callable[[AdaptedDrift, str], Drift], generator: Generator) -> float:
    """The same where adapters of the same network are trained; and whether modes and values are as they should be."""
    worst, generator = 0.0, cpu_generator(generator)
    for d in DIMENSIONS:
        t, x = torch.rand(40, generator=generator).double(), torch.randn(40, d, generator=generator).double()
        pretrained, goal = torch.randn(2, d, 2 + 2 * d, generator=generator, dtype=torch.float64)
        target = Adaptable(goal).eval()(t, x).detach()
        for beta in TEMPERATURES:
            drift = Adaptable(pretrained)
            adapted = AdaptedDrift(drift, Adapters(rank=d), lambda: drift(t, x), generator)  # noqa: B023
            anchor = make(adapted, "")
            layer = drift.layer
            first, second = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
            with torch.no_grad():
                second.copy_(torch.eye(d))
                first.zero_()
            (start,) = torch.autograd.grad(blended_loss(drift(t, x), target, None, 0.0).mean(), first)
            optimum = objective.blend(goal, pretrained, beta)
            with torch.no_grad():
                first.copy_(optimum - pretrained)
            drift.train()
            anchored = anchor(t, x)
            still_training = drift.training and layer.training
            drift.eval()
            adapted_values = drift(t, x)
            difference = relative_difference(adapted_values.detach(), Adaptable(optimum).eval()(t, x).detach())
            worst = max(worst, float(anchored.requires_grad), float(not still_training), difference)
            if adapted_values.requires_grad:
                (end,) = torch.autograd.grad(blended_loss(adapted_values, target, anchored, beta).mean(), first)
                worst = max(worst, float(end.norm() / start.norm()))
    return worst
