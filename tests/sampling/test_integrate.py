"""The integrator: grid, closing step, noise, and the refusal of what a solver doesn't solve."""

import math

import pytest
import torch

from gftkit.kernel.errors import ConfigError, DivergenceError
from gftkit.sampling.integrate import bind_conditions, generate, grid_of, trajectory
from gftkit.sampling.noise import FromGenerator
from gftkit.theory import flow
from gftkit_verification.testbeds.problems.flows import random_flow

N, D = 20_000, 2
MOMENTS = 5 / math.sqrt(N)  # 5 standard errors of a mean of unit variance


def test_the_time_grid_runs_from_source_to_data(registry):
    linear = registry.create("path", "linear")
    grid = grid_of(linear, 4)
    assert grid.times == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert grid.closing is None
    bridge = registry.create("path", "brownian-bridge", delta=0.1, final_step="mean")
    grid = grid_of(bridge, 3)
    assert grid.times[0] == 0
    assert grid.times[-1] == bridge.t_end
    assert grid.closing == "mean"


@pytest.mark.parametrize("steps", [0, -3])
def test_steps_are_positive(registry, steps):
    with pytest.raises(ConfigError, match="at least 1"):
        grid_of(registry.create("path", "linear"), steps)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4"])
def test_an_ode_solver_is_refused_on_a_stochastic_path(registry, solver):
    bridge = registry.create("path", "brownian-bridge")
    with pytest.raises(ConfigError, match="euler-maruyama"):
        generate(lambda t, x: x, bridge, registry.create("solver", solver), 3, torch.zeros(2, 2), torch.Generator())


class OnlySde:
    ode_order, strong_order, weak_order = None, 1.0, 1.0

    def step(self, drift, diffusion, t, h, x, dw):
        return x + h * drift(t, x) + diffusion(t) * dw


def test_an_sde_solver_is_refused_on_a_deterministic_path(registry):
    with pytest.raises(ConfigError, match="SDEs only"):
        generate(lambda t, x: x, registry.create("path", "linear"), OnlySde(), 3, torch.zeros(2, 2), torch.Generator())


def bridge_moments(registry, drift_scale: float, steps: int = 200):
    """Mean and covariance errors of the bridge's SDE between Gaussians, sampled with the exact drift."""
    gaussian = random_flow(5, D)
    scale = 0.7
    path = registry.create("path", "brownian-bridge", scale=scale)

    def drift(t, x):
        u = t[:, None, None]
        mean = gaussian.marginal(t)[0]
        cov = gaussian.marginal(t)[1] + scale**2 * u * (1 - u) * torch.eye(D, dtype=torch.float64)
        joint = u * gaussian.cov1 - (1 - u) * gaussian.cov0 - drift_scale * scale**2 * u * torch.eye(D)
        moved = (joint @ torch.linalg.solve(cov, (x - mean)[..., None]))[..., 0]
        return gaussian.mean1 - gaussian.mean0 + moved

    x0, _ = gaussian.pairs(N, torch.Generator().manual_seed(1))
    solver = registry.create("solver", "euler-maruyama")
    x1 = generate(drift, path, solver, steps, x0, torch.Generator().manual_seed(2), batch_size=N)
    mean_error = (x1.mean(0) - gaussian.mean1).abs().max()
    cov_error = (torch.cov(x1.T) - gaussian.cov1).abs().max()
    return float(mean_error), float(cov_error)


def test_the_bridge_ends_in_the_target(registry):
    mean, cov = bridge_moments(registry, drift_scale=1.0)
    assert mean < 2 * MOMENTS
    assert cov < 4 * MOMENTS
    wrong = bridge_moments(registry, drift_scale=0.0)  # the velocity in place of the SDE's drift
    assert wrong[1] > 8 * MOMENTS


@pytest.mark.parametrize("final_step", ["euler-maruyama", "mean"])
def test_the_closing_step_of_the_bridge(registry, final_step):
    """From t_end one step of length delta: with noise of scale sqrt(delta), or the mean E[x1|x_t]."""
    delta, goal = 0.04, 3.0
    path = registry.create("path", "brownian-bridge", scale=2.0, delta=delta, final_step=final_step)
    solver = registry.create("solver", "euler-maruyama")
    to_goal = bind_conditions(lambda t, x: (goal - x) / (1 - t[:, None]))
    x0 = torch.zeros(N, 1, dtype=torch.float64)
    states = list(
        trajectory(
            to_goal, lambda t: 2.0, solver, grid_of(path, 5), x0, FromGenerator(torch.Generator().manual_seed(3))
        )
    )
    assert len(states) == 7
    if final_step == "mean":
        assert torch.allclose(states[-1], torch.full_like(x0, goal))
    else:
        spread = float(states[-1].std())
        assert abs(spread - 2.0 * math.sqrt(delta)) < 2 * MOMENTS
        assert abs(spread - 2.0 * delta) > 8 * MOMENTS  # noise scaled by h instead of sqrt(h)


def test_batches_join_and_states_that_are_not_finite_are_refused(registry):
    path, euler = registry.create("path", "linear"), registry.create("solver", "euler")
    x0 = torch.arange(7.0)[:, None]
    moved = generate(lambda t, x: torch.ones_like(x), path, euler, 3, x0, torch.Generator(), batch_size=2)
    assert torch.allclose(moved, x0 + 1)
    whole = generate(lambda t, x: torch.ones_like(x), path, euler, 3, x0, torch.Generator(), batch_size=2, whole=True)
    assert whole.shape == (4, 7, 1)
    with pytest.raises(DivergenceError, match="finite"):
        generate(lambda t, x: x * float("inf"), path, euler, 3, x0, torch.Generator())


def test_which_paths_are_stochastic_or_noisy(registry):
    assert not flow.is_stochastic(registry.create("path", "linear"))
    bridge = registry.create("path", "brownian-bridge")
    assert flow.is_stochastic(bridge)
    assert flow.is_noisy(bridge)
    assert not flow.is_noisy(registry.create("path", "trigonometric"))
