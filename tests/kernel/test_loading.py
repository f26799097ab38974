"""The rules of loading plugins: each with a plugin that breaks it."""

from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest
from support.plugins import Cool, Hooks, plugin, with_schedule

import gftkit
from gftkit.kernel.errors import PluginError, UnknownNameError

BUILT_IN = "gftkit-schedules"


def refused(*objects, **named):
    """The message with which these plugins are refused."""
    with pytest.raises(PluginError) as caught:
        gftkit.load(plugins=named or objects)
    return str(caught.value)


# Loading


def test_loads_of_the_registry_share_nothing():
    first = with_schedule(Cool)
    assert "cool" in first.names("schedule")
    assert "cool" not in gftkit.load().names("schedule")


@pytest.mark.parametrize("by_environment", [False, True])
def test_a_blocked_built_in_is_not_loaded(monkeypatch, by_environment):
    if by_environment:
        monkeypatch.setenv("GFTKIT_BLOCK", f"{BUILT_IN},mine")
    registry = gftkit.load(
        plugins={"mine": plugin(schedules={"cool": Cool})}, block=() if by_environment else (BUILT_IN, "mine")
    )
    assert registry.names("schedule") == ()
    assert {p.origin.plugin for p in registry.plugins if p.status == "blocked"} == {BUILT_IN, "mine"}
    with pytest.raises(UnknownNameError, match=f"plugin '{BUILT_IN}' of gftkit .* is blocked"):
        registry.create("schedule", "exponential")


def test_a_blocked_plugin_may_break_every_rule(distribution, monkeypatch):
    monkeypatch.syspath_prepend(distribution("bad-one", {"bad": "bad_one"}, {"bad_one": "raise RuntimeError('no')"}))
    registry = gftkit.load(block=("bad", "worse"), plugins={"worse": plugin(schedles={})})
    assert {p.origin.plugin for p in registry.plugins if p.status == "blocked"} == {"bad", "worse"}


def test_a_plugin_that_fails_to_import_is_recorded_and_named(distribution, monkeypatch):
    site = distribution("bad-one", {"bad": "bad_one"}, {"bad_one": "import a_module_that_is_not_there"}, "3.2")
    monkeypatch.syspath_prepend(site)
    registry = gftkit.load()
    assert "exponential" in registry.names("schedule")
    (failed,) = [p for p in registry.plugins if p.status == "failed"]
    assert (failed.origin.plugin, failed.origin.distribution, failed.origin.version) == ("bad", "bad-one", "3.2")
    assert "a_module_that_is_not_there" in failed.error
    assert "Traceback" in failed.traceback
    with pytest.raises(UnknownNameError, match=r"plugin 'bad' of bad-one 3.2 may provide it but failed to load"):
        registry.create("schedule", "icy")
    with pytest.raises(PluginError, match=r"plugin 'bad' of bad-one 3.2 failed to load: ModuleNotFoundError"):
        gftkit.load(strict=True)


def test_a_plugin_that_exits_at_import_is_recorded(distribution, monkeypatch):
    monkeypatch.syspath_prepend(distribution("bad-two", {"bad": "bad_two"}, {"bad_two": "raise SystemExit('bye')"}))
    assert [p.error for p in gftkit.load().plugins if p.status == "failed"] == ["SystemExit: bye"]


def test_a_hook_that_fails_is_recorded():
    def gftkit_schedules():
        raise RuntimeError("the hook broke")

    registry = gftkit.load(plugins={"mine": Hooks(gftkit_schedules=gftkit.hookimpl(gftkit_schedules))})
    assert [p.error for p in registry.plugins if p.status == "failed"] == ["RuntimeError: the hook broke"]


def test_two_distributions_with_one_plugin_name_are_refused(distribution, monkeypatch):
    for number in ("one", "two"):
        site = distribution(f"cool-{number}", {"cool": f"cool_{number}"}, {f"cool_{number}": ""}, folder=number)
        monkeypatch.syspath_prepend(site)
    with pytest.raises(PluginError, match="two plugins are named 'cool'") as caught:
        gftkit.load()
    assert "cool-one" in str(caught.value)
    assert "cool-two" in str(caught.value)


