"""The empirical oracle against brute force, near t = 1, in chunks, and as the optimum of the training objective."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gftkit.theory import flow
from gftkit_verification.oracles import empirical
from gftkit_verification.oracles.empirical import EmpiricalFlow

EXACT = 1e-9
PATHS = [("linear", {}), ("trigonometric", {}), ("brownian-bridge", {"scale": 0.7})]


@pytest.fixture(params=PATHS, ids=[name for name, _ in PATHS])
def path(request, registry):
    return registry.create("path", request.param[0], **request.param[1])


def points(n=30, event=(1, 2, 2), dtype=torch.float64):
    return torch.randn(n, *event, generator=torch.Generator().manual_seed(1), dtype=dtype)


def states(data, path, n=25):
    """Times and states on the path."""
    generator = torch.Generator().manual_seed(2)
    t = 0.98 * torch.rand(n, generator=generator, dtype=torch.float64)
    targets = data[torch.randint(len(data), (n,), generator=generator)].double()
    x0, noise = torch.randn(2, *targets.shape, generator=generator, dtype=torch.float64)
    return t, flow.sample(path, t, x0, targets, noise)


def brute_force_drift(path, data, t, x, sigma_power=2):
    """Posterior-weighted conditional drifts, one state at a time: the drift given y, averaged over the noise."""
    out = []
    for at, state in zip(t, x, strict=True):
        sigma, alpha, gamma = path.coefficients(at)
        variance = sigma**sigma_power + gamma**2
        apart = state - alpha * data
        weights = (-apart.flatten(1).square().sum(1) / (2 * variance)).softmax(0)
        rates = flow.rates(path, at)
        g = flow.diffusion(path, at)
        # given y, x0 and the noise are Gaussian: their means are sigma apart/variance and gamma apart/variance
        moving = rates[0] * sigma + rates[2] * gamma - g**2 / 2
        if gamma == 0:
            moving = rates[0] * sigma
        out.append((weights[:, None, None, None] * (rates[1] * data + moving * apart / variance)).sum(0))
    return torch.stack(out)


def test_drift_is_the_posterior_mean_of_the_conditional_drift(path):
    data = points()
    t, x = states(data, path)
    drift = EmpiricalFlow(data, path).drift(t, x)
    assert torch.allclose(drift, brute_force_drift(path, data, t, x), rtol=EXACT, atol=EXACT)
    assert not torch.allclose(drift, brute_force_drift(path, data, t, x, sigma_power=1), rtol=1e-2)  # std for variance


def test_score_and_velocity(path):
    """The score is the gradient of the log density, and drift = velocity + (g^2/2) score."""
    data = points(8, (2,))
    t, x = states(data, path)
    x = x.requires_grad_()
    sigma, alpha, gamma = (value[:, None] for value in path.coefficients(t))
    variance = sigma**2 + gamma**2
    apart = x[:, None] - alpha[..., None] * data
    logs = (-apart.square().sum(-1) / (2 * variance)).logsumexp(1)
    (wanted,) = torch.autograd.grad(logs.sum(), x)
    oracle, x = EmpiricalFlow(data, path), x.detach()
    assert torch.allclose(oracle.score(t, x), wanted, rtol=EXACT, atol=EXACT)
    g = flow.expand(flow.diffusion(path, t), x)
    assert torch.allclose(oracle.drift(t, x), oracle.velocity(t, x) + g**2 / 2 * wanted, rtol=EXACT, atol=EXACT)


def test_chunks_do_not_matter(path, monkeypatch):
    data = points(101)
    t, x = states(data, path)
    whole = EmpiricalFlow(data, path).drift(t, x)
    monkeypatch.setattr(empirical, "CHUNK", 60)
    assert torch.allclose(EmpiricalFlow(data, path).drift(t, x), whole, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("left", [1e-3, 1e-5])
def test_near_the_end_the_posterior_is_the_nearest_point(registry, left):
    """In float32 data and states, with values far from 0: the distances keep their digits."""
    data = 10 + points(50, (6,), torch.float32)
    path = registry.create("path", "linear")
    t = torch.full((50,), 1 - left, dtype=torch.float64)
    x0 = torch.randn(50, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = left * x0 + (1 - left) * data.double()
    mean = EmpiricalFlow(data, path).posterior_mean(t, x)
    assert torch.allclose(mean, data.double(), rtol=1e-12)
    drift = EmpiricalFlow(data, path).drift(t, x)
    assert torch.allclose(drift, data.double() - x0, rtol=1e-4, atol=1e-4)


def test_it_is_the_minimiser_of_the_training_loss(path):
    """Among drifts shifted from it, on a set of pairs: the loss rises by the squared shift, within 5 errors."""
    data = points(5, (2,))
    oracle = EmpiricalFlow(data, path)
    generator = torch.Generator().manual_seed(4)
    n = 20_000
    t = 0.9 * torch.rand(n, generator=generator, dtype=torch.float64)
    x1 = data[torch.randint(5, (n,), generator=generator)]
    x0, noise = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    x = flow.sample(path, t, x0, x1, noise)
    left = flow.drift(path, t, x0, x1, noise) - oracle.drift(t, x)
    for shift in (x, torch.ones_like(x), t[:, None] * x.flip(1)):
        products = (left * shift).sum(1)
        assert abs(float(products.mean())) < 5 * float(products.std()) / n**0.5
    wrong = flow.drift(path, t, x0, x1, noise) - 0.9 * oracle.drift(t, x)
    products = (wrong * oracle.drift(t, x)).sum(1)
    assert float(products.mean()) > 5 * float(products.std()) / n**0.5


def test_bad_input_is_refused(registry):
    linear = registry.create("path", "linear")
    with pytest.raises(ValueError, match="at least one point"):
        EmpiricalFlow(torch.zeros(0, 2), linear)
    with pytest.raises(ValueError, match="finite"):
        EmpiricalFlow(torch.tensor([[float("nan")]]), linear)
    with pytest.raises(ValueError, match=r"values in \[0, 1\)"):
        EmpiricalFlow(torch.zeros(1, 2), linear).drift(torch.ones(1), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="wanted t"):
        EmpiricalFlow(torch.zeros(1, 2), linear).drift(torch.zeros(1), torch.zeros(1, 3))

    class Odd:
        def coefficients(self, t):
            return 1 - t, t, t * (1 - t)

        def diffusion(self, t):
            return torch.ones_like(t)

    with pytest.raises(ValueError, match="Brownian bridge"):
        EmpiricalFlow(torch.zeros(1, 2), Odd())


LARGE = """
import re, torch, gftkit
from gftkit_verification.oracles.empirical import EmpiricalFlow
torch.set_num_threads(2)
data = torch.randn(60_000, 3072, generator=torch.Generator().manual_seed(0))
oracle = EmpiricalFlow(data, gftkit.load().create("path", "linear"))
x = torch.randn(256, 3072, generator=torch.Generator().manual_seed(1))
assert torch.isfinite(oracle.drift(torch.full((256,), 0.5), x)).all()
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1e6)
"""


# The peak of this program alone: that of getrusage begins with its parent's.
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="wants Linux, which tells a program's peak memory")
def test_large_data_stay_under_two_gigabytes():
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2.0
