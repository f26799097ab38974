"""The claims: one module for each part of the theory, each with ``claims(registry)``.

Nothing of it is imported before claims are asked for.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

import gftkit

if TYPE_CHECKING:
    from gftkit.kernel.registry import Registry
    from gftkit.verify.claims import Claim

MODULES = (
    "components.broken",  # components that nothing else can be claimed about
    "proofs",  # what algebra decides, with sympy
    "objective.closed_forms",  # T1 to T3 on closed forms
    "objective.blending",  # T1 by the sampler
    "optima.closed_forms",  # T4, T7 and T8 on closed forms
    "optima.anchors",  # T18
    "laws.closed_forms",  # T5 and T6 on closed forms
    "laws.marginals",  # T12 on closed forms
    "objective.targets",  # T16 and T17
    "components.paths",
    "components.schedules",
    "couplings.closed_forms",  # with T10
    "components.geometry",  # T10 and T11 by the sampler's trajectories
    "couplings.conditions",  # T10 for conditions that are no labels
    "components.solvers",
    "components.integrators",  # solvers of libraries
    "components.flow_maps",
    "components.grids",
    "laws.diffusions",  # with T12 for noise of one's choice
    "laws.sampling",  # T11 and T12, by the sampler
    "laws.sampling_trained",  # T10 to T12 with trained networks
    "laws.likelihood",
    "objective.gradients",  # T9
    "objective.gradients_trained",  # T9 in the shipped loop
    "objective.sharing",  # the anchor on a part of the batch
    "training.sharing_loop",  # in the shipped loop
    "training.tracking",  # T13
    "training.dynamics",  # T14
    "optima.best_temperature",  # T15
    "training.memorisation",  # arrival and memorisation, section 5
    "training.loop",  # the shipped loop
    "training.networks",  # trained ones
)


@gftkit.hookimpl
def gftkit_claims(registry: "Registry") -> "Iterator[Claim]":
    """Every claim of gftkit_verification."""
    for name in MODULES:
        yield from import_module(f"{__name__}.{name}").claims(registry)
