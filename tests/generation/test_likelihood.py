"""Densities under a flow: against closed forms, by sample's index, and the refusals."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import gftkit
from gftkit.generation.likelihood import bits_per_dimension, divergence, hutchinson, log_density, rademacher
from gftkit.generation.run_likelihood import likelihood
from gftkit.kernel.errors import ConfigError


class Scaled(torch.nn.Module):
    """v = a x: x_1 = e^a x_0, and log p_1 = log p_0(e^-a x) - a d."""

    def forward(self, t, x):
        return math.log(3.0) * x


def standard(x):
    return -(x.flatten(1).square().sum(1) + math.prod(x.shape[1:]) * math.log(2 * math.pi)) / 2


def density(registry, x, drift=None, solver="rk4", path="linear", **options):
    made = registry.create("solver", solver), 20
    return log_density(drift or Scaled(), registry.create("path", path), *made, x, standard, **options)


@pytest.mark.parametrize("probes", [0, 3])
def test_a_stretched_normal_law(registry, probes):
    x = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = density(registry, x, probes=probes)  # of a multiple of the identity, signs estimate without error
    wanted = standard(x / 3) - 6 * math.log(3)
    assert torch.allclose(found.log, wanted, atol=1e-5)
    assert not torch.allclose(found.log, standard(x / 3), atol=1.0)
    assert torch.allclose(found.stderr, torch.zeros(7, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found.x0, x / 3, atol=1e-6)


def test_the_divergence_of_a_linear_field_is_its_trace():
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(divergence(x @ matrix.T, x), matrix.trace().expand(5, 1))
    probes = rademacher((5, 2, 4), torch.Generator().manual_seed(1)).double()
    assert torch.allclose(hutchinson(x @ matrix.T, x, probes), torch.einsum("bpi,ij,bpj->bp", probes, matrix, probes))


def test_probes_belong_to_a_sample_and_not_to_its_batch(registry):
    turned = torch.tensor([[0.0, 1.0], [0.5, 0.0]])
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    one, other, seeded = (
        density(registry, x, lambda t, x: x @ turned, probes=2, batch_size=size, seed=seed).log
        for size, seed in ((9, 0), (4, 0), (9, 1))
    )
    assert torch.allclose(one, other, atol=1e-5)
    assert not torch.allclose(one, seeded, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "brownian-bridge"}, "noise"),
        ({"probes": -1}, "wanted 0"),
    ],
)
def test_likelihood_is_refused_where_there_is_no_density(registry, options, message):
    with pytest.raises(ConfigError, match=message):
        density(registry, torch.zeros(2, 2), **options)


def test_bits_in_the_units_of_the_data():
    x = torch.zeros(1, 4)
    log = standard(x)
    nats = -log / 4 + math.log(255 / 2)  # y = (x + 1) 255/2
    assert torch.allclose(bits_per_dimension(log, (4,), (0.0, 255.0)), nats / math.log(2))
    finer = bits_per_dimension(log, (4,), (0.0, 1.0), quantum=1 / 255)
    assert torch.allclose(finer, bits_per_dimension(log, (4,), (0.0, 255.0), quantum=1.0), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "event"),
    [
        ("gaussian", {"mean": 0.5, "std": 2.0}, (3,)),
        ("gaussian", {"mean": [1.0, 0.0], "covariance": [[2.0, 1.0], [1.0, 2.0]]}, (2,)),
        ("gaussian-mixture", {"means": [[-1.0, 0.0], [1.0, 2.0]], "weights": [1, 3], "std": 0.5}, (2,)),
    ],
)
def test_densities_of_sources(registry, name, options, event):
    supplied = {"event_shape": event} if name == "gaussian" else {}
    law = registry.create("dataset", name, **options, **supplied)
    x = torch.randn(6, *event, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if name == "gaussian-mixture":
        parts = torch.distributions.MultivariateNormal(law.means, 0.25 * torch.eye(2, dtype=torch.float64))
        wanted = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(law.weights), parts).log_prob(x)
    else:
        cov = 4 * torch.eye(3, dtype=torch.float64) if law.covariance is None else law.covariance
        wanted = torch.distributions.MultivariateNormal(law.mean, cov).log_prob(x)
    assert torch.allclose(law.log_density(x), wanted)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = {
        "drift": {"name": "mlp", "width": 32, "depth": 2},
        "data": {"name": "gaussian-mixture"},
        "train": {"steps": 30, "batch_size": 32},
        "evaluate": {"count": 20, "solver": {"name": "euler", "steps": 2}},
    }
    return gftkit.pretrain(config, tmp_path_factory.mktemp("likelihood") / "run", device="cpu")


def test_a_run_s_densities_integrate_to_one(run):
    """Importance sampling: the mean of p/q over samples of a wide normal law q is 1."""
    wide = {"name": "gaussian", "mean": 0.0, "std": 3.0, "event_shape": [2]}
    law = run.registry.build("dataset", wide)
    spec = run.registry.resolve("dataset", wide)
    found = likelihood(run, spec, count=3000, seed=4)
    x = law.draw(3000, gftkit.runtime.randomness.stream(4, "likelihood")).x1
    ratios = (found.log - law.log_density(x)).exp()
    error = float(ratios.std()) / math.sqrt(3000)
    assert error < 0.1
    assert abs(float(ratios.mean()) - 1) < 5 * error


def test_the_likelihood_command_prints_and_writes_bits(run, gft, tmp_path):
    done = gft("likelihood", run.folder, "--count", "5", "--json", "--out", "bits.safetensors")
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert (shown["count"], shown["probes"]) == (5, 0)
    assert abs(shown["bits_per_dim"] + shown["log_likelihood"] / 2 / math.log(2)) < 1e-6
    assert load_file(tmp_path / "bits.safetensors")["bits"].shape == (5,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "x.npz"), "wanted .safetensors"),
        (("--count", "0"), "wanted at least 1"),
        (("--quantum", "0"), "wanted a positive step"),
        (("--solver", "euler-maruyamma"), "Did you mean"),
        (("--solver", "{name: euler, diffusion: constant}"), "adds noise"),
        (("--probes", "-2"), "wanted 0"),
        (("--data", "{name: two-moon}"), "two-moons"),
    ],
)
def test_the_likelihood_command_refuses_bad_input(run, refused, arguments, message):
    assert message in refused("likelihood", run.folder, *arguments)
