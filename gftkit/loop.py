"""The training loop: from the start, or the last checkpoint, to the end, with what is measured and written beside.

Everything random is a function of (seed, purpose, step): a resumed run repeats an undisturbed one bit for bit, and a
checkpoint needs to keep the step only.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gftkit import checkpoint, devices, environment, sharding
from gftkit.anchor import short
from gftkit.distillation import Distillation
from gftkit.errors import ConfigError, DivergenceError, RunError
from gftkit.evaluation import measure
from gftkit.experiment import Experiment
from gftkit.feedback import Feedback, by_monitor
from gftkit.files import check_space, digest, remove_leftovers, write_json
from gftkit.log import Log
from gftkit.monitoring import TrainingState
from gftkit.prefetch import ahead
from gftkit.progress import Progress
from gftkit.reading import tracker
from gftkit.registry import Registry, plain
from gftkit.report import picture_of, write_run_report
from gftkit.run import ADAPTER, CHECKPOINTS, CLOCK, LOG, SUMMARY, Weights, is_run, write_config, write_model
from gftkit.steps import Steps, trained_weights
from gftkit.tracking import Trackers

Line = tuple[str, dict[str, Any]]
"""A line of the log to be: its kind and its values. Pictures go to the trackers only."""


class Loop:
    """One run: from its start, or its last checkpoint, to its end.

    Args:
        experiment: everything the configuration names.
        registry: where the components came from, for environment.json.
        out: the run folder.
        accelerator: of the accelerate library.
        progress: the bar.

    Raises:
        GftkitError: for options that this network or these processes can't follow.
    """

    def __init__(
        self, experiment: Experiment, registry: Registry, out: Path, accelerator: Any, progress: Progress
    ) -> None:
        self.experiment, self.config, self.registry = experiment, experiment.config, registry
        self.out, self.progress = out, progress
        self.accelerator, self.device, self.main = accelerator, accelerator.device, accelerator.is_main_process
        if experiment.adapted is not None and devices.shards(accelerator):
            raise ConfigError(
                "adapters: wanted whole weights on every device, and FSDP shards them. Start the processes without "
                "FSDP: under adapters there is one network, and little to keep for the optimiser."
            )
        self._sharded = devices.shards(accelerator)
        self._data = (
            f"{experiment.pairs.order.samples.size} samples, digest {short(digest(experiment.training.tensors()))}"
        )
        self._template = copy.deepcopy(experiment.drift) if self._sharded and self.main else None
        made = Distillation if experiment.config.kind == "distill" else Steps
        self.steps = made(experiment, accelerator)
        self.anchor = self.steps.anchor
        name = (self.config.schedule or {}).get("name", "")
        self.feedback = Feedback(experiment.schedule, experiment.stop, name, self.config.train.steps)
        tracked = {spec["name"]: tracker(spec, "track") for spec in self.config.track}
        self.trackers = Trackers(tracked, out, is_run(out), self.main, progress.warn)

    def run(self, warnings: list[str]) -> None:
        """Train from the last checkpoint, or from the start, to the end."""
        found, damaged = checkpoint.latest(self.out / CHECKPOINTS)
        for warning in (*warnings, *self.experiment.warnings, *damaged) if self.main else ():
            self.progress.warn(warning)
        if self.anchor is not None:
            what = "Teacher" if self.config.kind == "distill" else "Anchor"
            self.progress.say(f"{what}: {self.anchor.kind}, hash {short(self.anchor.hash)}.")
        if self.experiment.adapted is not None:
            told = self.experiment.adapted.describe()
            self.progress.say(
                "Adapters: {layers} layers, {trained:,} weights of {parameters:,} are trained.".format(**told)
            )
        first = 0 if found is None else found.step
        self._check_agreement(first)
        if self.main:
            for folder in (self.out, self.out / CHECKPOINTS):
                remove_leftovers(folder)
            self._check_space()
        if found is not None:
            self._check_data(found)
            self._check_anchor(found)
            found.restore(self.steps.drift, self.steps.descent)
            self.feedback.restore(found.notes.get("feedback", {}), found.path)
        # The first look asks every metric and monitor: what they refuse is known before the folder holds a run.
        looked = self._look(0, "raw", [], whole=True) if found is None else []
        if found is None:
            self._hear(0, looked)
        if self.main:
            write_config(self.out, self.config)
        until = -1 if found is None else first
        end = first if self.feedback.done else self.config.train.steps
        log = Log(self.out / LOG, until, end, self.trackers.add) if self.main else None
        clock = Log(self.out / CLOCK, until, end, lambda _: None) if self.main else None
        seconds = 0.0 if found is None else float(found.notes["seconds"])
        self._looking = 0.0 if found is None else float(found.notes.get("looking", 0.0))
        try:
            self.trackers.start(until, self.config.to_dict())
            self._add(log, 0, looked)
            train, pin = self.config.train, self.device.type == "cuda"
            pairs = ahead(self.steps.pairs, first, train.steps, train.workers, pin)
            with self.progress.running(first), pairs as self.steps.batches:
                self._train(first, time.perf_counter() - seconds, log, clock)
        finally:
            self.trackers.close()
            for each in (log, clock):
                if each is not None:
                    each.close()
        self.accelerator.wait_for_everyone()

    def _train(self, first: int, started: float, log: Log | None, clock: Log | None) -> None:
        """Every step from ``first`` on, and what a step is followed by; the logs are the main process's."""
        train, every = self.config.train, self.config.evaluate.every
        assert train.checkpoint_every is not None  # filled in by reading.read
        assert every is not None
        done = first
        while done < train.steps and not self.feedback.done:
            numbers = self.steps.take(done)
            done += 1
            last = done == train.steps
            logged, evaluated, saved = (last or done % n == 0 for n in (train.log_every, every, train.checkpoint_every))
            if logged or evaluated or saved:
                self._check_finite()
            if logged:
                numbers["loss"] = self.accelerator.reduce(numbers["loss"], reduction="mean")
                values = {key: float(value) for key, value in numbers.items()}
                self._add(log, done, [("train", values)])
                self.progress.show(values)
            if evaluated:
                before = time.perf_counter()
                if clock is not None:
                    told = {"seconds": before - started, "training": before - started - self._looking}
                    clock.add("clock", done, {name: round(value, 3) for name, value in told.items()})
                looked = self._look(done, "raw", [] if log is None else log.lines)
                self._add(log, done, looked)
                self._hear(done, looked)
                if self.config.evaluate.averaged and not (last or self.feedback.done):  # at the end they always are
                    self._add(log, done, self._look(done, "ema", [] if log is None else log.lines))
                self._looking += time.perf_counter() - before
            if saved or self.feedback.done:
                self._save(done, time.perf_counter() - started)
            self.progress.advance()
        self._finish(log, done, time.perf_counter() - started)

    def _hear(self, done: int, looked: Sequence[Line]) -> None:
        """Tell schedule and stopping rule, on every process, what the monitors measured on the main one."""
        if self.feedback.listeners:
            measured = devices.told(self.accelerator, by_monitor(looked) if self.main else None)
            self.feedback.hear(done, measured)

    def _check_finite(self) -> None:
        step = self.steps.descent.first_bad(self.accelerator)
        if step is None:
            return
        kept = checkpoint.found(self.out / CHECKPOINTS)
        half = (
            " float16 holds numbers up to 65,504 only: take train.precision: bfloat16, which has float32's range."
            if self.config.train.precision == "float16"
            else ""
        )
        where = f"The last good checkpoint is kept: {kept[-1]}." if kept else "No checkpoint was written before it."
        raise DivergenceError(
            f"the loss or its gradient is not finite at step {step + 1}, temperature "
            f"{self.steps.temperature(step):.4g}. {where}{half} Lower train.learning_rate "
            f"(now {self.config.train.learning_rate:g})"
            + (" (the penalty form's curvature grows with 1 + temperature)." if self._is_penalty() else ".")
        )

    def _is_penalty(self) -> bool:
        return self.config.objective.form == "penalty"

    def _check_agreement(self, first: int) -> None:
        """Refuse processes that start elsewhere, or read other things; all of them must ask."""
        facts = {
            "the step to go on from, by the checkpoints in the run folder": first,
            "the configuration": self.config.to_dict(),
            "the anchors": list(self.experiment.anchors),
            "the data": self._data,
            "the versions": environment.versions(),
        }
        devices.check_agreement(self.accelerator, facts)

    def _check_data(self, found: checkpoint.Checkpoint) -> None:
        if found.notes.get("data", self._data) != self._data:
            raise RunError(
                f"{found.path}: the data aren't those that this run started with: {found.notes['data']}, now "
                f"{self._data}. Restore them, or start anew with another --out."
            )

    def _check_anchor(self, found: checkpoint.Checkpoint) -> None:
        if self.anchor is None:
            return
        if "anchors" not in found.notes:
            raise RunError(
                f"{found.path} was written by an earlier version, which knew an anchor by its weights alone and not by "
                f"how its drift is called. Finish the run with that version, or start anew with another --out."
            )
        if found.notes["anchors"] != list(self.experiment.anchors):
            raise RunError(
                f"{found.path}: the anchor ({self.anchor.kind}) isn't the one that this run started with: hash "
                f"{short(str(found.notes['anchor']))}, now {short(self.anchor.hash)}. The weights at "
                f"{(self.config.anchor or {}).get('pretrained') or self.config.start}, or how their drift is made, "
                f"have changed. Restore them, or start anew with another --out."
            )
        if self.experiment.base is not None and found.notes.get("base") != self.experiment.base:
            held = "adapters for" if self.experiment.adapted is not None else "weights that are pulled to those of"
            raise RunError(
                f"{found.path} holds {held} {self.config.start}, and the weights there have changed. "
                f"Restore them, or start anew with another --out."
            )

    def _origin(self) -> dict[str, Any]:
        """The anchor by its hash, and those of the fine-tunes that led here, for a file's metadata."""
        hashed = None if self.anchor is None else self.anchor.hash
        known = {"anchor": hashed, "anchors": list(self.experiment.anchors)}
        return known if self.experiment.base is None else {**known, "base": self.experiment.base}

    def _check_space(self) -> None:
        """Refuse a folder that can't hold the run, before anything is measured."""
        whole = sum(held.numel() * held.element_size() for held in self.steps.drift.state_dict().values())
        trained = sum(weight.numel() * weight.element_size() for weight in trained_weights(self.steps.drift))
        check_space(self.out, whole + trained * 4 * (self.config.train.keep_checkpoints + 1) + 10_000_000)
        found = environment.describe_environment(self.registry, self.config, self.accelerator)
        write_json(self.out / "environment.json", found)

    def _save(self, done: int, seconds: float) -> None:
        """Write a checkpoint; all processes must ask, and the main one writes."""
        tensors, numbers = checkpoint.contents(self.steps.drift, self.steps.descent, self.main)
        if self.main:
            notes = {
                "seconds": seconds,
                "looking": self._looking,
                "data": self._data,
                **self._origin(),
                **self.experiment.facts.to_dict(),
                **numbers,
                "feedback": self.feedback.state(),
            }
            checkpoint.write(self.out / CHECKPOINTS, done, tensors, notes, self.config.train.keep_checkpoints)

    def _networks(self) -> tuple[nn.Module, nn.Module]:
        """The drift with raw and with averaged weights, whole on the main process; all processes must ask."""
        networks = self.steps.drift, self.steps.ema
        if not self._sharded:
            return networks
        states = [sharding.gathered(network.state_dict(), self.main) for network in networks]
        if self._template is None:
            return networks
        raw, averaged = copy.deepcopy(self._template), copy.deepcopy(self._template)
        raw.load_state_dict(states[0])
        averaged.load_state_dict(states[1])
        return raw.to(self.device), averaged.to(self.device)

    def _look(
        self, done: int, weights: Weights, history: Sequence[Mapping[str, Any]], whole: bool = False
    ) -> list[Line]:
        """Measure the drift by the metrics, and with raw weights by every monitor; the run is left as it was.

        Where ``whole``, also by the metrics that are for the ends of a run.

        All processes must ask, and the main one measures.
        """
        raw, averaged = self._networks()
        if not self.main:
            return []
        drift = raw if weights == "raw" else averaged
        experiment = self.experiment
        training = drift.training
        with torch.random.fork_rng(devices=devices.cuda_devices(self.device)):
            drift.eval()
            evaluation = experiment.evaluation(drift, self.device, history)
            values = measure(experiment.final if whole else experiment.metrics, evaluation, self.config.seed)
            lines: list[Line] = [("evaluation", {"weights": weights, **values})]
            if weights == "raw":
                state = TrainingState(
                    done,
                    done / self.config.train.steps,
                    self.steps.temperature(min(done, self.config.train.steps - 1)),
                    drift,
                    averaged,
                    self.anchor,
                    experiment.path,
                    experiment.training,
                    experiment.reference,
                    evaluation,
                    experiment.source,
                    experiment.pairs.coupling,
                    self.device,
                    self.config.seed,
                    experiment.pairs.order.samples,
                    self.config,
                    experiment.weight,
                )
                for name, monitor in experiment.monitors:
                    lines.append(("monitor", {"monitor": name, **monitor.observe(state)}))
            if self.trackers:
                lines.append(("picture", {"weights": weights, "png": picture_of(experiment, evaluation)}))
            drift.train(training)
        return lines

    def _add(self, log: Log | None, done: int, lines: Sequence[Line]) -> None:
        for kind, values in lines:
            if kind == "picture":
                self.trackers.picture(done, **values)
            elif log is not None:
                log.add(kind, done, values)

    def _finish(self, log: Log | None, steps: int, seconds: float) -> None:
        self.trackers.ends(steps)
        looked = self._look(steps, "ema", [] if log is None else log.lines, whole=True)
        self._add(log, steps, looked)
        _, averaged = self._networks()
        if log is None:
            return
        measured = {name: value for name, value in looked[0][1].items() if name != "weights"}
        final: dict[str, Any] = {"ema": measured, "seconds": round(seconds, 3), "steps": steps}
        if self.feedback.done and steps < self.config.train.steps:
            final["stopped"] = {"of": self.config.train.steps, "reason": self.feedback.reason}
            self.progress.say(f"Stopped after step {steps} of {self.config.train.steps}: {self.feedback.reason}")
        if self.anchor is not None:
            final["anchor"] = {**self.anchor.describe(), "anchors": list(self.experiment.anchors)}
        adapted = self.experiment.adapted
        if adapted is not None:
            final["adapters"] = adapted.describe()
        for _, monitor in self.experiment.monitors:
            monitor.finish(self.out)
        write_json(self.out / SUMMARY, final)
        write_run_report(self.out, self.experiment, averaged, self.device, log.lines, final)
        notes = {"drift": plain(self.config.drift), **self._origin()}
        weights = averaged.state_dict()
        if adapted is not None:
            means = self.steps.descent.averages.tensors()
            adapted.save(self.out / ADAPTER, means)
            weights = adapted.merged(means)
        write_model(self.out, weights, self.experiment.facts, notes)
        self.trackers.release()
