"""Adapters: what is trained, what never moves, what is written, and what is refused."""

import copy
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from support.paths import ROOT
from torch import nn
from torch.nn.utils import parametrizations

import gftkit
from gftkit.experiment.build import build
from gftkit.generation.export import export
from gftkit.kernel.errors import ConfigError, GftkitError, RunError
from gftkit.networks import adapters
from gftkit.networks.adapter_layers import DEFAULT, choose_layers
from gftkit.networks.adapters import AdaptedDrift, Adapters
from gftkit.networks.anchor import AdaptersOffAnchor, Anchor, FrozenAnchor
from gftkit.runs import checkpoint
from gftkit.runs.resolve import resolve_config
from gftkit.runs.schema import Train
from gftkit.runtime import devices
from gftkit.runtime.devices import start_accelerator
from gftkit.runtime.progress import Progress
from gftkit.storage.documents import read_json
from gftkit.storage.tensors import read_notes, read_tensors, write_tensors
from gftkit.training import loop
from gftkit.training.forward import Forward
from gftkit.training.steps import trained_weights

ROUND_OFF = 1e-5
"""Of float32 sums in another order, relative to the largest output."""

KINDS = {
    "lora": Adapters(rank=4),
    "lora-capped": Adapters(rank=8, alpha=5.0),
    "rslora": Adapters(rank=4, alpha=3.0, rslora=True),
    "dora": Adapters(rank=4, dora=True),
    "loha": Adapters(name="loha", rank=3),
    "lokr": Adapters(name="lokr", rank=3),
    "also-norms": Adapters(rank=4, also_train=["norm"], dropout=0.3),
}


class Small(nn.Module):
    """A drift with every type of layer, with dropout, and told a label."""

    conditions = ("label",)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 8)
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.inner = nn.ModuleDict({"mix": nn.Conv1d(8, 8, 1, bias=False), "first": nn.Linear(8, 8)})
        self.drop = nn.Dropout(0.5)
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, t, x, label):
        told = self.inner["first"](self.embed(label) * t[:, None])
        h = self.norm(self.first(x)) + told[:, :, None, None]
        h = h + self.inner["mix"](self.drop(h).flatten(2)).reshape(h.shape)
        return self.last(torch.sigmoid(h))


def inputs(count=5):
    generator = torch.Generator().manual_seed(0)
    t, x = torch.rand(count, generator=generator), torch.randn(count, 1, 4, 4, generator=generator)
    return {"t": t, "x": x, "label": torch.arange(count) % 3}


def adapt(drift, options, seed=0):
    return AdaptedDrift(drift, options, lambda: drift(**inputs()), torch.Generator().manual_seed(seed))


@pytest.fixture(params=KINDS)
def pair(request):
    """A network and its copy with trained adapters, in evaluation mode."""
    torch.manual_seed(3)
    before = Small().eval()
    adapted = adapt(copy.deepcopy(before), KINDS[request.param])
    return before, adapted


def train(adapted):
    for parameter in adapted.drift.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return adapted


# The network


def test_at_first_adapters_change_nothing_and_then_they_do(pair):
    before, adapted = pair
    wanted = before(**inputs())
    assert torch.equal(adapted.drift(**inputs()), wanted)
    train(adapted)
    assert (adapted.drift(**inputs()) - wanted).abs().max() > 0.01
    assert adapted.drift.conditions == ("label",)
    assert type(adapted.drift) is Small


def test_only_adapters_are_trained_and_every_weight_is_there_once(pair):
    before, adapted = pair
    trained = [weight for weight in adapted.drift.parameters() if weight.requires_grad]
    frozen = [weight for weight in adapted.drift.parameters() if not weight.requires_grad]
    assert trained
    assert sum(weight.numel() for weight in frozen) == sum(weight.numel() for weight in before.parameters())
    known = {weight.data_ptr() for weight in adapted.drift.parameters()}
    assert len(known) == len(trained) + len(frozen)
    told = adapted.describe()
    assert told["trained"] == sum(weight.numel() for weight in trained)
    assert told["layers"] == 4


