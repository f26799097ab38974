"""Claims by decorator: what is declared on a measurement, what is made of it for a registry, and what is refused."""

import subprocess
import sys
import textwrap
from importlib import import_module
from types import ModuleType

import pytest
import torch

import gftkit
from gftkit.kernel.errors import PluginError, UnknownNameError
from gftkit.verify import Claim, check, claim, claims_of, exact, order
from gftkit.verify.collect import collect
from gftkit.verify.declaration import declared_in

HEADER = (
    "from gftkit.verify import REGISTRY, FromRegistry, Measurement, claim, claim_for_each, exact, order, registered\n"
)

ZERO = """
@claim(
    "zero",
    statement="Zero is zero.",
    reference="theory, T99",
    subject=0.0,
    bound=exact(1e-9),
    mutants={"one": 1.0, "two": 2.0},
)
def value(number, generator):
    return number
"""


def module_of(*sources, name="declared"):
    """A module with this text."""
    module = ModuleType(name)
    exec(HEADER + "\n".join(textwrap.dedent(source) for source in sources), vars(module))
    return module


def claims_in(*sources, registry=None):
    """The claims that a module of this text declares, by name."""
    made = claims_of(module_of(*sources), registry or gftkit.load())
    return {one.name: one for one in made}


def test_a_declaration_leaves_the_measurement_as_it_is_and_gives_its_claim():
    module = module_of(ZERO)
    assert module.value(3.0, None) == 3.0
    (made,) = claims_of(module, gftkit.load())
    expected = Claim(
        name="zero",
        statement="Zero is zero.",
        reference="theory, T99",
        subject=0.0,
        measure=module.value,
        bound=exact(1e-9),
        mutants={"one": 1.0, "two": 2.0},
    )
    assert made == expected
    assert check(made).passed


def test_every_field_of_a_claim_can_be_declared():
    declared = """
    @claim(
        "zero", statement="s", reference="r", subject=0.0, bound=order(0.5), mutants={"one": 1.0, "two": 2.0},
        conditions="c", component="path:linear", profile="full", seeds=7, axes=("x", "y"), scales=("linear", "log"),
    )
    def value(number, generator):
        return number
    """
    made = claims_in(declared)["zero"]
    assert (made.conditions, made.component, made.profile, made.seeds) == ("c", "path:linear", "full", 7)
    assert (made.bound, made.axes, made.scales) == (order(0.5), ("x", "y"), ("linear", "log"))


@pytest.mark.parametrize("mutants", ["{}", "{'one': 1.0}", "lambda subject: {'one': 1.0}"])
def test_a_declared_claim_with_fewer_than_two_mutants_is_refused(mutants):
    source = ZERO.replace('{"one": 1.0, "two": 2.0}', mutants)
    assert source != ZERO
    with pytest.raises(ValueError, match=r"claim 'zero' has [01] mutants; wanted at least two"):
        claims_in(source)
    plugin = type(
        "Plugin", (), {"gftkit_claims": gftkit.hookimpl(lambda self, registry: claims_of(module_of(source), registry))}
    )
    with pytest.raises(PluginError, match="plugin 'mine': its claims can't be made: ValueError: claim 'zero' has"):
        collect(gftkit.load(plugins={"mine": plugin()}, block=["gftkit-claims"]))


@pytest.mark.parametrize(
    "argument",
    [
        "subject=registered('solver', 'huen')",
        "subject=registered('solver', 'huen').then(lambda solver: solver.step)",
        "mutants={'one': registered('solver', 'huen'), 'two': 2.0}",
        "mutants=lambda subject: {'one': registered('solver', 'huen'), 'two': 2.0}",
        "uses={'solver': registered('solver', 'huen')}",
    ],
)
def test_a_component_that_is_not_registered_is_named_with_its_claim(argument):
    fields = {"subject": "subject=0.0", "mutants": "mutants={'one': 1.0, 'two': 2.0}"}
    fields[argument.split("=", 1)[0]] = argument
    source = f"""
    @claim("needs-huen", statement="s", reference="r", bound=exact(), {", ".join(fields.values())})
    def value(number, generator, solver=None):
        return number
    """
    with pytest.raises(UnknownNameError, match=r"claim 'needs-huen': unknown solver 'huen'\. Did you mean 'heun'\?"):
        claims_in(source)


