"""Runs with conditions, guidance, adapters, optimal transport, a weight, or noise: all have profiles."""

import numpy as np
import pytest
import torch

import gftkit
from gftkit.kernel.errors import ConfigError, DataError
from gftkit.selection import Settings, fit_profile
from gftkit.selection.blended_run import BlendedRun
from gftkit.selection.family import constant

MIXTURE = {"name": "gaussian-mixture", "count": 60}
FEW = Settings(count=40, points=60)


def tuned(folder, first, second):
    solver = first.pop("solver", {"name": "euler", "steps": 2})
    shared = {"train": {"steps": 4, "batch_size": 16}, "evaluate": {"count": 40, "solver": solver}}
    shared["train"] |= second.pop("train", {})
    shared["evaluate"] |= second.pop("evaluate", {})
    start = {"data": {"name": "gaussian-mixture"}, "drift": {"name": "mlp", "width": 8, "depth": 1}}
    pretrain = {**start, **shared, "evaluate": {"count": 40, "solver": solver}, **first}
    gftkit.pretrain(pretrain, folder / "first", device="cpu")
    tune = {"pretrained": str(folder / "first"), "data": MIXTURE, "schedule": {"name": "zero"}, **shared, **second}
    return gftkit.finetune(tune, folder / "second", device="cpu")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            {"drift": {"name": "mlp", "width": 8, "depth": 1, "conditional": True}},
            {"train": {"condition_dropout": 0.2}, "evaluate": {"guidance": 1.5}, "adapters": {"rank": 2}},
        ),
        ({"coupling": {"name": "optimal-transport"}}, {"objective": {"weight": "1 + t"}}),
        ({"path": {"name": "brownian-bridge"}, "solver": {"name": "euler-maruyama", "steps": 3}}, {}),
    ],
    ids=["conditions and adapters", "transport and weight", "noise"],
)
def test_such_a_run_is_fitted_by_training_and_held_out_data(tmp_path, first, second):
    run = tuned(tmp_path, first, second)
    held_out = {"name": "gaussian-mixture", "count": 40, "seed": 5}
    for data in (None, held_out):
        fitted = fit_profile(run, data=data, settings=FEW)
        assert all(torch.isfinite(torch.tensor(each.value)) for each in fitted.preference.distances)
    assert torch.isfinite(fitted.fit.along).all()
    assert (fitted.fit.moved.sum(1) > 0).all()


def test_a_map_to_the_training_data_has_no_other_pairs(tmp_path):
    map_to_data = {"coupling": {"name": "semidiscrete"}, "data": MIXTURE}
    run = tuned(tmp_path, {}, map_to_data)
    assert len(fit_profile(run, settings=FEW).preference.distances) == 4
    for options in ({"data": {**MIXTURE, "seed": 5}}, {"folds": 2, "folder": tmp_path / "folds"}):
        with pytest.raises(ConfigError, match="maps the source to the training data"):
            fit_profile(run, settings=FEW, **options)
    assert not (tmp_path / "folds").exists()


def test_folds_of_repeated_data_are_refused_before_anything_is_trained(tmp_path):
    points = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)).numpy()
    np.savez(tmp_path / "twice.npz", x1=np.concatenate([points, points]))
    run = tuned(tmp_path, {}, {"data": {"name": "arrays", "file": str(tmp_path / "twice.npz")}})
    with pytest.raises(DataError, match="samples of fold 1 are in another fold too"):
        fit_profile(run, folds=2, folder=tmp_path / "folds", settings=FEW)
    assert not (tmp_path / "folds").exists()


def test_samples_of_all_blends_have_common_sources_and_conditions(tmp_path):
    run = tuned(tmp_path, {"drift": {"name": "mlp", "width": 8, "depth": 1, "conditional": True}}, {})
    blends, reference = BlendedRun(run, FEW), run.training_data(60)
    one, other = (blends.evaluation(constant(value).component(run.registry), reference) for value in (0.0, -0.4))
    assert torch.equal(one.trajectory()[0], other.trajectory()[0])
    assert torch.equal(one.conditions(40)["label"], other.conditions(40)["label"])
    assert not torch.equal(one.samples(), other.samples())
    assert torch.equal(one.samples(), blends.evaluation(constant(0.0).component(run.registry), reference).samples())


def test_held_out_data_that_repeat_a_sample_are_refused(tmp_path):
    """Both halves would have it: what measures would judge itself. Each once, the same samples are taken."""
    run = tuned(tmp_path, {}, {})
    once = torch.randn(40, 2, generator=torch.Generator().manual_seed(3)).numpy()
    for name, x1 in (("once", once), ("twice", np.concatenate([once, once[:3]]))):
        np.savez(tmp_path / f"{name}.npz", x1=x1)
    with pytest.raises(DataError, match="3 of 43 held-out samples repeat another one"):
        fit_profile(run, data={"name": "arrays", "file": str(tmp_path / "twice.npz")}, settings=FEW)
    assert fit_profile(run, data={"name": "arrays", "file": str(tmp_path / "once.npz")}, settings=FEW).fit is not None
