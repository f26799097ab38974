"""Parts of a data set for cross-fitting: disjoint, complete, and refused where there are none."""

import pytest
import torch
from support.blocked_data import Stretched

from gftkit.data.blocks import blocks_of
from gftkit.kernel.errors import ConfigError
from gftkit_plugins.datasets.derived.fold import Fold

DATA = {"name": "gaussian-mixture", "count": 23}


def test_the_parts_make_up_the_set(registry):
    whole = registry.create("dataset", "gaussian-mixture", count=23).batch(torch.arange(23))
    seen = []
    for fold in range(4):
        part, rest = (
            registry.create("dataset", "fold", data=DATA, fold=fold, folds=4, part=part) for part in ("fold", "rest")
        )
        assert len(part) in (5, 6)
        assert sorted([*part.indices.tolist(), *rest.indices.tolist()]) == [*range(23)]
        assert torch.equal(part.batch(torch.arange(len(part))).x1, whole.x1[part.indices])
        assert torch.equal(part.labels, whole.label[part.indices])
        seen += part.indices.tolist()
    assert sorted(seen) == [*range(23)]
    assert seen != [*range(23)]  # in random order


def test_the_rest_is_the_default_and_blocks_are_kept(registry):
    assert len(registry.create("dataset", "fold", data=DATA, fold=0, folds=23)) == 22
    rest = Fold(Stretched(5, 5, 5), fold=1, folds=3)
    assert int(blocks_of(rest).sum()) == len(rest) == 10
    assert torch.equal(rest.indices, rest.indices.sort().values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fold": 4, "folds": 4}, "fold from 0 to 3"),
        ({"fold": 0, "folds": 24}, "at most as many folds as the 23 samples"),
        ({"fold": 0, "folds": 1}, "folds"),
        ({"fold": 0, "folds": 2, "data": {"name": "gaussian-mixture"}}, "wanted a finite set"),
        ({"fold": 0, "folds": 2, "part": "half"}, "part"),
    ],
)
def test_parts_that_are_not_there_are_refused(registry, options, message):
    with pytest.raises(ConfigError, match=message):
        registry.create("dataset", "fold", **{"data": DATA, **options})
