"""The retention that fits pairs best: its values, its errors, and slips that must be seen."""

import math

import pytest
import torch

from gftkit.kernel.contracts import Estimate
from gftkit.theory.retention_fit import fit_retention, shrink

EDGES = [0.0, 0.3, 0.7, 1.0]
LEFT = torch.tensor([-0.2, 0.1, 0.4], dtype=torch.float64)
"""Share c of the gap that is left in each part."""


def drawn(seed, batches=16, size=400, noise=0.0):
    """A drift that lags by ``LEFT``, with noise of that size in it, and pairs with label noise; weight 1 + t."""
    generator = torch.Generator().manual_seed(seed)
    n = batches * size

    def normal(d=3):
        return torch.randn(n, d, generator=generator, dtype=torch.float64)

    t = torch.rand(n, generator=generator, dtype=torch.float64)
    exact, gap = normal(), normal()
    part = (t >= 0.3).long() + (t >= 0.7).long()
    drift = exact + LEFT[part][:, None] * gap + noise * normal()
    return {
        "drift": drift,
        "target": exact + normal(),
        "anchor": exact + gap,
        "t": t,
        "weight": 1 + t,
        "batches": batches,
        "edges": EDGES,
    }


def best(left, noise):
    """T20 by hand: the least place of (c + r (1 - c))^2 + (1 - r)^2 F."""
    return (noise**2 - left * (1 - left)) / ((1 - left) ** 2 + noise**2)


def score(estimate, expected):
    return (estimate.value - expected) / estimate.stderr


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_each_part_of_time_has_its_own_retention(noise):
    fit = fit_retention(**drawn(1, noise=noise))
    expected = best(LEFT, noise)
    assert all(abs(score(*pair)) < 5 for pair in zip(fit.by_time, expected.tolist(), strict=True))
    mass = torch.tensor([0.345, 0.6, 0.555]) * 3 * ((1 - LEFT) ** 2 + noise**2)  # int w dt of each part, E|gap|^2 = 3
    assert torch.allclose(fit.weights, mass, rtol=0.1)
    assert abs(score(fit.constant, float((mass * expected).sum() / mass.sum()))) < 5


@pytest.mark.parametrize(
    "slip",
    [
        lambda given: {**given, "target": given["anchor"], "anchor": given["target"]},
        lambda given: {**given, "t": 1 - given["t"]},
        lambda given: {**given, "target": given["target"] + 0.3 * (given["anchor"] - given["target"])},
        lambda given: {**given, "drift": given["drift"].roll(1, 0)},
    ],
    ids=["swapped", "reversed", "other targets", "other states"],
)
def test_a_slip_is_seen(slip):
    fit = fit_retention(**slip(drawn(2)))
    assert any(abs(score(*pair)) > 10 for pair in zip(fit.by_time, best(LEFT, 0.0).tolist(), strict=True))


def test_errors_are_those_of_repeated_draws():
    fits = [fit_retention(**drawn(10 + seed, size=60, noise=0.5)) for seed in range(150)]
    for k in range(3):
        values = torch.tensor([fit.by_time[k].value for fit in fits])
        errors = torch.tensor([fit.by_time[k].stderr for fit in fits])
        assert float(values.std()) == pytest.approx(float(errors.square().mean().sqrt()), rel=0.2)


def test_the_change_of_the_loss_is_that_of_the_mixed_drift():
    given = drawn(3, noise=0.5)
    retention = torch.tensor([-0.3, 0.2, 0.6], dtype=torch.float64)
    fit = fit_retention(**given)
    part = (given["t"] >= 0.3).long() + (given["t"] >= 0.7).long()
    mixed = given["drift"] + retention[part][:, None] * (given["anchor"] - given["drift"])
    before, after = ((b - given["target"]).square().sum(1) * given["weight"] for b in (given["drift"], mixed))
    change = fit.loss_change(retention.tolist())
    assert change.value == pytest.approx(float((after - before).mean()))
    assert change.stderr == pytest.approx(float((after - before).view(16, -1).mean(1).std()) / 4)
    # No retention that was chosen otherwise lowers the loss of these batches more.
    least = [estimate.value for estimate in fit.by_time]
    assert fit.loss_change(least).value < min(change.value, fit.loss_change(fit.constant.value).value)


def test_some_of_the_batches_are_a_fit_of_their_own():
    given = drawn(4)
    half = fit_retention(**given).batches(slice(8))
    rows = {name: given[name][: 8 * 400] for name in ("drift", "target", "anchor", "t", "weight")}
    assert half.constant == fit_retention(**{**given, **rows, "batches": 8}).constant


def test_where_the_drift_is_the_anchor_nothing_is_known():
    given = drawn(5)
    fit = fit_retention(**{**given, "drift": given["anchor"]})
    assert math.isnan(fit.constant.value)
    assert shrink(fit.constant, 3.0) == 0.0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"batches": 1}, "at least 2 batches"),
        ({"batches": 7}, "at least 2 batches"),
        ({"edges": [0.0, 0.5, 0.5, 1.0]}, "that increase"),
        ({"edges": [0.0]}, "at least 2 flow times"),
        ({"edges": [0.0, 0.9]}, "Widen them"),
    ],
)
def test_bad_input_is_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        fit_retention(**{**drawn(6, batches=2, size=50), **change})


def test_shrinking_has_the_least_error_under_its_law():
    """Of factors, Efron and Morris's is nearly the best for parameters of a normal law: and better than none."""
    generator = torch.Generator().manual_seed(0)
    truth = 0.1 * torch.randn(4000, generator=generator, dtype=torch.float64)
    seen = truth + 0.1 * torch.randn(4000, generator=generator, dtype=torch.float64)
    shrunk = torch.tensor([shrink(Estimate(value, 0.1), bound=0.0) for value in seen.tolist()])
    assert float((shrunk - truth).square().mean()) < 0.8 * float((seen - truth).square().mean())
    assert shrink(Estimate(0.3, math.nan), 2.0) == 0.0
    assert shrink(Estimate(0.0, 0.0), 2.0) == 0.0
