"""Subsets of a data set that lies in blocks keep the blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blocked_data import SIZES, Stretched, Whole, taken

from gftkit.data.blocks import blocks_of
from gftkit.data.samples import Samples, VisitOrder
from gftkit.data.subset import Subset, select_subset


@settings(max_examples=50)
@given(SIZES, st.data())
def test_a_subset_of_a_blocked_set_stays_blocked(sizes, data):
    chosen = data.draw(st.sets(st.integers(0, sum(sizes) - 1), min_size=1).map(sorted))
    part = Subset(Stretched(*sizes), torch.tensor(chosen))
    block = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    expected = [int((block[chosen] == k).sum()) for k in range(len(sizes))]
    assert part.blocks.tolist() == [count for count in expected if count]
    assert blocks_of(part).sum() == len(part)


@pytest.mark.parametrize("options", [{"split": "train"}, {"count": 30, "seed": 2}, {"split": "test", "count": 9}])
def test_the_options_of_a_subset_keep_blocks(options):
    part = select_subset(Stretched(*[10] * 10), **options)
    assert torch.equal(part.indices, part.indices.sort().values)
    owner = torch.repeat_interleave(torch.arange(len(part.blocks)), part.blocks)
    assert all(len((part.indices[owner == k] // 10).unique()) == 1 for k in range(len(part.blocks)))
    assert set(part.indices.tolist()) == set(select_subset(Whole(100), **options).indices.tolist())
    seen = taken(VisitOrder(Samples(part, "data"), 0, 20), 0, len(part))
    assert torch.equal(seen.sort().values, part.indices)
