"""Data that choose are kept from those that judge: by content, whatever a set is called."""

import pytest
import torch
from support.evaluations import draw

from gftkit.data.samples import Samples
from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import DataError
from gftkit.selection import separation
from gftkit.selection.separation import check_separate, contained


class Given:
    """A finite set of given values."""

    def __init__(self, x, range=None):
        self.x, self.range, self.event_shape = x, range, tuple(x.shape[1:])

    def __len__(self):
        return len(self.x)

    def batch(self, indices):
        return Batch(self.x[indices])


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, 4, 4), generator=generator).float()


@pytest.mark.parametrize("chunk", [7, 4096])
def test_samples_in_both_sets_are_counted_in_any_order(monkeypatch, chunk):
    monkeypatch.setattr(separation, "CHUNK", chunk)
    mine, others = draw(30, 3, seed=0).float(), draw(50, 3, seed=1).float()
    check_separate(mine, Samples(Given(others), "data"), "others")
    mixed = torch.cat([others, mine[4:9]])[torch.randperm(55, generator=torch.Generator().manual_seed(0))]
    with pytest.raises(DataError, match="5 of 30 held-out samples are among others"):
        check_separate(mine, Samples(Given(mixed), "data"), "others")


def test_equal_images_in_other_formats_are_found():
    x = images(20, 0)
    bytes_of, shares = Samples(Given(x, (0, 255)), "a"), Samples(Given(x / 255, (0, 1)), "b")
    mine = bytes_of.at(torch.arange(20)).x1
    assert not torch.equal(mine, shares.at(torch.arange(20)).x1)  # they round differently
    with pytest.raises(DataError, match="20 of 20"):
        check_separate(mine, shares, "others")
    check_separate(mine, Samples(Given(images(20, 1), (0, 255)), "c"), "others")


def test_near_is_not_equal():
    x = draw(40, 5, seed=0)
    assert contained(x, x.flip(0)).all()
    nudged = x.clone()
    nudged[:, 2] += 1e-3
    assert not contained(x, nudged).any()
    assert contained(x, torch.cat([nudged, x[:3]])).tolist() == [True] * 3 + [False] * 37


def test_a_law_has_no_samples_to_share(registry):
    law = Samples(registry.create("dataset", "two-moons"), "data")
    check_separate(draw(40, 2, seed=0), law, "others")
