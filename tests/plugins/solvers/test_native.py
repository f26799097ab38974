"""Solvers have the orders that they declare, on problems with known solutions; a wrong twin has not."""

import math

import pytest
import torch

import gftkit
from gftkit.kernel import contracts

REGISTRY = gftkit.load()
NAMES = [
    name
    for name in REGISTRY.names("solver")
    if not hasattr(REGISTRY.component("solver", name).factory, "jumps")
    and not isinstance(REGISTRY.create("solver", name), contracts.Integrator)
]
"""Of those that take one step; for libraries' see test_library.py."""
MINIMAL: dict[str, dict[str, object]] = {}
"""Options of solvers that can't do without."""

STEPS = (16, 32, 64, 128)
SLOPE = 0.2
"""How far a measured order may lie from the declared one: the next term of the error is about 1/16 of the first."""
PATHS = 4000
"""Brownian paths: the strong error is then known to about 1 %, and its slope to 0.02."""
RATE, NOISE = -1.3, 0.8
"""dX = RATE X dt + NOISE dW from X_0 = 1."""


def make(name):
    missing = [
        o.name for o in REGISTRY.describe("solver", name).options if o.required and o.name not in MINIMAL.get(name, {})
    ]
    assert not missing, f"solver {name} wants {missing}: add them to MINIMAL"
    return REGISTRY.create("solver", name, **MINIMAL.get(name, {}))


