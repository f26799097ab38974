"""The command line, as a process: what it prints, writes and ends with. Bad input is in test_bad_input.py."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import load_file

import gftkit
from gftkit.api import Run
from gftkit.cli import app as cli
from gftkit.cli.sections import SECTIONS
from gftkit.runs.schema import FINETUNE_KEYS

RUN_FILES = {
    "config.yaml", "environment.json", "model.safetensors", "checkpoints", "metrics.jsonl", "samples.png",
    "report.html", "summary.json", "seconds.jsonl",
}  # fmt: skip


def listing(folder):
    return {path.name for path in folder.iterdir()}


# As processes


def test_help_answers_without_torch(process):
    code = (
        "import sys; from gftkit.cli.app import main\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'numpy', 'yaml') if name in sys.modules], file=sys.stderr)"
    )
    for arguments in (["--help"], ["finetune", "--help"], ["plugins", "show", "-h"]):
        done = process(code, *arguments, start=("-c",))
        assert done.code == 0
        assert "Usage:" in done.out
        assert done.err.strip() == "[]"


def test_version(process):
    done = process("--version")
    assert (done.code, done.out.strip(), done.err) == (0, f"gftkit {gftkit.__version__}", "")


@pytest.mark.parametrize("in_process", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_pretrain_finetune_sample_and_evaluate(
    process, gft, write_config, pretrain_config, finetune_config, tmp_path, in_process
):
    """Runs are made by processes of their own; they are sampled and evaluated here, or (slow) by further processes."""
    command = gft if in_process else process
    config = write_config(pretrain_config, "pre.yaml")
    done = process("pretrain", config, "--set", "train.steps=12", "--set", "drift.width=8", "--device", "cpu")
    assert done.code == 0, done.err
    assert "energy" in done.out
    assert "Run in runs/pre: open runs/pre/report.html" in done.out
    pre = tmp_path / "runs" / "pre"
    assert listing(pre) == RUN_FILES
    assert yaml.safe_load((pre / "config.yaml").read_text())["train"]["steps"] == 12

    config = write_config({**finetune_config, "pretrained": "runs/pre"}, "fine.yaml")
    done = process("finetune", config, "--out", "out/gft", "--json", "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    summary = json.loads(done.out)
    assert summary["run"] == "out/gft"
    assert summary["steps"] == 10
    assert set(summary["ema"]) == {"energy", "energy_stderr", "energy_low", "energy_high"}
    run = tmp_path / "out" / "gft"
    assert listing(run) == RUN_FILES
    environment = json.loads((run / "environment.json").read_text())
    assert environment["components"]["schedule"]["plugin"] == "gftkit-schedules"
    assert environment["components"]["schedule"]["distribution"] == "gftkit"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"train", "evaluation"}

    done = command("sample", run, "--count", "5", "--seed", "3", "--solver", "heun", "--steps", "2", "--json")
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert (answer["count"], answer["seed"]) == (5, 3)
    assert np.load(answer["file"])["samples"].shape == (5, 2)

    done = command("evaluate", run, "--set", "evaluate.count=24", "--json")
    assert (done.code, done.err) == (0, "")
    assert set(json.loads(done.out)) == {"energy", "energy_stderr", "energy_low", "energy_high"}


# Inside this process, which is faster


def test_no_command_shows_the_help(gft):
    done = gft()
    assert "Usage:" in done.out + done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("arguments", [["pretrian"], ["pretrain"], ["sample", "run", "--cuont", "3"]])
def test_a_wrong_command_ends_with_2(gft, arguments):
    done = gft(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_plugins_as_json(gft, registry):
    done = gft("plugins", "--json")
    assert (done.code, done.err) == (0, "")
    listed = json.loads(done.out)
    known = {(kind, name) for kind in registry.kinds() for name in registry.names(kind)}
    assert {(component["kind"], component["name"]) for component in listed["components"]} == known
    assert {plugin["status"] for plugin in listed["plugins"]} == {"loaded"}
    assert all(plugin["distribution"] and plugin["version"] for plugin in listed["plugins"])


def test_plugins_as_a_table(gft, registry):
    done = gft("plugins")
    assert done.code == 0
    for kind in registry.kinds():
        assert all(name in done.out for name in registry.names(kind))


def test_plugins_show(gft):
    done = gft("plugins", "show", "schedule", "exponential")
    assert done.code == 0
    for words in ("schedule exponential", "plugin gftkit-schedules", "Exponential cooling", "zero_from", "float, > 0"):
        assert words in done.out
    answer = json.loads(gft("plugins", "show", "dataset", "arrays", "--json").out)
    assert {option["name"]: option["required"] for option in answer["options"]}["file"] is True


def test_plugins_show_has_types_in_brackets(gft):
    """What stands in square brackets isn't taken for markup."""
    done = gft("plugins", "show", "dataset", "gaussian-mixture")
    assert done.code == 0
    assert "list" in done.out
    assert "split" in done.out


