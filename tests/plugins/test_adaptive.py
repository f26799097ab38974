"""The schedule ``adaptive``: when it cools, holds and steps back, and that a run with it is resumed."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from support.memorisation import FAR, NEAR

import gftkit
from gftkit.kernel.errors import ConfigError
from gftkit.runs import checkpoint
from gftkit.theory.objective import retention
from gftkit_plugins.adaptive import LAG, Adaptive, lowest_retention, remaining_lag
from gftkit_plugins.stops import CopyingStop

SOON = 0.2
"""A progress at which the deadline doesn't matter yet."""


def theory(reached, made=2.0, error=0.1):
    return {"theory": {"reached": reached, "towards_target": made, "towards_target_stderr": error}}


def followed(fall, evaluations=60, noise=0.0, seed=0):
    """The schedule on T13's model, whose lag falls by a factor between evaluations: (c, rho, reached) at each."""
    schedule, c, found = Adaptive(), 1.0, []
    generator = torch.Generator().manual_seed(seed)
    schedule.observe(0.0, {**theory(math.nan, made=0.0), **FAR})
    for _ in range(evaluations):
        rho = retention(schedule.temperature(SOON))
        c = rho + fall * (c - rho)
        reached = (1 - c) / (1 - rho)
        found.append((c, rho, reached))
        told = reached + noise * float(torch.randn((), generator=generator))
        schedule.observe(SOON, {**theory(told), **FAR})
    return found


@pytest.mark.parametrize("fall", [0.0, 0.05, 0.3, 0.6, 0.8, 0.9])
def test_adaptive_cools_to_zero_no_faster_than_the_model_follows(fall):
    """By the next evaluation after each change it has arrived again, by its own measure."""
    found = followed(fall, evaluations=200)
    rhos = [rho for _, rho, _ in found]
    assert rhos == sorted(rhos, reverse=True)
    assert rhos[-1] == 0
    changes = [k for k in range(1, len(found)) if rhos[k] < rhos[k - 1]]
    assert all(found[k][2] >= 1 - LAG - 1e-9 for k in changes)
    assert all(found[k - 1][2] >= 1 - LAG for k in changes)


def test_a_faster_model_is_cooled_faster():
    last = [next(k for k, (_, rho, _) in enumerate(followed(fall, 300)) if rho == 0) for fall in (0.0, 0.4, 0.8)]
    assert last == sorted(last)
    assert last[0] == 1  # the first evaluation after the start
    assert last[2] > 2 * last[1]


def test_noise_in_what_is_measured_does_not_undo_it():
    found = followed(0.5, 200, noise=0.03)
    assert found[-1][1] == 0
    assert all(reached > 0.8 for _, _, reached in found[20:])


def test_cooling_at_once_would_leave_the_model_behind():
    """The negative control: a slow model, and a schedule that doesn't wait."""
    c = 1.0
    for rho in (0.8, 0.4, 0.2, 0.1):
        c = rho + 0.8 * (c - rho)
        assert (1 - c) / (1 - rho) < 1 - LAG


@pytest.mark.parametrize(
    "measured",
    [
        theory(0.5),  # half-way
        theory(math.nan),
        theory(1.0, made=0.1, error=0.1),  # the way made can't be told from none
        theory(1.0, made=-1.0, error=0.1),
        theory(1.0, made=math.nan),
    ],
)
def test_a_run_that_does_not_arrive_is_not_cooled_before_its_deadline_says_so(measured):
    schedule = Adaptive(deadline=0.8)
    for k in range(50):
        schedule.observe(k / 50, {**measured, **FAR})
    betas = [schedule.temperature(progress) for progress in (0.0, 0.4, 0.6, 0.7999, 0.8, 1.0)]
    assert betas[:2] == pytest.approx([4.0, 4.0])
    assert betas[2] == pytest.approx(0.4 / 0.6)  # a retention of 0.8/2
    assert 0 < betas[3] < 0.001
    assert betas[4:] == [0, 0]
    schedule.observe(SOON, {**theory(1.0), **FAR})
    assert schedule.temperature(SOON) < 4.0


