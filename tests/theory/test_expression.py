"""Formulas in t as functions: constants within them, and parts that aren't real."""

import math

import pytest
import torch

from gftkit.theory import compile_formula, parse_formula

T = torch.tensor([0.25, 0.5], dtype=torch.float64)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sqrt(2)", lambda t: math.sqrt(2)),
        ("t*sqrt(2)", lambda t: t * math.sqrt(2)),
        ("exp(exp(1))*t", lambda t: math.exp(math.e) * t),
        ("sin(1) + cos(pi/8)*t", lambda t: math.sin(1) + math.cos(math.pi / 8) * t),
        ("t**sqrt(2)", lambda t: t ** math.sqrt(2)),
        ("3", lambda t: 3.0),
    ],
)
def test_a_constant_within_a_formula_is_a_number(text, expected):
    found = compile_formula(parse_formula(text))(T)
    torch.testing.assert_close(found, torch.tensor([expected(t) for t in T.tolist()], dtype=T.dtype))
    assert compile_formula(parse_formula(text))(T.float()).dtype == torch.float32


@pytest.mark.parametrize("text", ["sqrt(-1)", "t*log(-1)", "1/0", "1/(t - t)"])
def test_a_formula_with_a_part_that_is_not_real_is_refused(text):
    with pytest.raises(ValueError, match=r"has a part that isn't a real number"):
        parse_formula(text)
