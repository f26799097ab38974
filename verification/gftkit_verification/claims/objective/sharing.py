"""Anchor sharing: the gradients of a batch for every choice of the samples at which the anchor is evaluated."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory.objective import penalty_loss, retention, shared_loss, squared_norm
from gftkit.theory.predictions import sharing_noise
from gftkit.theory.temperature import temperatures_of
from gftkit.verify import claim, claim_for_each, exact, registered
from gftkit_verification.testbeds.measuring.differences import relative_difference
from gftkit_verification.testbeds.measuring.gradients import (
    Problem,
    draw_problems,
    draw_weights,
    jacobians,
    network,
    outputs,
)
from gftkit_verification.testbeds.problems.flows import COUPLINGS
from gftkit_verification.testbeds.problems.moments import cpu_generator
from gftkit_verification.testbeds.problems.retentions import FAR, Cooling, cooled_profiles

SharedLoss = Callable[..., Tensor]
"""(drift, target, anchor, chosen, share, temperature, weight=) -> (batch,), as ``gftkit.theory.shared_loss``."""

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
        full_gradient: the penalty form's, (parameters,).
        full_value: the penalty form's.
        penalties: the gradient of each sample's w |b - b_pre|^2, (n, parameters).
    """

    gradients: Tensor
    values: Tensor
    full_gradient: Tensor
    full_value: Tensor
    penalties: Tensor


def all_choices(
    loss: SharedLoss,
    path: Path,
    generator: Generator,
    temperatures: Callable[[Tensor], Sequence[Any]] = lambda t: TEMPERATURES,  # noqa: ARG005
) -> Iterator[tuple[Any, int, Choices]]:
    """(beta, k, choices) for every problem, temperature and k < n; of one number each, or (n,) at flow times."""
    for problem in draw_problems(path, generator, n=BATCH):
        weights = draw_weights(problem.x.shape[1], generator)
        jacobian, drift = jacobians(network, weights, problem), outputs(network, weights, problem)
        weight = 0.5 + torch.rand(BATCH, generator=generator, dtype=torch.float64)
        penalties = torch.einsum("nip,ni->np", jacobian, 2 * weight[:, None] * (drift - problem.anchor))
        for beta in temperatures(problem.t):
            for k in range(1, BATCH):
                values, slopes = mean_losses(loss, problem, drift, weight, beta, k)
                gradients = torch.einsum("nip,sni->sp", jacobian, slopes)
                yield beta, k, Choices(gradients[:-1], values[:-1], gradients[-1], values[-1], penalties)


def mean_losses(
    loss: SharedLoss, problem: Problem, drift: Tensor, weight: Tensor, beta: Any, k: int
) -> tuple[Tensor, Tensor]:
    """The mean loss for each choice, and last the penalty form's, and their derivatives by the drift."""
    choices = [torch.tensor(chosen) for chosen in combinations(range(BATCH), k)]
    drifts = drift.repeat(len(choices) + 1, 1, 1).requires_grad_()  # one for each choice, and one for the whole
    means = [
        loss(drifts[s], problem.label, problem.anchor[chosen], chosen, k / BATCH, beta, weight=weight).mean()
        for s, chosen in enumerate(choices)
    ]
    means.append(penalty_loss(drifts[-1], problem.label, problem.anchor, beta, weight).mean())
    values = torch.stack(means)
    (slopes,) = torch.autograd.grad(values.sum(), drifts)
    return values.detach(), slopes


def weighted(divisor: Callable[[float], float]) -> SharedLoss:
    """A loss whose penalty has another weight: a function of the share in the place of 1/share."""

    def loss(
        drift: Tensor, target: Tensor, anchor: Tensor, chosen: Tensor, share: float, beta: float, weight: Tensor
    ) -> Tensor:
        return shared_loss(drift, target, anchor, chosen, 1 / divisor(share), beta, weight=weight)

    return loss


def rest_left_out(
    drift: Tensor, target: Tensor, anchor: Tensor, chosen: Tensor, share: float, beta: float, weight: Tensor
) -> Tensor:
    """Nothing but the chosen samples counts."""
    losses = shared_loss(drift, target, anchor, chosen, share, beta, weight=weight)
    return losses * torch.zeros_like(losses).index_fill(0, chosen, 1.0)


def next_places(
    drift: Tensor, target: Tensor, anchor: Tensor, chosen: Tensor, share: float, beta: float, weight: Tensor
) -> Tensor:
    """The anchor of a sample meets the drift of the next one."""
    return shared_loss(drift, target, anchor, (chosen + 1) % len(drift), share, beta, weight=weight)


def rho_for_beta(
    drift: Tensor, target: Tensor, anchor: Tensor, chosen: Tensor, share: float, beta: float, weight: Tensor
) -> Tensor:
    """The loss at the temperature rho."""
    return shared_loss(drift, target, anchor, chosen, share, retention(beta), weight=weight)


def unweighted_penalty(
    drift: Tensor, target: Tensor, anchor: Tensor, chosen: Tensor, share: float, beta: float, weight: Tensor
) -> Tensor:
    """w on the first term only."""
    penalty = shared_loss(drift, target, anchor, chosen, share, beta) - squared_norm(drift - target)
    return weight * squared_norm(drift - target) + penalty


