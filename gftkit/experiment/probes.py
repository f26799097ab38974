"""Probes of a run's networks on its own data, before the first step."""

import torch
from torch import nn

from gftkit.data import conditions
from gftkit.data.description import Facts
from gftkit.experiment.building import make_drift
from gftkit.experiment.networks import Networks
from gftkit.kernel.contracts import Batch, Path
from gftkit.kernel.errors import RunError
from gftkit.kernel.registry import Registry
from gftkit.networks.adapters import read_adapters
from gftkit.networks.agreement import (
    HALF,
    ROUND_OFF,
    Inputs,
    agree,
    check_anchor_stays,
    check_network,
    check_rebuilt,
    check_start,
)
from gftkit.networks.anchor import ExternalAnchor
from gftkit.networks.foreign import ForeignDrift
from gftkit.networks.state import load_weights
from gftkit.runs.folder import ADAPTER, MODEL, RunFolder
from gftkit.runs.schema import Config, without_weights
from gftkit.runtime.randomness import stream

PROBED = 2
"""Samples on which the networks are probed."""


def probe_networks(
    config: Config, networks: Networks, facts: Facts, batch: Batch, path: Path, registry: Registry
) -> None:
    """Refuse networks that a run couldn't train, anchor or read back as what they are.

    Args:
        config: the configuration.
        networks: of the run.
        facts: of its data.
        batch: samples of its training data, scaled.
        path: of the run.
        registry: components.

    Raises:
        ConfigError: see ``gftkit.networks.agreement``.
    """
    drift, anchor, name = networks.drift, networks.anchor, config.drift["name"]
    inputs = probe_inputs(drift, batch, config.seed)
    check_network(drift, inputs, name)

    def rebuild() -> nn.Module:
        other = make_drift(without_weights(config.drift), facts, registry, path, "drift, built again")
        if isinstance(other, ForeignDrift) and isinstance(drift, ForeignDrift):
            other.precision = drift.precision
        return other

    state = drift.state_dict() if networks.adapted is None else networks.adapted.base()
    check_rebuilt(drift, state, rebuild, inputs, name)
    if anchor is None or config.kind == "distill":
        return
    check_anchor_stays(drift, anchor, inputs)
    if isinstance(anchor, ExternalAnchor):  # another network: the drift is compared with itself
        check_start(drift, drift, inputs, name, conditions.condition_names(drift))
    else:
        check_start(drift, anchor, inputs, name, anchor.conditions)


def probe_inputs(drift: nn.Module, batch: Batch, seed: int) -> Inputs:
    """Inputs of a drift on the way from noise to some samples of data, at two times."""
    few = batch[:PROBED]
    t = torch.linspace(0.2, 0.7, len(few))
    noise = torch.randn(few.x1.shape, generator=stream(seed, "probe"))
    ahead = t.reshape(-1, *[1] * (few.x1.ndim - 1))
    return Inputs(t, (1 - ahead) * noise + ahead * few.x1, conditions.conditions_of(drift, few))


def check_written(run: RunFolder, network: nn.Module, batch: Batch, path: Path) -> None:
    """Refuse the final weights of a run that don't give back the network which they were written from.

    Of adapters without their base, the file is compared with what was written: the base is known by its hash, and that
    the network can be built again was tested before the first step.

    Args:
        run: its folder, with its final weights.
        network: the network with those weights, as it is in memory.
        batch: samples of its training data, scaled.
        path: of the run.

    Raises:
        RunError: where it does; the run then counts as unfinished.
        WeightsError: for a damaged file.
    """
    config = run.config
    if not run.has_base:
        read_adapters(run.folder / ADAPTER, run.notes["adapter"])
        return
    with torch.random.fork_rng(devices=[]):
        restored = make_drift(without_weights(config.drift), run.facts, run.registry, path, "drift, read back")
    load_weights(restored, run.averages().tensors, run.folder)
    inputs = probe_inputs(network, batch, config.seed)
    if not agree(restored, network, inputs, config.drift["name"], _round_off(config)):
        (run.folder / MODEL).unlink()
        raise RunError(
            f"{run.folder}: the network read back from {MODEL} gives another output than the one that was trained, so "
            f"the file is deleted. The checkpoints are kept. Does the network's class keep state outside its state "
            f"dict, or has a file that it reads changed since the start?"
        )


def _round_off(config: Config) -> float:
    """Largest relative difference between a network in memory and in its file that counts as none."""
    return ROUND_OFF if config.adapters is None or config.adapters.base_type == "float32" else HALF
