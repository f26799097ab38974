"""The retention that is requested: its forms, what is refused before any work, and the identity of parts."""

import shutil

import pytest
import torch
import yaml
from support import process_groups as several
from support.bulk_samples import COUNT, ROUND_OFF, apart, samples

import gftkit
from gftkit.generation import write as bulk
from gftkit.generation.requested_retention import describe_retention, parse_retention_request
from gftkit.generation.run_likelihood import likelihood
from gftkit.generation.sampler import Request, RunSampler
from gftkit.geometry.tracing import flow_of
from gftkit.kernel.errors import ConfigError, GftkitError, RunError

STEP = {"name": "step", "early": -0.25, "late": 0.5, "cut": 0.5}
NAN, INF = float("nan"), float("inf")


class Custom:
    """A profile from Python."""

    def __init__(self, function, **fitted_on):
        self.function = function
        if fitted_on:
            self.fitted_on = fitted_on

    def retention(self, t):
        return self.function(t)


def test_a_value_is_a_number_a_profile_its_spec_or_a_temperature(blendable, registry):
    run = blendable("frozen")
    ends = [
        run.samples(5, **asked)[0]
        for asked in (
            {"retention": -0.25},
            {"temperature": -0.2},
            {"retention": {"name": "constant", "value": -0.25}},
            {"retention": registry.create("profile", "constant", value=-0.25)},
            {"retention": Custom(lambda t: torch.full_like(t, -0.25))},
        )
    ]
    assert all(torch.allclose(each, ends[0], atol=1e-6) for each in ends[1:])
    plain = run.samples(5)[0]
    assert (ends[0] - plain).abs().max() > 1e-3
    assert torch.equal(run.samples(5, retention=0.0)[0], plain)
    assert (run.samples(5, retention=STEP)[0] - ends[0]).abs().max() > 1e-3
    beyond, between = (run.samples(5, retention=rho)[0] - plain for rho in (-1e-3, 1e-3))
    assert (beyond + between).norm() < 0.01 * beyond.norm()  # on both sides of the run
    assert run.evaluate(retention=-0.25) == run.evaluate(temperature=-0.2) != run.evaluate(retention=0.25)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        *((wrong, "wanted a finite number below 1") for wrong in (1.0, 1, 2.5, NAN, INF, -INF, True)),
        ({"name": "constant", "value": 1.0}, "wanted float, < 1"),
        ({"name": "constant", "value": -INF}, "should be a finite number"),
        ({"name": "stepp"}, "Did you mean 'step'"),
        ({"name": "linear", "early": 0.5}, r"retention\.late is missing"),
        ([0.1], "wanted the name of a profile"),
        (Custom(lambda t: 1 / t), "got inf at flow time 0.000"),
        (Custom(lambda t: t), "got 1 at flow time 1.000"),
        (Custom(lambda t: t * NAN), "got nan"),
        (Custom(lambda t: 0.0), "wanted one retention for each"),
    ],
)
def test_values_out_of_range_are_refused(blendable, request_, message):
    run = blendable("frozen")
    for use in (
        lambda: run.samples(2, retention=request_),
        lambda: run.evaluate(retention=request_),
        lambda: likelihood(run, count=2, retention=request_),
        lambda: flow_of(run, 0, 20, retention=request_),
    ):
        with pytest.raises(GftkitError, match=message):
            use()


def test_a_profile_out_of_range_between_the_checked_times_is_refused_in_use(registry):
    """A solver that chooses its times meets it there."""
    from gftkit.generation.blending import Blended

    peak = Custom(lambda t: torch.where((t - 0.4).abs() < 1e-6, 2.0, 0.0).to(t.dtype))
    assert parse_retention_request(peak, registry) is peak
    blended = Blended(lambda t, x: x, lambda t, x: -x, peak)
    blended.at_time(0.5)
    with pytest.raises(ConfigError, match=r"got 2 at flow time 0\.400"):
        blended.at_time(0.4)
    for wrong in (1.5, NAN, -INF):
        with pytest.raises(ValueError, match="wanted a finite number below 1"):
            Blended(lambda t, x: x, lambda t, x: -x, wrong)


def test_a_temperature_and_a_retention_together_are_refused(blendable):
    for both in ({"temperature": 0.0, "retention": -0.1}, {"temperature": 0.3, "retention": 0.0}):
        with pytest.raises(ConfigError, match="got both"):
            blendable("frozen").samples(2, **both)
        with pytest.raises(ConfigError, match="got both"):
            blendable("frozen").evaluate(**both)


# Runs that have no blend


def test_runs_without_an_anchor_are_not_guided_by_one(pretrained, tmp_path, blendable):
    student = gftkit.distill(
        {"pretrained": str(pretrained), "train": {"steps": 2, "batch_size": 8}, "evaluate": {"count": 32}},
        tmp_path / "student",
        device="cpu",
    )
    for run, message in ((student, "is a flow-map student"), (gftkit.Run.open(pretrained), "is no fine-tune")):
        for asked in (-0.2, STEP):
            with pytest.raises(ConfigError, match=message):
                run.samples(2, retention=asked)
            with pytest.raises(ConfigError, match=message):
                run.evaluate(retention=asked)
            with pytest.raises(ConfigError, match=message):
                likelihood(run, count=2, retention=asked)
            with pytest.raises(ConfigError, match=message):
                flow_of(run, 0, 20, retention=asked)
        assert run.samples(2, retention=0.0)[0].shape == (2, 2)
    with pytest.raises(ConfigError, match="in a blend, is a velocity too"):
        blendable("frozen").samples(2, retention=-0.2, solver={"name": "flow-map", "steps": 2})
    with pytest.raises(ConfigError, match="in a blend, is a velocity too"):
        blendable("frozen").evaluate(["evaluate.solver={name: flow-map, steps: 2}"], retention=-0.2)


