"""The anchor as guide: where blended flows end in closed form, what they cost, guidance, likelihood."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp

import gftkit
from gftkit.experiment.building import build_source
from gftkit.experiment.restore import samples_of
from gftkit.generation import blending
from gftkit.generation.blending import Blended
from gftkit.generation.likelihood import log_density
from gftkit.generation.run_likelihood import likelihood
from gftkit.networks.anchor import FrozenAnchor
from gftkit.networks.guidance import Guided
from gftkit.runtime.randomness import stream
from gftkit.sampling.integrate import generate
from gftkit.sampling.noise import draw_by_block

ROUND_OFF = 1e-12
"""Of float64, over some dozens of steps."""
FLOAT32 = 1e-5
RK4 = 1e-8
"""Error of 60 steps of rk4 for rates of about 1."""
DENSITY = 1e-7
"""Error of a log-density by 40 of them, relative to 1 + its size."""
TARGET, PRETRAINED = (-0.8, 1.0), (0.5, -0.3)
"""Rate a and constant k of b = a x + k."""
X0 = torch.tensor([[-1.5], [0.25], [2.0]], dtype=torch.float64)


class Affine(torch.nn.Module):
    """b = a x + k, which counts its calls and the samples of each."""

    def __init__(self, rate, constant):
        super().__init__()
        self.rate, self.constant, self.calls = rate, constant, []

    def forward(self, t, x):
        self.calls.append(len(x))
        return self.rate * x + self.constant


class Profile:
    """A profile that records the times that it is asked for."""

    def __init__(self, function):
        self.function, self.asked = function, []

    def retention(self, t):
        self.asked.append(tuple(t.shape))
        return self.function(t)


def mix(one, other, share):
    return tuple(a + share * (b - a) for a, b in zip(one, other, strict=True))


def closed_end(rate, constant, x=X0, duration=1.0):
    """x(1) of x' = a x + k."""
    growth = math.exp(rate * duration)
    return growth * x + constant * (growth - 1) / rate


def end(registry, drift, solver="rk4", steps=60, x0=X0, **options):
    path = registry.create("path", "linear")
    return generate(drift, path, registry.create("solver", solver), steps, x0, torch.Generator(), **options)


# Where blended flows end


@pytest.mark.parametrize("rho", [-0.6, -0.15, 0.0, 0.4])
def test_a_blended_flow_ends_where_its_closed_form_does(registry, rho):
    drift, anchor = Affine(*TARGET), Affine(*PRETRAINED)
    wanted = closed_end(*mix(TARGET, PRETRAINED, rho))
    assert (end(registry, Blended(drift, anchor, rho)) - wanted).abs().max() < RK4
    weight = 1 - rho  # the same as a guide's: b_pre + w (b - b_pre)
    guided = closed_end(*mix(PRETRAINED, TARGET, weight))
    assert torch.allclose(guided, wanted, rtol=0, atol=ROUND_OFF)
    for wrong in (Blended(anchor, drift, rho), Blended(drift, anchor, rho + 0.1), Blended(drift, anchor, rho - 1)):
        assert (end(registry, wrong) - wanted).abs().max() > 0.05


def test_an_adaptive_library_solver_takes_a_blend(registry):
    drift, anchor = Affine(*TARGET), Affine(*PRETRAINED)
    solver = registry.create("solver", "dopri5", rtol=1e-8, atol=1e-8)
    found = generate(
        Blended(drift, anchor, registry.create("profile", "constant", value=-0.4)),
        registry.create("path", "linear"),
        solver,
        1,
        X0,
        torch.Generator(),
    )
    assert (found - closed_end(*mix(TARGET, PRETRAINED, -0.4))).abs().max() < 1e-6
    assert (found - closed_end(*TARGET)).abs().max() > 0.05


@pytest.mark.parametrize("lag", [0.1, 0.3])
def test_a_run_that_stopped_early_is_corrected_exactly_by_going_on(registry, lag):
    """T20 with F = 0: b = b_tgt + c Delta ends at the target at r* = -c/(1 - c)."""
    early, wanted = mix(TARGET, PRETRAINED, lag), closed_end(*TARGET)
    anchor = Affine(*PRETRAINED)
    best = -lag / (1 - lag)
    assert (end(registry, Blended(Affine(*early), anchor, best)) - wanted).abs().max() < RK4
    for wrong in (0.0, -lag, -best, lag):
        assert (end(registry, Blended(Affine(*early), anchor, wrong)) - wanted).abs().max() > 0.01


