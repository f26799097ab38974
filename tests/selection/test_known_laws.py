"""What is chosen on exact drifts with a known lag: by training data, held-out data and folds."""

import pytest
import torch
from support import runs_on_moons
from support.known_lags import Exact, points

from gftkit.selection import Settings, fit, fit_profile
from gftkit.selection.blended_run import EDGES, BlendedRun
from gftkit.selection.family import family
from gftkit.selection.folds import cross_fit
from gftkit.theory.retention_fit import fit_retention

LAG = 0.2
BEST = -LAG / (1 - LAG)
FEW = Settings(count=100, points=160)


def held_out(folder):
    return {"name": "arrays", "file": str(folder / "held-out.npz")}


def score(estimate, expected):
    return abs(estimate.value - expected) / estimate.stderr


def test_the_training_data_alone_find_the_lag(gaussian_run, lagging):
    lagging(LAG)
    fitted = fit_profile(gaussian_run, settings=FEW)
    assert score(fitted.preference.minimum, BEST) < 4
    assert fitted.chosen in ("minimum", "minimum, late rule")
    assert fitted.table.values[0] == pytest.approx(fitted.preference.early)
    assert BEST - 0.15 < fitted.table.values[0] < -0.1
    assert "Chosen: retention" in fitted.sentence
    assert fitted.fitted_on["weights"] == "f" * 64


@pytest.mark.parametrize("way", ["training", "held-out"])
def test_without_a_lag_nothing_is_chosen(gaussian_run, gaussian_files, lagging, way):
    lagging(0.0)
    fitted = fit_profile(gaussian_run, data=held_out(gaussian_files) if way == "held-out" else None, settings=FEW)
    assert (fitted.chosen, fitted.table.times, fitted.table.values) == ("zero", (0.0,), (0.0,))
    assert fitted.sentence.startswith("Nothing is significant")


def test_held_out_data_find_the_lag_and_judge_it(gaussian_run, gaussian_files, lagging):
    lagging(LAG)
    fitted = fit_profile(gaussian_run, data=held_out(gaussian_files), settings=FEW)
    assert all(score(estimate, BEST) < 4.5 for estimate in fitted.fit.by_time)
    assert score(fitted.fit.constant, BEST) < 4
    winner = max((each for each in fitted.compared if each.is_significant), key=lambda each: each.gain.value)
    assert fitted.chosen == winner.name
    assert fitted.table == winner.table
    assert winner.gain.interval[0] > 0
    assert "measure it on other data" in fitted.sentence


def test_a_gain_is_of_data_that_chose_nothing(gaussian_run, gaussian_files, lagging, monkeypatch):
    """r*(t) is that of a half of the data, and the other half judges."""
    lagging(LAG)
    judging = []

    def recorded(blends, tables, reference, metric):
        judging.append(reference.x1)
        return judged(blends, tables, reference, metric)

    judged = fit.judged
    monkeypatch.setattr(fit, "judged", recorded)
    fitted = fit_profile(gaussian_run, data=held_out(gaussian_files), settings=FEW)
    blends = BlendedRun(gaussian_run, FEW)
    samples = blends.run.registry.create("dataset", "arrays", file=gaussian_files / "held-out.npz")
    order = torch.randperm(160, generator=FEW.generator("held-out"))
    first, second = (samples.batch(order[rows]) for rows in (slice(80), slice(80, None)))
    assert torch.equal(judging[0], second.x1)
    values = [blends.best_retentions(half, batches=20).constant for half in (first, second)]
    assert fitted.fit.constant == values[0] != values[1]


@pytest.mark.slow
def test_errors_of_r_star_count_the_data_and_not_the_pairs(gaussian_run, lagging):
    """Over repeated draws of 40 data, each with about a hundred pairs; batches of pairs would promise too much."""
    lagging(LAG)
    settings = [Settings(count=40, points=40, seed=seed) for seed in range(40)]
    fits = [BlendedRun(gaussian_run, each).best_retentions(points(40, each.seed), batches=20) for each in settings]
    values = torch.tensor([fit.constant.value for fit in fits])
    errors = torch.tensor([fit.constant.stderr for fit in fits])
    assert float(values.mean()) == pytest.approx(BEST, abs=4 * float(values.std()) / 40**0.5)
    honest = float(errors.square().mean().sqrt()) / float(values.std())
    assert 0.7 < honest < 1.4
    naive = torch.tensor([naive_error(seed) for seed in range(40)])
    assert float(naive.square().mean().sqrt()) / float(values.std()) < 0.5