def test_adapters_off_is_the_pretrained_network_in_evaluation_mode(pair):
    """Also while the network trains with dropout; its modes, gradients and adapters are as before afterwards."""
    before, adapted = pair
    drift = train(adapted).drift
    drift.train()
    drift.inner["first"].eval()
    modes = [module.training for module in drift.modules()]
    needs = [weight.requires_grad for weight in drift.parameters()]
    torch.manual_seed(1)
    here = drift(**inputs())
    anchor = AdaptersOffAnchor(adapted, "hash")
    for _ in range(2):
        held = anchor(**inputs())
        assert torch.equal(held, before(**inputs()))
        assert not held.requires_grad
    assert modes == [module.training for module in drift.modules()]
    assert needs == [weight.requires_grad for weight in drift.parameters()]
    torch.manual_seed(1)
    assert torch.equal(drift(**inputs()), here)
    with pytest.raises(TypeError), adapted.off():  # also after an error inside
        drift()
    torch.manual_seed(1)
    assert torch.equal(drift(**inputs()), here)


def test_a_wrong_adapters_off_is_another_drift(pair):
    """What the test above must see: adapters left on, and a network that stays in training mode."""
    before, adapted = pair
    drift = train(adapted).drift
    assert not torch.equal(drift(**inputs()), before(**inputs()))
    drift.train()
    switched = [module for module in drift.modules() if hasattr(module, "enable_adapters")]
    for layer in switched:
        layer.enable_adapters(False)
    assert not torch.equal(drift(**inputs()), before(**inputs()))


def test_the_anchor_adds_no_parameters(pair):
    """With adapters-off, what is held is the network's tensors and the adapters'; a copy adds the network's again."""
    before, adapted = pair

    def held(anchor):
        holders = [adapted.drift, getattr(anchor, "module", nn.Module())]
        return {tensor.data_ptr() for module in holders for tensor in module.state_dict().values()}

    off = AdaptersOffAnchor(adapted, "hash")
    assert isinstance(off, Anchor)
    assert off.describe() == {"kind": "adapters-off", "hash": "hash", "parameters": 0}
    own = {tensor.data_ptr() for tensor in adapted.drift.state_dict().values()}
    assert held(off) == own
    assert len(held(FrozenAnchor(before))) == len(own) + len(before.state_dict())


def test_merged_weights_are_those_of_the_plain_network(pair):
    _, adapted = pair
    drift = train(adapted).drift
    wanted, state = drift(**inputs()), copy.deepcopy(drift.state_dict())
    plain = Small().eval()
    plain.load_state_dict(adapted.merged())
    close(plain(**inputs()), wanted)
    assert torch.equal(drift(**inputs()), wanted)  # merging leaves the adapted network as it was
    assert all(torch.equal(held, drift.state_dict()[name]) for name, held in state.items())
    other = {name: 2 * weight.detach() for name, weight in drift.named_parameters() if weight.requires_grad}
    plain.load_state_dict(adapted.merged(other))
    assert (plain(**inputs()) - wanted).abs().max() > 1e-3
    assert torch.equal(drift(**inputs()), wanted)
    with torch.no_grad():
        for name, weight in drift.named_parameters():
            weight.copy_(other.get(name, weight))
    close(plain(**inputs()), drift(**inputs()))


def close(one, other):
    assert (one - other).abs().max() < ROUND_OFF * other.abs().max()


def test_peft_reads_what_is_saved(pair, tmp_path):
    before, adapted = pair
    drift = train(adapted).drift
    adapted.save(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(before), tmp_path / "adapter").eval()
    assert torch.equal(loaded(**inputs()), drift(**inputs()))
    close(loaded.merge_and_unload()(**inputs()), drift(**inputs()))
    averages = {name: 0 * weight.detach() for name, weight in drift.named_parameters() if weight.requires_grad}
    adapted.save(tmp_path / "zero", averages)
    assert not any(held.any() for held in load_file(tmp_path / "zero/adapter_model.safetensors").values())


