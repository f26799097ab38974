"""Networks whose outputs are known in closed form: Gaussian data, told in any convention."""

import torch
from torch import nn

from gftkit.theory import flow
from gftkit.theory.flow import expand


class Gaussian:
    """E[x0 | x_t] and E[x1 | x_t] for x0 ~ N(mean0, cov0) and data N(mean1, cov1), independent, on an affine path."""

    def __init__(self, path, mean0, cov0, mean1, cov1):
        self.path = path
        self.mean0, self.cov0, self.mean1, self.cov1 = mean0, cov0, mean1, cov1

    def expectations(self, t, x):
        """(E[x0 | x], E[x1 | x]), (batch, d) each."""
        sigma, alpha, _ = (expand(value, x) for value in self.path.coefficients(t))
        cov = sigma[..., None] ** 2 * self.cov0 + alpha[..., None] ** 2 * self.cov1
        away = torch.linalg.solve(cov, (x - sigma * self.mean0 - alpha * self.mean1)[..., None])
        noise = self.mean0 + (sigma[..., None] * self.cov0 @ away)[..., 0]
        data = self.mean1 + (alpha[..., None] * self.cov1 @ away)[..., 0]
        return noise, data

    def score(self, t, x):
        sigma, alpha, _ = (expand(value, x) for value in self.path.coefficients(t))
        cov = sigma[..., None] ** 2 * self.cov0 + alpha[..., None] ** 2 * self.cov1
        return -torch.linalg.solve(cov, (x - sigma * self.mean0 - alpha * self.mean1)[..., None])[..., 0]

    def velocity(self, t, x):
        noise, data = self.expectations(t, x)
        sigma, alpha, _ = (expand(rate, x) for rate in flow.rates(self.path, t))
        return sigma * noise + alpha * data

    def known_as(self, scale, shift, state):
        """The same data in the values a d + c; with ``state`` the source as well."""
        a = torch.tensor(scale, dtype=self.mean1.dtype)
        mean0, cov0 = (a * self.mean0 + shift, a**2 * self.cov0) if state else (self.mean0, self.cov0)
        return Gaussian(self.path, mean0, cov0, a * self.mean1 + shift, a**2 * self.cov1)


class Oracle(nn.Module):
    """A network that predicts what it should of a Gaussian, in any convention; apart from gftkit.networks.foreign."""

    def __init__(self, truth, predicts="velocity", reverse=False, scale=1.0, sign=1, integer=False):
        super().__init__()
        self.truth, self.predicts, self.reverse, self.scale, self.sign = truth, predicts, reverse, scale, sign
        self.integer = integer
        self.seen = []
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, time, x):
        assert self.integer != time.is_floating_point()
        self.seen.append(tuple(time.shape))
        tau = time.reshape(-1).expand(len(x)).to(x.dtype) / self.scale
        t = 1 - tau if self.reverse else tau
        match self.predicts:
            case "velocity" | "drift":
                out = self.truth.velocity(t, x) * (-1 if self.reverse else 1)
            case "noise":
                out = self.truth.expectations(t, x)[0]
            case "data":
                out = self.truth.expectations(t, x)[1]
            case "score":
                out = self.truth.score(t, x)
        return self.sign * out + self.weight


def law(seed, d=3, normal=False):
    """A random mean and covariance, or those of N(0, I)."""
    if normal:
        return torch.zeros(d).double(), torch.eye(d).double()
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=generator, dtype=torch.float64) / 2
    return torch.randn(d, generator=generator, dtype=torch.float64), root @ root.mT + 0.3 * torch.eye(d).double()


def a_gaussian(path, seed=0, normal=True):
    """Data of a random law; the source N(0, I), or another one."""
    return Gaussian(path, *law(2 * seed, normal=normal), *law(2 * seed + 1))
