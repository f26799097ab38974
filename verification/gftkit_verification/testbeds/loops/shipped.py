"""The shipped training loop on a problem whose answer is known: in memory, without a run folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from gftkit.data.description import Facts
from gftkit.data.pairing import Pairs
from gftkit.data.samples import Samples, Source, VisitOrder
from gftkit.experiment.build import EvaluationPlan, Experiment, Matching
from gftkit.experiment.networks import Networks
from gftkit.kernel.contracts import Batch, Coupling, Dataset, Sampler, Schedule, TimeLaw
from gftkit.kernel.contracts import Path as ConditionalPath
from gftkit.kernel.registry import Registry
from gftkit.networks.anchor import FrozenAnchor
from gftkit.runs.schema import AnchorShare, Config, Evaluate, Objective, Train
from gftkit.runtime.devices import start_accelerator
from gftkit.sampling.scheme import build_scheme
from gftkit.theory.objective import Form
from gftkit.training.steps import Steps
from gftkit_verification.oracles.gaussian import GaussianFlow

LoopBuilder = Callable[..., Steps]
"""``build_loop``, or the same with a slip in the loop."""

NODES = 40
"""Gauss-Legendre nodes of an integral over t; exact for the polynomials that Gaussian moments are."""


class Constant:
    """One temperature for the whole run."""

    def __init__(self, value: float) -> None:
        self.value = value

    def temperature(self, progress: float) -> float:  # noqa: ARG002
        """The value."""
        return self.value


class LinearModel(nn.Module):
    """A drift that is linear in its parameters: W phi(t, x) with phi = (1, t, ..., t^degree, x, t x, ..., t^degree x).

    Args:
        d: dimension of the state.
        degree: of the polynomials in t.
        weight: (d, (degree + 1)(1 + d)), or None for zeros.
    """

    def __init__(self, d: int, degree: int = 1, weight: Tensor | None = None) -> None:
        super().__init__()
        self.degree = degree
        start = torch.zeros(d, (degree + 1) * (1 + d)) if weight is None else weight.clone()
        self.weight = nn.Parameter(start)

    def features(self, t: Tensor, x: Tensor) -> Tensor:
        """phi(t, x): (batch,), (batch, d) -> (batch, (degree + 1)(1 + d))."""
        powers = torch.stack([t**k for k in range(self.degree + 1)], 1)  # (batch, degree + 1)
        return torch.cat([powers, (powers[:, :, None] * x[:, None]).flatten(1)], 1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """W phi(t, x), in the weight's type."""
        return self.features(t.to(self.weight.dtype), x.to(self.weight.dtype)) @ self.weight.mT


@dataclass(frozen=True)
class Regression:
    """The least-squares fit of a conditional drift by W phi(t, x), the limit of a ``LinearModel`` (theory, T1, T4).

    Attributes:
        weight: W = E[y phi^T] E[phi phi^T]^-1, (d, p): the optimum of plain flow matching in the class.
        gram: H = E[phi phi^T], (p, p): |W phi|_w^2 = tr(W H W^T).
    """

    weight: Tensor
    gram: Tensor

    def optimum(self, anchor: Tensor, retention: float) -> Tensor:
        """W_beta = (1 - rho) W + rho W_pre, for an anchor W_pre phi of the class.

        The label of the blended form is (1 - rho) y + rho W_pre phi, and least squares are linear in the label.
        """
        return (1 - retention) * self.weight + retention * anchor