def test_the_first_weights_are_a_function_of_the_seed():
    def first(seed):
        torch.manual_seed(5)
        drift = adapt(Small(), Adapters(rank=4), seed).drift
        return drift.first.lora_A["default"].weight

    state = torch.get_rng_state()
    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    torch.manual_seed(9)
    made, state = Small(), torch.get_rng_state()
    adapt(made, Adapters(rank=4))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_small_layer_gets_the_rank_that_it_allows_at_the_same_factor():
    adapted = adapt(Small(), Adapters(rank=8, alpha=4.0))
    ranks = {name: layer.r["default"] for name, layer in adapted.layers.items()}
    assert ranks == {"first": 8, "inner.mix": 8, "inner.first": 8, "last": 1}
    assert {layer.scaling["default"] for layer in adapted.layers.values()} == {0.5}
    by_root = adapt(Small(), Adapters(rank=8, alpha=4.0, rslora=True))
    for layer in by_root.layers.values():
        assert layer.scaling["default"] == pytest.approx(4 / 8**0.5)


# Targets


@pytest.mark.parametrize(
    ("targets", "exclude", "wanted"),
    [
        (None, [], ["first", "inner.mix", "inner.first", "last"]),
        (None, ["inner.*"], ["first", "last"]),
        (["first"], [], ["first", "inner.first"]),
        (["inner.first", "la*"], [], ["inner.first", "last"]),
        ("first|last", [], ["first", "last"]),
        (["embed"], [], ["embed"]),
    ],
)
def test_layers_are_chosen_by_name(targets, exclude, wanted):
    assert list(choose_layers(Small(), targets, exclude, (*DEFAULT, nn.Embedding))) == sorted(wanted, key=order)
    adapted = adapt(Small(), Adapters(rank=2, targets=targets, exclude=exclude))
    assert set(adapted.layers) == set(wanted)


def order(name):
    return [known for known, _ in Small().named_modules()].index(name)


@pytest.mark.parametrize("width", [16, 32])
def test_at_least_nine_tenths_of_the_unet_lie_in_adapted_layers(registry, width):
    drift = registry.create("drift", "unet", event_shape=[1, 16, 16], width=width)
    chosen = choose_layers(drift, None, [], DEFAULT)
    held = sum(weight.numel() for layer in chosen.values() for weight in layer.parameters())
    whole = sum(weight.numel() for weight in drift.parameters())
    linear = sum(
        weight.numel() for layer in chosen.values() if isinstance(layer, nn.Linear) for weight in layer.parameters()
    )
    assert held >= 0.9 * whole
    assert linear < 0.2 * whole  # those of peft's "all-linear"
    assert {type(layer) for layer in chosen.values()} == {nn.Linear, nn.Conv1d, nn.Conv2d}


def changed(**layers):
    drift = Small()
    for name, layer in layers.items():
        setattr(drift, name, layer)
    return drift


class Standardized(nn.Conv2d):
    """A convolution whose weights are standardized: not linear in them."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Reader(Small):
    """A drift that reads a layer's weights and never calls it."""

    def forward(self, t, x, label):
        return super().forward(t, x, label) + nn.functional.conv2d(x, self.read.weight, padding=1)


class Sampler(Small):
    """A drift that reads weights when it samples only, as torch's transformer layers do."""

    def forward(self, t, x, label):
        here = self.read(x) if torch.is_grad_enabled() else nn.functional.conv2d(x, self.read.weight, padding=1)
        return super().forward(t, x, label) + here


def tied():
    drift = Small()
    drift.inner["again"] = nn.Conv1d(8, 8, 1, bias=False)
    drift.inner["again"].weight = drift.inner["mix"].weight
    return drift


def reused():
    drift = Small()
    drift.inner["again"] = drift.inner["mix"]
    return drift


