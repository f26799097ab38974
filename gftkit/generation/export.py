"""Export: a finished run's weights in files that other programs read."""

import json
import math
import re
from collections.abc import Mapping
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
from gftkit.storage.tensors import State, read_tensors, write_tensors

Format = Literal["merged", "peft", "diffusers"]

DIFFUSERS_CONFIG, DIFFUSERS_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
"""The files of a folder that ``from_pretrained`` of a diffusers class reads."""

SHARDED = f"{DIFFUSERS_WEIGHTS}.index.json"
"""Where this file exists, ``from_pretrained`` reads the files that it lists, and not ``DIFFUSERS_WEIGHTS``."""

LORA = "pytorch_lora_weights.safetensors"
"""The file of a folder that ``load_lora_weights`` of a diffusers pipeline reads."""

_LINEAGE = ("base", "anchor", "anchors")
_CURE = "Use --format merged or --format peft."
_COMPONENTS = {
    "transformer": re.compile(r"\w*Transformer\dDModel"),
    "unet": re.compile(r"UNet\w*(Condition|Motion)Model"),
}
"""A component of pipelines -> the names of its classes."""


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
    notes = {key: run.notes[key] for key in _LINEAGE if key in run.notes} if file_format != "merged" else run.notes
    for path, content in files.items():
        if path.suffix == ".json":
            write_json(path, content)
        else:
            write_tensors(path, content, notes)
    return list(files)


def lora_for_diffusers(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> State:
    """LoRA in the format that pipelines of diffusers load, from peft's format.

    ``pipe.load_lora_weights`` reads it, and ComfyUI, for the networks whose diffusers names it knows. The weights have
    no factor of their own: alpha/rank, or alpha/sqrt(rank), is multiplied into ``lora_B``. All layers have the rank of
    the largest, filled up with zeros. So every reader gives the same function, whatever it takes for a missing alpha.

    Args:
        tensors: contents of ``adapter_model.safetensors``, as ``AdaptedDrift.to_peft`` gives them.
        config: contents of ``adapter_config.json``.

    Returns:
        For each layer of the network ``COMPONENT.LAYER.lora_A.weight``, (rank, inputs, ...), and
        ``COMPONENT.LAYER.lora_B.weight``, (outputs, rank, ...), where COMPONENT is the pipelines' name of the network,
        "transformer" or "unet".

    Raises:
        ConfigError: for LoHa, LoKr and DoRA, for modules that were trained whole, for embeddings, and for a network
            that pipelines of diffusers load no LoRA into.
    """
    component = _component(config)
    layers = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    others = tensors.keys() - {f"{layer}.lora_{matrix}.weight" for layer in layers for matrix in "AB"}
    if others:
        raise ConfigError(f"--format diffusers: wanted lora_A and lora_B of layers, got {min(others)}. {_CURE}")
    rank = max(len(tensors[f"{layer}.lora_A.weight"]) for layer in layers)
    state: State = {}
    for layer in sorted(layers):
        down, up = (tensors[f"{layer}.lora_{matrix}.weight"] for matrix in "AB")
        own, name = len(down), layer.removeprefix("base_model.model.")
        alpha = config["alpha_pattern"].get(adapters.pattern_of(name), config["lora_alpha"])
        up = up * (alpha / (math.sqrt(own) if config["use_rslora"] else own))
        # Without alphas, earlier versions of diffusers take the first layer's rank for that of all (its pull request
        # 14409).
        down = torch.cat([down, down.new_zeros(rank - own, *down.shape[1:])])
        up = torch.cat([up, up.new_zeros(len(up), rank - own, *up.shape[2:])], dim=1)
        state |= {f"{component}.{name}.lora_A.weight": down, f"{component}.{name}.lora_B.weight": up}
    return state


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
        tensors, _ = read_tensors(run.folder / ADAPTER / adapters.WEIGHTS, ours=True)
    else:
        tensors, config = adapted_drift(run, run.facts).to_peft()
    if file_format == "diffusers":
        return {LORA: lora_for_diffusers(tensors, config)}
    return {adapters.CONFIG: config, adapters.WEIGHTS: tensors}


def _component(config: Mapping[str, Any]) -> str:
    """The component of pipelines that adapters belong to; raises as ``lora_for_diffusers``."""
    name = config["auto_mapping"]["base_model_class"]
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
