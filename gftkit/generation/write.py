"""Samples of a run into a file or folder: any number, in parts, by one process or many, resumable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gftkit.generation.animation import check_animation, most_samples, write_animation
from gftkit.generation.formats import check_target, write_samples
from gftkit.generation.parts import Parts, Span
from gftkit.generation.sampler import Request, RunSampler
from gftkit.kernel.errors import DivergenceError, RunError
from gftkit.runs.folder import RunFolder
from gftkit.runtime.devices import Crew, emulates_half, launch_warnings, start_crew
from gftkit.runtime.progress import SamplingProgress


@dataclass(frozen=True)
class Written:
    """The outcome of ``write``.

    Attributes:
        count: number of samples.
        evaluations: drift evaluations for each, on average.
        main: whether this is the main process, which reports.
    """

    count: int
    evaluations: float
    main: bool


def write(
    run: RunFolder,
    request: Request,
    out: Path,
    *,
    trajectory: Path | None = None,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
    quiet: bool = True,
) -> Written:
    """Sample a run into ``out``, part by part.

    Started by torchrun or accelerate launch, each process makes whole blocks of 64 and the main one writes; ``out``
    must be on a file system that all of them share. A sample depends on the seed and its index only.

    Args:
        run: a finished run.
        request: the samples.
        out: .npz, .safetensors, .png, or a folder for one PNG each.
        trajectory: file for an animation of the first samples' states too: .gif, .png or .webp.
        device: "auto", "cpu" or "cuda".
        resume: continue the parts of an interrupted call.
        force: overwrite the target, and drop such parts.
        quiet: show no progress bar.

    Raises:
        GftkitError: for any bad input, before anything is sampled.
        DivergenceError: where a sample is not finite.
    """
    crew = start_crew(device)
    progress = SamplingProgress(quiet=quiet or not crew.main)
    sampler = RunSampler(run, request, crew.device)
    parts = Parts(out, sampler.identity)
    # A call that was killed while it wrote the target left part of it, which a resumed call overwrites.
    overwrite = force or (resume and parts.writing)
    check_target(out, sampler.facts.event_shape, force=overwrite)
    if trajectory is not None:
        check_animation(trajectory, sampler.facts.event_shape, force=overwrite)
    resuming = _check_parts(parts, resume=resume, force=force)
    crew.agree({"the requested samples": sampler.identity, "the parts that exist": parts.spans()})
    if crew.main:
        for warning in (*_warnings(crew, request), *sampler.warnings(), *(parts.mend() if resuming else ())):
            progress.warn(warning)
        if resume and not resuming:
            progress.say(f"{parts.folder} contains no parts to continue: starting with the first sample.")
        if not resuming:
            parts.begin()
    crew.wait()
    missing = parts.missing(sampler.count, sampler.size, crew.count)
    crew.wait()  # nobody writes a part before all have listed the same missing ones
    _make_parts(sampler, parts, missing[crew.index :: crew.count], crew, progress)
    crew.wait()
    evaluations = _finish(sampler, parts, out, trajectory) if crew.main else 0.0
    crew.wait()
    return Written(sampler.count, evaluations, crew.main)


def _check_parts(parts: Parts, *, resume: bool, force: bool) -> bool:
    """Decide whether existing parts are continued; refuse those that the user mentions neither way.

    Raises:
        RunError: for parts without ``resume`` or ``force``, and for parts of other samples.
    """
    if not parts or (force and not resume):
        return False
    if not resume:
        raise RunError(
            f"{parts.folder} contains partial output of an interrupted run. Continue it with --resume, or start again "
            f"with --force."
        )
    parts.check()
    return True


def _make_parts(
    sampler: RunSampler, parts: Parts, spans: Sequence[Span], crew: Crew, progress: SamplingProgress
) -> None:
    """Make this process's parts; where that fails for good, those of a single process are removed."""
    total = sum(count for _, count in spans)
    done = 0 if crew.count > 1 else sampler.count - total
    try:
        with progress:
            progress.start(done + total, done)
            for first, count in spans:
                _make_part(sampler, parts, first, count, progress)
    except BaseException as error:
        # Resumed, a divergence would diverge again, and without a part there is nothing to resume.
        if crew.count == 1 and (isinstance(error, DivergenceError) or not parts):
            parts.remove()
        raise


def _make_part(sampler: RunSampler, parts: Parts, first: int, count: int, progress: SamplingProgress) -> None:
    before, integrated = sampler.evaluated, sampler.integrated
    samples = sampler.part(first, count, lambda done: progress.advance(min(done, count), sampler.evaluations))
    parts.write(first, samples, (sampler.evaluated - before) / (sampler.integrated - integrated))


def _finish(sampler: RunSampler, parts: Parts, out: Path, trajectory: Path | None) -> float:
    """Join the parts into the target and delete them; drift evaluations for each sample."""
    lacking = sum(count for _, count in parts.missing(sampler.count, sampler.size))
    if lacking:
        raise RunError(
            f"{parts.folder}: {lacking} of {sampler.count} samples are missing, although every process has finished. "
            f"Use a file system that all of them share."
        )
    notes = parts.notes()
    # Marked first: killed from here on, a resumed call knows that it may overwrite the target.
    parts.begin_writing()
    conditions: Mapping[str, Any] = {} if out.suffix in ("", ".png") else sampler.conditions(0, sampler.count)
    span = sampler.facts.range or (min(each["low"] for _, each in notes), max(each["high"] for _, each in notes))
    write_samples(out, parts.read(), (sampler.count, *sampler.facts.event_shape), conditions, span)
    if trajectory is not None:
        states = sampler.states(most_samples(sampler.facts.event_shape))
        write_animation(trajectory, states, sampler.facts.range)
    parts.remove()
    return sum(count * each["evaluations"] for count, each in notes) / sampler.count


def _warnings(crew: Crew, request: Request) -> list[str]:
    """Warnings of the processes and their devices."""
    warnings = [] if crew.accelerator is None else launch_warnings(crew.accelerator, "float32")
    if request.precision != "float32" and emulates_half(crew.device):
        warnings.append(
            f"--precision: this CPU (AVX2) has no instructions for {request.precision}: it takes longer than float32."
        )
    return warnings
