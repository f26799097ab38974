"""A flow map is told the end of a jump, learns its teacher's flow, and is refused where it makes no sense."""

import pytest
import torch
from torch import nn

import gftkit
from gftkit.kernel.errors import ConfigError
from gftkit.networks import flow_map
from gftkit.sampling import integrate

REGISTRY = gftkit.load()
EVENT = (1, 8, 8)
INNER = {"mlp": {"width": 16}, "unet": {"width": 8, "attention": 1}}


def make(name="mlp", event_shape=EVENT, moved=False, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inner = {"name": name, **INNER.get(name, {})}
        made = REGISTRY.build("drift", {"name": "flow-map", "drift": inner, **options}, event_shape=list(event_shape))
        for parameter in made.parameters() if moved else ():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def inputs(event_shape=EVENT, batch=5):
    generator = torch.Generator().manual_seed(1)
    t, end = torch.rand(2, batch, generator=generator).sort(0).values
    return t, end, torch.randn(batch, *event_shape, generator=generator)


class Plain(nn.Module):
    """A network of another house: nothing in it embeds a time."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, t, x):
        return self.last(torch.tanh(self.first(torch.cat([t[:, None], x], 1))))


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INNER)
def test_a_new_student_is_the_network_that_it_wraps_whatever_the_end(name):
    student = make(name)
    for parameter in student.drift.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    t, end, x = inputs()
    assert torch.equal(student(t, x, end=end), student.drift(t, x))
    assert torch.equal(student(t, x), student.drift(t, x))


@pytest.mark.parametrize("name", INNER)
def test_the_end_counts_once_it_is_learned_and_without_one_it_is_the_start(name):
    student = make(name, moved=True)
    t, end, x = inputs()
    assert not torch.allclose(student(t, x, end=end), student(t, x))
    assert torch.equal(student(t, x, end=t), student(t, x))
    t, end, x, student = t.double(), end.double(), x.double(), student.double()
    here, slope = flow_map.value_and_derivative(lambda until: student(t, x, end=until), end)
    assert torch.allclose(here, student(t, x, end=end), atol=1e-6)
    (steeper,) = torch.autograd.grad(slope.square().sum(), student.embed[-1].weight, retain_graph=True)
    assert float(steeper.abs().max()) > 0
    near = [student(t, x, end=end + h) for h in (1e-4, -1e-4)]
    assert torch.allclose(slope, (near[0] - near[1]) / 2e-4, atol=1e-5)


def test_any_network_can_be_wrapped_by_its_state_or_by_a_module_that_is_named(tmp_path):
    from gftkit_plugins.drifts.flow_map import FlowMap

    t, end, x = inputs((2,))
    for into in (None, "first"):
        student = FlowMap(Plain(), (2,), into=into)
        assert torch.equal(student(t, x, end=end), student.drift(t, x))
        student.embed[-1].bias.data += 1
        assert not torch.allclose(student(t, x, end=end), student.drift(t, x))
    with pytest.raises(ValueError, match=r"no module 'frist'. Modules: first, last"):
        FlowMap(Plain(), (2,), into="frist")


def test_an_embedding_needs_a_module_of_vectors():
    with pytest.raises(
        ConfigError, match=r"wanted a module whose output is \(batch, d\), and the output of 'first' is shape"
    ):
        make("unet", into="first")


def test_a_copy_has_an_embedding_of_its_own():
    import copy

    student = make(moved=True)
    other = copy.deepcopy(student)
    t, end, x = inputs()
    before = student(t, x, end=end)
    assert torch.equal(other(t, x, end=end), before)
    other.embed[-1].bias.data += 1
    assert torch.equal(student(t, x, end=end), before)
    assert not torch.allclose(other(t, x, end=end), before)


# --- sampling ---------------------------------------------------------------------------------------------------------


class Jumping(nn.Module):
    """The flow map of x' = 2 x + 1."""

    jumps = True

    def forward(self, t, x, end=None):
        length = (end - t)[:, None]
        return torch.expm1(2 * length) / length * (x + 0.5)


class Sleeping(Jumping):
    """One that doesn't heed the end."""

    def forward(self, t, x, end=None):
        return 2 * x + 1


def sampled(drift, steps, grid=None):
    x0 = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    spacing = None if grid is None else REGISTRY.create("grid", grid)
    solver, path = REGISTRY.create("solver", "flow-map"), REGISTRY.create("path", "linear")
    x1 = integrate.generate(drift, path, solver, steps, x0, torch.Generator(), spacing=spacing)
    return x1, torch.exp(torch.tensor(2.0, dtype=torch.float64)) * (x0 + 0.5) - 0.5


@pytest.mark.parametrize(("steps", "grid"), [(1, None), (2, None), (3, "cosine")])
def test_jumps_on_any_grid_land_where_the_flow_does(steps, grid):
    x1, exact = sampled(Jumping(), steps, grid)
    assert torch.allclose(x1, exact, atol=1e-12)
    x1, exact = sampled(Sleeping(), steps, grid)
    assert not torch.allclose(x1, exact, atol=0.1)


def test_a_velocity_has_no_jumps():
    with pytest.raises(ConfigError, match=r"requires a flow map, and this drift is a velocity.*gft distill"):
        sampled(REGISTRY.build("drift", {"name": "mlp", "width": 8}, event_shape=[1]), 2)
