"""The recipes for WILDS: each resolves whole, asks for the network of torchcfm's example, and goes through."""

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from support.paths import ROOT
from support.wilds_folders import FOLDERS, MADE

from gftkit.data.subset import Subset
from gftkit.experiment.building import build_metrics
from gftkit.runs.resolve import resolve_config

RECIPES = {file.relative_to(ROOT): file.parent.name for file in sorted((ROOT / "recipes/wilds").glob("*/*.yaml"))}
RUNS = {"pretrain.yaml": "pretrained", "plain.yaml": "plain", "gft.yaml": "gft"}
SMALL = {
    "drift.width": 8,
    "drift.multipliers": "[1, 2]",
    "drift.blocks": 1,
    "drift.attention": 1,
    "drift.head_channels": 8,
}
TINY = {
    "data.size": 8,
    "evaluate.data.size": 8,
    "train.steps": 2,
    "train.batch_size": 2,
    "train.warmup": 1,
    "train.workers": 0,
    "evaluate.every": 2,
    "evaluate.count": 2,
    "evaluate.solver.steps": 2,
    "evaluate.metrics": "[path-length]",
}
"""Settings with which a recipe takes a moment."""

every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=str)


def command(recipe):
    """The command in a recipe's head, word by word."""
    head = (ROOT / recipe).read_text()
    return shlex.split(re.search(r"^#   (gft .*)$", head, re.MULTILINE)[1])


@pytest.fixture
def resolved(registry, pretrained):
    """The configuration of a recipe, all of it checked and filled in."""

    def once(recipe):
        kind = command(recipe)[1]
        changed = [] if kind == "pretrain" else [f"pretrained={pretrained}"]
        return resolve_config(ROOT / recipe, kind, registry, changed)[0]

    return once


@pytest.fixture
def place(tmp_path):
    """A copy of the recipes, with a data set's small folder where they look for it."""
    shutil.copytree(ROOT / "recipes/wilds", tmp_path / "recipes/wilds")

    def make(name, size):
        MADE[name](tmp_path / "data" / FOLDERS[name], size=size)
        return tmp_path

    return make


def test_there_are_three_for_each_data_set():
    assert sorted(RECIPES) == sorted(Path("recipes/wilds", name, file) for name in MADE for file in RUNS)


@every_recipe
def test_a_recipe_resolves_whole(resolved, registry, recipe):
    config, name = resolved(recipe), RECIPES[recipe]
    out = f"runs/wilds/{name}/{RUNS[recipe.name]}"
    assert command(recipe) == ["gft", config.kind, str(recipe), "--out", out]
    given = yaml.safe_load((ROOT / recipe).read_text())
    if config.kind == "finetune":
        assert (ROOT / recipe.parent / given["pretrained"]).resolve() == ROOT / f"runs/wilds/{name}/pretrained"
    assert config.data["name"] == config.evaluate.data["name"] == name
    assert config.data["folder"].resolve() == config.evaluate.data["folder"].resolve() == ROOT / "data" / FOLDERS[name]
    train = config.train
    assert (train.optimizer, train.learning_rate, train.clip, train.batch_size) == ("adam", 1e-4, 1.0, 64)
    assert (train.ema, train.warmup, train.decay, train.precision) == (0.9999, 5000, "constant", "bfloat16")
    assert train.ema**train.steps < 1e-4, "the averages would still hold the start"
    assert config.path == {"name": "linear"}
    if config.kind == "pretrain":
        assert config.coupling["name"] == "optimal-transport"
    else:
        assert config.schedule["name"] == {"plain": "zero", "gft": "exponential"}[recipe.stem]


@pytest.mark.parametrize("name", sorted(MADE))
def test_plain_and_gft_differ_in_the_schedule_alone(resolved, name):
    plain, gft = (resolved(Path("recipes/wilds", name, file)) for file in ("plain.yaml", "gft.yaml"))
    assert replace(plain, schedule=gft.schedule) == gft != plain


@every_recipe
def test_training_and_held_out_pictures_are_disjoint(resolved, registry, place, recipe):
    config, name = resolved(recipe), RECIPES[recipe]
    folder = place(name, 4) / "data" / FOLDERS[name]

    def pictures(spec):
        made = registry.build("dataset", {**spec, "folder": folder, "size": None, "count": None})
        return {made.dataset.names[index] for index in made.indices} if isinstance(made, Subset) else set(made.names)

    train, held = pictures(config.data), pictures(config.evaluate.data)
    assert train
    assert held
    assert not train & held
    assert train & pictures({**config.data, "part": "all", "split": "all"})


def parameters(module):
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize("name", sorted(MADE))
def test_the_network_is_of_the_size_of_torchcfm_s(resolved, registry, name):
    """By shape alone, on torch's device for that; one with half the width isn't."""
    pytest.importorskip("torchcfm", reason="torchcfm isn't installed")
    from torchcfm.models.unet.unet import UNetModelWrapper

    config = resolved(Path("recipes/wilds", name, "pretrain.yaml"))
    side = config.data["size"] or 96
    levels = f"{side // 4},{side // 8}"
    with torch.device("meta"):
        ours = registry.build("drift", config.drift, event_shape=(3, side, side))
        theirs = UNetModelWrapper(
            (3, side, side), 128, 2, (1, 2, 3, 4), num_head_channels=64, attention_resolutions=levels, dropout=0.1
        )
        out = ours(torch.zeros(2), torch.zeros(2, 3, side, side))
        half = registry.build("drift", {**config.drift, "width": 64}, event_shape=(3, side, side))
    assert out.shape == (2, 3, side, side)
    assert abs(parameters(ours) / parameters(theirs) - 1) < 0.01
    assert abs(parameters(half) / parameters(theirs) - 1) > 0.5


def dry(gft, name):
    """Run the commands of a data set's recipes as they stand, with small settings."""
    for file in RUNS:
        few = {"data.count": 2} if file != "pretrain.yaml" else SMALL
        settings = [word for key, value in (TINY | few).items() for word in ("--set", f"{key}={value}")]
        done = gft(*command(Path("recipes/wilds", name, file))[1:], *settings)
        assert done.code == 0, done.err
        assert Path(f"runs/wilds/{name}/{RUNS[file]}/model.safetensors").is_file()


def test_the_recipes_go_through(gft, place):
    place("camelyon17", 12)
    dry(gft, "camelyon17")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("camelyon17", 96), ("rxrx1", 256), ("fmow", 224)])
def test_the_recipes_go_through_with_pictures_of_their_own_size(gft, place, resolved, registry, name, size):
    place(name, size)
    dry(gft, name)
    along, _ = build_metrics(resolved(Path("recipes/wilds", name, "gft.yaml")).evaluate, registry)
    assert len(along) >= 4


def test_a_recipe_without_its_data_says_where_it_looked(gft, place):
    place("rxrx1", 4)
    done = gft(*command(Path("recipes/wilds/fmow/pretrain.yaml"))[1:])
    assert done.code == 2
    assert re.search(r"data: .*data/fmow_v1\.1: wanted the folder fmow_v1\.1 as WILDS unpacks it", done.err)
