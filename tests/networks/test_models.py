"""Networks of other libraries: fine-tuned, read back, resumed, and sampled as their own library samples them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import read_by_peft
from support.models import MODELS, POOLED, TOKENS, WIDTH, Model, table
from support.paths import ROOT
from support.runs_on_moons import interrupt

import gftkit
from gftkit.experiment.build import build
from gftkit.generation.export import export
from gftkit.inspection import doctor
from gftkit.kernel.errors import ConfigError, WeightsError
from gftkit.networks import DIFFUSERS_TIMES, Convention, ForeignDrift, with_guidance
from gftkit.runs.resolve import resolve_config
from gftkit.sampling import generate

REGISTRY = gftkit.load()
STEPS = 4
NEAR = 1e-5
"""Float32 round-off of a few evaluations, as a share of the samples' size."""


@pytest.fixture(params=MODELS)
def model(request) -> Model:
    model = MODELS[request.param]
    pytest.importorskip(model.library)
    return model


def scheduler_of(model, folder, **changes):
    """A flow matching scheduler of diffusers, saved in a folder."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(**{"shift": model.shift, **changes})
    scheduler.save_pretrained(folder)
    return scheduler


def by_the_library(model, network, scheduler, x, conditions, **timesteps):
    """A pipeline's loop."""
    options = {"sigmas": np.linspace(1, 1 / STEPS, STEPS)} if model.linear else {"num_inference_steps": STEPS}
    scheduler.set_timesteps(**options, **timesteps)
    for t in scheduler.timesteps:
        velocity = model.call(network, t / 1000, x, conditions)
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    return x


def by_gftkit(drift, grid, x, conditions):
    path, euler = REGISTRY.create("path", "linear"), REGISTRY.create("solver", "euler")
    return generate(drift, path, euler, STEPS, x, torch.Generator(), conditions=conditions, spacing=grid)


def config_of(model, folder, **changes):
    """A fine-tune of two steps, from weights in a file."""
    arrays = model.arrays(12)
    np.savez(folder / "data.npz", **{name: value.numpy() for name, value in arrays.items()})
    torch.save(model.build().state_dict(), folder / "weights.pt")
    named = [name for name in model.conditions if name != "label"]
    return {
        "drift": {
            "name": "module",
            "target": model.target,
            "options": model.options,
            "weights": str(folder / "weights.pt"),
            "convention": model.convention,
            **({"label_dropout": False} if model.title.startswith("DiT") else {}),
        },
        "data": {"name": "arrays", "file": str(folder / "data.npz"), "conditions": named},
        "coupling": "independent",
        "schedule": "exponential",
        "train": {"steps": 2, "batch_size": 4, "checkpoint_every": 2},
        "evaluate": {"metrics": [], "count": 4, "solver": {"name": "euler", "steps": 2}},
        **changes,
    }


def share(one, other):
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("adapters", [None, "lora"])
def test_it_is_fine_tuned_and_sampled_as_by_its_own_library(model, adapters, tmp_path):
    pytest.importorskip("diffusers")
    if adapters and not model.adapted:
        with pytest.raises(ConfigError, match="no layer is left to adapt"):
            gftkit.finetune(config_of(model, tmp_path, adapters={"name": "lora", "rank": 2}), tmp_path / "run")
        return
    lora = {"adapters": {"name": "lora", "rank": 2, "targets": model.adapted}}
    run = gftkit.finetune(config_of(model, tmp_path, **(lora if adapters else {})), tmp_path / "run")
    network = model.build(seed=1)
    weights = {name.removeprefix("network."): value for name, value in run.weights()[0].items()}
    first = model.build().state_dict()
    network.load_state_dict(weights)
    assert any(not torch.equal(value, first[name]) for name, value in weights.items())
    arrays = model.arrays(3, seed=2)
    x, conditions = arrays.pop("x1"), arrays
    scheduler = scheduler_of(model, tmp_path / "scheduler")
    sigmas = "linear" if model.linear else "scheduler"
    grid = REGISTRY.create("grid", "diffusers-scheduler", config=tmp_path / "scheduler", sigmas=sigmas)
    with torch.no_grad():
        wanted = by_the_library(model, network, scheduler, x, conditions)
    assert share(by_gftkit(run.drift(), grid, x, conditions), wanted) < NEAR
    equal = REGISTRY.create("grid", "uniform")
    assert share(by_gftkit(run.drift(), equal, x, conditions), wanted) > 100 * NEAR  # another grid is another result
    # and so is a wrong sign, direction or scale of time
    right = Convention.of(model.convention)
    turned = "forward" if right.time == "reversed" else "reversed"
    for wrong in ({"sign": -right.sign}, {"time": turned}, {"time_scale": 0.3 * right.time_scale}):
        drift = ForeignDrift(network, Convention.of({**right.to_dict(), **wrong}), REGISTRY.create("path", "linear"))
        assert share(by_gftkit(drift, grid, x, conditions), wanted) > 100 * NEAR, wrong


