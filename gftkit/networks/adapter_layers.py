"""Layers to adapt: chosen by name, and refused where an adapter would be wrong."""

import difflib
import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.nn.utils import parametrize

from gftkit.kernel.errors import ConfigError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
DEFAULT: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""The layers that are adapted where nobody says which."""

_FORWARDS = {cls.forward for cls in (nn.Linear, nn.Embedding, *CONVOLUTIONS)}


def choose_layers(
    network: nn.Module, targets: str | Sequence[str] | None, exclude: Sequence[str], takes: tuple[type[nn.Module], ...]
) -> dict[str, nn.Module]:
    """The layers to adapt, by name.

    Args:
        network: without adapters.
        targets: names with wildcards, each the whole name of a layer or its end after a dot; or one regular expression
            for whole names; or None for every Linear, Conv1d and Conv2d.
        exclude: names with wildcards of layers to leave out.
        takes: the types of layers that can be adapted.

    Raises:
        ConfigError: for a pattern that matches no layer or one that can't be adapted, and where nothing is left.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    fit = {name: module for name, module in modules.items() if isinstance(module, takes)}
    if targets is None:
        names = [name for name, module in fit.items() if isinstance(module, DEFAULT)]
    elif isinstance(targets, str):
        names = [name for name in modules if _pattern(targets, "adapters.targets").fullmatch(name)]
        _check_matched(names, targets, "adapters.targets", fit)
    else:
        names = []
        for pattern in targets:
            matches = matching_names(pattern, modules)
            _check_matched(matches, pattern, "adapters.targets", fit)
            names += matches
    unfit = sorted({name for name in names if name not in fit})
    if unfit:
        raise ConfigError(
            f"adapters.targets: {unfit[0]} is a {type(modules[unfit[0]]).__name__}, which can't be adapted. Wanted "
            f"{', '.join(cls.__name__ for cls in takes)}. {_near_names(unfit[0], fit)}"
        )
    for pattern in exclude:
        out = matching_names(pattern, modules)
        _check_matched(out, pattern, "adapters.exclude", fit)
        names = [name for name in names if name not in out]
    if not names:
        raise ConfigError(f"adapters: no layer is left to adapt. {_near_names('', fit)}")
    return {name: fit[name] for name in fit if name in set(names)}


def matching_names(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern with wildcards matches as a whole, or from behind a dot on."""
    return [name for name in names if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")]


def check_layers(
    network: nn.Module, layers: Mapping[str, nn.Module], run: Callable[[], object], *, groups: bool
) -> None:
    """Refuse layers where an adapter would be passed over, or couldn't be merged exactly.

    Args:
        network: without adapters, in evaluation mode.
        layers: those to adapt, by name.
        run: one forward pass of the network.
        groups: whether grouped convolutions can be adapted.

    Raises:
        ConfigError: naming the layers and the reason.
    """
    _refuse(
        [name for name, module in network.named_modules() if getattr(module, "running_mean", None) is not None],
        "keep running statistics, which training changes and adapters don't store",
        "Use a drift with group or layer normalisation, or fine-tune without adapters",
    )
    shared = _shared_modules(network)
    _refuse([name for name in layers if name in shared], "share their weights with other layers")
    _refuse([name for name, layer in layers.items() if parametrize.is_parametrized(layer)], "are parametrized")
    _refuse(
        [name for name, layer in layers.items() if type(layer).forward not in _FORWARDS],
        "override the forward of their torch layer, so that no adapter could be merged",
    )
    if not groups:
        _refuse([name for name, layer in layers.items() if getattr(layer, "groups", 1) > 1], "are grouped convolutions")
    sampling, training = _called_layers(network, layers, run)
    _refuse([name for name in layers if name not in sampling & training], "are not called when the drift is evaluated")


def largest_rank(layer: nn.Module) -> int:
    """The rank beyond which an update of a layer's weight gains nothing: the smaller side of its matrix."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    return min(rows, columns)


def _called_layers(
    network: nn.Module, layers: Mapping[str, nn.Module], run: Callable[[], object]
) -> tuple[set[str], set[str]]:
    """The layers whose forward is called in evaluation mode without gradient, and in training mode with it.

    Some networks read the weights of their layers: those of attention, and transformer layers when they sample.
    """
    called: list[set[str]] = []
    for training in (False, True):
        seen: set[str] = set()
        hooks = [
            layer.register_forward_hook(lambda *_, name=name, seen=seen: seen.add(name))
            for name, layer in layers.items()
        ]
        try:
            # fork_rng, because dropout draws in the trial in training mode, and the run's own numbers must not move.
            with torch.set_grad_enabled(training), torch.random.fork_rng(devices=[]):
                network.train(training)
                run()
        finally:
            network.eval()
            for hook in hooks:
                hook.remove()
        called.append(seen)
    return called[0], called[1]


def _shared_modules(network: nn.Module) -> set[str]:
    """The modules that have a parameter which stands in the network more than once."""
    owners: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _refuse(names: Sequence[str], why: str, cure: str = "Leave them out with adapters.exclude") -> None:
    if names:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise ConfigError(f"adapters: {', '.join(names[:4])}{more} {why}. {cure}.")


def _check_matched(names: Sequence[str], pattern: str, key: str, fit: Mapping[str, nn.Module]) -> None:
    if not names:
        raise ConfigError(f"{key}: '{pattern}' matches no layer. {_near_names(pattern, fit)}")


def _near_names(name: str, fit: Mapping[str, nn.Module]) -> str:
    close = difflib.get_close_matches(name.replace("*", ""), fit, 5, cutoff=0.4) or list(fit)[:5]
    more = f" and {len(fit) - len(close)} more" if len(fit) > len(close) else ""
    return f"Layers that can be adapted: {', '.join(close)}{more}."


def _pattern(text: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(f"{key}: '{text}' is not a regular expression: {error}.") from None
