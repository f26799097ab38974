"""A configuration is validated whole: what it may say, what it inherits, and how it is written down and read back."""

import re
from pathlib import Path

import pytest
import torch
import yaml

import gftkit
from gftkit.api import Run
from gftkit.experiment.build import build
from gftkit.kernel.errors import ConfigError, DataError, UnknownNameError
from gftkit.kernel.options import plain
from gftkit.runs.folder import config_from_dict
from gftkit.runs.overrides import override
from gftkit.runs.resolve import resolve_config


@pytest.fixture
def resolve(registry):
    """The configuration of a mapping or file, as a pretraining or a fine-tune."""

    def resolved(source, *overrides, kind=None):
        kind = kind or ("finetune" if "pretrained" in source else "pretrain")
        return resolve_config(source, kind, registry, overrides)[0]

    return resolved


# Keys


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("dirft={name: mlp}", "unknown option of the configuration: 'dirft'. Did you mean 'drift'?"),
        ("train.step=3", "unknown option of train: 'step'. Did you mean 'steps'?"),
        ("objective.frm=blended", "unknown option of objective: 'frm'. Did you mean 'form'?"),
        ("evaluate.evry=3", "unknown option of evaluate: 'evry'. Did you mean 'every'?"),
        ("drift.widht=3", "unknown option of drift 'mlp': 'widht'. Did you mean 'width'?"),
        ("coupling={name: optimal}", "unknown coupling 'optimal'. Did you mean 'optimal-transport'?"),
        ("data.name=two-moon", "unknown dataset at data: 'two-moon'. Did you mean 'two-moons'?"),
        ("source={name: gausian}", "unknown dataset at source: 'gausian'. Did you mean 'gaussian'?"),
        ("evaluate.metrics=[enery]", "unknown metric at evaluate.metrics[0]: 'enery'. Did you mean 'energy'?"),
        ("evaluate.solver.name=eulr", "unknown solver at evaluate.solver: 'eulr'. Did you mean 'euler'?"),
        ("monitors=[anchor]", "unknown monitor at monitors[0]: 'anchor'."),
        ("1=2", "unknown option of the configuration: '1'."),
    ],
)
def test_unknown_names_suggest_the_nearest(resolve, pretrain_config, setting, message):
    with pytest.raises(UnknownNameError, match=re.escape(message)):
        resolve(pretrain_config, setting)


