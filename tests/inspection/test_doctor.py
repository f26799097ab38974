"""`gft inspect` from end to end: trained networks in the call forms of every preset, and what it says of bad input."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml

import gftkit
from gftkit.api import Run
from gftkit.inspection import doctor
from gftkit.networks.convention import Convention
from gftkit.storage.documents import parse_yaml

NETWORKS = '''
from types import SimpleNamespace

from torch import nn

from gftkit_plugins.drifts.mlp import Mlp


class Net(nn.Module):
    """A network of gftkit, whose drift is called in the form of another library."""

    def __init__(self, conditional=False):
        super().__init__()
        self.mlp = Mlp((2,), 8 if conditional else None, width=64, depth=2, conditional=conditional)


class Torchcfm(Net):
    def forward(self, t, x, y=None, *args, **kwargs):
        return self.mlp(t, x)


class Talking(Torchcfm):
    def forward(self, t, x):
        print("here I am")
        return self.mlp(t, x)


class FlowMatching(Net):
    def forward(self, x, t, **extras):
        return self.mlp(t.reshape(-1).expand(len(x)), x)


class Diffusers(Net):
    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        return SimpleNamespace(sample=-self.mlp(1 - timestep / 1000, sample))


class Sit(Net):
    def __init__(self):
        super().__init__(conditional=True)

    def forward(self, x, t, y):
        return self.mlp(t, x, y)
'''
LAW = {"name": "gaussian-mixture"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Networks of gftkit, with and without labels, trained for a moment, in checkpoints as others write them."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "their_forms.py").write_text(NETWORKS)
    train = {"steps": 300, "batch_size": 256, "learning_rate": 3e-3, "ema": 0.98}
    for conditional in (False, True):
        drift = {"name": "mlp", "width": 64, "depth": 2, "conditional": conditional}
        settings = {"drift": drift, "data": LAW, "train": train, "evaluate": {"metrics": []}}
        run = gftkit.pretrain(settings, folder / f"run-{conditional}", device="cpu")
        states = {key: run.weights(weights)[0] for key, weights in (("ema", "ema"), ("model", "raw"))}
        named = {key: {f"mlp.{name}": held for name, held in state.items()} for key, state in states.items()}
        torch.save({**named, "opt": {"lr": 1e-4}, "step": 300}, folder / f"conditional-{conditional}.pt")
    before = [*sys.path]
    yield folder
    sys.path[:] = before
    for name in ("their_forms", "optional_labels"):
        sys.modules.pop(name, None)


@pytest.fixture
def case(trained, write_config):
    """A configuration to inspect, in the folder of the networks."""

    def write(target, conditional=False, **changes):
        weights = str(trained / f"conditional-{conditional}.pt")
        drift = {
            "target": target if ":" in target else f"their_forms:{target}",
            "folder": str(trained),
            "weights": weights,
            "key": "ema",
        }
        return write_config({"drift": {**drift, **changes}, "data": LAW})

    return write


@pytest.mark.parametrize(
    ("target", "preset", "fields"),
    [
        ("Torchcfm", "torchcfm", {}),
        ("FlowMatching", "flow-matching", {"call": "x, t"}),
        ("Diffusers", "diffusers", {}),
        ("Sit", "sit", {"call": "x, t, y=label"}),
    ],
)
def test_gftkit_s_networks_in_the_form_of_every_preset(gft, case, trained, tmp_path, target, preset, fields):
    config = case(target, conditional=target == "Sit")
    done = gft("inspect", config, "--out", "found.yaml", "--json")
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert answer["verdict"] == "clear"
    found = yaml.safe_load((tmp_path / "found.yaml").read_text())
    assert found == answer["config"]
    wanted = Convention.of({"preset": preset, **fields})
    assert Convention.of(found["drift"]["convention"]) == wanted
    # what was found is a drift that a run takes, and it is the network's
    registry = gftkit.load()
    drift = registry.build("drift", {"name": "module", **found["drift"]}, base=tmp_path)
    own = Run.open(trained / f"run-{target == 'Sit'}").drift()
    t, x, label = torch.rand(5), torch.randn(5, 2), torch.arange(5)
    given = {"label": label} if target == "Sit" else {}
    torch.testing.assert_close(drift.eval()(t, x, **given), own(t, x, **given), rtol=1e-4, atol=1e-4)


def test_the_table_and_the_block_are_printed(gft, case, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    done = gft("inspect", case("Diffusers"), "--set", "drift.convention=null")
    assert done.code == 0, done.err
    for word in (
        "denoising error",
        "flow matching loss",
        "1000 (1 - t)",
        "(linear)",
        "(untrained)",
        "Significantly better",
    ):
        assert word in done.out
    block = parse_yaml(done.out[done.out.index("drift:") :], "block")
    assert block["drift"]["convention"]["time"] == "reversed"
    assert block["drift"]["convention"]["sign"] == 1  # the usual values too


def test_the_written_convention_works_from_its_folder(gft, trained, tmp_path):
    """Files, the network's module, and what else counts: path, coupling and source."""
    (trained / "here.yaml").write_text(
        "drift: {target: 'their_forms:Torchcfm', weights: conditional-False.pt, key: ema, convention: torchcfm}\n"
        "data: {name: gaussian-mixture}\n"
    )
    for place in (trained, tmp_path / "sub"):
        done = gft("inspect", trained / "here.yaml", "--count", "512", "--out", place / "found.yaml")
        assert done.code == 0, done.err
        found = yaml.safe_load((place / "found.yaml").read_text())
        assert {**found, "drift": None} == {
            "drift": None,
            "path": {"name": "linear"},
            "coupling": {"name": "independent"},
        }
        assert gftkit.load().build("drift", found["drift"], base=place).network.mlp is not None
        assert (found["drift"]["weights"] == "conditional-False.pt") == (place == trained)
        assert found["drift"].get("folder") == (None if place == trained else str(trained.resolve()))
        assert found["drift"]["key"] == "ema"
    others = ["coupling.name=optimal-transport", "source.name=gaussian", "path.name=linear"]
    _, settings = doctor.diagnose(trained / "here.yaml", gftkit.load(), others, 64)
    assert settings["coupling"] == {"name": "optimal-transport"}
    assert settings["source"] == {"name": "gaussian"}


