"""Export: a finished run's weights in files that other programs read."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gftkit.experiment.networks import adapted_drift
from gftkit.experiment.restore import trained_drift
from gftkit.kernel.errors import ConfigError, RunError
from gftkit.networks import adapters
from gftkit.networks.foreign import own_network
from gftkit.runs.folder import ADAPTER, MODEL, RunFolder, Weights
from gftkit.storage.documents import read_json, write_json
from gftkit.storage.tensors import State, write_tensors

Format = Literal["merged", "peft", "diffusers"]

DIFFUSERS_CONFIG, DIFFUSERS_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
"""The files of a folder that ``from_pretrained`` of a diffusers class reads."""

SHARDED = f"{DIFFUSERS_WEIGHTS}.index.json"
"""Where this file exists, ``from_pretrained`` reads the files that it lists, and not ``DIFFUSERS_WEIGHTS``."""

LORA = "pytorch_lora_weights.safetensors"
"""The file of a folder that ``load_lora_weights`` of a diffusers pipeline reads."""

_LINEAGE = ("base", "anchor", "anchors")
_PARTS = ("adapter", "start")
"""Notes of a run that names its pretrained weights, and lacks its own: merged weights have both in one file."""

_CURE = "Use --format merged or --format peft."
_COMPONENTS = {
    "transformer": re.compile(r"\w*Transformer\dDModel"),
    "unet": re.compile(r"UNet\w*(Condition|Motion)Model"),
}
"""A component of pipelines -> the names of its classes."""

_WAN = {
    re.compile(diffusers): original
    for diffusers, original in {
        r"(blocks\.\d+)\.attn1\.to_([qkv])": r"\1.self_attn.\2",
        r"(blocks\.\d+)\.attn1\.to_out\.0": r"\1.self_attn.o",
        r"(blocks\.\d+)\.attn2\.to_([qkv])": r"\1.cross_attn.\2",
        r"(blocks\.\d+)\.attn2\.to_out\.0": r"\1.cross_attn.o",
        r"(blocks\.\d+)\.attn2\.add_([kv])_proj": r"\1.cross_attn.\2_img",
        r"(blocks\.\d+)\.ffn\.net\.0\.proj": r"\1.ffn.0",
        r"(blocks\.\d+)\.ffn\.net\.2": r"\1.ffn.2",
        r"condition_embedder\.(text|time)_embedder\.linear_1": r"\1_embedding.0",
        r"condition_embedder\.(text|time)_embedder\.linear_2": r"\1_embedding.2",
        r"condition_embedder\.time_proj": "time_projection.1",
        r"condition_embedder\.image_embedder\.ff\.net\.0\.proj": "img_emb.proj.1",
        r"condition_embedder\.image_embedder\.ff\.net\.2": "img_emb.proj.3",
        r"proj_out": "head.head",
    }.items()
}
"""Layers of WanTransformer3DModel -> their names in Wan's own code, which ComfyUI knows."""


def export(
    run: RunFolder, out: Path, file_format: Format = "merged", weights: Weights = "ema", *, force: bool = False
) -> list[Path]:
    """Write the weights of a finished run.

    Args:
        run: the run.
        out: the folder to write into.
        file_format: "merged" for the state dict of the network, adapters merged in, as ``model.safetensors``; of a
            diffusers network as ``diffusion_pytorch_model.safetensors``, with ``config.json``. "peft" for the adapters
            in peft's own format. "diffusers" for LoRA in the format of ``lora_for_diffusers``, as
            ``pytorch_lora_weights.safetensors``. Of a foreign network, all have its own names.
        weights: "ema" or "raw".
        force: overwrite files of the same names.

    Returns:
        The files.

    Raises:
        RunError: for a run that isn't finished, a missing checkpoint, or files that exist.
        ConfigError: for an unknown format, and for adapters that the run doesn't have or the format can't express.
    """
    if file_format not in get_args(Format):
        raise ConfigError(f"--format: wanted {', '.join(get_args(Format))}, got '{file_format}'.")
    contents = _merged(run, weights) if file_format == "merged" else _adapters(run, file_format, weights)
    files = {out / name: content for name, content in contents.items()}
    taken = [str(path) for path in files if path.exists()]
    if taken and not force:
        raise RunError(f"{', '.join(taken)} exists. Choose another --out, or overwrite with --force.")
    if DIFFUSERS_WEIGHTS in contents and (out / SHARDED).exists():
        raise RunError(f"{out / SHARDED} exists: diffusers would read the shards that it lists. Choose another --out.")
    # Adapters are passed on to others: no paths of this computer, which the drift's options may contain.
    notes = {
        key: note
        for key, note in run.notes.items()
        if (key not in _PARTS if file_format == "merged" else key in _LINEAGE)
    }
    for path, content in files.items():
        if path.suffix == ".json":
            write_json(path, content)
        else:
            write_tensors(path, content, notes)
    return list(files)


