"""The training loop: from the start, or the last checkpoint, to the end, with its evaluations, logs and checkpoints.

Everything random is a function of (seed, purpose, step): a resumed run repeats an undisturbed one bit for bit, and a
checkpoint needs to keep the step only.
"""

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gftkit.data.prefetch import prefetch
from gftkit.experiment.build import Experiment
from gftkit.experiment.probes import check_written
from gftkit.experiment.transport import prepare_transport
from gftkit.kernel.errors import ConfigError, DivergenceError
from gftkit.kernel.options import plain
from gftkit.kernel.registry import Registry
from gftkit.networks.adapters import AdaptedDrift
from gftkit.networks.anchor import short_hash
from gftkit.recording.trackers import Trackers
from gftkit.runs import checkpoint
from gftkit.runs.folder import ADAPTER, CHECKPOINTS, CLOCK, LOG, SUMMARY, RunFolder, is_run, write_config, write_model
from gftkit.runs.provenance import describe_environment
from gftkit.runs.resolve import tracker_options
from gftkit.runtime import devices
from gftkit.runtime.extras import missing
from gftkit.runtime.progress import Progress
from gftkit.storage.documents import write_json
from gftkit.storage.files import check_space, remove_leftovers
from gftkit.storage.log import Log
from gftkit.storage.tensors import State
from gftkit.training.descent import checkpoint_contents, restore_checkpoint
from gftkit.training.distillation import Distillation
from gftkit.training.evaluator import Evaluator, LogLine
from gftkit.training.feedback import Feedback, by_monitor
from gftkit.training.resume import ResumeGuard
from gftkit.training.run_report import left_out, write_run_report
from gftkit.training.steps import Steps, trained_weights


