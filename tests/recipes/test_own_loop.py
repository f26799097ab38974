"""Three loops of one's own, before and after: few lines differ, and they train, continue and cool as they should."""

import contextlib
import difflib
import importlib.util
import warnings

import numpy as np
import pytest
import torch
from support.paths import ROOT

from gftkit.kernel.errors import ConfigError

LOOPS = ROOT / "recipes/own_loop"
CHANGED = 6
"""Lines that GFT may change in a loop, at most."""
STEPS = 4


def changed_lines(plain, gft):
    """Lines of the second text that the first one lacks; empty ones don't count."""
    lines = difflib.ndiff(plain.splitlines(), gft.splitlines())
    return [line for line in lines if line.startswith("+ ") and line[2:].strip()]


@pytest.mark.parametrize("name", sorted(path.name for path in LOOPS.iterdir() if path.is_dir()))
def test_few_lines_differ(name):
    plain, gft = ((LOOPS / name / f"{version}.py").read_text() for version in ("plain", "gft"))
    assert 0 < len(changed_lines(plain, gft)) <= CHANGED
    assert len(changed_lines(plain, gft + "\n".join(f"more_{i}" for i in range(CHANGED)))) > CHANGED


def script(name, version):
    spec = importlib.util.spec_from_file_location(f"{name}_{version}", LOOPS / name / f"{version}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torchcfm(folder):
    pytest.importorskip("torchcfm", reason="torchcfm isn't installed: pip install --no-deps torchcfm")
    from torchcfm.models.unet.unet import UNetModelWrapper

    network = UNetModelWrapper(
        (1, 8, 8), num_channels=32, num_res_blocks=1, channel_mult=[1, 1], num_head_channels=16,
        attention_resolutions="4", dropout=0.1,
    )  # fmt: skip
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    torch.save({"ema_model": network.state_dict()}, folder / "pretrained.pt")
    np.savez(folder / "data.npz", x1=np.random.default_rng(0).uniform(-1, 1, (12, 1, 8, 8)).astype("float32"))
    files = ["--images", folder / "data.npz", "--pretrained", folder / "pretrained.pt"]
    sizes = ["--channels", 32, "--blocks", 1, "--multipliers", 1, 1, "--attention", 4, "--warmup", 1]
    return [*files, *sizes, "--save-every", 2]


def sd3(folder):
    pytest.importorskip("diffusers", reason="diffusers isn't installed: pip install 'gftkit[diffusers]'")
    from diffusers import SD3Transformer2DModel

    size = {"sample_size": 4, "in_channels": 4, "out_channels": 4, "num_layers": 1, "pos_embed_max_size": 4}
    heads = {"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
    SD3Transformer2DModel(**size, **heads, joint_attention_dim=12, pooled_projection_dim=10).save_pretrained(
        folder / "sd3"
    )
    numbers = np.random.default_rng(0)
    shapes = {"latents": (10, 4, 4, 4), "prompt_embeds": (10, 3, 12), "pooled_prompt_embeds": (10, 10)}
    cached = {name: numbers.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    np.savez(folder / "data.npz", **cached)
    return ["--model", folder / "sd3", "--data", folder / "data.npz", "--rank", 2, "--cpu", "--save-every", 2]


def module(folder):
    pytest.importorskip("lightning", reason="lightning isn't installed: pip install 'gftkit[lightning]'")
    torch.save(script("lightning_module", "plain").Velocity(2, 8).state_dict(), folder / "pretrained.pt")
    np.savez(folder / "data.npz", x1=np.random.default_rng(0).normal(size=(32, 2)).astype("float32"))
    return ["--data", folder / "data.npz", "--pretrained", folder / "pretrained.pt", "--width", 8, "--save-every", 2]


KINDS = {"torchcfm_cifar": torchcfm, "diffusers_sd3_lora": sd3, "lightning_module": module}
INTERRUPTED_IN = {"torchcfm_cifar": "update_average", "diffusers_sd3_lora": "Accelerator.clip_grad_norm_"}
"""What a loop calls once a step; Lightning keeps every checkpoint, and needs no interruption."""
RESUMED = {"lightning_module": lambda out: ["--resume", out / "step=2.ckpt"]}


def train(name, version, arguments, out, schedule="exponential", interrupt=None, resume=False, steps=STEPS):
    """The losses of a loop, in a process whose random numbers and warnings stay as they are."""
    loop = script(name, version)
    interrupt = interrupt if name in INTERRUPTED_IN else None
    if interrupt is not None:
        holder, _, function = INTERRUPTED_IN[name].rpartition(".")
        place, calls = getattr(loop, holder) if holder else loop, []
        before = getattr(place, function)

        def interrupted(*args):
            calls.append(0)
            if len(calls) > interrupt:
                raise KeyboardInterrupt
            return before(*args)

        setattr(place, function, interrupted)
    rest = RESUMED.get(name, lambda _: ["--resume"])(out) if resume else []
    words = [*arguments, "--out", out, "--steps", steps, "--batch-size", 4, "--lr", 0.01, "--schedule", schedule, *rest]
    state, numpy_state = torch.get_rng_state(), np.random.get_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries' own
            return loop.main([str(word) for word in words])
    finally:
        torch.set_rng_state(state)
        np.random.set_state(numpy_state)
        if interrupt is not None:
            setattr(place, function, before)


@pytest.fixture(params=KINDS)
def loop(request, tmp_path, monkeypatch):
    """The name of a loop and its arguments."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        arguments = KINDS[request.param](tmp_path)
    return request.param, arguments


def test_a_loop_with_gft_is_the_plain_one_at_temperature_zero_and_another_above(loop, tmp_path):
    name, arguments = loop
    plain = train(name, "plain", arguments, tmp_path / "plain")
    cold = train(name, "gft", arguments, tmp_path / "cold", "zero")
    warm = train(name, "gft", arguments, tmp_path / "warm")
    assert len(plain) == STEPS
    assert cold == pytest.approx(plain, rel=1e-5)
    assert warm != pytest.approx(plain, rel=1e-2)
    assert warm[0] < plain[0]  # at the start the anchor's part of the target is met exactly


def test_a_loop_is_continued_and_refuses_another_anchor(loop, tmp_path):
    name, arguments = loop
    whole = train(name, "gft", arguments, tmp_path / "whole")
    with contextlib.suppress(KeyboardInterrupt):
        train(name, "gft", arguments, tmp_path / "cut", interrupt=3)
    rest = train(name, "gft", arguments, tmp_path / "cut", resume=True)
    assert 1 <= len(rest) < STEPS
    assert len(whole) == STEPS
    with pytest.raises(ConfigError, match="started with steps"):
        train(name, "gft", arguments, tmp_path / "cut", resume=True, steps=STEPS + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        KINDS[name](tmp_path)  # another pretrained network in its place
    with pytest.raises(ConfigError, match="Call anchor_of with the pretrained network"):
        train(name, "gft", arguments, tmp_path / "cut", resume=True)
