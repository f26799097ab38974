"""Laws of flow time: closed values, the laws of other libraries, and their use in a run."""

import math

import pytest
import torch
from scipy import stats

import gftkit
from gftkit.kernel.errors import ConfigError
from gftkit.theory.times import check_time_law, distribution_error
from gftkit.training.steps import Steps

REGISTRY = gftkit.load()
OPTIONS = {
    "beta": {"a": 1.0, "b": 1.5},
    "cosine-map": {},
    "logit-normal": {"mean": 0.5, "std": 0.8},
    "mode": {"scale": 1.29},
    "shifted": {"shift": 3.0, "of": {"name": "logit-normal"}},
    "table": {"times": [0.2, 0.6], "densities": [1.0, 2.0]},
    "u-shaped": {},
    "uniform": {},
}
DRAWS = 20_000
FALSE_ALARM = 1e-6
"""Probability that the Kolmogorov-Smirnov test rejects equal laws; the seeds are fixed."""
REASON = "diffusers isn't installed: pip install 'gftkit[diffusers]'"


def law_of(name, **options):
    return REGISTRY.create("time", name, **options)


def draw(law, seed=0):
    """Times of a law, in the precision of training."""
    return law.quantile(torch.rand(DRAWS, generator=torch.Generator().manual_seed(seed)))


def differ(one, other):
    """Whether two samples are of different laws."""
    return stats.ks_2samp(one.numpy(), other.numpy()).pvalue < FALSE_ALARM


def test_every_law_is_here():
    assert set(REGISTRY.names("time")) == set(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_law_is_what_it_says(name):
    law = law_of(name, **OPTIONS[name])
    check_time_law(law, name)
    assert distribution_error(law) < 1e-6
    t = torch.linspace(0.01, 0.99, 99)
    assert law.density(t).dtype == law.quantile(t).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "options", "t", "density"),
    [
        ("logit-normal", {"mean": 0.5, "std": 0.8}, 0.3, stats.norm(0.5, 0.8).pdf(math.log(0.3 / 0.7)) / 0.21),
        ("beta", {"a": 2.5, "b": 0.7}, 0.3, stats.beta(2.5, 0.7).pdf(0.3)),
        ("cosine-map", {}, 0.5, 4 / math.pi),
        ("u-shaped", {"a": 4.0}, 0.0, 2 / math.tanh(2.0)),
        ("mode", {"scale": 0.5}, 0.0, 1 / 1.5),
        ("mode", {"scale": 0.5}, 0.5, 1 / (1.5 - math.pi / 4)),
        ("shifted", {"shift": 3.0}, 0.0, 3.0),
        ("shifted", {"shift": 3.0}, 1.0, 1 / 3),
        ("table", {"times": [0.0, 1.0], "densities": [0.0, 5.0]}, 0.25, 0.5),
    ],
)
def test_densities_have_closed_values(name, options, t, density):
    found = law_of(name, **options).density(torch.tensor([t], dtype=torch.float64))
    assert float(found) == pytest.approx(density, rel=1e-9)


@pytest.mark.parametrize("name", ["cosine-map", "mode", "u-shaped", "uniform"])
def test_symmetric_laws_are_the_same_of_the_noise(name):
    law, u = law_of(name), torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    torch.testing.assert_close(law.quantile(1 - u), 1 - law.quantile(u))
    skew = law_of("logit-normal", mean=0.5)
    assert float((skew.quantile(1 - u) - 1 + skew.quantile(u)).abs().max()) > 0.1