def test_a_guided_flow_is_not_sampled_with_chosen_noise(blendable, tmp_path):
    folder = shutil.copytree(blendable("frozen").folder, tmp_path / "tuned")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "coupling": {"name": "independent"}}))
    noisy = {"name": "euler-maruyama", "steps": 3, "diffusion": {"name": "constant"}}
    run = gftkit.Run.open(folder)
    for asked in (-0.3, STEP):
        with pytest.raises(ConfigError, match="T12"):
            run.samples(2, solver=noisy, retention=asked)


@pytest.mark.parametrize("anchor", ["frozen", "adapters-off"])
def test_a_fitted_profile_belongs_to_its_run_and_anchor(blendable, tmp_path, anchor):
    run = blendable(anchor)
    sampler = RunSampler(run, Request(2, retention=-0.1))
    own = {"run": "runs/mine", "weights": sampler.weights_digest, "anchor": sampler.identity["anchor"]}
    content = {"times": [0.0, 1.0], "values": [-0.2, 0.1], "fitted_on": own}

    def sampled(which="ema", **changes):
        file = tmp_path / "profile.yaml"
        fitted_on = {key: value for key, value in {**own, **changes}.items() if value is not None}
        file.write_text(yaml.safe_dump({**content, "fitted_on": fitted_on}))
        return run.samples(2, weights=which, retention={"name": "fitted", "file": str(file)})[0]

    table = {"name": "table", "times": [0.0, 1.0], "values": [-0.2, 0.1]}
    assert torch.equal(sampled(), run.samples(2, retention=table)[0])
    for key in ("weights", "anchor"):
        with pytest.raises(ConfigError, match=rf"fitted to runs/mine, with {key} 0123.* has {key}"):
            sampled(**{key: "0123" * 16})
        with pytest.raises(ConfigError, match=rf"`fitted_on\.{key}` is missing"):
            sampled(**{key: None})
    with pytest.raises(ConfigError, match="with weights"):
        sampled("raw")


# The identity of parts


def test_the_profile_s_values_are_a_part_of_the_samples_identity(blendable, registry):
    run = blendable("frozen")

    def identity(retention, times=None):
        solver = None if times is None else {"name": "euler", "steps": 2, "grid": {"name": "explicit", "at": times}}
        return RunSampler(run, Request(COUNT, 3, solver, retention=retention)).identity["retention"]

    constant = {"name": "constant", "value": -0.25}
    assert identity(constant) == identity(-0.25) == identity({**STEP, "late": -0.25}) == -0.25
    assert identity(STEP) == identity(registry.create("profile", **STEP))
    different = [identity(each) for each in (STEP, {**STEP, "late": 0.4}, {**STEP, "cut": 0.7}, -0.25, 0.5, 0.0)]
    assert len({*different}) == len(different)
    # Between two of the checked times, where a step of this grid is.
    near = [{**STEP, "cut": cut} for cut in (0.8000, 0.8003)]
    assert describe_retention(parse_retention_request(near[0], registry)) == describe_retention(
        parse_retention_request(near[1], registry)
    )
    assert identity(near[0], [0, 0.8001, 1]) != identity(near[1], [0, 0.8001, 1])


def test_parts_at_another_retention_are_refused(blendable, tmp_path):
    run, out = blendable("frozen"), tmp_path / "s.npz"
    usual = {"count": COUNT, "seed": 3, "retention": STEP}
    sampler_parts = bulk.Parts(out, RunSampler(run, Request(**usual)).identity)
    sampler_parts.begin()
    sampler_parts.write(0, torch.zeros(64, 2), 1.0)
    for other in (-0.25, {**STEP, "late": 0.4}):
        with pytest.raises(RunError, match=r"differ in retention \(was profile"):
            bulk.write(run, Request(**{**usual, "retention": other}), out, device="cpu", resume=True)
    with pytest.raises(RunError, match=r"differ in retention .*, now 0\.0\), anchor"):
        bulk.write(run, Request(**{**usual, "retention": None}), out, device="cpu", resume=True)
    bulk.write(run, Request(**usual), out, device="cpu", resume=True)
    assert not samples(out)[:64].any()
    assert apart(samples(out)[64:], run.samples(COUNT, 3, retention=STEP)[0][64:]) < ROUND_OFF


@pytest.mark.slow
def test_processes_blend_as_one_does(blendable, tmp_path):
    run, request = blendable("adapters-off"), {"count": COUNT, "seed": 3, "retention": STEP}
    several.run(several.sample, run.folder, tmp_path / "s.npz", request)
    assert apart(samples(tmp_path / "s.npz"), run.samples(COUNT, 3, retention=STEP)[0]) < ROUND_OFF
    assert apart(samples(tmp_path / "s.npz"), run.samples(COUNT, 3)[0]) > 1e-3
