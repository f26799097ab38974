"""Exports for diffusers, read by its own loaders: LoRA in pipelines, and whole networks."""

import ast
import copy
import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.adapters import close
from torch import nn

import gftkit
from gftkit import Run
from gftkit.generation.export import LORA, lora_for_diffusers
from gftkit.kernel.errors import ConfigError
from gftkit.networks.adapters import AdaptedDrift, Adapters
from gftkit.storage.tensors import write_tensors

diffusers = pytest.importorskip("diffusers", reason="diffusers isn't installed: pip install 'gftkit[diffusers]'")

OPTIONS = {
    "alpha": {"rank": 4, "alpha": 12.0},
    "rslora": {"rank": 4, "alpha": 12.0, "rslora": True},
    "ranks": {"rank": 14, "alpha": 28.0},  # some layers allow less
}
NOTICED = 1e-3
"""Share of the largest output by which a wrong file must change it: a hundred times what ``close`` allows."""


def sd3():
    network = diffusers.SD3Transformer2DModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=4,
    )
    inputs = {"hidden_states": torch.randn(2, 4, 4, 4), "encoder_hidden_states": torch.randn(2, 3, 12)}
    return network, {**inputs, "pooled_projections": torch.randn(2, 10), "timestep": torch.tensor([100.0, 700.0])}


def flux():
    network = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8),
    )
    inputs = {"hidden_states": torch.randn(2, 4, 4), "encoder_hidden_states": torch.randn(2, 3, 12)}
    places = {"img_ids": torch.randn(4, 3), "txt_ids": torch.zeros(3, 3)}
    return network, {
        **inputs,
        **places,
        "pooled_projections": torch.randn(2, 10),
        "timestep": torch.tensor([0.1, 0.7]),
    }


def wan(**options):
    network = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=24,
        num_layers=2,
        rope_max_seq_len=16,
        **options,
    )
    inputs = {"hidden_states": torch.randn(2, 4, 2, 4, 4), "encoder_hidden_states": torch.randn(2, 3, 12)}
    return network, {**inputs, "timestep": torch.tensor([100.0, 700.0])}


def wan_of_images():
    network, inputs = wan(image_dim=8, added_kv_proj_dim=24)
    return network, {**inputs, "encoder_hidden_states_image": torch.randn(2, 257, 8)}


def unet():
    network = diffusers.UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    inputs = {"sample": torch.randn(2, 4, 4, 4), "encoder_hidden_states": torch.randn(2, 3, 12)}
    return network, {**inputs, "timestep": torch.tensor([100.0, 700.0])}


NETWORKS = {"sd3": sd3, "flux": flux, "wan": wan, "wan-images": wan_of_images, "unet": unet}
PIPELINES = {
    "sd3": ("StableDiffusion3Pipeline", "transformer"),
    "flux": ("FluxPipeline", "transformer"),
    "wan": ("WanPipeline", "transformer"),
    "wan-images": ("WanImageToVideoPipeline", "transformer"),
    "unet": ("StableDiffusionPipeline", "unet"),
}


