"""Loops with something wrong, for mutants: another temperature, anchor, path or learning rate."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Generator, Tensor

from gftkit.runs.schema import Config
from gftkit.theory import flow
from gftkit.theory.objective import Form
from gftkit.training.steps import Steps
from gftkit_verification.testbeds.loops.shipped import LoopBuilder, build_loop


def tampered(name: str, value: Callable[[Steps], Any], form: Form | None = None) -> LoopBuilder:
    """``build_loop``, with one attribute of the loop replaced; of loops of one form only, where a form is given."""

    def build(**options: Any) -> Steps:
        loop = build_loop(**options)
        if form is None or form == loop.config.objective.form:
            setattr(loop, name, value(loop))
        return loop

    return build


def on_path(change: type["TamperedPath"]) -> LoopBuilder:
    """``build_loop``, on a path with something wrong."""

    def changed(loop: Steps) -> Any:
        matching = loop.experiment.matching
        return replace(loop.experiment, matching=replace(matching, path=change(matching.path)))

    return tampered("experiment", changed)


def at_temperature(change: Callable[[float], float], form: Form | None = None) -> LoopBuilder:
    """``build_loop``, with a loop that takes the schedule's temperature for another one."""

    def value(loop: Steps) -> Callable[[int], float]:
        temperature = loop.temperature
        return lambda step: change(temperature(step))

    return tampered("temperature", value, form)


class TamperedPath:
    """A path with something wrong: what a subclass doesn't define is the path's own."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(self.path, name)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The path's own."""
        return self.path.coefficients(t)


class SwappedEnds(TamperedPath):
    """x0 and x1 swapped in x_t, but not in the drift."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(alpha, sigma, gamma)."""
        sigma, alpha, gamma = self.path.coefficients(t)
        return alpha, sigma, gamma


class Backwards(SwappedEnds):
    """x0 and x1 swapped in both."""

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(alpha', sigma', gamma')."""
        sigma, alpha, gamma = flow.rates(self.path, t)
        return alpha, sigma, gamma


class Variance(TamperedPath):
    """gamma^2 for gamma."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(sigma, alpha, gamma^2)."""
        sigma, alpha, gamma = self.path.coefficients(t)
        return sigma, alpha, gamma**2


class Noiseless(TamperedPath):
    """The drift without its noise."""

    def drift(self, t: Tensor, x0: Tensor, x1: Tensor, noise: Tensor) -> Tensor:
        """The drift at noise 0."""
        return self.path.drift(t, x0, x1, 0 * noise)


class VelocityForDrift(TamperedPath):
    """The velocity for the drift."""

    def drift(self, t: Tensor, x0: Tensor, x1: Tensor, noise: Tensor | None) -> Tensor:
        """The velocity."""
        return flow.velocity(self.path, t, x0, x1, noise)


def upper_half(loop: Steps) -> Callable[[int, Generator], Tensor]:
    """The times of the upper half of [0, t_end]."""
    times, end = loop.times, flow.t_end(loop.experiment.matching.path)
    return lambda count, generator: (end + times(count, generator)) / 2


def smaller_of_two(loop: Steps) -> Callable[[int, Generator], Tensor]:
    """The smaller of two times of the law: of the density 2 (1 - F) p."""
    times = loop.times
    return lambda count, generator: times(2 * count, generator).view(2, count).amin(0)


def faster(loop: Steps, factor: float) -> Config:
    """The config with another learning rate."""
    train = loop.config.train
    return replace(loop.config, train=replace(train, learning_rate=factor * train.learning_rate))


def shared_weights(loop: Steps) -> Callable[[Tensor, Tensor], Tensor]:
    """An anchor of the weights that are trained."""
    return lambda t, x: loop.drift(t, x).detach()


INVERSE_TEMPERATURE = at_temperature(lambda beta: 1 / beta)
"""The loop with 1/(1 + beta) for beta/(1 + beta)."""

SHARED_WEIGHTS = tampered("anchor", shared_weights)
"""The loop with an anchor that shares the weights."""
