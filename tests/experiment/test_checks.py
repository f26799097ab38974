"""Checks before a run: labels, the scale of the data, and files that are no weights."""

from pathlib import Path

import numpy as np
import pytest
from support.runs_on_moons import PRETRAIN

import gftkit
from gftkit.experiment.build import build
from gftkit.experiment.checks import check_anchor
from gftkit.kernel.errors import ConfigError, DataError, RunError, WeightsError
from gftkit.runs import checkpoint
from gftkit.runs.resolve import resolve_config


def test_labels_that_a_conditional_drift_does_not_know_are_refused(tmp_path, registry):
    config = {**PRETRAIN, "drift": {"name": "mlp", "width": 16, "depth": 1, "conditional": True}}
    before = gftkit.pretrain(config, tmp_path / "pre", registry=registry)
    tuning = {"pretrained": str(before.folder), "data": {"name": "gaussian-mixture"}, "schedule": {"name": "zero"}}
    with pytest.raises(DataError, match="label"):
        gftkit.finetune(tuning, tmp_path / "run", registry=registry)
    tuning["data"] = {"name": "gaussian", "event_shape": [2]}
    with pytest.raises(DataError, match="have no labels"):
        gftkit.finetune(tuning, tmp_path / "run", registry=registry)


def test_data_far_outside_the_scale_of_a_pretrained_drift_are_warned_of(tmp_path, registry, capsys):
    """A drift trained on [-1, 1], and arrays in 0..16, which are never rescaled; the same within [-1, 1] pass."""
    config = {**PRETRAIN, "data": {"name": "digits", "count": 40}, "coupling": {"name": "independent"}}
    before = gftkit.pretrain(config, tmp_path / "pre", registry=registry, overrides=["train.steps=2"])
    for scale, warned in ((16.0, True), (1.0, False)):
        np.save(tmp_path / "data.npy", np.full((30, 1, 8, 8), scale, dtype=np.float32))
        tuning = {
            "pretrained": str(before.folder),
            "data": {"name": "arrays", "file": str(tmp_path / "data.npy")},
            "schedule": {"name": "zero"},
            "train": {"steps": 1, "batch_size": 8},
            "evaluate": {"count": 30, "metrics": ["path-length"]},
        }
        gftkit.finetune(tuning, tmp_path / f"run-{scale}", registry=registry)
        assert ("never rescaled" in " ".join(capsys.readouterr().err.split())) == warned


@pytest.mark.parametrize(("scale", "warned"), [(255.0, True), (10.0, False)])
def test_large_data_are_warned_of_in_pretraining(tmp_path, registry, scale, warned):
    np.save(tmp_path / "data.npy", scale * np.ones((30, 2), dtype=np.float32))
    config = {**PRETRAIN, "data": {"name": "arrays", "file": str(tmp_path / "data.npy")}}
    found = build(resolve_config(config, "pretrain", registry)[0], registry).warnings
    assert ["the root mean square of the values is 255" in warning for warning in found] == [True] * warned


def test_a_checkpoint_is_not_taken_for_a_weights_file(tuning, tmp_path, registry):
    path = checkpoint.checkpoints_of(Path(tuning["pretrained"]) / "checkpoints")[-1]
    config = {**tuning, "pretrained": str(path), "drift": PRETRAIN["drift"]}
    with pytest.raises(WeightsError, match="is a run's checkpoint: give the run folder"):
        gftkit.finetune(config, tmp_path / "run", registry=registry)
    with pytest.raises(RunError, match="wanted the run folder"):
        gftkit.Run.open(path)


def test_a_profile_fitted_to_another_anchor_is_refused(tmp_path, tuning, registry):
    file = tmp_path / "profile.yaml"
    schedule = {"name": "exponential", "end": {"name": "fitted", "file": str(file)}}

    def built(anchor):
        fitted_on = f"fitted_on: {{run: runs/mine, weights: abc, anchor: {anchor}}}"
        file.write_text(f"{{times: [0.0], values: [-0.2], {fitted_on}}}")
        return build(resolve_config({**tuning, "schedule": schedule}, "finetune", registry), registry)

    with pytest.raises(ConfigError, match="was fitted to runs/mine, with the anchor abcdef"):
        built("abcdef")
    own = build(resolve_config(tuning, "finetune", registry), registry).networks.anchor.hash
    assert built(own).networks.anchor.hash == own


def test_an_anchor_without_a_null_is_refused_where_its_condition_is_dropped(tmp_path, registry):
    drift = {"name": "mlp", "width": 16, "depth": 1, "conditional": True}
    config = {**PRETRAIN, "drift": drift, "data": {"name": "two-moons"}, "train": {"steps": 2}}
    gftkit.pretrain(config, tmp_path / "own", registry=registry)
    tuning = {
        "pretrained": str(tmp_path / "own"),
        "data": {"name": "two-moons"},
        "schedule": {"name": "exponential"},
        "train": {"steps": 2, "condition_dropout": 0.5},
    }
    made = build(resolve_config(tuning, "finetune", registry), registry)
    anchor, schedule = made.networks.anchor, registry.create("schedule", "exponential")
    anchor.null = {}
    with pytest.raises(ConfigError, match="leaves out the condition 'label', for which the anchor has no `null`"):
        check_anchor(anchor, made.networks.drift, made.config, schedule)
