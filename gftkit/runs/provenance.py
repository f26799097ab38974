"""The machine, versions and plugins that a run is made with, for environment.json."""

from typing import Any

from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Config
from gftkit.runtime.environment import describe_machine


def describe_environment(registry: Registry, config: Config, accelerator: Any) -> dict[str, Any]:
    """Versions, device, processes, and the plugin of each component of the configuration."""
    used = {"drift": config.drift, "path": config.path, "coupling": config.coupling, "schedule": config.schedule}
    datasets = {"data": config.data, "source": config.source, "evaluate.data": config.evaluate.data}
    origins = {
        where: registry.component("dataset" if where in datasets else where, spec["name"]).origin
        for where, spec in {**used, **datasets}.items()
        if spec is not None
    }
    return {
        **describe_machine(accelerator.device),
        "processes": accelerator.num_processes,
        "distributed": accelerator.distributed_type.value,
        "components": {
            where: {"plugin": origin.plugin, "distribution": origin.distribution, "version": origin.version}
            for where, origin in origins.items()
        },
    }
