"""Tiny networks of other libraries, each with its preset and the arithmetic of its own library's sampling."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Call = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""(network, sigma (), x, conditions) -> dx/dsigma, written as the library's pipeline computes it."""

TOKENS, WIDTH, POOLED = 3, 8, 6


@dataclass(frozen=True)
class Model:
    """A network, how gftkit calls it, and how its own library does.

    Attributes:
        title: in the documentation.
        target: its class.
        options: of a tiny one.
        convention: for gftkit.
        event: the shape of a state.
        conditions: the shapes of the data's conditions; ``label`` is a class, ``mask`` of 0 and 1.
        call: by the library.
        adapted: the layers that LoRA adapts; empty where it is refused.
        shift: of the scheduler.
        linear: True where the pipeline gives the scheduler sigmas from 1 to 1/N.
        limits: what isn't possible.
    """

    title: str
    target: str
    options: dict[str, Any]
    convention: dict[str, Any]
    event: tuple[int, ...]
    conditions: dict[str, tuple[int, ...]]
    call: Call
    adapted: list[str] = field(default_factory=lambda: ["to_q", "to_v"])
    shift: float = 3.0
    linear: bool = False
    limits: str = ""

    @property
    def pipelines(self) -> str:
        """The name under which pipelines load LoRA into it; "" where none does."""
        if self.library != "diffusers" or self.title.startswith("DiT"):
            return ""
        return "unet" if "UNet" in self.target else "transformer"

    @property
    def library(self) -> str:
        """The package that it needs."""
        return self.target.partition(":")[0].partition(".")[0]

    def build(self, seed: int = 0) -> torch.nn.Module:
        """The network; every weight is random, also those that its class sets to 0."""
        module, _, name = self.target.partition(":")
        torch.manual_seed(seed)
        network: torch.nn.Module = getattr(importlib.import_module(module), name)(**self.options)
        with torch.no_grad():
            for weight in network.parameters():
                if not weight.any():
                    weight.normal_(std=0.1)
        return network.eval()

    def arrays(self, count: int, seed: int = 0) -> dict[str, Tensor]:
        """Samples and conditions: the second token of every other mask is padding."""
        generator = torch.Generator().manual_seed(seed)
        arrays = {"x1": torch.randn(count, *self.event, generator=generator)}
        for name, shape in self.conditions.items():
            arrays[name] = torch.randn(count, *shape, generator=generator)
            if name == "mask":
                arrays[name] = torch.ones(count, *shape)
                arrays[name][::2, -1] = 0
            if name == "label":
                arrays[name] = torch.arange(count) % 3
        return arrays


def _times(sigma: Tensor, x: Tensor, scale: float) -> Tensor:
    return (scale * sigma).expand(len(x))


def _text(scale: float, **names: str) -> Call:
    """A call with the conditions under the network's names, and ``scale`` sigma as time."""

    def call(network: Any, sigma: Tensor, x: Tensor, c: Mapping[str, Tensor]) -> Tensor:
        named = {argument: c[name] for argument, name in names.items()}
        out: Tensor = network(hidden_states=x, timestep=_times(sigma, x, scale), **named, return_dict=False)[0]
        return out[:, : x.shape[1]]

    return call


def _flux(network: Any, sigma: Tensor, x: Tensor, c: Mapping[str, Tensor]) -> Tensor:
    ids = torch.zeros(2, 2, 3)
    ids[..., 1] += torch.arange(2)[:, None]
    ids[..., 2] += torch.arange(2)[None]
    out: Tensor = network(
        hidden_states=x,
        timestep=_times(sigma, x, 1.0),
        guidance=torch.full((len(x),), 3.5),
        pooled_projections=c["pooled"],
        encoder_hidden_states=c["prompt"],
        txt_ids=torch.zeros(TOKENS, 3),
        img_ids=ids.reshape(4, 3),
        return_dict=False,
    )[0]
    return out