def test_resolution_shifts():
    assert law_of("shifted").shift == 3.0
    assert law_of("shifted", tokens=4096, base_tokens=1024).shift == 2.0
    flux = [law_of("shifted", rule="flux", tokens=tokens).shift for tokens in (256, 4096)]
    assert flux == pytest.approx([math.exp(0.5), math.exp(1.15)])
    # Twice the shift is the shift of the shifted.
    u = torch.linspace(0, 0.99, 100, dtype=torch.float64)
    twice = law_of("shifted", shift=2.0, of={"name": "shifted", "shift": 3.0})
    torch.testing.assert_close(twice.quantile(u), law_of("shifted", shift=6.0).quantile(u))


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("logit-normal", {"std": 0.0}, "time.std: wanted float, > 0"),
        ("mode", {"scale": 2.0}, "time.scale: wanted float, > -1, < 1.75"),
        ("beta", {"a": 1.0}, "time.b is missing"),
        ("beta", {"a": -1.0, "b": 1.0}, "time.a: wanted float, > 0"),
        ("shifted", {"shift": 2.0, "tokens": 5}, "wanted `shift` or `tokens`"),
        ("shifted", {"tokens": 5, "rule": "flux", "base_tokens": 9, "max_tokens": 9}, "max_tokens: wanted more than"),
        ("shifted", {"shift": 2.0, "of": {"name": "table", "times": [0.5], "densities": [0.0]}}, "wanted some above 0"),
        ("table", {"times": [0.5, 0.5], "densities": [1.0, 1.0]}, "wanted flow times that increase"),
        ("table", {"times": [0.5], "densities": [1.0, 1.0]}, "got 1 times and 2 densities"),
        ("table", {"times": [0.5], "densities": [-1.0]}, "time.densities: wanted"),
        ("table", {"times": [0.5, 1.5], "densities": [1.0, 1.0]}, "time.times: wanted"),
        ("u-shaped", {"a": 0.0}, "time.a: wanted float, > 0"),
    ],
)
def test_a_law_out_of_range_is_refused(name, options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        law_of(name, **options)


# --- the laws of diffusers --------------------------------------------------------------------------------------------


def of_diffusers(scheme, shift=1.0, **options):
    """The times 1 - sigma at which a training script of diffusers trains: a place in the scheduler's list of sigmas."""
    pytest.importorskip("diffusers", reason=REASON)
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.training_utils import compute_density_for_timestep_sampling

    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=100_000, shift=shift)
    generator = torch.Generator().manual_seed(1)
    u = compute_density_for_timestep_sampling(scheme, DRAWS, generator=generator, **options)
    return 1 - scheduler.sigmas[(u * 100_000).long().clamp(max=99_999)]


@pytest.mark.parametrize(
    ("scheme", "theirs", "name", "ours"),
    [
        ("logit_normal", {"logit_mean": 0.7, "logit_std": 0.5}, "logit-normal", {"mean": 0.7, "std": 0.5}),
        ("mode", {"mode_scale": 1.29}, "mode", {"scale": 1.29}),
        ("mode", {"mode_scale": -0.6}, "mode", {"scale": -0.6}),
        ("none", {}, "uniform", {}),
        (
            "logit_normal",
            {"logit_mean": 0.7, "logit_std": 0.5, "shift": 3.0},
            "shifted",
            {"shift": 3.0, "of": {"name": "logit-normal", "mean": 0.7, "std": 0.5}},
        ),
    ],
)
def test_the_laws_are_those_of_diffusers(scheme, theirs, name, ours):
    trained = of_diffusers(scheme, **theirs)
    times = draw(law_of(name, **ours))
    assert not differ(times, trained)
    if name not in ("mode", "uniform"):  # symmetric
        assert differ(1 - times, trained)  # in the wrong direction
    assert differ(draw(law_of("logit-normal", mean=0.1, std=0.9)), trained)  # another law


def test_the_shift_of_flux_is_that_of_diffusers():
    pytest.importorskip("diffusers", reason=REASON)
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    sigma = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    mu = math.log(law_of("shifted", rule="flux", tokens=1024).shift)
    assert mu == pytest.approx(0.5 + 0.65 * 768 / 3840)  # by the line of its pipelines
    theirs = scheduler.time_shift(mu, 1.0, sigma)
    ours = law_of("shifted", rule="flux", tokens=1024).quantile(1 - sigma)
    torch.testing.assert_close(1 - ours, theirs)
    assert float((ours - theirs).abs().max()) > 0.1  # in the wrong direction


