"""Anchors: which drift is held on to, how it is known, and what is refused."""

import html
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import gftkit
from gftkit.experiment.build import build
from gftkit.kernel.errors import ConfigError, DataError, RunError, UnknownNameError, WeightsError
from gftkit.networks.anchor import Anchor, ExternalAnchor, FrozenAnchor, drift_hash
from gftkit.runs import checkpoint, lineage
from gftkit.runs.resolve import resolve_config
from gftkit.storage.documents import read_json
from gftkit.storage.tensors import digest, read_notes, read_tensors, write_tensors

QUICK = {"steps": 6, "batch_size": 8, "checkpoint_every": 3, "keep_checkpoints": 9, "learning_rate": 0.01}
SMALL = {"name": "mlp", "width": 8, "depth": 1}
EVALUATE = {"every": 6, "count": 32, "metrics": ["path-length"], "solver": {"name": "euler", "steps": 2}}


def tuning(pretrained, **changes):
    """A fine-tune's configuration."""
    return {
        "pretrained": str(pretrained),
        "data": {"name": "gaussian-mixture", "count": 40},
        "schedule": {"name": "constant", "value": 1.0},
        "train": dict(QUICK),
        "evaluate": dict(EVALUATE),
        "seed": 2,
        **changes,
    }


@pytest.fixture(scope="module")
def first(pretrained, tmp_path_factory, registry):
    """The folder of a first fine-tune. Don't write to it."""
    return gftkit.finetune(tuning(pretrained), tmp_path_factory.mktemp("runs") / "first", registry=registry).folder


def other_run(registry, folder, **changes):
    """A pretraining of another seed."""
    config = {
        "drift": SMALL,
        "data": {"name": "two-moons"},
        "train": QUICK,
        "evaluate": EVALUATE,
        "seed": 7,
        **changes,
    }
    return gftkit.pretrain(config, folder, registry=registry).folder


def made(config, registry):
    return build(resolve_config(config, "finetune", registry)[0], registry)


# The hash


def test_the_anchors_hash_is_of_the_weights_and_of_how_the_drift_is_called():
    weights = {"w": torch.arange(3.0), "b": torch.zeros(1)}
    spec = {"drift": {"name": "module", "convention": {"time": "t"}}}
    turned = {"drift": {"name": "module", "convention": {"time": "1 - t"}}}
    known = drift_hash(digest(weights), spec)
    assert known == drift_hash(digest(dict(reversed(weights.items()))), json.loads(json.dumps(spec)))
    assert known != drift_hash(digest(weights), turned)
    assert known != drift_hash(digest({**weights, "w": torch.arange(3.0).double()}), spec)
    assert known != drift_hash(digest({**weights, "b": torch.ones(1)}), spec)
    assert known != drift_hash(digest(weights))


def test_files_do_not_enter_the_anchors_hash_and_other_options_do(registry):
    spec = registry.resolve("dataset", {"name": "arrays", "file": "a.npy", "split": "test"})
    assert "file" not in lineage.without_files(registry, "dataset", spec)
    assert lineage.without_files(registry, "dataset", spec)["split"] == "test"
    nested = {"name": "frechet", "feature": {"name": "digits-classifier"}}
    kept = lineage.without_files(registry, "metric", registry.resolve("metric", nested))
    assert kept["feature"]["name"] == "digits-classifier"


def test_the_anchors_hash_depends_on_the_event_shape_and_not_on_the_folder(first, pretrained, registry, tmp_path):
    moved = shutil.copytree(pretrained, tmp_path / "moved")
    one, other = (made(tuning(folder), registry).networks.anchor.hash for folder in (pretrained, moved))
    assert one == other == read_notes(first / "model.safetensors")["anchor"]
    facts = made(tuning(pretrained), registry).facts
    spec = gftkit.Run.open(pretrained).config.drift
    assert lineage.describe_drift(spec, facts, registry)["event_shape"] == [2]


# What the anchor is


