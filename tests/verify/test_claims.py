"""Claims in the kernel: what holds, what is rejected, what is refused, and how the results are shown."""

import json
import math
import re

import pytest
import torch
from scipy import stats

import gftkit
from gftkit.kernel.errors import ConfigError, PluginError, UnknownNameError
from gftkit.kernel.loading import load
from gftkit.verify import claims
from gftkit.verify import runner as verify
from gftkit.verify.claims import Claim, Measurement, check, exact, order, select, statistical
from gftkit.verify.collect import collect


def claim(name="T99-zero", subject=0.0, mutants=None, **changes):
    """A claim that its subject is 0, with mutants 1 and 2."""
    fields = {
        "statement": "Zero is zero | of course.",
        "reference": "theory, T99",
        "measure": lambda value, generator: value,
        "bound": exact(1e-9),
        "mutants": {"one": 1.0, "two": 2.0} if mutants is None else mutants,
    }
    return Claim(name=name, subject=subject, **{**fields, **changes})


def plugin(*given):
    return type("Plugin", (), {"gftkit_claims": gftkit.hookimpl(lambda self, registry: given)})()


def registry_with(*given):
    """Only these claims, as a plugin object brings them."""
    return load(plugins={"mine": plugin(*given)}, block=["gftkit-claims"])


# --- what a claim is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mutants", [{}, {"one": 1.0}])
def test_a_claim_without_mutants_can_not_be_made(mutants):
    with pytest.raises(ValueError, match=f"claim 'T99-zero' has {len(mutants)} mutants; wanted at least two"):
        claim(mutants=mutants)


def test_a_claim_without_seeds_can_not_be_made():
    with pytest.raises(ValueError, match="at least one seed"):
        claim(seeds=0)


def test_a_true_claim_holds_and_its_mutants_are_rejected():
    result = check(claim())
    assert result.passed
    assert result.holds
    assert [(mutant.name, mutant.measured, mutant.rejected) for mutant in result.mutants] == [
        ("one", 1.0, True),
        ("two", 2.0, True),
    ]


@pytest.mark.parametrize("subject", [2e-9, -2e-9, math.inf, math.nan])
def test_a_false_claim_fails(subject):
    result = check(claim(subject=subject))
    assert not result.holds
    assert not result.passed


@pytest.mark.parametrize(
    ("bound", "measured", "rejected"),
    [
        (exact(1e-9), 0.9e-6, False),
        (exact(1e-9), -1.1e-6, True),
        (order(0.1), 0.29, False),
        (order(0.1), 0.31, True),
        (exact(1e-9), math.nan, True),
    ],
)
def test_a_mutant_must_exceed_the_bound_by_the_margin(bound, measured, rejected):
    result = check(claim(bound=bound, mutants={"this": measured, "other": 100.0}))
    assert result.mutants[0].rejected is rejected
    assert result.passed is rejected


def test_the_worst_seed_counts_for_the_claim_and_the_best_for_a_mutant():
    def by_turn(values, generator):
        values.append(values.pop(0))  # each seed gets the next one
        return values[-1]

    result = check(claim(subject=[0.0, 5e-9, 0.0], mutants={"a": [1.0, 1e-8, 1.0], "b": [9.0] * 3}, measure=by_turn))
    assert result.measured == 5e-9
    assert result.mutants[0].measured == 1e-8
    assert not result.mutants[0].rejected


def test_measurements_are_a_function_of_the_seed():
    noisy = claim(measure=lambda value, generator: float(torch.randn((), generator=generator)))
    assert noisy.measure_seeds(0, 1) == noisy.measure_seeds(0, 1)
    assert noisy.measure_seeds(0, 1) != noisy.measure_seeds(0, 2)
    assert len({found.value for found in noisy.measure_seeds(0, 1)}) == noisy.seeds


def test_a_measurement_that_raises_fails_with_its_reason():
    result = check(claim(measure=lambda value, generator: 1 / value))
    assert not result.passed
    assert result.error == "ZeroDivisionError: float division by zero"
    assert json.loads(verify.as_json([result]))[0]["measured"] is None


