"""The regression oracle against regression on pairs, and the shipped loop in memory against a run on disk."""

import pytest
import torch

import gftkit
from gftkit.api import Run
from gftkit.experiment.building import build_source
from gftkit.theory import flow
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds.loops.shipped import LinearModel, build_loop, fit_regression
from gftkit_verification.testbeds.problems.flows import COUPLINGS, random_flow

PAIRS = 200_000
STANDARD_ERRORS = 5.0


def least_squares(path, gaussian, model):
    """W of the regression of conditional drifts on features, and standard errors of its entries."""
    generator = torch.Generator().manual_seed(3)
    x0, x1 = gaussian.pairs(PAIRS, generator)
    t = flow.t_end(path) * torch.rand(PAIRS, generator=generator, dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    phi = model.features(t, flow.sample(path, t, x0, x1, noise))
    label = flow.drift(path, t, x0, x1, noise)
    weight = torch.linalg.lstsq(phi, label).solution.mT
    inverse = torch.linalg.inv(phi.mT @ phi)
    influence = phi @ inverse  # (n, p); the fit's error is the sum of residual x influence
    variance = (label - phi @ weight.mT).square().mT @ influence.square()
    return weight, variance.sqrt(), phi.mT @ phi / PAIRS


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("degree", [0, 2])
@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_regression_agrees_with_least_squares_on_pairs(registry, coupling, degree, scale):
    spec = {"scale": scale, "delta": 0.1} if scale else {}
    path = registry.create("path", "brownian-bridge" if scale else "linear", **spec)
    gaussian, model = random_flow(4, 2, coupling), LinearModel(2, degree)
    fit = fit_regression(gaussian, model, flow.t_end(path), scale)
    weight, error, gram = least_squares(path, gaussian, model)
    assert ((fit.weight - weight) / error).abs().max() < STANDARD_ERRORS
    assert (fit.gram - gram).norm() < 0.02 * gram.norm()
    assert ((fit_regression(gaussian, model, 0.5, scale).weight - weight) / error).abs().max() > 5 * STANDARD_ERRORS


def test_a_regression_fits_exactly_what_its_class_can_express():
    """With x1 = x0 + shift the velocity is constant, and in every class."""
    gaussian = random_flow(1, 3)
    still = GaussianFlow(gaussian.mean0, gaussian.cov0, gaussian.mean1, gaussian.cov0, "optimal-transport")
    weight = fit_regression(still, LinearModel(3, 1)).weight
    assert torch.allclose(weight[:, 0], still.mean1 - still.mean0)
    assert weight[:, 1:].abs().max() < 1e-10


@pytest.mark.parametrize("form", ["blended", "penalty"])
def test_a_loop_in_memory_trains_the_weights_of_the_shipped_run(registry, pretrained, tmp_path, form):
    """The same weights as by ``gftkit.finetune`` with the same components and seed, bit for bit."""
    steps = 4
    config = {
        "pretrained": str(pretrained),
        "data": {"name": "gaussian-mixture"},
        "schedule": {"name": "exponential"},
        "train": {"steps": steps, "batch_size": 16, "learning_rate": 0.01},
        "evaluate": {"every": steps, "count": 32, "solver": {"name": "euler", "steps": 1}},
        "objective": {"form": form},
        "seed": 5,
    }
    run = gftkit.finetune(config, tmp_path / "run", device="cpu")
    components = {
        kind: registry.build(kind, getattr(run.config, "data" if kind == "dataset" else kind))
        for kind in ("dataset", "path", "coupling", "schedule")
    }
    source = build_source(run.config.source, (2,), registry)
    before = Run.open(pretrained).drift()
    loop = build_loop(
        registry=registry,
        drift=before,
        data=components["dataset"],
        source=source,
        path=components["path"],
        coupling=components["coupling"],
        schedule=components["schedule"],
        train=run.config.train,
        seed=run.config.seed,
        form=form,
    )
    for step in range(steps):
        loop.take(step)
    after = run.drift("raw").state_dict()
    assert all(torch.equal(value, after[name]) for name, value in loop.drift.state_dict().items())
    assert any(not torch.equal(value, after[name]) for name, value in loop.anchor.module.state_dict().items())
