"""A profile that was chosen by evidence, in words and as the file that the profile ``fitted`` reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from gftkit.evaluation.retentions import Preference, beyond
from gftkit.kernel.contracts import Estimate
from gftkit.kernel.options import plain
from gftkit.selection.family import ERRORS, JUMP, Table
from gftkit.selection.judging import Compared
from gftkit.storage.documents import nan_to_none, write_text
from gftkit.theory.retention_fit import RetentionFit

By = Literal["training data", "held-out data", "folds"]

HEAD = "# A profile for `--retention '{name: fitted, file: ...}'`, written by `gft fit-profile`.\n"


@dataclass(frozen=True)
class FittedProfile:
    """The profile that was chosen for a run, and the evidence.

    Attributes:
        table: the profile; zero where nothing is significant.
        chosen: its name; "zero" for zero.
        by: the data that chose.
        preference: energy distances to the training data at constant retentions, and the retention that they prefer.
        fit: r*(t) on data that the run, or each fold's, wasn't trained on; None where only the training data chose.
        compared: the profiles that were compared with zero on further data; empty where only the training data chose.
        fitted_on: the run, its weights and anchor, and how it was measured.
    """

    table: Table
    chosen: str
    by: By
    preference: Preference
    fit: RetentionFit | None
    compared: tuple[Compared, ...]
    fitted_on: Mapping[str, Any]

    @property
    def sentence(self) -> str:
        """The result for people."""
        profile = _written(self.table)
        at = _place(self.preference.minimum)
        if self.by == "training data":
            if self.table.is_zero:
                gain = self.preference.gain
                fall = "" if gain is None else f", and falls only by {gain.value:.2g} ± {gain.stderr:.2g}"
                return (
                    f"Nothing is significant: the energy distance to the training data is least at retention {at}"
                    f"{fall}. Chosen: zero, the run as it is."
                )
            return (
                f"Chosen: {profile}. The energy distance to the training data is least at retention {at}, which was "
                f"shrunk by its error."
            )
        k = len(self.compared)
        if not k:
            return (
                f"Nothing is significant: every profile of the family is zero within {ERRORS:g} standard errors. "
                f"Chosen: zero, the run as it is."
            )
        metric = self.fitted_on["metric"]["name"]
        if self.table.is_zero:
            return (
                f"Nothing is significant: none of {k} profiles lowers {metric} with an interval above 0. Chosen: zero, "
                f"the run as it is."
            )
        gain = next(each.gain for each in self.compared if each.name == self.chosen)
        assert gain.interval is not None
        caveat = f" As the best of {k} its gain is rather overestimated: measure it on other data." if k > 1 else ""
        return (
            f"Chosen: {self.chosen}, {profile}. It lowers {metric} by {gain.value:.4g} ± {gain.stderr:.2g}, "
            f"simultaneous 95 % interval {gain.interval[0]:.4g} to {gain.interval[1]:.4g}.{caveat}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what isn't finite is None."""
        measured: dict[str, Any] = {"training": self.preference.to_dict()}
        if self.fit is not None:
            edges = self.fit.edges.tolist()
            measured["r_star"] = {
                "edges": edges,
                "value": [each.value for each in self.fit.by_time],
                "stderr": [each.stderr for each in self.fit.by_time],
                "constant": self.fit.constant.value,
                "constant_stderr": self.fit.constant.stderr,
            }
            measured["compared"] = [
                {
                    "name": each.name,
                    "times": [*each.table.times],
                    "values": [*each.table.values],
                    "metric": each.value.value,
                    "metric_stderr": each.value.stderr,
                    "gain": each.gain.value,
                    "gain_stderr": each.gain.stderr,
                    "gain_interval": [*(each.gain.interval or ())],
                    "significant": each.is_significant,
                }
                for each in self.compared
            ]
        content = {
            "times": [*self.table.times],
            "values": [*self.table.values],
            "chosen": self.chosen,
            "by": self.by,
            "sentence": self.sentence,
            "fitted_on": dict(self.fitted_on),
            "measured": measured,
        }
        return dict(nan_to_none(plain(content)))


def write_profile(path: Path, fitted: FittedProfile) -> None:
    """Write a profile as YAML, for the profile ``fitted``, with the evidence; whole or not at all."""
    content = fitted.to_dict()
    write_text(
        path, HEAD + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    )


def _place(minimum: Estimate) -> str:
    """Where the energy distance is least; beyond the ends of what was measured nothing is known."""
    return beyond(minimum.value) or f"{minimum.value:.3f} ± {minimum.stderr:.3f}"


def _written(table: Table) -> str:
    """A profile in words."""
    if len(table.times) == 1:
        return f"retention {table.values[0]:.3f} at all flow times"
    if len(table.times) == 2 and table.times[1] - table.times[0] < 2 * JUMP:
        early, late = table.values
        return f"retention {early:.3f} before flow time {table.times[1]:.3g} and {late:.3f} from there on"
    return f"retentions from {min(table.values):.3f} to {max(table.values):.3f}"