def test_the_table_fits_the_terminal(capsys, monkeypatch):
    from gftkit.cli.output import table

    row = ["ema_model", "x=x, t=t", "1000 (1 - t)", "-velocity", "[0, 1] of the state", *["-0.001234 ± 0.0056"] * 3]
    for width in (140, 80, 30):
        monkeypatch.setenv("COLUMNS", str(width))
        table(doctor.HEAD, [tuple(row), ("(data's mean)", *[""] * 7)])
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= width
        assert "…" not in printed
        if width >= 80:
            assert {word for cell in [*doctor.HEAD, *row] for word in cell.split()} <= set(printed.split())
        assert sorted(printed.replace("─", "").replace(" ", "").replace("\n", "")) == sorted(
            "".join([*doctor.HEAD, *row, "(data's mean)"]).replace(" ", "")
        )


def test_a_network_that_uses_labels_is_given_them(gft, case, trained):
    """Its argument is optional: left out, every sample would be of class 0."""
    (trained / "optional_labels.py").write_text(
        "from their_forms import Sit\n\n\nclass Optional(Sit):\n"
        "    def forward(self, x, t, y=None):\n        return self.mlp(t, x, t.long() * 0 if y is None else y)\n"
    )
    done = gft("inspect", case("optional_labels:Optional", conditional=True), "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["config"]["drift"]["convention"]["call"] == "x, t, y=label"


def test_inspect_flags_are_settings(gft, trained):
    words = ["--target", "their_forms:Torchcfm", "--weights", trained / "conditional-False.pt", "--data", LAW["name"]]
    more = ["--set", f"drift.folder={trained}", "--set", "drift.key=ema", "--json"]
    done = gft("inspect", *words, *more, "--set", "drift.convention=torchcfm")
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert {each["weights"] for each in answer["hypotheses"]} == {"ema"}
    assert answer["config"]["drift"]["convention"]["path"] == {"name": "linear"}


def test_output_of_the_network_does_not_mix_with_the_answer(gft, case):
    done = gft("inspect", case("Talking", convention="torchcfm"), "--json")
    assert "here I am" in done.err
    assert json.loads(done.out)["verdict"] == "clear"


def test_a_close_call_is_reported_as_one(gft, case, tmp_path, trained):
    """Raw and averaged weights of one training, on few pairs."""
    known = {"preset": "torchcfm", "time": "forward", "time_scale": 1.0}
    config = case("Torchcfm", key=None, convention=known)
    done = gft("inspect", config, "--count", "64", "--out", "found.yaml")
    assert done.code == 1
    assert "Close call: the differences between these 2 hypotheses aren't significant" in done.out
    assert "key: ema" in done.out
    assert "key: model" in done.out
    assert "They differ in the weights only, so one line under `drift` decides: `key: " in done.out
    assert "false-alarm rate 0.001" in done.out
    assert not (tmp_path / "found.yaml").exists()
    answer = json.loads(gft("inspect", config, "--count", "64", "--json").out)
    assert (answer["verdict"], answer["config"], len(answer["rivals"])) == ("close call", None, 1)


def test_weights_that_fit_no_hypothesis_are_one_error(gft, case, trained, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        shutil.copy(trained / "their_forms.py", tmp_path)
        state = torch.load(trained / "conditional-False.pt", weights_only=True)["ema"]
        random = {name: torch.randn_like(value) / max(1, value[0].numel()) ** 0.5 for name, value in state.items()}
    torch.save({"ema": random}, tmp_path / "random.pt")
    done = gft("inspect", case("Torchcfm", weights=str(tmp_path / "random.pt")), "--count", "512")
    assert done.code == 1
    assert done.err.startswith("Error: No hypothesis fits: the lowest denoising error, ")
    assert "linear: " in done.err
    assert "denoising error" in done.out  # the table is there as evidence
    assert "(linear)" in done.out


def test_a_wrong_convention_fits_nothing(gft, case):
    done = gft("inspect", case("Diffusers", convention={"time": "forward", "sign": 1, "predicts": "velocity"}))
    assert done.code == 1
    assert "No hypothesis fits" in done.err


def test_the_time_of_a_preset_is_compared_with_others(gft, case):
    """Networks of one library differ in it: here the preset's direction and scale are both wrong."""
    done = gft(
        "inspect", case("Torchcfm", convention={"preset": "diffusers", "call": "t, x", "output": None}), "--json"
    )
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    found = Convention.of(answer["config"]["drift"]["convention"])
    assert (found.time, found.time_scale) == ("forward", 1.0)
    tried = [Convention.of(each["convention"]) for each in answer["hypotheses"]]
    assert {(each.time, each.time_scale) for each in tried} >= {("reversed", 1000.0), ("forward", 1.0)}


def test_a_comparison_that_was_not_made_is_not_claimed(gft, case):
    whole = {key: value for key, value in Convention.of("torchcfm").to_dict().items() if value is not None}
    alone = gft("inspect", case("Torchcfm", convention=whole))
    assert "so only other directions and scales of time were measured" in alone.out
    assert "every other hypothesis" not in alone.out
    compared = gft("inspect", case("Torchcfm", convention={"preset": "torchcfm"}))
    assert "Significantly better than every other hypothesis" in compared.out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": None}, "drift.weights is missing"),
        ({"weights": "none.pt"}, "none.pt: no such weights file"),
        ({"key": "net"}, "no network that fits at key: net. Those that fit: 'ema', 'model'"),
        ({"name": "mlp"}, "unknown option of drift 'mlp'"),
        ({"convention": {"preset": "sitt"}}, "unknown preset of a convention: 'sitt'. Did you mean 'sit'"),
        ({"convention": {"tme": 1}}, "Did you mean 'time'"),
        ({"convention": 3}, "drift.convention: wanted a mapping, got 3"),
    ],
)
def test_inspect_reports_bad_input_as_one_error(refused, case, changes, message):
    target = "Torchcfm"
    assert message in refused("inspect", case(target, **changes))


