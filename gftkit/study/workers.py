"""Processes that run a study's cells, several at once."""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from gftkit.study.worker import Job

SECONDS = 10.0
"""Time that a terminated process has to end."""


def default_workers() -> int:
    """The number of workers: one for each GPU, or for each processor core, 8 at most, where there is none."""
    return len(gpus()) or min(8, cores())


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch  # noqa: PLC0415

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    indices = [str(index) for index in range(torch.cuda.device_count())]
    return indices if named is None else named.split(",")[: len(indices)]


def environment(worker: int, workers: int, device: str) -> dict[str, str]:
    """The environment of one of several workers: its GPU, and its share of the processor's threads."""
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // workers))}
    variables = {**threads, **os.environ}  # the user's own OMP_NUM_THREADS wins
    devices = [] if device == "cpu" else gpus()
    return {**variables, "CUDA_VISIBLE_DEVICES": devices[worker % len(devices)]} if devices else variables


class Worker:
    """A process that runs jobs, one at a time.

    Args:
        log: the file of its output.
        environment: of the process.
    """

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        self.job: Job | None = None
        with log.open("a", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gftkit.study.worker", str(log)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                text=True,
                start_new_session=True,  # an interrupt reaches the study, which ends its workers
            )
        self._log = log

    @property
    def answers(self) -> IO[str]:
        """The stream of its answers."""
        assert self._process.stdout is not None
        return self._process.stdout

    def begin(self, job: Job) -> None:
        """Give it a job."""
        assert self._process.stdin is not None
        self.job = job
        with suppress(BrokenPipeError):  # it died: ``answer`` reports that
            self._process.stdin.write(job.line() + "\n")
            self._process.stdin.flush()

    def answer(self) -> tuple[str, bool]:
        """The error of its job, or "", and whether the process is alive."""
        line = self.answers.readline()
        if line:
            return str(json.loads(line)), True
        code = self._process.wait()
        killed = code == -signal.SIGKILL
        reason = (
            "it was killed, perhaps because the memory ran out: try fewer --workers" if killed else f"see {self._log}"
        )
        return f"its process ended with code {code} ({reason}).", False

    def end(self) -> None:
        """End the process, by force if it doesn't end by itself."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if self.job is not None:
            self._process.terminate()
        try:
            self._process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.answers.close()


def run_all(jobs: Sequence[Job], workers: int, logs: Path, device: str) -> Iterator[tuple[Job, str]]:
    """Run jobs, several at once, each in the next free process.

    Args:
        jobs: in the order in which they are begun.
        workers: number of processes.
        logs: the folder of their logs.
        device: "auto", "cpu" or "cuda"; GPUs are assigned in turn.

    Yields:
        Each job when it has ended, with its error, or "".
    """
    waiting = list(reversed(jobs))
    running: dict[int, Worker] = {}
    with selectors.DefaultSelector() as selector:

        def start(index: int) -> None:
            running[index] = Worker(logs / f"worker-{index}.txt", environment(index, workers, device))
            selector.register(running[index].answers, selectors.EVENT_READ, index)
            running[index].begin(waiting.pop())

        try:
            for index in range(min(workers, len(jobs))):
                start(index)
            while running:
                for key, _ in selector.select():
                    worker = running[key.data]
                    job, worker.job = worker.job, None
                    assert job is not None
                    error, alive = worker.answer()
                    if alive and waiting:
                        worker.begin(waiting.pop())
                    else:
                        # A process that died takes its job with it; the others get a new process.
                        selector.unregister(worker.answers)
                        worker.end()
                        del running[key.data]
                        if waiting:
                            start(key.data)
                    yield job, error
        finally:
            for worker in running.values():
                worker.end()
