"""Choosing a retention by evidence: from the training data, held-out data, or folds of the training data."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gftkit.data.samples import Samples
from gftkit.estimation.jackknife import GROUPS
from gftkit.evaluation.metrics import Scope, check_metrics
from gftkit.evaluation.retentions import Preference
from gftkit.kernel.contracts import Batch, Metric
from gftkit.kernel.errors import ConfigError, DataError
from gftkit.kernel.options import plain
from gftkit.kernel.registry import Resolved
from gftkit.runs.folder import RunFolder
from gftkit.selection.blended_run import LEAST, BlendedRun, Settings
from gftkit.selection.family import ZERO, distinct, early_and_late, family
from gftkit.selection.fitted import By, FittedProfile
from gftkit.selection.folds import check_folds, cost_of_folds, cross_fit, judged
from gftkit.selection.judging import Compared, best, check_distance, compare
from gftkit.selection.separation import check_separate
from gftkit.theory.retention_fit import RetentionFit

Spec = Mapping[str, Any] | str


def fit_profile(
    run: RunFolder,
    *,
    data: Spec | None = None,
    folds: int | None = None,
    folder: Path | None = None,
    metric: Spec = "energy",
    settings: Settings | None = None,
    stage: Callable[[str], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> FittedProfile:
    """Choose a profile for a finished fine-tune: by its training data, or by held-out data, or by folds.

    By the training data: the retention at which the energy distance of samples to them is least, if it is
    significantly better than 0. By held-out data: a half measures r*(t), the other half compares a family of profiles
    with retention 0 by a metric; the best significant one is chosen, else zero. By folds: the same, on the fold that
    each of K fine-tunes leaves out. The data that judge the run, ``evaluate.data``, are refused.

    Args:
        run: the fine-tune.
        data: held-out data, {name: ...}; relative paths start at the working directory.
        folds: K, for cross-fitting.
        folder: of the K fine-tunes; required with folds. Finished ones in it are used, unfinished ones continued.
        metric: a distance of samples from data, by which profiles are compared.
        settings: of the measurements.
        stage: called with the name of each stage.
        say: called with what cross-fitting takes, before it starts.

    Raises:
        GftkitError: for a run without an anchor or that isn't finished, data that judge or train it, that are too few
            or of another shape, a law for folds, and a metric that isn't a distance.

    Reference: theory, T20 and T21.
    """
    if data is not None and folds is not None:
        raise ConfigError("--data and --folds: got both. Give held-out data, or let folds of the training data judge.")
    if folds is not None and folder is None:
        raise ConfigError("folder: cross-fitting requires a folder for the fine-tunes without a fold each. Give one.")
    registry, here = run.registry, Path.cwd()
    blends = BlendedRun(run, settings or Settings())
    judging = registry.resolve("metric", metric, "--metric", here)
    if judging["name"] != "energy" and data is None and folds is None:
        raise ConfigError(
            "--metric: the training data choose by the energy distance. Give held-out data by --data, or --folds, to "
            "judge by another metric."
        )
    held_out_spec = None if data is None else registry.resolve("dataset", data, "--data", here)
    held_out = None if held_out_spec is None else _held_out(blends, held_out_spec, stage)
    smallest = 0 if held_out is None else len(held_out) - len(held_out) // 2
    if folds is not None:
        blends.check_pairs()
        smallest = check_folds(blends.training.size, folds)
    judge = _metric(blends, judging, smallest) if smallest else None
    stage("energy distance to the training data")
    preference, notes = blends.preference(), _notes(blends)
    if held_out is not None:
        fit, compared = _by_held_out(blends, preference, held_out, judge, stage)
        notes |= {"data": plain(held_out_spec), "metric": plain(judging)}
        return _result("held-out data", preference, fit, compared, notes)
    if folds is not None and folder is not None:
        say(cost_of_folds(run, folds))
        fit, compared = _by_folds(blends, preference, folds, folder, judge, stage=stage)
        return _result("folds", preference, fit, compared, {**notes, "folds": folds, "metric": plain(judging)})
    return _by_training(preference, notes)


def _by_training(preference: Preference, notes: Mapping[str, Any]) -> FittedProfile:
    """The profile that the training data choose."""
    table = early_and_late(preference.early, preference.late, preference.cut)
    name = "zero" if table.is_zero else "minimum" if len(table.values) == 1 else "minimum, late rule"
    return FittedProfile(table, name, "training data", preference, None, (), notes)


def _notes(blends: BlendedRun) -> dict[str, Any]:
    """What is fitted, and the settings of the measurements; ``weights`` is the digest that the profile is for."""
    settings = blends.settings
    numbers = {key: getattr(settings, key) for key in ("count", "points", "steps", "seed")}
    return {"run": str(blends.run.folder), "weights": blends.weights, "anchor": blends.anchor, **numbers}


def _by_held_out(
    blends: BlendedRun, preference: Preference, data: Batch, metric: Metric | None, stage: Callable[[str], None]
) -> tuple[RetentionFit, list[Compared]]:
    """r*(t) on a half of the held-out data, and the comparison of its profiles on the other half."""
    stage("r*(t)")
    half = len(data) // 2
    fit = blends.best_retentions(data[:half], batches=GROUPS)
    tables = distinct(family(preference, fit))
    stage(f"comparing {len(tables)} profiles")
    return fit, compare(tables, [judged(blends, tables, data[half:], metric)], [*tables])


def _by_folds(
    blends: BlendedRun,
    preference: Preference,
    folds: int,
    folder: Path,
    metric: Metric | None,
    *,
    stage: Callable[[str], None],
) -> tuple[RetentionFit, list[Compared]]:
    """r*(t) of all folds, and the comparison of its profiles; those that are zero in every fold have no evidence."""
    crossed = cross_fit(blends.run, folds, folder, settings=blends.settings, metric=metric, stage=stage)
    tables = {
        name: table
        for name, table in distinct(family(preference, crossed.fit)).items()
        if not all(of_fold[name].is_zero for of_fold in crossed.families)
    }
    return crossed.fit, compare(tables, crossed.replicates, crossed.names)


def _result(
    by: By, preference: Preference, fit: RetentionFit, compared: Sequence[Compared], notes: Mapping[str, Any]
) -> FittedProfile:
    """The best significant profile, or zero."""
    winner = best(compared)
    table, name = (ZERO, "zero") if winner is None else (winner.table, winner.name)
    return FittedProfile(table, name, by, preference, fit, tuple(compared), notes)


def _metric(blends: BlendedRun, spec: Resolved, smallest: int) -> Metric | None:
    """The metric that judges; None for the energy distance as it is, which all profiles are measured by at once.

    Args:
        blends: of the run.
        spec: of the metric.
        smallest: number of data that judge together.

    Raises:
        ConfigError: for a metric that isn't a distance, by training data and source samples, or needs more data.
    """
    registry, settings = blends.run.registry, blends.settings
    metric: Metric = registry.build("metric", spec, "--metric")
    if spec["name"] == "energy" and spec.get("steps") is None:
        return None
    data = blends.training.some(settings.points, settings.generator("metric", "data")).x1
    groups = min(GROUPS, smallest)
    count, kept = (n - -(-n // groups) for n in (settings.count, smallest))  # without a group of the jackknife
    check_metrics([("--metric", metric)], Scope(count, kept, len(data), True, blends.training.event_shape))
    check_distance(metric, data, blends.starts(len(data)), settings)
    return metric


def _held_out(blends: BlendedRun, spec: Resolved, stage: Callable[[str], None]) -> Batch:
    """Held-out data, scaled, in random order, none of which train or judge the run.

    Raises:
        ConfigError: for a coupling that pairs the training data only.
        DataError: for too few of them, another shape, and samples that do.
    """
    blends.check_pairs()
    run, registry, settings = blends.run, blends.run.registry, blends.settings
    facts = run.facts
    samples = Samples(registry.build("dataset", spec, "--data"), "--data", facts.event_shape, facts.condition_shapes)
    data = samples.some(settings.points, settings.generator("held-out"))
    if len(data) < LEAST:
        raise DataError(
            f"--data: wanted at least {LEAST} held-out samples, a half for r*(t) and a half for the comparison, got "
            f"{len(data)}. Give more, or leave --data out: the training data alone can choose, too."
        )
    if repeated := len(data) - len(torch.unique(data.x1.flatten(1), dim=0)):
        raise DataError(
            f"--data: {repeated} of {len(data)} held-out samples repeat another one, so the half that judges would "
            f"share samples with the half that measures. Give each sample once."
        )
    stage("comparing held-out data with the run's")
    if run.config.evaluate.data is not None:
        others = Samples(registry.build("dataset", run.config.evaluate.data, "evaluate.data"), "evaluate.data")
        check_separate(data.x1, others, "evaluate.data of the run, which judge it")
    check_separate(data.x1, blends.training, "the run's training data")
    return data
