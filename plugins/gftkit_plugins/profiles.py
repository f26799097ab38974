"""Profiles: the retention as a function of flow time t, for the end of a schedule and for the anchor as guide."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

import gftkit
from gftkit.kernel import ConfigError
from gftkit.storage import read_yaml

Retention = Annotated[float, Field(lt=1)]
FlowTime = Annotated[float, Field(ge=0, le=1)]


class Constant:
    """One retention at all flow times.

    Args:
        value: the retention: 0 is the target drift, above 0 keeps a share of the pretrained drift, below 0 goes beyond
            the target.

    Reference: theory, T15 and T20.

    Example:
        >>> import gftkit, torch
        >>> gftkit.load().create("profile", "constant", value=-0.15).retention(torch.tensor([0.0, 1.0]))
        tensor([-0.1500, -0.1500])
    """

    def __init__(self, value: Retention) -> None:
        self.value = value

    def retention(self, t: Tensor) -> Tensor:
        """The value, of t's shape."""
        return torch.full_like(t, self.value)


class Step:
    """One retention early in flow time, and another one late.

    Args:
        early: the retention at t < cut.
        late: the retention at t >= cut.
        cut: the flow time between them.

    Reference: theory, T21.

    Example:
        >>> import gftkit, torch
        >>> gftkit.load().create("profile", "step", early=-0.25, late=0.5).retention(torch.tensor([0.0, 0.8]))
        tensor([-0.2500,  0.5000])
    """

    def __init__(self, early: Retention, late: Retention, cut: FlowTime = 0.8) -> None:
        self.early, self.late, self.cut = early, late, cut

    def retention(self, t: Tensor) -> Tensor:
        """``early`` or ``late``, of t's shape."""
        return torch.where(t < self.cut, self.early, self.late).to(t.dtype)


class Linear:
    """A straight line in flow time.

    Args:
        early: the retention at t = 0.
        late: the retention at t = 1.

    Example:
        >>> import gftkit, torch
        >>> gftkit.load().create("profile", "linear", early=-0.5, late=0.5).retention(torch.tensor([0.0, 0.75]))
        tensor([-0.5000,  0.2500])
    """

    def __init__(self, early: Retention, late: Retention) -> None:
        self.early, self.late = early, late

    def retention(self, t: Tensor) -> Tensor:
        """The line's value, of t's shape."""
        return self.early + (self.late - self.early) * t


class Table:
    """Straight lines between the retentions that the user gives; the outermost ones hold beyond them.

    Args:
        times: flow times, increasing.
        values: the retention at each.

    Raises:
        ValueError: for times that don't increase, or another number of values.

    Example:
        >>> import gftkit, torch
        >>> table = gftkit.load().create("profile", "table", times=[0.5, 1.0], values=[-0.25, 0.25])
        >>> table.retention(torch.tensor([0.0, 0.75, 1.0]))
        tensor([-0.2500,  0.0000,  0.2500])
    """

    def __init__(
        self,
        times: Annotated[list[FlowTime], Field(min_length=1)],
        values: Annotated[list[Retention], Field(min_length=1)],
    ) -> None:
        if len(times) != len(values):
            raise ValueError(f"wanted a value for each time, got {len(times)} times and {len(values)} values.")
        if any(later <= earlier for earlier, later in itertools.pairwise(times)):
            raise ValueError(f"times: wanted flow times that increase, got {times}. Sort them, each once.")
        self.times, self.values = times, values

    def retention(self, t: Tensor) -> Tensor:
        """The interpolated value, of t's shape."""
        times = torch.tensor([-1.0, *self.times, 2.0], dtype=t.dtype, device=t.device)
        values = torch.tensor([self.values[0], *self.values, self.values[-1]], dtype=t.dtype, device=t.device)
        right = torch.searchsorted(times, t.contiguous(), right=True).clamp(1, len(times) - 1)
        share = (t - times[right - 1]) / (times[right] - times[right - 1])
        return values[right - 1] + share * (values[right] - values[right - 1])


class Fitted(Table):
    """The profile that ``gft fit-profile`` chose for a run, on held-out or training data.

    It belongs to that run and its anchor: sampling another run by it is refused, and so is a fine-tune with another
    anchor.

    Args:
        file: that ``gft fit-profile`` wrote.
        content: filled in from the file where a configuration is resolved, so that a run keeps its profile.

    Raises:
        ConfigError: where the file is missing or holds no profile.

    Reference: theory, T20 and T21.

    Example:
        >>> import gftkit, pathlib, tempfile, torch
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "profile.yaml"
        >>> _ = file.write_text("{times: [0.0], values: [-0.125], fitted_on: {run: runs/mine}}")
        >>> gftkit.load().create("profile", "fitted", file=file).retention(torch.tensor([0.5]))
        tensor([-0.1250])
    """

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with the content of the file: a run that is resumed with another one is refused."""
        return {**options, "content": options["content"] or _content(options["file"])}

    def __init__(self, file: Path, content: dict[str, Any] | None = None) -> None:
        content = _content(file) if content is None else content
        self.file = file
        self.fitted_on: Mapping[str, Any] = content.get("fitted_on") or {}
        try:
            times, values = ([float(value) for value in content[key]] for key in ("times", "values"))
            if not times or not all(0 <= t <= 1 for t in times) or not all(-math.inf < rho < 1 for rho in values):
                raise ValueError("wanted flow times in [0, 1] and finite retentions below 1")
            super().__init__(times, values)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{file} holds no profile ({error}). Write one with `gft fit-profile RUN --out FILE`."
            ) from None


def _content(file: Path) -> dict[str, Any]:
    """What a profile is made of; the evidence for it stays in the file."""
    return {key: value for key, value in read_yaml(file).items() if key in ("times", "values", "fitted_on")}


@gftkit.hookimpl
def gftkit_profiles() -> dict[str, type]:
    """The built-in profiles."""
    return {"constant": Constant, "fitted": Fitted, "linear": Linear, "step": Step, "table": Table}
