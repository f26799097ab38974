"""Explicit randomness: independent generators named by what they are for."""

import hashlib

import torch
from torch import Generator


def stream(seed: int, *names: str | int, device: torch.device | str = "cpu") -> Generator:
    """A generator for one purpose: streams of different names or seeds are independent.

    Example:
        >>> a, b = stream(0, "source"), stream(0, "source")
        >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).all())
        True
    """
    # SHA-256 and not ``hash``, which Python salts anew in every process: a resumed run must find the same numbers.
    # Named streams rather than one shared generator, so that drawing more for one purpose moves no other, and a step's
    # numbers can be made again without those of the steps before it.
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # a non-negative int64


def seed_global(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of one device; ``torch.manual_seed`` seeds every device, slowly."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
