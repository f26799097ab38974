"""Every registered path keeps its contract, with its derivatives; a wrong one doesn't pass."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gftkit
from gftkit.theory import flow

REGISTRY = gftkit.load()

ROUND_OFF = 1e-12
"""Float64 round-off of a few operations, relative to the size of what is computed."""
DIFFERENCE, STEP = 1e-6, 1e-5
"""Error of a central difference with this step, relative: step^2 times a third derivative of at most 1e4 or so."""
INSIDE = st.floats(0.02, 0.98)
"""Times away from the ends, where a bridge's rates are infinite."""


def close(one, other, tolerance):
    """Whether two numbers or tensors agree, relative to their size and to 1."""
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    return bool(((one - other).abs() <= tolerance * (1 + other.abs())).all())


class Broken:
    """An object with these members."""

    def __init__(self, **members):
        vars(self).update(members)


def check_path(path, t):
    """End conditions, shapes and types, diffusion >= 0; rates against autograd and against differences."""
    for dtype in (torch.float32, torch.float64):
        times = torch.tensor([0.0, t, 1.0], dtype=dtype)
        for values in (*path.coefficients(times), flow.diffusion(path, times)):
            assert (values.shape, values.dtype) == (times.shape, dtype), "coefficients have t's shape and type"
    sigma, alpha, gamma = path.coefficients(times)
    ends = torch.stack([sigma, alpha, gamma])[:, [0, 2]]
    wanted = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    assert close(ends, wanted, ROUND_OFF), "x_0 = x0 and x_1 = x1"
    assert gamma.min() >= 0, "gamma >= 0"
    assert flow.diffusion(path, times).min() >= 0, "diffusion >= 0"
    assert 0 < flow.t_end(path) <= 1, "t_end is in (0, 1]"
    inner = times[1:2].clone().requires_grad_(True)
    given = flow.rates(path, inner)
    for rate, coefficient in zip(given, path.coefficients(inner), strict=True):
        slope = torch.zeros(1)
        if coefficient.requires_grad:
            slope = torch.autograd.grad(
                coefficient.sum(), inner, retain_graph=True, allow_unused=True, materialize_grads=True
            )[0]
        assert close(rate.detach(), slope, ROUND_OFF), "a rate is the coefficient's derivative (autograd)"
    after, before = path.coefficients(times[1:2] + STEP), path.coefficients(times[1:2] - STEP)
    for rate, high, low in zip(given, after, before, strict=True):
        assert close(rate.detach(), (high - low) / (2 * STEP), DIFFERENCE), "a rate is a derivative (differences)"


def check_drift(path, t, seed):
    """The drift is d/dt of the sample at fixed noise, plus (g^2/2) times the score -eps/gamma; finite at t = 0."""
    generator = torch.Generator().manual_seed(seed)
    x0, x1, noise = torch.randn(3, 4, 2, 3, generator=generator, dtype=torch.float64)
    times = torch.full((4,), t, dtype=torch.float64)
    after, before = (flow.sample(path, times + h, x0, x1, noise) for h in (STEP, -STEP))
    moving = (after - before) / (2 * STEP)
    assert close(flow.velocity(path, times, x0, x1, noise), moving, 10 * DIFFERENCE), "velocity is d/dt of the sample"
    g = float(flow.diffusion(path, times)[0])
    gamma = float(path.coefficients(times)[2][0])
    score = -noise / gamma if g > 0 else torch.zeros_like(noise)
    drift = flow.drift(path, times, x0, x1, noise)
    assert close(drift, moving + g**2 / 2 * score, 100 * DIFFERENCE), "drift = velocity + (g^2/2) score"
    start = flow.drift(path, torch.zeros_like(times), x0, x1, noise)
    assert torch.isfinite(start).all(), "the drift is finite at t = 0"


@pytest.mark.parametrize("name", REGISTRY.names("path"))
@given(data=st.data(), t=INSIDE)
def test_every_path_keeps_its_contract(components, name, data, t):
    check_path(data.draw(components("path", name)), t)


@pytest.mark.parametrize("name", REGISTRY.names("path"))
@given(data=st.data(), t=INSIDE, seed=st.integers(0, 2**32))
def test_every_paths_drift_keeps_its_contract(components, name, data, t, seed):
    path = data.draw(components("path", name))
    check_drift(path, min(t, flow.t_end(path) - 0.02), seed)