@pytest.fixture
def build():
    """Builds a small network of a class: the network, inputs, and it with adapters of random weights."""

    def make(name, /, **options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network, inputs = NETWORKS[name]()
            plain = copy.deepcopy(network).eval()
            # Weights at random, also those that a new network has at zero: else the outputs don't show the update.
            adapted = AdaptedDrift(
                network, Adapters(**options), lambda: network(**inputs), torch.Generator().manual_seed(0)
            )
            for parameter in network.parameters():
                if parameter.requires_grad:
                    nn.init.normal_(parameter, std=0.1)
        return plain, inputs, adapted

    return make


def output(network, inputs):
    with torch.no_grad():
        return network(**inputs).sample


def pipeline(name, network):
    """A pipeline around a network, without its other parts."""
    made, component = PIPELINES[name]
    cls = getattr(diffusers, made)
    parts = inspect.signature(cls.__init__).parameters.values()
    needed = {part.name: None for part in parts if part.name != "self" and part.default is part.empty}
    more = {"requires_safety_checker": False} if name == "unet" else {}
    return cls(**{**needed, component: copy.deepcopy(network), **more}), component


def loaded(name, network, folder, inputs):
    """The output of a pipeline's network, once the pipeline has loaded the LoRA of a folder."""
    pipe, component = pipeline(name, network)
    pipe.load_lora_weights(folder)
    return output(getattr(pipe, component), inputs)


def apart(one, other):
    return (one - other).abs().max() > NOTICED * other.abs().max()


@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_pipeline_that_loads_the_lora_has_the_function_of_the_run(name, options, build, tmp_path):
    plain, inputs, adapted = build(name, **OPTIONS[options])
    tensors, config = adapted.to_peft()
    write_tensors(tmp_path / LORA, lora_for_diffusers(tensors, config), {})
    wanted = output(adapted.drift, inputs)
    close(loaded(name, plain, tmp_path, inputs), wanted)
    assert apart(output(plain, inputs), wanted)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_file_that_loses_something_is_noticed(name, build, tmp_path):
    """Negative controls of the test before: no prefix, no factor, the factor of the layers' common rank."""
    plain, inputs, adapted = build(name, **OPTIONS["ranks"])
    wanted = output(adapted.drift, inputs)
    tensors, config = adapted.to_peft()
    assert config["rank_pattern"]

    def read(state, folder):
        (tmp_path / folder).mkdir()
        save_file(state, tmp_path / folder / LORA)
        return loaded(name, plain, tmp_path / folder, inputs)

    component = PIPELINES[name][1]
    state = lora_for_diffusers(tensors, config)
    bare = {key.partition(".")[2]: tensor for key, tensor in state.items()}
    assert torch.equal(read(bare, "bare"), output(plain, inputs))
    renamed = {key.replace("base_model.model", component): tensor.contiguous() for key, tensor in tensors.items()}
    assert apart(read(renamed, "renamed"), wanted)
    assert apart(read(lora_for_diffusers(tensors, {**config, "alpha_pattern": {}}), "alphas"), wanted)
    assert apart(read(lora_for_diffusers(tensors, {**config, "use_rslora": True}), "rslora"), wanted)


def test_the_keys_are_those_that_comfyui_reads(build):
    """ComfyUI maps transformer.LAYER to its weights, for the networks whose diffusers names it knows.

    That is ``model_lora_keys_unet`` of its comfy/lora.py. Then ``LoRAAdapter.load`` of comfy/weight_adapter/lora.py
    takes LAYER.lora_A.weight and LAYER.lora_B.weight, and multiplies by alpha/rank if LAYER.alpha is there, else by 1.
    """
    _, _, adapted = build("sd3", **OPTIONS["ranks"])
    tensors, config = adapted.to_peft()
    state = lora_for_diffusers(tensors, config)
    matrices = ("lora_A.weight", "lora_B.weight")
    assert state.keys() == {f"transformer.{layer}.{matrix}" for layer in adapted.layers for matrix in matrices}
    assert "transformer.transformer_blocks.0.attn.to_q.lora_A.weight" in state
    for name, layer in adapted.layers.items():
        down, up = (state[f"transformer.{name}.{matrix}"] for matrix in matrices)
        update = (up.flatten(1) @ down.flatten(1)).reshape(layer.get_base_layer().weight.shape)
        close(update, layer.get_delta_weight("default"))
        # One rank: before 0.42, diffusers takes the first layer's for the alpha of all.
        assert down.shape[0] == up.shape[1] == 14


WAN = [f"blocks.{block}.{layer}" for block in range(2) for layer in ("ffn.0", "ffn.2")]
WAN += [f"blocks.{block}.{part}_attn.{x}" for block in range(2) for part in ("self", "cross") for x in "qkvo"]
WAN += ["text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2", "time_projection.1"]
WAN += ["head.head"]
IMAGES = [f"blocks.{block}.cross_attn.{x}_img" for block in range(2) for x in "kv"] + [
    "img_emb.proj.1",
    "img_emb.proj.3",
]


@pytest.mark.parametrize(("name", "layers"), [("wan", WAN), ("wan-images", WAN + IMAGES)])
def test_layers_of_wan_have_the_names_of_its_own_code(name, layers, build):
    """ComfyUI knows no diffusers names of Wan: ``model_lora_keys_unet`` maps diffusion_model.LAYER of the original."""
    _, _, adapted = build(name, rank=2)
    keys = lora_for_diffusers(*adapted.to_peft()).keys()
    assert keys == {f"diffusion_model.{layer}.lora_{matrix}.weight" for layer in layers for matrix in "AB"}


@pytest.mark.parametrize("targets", [["to_q", "patch_embedding"], ["time_proj", "proj_out"]])
def test_layers_of_wan_that_its_reader_refuses_have_diffusers_names(targets, build, tmp_path):
    plain, inputs, adapted = build("wan-images", rank=2, targets=targets)
    state = lora_for_diffusers(*adapted.to_peft())
    assert all(key.startswith("transformer.") for key in state)
    write_tensors(tmp_path / LORA, state, {})
    wanted = output(adapted.drift, inputs)
    close(loaded("wan-images", plain, tmp_path, inputs), wanted)
    assert apart(output(plain, inputs), wanted)


def test_keys_of_images_without_values_are_refused_since_pipelines_leave_them_out(build, tmp_path):
    plain, inputs, adapted = build("wan-images", rank=2, targets=["attn2.to_k", "add_k_proj"])
    tensors, config = adapted.to_peft()
    with pytest.raises(
        ConfigError, match=r"got those of add_k_proj alone, which pipelines leave out\. Use --format merged"
    ):
        lora_for_diffusers(tensors, config)
    # The reason: with the keys that pipelines have for these layers, half of the update is missing.
    save_file(
        {f"transformer.{key.removeprefix('base_model.model.')}": t for key, t in tensors.items()}, tmp_path / LORA
    )
    assert apart(loaded("wan-images", plain, tmp_path, inputs), output(adapted.drift, inputs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "loha"}, "got loha."),
        ({"name": "lokr"}, "got lokr."),
        ({"dora": True}, "got DoRA, whose norms ComfyUI would leave out"),
        ({"also_train": ["pos_embed.proj"]}, "got pos_embed.proj trained whole (adapters.also_train)"),
    ],
)
def test_adapters_that_the_file_cannot_express_are_refused(options, message, build):
    _, _, adapted = build("sd3", rank=2, targets=["to_q"], **options)
    with pytest.raises(ConfigError, match=re.escape(message)) as refusal:
        lora_for_diffusers(*adapted.to_peft())
    assert str(refusal.value).endswith("Use --format merged or --format peft.")


