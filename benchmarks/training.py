"""Training steps side by side: GFT against plain flow matching, and against torchcfm's own OT-CFM step.

Both sides of a row run in this process, in turns, so that other load of the machine affects both. A row's seconds are
medians of a step over the turns, and its ratio is ours to the peer's.

    make bench-env && .venv-bench/bin/python benchmarks/training.py --json training.json

The peer's step is the one of torchcfm's examples: minibatch optimal transport by POT, Adam, clipping, and a moving
average key by key. Networks, batches, data and optimiser are the same on both sides.
"""

import copy
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from side_by_side import Row, Sides, Step, main
from torch import Tensor, nn

from gftkit.data.prefetch import prefetch
from gftkit.kernel.contracts import Batch
from gftkit.kernel.loading import load
from gftkit.runs.schema import Train
from gftkit.runtime.devices import emulates_half
from gftkit.training.steps import Steps
from gftkit_verification.testbeds.loops.shipped import build_loop

BATCH = 256
"""Pairs in a step of the rows against torchcfm."""

UNET = {"name": "unet", "width": 32, "multipliers": (1, 2, 2), "blocks": 1}
REGISTRY = load()


class Noise:
    """Data that cost nothing to read: normal samples, held in memory."""

    range = None

    def __init__(self, event_shape: tuple[int, ...], size: int = 4096) -> None:
        self.event_shape = event_shape
        self._x = torch.randn(size, *event_shape, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self._x)

    def batch(self, indices: Tensor) -> Batch:
        """The samples at these indices."""
        return Batch(self._x[indices])


def network(spec: dict[str, Any], event_shape: tuple[int, ...]) -> nn.Module:
    """A network with the same weights every time."""
    torch.manual_seed(0)
    return REGISTRY.build("drift", spec, event_shape=event_shape)


def gft(
    spec: dict[str, Any],
    event_shape: tuple[int, ...],
    device: torch.device,
    batch: int,
    schedule: Any = 1.0,
    coupling: str = "optimal-transport",
    share: Any = 1.0,
    steps: int = 100_000,
    **train: Any,
) -> Steps:
    """gftkit's own training steps; ``schedule`` None is plain flow matching."""
    loop = build_loop(
        registry=REGISTRY,
        drift=network(spec, event_shape),
        data=Noise(event_shape),
        source=lambda n, generator: torch.randn(n, *event_shape, generator=generator),
        path=REGISTRY.create("path", "linear"),
        coupling=REGISTRY.create("coupling", coupling),
        schedule=0.0 if schedule is None else schedule,
        train=Train(steps=steps, batch_size=batch, learning_rate=2e-4, ema=0.9999, clip=1.0, **train),
        seed=0,
        device=device,
        anchor_share=share,
    )
    if schedule is None:
        loop.anchor = None
        experiment = loop.experiment
        loop.experiment = replace(
            experiment,
            networks=replace(experiment.networks, anchor=None),
            matching=replace(experiment.matching, schedule=None),
        )
    return loop