def test_a_profile_blends_by_flow_time(registry):
    """Euler's steps are known by hand; for the straight line a library integrates the affine equation."""
    drift, anchor = Affine(*TARGET), Affine(*PRETRAINED)
    step = registry.create("profile", "step", early=-0.25, late=0.5, cut=0.75)
    x = X0.clone()
    for k in range(8):
        rate, constant = mix(TARGET, PRETRAINED, -0.25 if k < 6 else 0.5)
        x = x + (rate * x + constant) / 8
    assert (end(registry, Blended(drift, anchor, step), "euler", 8) - x).abs().max() < ROUND_OFF

    line = registry.create("profile", "linear", early=-0.5, late=0.6)

    def rate_of(t, x):
        rate, constant = mix(TARGET, PRETRAINED, -0.5 + 1.1 * t)
        return rate * x + constant

    wanted = solve_ivp(rate_of, (0, 1), X0[:, 0].numpy(), rtol=1e-11, atol=1e-12).y[:, -1:]
    wanted = torch.from_numpy(wanted)
    assert (end(registry, Blended(drift, anchor, line)) - wanted).abs().max() < RK4
    reverse = registry.create("profile", "linear", early=0.6, late=-0.5)
    assert (end(registry, Blended(drift, anchor, reverse)) - wanted).abs().max() > 0.01


# Cost


@pytest.mark.parametrize(("solver", "own", "anchored"), [("euler", 8, 4), ("heun", 16, 7), ("rk4", 32, 15)])
def test_the_anchor_is_called_only_where_the_retention_is_not_zero(registry, solver, own, anchored):
    """Two calls an evaluation before t = 0.5, one after: stages at the cut are after it."""
    profile = registry.create("profile", "step", early=-0.25, late=0.0, cut=0.5)
    for retention, calls in ((profile, anchored), (0.0, 0), (-0.25, own)):
        drift, anchor = Affine(*TARGET), Affine(*PRETRAINED)
        end(registry, Blended(drift, anchor, retention), solver, 8)
        assert (len(drift.calls), len(anchor.calls)) == (own, calls)


def test_the_time_is_taken_from_the_solver_and_not_from_the_device(registry):
    """The profile is asked for single numbers, each once; a direct call asks for its batch."""
    profile = Profile(lambda t: torch.where(t < 0.5, -0.25, 0.0).to(t.dtype))
    drift = Blended(Affine(*TARGET), Affine(*PRETRAINED), profile)
    end(registry, drift, "euler", 8, batch_size=1)  # three batches
    assert profile.asked == [(1,)] * 8
    drift(torch.zeros(3), X0)
    assert profile.asked[-1] == (3,)


def test_a_call_with_times_of_their_own_gives_the_anchor_the_samples_that_need_it(registry):
    profile = registry.create("profile", "step", early=0.5, late=0.0, cut=0.5)
    drift, anchor = Affine(*TARGET), Affine(*PRETRAINED)
    blended, t = Blended(drift, anchor, profile), torch.tensor([0.2, 0.7, 0.4], dtype=torch.float64)
    wanted = torch.stack([blended.at_time(float(each))(t[:1], x[None])[0] for each, x in zip(t, X0, strict=True)])
    anchor.calls.clear()
    assert torch.allclose(blended(t, X0), wanted, rtol=0, atol=ROUND_OFF)
    assert anchor.calls == [2]
    assert not torch.allclose(blended(t.flip(0) + 0.25, X0), wanted)
    anchor.calls.clear()
    assert torch.equal(blended(torch.ones(3), X0), drift(t, X0))
    assert anchor.calls == []


@pytest.mark.parametrize("anchor", ["frozen", "adapters-off"])
def test_a_run_calls_its_anchor_where_the_profile_says(blendable, monkeypatch, anchor):
    calls, original = {"own": 0, "anchor": 0}, blending.drift_and_anchor

    def counted(*arguments):
        (drift, held), weights = original(*arguments)
        drift.register_forward_pre_hook(lambda *_: calls.update(own=calls["own"] + 1))
        call = type(held).__call__

        def counting(self, *inputs, **named):
            calls["anchor"] += 1
            return call(self, *inputs, **named)

        monkeypatch.setattr(type(held), "__call__", counting)
        return (drift, held), weights

    monkeypatch.setattr(blending, "drift_and_anchor", counted)
    solver = {"name": "euler", "steps": 8}
    blendable(anchor).samples(5, solver=solver, retention={"name": "step", "early": -0.25, "late": 0.0, "cut": 0.5})
    shared = 4 if anchor == "adapters-off" else 0  # one network has both states
    assert calls == {"own": 8 + shared, "anchor": 4}


