"""T5 with trained networks: the laws of simulated paths, by Girsanov's formula."""

import itertools

import torch
from torch import Generator

from gftkit.kernel.registry import Registry
from gftkit.runtime.randomness import stream
from gftkit.sampling.integrate import Grid, bind_conditions, diffusion_of, grid_of, trajectory
from gftkit.sampling.noise import FromGenerator
from gftkit.theory import predictions
from gftkit.theory.objective import squared_norm
from gftkit.verify.claims import Line, Measurement, order
from gftkit.verify.declaration import FromRegistry, claim
from gftkit_verification.testbeds.loops.networks import (
    CONSTANT,
    PROBLEMS,
    STEPS,
    TRAINED,
    TWO,
    Prediction,
    Study,
    compare_with_power,
    worst_comparison,
)
from gftkit_verification.testbeds.loops.shipped import build_loop
from gftkit_verification.testbeds.problems.moments import draw_seed, rho_of
from gftkit_verification.testbeds.slips.loops import INVERSE_TEMPERATURE, SHARED_WEIGHTS

PATHS, PATH_STEPS = 500, 40
"""Of a simulation."""

SCALE, DELTA = 0.7, 0.05
"""Of the bridge: g, and how far from t = 1 training and the path's KL stop."""


def _bridge_study(registry: Registry) -> Study:
    return Study(registry, registry.create("path", "brownian-bridge", scale=SCALE, delta=DELTA))


@claim(
    "T05-path-kl-trained",
    statement="KL(P_0 || P_beta) = rho^2 KL(P_0 || P_pre) for the path laws of trained networks, by Girsanov's formula "
    "along simulated paths: slope 2 in rho, ratio 1.",
    reference="theory, T5",
    subject=Prediction(predictions.path_kl),
    bound=order(0.1),
    mutants={
        "1/(1 + beta) for beta/(1 + beta)": Prediction(predictions.path_kl, INVERSE_TEMPERATURE),
        "anchor that shares the weights": Prediction(predictions.path_kl, SHARED_WEIGHTS),
        "rho for rho^2": Prediction(lambda rho, pretrained: rho * pretrained),
    },
    conditions=f"{TRAINED}; Brownian bridge of scale {SCALE} up to t = {1 - DELTA}, {TWO}; {CONSTANT}; {STEPS} "
    f"steps; {PATHS} paths of {PATH_STEPS} Euler-Maruyama steps",
    profile="full",
    seeds=1,
    axes=("temperature", "path KL"),
    uses={"study": FromRegistry(_bridge_study)},
)
def path_divergence(subject: Prediction, generator: Generator, *, study: Study) -> Measurement:
    """KL(P_0 || P_beta) and KL(P_0 || P_pre) by Girsanov's formula, along one simulation of the plain fine-tune."""
    seed, distances = draw_seed(generator), list[tuple[float, float]]()
    lines: dict[str, Line] = {}
    solver = study.registry.create("solver", "euler-maruyama")
    times = grid_of(study.path, PATH_STEPS).times
    g = diffusion_of(study.path)
    for d, coupling in PROBLEMS:
        problem = study.problem(d, coupling, seed, generator.device)
        plain = study.network(problem, build_loop, 0.0)
        tuned = [study.network(problem, subject.build, beta) for beta in subject.temperatures]
        others = [problem.pretrained, *tuned]
        x0 = problem.target.starts(PATHS, stream(seed, "starts", d)).float().to(problem.device)
        noise = stream(seed, "noise", d, device=problem.device)
        kl = torch.zeros(len(others), dtype=torch.float64)
        with torch.no_grad():
            states = trajectory(bind_conditions(plain), g, solver, Grid(times), x0, FromGenerator(noise))
            for (t, later), x in zip(itertools.pairwise(times), states, strict=False):
                drift = bind_conditions(plain)(t, x)
                squares = [squared_norm(bind_conditions(other)(t, x) - drift).mean() for other in others]
                kl += (later - t) / (2 * g(t) ** 2) * torch.stack(squares).cpu()
        pretrained, *measured = kl.tolist()
        predicted = [subject.predicted(rho_of(beta), pretrained) for beta in subject.temperatures]
        distances.append(compare_with_power(subject.temperatures, measured, predicted, 2.0))
        lines = lines or {"measured": (subject.temperatures, measured), "theory": (subject.temperatures, predicted)}
    return worst_comparison(distances, lines)
