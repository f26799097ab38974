"""Registered paths with the functions of a path, sample, drift and diffusion; and likely slips of these."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gftkit.kernel.contracts import Path
from gftkit.kernel.registry import Registry
from gftkit.theory import flow
from gftkit_verification.testbeds.components import components

FURTHER: Mapping[str, Mapping[str, Any]] = {
    "affine": {"alpha": "t**2", "sigma": "sqrt(1 - t**2)"},
    "brownian-bridge": {"scale": 0.5},
}
"""Options beside the defaults, for the paths that have them: defaults may hide a slip, as scale = 1 hides g for g^2."""

MATTERS = 1e-2
"""A score's weight that differs by less from g^2/2 is not a slip."""

WEIGHTS: Mapping[str, Callable[[Any], Any]] = {
    "score's sign": lambda g: -(g**2) / 2,
    "g^2 for g^2/2": lambda g: g**2,
    "g for g^2": lambda g: g / 2,
    "no score": lambda g: 0 * g,
}
"""Of the conditional score in the drift: wrong ones."""


def swap_ends(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of (path, t, x0, x1, noise) that takes x0 for x1."""
    return lambda path, t, x0, x1, noise: function(path, t, x1, x0, noise)


def scored(weight: Callable[[Any], Any]) -> Callable[..., Any]:
    """A kernel whose drift is velocity + weight(g) times the conditional score."""

    def drift(path: Path, t: Tensor, x0: Tensor, x1: Tensor, noise: Tensor | None) -> Tensor:
        moving = flow.velocity(path, t, x0, x1, noise)
        if noise is None:
            return moving
        return moving + flow.expand(weight(flow.diffusion(path, t)), noise) * flow.conditional_score(path, t, noise)

    return drift


@dataclass(frozen=True)
class Flow:
    """Paths (one, with several sets of options), and gftkit's functions of a path."""

    paths: tuple[Path, ...]
    sample: Callable[..., Any] = flow.sample
    drift: Callable[..., Any] = flow.drift
    diffusion: Callable[..., Any] = flow.diffusion

    def slips(self) -> dict[str, "Flow"]:
        """Likely slips: of every path, and of one with noise."""
        slips = {
            "pair swapped in the sample": replace(self, sample=swap_ends(flow.sample)),
            "pair swapped in the drift": replace(self, drift=swap_ends(flow.drift)),
            "drift's sign": replace(self, drift=lambda *arguments: -1 * flow.drift(*arguments)),
            "noise without score": replace(
                self, diffusion=lambda path, t: flow.diffusion(path, t) + torch.ones_like(t)
            ),
        }
        if any(flow.is_stochastic(path) for path in self.paths):
            wrong = {name: weight for name, weight in WEIGHTS.items() if self._differs(weight)}
            slips |= {name: replace(self, drift=scored(weight)) for name, weight in wrong.items()}
            slips["score without noise"] = replace(self, diffusion=lambda _, t: torch.zeros_like(t))
        return slips

    def _differs(self, weight: Callable[[Any], Any]) -> bool:
        """True where the weight is wrong: g for g^2 isn't where g = 1."""
        g = torch.cat([flow.diffusion(path, torch.linspace(0, flow.t_end(path), 65)) for path in self.paths])
        return bool((weight(g) - g**2 / 2).abs().max() > MATTERS)


@dataclass(frozen=True)
class Settings:
    """A registered path: with its defaults, and with further options where it has them."""

    paths: tuple[Path, ...]
    options: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The settings in words."""
        options = ", ".join(f"{key} = {value}" for key, value in self.options.items())
        return "Default options" + (f", and {options}." if options else ".")


def path_settings(registry: Registry) -> Iterator[tuple[str, Settings]]:
    """(name, settings) of every registered path."""
    for name, path in components(registry, "path"):
        options = FURTHER.get(name, {})
        if options and options.keys() <= registry.component("path", name).options.keys():
            yield name, Settings((path, registry.create("path", name, **options)), options)
        else:
            yield name, Settings((path,), {})