def test_keys_that_are_not_text_are_refused(resolve, pretrain_config):
    for where in (pretrain_config, pretrain_config["train"], pretrain_config["drift"]):
        where[3] = 1
        with pytest.raises(UnknownNameError, match="'3'"):
            resolve(pretrain_config)
        del where[3]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.steps=0", "train.steps: wanted int, > 0, got 0"),
        ("train.steps=2.5", "train.steps: wanted int, > 0, got 2.5"),
        ("train.steps=true", "train.steps: wanted int, > 0, got True"),
        ("train.learning_rate=fast", "train.learning_rate: wanted float, > 0, got 'fast'"),
        ("train.learning_rate=-1e-3", "train.learning_rate: wanted float, > 0, got -0.001"),
        ("train.learning_rate=.nan", "train.learning_rate: wanted float, > 0, got nan"),
        ("train.ema=1.0", "train.ema: wanted float, >= 0, < 1 or null, got 1.0"),
        ("train.decay=slow", "train.decay: wanted 'constant' or 'cosine' or 'linear', got 'slow'"),
        ("train.pairing_batch=17", "train.pairing_batch: wanted a multiple of batch_size (16), got 17"),
        ("train=5", "train: wanted a mapping, got 5"),
        ("seed=-1", "seed: wanted int, >= 0, got -1"),
        ("seed=true", "seed: wanted int, >= 0, got True"),
        ("seed=1.5", "seed: wanted int, >= 0, got 1.5"),
        ("monitors=anchor-distance", "monitors: wanted a list, got 'anchor-distance'"),
        ("evaluate.solver.steps=0", "evaluate.solver.steps: wanted int, >= 1, got 0"),
        ("evaluate.solver.steps=true", "evaluate.solver.steps: wanted int, >= 1, got True"),
        ("evaluate.solver=5", "evaluate.solver: wanted"),
        ("evaluate.count=0", "evaluate.count: wanted int, > 0, got 0"),
        ("drift=5", "drift: wanted the name of a drift, or {name: ...} with options, got 5"),
        ("drift=null", "drift is missing"),
        ("objective.form=blend", "objective.form: wanted 'blended' or 'penalty', got 'blend'"),
        ("objective.weight=1/0*", "objective.weight: '1/0*' is not a formula in t"),
        ("objective.weight=sqrt(-2)", "objective.weight: 'sqrt(-2)' has a part that isn't a real number"),
        ("objective.weight=s**2", "objective.weight: 's**2': only numbers, t, pi"),
        ("objective.weight=open(t)", "objective.weight: 'open(t)': only numbers, t, pi"),
        ("objective.weight=-t", "objective.weight: '-t': wanted finite numbers >= 0 for t in [0, 1], got -0.001"),
        ("objective.weight=log(t - 2)", "objective.weight: 'log(t - 2)': wanted finite numbers"),
        ("objective.weight='0'", "objective.weight: '0': is 0 for all t in [0, 1]"),
        ("objective.weight=1/(1 - t)", "wanted finite numbers >= 0 for t in [0, 1], got inf at t = 1"),
        ("objective.weight=t**-1", "got inf at t = 0"),
        ("objective.time={name: logit-normal, std: 0}", "objective.time.std: wanted float, > 0"),
        ("objective.time={mean: 0.5}", "objective.time: wanted the name of a time"),
        ("objective.weight=2", "objective.weight: wanted str, got 2"),
    ],
)  # fmt: skip
def test_values_of_the_wrong_type_or_range_name_their_key(resolve, pretrain_config, setting, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve(pretrain_config, setting)


@pytest.mark.parametrize("key", ["data", "drift"])
def test_required_keys_must_be_given(resolve, pretrain_config, key):
    del pretrain_config[key]
    with pytest.raises(ConfigError, match=f"^{key} is missing"):
        resolve(pretrain_config)


@pytest.mark.parametrize("key", ["pretrained", "schedule"])
def test_a_fine_tune_needs_a_start_and_a_schedule(resolve, finetune_config, key):
    del finetune_config[key]
    with pytest.raises(ConfigError, match=f"^{key} is missing"):
        resolve(finetune_config, kind="finetune")


@pytest.mark.parametrize("extra", [{"schedule": {"name": "zero"}}, {"pretrained": "runs/x"}])
def test_a_pretraining_takes_no_keys_of_a_fine_tune(resolve, pretrain_config, extra):
    with pytest.raises(ConfigError, match="use `gft finetune`"):
        resolve({**pretrain_config, **extra}, kind="pretrain")


# Defaults


def test_defaults_are_filled_in(resolve):
    config = resolve({"drift": {"name": "mlp"}, "data": {"name": "two-moons"}})
    assert [spec["name"] for spec in (config.source, config.path, config.coupling)] == [
        "gaussian", "linear", "independent",
    ]  # fmt: skip
    assert config.drift["width"] == 512
    assert (config.seed, config.monitors, config.pretrained, config.schedule) == (0, [], None, None)
    assert (config.train.steps, config.train.batch_size, config.train.pairing_batch) == (3000, 128, 128)
    assert config.train.checkpoint_every == 300
    assert config.evaluate.every == 150
    assert config.evaluate.data is None


@pytest.mark.parametrize(
    ("steps", "ema"), [(1, 0.9), (50, 0.9), (100, 0.9), (1000, 0.99), (1500, 1 - 1 / 150), (10**7, 0.9999)]
)
def test_the_average_forgets_within_a_tenth_of_the_run(resolve, pretrain_config, steps, ema):
    assert resolve(pretrain_config, f"train.steps={steps}").train.ema == pytest.approx(ema, abs=1e-12)
    assert resolve(pretrain_config, f"train.steps={steps}", "train.ema=0").train.ema == 0


def test_short_runs_have_whole_intervals(resolve, pretrain_config):
    pretrain_config["train"], pretrain_config["evaluate"] = {"steps": 3}, {}
    config = resolve(pretrain_config)
    assert (config.train.checkpoint_every, config.evaluate.every) == (1, 1)


def test_the_paired_set_may_be_a_multiple_of_the_batch(resolve, pretrain_config):
    assert resolve(pretrain_config, "train.pairing_batch=64").train.pairing_batch == 64


def test_relative_paths_start_at_the_configs_folder(resolve, registry, tmp_path, monkeypatch):
    torch.save(torch.zeros(3, 2), tmp_path / "s.pt")
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "c.yaml"
    file.write_text("drift: {name: mlp}\ndata: {name: arrays, file: ../s.pt}\n")
    monkeypatch.chdir("/")
    config = resolve_config(file, "pretrain", registry)[0]
    assert Path(config.data["file"]).resolve() == tmp_path / "s.pt"
    assert Path(config.to_dict()["data"]["file"]).is_absolute()
    monkeypatch.chdir(tmp_path)
    assert Path(
        resolve({**yaml.safe_load(file.read_text()), "data": {"name": "arrays", "file": "s.pt"}}).data["file"]
    ).is_file()


def test_the_pretrained_run_is_sought_from_the_configs_folder(
    registry, run_copy, finetune_config, tmp_path, monkeypatch
):
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "c.yaml"
    file.write_text(yaml.safe_dump({**finetune_config, "pretrained": "../run"}))
    monkeypatch.chdir("/")
    assert resolve_config(file, "finetune", registry)[0].drift["width"] == 16
    with pytest.raises(ConfigError, match="neither a run folder nor a weights file"):
        resolve_config(file, "finetune", registry, ["pretrained=run"])


# Bare names


def test_a_bare_name_stands_for_a_component_without_options(registry, finetune_config):
    names = {"data": "two-moons", "source": "two-moons", "path": "trigonometric", "coupling": "optimal-transport"}
    names |= {"drift": "mlp", "schedule": "linear", "anchor": "frozen", "monitors": ["anchor-distance"]}
    names["evaluate"] = {"solver": "heun", "data": "two-moons", "metrics": [{"name": "frechet", "feature": "identity"}]}
    bare = resolve_config({**finetune_config, **names}, "finetune", registry).config

    def whole(value):
        return {"name": value} if isinstance(value, str) else value

    inner = {"solver": {"name": "heun"}, "data": {"name": "two-moons"}}
    inner["metrics"] = [{"name": "frechet", "feature": {"name": "identity"}}]
    full = {key: whole(value) for key, value in names.items()} | {
        "evaluate": inner,
        "monitors": [whole("anchor-distance")],
    }
    assert bare.to_dict() == resolve_config({**finetune_config, **full}, "finetune", registry)[0].to_dict()
    assert override({"schedule": "linear"}, "schedule.start=2") == {"schedule": {"name": "linear", "start": 2}}


# Inheritance


def test_a_fine_tune_inherits_from_its_run(resolve, finetune_config, pretrained):
    config, parent = resolve(finetune_config), Run.open(pretrained).config
    for key in ("drift", "source", "path", "coupling"):
        assert plain(getattr(config, key)) == plain(getattr(parent, key)), key
    assert config.train.steps == 10
    assert config.seed == 0


def test_settings_of_a_fine_tune_win_over_inherited_ones(registry, finetune_config):
    finetune_config["coupling"] = {"name": "optimal-transport"}
    config, warnings, *_ = resolve_config(finetune_config, "finetune", registry)
    assert config.coupling["name"] == "optimal-transport"
    (warning,) = warnings
    assert "coupling 'optimal-transport' differs from the pretrained run's 'independent'" in warning


def test_a_single_option_of_an_inherited_component_cannot_be_changed(registry, finetune_config):
    message = (
        r"drift: the pretrained run's drift 'mlp' is inherited as a whole: .* got {'width': 32}\. Leave `drift` out, or"
    )
    with pytest.raises(ConfigError, match=message):
        resolve_config(finetune_config, "finetune", registry, ["drift.width=32"])


def test_inherited_settings_are_not_warned_about(registry, pretrain_config, finetune_config, tmp_path):
    pretrain_config["source"] = {"name": "gaussian", "event_shape": [2], "mean": [0.0, 1.0]}
    gftkit.pretrain(pretrain_config, tmp_path / "run", registry=registry, device="cpu")
    finetune_config["pretrained"] = str(tmp_path / "run")
    assert resolve_config(finetune_config, "finetune", registry)[1] == []
    finetune_config["source"] = {**pretrain_config["source"], "mean": [0.0, 2.0]}
    assert "source 'gaussian' differs" in resolve_config(finetune_config, "finetune", registry)[1][0]


def test_the_same_path_in_other_words_is_accepted(resolve, registry, finetune_config):
    finetune_config["path"] = {"name": "affine", "alpha": "t", "sigma": "1 - t"}
    assert build(resolve(finetune_config), registry).facts.event_shape == (2,)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ({"name": "trigonometric"}, "sigma, alpha"),
        ({"name": "affine", "alpha": "t**2"}, "alpha"),
        ({"name": "brownian-bridge", "scale": 0.5}, "gamma, diffusion g"),
    ],
)
def test_a_fine_tune_on_another_path_is_refused_with_the_reason(resolve, registry, finetune_config, path, parts):
    finetune_config["path"] = path
    if path["name"] == "brownian-bridge":
        finetune_config["evaluate"]["solver"]["name"] = "euler-maruyama"
    with pytest.raises(ConfigError, match=f"differs from the pretrained run's .* in {parts}. The anchor is the drift"):
        build(resolve(finetune_config), registry)


