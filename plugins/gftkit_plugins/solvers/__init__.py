"""Solvers: gftkit's own, of one step each, and those of torchdiffeq and torchsde."""

from collections.abc import Callable
from typing import Any

import gftkit
from gftkit_plugins.solvers import native, torchdiffeq, torchsde


@gftkit.hookimpl
def gftkit_solvers() -> dict[str, Callable[..., Any]]:
    """The built-in solvers."""
    return {
        "dopri5": torchdiffeq.DormandPrince5,
        "euler": native.Euler,
        "euler-maruyama": native.EulerMaruyama,
        "flow-map": native.FlowMap,
        "heun": native.Heun,
        "midpoint": native.Midpoint,
        "rk4": native.RungeKutta4,
        "srk": torchsde.StochasticRungeKutta,
        "stochastic-heun": native.StochasticHeun,
        "torchdiffeq": torchdiffeq.TorchDiffEq,
        "torchsde": torchsde.TorchSDE,
    }
