"""The geometry of blended flows: closed forms of two straight flows, and the flow that ``gft sample`` takes."""

import math

import pytest
import torch

import gftkit
from gftkit.generation.blending import Blended
from gftkit.geometry.motion import motion
from gftkit.geometry.time_grid import fit_run
from gftkit.geometry.tracing import Flow, flow_of

STEP = {"name": "step", "early": -0.5, "late": 0.0, "cut": 0.5}


def steady(velocity):
    return lambda t, x: torch.tensor(velocity, dtype=x.dtype).expand_as(x)


def moved(registry, retention, fine_steps=8):
    x0 = torch.randn(24, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drift = Blended(steady([3.0, 4.0]), steady([3.0, 0.0]), retention)
    return motion(
        Flow(drift, registry.create("path", "linear"), x0, {}, registry, torch.device("cpu")), 0.05, fine_steps
    )


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.25])
def test_a_guide_lengthens_what_tells_the_fine_tune_from_its_anchor(registry, rho):
    found = moved(registry, rho)
    assert found.measures["path_length"].value == pytest.approx(math.hypot(3, 4 * (1 - rho)), rel=1e-9)
    assert found.measures["straightness"].value == pytest.approx(0, abs=1e-9)


def test_a_step_profile_bends_two_straight_flows(registry):
    """Of velocity (3, 6) before t = 0.5 and (3, 4) after: rk4's steps end at the cut, where its last stage is after it.

    So the length has an error of one stage in six of one step of the difference.
    """
    found, fine = (moved(registry, registry.create("profile", **STEP), steps) for steps in (8, 64))
    wanted = (math.hypot(3, 6) + math.hypot(3, 4)) / 2
    assert abs(fine.measures["path_length"].value - wanted) < 2 / 6 / 64 + 1e-9
    assert abs(found.measures["path_length"].value - wanted) > 2 * abs(fine.measures["path_length"].value - wanted)
    assert fine.measures["straightness"].value == pytest.approx(1.0, rel=0.05)  # E|v - mean v|^2, 1 on either side


def test_a_run_s_blended_flow_is_the_one_that_is_sampled(registry, finetune_config, tmp_path):
    finetune_config["train"]["learning_rate"] = 0.05
    run = gftkit.finetune(finetune_config, tmp_path / "run", device="cpu")
    solver, spec = registry.create("solver", "heun"), {"name": "heun", "steps": 4}
    for asked in (-0.4, STEP):
        flow = flow_of(run, 64, 5, seed=3, retention=asked)
        ends = flow.ends(solver, 4).float()
        assert torch.allclose(ends, run.samples(69, seed=3, solver=spec, retention=asked)[0][64:], atol=1e-6)
        assert not torch.allclose(ends, run.samples(69, seed=3, solver=spec)[0][64:], atol=1e-3)
        _, notes = fit_run(run, [2], count=4, fine_steps=6, retention=asked)
        assert notes["retention"] == flow.retention
    assert flow_of(run, 0, 5).retention == 0.0
