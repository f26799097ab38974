"""Section 1: the drift of every path, and of the kernel's sum for any path."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor

from gftkit.kernel.contracts import Path
from gftkit.kernel.registry import Registry
from gftkit.theory import flow
from gftkit.verify.claims import Claim
from gftkit_verification.claims.components.paths import WEIGHTS, Flow, scored, variants
from gftkit_verification.claims.proofs.algebra import G, Residuals, T, only, proof
from gftkit_verification.testbeds.symbolic import Symbolic

X0, X1, EPS = sympy.symbols("x0 x1 epsilon", real=True)
PAIR: Any = (Symbolic([T]), Symbolic([[X0]]), Symbolic([[X1]]))
NOISE: Any = Symbolic([[EPS]])


class _AnyPath:
    """sigma, alpha, gamma and g are undefined functions of t; the drift is left to the kernel."""

    functions = tuple(sympy.Function(name, positive=True)(T) for name in ("sigma", "alpha", "gamma", "g"))

    def coefficients(self, t: Tensor) -> Any:  # noqa: ARG002
        return tuple(Symbolic([value]) for value in self.functions[:3])

    def diffusion(self, t: Tensor) -> Any:  # noqa: ARG002
        return Symbolic([self.functions[3]])


class _Bridge:
    """The bridge of any scale g, its drift left to the kernel."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return 1 - t, t, G * torch.sqrt(t * (1 - t))

    def diffusion(self, t: Tensor) -> Tensor:
        return G * torch.ones_like(t)


def _carries(drift: Callable[..., Any]) -> Iterator[Any]:
    path, x = _AnyPath(), sympy.Symbol("x", real=True)
    sigma, alpha, gamma, g = path.functions
    noise = (x - sigma * X0 - alpha * X1) / gamma
    b = only(drift(path, *PAIR, Symbolic([[noise]])))
    log_density = -(noise**2) / 2 - sympy.log(gamma)
    score = log_density.diff(x)
    yield g**2 / 2 * (score.diff(x) + score**2) - b.diff(x) - b * score - log_density.diff(T)


def _points(drift: Callable[..., Any]) -> Iterator[Any]:
    given: Any = (_Bridge(), *PAIR, NOISE)
    yield only(drift(*given)) - (X1 - only(flow.sample(*given))) / (1 - T)


SUMS = {name: scored(weight) for name, weight in WEIGHTS.items()} | {
    "1/gamma^2 for 1/gamma": lambda path, t, x0, x1, noise: (
        flow.velocity(path, t, x0, x1, noise) - path.diffusion(t) ** 2 / 2 * noise / path.coefficients(t)[2] ** 2
    ),
}


def _given(path: Path) -> tuple[Any, ...]:
    """Times, pair and noise as the loop gives them: no noise for a path that has none."""
    return (*PAIR, NOISE if flow.is_noisy(path) else None)


def _differentiated(shipped: Flow) -> Iterator[Any]:
    for path in shipped.paths:
        given = _given(path)
        g = only(shipped.diffusion(path, given[0]))
        gamma = only(path.coefficients(given[0])[2])
        score = 0 if g == 0 else -EPS / gamma
        yield only(shipped.drift(path, *given)) - only(shipped.sample(path, *given)).diff(T) - g**2 / 2 * score


@dataclass(frozen=True)
class Row:
    """A row of the theory page's table: options, x_t, conditional drift and g."""

    options: Mapping[str, Any]
    sample: Any
    drift: Any
    diffusion: Any


def _table() -> dict[str, Row]:
    angle, straight = sympy.pi * T / 2, (1 - T) * X0 + T * X1
    bridge = straight + sympy.Rational(3, 4) * sympy.sqrt(T * (1 - T)) * EPS
    return {
        "linear": Row({}, straight, X1 - X0, 0),
        "trigonometric": Row(
            {},
            sympy.cos(angle) * X0 + sympy.sin(angle) * X1,
            sympy.pi / 2 * (sympy.cos(angle) * X1 - sympy.sin(angle) * X0),
            0,
        ),
        "affine": Row(
            {"alpha": "t**3", "sigma": "sqrt(1 - t**2)"},
            sympy.sqrt(1 - T**2) * X0 + T**3 * X1,
            3 * T**2 * X1 - T / sympy.sqrt(1 - T**2) * X0,
            0,
        ),
        "brownian-bridge": Row({"scale": 0.75}, bridge, (X1 - bridge) / (1 - T), sympy.Rational(3, 4)),
    }


def _row(row: Row) -> Residuals:
    def residuals(shipped: Flow) -> Iterator[Any]:
        (path,) = shipped.paths
        given = _given(path)
        yield only(shipped.sample(path, *given)) - row.sample
        yield only(shipped.drift(path, *given)) - row.drift
        yield only(shipped.diffusion(path, given[0])) - row.diffusion

    return residuals


def _is_symbolic(paths: Sequence[Path]) -> bool:
    """Whether a path's functions go through symbols; where not, claims on numbers cover it."""
    try:
        return all(residual is not None for residual in _differentiated(Flow(tuple(paths))))
    except (TypeError, AttributeError, ValueError, RuntimeError):
        return False


def claims(registry: Registry) -> Iterator[Claim]:
    """The proofs about paths."""
    yield proof(
        "flow-drift-transport-proof",
        "For every sigma, alpha, gamma and g, dX = flow.drift dt + g dW keeps the law N(sigma x0 + alpha x1, gamma^2): "
        "the Fokker-Planck equation holds.",
        "theory, section 1",
        flow.drift,
        _carries,
        SUMS,
        "sigma, alpha, gamma > 0 and g are undefined functions of t; one coordinate; derivatives by the kernel.",
    )
    yield proof(
        "flow-drift-bridge-proof",
        "velocity + (g^2/2) conditional score of the Brownian bridge is (x1 - x_t)/(1 - t).",
        "theory, section 1",
        flow.drift,
        _points,
        SUMS,
        "Any scale g; one coordinate; a path that leaves rates and drift to the kernel.",
    )
    for name, paths in variants(registry):
        if not _is_symbolic(paths):
            continue
        yield proof(
            f"path-drift-proof-{name}",
            f"The drift of path {name} is the derivative of its sample at fixed pair and noise, plus (g^2/2) times "
            f"-epsilon/gamma.",
            "theory, section 1",
            Flow(paths),
            _differentiated,
            Flow(paths).slips(),
            f"{len(paths)} sets of options; one coordinate; t in (0, 1).",
            f"path:{name}",
        )
    for name, row in _table().items():
        if name not in registry.names("path"):
            continue
        shipped = Flow((registry.create("path", name, **row.options),))
        yield proof(
            f"path-table-proof-{name}",
            f"Path {name} has the sample, the drift and the diffusion of the theory page's table.",
            "theory, section 1",
            shipped,
            _row(row),
            shipped.slips(),
            ", ".join(f"{key} = {value}" for key, value in row.options.items()) or "Default options.",
            f"path:{name}",
        )
