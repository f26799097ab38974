"""Noise by seed and block of 64 indices: the same index gives the same sample."""

import pytest
import torch

from gftkit.kernel.errors import DivergenceError
from gftkit.sampling.integrate import generate
from gftkit.sampling.noise import BLOCK, ByBlock, draw_by_block
from gftkit.sampling.stochastic import StochasticPath


def noisy(registry, count, batch_size, offset=0, seed=3, event=(2,)):
    """A Brownian motion of samples ``offset`` to ``offset + count - 1``, from a source that is drawn by index too."""
    path = StochasticPath(registry.create("path", "linear"), torch.ones_like)
    x0 = draw_by_block(lambda n, generator: torch.randn(n, *event, generator=generator), seed, offset, count)
    solver = registry.create("solver", "euler-maruyama")
    noise = ByBlock(seed, "cpu", offset)
    return generate(lambda t, x: torch.zeros_like(x), path, solver, 5, x0, noise, batch_size=batch_size)


@pytest.mark.parametrize("event", [(2,), (3, 5)])
def test_the_same_index_gives_the_same_sample(registry, event):
    whole = noisy(registry, 200, 500, event=event)
    for count, batch_size, offset in ((200, 64, 0), (200, 50, 0), (10, 3, 0), (72, 20, 128), (40, 40, 64)):
        part = noisy(registry, count, batch_size, offset, event=event)
        assert torch.allclose(part, whole[offset : offset + count], atol=1e-5)
    assert not torch.allclose(noisy(registry, 200, 500, seed=4, event=event), whole)
    assert len(whole.flatten(1).unique(dim=0)) == 200


def test_blocks_differ_and_noise_is_begun_anew():
    noise, x = ByBlock(0), torch.zeros(2 * BLOCK, 1)
    noise.begin(0, len(x))
    first, second = noise.normal(x), noise.normal(x)
    assert not torch.equal(first[:BLOCK], first[BLOCK:])
    assert not torch.equal(first, second)
    noise.begin(0, len(x))
    assert torch.equal(noise.normal(x), first)
    with pytest.raises(ValueError, match="several blocks"):
        noise.generator()
    with pytest.raises(ValueError, match="multiple of 64"):
        ByBlock(0, offset=10)


def test_the_step_that_fails_is_named_with_noise_too(registry):
    path = StochasticPath(registry.create("path", "linear"), torch.ones_like)
    solver = registry.create("solver", "euler-maruyama")
    for noise in (ByBlock(0), torch.Generator().manual_seed(0)):
        with pytest.raises(DivergenceError, match=r"3 of 3 samples are not finite after step 3 of 5, .* t = 0\.49"):
            generate(
                lambda t, x: x / (t < 0.4)[:, None],
                path,
                solver,
                4,
                torch.ones(3, 1),
                noise,
            )
