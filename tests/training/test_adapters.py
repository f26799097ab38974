"""Fine-tunes with adapters: what is trained, what files hold, resume, and what is refused."""

import copy
import importlib
import json
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.adapters import PRETRAIN, ROUND_OFF, close, read_by_peft, run_loop, tuning
from support.paths import ROOT

import gftkit
from gftkit.generation.export import export
from gftkit.kernel.errors import ConfigError, GftkitError, RunError
from gftkit.runs import checkpoint
from gftkit.runs.resolve import resolve_config
from gftkit.runtime import devices
from gftkit.storage.documents import read_json
from gftkit.storage.tensors import read_notes, read_tensors, write_tensors
from gftkit.training.steps import trained_weights


def test_training_moves_the_adapters_alone(source, registry):
    """Bit for bit, over steps with dropout, clipping and an anchor; a plain fine-tune moves all weights."""
    for options, moves in (({"rank": 4}, False), (None, True)):
        config = {key: value for key, value in tuning(source, adapters=options).items() if value is not None}
        train = run_loop(config, registry)
        before = {name: weight.clone() for name, weight in train.steps.drift.named_parameters()}
        frozen = {name for name, weight in train.steps.drift.named_parameters() if not weight.requires_grad}
        for step in range(4):
            train.steps.take(step)
        moved = {name for name, weight in train.steps.drift.named_parameters() if not torch.equal(weight, before[name])}
        assert moved
        assert not moved & frozen
        assert bool(frozen) != moves
        assert len(train.steps.descent.averages.tensors()) == len(before) - len(frozen)


def test_the_default_anchor_is_the_network_with_its_adapters_off(source, registry):
    train = run_loop(tuning(source), registry)
    plain = gftkit.Run.open(source).drift()
    assert train.anchor.kind == "adapters-off"
    given = {"t": torch.rand(4), "x": torch.randn(4, 1, 8, 8), "label": torch.arange(4)}
    for step in range(3):
        train.steps.take(step)
        assert torch.equal(train.anchor(**given), plain(**given))
    assert not torch.equal(train.steps.drift.eval()(**given), plain(**given))
    known = run_loop(tuning(source, anchor="frozen"), registry).anchor
    assert train.anchor.hash == known.hash  # the same function by other means
    assert torch.equal(known(**given), plain(**given))


def test_adapters_off_trains_as_a_frozen_copy_does(source, registry):
    """The same steps, bit for bit: the copy is not needed. With the adapters left on they are others."""
    ends = []
    for anchor in ("adapters-off", "frozen", "on"):
        train = run_loop(tuning(source, anchor="frozen" if anchor == "on" else anchor), registry)
        if anchor == "on":
            train.steps.anchor = lambda t, x, drift=train.steps.drift, **given: drift.eval()(t, x, **given).detach()
            train.steps.anchor.conditions = train.steps.drift.conditions
        for step in range(5):
            train.steps.take(step)
        ends.append([weight.detach().clone() for weight in trained_weights(train.steps.drift)])
    off, frozen, on = ends
    assert all(torch.equal(one, other) for one, other in zip(off, frozen, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(off, on, strict=True))


@pytest.mark.parametrize(
    ("train", "objective"),
    [
        ({"precision": "bfloat16"}, {}),
        ({"gradient_checkpointing": True, "accumulate": 2}, {}),
        ({"channels_last": True}, {"anchor_share": 0.5}),
    ],
    ids=lambda options: "-".join(options),
)
def test_adapters_off_trains_as_a_frozen_copy_whatever_saves_time_or_memory(source, registry, train, objective):
    """Autocast keeps casts of weights; activations are recomputed after the adapters were off: neither may tell."""
    ends = []
    for anchor in ("adapters-off", "frozen"):
        config = tuning(source, anchor=anchor, objective=objective)
        config["train"] |= train
        going = run_loop(config, registry)
        weights = trained_weights(going.steps.drift)
        before = [weight.detach().clone() for weight in weights]
        for step in range(2):
            going.steps.take(step)
        assert all(not torch.equal(one, weight) for one, weight in zip(before, weights, strict=True))
        ends.append([weight.detach().clone() for weight in weights])
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)


def test_a_run_keeps_merged_weights_and_adapters_in_pefts_format(source, tuned, registry):
    run, before = gftkit.Run.open(tuned), gftkit.Run.open(source)
    given = {"t": torch.rand(4), "x": torch.randn(4, 1, 8, 8), "label": torch.arange(4)}
    merged, plain = run.drift(), before.drift()
    assert merged.state_dict().keys() == plain.state_dict().keys()
    loaded = read_by_peft(plain, tuned / "adapter")
    close(loaded(**given), merged(**given))
    assert not torch.equal(before.drift()(**given), merged(**given))
    assert json.loads((tuned / "adapter/adapter_config.json").read_text())["r"] == 4
    told = read_json(tuned / "summary.json")
    assert told["anchor"]["kind"] == "adapters-off"
    assert told["anchor"]["parameters"] == 0
    assert told["adapters"]["trained"] < told["adapters"]["parameters"] / 2
    seen = [line["anchor_distance"] for line in run.history() if line["kind"] == "monitor"]
    assert seen[0] == 0
    assert seen[-1] > 0


