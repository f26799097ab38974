"""Options of components: checked against the factory's signature, with the key's whole path in every error."""

from typing import Annotated

import pytest
import torch
from pydantic import Field

import gftkit
from gftkit.kernel.contracts import Feature, Schedule
from gftkit.kernel.errors import ConfigError, PluginError, UnknownNameError


class Cool:
    """A schedule that stays at one temperature.

    Args:
        start: where it starts.
    """

    def __init__(self, start: Annotated[float, Field(ge=0, lt=10)] = 1.0) -> None:
        if start == 7:
            raise ValueError("seven is not allowed")
        self.start = start

    def temperature(self, progress: float) -> float:
        return self.start


class Plugin:
    """Gives one component."""

    def __init__(self, kind, name, factory):
        vars(self)[f"gftkit_{kind}s"] = gftkit.hookimpl(lambda: {name: factory})


def with_schedule(factory):
    return gftkit.load(plugins={"mine": Plugin("schedule", "cool", factory)})


def test_a_component_is_created_with_its_options():
    assert with_schedule(Cool).create("schedule", "cool", start=3).temperature(0.5) == 3


def test_an_unknown_kind_suggests_the_nearest(registry):
    for ask in (registry.names, lambda kind: registry.create(kind, "x"), lambda kind: registry.describe(kind, "x")):
        with pytest.raises(
            UnknownNameError, match=r"unknown kind 'schedul'\. Did you mean 'schedule'\? Known: coupling"
        ):
            ask("schedul")


def test_an_unknown_name_suggests_the_nearest_and_lists_all(registry):
    with pytest.raises(UnknownNameError, match="Did you mean 'exponential'") as caught:
        registry.create("schedule", "exponental")
    assert all(name in str(caught.value) for name in registry.names("schedule"))


