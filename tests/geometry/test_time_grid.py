"""Fitted time grids: the dynamic programme, the errors it sums, known best grids, and the file that sampling reads."""

import itertools
import json

import pytest
import torch
import yaml

from gftkit.geometry.grid_search import best_indices, descend, local_errors
from gftkit.geometry.time_grid import fit, fit_run, read_grids
from gftkit.geometry.tracing import Flow, flow_of, squared_distances
from gftkit.kernel.errors import ConfigError, RunError
from gftkit.kernel.options import plain


class Speed(torch.nn.Module):
    """v = f(t), the same for every state: Euler's errors add up, and nothing carries them on."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, t, x):
        return self.f(t)[:, None] * torch.ones_like(x)


class Decaying(torch.nn.Module):
    """v = -rate x: early errors are forgotten."""

    def forward(self, t, x):
        return -4.0 * x


def flow(registry, drift, seed=0, n=8):
    x0 = torch.randn(n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Flow(drift, registry.create("path", "linear"), x0, {}, registry, torch.device("cpu"))


def fitted(registry, drift, steps, fine_steps):
    (found,) = fit(flow(registry, drift), flow(registry, drift, 1), [steps], fine_steps)
    return found


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
def test_the_dynamic_programme_finds_what_trying_all_finds(steps):
    cost = torch.rand(7, 7, generator=torch.Generator().manual_seed(steps), dtype=torch.float64)

    def total(path):
        return float(sum(cost[i, j] for i, j in itertools.pairwise(path)))

    every = [(0, *inner, 6) for inner in itertools.combinations(range(1, 6), steps - 1)]
    assert best_indices(cost, steps) == list(min(every, key=total))
    if 1 < steps < 6:
        assert best_indices(-cost, steps) == list(max(every, key=total)) != best_indices(cost, steps)


@pytest.mark.parametrize("steps", [0, 7])
def test_a_grid_of_more_steps_than_fine_ones_is_refused(steps):
    with pytest.raises(ConfigError, match="wanted 1 to 6"):
        best_indices(torch.ones(7, 7), steps)


def test_local_errors_are_those_of_euler_s_steps(registry):
    given = flow(registry, Decaying())
    trajectory = given.trajectory(20)
    errors = local_errors(trajectory)
    for i, j in ((0, 1), (3, 11), (0, 20)):
        h = trajectory.times[j] - trajectory.times[i]
        step = trajectory.states[i] - 4 * h * trajectory.states[i]
        wanted = squared_distances(step, trajectory.states[j]).mean().sqrt()
        assert float(errors[i, j]) == pytest.approx(float(wanted), rel=1e-10)
    assert errors[3, 3] == errors[3, 2] == float("inf")
    assert float(errors[0, 20]) != pytest.approx(float(errors[0, 10]), rel=0.1)


def test_the_best_grids_of_known_speeds_are_found(registry):
    # Of v = t^2 two steps end in (1 - s) s^2 instead of 1/3: least wrong for s = 2/3.
    square = fitted(registry, Speed(torch.square), 2, 30)
    assert square.times == pytest.approx((0, 2 / 3, 1))
    assert square.kept == "fitted"
    assert square.fitted.value == pytest.approx(1 / 3 - 4 / 27, rel=1e-6)
    assert square.uniform.value == pytest.approx(1 / 3 - 1 / 8, rel=1e-6)
    assert square.gain.value == pytest.approx(4 / 27 - 1 / 8, rel=1e-6)
    linear = fitted(registry, Speed(lambda t: t), 3, 30)  # equal steps are best
    assert linear.found == pytest.approx((0, 1 / 3, 2 / 3, 1))
    assert linear.kept == "uniform"
    assert fitted(registry, Speed(torch.ones_like), 2, 10).kept == "uniform"  # no step errs


def test_equal_steps_are_kept_where_fitted_ones_do_worse_on_fresh_starts(registry):
    square, linear = (flow(registry, Speed(f)) for f in (torch.square, lambda t: t))
    (found,) = fit(square, linear, [2], 30)
    assert (found.kept, found.times) == ("uniform", (0, 0.5, 1))
    assert found.gain.value == pytest.approx(-1 / 36, rel=1e-6)  # (2/3 - 1/2)^2
    assert found.fitted.value > found.uniform.value


def test_errors_that_the_flow_forgets_cost_nothing(registry):
    """Of v = -4 x two steps end in (1 - 4 s)(1 - 4 (1 - s)) x; local errors alone would put s elsewhere."""
    found = fitted(registry, Decaying(), 2, 40)
    s = torch.arange(1, 40) / 40
    off = ((1 - 4 * s) * (4 * s - 3) - torch.exp(torch.tensor(-4.0))).abs()
    assert off[round(40 * found.found[1]) - 1] == pytest.approx(float(off.min()), rel=1e-4)
    local = best_indices(local_errors(flow(registry, Decaying()).trajectory(40)), 2)
    assert off[local[1] - 1] > 2 * off.min()


def test_a_descent_never_ends_higher_and_keeps_the_order():
    def error(indices):
        return abs(indices[1] - 3) + abs(indices[2] - 4)

    assert error(descend([0, 20, 30, 40], 40, error)) < error([0, 20, 30, 40])
    assert descend([0, 3, 4, 40], 40, error) == [0, 3, 4, 40]
    found = descend([0, 1, 2, 40], 40, lambda indices: -indices[1])
    assert found == sorted(set(found))


def test_starts_and_ends_are_those_of_gft_sample(pretrained, registry):
    from gftkit.api import Run

    run = Run.open(pretrained)
    found = flow_of(run, 64, 5, seed=3)
    ends = found.ends(registry.create("solver", "heun"), 4)
    samples, _ = run.samples(69, seed=3, solver={"name": "heun", "steps": 4})
    assert torch.allclose(ends.float(), samples[64:], atol=1e-6)
    assert not torch.allclose(ends.float(), samples[:5], atol=1e-2)
    again = flow_of(run, 64, 5, seed=3).trajectory(3)
    assert torch.allclose(again.states[0].float(), found.x0)
    assert again.velocities.shape == again.states.shape == (4, 5, 2)


def test_labels_and_scaling_are_those_of_gft_sample(registry, tmp_path):
    import gftkit
    from gftkit.api import Run

    drift = {"name": "mlp", "width": 8, "depth": 1, "conditional": True}
    settings = {"drift": drift, "data": {"name": "digits", "count": 40}, "train": {"steps": 2, "batch_size": 8}}
    evaluated = {"count": 20, "metrics": ["path-length"], "solver": {"name": "euler", "steps": 2}}
    run = Run.open(gftkit.pretrain({**settings, "evaluate": evaluated}, tmp_path / "run", device="cpu").folder)
    found = flow_of(run, 64, 5, seed=3)
    samples, given = run.samples(69, seed=3, solver={"name": "heun", "steps": 4})
    ends = found.ends(registry.create("solver", "heun"), 4)
    assert torch.equal(found.conditions["label"], given["label"][64:])
    assert torch.allclose(8 * (ends.float() + 1), samples[64:], atol=1e-4)
    assert not torch.allclose(ends.float(), samples[64:], atol=1e-2)
    again = found.trajectory(3)
    wanted = run.drift()(torch.full((5,), again.times[1]), again.states[1].float(), label=found.conditions["label"])
    assert torch.allclose(again.velocities[1].float(), wanted, atol=1e-5)
    other = run.drift()(torch.full((5,), again.times[1]), again.states[1].float(), label=given["label"][:5])
    assert not torch.allclose(again.velocities[1].float(), other, atol=1e-4)


def test_a_run_s_grids_are_written_sampled_with_and_refused_by_name(pretrained, tmp_path, gft):
    out = tmp_path / "grid.yaml"
    options = ("--count", "16", "--fine-steps", "12", "--out", str(out))
    done = gft("fit-grid", pretrained, "--steps", "2", "--steps", "3", *options, "--json")
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    content = yaml.safe_load(out.read_text())
    assert sorted(content["times"]) == [2, 3]
    assert [each["times"] for each in answer["grids"]] == [content["times"][2], content["times"][3]]
    assert content["fitted_on"]["count"] == 16
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG"
    grid = f"{{name: fitted, file: {out}}}"
    sampled = ("sample", pretrained, "--count", "4", "--grid", grid)
    done = gft(*sampled, "--steps", "3", "--out", str(tmp_path / "one.npz"))
    assert (done.code, done.err) == (0, "")
    warned = gft(*sampled, "--steps", "3", "--solver", "heun", "--weights", "raw", "--out", str(tmp_path / "raw.npz"))
    assert "the solver is heun" in warned.err
    assert "fitted to other weights" in warned.err
    refused = gft(*sampled, "--steps", "5", "--out", str(tmp_path / "other.npz"))
    assert "has grids for 2, 3 steps, and steps is 5" in " ".join(refused.err.split())
    assert "exists" in gft("fit-grid", pretrained, *options).err
    assert "wanted .yaml" in gft("fit-grid", pretrained, "--out", str(tmp_path / "a.json")).err


def test_a_relative_file_starts_at_the_config(registry, tmp_path):
    (tmp_path / "grid.yaml").write_text("times: {2: [0, 0.3, 1]}")
    spec = registry.resolve("grid", {"name": "fitted", "file": "grid.yaml"}, "grid", tmp_path)
    assert registry.build("grid", spec).times(2) == [0, 0.3, 1]


def test_a_configuration_keeps_the_fitted_times_that_it_was_resolved_with(registry, tmp_path):
    """A file that changed meanwhile makes another configuration, which a run doesn't resume with."""
    file = tmp_path / "grid.yaml"
    file.write_text("times: {2: [0, 0.3, 1]}")
    spec = {"name": "fitted", "file": str(file)}
    before = json.loads(json.dumps(plain(registry.resolve("grid", spec))))  # as a study passes it to its processes
    file.write_text("times: {2: [0, 0.6, 1]}")
    assert registry.resolve("grid", spec)["content"] != before["content"]
    assert registry.build("grid", before).times(2) == [0, 0.3, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grids: {2: [0, 1]}", "`times` is missing"),
        ("times: {two: [0, 1]}", "a number of steps as key"),
        ("times: {2: [0, half, 1]}", "times.2"),
        ("times: 3", "`times` is missing"),
    ],
)
def test_files_that_hold_no_grid_are_refused(tmp_path, text, message):
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_grids(file)
    with pytest.raises(ConfigError, match="no such file"):
        read_grids(tmp_path / "none.yaml")


def test_noise_few_starts_and_too_many_steps_are_refused(registry, pretrained):
    from gftkit.api import Run

    bridge = registry.create("path", "brownian-bridge")
    with pytest.raises(ConfigError, match="has noise"):
        Flow(Decaying(), bridge, torch.zeros(2, 1), {}, registry, torch.device("cpu"))
    run = Run.open(pretrained)
    with pytest.raises(ConfigError, match="at least 2"):
        fit_run(run, [2], count=1)
    with pytest.raises(ConfigError, match="wanted 1 to 9"):
        fit_run(run, [10], count=4, fine_steps=10)
    with pytest.raises(RunError, match="no run"):
        Run.open(pretrained.parent)