def torchcfm_step(spec: dict[str, Any], event_shape: tuple[int, ...], device: torch.device, batch: int) -> Step:
    """torchcfm's OT-CFM training step, as its image examples write it."""
    try:
        from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher
    except ImportError:
        sys.exit("torchcfm or POT is not installed here: `make bench-env`, then run with .venv-bench/bin/python.")
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    net = network(spec, event_shape).to(device).train()
    ema = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4)
    data = Noise(event_shape)._x
    generator = torch.Generator().manual_seed(0)

    def step(_: int) -> Tensor:
        optimizer.zero_grad()
        x1 = data[torch.randint(len(data), (batch,), generator=generator)].to(device)
        x0 = torch.randn_like(x1)
        t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
        loss = torch.mean((net(t, xt) - ut) ** 2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            source, target = net.state_dict(), ema.state_dict()
            for key in source:
                target[key].copy_(target[key] * 0.9999 + source[key] * (1 - 0.9999))
        return loss

    return step


def with_workers(steps: Steps, stack: ExitStack) -> Step:
    """The same steps with pairs made ahead by a worker process."""
    pin = steps.device.type == "cuda"
    steps.batches = stack.enter_context(prefetch(steps.pairs, 0, steps.config.train.steps, 1, pin=pin))
    return steps.take


def small(device: torch.device, event_shape: tuple[int, ...] = (1, 16, 16), **options: Any) -> Steps:
    """The project's U-Net at batch 64."""
    return gft(UNET, event_shape, device, 64, **{"coupling": "independent", **options})


def against_torchcfm(spec: dict[str, Any], event_shape: tuple[int, ...], batch: int = BATCH, **options: Any) -> Sides:
    """GFT at temperature 1 with exact OT, and torchcfm's step."""
    return lambda device, _: (
        gft(spec, event_shape, device, batch, **options).take,
        torchcfm_step(spec, event_shape, device, batch),
    )


def whole_run(device: torch.device, _: ExitStack) -> tuple[Step, Step]:
    """A run of 1,000 steps from its hottest to its coldest, with anchor sharing, and the same without an anchor."""
    shape = (1, 8, 8)
    schedule = REGISTRY.create("schedule", "exponential")
    ours = small(device, shape, schedule=schedule, share="retention", steps=1000)
    return ours.take, small(device, shape, schedule=None, steps=1000).take


def pairing(spec: dict[str, Any], event_shape: tuple[int, ...]) -> Sides:
    """GFT with optimal transport and with independent pairs, both made ahead by a worker process on its own core."""

    def sides(device: torch.device, stack: ExitStack) -> tuple[Step, Step]:
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads - 1))
        stack.callback(torch.set_num_threads, threads)
        ours, peer = (
            gft(spec, event_shape, device, BATCH, coupling=name) for name in ("optimal-transport", "independent")
        )
        return with_workers(ours, stack), with_workers(peer, stack)

    return sides


MLP = {"name": "mlp", "width": 512, "depth": 3}
PLAIN, CFM, APART = "gftkit, plain flow matching", "torchcfm, OT-CFM", "gftkit, independent pairs"
HALF = {"channels_last": True, "precision": "bfloat16"}


def fast_rows(device: torch.device) -> tuple[Row, ...]:
    """The project's speed options, where the device has instructions for bfloat16 and where it hasn't."""
    unet = (3, 32, 32)
    if not emulates_half(device):
        name = "GFT step: U-Net 3x32x32, bfloat16, channels last"
        return (Row(name, CFM, 1.0, 5, 1, against_torchcfm(UNET, unet, **HALF)),)
    parts = {"channels_last": True, "accumulate": 4}
    few = "GFT step: U-Net 3x32x32, bfloat16 without instructions for it, channels last, batch 16"
    return (
        Row(
            "GFT step: U-Net 3x32x32, channels last, in 4 parts", CFM, 1.0, 5, 1, against_torchcfm(UNET, unet, **parts)
        ),
        Row(few, CFM, None, 3, 1, against_torchcfm(UNET, unet, batch=16, **HALF)),
    )


ROWS = (
    Row(
        "GFT step, frozen anchor: U-Net 1x16x16, batch 64",
        PLAIN,
        1.40,
        25,
        2,
        lambda device, _: (small(device).take, small(device, schedule=None).take),
    ),
    Row(
        "GFT step at temperature 0: U-Net 1x16x16, batch 64",
        PLAIN,
        1.05,
        25,
        2,
        lambda device, _: (small(device, schedule=0.0).take, small(device, schedule=None).take),
    ),
    Row("GFT run of 1,000 steps, anchor sharing: U-Net 1x8x8, batch 64", PLAIN, 1.15, 100, 10, whole_run, whole=True),
    Row("GFT step: MLP 512x3, 64 dimensions", CFM, 0.85, 30, 10, against_torchcfm(MLP, (64,))),
    Row("GFT step: MLP 512x3, 3,072 dimensions", CFM, 0.95, 30, 5, against_torchcfm(MLP, (3072,))),
    Row("GFT step: U-Net 3x32x32, float32", CFM, 1.40, 5, 1, against_torchcfm(UNET, (3, 32, 32))),
    Row(
        "OT pairs made ahead, on a core of their own: MLP 512x3, 64 dimensions",
        APART,
        1.05,
        30,
        20,
        pairing(MLP, (64,)),
    ),
    Row("OT pairs made ahead, on a core of their own: U-Net 1x16x16", APART, 1.05, 15, 1, pairing(UNET, (1, 16, 16))),
)


def rows(device: torch.device) -> tuple[Row, ...]:
    """The rows for a device."""
    return *ROWS, *fast_rows(device)


if __name__ == "__main__":
    main(__doc__, rows)