def _qwen(network: Any, sigma: Tensor, x: Tensor, c: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = network(
        hidden_states=x,
        timestep=_times(sigma, x, 1.0),
        encoder_hidden_states=c["prompt"],
        encoder_hidden_states_mask=c["mask"].bool(),
        img_shapes=[[(1, 2, 2)]] * len(x),
        return_dict=False,
    )[0]
    return out


def _lumina2(network: Any, sigma: Tensor, x: Tensor, c: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = network(
        hidden_states=x,
        timestep=_times(1 - sigma, x, 1.0),
        encoder_hidden_states=c["prompt"],
        encoder_attention_mask=c["mask"].long(),
        return_dict=False,
    )[0]
    return -out


def _hunyuan(network: Any, sigma: Tensor, x: Tensor, c: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = network(
        hidden_states=x,
        timestep=_times(sigma, x, 1000.0),
        encoder_hidden_states=c["prompt"],
        encoder_attention_mask=c["mask"].long(),
        pooled_projections=c["pooled"],
        guidance=torch.full((len(x),), 6.0) * 1000.0,
        return_dict=False,
    )[0]
    return out


def _unet(network: Any, sigma: Tensor, x: Tensor, c: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = network(x, 1000 * sigma, encoder_hidden_states=c["prompt"], return_dict=False)[0]
    return out


def _lampe(network: Any, sigma: Tensor, x: Tensor, c: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = network(x, c["observation"], sigma)
    return out


def _sit(network: Any, sigma: Tensor, x: Tensor, c: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = network(x, _times(1 - sigma, x, 1.0), c["label"])
    return -out


def _forward_unet(network: Any, sigma: Tensor, x: Tensor, c: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = network(x, _times(1 - sigma, x, 1.0), extra={})
    return -out


def _torchcfm(network: Any, sigma: Tensor, x: Tensor, c: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = network(_times(1 - sigma, x, 1.0), x)
    return -out


class LabelledNet(torch.nn.Module):
    """Called as SiT's networks are: forward(x, t, y)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = torch.nn.Embedding(4, 4), torch.nn.Linear(6, 4)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The velocity in forward time."""
        given = torch.cat([t[:, None], t[:, None].cos(), self.table(y)], 1)
        return x.tanh() + self.mix(given)[:, :, None, None]


class ExtraNet(torch.nn.Module):
    """Called as the U-Net of the examples of flow_matching is: forward(x, timesteps, extra), a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.time = torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.Linear(1, 4)

    def forward(self, x: Tensor, timesteps: Tensor, extra: dict[str, Any]) -> Tensor:
        """The velocity in forward time."""
        if extra:
            raise ValueError(f"wanted nothing, got {extra}")
        return self.convolution(x) + self.time(timesteps[:, None])[:, :, None, None]


PROMPT, PICTURE, VIDEO, PACKED = (TOKENS, WIDTH), (4, 4, 4), (4, 2, 4, 4), (4, 4)
IDS = [[0.0, float(row), float(column)] for row in range(2) for column in range(2)]
HEADS = {"attention_head_dim": 4, "num_attention_heads": 2}

MODELS: dict[str, Model] = {
    "sd3": Model(
        "Stable Diffusion 3, 3.5",
        "diffusers:SD3Transformer2DModel",
        {
            **HEADS,
            "sample_size": 4,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "joint_attention_dim": WIDTH,
            "caption_projection_dim": 8,
            "pooled_projection_dim": POOLED,
            "pos_embed_max_size": 4,
        },
        {"preset": "sd3"},
        PICTURE,
        {"prompt": PROMPT, "pooled": (POOLED,)},
        _text(1000.0, encoder_hidden_states="prompt", pooled_projections="pooled"),
        limits="skipped layers at guidance",
    ),
    "flux": Model(
        "FLUX.1",
        "diffusers:FluxTransformer2DModel",
        {
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "joint_attention_dim": WIDTH,
            "pooled_projection_dim": POOLED,
            "guidance_embeds": True,
            "axes_dims_rope": (2, 2, 4),
        },
        {
            "preset": "flux",
            "constants": {
                "img_ids": {"tensor": IDS},
                "txt_ids": {"tensor": 0.0, "shape": [TOKENS, 3]},
                "guidance": {"tensor": 3.5, "per_sample": True},
            },
        },
        PACKED,
        {"prompt": PROMPT, "pooled": (POOLED,)},
        _flux,
        linear=True,
        limits="pictures of several sizes in one run: img_ids are constants",
    ),
    "qwen-image": Model(
        "Qwen-Image",
        "diffusers:QwenImageTransformer2DModel",
        {
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "in_channels": 4,
            "out_channels": 1,
            "num_layers": 1,
            "joint_attention_dim": WIDTH,
            "axes_dims_rope": (2, 2, 4),
        },
        {"preset": "qwen-image", "constants": {"img_shapes": [[[1, 2, 2]]]}},
        PACKED,
        {"prompt": PROMPT, "mask": (TOKENS,)},
        _qwen,
        linear=True,
        limits="pictures of several sizes in one run; the pipeline's rescaling of guided velocities",
    ),
    "wan": Model(
        "Wan 2.1, 2.2",
        "diffusers:WanTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": WIDTH,
            "freq_dim": 8,
            "ffn_dim": 8,
            "num_layers": 1,
            "rope_max_seq_len": 8,
        },
        {"preset": "wan"},
        VIDEO,
        {"prompt": PROMPT},
        _text(1000.0, encoder_hidden_states="prompt"),
        limits="two networks by noise level (2.2 A14B): fine-tune each by itself; UniPC",
    ),
    "sana": Model(
        "Sana",
        "diffusers:SanaTransformer2DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 4,
            "cross_attention_dim": 8,
            "caption_channels": WIDTH,
            "sample_size": 4,
        },
        {"preset": "sana"},
        PICTURE,
        {"prompt": PROMPT, "mask": (TOKENS,)},
        _text(1000.0, encoder_hidden_states="prompt", encoder_attention_mask="mask"),
        limits="Sana-Sprint, a consistency model; where timestep_scale isn't 1, set time_scale to 1,000 times that",
    ),
    "lumina2": Model(
        "Lumina-Image 2",
        "diffusers:Lumina2Transformer2DModel",
        {
            "sample_size": 4,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "num_attention_heads": 1,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "axes_dim_rope": (8, 8, 8),
            "axes_lens": (16, 16, 16),
            "cap_feat_dim": WIDTH,
        },
        {"preset": "lumina2"},
        PICTURE,
        {"prompt": PROMPT, "mask": (TOKENS,)},
        _lumina2,
        linear=True,
        limits="the pipeline's normalization of guided velocities",
    ),
    "aura-flow": Model(
        "AuraFlow",
        "diffusers:AuraFlowTransformer2DModel",
        {
            **HEADS,
            "sample_size": 4,
            "in_channels": 4,
            "out_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "joint_attention_dim": WIDTH,
            "caption_projection_dim": 8,
            "pos_embed_max_size": 16,
        },
        {"preset": "aura-flow"},
        PICTURE,
        {"prompt": PROMPT},
        _text(1.0, encoder_hidden_states="prompt"),
    ),
    "hunyuan-video": Model(
        "HunyuanVideo",
        "diffusers:HunyuanVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "guidance_embeds": True,
            "text_embed_dim": WIDTH,
            "pooled_projection_dim": POOLED,
            "rope_axes_dim": (2, 2, 4),
        },
        {"preset": "hunyuan-video", "constants": {"guidance": {"tensor": 6000.0, "per_sample": True}}},
        VIDEO,
        {"prompt": PROMPT, "mask": (TOKENS,), "pooled": (POOLED,)},
        _hunyuan,
    ),
    "dit": Model(
        "DiT, trained by flow matching",
        "diffusers:DiTTransformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 1,
            "sample_size": 4,
            "num_embeds_ada_norm": 3,
        },
        {"preset": "dit"},
        PICTURE,
        {"label": ()},
        _text(1000.0, class_labels="label"),
        limits="the published weights: they predict the noise of a diffusion, on another path",
    ),
    "unet-condition": Model(
        "UNet2DConditionModel, trained by flow matching",
        "diffusers:UNet2DConditionModel",
        {
            "sample_size": 4,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "block_out_channels": (4, 8),
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "cross_attention_dim": WIDTH,
            "attention_head_dim": 2,
        },
        {"preset": "unet-condition"},
        PICTURE,
        {"prompt": PROMPT},
        _unet,
        limits="Stable Diffusion 1 and 2, which predict noise on another path; added_cond_kwargs (SDXL)",
    ),
    "sit": Model(
        "SiT",
        "support.models:LabelledNet",
        {},
        {"preset": "sit"},
        PICTURE,
        {"label": ()},
        _sit,
        adapted=["mix"],
    ),
    "flow-matching-unet": Model(
        "the U-Net of flow_matching's examples",
        "support.models:ExtraNet",
        {},
        {"preset": "flow-matching-unet"},
        PICTURE,
        {},
        _forward_unet,
        adapted=["convolution"],
        limits="labels, which it takes inside `extra`: wrap it",
    ),
    "torchcfm": Model(
        "torchcfm's U-Net",
        "torchcfm.models.unet.unet:UNetModelWrapper",
        {
            "dim": [4, 4, 4],
            "num_channels": 32,
            "num_res_blocks": 1,
            "channel_mult": [1],
            "attention_resolutions": "1",
            "use_scale_shift_norm": True,
        },
        {"preset": "torchcfm"},
        PICTURE,
        {},
        _torchcfm,
        adapted=["qkv"],
    ),
    "lampe": Model(
        "lampe's FMPE",
        "lampe.inference:FMPE",
        {"theta_dim": 3, "x_dim": 2, "hidden_features": [8]},
        {"preset": "lampe"},
        (3,),
        {"observation": (2,)},
        _lampe,
        adapted=[],
        limits="LoRA: its layers aren't torch's `Linear`",
    ),
}


def table() -> str:
    """The table of the documentation, one line for each model."""
    from gftkit.networks import Convention

    head = ("network", "convention", "its time", "conditions in the data", "LoRA, and its exports", "not possible")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for model in MODELS.values():
        convention = Convention.of(model.convention)
        constants = convention.constants or {}
        written = f"`{model.convention['preset']}`"
        if "constants" in model.convention:
            written = f"{written}, constants {', '.join(f'`{name}`' for name in constants)}"
        time = "t" if convention.time == "forward" else "1 - t"
        if convention.time_scale != 1:
            time = f"{convention.time_scale:,.0f} ({time})"
        shown = ", ".join(f"`{name}`" for name in convention.conditions) or "none"
        exports = f"merged, peft{', diffusers' if model.pipelines else ''}" if model.adapted else "no"
        cells = (model.title, written, time, shown, exports, model.limits or "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
