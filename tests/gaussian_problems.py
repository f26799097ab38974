"""Random Gaussian problems: source and target covariances that don't commute, means that aren't 0."""

import torch
from torch import Tensor

from gftkit_verification.gaussian import CouplingName, GaussianFlow


def random_covariance(d: int, generator: torch.Generator) -> Tensor:
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return root @ root.mT / d + 0.2 * torch.eye(d, dtype=torch.float64)


def random_flow(seed: int, d: int, coupling: CouplingName = "independent") -> GaussianFlow:
    generator = torch.Generator().manual_seed(seed)
    mean0, mean1 = torch.randn(2, d, generator=generator, dtype=torch.float64)
    return GaussianFlow(mean0, random_covariance(d, generator), mean1, random_covariance(d, generator), coupling)
