"""Adapters: small updates of a pretrained drift's layers, by the peft library, which alone are trained."""

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Generator, nn

from gftkit.kernel.errors import ConfigError, WeightsError
from gftkit.kernel.options import plain
from gftkit.networks.adapter_layers import check_layers, choose_layers, largest_rank, matching_names
from gftkit.networks.precision import DTYPES, Precision, to_float32
from gftkit.networks.state import misfits, shortened
from gftkit.runtime.randomness import seed_global
from gftkit.storage.documents import write_json
from gftkit.storage.tensors import State, digest, read_tensor_file, write_tensors

ADAPTER = "default"
"""What peft calls the one adapter that a drift has here."""

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files of peft's own format."""


@dataclass(frozen=True)
class Adapters:
    """Options of adapters: the layers, and the update of each.

    Args:
        name: "lora", "loha" (LoRA with a Hadamard product) or "lokr" (with a Kronecker product).
        rank: of each layer's update; in layers that don't allow it, the largest that they do.
        alpha: the update is multiplied by alpha/rank; null for rank, a factor of 1.
        dropout: share of an update's inputs dropped while training; of lora only.
        targets: names of layers, with wildcards, or one regular expression; null for every Linear, Conv1d and Conv2d.
        exclude: names of layers to leave out, with wildcards.
        also_train: names of other modules, such as norms, with wildcards; a copy of each is trained whole.
        dora: train the norm of each weight's rows apart from their direction; of lora only.
        rslora: multiply by alpha/sqrt(rank) instead; of lora only.
        base_type: type of the pretrained weights in memory while adapters, in float32, are trained. The network is
            evaluated in that type by autocast. For networks of `drift: {name: module}`.
        write_base: write the whole network, adapters merged in, so that the run needs neither peft nor the weights that
            it started from. By default the run has the adapters, and the path and hash of those weights.

    Reference: Hu et al. (2021), arXiv:2106.09685; Hyeon-Woo et al. (2021), arXiv:2108.06098 (LoHa); Yeh et al.
    (2023), arXiv:2309.14859 (LoKr); Liu et al. (2024), arXiv:2402.09353 (DoRA); Kalajdzievski (2023),
    arXiv:2312.03732 (rsLoRA).
    """

    name: Literal["lora", "loha", "lokr"] = "lora"
    rank: Annotated[int, Field(gt=0)] = 32
    alpha: Annotated[float, Field(gt=0)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: str | list[str] | None = None
    exclude: list[str] | None = None
    also_train: list[str] | None = None
    dora: bool = False
    rslora: bool = False
    base_type: Precision = "float32"
    write_base: bool = False


class AdaptedDrift:
    """A drift with adapters in it. They are put into the network itself, which keeps its class and its call.

    At first they change nothing. Only they require gradients; every weight of the pretrained network is frozen. The
    network is left in evaluation mode.

    Args:
        drift: the pretrained drift, which is changed.
        options: which adapters.
        run: one forward pass of the drift.
        generator: of the adapters' first weights, on the CPU.
        network: the part of the drift whose layers are adapted and whose names are used, of those that are given and in
            peft's files: a foreign network without its wrapper. By default the drift.

    Attributes:
        drift: the drift.
        layers: the adapted layers, by their names in the network without adapters.

    Raises:
        ConfigError: where peft isn't installed, and for layers that can't be adapted: before anything is trained.
    """

    def __init__(
        self,
        drift: nn.Module,
        options: Adapters,
        run: Callable[[], object],
        generator: Generator,
        network: nn.Module | None = None,
    ) -> None:
        peft = _peft()
        network = drift if network is None else network
        _check_options(options)
        takes: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d)
        if options.name == "lora":
            takes = (*takes, nn.Conv3d, nn.Embedding)
        layers = choose_layers(network, options.targets, options.exclude or (), takes)
        check_layers(network, layers, run, groups=options.name != "lora")
        _check_rank(options, layers)
        whole = _trained_whole(network, options, layers)
        self._config = _config(peft, options, layers, whole)
        # As peft's own files name the network's class.
        kind = type(network)
        self._config.auto_mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
        self.drift, self._network = drift, network
        place = next(name for name, module in drift.named_modules() if module is network)
        self._prefix = f"{place}." if place else ""
        # peft draws first weights from torch's global generator: seeded here, and put back for the run.
        with torch.random.fork_rng(devices=[]):
            seed_global(generator.initial_seed(), torch.device("cpu"))
            peft.inject_adapter_in_model(self._config, network, ADAPTER)
        drift.eval()
        tuned, copy_of = peft.tuners.tuners_utils.BaseTunerLayer, peft.utils.ModulesToSaveWrapper
        adapted = {name: module for name, module in network.named_modules() if isinstance(module, tuned)}
        copied = {name: module for name, module in network.named_modules() if isinstance(module, copy_of)}
        if adapted.keys() != layers.keys() or copied.keys() != set(whole):
            wrong = sorted(adapted.keys() ^ layers.keys() | copied.keys() ^ set(whole))
            raise ConfigError(
                f"adapters: peft can't distinguish {', '.join(wrong[:4])} from other layers by name. Leave them out "
                f"with adapters.exclude."
            )
        self.layers: dict[str, Any] = adapted
        self._copied: dict[str, Any] = copied
        self._all, self._switched = list(drift.modules()), [*adapted.values(), *copied.values()]
        with self.off():
            if not all(layer.disable_adapters for layer in self._switched):
                raise ConfigError(f"adapters: peft {peft.__version__} isn't supported. Install peft 0.21.")

    @contextmanager
    def off(self) -> Iterator[nn.Module]:
        """The pretrained network: adapters switched off, evaluation mode; both are put back afterwards."""
        with switched_off(self._all, self._switched):
            yield self.drift

    def cast_base(self, precision: Precision) -> None:
        """Keep the frozen matrices in half precision. The drift must then be evaluated under autocast of that type."""
        dtype = DTYPES.get(precision)
        if dtype is None:
            return
        # Some networks of diffusers name modules to keep in float32. Vectors stay so, too: norms take no mixed types.
        single = set(getattr(self._network, "_keep_in_fp32_modules", None) or ())
        for name, weight in self.drift.named_parameters():
            # Complex ones would lose their imaginary part.
            matrix = weight.ndim > 1 and weight.is_floating_point()
            if matrix and not weight.requires_grad and not single & set(name.split(".")):
                weight.data = weight.data.to(dtype)

    def base(self) -> State:
        """The state dict of the drift without adapters: the frozen weights themselves, not copies."""
        adapted = {**self.layers, **self._copied}
        return base_state(self.drift, {f"{self._prefix}{name}": module for name, module in adapted.items()})

    def merged(self, weights: State | None = None) -> State:
        """The state dict of the drift without adapters whose function is that of the adapted one, in float32.

        Args:
            weights: by name, to take in the place of those that are trained, such as their averages.
        """
        with self._holding(weights or {}), torch.no_grad():
            inside = tuple(f"{self._prefix}{name}." for name in (*self.layers, *self._copied))
            state = {
                name: to_float32(tensor)
                for name, tensor in self.drift.state_dict().items()
                if not name.startswith(inside)
            }
            for name, layer in self.layers.items():
                alone = copy.deepcopy(layer).float()  # one layer at a time: no second network
                alone.merge(safe_merge=True)  # refuses weights that would not be finite
                base = alone.get_base_layer().state_dict()
                state |= {f"{self._prefix}{name}.{key}": tensor for key, tensor in base.items()}
            for name, wrapper in self._copied.items():
                trained = wrapper.modules_to_save[ADAPTER]
                state |= {f"{self._prefix}{name}.{key}": tensor.clone() for key, tensor in trained.state_dict().items()}
        return state

    def save(self, folder: Path, weights: State | None = None) -> str:
        """Write the adapters in peft's own format, to be read by ``peft.PeftModel.from_pretrained(network, folder)``.

        Args:
            folder: where ``adapter_config.json`` and ``adapter_model.safetensors`` are written.
            weights: see ``merged``.

        Returns:
            ``digest`` of the written tensors.
        """
        tensors, config = self.to_peft(weights)
        write_tensors(folder / WEIGHTS, tensors, {})
        write_json(folder / CONFIG, config)
        return digest(tensors)

    def to_peft(self, weights: State | None = None) -> tuple[State, dict[str, Any]]:
        """The adapters in peft's own format: their tensors and their configuration, of plain values.

        Args:
            weights: see ``merged``.
        """
        state = {**self.drift.state_dict(), **(weights or {})}
        own = {name.removeprefix(self._prefix): tensor for name, tensor in state.items()}
        adapters = _peft().get_peft_model_state_dict(self._network, state_dict=own, adapter_name=ADAPTER)
        config = {
            key: sorted(value) if isinstance(value, set) else value for key, value in self._config.to_dict().items()
        }
        tensors = {f"base_model.model.{name}": tensor for name, tensor in adapters.items()}
        return tensors, plain({**config, "peft_type": self._config.peft_type.value, "inference_mode": True})

    def load(self, folder: Path, expected: str | None = None) -> None:
        """Put adapters that ``save`` wrote into the network.

        Args:
            folder: where they are.
            expected: ``digest`` of their tensors; None not to compare.

        Raises:
            WeightsError: where the file is missing or damaged, or holds adapters of other layers, or others than those
                expected.
        """
        tensors = read_adapters(folder, expected)
        state = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
        wanted = _peft().get_peft_model_state_dict(self._network, adapter_name=ADAPTER)
        complaints = misfits(state, wanted)
        if complaints:
            raise WeightsError(f"{folder / WEIGHTS}: these adapters don't fit the network.{shortened(complaints)}")
        _peft().set_peft_model_state_dict(self._network, state, adapter_name=ADAPTER)

    def describe(self) -> dict[str, int]:
        """Counts: adapted layers, trained parameters, and all parameters."""
        parameters = list(self.drift.parameters())
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        return {"layers": len(self.layers), "trained": trained, "parameters": sum(p.numel() for p in parameters)}

    @contextmanager
    def _holding(self, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """The network with other trained weights, for as long as it lasts."""
        own = {name: weight for name, weight in self.drift.named_parameters() if name in weights}
        kept = {name: weight.detach().clone() for name, weight in own.items()}
        try:
            with torch.no_grad():
                for name, weight in own.items():
                    weight.copy_(weights[name])
            yield
        finally:
            with torch.no_grad():
                for name, weight in own.items():
                    weight.copy_(kept[name])


@contextmanager
def switched_off(modules: Sequence[nn.Module], layers: Sequence[Any]) -> Iterator[None]:
    """Evaluation mode without adapters for as long as it lasts; everything is put back.

    Only the flags that a forward pass reads are set: peft's own ``enable_adapters`` also sets ``requires_grad`` of
    every adapter, which takes as long as a forward pass.

    Args:
        modules: all of the network.
        layers: those of peft in it, and its copies of modules that are trained whole.
    """
    modes = [(module, module.training) for module in modules]
    flags = [(layer, layer._disable_adapters) for layer in layers]
    try:
        for module, _ in modes:
            object.__setattr__(module, "training", False)
        for layer, _ in flags:
            object.__setattr__(layer, "_disable_adapters", True)
        yield
    finally:
        for module, mode in modes:
            object.__setattr__(module, "training", mode)
        for layer, flag in flags:
            object.__setattr__(layer, "_disable_adapters", flag)


def base_state(network: nn.Module, adapted: Mapping[str, Any]) -> State:
    """The state dict of a network without its adapters: its tensors themselves, not copies.

    Args:
        network: with adapters.
        adapted: the layers of peft in it, and its copies of modules that are trained whole, by name.
    """
    inside = tuple(f"{name}." for name in adapted)
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(inside)}
    for name, layer in adapted.items():
        base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer.original_module
        state |= {f"{name}.{key}": tensor for key, tensor in base.state_dict().items()}
    return state