def test_a_mutant_that_gftkit_refuses_is_rejected_and_one_that_crashes_is_not():
    def measure(value, generator):
        if isinstance(value, Exception):
            raise value
        return value

    refused = check(claim(measure=measure, mutants={"refused": ConfigError("no"), "one": 1.0}))
    assert refused.mutants[0].rejected
    assert refused.passed
    assert not check(claim(measure=measure, mutants={"crashes": TypeError("no"), "one": 1.0})).passed


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [5, 30, math.inf])
def test_the_false_alarm_rate_is_the_one_that_is_stated(degrees):
    bound = statistical(degrees, false_alarm=0.01)
    assert math.isclose(bound.false_alarm, 0.01, rel_tol=1e-9)
    assert math.isclose(2 * stats.t.sf(bound.value, degrees), 0.01, rel_tol=1e-9)


def test_a_true_statistical_claim_fails_as_often_as_stated():
    bound = statistical(7, false_alarm=0.1)
    draws = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = draws.mean(1) / (draws.std(1) / math.sqrt(8))
    share = float((t.abs() > bound.value).double().mean())
    assert abs(share - 0.1) < 5 * math.sqrt(0.1 * 0.9 / 20_000)
    normal = torch.tensor([bound.normal(float(value)) for value in t])
    assert stats.kstest(normal.numpy(), "norm").pvalue > 1e-4
    assert stats.kstest(t.numpy(), "norm").pvalue < 1e-6  # Student's t itself is not normal


def test_the_alarm_of_a_claim_counts_its_seeds():
    assert math.isclose(claim(bound=statistical(false_alarm=1e-5), seeds=4).false_alarm, 4e-5, rel_tol=1e-9)
    assert claim().false_alarm == 0


# --- from plugins -----------------------------------------------------------------------------------------------------


def test_plugins_bring_claims_and_are_asked_last():
    seen = []

    class Late:
        @gftkit.hookimpl
        def gftkit_claims(self, registry):
            seen.append(registry.names("path"))
            yield claim(name="T99-late")

    registry = load(plugins=[Late()], block=["gftkit-claims"])
    assert seen == []  # loading asks for none
    assert [found.name for found in collect(registry)] == ["T99-late"]
    assert "linear" in seen[0]


def test_two_claims_of_one_name_are_refused():
    registry = load(plugins={"one": plugin(claim()), "two": plugin(claim())}, block=["gftkit-claims"])
    with pytest.raises(PluginError, match="claim 'T99-zero' is made twice: by plugin 'one' and by plugin 'two'"):
        collect(registry)


def test_what_is_no_claim_is_refused():
    with pytest.raises(PluginError, match="plugin 'mine': gftkit_claims gave 3"):
        collect(registry_with(3))


def test_a_plugin_whose_claims_can_not_be_made_is_named():
    class Broken:
        @gftkit.hookimpl
        def gftkit_claims(self, registry):
            yield claim(mutants={})

    with pytest.raises(
        PluginError, match="plugin 'broken': its claims can't be made: ValueError: claim 'T99-zero' has"
    ):
        collect(load(plugins={"broken": Broken()}, block=["gftkit-claims"]))


def test_claims_are_selected_by_name_component_and_profile():
    made = [
        claim(name="T04-a"),
        claim(name="T04-b-trained", profile="full"),
        claim(name="solver-heun", component="solver:heun"),
    ]
    assert [c.name for c in select(made)] == ["T04-a", "solver-heun"]
    assert [c.name for c in select(made, "full", "t04*")] == ["T04-a", "T04-b-trained"]
    assert [c.name for c in select(made, "quick", "T04-b*")] == ["T04-b-trained"]  # asked for by name
    assert [c.name for c in select(made, component="solver:heun")] == ["solver-heun"]
    with pytest.raises(UnknownNameError, match="unknown claim 'T05'"):
        select(made, pattern="T05")
    with pytest.raises(UnknownNameError, match="unknown component 'solver:hoin'"):
        select(made, component="solver:hoin")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def verifying(gft, monkeypatch):
    """``gft verify`` on these claims alone."""

    def run(given, *arguments):
        registry = registry_with(*given)
        monkeypatch.setattr("gftkit.kernel.loading.load", lambda: registry)
        return gft("verify", *arguments)

    return run


