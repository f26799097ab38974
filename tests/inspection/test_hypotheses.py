"""Measurements of the convention doctor: where a drift points, baselines, and evaluations that hypotheses share."""

import pytest
import torch
from support import oracles
from support.inspections import PATH, REGISTRY, TRUTH, Told, look

import gftkit
from gftkit.inspection import hypotheses as trial


def test_the_data_that_a_drift_points_at():
    for name, options in (("linear", {}), ("trigonometric", {}), ("affine", {"alpha": "t**2", "sigma": "1 - t"})):
        path = REGISTRY.build("path", {"name": name, **options})
        t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
        x0, x1 = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x, b = gftkit.theory.flow.sample(path, t, x0, x1, None), gftkit.theory.flow.drift(path, t, x0, x1, None)
        torch.testing.assert_close(trial.denoised(path, t, x, b), x1, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(trial.denoised(path, t, x, -b), x1, atol=0.1)


def test_the_linear_denoiser_is_the_best_for_isotropic_data():
    """Against the closed form; and no worse than any other baseline."""
    truth = oracles.Gaussian(PATH, *oracles.law(0, normal=True), TRUTH.mean1, 0.5 * torch.eye(3).double())
    found = look(Told(oracles.Oracle(truth)), truth, count=20_000)
    linear = found.baselines["linear"]
    assert found.best.score == pytest.approx(linear.value, rel=0.02)
    assert linear.value == min(value.value for value in found.baselines.values())
    low, high = trial.TIMES
    t = torch.linspace(low, high, 1001, dtype=torch.float64)
    exact = float((0.5 * (1 - t) ** 2 / ((1 - t) ** 2 + 0.5 * t**2)).mean())
    assert linear.value == pytest.approx(exact, abs=5 * linear.stderr + 0.01)


def test_a_network_is_asked_once_for_what_hypotheses_share():
    class Counting(Told):
        asked = 0

        def forward(self, t, x):
            Counting.asked += 1
            return self.answer(t, x)

    look(Counting(oracles.Oracle(TRUTH)), TRUTH, fixed={"call": "t, x", "time": "forward", "time_scale": 1.0})
    # four predictions with two signs, trained and not: two questions, of 4 and 28 batches; the probe; 8 to merge;
    # and three other times
    assert Counting.asked <= 2 * 2 + 1 + 8 + 3
