"""Noise for the sampler: of one generator, or of a sample's index alone."""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Generator, Tensor

from gftkit.runtime.randomness import stream

BLOCK = 64
"""Consecutive indices that share a generator."""
NUMBERS_AHEAD = 4096
"""Numbers of a block that are drawn at once, at most, where a step needs fewer."""


class Noise(Protocol):
    """The source of an integration's randomness.

    Attributes:
        device: where numbers are drawn.
    """

    device: torch.device

    def begin(self, first: int, count: int) -> None:
        """Start on samples ``first`` to ``first + count - 1``; asked twice for the same, it gives the same again."""

    def normal(self, x: Tensor) -> Tensor:
        """The next standard normal numbers, of x's shape and type."""

    def generator(self) -> Generator:
        """The generator that seeds a library's Brownian path."""


class FromGenerator:
    """The numbers of one generator, in the order in which they are asked for."""

    def __init__(self, generator: Generator) -> None:
        self.device = generator.device
        self._generator = generator
        self._begun: tuple[int, Tensor] | None = None

    def begin(self, first: int, count: int) -> None:  # noqa: ARG002
        """Remember where the generator is, or go back there."""
        if self._begun is not None and self._begun[0] == first:
            self._generator.set_state(self._begun[1])
        self._begun = first, self._generator.get_state()

    def normal(self, x: Tensor) -> Tensor:
        """The next numbers."""
        return torch.randn(x.shape, generator=self._generator, device=x.device, dtype=x.dtype)

    def generator(self) -> Generator:
        """The generator itself."""
        return self._generator


class ByBlock:
    """Numbers that depend on a seed and the sample's index only: not on the batch, nor on who else is sampled.

    Each block of 64 consecutive indices has a generator of its own.

    Args:
        seed: of all blocks.
        device: where numbers are drawn; CPU and CUDA draw different ones.
        offset: index of the first sample, a multiple of 64.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu", offset: int = 0) -> None:
        if offset % BLOCK:
            raise ValueError(f"wanted an offset that is a multiple of {BLOCK}, got {offset}.")
        self.device = torch.device(device)
        self._seed, self._offset = seed, offset
        self._skip = self._count = 0
        self._generators: list[Generator] = []
        self._drawn_ahead: deque[Tensor] = deque()

    def begin(self, first: int, count: int) -> None:
        """Make the generators of the blocks that hold these samples."""
        blocks = range((self._offset + first) // BLOCK, (self._offset + first + count - 1) // BLOCK + 1)
        self._generators = [stream(self._seed, "noise", block, device=self.device) for block in blocks]
        self._skip, self._count = (self._offset + first) % BLOCK, count
        self._drawn_ahead.clear()  # numbers of other samples

    def normal(self, x: Tensor) -> Tensor:
        """The next numbers: several steps' at once where events are small, for a draw costs more than its numbers."""
        if not self._drawn_ahead:
            block = (BLOCK, *x.shape[1:])
            steps = max(1, NUMBERS_AHEAD // (BLOCK * x[0].numel()))
            drawn = [
                torch.randn(steps, *block, generator=each, device=x.device, dtype=x.dtype) for each in self._generators
            ]
            whole = drawn[0] if len(drawn) == 1 else torch.cat(drawn, dim=1)
            self._drawn_ahead.extend(whole[:, self._skip : self._skip + self._count].unbind())
        return self._drawn_ahead.popleft()

    def generator(self) -> Generator:
        """That of the block.

        Raises:
            ValueError: for samples of more than one block.
        """
        if len(self._generators) != 1:
            raise ValueError("samples of several blocks have no common generator. Integrate each block by itself.")
        return self._generators[0]


def draw_by_block(draw: Callable[[int, Generator], Tensor], seed: int, first: int, count: int) -> Tensor:
    """Samples ``first`` to ``first + count - 1`` of a source, each block of 64 indices drawn by its own generator.

    Args:
        draw: n samples by a generator, (n, *event).
        seed: of all blocks.
        first: the first index.
        count: how many, >= 1.
    """
    blocks = range(first // BLOCK, (first + count - 1) // BLOCK + 1)
    # Whole blocks, then cut, so that a sample has the same numbers whichever samples are drawn with it.
    drawn = torch.cat([draw(BLOCK, stream(seed, "source", block)) for block in blocks])
    return drawn[first % BLOCK : first % BLOCK + count]
