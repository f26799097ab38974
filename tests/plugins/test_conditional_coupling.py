"""The coupling that heeds conditions, and how the kernel asks it."""

import numpy
import pytest
import torch

import gftkit
from gftkit.data.pairing import pair
from gftkit.experiment.build import build
from gftkit.kernel.errors import ConfigError
from gftkit.runs.resolve import resolve_config

NAME = "conditional-optimal-transport"


def problem(n=128, seed=0):
    """x1 around twice its condition, a number, and to both sides of an axis that has nothing to do with it."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(n, generator=generator)
    x1 = 0.5 * torch.randn(n, 2, generator=generator)
    x1[:, 0] += 2 * c
    x1[:, 1] += 2 * torch.randint(2, (n,), generator=generator) - 1
    return torch.randn(n, 2, generator=generator), x1, c


def dependence_and_cost(coupling, batches=20):
    """|Cov(x0, c)| over the pairs of some batches, and their cost as a share of independent pairs'."""
    slopes, costs = [], []
    for seed in range(batches):
        x0, x1, c = problem(seed=seed)
        order = pair(coupling, x0, x1, torch.Generator().manual_seed(seed), conditions={"c": c})
        slopes.append((x0[order] * c[:, None]).mean(0))
        costs.append((x0[order] - x1).square().mean() / (x0[:, None] - x1).square().mean())
    return float(torch.stack(slopes).mean(0).norm()), float(torch.stack(costs).mean())


def test_conditional_coupling_trades_dependence_on_the_condition_for_cost(registry):
    plain, least = dependence_and_cost(registry.create("coupling", "optimal-transport"))
    usual, between = dependence_and_cost(registry.create("coupling", NAME))
    light, less = dependence_and_cost(registry.create("coupling", NAME, weight=1.0))
    assert plain > 0.7
    assert usual < 0.1 * plain < light < plain
    assert least < less < between < 0.85


def test_without_conditions_it_is_optimal_transport(registry):
    x0, x1, c = problem(40)
    ours, plain = registry.create("coupling", NAME), registry.create("coupling", "optimal-transport")
    generator = torch.Generator()
    assert torch.equal(pair(ours, x0, x1, generator), pair(plain, x0, x1, generator))
    same = {"c": torch.ones_like(c)}  # a condition that never changes says nothing
    assert torch.equal(pair(ours, x0, x1, generator, conditions=same), pair(plain, x0, x1, generator))


def test_the_unit_of_a_condition_does_not_matter_and_several_share_the_weight(registry):
    x0, x1, c = problem(40)
    ours, generator = registry.create("coupling", NAME), torch.Generator()
    once = pair(ours, x0, x1, generator, conditions={"c": c})
    assert torch.equal(once, pair(ours, x0, x1, generator, conditions={"c": 1000 * c + 5}))
    assert torch.equal(once, pair(ours, x0, x1, generator, conditions={"c": c, "d": -c}))
    assert not torch.equal(once, pair(ours, x0, x1, generator, conditions={"c": c.roll(1)}))


class Heeding:
    """A coupling that keeps what it is told."""

    conditional = True

    def __init__(self):
        self.seen = []

    def pair(self, x0, x1, generator, label=None, conditions=None):
        self.seen.append((label, conditions))
        return torch.arange(len(x0))


def test_the_kernel_tells_conditions_to_couplings_that_heed_them_label_by_label():
    heeding, label = Heeding(), torch.tensor([1, 0, 1])
    x, c = torch.zeros(3, 2), torch.tensor([5.0, 6.0, 7.0])
    pair(heeding, x, x, torch.Generator(), label, within_labels=True, conditions={"c": c})
    assert [told["c"].tolist() for _, told in heeding.seen] == [[6], [5, 7]]
    heeding.conditional = False
    pair(heeding, x, x, torch.Generator(), label, within_labels=False, conditions={"c": c})
    assert heeding.seen[-1][1] is None


@pytest.fixture
def config(tmp_path):
    x0, x1, c = problem(40)
    numpy.savez(tmp_path / "data.npz", x1=x1.numpy(), c=c.numpy())
    numpy.savez(tmp_path / "paired.npz", x1=x1.numpy(), c=c.numpy(), x0=x0.numpy())
    return {
        "drift": {"name": "mlp", "width": 8, "depth": 1, "conditions": ["c"]},
        "data": {"name": "arrays", "file": str(tmp_path / "data.npz"), "conditions": ["c"]},
        "coupling": {"name": NAME},
        "train": {"steps": 1, "batch_size": 40},
        "evaluate": {"count": 20, "metrics": []},
        "monitors": ["anchor-distance"],
    }


def test_a_run_pairs_by_condition_and_says_that_it_is_approximate(config, registry):
    experiment = build(resolve_config(config, "pretrain", registry)[0], registry)
    (warning,) = experiment.warnings
    assert "the source's law only approximately" in warning
    batch = experiment.matching.pairs.at(0)
    assert experiment.matching.pairs.conditions == ("c",)
    told = abs(float((batch.x0[:, 0] * batch.conditions["c"]).mean()))
    experiment.matching.pairs.conditions, experiment.matching.pairs._latest = (), None
    untold = experiment.matching.pairs.at(0)
    assert told < 0.5 < float((untold.x0[:, 0] * untold.conditions["c"]).mean())


def test_plain_optimal_transport_is_refused_under_conditions(config, registry, tmp_path):
    config["coupling"] = {"name": "optimal-transport"}
    with pytest.raises(ConfigError, match=r"makes x0 depend on the conditions 'c'.*biased \(T10\)"):
        build(resolve_config(config, "pretrain", registry)[0], registry)
    config["data"]["file"] = str(tmp_path / "paired.npz")  # pairs of its own: no coupling is asked
    assert build(resolve_config(config, "pretrain", registry)[0], registry).warnings == []
    config["data"]["file"] = str(tmp_path / "data.npz")
    config["coupling"] = {"name": "independent"}
    assert build(resolve_config(config, "pretrain", registry)[0], registry).warnings == []


def test_monitors_pair_by_condition_too(config, registry, tmp_path, monkeypatch):
    seen = []
    kind = type(registry.create("coupling", NAME))
    usual = kind.pair

    def spy(self, x0, x1, generator, label=None, conditions=None):
        seen.append(conditions)
        return usual(self, x0, x1, generator, label, conditions)

    monkeypatch.setattr(kind, "pair", spy)
    gftkit.pretrain(config, tmp_path / "run", registry=registry)
    assert len(seen) >= 2
    assert all(set(told) == {"c"} for told in seen)
