"""Networks for the drift b(t, x)."""

from torch import nn

import gftkit
from gftkit_plugins.drifts.flow_map import FlowMap
from gftkit_plugins.drifts.mlp import Mlp
from gftkit_plugins.drifts.module import ModuleDrift
from gftkit_plugins.drifts.unet import Unet


@gftkit.hookimpl
def gftkit_drifts() -> dict[str, type[nn.Module]]:
    """The built-in drifts."""
    return {"flow-map": FlowMap, "mlp": Mlp, "module": ModuleDrift, "unet": Unet}
