"""Rules that end a run before its last step, by what its monitors measure."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

import gftkit


class CopyingStop:
    """Ends a run where its samples lie as near to the training data as these lie to each other.

    The monitor ``memorisation`` measures the distance ratio of samples of the EMA weights: above 1 the samples still
    lie beside the data, 1 is what samples of the data's own law have, below 1 they come to copy. The run ends at the
    first evaluation where it isn't above 1 by more than ``errors`` of its standard errors, so that distances don't
    distinguish the samples from the law's own: the discrepancy principle, by which a fit to noisy data ends where its
    misfit is that of the truth. No data are held out.

    Args:
        errors: standard errors above 1 at which the run ends; 0 ends it at 1 itself.

    Reference: Morozov (1966), On the solution of functional equations by the method of regularization (the
    discrepancy principle).

    Example:
        >>> import gftkit
        >>> rule = gftkit.load().create("stop", "copying")
        >>> for progress, ratio in ((0.0, 2.1), (0.1, 1.2), (0.2, 1.08)):
        ...     rule.observe(progress, {"memorisation": {"distance_ratio": ratio, "distance_ratio_stderr": 0.05}})
        ...     print(rule.done)
        False
        False
        True
    """

    needs = ("memorisation",)

    def __init__(self, errors: Annotated[float, Field(ge=0)] = 2.0) -> None:
        self.errors = errors
        self._last: tuple[float, float] | None = None

    @property
    def done(self) -> bool:
        """True where the ratio isn't significantly above 1."""
        return self._last is not None and self._last[0] - self.errors * self._last[1] <= 1

    @property
    def reason(self) -> str:
        """The reason, in words."""
        if self._last is None or not self.done:
            return ""
        ratio, error = self._last
        return f"samples lie {ratio:.2f} ± {error:.2f} times as far from the training data as these from each other."

    def observe(self, progress: float, measurements: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up the latest ratio; that of the start, before anything was trained, doesn't end a run."""
        measured = measurements["memorisation"]
        self._last = (measured["distance_ratio"], measured["distance_ratio_stderr"]) if progress > 0 else None

    def state_dict(self) -> dict[str, Any]:
        """The latest ratio and its standard error."""
        return {"last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        self._last = None if state["last"] is None else (float(state["last"][0]), float(state["last"][1]))


@gftkit.hookimpl
def gftkit_stops() -> dict[str, type]:
    """The built-in rules that end a run; of them the schedule ``adaptive`` ends its own."""
    return {"copying": CopyingStop}
