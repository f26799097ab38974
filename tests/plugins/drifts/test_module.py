"""The drift `module`: any importable network, its weights and its convention, through whole runs."""

import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import gftkit
from gftkit.api import Run
from gftkit.kernel.errors import ConfigError, WeightsError

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8, channels=2):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.last = nn.Linear(width, channels)

    def forward(self, x, time, y=None):
        at = time.reshape(-1, 1).expand(len(x), 1) / 1000
        return self.last(torch.tanh(self.first(torch.cat([x, at], 1)))), "more"


def small():
    return Net(width=4)


def broken():
    return 3


NET = Net()
"""
CONVENTION = {"call": "x, time=t", "time": "reversed", "time_scale": 1000.0, "output": 0, "path": {"name": "linear"}}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a network of one's own, named anew for each test, and its weights."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(NETWORK)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        sys.path.insert(0, str(tmp_path))
        network = __import__(name).Net()
        sys.path.remove(str(tmp_path))
    torch.save({"net": network.state_dict(), "step": 7}, tmp_path / "own.pt")
    yield SimpleNamespace(name=name, network=network, folder=tmp_path)
    sys.modules.pop(name, None)


@pytest.fixture
def drift(own):
    """The drift of a config with that network."""
    return {"name": "module", "target": f"{own.name}:Net", "convention": CONVENTION, "weights": "own.pt"}


@pytest.fixture
def make(registry, own, drift):
    def build(**changes):
        spec = {key: value for key, value in {**drift, **changes}.items() if value is not None}
        path = registry.build("path", {"name": "linear"})
        return registry.build("drift", spec, base=own.folder, path=path, event_shape=(2,))

    return build


@pytest.fixture
def settings(drift):
    return {
        "drift": drift,
        "data": {"name": "two-moons", "count": 40},
        "schedule": {"name": "exponential"},
        "train": {"steps": 6, "batch_size": 8, "checkpoint_every": 3},
        "evaluate": {"every": 6, "count": 16, "metrics": [], "solver": {"name": "euler", "steps": 2}},
    }


def test_the_network_is_called_by_its_convention(make, own):
    t, x = torch.rand(5), torch.randn(5, 2)
    torch.testing.assert_close(make()(t, x), -own.network(x, 1000 * (1 - t))[0])
    forward = make(convention={**CONVENTION, "time": "forward"})
    torch.testing.assert_close(forward(t, x), own.network(x, 1000 * t)[0])


def test_a_function_may_give_the_network(make, own):
    made = make(target=f"{own.name}:small", weights=None)
    assert made.network.first.out_features == 4
    assert make(options={"width": 3}, weights=None).network.first.out_features == 3


def test_a_fine_tune_starts_from_the_weights_and_needs_the_file_no_more(gft, settings, write_config, own, tmp_path):
    config = write_config(settings)
    done = gft("finetune", config, "--out", "runs/a", "--json")
    assert done.code == 0, done.err
    start = yaml.safe_load((tmp_path / "runs/a/config.yaml").read_text())["drift"]
    assert start["convention"]["time"] == "reversed"
    assert start["convention"]["predicts"] == "velocity"
    assert start["weights"] == str(tmp_path / "own.pt")
    assert start["folder"] == str(tmp_path)
    lines = Run.open("runs/a").history()
    assert next(line["retention"] for line in lines if line["kind"] == "train") >= 0
    (tmp_path / "own.pt").unlink()
    shutil.move("runs/a", "runs/b")
    run = Run.open("runs/b")
    trained = run.drift()
    t, x = torch.rand(5), torch.randn(5, 2)
    assert not torch.allclose(trained(t, x), -own.network(x, 1000 * (1 - t))[0], atol=1e-4)
    assert run.samples(3)[0].shape == (3, 2)
    again = {key: value for key, value in settings.items() if key != "drift"}
    again = write_config({**again, "pretrained": "runs/b", "anchor": "frozen"}, "again.yaml")
    done = gft("finetune", again, "--out", "runs/c", "--json")
    assert done.code == 0, done.err
    assert yaml.safe_load((tmp_path / "runs/c/config.yaml").read_text())["drift"]["weights"] is None
    raw = Run.open("runs/c").weights("raw")[0]
    assert set(raw) == {f"network.{name}" for name in own.network.state_dict()}


def test_the_first_step_is_taken_from_the_foreign_drift(settings, own, monkeypatch):
    """At step 0 the anchor is the drift: both are the network that the file holds."""
    from gftkit.experiment.build import build
    from gftkit.runs.resolve import resolve_config

    registry = gftkit.load()
    made = build(resolve_config(settings, "finetune", registry)[0], registry)
    t, x = torch.rand(5), torch.randn(5, 2)
    wanted = -own.network(x, 1000 * (1 - t))[0]
    torch.testing.assert_close(made.networks.drift(t, x), wanted)
    torch.testing.assert_close(made.networks.anchor(t, x), wanted)


def test_the_anchor_may_be_a_network_of_another_convention(settings, own, pretrained):
    """A run of gftkit's own, held to a foreign network; and one whose convention contradicts the run is refused."""
    from gftkit.experiment.build import build
    from gftkit.runs.resolve import resolve_config

    registry = gftkit.load()
    theirs = {"name": "external", "drift": settings.pop("drift")}
    config = resolve_config({**settings, "pretrained": str(pretrained), "anchor": theirs}, "finetune", registry)[0]
    made = build(config, registry)
    t, x = torch.rand(5), torch.randn(5, 2)
    torch.testing.assert_close(made.networks.anchor(t, x), -own.network(x, 1000 * (1 - t))[0])
    assert not torch.allclose(made.networks.drift(t, x), made.networks.anchor(t, x))
    theirs["drift"]["convention"] = {**CONVENTION, "path": {"name": "trigonometric"}}
    config = resolve_config({**settings, "pretrained": str(pretrained), "anchor": theirs}, "finetune", registry)[0]
    with pytest.raises(ConfigError, match=r"was trained on {'name': 'trigonometric'}"):
        build(config, registry)
    backwards = {**theirs, "drift": {**theirs["drift"], "convention": {**CONVENTION, "time": "forward"}}}
    other = build(
        resolve_config({**settings, "pretrained": str(pretrained), "anchor": backwards}, "finetune", registry)[0],
        registry,
    )
    assert other.networks.anchor.hash != made.networks.anchor.hash