def test_adaptive_concludes_nothing_from_the_first_evaluation():
    schedule, rule = Adaptive(), CopyingStop()
    schedule.observe(0.0, {**theory(1.0), **NEAR})
    rule.observe(0.0, NEAR)
    assert (schedule.temperature(0.0), schedule.done, rule.done, rule.reason) == (4.0, False, False, "")


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.100001, 0.3, 0.7, 0.99, 1.0])
@pytest.mark.parametrize("left", [-0.2, 0.0, 0.05, 0.3, 0.8, 1.0])
def test_the_lowest_retention_that_can_be_followed(rate, left):
    rho = lowest_retention(rate, left)
    assert 0 <= rho <= 1
    assert rate * (left - rho) <= LAG * (1 - rho) + 1e-12
    if rho > 0:  # and none lower
        assert rate * (left - 0.99 * rho) > LAG * (1 - 0.99 * rho)


def test_the_share_of_a_lag_that_is_left():
    assert (remaining_lag(0.2, 0.1), remaining_lag(0.2, -0.1), remaining_lag(0.2, 0.3), remaining_lag(0.0, 0.0)) == (
        0.5,
        0.0,
        1.0,
        1.0,
    )


def ended(schedule, measurements):
    """The index of the evaluation at which it ends a run of these, one every tenth of it; None where it doesn't."""
    for k, measured in enumerate(measurements):
        schedule.observe(k / 10, measured)
        if schedule.done:
            return k
    return None


def test_adaptive_ends_by_its_rule(registry):
    schedule = registry.build("schedule", {"name": "adaptive", "stop": {"name": "copying", "patience": 0.15}})
    assert schedule.needs == ("theory", "memorisation")
    # Cold after the first evaluation, heard from the second on, and the patience is two tenths of the run.
    assert ended(schedule, [{**theory(1.0), **NEAR}] * 10) == 4
    assert schedule.reason.endswith("The temperature was 0.")


def test_a_warm_run_is_not_ended_though_it_copies_and_stands_still():
    warm = [{**theory(0.5), **NEAR}] * 5
    assert ended(Adaptive(), warm) is None
    hasty = Adaptive()
    hasty.retention = 0.0  # the negative control: the same numbers, of a cold run
    assert ended(hasty, warm) == 1
    # From the deadline on a run is cold, and ends a patience later.
    assert ended(Adaptive(), [{**theory(0.5), **NEAR}] * 10) == 6


def test_the_state_of_adaptive_is_complete(registry):
    one, other = registry.create("schedule", "adaptive"), registry.create("schedule", "adaptive")
    told = [theory(0.4), theory(0.95), theory(0.7), theory(0.97), theory(0.99)]
    for k, measured in enumerate(told):
        one.observe(0.1 + k / 10, {**measured, **NEAR})
        other = registry.create("schedule", "adaptive")
        other.load_state_dict(json.loads(json.dumps(one.state_dict())))
        assert (other.temperature(1.0), other.done, other.state_dict()) == (
            one.temperature(1.0),
            one.done,
            one.state_dict(),
        )


@pytest.fixture
def config(finetune_config):
    return {
        **finetune_config,
        "data": {"name": "gaussian-mixture", "count": 20},
        "schedule": {"name": "adaptive"},
        "train": {"steps": 60, "batch_size": 32, "checkpoint_every": 10, "learning_rate": 1e-2, "keep_checkpoints": 9},
        "evaluate": {"every": 10, "count": 24, "solver": {"name": "euler", "steps": 2}},
        "monitors": [{"name": "theory", "batches": 4}, {"name": "memorisation", "count": 40}],
    }


def test_an_adaptive_run_cools_and_is_resumed_bit_for_bit(config, registry, tmp_path):
    whole = gftkit.finetune(config, tmp_path / "whole", registry=registry)
    betas = [line["temperature"] for line in whole.history() if line["kind"] == "monitor"]
    assert betas[0] == 4.0
    assert min(betas) < 4.0
    again = gftkit.finetune(config, tmp_path / "again", registry=registry).folder
    (again / "model.safetensors").unlink()
    for path in checkpoint.checkpoints_of(again / "checkpoints")[2:]:
        path.unlink()
    gftkit.finetune(config, again, registry=registry, resume=True)
    made, remade = (load_file(folder / "model.safetensors") for folder in (whole.folder, again))
    assert all(torch.equal(made[key], remade[key]) for key in made)
    assert (whole.folder / "metrics.jsonl").read_text() == (again / "metrics.jsonl").read_text()


