"""The ODE solvers of torchdiffeq, with fixed and with adaptive steps."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import Generator, Tensor

from gftkit.kernel import BrownianPath, ConfigError, Diffusion, DivergenceError, Field
from gftkit_plugins.solvers.library import check_installed, explain_failures

Tolerance = Annotated[float, pydantic.Field(gt=0)]
Method = Literal[
    "adaptive_heun",
    "bosh3",
    "dopri5",
    "dopri8",
    "euler",
    "explicit_adams",
    "fehlberg2",
    "fixed_adams",
    "heun2",
    "heun3",
    "implicit_adams",
    "midpoint",
    "rk4",
]
ADAPTIVE: Mapping[str, float] = {"adaptive_heun": 2.0, "bosh3": 3.0, "dopri5": 5.0, "dopri8": 8.0, "fehlberg2": 2.0}
"""Orders of the methods that choose their steps."""
FIXED: Mapping[str, float] = {"euler": 1.0, "heun2": 2.0, "heun3": 3.0, "midpoint": 2.0, "rk4": 4.0}
"""Of those that take the grid's, one by one; a step evaluates the drift as often as its order says."""
MULTISTEP: Mapping[str, int] = {"explicit_adams": 5, "fixed_adams": 4, "implicit_adams": 4}
"""Of those that remember earlier steps: torchdiffeq's option ``max_order`` for order 4. Its own, 12, is unstable."""

ITERATIONS = 30
"""Of implicit_adams in a step, at most; torchdiffeq's default, 4, often doesn't reach the tolerances."""


class TorchDiffEq:
    """A solver of torchdiffeq, by the name that it has there. ODEs only.

    euler, midpoint, heun2, heun3 and rk4 take the grid's steps. explicit_adams, implicit_adams and its older name
    fixed_adams do too, use earlier ones, and need equal steps; they are kept at order 4. adaptive_heun, bosh3,
    dopri5, dopri8 and fehlberg2 choose their own steps, and the grid's times are those that they meet: their error
    falls in proportion to the tolerances, and their steps are common to 64 samples.

    Args:
        method: the solver.
        rtol: relative tolerance, of adaptive methods and of implicit_adams' iteration.
        atol: absolute tolerance; the error of a step is to stay below atol + rtol |x|, in root mean square.

    Raises:
        ImportError: where torchdiffeq isn't installed.
        ConfigError: in use, of the Adams methods for steps that aren't equal.
        DivergenceError: in use, where the steps become too short, or the states infinite.

    Reference: Chen (2018), torchdiffeq, github.com/rtqichen/torchdiffeq; Hairer, Norsett, Wanner (1993), Solving
    Ordinary Differential Equations I, sections II.4, II.5 and III.1.

    Example:
        >>> import gftkit, torch
        >>> solver = gftkit.load().create("solver", "torchdiffeq", method="heun3")
        >>> *_, last = solver.integrate(lambda t, x: -x, None, (0.0, 0.5, 1.0), torch.ones(1), None)
        >>> last
        tensor([0.3650])
    """

    strong_order = weak_order = None

    def __init__(self, method: Method = "rk4", rtol: Tolerance = 1e-5, atol: Tolerance = 1e-5) -> None:
        check_installed("torchdiffeq")
        self.method, self.rtol, self.atol = method, rtol, atol
        self.adaptive = method in ADAPTIVE
        self.ode_order: float = {**ADAPTIVE, **FIXED}.get(method, 4.0)

    def brownian(self, x: Tensor, t_end: float, generator: Generator) -> BrownianPath:  # noqa: ARG002
        """None of these solves SDEs.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"torchdiffeq's {self.method} solves ODEs only. Use an SDE solver.")

    def integrate(
        self,
        drift: Field,
        diffusion: Diffusion | None,  # noqa: ARG002
        times: Sequence[float],
        x: Tensor,
        brownian: BrownianPath | None,  # noqa: ARG002
    ) -> Iterator[Tensor]:
        """The states at ``times``, x first; adaptive and Adams methods make all of them at once."""
        if self.method in FIXED:
            yield x
            for t, later in itertools.pairwise(times):
                x = self._states(drift, (t, later), x, {})[-1]
                yield x
        elif self.method in MULTISTEP:
            steps = [later - t for t, later in itertools.pairwise(times)]
            if not all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps):
                raise ConfigError(
                    f"solver torchdiffeq: {self.method} uses earlier steps and requires equal ones. Use the uniform "
                    f"grid, or another method."
                )
            yield from self._states(drift, times, x, {"max_order": MULTISTEP[self.method], "max_iters": ITERATIONS})
        else:
            # A step ends at each time: nothing is interpolated, and none goes beyond the last.
            at = torch.tensor(times, dtype=torch.float64, device=x.device)
            yield from self._states(drift, times, x, {"step_t": at})

    def _states(self, drift: Field, times: Sequence[float], x: Tensor, options: Mapping[str, Any]) -> Tensor:
        """(times, *x.shape)."""
        from torchdiffeq import odeint

        seen, end = times[0], times[-1]

        def field(t: Tensor, x: Tensor) -> Tensor:
            nonlocal seen
            seen = min(float(t), end)  # the guess of the first step may look beyond
            return drift(seen, x)

        at = torch.tensor(times, dtype=torch.float64, device=x.device)
        try:
            with explain_failures(
                ("underflow in dt", "non-finite values in state", "Functional iteration did not converge"),
                "use larger tolerances, more steps, or another solver; if the drift isn't finite, none helps",
            ):
                return odeint(field, x, at, rtol=self.rtol, atol=self.atol, method=self.method, options=dict(options))
        except DivergenceError as error:
            raise DivergenceError(f"torchdiffeq's {self.method}, near t = {seen:.4g}: {error}.") from error


class DormandPrince5(TorchDiffEq):
    """Dormand and Prince's method of order 5 with steps of its own choice: torchdiffeq's dopri5. ODEs only.

    The grid's times are those that it meets. Its error falls in proportion to the tolerances.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance; the error of a step is to stay below atol + rtol |x|, in root mean square over 64
            samples.

    Raises:
        ImportError: where torchdiffeq isn't installed.
        DivergenceError: in use, where the steps become too short, or the states infinite.

    Reference: Dormand, Prince (1980), A family of embedded Runge-Kutta formulae; Hairer, Norsett, Wanner (1993),
    Solving Ordinary Differential Equations I, table II.5.2.

    Example:
        >>> import gftkit, torch
        >>> solver = gftkit.load().create("solver", "dopri5", rtol=1e-6, atol=1e-6)
        >>> *_, last = solver.integrate(lambda t, x: -x, None, (0.0, 1.0), torch.ones(1), None)
        >>> last
        tensor([0.3679])
    """

    def __init__(self, rtol: Tolerance = 1e-5, atol: Tolerance = 1e-5) -> None:
        super().__init__("dopri5", rtol, atol)