def naive_error(seed):
    """The error of r* where batches mix the pairs of all data."""
    generator = torch.Generator().manual_seed(seed)
    x1 = points(40, seed).x1.repeat(100, 1)
    x0, t = torch.randn(4000, 2, generator=generator), torch.rand(4000, generator=generator)
    x, target = (1 - t[:, None]) * x0 + t[:, None] * x1, x1 - x0
    drift, anchor = Exact(LAG)(t, x), Exact(1.0)(t, x)
    mixed = torch.randperm(4000, generator=generator)
    columns = [values[mixed] for values in (drift, target, anchor, t)]
    return fit_retention(*columns, batches=20, edges=EDGES).constant.stderr


def test_folds_find_the_lag_and_are_continued(gaussian_run, lagging, tmp_path):
    lagging(LAG)
    said = []
    fitted = fit_profile(gaussian_run, folds=2, folder=tmp_path / "folds", settings=FEW, say=said.append)
    assert score(fitted.fit.constant, BEST) < 4
    assert len(fitted.fit.along) == 40
    assert fitted.table.values[0] < -0.1
    assert said[0].startswith("Cross-fitting trains 2 times as long")
    runs = sorted(path.name for path in (tmp_path / "folds").iterdir())
    assert runs == ["fold-1-of-2", "fold-2-of-2"]
    models = [tmp_path / "folds" / name / "model.safetensors" for name in runs]
    written, weights = models[0].stat().st_mtime_ns, runs_on_moons.model(models[1].parent)
    models[1].unlink()
    again = fit_profile(gaussian_run, folds=2, folder=tmp_path / "folds", settings=FEW)
    assert models[0].stat().st_mtime_ns == written
    assert runs_on_moons.same(runs_on_moons.model(models[1].parent), weights)
    assert again.chosen == fitted.chosen
    assert again.table.values == pytest.approx(fitted.table.values, rel=1e-9)


def test_a_fold_is_measured_by_the_run_without_it(gaussian_run, monkeypatch, tmp_path):
    """Every run of a fold is trained on the rest, and its r*(t) is of the fold."""
    from gftkit.selection import folds

    seen = []
    measure = BlendedRun.best_retentions

    def recorded(blends, data, batches):
        seen.append((blends.training.at(torch.arange(blends.training.size)).x1, data.x1))
        return measure(blends, data, batches)

    monkeypatch.setattr(folds.BlendedRun, "best_retentions", recorded)
    fit_profile(gaussian_run, folds=3, folder=tmp_path / "folds", settings=Settings(count=40, points=120))
    whole = {tuple(row) for row in gaussian_run.training_data(120).x1.tolist()}
    held = [{tuple(row) for row in part.tolist()} for _, part in seen]
    assert [len(part) for part in held] == [40, 40, 40]
    assert set.union(*held) == whole
    for (rest, _), part in zip(seen, held, strict=True):
        assert {tuple(row) for row in rest.tolist()} == whole - part


def test_the_profiles_of_a_fold_come_from_the_others(gaussian_run, lagging, tmp_path):
    lagging(LAG)
    crossed = cross_fit(gaussian_run, 3, tmp_path, settings=FEW, metric=None)
    assert len(crossed.fit.along) == 60
    preference = BlendedRun(gaussian_run, FEW).preference()
    for fold, tables in enumerate(crossed.families):
        own = [*range(20 * fold, 20 * fold + 20)]
        others = crossed.fit.batches([row for row in range(60) if row not in own])
        for name in ("constant r*", "r*(t)", "late r*(t)"):
            assert tables[name].values == pytest.approx(family(preference, others)[name].values)
            assert tables[name].values != pytest.approx(family(preference, crossed.fit.batches(own))[name].values)
        assert list(tables) == crossed.names
        assert crossed.replicates[fold].values.shape == (1 + len(tables),)
