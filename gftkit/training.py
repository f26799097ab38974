"""The training loop: flow matching for pretraining, Gradual Fine-Tuning for adaptation.

Data flow one way: dataset -> coupling -> path -> objective (with anchor and temperature) -> optimiser -> checkpoint.
Everything random is a function of (seed, purpose, step): a resumed run repeats an undisturbed one bit for bit, and a
checkpoint needs to keep the step only.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gftkit import checkpoint, flow
from gftkit.anchor import FrozenAnchor
from gftkit.config import Config, Kind, read
from gftkit.contracts import Batch, Coupling
from gftkit.contracts import Path as ConditionalPath
from gftkit.data import Source, permuted
from gftkit.environment import describe_environment
from gftkit.errors import ConfigError, DivergenceError, RunError
from gftkit.evaluation import Evaluation, measure
from gftkit.experiment import Experiment, build
from gftkit.files import check_space, read_yaml, write_json
from gftkit.log import Log
from gftkit.objective import LOSSES, retention
from gftkit.optimizer import learning_rate, optimizer_of
from gftkit.pairing import pair
from gftkit.progress import Progress
from gftkit.randomness import seed_global, stream
from gftkit.registry import Registry, load, plain
from gftkit.report import write_run_report
from gftkit.run import CHECKPOINTS, CONFIG, LOG, MODEL, Run, is_run, restore, write_config, write_model


@dataclass(frozen=True)
class TrainingState:
    """What a monitor sees at an evaluation step. Nothing in it may be changed.

    Attributes:
        step: optimiser steps done.
        progress: share of the run done, in [0, 1].
        temperature: beta now; 0 in pretraining.
        drift: the raw weights, in evaluation mode.
        ema: the averaged weights.
        anchor: the pretrained drift, None in pretraining.
        path: the conditional path.
        training: training data, scaled.
        reference: held-out data, scaled; the training data where nothing is held out.
        evaluation: the raw weights under evaluation.
        source: draws x0.
        coupling: pairs x0 with data.
        device: where the drifts are.
        seed: of the run.
    """

    step: int
    progress: float
    temperature: float
    drift: nn.Module
    ema: nn.Module
    anchor: FrozenAnchor | None
    path: ConditionalPath
    training: Batch
    reference: Batch
    evaluation: Evaluation
    source: Source
    coupling: Coupling
    device: torch.device
    seed: int

    def draw(self, count: int, generator: Generator, held_out: bool = False) -> "Draw":
        """Fresh pairs, times and noise on training or held-out targets, (count, ...), on ``device``.

        Args:
            count: how many, paired as one batch; targets repeat where there are fewer.
            generator: the monitor's own, on the CPU.
            held_out: take the reference data.
        """
        data = self.reference if held_out else self.training
        chosen = data[permuted(count, len(data), generator)]
        x0 = self.source(count, generator)
        conditional = "label" in getattr(self.drift, "conditions", ())
        x0 = x0[pair(self.coupling, x0, chosen.x1, generator, chosen.label, conditional)]
        t = flow.t_end(self.path) * torch.rand(count, generator=generator)
        noise = torch.randn(x0.shape, generator=generator) if flow.is_noisy(self.path) else None
        conditions = {"label": chosen.label.to(self.device)} if conditional and chosen.label is not None else {}
        return Draw(
            t.to(self.device),
            flow.sample(self.path, t, x0, chosen.x1, noise).to(self.device),
            flow.drift(self.path, t, x0, chosen.x1, noise).to(self.device),
            conditions,
        )


@dataclass(frozen=True)
class Draw:
    """States on the path: times (n,), states x_t and conditional drifts (n, *event), and the drift's conditions."""

    t: Tensor
    x: Tensor
    target: Tensor
    conditions: dict[str, Tensor]


def pretrain(config: Path | str | Mapping[str, Any], out: Path | str, **options: Any) -> Run:
    """Train a flow from scratch by flow matching.

    Args:
        config: a YAML file or the same as a mapping.
        out: the run folder to make.
        **options: as for ``train``.

    Raises:
        GftkitError: for any bad input, before training starts.
    """
    return train("pretrain", config, out, **options)


def finetune(config: Path | str | Mapping[str, Any], out: Path | str, **options: Any) -> Run:
    """Adapt a pretrained flow to new data by Gradual Fine-Tuning.

    Args:
        config: a YAML file or the same as a mapping.
        out: the run folder to make.
        **options: as for ``train``.

    Raises:
        GftkitError: for any bad input, before training starts.
    """
    return train("finetune", config, out, **options)