def lora_for_diffusers(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> State:
    """LoRA in the format that pipelines of diffusers load, from peft's format.

    ``pipe.load_lora_weights`` reads it, and ComfyUI, for the networks whose names it knows. The weights have no factor
    of their own: alpha/rank, or alpha/sqrt(rank), is multiplied into ``lora_B``. All layers have the rank of the
    largest, filled up with zeros. So every reader gives the same function, whatever it takes for a missing alpha.

    Args:
        tensors: contents of ``adapter_model.safetensors``, as ``AdaptedDrift.to_peft`` gives them.
        config: contents of ``adapter_config.json``.

    Returns:
        For each layer of the network ``COMPONENT.LAYER.lora_A.weight``, (rank, inputs, ...), and
        ``COMPONENT.LAYER.lora_B.weight``, (outputs, rank, ...), where COMPONENT is the pipelines' name of the network,
        "transformer" or "unet". Of Wan, ``diffusion_model`` and the layer's name in Wan's own code, which pipelines
        read, too.

    Raises:
        ConfigError: for LoHa, LoKr and DoRA, for modules that were trained whole, for embeddings, for keys of images
            without values in Wan, for a network that pipelines of diffusers load no LoRA into, and for a configuration
            of other layers.
    """
    component = _component(config)
    start, end = "base_model.model.", ".lora_A.weight"
    layers = sorted(name.removeprefix(start).removesuffix(end) for name in tensors if name.endswith(end))
    others = tensors.keys() ^ {f"{start}{layer}.lora_{matrix}.weight" for layer in layers for matrix in "AB"}
    if others or not layers:
        got = min(others, default="none")
        raise ConfigError(f"--format diffusers: wanted lora_A and lora_B of layers, got {got}. {_CURE}")
    unknown = config["alpha_pattern"].keys() - {adapters.pattern_of(layer) for layer in layers}
    if unknown:
        raise ConfigError(f"{adapters.CONFIG}: alpha_pattern has {min(unknown)}, which is the key of no adapted layer.")
    rank = max(len(tensors[f"{start}{layer}{end}"]) for layer in layers)
    names = _names(config["auto_mapping"]["base_model_class"], component, layers)
    state: State = {}
    for layer, name in names.items():
        down, up = (tensors[f"{start}{layer}.lora_{matrix}.weight"] for matrix in "AB")
        own = len(down)
        alpha = config["alpha_pattern"].get(adapters.pattern_of(layer), config["lora_alpha"])
        up = up * (alpha / (math.sqrt(own) if config["use_rslora"] else own))
        # Without alphas, earlier versions of diffusers take the first layer's rank for that of all (its pull request
        # 14409).
        down = torch.cat([down, down.new_zeros(rank - own, *down.shape[1:])])
        up = torch.cat([up, up.new_zeros(len(up), rank - own, *up.shape[2:])], dim=1)
        state |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return state


def _names(network: str, component: str, layers: Sequence[str]) -> dict[str, str]:
    """Layers of a network -> their names in the file, without the ends for the two matrices.

    Raises:
        ConfigError: for layers that pipelines of Wan would leave out.
    """
    images = {layer.rsplit(".", 1)[1] for layer in layers if re.fullmatch(r"blocks\.\d+\.attn2\.add_[kv]_proj", layer)}
    if len(images) == 1:
        # diffusers (0.42) takes LoRA without one of them for one without images, and sets the other to zero.
        raise ConfigError(
            f"--format diffusers: wanted adapters of add_k_proj and add_v_proj of attn2, got those of {min(images)} "
            f"alone, which pipelines leave out. {_CURE}"
        )
    if network == "WanTransformer3DModel":
        originals = {
            layer: f"diffusion_model.{match.expand(original)}"
            for layer in layers
            for pattern, original in _WAN.items()
            if (match := pattern.fullmatch(layer))
        }
        # diffusers' reader of these names requires layers of blocks, and doesn't know the embedding of patches. Such
        # LoRA has diffusers' names, which ComfyUI can't read.
        if len(originals) == len(layers) and any(layer.startswith("blocks.") for layer in layers):
            return originals
    return {layer: f"{component}.{layer}" for layer in layers}


def _merged(run: RunFolder, weights: Weights) -> dict[str, Any]:
    """Files of the whole network, by name: those that ``from_pretrained`` reads, or the state dict alone."""
    network: Any = own_network(trained_drift(run, weights)[0])
    # By name: diffusers is imported only where a run's network is one of its classes.
    bases = {base.__name__ for base in type(network).__mro__ if base.__module__.startswith("diffusers.")}
    if bases >= {"ModelMixin", "ConfigMixin"}:
        return {DIFFUSERS_CONFIG: json.loads(network.to_json_string()), DIFFUSERS_WEIGHTS: network.state_dict()}
    return {MODEL: network.state_dict()}


def _adapters(run: RunFolder, file_format: Format, weights: Weights) -> dict[str, Any]:
    """Files of the adapters, by name."""
    if run.config.adapters is None:
        raise ConfigError(
            f"{run.folder} has no adapters: all its weights were trained. Export them with --format merged."
        )
    config = read_json(run.folder / ADAPTER / adapters.CONFIG)
    if file_format == "diffusers":
        _component(config)  # before the pretrained network is read, which raw weights require
    if weights == "ema":
        tensors = adapters.read_adapters(run.folder / ADAPTER, run.notes.get("adapter"))
    else:
        tensors, config = adapted_drift(run, run.facts).to_peft()
    if file_format == "diffusers":
        return {LORA: lora_for_diffusers(tensors, config)}
    return {adapters.CONFIG: config, adapters.WEIGHTS: tensors}


def _component(config: Mapping[str, Any]) -> str:
    """The component of pipelines that adapters belong to; raises as ``lora_for_diffusers``."""
    name = (config["auto_mapping"] or {}).get("base_model_class", "an unknown class")
    component = next((component for component, names in _COMPONENTS.items() if names.fullmatch(name)), None)
    if config["peft_type"] != "LORA":
        got = config["peft_type"].lower()
    elif config["use_dora"]:
        got = "DoRA, whose norms ComfyUI would leave out"
    elif config["modules_to_save"]:
        got = f"{config['modules_to_save'][0]} trained whole (adapters.also_train), for which a LoRA file has no place"
    elif component is None or not _takes_lora(**config["auto_mapping"]):
        got = f"that of {name}"
    else:
        return component
    raise ConfigError(
        f"--format diffusers: wanted LoRA of a network into which pipelines of diffusers load it, such as "
        f"SD3Transformer2DModel, got {got}. {_CURE}"
    )


def _takes_lora(parent_library: str, base_model_class: str) -> bool:
    """True for a class of diffusers with diffusers' loader of LoRA.

    Raises:
        ConfigError: where diffusers isn't installed.
    """
    if not parent_library.startswith("diffusers."):
        return False
    try:
        library = import_module(parent_library)
    except ImportError as error:
        raise ConfigError(
            f"--format diffusers requires the package diffusers ({error}). Install it: pip install 'gftkit[diffusers]'."
        ) from None
    return hasattr(getattr(library, base_model_class, None), "load_lora_adapter")
