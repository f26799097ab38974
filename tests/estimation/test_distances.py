"""Energy distances of several models: against plain sums, against copies, and their paired errors over seeds."""

import itertools
import math

import pytest
import torch
from support.evaluations import draw

from gftkit.estimation import discrepancy, energy_distances
from gftkit.estimation.jackknife import Replicates

STANDARD_ERRORS = 4.0  # two-sided false-alarm rate 6e-5
SEEDS = 200


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def by_sums(x, y, leave_nearest):
    """The definition, pair by pair."""

    def among(points):
        pairs = [math.dist(a, b) for a, b in itertools.permutations(points.tolist(), 2)]
        return sum(pairs) / len(pairs)

    across = [sorted(math.dist(a, b) for b in y.tolist())[int(leave_nearest) :] for a in x.tolist()]
    return 2 * sum(map(sum, across)) / sum(map(len, across)) - among(x) - among(y)


@pytest.mark.parametrize("leave_nearest", [False, True])
def test_energy_distances_are_means_over_pairs(leave_nearest):
    x, y = [draw(9, 2, seed=0), 3 * draw(9, 2, seed=1)], draw(8, 2, seed=2)
    found = energy_distances(x, y, generator(), groups=2, leave_nearest=leave_nearest).values
    exact = torch.tensor([by_sums(of, y, leave_nearest) for of in x], dtype=torch.float64)
    assert torch.allclose(found, exact, rtol=1e-6)
    other = torch.tensor([by_sums(of, y, not leave_nearest) for of in x], dtype=torch.float64)
    assert not torch.allclose(found, other, rtol=1e-2)  # the negative control


def test_energy_distances_agree_with_the_discrepancy_of_the_negative_distance():
    x, y = draw(30, 2, seed=0), draw(40, 2, seed=1) + 0.5
    kernels = [-torch.cdist(*pair).double() for pair in ((x, x), (y, y), (x, y))]
    one, other = energy_distances([x], y, generator()), discrepancy(*kernels, generator())
    assert float(one.values) == pytest.approx(other.value, rel=1e-5)
    assert one.estimate(torch.squeeze).stderr == pytest.approx(other.stderr, rel=1e-4)


def test_copies_of_the_data_gain_nothing_where_the_nearest_datum_is_left_out():
    data = draw(30, 2, seed=0)
    spread = float(torch.cdist(data, data).sum() / (30 * 29))
    plain = float(energy_distances([data], data, generator()).values)
    honest = float(energy_distances([data], data, generator(), groups=15, leave_nearest=True).values)
    assert plain == pytest.approx(-2 * spread / 30, rel=1e-5)
    assert honest == pytest.approx(0, abs=1e-5)


def paired_scores(error):
    """(found - true)/error of the difference between two models with common noise, over seeds."""
    scores = []
    for seed in range(SEEDS):
        noise, data = draw(60, 1, seed=seed), draw(40, 1, seed=SEEDS + seed)
        distances = energy_distances([noise + 0.9, noise + 1.1], data, generator(seed))
        difference = distances.estimate(lambda values: values[1] - values[0])
        scores.append((difference.value - TRUE) / error(distances, difference))
    return torch.tensor(scores)


def shifted_normal(shift):
    """Energy distance of N(shift, 1) and N(0, 1): with X - Y ~ N(shift, 2), E|X - Y| is that of a folded normal."""
    folded = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    return 2 * folded - 4 / math.sqrt(math.pi)


TRUE = shifted_normal(1.1) - shifted_normal(0.9)


def unpaired(distances: Replicates, _difference):
    """Wrong: the errors of two independent distances."""
    return math.hypot(*(distances.estimate(lambda values, k=k: values[k]).stderr for k in (0, 1)))


def test_a_paired_difference_is_unbiased_and_has_its_standard_error():
    scores = paired_scores(lambda _distances, difference: difference.stderr)
    assert abs(scores.mean()) < STANDARD_ERRORS * scores.std() / math.sqrt(SEEDS)
    # of Student's law with 19 degrees of freedom; its kurtosis is 3.4
    assert abs(scores.square().mean() / (19 / 17) - 1) < STANDARD_ERRORS * math.sqrt(2.4 / SEEDS)


def test_an_unpaired_error_is_rejected():
    assert paired_scores(unpaired).square().mean() < 0.25


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="samples of one shape"):
        energy_distances([draw(30, 2, seed=0), draw(29, 2, seed=0)], draw(30, 2, seed=1), generator())
    with pytest.raises(ValueError, match="at least 40 data for 20 groups, got 30"):
        energy_distances([draw(30, 2, seed=0)], draw(30, 2, seed=1), generator(), leave_nearest=True)
    with pytest.raises(ValueError, match="at least 20 samples"):
        energy_distances([draw(10, 2, seed=0)], draw(30, 2, seed=1), generator())
