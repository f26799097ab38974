"""What a run was made with: kept in environment.json."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from gftkit.config import Config
from gftkit.registry import Registry

_PACKAGES = ("gftkit", "torch", "numpy", "scipy", "accelerate", "safetensors", "pluggy", "pydantic")


def describe_environment(registry: Registry, config: Config, device: torch.device, processes: int) -> dict[str, Any]:
    """Versions, device, and for each component of the configuration the plugin that gave it."""
    used = {"drift": config.drift, "path": config.path, "coupling": config.coupling, "schedule": config.schedule}
    datasets = {"data": config.data, "source": config.source, "evaluate.data": config.evaluate.data}
    origins = {
        where: registry.component("dataset" if where in datasets else where, spec["name"]).origin
        for where, spec in {**used, **datasets}.items()
        if spec is not None
    }
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "components": {
            where: {"plugin": origin.plugin, "distribution": origin.distribution, "version": origin.version}
            for where, origin in origins.items()
        },
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
