"""Time grids: where a sampler's steps begin and end."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

import gftkit
from gftkit.geometry import read_grids
from gftkit.storage import read_yaml


class Uniform:
    """Equal steps: t_k = k/N.

    Example:
        >>> import gftkit
        >>> gftkit.load().create("grid", "uniform").times(4)
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """

    def times(self, steps: int) -> list[float]:
        """``steps`` + 1 times from 0 to 1."""
        return [k / steps for k in range(steps + 1)]


class Cosine:
    """Short steps at both ends: t_k = (1 - cos(pi k/N))/2, the Chebyshev extreme points.

    Reference: Trefethen (2013), Approximation Theory and Approximation Practice, chapter 2.

    Example:
        >>> import gftkit
        >>> [round(t, 3) for t in gftkit.load().create("grid", "cosine").times(4)]
        [0.0, 0.146, 0.5, 0.854, 1.0]
    """

    def times(self, steps: int) -> list[float]:
        """``steps`` + 1 times from 0 to 1."""
        return [(1 - math.cos(math.pi * k / steps)) / 2 for k in range(steps)] + [1.0]  # exactly 1, without round-off


class Shifted:
    """Equal steps, shifted: t = u/(shift - (shift - 1) u), u = k/N; above 1 towards the source, below 1 the data.

    With noise level 1 - t it is the shift of the reference, s (1 - u)/(1 + (s - 1)(1 - u)).

    Args:
        shift: s > 0; 1 for equal steps. Stable Diffusion 3 uses 3.

    Reference: Esser et al. (2024), Scaling Rectified Flow Transformers, Eq. 23, arXiv:2403.03206.

    Example:
        >>> import gftkit
        >>> [round(t, 3) for t in gftkit.load().create("grid", "shifted", shift=3.0).times(4)]
        [0.0, 0.1, 0.25, 0.5, 1.0]
    """

    def __init__(self, shift: Annotated[float, Field(gt=0)] = 3.0) -> None:
        self.shift = shift

    def times(self, steps: int) -> list[float]:
        """``steps`` + 1 times from 0 to 1."""
        shares = [k / steps for k in range(steps)]
        return [u / (self.shift - (self.shift - 1) * u) for u in shares] + [1.0]


class Explicit:
    """Times that the user gives.

    Args:
        at: increasing, from 0 to 1.

    Raises:
        ValueError: in use, for another number of steps than there are.

    Example:
        >>> import gftkit
        >>> gftkit.load().create("grid", "explicit", at=[0.0, 0.7, 1.0]).times(2)
        [0.0, 0.7, 1.0]
    """

    def __init__(self, at: list[float]) -> None:
        self.at = at

    def times(self, steps: int) -> list[float]:
        """The times, where they make this number of steps."""
        if steps != len(self.at) - 1:
            raise ValueError(
                f"{len(self.at)} times make {len(self.at) - 1} steps, and steps is {steps}. Make them agree."
            )
        return self.at


class Fitted:
    """Times that were fitted to a run by ``gft fit-grid``: where so many Euler steps lose least along its flow.

    They belong to that run's flow, and another is warned about. Nothing is fitted here: the file holds the times of
    each number of steps.

    Args:
        file: that ``gft fit-grid`` wrote.
        content: filled in from the file where a configuration is resolved, so that a run keeps its times.

    Raises:
        ConfigError: where the file is missing or holds no grids.
        ValueError: in use, for a number of steps that wasn't fitted.

    Reference: theory, T11; Watson et al. (2021), section 3, arXiv:2106.03802, for the dynamic programme.

    Example:
        >>> import gftkit, pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "grid.yaml"
        >>> _ = file.write_text("times: {2: [0.0, 0.7, 1.0]}")
        >>> gftkit.load().create("grid", "fitted", file=file).times(2)
        [0.0, 0.7, 1.0]
    """

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with the content of the file: a run that is resumed with another one is refused."""
        return {**options, "content": options["content"] or _content(options["file"])}

    def __init__(self, file: Path, content: dict[str, Any] | None = None) -> None:
        content = _content(file) if content is None else content
        self.file, self.fitted_on = file, content["fitted_on"]
        self._grids: dict[int, list[float]] = {int(steps): times for steps, times in content["times"].items()}

    def times(self, steps: int) -> list[float]:
        """The times that were fitted for this number of steps."""
        if steps not in self._grids:
            fitted = ", ".join(map(str, sorted(self._grids)))
            raise ValueError(
                f"{self.file} has grids for {fitted} steps, and steps is {steps}. Fit one by `gft fit-grid --steps "
                f"{steps}`, or use another grid."
            )
        return self._grids[steps]


def _content(file: Path) -> dict[str, Any]:
    """What grids are made of, with numbers of steps as text, as JSON has them."""
    grids = {str(steps): times for steps, times in read_grids(file).items()}
    return {"times": grids, "fitted_on": read_yaml(file).get("fitted_on") or {}}


@gftkit.hookimpl
def gftkit_grids() -> dict[str, type]:
    """The built-in time grids."""
    return {"cosine": Cosine, "explicit": Explicit, "fitted": Fitted, "shifted": Shifted, "uniform": Uniform}