# --- runs -------------------------------------------------------------------------------------------------------------

RUN = {
    "drift": {"name": "mlp", "width": 8},
    "data": {"name": "two-moons", "count": 100},
    "train": {"steps": 2, "batch_size": 8},
    "evaluate": {"count": 20, "metrics": []},
}


def test_a_run_keeps_its_law_and_another_law_gives_other_weights(tmp_path):
    laws = {"default": None, "uniform": "uniform", "late": {"name": "beta", "a": 4.0, "b": 1.0}}
    weights = {}
    for name, law in laws.items():
        config = RUN if law is None else {**RUN, "objective": {"time": law}}
        run = gftkit.pretrain(config, tmp_path / name, device="cpu")
        weights[name] = torch.cat([values.flatten() for values in run.weights()[0].values()])
        wanted = {"name": law} if isinstance(law, str) else law or {"name": "uniform"}
        assert gftkit.Run.open(tmp_path / name).config.objective.time == wanted
    assert torch.equal(weights["default"], weights["uniform"])
    assert not torch.equal(weights["default"], weights["late"])


class Drawn:
    """A monitor that records the times which monitors are given."""

    times: list[torch.Tensor] = []  # noqa: RUF012

    def observe(self, state):
        self.times.append(state.draw(2000, torch.Generator().manual_seed(state.step)).t)
        return {}

    def finish(self, folder):
        pass


@pytest.mark.parametrize("path", [{"name": "linear"}, {"name": "brownian-bridge", "delta": 0.25}])
def test_loop_and_monitors_draw_by_the_law_up_to_the_end_of_the_path(tmp_path, path, monkeypatch):
    loop = []

    def take(self, step, original=Steps.take):
        loop.append(self.times(2000, torch.Generator().manual_seed(step)))
        return original(self, step)

    monkeypatch.setattr(Steps, "take", take)
    monkeypatch.setattr(Drawn, "times", [])
    monitors = gftkit.hookimpl(lambda: {"drawn": Drawn})
    registry = gftkit.load(plugins={"mine": type("Mine", (), {"gftkit_monitors": staticmethod(monitors)})()})
    law = {"name": "beta", "a": 3.0, "b": 1.0}
    config = {**RUN, "path": path, "monitors": ["drawn"], "objective": {"time": law}}
    gftkit.pretrain(config, tmp_path / "run", device="cpu", registry=registry)
    end = 1 - path.get("delta", 0.0)
    for times in (*loop, *Drawn.times):
        assert float(times.min()) > 0
        assert float(times.max()) <= end
        assert stats.kstest(times.numpy() / end, stats.beta(3, 1).cdf).pvalue > FALSE_ALARM
        for other in (stats.uniform.cdf, stats.beta(1, 3).cdf):
            assert stats.kstest(times.numpy() / end, other).pvalue < FALSE_ALARM
    assert len(loop) == 2
    assert len(Drawn.times) >= 2


def test_a_law_that_is_none_is_refused_before_a_run(tmp_path):
    class Beyond:
        """Times beyond the data."""

        def quantile(self, u):
            return 1.5 * u

        def density(self, t):
            return torch.full_like(t, 2 / 3)

    @gftkit.hookimpl
    def times():
        return {"beyond": Beyond}

    registry = gftkit.load(plugins={"mine": type("Mine", (), {"gftkit_times": staticmethod(times)})()})
    with pytest.raises(ConfigError, match=r"objective.time \('beyond'\): wanted flow times in \[0, 1\]"):
        gftkit.pretrain({**RUN, "objective": {"time": "beyond"}}, tmp_path / "run", device="cpu", registry=registry)
    assert not (tmp_path / "run/model.safetensors").exists()
