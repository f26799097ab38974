"""A cell of a study, in this process or in a worker's: ``python -m gftkit.study.worker``."""

import contextlib
import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gftkit.kernel.registry import Registry


@dataclass(frozen=True)
class Job:
    """A run to start or continue, or to measure.

    Attributes:
        kind: "finetune" or "pretrain"; "blend" for one that is only measured, blended with its anchor.
        config: its resolved configuration, as plain values; of a blend, {run: FOLDER, retention: ...}.
        out: its folder, new, unfinished or finished; of a blend, the folder of the measurements.
        device: "auto", "cpu" or "cuda".
    """

    kind: Literal["finetune", "pretrain", "blend"]
    config: dict[str, Any]
    out: str
    device: str

    def run(self, log: Path, registry: Registry | None = None) -> str:
        """Train it to its end, or measure it, with its output in a log; returns its error, or ""."""
        from gftkit.api import Run  # noqa: PLC0415
        from gftkit.kernel.errors import GftkitError  # noqa: PLC0415
        from gftkit.runs.folder import is_run  # noqa: PLC0415
        from gftkit.runtime.environment import resolve_device  # noqa: PLC0415
        from gftkit.study.rows import measure_blend  # noqa: PLC0415
        from gftkit.training.train import train  # noqa: PLC0415

        out = Path(self.out)
        with log.open("a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
            print(f"{out}:", file=sys.stderr)
            try:
                if self.kind == "blend":
                    run = Run.open(self.config["run"], registry)
                    measure_blend(run, self.config["retention"], out, resolve_device(self.device))
                else:
                    train(self.kind, self.config, out, registry, device=self.device, resume=is_run(out))
            except GftkitError as error:
                print(error, file=sys.stderr)
                return str(error)
            except Exception as error:
                traceback.print_exc()
                return f"{type(error).__name__}: {error} (the traceback is in {log})"
        return ""

    def line(self) -> str:
        """The job as a line of text."""
        return json.dumps(asdict(self))


def main() -> None:
    """Run the jobs of stdin, one JSON object a line, and answer each with one line; the log is named as argument."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library may print: stdout carries answers only
    for line in sys.stdin:
        answers.write(json.dumps(Job(**json.loads(line)).run(Path(sys.argv[1]))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