def test_what_is_no_matrix_of_a_layer_is_refused(build):
    _, _, adapted = build("sd3", rank=2)
    tensors, config = adapted.to_peft()
    with pytest.raises(
        ConfigError, match=r"wanted lora_A and lora_B of layers, got base_model\.model\.e\.lora_embedding_A"
    ):
        lora_for_diffusers({**tensors, "base_model.model.e.lora_embedding_A": torch.zeros(2, 3)}, config)
    lacking = min(name for name in tensors if "lora_B" in name)
    with pytest.raises(ConfigError, match=re.escape(f"got {lacking}")):
        lora_for_diffusers({name: tensor for name, tensor in tensors.items() if name != lacking}, config)
    with pytest.raises(ConfigError, match=r"of layers, got none\."):
        lora_for_diffusers({}, config)


def test_a_configuration_of_other_layers_is_refused(build):
    _, _, adapted = build("sd3", rank=2)
    tensors, config = adapted.to_peft()
    with pytest.raises(ConfigError, match=r"alpha_pattern has other, which is the key of no adapted layer"):
        lora_for_diffusers(tensors, {**config, "alpha_pattern": {"other": 3.0}})
    with pytest.raises(ConfigError, match=r"got that of an unknown class"):
        lora_for_diffusers(tensors, {**config, "auto_mapping": None})


@pytest.mark.parametrize("cls", [diffusers.UNet2DModel, diffusers.SD3ControlNetModel, nn.Linear])
def test_a_network_that_no_pipeline_loads_lora_into_is_refused(cls, build):
    _, _, adapted = build("sd3", rank=2)
    tensors, config = adapted.to_peft()
    other = {"base_model_class": cls.__name__, "parent_library": cls.__module__}
    with pytest.raises(ConfigError, match=rf"got that of {cls.__name__}\. Use --format merged"):
        lora_for_diffusers(tensors, {**config, "auto_mapping": other})


def components():
    """Classes of networks -> the names under which pipelines that load LoRA have them, from diffusers' sources."""
    found = {}
    for file in (Path(diffusers.__file__).parent / "pipelines").rglob("pipeline_*.py"):
        source = file.read_text(encoding="utf-8")
        if "LoraLoaderMixin" not in source:
            continue
        for cls in ast.walk(ast.parse(source)):
            if not isinstance(cls, ast.ClassDef) or "LoraLoaderMixin" not in "".join(map(ast.unparse, cls.bases)):
                continue
            for part in (node for node in ast.walk(cls) if isinstance(node, ast.arg) and node.annotation):
                for name in re.findall(r"\w+Model\b", ast.unparse(part.annotation)):
                    found.setdefault(name, set()).add(part.arg)
    return found