@given(t=st.floats(0, 0.999), scale=st.floats(0.01, 5), seed=st.integers(0, 2**32))
def test_a_bridges_drift_points_at_its_end(t, scale, seed):
    path = REGISTRY.create("path", "brownian-bridge", scale=scale)
    x0, x1, noise = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    times = torch.full((4,), t, dtype=torch.float64)
    wanted = (x1 - flow.sample(path, times, x0, x1, noise)) / (1 - t)
    # x1 - x_t cancels as t -> 1: its round-off is divided by 1 - t.
    assert close(flow.drift(path, times, x0, x1, noise), wanted, 100 * ROUND_OFF / (1 - t))


@given(t=INSIDE, scale=st.floats(0.1, 5), seed=st.integers(0, 2**32))
def test_the_kernels_sum_is_the_bridges_drift(t, scale, seed):
    """velocity + (g^2/2) score, for a path that leaves its drift to the kernel."""
    path = REGISTRY.create("path", "brownian-bridge", scale=scale)
    bare = Broken(coefficients=path.coefficients, diffusion=path.diffusion)
    x0, x1, noise = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    times = torch.full((4,), t, dtype=torch.float64)
    wanted = flow.drift(path, times, x0, x1, noise)
    # Velocity and score are each about scale/sqrt(t (1 - t)) in size and cancel in part.
    assert close(flow.drift(bare, times, x0, x1, noise), wanted, 1000 * ROUND_OFF)


def straight(**members):
    return Broken(**{"coefficients": lambda t: (1 - t, t, torch.zeros_like(t)), **members})


def bridge(**members):
    return Broken(
        **{
            "coefficients": lambda t: (1 - t, t, torch.sqrt(t * (1 - t))),
            "diffusion": torch.ones_like,
            "drift": lambda t, x0, x1, noise: x1 - x0 - flow.expand(torch.sqrt(t / (1 - t)), noise) * noise,
            **members,
        }
    )


def test_the_twins_of_the_broken_paths_are_sound():
    for path in (straight(), bridge()):
        check_path(path, 0.3)
        check_drift(path, 0.3, 0)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        (straight(coefficients=lambda t: (t, 1 - t, 0 * t)), "x_0 = x0 and x_1 = x1"),
        (straight(coefficients=lambda t: (1 - t, t, 0.1 + 0 * t)), "x_0 = x0 and x_1 = x1"),
        (straight(coefficients=lambda t: (1 - t, t, torch.zeros(()))), "t's shape and type"),
        (straight(coefficients=lambda t: (1 - t, t, torch.zeros(t.shape))), "t's shape and type"),
        (straight(rates=lambda t: (1 + 0 * t, 1 + 0 * t, 0 * t)), "autograd"),
        (straight(rates=lambda t: (-1 + 0 * t, 1 + 1e-5 * t, 0 * t)), "autograd"),
        (straight(coefficients=lambda t: (1 - t.detach(), t.detach(), 0 * t)), "differences"),
        (bridge(coefficients=lambda t: (1 - t, t, -torch.sqrt(t * (1 - t)))), "gamma >= 0"),
        (bridge(diffusion=lambda t: -torch.ones_like(t)), "diffusion >= 0"),
        (bridge(t_end=1.5), "t_end"),
    ],
)
def test_a_broken_path_is_rejected(path, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_path(path, 0.3)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        (bridge(drift=lambda t, x0, x1, noise: x1 - x0), "drift = velocity"),
        (
            bridge(drift=lambda t, x0, x1, noise: x1 - x0 + flow.expand(torch.sqrt(t / (1 - t)), noise) * noise),
            "drift =",
        ),
        (bridge(diffusion=lambda t: 2 * torch.ones_like(t)), "drift = velocity"),
        (bridge(drift=None), "finite at t = 0"),
        (bridge(rates=lambda t: (-1 + 0 * t, 1 + 0 * t, 0 * t)), "velocity is d/dt"),
    ],
)
def test_a_broken_drift_of_a_path_is_rejected(path, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_drift(path, 0.3, 0)
