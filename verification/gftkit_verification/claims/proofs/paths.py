"""Section 1: the drift of every path, and of the sum that ``gftkit.theory.flow`` makes for any path."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor

from gftkit.kernel.contracts import Path
from gftkit.kernel.registry import Registry
from gftkit.theory import flow
from gftkit_verification.testbeds.measuring.proofs import G, T, only, proof
from gftkit_verification.testbeds.measuring.symbolic import Symbolic
from gftkit_verification.testbeds.slips.paths import WEIGHTS, Flow, Settings, path_settings, scored

X0, X1, EPS = sympy.symbols("x0 x1 epsilon", real=True)
PAIR: Any = (Symbolic([T]), Symbolic([[X0]]), Symbolic([[X1]]))
NOISE: Any = Symbolic([[EPS]])


class _AnyPath:
    """sigma, alpha, gamma and g are undefined functions of t; the drift is left to gftkit."""

    functions = tuple(sympy.Function(name, positive=True)(T) for name in ("sigma", "alpha", "gamma", "g"))

    def coefficients(self, t: Tensor) -> Any:  # noqa: ARG002
        return tuple(Symbolic([value]) for value in self.functions[:3])

    def diffusion(self, t: Tensor) -> Any:  # noqa: ARG002
        return Symbolic([self.functions[3]])


class _Bridge:
    """The bridge of any scale g, its drift left to gftkit."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return 1 - t, t, G * torch.sqrt(t * (1 - t))

    def diffusion(self, t: Tensor) -> Tensor:
        return G * torch.ones_like(t)


SUMS = {name: scored(weight) for name, weight in WEIGHTS.items()} | {
    "1/gamma^2 for 1/gamma": lambda path, t, x0, x1, noise: (
        flow.velocity(path, t, x0, x1, noise) - path.diffusion(t) ** 2 / 2 * noise / path.coefficients(t)[2] ** 2
    ),
}


@proof(
    "flow-drift-transport-proof",
    statement="For every sigma, alpha, gamma and g, dX = flow.drift dt + g dW keeps the law "
    "N(sigma x0 + alpha x1, gamma^2): the Fokker-Planck equation holds.",
    reference="theory, section 1",
    subject=flow.drift,
    mutants=SUMS,
    conditions="sigma, alpha, gamma > 0 and g are undefined functions of t; one coordinate; derivatives by the kernel.",
)
def transport_residual(drift: Callable[..., Any]) -> Iterator[Any]:
    """The residual of the Fokker-Planck equation, as a rate of log p."""
    path, x = _AnyPath(), sympy.Symbol("x", real=True)
    sigma, alpha, gamma, g = path.functions
    noise = (x - sigma * X0 - alpha * X1) / gamma
    b = only(drift(path, *PAIR, Symbolic([[noise]])))
    log_density = -(noise**2) / 2 - sympy.log(gamma)
    score = log_density.diff(x)
    yield g**2 / 2 * (score.diff(x) + score**2) - b.diff(x) - b * score - log_density.diff(T)


@proof(
    "flow-drift-bridge-proof",
    statement="velocity + (g^2/2) conditional score of the Brownian bridge is (x1 - x_t)/(1 - t).",
    reference="theory, section 1",
    subject=flow.drift,
    mutants=SUMS,
    conditions="Any scale g; one coordinate; a path that leaves rates and drift to the kernel.",
)
def bridge_drift(drift: Callable[..., Any]) -> Iterator[Any]:
    """The drift of the bridge, less its value."""
    arguments: Any = (_Bridge(), *PAIR, NOISE)
    yield only(drift(*arguments)) - (X1 - only(flow.sample(*arguments))) / (1 - T)


def _arguments(path: Path) -> tuple[Any, ...]:
    """Times, pair and noise as the loop gives them: no noise for a path that has none."""
    return (*PAIR, NOISE if flow.is_noisy(path) else None)


def _residuals_of_drift(shipped: Flow) -> Iterator[Any]:
    for path in shipped.paths:
        t, *pair = _arguments(path)
        g = only(shipped.diffusion(path, t))
        gamma = only(path.coefficients(t)[2])
        score = 0 if g == 0 else -EPS / gamma
        yield only(shipped.drift(path, t, *pair)) - only(shipped.sample(path, t, *pair)).diff(T) - g**2 / 2 * score


