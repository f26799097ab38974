"""Laws to draw from have their stated moments; wrong twins don't."""

import math

import pytest
import torch
from support.laws import CLEARLY, DRAWS, ERRORS, deviation, draws

from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import ConfigError

MEAN = [1.0, -2.0]
COVARIANCE = [[4.0, 1.2], [1.2, 0.5]]


def gaussian_twins():
    root = torch.linalg.cholesky(torch.tensor(COVARIANCE))
    square = torch.tensor(COVARIANCE)
    yield "covariance used as its root", MEAN, square @ square
    yield "root not transposed", MEAN, root.T @ root
    yield "mean's sign", [1.0, 2.0], square
    yield "coordinates swapped", MEAN[::-1], square.flip(0, 1)
    yield "correlation left out", MEAN, square.diag().diag()


def test_gaussian_has_its_moments(registry):
    law = registry.create("dataset", "gaussian", event_shape=(2,), mean=MEAN, covariance=COVARIANCE)
    assert torch.equal(law.covariance, torch.tensor(COVARIANCE, dtype=torch.float64))
    assert deviation(draws(law).x1, law.mean, law.covariance) < ERRORS
    for slip, mean, covariance in gaussian_twins():
        twin = registry.create("dataset", "gaussian", event_shape=(2,), mean=mean, covariance=covariance.tolist())
        assert deviation(draws(twin).x1, law.mean, law.covariance) > CLEARLY, slip


def test_gaussian_spread_is_a_standard_deviation(registry):
    mean, covariance = torch.full((6,), -1.0).double(), 0.25 * torch.eye(6).double()
    law = registry.create("dataset", "gaussian", event_shape=[2, 3], mean=-1, std=0.5)
    assert deviation(draws(law).x1.flatten(1), mean, covariance) < ERRORS
    twin = registry.create("dataset", "gaussian", event_shape=[2, 3], mean=-1, std=0.25)
    assert deviation(draws(twin).x1.flatten(1), mean, covariance) > CLEARLY


def test_gaussian_events_are_flattened_row_by_row(registry):
    law = registry.create("dataset", "gaussian", event_shape=(2, 3), mean=[0, 1, 2, 3, 4, 5], std=1e-6)
    expected = torch.arange(6.0).reshape(2, 3)
    torch.testing.assert_close(law.draw(1, torch.Generator().manual_seed(0)).x1[0], expected, atol=1e-5, rtol=0)


def test_gaussian_takes_the_event_shape_that_the_kernel_supplies(registry):
    assert registry.build("dataset", {"name": "gaussian"}, event_shape=(3, 2)).event_shape == (3, 2)
    with pytest.raises(ConfigError, match="event_shape is missing"):
        registry.create("dataset", "gaussian")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariance": [[1.0, 0.5], [0.4, 1.0]]}, r"symmetric matrix, got 0.5 in row 0, column 1 and 0.4 in row 1"),
        ({"covariance": [[1.0, 2.0], [2.0, 1.0]]}, r"positive definite matrix, got .* eigenvalue -1\. Add"),
        ({"covariance": [[1.0, 1.0], [1.0, 1.0]]}, r"positive definite"),
        ({"covariance": [[1.0]]}, r"wanted 2 rows of 2 numbers, .* got 1 rows of 1"),
        ({"covariance": [[1.0, 0.0], [0.0]]}, r"got 2 rows of 1 and 2"),
        ({"covariance": []}, r"got 0 rows of 0"),
        ({"covariance": [[1.0, 0.0], [0.0, 1.0]], "std": 1.0}, r"std and covariance .* Give one of them"),
        ({"mean": [1.0]}, r"mean: wanted one number, or 2 for event_shape \[2\], got 1"),
        ({"std": 0.0}, r"std: wanted float, > 0 .*got 0\.0"),
        ({"mean": math.nan}, r"mean: wanted float"),
        ({"event_shape": ()}, r"event_shape: wanted list of int, > 0, length >= 1, got \(\)"),
        ({"event_shape": (2, 0)}, r"event_shape: wanted list of int, > 0"),
    ],
)
def test_gaussian_refuses(registry, options, message):
    with pytest.raises(ConfigError, match=message):
        registry.create("dataset", "gaussian", **{"event_shape": (2,), **options})


