"""Time grids: where a sampler's steps begin and end."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

import gftkit
from gftkit.geometry import read_grids
from gftkit.kernel import ConfigError
from gftkit.storage import read_json, read_yaml


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


SCHEDULER_CONFIG = "scheduler_config.json"
ROUND_OFF = 1e-6
"""Of a sigma of 1, in float32."""


class DiffusersScheduler:
    """The times of a scheduler of diffusers: t = 1 - sigma, with sigma by the scheduler's own ``set_timesteps``.

    With Euler's method and a network whose time is reversed, sampling is then the scheduler's own loop of steps. The
    scheduler must be a flow matching one, whose sigmas run from exactly 1 to exactly 0, such as
    ``FlowMatchEulerDiscreteScheduler``.

    Args:
        config: a folder with ``scheduler_config.json``, such as a pipeline's ``scheduler/``, or that file.
        sigmas: "scheduler" for the scheduler's own steps before its shift, as the pipelines of Stable Diffusion 3, Wan
            and Sana have them; "linear" for 1 to 1/N in equal steps, as those of FLUX, Qwen-Image and Lumina2 give it.
        tokens: of an image, after packing, where the scheduler shifts by their number (``use_dynamic_shifting``): mu is
            linear in it, from ``base_shift`` at ``base_image_seq_len`` to ``max_shift`` at ``max_image_seq_len``.
        mu: of the dynamic shift itself, in place of ``tokens``.
        content: filled in from the file where a configuration is resolved, so that a run keeps its times.

    Raises:
        ConfigError: where the file is missing or describes no scheduler, or tokens or mu contradict it.
        ValueError: in use, for sigmas that don't run from 1 to 0.

    Reference: Esser et al. (2024), section 5.3.2, arXiv:2403.03206, for the shift.

    Example:
        >>> import gftkit, json, pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "scheduler_config.json"
        >>> _ = file.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}))
        >>> grid = gftkit.load().create("grid", "diffusers-scheduler", config=file, sigmas="linear")
        >>> [round(t, 3) for t in grid.times(4)]
        [0.0, 0.1, 0.25, 0.5, 1.0]
    """

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with the content of the file: a run that is resumed with another one is refused."""
        return {**options, "content": options["content"] or _scheduler_content(options["config"])}

    def __init__(
        self,
        config: Path,
        sigmas: Literal["scheduler", "linear"] = "scheduler",
        tokens: Annotated[int, Field(gt=0)] | None = None,
        mu: float | None = None,
        content: dict[str, Any] | None = None,
    ) -> None:
        self.content = _scheduler_content(config) if content is None else content
        self.sigmas, self.mu = sigmas, mu
        dynamic, name = bool(self.content.get("use_dynamic_shifting")), self.content["_class_name"]
        if dynamic != ((tokens is None) == (mu is not None)) or (not dynamic and (tokens, mu) != (None, None)):
            wanted = "either tokens or mu" if dynamic else "neither tokens nor mu"
            raise ConfigError(
                f"grid.tokens: {config} describes {'a dynamic' if dynamic else 'no dynamic'} shift, which takes "
                f"{wanted}; got tokens: {tokens}, mu: {mu}. Change them."
            )
        if tokens is not None:
            at = {
                key: float(self.content.get(key, default))
                for key, default in {
                    "base_image_seq_len": 256,
                    "max_image_seq_len": 4096,
                    "base_shift": 0.5,
                    "max_shift": 1.15,
                }.items()
            }
            share = (tokens - at["base_image_seq_len"]) / (at["max_image_seq_len"] - at["base_image_seq_len"])
            self.mu = at["base_shift"] + share * (at["max_shift"] - at["base_shift"])
        self.scheduler = _scheduler(name, self.content)

    def times(self, steps: int) -> list[float]:
        """``steps`` + 1 times from 0 to 1."""
        own = {"num_inference_steps": steps} if self.sigmas == "scheduler" else {}
        linear = {} if own else {"sigmas": [1 - k / steps for k in range(steps)]}
        self.scheduler.set_timesteps(**own, **linear, **({} if self.mu is None else {"mu": self.mu}))
        times = [1 - float(sigma) for sigma in self.scheduler.sigmas]
        if abs(times[0]) < ROUND_OFF:  # of a shift in float32
            times[0] = 0.0
        if times[0] != 0 or times[-1] != 1:
            raise ValueError(
                f"the sigmas of {self.content['_class_name']} run from {1 - times[0]:g} to {1 - times[-1]:g}; wanted "
                f"1 to 0. Use FlowMatchEulerDiscreteScheduler, or the grid `shifted`."
            )
        return times


def _scheduler_content(config: Path) -> dict[str, Any]:
    """The settings of a scheduler that diffusers has saved."""
    file = config / SCHEDULER_CONFIG if config.is_dir() else config
    content = read_json(file)
    if not isinstance(content, dict) or "_class_name" not in content:
        raise ConfigError(f"grid.config: {file} describes no scheduler of diffusers: it has no _class_name.")
    return content


def _scheduler(name: str, content: Mapping[str, Any]) -> Any:
    """The scheduler, by diffusers' own class."""
    import diffusers

    factory = getattr(diffusers, name, None)
    if factory is None or not issubclass(factory, diffusers.SchedulerMixin):
        raise ConfigError(f"grid.config: diffusers {diffusers.__version__} has no scheduler {name}.")
    scheduler = factory.from_config(dict(content))
    if not hasattr(scheduler, "sigmas"):
        raise ConfigError(
            f"grid.config: {name} has no sigmas, so it isn't of flow matching. Use FlowMatchEulerDiscreteScheduler."
        )
    return scheduler


@gftkit.hookimpl
def gftkit_grids() -> dict[str, type]:
    """The built-in time grids."""
    return {
        "cosine": Cosine,
        "diffusers-scheduler": DiffusersScheduler,
        "explicit": Explicit,
        "fitted": Fitted,
        "shifted": Shifted,
        "uniform": Uniform,
    }
