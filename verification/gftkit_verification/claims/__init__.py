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
    "broken",  # components that nothing else can be claimed about
    "proofs",  # what algebra decides, with sympy
    "objective",  # T1 to T3 on closed forms
    "blending",  # T1 by the sampler
    "optima",  # T4, T7 and T8 on closed forms
    "anchors",  # T18
    "laws",  # T5 and T6 on closed forms
    "marginals",  # T12 on closed forms
    "targets",  # T16 and T17
    "paths",
    "schedules",
    "couplings",  # with T10
    "geometry",  # T10 and T11 by the sampler's trajectories
    "conditions",  # T10 for conditions that are no labels
    "solvers",
    "integrators",  # solvers of libraries
    "flow_maps",
    "grids",
    "diffusions",  # with T12 for noise of one's choice
    "sampling",  # T11 and T12, by the sampler
    "sampling_trained",  # T10 to T12 with trained networks
    "likelihood",
    "gradients",  # T9
    "gradients_trained",  # T9 in the shipped loop
    "sharing",  # the anchor on a part of the batch
    "sharing_loop",  # in the shipped loop
    "tracking",  # T13
    "dynamics",  # T14
    "best_temperature",  # T15
    "memorisation",  # arrival and memorisation, section 5
    "training",  # the shipped loop
    "networks",  # trained ones
)


@gftkit.hookimpl
def gftkit_claims(registry: "Registry") -> "Iterator[Claim]":
    """Every claim of gftkit_verification."""
    for name in MODULES:
        yield from import_module(f"{__name__}.{name}").claims(registry)
