"""Sampling under conditions: asked for by number, in turn or from a file, and refused where they don't fit."""

import numpy
import pytest
import torch
from safetensors.torch import save_file

import gftkit
from gftkit.experiment.build import build
from gftkit.generation import requested_conditions as asking
from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import ConfigError
from gftkit.runs.resolve import resolve_config

SETTLED = 0.1
"""What the conditional means of the small trained model may be off by: its samples' standard error is 0.01."""


class Law:
    """x1 = 2 c + 0.3 eps in the plane, with c uniform on [-1, 1]^2."""

    event_shape, range, condition_shapes = (2,), None, {"c": (2,)}

    def draw(self, n, generator):
        c = 2 * torch.rand(n, 2, generator=generator) - 1
        return Batch(2 * c + 0.3 * torch.randn(n, 2, generator=generator), None, None, {"c": c})


class Plugin:
    @gftkit.hookimpl
    def gftkit_datasets(self):
        def conditional_law() -> Law:
            """A law with a continuous condition."""
            return Law()

        return {"conditional-law": conditional_law}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small conditional model, trained with condition dropout."""
    config = {
        "drift": {"name": "mlp", "width": 64, "depth": 2, "conditions": ["c"]},
        "data": {"name": "conditional-law"},
        "train": {"steps": 400, "batch_size": 256, "learning_rate": 3e-3, "condition_dropout": 0.1, "decay": "cosine"},
        "evaluate": {"count": 50, "metrics": [], "every": 400},
    }
    return gftkit.pretrain(config, tmp_path_factory.mktemp("trained") / "run", registry=gftkit.load({"law": Plugin()}))


def error_of_means(run, given, told=None, **options):
    """The largest distance of the mean of samples under each of 4 conditions from 2 c."""
    x1, _ = run.samples(4 * 500, conditions={"c": given if told is None else told}, **options)
    return float((x1.reshape(500, 4, 2).mean(0) - 2 * given).norm(dim=1).max())


def test_a_trained_conditional_model_has_the_right_conditional_means(trained):
    corners = 0.6 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert error_of_means(trained, corners) < SETTLED
    # A model that ignores its condition, or one that is told another's, is told apart.
    assert error_of_means(trained, corners, guidance=0.0) > 5 * SETTLED
    assert error_of_means(trained, corners, told=corners.roll(1, 0)) > 5 * SETTLED
    # Guidance overstates the condition: samples lie farther out.
    far = trained.samples(2000, conditions={"c": corners}, guidance=2.0)[0].reshape(500, 4, 2).mean(0)
    usual = trained.samples(2000, conditions={"c": corners})[0].reshape(500, 4, 2).mean(0)
    assert ((far * corners).sum(1) > (usual * corners).sum(1) + 0.05).all()


def test_samples_are_written_with_the_conditions_they_were_made_under(trained, tmp_path):
    c = torch.tensor([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]])
    x1, given = trained.samples(5, conditions={"c": c.double()})
    assert torch.equal(given["c"], c[[0, 1, 2, 0, 1]])
    assert torch.equal(x1, trained.samples(5, conditions={"c": c})[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"this drift takes 'c', got none\. Give exactly those"),
        ({"c": torch.zeros(2, 2), "d": torch.zeros(2)}, r"takes 'c', got 'c', 'd'"),
        ({"c": torch.zeros(2, 3)}, r"wanted 'c' of shape \('n', 2\), as in training, got \(2, 3\)"),
        ({"c": torch.zeros(0, 2)}, "at least one"),
        ({"c": torch.tensor([[0.0, 0.0], [0.0, torch.nan]])}, r"'c' contains NaN or infinity in row 1"),
        ({"c": torch.zeros(())}, "at least one"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(trained, given, message):
    with pytest.raises(ConfigError, match=message):
        trained.samples(3, conditions=given)


def test_labels_are_asked_for_by_number_in_turn_or_from_a_file():
    drift = torch.nn.Identity()
    drift.conditions = ("label",)

    def ask(drift, count, *told):
        return asking.conditions_at(asking.parse_condition_request(drift, *told), 0, count)

    assert ask(drift, 5, None, None, 3, {})["label"].tolist() == [0, 1, 2, 0, 1]
    assert ask(drift, 2, None, 2, 3, {})["label"].tolist() == [2, 2]
    assert ask(drift, 3, {"label": torch.tensor([2, 0], dtype=torch.int32)}, None, 3, {})["label"].tolist() == [2, 0, 2]
    with pytest.raises(ConfigError, match="wanted 0 to 2, got 3"):
        ask(drift, 2, {"label": torch.tensor([0, 3])}, None, 3, {})
    with pytest.raises(ConfigError, match="got two, by --label and by --conditions"):
        ask(drift, 2, {"label": torch.tensor([0])}, 1, 3, {})
    with pytest.raises(ConfigError, match="whole numbers"):
        ask(drift, 2, {"label": torch.tensor([0.0])}, None, 3, {})
    drift.conditions = ("label", "age")
    both = ask(drift, 3, {"age": torch.tensor([1.0, 2.0])}, 1, 3, {"age": ()})
    assert both["label"].tolist() == [1, 1, 1]
    assert both["age"].tolist() == [1, 2, 1]
    with pytest.raises(ConfigError, match="the same number of rows"):
        ask(drift, 3, {"age": torch.zeros(2), "label": torch.zeros(3, dtype=torch.int64)}, None, 3, {"age": ()})
    drift.conditions = ()
    assert ask(drift, 3, None, None, None, {}) == {}
    with pytest.raises(ConfigError, match="Leave --label out"):
        ask(drift, 3, None, 1, None, {})


def test_conditions_are_read_from_files(tmp_path):
    c = torch.rand(3, 2)
    numpy.savez(tmp_path / "c.npz", c=c.numpy(), label=numpy.arange(3))
    save_file({"c": c, "label": torch.arange(3)}, tmp_path / "c.safetensors")
    for name in ("c.npz", "c.safetensors"):
        found = asking.read_conditions(tmp_path / name)
        assert torch.equal(found["c"], c)
        assert found["label"].tolist() == [0, 1, 2]
    (tmp_path / "broken.npz").write_bytes(b"nothing")
    numpy.savez(tmp_path / "objects.npz", c=numpy.array([{}], dtype=object))
    numpy.savez(tmp_path / "words.npz", c=numpy.array(["a"]))
    for name in ("broken.npz", "objects.npz", "words.npz", "missing.npz", "c.txt"):
        with pytest.raises(ConfigError, match=r"--conditions .*wanted"):
            asking.read_conditions(tmp_path / name)


def test_the_command_line_samples_under_conditions_and_guidance(gft, write_config, tmp_path):
    numbers = numpy.random.default_rng(0)
    c = numbers.uniform(-1, 1, (30, 2)).astype("float32")
    numpy.savez(tmp_path / "data.npz", x1=2 * c, c=c)
    run = {
        "drift": {"name": "mlp", "width": 8, "depth": 1, "conditions": ["c"]},
        "data": {"name": "arrays", "file": str(tmp_path / "data.npz"), "conditions": ["c"]},
        "train": {"steps": 2, "batch_size": 8, "condition_dropout": 0.2},
        "evaluate": {"count": 20, "metrics": ["energy"], "guidance": 1.5},
    }
    config = write_config(run)
    assert gft("pretrain", config, "--out", "run", "--json").code == 0
    numpy.savez(tmp_path / "c.npz", c=c[:2])
    ask = ("sample", "run", "--conditions", str(tmp_path / "c.npz"), "--count", "4", "--json")
    assert gft(*ask, "--out", "guided.npz").code == 0
    assert gft(*ask, "--guidance", "1", "--out", "plain.npz").code == 0
    with numpy.load("guided.npz") as one, numpy.load("plain.npz") as other:
        assert numpy.array_equal(one["c"], c[[0, 1, 0, 1]])
        assert one["samples"].shape == (4, 2)
        assert not numpy.allclose(one["samples"], other["samples"])
    refused = gft("sample", "run", "--out", "none.npz")
    assert refused.code == 2
    assert "Give exactly those" in refused.err
    run["train"]["condition_dropout"] = 0.0
    refused = gft("pretrain", write_config(run), "--out", "other")
    assert refused.code == 2
    assert "evaluate.guidance: 1.5 requires the drift without conditions" in refused.err


def test_a_fine_tune_that_forgets_the_null_is_warned_about(trained, tmp_path):
    tuning = {
        "pretrained": str(trained.folder),
        "data": {"name": "conditional-law"},
        "schedule": {"name": "zero"},
        "train": {"steps": 1, "condition_dropout": 0.1},
    }
    registry = gftkit.load({"law": Plugin()})
    assert build(resolve_config(tuning, "finetune", registry)[0], registry).warnings == []
    tuning["train"]["condition_dropout"] = 0.0
    (warning,) = build(resolve_config(tuning, "finetune", registry)[0], registry).warnings
    assert "samples can't be guided" in warning


def test_conditions_that_are_not_finite_are_refused():
    drift = torch.nn.Identity()
    drift.conditions = ("age",)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="'age' contains NaN or infinity in row 1"):
            asking.parse_condition_request(drift, {"age": torch.tensor([0.0, wrong])}, None, None, {"age": ()})
