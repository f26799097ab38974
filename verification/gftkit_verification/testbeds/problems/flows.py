"""Random Gaussian problems by seed: covariances that don't commute, means that aren't 0; and as data of gftkit."""

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Batch
from gftkit_verification.oracles.gaussian import CouplingName, GaussianFlow

COUPLINGS: tuple[CouplingName, ...] = ("independent", "optimal-transport")


def random_covariance(d: int, generator: Generator) -> Tensor:
    """A covariance of moderate condition, (d, d) of float64: a Wishart matrix plus 0.2 I."""
    root = torch.randn(d, d, generator=generator, dtype=torch.float64, device=generator.device)
    return root @ root.mT / d + 0.2 * torch.eye(d, dtype=torch.float64, device=generator.device)


def draw_flow(d: int, generator: Generator, coupling: CouplingName = "independent") -> GaussianFlow:
    """The flow between two random normal laws of dimension d."""
    mean0, mean1 = torch.randn(2, d, generator=generator, dtype=torch.float64, device=generator.device)
    return GaussianFlow(mean0, random_covariance(d, generator), mean1, random_covariance(d, generator), coupling)


def random_flow(seed: int, d: int, coupling: CouplingName = "independent") -> GaussianFlow:
    """``drawn_flow`` by a seed."""
    return draw_flow(d, torch.Generator().manual_seed(seed), coupling)


def retarget(flow: GaussianFlow, generator: Generator) -> GaussianFlow:
    """A flow from the same source to another random target: the pretrained one, where ``flow`` is the target's."""
    d = len(flow.mean0)
    mean1 = torch.randn(d, generator=generator, dtype=torch.float64, device=generator.device)
    return GaussianFlow(flow.mean0, flow.cov0, mean1, random_covariance(d, generator), flow.coupling)


class GaussianData:
    """The target of a Gaussian flow as a data set of gftkit: with independent coupling x1 alone, with the optimal
    one exact pairs (x0, x1).

    Args:
        flow: the flow, on the CPU.
    """

    range: tuple[float, float] | None = None

    def __init__(self, flow: GaussianFlow) -> None:
        self.flow = flow
        self.event_shape: tuple[int, ...] = (len(flow.mean0),)

    def draw(self, n: int, generator: Generator) -> Batch:
        """n fresh samples, in float32."""
        x0, x1 = self.flow.pairs(n, generator)
        return Batch(x1.float(), None, None if self.flow.coupling == "independent" else x0.float())

    def source(self, n: int, generator: Generator) -> Tensor:
        """n samples of the flow's source, (n, d) of float32."""
        return self.flow.starts(n, generator).float()
