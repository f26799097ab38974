"""gftkit: Gradual Fine-Tuning for flow matching models (arXiv:2601.22495), with its theory checked alongside.

Everything here is imported on first use, so that ``import gftkit`` and ``gft --help`` don't load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gftkit.api import Run as Run
    from gftkit.api import distill as distill
    from gftkit.api import finetune as finetune
    from gftkit.api import pretrain as pretrain
    from gftkit.gradual import Gradual as Gradual
    from gftkit.kernel.errors import GftkitError as GftkitError
    from gftkit.kernel.hooks import hookimpl as hookimpl
    from gftkit.kernel.loading import load as load
    from gftkit.kernel.registry import Registry as Registry
    from gftkit.theory.objective import retention as retention

__version__ = "0.1.0"

_MODULES = {
    "GftkitError": "gftkit.kernel.errors",
    "Gradual": "gftkit.gradual",
    "Registry": "gftkit.kernel.registry",
    "Run": "gftkit.api",
    "distill": "gftkit.api",
    "finetune": "gftkit.api",
    "hookimpl": "gftkit.kernel.hooks",
    "load": "gftkit.kernel.loading",
    "pretrain": "gftkit.api",
    "retention": "gftkit.theory.objective",
}
__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'gftkit' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
