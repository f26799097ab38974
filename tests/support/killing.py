"""Runs in processes that are killed without warning: from outside at any time, or by their own hand at a moment."""

import multiprocessing
import os
import random
import signal
import time
from importlib.metadata import entry_points
from pathlib import Path

import torch

CONTEXT = multiprocessing.get_context("forkserver")
"""Children are forked from a process that has everything imported, and no thread."""
PRELOADED = ["gftkit.api", "accelerate", "scipy.optimize", "torch._dynamo", "PIL.PngImagePlugin", "sympy"]


def start(config, out, resume=False, moment=None):
    """Begin a run in a process of its own; ``moment`` is a pair of ``MOMENTS`` and how often it has come by then."""
    preload()
    process = CONTEXT.Process(target=train, args=(config, out, resume, moment))
    process.start()
    return process


def preload():
    """Have the process that children are forked from import everything, if it isn't there yet."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    CONTEXT.set_forkserver_preload(PRELOADED + [point.value for point in entry_points(group="gftkit")])


def finish(process, code=0, seconds=120):
    """Wait for the process; it must end with this code."""
    process.join(seconds)
    ended = process.exitcode
    process.kill()
    assert ended == code, f"the process ended with {ended}, not {code}"


def kill_after(process, seconds):
    """Kill it by SIGKILL after some time; whether it was still at work."""
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def train(config, out, resume, moment):
    """What the process does."""
    from gftkit.training.train import train

    torch.set_num_threads(1)
    if moment is not None:
        name, count = moment
        MOMENTS[name](Countdown(count))
    train("finetune" if "pretrained" in config else "pretrain", config, out, device="cpu", resume=resume)


class Countdown:
    """Kills its process when it has been called often enough."""

    def __init__(self, count):
        self.left = count

    def __call__(self):
        self.left -= 1
        return self.left == 0

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)


def at_a_step(now):
    from gftkit.training.steps import Steps

    take = Steps.take

    def stepped(self, number):
        result = take(self, number)
        if now():
            now.die()
        return result

    Steps.take = stepped


def around(owner, name, now, of_interest, before=lambda *_: None):
    """Die in a function: at its end, or after ``before`` in its stead."""
    real = getattr(owner, name)

    def dying(*arguments, **options):
        last = of_interest(*arguments) and now()
        if last and before(*arguments, **options):
            now.die()
        result = real(*arguments, **options)
        if last:
            now.die()
        return result

    setattr(owner, name, dying)


def in_checkpoints(*arguments):
    return any("step-" in str(argument) for argument in arguments)


def within_a_write(now, of="step-"):
    """Half of the file is there."""
    from gftkit.storage import tensors as files

    save = files.save_file

    def half(tensors, path, metadata=None):
        save(tensors, path, metadata=metadata)
        os.truncate(path, os.path.getsize(path) // 2)
        return True

    around(files, "save_file", now, lambda tensors, path: of in str(path), half)


def before_the_move(now):
    """The temporary file is whole, and hasn't its name yet."""
    around(os, "replace", now, in_checkpoints, lambda *_: True)


def after_the_move(now):
    """The new checkpoint is there, and the old ones are too."""
    around(os, "replace", now, in_checkpoints)


def in_a_line(now):
    """Half a line of the log is on the disk."""
    from gftkit.storage.log import Log

    def half(log, *_, **__):
        log._file.write('{"step": 7, "ki')
        log._file.flush()
        return True

    around(Log, "add", now, lambda *_: True, half)


def before_the_model(now):
    """All is done but model.safetensors."""
    from gftkit.training import loop

    around(loop, "write_model", now, lambda *_: True, lambda *_: True)


MOMENTS = {
    call.__name__.replace("_", "-"): call
    for call in (at_a_step, within_a_write, before_the_move, after_the_move, in_a_line, before_the_model)
}


def is_writing(folder: Path) -> bool:
    """Whether a checkpoint is being written just now."""
    return any(".part" in name for name in os.listdir(folder)) if folder.is_dir() else False


def kill_while_writing(process, folder: Path, skip: int) -> bool:
    """Kill it as soon as a checkpoint is being written, after ``skip`` others; whether it came to that."""
    seen = False
    while process.is_alive():
        writing = is_writing(folder)
        if writing and not seen:
            skip -= 1
            if skip < 0:
                return kill_after(process, 0)
        seen = writing
        time.sleep(0)
    process.join()
    return False


def seconds_of(process) -> float:
    """How long it takes, undisturbed."""
    began = time.perf_counter()
    finish(process)
    return time.perf_counter() - began


def moments(seed: int, longest: float):
    """Times to wait, without end."""
    numbers = random.Random(seed)
    while True:
        yield numbers.uniform(0, longest)
