"""The machine, the device and the versions that a run is made with."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from gftkit.kernel.errors import ConfigError

_PACKAGES = ("gftkit", "torch", "numpy", "scipy", "accelerate", "safetensors", "pluggy", "pydantic")


def resolve_device(name: str) -> str:
    """The device that a name stands for: "auto" is the accelerator where there is one.

    Raises:
        ConfigError: for an unknown name, or cuda where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device: wanted auto, cpu or cuda, got '{name}'.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda is not available here. Use cpu, or install a CUDA build of torch.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Versions and device."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "packages": versions(),
    }


def versions() -> dict[str, str | None]:
    """The versions of what a run is made with."""
    return {name: _version(name) for name in _PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
