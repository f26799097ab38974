"""Replay: target samples mixed with a run's own, in a stated share, with values in one range."""

import numpy as np
import pytest
import torch

import gftkit
from gftkit.data.samples import Samples
from gftkit.kernel.errors import ConfigError, DataError

REGISTRY = gftkit.load()
HEUN = {"name": "heun", "steps": 2}


def replay(run, target, **options):
    return REGISTRY.create("dataset", "replay", run=str(run), target=target, **options)


def everything(dataset):
    return dataset.batch(torch.arange(len(dataset)))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A run on digits in [0, 16] that knows classes, and the same digits as a file with values in [0, 255]."""
    folder = tmp_path_factory.mktemp("images")
    drift = {"name": "mlp", "width": 8, "depth": 1, "conditional": True}
    settings = {"drift": drift, "data": {"name": "digits", "count": 40}, "train": {"steps": 2, "batch_size": 8}}
    gftkit.pretrain({**settings, "evaluate": {"count": 20, "solver": HEUN}}, folder / "run", device="cpu")
    return folder


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("count", [7, 100])
def test_the_share_is_kept_and_every_sample_of_the_target_counts_alike(pretrained, share, count):
    made = replay(pretrained, {"name": "two-moons", "count": count}, share=share, size=60)
    target = everything(REGISTRY.create("dataset", "two-moons", count=count)).x1
    x1 = everything(made).x1
    from_target = (x1[:, None] == target).all(2)
    old = ~from_target.any(1)
    assert abs(float(old.double().mean()) - share) <= 0.5 / len(made)
    assert old.sum() >= 60 - 1
    assert set(from_target.sum(0).tolist()) == {int(from_target.sum()) // count}


def test_the_other_samples_are_the_run_s_own(pretrained):
    made = replay(pretrained, {"name": "two-moons", "count": 10}, size=20, source_seed=3)
    old = everything(made).x1[-20:]
    assert torch.equal(old, gftkit.Run.open(pretrained).samples(20, seed=3)[0])
    assert not torch.equal(old, gftkit.Run.open(pretrained).samples(20, seed=4)[0])
    assert everything(made).x0 is None  # their partners are forgotten: the coupling pairs


def test_generated_values_take_the_target_s_range(images):
    """The run's values go from 0 to 16, the target's from 0 to 255: the network is to see the same black and white."""
    made = replay(images / "run", {"name": "mnist5k", "size": 8, "count": 30}, size=30)
    assert made.range == (0.0, 255.0)
    own, _ = gftkit.Run.open(images / "run").samples(30)
    seen = Samples(made, "data").at(torch.arange(len(made))).x1[-30:]
    assert torch.allclose(seen, own / 8 - 1, atol=1e-5)
    assert not torch.allclose(2 * own / 255 - 1, own / 8 - 1, atol=0.1)  # where the ranges were mixed up
    assert torch.equal(made.labels[-30:], torch.arange(30) % 10)  # as they were asked for


def test_labels_are_there_where_both_have_them(pretrained, images):
    assert replay(pretrained, {"name": "two-moons", "count": 10}, size=5).labels is None  # the run knows no classes
    assert replay(images / "run", {"name": "digits", "count": 10}, size=5).classes == 10


def test_a_fine_tune_on_replayed_samples_is_a_run_like_others(finetune_config, pretrained, tmp_path):
    data = {"name": "replay", "target": {"name": "two-moons", "count": 10}, "run": str(pretrained), "size": 20}
    run = gftkit.finetune({**finetune_config, "data": data}, tmp_path / "run", device="cpu")
    assert run.finished
    assert not run.weights()[1].paired


def test_samples_that_cannot_be_mixed_are_refused(pretrained, images, tmp_path):
    moons = {"name": "two-moons", "count": 10}
    with pytest.raises(ConfigError, match="target: wanted a finite set"):
        replay(pretrained, {"name": "two-moons"})
    with pytest.raises(ConfigError, match=r"share: wanted float, > 0, < 1"):
        replay(pretrained, moons, share=1.0)
    with pytest.raises(ConfigError, match=r"samples of the target's shape \(2,\)"):
        replay(images / "run", moons)
    np.savez(tmp_path / "pairs.npz", x1=np.zeros((4, 2), "f4"), x0=np.ones((4, 2), "f4"))
    made = replay(pretrained, {"name": "arrays", "file": str(tmp_path / "pairs.npz")}, size=4)
    with pytest.raises(DataError, match="fixed partners"):
        made.batch(torch.arange(4))
    with pytest.raises(gftkit.GftkitError, match="is no run folder"):
        replay(tmp_path, moons)
