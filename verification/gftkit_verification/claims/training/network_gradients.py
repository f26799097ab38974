"""T3 at trained networks: the gradients of the conditional and of the marginal objective."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from gftkit.runtime.randomness import stream
from gftkit.theory import objective
from gftkit.theory.objective import squared_norm
from gftkit.verify.claims import statistical
from gftkit.verify.declaration import FromRegistry, claim
from gftkit_verification.testbeds.loops.networks import (
    BATCH,
    CONSTANT,
    SHORT,
    TEMPERATURES,
    TRAINED,
    NetworkProblem,
    States,
    Study,
    draw_states,
    linear_study,
)
from gftkit_verification.testbeds.loops.shipped import build_loop
from gftkit_verification.testbeds.measuring.statistics import cross_fitted_t
from gftkit_verification.testbeds.problems.flows import COUPLINGS
from gftkit_verification.testbeds.problems.moments import draw_seed, rho_of

BATCHES = 40
"""Independent batches of gradients."""


@dataclass(frozen=True)
class Losses:
    """T3: the conditional objectives of the loop."""

    blended: Callable[..., Tensor] = objective.blended_loss
    penalty: Callable[..., Tensor] = objective.penalty_loss


@claim(
    "T03-gradients-trained",
    statement="At a trained network the conditional objective's mean gradient, blended or penalty/(1 + beta), is the "
    "marginal objective's with the exact b_tgt, divided by 1 + beta.",
    reference="theory, T3",
    subject=Losses(),
    bound=statistical(degrees=BATCHES - BATCHES // 2 - 1),
    mutants={
        "1/(1 + beta) for beta/(1 + beta)": Losses(lambda b, y, a, beta: objective.blended_loss(b, y, a, 1 / beta)),
        "norm for its square": Losses(lambda b, y, a, beta: objective.blended_loss(b, y, a, beta).sqrt()),
        "sign of the label": Losses(lambda b, y, a, beta: objective.blended_loss(b, -y, a, beta)),
        "rho for beta in the penalty": Losses(
            penalty=lambda b, y, a, beta: objective.penalty_loss(b, y, a, rho_of(beta))
        ),
    },
    conditions=f"{TRAINED}; linear path, dimensions 2 and 4, both couplings; {CONSTANT}; {BATCHES} batches",
    profile="full",
    seeds=1,
    uses={"study": FromRegistry(linear_study)},
)
def difference_of_gradients(subject: Losses, generator: Generator, *, study: Study) -> float:
    """The standardised difference of the conditional objectives' gradients and the marginal one's, over batches."""
    seed, gradients = draw_seed(generator), []
    for d, coupling in itertools.product((2, 4), COUPLINGS):
        problem = study.problem(d, coupling, seed, generator.device)
        drift = copy.deepcopy(study.network(problem, build_loop, 1.0, SHORT)).requires_grad_(True)
        batches = (
            draw_states(problem, study.path, BATCH, stream(seed, "batch", d, coupling, k)) for k in range(BATCHES)
        )
        gradients.append(torch.stack([_gradient(subject, drift, problem, at) for at in batches]))
    together = torch.cat(gradients, 1)
    return cross_fitted_t(together, torch.zeros(together.shape[1]))


def _gradient(subject: Losses, drift: nn.Module, problem: NetworkProblem, at: States) -> Tensor:
    """Both forms at every temperature, in units of the noise that they have there, 1 - rho."""
    output = drift(at.t, at.x)
    b, anchor = output.detach().requires_grad_(True), problem.pretrained(at.t, at.x)
    differences = []
    for beta in TEMPERATURES:
        marginal = (squared_norm(b - at.b_tgt) + beta * squared_norm(b - anchor)) / (1 + beta)
        blended = subject.blended(b, at.label, anchor, beta)
        penalty = subject.penalty(b, at.label, anchor, beta) / (1 + beta)
        differences += [(1 + beta) * (loss - marginal).mean() for loss in (blended, penalty)]
    at_output = torch.stack([torch.autograd.grad(value, b, retain_graph=True)[0] for value in differences])
    gradients = torch.autograd.grad(output, list(drift.parameters()), at_output, is_grads_batched=True)
    return torch.cat([value.flatten() for value in gradients]).cpu()
