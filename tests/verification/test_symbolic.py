"""Symbolic values give what torch gives at numbers, and refuse what they don't know."""

import math

import pytest
import sympy
import torch

import gftkit
from gftkit.kernel.loading import load
from gftkit.theory import flow
from gftkit.theory.objective import LOSSES
from gftkit.verify.claims import check
from gftkit.verify.declaration import claims_of
from gftkit_verification.claims.components import paths
from gftkit_verification.claims.proofs import paths as path_proofs
from gftkit_verification.testbeds.measuring.symbolic import NotSymbolicError, Symbolic, number

ROUND_OFF = 1e-12
FUNCTIONS = ("sqrt", "exp", "log", "sin", "cos", "tan", "sinh", "cosh", "tanh", "abs", "square", "neg", "reciprocal")


def numbers(shape, seed=0):
    return 0.1 + 0.8 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symbolic(values):
    return Symbolic(values.tolist())


def close(symbols, numbers):
    assert symbols.shape == numbers.shape
    return torch.allclose(torch.tensor(symbols.values.astype(float)), numbers, rtol=ROUND_OFF, atol=ROUND_OFF)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_torchs(name):
    x = numbers((2, 3))
    assert close(getattr(torch, name)(symbolic(x)), getattr(torch, name)(x))


@pytest.mark.parametrize(
    "formula",
    [
        lambda x, y: x - y,
        lambda x, y: 2 - x / y,
        lambda x, y: 1 / x + x**2 - 2**y,
        lambda x, y: -x * 0.25 + y * math.pi,
        lambda x, y: (x * y).flatten(1).square().sum(1),
        lambda x, y: x.reshape(-1, 1) + y.sum(),
        lambda x, y: x + torch.zeros_like(x) - torch.ones_like(y) * torch.full_like(x, 0.3),
        lambda x, y: torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64) * x - torch.tensor(2.0) / y,
        lambda x, y: flow.expand(x[0] if isinstance(x, torch.Tensor) else Symbolic(x.values[0]), y.reshape(3, 2, 1)),
    ],
)
def test_formulas_are_torchs(formula):
    x, y = numbers((2, 3)), numbers((2, 3), 1)
    assert close(formula(symbolic(x), symbolic(y)), formula(x, y))


@pytest.mark.parametrize("form", LOSSES)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_losses_of_symbols_are_losses_of_numbers(form, temperature):
    values = [numbers((4, 2, 3), seed) for seed in range(3)]
    loss = LOSSES[form]
    assert close(loss(*map(symbolic, values), temperature), loss(*values, temperature))


@pytest.mark.parametrize("name", ["linear", "trigonometric", "brownian-bridge", "affine"])
def test_drifts_of_symbols_are_drifts_of_numbers(registry, name):
    path = registry.create("path", name)
    t, x0, x1, noise = numbers(4), numbers((4, 3)), numbers((4, 3), 1), numbers((4, 3), 2)
    for function in (flow.sample, flow.drift):
        assert close(function(path, *map(symbolic, (t, x0, x1, noise))), function(path, t, x0, x1, noise))


def test_paths_that_go_through_symbols_are_proved_and_the_others_measured_on_numbers(registry):
    class Clamped:
        """The linear path, by a function that Symbolic doesn't have."""

        def coefficients(self, t):
            return 1 - t.clamp(0, 1), t.clamp(0, 1), torch.zeros_like(t)

    class Paths:
        @gftkit.hookimpl
        def gftkit_paths(self):
            return {"clamped": Clamped}

    names = {claim.name for claim in claims_of(path_proofs, load(plugins={"mine": Paths()}))}
    assert {f"path-drift-proof-{name}" for name in registry.names("path")} <= names
    assert "path-drift-proof-clamped" not in names
    measured = {claim.name: claim for claim in claims_of(paths, load(plugins={"mine": Paths()}))}
    assert check(measured["path-transport-clamped"]).passed


def test_autograd_is_the_derivative():
    t = sympy.Symbol("t")

    class Path:
        def coefficients(self, t):
            return torch.cos(t), t**2, torch.zeros_like(t)

    rates = flow.rates(Path(), Symbolic([t]))
    assert [rate.item() for rate in rates] == [-sympy.sin(t), 2 * t, 0]


def test_numbers_are_read_exactly():
    assert (number(0.1), number(-math.pi / 2), number(3)) == (sympy.Rational(1, 10), -sympy.pi / 2, 3)
    assert float(number(math.sqrt(2))) == math.sqrt(2)
    assert number(math.inf) == sympy.oo


@pytest.mark.parametrize("call", [torch.erf, lambda x: torch.where(x, x, x), lambda x: torch.clamp(x, 0)])
def test_unknown_functions_are_refused(call):
    with pytest.raises(NotSymbolicError, match="isn't known to Symbolic"):
        call(Symbolic([sympy.Symbol("x")]))
