"""Settings of the command line (--set): they reach into mappings, and win."""

import pytest

from gftkit.kernel.errors import ConfigError
from gftkit.runs.overrides import override
from gftkit.runs.resolve import resolve_config


@pytest.fixture
def resolve(registry):
    """The configuration of a mapping or file, as a pretraining or a fine-tune."""

    def resolved(source, *overrides, kind=None):
        kind = kind or ("finetune" if "pretrained" in source else "pretrain")
        return resolve_config(source, kind, registry, overrides)[0]

    return resolved


# --set


def test_settings_reach_into_mappings_and_win(resolve, pretrain_config):
    settings = ("train.steps=7", "train.steps=8", "evaluate.metrics=[energy, path-length]", "source.name=gaussian")
    config = resolve(pretrain_config, *settings, "source.std=2", "train.clip=null", "objective.weight=1 - t")
    assert config.train.steps == 8
    assert config.train.batch_size == 16
    assert config.train.clip is None
    assert [metric["name"] for metric in config.evaluate.metrics] == ["energy", "path-length"]
    assert config.source["std"] == 2
    assert config.objective.weight == "1 - t"


def test_a_setting_leaves_what_it_was_given_as_it_was(pretrain_config):
    assert override(pretrain_config, "train.steps=7")["train"]["steps"] == 7
    assert pretrain_config["train"]["steps"] == 20


@pytest.mark.parametrize("setting", ["train.steps", "=3", "train.=3", ".steps=3", "train..steps=3", ""])
def test_a_setting_has_a_key_and_a_value(setting):
    with pytest.raises(ConfigError, match=r"wanted a\.b=c"):
        override({}, setting)


def test_bad_settings_name_the_mistake():
    with pytest.raises(ConfigError, match=r"--set seed.x=3: seed is 1, not a mapping"):
        override({"seed": 1}, "seed.x=3")
    with pytest.raises(ConfigError, match=r"--set a=\[1 is not YAML"):
        override({}, "a=[1")