LOSS_SLIPS: dict[str, SharedLoss] = {
    "not divided by the share": weighted(lambda share: 1.0),  # noqa: ARG005
    "share squared": weighted(lambda share: share**-2),
    "share of the rest": weighted(lambda share: 1 / (1 - share)),
    "the penalty's sign": weighted(lambda share: -1 / share),
    "rest of the batch left out": rest_left_out,
    "anchor of another sample": next_places,
    "rho for beta": rho_for_beta,
    "penalty without w": unweighted_penalty,
}


@claim(
    "sharing-unbiased",
    statement=(
        "With the anchor on k of n samples, all choices equally likely, and the penalty times n/k, the mean loss and "
        "its gradient are those of the penalty form."
    ),
    reference="theory, anchor sharing",
    subject=shared_loss,
    bound=exact(1e-12),
    mutants=LOSS_SLIPS,
    conditions=CONDITIONS,
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def bias(loss: SharedLoss, generator: Generator, *, path: Path) -> float:
    """The largest relative difference of the means over choices from the penalty form's gradient and value."""
    return largest_bias(all_choices(loss, path, cpu_generator(generator)))


def largest_bias(every: Iterator[tuple[Any, int, Choices]]) -> float:
    """The largest relative difference of a mean over choices from the penalty form's."""
    worst = 0.0
    for _, _, choices in every:
        of_gradient = relative_difference(choices.gradients.mean(0), choices.full_gradient)
        worst = max(worst, of_gradient, relative_difference(choices.values.mean(), choices.full_value))
    return worst


def other_temperatures(
    drift: Tensor, target: Tensor, anchor: Tensor, chosen: Tensor, share: float, beta: Tensor, weight: Tensor
) -> Tensor:
    """The temperature of a sample meets the anchor of the next one."""
    return shared_loss(drift, target, anchor, chosen, share, beta.roll(1), weight=weight)


SPREAD = (torch.arange(BATCH, dtype=torch.float64) + 0.5) / BATCH
"""Flow times of the samples' temperatures."""


def _slips(cooling: Cooling) -> dict[str, SharedLoss]:
    differs = any(float(profile.retention(SPREAD).std()) > FAR for profile in cooling.profiles)
    return LOSS_SLIPS | ({"temperatures of other samples": other_temperatures} if differs else {})


@claim_for_each(
    cooled_profiles,
    "T19-sharing-unbiased-{name}",
    statement=(
        "At temperatures that depend on flow time, too, the mean loss and its gradient over all choices of k of n "
        "samples are those of the penalty form."
    ),
    reference="theory, T19 and anchor sharing",
    subject=lambda cooling: shared_loss,  # noqa: ARG005
    bound=exact(1e-12),
    mutants=_slips,
    conditions=(
        f"{CONDITIONS} But d = 2 alone, and temperatures at four flow times of schedule exponential as it cools to "
        f"profile {{name}}."
    ),
    component="profile:{name}",
    seeds=1,
    uses={"path": registered("path", "linear")},
    item_as="cooling",
)
def bias_by_time(loss: SharedLoss, generator: Generator, *, path: Path, cooling: Cooling) -> float:
    """``bias`` at a profile's temperatures."""

    def temperatures(t: Tensor) -> list[Tensor]:  # noqa: ARG001
        return [temperatures_of(profile, SPREAD) for profile in cooling.profiles]

    every = all_choices(loss, path, cpu_generator(generator), temperatures)
    plane = len(COUPLINGS) * len(cooling.profiles) * (BATCH - 1)
    return largest_bias(islice(every, plane))


@dataclass(frozen=True)
class Noise:
    """The loss, and what is predicted of its choice's noise."""

    loss: SharedLoss = shared_loss
    predicted: Callable[[float, int, int, float], float] = sharing_noise


@claim(
    "sharing-noise",
    statement="The choice adds the covariance beta^2 (1/k - 1/n) Cov(w grad |b - b_pre|^2) to the batch's gradient.",
    reference="theory, anchor sharing",
    subject=Noise(),
    bound=exact(),
    mutants={
        **{
            name: Noise(loss=LOSS_SLIPS[name]) for name in ("not divided by the share", "share squared", "rho for beta")
        },
        "choice with replacement": Noise(predicted=lambda beta, k, n, spread: beta**2 * (1 - 1 / n) / k * spread),
        "no finite batch": Noise(predicted=lambda beta, k, n, spread: beta**2 / k * spread),  # noqa: ARG005
        "1/n for 1/(n - 1)": Noise(
            predicted=lambda beta, k, n, spread: beta**2 * (1 / k - 1 / n) * (1 - 1 / n) * spread
        ),
        "beta for beta squared": Noise(predicted=lambda beta, k, n, spread: beta * (1 / k - 1 / n) * spread),
    },
    conditions=CONDITIONS,
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def choice_noise(subject: Noise, generator: Generator, *, path: Path) -> float:
    """The largest relative difference of the choices' covariance from its prediction."""
    worst = 0.0
    for beta, k, choices in all_choices(subject.loss, path, cpu_generator(generator)):
        deviations = choices.gradients - choices.gradients.mean(0)
        covariance = deviations.mT @ deviations / len(deviations)
        predicted = subject.predicted(beta, k, BATCH, 1.0) * torch.cov(choices.penalties.mT)
        worst = max(worst, relative_difference(covariance, predicted))
    return worst
