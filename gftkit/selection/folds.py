"""Cross-fitting: fine-tunes that each leave out a fold of the training data, on which their profiles are measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gftkit.data.samples import Samples
from gftkit.estimation.jackknife import GROUPS, Replicates
from gftkit.kernel.contracts import Batch, Metric
from gftkit.kernel.errors import ConfigError, DataError
from gftkit.kernel.options import plain
from gftkit.runs.folder import SUMMARY, RunFolder
from gftkit.selection.blended_run import BlendedRun, Settings
from gftkit.selection.family import ZERO, Table, family
from gftkit.selection.judging import metric_values
from gftkit.selection.separation import shared_with
from gftkit.storage.documents import read_json
from gftkit.theory.retention_fit import RetentionFit
from gftkit.training.train import train

LEAST = 4
"""Samples in a fold, at least."""


@dataclass(frozen=True)
class CrossFit:
    """What fine-tunes without a fold each say about it.

    Attributes:
        fit: r*(t) of all folds together; every batch is of one fold.
        families: of each fold, the profiles built of r*(t) on the other folds.
        replicates: of each fold, the metric at retention 0 and at each profile.
    """

    fit: RetentionFit
    families: list[dict[str, Table]]
    replicates: list[Replicates]

    @property
    def names(self) -> list[str]:
        """Of the profiles."""
        return [*self.families[0]]


def check_folds(size: int | None, folds: int) -> int:
    """The number of samples in the smallest fold; folds of data that have none, or too few, are refused.

    Args:
        size: of the training data, None for a law.
        folds: K.

    Raises:
        ConfigError: for fewer than 2 folds, and for a law, which has no samples of its own.
        DataError: for folds of fewer than ``LEAST`` samples.
    """
    if folds < 2:
        raise ConfigError(f"--folds: wanted at least 2, got {folds}.")
    if size is None:
        raise ConfigError(
            "--folds: the training data are a law, of which every step draws fresh samples: there is nothing to leave "
            "out. Give other samples of it by --data."
        )
    if size < LEAST * folds:
        raise DataError(
            f"--folds: wanted at least {LEAST} samples in each of {folds} folds, and the training data have {size}. "
            f"Take fewer folds."
        )
    return size // folds


def cost_of_folds(run: RunFolder, folds: int) -> str:
    """One sentence on what cross-fitting takes, from what the run took."""
    seconds = float(read_json(run.folder / SUMMARY)["seconds"])
    total = f"{folds * seconds:.0f} s" if folds * seconds < 120 else f"{folds * seconds / 60:.0f} min"
    return (
        f"Cross-fitting trains {folds} times as long as {run.folder} did, about {total} on the same machine, beside "
        f"measuring."
    )


def fold_run(run: RunFolder, fold: int, folds: int, folder: Path, device: torch.device | str = "cpu") -> RunFolder:
    """The fine-tune of a run's configuration without a fold of its data; a finished one is opened, else continued.

    It is measured by no metric, and otherwise as the run.

    Args:
        run: gives the configuration.
        fold: which one is left out.
        folds: K.
        folder: of all these runs.
        device: to train on.

    Raises:
        GftkitError: see ``train``; also where the folder contains another configuration's run.
    """
    config = run.config.to_dict()
    config["data"] = _fold_spec(run, fold, folds, "rest")
    config["evaluate"] = {**config["evaluate"], "metrics": [], "ends": []}
    config["track"] = []
    out = folder / f"fold-{fold + 1}-of-{folds}"
    device = torch.device(device).type
    return train(
        "finetune", config, out, run.registry, device=device, resume=(out / "config.yaml").is_file(), quiet=True
    )


def cross_fit(
    run: RunFolder,
    folds: int,
    folder: Path,
    *,
    settings: Settings,
    metric: Metric | None,
    stage: Callable[[str], None] = lambda _: None,
) -> CrossFit:
    """Fine-tune without each fold, measure r*(t) on it, and judge there the profiles that the other folds give.

    The profiles of a fold are independent of it but for the fine-tunes without other folds, which were trained on it.

    Args:
        run: the finished fine-tune; its folds are those of its training data.
        folds: K.
        folder: of the fine-tunes.
        settings: of the measurements.
        metric: that judges; None for the energy distance.
        stage: called with the name of each stage.

    Raises:
        DataError: where a sample is in two folds, before anything is trained.
    """
    stage("comparing folds")
    parts = [_part(run, fold, folds, settings) for fold in range(folds)]
    fits, preferences, runs = [], [], []
    for fold in range(folds):
        stage(f"fold {fold + 1} of {folds}: training")
        runs.append(fold_run(run, fold, folds, folder, settings.device))
        stage(f"fold {fold + 1} of {folds}: measuring r*(t)")
        blends = BlendedRun(runs[-1], settings)
        fits.append(blends.best_retentions(parts[fold], batches=min(GROUPS, len(parts[fold]))))
        preferences.append(blends.preference())
    families, replicates = [], []
    for fold, (left_out, part, preference) in enumerate(zip(runs, parts, preferences, strict=True)):
        stage(f"fold {fold + 1} of {folds}: comparing profiles")
        tables = family(preference, pooled(fits[:fold] + fits[fold + 1 :]))
        families.append(tables)
        # Opened again: of large networks not all may fit into memory.
        replicates.append(judged(BlendedRun(left_out, settings), tables, part, metric))
    return CrossFit(pooled(fits), families, replicates)


def judged(blends: BlendedRun, tables: Mapping[str, Table], reference: Batch, metric: Metric | None) -> Replicates:
    """The metric at retention 0 and at each profile, on data that chose none of them."""
    registry = blends.run.registry
    profiles = [table.component(registry) for table in (ZERO, *tables.values())]
    evaluations = [blends.evaluation(profile, reference) for profile in profiles]
    return metric_values(evaluations, reference, metric, blends.settings)


def pooled(fits: Sequence[RetentionFit]) -> RetentionFit:
    """The fit to the batches of several ones, with one set of edges."""
    return RetentionFit(
        fits[0].edges, *(torch.cat([getattr(fit, name) for fit in fits]) for name in ("along", "moved"))
    )


def _part(run: RunFolder, fold: int, folds: int, settings: Settings) -> Batch:
    """The samples of a fold, scaled, in random order.

    Raises:
        DataError: where the rest contains some of them too.
    """
    samples, rest = (
        Samples(run.registry.build("dataset", _fold_spec(run, fold, folds, part), "--folds"), "--folds")
        for part in ("fold", "rest")
    )
    assert samples.size is not None
    data = samples.some(samples.size, settings.generator("fold", fold))
    if shared := shared_with(data.x1, rest):
        raise DataError(
            f"--folds: {shared} of {len(data)} samples of fold {fold + 1} are in another fold too: the training data "
            f"contain samples more than once, as those of `replay` do, so no fold is held out. Give other data by "
            f"--data, or leave --folds out."
        )
    return data


def _fold_spec(run: RunFolder, fold: int, folds: int, part: str) -> dict[str, Any]:
    return {"name": "fold", "data": plain(run.spec("data")), "fold": fold, "folds": folds, "part": part}