def with_reader(cls):
    drift = cls()
    drift.read = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    return drift


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Small, {"targets": ["frist"]}, r"adapters.targets: 'frist' matches no layer. Layers .*: first"),
        (Small, {"targets": ["first", "attn"]}, "'attn' matches no layer"),
        (Small, {"targets": "["}, "'\\[' is not a regular expression"),
        (Small, {"targets": "firs"}, "'firs' matches no layer"),
        (
            Small,
            {"targets": ["norm"]},
            "norm is a GroupNorm, which can't be adapted. Wanted Linear, Conv1d, Conv2d",
        ),
        (Small, {"targets": ["embed"], "name": "loha"}, "embed is a Embedding, which can't be adapted"),
        (Small, {"exclude": ["firts"]}, "adapters.exclude: 'firts' matches no layer"),
        (Small, {"exclude": ["*"]}, "no layer is left to adapt"),
        (Small, {"also_train": ["nrom"]}, "also_train: 'nrom' matches no module with parameters"),
        (Small, {"also_train": ["drop"]}, "also_train: 'drop' matches no module with parameters"),
        (Small, {"also_train": ["inner"]}, r"also_train: 'inner' contains inner\.mix, which is adapted"),
        (
            Small,
            {"rank": 10**6},
            r"adapters.rank: 1000000 is larger than every adapted layer allows; .* allows 8 \(first\)",
        ),
        (Small, {"rank": 3, "targets": ["last"]}, r"larger than every adapted layer allows; .* allows 1 \(last\)"),
        (Small, {"name": "loha", "dora": True}, "adapters.dora: an option of lora, not of loha"),
        (Small, {"name": "lokr", "dropout": 0.1}, "adapters.dropout: an option of lora"),
        (lambda: changed(norm=nn.BatchNorm2d(8)), {}, "norm keep running statistics"),
        (lambda: changed(norm=nn.Conv2d(8, 8, 3, padding=1, groups=4)), {}, "norm are grouped convolutions"),
        (lambda: changed(norm=Standardized(8, 8, 3, padding=1)), {}, "norm override the forward of their torch layer"),
        (
            lambda: changed(norm=parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))),
            {},
            "norm are parametrized",
        ),
        (tied, {}, r"inner\.mix, inner\.again share their weights"),
        (reused, {}, r"inner\.mix share their weights"),
        (lambda: with_reader(Reader), {}, "read are not called when the drift is evaluated"),
        (lambda: with_reader(Sampler), {}, "read are not called when the drift is evaluated"),
    ],
)
def test_layers_that_adapters_would_be_wrong_in_are_refused(make, options, message):
    drift = make()
    before = copy.deepcopy(drift.state_dict())
    with pytest.raises(ConfigError, match=message):
        adapt(drift, Adapters(**{"rank": 2, **options}))
    assert drift.state_dict().keys() == before.keys()  # nothing was put in


def test_what_is_refused_may_be_left_out():
    for make, name in ((tied, "inner.*"), (lambda: with_reader(Reader), "read")):
        assert adapt(make(), Adapters(rank=2, exclude=[name])).layers
    grouped = changed(norm=nn.Conv2d(8, 8, 3, padding=1, groups=4))
    plain, adapted = copy.deepcopy(grouped).eval(), adapt(grouped.eval(), Adapters(name="loha", rank=2))
    train(adapted)
    plain.load_state_dict(adapted.merged())
    close(plain(**inputs()), adapted.drift(**inputs()))


def test_peft_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'gftkit[lora]'")):
        adapt(Small(), Adapters())


def test_names_that_peft_confuses_are_refused():
    drift = Small()
    drift.add_module("xnorm", nn.GroupNorm(2, 8))
    with pytest.raises(ConfigError, match="peft can't distinguish xnorm from other layers by name"):
        adapt(drift, Adapters(rank=2, also_train=["norm"]))


# Runs


PRETRAIN = {
    "drift": {"name": "unet", "width": 4, "multipliers": [1, 2], "dropout": 0.2, "conditional": True},
    "data": {"name": "digits", "count": 60},
    "train": {"steps": 8, "batch_size": 8, "learning_rate": 0.01},
    "evaluate": {"every": 8, "count": 20, "metrics": ["path-length"], "solver": {"name": "euler", "steps": 2}},
    "seed": 3,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory, registry):
    """The folder of a finished pretraining of a small U-Net. Don't write to it."""
    return gftkit.pretrain(PRETRAIN, tmp_path_factory.mktemp("runs") / "source", registry=registry).folder


def tuning(source, **changes):
    """A fine-tune's configuration, with adapters."""
    return {
        "pretrained": str(source),
        "data": {"name": "digits", "count": 40, "seed": 1},
        "schedule": {"name": "constant", "value": 1.0},
        "adapters": {"name": "lora", "rank": 4, "dropout": 0.1},
        "train": {"steps": 6, "batch_size": 8, "checkpoint_every": 3, "keep_checkpoints": 9, "learning_rate": 0.02},
        "evaluate": PRETRAIN["evaluate"],
        "monitors": ["anchor-distance"],
        "seed": 2,
        **changes,
    }


