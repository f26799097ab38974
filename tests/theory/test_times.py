"""Laws of flow time before a run: what is checked, and the laws that must be refused."""

import math

import pytest
import torch

import gftkit
from gftkit.kernel.errors import ConfigError
from gftkit.theory.times import check_time_law, distribution_error, levels, scaled_times

REGISTRY = gftkit.load()
UNIFORM = REGISTRY.create("time", "uniform")


class Law:
    """A law of two functions."""

    def __init__(self, quantile, density):
        self.quantile, self.density = quantile, density


def test_uniform_times_are_bit_for_bit_those_of_torch_rand():
    u = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scaled_times(UNIFORM, 0.999, u), 0.999 * u)


def test_the_distribution_function_of_a_law_is_known_to_round_off():
    right = Law(torch.sqrt, lambda t: 2 * t)
    assert distribution_error(right) < 1e-12
    # F(t) = t of another law: sqrt(u) - u is at most 1/4.
    assert distribution_error(Law(torch.sqrt, torch.ones_like)) == pytest.approx(0.25, abs=1e-3)
    assert distribution_error(Law(torch.sqrt, lambda t: t)) == pytest.approx(0.5)


def test_levels_increase_and_come_near_both_ends():
    u = levels()
    assert u[0] == 0
    assert bool((u.diff() > 0).all())
    assert 0 < float(1 - u[-1]) < 1e-13


@pytest.mark.parametrize(
    ("quantile", "density", "complaint"),
    [
        (lambda u: 1 - u, torch.ones_like, "wanted quantiles that don't fall"),
        (lambda u: 2 * u, lambda t: torch.full_like(t, 0.5), r"wanted flow times in \[0, 1\], got 1.008"),
        (lambda u: u - 0.1, torch.ones_like, r"flow times in \[0, 1\], got -0.1 at probability 0"),
        (lambda u: u / u, torch.ones_like, "got nan at probability 0"),
        (lambda u: u.mean(), torch.ones_like, "quantile: wanted"),
        (lambda u: u.double(), torch.ones_like, "quantile: wanted .* of torch.float32, got .* of torch.float64"),
        (lambda u: u, lambda t: t[:, None], "density: wanted"),
        (lambda u: u, lambda t: 2 * t - 0.5, "wanted a finite density >= 0"),
        (lambda u: u, lambda t: torch.full_like(t, math.nan), "wanted a finite density >= 0"),
        (lambda u: u, lambda t: 2 * torch.ones_like(t), "its distribution function is off by 1,"),
        (torch.sqrt, lambda t: 2 * (1 - t), "its distribution function is off by"),
        (torch.sqrt, lambda t: 1 / (2 * t), "its distribution function is off by"),
        (lambda u: torch.where(u < 0.5, 0.0, u).to(u.dtype), torch.ones_like, "and 50 % of the law are 0 in float32"),
    ],
)
def test_a_law_that_is_none_is_refused(quantile, density, complaint):
    with pytest.raises(ConfigError, match=f"mine: .*{complaint}|mine: {complaint}"):
        check_time_law(Law(quantile, density), "mine")


def test_a_law_that_rounds_to_an_end_is_refused():
    with pytest.raises(ConfigError, match=r"and 0.78 % of the law are 1 in float32. Choose options that put less"):
        check_time_law(REGISTRY.create("time", "beta", a=1.0, b=0.3), "beta")
    drawn = REGISTRY.create("time", "beta", a=1.0, b=0.3).quantile(
        torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    )
    assert 0.005 < float((drawn == 1).double().mean()) < 0.0078
    check_time_law(REGISTRY.create("time", "beta", a=0.3, b=1.0), "beta")  # float32 is dense near 0
