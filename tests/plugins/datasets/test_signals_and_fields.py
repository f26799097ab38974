"""Signals and random fields have their stated moments and shapes; wrong twins don't."""

import math

import pytest
import torch
from support.laws import CLEARLY, ERRORS, deviation, draws

from gftkit.kernel.errors import ConfigError


def seen(law):
    """Events of 10,000 draws, flattened, (n, d)."""
    return draws(law).x1.flatten(1)


def sines_moments(length, amplitude, noise):
    apart = torch.arange(length, dtype=torch.float64)[:, None] - torch.arange(length, dtype=torch.float64)
    waves = sum((2 * math.pi * k * apart / length).cos() / (2 * k**2) for k in range(1, 5))
    return torch.zeros(length).double(), amplitude**2 * waves + noise**2 * torch.eye(length).double()


def test_sines_have_their_moments(registry):
    def made(**options):
        return seen(registry.create("dataset", "signals", length=12, **options))

    stated = sines_moments(12, amplitude=2.0, noise=0.5)
    assert deviation(made(amplitude=2.0, noise=0.5), *stated) < ERRORS
    assert deviation(made(amplitude=2.0, noise=1.0), *stated) > CLEARLY
    assert deviation(made(amplitude=1.0, noise=0.5), *stated) > CLEARLY


@pytest.mark.parametrize("law", ["sines", "chirps", "pulses"])
def test_signals_are_smooth_up_to_their_noise(registry, law):
    law = registry.create("dataset", "signals", law=law, length=4096, noise=0.0)
    x = law.draw(200, torch.Generator().manual_seed(0)).x1[:, 0]
    assert (x.diff(dim=1).abs().amax(1) < 0.1).all()
    assert float(x.std()) > 0.2
    assert torch.equal(law.draw(200, torch.Generator().manual_seed(0)).x1[:, 0], x)
    noisy = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert (noisy.diff(dim=1).abs().amax(1) > 0.1).all()  # the negative control


def test_pulses_are_beats_of_one_height_at_equal_distances(registry):
    law = registry.create("dataset", "signals", law="pulses", length=2000, noise=0.0, amplitude=3.0)
    for x in law.draw(50, torch.Generator().manual_seed(0)).x1[:, 0]:
        peaks = [k for k in range(1, 1999) if x[k - 1] < x[k] >= x[k + 1] and x[k] > 0.8 * x.max()]
        distances = torch.tensor(peaks).diff()
        assert 4.2 < float(x.max()) < 7.5  # 3 times [1.5, 2.5]; Q and S take a little of R
        assert len(distances) >= 1
        assert int(distances.max() - distances.min()) <= 2
        assert 598 <= int(distances.min()) <= 1002


@pytest.mark.parametrize("law", ["chirps", "pulses"])
def test_a_mean_is_the_same_at_all_times(registry, law):
    x = seen(registry.create("dataset", "signals", law=law, length=16))
    mean = torch.zeros(16).double() if law == "chirps" else x.double().mean().expand(16)
    errors = (x.double().mean(0) - mean).abs() / (x.double().std(0) / math.sqrt(len(x)))
    assert errors.max() < ERRORS
    one = x[:, :1].double().expand(-1, 16) * torch.linspace(0, 1, 16)  # the negative control: growing with time
    apart = (one.mean(0) - one.mean()).abs() / (one.std(0) / math.sqrt(len(x)))
    assert law == "chirps" or apart[1:].max() > CLEARLY


def fields_moments(law, mean, std):
    """Of every pair of pixels, by the law's own correlation and the formulas of lognormal laws."""
    size = law.event_shape[-1]
    places = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    apart = (places[:, None] - places) % size
    c = law.correlation[apart[..., 0], apart[..., 1]]
    if law.law == "lognormal":
        c = (c.exp() - 1) / (math.e - 1)
    return torch.full((size**2,), mean, dtype=torch.float64), std**2 * c


@pytest.mark.parametrize("law", ["gaussian", "lognormal"])
def test_fields_have_their_moments(registry, law):
    def made(**options):
        options = {"law": law, "size": 4, "length": 0.7, "mean": 1.0, "std": 1.5, **options}
        return registry.create("dataset", "random-fields", **options)

    stated = fields_moments(made(), 1.0, 1.5)
    assert deviation(seen(made()), *stated) < ERRORS
    for slip in ({"std": 0.75}, {"length": 1.4}, {"mean": -1.0}):
        assert deviation(seen(made(**slip)), *stated) > CLEARLY, slip


def test_the_correlation_is_nearly_gaussian(registry):
    correlation = registry.create("dataset", "random-fields", size=32, length=3.0).correlation
    r = torch.arange(10, dtype=torch.float64)
    torch.testing.assert_close(correlation[0, :10], (-(r**2) / 18).exp(), atol=1e-4, rtol=0)
    assert float((correlation[0, :10] - (-(r**2) / 9).exp()).abs().max()) > 0.1  # a length of 3/sqrt(2)


def test_lognormal_fields_have_peaks(registry):
    x = seen(registry.create("dataset", "random-fields", law="lognormal", size=4, length=0.5)).double()
    skewness = float(((x - x.mean()) ** 3).mean() / x.std() ** 3)
    assert skewness > 3  # (e + 2)(e - 1)^(1/2) = 6.2, slow to converge
    flat = seen(registry.create("dataset", "random-fields", size=4, length=0.5)).double()
    assert abs(float((flat**3).mean() / flat.std() ** 3)) < 0.1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("signals", {"law": "squares"}, "law: wanted"),
        ("signals", {"length": 4}, "length: wanted"),
        ("signals", {"amplitude": 0.0}, "amplitude: wanted"),
        ("random-fields", {"law": "sines"}, "law: wanted"),
        ("random-fields", {"length": 0.0}, "length: wanted"),
        ("random-fields", {"std": 0.0}, "std: wanted"),
    ],
)
def test_wrong_options_are_refused(registry, name, options, message):
    with pytest.raises(ConfigError, match=message):
        registry.create("dataset", name, **options)
