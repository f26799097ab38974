"""Pairs that a run generates: what they are, how they are kept, and what learning them does to paths and laws."""

import json
import pickle

import pytest
import torch

import gftkit
from gftkit.api import Run
from gftkit.kernel.errors import ConfigError, RunError, WeightsError
from gftkit.sampling import integrate
from gftkit.theory import flow

REGISTRY = gftkit.load()
HEUN = {"name": "heun", "steps": 4}


def pairs(run, size=70, **options):
    return REGISTRY.create("dataset", "generated-pairs", run=str(run), size=size, **options)


def everything(dataset):
    return dataset.batch(torch.arange(len(dataset)))


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A run that knows classes, with data that are scaled."""
    folder = tmp_path_factory.mktemp("conditional") / "run"
    drift = {"name": "mlp", "width": 8, "depth": 1, "conditional": True}
    settings = {"drift": drift, "data": {"name": "digits", "count": 40}, "train": {"steps": 2, "batch_size": 8}}
    gftkit.pretrain({**settings, "evaluate": {"count": 20, "solver": HEUN}}, folder, device="cpu")
    return folder


# --- what the pairs are -----------------------------------------------------------------------------------------------


def test_each_end_is_where_the_flow_brings_its_start(conditional):
    run, batch = Run.open(conditional), everything(pairs(conditional, source_seed=3))
    samples, asked = run.samples(70, seed=3)
    assert torch.equal(batch.x1, samples)
    assert torch.equal(batch.label, asked["label"])
    path, solver = REGISTRY.create("path", "linear"), REGISTRY.create("solver", "heun")
    x0 = batch.x0 / 8 - 1  # values in [0, 16] as the network knows them
    x1 = integrate.generate(run.drift(), path, solver, 4, x0, torch.Generator(), conditions={"label": batch.label})
    assert torch.allclose(8 * (x1 + 1), batch.x1, atol=1e-4)
    shuffled = batch.x0.roll(1, 0) / 8 - 1
    x1 = integrate.generate(
        run.drift(), path, solver, 4, shuffled, torch.Generator(), conditions={"label": batch.label}
    )
    assert not torch.allclose(8 * (x1 + 1), batch.x1, atol=1e-1)


def test_starts_are_of_the_run_s_source_and_depend_on_the_seed(conditional):
    x0 = everything(pairs(conditional, size=200)).x0 / 8 - 1
    assert abs(float(x0.mean())) < 5 / (200 * 64) ** 0.5
    assert abs(float(x0.var()) - 1) < 5 * (2 / (200 * 64)) ** 0.5
    assert not torch.equal(everything(pairs(conditional, source_seed=1)).x0, everything(pairs(conditional)).x0)


def test_a_longer_set_begins_with_the_shorter_one(pretrained):
    short, long = everything(pairs(pretrained, size=70)), everything(pairs(pretrained, size=150))
    assert torch.equal(short.x0, long.x0[:70])
    assert torch.allclose(short.x1, long.x1[:70], atol=1e-6)


def test_a_run_on_pairs_is_given_them_as_they_are(pretrained):
    """And scaled back to what the network knows."""
    from gftkit.experiment.build import build
    from gftkit.runs.resolve import resolve_config

    data = {"name": "generated-pairs", "run": str(pretrained), "size": 64}
    raw = {"pretrained": str(pretrained), "data": data, "schedule": {"name": "zero"}, "evaluate": {"count": 20}}
    experiment = build(
        resolve_config({**raw, "coupling": {"name": "optimal-transport"}}, "finetune", REGISTRY)[0], REGISTRY
    )
    given = experiment.matching.pairs.at(0)
    every = everything(pairs(pretrained, size=64))
    places = [int((every.x1 == row).all(1).nonzero()[0]) for row in given.x1]
    assert torch.equal(given.x0, every.x0[places])


# --- how they are kept ------------------------------------------------------------------------------------------------


def test_a_file_keeps_generated_pairs_and_is_read_for_the_same_run(pretrained, tmp_path, monkeypatch):
    from gftkit.generation.sampler import RunSampler

    file = tmp_path / "pairs.safetensors"
    first = everything(pairs(pretrained, file=str(file)))
    with monkeypatch.context() as patched:
        patched.setattr(RunSampler, "part", None)  # nothing is made again
        again = everything(pairs(pretrained, file=str(file)))
    assert torch.equal(first.x0, again.x0)
    assert torch.equal(first.x1, again.x1)
    for changed in ({"source_seed": 1}, {"size": 71}, {"solver": {"name": "euler", "steps": 3}}):
        with pytest.raises(ConfigError, match="contains pairs of another run, or made with other options"):
            everything(pairs(pretrained, file=str(file), **changed))
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(WeightsError):
        everything(pairs(pretrained, file=str(file)))


def test_pairs_are_generated_when_first_used(pretrained, monkeypatch):
    from gftkit.generation.sampler import RunSampler

    monkeypatch.setattr(RunSampler, "part", None)
    dataset = pairs(pretrained)
    assert (len(dataset), dataset.event_shape, dataset.range) == (70, (2,), None)


def test_a_copy_for_another_process_holds_them(pretrained):
    dataset = pairs(pretrained)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(everything(copy).x0, everything(dataset).x0)


def test_runs_that_cannot_be_sampled_are_refused(pretrained, run_copy, tmp_path):
    with pytest.raises(RunError, match="is no run folder"):
        pairs(tmp_path)
    with pytest.raises(ConfigError, match="wanted a name that ends in"):
        pairs(pretrained, file=str(tmp_path / "pairs.npz"))
    with pytest.raises(ConfigError, match="steps: wanted at least 1"):
        pairs(pretrained, solver={"name": "euler", "steps": 0})
    with pytest.raises(ConfigError, match="requires a flow map"):
        pairs(pretrained, solver={"name": "flow-map"})
    (run_copy / "model.safetensors").unlink()
    with pytest.raises(RunError, match="isn't finished"):
        pairs(run_copy)


# --- what learning them does ------------------------------------------------------------------------------------------


class Curved(torch.nn.Module):
    """The flow of N(0, I) to N(2, S), independent of each other, S = diag(9, 1/25): marginals known, paths bent."""

    mean, scale = 2.0, torch.tensor([3.0, 0.2], dtype=torch.float64)

    def forward(self, t, x):
        t = t[:, None]
        variance = (1 - t) ** 2 + (t * self.scale) ** 2
        return self.mean + (t * self.scale**2 - (1 - t)) / variance * (x - t * self.mean)


def rectified(x0, x1, degree=5):
    """The least-squares velocity of pairs on the linear path, linear in x and of a degree in t for each coordinate."""
    generator = torch.Generator().manual_seed(7)
    path = REGISTRY.create("path", "linear")
    t = torch.rand(len(x0), generator=generator, dtype=torch.float64)
    x, target = flow.sample(path, t, x0, x1, None), flow.drift(path, t, x0, x1, None)
    powers = t[:, None] ** torch.arange(degree + 1)
    fits = []
    for k in range(x.shape[1]):
        features = torch.cat([powers, powers * x[:, k : k + 1]], 1)
        fits.append(torch.linalg.lstsq(features, target[:, k]).solution)

    class Fitted(torch.nn.Module):
        def forward(self, t, x):
            powers = t[:, None] ** torch.arange(degree + 1)
            return torch.stack(
                [torch.cat([powers, powers * x[:, k : k + 1]], 1) @ fit for k, fit in enumerate(fits)], 1
            )

    return Fitted()


def reached(drift, x0, steps):
    path, euler = REGISTRY.create("path", "linear"), REGISTRY.create("solver", "euler")
    return integrate.generate(drift, path, euler, steps, x0, torch.Generator())


def test_reflow_straightens_and_keeps_the_law_and_shuffled_pairs_don_t_straighten():
    """One Euler step of the rectified flow has the model's law; of the flow, and of shuffled pairs, it has another."""
    x0 = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x1 = reached(Curved(), x0, 400)
    straight, bent = rectified(x0, x1), rectified(x0, x1.roll(1, 0))

    def apart(x):
        return float((x.std(0) / x1.std(0)).log().abs().max())

    assert apart(reached(straight, x0, 64)) < 0.05
    assert apart(reached(straight, x0, 1)) < 0.05
    assert apart(reached(Curved(), x0, 1)) > 1
    assert apart(reached(bent, x0, 64)) < 0.1
    assert apart(reached(bent, x0, 1)) > 1


def test_a_fine_tune_on_pairs_is_a_run_like_others(pretrained, tmp_path, gft, write_config):
    config = {
        "pretrained": str(pretrained),
        "data": {"name": "generated-pairs", "run": str(pretrained), "size": 64, "file": "pairs.safetensors"},
        "schedule": {"name": "exponential"},
        "train": {"steps": 4, "batch_size": 16},
        "evaluate": {"count": 20},
    }
    done = gft("finetune", write_config(config), "--out", "run", "--json")
    assert done.code == 0, done.err
    assert (tmp_path / "pairs.safetensors").is_file()
    assert "energy" in json.loads(done.out)["ema"]
    run = Run.open(tmp_path / "run")
    assert run.weights()[1].paired
    with pytest.raises(ConfigError, match="fixed partners, as in reflow"):
        run.samples(4, solver={"name": "euler-maruyama", "steps": 4, "diffusion": {"name": "constant"}})
    assert Run.open(pretrained).samples(4, solver={"name": "euler-maruyama", "diffusion": {"name": "constant"}})
