"""The SDE solvers of torchsde, for noise that depends on time only."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import torch
from torch import Generator, Tensor

from gftkit.kernel import BrownianPath, Diffusion, DivergenceError, Field
from gftkit_plugins.solvers.library import check_installed, explain_failures

Tolerance = Annotated[float, pydantic.Field(gt=0)]
Method = Literal["euler", "euler_heun", "heun", "midpoint", "milstein", "reversible_heun", "srk"]


class Orders(NamedTuple):
    """Of a method, where noise depends on t only, and in which calculus torchsde solves by it (here the same)."""

    ode: float
    strong: float
    weak: float
    calculus: Literal["ito", "stratonovich"]


METHODS: Mapping[str, Orders] = {
    "euler": Orders(1.0, 1.0, 1.0, "ito"),
    "euler_heun": Orders(1.0, 1.0, 1.0, "stratonovich"),
    "heun": Orders(2.0, 1.0, 2.0, "stratonovich"),
    "midpoint": Orders(2.0, 1.0, 2.0, "stratonovich"),
    "milstein": Orders(1.0, 1.0, 1.0, "ito"),
    "reversible_heun": Orders(2.0, 1.0, 2.0, "stratonovich"),
    "srk": Orders(2.0, 1.5, 2.0, "ito"),
}


class Equation:
    """A flow as torchsde sees it: states (batch, d), noise g(t) I, of which only products are ever asked for.

    ``f`` keeps its last value: torchsde evaluates the drift once more than a step needs, to see its shape.

    Args:
        drift: b.
        diffusion: g.
        shape: of the states, (batch, *event).
        calculus: "ito" or "stratonovich".
        diagonal: whether g is given as a vector, as reversible_heun needs it.
    """

    def __init__(
        self, drift: Field, diffusion: Diffusion, shape: torch.Size, calculus: str, *, diagonal: bool, end: float
    ) -> None:
        self.noise_type, self.sde_type = "diagonal" if diagonal else "additive", calculus
        self._drift, self._diffusion, self._shape, self._end = drift, diffusion, shape, end
        self.seen = 0.0
        self._known: tuple[float, Tensor, Tensor] | None = None
        if diagonal:
            self.g = lambda t, y: torch.full_like(y, self._scale(t))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """(batch, d) -> (batch, d)."""
        self.seen = min(float(t), self._end)
        if self._known is None or self._known[0] != self.seen or self._known[1] is not y:
            velocity = self._drift(self.seen, y.reshape(self._shape)).reshape(y.shape)
            self._known = self.seen, y, velocity
        return self._known[2]

    def g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        """g(t) v."""
        return self._scale(t) * v

    def _scale(self, t: Tensor) -> float:
        return self._diffusion(min(float(t), self._end))


class Flat:
    """A Brownian path as torchsde sees it, of shape (batch, d); without one, a path that stands still.

    Args:
        path: the path, of the states' shape.
        x: the states.
    """

    def __init__(self, path: BrownianPath | None, x: Tensor) -> None:
        self._path, self._still = path, torch.zeros_like(x).flatten(1)
        self.shape, self.levy_area_approximation = self._still.shape, "space-time"

    def __call__(self, s: Tensor, t: Tensor, return_U: bool = False) -> Any:  # noqa: FBT001, FBT002
        """The increment, and with ``return_U`` the integral of the path less its start."""
        if self._path is None:
            return (self._still, self._still) if return_U else self._still
        if not return_U:
            return self._path(float(s), float(t)).flatten(1)
        increment, integral = self._path(float(s), float(t), return_U=True)
        return increment.flatten(1), integral.flatten(1)


class Shaped:
    """torchsde's BrownianInterval, of the states' shape.

    Args:
        interval: the path, (batch, d).
        shape: of the states, (batch, *event).
    """

    def __init__(self, interval: Any, shape: torch.Size) -> None:
        self._interval, self.shape = interval, shape

    def __call__(self, s: float, t: float, return_U: bool = False) -> Any:  # noqa: FBT001, FBT002
        """The increment from s to t, and with ``return_U`` the integral of the path less its value at s."""
        if not return_U:
            return self._interval(s, t).reshape(self.shape)
        return tuple(tensor.reshape(self.shape) for tensor in self._interval(s, t, return_U=True))


class TorchSDE:
    """A solver of torchsde, by the name that it has there.

    Orders are for noise that depends on time only, as measured: heun, midpoint and reversible_heun have order 2 for
    ODEs, strong order 1 and weak order 2; srk has 2, 1.5 and 2; euler and euler_heun have 1, 1 and 1, and milstein is
    euler here. log_ode isn't offered: for such noise it is midpoint, with areas of d x d numbers that it doesn't use.

    Args:
        method: the solver.
        adaptive: whether it chooses its own steps: it compares each with two of half its length, for 64 samples at
            once. The grid's times are then those that it meets.
        rtol: relative tolerance, where adaptive.
        atol: absolute tolerance, where adaptive.

    Raises:
        ImportError: where torchsde isn't installed.
        DivergenceError: in use, where the steps become too short, or the states infinite.

    Reference: Li et al. (2020), Scalable Gradients for Stochastic Differential Equations, arXiv:2001.01328; Kidger et
    al. (2021), Efficient and Accurate Gradients for Neural SDEs, arXiv:2105.13493.

    Example:
        >>> import gftkit, torch
        >>> solver = gftkit.load().create("solver", "torchsde", method="heun")
        >>> x = torch.ones(2, 1)
        >>> path = solver.brownian(x, 1.0, torch.Generator().manual_seed(0))
        >>> *_, last = solver.integrate(lambda t, x: -x, lambda t: 0.0, (0.0, 0.5, 1.0), x, path)
        >>> last[0]
        tensor([0.3906])
    """

    def __init__(
        self,
        method: Method = "heun",
        *,
        adaptive: bool = False,
        rtol: Tolerance = 1e-3,
        atol: Tolerance = 1e-3,
    ) -> None:
        check_installed("torchsde")
        self.method, self.adaptive, self.rtol, self.atol = method, adaptive, rtol, atol
        self.ode_order, self.strong_order, self.weak_order, self._calculus = METHODS[method]

    def brownian(self, x: Tensor, t_end: float, generator: Generator) -> BrownianPath:
        """A BrownianInterval."""
        from torchsde import BrownianInterval

        flat = x.flatten(1)
        entropy = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
        interval = BrownianInterval(
            0.0,
            t_end,
            size=tuple(flat.shape),
            dtype=x.dtype,
            device=x.device,
            entropy=entropy,
            levy_area_approximation="space-time",
        )
        return Shaped(interval, x.shape)

    def integrate(
        self,
        drift: Field,
        diffusion: Diffusion | None,
        times: Sequence[float],
        x: Tensor,
        brownian: BrownianPath | None,
    ) -> Iterator[Tensor]:
        """The states at ``times``, x first."""
        from torchsde import sdeint

        g: Diffusion = diffusion or (lambda t: 0.0)  # noqa: ARG005
        diagonal = self.method == "reversible_heun"
        equation = Equation(drift, g, x.shape, self._calculus, diagonal=diagonal, end=times[-1])
        path, state, extra = Flat(brownian, x), x.flatten(1), None
        yield x
        for t, later in itertools.pairwise(times):
            # Interval by interval: between its own steps torchsde interpolates linearly, which isn't a solution.
            at = torch.tensor([t, later], dtype=torch.float64, device=x.device)
            try:
                with explain_failures(
                    ("Hitting minimum allowed step size", "Found nans in the error estimate"),
                    "use larger tolerances, more steps, or another solver; if the drift isn't finite, none helps",
                ):
                    states, extra = sdeint(
                        equation,
                        state,
                        at,
                        bm=path,
                        method=self.method,
                        # A first step of the whole interval, a little more so that round-off leaves no second one.
                        dt=math.nextafter(later - t, math.inf) if self.adaptive else 1.0,
                        adaptive=self.adaptive,
                        rtol=self.rtol,
                        atol=self.atol,
                        extra=True,
                        extra_solver_state=extra if diagonal else None,
                    )
            except DivergenceError as error:
                raise DivergenceError(f"torchsde's {self.method}, near t = {equation.seen:.4g}: {error}.") from error
            state = states[-1]
            yield state.reshape(x.shape)


class StochasticRungeKutta(TorchSDE):
    """Roessler's SRA1, of strong order 1.5 for noise that depends on time only: torchsde's srk.

    Two drift evaluations a step; weak order 2, and order 2 for ODEs. Where g isn't smooth, such as sqrt(1 - t) near
    t = 1, the strong order is 1.

    Raises:
        ImportError: where torchsde isn't installed.

    Reference: Roessler (2010), Runge-Kutta methods for the strong approximation of solutions of stochastic
    differential equations, SIAM J. Numer. Anal. 48, table 6.3.

    Example:
        >>> import gftkit, torch
        >>> solver = gftkit.load().create("solver", "srk")
        >>> solver.ode_order, solver.strong_order, solver.weak_order
        (2.0, 1.5, 2.0)
    """

    def __init__(self) -> None:
        super().__init__("srk")