@pytest.mark.parametrize("section", SECTIONS)
def test_the_keys_of_a_section(gft, section):
    listed = json.loads(gft("keys", section, "--json").out)
    shown = gft("keys", section)
    assert (shown.code, shown.err) == (0, "")
    assert listed
    for option in listed:
        assert option["name"] in shown.out
        assert option["help"]


def test_the_keys_of_a_configuration(gft):
    names = {option["name"] for option in json.loads(gft("keys", "--json").out)}
    assert names == set(FINETUNE_KEYS)
    shown = gft("keys").out
    assert all(name in shown for name in (*names, *SECTIONS))


def test_keys_of_an_unknown_section_are_refused(refused):
    assert "unknown section 'trian'. Did you mean 'train'?" in refused("keys", "trian")
    assert "`gft plugins show dataset NAME`" in refused("keys", "data")
    assert "`gft plugins show schedule NAME`" in refused("keys", "schedule")


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [cli.PATIENCE])])
def test_only_the_first_process_of_a_node_reports_an_error(refused, monkeypatch, rank, waits):
    slept = []
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(cli.time, "sleep", slept.append)
    assert "none.yaml: there is no such file" in refused("pretrain", "none.yaml")
    assert slept == waits


def test_a_blocked_plugin_is_listed(gft, monkeypatch):
    monkeypatch.setenv("GFTKIT_BLOCK", "gftkit-monitors")
    assert f"plugin 'gftkit-monitors' of gftkit {gftkit.__version__} blocked" in gft("plugins").out


def test_samples_in_every_format(gft, pretrained, tmp_path, with_pictures):
    for name in ("s.npz", "s.safetensors", "s.png"):
        done = gft("sample", pretrained, "--count", 6, "--seed", 2, "--out", name)
        assert (done.code, done.out.strip()) == (0, f"6 samples in {name}"), done.err
    arrays = [np.load(tmp_path / "s.npz")["samples"], load_file(tmp_path / "s.safetensors")["samples"]]
    assert arrays[0].shape == (6, 2)
    assert np.array_equal(*arrays)
    with Image.open(tmp_path / "s.png") as picture:
        assert min(picture.size) > 50


def test_samples_depend_on_the_seed_only(gft, pretrained, tmp_path):
    for name, seed in (("a.npz", 1), ("b.npz", 1), ("c.npz", 2)):
        assert gft("sample", pretrained, "--count", 4, "--seed", seed, "--out", name).code == 0
    a, b, c = (np.load(tmp_path / name)["samples"] for name in ("a.npz", "b.npz", "c.npz"))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_raw_weights_are_not_the_averaged_ones(gft, pretrained, tmp_path):
    for weights in ("raw", "ema"):
        assert gft("sample", pretrained, "--count", 4, "--weights", weights, "--out", f"{weights}.npz").code == 0
    raw, ema = (np.load(tmp_path / f"{weights}.npz")["samples"] for weights in ("raw", "ema"))
    assert not np.array_equal(raw, ema)


