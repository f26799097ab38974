"""The mixture oracle: one component is the Gaussian one, and density and velocity solve the continuity equation."""

import pytest
import torch

from gftkit_verification.oracles.mixture import MixtureFlow
from gftkit_verification.testbeds.problems.flows import random_covariance, random_flow

ROUND_OFF = 1e-9
D = 2


def problem(path, seed=0, k=3):
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(k, D, generator=generator, dtype=torch.float64)
    covs = torch.stack([random_covariance(D, generator) for _ in range(k)])
    weights = torch.rand(k, generator=generator, dtype=torch.float64) + 0.2
    mean0, cov0 = torch.randn(D, generator=generator, dtype=torch.float64), random_covariance(D, generator)
    return MixtureFlow(path, mean0, cov0, weights / weights.sum(), means, covs)


def states(n=40):
    generator = torch.Generator().manual_seed(9)
    t = 0.05 + 0.9 * torch.rand(n, generator=generator, dtype=torch.float64)
    return t, 1.5 * torch.randn(n, D, generator=generator, dtype=torch.float64)


def test_one_component_is_the_gaussian_flow(registry):
    gaussian = random_flow(1, D)
    one = MixtureFlow(
        registry.create("path", "linear"),
        gaussian.mean0,
        gaussian.cov0,
        torch.ones(1),
        gaussian.mean1[None],
        gaussian.cov1[None],
    )
    t, x = states()
    assert torch.allclose(one.velocity(t, x), gaussian.velocity(t, x), rtol=ROUND_OFF)
    assert torch.allclose(one.score(t, x), gaussian.score(t, x), rtol=ROUND_OFF)
    assert torch.allclose(one.drift(t, x, 0.8), gaussian.drift(t, x, 0.8), rtol=ROUND_OFF)


@pytest.mark.parametrize("path", ["linear", "trigonometric"])
def test_density_and_velocity_solve_the_continuity_equation(registry, path):
    """d log p/dt + div v + v . grad log p = 0, by autograd; it fails for a velocity of another sign or drift."""
    mixture = problem(registry.create("path", path))
    t, x = states()
    assert residual(mixture, mixture.velocity, t, x) < ROUND_OFF
    assert residual(mixture, lambda t, x: -mixture.velocity(t, x), t, x) > 0.1
    assert residual(mixture, lambda t, x: mixture.drift(t, x, 0.8), t, x) > 0.1


def residual(mixture, velocity, t, x):
    t, x = t.clone().requires_grad_(), x.clone().requires_grad_()
    logs = mixture.log_density(t, x)
    rate, score = torch.autograd.grad(logs.sum(), (t, x))
    assert torch.allclose(score, mixture.score(t, x), rtol=ROUND_OFF)
    v = velocity(t, x)
    divergence = sum(torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(D))
    return float((rate + divergence + (v * score).sum(1)).detach().abs().max())


def test_ends_are_source_and_mixture(registry):
    mixture = problem(registry.create("path", "linear"))
    x = states()[1]
    laws = [torch.distributions.MultivariateNormal(m, s) for m, s in zip(mixture.means, mixture.covs, strict=True)]
    densities = torch.stack([w.log() + law.log_prob(x) for w, law in zip(mixture.weights, laws, strict=True)])
    end = mixture.log_density(torch.ones(len(x), dtype=torch.float64), x)
    assert torch.allclose(end, densities.logsumexp(0), rtol=ROUND_OFF)
    source = torch.distributions.MultivariateNormal(mixture.mean0, mixture.cov0)
    start = mixture.log_density(torch.zeros(len(x), dtype=torch.float64), x)
    assert torch.allclose(start, source.log_prob(x), rtol=ROUND_OFF)


def test_bad_input_is_refused(registry):
    linear, eye, zero = registry.create("path", "linear"), torch.eye(2), torch.zeros(2)
    good = {"weights": torch.ones(1), "means": torch.zeros(1, 2), "covs": eye[None]}
    for change, message in (
        ({"weights": torch.tensor([0.5])}, "sum 1"),
        ({"means": torch.zeros(1, 3)}, "wanted shapes"),
        ({"covs": torch.zeros(1, 2, 2)}, "positive definite"),
    ):
        with pytest.raises(ValueError, match=message):
            MixtureFlow(linear, zero, eye, **{**good, **change})
    with pytest.raises(ValueError, match="has noise"):
        MixtureFlow(registry.create("path", "brownian-bridge"), zero, eye, **good)
