"""A sample is a function of seed and index, whatever the batch, the count and the solver; the precision of layers."""

import itertools
from dataclasses import replace

import pytest
import torch
from support.bulk_samples import COUNT, NOISY, ROUND_OFF, apart

from gftkit.generation import sampler as sampling
from gftkit.generation.sampler import Request, RunSampler
from gftkit.kernel.errors import ConfigError
from gftkit.sampling import noise

# By index


class Adaptive:
    """A library's solver: how many steps it takes depends on all samples that it is given."""

    ode_order, strong_order, weak_order = 1.0, 0.5, 1.0

    def brownian(self, x, t_end, generator):
        noise = torch.randn(x.shape, generator=generator)
        return lambda s, t: (t - s) * noise

    def integrate(self, drift, diffusion, times, x, brownian):
        yield x
        for t, later in itertools.pairwise(times):
            steps = 1 + int(10 * x.abs().max())
            h = (later - t) / steps
            for k in range(steps):
                x = x + h * drift(t + k * h, x)
            yield x if brownian is None else x + diffusion(t) * brownian(t, later)


@pytest.fixture
def adaptive(monkeypatch):
    """Every solver is that one."""
    build = sampling.scheme_of
    monkeypatch.setattr(sampling, "scheme_of", lambda *asked: replace(build(*asked), solver=Adaptive()))


DOPRI5 = {"name": "dopri5", "steps": 1}


SRK = {"name": "srk", "steps": 2, "diffusion": {"name": "constant"}}


@pytest.mark.parametrize("solver", [DOPRI5, pytest.param(SRK, marks=pytest.mark.slow)], ids=lambda s: s["name"])
def test_the_libraries_solvers_give_an_index_the_same_sample(flow, solver):
    whole = flow.samples(COUNT, 3, solver)[0]
    assert apart(flow.samples(70, 3, solver, batch_size=64)[0], whole[:70]) < ROUND_OFF
    assert apart(RunSampler(flow, Request(COUNT, 3, solver)).part(64, 50), whole[64:114]) < ROUND_OFF


@pytest.mark.parametrize("solver", [{"name": "heun", "steps": 2}, NOISY], ids=lambda solver: solver["name"])
def test_an_index_gives_the_same_sample_whatever_the_batch_and_the_count(flow, solver):
    whole = flow.samples(COUNT, 3, solver)[0]
    for size in (7, 64, 100, 1000):
        assert apart(flow.samples(COUNT, 3, solver, batch_size=size)[0], whole) < ROUND_OFF
    assert apart(flow.samples(70, 3, solver)[0], whole[:70]) < ROUND_OFF
    part = RunSampler(flow, Request(COUNT, 3, solver)).part(64, 50)
    assert apart(part, whole[64:114]) < ROUND_OFF
    assert apart(flow.samples(COUNT, 4, solver)[0], whole) > 0.1


@pytest.mark.parametrize("solver", [None, NOISY])
def test_a_librarys_solver_is_given_whole_blocks(flow, adaptive, solver, monkeypatch):
    whole = flow.samples(COUNT, 3, solver)[0]
    for size in (64, 100, 1000):
        assert apart(flow.samples(COUNT, 3, solver, batch_size=size)[0], whole) < ROUND_OFF
    assert apart(flow.samples(70, 3, solver)[0], whole[:70]) < ROUND_OFF
    sampler = RunSampler(flow, Request(70, 3, solver))
    sampler.samples()
    assert sampler.integrated == 128
    assert sampler.evaluations == sampler.evaluated / 128 > 6
    with pytest.raises(ConfigError, match="batch_size: wanted at least 64, got 10"):
        flow.samples(COUNT, 3, solver, batch_size=10)
    # A wrong twin: only those that were asked for are integrated.
    monkeypatch.setattr(sampling, "Integrator", type(None))
    assert apart(flow.samples(70, 3, solver)[0], whole[:70]) > 100 * ROUND_OFF


@pytest.mark.parametrize("wrong", ["source", "noise"])
def test_numbers_that_a_batch_draws_anew_are_seen(flow, monkeypatch, wrong):
    """Wrong twins: the source, or the noise, of a batch is that of the first one."""
    whole = flow.samples(COUNT, 3, NOISY)[0]
    if wrong == "source":
        monkeypatch.setattr(
            sampling, "draw_by_block", lambda draw, seed, _, count: noise.draw_by_block(draw, seed, 0, count)
        )
    else:
        monkeypatch.setattr(sampling, "ByBlock", lambda seed, device, _: noise.ByBlock(seed, device))
    assert apart(RunSampler(flow, Request(COUNT, 3, NOISY)).part(64, 50), whole[64:114]) > 0.1


def test_conditions_are_taken_in_turn_by_index(images):
    sampler = RunSampler(images, Request(COUNT))
    assert sampler.conditions(64, 5)["label"].tolist() == [4, 5, 6, 7, 8]
    assert apart(sampler.part(64, 50), images.samples(COUNT)[0][64:114]) < ROUND_OFF * 16
    other = RunSampler(images, Request(COUNT, label=3))
    assert apart(other.part(64, 50), images.samples(COUNT)[0][64:114]) > 0.01


def test_evaluations_are_counted(flow, images):
    for steps, name, each in ((4, "euler", 4), (3, "heun", 6)):
        sampler = RunSampler(flow, Request(70, solver={"name": name, "steps": steps}))
        sampler.samples()
        assert (sampler.evaluated, sampler.evaluations) == (70 * each, each)


# Precision


def test_bfloat16_stays_near_float32_and_states_are_float32(flow, monkeypatch):
    """Near: 2 percent of the samples' spread, where one value of bfloat16 has a rounding error of 0.4 percent."""
    wanted = flow.samples(COUNT, 3)[0]
    seen = set()
    build = sampling.scheme_of

    def watched(*arguments):
        scheme = build(*arguments)
        step = scheme.solver.step
        monkeypatch.setattr(
            scheme.solver.__class__,
            "step",
            lambda self, drift, g, t, h, x, dw: seen.add((x.dtype, drift(t, x).dtype)) or step(drift, g, t, h, x, dw),
        )
        return scheme

    monkeypatch.setattr(sampling, "scheme_of", watched)
    found = flow.samples(COUNT, 3, precision="bfloat16")[0]
    assert seen == {(torch.float32, torch.float32)}
    assert found.dtype == torch.float32
    assert 1e-4 < apart(found, wanted) < 0.02 * float(wanted.std())


def test_layers_are_evaluated_in_the_precision_of_choice(flow, monkeypatch):
    seen = set()
    forward = torch.nn.Linear.forward

    def watched(self, x):
        out = forward(self, x)
        seen.add(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    flow.samples(2, precision="float32")
    assert seen == {torch.float32}
    seen.clear()
    flow.samples(2, precision="bfloat16")
    assert torch.bfloat16 in seen


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_on_a_device(flow, precision):
    wanted = flow.samples(COUNT, 3)[0]
    found = flow.samples(COUNT, 3, device="cuda", precision=precision)[0]
    assert found.dtype == torch.float32
    assert apart(found, wanted) < 0.02 * float(wanted.std())
    assert apart(flow.samples(COUNT, 3, device="cuda")[0], wanted) < 1e-3
