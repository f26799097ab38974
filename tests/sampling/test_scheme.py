"""How a flow is sampled: grids, noise scales and solvers as they are given, and what is refused."""

import math
import re

import pytest
import torch

from gftkit.kernel.errors import ConfigError, GftkitError
from gftkit.sampling.integrate import diffusion_of, grid_of
from gftkit.sampling.scheme import Scheme, build_scheme, resolve_scheme
from gftkit.sampling.stochastic import StochasticPath, check_known_score


class Times:
    """A plugin's grid with these shares of [0, 1]."""

    def __init__(self, *times):
        self._times = times

    def times(self, steps):
        return self._times


@pytest.mark.parametrize(
    ("times", "word"),
    [
        ((0.0, 0.5, 1.0), None),
        ((0.0, 0.7, 0.7), "0 to 0.7"),
        ((0.0, 1.0, 1.0), "increase, got 1 and then 1 (step 2)"),
        ((0.0, -0.1, 1.0), "increase, got 0 and then -0.1 (step 1)"),
        ((0.0, math.nan, 1.0), "increase"),
        ((0.0, 0.5, 0.9), "0 to 0.9"),
        ((0.1, 0.5, 1.0), "0.1 to 1"),
        ((0.0, 1.0), "wanted 3 times for 2 steps, got 2"),
    ],
)
def test_a_grid_of_the_wrong_form_is_refused(registry, times, word):
    path = registry.create("path", "linear")
    if word is None:
        assert grid_of(path, 2, Times(*times)).times == times
    else:
        with pytest.raises(ConfigError, match=re.escape(word)):
            grid_of(path, 2, Times(*times))


def test_an_explicit_grid_wants_its_own_number_of_steps(registry):
    grid = registry.create("grid", "explicit", at=[0.0, 0.7, 1.0])
    with pytest.raises(ConfigError, match="make 2 steps, and steps is 3"):
        grid_of(registry.create("path", "linear"), 3, grid)


@pytest.mark.parametrize("g", [lambda t: t - 0.5, lambda t: 1 / t, lambda t: t + math.nan])
def test_noise_that_is_negative_or_infinite_is_refused(registry, g):
    path = StochasticPath(registry.create("path", "linear"), g)
    with pytest.raises(ConfigError, match=r"g\(t\) >= 0 and finite, got .* at t = 0"):
        diffusion_of(path, (0.0, 0.5))
    scheme = Scheme(registry.create("solver", "euler-maruyama"), 4, None, lambda t: 0.3 - t)
    with pytest.raises(ConfigError, match=r"got -0\.19"):
        scheme.check(registry.create("path", "linear"))


class Slow:
    """A path that starts with alpha'(0) = 0."""

    def coefficients(self, t):
        return 1 - t**2, t**2, torch.zeros_like(t)


@pytest.mark.parametrize(
    ("path", "coupling", "normal", "guidance", "word"),
    [
        ("linear", "independent", True, 1.0, None),
        ("trigonometric", "independent", True, 1.0, None),
        ("linear", "optimal-transport", True, 1.0, "independent of x1"),
        ("brownian-bridge", "independent", True, 1.0, "this one has noise"),
        ("linear", "independent", False, 1.0, r"source N\(0, I\)"),
        ("linear", "independent", True, 2.0, r"guidance \(2\)"),
        (Slow(), "independent", True, 1.0, r"alpha'\(0\) = 0"),
    ],
)
def test_noise_of_choice_is_refused_where_the_score_is_not_known(registry, path, coupling, normal, guidance, word):
    made = registry.create("path", path) if isinstance(path, str) else path
    given = made, registry.create("coupling", coupling), normal, guidance
    if word is None:
        check_known_score(*given)
    else:
        with pytest.raises(ConfigError, match=word):
            check_known_score(*given)


def test_a_scheme_is_resolved_with_its_parts(registry, tmp_path):
    given = {"name": "srk", "steps": 7, "grid": "cosine", "diffusion": {"name": "sine", "scale": 0.5}}
    found = resolve_scheme(given, registry, "solver", tmp_path)
    assert found == {"name": "srk", "steps": 7, "grid": {"name": "cosine"}, "diffusion": {"name": "sine", "scale": 0.5}}
    made = build_scheme(found, registry.create("path", "linear"), registry)
    assert (made.steps, made.solver.method, made.diffusion.scale) == (7, "srk", 0.5)
    made.check(registry.create("path", "linear"))
    usual = build_scheme({"diffusion": {"name": "sine"}}, registry.create("path", "linear"), registry)
    assert type(usual.solver).__name__ == "EulerMaruyama"


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"name": "heun", "steps": 0}, r"solver\.steps: wanted int, >= 1, got 0"),
        ({"name": "heun", "steps": 2.5}, "got 2.5"),
        ({"name": "heun", "grid": "cosin"}, "Did you mean 'cosine'"),
        ({"name": "heun", "diffusion": {"name": "sine", "scale": -1.0}}, r"diffusion\.scale"),
        ({"name": "torchdiffeq", "method": "dopri"}, r"solver\.method"),
    ],
)
def test_a_scheme_that_is_none_is_refused(registry, tmp_path, spec, word):
    with pytest.raises(GftkitError, match=word):
        resolve_scheme(spec, registry, "solver", tmp_path)


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4", "dopri5", "torchdiffeq"])
def test_an_ode_solver_is_refused_where_noise_was_chosen(registry, solver):
    scheme = Scheme(registry.create("solver", solver), 4, None, registry.create("diffusion", "sine"))
    with pytest.raises(ConfigError, match="ODEs only"):
        scheme.check(registry.create("path", "linear"))
