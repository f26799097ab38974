"""Networks of known conventions for a mixture in two dimensions, and inspections of them."""

import torch
from support import oracles
from torch import nn

import gftkit
from gftkit.data.description import Facts
from gftkit.data.samples import Samples
from gftkit.experiment.building import build_source
from gftkit.inspection import ranking
from gftkit.kernel.contracts import Batch
from gftkit.networks.foreign_weights import Candidate

REGISTRY = gftkit.load()
PATH = REGISTRY.build("path", {"name": "linear"})
INDEPENDENT = REGISTRY.build("coupling", {"name": "independent"})


class Law:
    """Samples of an oracle's data."""

    range = None

    def __init__(self, truth):
        self.truth, self.event_shape = truth, truth.mean1.shape

    def draw(self, n, generator):
        root = torch.linalg.cholesky(self.truth.cov1)
        noise = torch.randn(n, *self.event_shape, generator=generator, dtype=torch.float64)
        return Batch((self.truth.mean1 + noise @ root.mT).float())


class Told(nn.Module):
    """An oracle with a weight that turns it off, so that it can be untrained."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle, self.on = oracle, nn.Parameter(torch.ones((), dtype=torch.float64))

    def answer(self, t, x):
        return (self.on * self.oracle(t.double(), x.double())).to(x.dtype)

    def forward(self, t, x):
        return self.answer(t, x)


def look(network, truth, weights=None, coupling=INDEPENDENT, **options):
    """An inspection of a network, whose weights are compared with those turned off."""
    trained = {name: value.clone() for name, value in network.state_dict().items()}
    network.on.data.zero_()
    candidates = [Candidate(name, {**trained, **changed}) for name, changed in (weights or {"": {}}).items()]
    samples = Samples(Law(truth), "data")
    facts = Facts(tuple(samples.event_shape), None, None)
    source = build_source({"name": "gaussian"}, facts.event_shape, REGISTRY)
    options = {"count": 2048, **options}
    return ranking.inspect(network, candidates, samples, facts, path=PATH, source=source, coupling=coupling, **options)


TRUTH = oracles.a_gaussian(PATH, seed=2)
USUAL = {"time": "forward", "time_scale": 1.0, "predicts": "velocity", "sign": 1}
"""Fields that are known where a test asks for others."""
