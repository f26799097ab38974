"""Any importable network as a drift."""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from torch import nn

from gftkit.kernel import ConfigError, Path, WeightsError
from gftkit.networks import (
    DIFFUSERS_TIMES,
    Convention,
    ForeignDrift,
    load_foreign_weights,
    load_weights,
    own_label_dropout,
)
from gftkit.storage import read_json
from gftkit_plugins.importing import build_network, import_target

DIFFUSERS_CONFIG, PIPELINE_INDEX = "config.json", "model_index.json"


class ModuleDrift(ForeignDrift):
    """A network of your own or of another library, by the name of its class, with its weights and its convention.

    The network takes what its convention says and gives what it says: see the guide, "Your own network". Its parameters
    are trained like any drift's. A run keeps them in its own files: to sample it, only ``target`` must be importable.

    Args:
        target: ``package.module:Class``, or a function that gives a network. It is looked for in ``folder`` first.
        options: keyword arguments of ``target``.
        weights: a weights file to start from, or a folder that diffusers has saved, of the network or of a pipeline
            with one network of the target's class; null for new weights.
        key: which network of the file: its place with dots, such as ``ema_model``; null for the one that fits.
        convention: how the network is called and what it predicts: a preset by name, or {preset: ..., field: ...}.
        label_dropout: false to switch off a network's own dropout of labels, so that ``train.condition_dropout`` takes
            its place. The row of the embedding for "no label" stays.
        folder: where ``target`` is looked for, before the Python path, and files of the convention; by default the
            config's folder.
        variant: of the files in a folder of diffusers, such as fp16 for diffusion_pytorch_model.fp16.safetensors.
        path: the path of the run.

    Raises:
        ConfigError: for a target that can't be imported, doesn't take ``options`` or gives no network, a convention
            that contradicts the path, or ``preset: diffusers`` for a class whose pipeline gives it another time.
        WeightsError: for weights that don't fit.

    Example:
        >>> import gftkit, torch
        >>> spec = {"target": "torch.nn:Linear", "options": {"in_features": 2, "out_features": 2}}
        >>> drift = gftkit.load().create("drift", "module", **spec, convention={"call": "x", "time": "reversed"})
        >>> x = torch.randn(3, 2)
        >>> torch.equal(drift(torch.rand(3), x), -drift.network(x))
        True
    """

    def __init__(
        self,
        target: str,
        convention: str | dict[str, Any],
        options: dict[str, Any] | None = None,
        weights: FilePath | None = None,
        key: str | None = None,
        label_dropout: bool = True,  # noqa: FBT001, FBT002  # a configuration gives it by name
        folder: FilePath = FilePath("."),
        variant: str | None = None,
        path: Path | None = None,
    ) -> None:
        factory, arguments = import_target(target, folder, "drift"), options or {}
        if variant is not None and weights is not None and not weights.is_dir():
            raise ConfigError(
                f"drift.variant: wanted a folder of diffusers as `weights`, got the file {weights}. Leave variant out."
            )
        if weights is not None and weights.is_dir():
            network, notes = _from_diffusers(factory, arguments, _network_folder(weights, target), target, variant), []
        else:
            network = build_network(factory, arguments, target, "drift")
            notes = [] if weights is None else load_foreign_weights(network, weights, key)
        if not label_dropout:
            switch_off_label_dropout(network, target)
        super().__init__(network, _convention(convention, target).with_files(folder), path)
        self.notes = tuple(notes)

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with everything filled in: the fields of the convention, and what a diffusers folder says.

        Raises:
            GftkitError: for a convention that can't be read, or a folder that holds no network of diffusers.
        """
        convention = _convention(options["convention"], options["target"]).with_files(options["folder"])
        resolved = {**options, "convention": convention.to_dict()}
        saved = options["weights"]
        if isinstance(saved, FilePath) and saved.is_dir():
            saved = resolved["weights"] = _network_folder(saved, options["target"])
            resolved["options"] = {**_saved_options(saved, options["target"]), **(options["options"] or {})}
        return resolved


def _convention(block: str | Mapping[str, Any], target: str) -> Convention:
    """The convention, where its preset doesn't contradict the class.

    Raises:
        ConfigError: where ``preset: diffusers`` gives a class of diffusers another time than its pipeline.
    """
    convention = Convention.of(block)
    fields = {} if isinstance(block, str) else block
    name = target.rpartition(":")[2]
    if (block if isinstance(block, str) else fields.get("preset")) != "diffusers" or not (
        target.startswith("diffusers") and name in DIFFUSERS_TIMES
    ):
        return convention
    preset, direction, scale = DIFFUSERS_TIMES[name]
    wanted = {"time": direction, "time_scale": scale}
    others = {key: value for key, value in wanted.items() if key not in fields and getattr(convention, key) != value}
    if others:
        written = ", ".join(
            f"{key}: {value:g}" if key == "time_scale" else f"{key}: {value}" for key, value in others.items()
        )
        cure = f"Use `preset: {preset}`, or set {written}." if preset else f"Set {written}."
        raise ConfigError(
            f"drift.convention: the preset 'diffusers' gives the network {convention.time_scale:g} (1 - t) as its "
            f"time, and the pipeline of {name} gives it {'1 - t' if direction == 'reversed' else 't'}. {cure}"
        )
    return convention


def switch_off_label_dropout(network: nn.Module, target: str) -> None:
    """Let a network keep every label in training mode.

    Raises:
        ConfigError: for a network that drops none.
    """
    embedders = own_label_dropout(network)
    if not embedders:
        raise ConfigError(
            f"drift.label_dropout: '{target}' has no label embedder that drops labels (a module with embedding_table, "
            f"and a dropout_prob above 0). Leave label_dropout out."
        )
    for embedder in embedders.values():
        # The table was made with a row for "no label", and keeps it: only the draw ends.
        embedder.dropout_prob = 0.0  # type: ignore[assignment]


def _network_folder(folder: FilePath, target: str) -> FilePath:
    """The folder of the network: of a pipeline, that of the component whose class is the target's.

    Raises:
        WeightsError: for a pipeline with none or several of them.
    """
    index = folder / PIPELINE_INDEX
    if not index.is_file():
        return folder
    name = target.rpartition(":")[2]
    classes = {
        key: value[1]
        for key, value in read_json(index).items()
        if isinstance(value, list) and len(value) == 2 and value[1]
    }
    fitting = sorted(key for key, value in classes.items() if value == name)
    if len(fitting) != 1:
        shown = ", ".join(f"{key}/ ({value})" for key, value in sorted(classes.items()))
        which = f"{' and '.join(f'{key}/' for key in fitting)} are" if fitting else "none is"
        raise WeightsError(
            f"drift.weights: {folder} is a pipeline, and {which} of the class {name}. Its parts: {shown}. Give the "
            f"folder of the network, such as {folder / (fitting or ['transformer'])[0]}."
        )
    return folder / fitting[0]


def _saved_options(folder: FilePath, target: str) -> dict[str, Any]:
    """The options of the network in a folder that diffusers has saved."""
    config = folder / DIFFUSERS_CONFIG
    saved = read_json(config) if config.is_file() else None
    if not isinstance(saved, dict) or "_class_name" not in saved:
        raise WeightsError(
            f"{folder}: wanted a weights file, or a folder of diffusers with {DIFFUSERS_CONFIG} and "
            f"diffusion_pytorch_model.safetensors. For a pipeline, give the folder of its network, such as unet/."
        )
    if target.rpartition(":")[2] != saved["_class_name"]:
        raise ConfigError(
            f"drift.target: {config} describes the class {saved['_class_name']}, and the target is '{target}'. Use "
            f"`target: diffusers:{saved['_class_name']}`."
        )
    return {key: value for key, value in saved.items() if not key.startswith("_")}


def _from_diffusers(
    factory: Any, options: Mapping[str, Any], folder: FilePath, target: str, variant: str | None
) -> nn.Module:
    """The network of a folder, by diffusers' own loader; its pickles are never read."""
    saved = _saved_options(folder, target)
    try:
        network: nn.Module = factory.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, variant=variant
        )
    except Exception as error:
        raise WeightsError(f"{folder}: diffusers can't load it: {type(error).__name__}: {error}") from error
    changed = sorted(key for key, value in options.items() if saved.get(key) != value)
    if not changed:
        return network
    changed_network = build_network(factory, options, target, "drift")
    load_weights(changed_network, network.state_dict(), folder)
    return changed_network