def test_inspect_reports_bad_files_as_one_error(refused, gft, case, tmp_path, write_config):
    assert "drift is missing: wanted `drift: {name: module" in refused("inspect", "--data", "digits")
    assert "data is missing" in refused("inspect", "--target", "a:B")
    assert "Did you mean 'drift'" in refused("inspect", write_config({"drfit": {}}))
    assert "--count: wanted at least 64" in refused("inspect", case("Torchcfm"), "--count", "8")
    (tmp_path / "found.yaml").write_text("mine")
    assert "found.yaml exists" in refused("inspect", case("Torchcfm"), "--out", "found.yaml")
    assert (tmp_path / "found.yaml").read_text() == "mine"
    message = refused("inspect", case("Sit"), code=2)
    assert "the weights don't fit the drift" in message  # those without labels
    message = refused("inspect", case("Torchcfm", convention={"call": "a=x, b=t"}), code=1)
    assert "can't be called in any of the ways tried" in message


# --- networks of other libraries --------------------------------------------------------------------------------------

STEPS = 250


def digits():
    """The digits in [-1, 1], (n, 1, 8, 8)."""
    from gftkit.data.samples import Samples

    registry = gftkit.load()
    return Samples(registry.create("dataset", "digits"), "data").draw(1000, torch.Generator().manual_seed(0)).x1


def train(network, loss, steps=STEPS):
    """Adam on a loss of a batch of digits; the averaged weights of its end beside the raw ones."""
    images, generator = digits(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.98)
    )
    for _ in range(steps):
        x1 = images[torch.randint(len(images), (64,), generator=generator)]
        value = loss(network, x1, torch.randn(x1.shape, generator=generator), torch.rand(64, generator=generator))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        average.update_parameters(network)
    return average


