"""Whatever a user can get wrong: exit code 2, one clear message, no traceback, nothing lost or overwritten."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

SQUARE = '''
import gftkit, torch

class Flat(torch.nn.Module):
    """A drift that forgets the shape of its input."""

    def forward(self, t, x):
        return x.flatten(1).sum(1)

@gftkit.hookimpl
def gftkit_drifts():
    return {"flat": Flat}
'''


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (Path(self.marker),))


# As a process, once: the same code runs below inside this one


def test_an_error_is_one_message_and_with_debug_a_traceback(process, gft, write_config, pretrain_config, tmp_path):
    config = write_config({**pretrain_config, "path": {"name": "lineer"}})
    wanted = "unknown path 'lineer'. Did you mean 'linear'? Known: affine, brownian-bridge, linear, trigonometric."
    done = process("pretrain", config)
    assert (done.code, done.out, done.err) == (2, "", f"Error: {wanted}\n")
    assert list(tmp_path.iterdir()) == [config]
    done = gft("--debug", "pretrain", config)
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.err.endswith(f"Error: {wanted}\n")


# Names, types, ranges


def test_unknown_components_and_options_are_refused(pretraining):
    assert "unknown drift 'mpl'. Did you mean 'mlp'?" in pretraining(drift={"name": "mpl"})
    message = pretraining(drift={"name": "mlp", "widht": 8})
    assert "unknown option of drift 'mlp': 'widht'. Did you mean 'width'? Known:" in message
    assert "event_shape" not in message  # the kernel fills it in
    assert "'optimizer'" in pretraining("train.optimiser=adam")
    assert "'adam'" in pretraining("train.optimizer=adaam")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("drift.width=wide", "drift.width: wanted int, > 0, got 'wide' (str)"),
        ("train.learning_rate=0", "train.learning_rate: wanted float, > 0, got 0"),
        ("evaluate.metrics=[[1]]", "evaluate.metrics: wanted list of str or dict or null, got [[1]]"),
        ("train.optimizer={name: adam, momentum: 0.9}", "train.optimizer (adam):"),
        ("path={name: affine, alpha: t + 1}", "path (path 'affine'): alpha(0) must be 0"),
        ("evaluate.solver.name=euler-maruyama", None),
        ("path={name: brownian-bridge}", "solver Euler solves ODEs only"),
        ("drift.conditional=true", None),
        ("train.steps", "--set train.steps: wanted a.b=c"),
    ],
)
def test_wrong_values_of_options_are_refused(pretraining, gft, write_config, pretrain_config, setting, message):
    if message is None:  # the twin: these are fine
        config = write_config({**pretrain_config, "train": {"steps": 2, "batch_size": 8}})
        assert gft("pretrain", config, "--out", "new", "--json", "--set", setting).code == 0
    else:
        assert message in pretraining(setting)


def test_square_brackets_are_shown(pretraining):
    assert "got '[red]x[/blue]'" in pretraining("drift.width='[red]x[/blue]'")


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "drift: 1\ndrift: 2"])
def test_broken_configuration_files_are_refused(refused, tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    assert "c.yaml" in refused("pretrain", "c.yaml")
    assert "none.yaml: there is no such file" in refused("pretrain", "none.yaml")


def test_a_missing_device_is_refused(refused, write_config, pretrain_config):
    assert "wanted auto, cpu or cuda" in refused("pretrain", write_config(pretrain_config), "--device", "gpu")


# Data


def test_data_with_nan_names_file_and_row(pretraining, tmp_path):
    values = np.zeros((30, 2), dtype=np.float32)
    values[17, 1] = np.nan
    np.save(tmp_path / "s.npy", values)
    message = pretraining(data={"name": "arrays", "file": "s.npy"})
    assert "s.npy" in message
    assert "row 17" in message


def test_held_out_data_with_nan_names_its_key(pretraining, pretrain_config, tmp_path):
    np.save(tmp_path / "s.npy", np.full((4, 2), np.inf))
    message = pretraining(evaluate={"data": {"name": "arrays", "file": "s.npy"}})
    assert message.startswith("evaluate.data")
    assert "s.npy" in message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((0, 2)), "wanted samples of shape (n, *event) with n > 0, got (0, 2)"),
        (np.zeros(5), "wanted samples of shape (n, *event), got (5,)"),
        (np.array([["a", "b"]]), "wanted real numbers"),
    ],
)
def test_arrays_that_are_no_samples_are_refused(pretraining, tmp_path, values, words):
    np.save(tmp_path / "s.npy", values)
    message = pretraining(data={"name": "arrays", "file": "s.npy"})
    assert "s.npy" in message
    assert words in message


def test_empty_and_missing_data_are_refused(pretraining, tmp_path):
    (tmp_path / "empty.npy").touch()
    (tmp_path / "pictures").mkdir()
    assert "empty.npy" in pretraining(data={"name": "arrays", "file": "empty.npy"})
    assert "none.npy" in pretraining(data={"name": "arrays", "file": "none.npy"})
    assert "pictures" in pretraining(data={"name": "image-folder", "folder": "pictures"})
    assert "count: 5000 samples wanted" in pretraining(data={"name": "digits", "count": 5000})


def test_data_of_another_shape_than_the_pretrained_runs_are_refused(finetuning, tmp_path):
    np.save(tmp_path / "s.npy", np.zeros((9, 3)))
    message = finetuning(data={"name": "arrays", "file": "s.npy"})
    assert "data: wanted samples of shape (2,), as the pretrained run" in message
    assert "got (3,)" in message


def test_held_out_data_of_another_shape_are_refused(pretraining):
    message = pretraining(evaluate={"data": {"name": "digits"}})
    assert "evaluate.data: wanted samples of shape (2,), like the rest of the run, got (1, 8, 8)" in message


@pytest.mark.parametrize("suffix", [".pt", ".npy", ".npz"])
def test_a_pickle_as_data_is_never_run(pretraining, tmp_path, suffix):
    file, marker = tmp_path / f"s{suffix}", tmp_path / "marker"
    if suffix == ".pt":
        torch.save({"x1": Evil(marker)}, file)
    elif suffix == ".npy":
        np.save(file, np.array([Evil(marker)], dtype=object), allow_pickle=True)
    else:
        np.savez(file, x1=np.array([Evil(marker)], dtype=object))
    message = pretraining(data={"name": "arrays", "file": file.name})
    assert file.name in message
    assert "gftkit never does" in message
    assert not marker.exists()


# Plugins


def test_a_drift_whose_output_has_another_shape_is_refused(pretraining, distribution, monkeypatch):
    monkeypatch.syspath_prepend(distribution("flat-drift", {"flat": "flat_drift"}, {"flat_drift": SQUARE}))
    message = pretraining(drift={"name": "flat"})
    assert "drift 'flat': wanted an output of its input's shape (2, 2), got (2,)" in message


def test_a_plugin_that_fails_to_import_is_named(
    pretraining, gft, distribution, monkeypatch, write_config, pretrain_config
):
    monkeypatch.syspath_prepend(distribution("sick", {"sick": "sick_one"}, {"sick_one": "import not_there_at_all"}))
    message = pretraining(coupling={"name": "icy"})
    assert "unknown coupling 'icy'" in message
    assert "plugin 'sick' of sick 1.0 may provide it but failed to load: ModuleNotFoundError" in message
    assert "plugin 'sick' of sick 1.0 failed: ModuleNotFoundError" in gft("plugins").out
    assert gft("pretrain", write_config(pretrain_config), "--out", "new", "--json").code == 0


def test_plugins_that_claim_one_name_are_refused(pretraining, refused, distribution, monkeypatch):
    source = SQUARE.replace('"flat": Flat', '"mlp": Flat')
    monkeypatch.syspath_prepend(distribution("flat-mlp", {"flat": "flat_mlp"}, {"flat_mlp": source}))
    for message in (pretraining(), refused("plugins")):
        assert "drift 'mlp' is registered twice" in message
        assert "plugin 'flat' of flat-mlp 1.0" in message
        assert "plugin 'gftkit-drifts' of gftkit" in message


def test_a_config_that_names_itself_survives(refused, write_config, pretrain_config, tmp_path):
    """The configuration is only read."""
    config = write_config({**pretrain_config, "seed": -1})
    before = config.read_bytes()
    refused("pretrain", config)
    assert config.read_bytes() == before
    assert yaml.safe_load(before)["seed"] == -1
