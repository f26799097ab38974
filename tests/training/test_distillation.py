"""Distillation into a flow map: what a student learns, resume, and what is refused."""

import json

import pytest
import torch
import yaml
from torch import nn

import gftkit
from gftkit.api import Run
from gftkit.kernel.errors import ConfigError
from gftkit.networks import flow_map
from gftkit.storage.tensors import read_tensors

EVENT = (1, 8, 8)
REGISTRY = gftkit.load()


def inputs(event_shape=EVENT, batch=5):
    generator = torch.Generator().manual_seed(1)
    t, end = torch.rand(2, batch, generator=generator).sort(0).values
    return t, end, torch.randn(batch, *event_shape, generator=generator)


class Jumping(nn.Module):
    """The flow map of x' = 2 x + 1."""

    jumps = True

    def forward(self, t, x, end=None):
        length = (end - t)[:, None]
        return torch.expm1(2 * length) / length * (x + 0.5)


class Sleeping(Jumping):
    """One that doesn't heed the end."""

    def forward(self, t, x, end=None):
        return 2 * x + 1


SHORT = {
    "train": {"steps": 10, "batch_size": 16, "checkpoint_every": 5},
    "evaluate": {"every": 10, "count": 32},
    "seed": 3,
}


@pytest.fixture(scope="module")
def student(pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "run"
    gftkit.distill({**SHORT, "pretrained": str(pretrained)}, folder, device="cpu")
    return folder


def test_a_student_is_a_run_that_samples_by_jumps(student, pretrained, gft, tmp_path):
    run, teacher = Run.open(student), Run.open(pretrained)
    assert run.config.kind == "distill"
    assert run.config.data == teacher.config.data
    assert run.config.evaluate.solver == {"name": "flow-map", "steps": 2}
    assert type(run.drift()).__name__ == "FlowMap"
    done = gft("sample", student, "--steps", 1, "--count", 8, "--out", "x.npz", "--json")
    assert json.loads(done.out)["count"] == 8
    assert not torch.equal(run.samples(8)[0], run.samples(8, solver={"name": "euler", "steps": 2})[0])
    assert run.samples(8, precision="bfloat16")[0].isfinite().all()
    assert "energy" in run.evaluate(["evaluate.count=32"])
    assert "Distillation" in (student / "report.html").read_text()


def test_a_student_starts_from_its_teacher_and_learns(student, pretrained):
    teacher = read_tensors(pretrained / "model.safetensors")[0]
    learned = read_tensors(student / "model.safetensors")[0]
    for name, held in teacher.items():
        assert 0 < float((learned[f"drift.{name}"] - held).abs().max()) < 0.2
    history = Run.open(student).history()
    losses = [line["loss"] for line in history if line["kind"] == "train"]
    assert all(0 < loss < 100 for loss in losses)


@pytest.mark.slow
def test_a_resumed_distillation_equals_an_undisturbed_one(student, pretrained, tmp_path, monkeypatch):
    from gftkit.training.distillation import Distillation

    take = Distillation.take

    def failing(self, step):
        if step == 7:
            raise KeyboardInterrupt
        return take(self, step)

    config = {**SHORT, "pretrained": str(pretrained)}
    with monkeypatch.context() as patched:
        patched.setattr(Distillation, "take", failing)
        with pytest.raises(KeyboardInterrupt):
            gftkit.distill(config, tmp_path / "run", device="cpu")
    gftkit.distill(config, tmp_path / "run", device="cpu", resume=True)
    whole, resumed = (read_tensors(folder / "model.safetensors")[0] for folder in (student, tmp_path / "run"))
    assert all(torch.equal(held, resumed[name]) for name, held in whole.items())
    gftkit.distill({**config, "seed": 4}, tmp_path / "other", device="cpu")
    other = read_tensors(tmp_path / "other/model.safetensors")[0]
    assert not all(torch.equal(held, other[name]) for name, held in whole.items())


def test_start_and_end_of_a_jump_are_two_sorted_uniform_times(pretrained):
    from gftkit.experiment.build import build
    from gftkit.runs.resolve import resolve_config
    from gftkit.runtime.devices import start_accelerator
    from gftkit.runtime.randomness import stream
    from gftkit.training.distillation import Distillation

    config = resolve_config({**SHORT, "pretrained": str(pretrained)}, "distill", REGISTRY).config
    steps = Distillation(build(config, REGISTRY), start_accelerator("cpu"))
    t = steps.times(40_000, stream(0, "here"))
    end = steps.ends(0, t)
    assert bool(((t >= 0) & (t <= end) & (end <= 1)).all())
    # Of two uniform times the smaller has mean 1/3 and the larger 2/3, both variance 1/18; their product has mean 1/4.
    for values, mean, variance in ((t, 1 / 3, 1 / 18), (end, 2 / 3, 1 / 18), (t * end, 1 / 4, 1 / 9 - 1 / 16)):
        assert abs(float(values.mean()) - mean) < 5.5 * (variance / 40_000) ** 0.5
    assert not torch.equal(end, steps.ends(1, t))


def test_half_precision_in_distillation_is_of_the_networks_alone(pretrained, tmp_path):
    config = {**SHORT, "pretrained": str(pretrained), "train": {"steps": 2, "batch_size": 16, "precision": "bfloat16"}}
    run = gftkit.distill(config, tmp_path / "run", device="cpu")
    assert all(held.dtype == torch.float32 for held in run.weights()[0].values())


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture
def distilling(write_config, refused, pretrained, tmp_path):
    def run(**changes):
        message = refused("distill", write_config({**SHORT, "pretrained": str(pretrained), **changes}), "--out", "new")
        assert not (tmp_path / "new").exists()
        return message

    return run


def test_distillation_refuses_bad_starts_and_options(
    distilling, student, pretrained, finetuning, pretraining, tmp_path
):
    assert "pretrained is missing" in distilling(pretrained=None)
    assert "got the file" in distilling(pretrained=str(pretrained / "model.safetensors"))
    assert "is itself a distillation" in distilling(pretrained=str(student))
    assert "trains a flow map, and 'mlp'" in distilling(drift={"name": "mlp", "width": 16, "depth": 1})
    assert "unknown option of the configuration: 'schedule'" in distilling(schedule={"name": "zero"})
    assert "train.compile" in distilling(train={"compile": True})
    assert "fine-tuning would break its flow map" in finetuning(pretrained=str(student))
    assert "only `gft distill` can train" in pretraining(drift={"name": "flow-map", "drift": {"name": "mlp"}})
    jumping = {"every": 20, "count": 32, "solver": {"name": "flow-map", "steps": 2}}
    assert "this drift is a velocity" in pretraining(evaluate=jumping)


def test_an_sde_has_no_flow_map(distilling, run_copy):
    config = yaml.safe_load((run_copy / "config.yaml").read_text())
    config["path"] = {"name": "brownian-bridge"}
    (run_copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert "so its end isn't a function of its start" in distilling(pretrained=str(run_copy))


def test_resume_with_another_teacher_is_refused(student, pretrained, run_copy, tmp_path, refused, write_config):
    import shutil

    folder = shutil.copytree(student, tmp_path / "half")
    (folder / "model.safetensors").unlink()
    config = {**SHORT, "pretrained": str(pretrained)}
    other = write_config({**config, "pretrained": str(run_copy)})
    assert "another configuration" in refused("distill", other, "--out", folder, "--resume")


def test_the_loss_is_zero_at_the_flow_map_only():
    t, end, x = (values.double() for values in inputs((3,)))

    def teacher(t, x):
        return 2 * x + 1

    loss = flow_map.lagrangian_loss(Jumping(), teacher, t, end, x)
    assert float(loss.abs().max()) < 1e-20
    assert float(flow_map.lagrangian_loss(Sleeping(), teacher, t, end, x).min()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("drift", [{"name": "unet", "width": 8, "attention": 1}, {"name": "mlp", "width": 8}])
def test_a_conditional_teacher_has_a_conditional_student(drift, tmp_path):
    settings = {"drift": {**drift, "conditional": True}, "data": {"name": "digits", "count": 20}}
    settings |= {"train": {"steps": 1, "batch_size": 4}, "evaluate": {"count": 20}}
    gftkit.pretrain(settings, tmp_path / "teacher", device="cpu")
    short = {"train": {"steps": 2, "batch_size": 4}, "pretrained": str(tmp_path / "teacher")}
    run = gftkit.distill({**short, "evaluate": {"count": 20}}, tmp_path / "student", device="cpu")
    samples, asked = run.samples(3, label=4)
    assert asked["label"].tolist() == [4, 4, 4]
    assert samples.shape == (3, 1, 8, 8)
    weights = run.weights()[0]
    assert float(weights["embed.2.weight"].abs().max()) > 0  # the end counts from the first step on


@pytest.mark.slow
def test_a_network_from_elsewhere_has_a_student(tmp_path, pretrain_config):
    """It is told the length of a jump by what is added to its state."""
    options = {"in_features": 2, "out_features": 2}
    drift = {"name": "module", "target": "torch.nn:Linear", "options": options, "convention": {"call": "x"}}
    gftkit.pretrain({**pretrain_config, "drift": drift}, tmp_path / "teacher", device="cpu")
    run = gftkit.distill({**SHORT, "pretrained": str(tmp_path / "teacher")}, tmp_path / "student", device="cpu")
    assert run.config.drift["into"] is None
    t, end, x = inputs((2,))
    assert not torch.equal(run.drift()(t, x, end=end), run.drift()(t, x))


def test_a_network_without_a_derivative_in_forward_mode_is_refused(pretrained, tmp_path, monkeypatch):
    from gftkit_plugins.drifts.mlp import Mlp

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, slope):
            return slope

    forward = Mlp.forward
    monkeypatch.setattr(Mlp, "forward", lambda self, *given, **named: Backward.apply(forward(self, *given, **named)))
    with pytest.raises(ConfigError, match="requires a network with derivatives in forward mode"):
        gftkit.distill({**SHORT, "pretrained": str(pretrained)}, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_distillation_on_several_processes_is_refused(pretrained):
    from types import SimpleNamespace

    from gftkit.experiment.build import build
    from gftkit.runs.resolve import resolve_config
    from gftkit.training.distillation import Distillation

    experiment = build(resolve_config({**SHORT, "pretrained": str(pretrained)}, "distill", REGISTRY)[0], REGISTRY)
    with pytest.raises(ConfigError, match="runs in one process, got 2"):
        Distillation(experiment, SimpleNamespace(num_processes=2))
