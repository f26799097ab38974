"""Anchor sharing: the gradients of a batch for every choice of the samples at which the anchor is evaluated."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.kernel.registry import Registry
from gftkit.theory.objective import penalty_loss, retention, shared_loss, squared_norm
from gftkit.theory.predictions import sharing_noise
from gftkit.verify.claims import Claim, exact
from gftkit_verification.claims.objective.gradients import (
    Problem,
    apart,
    jacobians,
    network,
    outputs,
    problems,
    random_weights,
)
from gftkit_verification.testbeds.moments import cpu_generator

SharedLoss = Callable[..., Tensor]
"""(drift, target, anchor, chosen, share, temperature, weight) -> (batch,), as ``gftkit.theory.shared_loss``."""

BATCH = 4
"""Samples of which every subset is looked at."""

TEMPERATURES = (0.3, 5.0)

CONDITIONS = (
    f"Every subset of 1 to {BATCH - 1} of {BATCH} samples. Gaussian flows, d = 2, 3, 5, both couplings; a network of "
    f"one hidden layer; random weights w; beta {', '.join(f'{beta:g}' for beta in TEMPERATURES)}."
)


@dataclass(frozen=True)
class Choices:
    """The gradients of a batch's mean loss, one for each choice of k of its samples.

    Attributes:
        gradients: (choices, parameters).
        values: of the mean loss, (choices,).
        full: the penalty form's gradient, (parameters,).
        value: the penalty form's.
        penalties: the gradient of each sample's w |b - b_pre|^2, (n, parameters).
    """

    gradients: Tensor
    values: Tensor
    full: Tensor
    value: Tensor
    penalties: Tensor


def choices(loss: SharedLoss, path: Path, generator: Generator) -> Iterator[tuple[float, int, Choices]]:
    """(beta, k, choices) for every problem, temperature and k < n."""
    for at in problems(path, generator, n=BATCH):
        weights = random_weights(at.x.shape[1], generator)
        jacobian, drift = jacobians(network, weights, at), outputs(network, weights, at)
        weight = 0.5 + torch.rand(BATCH, generator=generator, dtype=torch.float64)
        for beta in TEMPERATURES:
            for k in range(1, BATCH):
                yield beta, k, _choices(loss, at, jacobian, drift, weight, beta, k)


def _choices(
    loss: SharedLoss, at: Problem, jacobian: Tensor, drift: Tensor, weight: Tensor, beta: float, k: int
) -> Choices:
    places = [torch.tensor(chosen) for chosen in combinations(range(BATCH), k)]
    drifts = drift.repeat(len(places) + 1, 1, 1).requires_grad_()  # one for each choice, and one for the whole
    means = [
        loss(drifts[s], at.label, at.anchor[chosen], chosen, k / BATCH, beta, weight).mean()
        for s, chosen in enumerate(places)
    ]
    means.append(penalty_loss(drifts[-1], at.label, at.anchor, beta, weight).mean())
    values = torch.stack(means)
    (slopes,) = torch.autograd.grad(values.sum(), drifts)
    gradients = torch.einsum("nip,sni->sp", jacobian, slopes)
    penalties = torch.einsum("nip,ni->np", jacobian, 2 * weight[:, None] * (drift - at.anchor))
    values = values.detach()
    return Choices(gradients[:-1], values[:-1], gradients[-1], values[-1], penalties)


def weighted(by: Callable[[float], float]) -> SharedLoss:
    """A loss whose penalty has another weight: a function of the share in the place of 1/share."""

    def loss(
        drift: Tensor, target: Tensor, anchor: Tensor, chosen: Tensor, share: float, beta: float, weight: Tensor
    ) -> Tensor:
        return shared_loss(drift, target, anchor, chosen, 1 / by(share), beta, weight)

    return loss


def _rest_left_out(
    drift: Tensor, target: Tensor, anchor: Tensor, chosen: Tensor, share: float, beta: float, weight: Tensor
) -> Tensor:
    """Nothing but the chosen samples counts."""
    found = shared_loss(drift, target, anchor, chosen, share, beta, weight)
    return found * torch.zeros_like(found).index_fill(0, chosen, 1.0)


def _next_places(
    drift: Tensor, target: Tensor, anchor: Tensor, chosen: Tensor, share: float, beta: float, weight: Tensor
) -> Tensor:
    """The anchor of a sample meets the drift of the next one."""
    return shared_loss(drift, target, anchor, (chosen + 1) % len(drift), share, beta, weight)


def _rho_for_beta(
    drift: Tensor, target: Tensor, anchor: Tensor, chosen: Tensor, share: float, beta: float, weight: Tensor
) -> Tensor:
    return shared_loss(drift, target, anchor, chosen, share, retention(beta), weight)


def _unweighted(
    drift: Tensor, target: Tensor, anchor: Tensor, chosen: Tensor, share: float, beta: float, weight: Tensor
) -> Tensor:
    """w on the first term only."""
    penalty = shared_loss(drift, target, anchor, chosen, share, beta) - squared_norm(drift - target)
    return weight * squared_norm(drift - target) + penalty


LOSSES: dict[str, SharedLoss] = {
    "not divided by the share": weighted(lambda share: 1.0),  # noqa: ARG005
    "share squared": weighted(lambda share: share**-2),
    "share of the rest": weighted(lambda share: 1 / (1 - share)),
    "the penalty's sign": weighted(lambda share: -1 / share),
    "rest of the batch left out": _rest_left_out,
    "anchor of another sample": _next_places,
    "rho for beta": _rho_for_beta,
    "penalty without w": _unweighted,
}


@dataclass(frozen=True)
class Noise:
    """The loss, and what is predicted of its choice's noise."""

    loss: SharedLoss = shared_loss
    predicted: Callable[[float, int, int, float], float] = sharing_noise


