"""Rules that end a run before its last step, by what its monitors measure."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field

import gftkit
from gftkit.estimation import jackknife_stderr

ROUND_OFF = 1e-9
"""Of a progress."""


class CopyingStop:
    """Ends a run that has demonstrably stopped improving, where its samples come to copy the training data.

    The monitor ``memorisation`` measures both, by samples of the EMA weights from the same noise at every evaluation:

    - **copying**: their distance ratio isn't above 1, what samples of the data's own law have. Alone this proves
      nothing: samples of a law that is narrower than the data's, such as the pretrained one may be, lie near the data,
      too, though the run has hardly begun. So it isn't tested for significance: it says that there is little to gain
      by going on.
    - **no longer improving**, by the fall of their energy distance to the training data since an evaluation at least
      ``patience`` before. The fall isn't above 0 by more than ``errors`` of its paired standard errors, and it is
      known well enough: with as many errors added it would, at this pace, bring the distance down by less than one
      e-fold in a whole run. The latter isn't asked where the distance itself isn't significantly above 0, so that
      nothing is left to gain. The nearest datum of each sample is left out, so that to copy it is no improvement.

    The run ends where both hold; no data are held out. A run of which the latter can't be told goes on. The default
    ``patience`` is the share of a run over which the EMA weights average by default: averages that far apart have few
    steps in common.

    Args:
        errors: standard errors by which a fall is judged; 0 takes it at its word.
        patience: share of the run's steps.

    Reference: Prechelt (1998), Early stopping - but when?, in Neural Networks: Tricks of the Trade, for patience.

    Example:
        >>> import gftkit
        >>> rule = gftkit.load().create("stop", "copying")
        >>> near = {"distance_ratio": 0.85, "distance_ratio_stderr": 0.05}
        >>> for progress, energy in ((0.0, 0.9), (0.1, 0.4), (0.2, 0.3), (0.3, 0.3)):
        ...     left_out = [energy + shift * (1 + progress) for shift in (-0.1, 0.0, 0.1)]
        ...     rule.observe(progress, {"memorisation": {**near, "energy": energy, "energy_left_out": left_out}})
        ...     print(rule.done)
        False
        False
        False
        True
    """

    needs = ("memorisation",)

    def __init__(
        self,
        errors: Annotated[float, Field(ge=0)] = 2.0,
        patience: Annotated[float, Field(gt=0, lt=1)] = 0.1,
    ) -> None:
        self.errors, self.patience = errors, patience
        self._ratio: tuple[float, float] | None = None
        self._history: list[tuple[float, float, list[float]]] = []
        """Progress, energy distance and its values without each group: of the evaluation to compare with, and later."""

    @property
    def done(self) -> bool:
        """True where samples lie near the data and the run has stopped improving."""
        if self._ratio is None or self._ratio[0] > 1:
            return False
        fall = self._fall()
        if fall is None or fall[0] > self.errors * fall[1]:
            return False
        _, energy, left_out = self._history[-1]
        slow = fall[0] + self.errors * fall[1] <= self._waited() * energy
        return slow or energy <= self.errors * _stderr(left_out)

    @property
    def reason(self) -> str:
        """The reason, in words."""
        fall = self._fall()
        if not self.done or self._ratio is None or fall is None:
            return ""
        (ratio, error), energy = self._ratio, self._history[-1][1]
        return (
            f"samples lie {ratio:.2f} ± {error:.2f} times as far from the training data as these from each other, and "
            f"their energy distance fell by {fall[0]:.2g} ± {fall[1]:.2g}, to {energy:.2g}, in the last "
            f"{self._waited():.0%} of the run."
        )

    def observe(self, progress: float, measurements: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up the latest numbers; the start, before anything was trained, is only one to compare with."""
        measured = measurements["memorisation"]
        self._ratio = (measured["distance_ratio"], measured["distance_ratio_stderr"]) if progress > 0 else None
        self._history.append((progress, measured["energy"], list(measured["energy_left_out"])))
        last_old = sum(progress - past >= self.patience - ROUND_OFF for past, _, _ in self._history)
        self._history = self._history[max(0, last_old - 1) :]

    def _fall(self) -> tuple[float, float] | None:
        """The fall of the energy distance with its standard error; None before ``patience`` is over."""
        if len(self._history) < 2 or self._waited() < self.patience - ROUND_OFF:
            return None
        (_, before, without_before), (_, now, without_now) = self._history[0], self._history[-1]
        return before - now, _stderr([b - n for b, n in zip(without_before, without_now, strict=True)])

    def _waited(self) -> float:
        return self._history[-1][0] - self._history[0][0]

    def state_dict(self) -> dict[str, Any]:
        """The latest ratio, and the energy distances since the evaluation to compare with."""
        return {"ratio": self._ratio, "history": self._history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        self._ratio = None if state["ratio"] is None else (float(state["ratio"][0]), float(state["ratio"][1]))
        self._history = [
            (float(progress), float(energy), [float(value) for value in left_out])
            for progress, energy, left_out in state["history"]
        ]


def _stderr(left_out: list[float]) -> float:
    return float(jackknife_stderr(torch.tensor(left_out, dtype=torch.float64)))


@gftkit.hookimpl
def gftkit_stops() -> dict[str, type]:
    """The built-in rules that end a run; of them the schedule ``adaptive`` ends its own."""
    return {"copying": CopyingStop}