def test_an_unknown_option_suggests_the_nearest(registry):
    with pytest.raises(
        UnknownNameError, match=r"unknown option of schedule 'exponential': 'strat'. Did you mean 'start'"
    ):
        registry.create("schedule", "exponential", strat=1.0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("1", "valid number"),
        (True, "valid number"),
        (None, "valid number"),
        ([1.0], "valid number"),
        (float("nan"), "finite"),
        (float("inf"), "finite"),
        (-0.5, "greater than or equal to 0"),
        (10, "less than 10"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused(value, reason):
    with pytest.raises(ConfigError, match=r"schedule.start: wanted float, >= 0, < 10, got") as caught:
        with_schedule(Cool).create("schedule", "cool", start=value)
    assert reason in str(caught.value)


@pytest.mark.parametrize("value", [True, 2.0, "2", 0, None])
def test_a_whole_number_is_not_a_bool_or_a_float(registry, value):
    with pytest.raises(ConfigError, match=r"drift.width: wanted int, > 0, got"):
        registry.create("drift", "mlp", event_shape=[2], width=value)


def test_a_missing_option_says_its_type(registry):
    with pytest.raises(ConfigError, match=r"dataset.file is missing: dataset 'arrays' requires it \(file or folder\)"):
        registry.create("dataset", "arrays")


def test_a_value_error_of_the_factory_carries_the_keys_path():
    with pytest.raises(ConfigError, match=r"evaluate.it \(schedule 'cool'\): seven is not allowed"):
        with_schedule(Cool).build("schedule", {"name": "cool", "start": 7.0}, "evaluate.it")


def test_a_result_that_breaks_the_contract_is_refused():
    def warm() -> object:
        """No schedule at all."""
        return object()

    with pytest.raises(PluginError, match="schedule 'cool' of plugin 'mine' made a object, which isn't a Schedule"):
        with_schedule(warm).create("schedule", "cool")


@pytest.mark.parametrize("spec", [5, {}, {"name": 3}, ["cool"], None])
def test_a_component_is_written_with_its_name(spec):
    with pytest.raises(ConfigError, match=r"wanted the name of a schedule, or \{name: \.\.\.\}"):
        with_schedule(Cool).build("schedule", spec)


class NoOptions(torch.nn.Module):
    """A module that says nothing of its making."""


class NoOptionsEither(Schedule):
    """A class that inherits from its contract."""

    def temperature(self, progress: float) -> float:
        return 0.0


def test_a_class_without_init_has_no_options():
    registry = gftkit.load(
        plugins={"one": Plugin("drift", "bare", NoOptions), "two": Plugin("schedule", "bare", NoOptionsEither)}
    )
    for kind, factory in (("drift", NoOptions), ("schedule", NoOptionsEither)):
        assert registry.describe(kind, "bare").options == ()
        assert isinstance(registry.create(kind, "bare"), factory)


# Options that are components, and options that the kernel supplies


class Twice:
    """A feature made of another.

    Args:
        inner: the other one.
        factor: what it is multiplied by.
    """

    def __init__(self, inner: Feature, factor: Annotated[float, Field(gt=0)] = 2.0) -> None:
        self.inner, self.factor = inner, factor

    def __call__(self, x):
        return self.factor * self.inner(x)


@pytest.fixture(scope="module")
def nesting():
    return gftkit.load(plugins={"mine": Plugin("feature", "twice", Twice)})


def test_a_nested_component_is_created_first(nesting):
    inner = {"name": "twice", "inner": {"name": "identity"}}
    made = nesting.create("feature", "twice", inner=inner, factor=3.0)
    assert float(made(torch.ones(1, 1))) == 6.0
    assert float(nesting.create("feature", "twice", inner=made)(torch.ones(1, 1))) == 12.0


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ({"name": "identiy"}, "unknown feature at feature.inner: 'identiy'. Did you mean 'identity'"),
        ({"name": "twice"}, "feature.inner.inner is missing"),
        (
            {"name": "twice", "inner": {"name": "identity"}, "factor": -1},
            "feature.inner.factor: wanted float, > 0, got -1",
        ),
        (
            {"name": "twice", "inner": {"name": "identity"}, "facto": 1.0},
            "option of feature.inner 'twice': 'facto'. Did you mean 'factor'",
        ),
        ("identiy", "unknown feature at feature.inner: 'identiy'. Did you mean 'identity'"),
        (3, r"feature.inner: wanted a feature \{name: ...\}, got 3 \(int\)\.$"),
        ({"name": 3}, r"feature.inner: wanted the name of a feature, or \{name: ...\}"),
    ],
)
def test_errors_in_nested_components_name_the_whole_key(nesting, inner, message):
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        nesting.create("feature", "twice", inner=inner)


def test_the_kernel_supplies_what_a_factory_asks_for(registry):
    drift = registry.build("drift", {"name": "mlp", "width": 4}, event_shape=(3,), classes=5)
    assert drift.event_shape == (3,)
    own = registry.build("drift", {"name": "mlp", "width": 4, "event_shape": [2]}, event_shape=(3,))
    assert own.event_shape == (2,)


def test_a_supplied_option_is_missed_where_nothing_tells_it(registry):
    with pytest.raises(ConfigError, match=r"drift.event_shape is missing, and there are no data to take it from"):
        registry.create("drift", "mlp")


def test_resolving_fills_in_defaults_and_leaves_out_what_is_supplied(registry):
    resolved = registry.resolve("drift", {"name": "mlp", "width": 4})
    assert resolved == {"name": "mlp", "width": 4, "depth": 3, "conditional": False, "conditions": ()}
    assert registry.resolve("drift", resolved) == resolved


def test_options_that_a_kind_adds_come_first_and_a_component_keeps_its_own_in_place(registry):
    """The order is that of the keys in config.yaml."""
    added = [*registry.added_options("dataset")]
    assert [*registry.options(registry.component("dataset", "digits"))][: len(added)] == added
    fmow = registry.component("dataset", "fmow")
    assert "split" in fmow.options
    assert [*registry.options(fmow)] == [*(name for name in added if name not in fmow.options), *fmow.options]