def test_images_are_sampled_in_their_own_values(gft, write_config, pretrain_config, tmp_path):
    pretrain_config["data"] = {"name": "digits", "count": 40}
    pretrain_config["drift"]["conditional"] = True
    config = write_config(pretrain_config)
    assert gft("pretrain", config, "--out", "run", "--json").code == 0
    assert gft("sample", "run", "--count", 12, "--out", "s.npz").code == 0
    found = np.load(tmp_path / "s.npz")
    assert found["samples"].shape == (12, 1, 8, 8)
    assert found["samples"].mean() > 2  # of 0..16, not of -1..1
    assert found["label"].tolist() == [*range(10), 0, 1]
    assert gft("sample", "run", "--count", 3, "--label", 7, "--out", "folder").code == 0
    assert listing(tmp_path / "folder") == {"000000.png", "000001.png", "000002.png"}
    assert gft("sample", "run", "--label", 10, "--out", "other").code == 2
    # What is written anew leaves nothing of before, and what others put there stays.
    (tmp_path / "folder" / "mine.png").touch()
    assert gft("sample", "run", "--count", 2, "--out", "folder", "--force").code == 0
    assert listing(tmp_path / "folder") == {"000000.png", "000001.png", "mine.png"}
    (tmp_path / "more.parts").mkdir()
    (tmp_path / "more.parts" / "mine.txt").touch()
    assert "contains other files" in gft("sample", "run", "--count", 2, "--out", "more").err
    assert listing(tmp_path / "more.parts") == {"mine.txt"}
    # Densities are of the same values, wherever the samples come from.
    np.savez(tmp_path / "s.npz", samples=found["samples"].clip(0, 16), label=found["label"])
    samples = "{name: arrays, file: s.npz, key: samples, labels: label}"
    options = ("--solver", "{name: euler, steps: 1}", "--count", 4, "--probes", 1, "--json")
    there, scaled = (gft("likelihood", "run", *options, *more) for more in ((), ("--data", samples)))
    assert (there.err, scaled.err) == ("", "")
    there, scaled = json.loads(there.out), json.loads(scaled.out)
    assert abs(there["bits_per_dim"] - scaled["bits_per_dim"]) < 3
    np.savez(tmp_path / "s.npz", samples=found["samples"] * 16, label=found["label"])
    assert "the run's data lie in (0.0, 16.0)" in gft("likelihood", "run", *options, "--data", samples).err
    other = "{name: mnist5k, size: 8, count: 20}"
    assert "densities of different values" in gft("likelihood", "run", *options, "--data", other).err


def test_a_target_that_exists_is_kept_unless_forced(gft, pretrained, tmp_path):
    (tmp_path / "s.npz").write_text("mine")
    done = gft("sample", pretrained, "--count", 2, "--out", "s.npz")
    assert (done.code, done.err.strip()) == (
        2, "Error: s.npz exists. Choose another --out, or overwrite it with --force.",
    )  # fmt: skip
    assert (tmp_path / "s.npz").read_text() == "mine"
    assert gft("sample", pretrained, "--count", 2, "--out", "s.npz", "--force").code == 0
    assert np.load(tmp_path / "s.npz")["samples"].shape == (2, 2)


def test_an_interrupted_run_is_resumed_where_it_stopped(gft, write_config, pretrain_config, tmp_path):
    config = write_config(pretrain_config)
    assert gft("pretrain", config, "--out", "whole", "--json").code == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    for name in ("model.safetensors", "summary.json", "checkpoints/step-000000020.safetensors"):
        (tmp_path / "half" / name).unlink()
    assert not Run.open(tmp_path / "half").finished
    assert gft("sample", "half").code == 2
    done = gft("pretrain", config, "--out", "half", "--resume", "--json")
    assert done.code == 0, done.err
    whole, half = (Run.open(tmp_path / name).weights(weights)[0] for name in ("whole", "half") for weights in ("raw",))
    assert all(torch.equal(whole[key], half[key]) for key in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "half" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 10, 20, 20, 20]


def test_resuming_a_finished_run_changes_nothing(gft, run_copy, write_config, pretrain_config):
    before = {path: path.stat().st_mtime_ns for path in run_copy.rglob("*")}
    done = gft("pretrain", write_config(pretrain_config), "--out", run_copy, "--resume", "--json")
    assert done.code == 0
    assert json.loads(done.out)["steps"] == 20
    assert {path: path.stat().st_mtime_ns for path in run_copy.rglob("*")} == before


def test_evaluate_shows_a_table(gft, pretrained):
    done = gft("evaluate", pretrained, "--weights", "raw", "--set", "evaluate.metrics=[path-length]")
    assert done.code == 0
    assert "path_length" in done.out
    assert "±" in done.out


def test_a_diverging_run_ends_with_1_and_keeps_its_checkpoint(gft, write_config, pretrain_config, tmp_path):
    pretrain_config["train"] |= {
        "learning_rate": 1e30,
        "optimizer": "sgd",
        "clip": None,
        "checkpoint_every": 1,
        "warmup": 2,
    }
    done = gft("pretrain", write_config(pretrain_config), "--out", "run", "--json")
    assert done.code == 1
    assert done.err.startswith("Error: the loss or its gradient is not finite at step")
    assert "temperature 0" in done.err
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.cuda
def test_training_on_a_device(gft, write_config, pretrain_config):
    assert gft("pretrain", write_config(pretrain_config), "--out", "run", "--device", "cuda", "--json").code == 0
