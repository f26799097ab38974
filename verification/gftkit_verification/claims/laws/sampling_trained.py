"""T10, T11 and T12 with trained networks: fitted by the shipped loop, then sampled."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from gftkit.kernel.contracts import Coupling, Path, Solver
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Train
from gftkit.sampling import integrate
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
from gftkit_verification.oracles import affine
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds.components import components
from gftkit_verification.testbeds.loops import LinearModel, build_loop
from gftkit_verification.testbeds.moments import cpu_generator, draw_seed
from gftkit_verification.testbeds.problems import COUPLINGS, GaussianData, draw_flow, retarget

LINEAR = Train(steps=600, batch_size=128, learning_rate=0.15, decay="cosine", clip=None)
COUPLED = replace(LINEAR, steps=1200, learning_rate=0.3)
"""For couplings: with fewer or shorter steps some problems' slowest direction is still on its way."""
NOISY = Train(steps=1500, batch_size=256, learning_rate=0.15, decay="cosine", clip=None)
"""For the bridge, whose labels have more noise."""
NETWORK = Train(steps=400, batch_size=256, learning_rate=3e-3, decay="cosine", clip=None)
DEGREE, NOISY_DEGREE = 4, 6
"""Of the linear model's polynomials in t; the bridge's drift changes fast near t = 1."""
SAMPLES = 8000
STEPS = {False: 6, True: 120}
"""Of the sampler, without and with noise."""
FINE = 100
FEW = (32, 64, 128, 256)
TEMPERATURES = (0.01, 0.1, 0.3, 1.0, 5.0, 30.0)
TOLERANCE = 0.1
"""Relative: what training noise, polynomials in t, discretisation and the samples' moments leave."""


@dataclass(frozen=True)
class Run:
    """What a drift is trained and sampled with.

    Attributes:
        registry: gives what else the loop needs.
        coupling: pairs x0 and x1.
        path: that is trained on and sampled.
        solver: takes the sampler's steps.
        trained: the path that the loop sees.
    """

    registry: Registry
    coupling: Coupling
    path: Path
    solver: Solver
    trained: Callable[[Path], Path] = lambda path: path

    def fitted(self, drift: nn.Module, gaussian: GaussianFlow, train: Train, generator: Generator) -> nn.Module:
        """The drift, trained by the shipped loop at temperature 0, on the generator's device."""
        data, seed = GaussianData(gaussian), draw_seed(generator)
        path = self.trained(self.path)
        device = generator.device
        loop = build_loop(
            registry=self.registry,
            drift=drift,
            data=data,
            source=data.source,
            path=path,
            coupling=self.coupling,
            schedule=0.0,
            train=train,
            seed=seed,
            device=device,
        )
        for step in range(train.steps):
            loop.take(step)
        return loop.drift.eval().requires_grad_(False)

    def states(self, drift: nn.Module, gaussian: GaussianFlow, generator: Generator) -> Tensor:
        """The sampler's states at all times, (times, n, d)."""
        x0 = gaussian.starts(SAMPLES, cpu_generator(generator)).float()
        return integrate.generate(
            drift,
            self.path,
            self.solver,
            STEPS[flow.is_stochastic(self.path)],
            x0,
            generator,
            batch_size=SAMPLES,
            whole=True,
        ).double()


class Slipped:
    """The linear path with other rates (sigma', alpha')."""

    def __init__(self, rates: tuple[float, float]) -> None:
        self._rates = rates

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1 - t, t, 0)."""
        return 1 - t, t, torch.zeros_like(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The given ones."""
        sigma, alpha = (torch.full_like(t, rate) for rate in self._rates)
        return sigma, alpha, torch.zeros_like(t)


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


def apart_flow(generator: Generator) -> GaussianFlow:
    """Two random normal laws in the plane whose means are 4 apart: a slip in time or in a step shows in the mean."""
    drawn = draw_flow(2, generator)
    way = drawn.mean1 - drawn.mean0
    return GaussianFlow(drawn.mean0, drawn.cov0, drawn.mean0 + 4 * way / way.norm(), drawn.cov1)


def missed(states: Tensor, gaussian: GaussianFlow) -> float:
    """W2 of the samples' normal law from q, relative to q's spread."""
    last = states[-1]
    apart = affine.bures_wasserstein(last.mean(0), torch.cov(last.mT), gaussian.mean1, gaussian.cov1)
    return apart / float(gaussian.cov1.trace().sqrt())


