"""Path length, straightness and energy of trajectories, on flows where they are known."""

import math
from dataclasses import replace

import pytest
import torch
from support.evaluations import REGISTRY, Constant, draw, evaluation_of, measure

ROUND_OFF = 1e-8  # relative; float64 through two eigendecompositions


def test_path_length_of_a_straight_flow_is_exact():
    v = draw(1, 2, 2, seed=3)
    evaluation = evaluation_of(Constant(v))
    found = measure("path-length", evaluation)
    assert found.value == pytest.approx(float(v.norm()), rel=ROUND_OFF)
    assert found.stderr == pytest.approx(0, abs=ROUND_OFF)
    per_pixel = float(v.square().mean().sqrt())
    sum_of_sides = float(v.abs().sum())
    for wrong in (per_pixel, sum_of_sides):
        assert found.value != pytest.approx(wrong, rel=1000 * ROUND_OFF)


class Rotation(torch.nn.Module):
    """One turn about the origin: circles of length 2 pi |x_0|, polygons 2 K sin(pi/K) |x_0| at exact vertices."""

    def forward(self, t, x):
        return 2 * math.pi * torch.stack([-x[:, 1], x[:, 0]], dim=1)


def test_path_length_is_a_polygon_and_has_a_standard_error():
    steps, count = 8, 30
    evaluation = evaluation_of(Rotation(), count, event=(2,), steps=99)
    found = measure("path-length", evaluation, steps=steps)
    start = evaluation.trajectory(1)[0].norm(dim=1)
    growth = math.sqrt(1 + (2 * math.pi / steps) ** 2)  # of the radius in an Euler step
    lengths = start * (2 * math.pi / steps) * sum(growth**k for k in range(steps))
    assert found.value == pytest.approx(float(lengths.mean()), rel=ROUND_OFF)
    assert found.stderr == pytest.approx(float(lengths.std()) / math.sqrt(count), rel=ROUND_OFF)
    straight = (evaluation.trajectory(steps)[-1] - evaluation.trajectory(steps)[0]).norm(dim=1).mean()
    assert found.value != pytest.approx(float(straight), rel=1000 * ROUND_OFF)


def test_a_straight_flow_has_straightness_0_and_energy_v_squared():
    v = draw(1, 2, 2, seed=3)
    evaluation = evaluation_of(Constant(v))
    assert measure("straightness", evaluation).value == pytest.approx(0, abs=ROUND_OFF)
    energy = measure("kinetic-energy", evaluation)
    assert energy.value == pytest.approx(float(v.square().sum()), rel=ROUND_OFF)
    assert energy.value != pytest.approx(float(v.norm()), rel=0.01)


def test_a_turning_flow_is_not_straight_and_its_energy_is_that_of_its_polygon():
    steps, count = 8, 30
    evaluation = evaluation_of(Rotation(), count, event=(2,), steps=99)
    start = evaluation.trajectory(1)[0].square().sum(1)
    growth = 1 + (2 * math.pi / steps) ** 2  # of the squared radius in an Euler step
    energies = start * (2 * math.pi) ** 2 / steps * sum(growth**k for k in range(steps))
    found = measure("kinetic-energy", evaluation, steps=steps)
    assert found.value == pytest.approx(float(energies.mean()), rel=ROUND_OFF)
    assert found.stderr == pytest.approx(float(energies.std()) / math.sqrt(count), rel=ROUND_OFF)
    states = evaluation.trajectory(steps)
    moved = (states[-1] - states[0]).square().sum(1)
    found = measure("straightness", evaluation, steps=steps)
    assert found.value == pytest.approx(float((energies - moved).mean()), rel=1e3 * ROUND_OFF)
    assert found.stderr == pytest.approx(float((energies - moved).std()) / math.sqrt(count), rel=1e3 * ROUND_OFF)


def test_times_of_an_uneven_grid_are_minded():
    even, uneven = evaluation_of(Constant(draw(1, 2, seed=3)), event=(2,)), evaluation_of(Rotation(), event=(2,))
    for evaluation in (even, uneven):
        evaluation.scheme = replace(evaluation.scheme, spacing=REGISTRY.create("grid", "cosine"))
    v = even.drift.v
    assert measure("kinetic-energy", even).value == pytest.approx(float(v.square().sum()), rel=ROUND_OFF)
    assert measure("straightness", even).value == pytest.approx(0, abs=ROUND_OFF)
    states, times = uneven.trajectory(), torch.tensor(uneven.times(), dtype=torch.float64)
    velocity = 2 * math.pi * torch.stack([-states[:-1, :, 1], states[:-1, :, 0]], 2)
    wanted = (velocity.square().sum(2) * times.diff()[:, None]).sum(0).mean()
    assert measure("kinetic-energy", uneven).value == pytest.approx(float(wanted), rel=1e3 * ROUND_OFF)


@pytest.mark.parametrize("name", ["straightness", "kinetic-energy"])
def test_flows_with_noise_and_single_samples_and_steps_are_refused(name):
    drift = Constant(torch.ones(1, 2, 2, dtype=torch.float64))
    noisy = evaluation_of(drift)
    noisy._equation = (drift, REGISTRY.create("path", "brownian-bridge"))
    with pytest.raises(ValueError, match="without noise"):
        measure(name, noisy)
    with pytest.raises(ValueError, match="at least 2 samples"):
        measure(name, evaluation_of(drift, count=1))
    if name == "straightness":
        with pytest.raises(ValueError, match="at least 2 steps"):
            measure(name, evaluation_of(drift), steps=1)


def test_path_length_refuses_a_single_sample():
    with pytest.raises(ValueError, match="at least 2 samples"):
        measure("path-length", evaluation_of(Constant(torch.ones(1, 2, 2, dtype=torch.float64)), count=1))
