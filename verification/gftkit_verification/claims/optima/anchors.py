"""What a wrong anchor does: T18 on closed forms."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import torch
from torch import Generator, Tensor, nn

from gftkit.kernel.contracts import Path
from gftkit.kernel.registry import Registry
from gftkit.networks.adapters import AdaptedDrift, Adapters
from gftkit.networks.anchor import AdaptersOffAnchor, FrozenAnchor
from gftkit.theory import objective
from gftkit.theory.objective import blended_loss, penalty_loss
from gftkit.verify.claims import Claim, exact
from gftkit_verification.claims.objective.closed_forms import (
    BLENDS,
    CONDITIONS,
    GOALS,
    SHIPPED,
    SIGN,
    STRENGTHS,
    Shipped,
    apart,
    cases,
    mutants,
)
from gftkit_verification.testbeds.moments import DIMENSIONS, TEMPERATURES, fine_tunes, on_cpu, rho_of
from gftkit_verification.testbeds.trials import LinearModel

Drift = Callable[[Tensor, Tensor], Tensor]
MakeAnchor = Callable[[nn.Module], Drift]


def anchor_error(path: Path, shipped: Shipped, generator: Generator) -> float:
    """With b_pre + delta for b_pre every form is stationary at b_beta + rho delta, and the blend is that drift."""
    worst = 0.0
    for problem, beta in cases(path, generator):
        anchor = problem.b_pre + problem.other  # an error as large as the gap
        right = objective.blend(problem.b_tgt, problem.b_pre, beta)
        moved = (right + rho_of(beta) * problem.other).requires_grad_()
        for loss in (shipped.penalty, shipped.blended):
            total = loss(moved, problem.conditional, anchor, beta, problem.weight).sum()
            (slope,) = torch.autograd.grad(total, moved)
            worst = max(worst, abs(float((slope * problem.other).sum())) / (2 * problem.gap**2))
        worst = max(worst, apart(shipped.blend(problem.b_tgt, anchor, beta), moved.detach()))
    return worst


class Normalized(nn.Module):
    """A drift that is linear in its parameters, with features that training mode divides by the batch's own spread."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.linear = LinearModel(len(weight), 1, weight).double()
        self.norm = nn.BatchNorm1d(weight.shape[1], affine=False).double()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """W norm(phi(t, x))."""
        return self.norm(self.linear.features(t, x)) @ self.linear.weight.mT


def frozen_anchor(make: MakeAnchor, generator: Generator) -> float:
    """The anchor of b_pre after the weights were trained to b_beta: the blended form is stationary there."""
    worst, generator = 0.0, on_cpu(generator)
    for d in DIMENSIONS:
        t, x = torch.rand(40, generator=generator).double(), torch.randn(40, d, generator=generator).double()
        before, goal = torch.randn(2, d, 2 + 2 * d, generator=generator, dtype=torch.float64)
        for beta in TEMPERATURES:
            module = Normalized(before).train()
            anchor = make(module)
            module.eval()
            target = Normalized(goal).eval()(t, x).detach()
            start = steepness(module, blended_loss(module(t, x), target, None, 0.0))
            with torch.no_grad():
                module.linear.weight.copy_(objective.blend(goal, before, beta))
            held = anchor(t, x)
            end = steepness(module, blended_loss(module(t, x), target, held, beta))
            worst = max(worst, float(end.norm() / start.norm()), float(held.requires_grad))
    return worst


def steepness(module: Normalized, loss: Tensor) -> Tensor:
    """The gradient of the mean loss by the weights."""
    (found,) = torch.autograd.grad(loss.mean(), module.linear.weight)
    return found


def training_mode(module: nn.Module) -> Drift:
    """A copy that was not put into evaluation mode."""
    kept = copy.deepcopy(module).requires_grad_(False)
    return lambda t, x: kept(t, x)


def copied_late(module: nn.Module) -> Drift:
    """A copy made when it is first used: of weights that were trained meanwhile."""
    kept: list[FrozenAnchor] = []

    def drift(t: Tensor, x: Tensor) -> Tensor:
        if not kept:
            kept.append(FrozenAnchor(module))
        return kept[0](t, x)

    return drift


def shared(module: nn.Module) -> Drift:
    """The trained weights themselves, without gradient."""
    return torch.no_grad()(module)


def not_detached(module: nn.Module) -> Drift:
    """A copy whose values carry gradients."""
    kept = copy.deepcopy(module).eval()
    return lambda t, x: kept(t, x)


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


