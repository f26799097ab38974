"""Exported weights and adapters: what is written, and that the plain network and peft read it."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from support.adapters import close, read_by_peft, run_loop, tuning

import gftkit
from gftkit.generation.export import export
from gftkit.kernel.errors import ConfigError, RunError, WeightsError
from gftkit.networks import adapters
from gftkit.storage.tensors import read_notes, read_tensors, write_tensors


def test_exported_weights_and_adapters_are_those_of_the_run(source, tuned, registry, tmp_path):
    run = gftkit.Run.open(tuned)
    given = {"t": torch.rand(4), "x": torch.randn(4, 1, 8, 8), "label": torch.arange(4)}
    for weights in ("ema", "raw"):
        out = tmp_path / weights
        (file,) = export(run, out, "merged", weights)
        plain = run.drift()
        plain.load_state_dict(load_file(file))
        wanted = run.drift(weights)(**given)
        assert torch.equal(plain(**given), wanted)
        # Notes of the run's own file that say where its weights are: this one has them.
        assert run.notes.keys() - read_notes(file).keys() == {"adapter", "start"}
        files = export(run, out, "peft", weights)
        assert [path.name for path in files] == [adapters.CONFIG, adapters.WEIGHTS]
        loaded = read_by_peft(gftkit.Run.open(source).drift(), out)
        close(loaded(**given), wanted)
        with pytest.raises(RunError, match="exists"):
            export(run, out, "peft", weights)
        export(run, out, "peft", weights, force=True)
    with pytest.raises(ConfigError, match="has no adapters: all its weights were trained"):
        export(gftkit.Run.open(source), tmp_path / "none", "peft")
    again = tuning(tmp_path / "ema/model.safetensors", drift=run.config.drift, anchor="frozen", adapters=None)
    assert run_loop(again, registry).experiment.networks.anchors[:-1] == tuple(
        read_notes(tuned / "model.safetensors")["anchors"]
    )


@pytest.mark.parametrize("file_format", ["merged", "peft"])
def test_adapters_of_another_run_are_refused(file_format, tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "run")
    file = tmp_path / "run/adapter" / adapters.WEIGHTS
    tensors, notes = read_tensors(file)
    write_tensors(file, {name: 1.5 * tensor for name, tensor in tensors.items()}, notes)
    with pytest.raises(WeightsError, match="these aren't the adapters of this run"):
        export(gftkit.Run.open(tmp_path / "run"), tmp_path / "out", file_format)
    assert not (tmp_path / "out").exists()
