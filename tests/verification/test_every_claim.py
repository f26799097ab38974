"""Every registered claim is a test: it holds, and each of its mutants is rejected. ``pytest verification -k T04``."""

import pytest

import gftkit
from gftkit.verify.claims import check
from gftkit.verify.collect import collect
from gftkit.verify.runner import summary

SEED = 0


def _parameter(claim):
    return pytest.param(claim, id=claim.name, marks=[pytest.mark.slow] if claim.profile == "full" else [])


@pytest.mark.parametrize("claim", [_parameter(claim) for claim in collect(gftkit.load())])
def test_claim(claim):
    result = check(claim, SEED)
    assert result.passed, summary([result])