def train(
    kind: Kind,
    source: Path | str | Mapping[str, Any],
    out: Path | str,
    registry: Registry | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    resume: bool = False,
    quiet: bool = True,
) -> Run:
    """Train as a configuration says, and write the run folder.

    Args:
        kind: "pretrain" or "finetune".
        source: a YAML file or the same as a mapping.
        out: the run folder; it must not hold a run, unless it is resumed.
        registry: components; by default every installed plugin.
        overrides: settings as ``a.b=c``, which win over the file.
        device: "auto" (the accelerator where there is one), "cpu" or "cuda".
        resume: go on with an unfinished run of the same configuration.
        quiet: show no progress bar.

    Raises:
        GftkitError: for any bad input, before training starts.
        DivergenceError: where the loss stops being finite; the last good checkpoint is kept.
    """
    registry = registry or load()
    out = Path(out)
    config, warnings = read(source, kind, registry, overrides)
    _check_folder(out, config, resume)
    if resume and (out / MODEL).is_file():
        return Run(out, config, registry)
    accelerator = _accelerator(device)
    with torch.random.fork_rng(devices=_cuda_devices(accelerator.device)):
        experiment = build(config, registry)
        _Training(experiment, registry, out, accelerator, Progress(config.train.steps, kind, quiet)).run(warnings)
    return Run(out, config, registry)


def _accelerator(device: str) -> Any:
    from accelerate import Accelerator

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device: wanted auto, cpu or cuda, got '{device}'.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda is not available here. Use --device cpu, or install a CUDA build of torch.")
    return Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _check_folder(out: Path, config: Config, resume: bool) -> None:
    if resume:
        if not is_run(out):
            raise RunError(f"{out} holds no run to resume. Leave --resume out to start one.")
        before, now = restore(read_yaml(out / CONFIG)).to_dict(), config.to_dict()
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if changed:
            raise RunError(
                f"{out} was started with another configuration: {', '.join(changed)} differ. A resumed run repeats the "
                f"undisturbed one, so it takes the same configuration; use another --out for a new one."
            )
        return
    taken = [name for name in (CONFIG, MODEL, LOG, CHECKPOINTS) if (out / name).exists()]
    if taken:
        raise RunError(
            f"{out} already holds a run ({', '.join(taken)}). Choose another folder with --out, or go on with an "
            f"unfinished run by --resume."
        )


