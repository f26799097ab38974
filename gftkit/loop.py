"""The training loop: dataset -> coupling -> path -> objective (anchor, temperature) -> optimiser -> checkpoint.

Everything random is a function of (seed, purpose, step): a resumed run repeats an undisturbed one bit for bit, and a
checkpoint needs to keep the step only.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gftkit import checkpoint, conditions, flow
from gftkit.anchor import short
from gftkit.averages import Averages
from gftkit.config import tracker
from gftkit.environment import describe_environment
from gftkit.errors import ConfigError, DivergenceError, RunError
from gftkit.evaluation import measure
from gftkit.experiment import Experiment
from gftkit.files import check_space, remove_leftovers, write_json
from gftkit.log import Log
from gftkit.monitoring import TrainingState
from gftkit.objective import LOSSES, retention
from gftkit.optimizer import learning_rate, optimizer_of
from gftkit.progress import Progress
from gftkit.randomness import seed_global, stream
from gftkit.registry import Registry, plain
from gftkit.report import picture_of, write_run_report
from gftkit.run import CHECKPOINTS, LOG, is_run, write_config, write_model
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
        ConfigError: for a batch that the processes can't share.
    """

    def __init__(
        self, experiment: Experiment, registry: Registry, out: Path, accelerator: Any, progress: Progress
    ) -> None:
        self.experiment, self.config, self.registry = experiment, experiment.config, registry
        self.out, self.progress = out, progress
        self.accelerator, self.device, self.main = accelerator, accelerator.device, accelerator.is_main_process
        processes = accelerator.num_processes
        if self.config.train.batch_size % processes:
            raise ConfigError(
                f"train.batch_size: {self.config.train.batch_size} pairs can't be shared by {processes} processes. "
                f"Choose a multiple of {processes}."
            )
        share = self.config.train.batch_size // processes
        self.share = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
        self.drift = experiment.drift.to(self.device).requires_grad_(True)
        self.anchor = None if experiment.anchor is None else experiment.anchor.to(self.device)
        self.optimizer = optimizer_of(self.config.train, self.drift.parameters())
        self.model = accelerator.prepare_model(self.drift)
        assert self.config.train.ema is not None  # filled in by config.read
        self.averages = Averages(self.drift, self.config.train.ema)
        self.ema = self.averages.drift()
        self._parameters = list(self.drift.parameters())
        self._noisy = flow.is_noisy(experiment.path)
        self._t_end = flow.t_end(experiment.path)
        self._bad = torch.full((), -1, device=self.device)
        tracked = {spec["name"]: tracker(spec, "track") for spec in self.config.track}
        self.trackers = Trackers(tracked, out, is_run(out), self.main, progress.warn)

    def run(self, warnings: list[str]) -> None:
        """Train from the last checkpoint, or from the start, to the end."""
        found, damaged = checkpoint.latest(self.out / CHECKPOINTS)
        for warning in (*warnings, *self.experiment.warnings, *damaged):
            self.progress.warn(warning)
        if self.anchor is not None:
            self.progress.say(f"Anchor: {self.anchor.kind}, hash {short(self.anchor.hash)}.")
        first = 0 if found is None else found.step
        if self.main:
            for folder in (self.out, self.out / CHECKPOINTS):
                remove_leftovers(folder)
            self._check_space()
        if found is not None:
            self._check_anchor(found)
            found.restore(self.drift, self.averages, self.optimizer)
        # The first look asks every metric and monitor: what they refuse is known before the folder holds a run.
        looked = self._look(0, self.drift, "raw", []) if self.main and found is None else []
        if self.main:
            write_config(self.out, self.config)
        until = -1 if found is None else first
        log = Log(self.out / LOG, until, self.trackers.add) if self.main else None
        seconds = 0.0 if found is None else float(found.notes["seconds"])
        try:
            self.trackers.start(until, self.config.to_dict())
            self._add(log, 0, looked)
            with self.progress.running(first):
                self._steps(first, time.perf_counter() - seconds, log)
        finally:
            self.trackers.close()
            if log is not None:
                log.close()
        self.accelerator.wait_for_everyone()

    def _steps(self, first: int, started: float, log: Log | None) -> None:
        """Every step from ``first`` on, and what a step is followed by; ``log`` is the main process's."""
        train, every = self.config.train, self.config.evaluate.every
        assert train.checkpoint_every is not None  # filled in by config.read
        assert every is not None
        for step in range(first, train.steps):
            numbers = self.step(step)
            done = step + 1
            last = done == train.steps
            logged, evaluated, saved = (last or done % n == 0 for n in (train.log_every, every, train.checkpoint_every))
            if logged or evaluated or saved:
                self._check_finite()
            if logged and log is not None:
                values = {key: float(value) for key, value in numbers.items()}
                log.add("train", done, values)
                self.progress.show(values)
            if evaluated and log is not None:
                self._add(log, done, self._look(done, self.drift, "raw", log.lines))
            if saved and self.main:
                self._save(done, time.perf_counter() - started)
            self.progress.advance()
        if log is not None:
            self._finish(log, time.perf_counter() - started)

    def temperature(self, step: int) -> float:
        """beta at a step; 0 in pretraining."""
        schedule = self.experiment.schedule
        if schedule is None:
            return 0.0
        beta = float(schedule.temperature(step / self.config.train.steps))
        try:
            retention(beta)
        except ValueError as error:
            raise ConfigError(f"schedule '{(self.config.schedule or {})['name']}' at step {step}: {error}") from None
        return beta

    def times(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """The law of t: uniform on [0, t_end]."""
        return self._t_end * torch.rand(count, generator=generator, device=self.device)

    def step(self, step: int) -> dict[str, Any]:
        """One optimiser step; what it returns stays on the device until somebody looks."""
        experiment, train = self.experiment, self.config.train
        beta = self.temperature(step)
        rate = learning_rate(train, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pairs = experiment.pairs.at(step)
        generator = stream(self.config.seed, "time", step, device=self.device)
        t = self.times(len(pairs), generator)
        noise = None
        if self._noisy:
            noise = torch.randn(pairs.x1.shape, generator=generator, device=self.device)[self.share]
        mine = pairs[self.share].to(self.device)
        t = t[self.share]
        assert mine.x0 is not None
        given = conditions.of(self.drift, mine)
        if train.condition_dropout > 0:
            generator = stream(self.config.seed, "condition-dropout", step, device=self.device)
            dropped = conditions.dropped(len(pairs), train.condition_dropout, generator)
            given = conditions.without(self.drift, given, dropped[self.share])
        x = flow.sample(experiment.path, t, mine.x0, mine.x1, noise)
        target = flow.drift(experiment.path, t, mine.x0, mine.x1, noise)
        anchored = None
        if beta > 0 and self.anchor is not None:
            anchored = self.anchor(t, x, **given)
        # Dropout draws from torch's global generator: seeded anew for each step and process.
        seed_global(stream(self.config.seed, "step", step, self.accelerator.process_index).initial_seed(), self.device)
        self.model.train()
        drift = self.model(t, x, **given)
        weight = None if experiment.weight is None else experiment.weight(t)
        loss = LOSSES[self.config.objective.form](drift, target, anchored, beta, weight).mean() / x[0].numel()
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        limit = float("inf") if train.clip is None else train.clip
        norm = nn.utils.clip_grad_norm_(self._parameters, limit)
        self._bad = torch.where((self._bad < 0) & ~torch.isfinite(loss.detach() + norm), step, self._bad)
        self.optimizer.step()
        self.averages.update()
        return {
            "loss": loss.detach(),
            "temperature": beta,
            "retention": retention(beta),
            "learning_rate": rate,
            "gradient_norm": norm.detach(),
        }

    def _check_finite(self) -> None:
        step = int(self._bad)
        if step < 0:
            return
        kept = checkpoint.found(self.out / CHECKPOINTS)
        where = f"The last good checkpoint is kept: {kept[-1]}." if kept else "No checkpoint was written before it."
        raise DivergenceError(
            f"the loss or its gradient is not finite at step {step + 1}, temperature {self.temperature(step):.4g}. "
            f"{where} Lower train.learning_rate (now {self.config.train.learning_rate:g})"
            + (" (the penalty form's curvature grows with 1 + temperature)." if self._is_penalty() else ".")
        )

    def _is_penalty(self) -> bool:
        return self.config.objective.form == "penalty"

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

    def _origin(self) -> dict[str, Any]:
        """The anchor by its hash, and those of the fine-tunes that led here, for a file's metadata."""
        hashed = None if self.anchor is None else self.anchor.hash
        return {"anchor": hashed, "anchors": list(self.experiment.anchors)}

    def _check_space(self) -> None:
        """Refuse a folder that can't hold the run, before anything is measured."""
        size = sum(held.numel() * held.element_size() for held in self.drift.state_dict().values())
        check_space(self.out, size * (1 + 4 * (self.config.train.keep_checkpoints + 1)) + 10_000_000)
        environment = describe_environment(self.registry, self.config, self.device, self.accelerator.num_processes)
        write_json(self.out / "environment.json", environment)

    def _save(self, done: int, seconds: float) -> None:
        checkpoint.write(
            self.out / CHECKPOINTS,
            done,
            self.drift,
            self.averages,
            self.optimizer,
            {
                "seconds": seconds,
                **self._origin(),
                **self.experiment.facts.to_dict(),
            },
            self.config.train.keep_checkpoints,
        )

    def _look(self, done: int, drift: nn.Module, weights: str, history: Sequence[Mapping[str, Any]]) -> list[Line]:
        """Measure a drift by every metric, and with raw weights by every monitor; the run is left as it was."""
        experiment = self.experiment
        training = drift.training
        with torch.random.fork_rng(devices=cuda_devices(self.device)):
            drift.eval()
            evaluation = experiment.evaluation(drift, self.device, history)
            values = measure(experiment.metrics, evaluation, self.config.seed)
            lines: list[Line] = [("evaluation", {"weights": weights, **values})]
            if weights == "raw":
                state = TrainingState(
                    done,
                    done / self.config.train.steps,
                    self.temperature(min(done, self.config.train.steps - 1)),
                    drift,
                    self.ema,
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

    def _finish(self, log: Log, seconds: float) -> None:
        steps = self.config.train.steps
        looked = self._look(steps, self.ema, "ema", log.lines)
        self._add(log, steps, looked)
        measured = {name: value for name, value in looked[0][1].items() if name != "weights"}
        final: dict[str, Any] = {"ema": measured, "seconds": round(seconds, 3), "steps": steps}
        if self.anchor is not None:
            final["anchor"] = {**self.anchor.describe(), "anchors": list(self.experiment.anchors)}
        for _, monitor in self.experiment.monitors:
            monitor.finish(self.out)
        write_json(self.out / "summary.json", final)
        write_run_report(self.out, self.experiment, self.ema, self.device, log.lines, final)
        notes = {"drift": plain(self.config.drift), **self._origin()}
        write_model(self.out, self.ema, self.experiment.facts, notes)
        self.trackers.release()


def cuda_devices(device: torch.device) -> list[torch.device]:
    """The devices whose generators are forked beside the CPU's."""
    return [device] if device.type == "cuda" else []