@pytest.fixture(scope="module")
def tuned(source, tmp_path_factory, registry):
    """The folder of a finished fine-tune with adapters. Don't write to it."""
    return gftkit.finetune(tuning(source), tmp_path_factory.mktemp("runs") / "tuned", registry=registry).folder


def test_training_moves_the_adapters_alone(source, registry):
    """Bit for bit, over steps with dropout, clipping and an anchor; a plain fine-tune moves all weights."""
    for options, moves in (({"rank": 4}, False), (None, True)):
        config = {key: value for key, value in tuning(source, adapters=options).items() if value is not None}
        train = run_loop(config, registry)
        before = {name: weight.clone() for name, weight in train.steps.drift.named_parameters()}
        frozen = {name for name, weight in train.steps.drift.named_parameters() if not weight.requires_grad}
        for step in range(4):
            train.steps.take(step)
        moved = {name for name, weight in train.steps.drift.named_parameters() if not torch.equal(weight, before[name])}
        assert moved
        assert not moved & frozen
        assert bool(frozen) != moves
        assert len(train.steps.descent.averages.tensors()) == len(before) - len(frozen)


def run_loop(config, registry):
    experiment = build(resolve_config(config, "finetune", registry)[0], registry)
    return loop.Loop(experiment, registry, Path(), start_accelerator("cpu"), Progress(6, "finetune", quiet=True))


def test_the_default_anchor_is_the_network_with_its_adapters_off(source, registry):
    train = run_loop(tuning(source), registry)
    plain = gftkit.Run.open(source).drift()
    assert train.anchor.kind == "adapters-off"
    given = {"t": torch.rand(4), "x": torch.randn(4, 1, 8, 8), "label": torch.arange(4)}
    for step in range(3):
        train.steps.take(step)
        assert torch.equal(train.anchor(**given), plain(**given))
    assert not torch.equal(train.steps.drift.eval()(**given), plain(**given))
    known = run_loop(tuning(source, anchor="frozen"), registry).anchor
    assert train.anchor.hash == known.hash  # the same function by other means
    assert torch.equal(known(**given), plain(**given))


