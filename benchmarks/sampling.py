"""Sampling side by side: gftkit's integrator against bare network calls, torchsde and torchdiffeq.

Both sides of a row run in this process, in turns. A row's seconds are medians over the turns of a whole integration of
100 steps, and its ratio is ours to the peer's. Ours is ``gftkit.sampling.integrate.generate``, with noise by the
sample's index and the check that samples are finite; the peers get the same network, start and number of evaluations.

    make bench-env && .venv-bench/bin/python benchmarks/sampling.py --json sampling.json
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from side_by_side import Row, Sides, Step, keep_freed_memory, main
from torch import Tensor, nn

from gftkit.generation import Blended
from gftkit.kernel.loading import load
from gftkit.sampling.integrate import generate
from gftkit.sampling.noise import ByBlock

STEPS = 100
MLP = {"name": "mlp", "width": 128, "depth": 3}
WIDE = {"name": "mlp", "width": 512, "depth": 3}
UNET = {"name": "unet", "width": 32, "multipliers": (1, 2, 2), "blocks": 1}
PLANE, IMAGES = (2,), (1, 16, 16)
REGISTRY = load()


class Diffusing:
    """A path of noise scale 1 up to t = 1, with no more than the sampler needs: it takes exactly its steps."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t = (1 - t) x0 + t x1."""
        return 1 - t, t, torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """g = 1."""
        return torch.ones_like(t)


def network(spec: Mapping[str, Any], event: tuple[int, ...], device: torch.device) -> nn.Module:
    """A network in evaluation mode, and the same weights every time."""
    torch.manual_seed(0)
    drift: nn.Module = REGISTRY.build("drift", spec, event_shape=event)
    return drift.eval().requires_grad_(False).to(device)


def start(event: tuple[int, ...], batch: int) -> Tensor:
    """Source samples."""
    return torch.randn(batch, *event, generator=torch.Generator().manual_seed(0))


def ours(drift: nn.Module, solver: str, x0: Tensor, device: torch.device) -> Step:
    """A whole integration."""
    path = REGISTRY.create("path", "linear") if solver == "euler" else Diffusing()
    stepper = REGISTRY.create("solver", solver)

    def integrate(turn: int) -> Tensor:
        return generate(drift, path, stepper, STEPS, x0, ByBlock(turn, device), batch_size=len(x0))

    return integrate


def bare(drift: nn.Module, x0: Tensor, device: torch.device) -> Step:
    """The network's calls and nothing else."""

    @torch.no_grad()
    def calls(_: int) -> Tensor:
        x, t = x0.to(device), torch.full((len(x0),), 0.5, device=device)
        for _ in range(STEPS):
            out = drift(t, x)
        return out.cpu()

    return calls


def torchsde_euler(drift: nn.Module, x0: Tensor, device: torch.device) -> Step:
    """torchsde's Euler-Maruyama, of diagonal noise."""
    import torchsde

    class Equation(nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return drift(t.expand(len(y)), y)

        def g(self, t: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
            return torch.ones_like(y)

    equation, times = Equation(), torch.tensor([0.0, 1.0], device=device)

    @torch.no_grad()
    def integrate(_: int) -> Tensor:
        x = x0.flatten(1).to(device)
        return torchsde.sdeint(equation, x, times, method="euler", dt=1 / STEPS)[-1].cpu()

    return integrate


def torchdiffeq_euler(drift: nn.Module, x0: Tensor, device: torch.device) -> Step:
    """torchdiffeq's Euler."""
    import torchdiffeq

    times = torch.tensor([0.0, 1.0], device=device)

    @torch.no_grad()
    def integrate(_: int) -> Tensor:
        x = x0.to(device)
        options = {"step_size": 1 / STEPS}
        states = torchdiffeq.odeint(lambda t, y: drift(t.expand(len(y)), y), x, times, method="euler", options=options)
        return states[-1].cpu()

    return integrate


def blended(retention: float, spec: Mapping[str, Any], event: tuple[int, ...], batch: int) -> Sides:
    """A blend with an anchor of the same network, beside the network alone."""

    def sides(device: torch.device, _: ExitStack) -> tuple[Step, Step]:
        drift, x0 = network(spec, event, device), start(event, batch)
        profile = REGISTRY.create("profile", "constant", value=retention)
        blend = Blended(drift, copy.deepcopy(drift), profile)
        return ours(blend, "euler", x0, device), ours(drift, "euler", x0, device)

    return sides


Peer = Callable[[nn.Module, Tensor, torch.device], Step]


def against(peer: Peer, solver: str, spec: Mapping[str, Any], event: tuple[int, ...], batch: int) -> Sides:
    """Both sides of a row."""

    def sides(device: torch.device, _: ExitStack) -> tuple[Step, Step]:
        drift, x0 = network(spec, event, device), start(event, batch)
        return ours(drift, solver, x0, device), peer(drift, x0, device)

    return sides


def _row(
    solver: str, peer: Peer, peer_name: str, target: float, batch: int, turns: int, *, images: bool = False
) -> Row:
    spec, event = (UNET, IMAGES) if images else (MLP, PLANE)
    where = "U-Net 1x16x16" if images else "MLP 128x3 in the plane"
    name = f"{STEPS} steps of {solver}: {where}, batch {batch:,}"
    return Row(name, peer_name, target, turns, 1, against(peer, solver, spec, event, batch))


def _blend(retention: float, target: float, turns: int, *, images: bool = False) -> Row:
    spec, event, batch = (UNET, IMAGES, 16) if images else (WIDE, PLANE, 512)
    where = "U-Net 1x16x16" if images else "MLP 512x3 in the plane"
    name = f"blend with an anchor at retention {retention:g}: {where}, batch {batch:,}"
    return Row(name, "the network alone", target, turns, 1, blended(retention, spec, event, batch))


CALLS = f"{STEPS} network calls"
ROWS = (
    _row("euler", bare, CALLS, 1.05, 4096, 15),
    _row("euler-maruyama", bare, CALLS, 1.10, 4096, 15),
    _row("euler", bare, CALLS, 1.05, 16, 15, images=True),
    _row("euler-maruyama", bare, CALLS, 1.10, 16, 15, images=True),
    _row("euler", bare, CALLS, 1.10, 256, 100),
    _row("euler-maruyama", bare, CALLS, 1.25, 256, 100),
    _row("euler-maruyama", torchsde_euler, "torchsde euler", 0.05, 256, 5),
    _row("euler-maruyama", torchsde_euler, "torchsde euler", 0.33, 4096, 5),
    _row("euler", torchdiffeq_euler, "torchdiffeq euler", 1.0, 256, 100),
    _row("euler", torchdiffeq_euler, "torchdiffeq euler", 1.0, 4096, 25),
    _blend(-0.25, 2.05, 15),
    _blend(0.0, 1.05, 15),
    _blend(-0.25, 2.05, 15, images=True),
    _blend(0.0, 1.05, 15, images=True),
)


def rows(device: torch.device) -> tuple[Row, ...]:  # noqa: ARG001
    """The rows for a device."""
    return ROWS


if __name__ == "__main__":
    keep_freed_memory()
    main(__doc__, rows)