def test_it_is_exported_to_be_read_by_its_own_library(model, tmp_path):
    """Merged, by peft, and by diffusers' own loader of LoRA where the class has one: the run's outputs to 1e-5."""
    if not model.adapted:
        return
    adapters = {"name": "lora", "rank": 2, "alpha": 6.0, "targets": model.adapted}
    config = config_of(model, tmp_path, adapters=adapters)
    config["train"] |= {"learning_rate": 0.1, "ema": 0.0}
    run = gftkit.finetune(config, tmp_path / "run")
    network, arrays = run.drift().network, model.arrays(3, seed=2)
    x, sigma = arrays.pop("x1"), torch.tensor(0.4)

    def near(other):
        with torch.no_grad():
            ours, theirs, plain = (model.call(each, sigma, x, arrays) for each in (network, other, model.build()))
        assert share(plain, ours) > 10 * NEAR  # the adapters do something
        return share(theirs, ours) < NEAR

    files = export(run, tmp_path / "merged", "merged")
    weights = next(file for file in files if file.suffix == ".safetensors")
    merged = model.build(seed=1)
    merged.load_state_dict(load_file(weights))
    assert near(merged)
    if len(files) == 2:
        assert near(type(merged).from_pretrained(tmp_path / "merged").eval())
    export(run, tmp_path / "peft", "peft")
    assert near(read_by_peft(model.build(), tmp_path / "peft"))
    if not model.pipelines:
        with pytest.raises(ConfigError, match="--format diffusers: wanted LoRA of a network into which pipelines"):
            export(run, tmp_path / "lora", "diffusers")
        return
    (file,) = export(run, tmp_path / "lora", "diffusers")
    if model.title.startswith("Wan"):  # its file has Wan's own names, which its pipelines read: tests/generation
        assert all(name.startswith("diffusion_model.blocks.") for name in load_file(file))
        return
    loaded, forgotten = model.build(), model.build()
    loaded.load_lora_adapter(load_file(file), prefix=model.pipelines)
    assert near(loaded)
    assert not near(forgotten)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # a slower norm of torch, in Wan
def test_adapters_are_trained_on_a_base_in_half_precision(model, tmp_path):
    """What is read back in float32 agrees with it, and modules that a class keeps in float32 stay so."""
    if not model.adapted:
        return
    adapters = {"name": "lora", "rank": 2, "targets": model.adapted, "base_type": "bfloat16", "write_base": True}
    config = config_of(model, tmp_path, adapters=adapters)
    drift = build(resolve_config(config, "finetune", REGISTRY), REGISTRY).networks.drift
    kept = set(getattr(drift.network, "_keep_in_fp32_modules", None) or ())
    for name, weight in drift.network.named_parameters():
        single = weight.requires_grad or weight.ndim < 2 or kept & set(name.split("."))
        assert weight.dtype == (torch.float32 if single else torch.bfloat16), name
    run = gftkit.finetune(config, tmp_path / "run")  # it compares what is read back
    assert {value.dtype for value in run.weights()[0].values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.slow
def test_its_convention_is_measured(model, tmp_path):
    """Not with what result: its weights are random. Time, its scale and the prediction are compared."""
    config = config_of(model, tmp_path)
    inspection, _ = doctor.diagnose(config, REGISTRY, count=64)
    tried = [finding.hypothesis.convention for finding in inspection.findings]
    assert len(tried) > 1
    assert {convention.conditions for convention in tried} >= {Convention.of(model.convention).conditions}


@pytest.mark.slow
def test_it_is_resumed_bit_for_bit(model, tmp_path):
    config = config_of(model, tmp_path)
    config["train"] |= {"steps": 4, "checkpoint_every": 2}
    whole = gftkit.finetune(config, tmp_path / "whole").weights()[0]
    broken = gftkit.finetune(config, tmp_path / "broken").folder
    interrupt(broken, 2)
    resumed = gftkit.finetune(config, broken, resume=True).weights()[0]
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    assert any(not torch.equal(value, model.build().state_dict()[name[8:]]) for name, value in resumed.items())


# --- constants, nulls and types ---------------------------------------------------------------------------------------


def test_the_null_of_a_prompt_is_a_file_that_the_run_keeps(tmp_path):
    pytest.importorskip("diffusers")
    model = MODELS["sd3"]
    empty = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(5))
    save_file({"prompt": empty, "pooled": torch.zeros(POOLED)}, tmp_path / "empty.safetensors")
    null = {
        name: {"file": str(tmp_path / "empty.safetensors"), "key": name, "dtype": "float32"}
        for name in model.conditions
    }
    config = config_of(model, tmp_path)
    config["drift"]["convention"] = {**model.convention, "null": null}
    config["train"]["condition_dropout"] = 0.5
    gftkit.finetune(config, tmp_path / "run")
    (tmp_path / "empty.safetensors").unlink()  # it is in the run's config.yaml
    arrays = model.arrays(3, seed=2)
    x, conditions = arrays.pop("x1"), arrays
    t = torch.full((3,), 0.4)
    drift = gftkit.Run.open(tmp_path / "run").drift()
    nulls = {"prompt": empty.expand(3, -1, -1), "pooled": torch.zeros(3, POOLED)}
    with torch.no_grad():
        with_null, plain = drift(t, x, **nulls), drift(t, x, **conditions)
        guided = with_guidance(drift, 3.0)(t, x, **conditions)
    assert share(guided, with_null + 3 * (plain - with_null)) < NEAR
    assert share(guided, plain) > 100 * NEAR
    save_file({"prompt": empty[:2], "pooled": torch.zeros(POOLED)}, tmp_path / "empty.safetensors")
    with pytest.raises(ConfigError, match=r"null\.prompt: wanted a number, or a tensor of the condition's shape"):
        gftkit.finetune(config, tmp_path / "other")


