"""Solvers of torchdiffeq and torchsde: each method's declared orders, tolerances, refusals and errors."""

import importlib.util
import itertools
import math
import warnings
from typing import get_args

import pytest
import torch

import gftkit
from gftkit.kernel.contracts import Integrator
from gftkit.kernel.errors import ConfigError, DivergenceError
from gftkit.sampling.integrate import generate
from gftkit.verify.claims import check
from gftkit.verify.collect import collect
from gftkit.verify.declaration import claims_of
from gftkit_plugins.solvers import torchdiffeq, torchsde
from gftkit_verification.claims.components import integrators
from gftkit_verification.claims.components.solvers import ode_order
from gftkit_verification.testbeds.problems.brownian import unit_paths
from gftkit_verification.testbeds.slips.integrators import AlteredIntegrator, own_run

REGISTRY = gftkit.load()
ORDER = 0.35
"""Distance of a slope from the declared order: of few steps, and for the Adams methods of ones that start otherwise."""
ONE_STEP = [*torchdiffeq.FIXED, *torchdiffeq.MULTISTEP]


def ode(method, **options):
    return REGISTRY.create("solver", "torchdiffeq", method=method, **options)


def sde(method, **options):
    return REGISTRY.create("solver", "torchsde", method=method, **options)


def slope(steps, errors):
    x, y = -torch.tensor(steps, dtype=torch.float64).log(), torch.tensor(errors, dtype=torch.float64).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def ended(solver, drift, x, times, diffusion=None, path=None):
    *_, last = solver.integrate(drift, diffusion, times, x, path)
    return last


def grid(steps):
    return tuple(k / steps for k in range(steps + 1))


def bent(t, x):
    """x' = -(1 + t) x^2."""
    return -(1 + t) * x**2


X0 = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
X1 = X0 / (1 + 1.5 * X0)


def ode_slope(solver, steps=(20, 40, 80)):
    errors = [float((ended(solver, bent, X0, grid(n)) - X1).abs().max()) for n in steps]
    return slope(steps, errors)


def test_every_method_is_offered_but_scipys_and_the_one_for_adjoints():
    from torchdiffeq._impl.odeint import SOLVERS
    from torchsde.settings import METHODS

    assert set(get_args(torchdiffeq.Method)) == set(SOLVERS) - {"scipy_solver"}
    assert {*torchdiffeq.FIXED, *torchdiffeq.MULTISTEP, *torchdiffeq.ADAPTIVE} == set(get_args(torchdiffeq.Method))
    left_out = {"log_ode", "adjoint_reversible_heun"}
    assert set(get_args(torchsde.Method)) == set(METHODS.all()) - left_out == set(torchsde.METHODS)


@pytest.mark.parametrize("method", ONE_STEP)
def test_a_method_of_torchdiffeq_has_its_declared_order(method):
    solver = ode(method, rtol=1e-9, atol=1e-9)
    measured = ode_slope(solver)
    assert abs(measured - solver.ode_order) < ORDER
    assert abs(measured - solver.ode_order - 1) > ORDER  # one more is another


@pytest.mark.parametrize("method", torchsde.METHODS)
def test_a_method_of_torchsde_has_its_declared_orders(method):
    solver = sde(method)
    assert abs(ode_order(solver, torch.Generator().manual_seed(0)).value) < 0.15
    found = integrators.integrator_weak_order(solver, torch.Generator().manual_seed(0))
    assert abs(found.value) < 0.15
    more = AlteredIntegrator(solver, own_run, more=1)
    assert abs(integrators.integrator_weak_order(more, torch.Generator().manual_seed(0)).value) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("method", torchsde.METHODS)
def test_a_method_of_torchsde_has_its_declared_strong_order(method):
    found = integrators.integrator_strong_order(sde(method), torch.Generator().manual_seed(1))
    assert abs(found.value) < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("method", [*torchdiffeq.FIXED])
def test_a_method_of_torchdiffeq_has_the_order_of_its_steps(method):
    assert abs(ode_order(ode(method), torch.Generator().manual_seed(0)).value) < 0.15


@pytest.mark.parametrize("method", torchdiffeq.ADAPTIVE)
def test_the_error_of_an_adaptive_method_follows_its_tolerances(method):
    """dopri8 meets loose tolerances by far in its first step: there the error is below them."""
    errors = {tol: float((ended(ode(method, rtol=tol, atol=tol), bent, X0, (0.0, 1.0)) - X1).abs().max())
              for tol in (1e-3, 1e-6)}  # fmt: skip
    assert all(error < 300 * tol for tol, error in errors.items())
    if method != "dopri8":
        assert 1e-4 < errors[1e-6] / errors[1e-3] < 3e-3