def test_a_resumed_run_is_the_undisturbed_one(settings, tmp_path):
    whole = gftkit.finetune(settings, tmp_path / "whole", device="cpu")
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("model.safetensors", "checkpoints/step-000000006.safetensors"):
        (cut / name).unlink()
    gftkit.finetune(settings, cut, device="cpu", resume=True)
    resumed, wanted = Run.open(cut).weights("raw")[0], whole.weights("raw")[0]
    assert all(torch.equal(resumed[name], wanted[name]) for name in wanted)


def test_a_fine_tune_with_two_starts_is_refused(refused, write_config, settings):
    config = write_config({**settings, "pretrained": "own.pt"})
    assert "it can start from one of them only" in refused("finetune", config)
    nothing = {**settings, "drift": {**settings["drift"], "weights": None}}
    assert "pretrained is missing" in refused("finetune", write_config(nothing))


def test_a_weights_file_may_stand_in_pretrained_too(settings, tmp_path, own):
    del settings["drift"]["weights"]
    run = gftkit.finetune({**settings, "pretrained": "own.pt"}, tmp_path / "run", device="cpu")
    assert run.finished


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "nowhere_at_all:Net"}, "no module 'nowhere_at_all', neither in"),
        ({"target": "torch.nowhere:Net"}, "no module 'torch.nowhere'"),
        ({"target": "torch.nn"}, "wanted 'package.module:Class', got 'torch.nn'"),
        ({"target": "OWN:Nett"}, "own_.* has no 'Nett'. Networks in it: Net"),
        ({"target": "OWN:NET"}, "wanted a class or function, and 'own_.*:NET' is a Net"),
        ({"target": "OWN:broken"}, "gives a int; wanted a torch.nn.Module"),
        ({"options": {"widht": 3}}, "'own_.*:Net' fails: TypeError: .*unexpected keyword argument 'widht'"),
        ({"options": {"width": 3}}, "wrong shape: first.weight is .8, 3., wanted .3, 3."),
        ({"weights": "none.pt"}, "none.pt: no such weights file"),
        ({"key": "ema"}, "no network that fits at key: ema. Those that fit: 'net'"),
        ({"convention": {"preset": "torchfcm"}}, "Did you mean 'torchcfm'"),
        ({"convention": None}, "drift.convention is missing"),
    ],
)
def test_weights_and_networks_that_do_not_fit_are_one_error(make, own, changes, message):
    if "target" in changes:
        changes = {"target": changes["target"].replace("OWN", own.name)}
    with pytest.raises(gftkit.GftkitError, match=message):
        make(**changes)


