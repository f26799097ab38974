"""Pairs of a transport map: one map for each label, a function of seed and step, refused where it has no place."""

import pytest
import torch

import gftkit
from gftkit.data.pairing import Pairs
from gftkit.data.prefetch import prefetch
from gftkit.data.samples import Samples, VisitOrder
from gftkit.data.transport import BLOCK, PROBE, Transport
from gftkit.kernel.contracts import Batch, TransportMap
from gftkit.kernel.errors import ConfigError, DataError, PluginError

REGISTRY = gftkit.load()


class Grid:
    """Samples (j, -j), labelled by what is left of j / 3; it counts what is read."""

    event_shape, range = (2,), None

    def __init__(self, n, *, labels=True, x0=False):
        self.n, self.x0, self.reads = n, x0, []
        self.labels = torch.arange(n) % 3 if labels else None

    def __len__(self):
        return self.n

    def batch(self, indices):
        self.reads.append(len(indices))
        x1 = indices.float()[:, None] * torch.tensor([1.0, -1.0])
        return Batch(x1, None if self.labels is None else self.labels[indices], x1 if self.x0 else None)


class ByFirst:
    """The datum whose place is |x0|'s first digits, and a number for users."""

    memory = 1.0

    def fit(self, x1, source, generator, show):
        show(1, "")
        return {"shift": torch.randint(5, (1,), generator=generator), "size": torch.tensor(float(len(x1)))}

    def assign(self, x0, x1, fitted, generator):
        return ((x0[:, 0].abs() * 1000).long() + fitted["shift"]) % len(x1)


def source(n, generator):
    return torch.randn(n, 2, generator=generator)


def ready(transport):
    transport.read()
    transport.load(transport.fit("cpu", lambda draws, text: None), "cpu")
    return transport


def pairs_of(data, coupling=None, batch_size=8, pairing_batch=24, seed=0, **options):
    order = VisitOrder(Samples(data, "data"), seed)
    pairs = Pairs(order, source, coupling or ByFirst(), batch_size, pairing_batch, seed, **options)
    ready(pairs.transport)
    return pairs


def same(one, other):
    return torch.equal(one.x0, other.x0) and torch.equal(one.x1, other.x1)


def test_steps_are_a_function_of_seed_and_step():
    one, other = (pairs_of(Grid(30), within_labels=False) for _ in range(2))
    in_order = [one.at(step) for step in range(7)]
    assert all(same(other.at(step), in_order[step]) for step in (5, 0, 3))
    assert not same(pairs_of(Grid(30), within_labels=False, seed=1).at(0), in_order[0])
    assert not same(in_order[0], in_order[1])


def test_x0_chooses_the_datum_of_the_label_that_the_order_gives():
    data = Grid(30)
    pairs = pairs_of(data, within_labels=True)
    batches = [pairs.at(step) for step in range(15)]
    for batch in batches:
        assert torch.equal(batch.x1[:, 0].long() % 3, batch.label)
    labels = torch.cat([batch.label for batch in batches])  # 120: four epochs
    assert torch.bincount(labels).tolist() == [40, 40, 40]
    wanted = pairs.order.take(0, 8).label
    assert torch.equal(batches[0].label, wanted)
    part = pairs.transport.coupling.assign(batches[0].x0, torch.empty(10, 2), pairs.transport._fitted[1], None)
    of_one = batches[0].label == 1
    assert torch.equal(batches[0].x1[of_one][:, 0].long(), 3 * part[of_one] + 1)


def test_without_labels_of_the_drift_data_may_have_labels():
    pairs = pairs_of(Grid(30), within_labels=False)
    batch = pairs.at(0)
    assert torch.equal(batch.x1[:, 0].long() % 3, batch.label)
    assert pairs_of(Grid(30, labels=False), within_labels=True).at(0).label is None