def test_adaptive_steps_of_torchsde_follow_the_tolerances():
    x = torch.ones(8, 2, dtype=torch.float64)
    given = {}
    path = sde("heun").brownian(x, 1.0, torch.Generator().manual_seed(0))
    fine = ended(sde("srk"), lambda t, x: -3 * x, x, grid(256), lambda t: 1.0, path)
    for tolerance in (1e-1, 1e-3):
        solver = sde("heun", adaptive=True, rtol=tolerance, atol=tolerance)
        given[tolerance] = float((ended(solver, lambda t, x: -3 * x, x, (0.0, 1.0), lambda t: 1.0, path) - fine).norm())
    assert given[1e-3] < given[1e-1] / 5
    assert given[1e-3] < 0.05


def test_adaptive_methods_evaluate_within_the_interval_and_land_on_the_times():
    times, seen = (0.0, 0.3, 0.35, 0.9), []

    def drift(t, x):
        seen.append(t)
        return torch.full_like(x, 3 * t**2)

    for solver in (ode("dopri5"), ode("bosh3"), sde("heun", adaptive=True)):
        states = list(solver.integrate(drift, None, times, torch.zeros(2, 3, dtype=torch.float64), None))
        assert len(states) == len(times)
        assert all(float((x - t**3).abs().max()) < 1e-2 for t, x in zip(times, states, strict=True))
    assert all(0 <= t <= 0.9 for t in seen)
    assert len(seen) > 20


