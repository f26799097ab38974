"""Every registered claim is a test: it holds, and each of its mutants is rejected. ``pytest tests -k T04``."""

from types import ModuleType

import pytest

import gftkit
from gftkit.verify.claims import check
from gftkit.verify.collect import collect
from gftkit.verify.declaration import declared_in, modules_of
from gftkit.verify.runner import summary
from gftkit_verification import claims

SEED = 0

WITHOUT_FAULT_NONE = "gftkit_verification.claims.components.broken"
"""Gives a claim for each broken component, and none where all are sound."""


def _parameter(claim):
    return pytest.param(claim, id=claim.name, marks=[pytest.mark.slow] if claim.profile == "full" else [])


@pytest.mark.parametrize("claim", [_parameter(claim) for claim in collect(gftkit.load())])
def test_claim(claim):
    result = check(claim, SEED)
    assert result.passed, summary([result])


def modules_without_claims(modules, registry):
    """The names of modules, packages aside, that declare nothing or whose declarations give no claim."""
    for module in modules:
        declarations = list(declared_in(module))
        given = [claim for _, make in declarations for claim in make(registry)]
        if not hasattr(module, "__path__") and not (given or (declarations and module.__name__ == WITHOUT_FAULT_NONE)):
            yield module.__name__


def test_every_module_below_claims_gives_a_claim():
    modules = list(modules_of(claims))
    assert len(modules) > 30
    assert list(modules_without_claims(modules, gftkit.load())) == []


def test_a_module_without_a_claim_is_noticed():
    assert list(modules_without_claims([ModuleType("forgotten")], gftkit.load())) == ["forgotten"]
