"""Rules that end a run before its last step, by what its monitors measure."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field


class CopyingStop:
    """Ends a run where its samples lie as near to the training data as these lie to each other.

    The monitor ``memorisation`` measures the distance ratio of samples of the EMA weights: above 1 the samples still
    lie beside the data, 1 is what samples of the data's own law have, below 1 they come to copy. The run ends at the
    first evaluation where it has come down to ``ratio``: the discrepancy principle, by which a fit to noisy data ends
    where its misfit is that of the truth. No data are held out.

    Args:
        ratio: distance ratio at which the run ends.

    Reference: Morozov (1966), On the solution of functional equations by the method of regularization (the
    discrepancy principle).

    Example:
        >>> import gftkit
        >>> rule = gftkit.load().create("stop", "copying")
        >>> for progress, ratio in ((0.0, 2.1), (0.1, 1.2), (0.2, 0.97)):
        ...     rule.observe(progress, {"memorisation": {"distance_ratio": ratio}})
        >>> rule.done
        True
    """

    needs = ("memorisation",)

    def __init__(self, ratio: Annotated[float, Field(gt=0)] = 1.0) -> None:
        self.ratio = ratio
        self._last: float | None = None

    @property
    def done(self) -> bool:
        """Whether the ratio has come down to its bound."""
        return self._last is not None and self._last <= self.ratio

    @property
    def reason(self) -> str:
        """Why, in words."""
        if not self.done:
            return ""
        return f"samples lie {self._last:.2f} times as far from the training data as these from each other."

    def observe(self, progress: float, measurements: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up the latest ratio; that of the start, before anything was trained, doesn't end a run."""
        self._last = measurements["memorisation"]["distance_ratio"] if progress > 0 else None

    def state_dict(self) -> dict[str, Any]:
        """The latest ratio."""
        return {"last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        self._last = state["last"]