def read_adapters(folder: Path, expected: str | None = None) -> State:
    """The tensors of the adapters that ``AdaptedDrift.save`` wrote; arguments and errors as of its ``load``."""
    file = read_tensor_file(folder / WEIGHTS, ours=True)
    if expected is not None and file.digest != expected:
        raise WeightsError(f"{folder / WEIGHTS}: these aren't the adapters of this run. Restore the run's own file.")
    return file.tensors


def pattern_of(layer: str) -> str:
    """The key of a layer in ``rank_pattern`` and ``alpha_pattern`` of ``adapter_config.json``: of no other layer."""
    return f"^{re.escape(layer)}"


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"adapters require the package peft ({error}). Install it: pip install 'gftkit[lora]'."
        ) from None
    return peft


def _check_options(options: Adapters) -> None:
    if options.name != "lora":
        foreign = [key for key in ("dropout", "dora", "rslora") if getattr(options, key)]
        if foreign:
            raise ConfigError(f"adapters.{foreign[0]}: an option of lora, not of {options.name}. Leave it out.")


def _check_rank(options: Adapters, layers: Mapping[str, nn.Module]) -> None:
    """Refuse a rank beyond every layer's; of lokr, whose factors are smaller, none."""
    if options.name == "lokr":
        return
    name, most = max(((name, largest_rank(layer)) for name, layer in layers.items()), key=lambda pair: pair[1])
    if options.rank > most:
        raise ConfigError(
            f"adapters.rank: {options.rank} is larger than every adapted layer allows; the largest allows {most} "
            f"({name}). Choose a smaller rank, or train without adapters."
        )


