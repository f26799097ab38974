"""Run folders: the configuration, its resolution, weights, checkpoints and lineage."""

from gftkit.runs.checkpoint import Checkpoint as Checkpoint
from gftkit.runs.folder import (
    ADAPTER as ADAPTER,
    CHECKPOINTS as CHECKPOINTS,
    CLOCK as CLOCK,
    CONFIG as CONFIG,
    LOG as LOG,
    MODEL as MODEL,
    RunFolder as RunFolder,
    SUMMARY as SUMMARY,
    Weights as Weights,
    config_from_dict as config_from_dict,
    is_run as is_run,
    write_config as write_config,
    write_model as write_model,
)
from gftkit.runs.overrides import override as override, put as put
from gftkit.runs.resolve import (
    Resolution as Resolution,
    resolve_config as resolve_config,
    resolve_evaluate as resolve_evaluate,
    tracker_options as tracker_options,
)
from gftkit.runs.schema import (
    AnchorShare as AnchorShare,
    Config as Config,
    DEFAULTS as DEFAULTS,
    Evaluate as Evaluate,
    FINETUNE_KEYS as FINETUNE_KEYS,
    INHERITED as INHERITED,
    RunKind as RunKind,
    Objective as Objective,
    Train as Train,
    without_weights as without_weights,
)
