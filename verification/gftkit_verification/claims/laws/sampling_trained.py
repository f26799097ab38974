"""T11 and T12 with trained networks: fitted by the shipped loop, then sampled."""

import functools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from gftkit.kernel.contracts import Path
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Train
from gftkit.theory import flow
from gftkit.verify.claims import Claim, Line, Measurement, order
from gftkit_verification.claims.components.solvers import NOISE_SLIPS, SLIPS, Altered
from gftkit_verification.claims.laws.sampling import (
    Derivatives,
    FewSteps,
    acceleration,
    blended,
    derivatives,
    extrapolated,
    leading_error,
    still,
)
from gftkit_verification.testbeds.fitted_flows import (
    DEGREE,
    LINEAR,
    STEPS,
    FlowFit,
    distance_to_target,
    distant_normals,
)
from gftkit_verification.testbeds.moments import on_cpu, seed_of
from gftkit_verification.testbeds.problems import COUPLINGS, drawn_flow, retargeted
from gftkit_verification.testbeds.trials import LinearModel

NOISY = Train(steps=1500, batch_size=256, learning_rate=0.15, decay="cosine", clip=None)
"""For the bridge, whose labels have more noise."""
NETWORK = Train(steps=400, batch_size=256, learning_rate=3e-3, decay="cosine", clip=None)
NOISY_DEGREE = 6
"""Of the linear model's polynomials in t: the bridge's drift changes fast near t = 1."""
FINE = 100
FEW = (32, 64, 128, 256)
TEMPERATURES = (0.01, 0.1, 0.3, 1.0, 5.0, 30.0)


class PairDrift:
    """A stochastic path that trains on x1 - x0: the drift without its noise's part.

    Args:
        path: the path.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.t_end = path, flow.t_end(path)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The path's."""
        return self.path.coefficients(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """The path's."""
        return flow.diffusion(self.path, t)

    def drift(self, t: Tensor, x0: Tensor, x1: Tensor, noise: Tensor) -> Tensor:  # noqa: ARG002
        """x1 - x0."""
        return x1 - x0


def stochastic(run: FlowFit, generator: Generator) -> Measurement:
    """How far the samples of a trained stochastic flow are from q."""
    gaussian = distant_normals(on_cpu(generator))
    drift = run.trained_drift(LinearModel(2, NOISY_DEGREE), gaussian, NOISY, generator)
    return Measurement(distance_to_target(run.states(drift, gaussian, generator), gaussian))


def few_steps(subject: FewSteps, run: FlowFit, generator: Generator) -> Measurement:
    """The relative distance of N times Euler's error, extrapolated, from its predicted limit, for trained drifts.

    A network at temperature 0, and blends of linear models, whose smoothness allows many cases.
    """
    here = on_cpu(generator)
    target = drawn_flow(2, here)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(here))
        drift = run.registry.build("drift", {"name": "mlp", "width": 32, "depth": 2}, event_shape=(2,))
    network = run.trained_drift(drift, target, NETWORK, generator).cpu().double()
    worst, lines = _euler(subject, network, network, 0.0, target.starts(16, here), FINE)
    for k, (d, coupling) in enumerate(zip((2, 3), COUPLINGS, strict=True)):
        target = drawn_flow(d, here, coupling)
        one, other = (
            run.trained_drift(LinearModel(d, DEGREE), gaussian, LINEAR, generator).cpu().double()
            for gaussian in (target, retargeted(target, here))
        )
        for beta in TEMPERATURES[k::2]:
            apart, _ = _euler(subject, one, other, beta, target.starts(16, here), FINE // 4)
            worst = max(worst, apart)
    return Measurement(worst, lines)


def _euler(
    subject: FewSteps, one: nn.Module, other: nn.Module, beta: float, x0: Tensor, fine: int
) -> tuple[float, dict[str, Line]]:
    """The same for the blend of two drifts."""

    def at(drift: nn.Module, k: int, x: Tensor) -> Derivatives:
        return derivatives(drift, torch.full((len(x),), k / (2 * fine), dtype=torch.float64), x)

    both = functools.partial(at, one), functools.partial(at, other)
    wanted, predicted = leading_error(subject, *both, beta, x0, fine)
    return extrapolated(blended(one, other, beta), subject.solver, FEW, x0, wanted, predicted)


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    linear = registry.create("path", "linear")
    independent = registry.create("coupling", "independent")
    bridge = registry.create("path", "brownian-bridge", scale=1.2, delta=0.05)
    noisy = FlowFit(registry, independent, bridge, registry.create("solver", "euler-maruyama"))
    yield Claim(
        name="T12-sampler-trained",
        statement=(
            "A drift trained on the Brownian bridge, sampled by Euler-Maruyama with a closing step, has the moments of "
            "q."
        ),
        reference="theory, T12 and section 1",
        subject=noisy,
        measure=stochastic,
        bound=order(0.06),
        mutants={
            "no noise in sampling": replace(noisy, solver=Altered(noisy.solver, NOISE_SLIPS["no noise"])),
            "noise scaled by h": replace(noisy, solver=Altered(noisy.solver, NOISE_SLIPS["noise scaled by h"])),
            "half of the drift": replace(noisy, solver=Altered(noisy.solver, SLIPS["half of the drift"])),
            "trained on x1 - x0": replace(noisy, loop_path=PairDrift),
        },
        conditions=(
            f"normal laws in the plane, independent pairs, linear model of degree {NOISY_DEGREE} in t, {STEPS[True]} "
            "steps"
        ),
        component="solver:euler-maruyama",
        profile="full",
        seeds=1,
    )
    euler = registry.create("solver", "euler")
    plain, few = FlowFit(registry, independent, linear, euler), FewSteps(euler)
    yield Claim(
        name="T11-few-steps-trained",
        statement="For a trained network, and for blends of trained drifts, N times Euler's error in N steps tends to "
        "(1/2) int Phi(1, t) a_t dt.",
        reference="theory, T11",
        subject=few,
        measure=lambda subject, generator: few_steps(subject, plain, generator),
        bound=order(0.02),
        mutants={
            "factor 1/2 dropped": replace(few, share=1.0),
            "Phi dropped": replace(few, transport=False),
            "d_t v dropped": replace(few, acceleration=lambda one, _, rho: acceleration(still(one), still(one), rho)),
            "last step dropped": replace(few, solver=Altered(euler, SLIPS["last step dropped"])),
        },
        conditions=(
            "mlp of width 32 in the plane; linear models in dimension 2 with independent and 3 with optimal coupling, "
            f"at temperatures {', '.join(f'{beta:g}' for beta in TEMPERATURES)}; {FEW} steps, extrapolated to h = 0"
        ),
        component="solver:euler",
        profile="full",
        seeds=1,
        axes=("steps", "error at t = 1"),
    )
