"""The shape of trajectories, on flows where it is known."""

import itertools
import json
import math

import pytest
import torch

from gftkit.geometry import shape as geometry
from gftkit.geometry.motion import motion
from gftkit.geometry.tracing import Flow
from gftkit.kernel.errors import ConfigError, DivergenceError

OMEGA = 2.0
TIMES = 200


class Turning(torch.nn.Module):
    """v = omega J x in the first two coordinates: circles of curvature 1/r, |a| = omega^2 r, |v| = omega r."""

    def forward(self, t, x):
        return OMEGA * torch.stack([-x[:, 1], x[:, 0], 0 * x[:, 2]], 1)


class Falling(torch.nn.Module):
    """v = (1, 0, t): a = (0, 0, 1), a parabola that turns by atan(1) = pi/4."""

    def forward(self, t, x):
        return torch.stack([torch.ones_like(t), 0 * t, t], 1)


class Steady(torch.nn.Module):
    """v = x_0's own displacement: straight, of constant speed, and the optimal map x -> x + (1, 2, 3)."""

    def forward(self, t, x):
        return torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype).expand_as(x)


@pytest.fixture
def flow(registry):
    def make(drift, n=6):
        x0 = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return Flow(drift, registry.create("path", "linear"), x0, {}, registry, torch.device("cpu"))

    return make


@pytest.fixture
def traced(flow):
    return lambda drift: flow(drift).trajectory(TIMES)


def rates(trajectory):
    a = geometry.accelerations(trajectory.velocities, trajectory.times)
    return a, geometry.turning_rates(trajectory.velocities, a)


def test_a_rotation(traced):
    found = traced(Turning())
    r = found.states[0, :, :2].norm(dim=1)
    length, energy = geometry.lengths(found.states), geometry.energies(found.states, found.times)
    assert torch.allclose(length, OMEGA * r, rtol=1e-4)
    assert torch.allclose(energy, (OMEGA * r) ** 2, rtol=1e-4)
    assert torch.allclose(geometry.displacements(found.states), (2 * r * math.sin(OMEGA / 2)) ** 2, rtol=1e-6)
    chord = 2 * r * math.sin(OMEGA / 2)
    assert torch.allclose(geometry.straightness(found.states, found.times), (OMEGA * r) ** 2 - chord**2, rtol=1e-3)
    a, turning = rates(found)
    assert torch.allclose(a.norm(dim=2), (OMEGA**2 * r).expand(TIMES + 1, -1), rtol=1e-3)
    assert torch.allclose(turning, torch.full_like(turning, OMEGA), rtol=1e-3)
    assert torch.allclose(geometry.over_time(turning, found.times), torch.full_like(r, OMEGA), rtol=1e-3)


def test_a_parabola(traced):
    found = traced(Falling())
    a, turning = rates(found)
    assert torch.allclose(a, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand_as(a), atol=1e-9)
    t = torch.tensor(found.times, dtype=torch.float64)[:, None]
    assert torch.allclose(turning, (1 / (1 + t**2)).expand_as(turning), atol=1e-9)
    assert not torch.allclose(turning, a.norm(dim=2))  # not all of a turns
    assert torch.allclose(geometry.over_time(turning, found.times), torch.tensor(math.pi / 4).double(), atol=1e-4)
    assert torch.allclose(geometry.energies(found.states, found.times), torch.tensor(4 / 3).double(), atol=1e-4)
    assert torch.allclose(geometry.straightness(found.states, found.times), torch.tensor(1 / 12).double(), atol=1e-4)


def test_speeding_up_on_a_line_accelerates_without_turning():
    times = [k / 10 for k in range(11)]
    t = torch.tensor(times, dtype=torch.float64)[:, None, None]
    v = 3 * t**2 * torch.tensor([1.0, 2.0])
    a = geometry.accelerations(v, times)
    assert torch.allclose(a, 6 * t * torch.tensor([1.0, 2.0]))
    assert float(geometry.turning_rates(v, a).max()) < 1e-12  # and at v = 0 too
    states = t**3 * torch.tensor([1.0, 2.0])
    assert torch.allclose(geometry.lengths(states), torch.tensor([math.sqrt(5)]).double())
    assert float(geometry.straightness(states, times)) > 1  # straight, but not of constant speed


@pytest.mark.parametrize("times", [[0, 0.25, 0.5, 0.75, 1], [0, 0.1, 0.2, 0.7, 1]])
def test_straightness_is_energy_above_the_displacement(times):
    states = torch.randn(5, 9, 2, 3, generator=torch.Generator().manual_seed(1))
    found = geometry.straightness(states, times)
    assert torch.allclose(found, geometry.energies(states, times) - geometry.displacements(states))
    straight = torch.tensor(times)[:, None, None, None] * states[:1]
    assert float(geometry.straightness(straight, times).max()) < 1e-10
    if times[1] != 0.25:
        assert float(geometry.straightness(straight, [0, 0.25, 0.5, 0.75, 1]).max()) > 1e-2  # times matter


