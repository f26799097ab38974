"""Pairs: every sample once a permutation, labels stay with their data, each step a function of seed and step."""

import pytest
import torch

from gftkit.data.pairing import Pairs, pair
from gftkit.data.samples import Samples, VisitOrder, permuted_indices
from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import DataError, PluginError
from gftkit.runtime.randomness import stream


class Numbers:
    """Samples 0, 1, 2, ... in the plane, with their parity as label."""

    event_shape, range = (2,), None

    def __init__(self, n: int) -> None:
        self.n = n
        self.labels = torch.arange(n) % 2

    def __len__(self) -> int:
        return self.n

    def batch(self, indices):
        return Batch(indices.float()[:, None].repeat(1, 2), indices % 2)


class WithReplacement:
    def pair(self, x0, x1, generator, label=None):
        return torch.randint(len(x0), (len(x0),), generator=generator)


def source(n, generator):
    return torch.randn(n, 2, generator=generator)


def pairs_of(n, coupling, batch_size=8, pairing_batch=24, within_labels=False, seed=0):
    order = VisitOrder(Samples(Numbers(n), "data"), seed)
    return Pairs(order, source, coupling, batch_size, pairing_batch, seed, within_labels=within_labels)


@pytest.mark.parametrize("n", [5, 24, 100])
def test_consecutive_permutations_visit_every_sample_equally(registry, n):
    pairs = pairs_of(n, registry.create("coupling", "independent"))
    seen = torch.cat([pairs.at(step).x1[:, 0] for step in range(50)]).long()
    counts = torch.bincount(seen, minlength=n)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("coupling", ["independent", "optimal-transport"])
def test_steps_are_a_function_of_seed_and_step(registry, coupling):
    chosen = registry.create("coupling", coupling)
    one, other = pairs_of(30, chosen), pairs_of(30, chosen)
    in_order = [one.at(step) for step in range(7)]
    for step in (5, 0, 3):
        found = other.at(step)
        assert torch.equal(found.x0, in_order[step].x0)
        assert torch.equal(found.x1, in_order[step].x1)
    assert not torch.equal(pairs_of(30, chosen, seed=1).at(0).x0, in_order[0].x0)


def test_labels_stay_with_their_data(registry):
    pairs = pairs_of(30, registry.create("coupling", "optimal-transport"))
    for step in range(6):
        batch = pairs.at(step)
        assert torch.equal(batch.label, batch.x1[:, 0].long() % 2)


def test_pairing_is_over_the_whole_set(registry):
    """OT over 24 costs less than over the same pairs in three batches of 8."""
    chosen = registry.create("coupling", "optimal-transport")
    wide, narrow = pairs_of(24, chosen), pairs_of(24, chosen, pairing_batch=8)

    def cost(pairs):
        return sum(float((b.x0 - b.x1).square().sum()) for b in map(pairs.at, range(3)))

    wide_x0 = torch.cat([wide.at(step).x0 for step in range(3)]).sort(0).values
    drawn = source(24, stream(0, "source", 0)).sort(0).values
    assert torch.equal(wide_x0, drawn)  # a permutation: every source sample is kept
    assert cost(wide) < cost(narrow)


def test_a_coupling_with_replacement_is_refused():
    with pytest.raises(PluginError, match="permutation of 24"):
        pairs_of(30, WithReplacement()).at(0)


def test_within_labels_each_label_is_paired_by_itself(registry):
    """Each label gets source samples chosen without looking at the data: the law of x0 given the label stays p0."""
    chosen = registry.create("coupling", "optimal-transport")
    n = 600
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(n) % 2
    x0, x1 = (
        torch.randn(n, 1, generator=generator),
        4.0 * label[:, None] - 2 + 0.1 * torch.randn(n, 1, generator=generator),
    )
    within = x0[pair(chosen, x0, x1, generator, label, within_labels=True)]
    across = x0[pair(chosen, x0, x1, generator, label)]
    error = 4 / (n / 2) ** 0.5
    assert abs(float(within[label == 1].mean())) < error
    assert float(across[label == 1].mean()) > 3 * error  # paired across labels, x0 depends on the label


def test_pairs_that_come_with_the_data_are_kept(registry):
    class Paired(Numbers):
        def batch(self, indices):
            found = super().batch(indices)
            return Batch(found.x1, found.label, -found.x1)

    order = VisitOrder(Samples(Paired(30), "data"), 0)
    batch = Pairs(order, source, registry.create("coupling", "optimal-transport"), 8, 8, 0, within_labels=False).at(2)
    assert torch.equal(batch.x0, -batch.x1)


def test_data_that_break_their_word_are_refused():
    class Broken(Numbers):
        def batch(self, indices):
            x1 = torch.zeros(len(indices), 2)
            x1[indices == 7] = float("nan")
            return Batch(x1)

    with pytest.raises(DataError, match="sample 7 contains NaN"):
        Samples(Broken(10), "data").at(torch.arange(10))

    class Misshapen(Numbers):
        def batch(self, indices):
            return Batch(torch.zeros(len(indices), 3))

    with pytest.raises(DataError, match=r"wanted x1 of shape \(4, 2\)"):
        Samples(Misshapen(10), "data").at(torch.arange(4))
    with pytest.raises(DataError, match="empty"):
        Samples(Numbers(0), "data")
    with pytest.raises(DataError, match=r"wanted samples of shape \(3,\)"):
        Samples(Numbers(4), "evaluate.data", (3,))


def test_permuted_indices_may_exceed_the_set():
    counts = torch.bincount(permuted_indices(23, 5, torch.Generator().manual_seed(0)), minlength=5)
    assert counts.min() >= 4
    assert counts.sum() == 23