def test_labels_matter_to_a_conditional_drift_only(resolve, registry, pretrain_config, finetune_config, tmp_path):
    assert build(resolve(finetune_config), registry).facts.classes == 2  # of data with 8
    pretrain_config["drift"]["conditional"] = True
    gftkit.pretrain(pretrain_config, tmp_path / "run", registry=registry, device="cpu")
    finetune_config["pretrained"] = str(tmp_path / "run")
    with pytest.raises(DataError, match="data: labels up to 7, and the drift has 2 classes"):
        build(resolve(finetune_config), registry)
    with pytest.raises(DataError, match="the data have no labels"):
        build(resolve(finetune_config, "data={name: gaussian, event_shape: [2]}"), registry)
    assert build(resolve(finetune_config, "data.classes=[0, 1]", "data.count=20"), registry)


def test_a_drift_must_be_given_beside_a_weights_file(resolve, finetune_config, pretrained):
    finetune_config["pretrained"] = str(pretrained / "model.safetensors")
    with pytest.raises(ConfigError, match=r"^drift is missing"):
        resolve(finetune_config)
    assert resolve({**finetune_config, "drift": {"name": "mlp", "width": 16, "depth": 1}}).path["name"] == "linear"


# Written down and read back


def test_a_configuration_survives_its_file(resolve, pretrain_config, finetune_config):
    pretrain_config["monitors"] = ["anchor-distance"]
    pretrain_config["evaluate"]["metrics"] = [{"name": "frechet", "feature": {"name": "identity"}}, "energy"]
    for given in (pretrain_config, finetune_config):
        config = resolve(given)
        read_back = config_from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict())))
        assert read_back.to_dict() == config.to_dict()
        assert read_back.kind == config.kind
        assert resolve(config.to_dict()).to_dict() == config.to_dict()


def test_a_runs_configuration_is_the_one_it_was_given(resolve, pretrained, pretrain_config):
    assert Run.open(pretrained).config.to_dict() == resolve(pretrain_config).to_dict()


def test_a_damaged_configuration_is_refused(run_copy):
    file = run_copy / "config.yaml"
    values = yaml.safe_load(file.read_text())
    for key in ("drift", "train"):
        file.write_text(yaml.safe_dump({name: value for name, value in values.items() if name != key}))
        with pytest.raises(ConfigError, match=rf"config\.yaml: {key} missing: the file is damaged"):
            Run.open(run_copy)