def test_a_module_that_fails_is_named(make, own):
    (own.folder / "fails_here.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(ConfigError, match="'fails_here' imports 'not_installed_anywhere', which isn't installed"):
        make(target="fails_here:Net")
    (own.folder / "fails_there.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="'fails_there' fails to import: ZeroDivisionError"):
        make(target="fails_there:Net")


def test_two_modules_of_one_name_are_not_mixed_up(make, own, tmp_path):
    make()
    (tmp_path / "other").mkdir()
    shutil.copy(own.folder / f"{own.name}.py", tmp_path / "other")
    with pytest.raises(ConfigError, match="has already imported"):
        make(folder=str(tmp_path / "other"))


def refusal(settings):
    with pytest.raises(ConfigError) as caught:
        gftkit.finetune(settings, "new", device="cpu")
    return str(caught.value)


def test_a_network_that_fails_is_refused_with_what_to_check(settings, refused, write_config):
    convention = {**CONVENTION, "call": "t, x"}
    config = write_config({**settings, "drift": {**settings["drift"], "convention": convention}})
    message = refused("finetune", config)
    assert "drift 'module' fails on a batch of shape (2, 2): RuntimeError: " in message
    assert "Check drift.options and convention.call ('t, x'): `gft inspect` finds the convention" in message
    assert "`gft --debug` shows the traceback" in message
    config = write_config({**settings, "drift": {**settings["drift"], "options": {"width": 5}}})
    assert "Give the `drift` these weights were made with: its class and its options." in refused("finetune", config)


def test_a_convention_that_contradicts_the_run_is_refused(settings, own):
    def with_convention(**changes):
        return {**settings, "drift": {**settings["drift"], "convention": {**CONVENTION, **changes}}}

    trigonometric = {**settings, "path": {"name": "trigonometric"}}
    assert "was trained on {'name': 'linear'}, and the run's path" in refusal(trigonometric)
    bridge = {**with_convention(path=None), "path": {"name": "brownian-bridge"}, "evaluate": {"metrics": []}}
    assert "velocity doesn't determine the drift on this path" in refusal(bridge)
    scored = with_convention(predicts="score")
    assert "only if x0 is independent" in refusal({**scored, "coupling": {"name": "optimal-transport"}})
    assert "only for the source N(0, I)" in refusal({**scored, "source": {"name": "two-moons"}})
    assert "the drift uses the conditions 'colour', and the data have none" in refusal(
        with_convention(call="x, t, colour")
    )
    assert "wanted a tensor, got a tuple of 2" in refusal(with_convention(output=None))
    assert "'module' on a batch of shape (2, 2): convention.output" in refusal(with_convention(output=None))
    assert not (own.folder / "new").exists()
    for fine in (trigonometric | {"drift": with_convention(path={"name": "trigonometric"})["drift"]}, scored):
        assert gftkit.finetune(fine, f"fine-{id(fine)}", device="cpu").finished


# --- diffusers --------------------------------------------------------------------------------------------------------

TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder that diffusers has saved."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers isn't installed: pip install 'gftkit[diffusers]'")
    folder = tmp_path_factory.mktemp("diffusers") / "unet"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = diffusers.UNet2DModel(**TINY).eval()
    network.save_pretrained(folder)
    return SimpleNamespace(folder=folder, network=network)


def test_a_folder_of_diffusers_is_loaded_by_its_own_loader(saved, registry, tmp_path):
    folder = shutil.copytree(saved.folder, tmp_path / "unet")
    settings = {
        "drift": {
            "name": "module",
            "target": "diffusers:UNet2DModel",
            "weights": str(folder),
            "convention": {"preset": "diffusers"},
        },
        "data": {"name": "digits", "count": 20},
        "schedule": {"name": "exponential"},
        "train": {"steps": 2, "batch_size": 4},
        "evaluate": {"every": 2, "count": 8, "metrics": [], "solver": {"name": "euler", "steps": 2}},
    }
    made = registry.build("drift", settings["drift"])
    t, x = torch.rand(3), torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(made.eval()(t, x), -saved.network(x, 1000 * (1 - t)).sample)
    run = gftkit.finetune(settings, tmp_path / "run", device="cpu")
    shutil.rmtree(folder)
    assert Run.open(run.folder).samples(2)[0].shape == (2, 1, 8, 8)


def test_folders_that_diffusers_did_not_save_are_refused(saved, registry, tmp_path):
    spec = {"name": "module", "target": "diffusers:UNet2DModel", "convention": {"preset": "diffusers"}}
    with pytest.raises(WeightsError, match=r"wanted a weights file, or a folder of diffusers with config.json"):
        registry.build("drift", {**spec, "weights": str(tmp_path)})
    with pytest.raises(ConfigError, match="describes the class UNet2DModel, and the target is 'diffusers:UNet1DModel'"):
        registry.build("drift", {**spec, "target": "diffusers:UNet1DModel", "weights": str(saved.folder)})
    broken = shutil.copytree(saved.folder, tmp_path / "broken")
    file = broken / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="diffusers can't load it"):
        registry.build("drift", {**spec, "weights": str(broken)})


