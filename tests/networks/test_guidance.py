"""Classifier-free guidance: where a guided flow ends, what it costs, and where it is refused."""

import pytest
import torch
from scipy.integrate import solve_ivp

from gftkit.data import conditions
from gftkit.kernel.errors import ConfigError, UnknownNameError
from gftkit.networks.convention import Convention
from gftkit.networks.foreign import ForeignDrift
from gftkit.networks.guidance import Guided, check_guidance, with_guidance
from gftkit.sampling.integrate import generate

SPREAD, WIDTH = 0.7, 1.3
"""Standard deviations of x1 given c, and of c, in the closed-form problem."""


class ClosedForm(torch.nn.Module):
    """The velocity of x0 ~ N(0, 1) to x1 | c ~ N(c, SPREAD^2) on the linear path; NaN stands for c ~ N(0, WIDTH^2)."""

    conditions, null = ("c",), {"c": float("nan")}

    def __init__(self):
        super().__init__()
        self.calls = []

    @staticmethod
    def parts(t, mean, variance):
        """A and a of the velocity A x + a to N(mean, variance)."""
        slope = (t * variance - (1 - t)) / ((1 - t) ** 2 + t**2 * variance)
        return slope, mean - slope * t * mean

    def forward(self, t, x, c):
        self.calls.append(len(x))
        absent = c.isnan()
        variance = torch.where(absent, SPREAD**2 + WIDTH**2, SPREAD**2)
        slope, shift = self.parts(t[:, None], c.nan_to_num(), variance)
        return slope * x + shift


def moments(scale, c):
    """Mean and variance of the guided flow's end, by integrating those of an affine drift."""

    def rate(t, now):
        (usual, shift), (alone, none) = (
            ClosedForm.parts(t, c, SPREAD**2),
            ClosedForm.parts(t, 0.0, SPREAD**2 + WIDTH**2),
        )
        slope, at = alone + scale * (usual - alone), none + scale * (shift - none)
        return [slope * now[0] + at, 2 * slope * now[1]]

    return solve_ivp(rate, (0, 1), [0.0, 1.0], rtol=1e-10, atol=1e-12).y[:, -1]


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_a_guided_gaussian_flow_ends_where_its_moments_do(registry, scale):
    c = 0.8
    x0 = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)  # of mean 0 and variance 1: the flow is affine
    given = {"c": torch.full_like(x0, c)}

    def end(drift):
        path, solver = registry.create("path", "linear"), registry.create("solver", "rk4")
        x1 = generate(drift, path, solver, 60, x0, torch.Generator(), conditions=given)
        return torch.stack([x1.mean(), x1.var(correction=0)])

    wanted = torch.tensor(moments(scale, c), dtype=torch.float64)
    assert torch.allclose(end(with_guidance(ClosedForm(), scale)), wanted, atol=1e-6)
    if scale == 1:
        assert torch.allclose(wanted, torch.tensor([c, SPREAD**2], dtype=torch.float64), atol=1e-6)

    class Swapped(Guided):
        def __call__(self, t, x, **given):
            none = self.drift(t, x, **conditions.without_conditions(self.drift, given))
            usual = self.drift(t, x, **given)
            return usual + self.scale * (none - usual)

    for wrong in (Swapped(ClosedForm(), scale), Guided(ClosedForm(), scale + 1)):
        assert (end(wrong) - wanted).abs().max() > 0.02


def test_guidance_is_one_call_on_twice_the_batch_and_scale_one_is_free():
    drift = ClosedForm()
    t, x, c = torch.rand(3), torch.randn(3, 1), torch.randn(3, 1)
    assert with_guidance(drift, 1.0) is drift
    found = Guided(drift, 3.0)(t, x, c=c)
    assert drift.calls == [6]
    none, usual = drift(t, x, c=torch.full_like(c, torch.nan)), drift(t, x, c=c)
    assert torch.allclose(found, none + 3 * (usual - none))
    assert torch.allclose(Guided(drift, 0.0)(t, x, c=c), none)


def test_guidance_is_refused_where_it_means_nothing():
    check_guidance(1.0, torch.nn.Identity(), 0.0, "here")
    check_guidance(2.0, ClosedForm(), 0.1, "here")
    with pytest.raises(ConfigError, match=r"this run didn't train it .*condition_dropout"):
        check_guidance(2.0, ClosedForm(), 0.0, "here")
    with pytest.raises(ConfigError, match="uses no condition"):
        check_guidance(2.0, torch.nn.Identity(), 0.1, "here")
    for scale in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="wanted a finite scale"):
            check_guidance(scale, ClosedForm(), 0.1, "here")


def test_a_foreign_network_says_its_null_in_its_convention():
    class Classes(torch.nn.Module):
        def forward(self, x, t, y):
            return x + y[:, None].to(x.dtype)

    drift = ForeignDrift(Classes(), Convention.of({"call": "x, t, y=label", "null": {"label": 7}}))
    assert drift.null == {"label": 7}
    t, x, label = torch.rand(2), torch.zeros(2, 3), torch.tensor([1, 2])
    assert Guided(drift, 2.0)(t, x, label=label)[:, 0].tolist() == [2 * 1 - 7, 2 * 2 - 7]
    with pytest.raises(UnknownNameError, match=r"convention\.null"):
        Convention.of({"call": "x, t, y=label", "null": {"labels": 7}})
