"""gftkit: Gradual Fine-Tuning for flow matching models (arXiv:2601.22495), with its theory checked alongside.

Everything here is imported on first use, so that ``import gftkit`` and ``gft --help`` don't load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gftkit.errors import GftkitError as GftkitError
    from gftkit.hooks import hookimpl as hookimpl
    from gftkit.loading import load as load
    from gftkit.objective import retention as retention
    from gftkit.registry import Registry as Registry
    from gftkit.run import Run as Run
    from gftkit.training import distill as distill
    from gftkit.training import finetune as finetune
    from gftkit.training import pretrain as pretrain

__version__ = "0.1.0"

_WHERE = {
    "GftkitError": "gftkit.errors",
    "Registry": "gftkit.registry",
    "Run": "gftkit.run",
    "distill": "gftkit.training",
    "finetune": "gftkit.training",
    "hookimpl": "gftkit.hooks",
    "load": "gftkit.loading",
    "pretrain": "gftkit.training",
    "retention": "gftkit.objective",
}
__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'gftkit' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