def test_processes_share_a_global_set_or_make_their_own():
    whole = pairs_of(Grid(30), within_labels=True)
    halves = [whole.shared((index, 2), "global") for index in (0, 1)]
    assert all(half.transport is whole.transport for half in halves)
    for step in range(4):
        parts = [half.at(step) for half in halves]
        assert torch.equal(torch.cat([part.x0 for part in parts]), whole.at(step).x0)
        assert torch.equal(torch.cat([part.x1 for part in parts]), whole.at(step).x1)
    own = [whole.shared((index, 2), "process").at(0) for index in (0, 1)]
    assert not torch.equal(own[0].x0, own[1].x0)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_make_the_pairs_that_the_loop_would(workers):
    pairs = pairs_of(Grid(30), within_labels=True, pairing_batch=8)
    wanted = [pairs.at(step) for step in range(5)]
    with prefetch(pairs_of(Grid(30), within_labels=True, pairing_batch=8), 0, 5, workers, pin=False) as made:
        assert all(same(made.at(step), wanted[step]) for step in range(5))


def test_a_gpu_makes_its_pairs_without_workers():
    pairs = pairs_of(Grid(30), within_labels=False)
    with prefetch(pairs, 0, 5, 2, pin=True) as made:
        assert made is pairs


def test_data_are_read_once_in_blocks():
    data = Grid(2 * BLOCK + 5)
    pairs = pairs_of(data, within_labels=True)
    assert data.reads == [BLOCK, BLOCK, 5, PROBE]
    pairs.at(3)
    assert data.reads == [BLOCK, BLOCK, 5, PROBE]


def test_draws_have_the_shares_of_labels():
    transport = pairs_of(Grid(30), within_labels=True).transport
    batch = transport.draw(90, torch.Generator().manual_seed(0))
    assert torch.bincount(batch.label).tolist() == [30, 30, 30]
    assert torch.equal(batch.x1[:, 0].long() % 3, batch.label)


def test_the_digest_is_that_of_all_data_and_the_hash_that_of_the_fit():
    def fitted(n, seed=0, **options):
        return ready(Transport(ByFirst(), Samples(Grid(n, **options), "data"), source, seed, within_labels=True))

    one = fitted(30)
    assert one.digest == fitted(30, 1).digest
    assert one.digest not in (fitted(31).digest, fitted(30, labels=False).digest)
    assert one.hash == fitted(30).hash != fitted(30, 5).hash
    assert one.numbers == {"0": {"size": 10.0}, "1": {"size": 10.0}, "2": {"size": 10.0}}


def transport_of(data, coupling=None):
    return Transport(coupling or ByFirst(), Samples(data, "data"), source, 0, within_labels=False)


def test_laws_and_large_sets_are_refused_before_anything_is_read():
    law = REGISTRY.create("dataset", "two-moons")
    with pytest.raises(ConfigError, match="samples of a finite set, got a law to draw from"):
        transport_of(law)
    data, coupling = Grid(10**6), ByFirst()
    coupling.memory = 0.007
    with pytest.raises(ConfigError, match=r"1,000,000 of shape \(2,\) take 0\.008 GB, and coupling\.memory is 0\.007"):
        transport_of(data, coupling)
    assert data.reads == []


def test_partners_are_refused():
    with pytest.raises(DataError, match=r"come with x0.* and the coupling ByFirst would choose others"):
        transport_of(Grid(10, x0=True)).read()


def test_augmented_data_are_refused():
    data = Grid(10)
    plain = data.batch
    data.batch = lambda indices: Batch(plain(indices).x1 + torch.rand(2), data.labels[indices])
    with pytest.raises(DataError, match=r"augmented.* and the coupling ByFirst maps the source to fixed ones"):
        transport_of(data).read()


@pytest.mark.parametrize(
    "index",
    [torch.arange(4), torch.full((5,), 10), torch.full((5,), -1), torch.zeros(5), torch.zeros(5, 1).long()],
)
def test_indices_that_are_not_of_data_are_refused(index):
    coupling = ByFirst()
    coupling.assign = lambda x0, x1, fitted, generator: index
    transport = ready(transport_of(Grid(10), coupling))
    with pytest.raises(PluginError, match="wanted 5 indices of int64 from 0 to 9"):
        transport.pair(torch.zeros(5, 2), torch.Generator())


def test_both_contracts_are_told_apart():
    maps = [name for name in REGISTRY.names("coupling") if isinstance(REGISTRY.create("coupling", name), TransportMap)]
    assert maps == ["semidiscrete"]