def slope(errors):
    """The least-squares slope of log error on log step."""
    x = -torch.tensor(STEPS, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def ode_order(solver):
    """Measured on x' = -(1 + t) x^2, whose right-hand side depends on time and state, over [0, 1]."""
    x0 = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
    exact = x0 / (1 + 1.5 * x0)
    errors = []
    for n in STEPS:
        x = x0
        for k in range(n):
            x = solver.step(lambda t, x: -(1 + t) * x**2, lambda t: 0.0, k / n, 1 / n, x, None)
        errors.append(float((x - exact).abs().max()))
    return slope(errors)


def sde_orders(solver, seed):
    """Measured strong and weak orders on the linear SDE, all step sizes on the same Brownian paths.

    On the finest grid (dW, int exp(RATE (h - s)) dW_s) are drawn jointly, so that the reference is exact.
    """
    n = max(STEPS)
    h = 1 / n
    cross = (math.exp(RATE * h) - 1) / RATE
    covariance = torch.tensor([[h, cross], [cross, (math.exp(2 * RATE * h) - 1) / (2 * RATE)]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, PATHS, 2, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    exact = torch.ones(PATHS, dtype=torch.float64)
    for k in range(n):
        exact = math.exp(RATE * h) * exact + NOISE * drawn[k, :, 1]
    strong, weak = [], []
    for steps in STEPS:
        increments = drawn[..., 0].reshape(steps, n // steps, PATHS).sum(1)
        x = torch.ones(PATHS, dtype=torch.float64)
        for k in range(steps):
            x = solver.step(lambda t, x: RATE * x, lambda t: NOISE, k / steps, 1 / steps, x, increments[k])
        strong.append(float((x - exact).abs().mean()))
        weak.append(abs(float((x - exact).mean())))
    return slope(strong), slope(weak)


def check_ode(solver):
    if solver.ode_order is None:
        return
    measured = ode_order(solver)
    assert abs(measured - solver.ode_order) < SLOPE, f"declares order {solver.ode_order}, has {measured:.2f}"


def check_sde(solver, seed=0):
    if solver.strong_order is None and solver.weak_order is None:
        return
    strong, weak = sde_orders(solver, seed)
    # Noise that doesn't depend on the state may be easier than what the declaration is about.
    for word, measured, declared in (("strong", strong, solver.strong_order), ("weak", weak, solver.weak_order)):
        if declared is not None:
            assert measured > declared - SLOPE, f"declares {word} order {declared}, has {measured:.2f}"


@pytest.mark.parametrize("name", NAMES)
def test_a_solver_has_its_declared_order_on_an_ode(name):
    check_ode(make(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_solver_has_its_declared_orders_on_an_sde(name):
    check_sde(make(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_solver_solves_something(name):
    solver = make(name)
    orders = (solver.ode_order, solver.strong_order, solver.weak_order)
    assert any(order is not None for order in orders)
    assert all(order is None or order > 0 for order in orders)
    assert getattr(solver, "evaluations", 1) >= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(1,), (3, 4, 5)])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_keeps_shape_and_type_and_its_input(name, event, dtype):
    solver = make(name)
    x = torch.randn(2, *event, generator=torch.Generator().manual_seed(0), dtype=dtype)
    before = x.clone()
    dw = None if solver.ode_order is not None else torch.zeros_like(x)
    still = solver.step(lambda t, x: x + t, lambda t: 1.0, 0.5, 0.0, x, dw)
    moved = solver.step(lambda t, x: x + t, lambda t: 1.0, 0.5, 0.1, x, dw)
    assert torch.equal(still, x)
    assert (moved.shape, moved.dtype) == (x.shape, dtype)
    assert not torch.equal(moved, x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_evaluates_the_drift_as_often_as_it_says_and_within_the_step(name):
    solver = make(name)
    times = []

    def drift(t, x):
        times.append(t)
        return -x

    dw = None if solver.ode_order is not None else torch.zeros(1, 1)
    solver.step(drift, lambda t: 1.0, 0.25, 0.5, torch.ones(1, 1), dw)
    assert len(times) == getattr(solver, "evaluations", 1)
    assert all(0.25 <= t <= 0.75 for t in times)


class Wrong:
    """A solver with this step and these declared orders."""

    def __init__(self, step, ode=None, strong=None, weak=None):
        self.step, self.ode_order, self.strong_order, self.weak_order = step, ode, strong, weak


def euler(drift, diffusion, t, h, x, dw):
    return x + h * drift(t, x)


def heun(drift, diffusion, t, h, x, dw, late=1.0, share=0.5):
    here = drift(t, x)
    return x + h * ((1 - share) * here + share * drift(t + late * h, x + h * here))


def noisy(scale):
    return lambda drift, diffusion, t, h, x, dw: x + h * drift(t, x) + scale(h, diffusion(t)) * dw


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong(euler, ode=2.0),
        Wrong(lambda drift, g, t, h, x, dw: heun(drift, g, t, h, x, dw, late=0.0), ode=2.0),
        Wrong(lambda drift, g, t, h, x, dw: heun(drift, g, t, h, x, dw, share=0.6), ode=2.0),
        Wrong(lambda drift, g, t, h, x, dw: x - h * drift(t, x), ode=1.0),
        Wrong(lambda drift, g, t, h, x, dw: x + 1.01 * h * drift(t, x), ode=1.0),
        Wrong(heun, ode=1.0),
    ],
    ids=["euler claims 2", "stale time", "wrong weights", "wrong sign", "one percent off", "heun claims 1"],
)
def test_a_wrong_ode_solver_is_rejected(wrong):
    with pytest.raises(AssertionError, match="declares order"):
        check_ode(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong(noisy(lambda h, g: g * h / math.sqrt(h)), strong=1.0),
        Wrong(noisy(lambda h, g: g**2), strong=1.0),
        Wrong(noisy(lambda h, g: 0.0), strong=1.0),
        Wrong(noisy(lambda h, g: -g), strong=1.0),
        Wrong(noisy(lambda h, g: g), strong=1.5),
        Wrong(lambda drift, g, t, h, x, dw: x + h * drift(t, x) / 2 + g(t) * dw, weak=1.0),
    ],
    ids=["h for sqrt(h)", "variance for std", "no noise", "wrong sign", "claims 1.5", "half the drift"],
)
def test_a_wrong_sde_solver_is_rejected(wrong):
    with pytest.raises(AssertionError, match=r"declares (strong|weak) order"):
        check_sde(wrong)


def test_the_twins_of_the_wrong_solvers_are_sound():
    check_ode(Wrong(heun, ode=2.0))
    check_sde(Wrong(noisy(lambda h, g: g), strong=1.0, weak=1.0))
