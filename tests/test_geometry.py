"""The shape of trajectories, on flows where it is known."""

import itertools
import math

import pytest
import torch

from gftkit import geometry
from gftkit.tracing import Flow

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


@pytest.fixture
def traced(registry):
    def trace(drift, steps=TIMES):
        x0 = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return Flow(drift, registry.create("path", "linear"), x0, {}, registry, torch.device("cpu")).trajectory(steps)

    return trace


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
    with pytest.raises(ValueError, match="at least as many"):
        geometry.transport_cost(x0[:19], x1[:19], torch.Generator())


def test_no_trajectories_cost_less_than_the_transport_of_their_ends():
    generator = torch.Generator().manual_seed(3)
    for steps, size in itertools.product((1, 3), (1, 4)):
        states = torch.randn(steps + 1, 25, size, generator=generator)
        energy = geometry.energies(states, [k / steps for k in range(steps + 1)]).mean()
        cost = geometry.transport_cost(states[0], states[-1], generator).value
        assert float(energy) >= cost * (1 - 1e-9)