class _Training:
    """One run of the loop."""

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
        self.ema = copy.deepcopy(self.drift).eval().requires_grad_(False)
        self.anchor = None if experiment.anchor is None else experiment.anchor.to(self.device)
        self.optimizer = optimizer_of(self.config.train, self.drift.parameters())
        self.model = accelerator.prepare_model(self.drift)
        self._parameters, self._averages = list(self.drift.parameters()), list(self.ema.parameters())
        self._average = get_ema_multi_avg_fn(self.config.train.ema)  # type: ignore[no-untyped-call]
        self._noisy = flow.is_noisy(experiment.path)
        self._t_end = flow.t_end(experiment.path)
        self._bad = torch.full((), -1, device=self.device)

    def run(self, warnings: list[str]) -> None:
        """Train from the last checkpoint, or from the start, to the end."""
        found, damaged = checkpoint.latest(self.out / CHECKPOINTS)
        for warning in (*warnings, *damaged):
            self.progress.warn(warning)
        first = 0 if found is None else found.step
        if self.main:
            self._prepare_folder()
        if found is not None:
            self._check_anchor(found)
            found.restore(self.drift, self.ema, self.optimizer)
        log = Log(self.out / LOG, -1 if found is None else first) if self.main else None
        seconds = 0.0 if found is None else float(found.notes["seconds"])
        try:
            with self.progress.running(first):
                self._steps(first, time.perf_counter() - seconds, log)
        finally:
            if log is not None:
                log.close()
        self.accelerator.wait_for_everyone()

    def _steps(self, first: int, started: float, log: Log | None) -> None:
        """Every step from ``first`` on, and what a step is followed by; ``log`` is the main process's."""
        train, every = self.config.train, self.config.evaluate.every
        assert train.checkpoint_every is not None  # filled in by config.read
        assert every is not None
        if first == 0 and log is not None:
            self._evaluate(log, 0, self.drift, "raw")
        for step in range(first, train.steps):
            numbers = self._step(step)
            done = step + 1
            last = done == train.steps
            logged, evaluated, saved = (last or done % n == 0 for n in (train.log_every, every, train.checkpoint_every))
            if logged or evaluated or saved:
                self._check_finite()
            if logged and log is not None:
                values = {key: float(value) for key, value in numbers.items()}
                log.add("train", done, **values)
                self.progress.show(values)
            if evaluated and log is not None:
                self._evaluate(log, done, self.drift, "raw")
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

    def _step(self, step: int) -> dict[str, Any]:
        """One optimiser step; what it returns stays on the device until somebody looks."""
        experiment, train = self.experiment, self.config.train
        beta = self.temperature(step)
        rate = learning_rate(train, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pairs = experiment.pairs.at(step)
        generator = stream(self.config.seed, "time", step, device=self.device)
        t = self._t_end * torch.rand(len(pairs), generator=generator, device=self.device)
        noise = None
        if self._noisy:
            noise = torch.randn(pairs.x1.shape, generator=generator, device=self.device)[self.share]
        mine = pairs[self.share].to(self.device)
        t = t[self.share]
        assert mine.x0 is not None
        conditions = {"label": mine.label} if experiment.conditional and mine.label is not None else {}
        x = flow.sample(experiment.path, t, mine.x0, mine.x1, noise)
        target = flow.drift(experiment.path, t, mine.x0, mine.x1, noise)
        anchored = None
        if beta > 0 and self.anchor is not None:
            anchored = self.anchor(t, x, **conditions)
        # Dropout draws from torch's global generator: seeded anew for each step and process.
        seed_global(stream(self.config.seed, "step", step, self.accelerator.process_index).initial_seed(), self.device)
        self.model.train()
        drift = self.model(t, x, **conditions)
        weight = None if experiment.weight is None else experiment.weight(t)
        loss = LOSSES[self.config.objective.form](drift, target, anchored, beta, weight).mean() / x[0].numel()
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        limit = float("inf") if train.clip is None else train.clip
        norm = nn.utils.clip_grad_norm_(self._parameters, limit)
        self._bad = torch.where((self._bad < 0) & ~torch.isfinite(loss.detach() + norm), step, self._bad)
        self.optimizer.step()
        with torch.no_grad():
            self._average(self._averages, self._parameters, 0)
            for mean, now in zip(self.ema.buffers(), self.drift.buffers(), strict=True):
                mean.copy_(now)
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
        mine = None if self.anchor is None else self.anchor.hash
        if found.notes["anchor"] != mine:
            raise RunError(
                f"{found.path}: the pretrained weights at {self.config.pretrained} have changed since this run "
                f"started (anchor {found.notes['anchor']}, now {mine}). Restore them, or start anew with another --out."
            )

    def _prepare_folder(self) -> None:
        size = sum(held.numel() * held.element_size() for held in self.drift.state_dict().values())
        check_space(self.out, size * (1 + 4 * (self.config.train.keep_checkpoints + 1)) + 10_000_000)
        write_config(self.out, self.config)
        environment = describe_environment(self.registry, self.config, self.device, self.accelerator.num_processes)
        write_json(self.out / "environment.json", environment)

    def _save(self, done: int, seconds: float) -> None:
        checkpoint.write(
            self.out / CHECKPOINTS,
            done,
            self.drift,
            self.ema,
            self.optimizer,
            {
                "seconds": seconds,
                "anchor": None if self.anchor is None else self.anchor.hash,
                **self.experiment.facts.to_dict(),
            },
            self.config.train.keep_checkpoints,
        )

    def _evaluate(self, log: Log, done: int, drift: nn.Module, weights: str) -> dict[str, float]:
        """Measure a drift by every metric, and let every monitor look; the run itself is left as it was."""
        experiment = self.experiment
        training = drift.training
        with torch.random.fork_rng(devices=_cuda_devices(self.device)):
            drift.eval()
            evaluation = experiment.evaluation(drift, self.device, log.lines)
            values = measure(experiment.metrics, evaluation, self.config.seed)
            log.add("evaluation", done, weights=weights, **values)
            if weights == "raw":
                progress = done / self.config.train.steps
                state = TrainingState(
                    done,
                    progress,
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
                )
                for name, monitor in experiment.monitors:
                    log.add("monitor", done, monitor=name, **monitor.observe(state))
            drift.train(training)
        return values

    def _finish(self, log: Log, seconds: float) -> None:
        steps = self.config.train.steps
        final = {
            "ema": self._evaluate(log, steps, self.ema, "ema"),
            "seconds": round(seconds, 3),
            "steps": steps,
        }
        for _, monitor in self.experiment.monitors:
            monitor.finish(self.out)
        write_json(self.out / "summary.json", final)
        write_run_report(self.out, self.experiment, self.ema, self.device, log.lines, final)
        notes = {"drift": plain(self.config.drift), "anchor": None if self.anchor is None else self.anchor.hash}
        write_model(self.out, self.ema, self.experiment.facts, notes)
