"""Networks that scale their time themselves: what reaches their embedding is measured before anything is trained."""

import pytest
import torch
from torch import nn

import gftkit
from gftkit.data.description import Facts
from gftkit.experiment.building import build_drift
from gftkit.kernel.errors import ConfigError

REGISTRY = gftkit.load()
REASON = "diffusers isn't installed: pip install 'gftkit[diffusers]'"


class Timesteps(nn.Module):
    """The sinusoids of diffusers, with its name and attribute."""

    def __init__(self, scale: float = 1) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, times):
        angles = self.scale * times[:, None].float() * torch.tensor([1.0, 0.1, 0.01, 0.001])
        return torch.cat([angles.sin(), angles.cos()], 1)


class Embedding(nn.Module):
    """A network that embeds its time, and a guidance scale by the same module, as FLUX does.

    Args:
        factor: by which it multiplies its time.
        scale: of the sinusoids.
        guided: whether it embeds a guidance scale of 3.5, times 1,000.
    """

    def __init__(self, factor: float = 1, scale: float = 1, guided: bool = False) -> None:
        super().__init__()
        self.factor, self.guided = factor, guided
        self.time_proj, self.out = Timesteps(scale), nn.Linear(8, 3)

    def forward(self, x, t):
        embedded = self.time_proj(t * self.factor)
        if self.guided:
            embedded = embedded + self.time_proj(torch.full_like(t, 3500.0 * 1000))
        return x + self.out(embedded)


def build(convention, **options):
    spec = {"name": "module", "target": f"{__name__}:Embedding", "options": options, "convention": convention}
    return build_drift(spec, Facts((3,), None, None), REGISTRY, REGISTRY.create("path", "linear"))


CALL = {"call": "x, t", "path": {"name": "linear"}, "time": "reversed"}


@pytest.mark.parametrize("options", [{"factor": 1000.0}, {"scale": 1000.0}, {"factor": 1000.0, "guided": True}])
def test_a_time_that_is_scaled_twice_is_refused(options):
    with pytest.raises(ConfigError, match="Embedding multiplies its time by 1000 itself, so its embedding is given"):
        build({**CALL, "time_scale": 1000.0}, **options)
    build({**CALL, "time_scale": 1.0}, **options)  # as the message says


@pytest.mark.parametrize("options", [{}, {"guided": True}])
def test_a_time_that_is_scaled_once_is_not(options):
    """What is embedded beside the time, and doesn't change with it, doesn't count."""
    build({**CALL, "time_scale": 1000.0}, **options)
    build({**CALL, "time_scale": 4000.0}, **options)


def test_the_scale_of_a_network_of_diffusers_is_found():
    pytest.importorskip("diffusers", reason=REASON)
    sizes = {
        "sample_size": 4,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        "attention_head_dim": 4,
        "num_attention_heads": 2,
        "joint_attention_dim": 8,
        "caption_projection_dim": 8,
        "pos_embed_max_size": 16,
    }
    spec = {
        "name": "module",
        "target": "diffusers:AuraFlowTransformer2DModel",
        "options": sizes,
        "convention": {"preset": "diffusers", "call": "hidden_states=x, encoder_hidden_states=text, timestep=t"},
    }
    with pytest.raises(ConfigError, match=r"pipeline of Aura.* gives it 1 - t. Use `preset: aura-flow`, or set time_s"):
        REGISTRY.resolve("drift", spec)
    spec["convention"]["time_scale"] = 1000.0
    facts, path = Facts((4, 4, 4), None, None, {"text": (3, 8)}), REGISTRY.create("path", "linear")
    with pytest.raises(ConfigError, match=r"AuraFlowTransformer2DModel multiplies its time by 1000 itself"):
        build_drift(spec, facts, REGISTRY, path)
    spec["convention"]["time_scale"] = 1.0
    build_drift(spec, facts, REGISTRY, path)
