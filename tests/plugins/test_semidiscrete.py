"""The coupling semidiscrete: its map, its masses and their measurement, copies, and what it can't fit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gftkit
from gftkit.kernel.errors import ConfigError
from gftkit_plugins import semidiscrete
from gftkit_plugins.semidiscrete import _Ascent, _copies

REGISTRY = gftkit.load()
DRAWS = 100_000


def normal(d):
    return lambda n, generator: torch.randn(n, d, generator=generator)


def fit(coupling, x1, seed=0, source=None):
    shown = []
    generator = torch.Generator().manual_seed(seed)
    fitted = coupling.fit(
        x1, source or normal(x1[0].numel()), generator, lambda draws, text: shown.append((draws, text))
    )
    return fitted, shown


def shares(coupling, x1, fitted, x0):
    index = coupling.assign(x0, x1, fitted, torch.Generator().manual_seed(5))
    return torch.bincount(index, minlength=len(x1)).double() / len(x0)


def check_masses(masses, chi2):
    """The masses of n samples are 1/n to within a relative variance."""
    n = len(masses)
    assert n * float((masses - 1 / n).square().sum()) < chi2 + 3 * n / DRAWS, "a sample has another mass"


@pytest.mark.parametrize(("n", "d", "shift"), [(1, 2, 0), (2, 1, 0), (50, 2, 3), (100, 16, 0), (40, 3, 1000)])
def test_every_sample_receives_its_mass(n, d, shift):
    coupling = REGISTRY.create("coupling", "semidiscrete", chi2=0.02)
    x1 = shift + torch.randn(n, d, generator=torch.Generator().manual_seed(n))
    fitted, shown = fit(coupling, x1)
    check_masses(shares(coupling, x1, fitted, torch.randn(DRAWS, d)), 0.02)
    assert float(fitted["chi2"]) + 2 * float(fitted["chi2_stderr"]) <= 0.02
    assert [draws for draws, _ in shown] == sorted(draws for draws, _ in shown)


def test_masses_without_potentials_are_rejected():
    """A wrong twin: the nearest sample."""
    coupling = REGISTRY.create("coupling", "semidiscrete")
    x1 = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    fitted = {**fit(coupling, x1)[0], "offset": -x1.double().square().sum(1) / 2}
    with pytest.raises(AssertionError, match="another mass"):
        check_masses(shares(coupling, x1, fitted, torch.randn(DRAWS, 2)), 0.02)


def test_copies_share_one_cell_and_are_chosen_equally_often():
    coupling = REGISTRY.create("coupling", "semidiscrete", chi2=0.02)
    x1 = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    x1 = torch.cat([x1, x1[:5], x1[:1], -torch.zeros(1, 2), torch.zeros(1, 2)])
    fitted, _ = fit(coupling, x1)
    check_masses(shares(coupling, x1, fitted, torch.randn(DRAWS, 2)), 0.02)
    order, first, count = (fitted[name] for name in ("order", "first", "count"))
    assert order.sort().values.tolist() == list(range(28))
    assert count[[0, 1, 5, 26, 27]].tolist() == [3, 2, 1, 2, 2]
    assert order[first[0] : first[0] + 3].tolist() == [0, 20, 25]
    assert torch.isinf(fitted["offset"]).sum() == 7


def test_events_of_any_shape_are_flattened():
    coupling, generator = REGISTRY.create("coupling", "semidiscrete"), torch.Generator()
    flat = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    images = flat.reshape(10, 1, 2, 2)
    source = lambda n, generator: torch.randn(n, 1, 2, 2, generator=generator)  # noqa: E731
    (one, _), (other, _) = fit(coupling, flat), fit(coupling, images, source=source)
    assert torch.equal(one["offset"], other["offset"])
    x0 = torch.randn(50, 4)
    there = coupling.assign(x0.reshape(50, 1, 2, 2), images, other, generator)
    assert torch.equal(there, coupling.assign(x0, flat, one, generator))


def test_scores_are_computed_in_parts_of_bounded_memory(monkeypatch):
    sizes, addmm = [], torch.addmm

    def recorded(offset, x, y):
        sizes.append(len(x) * y.shape[1])
        return addmm(offset, x, y)

    coupling = REGISTRY.create("coupling", "semidiscrete", chi2=0.2)
    x1 = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    whole, _ = fit(coupling, x1)
    x0 = torch.randn(500, 3)
    there = coupling.assign(x0, x1, whole, torch.Generator().manual_seed(5))
    monkeypatch.setattr(torch, "addmm", recorded)
    coupling.assign(x0, x1, whole, torch.Generator().manual_seed(5))
    assert max(sizes) == 500 * 40  # the probe sees what is computed
    sizes.clear()
    monkeypatch.setattr(semidiscrete, "SCORES", 1000)
    again = coupling.assign(x0, x1, whole, torch.Generator().manual_seed(5))
    assert max(sizes) == 1000
    assert torch.equal(again, there)
    fit(coupling, x1)
    assert max(sizes) == 1000


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 12), d=st.integers(1, 3))
def test_a_fit_is_a_function_of_the_generator(seed, n, d):
    coupling = REGISTRY.create("coupling", "semidiscrete", chi2=0.2)
    x1 = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    before = x1.clone()
    one, other = (fit(coupling, x1, seed)[0] for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(x1, before)
    assert n == 1 or not torch.equal(one["offset"], fit(coupling, x1, seed + 1)[0]["offset"])


def corner_ascent(masses):
    """An ascent to the corners e_j from a source on the corners themselves, of these masses."""

    def source(n, generator):
        return torch.eye(len(masses))[torch.multinomial(masses, n, replacement=True, generator=generator)]

    x1 = torch.eye(len(masses))
    return _Ascent(x1, _copies(x1), source, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("skew", [0.0, 0.5])
def test_chi2_is_measured_without_bias(skew):
    masses = (1 + skew * torch.linspace(-1, 1, 200).double()) / 200
    exact = 200 * float((masses - 1 / 200).square().sum())
    ascent = corner_ascent(masses)
    estimates, stated = zip(*(ascent.chi2(1.0) for _ in range(40)), strict=True)
    mean, deviation = float(torch.tensor(estimates).mean()), float(torch.tensor(estimates).std())
    assert abs(mean - exact) < 4 * deviation / math.sqrt(40)
    assert 0.6 < deviation / stated[0] < 1.6
    uncorrected = exact + 200 / 10_000  # by squared counts of 10,000 draws: a wrong twin
    assert abs(mean - uncorrected) > 8 * deviation / math.sqrt(40)


def test_a_bound_that_is_not_reached_is_one_error():
    coupling = REGISTRY.create("coupling", "semidiscrete", draws=1000)
    with pytest.raises(ConfigError, match=r"wanted masses with chi2 at most 0\.01, got inf .* after [\d,]+ draws"):
        fit(coupling, torch.randn(20, 2))
    coupling = REGISTRY.create("coupling", "semidiscrete", draws=400_000, chi2=0.0001)
    with pytest.raises(ConfigError, match=r"got 0\.\d+ ± \d.* Raise coupling\.chi2 or coupling\.draws"):
        fit(coupling, torch.randn(20, 2))


@pytest.mark.parametrize("options", [{"chi2": 0}, {"chi2": 2}, {"draws": 0}, {"memory": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        REGISTRY.create("coupling", "semidiscrete", **options)


@pytest.mark.cuda
def test_a_map_on_cuda_is_that_on_the_cpu():
    coupling = REGISTRY.create("coupling", "semidiscrete", chi2=0.02)
    x1 = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    fitted, _ = fit(coupling, x1.cuda())
    assert all(tensor.device.type == "cpu" for tensor in fitted.values())
    x0 = torch.randn(DRAWS, 8)
    there = coupling.assign(x0.cuda(), x1.cuda(), fitted, torch.Generator().manual_seed(5))
    assert there.device.type == "cuda"
    check_masses(torch.bincount(there.cpu(), minlength=300).double() / DRAWS, 0.02)
    here = coupling.assign(x0, x1, fitted, torch.Generator().manual_seed(5))
    assert float((here != there.cpu()).double().mean()) < 1e-3  # near a boundary round-off decides
