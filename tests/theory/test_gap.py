"""T, G and R: unbiased at a Gaussian's known drifts, with errors that know of dependent pairs; and their slips."""

import math
from dataclasses import replace

import pytest
import torch

from gftkit.theory import flow
from gftkit.theory.gap import Statistics, mean_estimate, ratio_estimate, root_estimate, statistics, summary
from gftkit.theory.objective import blend
from gftkit_verification.oracles.gaussian import GaussianFlow

BOUND = 5.0
"""Standard errors; a true statement exceeds it in 3e-4 of the tests (15 degrees of freedom)."""

BETA = 0.7


def gaussian(generator, d=3):
    """Independent normal laws, neither centred nor commuting: its target drift and a function that draws pairs."""
    root0, root1 = (torch.randn(d, d, generator=generator, dtype=torch.float64) / 2 + torch.eye(d) for _ in range(2))
    m0, m1 = torch.randn(2, d, generator=generator, dtype=torch.float64)
    path = Linear()
    known = GaussianFlow(m0, root0 @ root0.T, m1, root1 @ root1.T)

    def draw(n):
        x0, x1 = (
            m + torch.randn(n, d, generator=generator, dtype=torch.float64) @ r.T for m, r in ((m0, root0), (m1, root1))
        )
        t = torch.rand(n, generator=generator, dtype=torch.float64)
        return t, flow.sample(path, t, x0, x1, None), flow.drift(path, t, x0, x1, None)

    return known, draw


class Linear:
    """The linear path."""

    def coefficients(self, t):
        return 1 - t, t, torch.zeros_like(t)


def anchor_of(t, x):
    """Some other drift."""
    return 0.3 * x + torch.sin(t)[:, None]


def measured(drift, temperature=BETA, batches=16, n=200, target=None, seed=0, beta=None):
    """The summary of a drift, given as a function of the target flow's drift and the anchor's."""
    known, draw = gaussian(torch.Generator().manual_seed(seed))
    found, squares = [], []
    for _ in range(batches):
        t, x, y = draw(n)
        exact, anchor = known.velocity(t, x), anchor_of(t, x)
        b = drift(exact, anchor)
        found.append(statistics(b, y if target is None else target(exact, y), anchor, beta or temperature))
        squares.append((anchor - exact).square().sum(1).mean())
    return summary(found), float(torch.stack(squares).mean())


def score(estimate, expected=0.0):
    return (estimate.value - expected) / estimate.stderr


def optimum(exact, anchor):
    return blend(exact, anchor, BETA)


def test_at_the_optimum_t_is_zero_and_both_estimates_are_the_gap():
    for seed in range(4):
        found, square = measured(optimum, seed=seed)
        assert abs(score(found.t)) < BOUND
        assert abs(score(found.by_loss, square)) < BOUND
        assert math.isclose(found.by_distance.value, square, rel_tol=1e-12)  # no label noise is in it
        assert abs(score(found.ratio, 1)) < BOUND
        assert abs(score(found.reached, 1)) < BOUND
        assert abs(score(found.p, (1 - BETA / (1 + BETA)) * square)) < BOUND


@pytest.mark.parametrize("s", [0.3, 0.8, 1.3])
def test_the_gap_on_the_way_to_the_optimum(s):
    rho = BETA / (1 + BETA)
    found, square = measured(lambda exact, anchor: anchor + s * (optimum(exact, anchor) - anchor), n=2000)
    assert abs(score(found.t, s * (s - 1) * (1 - rho) ** 2 * square)) < BOUND
    assert abs(score(found.reached, s)) < BOUND
    assert abs(score(found.ratio, s * (1 + rho) / (2 - s * (1 - rho)))) < BOUND
    assert abs(score(found.t)) > 2 * BOUND  # and it is seen that b is not at its optimum
    assert math.copysign(1, found.t.value) == math.copysign(1, s - 1)


def test_noise_raises_t_and_not_the_way_towards_the_target():
    generator = torch.Generator().manual_seed(3)

    def noisy(exact, anchor):
        return optimum(exact, anchor) + torch.randn(exact.shape, generator=generator, dtype=torch.float64)

    found, square = measured(noisy, n=2000)
    assert abs(score(found.t, 3.0)) < BOUND  # E|noise|^2
    assert score(found.t) > 2 * BOUND
    assert abs(score(found.p, (1 - BETA / (1 + BETA)) * square)) < BOUND


