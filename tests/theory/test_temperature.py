"""The temperature of a schedule: checked at every step before anything is trained."""

import pytest

import gftkit
from gftkit.kernel.errors import ConfigError
from gftkit.theory.temperature import check_schedule


def registry_with_schedule(function):
    """Everything installed and a schedule "mine" of a plugin."""

    class Mine:
        """A schedule."""

        def temperature(self, progress: float) -> float:
            return function(progress)

    return gftkit.load(
        plugins={"mine": type("Plugin", (), {"gftkit_schedules": gftkit.hookimpl(lambda self: {"mine": Mine})})()}
    )


def test_a_schedule_that_rises_is_warned_about_once():
    schedule = registry_with_schedule(lambda s: 1 + s * (s > 0.5)).create("schedule", "mine")
    (warning,) = check_schedule(schedule, "mine", 10)
    assert warning.startswith("schedule 'mine' rises at step 6 of 10, from 1 to 1.6.")
    assert check_schedule(registry_with_schedule(lambda s: 1 - s).create("schedule", "mine"), "mine", 10) == []


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda s: 0.5 - 2 * s, "step 18: temperature: wanted a finite number above -1, got -1"),
        (lambda s: float("nan") if s > 0.9 else 1.0, "step 22: temperature: wanted a finite number above -1, got nan"),
        (lambda s: 1 / (0.5 - s), "step 12: float division by zero"),
        (lambda s: None, "step 0: float\\(\\) argument"),
    ],
)
def test_a_schedule_that_breaks_its_word_is_named_before_anything_is_trained(tuning, tmp_path, function, reason):
    registry = registry_with_schedule(function)
    with pytest.raises(ConfigError, match=rf"schedule 'mine' at {reason}"):
        gftkit.finetune({**tuning, "schedule": {"name": "mine"}}, tmp_path / "run", registry=registry)
    assert not (tmp_path / "run").exists()