def test_one_distribution_seen_twice_is_loaded_once(distribution, monkeypatch):
    source = "import gftkit\n@gftkit.hookimpl\ndef gftkit_schedules():\n    return {}\n"
    for folder in ("one", "two"):
        monkeypatch.syspath_prepend(
            distribution("cool-three", {"cool": "cool_three"}, {"cool_three": source}, "1.0", folder)
        )
    assert [p.status for p in gftkit.load().plugins if p.origin.plugin == "cool"] == ["loaded"]


def test_entry_points_of_the_backport_are_loaded_too(registry, monkeypatch):
    """mlflow brings importlib_metadata, which answers in Python's place with classes of its own."""
    points = [
        SimpleNamespace(name=point.name, value=point.value, group=point.group, dist=point.dist)
        for point in entry_points(group="gftkit")
    ]
    monkeypatch.setattr("gftkit.kernel.loading.entry_points", lambda group: points)
    assert gftkit.load().plugins == registry.plugins


def test_a_plugin_may_not_take_a_built_in_plugins_name():
    assert "two plugins are named 'gftkit-schedules'" in refused(**{BUILT_IN: plugin(schedules={})})


def test_a_component_registered_twice_names_both_plugins():
    message = refused(mine=plugin(schedules={"exponential": Cool}))
    assert "schedule 'exponential' is registered twice" in message
    assert BUILT_IN in message
    assert "'mine'" in message


def test_components_of_two_kinds_may_share_a_name(registry):
    assert "linear" in registry.names("path")
    assert "linear" in registry.names("schedule")


def test_plugins_are_named_after_themselves():
    registry = gftkit.load(plugins=[plugin(schedules={"cool": Cool})])
    assert registry.describe("schedule", "cool").plugin == "Hooks"


# Rules for a plugin


def test_a_misspelt_hook_is_refused():
    message = refused(mine=plugin(schedulers={"cool": Cool}))
    assert "gftkit_schedulers" in message
    assert "Did you mean 'gftkit_schedules'?" in message


def test_a_misspelt_hook_beside_a_right_one_is_refused():
    assert "gftkit_schedlues" in refused(mine=plugin(schedlues={}, schedules={"cool": Cool}))


def test_a_hook_without_its_mark_is_refused():
    unmarked = Hooks(gftkit_schedules=lambda: {"cool": Cool})
    assert "'gftkit_schedules' is not marked. Put @gftkit.hookimpl above it" in refused(mine=unmarked)


def test_a_hook_that_asks_for_what_there_is_not_is_refused():
    def gftkit_schedules(registry):
        return {}

    with pytest.raises(PluginError, match="gftkit_schedules"):
        gftkit.load(plugins=[Hooks(gftkit_schedules=gftkit.hookimpl(gftkit_schedules))], strict=True)


def test_a_plugin_without_hooks_is_refused():
    assert "implements no hook" in refused(mine=Hooks())


@pytest.mark.parametrize("name", ["Cool", "cool_one", "-cool", "cool--one", "cool ", "", 3, "kühl"])
def test_bad_component_names_are_refused(name):
    assert "lower case letters, digits and single hyphens" in refused(mine=plugin(schedules={name: Cool}))


@pytest.mark.parametrize("given", [[("cool", Cool)], {"cool"}, "cool"])
def test_a_hook_gives_a_mapping(given):
    assert "wanted a mapping from name to factory" in refused(mine=plugin(schedules=given))


def test_a_factory_is_callable():
    assert "wanted a class or function" in refused(mine=plugin(schedules={"cool": 3}))


def swallowing(**options: float) -> Cool:
    """A factory that takes anything."""
    return Cool()


def positional(*options: float) -> Cool:
    """A factory that takes any number."""
    return Cool()


def untyped(start=1.0) -> Cool:
    """A factory whose option has no type."""
    return Cool()


def undocumented(start: float = 1.0) -> Cool:
    return Cool()


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        (swallowing, r"takes \*\*options: a misspelt option would pass unseen"),
        (positional, r"takes \*options"),
        (untyped, "option 'start' without a type"),
        (undocumented, "has no docstring"),
    ],
)
def test_a_factory_whose_options_cannot_be_checked_is_refused(factory, complaint):
    with pytest.raises(PluginError, match=complaint) as caught:
        with_schedule(factory)
    assert "schedule 'cool' of plugin 'mine'" in str(caught.value)