@pytest.mark.parametrize("name", ["torchdiffeq", "torchsde", "srk", "dopri5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_type_and_input_are_kept(name, dtype):
    solver = REGISTRY.create("solver", name)
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    before, noisy = x.clone(), solver.strong_order is not None
    path = solver.brownian(x, 1.0, torch.Generator().manual_seed(1)) if noisy else None
    states = list(solver.integrate(lambda t, x: x + t, (lambda t: 0.3) if noisy else None, grid(3), x, path))
    assert len(states) == 4
    assert all((state.shape, state.dtype) == (x.shape, dtype) for state in states)
    assert torch.equal(states[0], before)
    assert torch.equal(x, before)
    assert not torch.equal(states[1], states[0])


def test_a_brownian_path_answers_the_same_and_adds_up():
    x = torch.zeros(4, 2, 3, dtype=torch.float64)
    path = sde("euler").brownian(x, 1.0, torch.Generator().manual_seed(0))
    again = sde("srk").brownian(x, 1.0, torch.Generator().manual_seed(0))
    whole, area = path(0.0, 1.0, return_U=True)
    parts = [path(k / 4, (k + 1) / 4, return_U=True) for k in range(4)]
    sums = list(itertools.accumulate(w for w, _ in parts))
    assert whole.shape == x.shape
    assert torch.allclose(sums[-1], whole)
    before = [torch.zeros_like(x), *sums[:-1]]
    assert torch.allclose(area, sum(u + w / 4 for (_, u), w in zip(parts, before, strict=True)))
    assert torch.equal(path(0.0, 1.0), whole)
    assert torch.equal(again(0.0, 1.0), whole)
    known = unit_paths(4, 2)
    assert torch.allclose(known(0.25, 0.75), known.increments[1:3].sum(0))
    with pytest.raises(ValueError, match="multiples of 1/4"):
        known(0.1, 0.3)


def test_torchsde_evaluates_the_drift_no_more_than_its_method_needs():
    calls = []

    def drift(t, x):
        calls.append(t)
        return -x

    for method, needed in (("euler", 1), ("heun", 2), ("midpoint", 2), ("srk", 2)):
        calls.clear()
        ended(sde(method), drift, torch.ones(2, 1), grid(5))
        assert len(calls) == 5 * needed, method


def test_unequal_steps_are_refused_where_earlier_ones_are_remembered(registry):
    with pytest.raises(ConfigError, match="uniform grid"):
        ended(ode("implicit_adams"), bent, X0, (0.0, 0.1, 1.0))
    path, cosine = registry.create("path", "linear"), registry.create("grid", "cosine")
    with pytest.raises(ConfigError, match="explicit_adams"):
        generate(lambda t, x: -x, path, ode("explicit_adams"), 5, X0, torch.Generator(), spacing=cosine)
    errors = []
    for steps in (20, 40):  # a method of one step keeps its order there
        errors.append(float((ended(ode("heun3"), bent, X0, tuple(cosine.times(steps))) - X1).abs().max()))
    assert slope((20, 40), errors) > 3 - ORDER


@pytest.mark.parametrize("method", torchdiffeq.ADAPTIVE)
def test_an_adaptive_ode_solver_is_refused_on_an_sde(registry, method):
    bridge = registry.create("path", "brownian-bridge")
    with pytest.raises(ConfigError, match="solves ODEs only"):
        generate(lambda t, x: -x, bridge, ode(method), 5, torch.zeros(2, 1), torch.Generator())
    with pytest.raises(ConfigError, match="ODEs only"):
        ode(method).brownian(torch.zeros(1), 1.0, torch.Generator())


def test_a_step_size_that_underflows_is_explained(registry):
    path = registry.create("path", "linear")
    for solver, word in ((ode("dopri5"), "dopri5"), (REGISTRY.create("solver", "dopri5"), "underflow|finite")):
        with pytest.raises(DivergenceError, match=word) as caught:
            generate(lambda t, x: 5 * (1 + x**2), path, solver, 2, torch.ones(2, 1), torch.Generator())
        assert "near t = 0.1" in str(caught.value)
        assert "larger tolerances" in str(caught.value)
    solver = sde("heun", adaptive=True, rtol=1e-9, atol=1e-9)
    with pytest.raises(DivergenceError, match="minimum allowed step size"), warnings.catch_warnings():
        ended(solver, lambda t, x: 5 * (1 + x**2), torch.ones(2, 1), (0.0, 1.0))
    with pytest.raises(DivergenceError, match="did not converge"):
        ended(ode("implicit_adams", rtol=1e-9, atol=1e-9), lambda t, x: 30 * torch.cos(9 * x), X0, grid(10))


def test_an_assertion_of_the_drift_is_its_own():
    def drift(t, x):
        raise AssertionError("mine")

    with pytest.raises(AssertionError, match="mine"):
        ended(ode("dopri5"), drift, X0, (0.0, 1.0))


@pytest.mark.parametrize("name", ["torchdiffeq", "torchsde", "dopri5", "srk"])
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name.startswith("torch") else found(name, *rest)
    )
    with pytest.raises(ConfigError, match=r"pip install 'gftkit\[solvers\]'"):
        REGISTRY.create("solver", name)
    assert not [claim.name for claim in claims_of(integrators, REGISTRY)]  # and nothing is claimed of it


def test_bad_solver_options_are_refused():
    for name, options, word in (
        ("torchdiffeq", {"method": "rk5"}, "rk5"),
        ("torchdiffeq", {"rtol": 0.0}, "> 0"),
        ("torchsde", {"method": "log_ode"}, "log_ode"),
        ("torchsde", {"atol": -1.0}, "> 0"),
        ("dopri5", {"rtol": math.inf}, "finite|inf"),
    ):
        with pytest.raises(ConfigError, match=word):
            REGISTRY.create("solver", name, **options)


class Wrong:
    """A plugin's solver of a library's form, Euler-Maruyama; broken, it forgets g's square root or a half."""

    ode_order, strong_order, weak_order = 1.0, 1.0, 1.0

    def __init__(self, broken):
        self.broken = broken

    def brownian(self, x, t_end, generator):
        return sde("euler").brownian(x, t_end, generator)

    def integrate(self, drift, diffusion, times, x, brownian):
        yield x
        for t, later in itertools.pairwise(times):
            moved = x + (later - t) * drift(t, x)
            x = moved if brownian is None else moved + diffusion(t) ** (1 + self.broken) * brownian(t, later)
            yield x


@pytest.mark.parametrize("broken", [False, True])
def test_a_plugins_own_integrator_is_checked_by_being_installed(broken):
    def mine():
        """A solver."""
        return Wrong(broken)

    hook = gftkit.hookimpl(lambda self: {"mine": mine})
    registry = gftkit.load(plugins={"mine": type("Mine", (), {"gftkit_solvers": hook})()})
    assert isinstance(registry.create("solver", "mine"), Integrator)
    claims = [claim for claim in collect(registry) if claim.component == "solver:mine"]
    assert {claim.name for claim in claims} == {
        f"solver-{kind}-mine" for kind in ("ode-order", "strong-order", "weak-order", "noise")
    }
    chosen = [claim for claim in claims if "weak" in claim.name or "noise" in claim.name]
    assert all(check(claim).holds for claim in chosen) is not broken