# Guidance first


class Told(torch.nn.Module):
    """b = slope (c - x), and without its condition b = -slope x/2; the null is a number of its own."""

    conditions = ("c",)

    def __init__(self, slope, null):
        super().__init__()
        self.slope, self.null = slope, {"c": null}

    def forward(self, t, x, c):
        absent = c == self.null["c"]
        return torch.where(absent, -self.slope * x / 2, self.slope * (c - x))


def guided_by_hand(own, anchor, x, c, scale, rho):
    """Each drift guided, then the blend."""
    guided = []
    for drift in (own, anchor):
        none = -drift.slope * x / 2
        guided.append(none + scale * (drift.slope * (c - x) - none))
    return guided[0] + rho * (guided[1] - guided[0])


@pytest.mark.parametrize("rho", [-0.3, 0.4])
def test_guidance_comes_first_with_each_drift_s_own_null(rho):
    t, x, c = torch.zeros(3), X0, torch.tensor([[0.5], [1.0], [-2.0]], dtype=torch.float64)
    own, anchor, same = Told(1.3, -9.0), Told(0.6, -7.0), Told(0.6, -9.0)
    wanted = guided_by_hand(own, anchor, x, c, 2.5, rho)
    assert torch.allclose(Blended(Guided(own, 2.5), Guided(anchor, 2.5), rho)(t, x, c=c), wanted)
    # With one null both orders are the same: everything is linear. With two the other order gives the anchor
    # a null that it takes for a condition.
    assert torch.allclose(Guided(Blended(own, same, rho), 2.5)(t, x, c=c), wanted)
    assert (Guided(Blended(own, anchor, rho), 2.5)(t, x, c=c) - wanted).abs().max() > 1
    assert (Blended(Guided(own, 2.5), anchor, rho)(t, x, c=c) - wanted).abs().max() > 0.1


@pytest.fixture(scope="module")
def two_nulls(tmp_path_factory):
    """A fine-tune on four classes, held to a run on eight: their nulls are 4 and 8."""
    folder = tmp_path_factory.mktemp("nulls")
    means = [[float(k), 0.0] for k in range(4)]
    settings = {
        "drift": {"name": "mlp", "width": 16, "depth": 1, "conditional": True},
        "train": {"steps": 10, "batch_size": 16, "learning_rate": 0.05, "condition_dropout": 0.2},
        "evaluate": {"count": 32, "metrics": ["path-length"], "solver": {"name": "euler", "steps": 3}},
    }
    for name, data in {"eight": {}, "four": {"means": means}}.items():
        data = {"name": "gaussian-mixture", "count": 40, **data}
        gftkit.pretrain({**settings, "data": data}, folder / name, device="cpu")
    config = {
        "pretrained": str(folder / "four"),
        "data": {"name": "gaussian-mixture", "count": 40, "means": means},
        "schedule": {"name": "zero"},
        "anchor": {"name": "external", "pretrained": str(folder / "eight")},
        "train": settings["train"],
        "evaluate": settings["evaluate"],
    }
    return gftkit.finetune(config, folder / "run", device="cpu"), gftkit.Run.open(folder / "eight")


def test_a_run_s_guided_blend_is_that_of_its_two_guided_networks(two_nulls):
    run, before = two_nulls
    own, anchor = run.drift(), before.drift()
    assert own.null != anchor.null
    given = {"label": torch.arange(6) % 4}
    found, _ = run.samples(6, conditions=given, guidance=2.0, retention=-0.4)
    plain, _ = run.samples(6, conditions=given, guidance=2.0)

    def by_hand(null):
        x = draw_by_block(build_source(run.spec("source"), (2,), run.registry), 0, 0, 6)
        for k in range(3):
            t, guided = torch.full((6,), k / 3), []
            for drift, absent in ((own, own.null["label"]), (anchor, null)):
                none = drift(t, x, label=torch.full((6,), absent))
                guided.append(none + 2.0 * (drift(t, x, label=given["label"]) - none))
            x = x + (guided[0] - 0.4 * (guided[1] - guided[0])) / 3
        return x

    assert (found - by_hand(anchor.null["label"])).abs().max() < FLOAT32
    assert (found - by_hand(own.null["label"])).abs().max() > 1e-3  # the class 4 in place of no class
    assert (found - plain).abs().max() > 1e-3


