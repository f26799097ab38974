"""Latents are scaled as the pipelines of diffusers do it, by autoencoders' own configurations."""

import json

import numpy as np
import pytest
import torch

import gftkit
from gftkit.kernel.errors import ConfigError, DataError

REASON = "diffusers isn't installed: pip install 'gftkit[diffusers]'"
MEAN, STD = [0.5, -1.0, 2.0, 0.0], [2.0, 0.5, 1.0, 4.0]


@pytest.fixture
def make(tmp_path):
    """The latents of a configuration, and the unscaled ones."""
    raw = np.random.default_rng(0).normal(size=(6, 4, 2, 3)).astype("float32")
    label = np.arange(6) % 2
    prompt = np.ones((6, 5), dtype="float32")

    def build(config, raw=raw, **options):
        np.savez(tmp_path / "raw.npz", x1=raw, label=label, prompt=prompt)
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        data = {"name": "arrays", "file": str(tmp_path / "raw.npz"), "conditions": ["prompt"], **options}
        return gftkit.load().create("dataset", "latents", data=data, vae=tmp_path), torch.from_numpy(raw)

    return build


@pytest.mark.parametrize(
    ("config", "scale", "shift"),
    [
        ({"scaling_factor": 1.5305, "shift_factor": 0.0609}, 1.5305, 0.0609),
        ({"scaling_factor": 0.41407}, 0.41407, 0.0),
        ({"scaling_factor": 0.3611, "shift_factor": None, "latents_mean": None}, 0.3611, 0.0),
        ({"latents_mean": MEAN, "latents_std": STD}, 1 / torch.tensor(STD), torch.tensor(MEAN)),
        ({"latents_mean": MEAN, "latents_std": STD, "scaling_factor": 2.0}, 2 / torch.tensor(STD), torch.tensor(MEAN)),
    ],
)
def test_values_and_their_inverse(make, config, scale, shift):
    latents, raw = make(config)
    scale, shift = (torch.as_tensor(values).reshape(-1, 1, 1) for values in (scale, shift))
    batch = latents.batch(torch.arange(6))
    torch.testing.assert_close(batch.x1, (raw - shift) * scale)
    torch.testing.assert_close(batch.x1 / scale + shift, raw)
    assert batch.label.tolist() == [0, 1] * 3
    assert batch.conditions["prompt"].shape == (6, 5)
    assert (latents.range, latents.classes, len(latents)) == (None, 2, 6)


def test_the_configurations_that_diffusers_writes(make, tmp_path):
    """Of the autoencoders of SD3 and FLUX, Sana, Wan and Qwen-Image, with the defaults of their classes."""
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [False]}
    wan = diffusers.AutoencoderKLWan(**sizes, latents_mean=MEAN, latents_std=STD)
    kl = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, scaling_factor=1.5, shift_factor=0.25)
    for vae, scale, shift in ((wan, 1 / torch.tensor(STD), torch.tensor(MEAN)), (kl, 1.5, 0.25)):
        latents, raw = make(vae.to_json_string())
        scale, shift = (torch.as_tensor(values).reshape(-1, 1, 1) for values in (scale, shift))
        torch.testing.assert_close(latents.batch(torch.arange(6)).x1, (raw - shift) * scale)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({}, ConfigError, "has neither scaling_factor nor latents_mean"),
        ({"latents_mean": MEAN[:3], "latents_std": STD[:3]}, DataError, "has 3 channels"),
        ({"latents_mean": MEAN, "latents_std": [1.0, 0.0, 1.0, 1.0]}, ConfigError, "wanted scales above 0"),
        ({"scaling_factor": "1.5"}, ConfigError, "wanted numbers, got '1.5'"),
        ("[]", ConfigError, "got a list"),
    ],
)
def test_configurations_that_do_not_say_it_are_refused(make, config, error, message):
    with pytest.raises(error, match=message):
        make(config)


def test_what_is_no_latent_is_refused(make, tmp_path):
    make({"scaling_factor": 2.0})
    registry = gftkit.load()
    with pytest.raises(DataError, match="got data with the range"):
        registry.create("dataset", "latents", data={"name": "digits", "count": 4}, vae=tmp_path)
    data = {"name": "arrays", "file": str(tmp_path / "raw.npz")}
    with pytest.raises(ConfigError, match=r"is missing. Give the folder of an autoencoder"):
        registry.create("dataset", "latents", data=data, vae=tmp_path / "nowhere")


def test_a_run_samples_in_the_networks_values(make, tmp_path):
    """Latents around 100 with deviation 10, scaled to size 1: samples are near the scaled ones."""
    raw = (100 + 10 * np.random.default_rng(0).normal(size=(64, 1, 2, 2))).astype("float32")
    np.savez(tmp_path / "z.npz", x1=raw)
    (tmp_path / "config.json").write_text(json.dumps({"scaling_factor": 0.1, "shift_factor": 100.0}))
    data = {"name": "latents", "data": {"name": "arrays", "file": "z.npz"}, "vae": "config.json", "count": 60}
    config = {"drift": {"name": "mlp", "width": 8, "depth": 1}, "data": data, "train": {"steps": 2}}
    (tmp_path / "run.json").write_text(json.dumps(config))
    run = gftkit.pretrain(tmp_path / "run.json", tmp_path / "run")
    assert run.samples(8)[0].abs().max() < 20
    assert abs(float(run.training_data(60).x1.mean())) < 0.5