def adapters_off(make: Callable[[AdaptedDrift, str], Drift], generator: Generator) -> float:
    """The anchor of b_pre after adapters of the same network were trained to b_beta: the form is stationary there."""
    worst, generator = 0.0, on_cpu(generator)
    for d in DIMENSIONS:
        t, x = torch.rand(40, generator=generator).double(), torch.randn(40, d, generator=generator).double()
        before, goal = torch.randn(2, d, 2 + 2 * d, generator=generator, dtype=torch.float64)
        target = Adaptable(goal).eval()(t, x).detach()
        for beta in TEMPERATURES:
            drift = Adaptable(before)
            adapted = AdaptedDrift(drift, Adapters(rank=d), lambda: drift(t, x), generator)  # noqa: B023
            anchor = make(adapted, "")
            layer = drift.layer
            first, second = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
            with torch.no_grad():
                second.copy_(torch.eye(d))
                first.zero_()
            (start,) = torch.autograd.grad(blended_loss(drift(t, x), target, None, 0.0).mean(), first)
            optimum = objective.blend(goal, before, beta)
            with torch.no_grad():
                first.copy_(optimum - before)
            drift.train()
            held = anchor(t, x)
            kept = drift.training and layer.training
            drift.eval()
            here = drift(t, x)
            wrong = apart(here.detach(), Adaptable(optimum).eval()(t, x).detach())
            worst = max(worst, float(held.requires_grad), float(not kept), wrong)
            if here.requires_grad:
                (end,) = torch.autograd.grad(blended_loss(here, target, held, beta).mean(), first)
                worst = max(worst, float(end.norm() / start.norm()))
    return worst


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
    whole = AdaptersOffAnchor(adapted, hashed)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        out = whole(t, x)
        adapted.drift.eval()
        return out

    return drift


def shared_anchor(path: Path, shipped: Shipped, generator: Generator) -> float:
    """With the drift itself for anchor, grad B is (1 - rho) times, and grad C once, that of plain flow matching."""
    worst = 0.0
    for problem, beta in cases(path, generator):
        d = problem.x.shape[1]
        weight = torch.randn(d, 2 + 2 * d, generator=torch.Generator().manual_seed(problem.seed))
        model = LinearModel(d, 1, weight).double()
        drift = model(problem.states.t, problem.x)

        def by_weights(values: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(values.sum(), model.weight, retain_graph=True)  # noqa: B023
            return found

        plain = by_weights(penalty_loss(drift, problem.conditional, None, 0.0, problem.weight))
        on = drift, problem.conditional, drift.detach(), beta, problem.weight
        worst = max(
            worst,
            apart(by_weights(shipped.blended(*on)), plain * (1 - rho_of(beta))),
            apart(by_weights(shipped.penalty(*on)), plain),
        )
    return worst


def reset_anchor(path: Path, shipped: Shipped, generator: Generator) -> float:
    """Each stage's optimum is the next one's anchor: b - b_tgt = rho_1 ... rho_K Delta."""
    worst = 0.0
    for problem in fine_tunes(path, generator):
        drift, product = problem.b_pre, 1.0
        for beta in sorted(TEMPERATURES, reverse=True):
            drift = shipped.blend(problem.b_tgt, drift, beta)
            product *= rho_of(beta)
            wanted = product * (problem.b_pre - problem.b_tgt)
            worst = max(worst, apart(drift - problem.b_tgt, wanted))
    return worst


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    path, round_off = registry.create("path", "linear"), exact(1e-9)
    yield Claim(
        "T18-anchor-error",
        "An anchor that is off by delta shifts the optimum by rho delta.",
        "theory, T18",
        SHIPPED,
        partial(anchor_error, path),
        round_off,
        mutants(blend={**BLENDS, **SIGN}, penalty=STRENGTHS, blended=GOALS),
        seeds=1,
        conditions=f"{CONDITIONS} delta is as large as the gap.",
    )
    yield Claim(
        "T18-frozen-anchor",
        "The anchor stays b_pre while the weights that it was made of are trained: the optimum is b_beta, not b_tgt.",
        "theory, T18",
        FrozenAnchor,
        frozen_anchor,
        exact(1e-9),
        {
            "shares the weights": shared,
            "copied at first use": copied_late,
            "not in evaluation mode": training_mode,
            "with gradients": not_detached,
        },
        seeds=1,
        conditions="A network with batch normalization, linear in its parameters, in float64; dimensions 2, 3, 5.",
    )
    if find_spec("peft") is not None:
        yield Claim(
            "T18-adapters-off-anchor",
            "The network with its adapters off stays b_pre while they are trained: the optimum is b_beta, not b_tgt.",
            "theory, T18",
            AdaptersOffAnchor,
            adapters_off,
            exact(1e-9),
            {
                "adapters left on": left_on,
                "adapters left off afterwards": left_off,
                "not in evaluation mode": off_in_training_mode,
                "evaluation mode left on": mode_left,
            },
            seeds=1,
            conditions="LoRA of full rank in a network with dropout, linear in its weights, in float64; dimensions 2, "
            "3, 5. Where the peft library is installed.",
        )
    yield Claim(
        "T18-shared-anchor-counterexample",
        "An anchor that shares the trained weights retains nothing: grad B is (1 - rho) times that of plain flow "
        "matching at every weight, and grad C equals it.",
        "theory, T18",
        SHIPPED,
        partial(shared_anchor, path),
        round_off,
        mutants(
            blended=GOALS,
            penalty={
                "half the anchor's pull left": lambda drift, target, anchor, beta, weight: penalty_loss(
                    drift, target, anchor / 2, beta, weight
                ),
            },
        ),
        seeds=1,
        conditions=f"{CONDITIONS} A drift linear in its parameters, with random weights.",
    )
    yield Claim(
        "T18-reset-anchor",
        "An anchor reset to each stage's optimum leaves the error (rho_1 rho_2 ... rho_K) (b_pre - b_tgt).",
        "theory, T18",
        SHIPPED,
        partial(reset_anchor, path),
        exact(1e-8),  # the error is 1e-5 of the gap, and so is what round-off is compared with
        mutants(blend={**BLENDS, **SIGN}),
        seeds=1,
        conditions=CONDITIONS,
    )