class Loop:
    """One run: from its start, or its last checkpoint, to its end.

    Args:
        experiment: everything the configuration names.
        registry: components; environment.json names their plugins.
        out: the run folder.
        accelerator: of the accelerate library.
        progress: the bar.

    Raises:
        GftkitError: for options that this network or these processes don't support.
    """

    def __init__(
        self, experiment: Experiment, registry: Registry, out: Path, accelerator: Any, progress: Progress
    ) -> None:
        self.experiment, self.config, self.registry = experiment, experiment.config, registry
        self.out, self.progress = out, progress
        self.accelerator, self.main = accelerator, accelerator.is_main_process
        if experiment.networks.adapted is not None and devices.is_sharded(accelerator):
            raise ConfigError(
                "adapters: require whole weights on every device, and FSDP shards them. Start the processes without "
                "FSDP: with adapters the optimiser's state is small."
            )
        tracked = {spec["name"]: tracker_options(spec, "track") for spec in self.config.track}
        self.trackers = Trackers(tracked, out, resumed=is_run(out), main=self.main, warn=progress.warn)
        # Steps shard the drift in place, and metrics call whole networks: these are copies of one from before.
        sharded = devices.is_sharded(accelerator)
        template = copy.deepcopy(experiment.networks.drift) if sharded and self.main else None
        make = Distillation if self.config.kind == "distill" else Steps
        self.steps = make(experiment, accelerator)
        pictures = bool(self.trackers) and not missing("report")
        self.evaluator = Evaluator(experiment, self.steps, accelerator, template=template, pictures=pictures)
        self.anchor = self.steps.anchor
        self.guard = ResumeGuard(experiment, self.anchor)
        name = (self.config.schedule or {}).get("name", "")
        matching = experiment.matching
        self.feedback = Feedback(matching.schedule, matching.stop, name, self.config.train.steps)

    def run(self, warnings: list[str]) -> None:
        """Train from the last checkpoint, or from the start, to the end."""
        newest, damaged = checkpoint.latest(self.out / CHECKPOINTS)
        # Before the first step, where installing costs nothing: a finished run is never written again.
        self._announce([*warnings, *self.experiment.warnings, *damaged, *left_out()])
        first = 0 if newest is None else newest.step
        # Before anything that all processes do together: one that starts elsewhere would leave the others waiting.
        self.guard.check_agreement(self.accelerator, first)
        if self.main:
            self._prepare_folder()
        if newest is not None:
            self.guard.check(newest)
        transport = self.steps.pairs.transport
        if transport is not None:
            expected = None if newest is None else newest.notes["transport"]
            prepare_transport(transport, self.out, self.config, self.accelerator, self.progress, expected)
        if newest is not None:
            restore_checkpoint(newest, self.steps.drift, self.steps.descent)
            self.feedback.restore(newest.notes.get("feedback", {}), newest.path)
        # Every metric and monitor measures once before the folder becomes a run: what they refuse leaves no trace.
        lines = self.evaluator.lines(0, "raw", [], final=True) if newest is None else []
        if newest is None:
            self._hear(0, lines)
        if self.main:
            write_config(self.out, self.config)
        until = -1 if newest is None else first
        # A run that a rule had stopped before it was killed has no step left: only its end is written.
        end = first if self.feedback.done else self.config.train.steps
        # Lines after the checkpoint are dropped: the resumed run writes the same ones again.
        log = Log(self.out / LOG, until, end, self.trackers.add) if self.main else None
        clock = Log(self.out / CLOCK, until, end, lambda _: None) if self.main else None
        seconds = 0.0 if newest is None else float(newest.notes["seconds"])
        self._evaluating = 0.0 if newest is None else float(newest.notes.get("looking", 0.0))
        try:
            self.trackers.start(until, self.config.to_dict())
            self._add(log, 0, lines)
            train, pin = self.config.train, self.accelerator.device.type == "cuda"
            pairs = prefetch(self.steps.pairs, first, train.steps, train.workers, pin=pin)
            with self.progress.running(first), pairs as self.steps.batches:
                self._train(first, time.perf_counter() - seconds, log, clock)
        finally:
            self.trackers.close()
            for each in (log, clock):
                if each is not None:
                    each.close()
        self.accelerator.wait_for_everyone()  # a caller on any process may read the finished run next

    def _announce(self, warnings: Sequence[str]) -> None:
        """Show the user the warnings, the anchor and the adapters."""
        for warning in warnings if self.main else ():
            self.progress.warn(warning)
        if self.anchor is not None:
            what = "Teacher" if self.config.kind == "distill" else "Anchor"
            self.progress.say(f"{what}: {self.anchor.kind}, hash {short_hash(self.anchor.hash)}.")
        if self.experiment.networks.adapted is not None:
            counts = self.experiment.networks.adapted.describe()
            self.progress.say(
                "Adapters: {layers} layers, {trained:,} of {parameters:,} weights are trained.".format(**counts)
            )

    def _prepare_folder(self) -> None:
        """Tidy the run folder, and refuse one without space for the run, before anything is measured."""
        for folder in (self.out, self.out / CHECKPOINTS):
            remove_leftovers(folder)
        whole = sum(tensor.numel() * tensor.element_size() for tensor in self.steps.drift.state_dict().values())
        trained = sum(weight.numel() * weight.element_size() for weight in trained_weights(self.steps.drift))
        # A checkpoint has weights, their averages and the optimiser's two moments. There is one more than are kept:
        # old ones are deleted only after a new one is written.
        check_space(self.out, whole + trained * 4 * (self.config.train.keep_checkpoints + 1) + 10_000_000)
        described = describe_environment(self.registry, self.config, self.accelerator)
        write_json(self.out / "environment.json", described)

    def _train(self, first: int, started: float, log: Log | None, clock: Log | None) -> None:
        """Take the steps from ``first`` on, with logs (of the main process), evaluations and checkpoints."""
        train, every = self.config.train, self.config.evaluate.every
        assert train.checkpoint_every is not None  # filled in where the configuration was resolved
        assert every is not None
        done = first
        while done < train.steps and not self.feedback.done:
            numbers = self.steps.take(done)
            done += 1
            last = done == train.steps
            logged, evaluated, saved = (last or done % n == 0 for n in (train.log_every, every, train.checkpoint_every))
            # Only here does the loop wait for the device: every other step is queued. It precedes every checkpoint, so
            # that none has weights that aren't finite.
            if logged or evaluated or saved:
                self._check_finite()
            if logged:
                numbers["loss"] = self.accelerator.reduce(numbers["loss"], reduction="mean")
                values = {key: float(value) for key, value in numbers.items()}
                self._add(log, done, [("train", values)])
                self.progress.show(values)
            if evaluated:
                self._evaluate(done, last=last, started=started, log=log, clock=clock)
            if saved or self.feedback.done:
                self._save(done, time.perf_counter() - started)
            self.progress.advance()
        self._finish(log, done, time.perf_counter() - started)

    def _evaluate(self, done: int, *, last: bool, started: float, log: Log | None, clock: Log | None) -> None:
        """Evaluate after a step, inform the listeners, and count the time apart from the training's."""
        before = time.perf_counter()
        if clock is not None:
            seconds = {"seconds": before - started, "training": before - started - self._evaluating}
            clock.add("clock", done, {name: round(value, 3) for name, value in seconds.items()})
        lines = self.evaluator.lines(done, "raw", [] if log is None else log.lines)
        self._add(log, done, lines)
        self._hear(done, lines)
        if self.config.evaluate.averaged and not (last or self.feedback.done):  # at the end they are anyway
            self._add(log, done, self.evaluator.lines(done, "ema", [] if log is None else log.lines))
        self._evaluating += time.perf_counter() - before

    def _hear(self, done: int, lines: Sequence[LogLine]) -> None:
        """Pass the measurements of the main process to schedule and stopping rule on every process."""
        if self.feedback.listeners:
            # All must hear the same: temperatures, and the end of the run, are decided on every process.
            measured = devices.broadcast(self.accelerator, by_monitor(lines) if self.main else None)
            self.feedback.hear(done, measured)

    def _check_finite(self) -> None:
        step = self.steps.descent.first_bad(self.accelerator)
        if step is None:
            return
        kept = checkpoint.checkpoints_of(self.out / CHECKPOINTS)
        half = (
            " float16 represents numbers up to 65,504 only: set train.precision to bfloat16, which has float32's range."
            if self.config.train.precision == "float16"
            else ""
        )
        where = f"The last good checkpoint is kept: {kept[-1]}." if kept else "No checkpoint was written before it."
        raise DivergenceError(
            f"the loss or its gradient is not finite at step {step + 1}, temperature "
            f"{self.steps.temperature(step):.4g}. {where}{half} Lower train.learning_rate "
            f"(now {self.config.train.learning_rate:g})"
            + (
                " (the penalty form's curvature grows with 1 + temperature)."
                if self.config.objective.form == "penalty"
                else "."
            )
        )

    def _save(self, done: int, seconds: float) -> None:
        """Write a checkpoint; a collective call, in which the main process writes."""
        tensors, numbers = checkpoint_contents(self.steps.drift, self.steps.descent, keep=self.main)
        if self.main:
            notes = {
                "seconds": seconds,
                "looking": self._evaluating,  # seconds in evaluations
                **self.guard.notes(),
                **self.experiment.facts.to_dict(),
                **numbers,
                "feedback": self.feedback.state(),
            }
            checkpoint.write(self.out / CHECKPOINTS, done, tensors, notes, self.config.train.keep_checkpoints)

    def _add(self, log: Log | None, done: int, lines: Sequence[LogLine]) -> None:
        for kind, values in lines:
            if kind == "picture":
                self.trackers.picture(done, **values)
            elif log is not None:
                log.add(kind, done, values)

    def _finish(self, log: Log | None, steps: int, seconds: float) -> None:
        """Evaluate the averaged weights, and write summary, report and model."""
        self.steps.descent.release()
        self.trackers.ends(steps)
        lines = self.evaluator.lines(steps, "ema", [] if log is None else log.lines, final=True)
        self._add(log, steps, lines)
        _, averaged = self.evaluator.networks()
        if log is None:
            return
        experiment = self.experiment
        summary = self._summary(lines, steps, seconds)
        for _, monitor in experiment.measurement.monitors:
            monitor.finish(self.out)
        write_json(self.out / SUMMARY, summary)
        if not missing("report"):
            write_run_report(self.out, experiment, averaged, self.accelerator.device, log.lines, summary)
        notes = {"drift": plain(self.config.drift), **self.guard.origin()}
        adapted = experiment.networks.adapted
        if adapted is None:
            weights = averaged.state_dict()
        else:
            means = self.steps.descent.averages.tensors()
            written = adapted.save(self.out / ADAPTER, means)
            weights, notes = self._whole_or_adapters(adapted, means, written, notes)
        # Last: a run with this file counts as finished. Killed before, it is resumed from its checkpoint.
        write_model(self.out, weights, experiment.facts, notes)
        run, batch = RunFolder(self.out, self.config, self.registry), experiment.measurement.training
        check_written(run, averaged, batch, experiment.matching.path)
        self.trackers.release()

    def _whole_or_adapters(
        self, adapted: AdaptedDrift, means: State, written: str, notes: dict[str, Any]
    ) -> tuple[State, dict[str, Any]]:
        """The content of model.safetensors of a run with adapters: the whole network, or a reference to its parts."""
        assert self.config.adapters is not None
        if self.config.adapters.write_base:
            return adapted.merged(means), notes
        return {}, {**notes, "adapter": written, "start": str(self.config.start)}

    def _summary(self, lines: Sequence[LogLine], steps: int, seconds: float) -> dict[str, Any]:
        """The content of summary.json."""
        measured = {name: value for name, value in lines[0][1].items() if name != "weights"}
        summary: dict[str, Any] = {"ema": measured, "seconds": round(seconds, 3), "steps": steps}
        if self.feedback.done and steps < self.config.train.steps:
            summary["stopped"] = {"of": self.config.train.steps, "reason": self.feedback.reason}
            self.progress.say(f"Stopped after step {steps} of {self.config.train.steps}: {self.feedback.reason}")
        if self.anchor is not None:
            summary["anchor"] = {**self.anchor.describe(), "anchors": list(self.experiment.networks.anchors)}
        if self.experiment.networks.adapted is not None:
            summary["adapters"] = self.experiment.networks.adapted.describe()
        if self.steps.pairs.transport is not None:
            summary["coupling"] = self.steps.pairs.transport.numbers
        return summary
