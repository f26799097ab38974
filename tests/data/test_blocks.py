"""The order of the data: every sample once an epoch, a function of seed and position, in stretches where they help."""

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blocked_data import SIZES, Stretched, Whole, taken
from torch.utils.data import DataLoader

from gftkit.data.blocks import Blocks
from gftkit.data.pairing import Pairs
from gftkit.data.samples import Samples, VisitOrder, permuted_indices, source_of
from gftkit.kernel.errors import PluginError
from gftkit.runtime.randomness import stream


def ordered(*blocks, seed=0, buffer=4):
    return VisitOrder(Samples(Stretched(*blocks), "data"), seed, buffer)


@settings(max_examples=50)
@given(SIZES, st.integers(1, 40), st.integers(0, 3))
def test_every_epoch_visits_every_sample_once(sizes, buffer, epoch):
    total = sum(sizes)
    seen = taken(ordered(*sizes, buffer=buffer), epoch * total, total)
    assert torch.equal(seen.sort().values, torch.arange(total))


@settings(max_examples=30)
@given(SIZES, st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 20), st.integers(0, 5))
def test_any_stretch_is_the_same_from_anywhere(sizes, buffer, first, n, before):
    """Whoever starts there, was elsewhere before, or asks sample by sample: resume keeps no state."""
    used = ordered(*sizes, buffer=buffer)
    if n:
        taken(used, before, n)
        parts = torch.cat([taken(used, first + i, 1) for i in range(n)])
        assert torch.equal(taken(ordered(*sizes, buffer=buffer), first, n), parts)
    assert torch.equal(
        taken(pickle.loads(pickle.dumps(used)), first, n + 1),
        taken(ordered(*sizes, buffer=buffer), first, n + 1),
    )


def test_the_order_depends_on_seed_and_epoch():
    total = 20 * 8
    first = taken(ordered(*[8] * 20), 0, total)
    assert not torch.equal(first, taken(ordered(*[8] * 20), total, total))
    assert not torch.equal(first, taken(ordered(*[8] * 20, seed=1), 0, total))


def test_a_reader_stays_within_few_blocks():
    """A window of 40 samples holds at most five blocks of ten; in a permutation of the whole set it would be 30."""
    order = ordered(*[10] * 100, buffer=40)
    blocks = [set((taken(order, first, 40) // 10).tolist()) for first in range(0, 1000, 40)]
    assert max(map(len, blocks)) <= 5
    assert len(set.union(*blocks)) == 100
    plain = VisitOrder(Samples(Whole(1000), "data"), 0)
    assert len(set((taken(plain, 0, 40) // 10).tolist())) > 20


def test_blocks_and_windows_are_shuffled():
    """Neither blocks nor samples come as they lie: mean displacement is a third of the range for random orders."""
    order = ordered(*[10] * 200, buffer=100)
    seen = taken(order, 0, 2000)
    place = torch.arange(2000)
    assert 0.28 < float((seen - place).abs().double().mean()) / 2000 < 0.39
    inside = seen[:100] % 10  # places within their blocks
    assert (inside.diff() == 1).float().mean() < 0.3


def test_a_window_that_holds_everything_is_a_uniform_permutation():
    """Over 480 epochs each of 6 samples comes first about 80 times, and every pair; apart, blocks would not mix."""
    epochs, mixed, apart = 480, ordered(3, 2, 1, buffer=6), ordered(3, 2, 1, buffer=1)
    starts = torch.stack([taken(mixed, 6 * epoch, 2) for epoch in range(epochs)])
    spread = 5 * math.sqrt(epochs * (1 / 6) * (5 / 6))
    assert (starts[:, 0].bincount(minlength=6) - epochs / 6).abs().max() < spread
    assert len(starts.unique(dim=0)) == 30
    assert len(torch.stack([taken(apart, 6 * epoch, 2) for epoch in range(epochs)]).unique(dim=0)) < 30


def test_a_block_larger_than_the_buffer_is_a_window():
    order = ordered(50, 3, 3, buffer=4)
    seen = taken(order, 0, 56).tolist()
    places = [seen.index(sample) for sample in range(50)]
    assert max(places) - min(places) == 49
    assert places != sorted(places)


def test_an_ordinary_set_keeps_its_order():
    """Without blocks the order is one permutation an epoch of the stream 'data': older runs resume exactly."""
    for epoch in (0, 3):
        expected = torch.randperm(30, generator=stream(5, "data", epoch))
        assert torch.equal(taken(VisitOrder(Samples(Whole(30), "data"), 5), 30 * epoch, 30), expected)
    assert torch.equal(
        permuted_indices(7, 30, stream(0, "a")),
        torch.randperm(30, generator=stream(0, "a"))[:7],
    )


def test_the_memory_is_that_of_a_window():
    """A set of 10^9 samples, 8 GB as a permutation: positions far out are known at once."""
    blocks = Blocks(torch.full((100_000,), 10_000), seed=0, shuffle_buffer=20_000)
    far = blocks.indices(7, 987_654_321, 100)
    assert len(far) == 100
    assert far.max() - far.min() < 10**9
    assert blocks._window[2].numel() <= 30_000


# Bad input


@pytest.mark.parametrize("blocks", [[3, 3], [5, 0], [6, -1], [2.5, 2.5], [[5]], []])
def test_blocks_that_do_not_add_up_are_refused(blocks):
    class Wrong(Whole):
        def __init__(self):
            super().__init__(5)
            self.blocks = blocks

    with pytest.raises(PluginError, match=r"data: wanted blocks of at least 1 sample that add up to 5, the size of"):
        VisitOrder(Samples(Wrong(), "data"), 0)


# Workers


class Steps(torch.utils.data.Dataset):
    """Step -> its pairs, as worker processes see them."""

    def __init__(self, pairs, count):
        self.pairs, self.count = pairs, count

    def __len__(self):
        return self.count

    def __getitem__(self, step):
        batch = self.pairs.at(step)
        return batch.x0, batch.x1


def pairs_of(samples, registry):
    law = Samples(registry.create("dataset", "gaussian", event_shape=samples.event_shape), "source")
    return Pairs(
        VisitOrder(samples, 0, 8),
        source_of(law),
        registry.create("coupling", "independent"),
        4,
        8,
        0,
        within_labels=False,
    )


def test_workers_make_the_same_pairs(registry):
    pairs = pairs_of(Samples(Stretched(5, 6, 7, 8), "data"), registry)
    pairs.at(3)  # what was kept before the fork changes nothing
    made = list(DataLoader(Steps(pairs, 8), batch_size=None, num_workers=2, multiprocessing_context="fork"))
    fresh = pairs_of(Samples(Stretched(5, 6, 7, 8), "data"), registry)
    for step, (x0, x1) in enumerate(made):
        assert torch.equal(x0, fresh.at(step).x0)
        assert torch.equal(x1, fresh.at(step).x1)