def test_the_prefix_is_the_name_that_pipelines_have_for_the_network(build):
    """For every class of diffusers that a pipeline with LoRA has, and that has a loader of LoRA."""
    _, _, adapted = build("sd3", rank=2)
    tensors, config = adapted.to_peft()
    seen = []
    for name, parts in components().items():
        cls = getattr(diffusers, name, None)
        if cls is None or not hasattr(cls, "load_lora_adapter") or not parts & {"transformer", "unet"}:
            continue
        network = {"base_model_class": name, "parent_library": cls.__module__}
        prefixes = {key.partition(".")[0] for key in lora_for_diffusers(tensors, {**config, "auto_mapping": network})}
        assert prefixes <= parts, name
        seen.append(name)
    assert len(seen) >= 15
    assert {"SD3Transformer2DModel", "FluxTransformer2DModel", "WanTransformer3DModel", "UNet2DConditionModel"} < {
        *seen
    }


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, registry):
    """A folder with a saved SD3 network in sd3/ and a finished fine-tune of it, with LoRA, in run/."""
    folder = tmp_path_factory.mktemp("sd3")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, _ = sd3()
    network.save_pretrained(folder / "sd3")
    numbers = np.random.default_rng(0)
    shapes = {"x1": (24, 4, 4, 4), "prompt": (24, 3, 12), "pooled": (24, 10)}
    np.savez(folder / "latents.npz", **{key: numbers.normal(size=shape).astype("f4") for key, shape in shapes.items()})
    call = "hidden_states=x, encoder_hidden_states=prompt, pooled_projections=pooled, timestep=t"
    config = {
        "drift": {
            "name": "module",
            "target": "diffusers:SD3Transformer2DModel",
            "weights": str(folder / "sd3"),
            "convention": {"preset": "diffusers", "call": call},
        },
        "data": {"name": "arrays", "file": str(folder / "latents.npz"), "conditions": ["prompt", "pooled"]},
        "schedule": {"name": "exponential"},
        "adapters": {"name": "lora", "rank": 14, "alpha": 28},
        "train": {"steps": 4, "batch_size": 8, "learning_rate": 0.05},
        "evaluate": {"every": 4, "count": 8, "metrics": [], "solver": {"name": "euler", "steps": 2}},
    }
    gftkit.finetune(config, folder / "run", registry=registry)
    return folder


def trained_output(folder, weights, inputs):
    """What the network of the run gives: its drift with the convention taken back."""
    drift = Run.open(folder / "run").drift(weights)
    conditions = {"prompt": inputs["encoder_hidden_states"], "pooled": inputs["pooled_projections"]}
    with torch.no_grad():
        return -drift(1 - inputs["timestep"] / 1000, inputs["hidden_states"], **conditions)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_exports_of_a_run_are_read_by_diffusers(weights, finetuned, gft, refused, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        _, inputs = sd3()
    wanted = trained_output(finetuned, weights, inputs)
    plain = diffusers.SD3Transformer2DModel.from_pretrained(finetuned / "sd3")
    assert apart(output(plain, inputs), wanted)
    assert apart(trained_output(finetuned, "raw" if weights == "ema" else "ema", inputs), wanted)
    command = ["export", finetuned / "run", "--weights", weights, "--out"]

    assert gft(*command, "lora", "--format", "diffusers").code == 0
    assert [path.name for path in (tmp_path / "lora").iterdir()] == [LORA]
    close(loaded("sd3", plain, tmp_path / "lora", inputs), wanted)
    with safe_open(tmp_path / "lora" / LORA, "pt") as file:
        notes = file.metadata()
    assert {"format", "base", "anchor", "anchors"} < notes.keys()
    assert str(finetuned) not in str(notes)
    assert not {"adapter", "start"} & notes.keys()
    assert "exists. Choose another --out" in refused(*command, "lora", "--format", "diffusers")
    assert gft(*command, "lora", "--format", "diffusers", "--force").code == 0

    assert gft(*command, "whole").code == 0
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    assert str(finetuned) not in (tmp_path / "whole/config.json").read_text(encoding="utf-8")
    network, report = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not any(report.values())
    close(output(network, inputs), wanted)
    assert not torch.equal(output(plain, inputs), wanted)
    index = tmp_path / "whole/diffusion_pytorch_model.safetensors.index.json"
    index.write_text("{}")
    assert "read the shards that it lists" in refused(*command, "whole", "--force")


def test_an_exported_network_starts_another_run(finetuned, gft, registry, tmp_path):
    assert gft("export", finetuned / "run", "--out", "whole").code == 0
    run = Run.open(finetuned / "run")
    again = {**run.config.drift, "weights": str(tmp_path / "whole")}
    facts = {"event_shape": (4, 4, 4), "path": registry.build("path", {"name": "linear"})}
    drift = registry.build("drift", again, **facts)
    for name, tensor in run.drift().state_dict().items():
        assert torch.equal(drift.state_dict()[name], tensor)


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tuned, source, refused, tmp_path):
    message = refused("export", tuned, "--out", "out", "--format", "diffusers")
    assert "got that of Unet. Use --format merged or --format peft." in message
    assert "has no adapters" in refused("export", source, "--out", "out", "--format", "diffusers")
    assert "--format: wanted merged, peft, diffusers, got 'lora'" in refused(
        "export", tuned, "--out", "out", "--format", "lora"
    )
    assert not (tmp_path / "out").exists()


def test_diffusers_missing_is_said(build, monkeypatch):
    _, _, adapted = build("sd3", rank=2)
    tensors, config = adapted.to_peft()
    monkeypatch.setitem(sys.modules, config["auto_mapping"]["parent_library"], None)
    with pytest.raises(ConfigError, match=r"requires the package diffusers .*pip install 'gftkit\[diffusers\]'"):
        lora_for_diffusers(tensors, config)