def test_every_anchor_meets_the_contract(pretrained, first, registry):
    for spec, kind in (("frozen", "frozen"), ({"name": "external", "pretrained": str(pretrained)}, "external")):
        anchor = made(tuning(first, anchor=spec), registry).networks.anchor
        assert isinstance(anchor, Anchor)
        assert anchor.describe() == {"kind": kind, "hash": anchor.hash, "parameters": count(anchor.module)}
        assert not anchor.module.training
        assert not any(parameter.requires_grad for parameter in anchor.module.parameters())
        t, x = torch.rand(5), torch.randn(5, 2)
        assert not anchor(t, x).requires_grad


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_an_external_anchor_is_the_other_network(registry, pretrained, tmp_path):
    """Of another width, from its run or from its file: the same function and hash; the drift starts elsewhere."""
    other = other_run(registry, tmp_path / "other")
    t, x = torch.rand(5), torch.randn(5, 2)
    wanted = gftkit.Run.open(other).drift()(t, x)
    shutil.copy(other / "model.safetensors", tmp_path / "bare.safetensors")
    specs = [
        {"name": "external", "pretrained": str(other)},
        {"name": "external", "pretrained": str(tmp_path / "bare.safetensors"), "drift": SMALL},
    ]
    found = [made(tuning(pretrained, anchor=spec), registry) for spec in specs]
    assert isinstance(found[0].networks.anchor, ExternalAnchor)
    for experiment in found:
        assert torch.equal(experiment.networks.anchor(t, x), wanted)
        assert not torch.equal(experiment.networks.drift(t, x), wanted)
    assert (
        found[0].networks.anchor.hash
        == found[1].networks.anchor.hash
        == made(tuning(other), registry).networks.anchor.hash
    )


def test_an_anchor_is_given_the_conditions_that_it_uses_only():
    class Told(nn.Module):
        conditions = ("label",)

        def forward(self, t, x, label):
            return x + label[:, None]

    class Untold(nn.Module):
        def forward(self, t, x):
            return x

    t, x, label = torch.rand(3), torch.zeros(3, 2), torch.arange(3)
    assert torch.equal(FrozenAnchor(Told())(t, x, label=label)[:, 0], label.float())
    assert torch.equal(FrozenAnchor(Untold())(t, x, label=label), x)


def test_conditions_of_a_network_that_declares_none_are_refused():
    """They were dropped without a word: a network called as torch calls it hasn't the attribute."""

    class Undeclared(nn.Module):
        def forward(self, t, x, y=None):
            return x if y is None else x + y[:, None]

    class Declared(Undeclared):
        conditions = ("y",)

    t, x, y = torch.zeros(2), torch.zeros(2, 3), torch.ones(2)
    assert torch.equal(FrozenAnchor(Undeclared())(t, x), x)
    assert torch.equal(FrozenAnchor(Declared())(t, x, y=y), x + 1)
    with pytest.raises(ConfigError, match=r"forward of Undeclared takes y, and its attribute `conditions` doesn't"):
        FrozenAnchor(Undeclared())(t, x, y=y)


def test_a_run_moves_towards_the_anchor_that_it_names(registry, pretrained, tmp_path):
    """At a high temperature the drift goes to the external anchor, and stays at the frozen one."""
    other = other_run(registry, tmp_path / "other", drift={"name": "mlp", "width": 16, "depth": 1})
    t, x = torch.rand(200), torch.randn(200, 2)
    goal, start = (gftkit.Run.open(folder).drift()(t, x) for folder in (other, pretrained))
    apart = {}
    for name, spec in {"frozen": "frozen", "external": {"name": "external", "pretrained": str(other)}}.items():
        config = tuning(pretrained, anchor=spec, schedule={"name": "constant", "value": 1e6})
        config["train"] = {**QUICK, "steps": 60, "learning_rate": 0.03}
        drift = gftkit.finetune(config, tmp_path / name, registry=registry).drift("raw")
        apart[name] = ((drift(t, x) - goal).norm() / (start - goal).norm()).item()
    assert apart["external"] < 0.6
    assert apart["frozen"] > 0.8