def test_adapters_off_trains_as_a_frozen_copy_does(source, registry):
    """The same steps, bit for bit: the copy is not needed. With the adapters left on they are others."""
    ends = []
    for anchor in ("adapters-off", "frozen", "on"):
        train = run_loop(tuning(source, anchor="frozen" if anchor == "on" else anchor), registry)
        if anchor == "on":
            train.steps.anchor = lambda t, x, drift=train.steps.drift, **given: drift.eval()(t, x, **given).detach()
        for step in range(5):
            train.steps.take(step)
        ends.append([weight.detach().clone() for weight in trained_weights(train.steps.drift)])
    off, frozen, on = ends
    assert all(torch.equal(one, other) for one, other in zip(off, frozen, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(off, on, strict=True))


@pytest.mark.parametrize(
    ("train", "objective"),
    [
        ({"precision": "bfloat16"}, {}),
        ({"gradient_checkpointing": True, "accumulate": 2}, {}),
        ({"channels_last": True}, {"anchor_share": 0.5}),
    ],
    ids=lambda options: "-".join(options),
)
def test_adapters_off_trains_as_a_frozen_copy_whatever_saves_time_or_memory(source, registry, train, objective):
    """Autocast keeps casts of weights; activations are recomputed after the adapters were off: neither may tell."""
    ends = []
    for anchor in ("adapters-off", "frozen"):
        config = tuning(source, anchor=anchor, objective=objective)
        config["train"] |= train
        going = run_loop(config, registry)
        weights = trained_weights(going.steps.drift)
        before = [weight.detach().clone() for weight in weights]
        for step in range(2):
            going.steps.take(step)
        assert all(not torch.equal(one, weight) for one, weight in zip(before, weights, strict=True))
        ends.append([weight.detach().clone() for weight in weights])
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own
def test_adapters_off_may_be_compiled():
    """The compiled anchor is the pretrained network, and the compiled drift beside it has its adapters on."""
    torch.manual_seed(3)
    before = Small().eval()
    adapted = adapt(copy.deepcopy(before), Adapters(rank=4))
    drift, anchor = train(adapted).drift, AdaptersOffAnchor(adapted, "hash")
    forward = Forward(Train(compile=True), torch.device("cpu"), (1, 4, 4))
    given = inputs()
    for _ in range(2):
        drift.train()
        forward(drift, anchor, given["t"], given["x"], {"label": given["label"]})
        assert drift.training
        drift.eval()
        here, held = forward(drift, anchor, given["t"], given["x"], {"label": given["label"]})
        close(held, before(**inputs()))
        close(here, drift(**inputs()))
    here.square().mean().backward()
    assert all(weight.grad is not None for weight in trained_weights(drift))


def test_a_run_keeps_merged_weights_and_adapters_in_pefts_format(source, tuned, registry):
    run, before = gftkit.Run.open(tuned), gftkit.Run.open(source)
    given = {"t": torch.rand(4), "x": torch.randn(4, 1, 8, 8), "label": torch.arange(4)}
    merged, plain = run.drift(), before.drift()
    assert merged.state_dict().keys() == plain.state_dict().keys()
    loaded = peft.PeftModel.from_pretrained(plain, tuned / "adapter").eval()
    close(loaded(**given), merged(**given))
    assert not torch.equal(before.drift()(**given), merged(**given))
    assert json.loads((tuned / "adapter/adapter_config.json").read_text())["r"] == 4
    told = read_json(tuned / "summary.json")
    assert told["anchor"]["kind"] == "adapters-off"
    assert told["anchor"]["parameters"] == 0
    assert told["adapters"]["trained"] < told["adapters"]["parameters"] / 2
    seen = [line["anchor_distance"] for line in run.history() if line["kind"] == "monitor"]
    assert seen[0] == 0
    assert seen[-1] > 0


def test_no_peft_is_needed_to_sample(tuned, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    samples, _ = gftkit.Run.open(tuned).samples(3)
    assert samples.shape == (3, 1, 8, 8)
    with pytest.raises(ConfigError, match="adapters require the package peft"):
        gftkit.Run.open(tuned).drift("raw")


def test_checkpoints_hold_adapters_only(source, tuned):
    found = checkpoint.latest(tuned / "checkpoints")[0]
    names = [*found.part("drift."), *found.part("ema.")]
    assert names
    assert all("lora_" in name for name in names)
    whole = checkpoint.latest(source / "checkpoints")[0]
    assert len(whole.part("drift.")) == len(read_tensors(source / "model.safetensors")[0])


def test_raw_weights_are_the_last_steps(source, tuned, registry, tmp_path):
    run = gftkit.Run.open(tuned)
    given = {"t": torch.rand(4), "x": torch.randn(4, 1, 8, 8), "label": torch.arange(4)}
    train = run_loop(tuning(source), registry)
    for step in range(6):
        train.steps.take(step)
    close(run.drift("raw")(**given), train.steps.drift.eval()(**given))
    assert not torch.equal(run.drift("raw")(**given), run.drift()(**given))


@pytest.mark.parametrize("stop", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_a_resumed_run_with_adapters_equals_an_undisturbed_one(source, tuned, registry, tmp_path, stop):
    broken = stopped(tuned, tmp_path / "broken", stop)
    gftkit.finetune(tuning(source), broken, registry=registry, resume=True)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        one, other = load_file(tuned / name), load_file(broken / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (tuned / "metrics.jsonl").read_text() == (broken / "metrics.jsonl").read_text()


def stopped(tuned, folder, stop):
    """A copy of a run, taken back to its checkpoint at a step."""
    shutil.copytree(tuned, folder)
    (folder / "model.safetensors").unlink()
    for path in checkpoint.checkpoints_of(folder / "checkpoints"):
        if int(path.stem.removeprefix("step-")) > stop:
            path.unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= stop))
    return folder


def test_adapters_belong_to_the_weights_that_they_were_trained_on(source, tuned, registry, tmp_path):
    """Another network under the adapters, with the anchor elsewhere: resume and raw weights are refused."""
    moved = shutil.copytree(source, tmp_path / "moved")
    config = tuning(moved, anchor={"name": "external", "pretrained": str(source)})
    run = gftkit.finetune(config, tmp_path / "run", registry=registry)
    broken = stopped(run.folder, tmp_path / "broken", 3)
    run.drift("raw")
    tensors, notes = read_tensors(moved / "model.safetensors")
    write_tensors(moved / "model.safetensors", {name: 1.5 * held for name, held in tensors.items()}, notes)
    with pytest.raises(RunError, match=r"contains adapters for .*moved, and the weights there have changed"):
        gftkit.finetune(config, broken, registry=registry, resume=True)
    with pytest.raises(RunError, match="use the EMA weights, which are stored with the adapters merged in"):
        run.drift("raw")
    run.drift()


def test_a_second_fine_tune_with_adapters_starts_from_the_merged_weights(tuned, registry):
    with pytest.raises(ConfigError, match="`anchor: adapters-off`"):
        resolve_config(tuning(tuned), "finetune", registry)
    train = run_loop(tuning(tuned, anchor="adapters-off"), registry)
    given = {"t": torch.rand(4), "x": torch.randn(4, 1, 8, 8), "label": torch.arange(4)}
    assert torch.equal(train.anchor(**given), gftkit.Run.open(tuned).drift()(**given))
    assert train.experiment.networks.anchors == (*read_notes(tuned / "model.safetensors")["anchors"], train.anchor.hash)


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ("lore", "adapters.name: wanted 'lora' or 'loha' or 'lokr', got 'lore'"),
        ({"rnak": 4}, "unknown option of adapters: 'rnak'. Did you mean 'rank'"),
        ({"rank": 0}, "adapters.rank: wanted int, > 0, got 0"),
        ({"dropout": 1.0}, "adapters.dropout: wanted float"),
        ({"targets": 3}, "adapters.targets: wanted str or list of str or null, got 3"),
        (7, "adapters: wanted a mapping, got 7"),
    ],
)
def test_options_are_checked(source, registry, adapters, message):
    with pytest.raises(GftkitError, match=re.escape(message)):
        resolve_config(tuning(source, adapters=adapters), "finetune", registry)