def test_the_exit_code_says_whether_all_passed(verifying):
    done = verifying([claim()])
    assert done.code == 0, done.err
    assert re.search(r"T99-zero\s+0\s+1e-09\s+2/2\s+\d+\.\d\d\s+holds", done.out)
    assert "1 of 1 claims hold, 2 of 2 mutants are rejected" in done.out
    failed = verifying([claim(), claim(name="T99-other", subject=1.0)])
    assert failed.code == 1
    assert "T99-other: measured 1, bound 1e-09 (exact)." in failed.out
    surviving = verifying([claim(mutants={"one": 1.0, "nothing": 0.0})])
    assert surviving.code == 1
    assert "mutant 'nothing' survives: it measured 0, wanted at least 1e-06" in surviving.out


def test_json_holds_every_field(verifying, tmp_path):
    lines = {"measured": ([1.0, 2.0], [3.0, 4.0])}
    given = [claim(measure=lambda value, _: Measurement(value, lines, "A note."), axes=("x", "y"))]
    assert verifying(given, "--json", "out.json", "--html", "out.html").code == 0
    (found,) = json.loads((tmp_path / "out.json").read_text())
    assert list(found)[:9] == [
        "name", "statement", "reference", "kind", "measured", "bound", "holds", "seconds", "mutants",
    ]  # fmt: skip
    assert found["kind"] == "exact"
    assert found["holds"] is True
    assert found["mutants"][0] == {"name": "one", "measured": 1.0, "rejected": True}
    page = (tmp_path / "out.html").read_text()
    assert "T99-zero" in page
    assert "data:image/png;base64," in page
    assert "A note." in page
    assert "http" not in page  # self-contained
    assert "claim(measure=lambda value" in page  # how it was measured


def test_json_on_stdout_is_alone_there(verifying):
    done = verifying([claim()], "--json", "-")
    assert json.loads(done.out)[0]["name"] == "T99-zero"
    assert "1 of 1 claims hold" in done.err


def test_files_are_not_overwritten_without_being_asked(verifying, tmp_path):
    (tmp_path / "out.json").write_text("mine")
    done = verifying([claim()], "--json", "out.json")
    assert done.code == 2
    assert "out.json exists. Name another file, or overwrite it with --force." in done.err
    assert (tmp_path / "out.json").read_text() == "mine"
    assert verifying([claim()], "--json", "out.json", "--force").code == 0
    assert verifying([claim()], "--html", tmp_path).code == 2


def test_markdown_measures_nothing(verifying):
    done = verifying([claim(measure=lambda value, _: 1 / 0)], "--markdown")
    assert done.code == 0
    assert done.out.splitlines()[2] == "| `T99-zero` | Zero is zero \\| of course. | exact 1e-09 | one; two | quick |"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--claim", "T98*"], "unknown claim 'T98*'"),
        (["--component", "solver:hoin"], "unknown component 'solver:hoin'"),
        (["--profile", "slow"], "--profile: wanted quick or full, got 'slow'"),
        (["--device", "tpu"], "device: wanted auto, cpu or cuda, got 'tpu'"),
    ],
)
def test_bad_input_gets_one_clear_error(verifying, arguments, message):
    done = verifying([claim()], *arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith(f"Error: {message}")


def test_several_processes_measure_the_same():
    given = [found for found in collect(gftkit.load()) if found.name.startswith("schedule-range-")]
    alone, together = verify.run(given), verify.run(given, jobs=2)
    assert [result.claim for result in together] == given
    assert [result.measured for result in alone] == [result.measured for result in together]
    assert [result.mutants for result in alone] == [result.mutants for result in together]


def test_claims_of_a_family_share_a_picture(tmp_path):
    def drawn(name):
        measure = lambda value, _: Measurement(value, {"measured": ([1.0, 2.0], [3.0, 4.0])})  # noqa: E731
        return claim(name=f"solver-order-{name}", component=f"solver:{name}", measure=measure, axes=("x", "y"))

    results = verify.run([drawn("heun"), drawn("euler")])
    verify.write_html_report(tmp_path / "out.html", results, 0, "cpu")
    assert (tmp_path / "out.html").read_text().count("data:image/png") == 3
    assert claims.MARGINS == {"exact": 1000.0, "order": 3.0, "statistical": 3.0}