def test_guidance_that_leaves_out_other_conditions_is_refused(two_nulls, monkeypatch):
    run, _ = two_nulls
    init = FrozenAnchor.__init__

    def without_null(self, *arguments):
        init(self, *arguments)
        self.null = {}

    monkeypatch.setattr(FrozenAnchor, "__init__", without_null)
    assert run.samples(3, retention=-0.4)[0].shape == (3, 2)
    with pytest.raises(gftkit.GftkitError, match="only one of them has a null for label"):
        run.samples(3, guidance=2.0, retention=-0.4)


# Likelihood


def gaussian(x):
    return -0.5 * x.double().square().flatten(1).sum(1) - 0.5 * x[0].numel() * math.log(2 * math.pi)


class Detached:
    """A wrong twin: an anchor whose gradient by the state is lost."""

    def __init__(self, anchor):
        self.anchor = anchor

    @torch.no_grad()
    def __call__(self, t, x):
        return self.anchor(t, x)


@pytest.mark.parametrize("rho", [-0.4, 0.3])
def test_the_density_of_a_blend_is_that_of_its_closed_form(registry, rho):
    """x1 = g x0 + s, so log p1 = log p0((x1 - s)/g) - d log g: the anchor's divergence is a part of it."""
    path, solver = registry.create("path", "linear"), registry.create("solver", "rk4")
    x1 = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rate, constant = mix(TARGET, PRETRAINED, rho)
    growth = math.exp(rate)
    wanted = gaussian((x1 - constant * (growth - 1) / rate) / growth) - 3 * rate

    def density(anchor, probes=0):
        return log_density(Blended(Affine(*TARGET), anchor, rho), path, solver, 40, x1, gaussian, probes=probes).log

    anchor = FrozenAnchor(Affine(*PRETRAINED))
    assert torch.allclose(density(anchor), wanted, rtol=DENSITY, atol=DENSITY)
    assert torch.allclose(density(anchor, probes=2), wanted, rtol=DENSITY, atol=DENSITY)  # of a multiple of I: exact
    assert torch.allclose(density(Detached(anchor)), wanted + 3 * rho * PRETRAINED[0], rtol=DENSITY, atol=DENSITY)


@pytest.mark.parametrize("anchor", ["frozen", "adapters-off"])
def test_a_run_s_likelihood_is_that_of_its_two_networks_blended(blendable, pretrained, anchor):
    run = blendable(anchor)
    own, before = run.drift(), gftkit.Run.open(pretrained).drift()
    source = run.registry.build("dataset", run.spec("source"), "source", event_shape=(2,)).log_density
    solver = {"name": "rk4", "steps": 5}
    x1 = samples_of(run).some(6, stream(0, "likelihood")).x1

    def log_of(drift):
        return log_density(drift, run.path, run.registry.create("solver", "rk4"), 5, x1, source).log

    found = likelihood(run, count=6, solver=solver, retention=-0.4).log
    assert (found - log_of(lambda t, x: own(t, x) - 0.4 * (before(t, x) - own(t, x)))).abs().max() < 1e-4
    lost = log_of(lambda t, x: own(t, x) - 0.4 * (before(t, x).detach() - own(t, x)))
    assert (found - lost).abs().max() > 1e-3
    assert (found - likelihood(run, count=6, solver=solver).log).abs().max() > 1e-3


def test_an_anchor_has_a_gradient_by_the_state_only():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(3.0))

        def forward(self, t, x):
            return self.scale * x

    anchor, t, x = FrozenAnchor(Scaled()), torch.zeros(3), torch.randn(3, 2)
    assert not anchor(t, x).requires_grad
    anchor.module.requires_grad_(True)  # as a network that is trained with its adapters
    assert not anchor(t, x).requires_grad
    (slope,) = torch.autograd.grad(anchor(t, x.requires_grad_()).sum(), x)
    assert torch.equal(slope, torch.full_like(x, 3.0))
    with torch.no_grad():
        assert not anchor(t, x).requires_grad
