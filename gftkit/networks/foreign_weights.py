"""Weights files of any program: which network in a file fits, under which name. Nothing is unpickled but tensors."""

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gftkit.kernel.errors import WeightsError
from gftkit.networks.state import load_weights, misfits, shortened
from gftkit.storage.tensors import State, read_tensors

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
"""Endings of files that torch.save writes."""

_REFUSED = re.compile(r"GLOBAL (\S+)")


@dataclass(frozen=True)
class Candidate:
    """A set of weights in a file.

    Attributes:
        name: where it lies in the file, with dots: ``ema_model``, ``state_dict.model``; "" for the file itself.
        weights: its tensors, under the names that they have below ``name``.
    """

    name: str
    weights: State

    @property
    def averaged(self) -> bool:
        """True where its name says that it is an exponential moving average."""
        return "ema" in re.split(r"[._]", self.name.lower())


def load_foreign_weights(module: nn.Module, path: Path, key: str | None = None) -> list[str]:
    """Put the weights of a file into a network, whatever wraps them there.

    A file may hold several networks beside the state of an optimiser, as a mapping of mappings or under prefixes. Those
    count whose names and shapes are the network's once a prefix common to all of them, such as ``module.``, is left
    out or put before. An average (a name with ``ema``) goes before others.

    Args:
        module: the network, which is changed.
        path: .safetensors, or what torch.save wrote: .pt, .pth, .bin, .ckpt.
        key: which network: its place in the file with dots. By default the one that fits.

    Returns:
        Messages for the user, one sentence each, where several fit.

    Raises:
        WeightsError: for a file that is missing, damaged, would execute code, or holds no network that fits, or more
            than one between which nothing decides.
    """
    fitting = fitting_in(path, module.state_dict(), key)
    names = ", ".join(f"'{candidate.name}'" for candidate in fitting)
    best = [candidate for candidate in fitting if candidate.averaged] or fitting
    if len(best) > 1:
        raise WeightsError(f"{path} contains several networks that fit: {names}. Choose one of them with `key`.")
    load_weights(module, best[0].weights, path)
    if key is not None or len(fitting) == 1:
        return []
    return [f"{path} contains {names}; '{best[0].name}', the averaged weights, was used. Choose another with `key`."]


def fitting_in(path: Path, wanted: Mapping[str, Tensor], key: str | None = None) -> list[Candidate]:
    """The sets of weights in a file that are a network's; with ``key`` those that lie there.

    Raises:
        WeightsError: where there is none, or the file can't be read.
    """
    contents = read_weights_file(path)
    fitting = candidates(contents, wanted)
    if not fitting:
        raise WeightsError(_no_fit(path, contents, wanted))
    if key is None:
        return fitting
    at_key = [candidate for candidate in fitting if f"{candidate.name}.".startswith(f"{key}.")]
    if not at_key:
        names = ", ".join(f"'{candidate.name}'" for candidate in fitting)
        raise WeightsError(f"{path}: no network that fits at key: {key}. Those that fit: {names}.")
    return at_key


def read_weights_file(path: Path) -> Mapping[str, Any]:
    """Read a weights file: names to tensors, or to mappings that hold some.

    Raises:
        WeightsError: for a file that is missing, damaged, of another format, or would execute code.
    """
    if path.suffix == ".safetensors" or not path.is_file():
        tensors, notes = read_tensors(path)
        if "optimizer" in notes and "step" in notes:
            raise WeightsError(f"{path} is a run's checkpoint: give the run folder, or its model.safetensors.")
        return tensors
    if path.suffix not in PICKLES:
        raise WeightsError(
            f"{path}: wanted .safetensors, {', '.join(PICKLES)}, got '{path.suffix}'. Convert it, or check the path."
        )
    mapped = zipfile.is_zipfile(path)
    if not mapped and _starts_as_zip(path):
        raise WeightsError(
            f"{path}: the file is incomplete: it begins like a zip archive of torch.save, and ends early. Copy it "
            f"again."
        )
    try:
        # Mapped into memory where the format allows: the state of an optimiser is then never read.
        with warnings.catch_warnings(action="ignore"):  # guesses about a foreign file; what matters is raised
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch's own text advises to run the file if one trusts it
        refused = _REFUSED.search(str(error))
        raise WeightsError(
            f"{path}: wanted a state dict that loads without executing code, and this file "
            f"doesn't{f' (it names {refused[1]})' if refused else ''}. It is damaged, or contains more than tensors; "
            f"nothing in it was executed. Export its state_dict as .safetensors."
        ) from error
    if not (isinstance(contents, dict) and _sets(contents)):
        raise WeightsError(
            f"{path}: wanted a state dict (name -> tensor), got {type(contents).__name__} without tensors by name. "
            f"Export the network's state_dict."
        )
    return contents


