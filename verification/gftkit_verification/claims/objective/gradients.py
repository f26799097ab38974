"""The noise of gradients on closed forms, sample by sample, whatever the model: T9, T9a and T9b."""

from dataclasses import replace

from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory.objective import blended_loss, penalty_loss, retention, squared_norm
from gftkit.verify import Measurement, claim, exact, registered
from gftkit_verification.testbeds.measuring.differences import relative_difference
from gftkit_verification.testbeds.measuring.gradients import (
    AXES,
    DIMENSIONS,
    LABEL_SLIPS,
    LOSS_SLIPS,
    TEMPERATURES,
    LabelNoise,
    closed_form_noise,
    compare_label_noise,
    draw_problem,
    draw_problems,
    draw_weights,
    gradients,
    jacobians,
    label_noises,
    network,
    outputs,
)
from gftkit_verification.testbeds.problems.flows import draw_flow
from gftkit_verification.testbeds.problems.moments import cpu_generator
from gftkit_verification.testbeds.slips import losses as slips
from gftkit_verification.testbeds.slips.losses import Loss

CONDITIONS = "Gaussian flows, d = 2, 3, 5, both couplings; a network of one hidden layer; beta 0.01 to 30."


def anchor_penalty(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:  # noqa: ARG001
    """|b - b_pre|^2."""
    return squared_norm(drift - anchor)


@claim(
    "T09-identity-per-sample",
    statement="Per sample, grad B_beta = (1 - rho) grad FM + rho grad |b - b_pre|^2.",
    reference="theory, T9",
    subject=blended_loss,
    bound=exact(),
    mutants=LOSS_SLIPS,
    conditions=CONDITIONS,
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def gradient_identity(loss: Loss, generator: Generator, *, path: Path) -> float:
    """The largest relative difference of the two sides, over problems and temperatures."""
    generator = cpu_generator(generator)
    worst = 0.0
    for problem in draw_problems(path, generator):
        weights = draw_weights(problem.x.shape[1], generator)
        jacobian, drift = jacobians(network, weights, problem), outputs(network, weights, problem)
        flow_matching = gradients(slips.unanchored, jacobian, drift, problem, 0.0)
        penalty = gradients(anchor_penalty, jacobian, drift, problem, 0.0)
        for beta in TEMPERATURES:
            expected = (1 - retention(beta)) * flow_matching + retention(beta) * penalty
            worst = max(worst, relative_difference(gradients(loss, jacobian, drift, problem, beta), expected))
    return worst


@claim(
    "T09a-label-noise-gaussian",
    statement=(
        "Given (t, x), the covariance of the blended form's gradient is (1 - rho)^2 that of plain flow matching, "
        "whatever the drift."
    ),
    reference="theory, T9a",
    subject=LabelNoise(),
    bound=exact(),
    mutants=LABEL_SLIPS,
    conditions=(
        "Gaussian flows, d = 2, 3, 5, independent coupling (with the optimal one a label is a function of x_t and "
        "has no noise); a network of one hidden layer with random weights; beta 0.01 to 30."
    ),
    seeds=1,
    axes=AXES,
    uses={"path": registered("path", "linear")},
)
def label_noise_difference(subject: LabelNoise, generator: Generator, *, path: Path) -> Measurement:
    """The largest relative difference of the label noise from its prediction, over dimensions and temperatures."""
    generator = cpu_generator(generator)
    measurements = []
    for d in DIMENSIONS:
        problem = draw_problem(path, draw_flow(d, generator), 12, generator)
        measurements.append(compare_label_noise(subject, network, draw_weights(d, generator), problem))
    return max(measurements, key=lambda measurement: measurement.value)


@claim(
    "T09b-first-step-gaussian",
    statement="At b = b_pre the gradient of every sample is (1 - rho) times that of plain flow matching.",
    reference="theory, T9b",
    subject=blended_loss,
    bound=exact(),
    mutants=LOSS_SLIPS,
    conditions=CONDITIONS,
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def first_gradient_difference(loss: Loss, generator: Generator, *, path: Path) -> float:
    """The largest relative difference of the gradient at b_pre from 1 - rho times plain flow matching's."""
    generator = cpu_generator(generator)
    worst = 0.0
    for drawn in draw_problems(path, generator):
        weights = draw_weights(drawn.x.shape[1], generator)
        jacobian, drift = jacobians(network, weights, drawn), outputs(network, weights, drawn)
        problem = replace(drawn, anchor=drift)
        flow_matching = gradients(slips.unanchored, jacobian, drift, problem, 0.0)
        for beta in TEMPERATURES:
            expected = (1 - retention(beta)) * flow_matching
            worst = max(worst, relative_difference(gradients(loss, jacobian, drift, problem, beta), expected))
    return worst


def swapped_penalty(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    """The penalty form with target and anchor swapped."""
    return penalty_loss(drift, anchor, target, temperature)


def scaled_penalty(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    """1 + beta times the penalty form."""
    return (1 + temperature) * penalty_loss(drift, target, anchor, temperature)


@claim(
    "T09-penalty-label-noise",
    statement="The penalty form has plain flow matching's label noise, at every temperature.",
    reference="theory, T9",
    subject=penalty_loss,
    bound=exact(),
    mutants={
        "blended form": blended_loss,
        "target and anchor swapped": swapped_penalty,
        "1 + beta times": scaled_penalty,
    },
    conditions="Gaussian flow, d = 3, independent coupling; a network of one hidden layer; beta 0.01 to 30.",
    axes=AXES,
    uses={"path": registered("path", "linear")},
)
def penalty_label_noise(loss: Loss, generator: Generator, *, path: Path) -> Measurement:
    """The largest relative difference of the label noise from plain flow matching's, over temperatures."""
    generator = cpu_generator(generator)
    problem = draw_problem(path, draw_flow(3, generator), 12, generator)
    weights = draw_weights(3, generator)
    jacobian, drift = jacobians(network, weights, problem), outputs(network, weights, problem)
    expected = closed_form_noise(jacobian, problem)
    noises = [label_noises(loss, jacobian, drift, problem, beta) for beta in TEMPERATURES]
    lines = {"measured": noises, "theory": [expected] * len(noises)}
    return Measurement(
        max(relative_difference(noise, expected) for noise in noises),
        {name: (TEMPERATURES, [float(noise.mean()) for noise in line]) for name, line in lines.items()},
    )