def fit_regression(
    flow: GaussianFlow,
    model: LinearModel,
    end: float = 1.0,
    scale: float = 0.0,
    weight: Callable[[Tensor], Tensor] | None = None,
    jumps: Sequence[float] = (),
) -> Regression:
    """The fit over t uniform on [0, end] and pairs of a Gaussian flow, in closed form but for quadrature over t.

    x_t = (1 - t) x0 + t x1 + scale sqrt(t (1 - t)) eps has covariance S_t + scale^2 t (1 - t) I, and its conditional
    drift y mean m1 - m0 and Cov(y, x_t) = D_t - scale^2 t I (theory, section 4); D_t = A_t S_t of the velocity
    A_t x + c_t. Features are affine in x: phi(t, x) = J_t (1, x).

    Args:
        flow: the law of the pairs.
        model: gives the features.
        end: the largest time.
        scale: 0 for the linear path, g for the Brownian bridge.
        weight: w(t), (n,) -> (n,), or None for 1.
        jumps: times at which it isn't smooth.
    """
    nodes, shares = (torch.from_numpy(values) / 2 for values in np.polynomial.legendre.leggauss(NODES))
    parts = list(pairwise([0.0, *jumps, end]))
    t = torch.cat([first + (last - first) * (nodes + 0.5) for first, last in parts])
    measure = torch.cat([(last - first) / end * shares for first, last in parts])
    measure = measure if weight is None else measure * weight(t)
    d, n = len(flow.mean0), len(t)
    eye = torch.eye(d, dtype=torch.float64)
    constant = model.features(t, torch.zeros(n, d, dtype=torch.float64))
    slopes = [model.features(t, unit.expand(n, d)) - constant for unit in eye]
    expand = torch.stack([constant, *slopes], 2)  # J_t, (n, p, 1 + d)

    mean, cov = flow.marginal(t)
    at = t[:, None, None]
    cross = flow.affine(t)[0] @ cov - scale**2 * at * eye
    cov = cov + scale**2 * at * (1 - at) * eye
    one = torch.cat([torch.ones(n, 1, dtype=torch.float64), mean], 1)
    second = one[:, :, None] * one[:, None]  # E[(1, x)(1, x)^T], (n, 1 + d, 1 + d)
    second[:, 1:, 1:] += cov
    mixed = (flow.mean1 - flow.mean0)[:, None] * one[:, None]  # E[y (1, x)^T], (n, d, 1 + d)
    mixed[:, :, 1:] += cross
    gram = torch.einsum("n,npi,nij,nqj->pq", measure, expand, second, expand)
    moment = torch.einsum("n,nki,npi->kp", measure, mixed, expand)
    return Regression(torch.linalg.solve(gram, moment, left=False), gram)


def build_loop(  # noqa: PLR0913
    *,
    registry: Registry,
    drift: nn.Module,
    data: Dataset | Sampler,
    source: Source,
    path: ConditionalPath,
    coupling: Coupling,
    schedule: Schedule | float,
    train: Train,
    seed: int,
    form: Form = "blended",
    device: torch.device | str = "cpu",
    pretrained: nn.Module | None = None,
    anchor_share: AnchorShare = 1.0,
    law: TimeLaw | None = None,
) -> Steps:
    """The shipped ``Steps`` of a fine-tune in memory, ready for ``loop.take(k)`` with k = 0, ..., train.steps - 1.

    Args:
        registry: gives the sampler's solver, which nothing here uses.
        drift: starts with the pretrained weights; it is trained in place.
        data: the target.
        source: draws x0.
        path: the conditional path.
        coupling: pairs them; not used where the data bring x0.
        schedule: a schedule, or a constant temperature.
        train: steps, batch size, optimiser, learning rate; ``ema`` is 0.99 where it is None.
        seed: of everything random.
        form: of the objective.
        device: where the networks are.
        pretrained: the anchor's network; by default a copy of the drift.
        anchor_share: the share of a batch that the anchor is evaluated at.
        law: of t; None for uniform.
    """
    train = replace(train, ema=0.99 if train.ema is None else train.ema)
    samples = Samples(data, "data")
    pairing_batch = train.pairing_batch or train.batch_size
    pairs = Pairs(
        VisitOrder(samples, seed), source, coupling, train.batch_size, pairing_batch, seed=seed, within_labels=False
    )
    nothing = Batch(torch.zeros(0, *samples.event_shape))
    experiment = Experiment(
        config=_config(train, seed, Objective(form, anchor_share=anchor_share)),
        facts=Facts(samples.event_shape, None, None),
        networks=Networks(drift, FrozenAnchor(pretrained or drift)),
        matching=Matching(
            path=path,
            source=source,
            pairs=pairs,
            time=law or registry.create("time", "uniform"),
            schedule=schedule if isinstance(schedule, Schedule) else Constant(schedule),
        ),
        measurement=EvaluationPlan(build_scheme(None, path, registry), [], [], [], training=nothing, reference=nothing),
        warnings=[],
    )
    return Steps(experiment, start_accelerator(torch.device(device).type))


def _config(train: Train, seed: int, objective: Objective) -> Config:
    """A config whose components are built elsewhere: their specs are never read."""
    spec = {"name": "claim"}
    return Config(
        kind="finetune",
        drift=spec,
        data=spec,
        source=spec,
        path=spec,
        coupling=spec,
        schedule=spec,
        train=train,
        evaluate=Evaluate(),
        monitors=[],
        seed=seed,
        pretrained=None,
        objective=objective,
        track=[],
    )


def step_gradient(loop: Steps, step: int) -> Tensor:
    """The gradient of a step of the loop, flat; takes the step."""
    loop.take(step)
    return torch.cat([weight.grad.flatten() for weight in loop.drift.parameters() if weight.grad is not None])