def _starts_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def candidates(contents: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> list[Candidate]:
    """The sets of weights in a file that are a network's, names and shapes alike, each once."""
    fitting = [candidate for candidate in _readings(contents, wanted) if not misfits(candidate.weights, wanted)]
    # One set may fit in several ways, with a prefix left out or put before: the same tensors count once, by their first
    # name.
    same = {tuple(id(candidate.weights[name]) for name in wanted): candidate for candidate in reversed(fitting)}
    return [candidate for candidate in fitting if any(candidate is kept for kept in same.values())]


def _sets(contents: Mapping[Any, Any], place: str = "") -> list[Candidate]:
    """Every mapping in a file that holds tensors by name."""
    tensors = {name: value for name, value in contents.items() if isinstance(name, str) and isinstance(value, Tensor)}
    sets = [Candidate(place, tensors)] if tensors else []
    for name, value in contents.items():
        if isinstance(name, str) and isinstance(value, Mapping):
            sets += _sets(value, f"{place}.{name}" if place else name)
    return sets


def _readings(contents: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> Iterator[Candidate]:
    """Every set of weights in a file with a prefix left out, or the network's own one put before."""
    for whole in _sets(contents):
        for cut in _prefixes(whole.weights, wanted):
            name = ".".join(filter(None, [whole.name, cut.rstrip(".")]))
            below = {key.removeprefix(cut): value for key, value in whole.weights.items() if key.startswith(cut)}
            for put in sorted({"", _common(wanted)}):
                yield Candidate(name, {put + key: value for key, value in below.items()})


def _prefixes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Possible prefixes of a network's names in a file, "" included: judged by its longest name."""
    prefixes = {""}
    for put in {"", _common(wanted)}:
        # The longest, because many names in a file end in a short one such as `.weight`.
        longest = max((name.removeprefix(put) for name in wanted), key=len, default="")
        prefixes |= {name.removesuffix(longest) for name in tensors if name.endswith(f".{longest}")}
    return sorted(prefixes)


def _common(wanted: Mapping[str, Any]) -> str:
    """The prefix up to a dot that all names share: that of a drift around a network is ``network.``."""
    firsts = {name.partition(".")[0] for name in wanted}
    return f"{firsts.pop()}." if len(firsts) == 1 and all("." in name for name in wanted) else ""


def _no_fit(path: Path, contents: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> str:
    """The message for a file in which nothing fits: its contents, and how the nearest set differs."""
    sets = [
        f"'{candidate.name}' ({len(candidate.weights)})" if candidate.name else f"{len(candidate.weights)}"
        for candidate in _sets(contents)
    ]
    nearest = max(_readings(contents, wanted), key=lambda candidate: len(set(candidate.weights) & set(wanted)))
    which = f"; nearest is '{nearest.name}'" if nearest.name else ""
    return (
        f"{path}: the weights don't fit the drift, which has {len(wanted)} tensors. In the file: {', '.join(sets)} "
        f"tensors{which}.{shortened(misfits(nearest.weights, wanted))}\n"
        f"Give the `drift` these weights were made with: its class and its options."
    )