def _trained_whole(drift: nn.Module, options: Adapters, adapted: Mapping[str, nn.Module]) -> list[str]:
    """The modules of ``also_train``: those that have parameters and hold no adapted layer."""
    modules = {name: module for name, module in drift.named_modules() if name}
    whole: list[str] = []
    for pattern in options.also_train or ():
        here = [name for name in matching_names(pattern, modules) if next(modules[name].parameters(), None) is not None]
        if not here:
            raise ConfigError(f"adapters.also_train: '{pattern}' matches no module with parameters. Check the name.")
        inside = [name for name in adapted for outer in here if f"{name}.".startswith(f"{outer}.")]
        if inside:
            raise ConfigError(
                f"adapters.also_train: '{pattern}' contains {inside[0]}, which is adapted. Exclude one of them."
            )
        whole += [name for name in here if name not in whole]
    return whole


def _config(peft: Any, options: Adapters, layers: Mapping[str, nn.Module], whole: list[str]) -> Any:
    """The configuration in peft's terms: exact names, and in small layers their largest rank at the same factor."""
    alpha = options.rank if options.alpha is None else options.alpha
    ranks, alphas = {}, {}
    for name, layer in layers.items() if options.name != "lokr" else ():
        rank = min(options.rank, largest_rank(layer))
        if rank < options.rank:
            share = rank / options.rank
            ranks[pattern_of(name)] = rank
            alphas[pattern_of(name)] = alpha * (math.sqrt(share) if options.rslora else share)
    shared = {
        "r": options.rank,
        "target_modules": "|".join(re.escape(name) for name in layers),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "modules_to_save": whole or None,
    }
    if options.name == "lora":
        return peft.LoraConfig(
            lora_alpha=alpha, lora_dropout=options.dropout, use_dora=options.dora, use_rslora=options.rslora, **shared
        )
    return (peft.LoHaConfig if options.name == "loha" else peft.LoKrConfig)(alpha=alpha, **shared)