SMALL = {
    "dim": [1, 8, 8],
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "attention_resolutions": "4",
}


@pytest.mark.slow
def test_torchcfm_s_unet_is_inspected(gft, write_config, tmp_path):
    reason = "torchcfm isn't installed: pip install --no-deps torchcfm"
    unet = pytest.importorskip("torchcfm.models.unet.unet", reason=reason).UNetModelWrapper
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = unet(**SMALL)

        def loss(network, x1, x0, t):
            at = t[:, None, None, None]
            return (network(t, (1 - at) * x0 + at * x1) - (x1 - x0)).square().mean()

        average = train(network, loss)
    state = {"net_model": network.state_dict(), "ema_model": average.module.state_dict(), "step": STEPS}
    torch.save(state, tmp_path / "cfm.pt")
    drift = {"target": "torchcfm.models.unet.unet:UNetModelWrapper", "options": SMALL, "weights": "cfm.pt"}
    config = write_config({"drift": {**drift, "key": "ema_model"}, "data": {"name": "digits"}})
    done = gft("inspect", config, "--json", "--count", "1024")
    assert done.code == 0, done.out
    answer = json.loads(done.out)
    found = answer["config"]["drift"]
    assert Convention.of(found["convention"]) == Convention.of("torchcfm")
    assert found["key"] == "ema_model"
    assert answer["hypotheses"][0]["denoising_error"]["value"] < 0.9 * answer["baselines"]["linear"]["value"]


BLOCKS = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
TINY = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 8, **BLOCKS}


@pytest.mark.slow
@pytest.mark.parametrize("predicts", ["velocity", "noise"])
def test_diffusers_unet_is_inspected(gft, write_config, tmp_path, predicts):
    reason = "diffusers isn't installed: pip install 'gftkit[diffusers]'"
    diffusers = pytest.importorskip("diffusers", reason=reason)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = diffusers.UNet2DModel(block_out_channels=(32, 64), **TINY)

        def loss(network, x1, x0, t):
            at = t[:, None, None, None]
            out = network((1 - at) * x0 + at * x1, 1000 * (1 - t)).sample
            return (out - (x0 - x1 if predicts == "velocity" else x0)).square().mean()

        average = train(network, loss)
    average.module.save_pretrained(tmp_path / "unet")
    drift = {"target": "diffusers:UNet2DModel", "weights": "unet"}
    done = gft("inspect", write_config({"drift": drift, "data": {"name": "digits"}}), "--json", "--count", "1024")
    assert done.code == 0, done.out
    convention = json.loads(done.out)["config"]["drift"]["convention"]
    wanted = {"call": "x, t", "time": "reversed", "time_scale": 1000.0, "output": "sample", "path": {"name": "linear"}}
    assert Convention.of(convention) == Convention.of(wanted | {"predicts": predicts})


@pytest.mark.slow
def test_the_cifar10_checkpoint_of_torchcfm_is_inspected(gft, write_config, tmp_path):
    """With random weights, of which nothing can be found out but what the file holds: it says so."""
    reason = "torchcfm isn't installed: pip install --no-deps torchcfm"
    unet = pytest.importorskip("torchcfm.models.unet.unet", reason=reason).UNetModelWrapper
    options = {"dim": [3, 32, 32], "num_res_blocks": 2, "num_channels": 128, "channel_mult": [1, 2, 2, 2]}
    options |= {"num_heads": 4, "num_head_channels": 64, "attention_resolutions": "16", "dropout": 0.1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        states = {name: unet(**options).state_dict() for name in ("net_model", "ema_model")}
        for state in states.values():  # the last layer of a new one is zero
            state["out.2.weight"] += 0.01 * torch.randn_like(state["out.2.weight"])
    torch.save({**states, "sched": {}, "optim": {"state": {}}, "step": 400000}, tmp_path / "cifar10.pt")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).uniform(-1, 1, (32, 3, 32, 32)).astype("float32"))
    drift = {"target": "torchcfm.models.unet.unet:UNetModelWrapper", "options": options, "weights": "cifar10.pt"}
    known = {"preset": "torchcfm"}
    config = write_config({"drift": {**drift, "convention": known}, "data": {"name": "arrays", "file": "x.npy"}})
    done = gft("inspect", config, "--count", "64")
    assert done.code == 1
    assert "No hypothesis fits" in done.err
    assert "ema_model" in done.out
    assert "net_model" in done.out
    assert "(untrained)" in done.out
