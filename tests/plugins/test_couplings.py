"""Every registered coupling keeps its contract; broken ones don't pass, and the kernel refuses them."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import gftkit
from gftkit.data.pairing import pair
from gftkit.kernel.errors import PluginError
from gftkit_plugins.couplings import _assignment

REGISTRY = gftkit.load()
MAPS = ("semidiscrete",)
"""Couplings of the other contract, whose tests are in test_semidiscrete.py."""


class Broken:
    """An object with these members."""

    def __init__(self, **members):
        vars(self).update(members)


def cost(x0, x1, order):
    return float((x0.flatten(1)[order] - x1.flatten(1)).square().sum())


def check_coupling(coupling, x0, x1, seed):
    """A permutation, the same for the same generator, whatever else is random; what it is given stays as it was."""
    before = x0.clone(), x1.clone()
    label = torch.arange(len(x0)) % 2
    orders = []
    for noise in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(noise)
            orders.append(coupling.pair(x0, x1, torch.Generator().manual_seed(seed), label))
    assert orders[0].shape == (len(x0),), "an order is (n,)"
    assert orders[0].sort().values.tolist() == list(range(len(x0))), "an order is a permutation"
    assert torch.equal(*orders), "an order is a function of the generator"
    assert torch.equal(x0, before[0]), "a coupling changes nothing"
    assert torch.equal(x1, before[1]), "a coupling changes nothing"


def check_optimal(coupling, x0, x1):
    """The cost is the least of all permutations'."""
    order = coupling.pair(x0, x1, torch.Generator().manual_seed(0))
    least = min(cost(x0, x1, list(other)) for other in itertools.permutations(range(len(x0))))
    assert cost(x0, x1, order) <= least * (1 + 1e-5) + 1e-5, "no permutation costs less"  # float32


def batches(seed, n, event):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *event, generator=generator), 1 + torch.randn(n, *event, generator=generator)


SEEDS, EVENTS = st.integers(0, 2**32), st.sampled_from([(1,), (2,), (1, 4, 4), (3, 5)])


PERMUTATIONS = [name for name in REGISTRY.names("coupling") if name not in MAPS]


@pytest.mark.parametrize("name", PERMUTATIONS)
@given(data=st.data(), seed=SEEDS, n=st.integers(1, 40), event=EVENTS)
def test_every_coupling_keeps_its_contract(components, name, data, seed, n, event):
    check_coupling(data.draw(components("coupling", name)), *batches(seed, n, event), seed)


@given(seed=SEEDS, n=st.integers(1, 6), event=EVENTS)
def test_optimal_transport_is_the_cheapest_permutation(seed, n, event):
    check_optimal(REGISTRY.create("coupling", "optimal-transport"), *batches(seed, n, event))


@given(seed=SEEDS, n=st.integers(1, 128), event=EVENTS)
def test_optimal_transport_costs_no_more_than_the_identity(seed, n, event):
    x0, x1 = batches(seed, n, event)
    order = REGISTRY.create("coupling", "optimal-transport").pair(x0, x1, torch.Generator().manual_seed(0))
    assert cost(x0, x1, order) <= cost(x0, x1, torch.arange(n)) * (1 + 1e-5)


@given(seed=SEEDS, n=st.integers(1, 20))
def test_pairing_within_labels_keeps_labels_together(seed, n):
    x0, x1 = batches(seed, n, (2,))
    label = torch.randint(3, (n,), generator=torch.Generator().manual_seed(seed))
    transport = REGISTRY.create("coupling", "optimal-transport")
    order = pair(transport, x0, x1, torch.Generator().manual_seed(0), label, within_labels=True)
    assert order.sort().values.tolist() == list(range(n))
    assert torch.equal(label[order], label)


def test_pairing_within_labels_shows_a_coupling_one_label_at_a_time():
    seen = []

    def rule(x0, x1, generator, label=None):
        seen.append(label.tolist())
        return torch.arange(len(x0))

    label = torch.tensor([2, 0, 2, 2, 0])
    pair(Broken(pair=rule), *batches(0, 5, (2,)), torch.Generator().manual_seed(0), label, within_labels=True)
    assert seen == [[0, 0], [2, 2, 2]]


def draws(x0, x1, generator, label=None):
    return torch.randint(len(x0), (len(x0),), generator=generator)


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        (draws, "permutation"),
        (lambda x0, x1, generator, label=None: torch.arange(len(x0) - 1), r"\(n,\)"),
        (lambda x0, x1, generator, label=None: torch.randperm(len(x0)), "function of the generator"),
        (lambda x0, x1, generator, label=None: x0.zero_()[:, 0].argsort(), "changes nothing"),
    ],
)
def test_a_broken_coupling_is_rejected(rule, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_coupling(Broken(pair=rule), *batches(0, 20, (2,)), 0)


def test_a_coupling_that_is_not_optimal_is_rejected():
    backwards = Broken(pair=lambda x0, x1, g: REGISTRY.create("coupling", "optimal-transport").pair(x0, -x1, g))
    for coupling in (backwards, REGISTRY.create("coupling", "independent")):
        with pytest.raises(AssertionError, match="costs less"):
            check_optimal(coupling, *batches(0, 6, (2,)))


def test_the_kernel_refuses_draws_with_replacement():
    with pytest.raises(PluginError, match="wanted a permutation of 20 indices"):
        pair(Broken(pair=draws), *batches(0, 20, (2,)), torch.Generator().manual_seed(0))


def assignment_problems():
    """Name -> cost (n, n): of samples in few and many dimensions, ties, duplicates, constants, far from the origin."""
    generator = torch.Generator().manual_seed(0)
    for n, d in itertools.product((1, 2, 3, 17, 64, 150), (1, 2, 64)):
        x0, x1 = torch.randn(2, n, d, generator=generator)
        yield f"normal {n} {d}", -(x1 @ x0.T)
        yield f"far {n} {d}", -((x1 + 1000) @ x0.T)
        yield f"duplicates {n} {d}", -(x1[torch.randint(n, (n,), generator=generator)] @ x0.T)
        yield f"ties {n} {d}", torch.randint(3, (n, n), generator=generator).float()
    yield "constant", torch.full((9, 9), -2.5)


def excess(cost, order):
    """How much the cost of a permutation is above the least one, of scipy on the cost as it is; relative."""
    rows, columns = linear_sum_assignment(cost.double().numpy())
    least = float(cost.double()[rows, columns].sum())
    size = max(1.0, float(cost.double().abs().sum()))
    return (float(cost.double()[torch.arange(len(cost)), order].sum()) - least) / size


def test_what_rows_and_columns_have_in_common_does_not_change_the_least_cost():
    for name, cost in assignment_problems():
        order = _assignment(cost)
        assert order.sort().values.tolist() == list(range(len(cost))), name
        assert abs(excess(cost, order)) < 1e-12, name
        if name.startswith("normal") and not name.endswith(" 1"):  # without ties there is one order only
            assert order.tolist() == linear_sum_assignment(cost.double().numpy())[1].tolist(), name


def test_a_change_of_single_entries_is_seen():
    """A wrong twin: each row scaled by itself isn't what a row has in common."""
    cost = dict(assignment_problems())["normal 64 2"]
    assert excess(cost, _assignment(cost * torch.linspace(0.5, 2, 64))) > 1e-4
