"""The runtime: devices, processes, random streams, progress bars."""

from gftkit.runtime.devices import (
    Crew as Crew,
    start_accelerator as start_accelerator,
    start_crew as start_crew,
    cuda_devices as cuda_devices,
    emulates_half as emulates_half,
    launch_warnings as launch_warnings,
)
from gftkit.runtime.environment import (
    describe_machine as describe_machine,
    resolve_device as resolve_device,
    versions as versions,
)
from gftkit.runtime.progress import (
    Progress as Progress,
    SamplingProgress as SamplingProgress,
    StudyProgress as StudyProgress,
)
from gftkit.runtime.randomness import seed_global as seed_global, stream as stream
from gftkit.runtime.sharding import (
    gather_tensors as gather_tensors,
    local_part as local_part,
    shard_like as shard_like,
    full_tensor as full_tensor,
)