def _is_symbolic(paths: Sequence[Path]) -> bool:
    """True for paths whose functions go through symbols; claims on numbers cover the others."""
    try:
        return all(residual is not None for residual in _residuals_of_drift(Flow(tuple(paths))))
    except (TypeError, AttributeError, ValueError, RuntimeError):
        return False


def symbolic_paths(registry: Registry) -> Iterator[tuple[str, Settings]]:
    """The registered paths whose functions go through symbols."""
    return ((name, settings) for name, settings in path_settings(registry) if _is_symbolic(settings.paths))


@proof(
    "path-drift-proof-{name}",
    items=symbolic_paths,
    statement="The drift of path {name} is the derivative of its sample at fixed pair and noise, plus (g^2/2) times "
    "-epsilon/gamma.",
    reference="theory, section 1",
    subject=lambda settings: Flow(settings.paths),
    mutants=lambda settings: Flow(settings.paths).slips(),
    conditions=lambda settings: f"{len(settings.paths)} sets of options; one coordinate; t in (0, 1).",
    component="path:{name}",
)
def drift_residual(shipped: Flow) -> Iterator[Any]:
    """The drift less the sample's derivative and the score's part."""
    return _residuals_of_drift(shipped)


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


@dataclass(frozen=True)
class TablePath:
    """A registered path with a row of the table."""

    row: Row
    path: Path


def table_paths(registry: Registry) -> Iterator[tuple[str, TablePath]]:
    """The registered paths that have a row."""
    for name, row in _table().items():
        if name in registry.names("path"):
            yield name, TablePath(row, registry.create("path", name, **row.options))


@proof(
    "path-table-proof-{name}",
    items=table_paths,
    statement="Path {name} has the sample, the drift and the diffusion of the theory page's table.",
    reference="theory, section 1",
    subject=lambda item: Flow((item.path,)),
    mutants=lambda item: Flow((item.path,)).slips(),
    conditions=lambda item: (
        ", ".join(f"{key} = {value}" for key, value in item.row.options.items()) or "Default options."
    ),
    component="path:{name}",
    item_as="item",
)
def functions_of_table(shipped: Flow, *, item: TablePath) -> Iterator[Any]:
    """The sample, the drift and the diffusion, less the table's."""
    (path,), row = shipped.paths, item.row
    t, *pair = _arguments(path)
    yield only(shipped.sample(path, t, *pair)) - row.sample
    yield only(shipped.drift(path, t, *pair)) - row.drift
    yield only(shipped.diffusion(path, t)) - row.diffusion


@proof(
    "T22-no-crossing-proof",
    statement=(
        "On the linear path |x_t - y_t|^2 = (1 - t)^2 |x0 - y0|^2 + t^2 |x1 - y1|^2 + 2 t (1 - t) (x0 - y0).(x1 - y1): "
        "pairs of a monotone map don't meet before t = 1."
    ),
    reference="theory, T22",
    items=lambda registry: [("linear", registry.create("path", "linear"))],
    item_as="path",
    subject=lambda path: flow.sample,  # noqa: ARG005
    mutants=lambda path: {  # noqa: ARG005
        "endpoints swapped": lambda path, t, x0, x1, noise: flow.sample(path, t, x1, x0, noise),
        "x0 kept whole": lambda path, t, x0, x1, noise: flow.sample(path, t, x0, x1, noise) + t * x0,
        "sign of x0": lambda path, t, x0, x1, noise: flow.sample(path, t, -x0, x1, noise),
    },
    conditions="One coordinate; others add. All t.",
)
def meeting_residual(sample: Callable[..., Any], *, path: Path) -> Iterator[Any]:
    """The squared distance of two states on the path, less its parts."""
    y0, y1 = sympy.symbols("y0 y1", real=True)
    x = only(sample(path, *PAIR, None))
    y = only(sample(path, Symbolic([T]), Symbolic([[y0]]), Symbolic([[y1]]), None))
    by_parts = (1 - T) ** 2 * (X0 - y0) ** 2 + T**2 * (X1 - y1) ** 2 + 2 * T * (1 - T) * (X0 - y0) * (X1 - y1)
    yield (x - y) ** 2 - by_parts