NOISES = {
    **{name: Noise(loss=LOSSES[name]) for name in ("not divided by the share", "share squared", "rho for beta")},
    "choice with replacement": Noise(predicted=lambda beta, k, n, spread: beta**2 * (1 - 1 / n) / k * spread),
    "no finite batch": Noise(predicted=lambda beta, k, n, spread: beta**2 / k * spread),  # noqa: ARG005
    "1/n for 1/(n - 1)": Noise(predicted=lambda beta, k, n, spread: beta**2 * (1 / k - 1 / n) * (1 - 1 / n) * spread),
    "beta for beta squared": Noise(predicted=lambda beta, k, n, spread: beta * (1 / k - 1 / n) * spread),
}


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    path = registry.create("path", "linear")

    def unbiased(loss: SharedLoss, generator: Generator) -> float:
        worst = 0.0
        for _, _, found in choices(loss, path, cpu_generator(generator)):
            worst = max(worst, apart(found.gradients.mean(0), found.full), apart(found.values.mean(), found.value))
        return worst

    def noise(subject: Noise, generator: Generator) -> float:
        worst = 0.0
        for beta, k, found in choices(subject.loss, path, cpu_generator(generator)):
            away = found.gradients - found.gradients.mean(0)
            wanted = subject.predicted(beta, k, BATCH, 1.0) * torch.cov(found.penalties.mT)
            worst = max(worst, apart(away.mT @ away / len(away), wanted))
        return worst

    yield Claim(
        name="sharing-unbiased",
        statement=(
            "With the anchor on k of n samples, all choices equally likely, and the penalty times n/k, the mean loss "
            "and its gradient are those of the penalty form."
        ),
        reference="theory, anchor sharing",
        subject=shared_loss,
        measure=unbiased,
        bound=exact(1e-12),
        mutants=LOSSES,
        conditions=CONDITIONS,
        seeds=1,
    )
    yield Claim(
        name="sharing-noise",
        statement=(
            "The choice adds the covariance beta^2 (1/k - 1/n) Cov(w grad |b - b_pre|^2) to the batch's gradient."
        ),
        reference="theory, anchor sharing",
        subject=Noise(),
        measure=noise,
        bound=exact(),
        mutants=NOISES,
        conditions=CONDITIONS,
        seeds=1,
    )
