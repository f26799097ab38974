"""The registry: every kind with its hook and contract, and the description of components."""

from support.plugins import Cool, with_schedule

import gftkit

BUILT_IN = "gftkit-schedules"


def test_every_kind_has_one_hook_a_contract_and_an_annotation():
    from gftkit.kernel import hooks
    from gftkit.kernel.kinds import KIND_OF, KINDS

    assert set(KINDS) == set(KIND_OF.values())
    assert gftkit.load().kinds() == tuple(KINDS)
    assert set(hooks.HOOKS) == set(vars(hooks.specifications()))
    for name, kind in KINDS.items():
        assert (kind.name, kind.hook) == (name, f"gftkit_{name}s")
        assert kind.hook in hooks.HOOKS
        assert kind.summary
        for contract in (*kind.contracts, *kind.written):
            assert contract.__doc__, contract


def test_every_component_is_described(registry):
    for kind in registry.kinds():
        assert registry.names(kind), f"no component of kind {kind}"
        for name in registry.names(kind):
            found = registry.describe(kind, name)
            assert found.summary, (kind, name)
            assert all((found.plugin, found.distribution, found.version)), (kind, name)
            for option in found.options:
                assert option.type_text.isprintable(), (kind, name, option.name)
                assert "typing." not in option.type_text, (kind, name, option.name)
                assert option.help, f"{kind} {name}: option '{option.name}' isn't in the docstring's Args"
            values = found.to_dict()
            assert {"kind", "name", "doc", "options", "plugin", "distribution", "version"} == set(values)


def test_built_ins_come_from_the_distribution_through_entry_points(registry):
    found = registry.describe("schedule", "exponential")
    assert (found.plugin, found.distribution, found.version) == (BUILT_IN, "gftkit", gftkit.__version__)
    start, rate, zero_from, end, ramp = (option for option in found.options)
    assert (start.name, start.default, start.type_text, start.required) == ("start", 4.0, "float, >= 0", False)
    assert rate.help == "e-folds over a whole run."
    assert zero_from.type_text == ramp.type_text == "float, > 0, <= 1"
    assert (end.kind, end.type_text) == ("profile", "a profile {name: ...} or float, < 1 or null")


def test_a_plain_object_is_described_too():
    found = with_schedule(Cool).describe("schedule", "cool").to_dict()
    assert (found["plugin"], found["distribution"], found["version"]) == ("mine", "", "")
    assert found["doc"].startswith("A schedule that stays")
    assert found["options"][0] == {
        "name": "start", "type": "float, >= 0, < 10", "required": False, "default": 1.0, "supplied": False,
        "help": "where it starts, and where it stays.",
    }  # fmt: skip
    assert found["options"][1]["type"] == "str or null"


def test_data_sets_have_the_options_of_a_subset(registry):
    options = {option.name for option in registry.describe("dataset", "digits").options}
    assert {"classes", "count", "seed", "split"} <= options


def test_supplied_options_are_marked(registry):
    options = {option["name"]: option for option in registry.describe("drift", "mlp").to_dict()["options"]}
    assert options["event_shape"]["supplied"]
    assert not options["event_shape"]["required"]
