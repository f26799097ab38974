"""Exported weights and adapters: what is written, and that the plain network and peft read it."""

import pytest
import torch
from safetensors.torch import load_file
from support.adapters import close, read_by_peft, run_loop, tuning

import gftkit
from gftkit.generation.export import export
from gftkit.kernel.errors import ConfigError, RunError
from gftkit.networks import adapters
from gftkit.storage.tensors import read_notes


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
