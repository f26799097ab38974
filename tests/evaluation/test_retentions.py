"""The retention that samples want, on laws where the best one is known; and what must not pass for it."""

import pytest
import torch

from gftkit.evaluation import preferred_retention
from gftkit.evaluation.retentions import ERRORS, RETENTIONS
from gftkit.kernel.contracts import Estimate
from gftkit.theory import shrink

MEAN = torch.tensor([4.0, 0.0, 0.0])


def blends(lag, seed, count=400):
    """Samples of blends of a drift that lags by ``lag``, from N(0, I) to N(MEAN, I), with an anchor that stays.

    The target drift is MEAN, the anchor 0: a blend's samples are x0 + (1 - c - r (1 - c)) MEAN, exactly.
    """
    x0 = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))

    def samples_at(profile):
        t = (torch.arange(100) + 0.5) / 100
        kept = float((lag + profile.retention(t) * (1 - lag)).mean())
        return x0 + (1 - kept) * MEAN

    return samples_at


def data(seed, count=400):
    return MEAN + torch.randn(count, 3, generator=torch.Generator().manual_seed(1000 + seed))


def preferred(lag, seed):
    return preferred_retention(blends(lag, seed), data(seed), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lag", [0.15, 0.2, 0.25])
def test_a_lag_is_corrected_by_its_own_retention(lag):
    """T20: r* = -c/(1 - c). The sampling error of 400 data is in the standard error."""
    found = [preferred(lag, seed) for seed in range(8)]
    scores = [(one.minimum.value + lag / (1 - lag)) / one.minimum.stderr for one in found]
    assert max(map(abs, scores)) < 4.5
    assert all(one.early < 0 for one in found)
    wrong = [(one.minimum.value - lag / (1 - lag)) / one.minimum.stderr for one in found]
    assert min(map(abs, wrong)) > 4.5  # the wrong sign is seen


def test_without_a_lag_the_retention_stays_zero():
    """At most one in ten of runs at their target is moved, and never far."""
    found = [preferred(0.0, seed) for seed in range(40)]
    moved = [one.early for one in found if one.early]
    assert len(moved) <= 4
    assert all(abs(early) < 0.15 for early in moved)
    assert all(one.late == 0 for one in found if one.early == 0)


def test_a_run_beyond_its_target_is_called_back():
    found = [preferred(-0.1, seed) for seed in range(8)]
    assert sum(one.early > 0 for one in found) >= 6
    assert all(one.late == one.early for one in found if one.early > 0)


def test_the_late_retention_rises_and_keeps_half_of_the_gain():
    for seed in range(4):
        found = preferred(0.2, seed)
        assert found.late > found.early
        distances = dict(zip(RETENTIONS, found.distances, strict=True))
        # Here only the mean over flow time counts, so the end's distance can be read off the measured parabola.
        mean = found.cut * found.early + (1 - found.cut) * found.late
        assert found.minimum.value - 0.02 < mean < 0
        assert found.gain.value > ERRORS * found.gain.stderr
        assert distances[-0.2].value < distances[0.0].value


def test_a_minimum_within_its_error_is_zero():
    assert shrink(Estimate(-0.1, 0.06), ERRORS) == 0
    assert shrink(Estimate(0.1, 0.1 / ERRORS), ERRORS) == 0
    assert shrink(Estimate(-0.2, 0.05), ERRORS) == pytest.approx(-0.2 * (1 - 1 / 16))
