"""Networks of a run are probed before the first step, and what is written is read back: nothing is wrong silently."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import gftkit
from gftkit.experiment.build import build
from gftkit.kernel.errors import ConfigError, RunError, WeightsError
from gftkit.runs.resolve import resolve_config
from gftkit.training import loop

CLASSES = 3
REASON = "diffusers isn't installed: pip install 'gftkit[diffusers]'"


class LabelEmbedder(nn.Module):
    """As in SiT and DiT: one row more, for "no label", where labels are dropped."""

    def __init__(self, share):
        super().__init__()
        self.embedding_table, self.dropout_prob = nn.Embedding(CLASSES + (share > 0), 8), share

    def forward(self, label, training):
        if training and self.dropout_prob > 0:
            label = torch.where(torch.rand(len(label)) < self.dropout_prob, CLASSES, label)
        return self.embedding_table(label)


class Sit(nn.Module):
    def __init__(self, share=0.1):
        super().__init__()
        self.y_embedder, self.first, self.last = LabelEmbedder(share), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x, t, y):
        hidden = self.first(torch.cat([x, t[:, None]], 1)) + self.y_embedder(y, self.training)
        return self.last(hidden.tanh())


class Plain(nn.Module):
    def __init__(self, dtype="float32"):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.to(getattr(torch, dtype))

    def forward(self, x, t):
        return self.linear(torch.cat([x, t[:, None]], 1))


class Hidden(Plain):
    def __init__(self):
        super().__init__()
        self.frequencies = torch.randn(2)

    def forward(self, x, t):
        return super().forward(x * self.frequencies, t)


@pytest.fixture
def settings(tmp_path):
    """A fine-tune of a network of this file, by ``settings(cls, **options of the drift)``."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x1=rng.normal(size=(30, 2)).astype("float32"), label=rng.integers(0, CLASSES, 30))

    def make(network, call="x, t", null=None, adapters=None, **options):
        torch.manual_seed(0)
        weights = network(**options.pop("made", {})).state_dict()
        save_file(weights, tmp_path / "weights.safetensors")
        drift = {
            "name": "module",
            "target": f"{__name__}:{network.__name__}",
            "weights": str(tmp_path / "weights.safetensors"),
            "convention": {"call": call, "path": {"name": "linear"}, **({} if null is None else {"null": null})},
            **options,
        }
        made = {
            "drift": drift,
            "data": {"name": "arrays", "file": str(tmp_path / "data.npz")},
            "schedule": "exponential",
            "train": {"steps": 2, "batch_size": 4},
            "evaluate": {"metrics": [], "count": 8, "solver": {"name": "euler", "steps": 2}},
        }
        return {**made, "adapters": adapters} if adapters else made

    return make


def test_a_network_that_drops_its_labels_itself_is_refused_and_the_message_has_the_cure(settings, tmp_path):
    config = settings(Sit, call="x, t, label", null={"label": CLASSES})
    with pytest.raises(ConfigError, match=r"y_embedder \(LabelEmbedder\) draws random numbers") as caught:
        gftkit.finetune(config, tmp_path / "run")
    assert "Set drift.label_dropout: false, and train.condition_dropout: 0.1" in str(caught.value)
    assert not (tmp_path / "run").exists()
    config["drift"]["label_dropout"] = False
    config["train"]["condition_dropout"] = 0.1
    run = gftkit.finetune(config, tmp_path / "run")
    assert run.weights()[0]["network.y_embedder.embedding_table.weight"].shape == (CLASSES + 1, 8)
    assert run.samples(4, guidance=2.0)[0].shape == (4, 2)
    nothing = settings(Plain, label_dropout=False)
    with pytest.raises(ConfigError, match=r"drift.label_dropout: .*Plain' has no label embedder"):
        gftkit.finetune(nothing, tmp_path / "other")


