"""Where a run is made, and what with: kept in environment.json."""

from typing import Any

from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Config
from gftkit.runtime.environment import describe_machine


def describe_environment(registry: Registry, config: Config, accelerator: Any) -> dict[str, Any]:
    """Versions, device, processes, and for each component of the configuration the plugin that gave it."""
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
