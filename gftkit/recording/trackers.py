"""Trackers of experiments: what a run logs goes to TensorBoard, Weights & Biases or MLflow too.

The tracker classes of accelerate do the writing. They are called one by one here, not by ``Accelerator.log``, so that
one that fails takes no other with it.
"""

import io
import json
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from gftkit.kernel.errors import ConfigError, RunError
from gftkit.storage.documents import read_json, write_json
from gftkit.storage.log import is_last_line

MEMORY = "trackers.json"
"""In a run folder: by what its trackers know the run, so that a resumed run goes on there."""

Memory = dict[str, str]


@dataclass(frozen=True)
class Sink:
    """A tracker at work.

    Attributes:
        tracker: of accelerate, started.
        picture: logs a picture, (height, width, 3) of uint8, by its name and step.
        last: the last step of a named value that the tracker has from before the resume; -1 for none.
    """

    tracker: Any
    picture: Callable[[str, np.ndarray, int], Any]
    last: Callable[[str], int] = lambda _: -1


@dataclass(frozen=True)
class Tracker(ABC):
    """The options of one tracker, and what is particular to it."""

    package: ClassVar[str]
    install: ClassVar[str]

    def place(self, out: Path) -> Path | None:  # noqa: ARG002
        """The folder that is filled with events of the run in ``out`` and nothing else, if there is one."""
        return None

    @abstractmethod
    def open(self, out: Path, until: int, memory: Memory) -> Sink:
        """Start.

        Args:
            out: the run folder.
            until: what was logged after this step will be logged again.
            memory: what was kept of this tracker; what a resumed run needs is put there.
        """


@dataclass(frozen=True)
class TensorBoard(Tracker):
    """Event files for TensorBoard.

    Args:
        folder: where several runs are collected, each in a folder named like its own; null for RUN/tensorboard.
    """

    folder: Path | None = None

    package = "tensorboard"
    install = "'gftkit[tensorboard]'"

    def place(self, out: Path) -> Path:
        """The folder of the event files."""
        return out / "tensorboard" if self.folder is None else Path(self.folder) / out.resolve().name

    def open(self, out: Path, until: int, memory: Memory) -> Sink:  # noqa: ARG002
        """Start; ``purge_step`` makes readers drop what was logged after ``until``."""
        from accelerate.tracking import TensorBoardTracker

        place = self.place(out)
        tracker = TensorBoardTracker(place.name, place.parent, purge_step=until + 1)
        tracker.start()

        def picture(name: str, image: np.ndarray, step: int) -> None:
            tracker.log_images({name: image[None]}, step=step, dataformats="NHWC")
            tracker.tracker.flush()  # accelerate does it for numbers only

        return Sink(tracker, picture)


@dataclass(frozen=True)
class WandB(Tracker):
    """Weights & Biases.

    Args:
        project: where the run is shown.
        entity: a user or team; null for your own default.
        run: the run's name; null for that of its folder.
        group: of runs that belong together; null for none.
        tags: labels of the run.
        mode: "offline" keeps everything in RUN/wandb, for `wandb sync`; null for what WANDB_MODE says, or "online".
    """

    project: str = "gftkit"
    entity: str | None = None
    run: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: Literal["online", "offline"] | None = None

    package = "wandb"
    install = "wandb"

    def open(self, out: Path, until: int, memory: Memory) -> Sink:  # noqa: ARG002
        """Start; W&B takes no step twice, so a resumed run leaves out by itself what is there."""
        from accelerate.tracking import WandBTracker

        tracker = WandBTracker(
            self.project,
            id=memory.setdefault("id", uuid.uuid4().hex),
            resume="allow",
            name=self.run or out.resolve().name,
            entity=self.entity,
            group=self.group,
            tags=list(self.tags),
            mode=self.mode,
            dir=str(out),
        )
        tracker.start()
        return Sink(tracker, lambda name, image, step: tracker.log_images({name: [image]}, step=step))


@dataclass(frozen=True)
class MLflow(Tracker):
    """MLflow.

    Args:
        experiment: where the run is shown.
        run: the run's name; null for that of its folder.
        uri: the tracking server or store; null for what MLFLOW_TRACKING_URI says, or MLflow's own default.
    """

    experiment: str = "gftkit"
    run: str | None = None
    uri: str | None = None

    package = "mlflow"
    install = "mlflow"

    def open(self, out: Path, until: int, memory: Memory) -> Sink:  # noqa: ARG002
        """Start; MLflow would keep a value that is logged twice twice, so it is asked for the steps that it has."""
        import mlflow
        from accelerate.tracking import MLflowTracker

        if self.uri is not None:
            mlflow.set_tracking_uri(self.uri)
        known = memory.get("run_id")
        tracker = MLflowTracker(self.experiment, run_id=known, run_name=self.run or out.resolve().name)
        tracker.start()
        memory["run_id"] = tracker.tracker.info.run_id

        def picture(name: str, image: np.ndarray, step: int) -> None:
            mlflow.log_image(image, artifact_file=f"{name}/step-{step:09d}.png")

        @cache
        def last(name: str) -> int:
            history = [] if known is None else mlflow.MlflowClient().get_metric_history(known, name)
            return max((point.step for point in history), default=-1)

        return Sink(tracker, picture, last)