def test_with_its_base_written_a_run_needs_no_peft_to_be_sampled(source, tuned, registry, tmp_path, monkeypatch):
    options = {"rank": 4, "dropout": 0.1, "write_base": True}
    whole = gftkit.finetune(tuning(source, adapters=options), tmp_path / "whole", registry=registry)
    expected, _ = gftkit.Run.open(tuned).samples(3)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert torch.equal(gftkit.Run.open(whole.folder).samples(3)[0], expected)
    with pytest.raises(ConfigError, match="adapters require the package peft"):
        gftkit.Run.open(tuned).drift("raw")


def test_checkpoints_hold_adapters_only(source, tuned):
    found = checkpoint.latest(tuned / "checkpoints")[0]
    names = [*found.part("drift."), *found.part("ema.")]
    assert names
    assert all("lora_" in name for name in names)
    whole = checkpoint.latest(source / "checkpoints")[0]
    assert len(whole.part("drift.")) == len(read_tensors(source / "model.safetensors")[0])


def test_raw_weights_are_the_last_steps(source, tuned, registry, tmp_path):
    run = gftkit.Run.open(tuned)
    given = {"t": torch.rand(4), "x": torch.randn(4, 1, 8, 8), "label": torch.arange(4)}
    train = run_loop(tuning(source), registry)
    for step in range(6):
        train.steps.take(step)
    close(run.drift("raw")(**given), train.steps.drift.eval()(**given))
    assert not torch.equal(run.drift("raw")(**given), run.drift()(**given))


@pytest.mark.parametrize("stop", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_a_resumed_run_with_adapters_equals_an_undisturbed_one(source, tuned, registry, tmp_path, stop):
    broken = stopped(tuned, tmp_path / "broken", stop)
    gftkit.finetune(tuning(source), broken, registry=registry, resume=True)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        one, other = load_file(tuned / name), load_file(broken / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (tuned / "metrics.jsonl").read_text() == (broken / "metrics.jsonl").read_text()


def stopped(tuned, folder, stop):
    """A copy of a run, taken back to its checkpoint at a step."""
    shutil.copytree(tuned, folder)
    (folder / "model.safetensors").unlink()
    for path in checkpoint.checkpoints_of(folder / "checkpoints"):
        if int(path.stem.removeprefix("step-")) > stop:
            path.unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= stop))
    return folder


def test_adapters_belong_to_the_weights_that_they_were_trained_on(source, tuned, registry, tmp_path):
    """Another network under the adapters, with the anchor elsewhere: resume and raw weights are refused."""
    moved = shutil.copytree(source, tmp_path / "moved")
    config = tuning(moved, anchor={"name": "external", "pretrained": str(source)})
    run = gftkit.finetune(config, tmp_path / "run", registry=registry)
    broken = stopped(run.folder, tmp_path / "broken", 3)
    run.drift("raw")
    tensors, notes = read_tensors(moved / "model.safetensors")
    write_tensors(moved / "model.safetensors", {name: 1.5 * held for name, held in tensors.items()}, notes)
    with pytest.raises(RunError, match=r"contains adapters for .*moved, and the weights there have changed"):
        gftkit.finetune(config, broken, registry=registry, resume=True)
    for weights in ("raw", "ema"):
        with pytest.raises(RunError, match=r"contains adapters for .*moved, and the weights there have changed. Rest"):
            run.drift(weights)
    shutil.rmtree(moved)
    for weights in ("raw", "ema"):
        with pytest.raises(RunError, match=r"contains adapters for .*moved, which isn't there any more. Put it back"):
            run.drift(weights)


def test_a_second_fine_tune_with_adapters_starts_from_the_merged_weights(tuned, registry):
    with pytest.raises(ConfigError, match="`anchor: adapters-off`"):
        resolve_config(tuning(tuned), "finetune", registry)
    train = run_loop(tuning(tuned, anchor="adapters-off"), registry)
    given = {"t": torch.rand(4), "x": torch.randn(4, 1, 8, 8), "label": torch.arange(4)}
    assert torch.equal(train.anchor(**given), gftkit.Run.open(tuned).drift()(**given))
    assert train.experiment.networks.anchors == (*read_notes(tuned / "model.safetensors")["anchors"], train.anchor.hash)


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ("lore", "adapters.name: wanted 'lora' or 'loha' or 'lokr', got 'lore'"),
        ({"rnak": 4}, "unknown option of adapters: 'rnak'. Did you mean 'rank'"),
        ({"rank": 0}, "adapters.rank: wanted int, > 0, got 0"),
        ({"dropout": 1.0}, "adapters.dropout: wanted float"),
        ({"targets": 3}, "adapters.targets: wanted str or list of str or null, got 3"),
        (7, "adapters: wanted a mapping, got 7"),
    ],
)
def test_options_of_adapters_are_checked(source, registry, adapters, message):
    with pytest.raises(GftkitError, match=re.escape(message)):
        resolve_config(tuning(source, adapters=adapters), "finetune", registry)