def test_adaptive_keeps_its_start_temperature_when_nothing_is_learned(config, registry, tmp_path):
    """The negative control: without steps worth the name there is nothing to arrive at, and T near 0 says nothing."""
    config["train"] |= {"learning_rate": 1e-12, "steps": 30}
    config["schedule"]["deadline"] = 1.0
    run = gftkit.finetune(config, tmp_path / "run", registry=registry)
    betas = [line["temperature"] for line in run.history() if line.get("monitor") == "theory"]
    # At the end that of the last step: retentions of 2 * 0.8 (1 - step/30), at most 0.8.
    rhos = [min(0.8, 1.6 * (1 - step / 30)) for step in (0, 10, 20, 29)]
    assert betas == pytest.approx([rho / (1 - rho) for rho in rhos], rel=1e-4)


# --- held-out evidence, and refitting ---------------------------------------------------------------------------------


def held_out(reached, error=0.02):
    """What the monitor says where the fit has arrived, and where held-out pairs put it."""
    measured = {**theory(1.0)["theory"], "held_out_reached": reached, "held_out_reached_stderr": error}
    return {"theory": measured, **FAR}


def test_adaptive_steps_back_to_the_optimum_of_held_out_pairs():
    """A fit b_pre + (1 - rho)(Delta + zeta), with E<zeta, Delta> = 0 and |zeta|^2 = F: T15's beta is F/|Delta|^2."""
    gap, noise = 2.0, 0.5
    schedule = Adaptive(evidence="held-out")
    for k in range(1, 9):
        rho = retention(schedule.temperature(k / 10))
        way, made = (1 - rho) ** 2 * (gap + noise), (1 - rho) * gap  # R and P
        schedule.observe(k / 10, held_out(way / ((1 - rho) * made)))
    assert schedule.temperature(1.0) == pytest.approx(noise / gap)


def test_adaptive_does_not_step_back_without_evidence():
    schedule = Adaptive(evidence="held-out")
    for k, told in enumerate([held_out(math.nan, math.nan), held_out(-1.0), held_out(1.0), held_out(1.5, error=0.6)]):
        schedule.observe((k + 1) / 10, told)
    assert schedule.temperature(1.0) < 0.01
    deaf = Adaptive()  # the negative control: the same evidence, unheard
    deaf.observe(0.5, held_out(1.5))
    deaf.observe(0.6, held_out(1.5))
    assert deaf.temperature(1.0) < 0.01


def test_adaptive_holds_its_start_temperature_while_held_out_pairs_ask_for_more():
    schedule = Adaptive(start=0.25, evidence="held-out")
    schedule.observe(0.5, held_out(9.0))
    assert schedule.temperature(1.0) == pytest.approx(0.25)
    schedule.observe(0.6, held_out(1.2))
    assert schedule.temperature(1.0) == pytest.approx(0.2)  # a retention of 1 - 1/1.2
    schedule.observe(0.7, held_out(1.0))
    assert schedule.temperature(1.0) == 0


def test_held_out_evidence_outlasts_the_deadline_and_only_what_is_sure_raises_the_temperature():
    def after(reached, error):
        schedule = Adaptive(evidence="held-out")
        for told in (held_out(1.0), held_out(reached, error)):
            told["theory"]["reached"] = 0.5  # not arrived: a retention of 0.32 by the deadline
            schedule.observe(0.4, told)
        return retention(schedule.temperature(0.4)), retention(schedule.temperature(0.9))

    assert after(1.0, 0.02) == pytest.approx((0.32, 0.0))
    assert after(1.25, 0.02) == pytest.approx((0.32, 0.2))  # the best is 0.2, for sure
    assert after(2.0, 0.02) == pytest.approx((0.5, 0.5))
    assert after(2.0, 0.8) == pytest.approx((0.32, 0.32))  # the best is 0.5, but at least 0.1


def test_adaptive_by_held_out_pairs_needs_held_out_data(config, registry, tmp_path):
    config["schedule"] = {"name": "adaptive", "evidence": "held-out"}
    with pytest.raises(ConfigError, match="this run has none"):
        gftkit.finetune(config, tmp_path / "run", registry=registry)
    assert not (tmp_path / "run" / "config.yaml").exists()