TRACKERS: Mapping[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
"""By the names that a config gives them."""


class Trackers:
    """The trackers of a run. A failure of one is told once, and the run goes on without it.

    Args:
        options: of each tracker, by its name.
        out: the run folder.
        resumed: whether the folder holds the run already.
        main: whether this is the process that logs; the others have no trackers.
        warn: called with what failed.

    Raises:
        ConfigError: for a tracker whose package isn't installed.
        RunError: for a folder of events that is there already.
    """

    def __init__(
        self, options: Mapping[str, Tracker], out: Path, *, resumed: bool, main: bool, warn: Callable[[str], None]
    ) -> None:
        for name, tracker in options.items():
            if find_spec(tracker.package) is None:
                raise ConfigError(
                    f"track: '{name}' requires the package {tracker.package}, which isn't installed. Install it: pip "
                    f"install {tracker.install}; or leave '{name}' out of `track`."
                )
        self._options, self._out, self._warn = options if main else {}, out, warn
        self._memory: dict[str, Memory] = read_json(out / MEMORY) if resumed and (out / MEMORY).is_file() else {}
        for name, tracker in self._options.items():
            place = tracker.place(out)
            if place is not None and name not in self._memory and place.exists():
                raise RunError(
                    f"track: {place} exists, and the events of two runs would mix in it. Delete it, or choose another "
                    f"--out or another folder for '{name}'."
                )
        self._sinks: dict[str, Sink] = {}
        self._postponed: list[Callable[[Sink], None]] = []
        self._steps = 0

    def __bool__(self) -> bool:
        return bool(self._options)

    def start(self, until: int, config: Mapping[str, Any]) -> None:
        """Begin; ``config`` becomes the run's hyperparameters, and what was logged after step ``until`` comes again."""
        self._steps = int(config["train"]["steps"])
        for name, options in self._options.items():
            new = name not in self._memory
            memory = self._memory.setdefault(name, {})
            # Before the tracker opens, too: a run that dies meanwhile then knows that the folder of events is its own.
            write_json(self._out / MEMORY, self._memory)
            try:
                self._sinks[name] = options.open(self._out, until, memory)
            except Exception as error:
                self._warn(_failure(name, error))
            else:
                write_json(self._out / MEMORY, self._memory)
                if new:
                    self._each(lambda sink: sink.tracker.store_init_configuration(hyperparameters(config)), name)

    def ends(self, step: int) -> None:
        """The run ends after this step: what is then logged of averaged weights is its end."""
        self._steps = step

    def add(self, line: Mapping[str, Any]) -> None:
        """Log the numbers of a line of metrics.jsonl."""
        values, step = scalars(line), int(line["step"])

        def log(sink: Sink) -> None:
            news = {name: value for name, value in values.items() if step > sink.last(name)}
            if news:
                sink.tracker.log(news, step=step)

        self._log(log, last=is_last_line(line, self._steps))

    def picture(self, step: int, weights: str, png: bytes) -> None:
        """Log a picture of samples."""
        from PIL import Image

        image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        name = "/".join([_evaluation(weights), "samples"])
        self._log(
            lambda sink: sink.picture(name, image, step),
            last=is_last_line({"step": step, "weights": weights}, self._steps),
        )

    def _log(self, log: Callable[[Sink], None], *, last: bool) -> None:
        if last:
            self._postponed.append(log)
        else:
            self._each(log)

    def release(self) -> None:
        """Log what was measured at the run's end: held back until the run is finished, since a resume repeats it."""
        for log in self._postponed:
            self._each(log)
        self._postponed = []

    def close(self) -> None:
        """End, whether or not the run is finished."""
        self._each(lambda sink: sink.tracker.finish())
        self._sinks = {}

    def _each(self, do: Callable[[Sink], None], *names: str) -> None:
        for name in names or list(self._sinks):
            try:
                do(self._sinks[name])
            except Exception as error:  # a library, or its server: no reason to lose a run
                del self._sinks[name]
                self._warn(_failure(name, error))


def _failure(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    return (
        f"track: '{name}' failed and is not used any more ({type(error).__name__}: {reason}). The run continues; "
        f"metrics.jsonl has every number."
    )


def _evaluation(weights: str) -> str:
    return "evaluation" if weights == "raw" else f"evaluation/{weights}"


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl by stable names; what isn't a finite number is left out.

    Example:
        >>> scalars({"kind": "train", "step": 10, "loss": 0.5})
        {'train/loss': 0.5}
        >>> scalars({"kind": "evaluation", "step": 10, "weights": "raw", "energy": 0.1, "energy_stderr": None})
        {'evaluation/energy': 0.1}
        >>> scalars({"kind": "monitor", "step": 10, "monitor": "theory", "gap": {"early": 2.0}})
        {'monitor/theory/gap/early': 2.0}
    """
    prefix = str(line["kind"])
    if prefix == "evaluation":
        prefix = _evaluation(line["weights"])
    elif prefix == "monitor":
        prefix = f"monitor/{line['monitor']}"
    values = {key: value for key, value in line.items() if key not in ("step", "kind", "weights", "monitor")}
    return {
        re.sub(r"[^\w/. -]", "_", name): value  # what every tracker takes
        for name, value in flatten(values, prefix, "/").items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as a flat mapping; what trackers don't take becomes JSON.

    Example:
        >>> hyperparameters({"seed": 1, "train": {"clip": None, "steps": 5}, "monitors": ["theory"]})
        {'seed': 1, 'train.clip': 'null', 'train.steps': 5, 'monitors': '["theory"]'}
    """
    return {
        name: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
        for name, value in flatten(config, "", ".").items()
    }


def flatten(values: Mapping[str, Any], prefix: str, separator: str) -> dict[str, Any]:
    """A mapping of mappings as one, keys joined."""
    joined: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{separator}{key}" if prefix else key
        joined |= flatten(value, name, separator) if isinstance(value, Mapping) else {name: value}
    return joined