def test_components_and_the_registry_are_handed_on():
    declared = """
    @claim(
        "handed",
        statement="s",
        reference="r",
        subject=registered("path", "linear"),
        bound=exact(),
        mutants=lambda path: {
            "bridge": registered("path", "brownian-bridge", scale=0.5),
            "the path's type": type(path),
        },
        uses={
            "solver": registered("solver", "heun"),
            "registry": REGISTRY,
            "names": FromRegistry(lambda registry: registry.names("path")),
        },
    )
    def value(path, generator, *, solver, registry, names):
        return 0.0 if solver.ode_order == 2 and registry.names("path") == names else 1.0
    """
    registry = gftkit.load()
    made = claims_in(declared, registry=registry)["handed"]
    assert isinstance(made.subject, type(registry.create("path", "linear")))
    assert made.mutants["bridge"].diffusion(torch.ones(1)).item() == 0.5
    assert made.mutants["the path's type"] is type(made.subject)
    assert check(made).holds


def test_a_family_has_a_claim_for_each_item():
    declared = """
    def solvers(registry):
        return ((name, registry.create("solver", name)) for name in ("euler", "heun"))

    @claim_for_each(
        solvers,
        "order-{name}",
        statement="Solver {name} has its order.",
        reference="r",
        subject=lambda solver: solver.ode_order,
        bound=exact(),
        mutants=lambda solver: {"one more": solver.ode_order + 1, "none": 0.0},
        conditions=lambda solver: f"order {solver.ode_order:g}",
        component="solver:{name}",
        uses={"shift": 0.0},
        item_as="solver",
    )
    def difference(order, generator, *, solver, shift):
        return order - solver.ode_order + shift
    """
    made = claims_in(declared)
    assert list(made) == ["order-euler", "order-heun"]
    heun = made["order-heun"]
    assert (heun.statement, heun.conditions) == ("Solver heun has its order.", "order 2")
    assert (heun.subject, heun.component, heun.mutants) == (2.0, "solver:heun", {"one more": 3.0, "none": 0.0})
    assert check(heun).passed
    assert claims_in(declared.replace('("euler", "heun")', "()")) == {}


def test_a_claim_is_left_out_without_the_package_that_it_requires():
    assert set(claims_in(ZERO.replace("bound=", 'requires="json", bound='))) == {"zero"}
    assert claims_in(ZERO.replace("bound=", 'requires="no_such_package", bound=')) == {}


def test_several_declarations_on_one_measurement_give_a_claim_each():
    twice = ZERO[: ZERO.index("def value")].replace('"zero"', '"nought"') + ZERO.lstrip()
    assert set(claims_in(twice)) == {"zero", "nought"}


def test_a_measurement_that_is_imported_is_declared_once_where_it_is_defined():
    source, importer = module_of(ZERO), module_of(name="importer")
    importer.value = source.value
    assert [name for name, _ in declared_in(source)] == ["zero"]
    assert list(declared_in(importer)) == []


def test_what_could_not_be_found_in_a_module_is_refused():
    def inside(number, generator):
        return number

    class Measure:
        def __call__(self, number, generator):
            return number

    for measure in (inside, Measure()):
        with pytest.raises(TypeError, match=r"claim 'zero' is declared on .*; wanted a function of a module"):
            claim(
                "zero",
                statement="s",
                reference="r",
                subject=0.0,
                bound=exact(),
                mutants={"one": 1.0, "two": 2.0},
            )(measure)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of claims, made of {path: text}, and forgotten afterwards."""

    def write(files):
        for path, text in files.items():
            target = tmp_path / "claims_of_mine" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return import_module("claims_of_mine")

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "claims_of_mine"]:
        del sys.modules[name]


def test_the_modules_of_a_package_are_found_without_a_list(package):
    files = {"__init__.py": "", "zero.py": HEADER + ZERO, "deep/__init__.py": ""}
    files["deep/nought.py"] = HEADER + ZERO.replace('"zero"', '"nought"')
    assert {made.name for made in claims_of(package(files), gftkit.load())} == {"zero", "nought"}


@pytest.mark.parametrize("path", ["broken.py", "deep/__init__.py"])
def test_a_module_that_can_not_be_imported_is_an_error_and_not_left_out(package, path):
    whole = package({"__init__.py": "", "zero.py": HEADER + ZERO, path: "import no_such_package"})
    with pytest.raises(ImportError, match="no_such_package"):
        list(claims_of(whole, gftkit.load()))


def test_no_claims_are_imported_before_they_are_asked_for():
    code = """
    import sys, gftkit
    registry = gftkit.load()
    assert registry.claim_hooks
    print([name for name in sys.modules if name.startswith(("gftkit_verification.claims.", "gftkit.verify"))])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