def test_mixture_is_eight_on_a_circle(registry):
    law = registry.create("dataset", "gaussian-mixture", radius=3.0)
    assert (law.classes, law.event_shape) == (8, (2,))
    torch.testing.assert_close(law.means.norm(dim=1), torch.full((8,), 3.0).double())
    torch.testing.assert_close(law.means[1], torch.tensor([1.0, 1.0]).double() * 3 / math.sqrt(2))
    torch.testing.assert_close(law.means.mean(0), torch.zeros(2).double(), atol=1e-12, rtol=0)


MIXTURE = {"means": [[-2.0, 0.0], [1.0, 1.0], [3.0, -1.0]], "std": 0.5, "weights": [1, 2, 5]}


def mixture_deviations(batch):
    """How far whole sample, samples about the mean of their label, and labels are from ``MIXTURE``."""
    means = torch.tensor(MIXTURE["means"], dtype=torch.float64)
    weights = torch.tensor(MIXTURE["weights"], dtype=torch.float64) / 8
    inside = MIXTURE["std"] ** 2 * torch.eye(2, dtype=torch.float64)
    mean = weights @ means
    between = (means - mean).T @ (weights[:, None] * (means - mean))
    shares = torch.nn.functional.one_hot(batch.label, 3).double()
    counted = (shares.mean(0) - weights).abs() / (weights * (1 - weights) / len(batch)).sqrt()
    own = batch.x1 - means[batch.label]
    return [
        deviation(batch.x1, mean, inside + between),
        deviation(own, torch.zeros(2).double(), inside),
        float(counted.max()),
    ]


def test_mixture_has_its_moments(registry):
    law = registry.create("dataset", "gaussian-mixture", **MIXTURE)
    batch = draws(law)
    assert max(mixture_deviations(batch)) < ERRORS
    for slip, change in {
        "variance where std belongs": {"std": 0.25},
        "weights ignored": {"weights": None},
        "weights reversed": {"weights": [5, 2, 1]},
        "means mirrored": {"means": [[2.0, 0.0], [-1.0, 1.0], [-3.0, -1.0]]},
    }.items():
        twin = registry.create("dataset", "gaussian-mixture", **{**MIXTURE, **change})
        assert max(mixture_deviations(draws(twin))) > CLEARLY, slip
    assert max(mixture_deviations(Batch(batch.x1, (batch.label + 1) % 3))) > CLEARLY, "labels shifted"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"means": [[0.0], [1.0, 2.0]]}, r"rows of one length, got lengths \[1, 2\]"),
        ({"means": [[0.0]], "weights": [1, 1]}, r"weights: wanted 1, one for each mean, got 2"),
        ({"weights": [1] * 7}, r"weights: wanted 8"),
        ({"weights": [1] * 7 + [0]}, r"weights: wanted list of float, > 0"),
        ({"means": [[0.0]], "radius": 1.0}, r"Give radius or means"),
        ({"means": []}, r"means: wanted list of"),
        ({"means": [[]]}, r"means: wanted list of"),
        ({"std": -1.0}, r"std: wanted float, > 0, got -1\.0"),
    ],
)
def test_mixture_refuses(registry, options, message):
    with pytest.raises(ConfigError, match=message):
        registry.create("dataset", "gaussian-mixture", **options)


def moons_moments(noise):
    mean = torch.tensor([0.5, 0.25], dtype=torch.float64)
    cross = 1 / 8 - 1 / math.pi
    covariance = torch.tensor([[3 / 4, cross], [cross, 9 / 16 - 1 / math.pi]], dtype=torch.float64)
    return mean, covariance + noise**2 * torch.eye(2, dtype=torch.float64)


def test_moons_have_their_moments(registry):
    stated = moons_moments(0.5)
    assert deviation(draws(registry.create("dataset", "two-moons", noise=0.5)).x1, *stated) < ERRORS
    twin = registry.create("dataset", "two-moons", noise=0.25)  # the variance where the standard deviation belongs
    assert deviation(draws(twin).x1, *stated) > CLEARLY


def test_moons_are_two_half_circles(registry):
    batch = draws(registry.create("dataset", "two-moons", noise=0.0))
    upper, lower = batch.x1[batch.label == 0], batch.x1[batch.label == 1]
    assert abs(len(upper) - DRAWS / 2) < ERRORS * math.sqrt(DRAWS / 4)
    torch.testing.assert_close(upper.norm(dim=1), torch.ones(len(upper)))
    torch.testing.assert_close((lower - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(len(lower)))
    slack = 1e-6  # sin(pi) in float32
    assert upper[:, 1].min() > -slack
    assert lower[:, 1].max() < 0.5 + slack