def test_constants_are_tensors_and_those_per_sample_are_repeated():
    seen = []

    class Network(torch.nn.Module):
        def forward(self, x, t, mask, ids, scale, flag):
            seen.append((mask, ids, scale, flag))
            return x

    constants = {
        "ids": {"tensor": [[1, 2]], "dtype": "int64"},
        "scale": {"tensor": 3.5, "per_sample": True},
        "flag": True,
    }
    convention = {"call": "x, t, mask=mask", "types": {"mask": "bool"}, "constants": constants}
    drift = ForeignDrift(Network(), Convention.of(convention))
    t, x, mask = torch.rand(5), torch.randn(5, 2), torch.tensor([1.0, 0, 1, 1, 0])
    for rows in (5, 2):
        drift(t[:rows], x[:rows], mask=mask[:rows])
        given, ids, scale, flag = seen.pop()
        assert torch.equal(given, mask[:rows].bool())
        assert given.dtype == torch.bool
        assert torch.equal(ids, torch.tensor([[1, 2]]))
        assert torch.equal(scale, torch.full((rows,), 3.5))
        assert flag is True
    with pytest.raises(ConfigError, match=r"types: the condition 'mask' has values that aren't of type bool"):
        drift(t, x, mask=mask / 2)
    with pytest.raises(ConfigError, match=r"constants: the call has the argument 'mask' already"):
        Convention.of({**convention, "constants": {"mask": 1}})


def test_the_preset_of_diffusers_is_refused_where_the_pipeline_gives_another_time():
    pytest.importorskip("diffusers")
    for name, (preset, *_) in DIFFUSERS_TIMES.items():
        spec = {"name": "module", "target": f"diffusers:{name}", "convention": "diffusers"}
        if DIFFUSERS_TIMES[name][1:] == ("reversed", 1000.0):
            REGISTRY.resolve("drift", spec)
            continue
        with pytest.raises(ConfigError, match=r"the preset 'diffusers' gives the network 1000 \(1 - t\)"):
            REGISTRY.resolve("drift", spec)
        if preset:
            REGISTRY.resolve("drift", {**spec, "convention": preset})
            own = Convention.of(preset)
            assert (own.time, own.time_scale) == DIFFUSERS_TIMES[name][1:]


# --- folders of diffusers ---------------------------------------------------------------------------------------------


def pipeline(folder, *parts, variant=None):
    """A folder of a pipeline with a tiny SD3 transformer in each part."""
    network = MODELS["sd3"].build()
    for part in parts:
        network.save_pretrained(folder / part, variant=variant)
    classes = {part: ["diffusers", "SD3Transformer2DModel"] for part in parts}
    index = {"_class_name": "StableDiffusion3Pipeline", "vae": ["diffusers", "AutoencoderKL"], **classes, "other": None}
    (folder / "model_index.json").write_text(json.dumps(index))
    return network, {"name": "module", "target": MODELS["sd3"].target, "convention": "sd3", "weights": str(folder)}


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_pipeline_gives_its_network(tmp_path, variant):
    pytest.importorskip("diffusers")
    network, spec = pipeline(tmp_path, "transformer", variant=variant)
    resolved = REGISTRY.resolve("drift", {**spec, "variant": variant})
    assert resolved["weights"] == tmp_path / "transformer"
    assert resolved["options"]["num_layers"] == 2
    weights = REGISTRY.build("drift", resolved).network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    wrong = REGISTRY.resolve("drift", {**spec, "variant": "fp16" if variant is None else None})
    with pytest.raises(WeightsError, match="diffusers can't load it"):
        REGISTRY.build("drift", wrong)