# A second fine-tune


def test_a_second_fine_tune_must_name_its_anchor(first, pretrained, registry):
    with pytest.raises(ConfigError, match="is itself a fine-tune") as caught:
        resolve_config(tuning(first), "finetune", registry)
    named = re.findall(r"hash ([0-9a-f]{12})", str(caught.value))
    result = made(tuning(first, anchor="frozen"), registry)
    original = re.search(r"pretrained: (\S+)\}", str(caught.value)).group(1)
    before = made(tuning(first, anchor={"name": "external", "pretrained": original}), registry)
    assert named == [result.networks.anchor.hash[:12], before.networks.anchor.hash[:12]]
    assert original == str(pretrained)
    assert before.networks.anchor.hash == made(tuning(pretrained), registry).networks.anchor.hash
    assert result.networks.anchor.hash != before.networks.anchor.hash


def test_a_fine_tune_from_a_fine_tunes_weights_file_must_name_its_anchor(first, registry, tmp_path):
    config = tuning(first / "model.safetensors", drift={"name": "mlp", "width": 16, "depth": 1})
    with pytest.raises(ConfigError, match="is itself a fine-tune"):
        resolve_config(config, "finetune", registry)
    assert made({**config, "anchor": "frozen"}, registry).networks.anchor.kind == "frozen"
    tensors, _ = read_tensors(first / "model.safetensors")
    save_file(tensors, tmp_path / "bare.safetensors")  # of unknown origin: nothing is ambiguous about it
    assert made({**config, "pretrained": str(tmp_path / "bare.safetensors")}, registry).networks.anchor.kind == "frozen"


def test_the_chain_of_anchors_is_recorded(first, pretrained, registry, tmp_path):
    known = read_notes(first / "model.safetensors")["anchors"]
    assert len(known) == 1
    for name, spec in {"a": "frozen", "b": {"name": "external", "pretrained": str(pretrained)}}.items():
        run = gftkit.finetune(tuning(first, anchor=spec), tmp_path / name, registry=registry)
        notes = read_notes(run.folder / "model.safetensors")
        assert notes["anchors"] == [*known, notes["anchor"]]
        assert checkpoint.latest(run.folder / "checkpoints")[0].notes["anchors"] == notes["anchors"]
        told = read_json(run.folder / "summary.json")["anchor"]
        assert told["kind"] == run.config.anchor["name"]
        assert told["anchors"] == notes["anchors"]
        assert (notes["anchor"] == known[0]) == (name == "b")
        third = tuning(run.folder, anchor="frozen")
        assert made(third, registry).networks.anchors[:2] == tuple(notes["anchors"])
    with pytest.raises(ConfigError, match=re.escape(f"external, pretrained: {pretrained}}}")):
        resolve_config(tuning(run.folder), "finetune", registry)


def test_kind_and_hash_of_the_anchor_are_printed_and_reported(first, registry, tmp_path, capsys):
    run = gftkit.finetune(tuning(first, anchor="frozen"), tmp_path / "run", registry=registry, quiet=False)
    hashed = read_notes(run.folder / "model.safetensors")["anchor"][:12]
    assert f"Anchor: frozen, hash {hashed}." in capsys.readouterr().err
    assert f"Anchor frozen, hash {hashed}, the last of 2 fine-tunes' anchors." in (
        html.unescape((run.folder / "report.html").read_text())
    )


# What is refused


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("frozn", "unknown anchor 'frozn'. Did you mean 'frozen'?"),
        ({"name": "frozen", "copy": True}, "unknown option of anchor 'frozen': 'copy'"),
        ({"name": "external"}, "anchor.pretrained is missing"),
        ({"name": "external", "pretrained": "none"}, "anchor.pretrained: .* is neither a run folder nor a"),
        ({"name": "external", "pretrained": "RUN", "drift": {"name": "mlpp"}}, "unknown drift at anchor.drift: 'mlpp'"),
        (5, "anchor: wanted {name: ...} with one of frozen, adapters-off, external"),
    ],
)
def test_an_anchor_that_is_no_anchor_is_refused(pretrained, registry, spec, message):
    if isinstance(spec, dict) and spec.get("pretrained") == "RUN":
        spec = {**spec, "pretrained": str(pretrained)}
    with pytest.raises((ConfigError, UnknownNameError), match=message.replace("{", r"\{").replace("?", r"\?")):
        resolve_config(tuning(pretrained, anchor=spec), "finetune", registry)


