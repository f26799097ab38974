"""Samples of a run into a file or folder: any number, in parts, by one process or many, resumable."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gftkit.generation.formats import check_target, write_samples
from gftkit.generation.parts import Parts
from gftkit.generation.sampler import Request, Sampler
from gftkit.kernel.errors import DivergenceError, RunError
from gftkit.runs.folder import RunFolder
from gftkit.runtime.devices import Crew, emulates_half, launch_warnings, start_crew
from gftkit.runtime.progress import SamplingProgress


@dataclass(frozen=True)
class Made:
    """What was written.

    Attributes:
        count: samples.
        evaluations: drift evaluations for each, on average.
        main: whether this process is the one that answers.
    """

    count: int
    evaluations: float
    main: bool


def write(
    run: RunFolder,
    request: Request,
    out: Path,
    trajectory: Path | None = None,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
    quiet: bool = True,
) -> Made:
    """Sample a run into ``out``, part by part.

    Started by torchrun or accelerate launch, each process makes whole blocks of 64 and the main one writes; ``out``
    must be on a file system that all of them share. A sample depends on the seed and its index only.

    Args:
        run: a finished run.
        request: what is to be sampled.
        out: .npz, .safetensors, .png, or a folder for a PNG each.
        trajectory: an animated picture of the first samples' states to write too: .gif, .png or .webp.
        device: "auto", "cpu" or "cuda".
        resume: go on with the parts that an earlier call left.
        force: overwrite, and leave such parts behind.
        quiet: show no progress bar.

    Raises:
        GftkitError: for any bad input, before anything is sampled.
        DivergenceError: where a sample is not finite.
    """
    crew = start_crew(device)
    progress = SamplingProgress(quiet or not crew.main)
    sampler = Sampler(run, request, crew.device)
    parts = Parts(out, sampler.identity)
    begun = resume and parts.writing
    check_target(out, sampler.facts.event_shape, force or begun)
    if trajectory is not None:
        from gftkit.generation.animation import check_animation

        check_animation(trajectory, sampler.facts.event_shape, force or begun)
    going_on = bool(parts) and (resume or not force)
    if going_on and not resume:
        raise RunError(
            f"{parts.folder} holds parts of an end that never came. Go on with them by --resume, or start anew with "
            f"--force."
        )
    if going_on:
        parts.check()
    crew.agree({"the samples that are asked for": sampler.identity, "the parts that are there": parts.spans()})
    if crew.main:
        for warning in (*_warnings(crew, request), *sampler.warnings(), *(parts.mend() if going_on else ())):
            progress.warn(warning)
        if resume and not going_on:
            progress.say(f"{parts.folder} holds no parts to go on with: starting with the first sample.")
        if not going_on:
            parts.begin()
    crew.wait()
    todo = parts.missing(sampler.count, sampler.size, crew.count)
    crew.wait()  # nobody writes before all have seen the same
    mine = todo[crew.index :: crew.count]
    try:
        with progress:
            done = 0 if crew.count > 1 else sampler.count - sum(count for _, count in mine)
            progress.start(done + sum(count for _, count in mine), done)
            for first, count in mine:
                _make(sampler, parts, first, count, progress)
    except BaseException as error:
        if crew.count == 1 and (isinstance(error, DivergenceError) or not parts):
            parts.remove()  # to go on would end in the same, or begin with the first sample
        raise
    crew.wait()
    evaluations = _finish(sampler, parts, out, trajectory) if crew.main else 0.0
    crew.wait()
    return Made(sampler.count, evaluations, crew.main)


def _make(sampler: Sampler, parts: Parts, first: int, count: int, progress: SamplingProgress) -> None:
    before, integrated = sampler.evaluated, sampler.integrated
    samples = sampler.part(first, count, lambda done: progress.advance(min(done, count), sampler.evaluations))
    parts.write(first, samples, (sampler.evaluated - before) / (sampler.integrated - integrated))


def _finish(sampler: Sampler, parts: Parts, out: Path, trajectory: Path | None) -> float:
    """Put the parts together and delete them; drift evaluations for each sample."""
    lacking = sum(count for _, count in parts.missing(sampler.count, sampler.size))
    if lacking:
        raise RunError(
            f"{parts.folder}: {lacking} of {sampler.count} samples are missing, though all were made. Give the "
            f"processes a file system that they share."
        )
    notes = parts.notes()
    parts.begin_writing()
    given: Mapping[str, Any] = {} if out.suffix in ("", ".png") else sampler.conditions(0, sampler.count)
    span = sampler.facts.range or (min(each["low"] for _, each in notes), max(each["high"] for _, each in notes))
    write_samples(out, parts.read(), (sampler.count, *sampler.facts.event_shape), given, span)
    if trajectory is not None:
        from gftkit.generation.animation import shown, write_animation

        states = sampler.states(shown(sampler.facts.event_shape))
        write_animation(trajectory, states, sampler.facts.range)
    parts.remove()
    return sum(count * each["evaluations"] for count, each in notes) / sampler.count


def _warnings(crew: Crew, request: Request) -> list[str]:
    """What a user should know of the processes, and of their devices."""
    found = [] if crew.accelerator is None else launch_warnings(crew.accelerator, "float32")
    if request.precision != "float32" and emulates_half(crew.device):
        found.append(
            f"--precision: this CPU (AVX2) has no instructions for {request.precision}: it takes longer than float32."
        )
    return found