def test_a_pipeline_with_two_networks_or_none_of_the_class_is_refused(tmp_path):
    pytest.importorskip("diffusers")
    _, spec = pipeline(tmp_path, "transformer", "transformer_2")
    with pytest.raises(WeightsError, match=r"transformer/ and transformer_2/ are of the class SD3.*Give the folder"):
        REGISTRY.resolve("drift", spec)
    with pytest.raises(WeightsError, match="none is of the class UNet2DModel"):
        REGISTRY.resolve("drift", {**spec, "target": "diffusers:UNet2DModel"})
    torch.save({}, tmp_path / "weights.pt")
    file = {"weights": str(tmp_path / "weights.pt"), "variant": "fp16", "options": MODELS["sd3"].options}
    with pytest.raises(ConfigError, match=r"drift\.variant: wanted a folder of diffusers"):
        REGISTRY.build("drift", REGISTRY.resolve("drift", {**spec, **file}))


# --- the grid of a scheduler ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"use_karras_sigmas": True}, {"shift_terminal": 0.1}])
def test_the_grid_of_a_scheduler_has_its_sigmas(tmp_path, settings):
    pytest.importorskip("diffusers")
    scheduler = scheduler_of(MODELS["sd3"], tmp_path, **settings)
    for steps in (3, 8):
        scheduler.set_timesteps(steps)
        times = REGISTRY.create("grid", "diffusers-scheduler", config=tmp_path).times(steps)
        assert times == pytest.approx([1 - float(sigma) for sigma in scheduler.sigmas], abs=1e-6)
        assert (times[0], times[-1]) == (0, 1)


def test_a_dynamic_shift_is_by_the_number_of_tokens(tmp_path):
    pytest.importorskip("diffusers")
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = scheduler_of(MODELS["flux"], tmp_path, use_dynamic_shifting=True, base_shift=0.3, max_shift=1.2)
    mu = calculate_shift(1024, 256, 4096, 0.3, 1.2)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 5, 5), mu=mu)
    wanted = [1 - float(sigma) for sigma in scheduler.sigmas]
    options = {"config": tmp_path, "sigmas": "linear"}
    for given in ({"tokens": 1024}, {"mu": mu}):
        times = REGISTRY.create("grid", "diffusers-scheduler", **options, **given).times(5)
        assert times == pytest.approx(wanted, abs=1e-6)
    other = REGISTRY.create("grid", "diffusers-scheduler", **options, tokens=256).times(5)
    assert other != pytest.approx(wanted, abs=1e-3)
    for given in ({}, {"tokens": 1024, "mu": mu}):
        with pytest.raises(ConfigError, match="describes a dynamic shift, which takes either tokens or mu"):
            REGISTRY.create("grid", "diffusers-scheduler", **options, **given)


def test_what_describes_no_flow_matching_scheduler_is_refused(tmp_path):
    pytest.importorskip("diffusers")
    file = tmp_path / "scheduler_config.json"

    def grid(**content):
        file.write_text(json.dumps(content))
        return REGISTRY.create("grid", "diffusers-scheduler", config=file)

    with pytest.raises(ConfigError, match="it has no _class_name"):
        grid(shift=3.0)
    with pytest.raises(ConfigError, match="has no scheduler UNet2DModel"):
        grid(_class_name="UNet2DModel")
    with pytest.raises(ConfigError, match="DDPMScheduler has no sigmas"):
        grid(_class_name="DDPMScheduler")
    unipc = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    with pytest.raises(ValueError, match=r"the sigmas of UniPCMultistepScheduler run from 0\.999.* wanted 1 to 0"):
        grid(**unipc).times(3)
    grid(_class_name="FlowMatchEulerDiscreteScheduler")
    with pytest.raises(ConfigError, match="no dynamic shift, which takes neither tokens nor mu"):
        REGISTRY.create("grid", "diffusers-scheduler", config=file, tokens=3)


def test_a_run_keeps_the_settings_of_its_scheduler(tmp_path):
    pytest.importorskip("diffusers")
    scheduler_of(MODELS["sd3"], tmp_path)
    spec = REGISTRY.resolve("grid", {"name": "diffusers-scheduler", "config": "."}, "grid", tmp_path)
    before = REGISTRY.build("grid", spec).times(4)
    scheduler_of(MODELS["sd3"], tmp_path, shift=1.0)
    assert REGISTRY.build("grid", spec).times(4) == before
    assert REGISTRY.create("grid", "diffusers-scheduler", config=tmp_path).times(4) != before


def test_the_page_of_models_has_a_row_for_each():
    page = (ROOT / "docs/guide/models.md").read_text(encoding="utf-8")
    assert table() in page, "run `python docs/write_models.py`"