def energy(drift: nn.Module, states: Tensor) -> float:
    """int E|v_t|^2 dt along the sampler's states at equal times, by the trapezoidal rule."""
    device = next(drift.parameters()).device
    values = []
    for k, x in enumerate(states.float().to(device)):
        v = drift(torch.full((len(x),), k / (len(states) - 1), device=device), x)
        values.append(float(v.double().square().sum(1).mean()))
    return float(torch.trapezoid(torch.tensor(values), dx=1 / (len(states) - 1)))


def reached(run: Run, generator: Generator) -> Measurement:
    """How far the samples are from q, or the kinetic energy from between W2^2 and the independent coupling's."""
    gaussian = apart_flow(cpu_generator(generator))
    drift = run.fitted(LinearModel(2, DEGREE), gaussian, COUPLED, generator)
    states = run.states(drift, gaussian, generator)
    most = affine.integrate(lambda t: _squared(gaussian, t))
    least = affine.bures_wasserstein(gaussian.mean0, gaussian.cov0, gaussian.mean1, gaussian.cov1) ** 2
    found, apart = energy(drift, states), missed(states, gaussian)
    value = max(apart, least / found - 1, found / most - 1)
    note = f"W2 to q is {apart:.3f} of its spread; energy {found:.3f} between {least:.3f} and {most:.3f}"
    return Measurement(value, note=note)


def _squared(gaussian: GaussianFlow, t: Tensor) -> Tensor:
    """E|v_t|^2, (n,)."""
    (slope, shift), (mean, cov) = gaussian.affine(t), gaussian.marginal(t)
    at_mean = (slope @ mean[..., None])[..., 0] + shift
    return at_mean.square().sum(1) + ((slope @ cov) * slope).sum((1, 2))


def stochastic(run: Run, generator: Generator) -> Measurement:
    """How far the samples of a trained stochastic flow are from q."""
    gaussian = apart_flow(cpu_generator(generator))
    drift = run.fitted(LinearModel(2, NOISY_DEGREE), gaussian, NOISY, generator)
    return Measurement(missed(run.states(drift, gaussian, generator), gaussian))


def few_steps(subject: FewSteps, run: Run, generator: Generator) -> Measurement:
    """The relative distance of N times Euler's error, extrapolated, from its predicted limit, for trained drifts.

    A network at temperature 0, and blends of linear models, whose smoothness allows many cases.
    """
    here = cpu_generator(generator)
    target = draw_flow(2, here)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(draw_seed(here))
        drift = run.registry.build("drift", {"name": "mlp", "width": 32, "depth": 2}, event_shape=(2,))
    network = run.fitted(drift, target, NETWORK, generator).cpu().double()
    worst, lines = _euler(subject, network, network, 0.0, target.starts(16, here), FINE)
    for k, (d, coupling) in enumerate(zip((2, 3), COUPLINGS, strict=True)):
        target = draw_flow(d, here, coupling)
        one, other = (
            run.fitted(LinearModel(d, DEGREE), gaussian, LINEAR, generator).cpu().double()
            for gaussian in (target, retarget(target, here))
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
    linear, rk4 = registry.create("path", "linear"), registry.create("solver", "rk4")
    for name, coupling in components(registry, "coupling"):
        run = Run(registry, coupling, linear, rk4)
        yield Claim(
            name=f"T10-sampler-trained-{name}",
            statement=(
                "A drift trained on minibatches of this coupling carries p0 to q, with int E|v_t|^2 dt between W2(p0, "
                "q)^2 and the independent coupling's."
            ),
            reference="theory, T10",
            subject=run,
            measure=reached,
            bound=order(TOLERANCE),
            mutants={
                "sum for difference of the endpoints": replace(run, trained=lambda _: Slipped((1.0, 1.0))),
                "rate of x0 dropped": replace(run, trained=lambda _: Slipped((0.0, 1.0))),
                "last step dropped": replace(run, solver=Altered(rk4, SLIPS["last step dropped"])),
            },
            conditions=(
                f"normal laws in the plane, batches of {COUPLED.batch_size}, linear model of degree {DEGREE} in t"
            ),
            component=f"coupling:{name}",
            profile="full",
            seeds=1,
        )
    independent = registry.create("coupling", "independent")
    bridge = registry.create("path", "brownian-bridge", scale=1.2, delta=0.05)
    noisy = Run(registry, independent, bridge, registry.create("solver", "euler-maruyama"))
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
            "trained on x1 - x0": replace(noisy, trained=PairDrift),
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
    plain, few = Run(registry, independent, linear, euler), FewSteps(euler)
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
