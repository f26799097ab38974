"""Pairs made ahead by worker processes: the same ones, in the same order, and errors as they are."""

import pytest
import torch

import gftkit
from gftkit.data.pairing import Pairs
from gftkit.data.prefetch import prefetch
from gftkit.data.samples import Samples, VisitOrder
from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import DataError

STEPS = 7


def gaussian(n, generator):
    return torch.randn(n, 2, generator=generator)


def pairs_of(registry, data=None, pairing_batch=8):
    data = data or registry.create("dataset", "gaussian-mixture", count=20)
    coupling = registry.create("coupling", "optimal-transport")
    return Pairs(VisitOrder(Samples(data, "data"), 1), gaussian, coupling, 4, pairing_batch, 2, within_labels=False)


def same(one, other):
    return torch.equal(one.x0, other.x0) and torch.equal(one.x1, other.x1)


@pytest.mark.parametrize(("workers", "first", "pairing_batch"), [(1, 0, 4), (2, 3, 8)])
def test_workers_make_the_pairs_that_the_loop_would(registry, workers, first, pairing_batch):
    pairs = pairs_of(registry, pairing_batch=pairing_batch)
    wanted = [pairs.at(step) for step in range(first, STEPS)]
    before = torch.get_rng_state()
    with prefetch(pairs_of(registry, pairing_batch=pairing_batch), first, STEPS, workers, pin=False) as made:
        found = [made.at(step) for step in range(first, STEPS)]
    assert all(same(*both) for both in zip(wanted, found, strict=True))
    assert not same(wanted[0], found[1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, None])
def test_without_workers_the_loop_makes_its_pairs(registry, workers):
    pairs = pairs_of(registry)
    with prefetch(pairs, 0, STEPS, workers, pin=False) as made:
        assert made is pairs


class Broken:
    """A data set that holds a NaN at one place."""

    event_shape, range = (2,), None

    def __len__(self):
        return 20

    def batch(self, indices):
        x = torch.zeros(len(indices), 2)
        x[indices == 13] = float("nan")
        return Batch(x)


def test_an_error_of_the_data_is_the_users_not_a_workers(registry):
    def read(made):
        for step in range(STEPS):
            made.at(step)

    with prefetch(pairs_of(registry, Broken()), 0, STEPS, 1, pin=False) as made, pytest.raises(DataError) as caught:
        read(made)
    assert str(caught.value) == "data: sample 13 contains NaN or infinity. Remove or correct it."


def test_a_run_is_the_same_with_workers(registry, tmp_path):
    config = {
        "drift": {"name": "mlp", "width": 8, "depth": 2},
        "data": {"name": "two-moons"},
        "coupling": {"name": "optimal-transport"},
        "train": {"steps": 6, "batch_size": 8, "pairing_batch": 16, "checkpoint_every": 4},
        "evaluate": {"every": 6, "count": 8, "metrics": []},
    }
    runs = []
    for workers in (0, 1):
        config["train"]["workers"] = workers
        runs.append(gftkit.pretrain(config, tmp_path / str(workers), registry=registry).weights("raw")[0])
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


# Several processes


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batch(registry, count):
    whole = pairs_of(registry)
    parts = [whole.shared((index, count), "global") for index in range(count)]
    for step in range(5):
        batch = whole.at(step)
        assert torch.equal(batch.x1, torch.cat([part.at(step).x1 for part in parts]))
        assert torch.equal(batch.x0, torch.cat([part.at(step).x0 for part in parts]))


def test_processes_that_pair_by_themselves_see_every_sample_once_an_epoch(registry):
    """Each reads its own part; together they visit the data as one process would, in sets of pairing_batch."""
    whole = pairs_of(registry)
    parts = [whole.shared((index, 2), "process") for index in range(2)]
    for number in range(3):
        steps = (2 * number, 2 * number + 1)
        together = torch.cat([part.at(step).x1 for part in parts for step in steps])
        assert torch.equal(together, torch.cat([whole.at(step).x1 for step in steps]))
    apart = [part.at(0) for part in parts]
    assert all(len(part) == 2 for part in apart)
    assert not same(*apart)
    assert not torch.equal(apart[0].x0, parts[0].shared((0, 2), "global").at(0).x0)