def test_the_label_dropout_of_the_dit_of_diffusers_is_seen_and_switched_off(settings, tmp_path):
    pytest.importorskip("diffusers", reason=REASON)
    from diffusers import DiTTransformer2DModel

    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, 1, 4, 4)).astype("float32")
    np.savez(tmp_path / "images.npz", x1=images, label=rng.integers(0, CLASSES, 8))
    options = {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 1, "out_channels": 1, "num_layers": 1}
    options |= {"sample_size": 4, "patch_size": 2, "num_embeds_ada_norm": CLASSES}
    torch.manual_seed(0)
    network = DiTTransformer2DModel(**options)
    for weight in network.parameters():  # zeros hide that labels are dropped
        nn.init.normal_(weight, std=0.1)
    network.save_pretrained(tmp_path / "dit")
    config = settings(Plain)
    config["data"]["file"] = str(tmp_path / "images.npz")
    convention = {"preset": "diffusers", "call": "x, t, class_labels=label", "null": {"label": CLASSES}}
    target = "diffusers:DiTTransformer2DModel"
    config["drift"] = {"name": "module", "target": target, "weights": str(tmp_path / "dit"), "convention": convention}
    with pytest.raises(ConfigError, match=r"class_embedder \(LabelEmbedding\) draws random.*label_dropout: false"):
        gftkit.finetune(config, tmp_path / "run")
    config["drift"]["label_dropout"] = False
    config["train"]["condition_dropout"] = 0.1
    run = gftkit.finetune(config, tmp_path / "run")
    tables = [value for name, value in run.weights()[0].items() if name.endswith("embedding_table.weight")]
    assert [len(table) for table in tables] == [CLASSES + 1]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_networks_of_other_floating_types_are_trained_as_float32_with_a_note(settings, tmp_path, dtype, capfd):
    config = settings(Plain, options={"dtype": dtype}, made={"dtype": dtype})
    run = gftkit.finetune(config, tmp_path / "run", quiet=False)
    assert f"its weights are {dtype}, and are trained as float32" in "".join(capfd.readouterr()).replace("\n", " ")
    assert {tensor.dtype for tensor in run.weights()[0].values()} == {torch.float32}
    assert run.samples(2)[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(settings, tmp_path, dtype):
    config = settings(Plain)
    weights = {name: (8 * value).to(dtype) for name, value in Plain().state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"wanted floating weights of 16 bits or more, got torch.*quantized"):
        gftkit.finetune(config, tmp_path / "run")


@pytest.mark.parametrize("adapters", [None, {"name": "lora", "rank": 1}])
def test_a_network_with_hidden_state_is_refused_before_the_first_step(settings, tmp_path, adapters):
    with pytest.raises(ConfigError, match=r"isn't all in its state dict: network\.frequencies"):
        gftkit.finetune(settings(Hidden, adapters=adapters), tmp_path / "run")
    gftkit.finetune(settings(Plain, adapters=adapters), tmp_path / "run")


@pytest.mark.parametrize("adapters", [None, {"name": "lora", "rank": 1, "write_base": True}])
def test_written_weights_that_are_not_the_trained_ones_are_refused(settings, tmp_path, adapters, monkeypatch):
    write = loop.write_model

    def damaged(folder, weights, facts, notes):
        write(folder, {name: tensor + 0.1 for name, tensor in weights.items()}, facts, notes)

    monkeypatch.setattr(loop, "write_model", damaged)
    with pytest.raises(RunError, match="gives another output than the one that was trained"):
        gftkit.finetune(settings(Plain, adapters=adapters), tmp_path / "run")
    assert not (tmp_path / "run/model.safetensors").exists()
    monkeypatch.setattr(loop, "write_model", write)
    assert gftkit.finetune(settings(Plain, adapters=adapters), tmp_path / "run", resume=True).finished


def test_adapters_of_another_run_are_refused(settings, tmp_path):
    for name, seed in (("one", 0), ("other", 1)):
        config = settings(Plain, adapters={"name": "lora", "rank": 1})
        gftkit.finetune({**config, "seed": seed}, tmp_path / name)
    kept = gftkit.Run.open(tmp_path / "one").samples(2)[0]
    for file in (tmp_path / "other/adapter").iterdir():
        shutil.copy(file, tmp_path / "one/adapter")
    with pytest.raises(WeightsError, match="these aren't the adapters of this run"):
        gftkit.Run.open(tmp_path / "one").samples(2)
    assert not torch.equal(gftkit.Run.open(tmp_path / "other").samples(2)[0], kept)


@pytest.mark.parametrize("write_base", [False, True])
def test_a_base_in_half_precision_is_trained_and_read_back(settings, tmp_path, write_base):
    """Its frozen matrices are bfloat16 in training, all else float32; what is read back is float32."""
    options = {"name": "lora", "rank": 1, "base_type": "bfloat16", "write_base": write_base}
    config = settings(Plain, adapters=options)
    config["train"] |= {"steps": 20, "learning_rate": 0.1, "ema": 0.0}
    networks = build(resolve_config(config, "finetune", gftkit.load()), gftkit.load()).networks
    types = {(weight.dtype, weight.ndim, weight.requires_grad) for weight in networks.drift.parameters()}
    assert types == {(torch.bfloat16, 2, False), (torch.float32, 1, False), (torch.float32, 2, True)}
    run = gftkit.finetune(config, tmp_path / "half")
    config["adapters"]["base_type"] = "float32"
    exact = gftkit.finetune(config, tmp_path / "exact")
    t, x = torch.rand(64), torch.randn(64, 2)
    half, single, before = (drift(t, x) for drift in (run.drift(), exact.drift(), networks.anchor))
    assert half.dtype == torch.float32
    assert (half - single).abs().max() < 0.1 * (single - before).abs().max()
    assert run.samples(2, retention=0.5)[0].dtype == torch.float32
    assert run.notes["anchor"] != exact.notes["anchor"]  # the rounded network is another function


class Quantized(Plain):
    def __init__(self):
        super().__init__()
        self.linear.weight = nn.Parameter((8 * self.linear.weight.detach()).to(torch.int8), requires_grad=False)


class Complex(Plain):
    """A layer in the Fourier domain, as neural operators have it: its weight is complex."""

    def __init__(self):
        super().__init__()
        self.spectral = nn.Parameter(torch.randn(2, 2, dtype=torch.complex64))

    def forward(self, x, t):
        return super().forward(torch.fft.ifft(torch.fft.fft(x) @ self.spectral).real, t)


@pytest.mark.parametrize("adapters", [None, {"name": "lora", "rank": 1, "base_type": "bfloat16"}])
def test_complex_weights_stay_complex(settings, tmp_path, adapters):
    """They aren't taken for quantized ones, and half precision leaves their imaginary part."""
    config = settings(Complex, adapters=adapters)
    drift = build(resolve_config(config, "finetune", gftkit.load()), gftkit.load()).networks.drift
    torch.manual_seed(0)
    assert torch.equal(drift.network.spectral, Complex().spectral)
    gftkit.finetune(config, tmp_path / "run")


def test_quantized_networks_are_refused(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"got network.linear.weight \(torch.int8\): the network is quantized"):
        gftkit.finetune(settings(Quantized), tmp_path / "run")


def test_a_base_in_half_precision_is_for_networks_of_other_programs(tmp_path):
    first = {"drift": {"name": "mlp", "width": 8, "depth": 1}, "data": "two-moons", "train": {"steps": 2}}
    gftkit.pretrain(first, tmp_path / "first")
    tuned = {"pretrained": str(tmp_path / "first"), "data": "two-moons", "schedule": "exponential"}
    with pytest.raises(ConfigError, match=r"adapters.base_type: bfloat16 requires a network of"):
        gftkit.finetune({**tuned, "adapters": {"base_type": "bfloat16"}}, tmp_path / "tuned")