# --- torchcfm ---------------------------------------------------------------------------------------------------------

CIFAR10 = {
    "dim": [3, 32, 32],
    "num_res_blocks": 2,
    "num_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "num_heads": 4,
    "num_head_channels": 64,
    "attention_resolutions": "16",
    "dropout": 0.1,
}


@pytest.fixture(scope="module")
def unet():
    """torchcfm's U-Net; it isn't a dependency, since it brings many of its own."""
    reason = "torchcfm isn't installed: pip install --no-deps torchcfm"
    return pytest.importorskip("torchcfm.models.unet.unet", reason=reason).UNetModelWrapper


def test_torchcfm_s_mlp_takes_state_and_time_side_by_side(registry):
    reason = "torchcfm isn't installed: pip install --no-deps torchcfm"
    pytest.importorskip("torchcfm.models.models", reason=reason)
    spec = {"target": "torchcfm.models.models:MLP", "options": {"dim": 2, "w": 4, "time_varying": True}}
    drift = registry.create("drift", "module", **spec, convention={"preset": "torchcfm", "call": "cat(x, t)"})
    t, x = torch.rand(3), torch.randn(3, 2)
    assert torch.equal(drift(t, x), drift.network(torch.cat([x, t[:, None]], 1)))


@pytest.mark.slow
def test_a_cifar10_checkpoint_of_torchcfm_is_fine_tuned(unet, tmp_path):
    """With random weights: 35,746,307 parameters, saved as torchcfm's example saves them."""
    torch.manual_seed(0)
    raw, ema = unet(**CIFAR10), unet(**CIFAR10)
    assert sum(parameter.numel() for parameter in raw.parameters()) == 35_746_307
    for parameter in ema.parameters():  # its last layer starts at zero
        parameter.data += 0.01 * torch.randn_like(parameter)
    optim = torch.optim.Adam(raw.parameters(), lr=2e-4)
    sched = torch.optim.lr_scheduler.LambdaLR(optim, lr_lambda=lambda step: min(step, 5000) / 5000)
    states = {"net_model": raw, "ema_model": ema, "sched": sched, "optim": optim}
    torch.save({**{key: held.state_dict() for key, held in states.items()}, "step": 400000}, tmp_path / "cifar10.pt")
    generator = torch.Generator().manual_seed(1)
    images = (torch.rand(8, 3, 32, 32, generator=generator) * 2 - 1).numpy()
    np.save(tmp_path / "x.npy", images)
    settings = {
        "drift": {
            "name": "module",
            "target": "torchcfm.models.unet.unet:UNetModelWrapper",
            "options": CIFAR10,
            "weights": str(tmp_path / "cifar10.pt"),
            "key": "ema_model",
            "convention": {"preset": "torchcfm"},
        },
        "data": {"name": "arrays", "file": str(tmp_path / "x.npy")},
        "schedule": {"name": "exponential"},
        "train": {"steps": 3, "batch_size": 2, "checkpoint_every": 3, "learning_rate": 1e-5},
        "evaluate": {"every": 3, "count": 2, "metrics": [], "solver": {"name": "euler", "steps": 1}},
    }
    run = gftkit.finetune(settings, tmp_path / "run", device="cpu")
    assert run.finished
    t, x = torch.rand(2), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tuned, before, other = (made.eval()(t, x) for made in (run.drift(), ema, raw))
    assert 0 < float((tuned - before).norm() / before.norm()) < 0.05
    assert float((tuned - other).norm() / before.norm()) > 0.5