def test_the_transport_cost_is_the_least_of_all_pairings():
    x0, x1 = torch.randn(2, 40, 1, generator=torch.Generator().manual_seed(2))
    found = geometry.transport_cost(x0, x1, torch.Generator())
    sorted_cost = (x0.sort(0).values - x1.sort(0).values).square().mean()  # optimal on the line
    assert found.value == pytest.approx(float(sorted_cost), rel=1e-6)
    assert found.value < float((x0 - x1).square().mean())
    assert 0 < found.stderr < found.value
    with pytest.raises(ValueError, match="at least 20 samples, one for each group"):
        geometry.transport_cost(x0[:19], x1[:19], torch.Generator())


def test_no_trajectories_cost_less_than_the_transport_of_their_ends():
    generator = torch.Generator().manual_seed(3)
    for steps, size in itertools.product((1, 3), (1, 4)):
        states = torch.randn(steps + 1, 25, size, generator=generator)
        energy = geometry.energies(states, [k / steps for k in range(steps + 1)]).mean()
        cost = geometry.transport_cost(states[0], states[-1], generator).value
        assert float(energy) >= cost * (1 - 1e-9)


def test_the_motion_of_a_straight_flow(flow):
    found = motion(flow(Steady(), 24), fine_steps=8)
    wanted = {"path_length": math.sqrt(14), "displacement": 14, "straightness": 0, "kinetic_energy": 14}
    wanted |= {"transport_cost": 14, "energy_over_transport": 1, "acceleration": 0, "turning": 0}
    for name, value in wanted.items():
        assert found.measures[name].value == pytest.approx(value, abs=1e-6), name
        assert found.measures[name].stderr == pytest.approx(0, abs=1e-6) or value == 0
    for cost, each in ((found.costs["euler"], 1), (found.costs["heun"], 2)):
        assert (cost.steps, cost.evaluations) == (1, each)


def test_the_motion_of_a_rotation_and_the_evaluations_that_it_takes(flow):
    given = flow(Turning(), 30)
    found = motion(given, tolerance=0.1, fine_steps=50)
    assert found.measures["turning"].value == pytest.approx(OMEGA, rel=1e-2)
    r = given.x0[:, :2].norm(dim=1)
    assert found.measures["acceleration"].value == pytest.approx(OMEGA**2 * float(r.square().mean().sqrt()), rel=1e-2)
    assert found.measures["energy_over_transport"].value > 1.2  # a turned normal law is where it was
    assert len(found.times) == len(found.acceleration) == len(found.turning) == 51
    ends = given.ends(given.registry.create("solver", "rk4"), 50)
    spread = (ends - ends.mean(0)).square().sum(1).mean()
    for name, each in (("euler", 1), ("heun", 2)):
        solver = given.registry.create("solver", name)

        def error(steps, solver=solver):
            return float(((given.ends(solver, steps) - ends).square().sum(1).mean() / spread).sqrt())

        cost = found.costs[name]
        assert error(cost.steps) <= 0.1 < error(cost.steps - 1)
        assert cost.evaluations == each * cost.steps
        assert cost.errors[cost.steps].value == pytest.approx(error(cost.steps), rel=1e-9)
        assert 0 < cost.stderr < cost.evaluations
    assert found.costs["heun"].evaluations < found.costs["euler"].evaluations


def test_a_tolerance_that_no_steps_reach_and_bad_requests(flow):
    found = motion(flow(Turning(), 20), tolerance=1e-4, fine_steps=20)
    assert (found.costs["euler"].steps, found.costs["euler"].evaluations) == (None, None)
    assert found.costs["heun"].errors[64].value > 1e-4 or found.costs["heun"].steps is not None
    with pytest.raises(ConfigError, match="at least 20 trajectories"):
        motion(flow(Turning(), 19))
    with pytest.raises(ConfigError, match="tolerance"):
        motion(flow(Turning(), 20), tolerance=0.0)
    with pytest.raises(ConfigError, match="fine_steps"):
        motion(flow(Turning(), 20), fine_steps=1)
    with pytest.raises(DivergenceError):
        motion(flow(lambda t, x: x / 0, 20), fine_steps=4)


def test_gft_geometry_compares_runs(pretrained, run_copy, tmp_path, gft, with_pictures):
    command = ("geometry", pretrained, run_copy, "--count", 20, "--fine-steps", 6, "--out", tmp_path / "geometry")
    done = gft(*command, "--json")
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert json.loads((tmp_path / "geometry/geometry.json").read_text()) == answer
    assert (tmp_path / "geometry/geometry.png").read_bytes()[:4] == b"\x89PNG"
    one, other = answer["runs"].values()  # of one name, and so by their paths
    assert list(answer["runs"]) == [str(pretrained), str(run_copy)]
    assert one == other
    assert one["measures"]["kinetic_energy"]["value"] >= one["measures"]["transport_cost"]["value"]
    assert "exists" in gft(*command).err
    done = gft(*command, "--force")
    assert "energy_over_transport" in done.out
    assert "is a file" in gft("geometry", pretrained, "--out", run_copy / "config.yaml").err