def test_adapters_belong_to_a_fine_tune(source, registry):
    with pytest.raises(ConfigError, match="`adapters` belongs to a fine-tune"):
        resolve_config({**PRETRAIN, "adapters": "lora"}, "pretrain", registry)
    with pytest.raises(ConfigError, match="adapters-off requires adapters, and this fine-tune trains all weights"):
        resolve_config(tuning(source, adapters=None, anchor="adapters-off"), "finetune", registry)


def test_sharded_weights_are_refused(source, registry, monkeypatch):
    monkeypatch.setattr(devices, "is_sharded", lambda _: True)
    with pytest.raises(ConfigError, match="adapters: require whole weights on every device, and FSDP shards them"):
        run_loop(tuning(source), registry)


def test_a_foreign_network_is_adapted(registry, tmp_path, monkeypatch):
    """Its drift brings the weights; there is no pretrained run to look at. Its files have the network's own names."""
    (tmp_path / "own_for_adapters.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.inner, self.mid, self.outer = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 2)\n"
        "        self.norm = nn.LayerNorm(8)\n\n"
        "    def forward(self, x, t):\n"
        "        return self.outer(self.norm(self.mid(self.inner(x).sin()))) * t[:, None]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    net = importlib.import_module("own_for_adapters").Net()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    drift = {"name": "module", "target": "own_for_adapters:Net", "weights": str(tmp_path / "net.pt")}
    config = tuning("", drift={**drift, "convention": {"call": "x, t", "time": "reversed"}}, data={"name": "two-moons"})
    del config["pretrained"]
    config["adapters"] = {"rank": 6, "targets": "inner|mid|outer", "also_train": ["norm"]}
    run = gftkit.finetune(config, tmp_path / "run", registry=registry)
    t, x = torch.rand(4), torch.randn(4, 2)
    train = run_loop(config, registry)
    assert torch.equal(train.anchor(t, x), -net(x, 1 - t))
    for step in range(6):
        train.steps.take(step)
    close(run.drift("raw")(t, x), train.steps.drift.eval()(t, x))
    assert torch.equal(train.anchor(t, x), -net(x, 1 - t))
    assert not torch.equal(run.drift()(t, x), -net(x, 1 - t))
    broken = stopped(run.folder, tmp_path / "broken", 3)
    gftkit.finetune(config, broken, registry=registry, resume=True)
    assert torch.equal(gftkit.Run.open(broken).drift()(t, x), run.drift()(t, x))
    for weights in ("ema", "raw"):
        out, wanted = tmp_path / weights, -run.drift(weights)(1 - t, x)
        (file,) = export(run, out, "merged", weights)
        assert (wanted - net(x, t)).abs().max() > 100 * ROUND_OFF * wanted.abs().max()
        merged = type(net)()
        merged.load_state_dict(load_file(file))
        close(merged(x, t), wanted)
        export(run, out, "adapter", weights)
        close(peft.PeftModel.from_pretrained(copy.deepcopy(net), out).eval()(x, t), wanted)
        close(peft.PeftModel.from_pretrained(copy.deepcopy(net), out).merge_and_unload()(x, t), wanted)
    written = peft.PeftModel.from_pretrained(copy.deepcopy(net), run.folder / "adapter").eval()
    close(written(x, t), -run.drift()(1 - t, x))
    # what was exported is a foreign network's weights again, and a fine-tune's start
    again = {**run.config.drift, "weights": str(tmp_path / "ema/model.safetensors")}
    path = registry.build("path", {"name": "linear"})
    assert torch.equal(registry.build("drift", again, path=path)(t, x), run.drift()(t, x))
    bare = {**config, "adapters": None, "anchor": "frozen", "pretrained": again["weights"]}
    bare["drift"] = {**config["drift"], "weights": None}
    assert torch.equal(run_loop(bare, registry).anchor(t, x), run.drift()(t, x))


# Export


def test_export(source, tuned, registry, tmp_path):
    run = gftkit.Run.open(tuned)
    given = {"t": torch.rand(4), "x": torch.randn(4, 1, 8, 8), "label": torch.arange(4)}
    for weights in ("ema", "raw"):
        out = tmp_path / weights
        (file,) = export(run, out, "merged", weights)
        plain = run.drift()
        plain.load_state_dict(load_file(file))
        wanted = run.drift(weights)(**given)
        assert torch.equal(plain(**given), wanted)
        files = export(run, out, "adapter", weights)
        assert [path.name for path in files] == [adapters.CONFIG, adapters.WEIGHTS]
        loaded = peft.PeftModel.from_pretrained(gftkit.Run.open(source).drift(), out).eval()
        close(loaded(**given), wanted)
        with pytest.raises(RunError, match="exists"):
            export(run, out, "adapter", weights)
        export(run, out, "adapter", weights, force=True)
    with pytest.raises(ConfigError, match="has no adapters: all its weights were trained"):
        export(gftkit.Run.open(source), tmp_path / "none", "adapter")
    again = tuning(tmp_path / "ema/model.safetensors", drift=run.config.drift, anchor="frozen", adapters=None)
    assert run_loop(again, registry).experiment.networks.anchors[:-1] == tuple(
        read_notes(tuned / "model.safetensors")["anchors"]
    )


@pytest.mark.slow
def test_the_recipe_comes_near_full_fine_tuning(registry, tmp_path):
    """A third of the demo's steps: the recipe against training all weights as the demo does; rank 1 falls behind."""
    demo, lora = (ROOT / "recipes" / name for name in ("demo", "lora"))
    pre = ["train.steps=800", "evaluate.every=800", "evaluate.count=50"]
    folder = gftkit.pretrain(demo / "pretrain.yaml", tmp_path / "pre", registry=registry, overrides=pre).folder
    quick = [f"pretrained={folder}", "train.steps=500", "evaluate.every=500", "monitors=[]"]
    quick.append("evaluate.metrics=[{name: frechet, feature: {name: digits-classifier}}]")
    found = {}
    for name, recipe, more in (("full", demo, []), ("lora", lora, []), ("rank 1", lora, ["adapters.rank=1"])):
        run = gftkit.finetune(recipe / "gft.yaml", tmp_path / name, registry=registry, overrides=[*quick, *more])
        found[name] = read_json(run.folder / "summary.json")["ema"]["frechet"]
    assert found["lora"] < 1.15 * found["full"], found
    assert found["rank 1"] > 1.3 * found["full"], found