def test_a_pretraining_has_no_anchor(registry):
    config = {"drift": {"name": "mlp"}, "data": {"name": "two-moons"}, "anchor": "frozen"}
    with pytest.raises(ConfigError, match=r"`anchor` belongs to a fine-tune"):
        resolve_config(config, "pretrain", registry)


def test_an_external_anchor_is_checked_like_what_is_fine_tuned(pretrained, registry, tmp_path):
    def refused(folder, error, message, **spec):
        config = tuning(pretrained, anchor={"name": "external", "pretrained": str(folder), **spec})
        with pytest.raises(error, match=message):
            made(config, registry)

    path = other_run(registry, tmp_path / "path", path={"name": "trigonometric"})
    refused(path, ConfigError, r"differs from the anchor\.pretrained run's .* in sigma, alpha")
    shape = other_run(registry, tmp_path / "shape", data={"name": "digits", "count": 20})
    refused(shape, ConfigError, r"wanted a drift for samples of shape \(2,\), got .*, which was trained on \(1, 8, 8\)")
    refused(pretrained, WeightsError, "don't fit the drift", drift={"name": "mlp", "width": 8})
    told = other_run(registry, tmp_path / "told", drift={"name": "mlp", "width": 8, "conditional": True})
    refused(told, ConfigError, "its drift takes the condition label, and the trained drift doesn't")
    unfinished = shutil.copytree(pretrained, tmp_path / "unfinished")
    (unfinished / "model.safetensors").unlink()
    refused(unfinished, RunError, "isn't finished")
    with pytest.raises(DataError, match="wanted samples of shape"):
        made(tuning(shape), registry)


def stopped(folder):
    """A finished run taken back to its checkpoint at step 3."""
    (folder / "model.safetensors").unlink()
    checkpoint.checkpoints_of(folder / "checkpoints")[-1].unlink()
    return folder


def test_a_run_resumes_on_its_own_anchor_only(pretrained, registry, tmp_path):
    """The other network's weights change while the run is stopped; the weights that it starts from don't."""
    other = other_run(registry, tmp_path / "other")
    config = tuning(pretrained, anchor={"name": "external", "pretrained": str(other)})
    whole = gftkit.finetune(config, tmp_path / "whole", registry=registry)
    broken = stopped(shutil.copytree(whole.folder, tmp_path / "broken"))
    model = other / "model.safetensors"
    tensors, notes = read_tensors(model)
    write_tensors(model, {name: 2 * tensor for name, tensor in tensors.items()}, notes)
    with pytest.raises(
        RunError, match=r"the anchor \(external\) has changed since this run started: .* have changed"
    ) as caught:
        gftkit.finetune(config, broken, registry=registry, resume=True)
    assert str(other) in str(caught.value)
    write_tensors(model, tensors, notes)
    gftkit.finetune(config, broken, registry=registry, resume=True)
    for name, tensor in whole.weights()[0].items():
        assert torch.equal(tensor, gftkit.Run.open(broken).weights()[0][name])


def test_a_checkpoint_without_its_anchors_is_refused(first, pretrained, registry, tmp_path):
    broken = stopped(shutil.copytree(first, tmp_path / "broken"))
    path = checkpoint.checkpoints_of(broken / "checkpoints")[-1]
    tensors, notes = read_tensors(path)
    del notes["anchors"]
    write_tensors(path, tensors, notes)
    with pytest.raises(RunError, match=r"the anchor \(frozen\) has changed since this run started"):
        gftkit.finetune(tuning(pretrained), broken, registry=registry, resume=True)