def test_adapters_belong_to_a_fine_tune(source, registry):
    with pytest.raises(ConfigError, match="`adapters` belongs to a fine-tune"):
        resolve_config({**PRETRAIN, "adapters": "lora"}, "pretrain", registry)
    with pytest.raises(ConfigError, match="adapters-off requires adapters, and this fine-tune trains all weights"):
        resolve_config(tuning(source, adapters=None, anchor="adapters-off"), "finetune", registry)


def test_sharded_weights_are_refused(source, registry, monkeypatch):
    monkeypatch.setattr(devices, "is_sharded", lambda _: True)
    with pytest.raises(ConfigError, match="adapters: require whole weights on every device, and FSDP shards them"):
        run_loop(tuning(source), registry)


def test_a_foreign_network_is_adapted(registry, tmp_path, monkeypatch):
    """Its drift brings the weights; there is no pretrained run to look at. Its files have the network's own names."""
    (tmp_path / "own_for_adapters.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.inner, self.mid, self.outer = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 2)\n"
        "        self.norm = nn.LayerNorm(8)\n\n"
        "    def forward(self, x, t):\n"
        "        return self.outer(self.norm(self.mid(self.inner(x).sin()))) * t[:, None]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    net = importlib.import_module("own_for_adapters").Net()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    drift = {"name": "module", "target": "own_for_adapters:Net", "weights": str(tmp_path / "net.pt")}
    config = tuning("", drift={**drift, "convention": {"call": "x, t", "time": "reversed"}}, data={"name": "two-moons"})
    del config["pretrained"]
    config["adapters"] = {"rank": 6, "targets": "inner|mid|outer", "also_train": ["norm"]}
    run = gftkit.finetune(config, tmp_path / "run", registry=registry)
    t, x = torch.rand(4), torch.randn(4, 2)
    train = run_loop(config, registry)
    assert torch.equal(train.anchor(t, x), -net(x, 1 - t))
    for step in range(6):
        train.steps.take(step)
    close(run.drift("raw")(t, x), train.steps.drift.eval()(t, x))
    assert torch.equal(train.anchor(t, x), -net(x, 1 - t))
    assert not torch.equal(run.drift()(t, x), -net(x, 1 - t))
    broken = stopped(run.folder, tmp_path / "broken", 3)
    gftkit.finetune(config, broken, registry=registry, resume=True)
    assert torch.equal(gftkit.Run.open(broken).drift()(t, x), run.drift()(t, x))
    for weights in ("ema", "raw"):
        out, wanted = tmp_path / weights, -run.drift(weights)(1 - t, x)
        (file,) = export(run, out, "merged", weights)
        assert (wanted - net(x, t)).abs().max() > 100 * ROUND_OFF * wanted.abs().max()
        merged = type(net)()
        merged.load_state_dict(load_file(file))
        close(merged(x, t), wanted)
        export(run, out, "peft", weights)
        close(read_by_peft(copy.deepcopy(net), out)(x, t), wanted)
        close(read_by_peft(copy.deepcopy(net), out).merge_and_unload()(x, t), wanted)
    written = read_by_peft(copy.deepcopy(net), run.folder / "adapter")
    close(written(x, t), -run.drift()(1 - t, x))
    # what was exported is a foreign network's weights again, and a fine-tune's start
    again = {**run.config.drift, "weights": str(tmp_path / "ema/model.safetensors")}
    path = registry.build("path", {"name": "linear"})
    assert torch.equal(registry.build("drift", again, path=path)(t, x), run.drift()(t, x))
    bare = {**config, "adapters": None, "anchor": "frozen", "pretrained": again["weights"]}
    bare["drift"] = {**config["drift"], "weights": None}
    assert torch.equal(run_loop(bare, registry).anchor(t, x), run.drift()(t, x))


@pytest.mark.slow
def test_the_recipe_comes_near_full_fine_tuning(registry, tmp_path):
    """A third of the demo's steps: the recipe against training all weights as the demo does; rank 1 falls behind."""
    demo, lora = (ROOT / "recipes" / name for name in ("demo", "lora"))
    pre = ["train.steps=800", "evaluate.every=800", "evaluate.count=50"]
    folder = gftkit.pretrain(demo / "pretrained.yaml", tmp_path / "pre", registry=registry, overrides=pre).folder
    quick = [f"pretrained={folder}", "train.steps=500", "evaluate.every=500", "monitors=[]"]
    quick.append("evaluate.metrics=[{name: frechet, feature: {name: digits-classifier}}]")
    found = {}
    full, adapted = demo / "exponential.yaml", lora / "gft.yaml"
    for name, recipe, more in (("full", full, []), ("lora", adapted, []), ("rank 1", adapted, ["adapters.rank=1"])):
        run = gftkit.finetune(recipe, tmp_path / name, registry=registry, overrides=[*quick, *more])
        found[name] = read_json(run.folder / "summary.json")["ema"]["frechet"]
    assert found["lora"] < 1.15 * found["full"], found
    assert found["rank 1"] > 1.3 * found["full"], found