def test_t_is_the_difference_of_the_estimates():
    rho = BETA / (1 + BETA)
    found, _ = measured(lambda exact, anchor: 0.4 * exact + anchor.cos())
    assert math.isclose(
        found.t.value,
        (1 - rho) ** 2 * (1 + rho) / 2 * (found.by_distance.value - found.by_loss.value),
        rel_tol=1e-10,
    )
    assert math.isclose(found.reached.value, 1 + found.t.value / ((1 - rho) * found.p.value), rel_tol=1e-10)


@pytest.mark.parametrize(
    "slip",
    [
        {"beta": BETA / (1 + BETA)},  # rho taken for beta
        {"target": lambda exact, y: y + 0.2},  # pairs of another target
        {"drift": lambda exact, anchor: optimum(exact, anchor) + 0.1 * (anchor - exact)},  # the EMA's lag
        {"drift": lambda exact, anchor: exact},  # the target drift itself: rho is 0
    ],
    ids=["rho", "target", "ema", "retention"],
)
def test_a_slip_in_the_gap_statistics_is_seen(slip):
    found, _ = measured(**{"drift": optimum, "n": 2000, **slip})
    assert abs(score(found.t)) > 2 * BOUND


def test_weights_multiply_every_product():
    generator = torch.Generator().manual_seed(0)
    b, y, anchor = torch.randn(3, 6, 2, generator=generator, dtype=torch.float64)
    weight = torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0, 2.0], dtype=torch.float64)
    rows = [2, 3, 4, 4, 5, 5]
    kept = statistics(b[rows], y[rows], anchor[rows], BETA)
    assert torch.allclose(torch.tensor(statistics(b, y, anchor, BETA, weight)), torch.tensor(kept), atol=1e-12)


def test_errors_are_over_batches():
    """Pairs that share what is random in a batch: the true error is that of batches, and a naive one far too small."""
    generator = torch.Generator().manual_seed(1)
    batches, n, trials = 16, 64, 300
    shared = torch.randn(trials, batches, 1, generator=generator, dtype=torch.float64)
    own = torch.randn(trials, batches, n, generator=generator, dtype=torch.float64)
    pairs = shared + own
    found = [mean_estimate(trial.mean(1)) for trial in pairs]
    scores = torch.tensor([score(estimate) for estimate in found])
    assert 0.9 < float(scores.std()) < 1.25  # Student's t with 15 degrees: 1.07
    naive = pairs.flatten(1).mean(1) / (pairs.flatten(1).std(1) / math.sqrt(batches * n))
    assert float(naive.std()) > 3


def test_under_optimal_transport_the_naive_error_is_too_small(registry):
    """Conditional drifts x1 - x0 of pairs by minibatch-optimal transport are dependent (theory, section 5)."""
    generator = torch.Generator().manual_seed(2)
    coupling = registry.create("coupling", "optimal-transport")
    targets = torch.tensor([[-1.0], [1.0]]).repeat(16, 1)
    batches = []
    for _ in range(400):
        x0 = torch.randn(32, 1, generator=generator)
        batches.append(targets - x0[coupling.pair(x0, targets, generator)])
    drifts = torch.stack(batches)[..., 0]
    naive, true = float(drifts.std(1).mean()) / math.sqrt(32), float(drifts.mean(1).std())
    assert naive < 0.75 * true


def test_ratios_of_the_gap_without_a_value_are_nan():
    with pytest.raises(ValueError, match="at least 2"):
        summary([Statistics(*[0.0] * 6)])
    still = summary([Statistics(*[0.0] * 6)] * 3)
    assert still.t.value == still.t.stderr == still.by_loss.value == 0
    assert math.isnan(still.ratio.value)
    assert math.isnan(still.reached.value)
    away = summary([Statistics(t, -3.0, 1.0, 4.0, -4.0, -0.5) for t in (2.0, 2.1)])
    assert math.isnan(away.reached.value)
    assert root_estimate(replace(away.g, value=-1.0)).value == 0
    assert root_estimate(replace(away.g, value=4.0, stderr=0.4)).stderr == pytest.approx(0.1)


def test_the_error_of_a_ratio():
    generator = torch.Generator().manual_seed(4)
    below = 2 + 0.1 * torch.randn(2000, 16, generator=generator, dtype=torch.float64)
    above = 3 * below + 0.3 * torch.randn(2000, 16, generator=generator, dtype=torch.float64)
    found = [ratio_estimate(a, b) for a, b in zip(above, below, strict=True)]
    values = torch.tensor([estimate.value for estimate in found])
    errors = torch.tensor([estimate.stderr for estimate in found])
    assert float(values.mean()) == pytest.approx(3, abs=0.01)
    assert float(values.std()) == pytest.approx(float(errors.square().mean().sqrt()), rel=0.08)
