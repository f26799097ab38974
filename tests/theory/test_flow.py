"""The score from the velocity: equal to the mixture oracle's, and refused where it isn't known."""

import pytest
import torch

from gftkit.kernel.errors import ConfigError
from gftkit.theory import flow
from gftkit_verification.oracles.mixture import MixtureFlow
from gftkit_verification.testbeds.problems.flows import random_covariance

ROUND_OFF = 1e-10  # float64, t at most 0.95


@pytest.fixture
def problem(registry):
    """A mixture target from N(0, I), and states along its linear and its trigonometric path."""
    generator = torch.Generator().manual_seed(0)
    weights, means = torch.tensor([0.3, 0.7]), torch.randn(2, 3, generator=generator)
    covs = torch.stack([random_covariance(3, generator) for _ in range(2)])
    t = 0.95 * torch.rand(64, generator=generator, dtype=torch.float64)
    x = 2 * torch.randn(64, 3, generator=generator, dtype=torch.float64)

    def made(name):
        path = registry.create("path", name)
        return path, t, x, MixtureFlow(path, torch.zeros(3), torch.eye(3), weights, means, covs)

    return made


def relative(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", ["linear", "trigonometric"])
def test_the_score_follows_from_the_velocity(problem, registry, name):
    path, t, x, oracle = problem(name)
    found = flow.score(path, t, x, oracle.velocity(t, x), registry.create("coupling", "independent"))
    assert relative(found, oracle.score(t, x)) < ROUND_OFF


def test_the_negative_velocity_gives_another_score(problem, registry):
    path, t, x, oracle = problem("linear")
    found = flow.score(path, t, x, -oracle.velocity(t, x), registry.create("coupling", "independent"))
    assert relative(found, oracle.score(t, x)) > 1e3 * ROUND_OFF


def test_the_score_is_refused_where_x0_depends_on_x1(problem, registry):
    path, t, x, oracle = problem("linear")
    with pytest.raises(ConfigError, match=r"OptimalTransport: the velocity gives the score only if x0 is independent"):
        flow.score(path, t, x, oracle.velocity(t, x), registry.create("coupling", "optimal-transport"))


def test_the_score_is_refused_for_a_path_with_noise(problem, registry):
    _, t, x, oracle = problem("linear")
    bridge = registry.create("path", "brownian-bridge")
    with pytest.raises(ConfigError, match="affine paths only"):
        flow.score(bridge, t, x, oracle.velocity(t, x), registry.create("coupling", "independent"))
