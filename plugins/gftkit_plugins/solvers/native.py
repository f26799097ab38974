"""gftkit's own solvers: each is one step; gftkit owns the loop, the grid and the noise."""

import torch
from torch import Tensor

from gftkit.kernel import Diffusion, Field, Jump


class Euler:
    """Euler's method, x + h b(t, x): order 1 for ODEs.

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section II.1.

    Example:
        >>> import gftkit, torch
        >>> euler = gftkit.load().create("solver", "euler")
        >>> euler.step(lambda t, x: -x, lambda t: 0.0, 0.0, 0.5, torch.ones(1), None)
        tensor([0.5000])
    """

    ode_order, strong_order, weak_order = 1.0, None, None
    evaluations = 1

    def step(self, drift: Field, diffusion: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:  # noqa: ARG002
        """The state at t + h."""
        return torch.add(x, drift(t, x), alpha=h)  # one pass over memory, where x + h * b takes two


class Midpoint:
    """The explicit midpoint rule: an Euler half step, then the slope there. Order 2 for ODEs.

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, eq. II.1.2.

    Example:
        >>> import gftkit, torch
        >>> midpoint = gftkit.load().create("solver", "midpoint")
        >>> midpoint.step(lambda t, x: -x, lambda t: 0.0, 0.0, 0.5, torch.ones(1), None)
        tensor([0.6250])
    """

    ode_order, strong_order, weak_order = 2.0, None, None
    evaluations = 2

    def step(self, drift: Field, diffusion: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:  # noqa: ARG002
        """The state at t + h."""
        return x + h * drift(t + h / 2, x + h / 2 * drift(t, x))


class Heun:
    """Heun's method: the mean of the slopes at both ends of an Euler step. Order 2 for ODEs.

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section II.1.

    Example:
        >>> import gftkit, torch
        >>> heun = gftkit.load().create("solver", "heun")
        >>> heun.step(lambda t, x: -x, lambda t: 0.0, 0.0, 0.5, torch.ones(1), None)
        tensor([0.6250])
    """

    ode_order, strong_order, weak_order = 2.0, None, None
    evaluations = 2

    def step(self, drift: Field, diffusion: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:  # noqa: ARG002
        """The state at t + h."""
        here = drift(t, x)
        return x + h / 2 * (here + drift(t + h, x + h * here))


class RungeKutta4:
    """The classical Runge-Kutta method: four slopes a step. Order 4 for ODEs.

    Reference: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, table II.1.2.

    Example:
        >>> import gftkit, torch
        >>> rk4 = gftkit.load().create("solver", "rk4")
        >>> rk4.step(lambda t, x: -x, lambda t: 0.0, 0.0, 0.5, torch.ones(1), None)
        tensor([0.6068])
    """

    ode_order, strong_order, weak_order = 4.0, None, None
    evaluations = 4

    def step(self, drift: Field, diffusion: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:  # noqa: ARG002
        """The state at t + h."""
        k1 = drift(t, x)
        k2 = drift(t + h / 2, x + h / 2 * k1)
        k3 = drift(t + h / 2, x + h / 2 * k2)
        k4 = drift(t + h, x + h * k3)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


class FlowMap:
    """Jumps by a flow map, x + h u(t, t + h, x): exact for any h where the map is, so that 1 or 2 steps may do.

    It needs a network that takes the end of a jump, such as a student of ``gft distill``. With one that ignores the
    end it is Euler's method.

    Reference: Boffi, Albergo, Vanden-Eijnden (2024), Flow map matching, arXiv:2406.07507.

    Example:
        >>> import gftkit, math, torch
        >>> solver = gftkit.load().create("solver", "flow-map")
        >>> average = lambda t, x, end: math.expm1(t - end) / (end - t) * x  # of dx/dt = -x
        >>> solver.step(average, lambda t: 0.0, 0.0, 1.0, torch.ones(1), None)
        tensor([0.3679])
    """

    ode_order, strong_order, weak_order = 1.0, None, None
    evaluations = 1
    jumps = True

    def step(self, drift: Jump, diffusion: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:  # noqa: ARG002
        """The state at t + h."""
        return x + h * drift(t, x, t + h)


class EulerMaruyama:
    """Euler-Maruyama, x + h b(t, x) + g(t) dw: strong order 1 for noise that depends on t only, weak order 1.

    Without noise it is Euler's method.

    Reference: Kloeden, Platen (1992), Numerical Solution of Stochastic Differential Equations, section 10.2.

    Example:
        >>> import gftkit, torch
        >>> solver = gftkit.load().create("solver", "euler-maruyama")
        >>> solver.step(lambda t, x: -x, lambda t: 2.0, 0.0, 0.5, torch.ones(1), torch.ones(1))
        tensor([2.5000])
    """

    ode_order, strong_order, weak_order = 1.0, 1.0, 1.0
    evaluations = 1

    def step(self, drift: Field, diffusion: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:
        """The state at t + h."""
        moved = torch.add(x, drift(t, x), alpha=h)
        return moved if dw is None else torch.add(moved, dw, alpha=diffusion(t))


class StochasticHeun:
    """Heun's method with noise: the mean of the drifts at both ends of an Euler-Maruyama step, and of both ends' g.

    x* = x + h b(t, x) + g(t) dw, then x + h/2 (b(t, x) + b(t + h, x*)) + (g(t) + g(t + h))/2 dw. For noise that depends
    on t only: strong order 1, weak order 2 (1 if g were taken at the start of the step). Without noise it is Heun's
    method, of order 2.

    Reference: Kloeden, Platen (1992), Numerical Solution of Stochastic Differential Equations, section 15.1.

    Example:
        >>> import gftkit, torch
        >>> solver = gftkit.load().create("solver", "stochastic-heun")
        >>> solver.step(lambda t, x: -x, lambda t: 2 - 2 * t, 0.0, 0.5, torch.ones(1), torch.ones(1))
        tensor([1.6250])
    """

    ode_order, strong_order, weak_order = 2.0, 1.0, 2.0
    evaluations = 2

    def step(self, drift: Field, diffusion: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:
        """The state at t + h."""
        here = drift(t, x)
        guess = x + h * here
        if dw is None:
            return x + h / 2 * (here + drift(t + h, guess))
        g, later = diffusion(t), diffusion(t + h)
        return x + h / 2 * (here + drift(t + h, guess + g * dw)) + (g + later) / 2 * dw
