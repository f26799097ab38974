"""Every registered feature keeps the contract; the digit classifier is honest about its data."""

import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

import gftkit
from gftkit.errors import ConfigError
from gftkit_plugins.features import digits_classifier, efficientnet

REGISTRY = gftkit.load()
SHORT = digits_classifier.Recipe(steps=3)
WANTED_ACCURACY = 0.97  # on held-out digits; measured 0.988


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """An empty cache folder for this file's tests: what they need is made once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("GFTKIT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def classifier(cache):
    return REGISTRY.create("feature", "digits-classifier")


@pytest.fixture(scope="module")
def photographs():
    return REGISTRY.create("feature", "efficientnet-lite0")


def images(n, channels=1, side=8, seed=0):
    return 2 * torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed)) - 1


def held_out():
    data = REGISTRY.create("dataset", "digits", split="test")
    batch = data.batch(torch.arange(len(data)))
    return batch.x1 / 8 - 1, batch.label


@pytest.mark.parametrize("name", REGISTRY.names("feature"))
def test_features_are_vectors_of_their_own_image(name, cache):
    feature = REGISTRY.create("feature", name)
    x = images(4)
    made = feature(x)
    assert made.shape[0] == 4
    assert made.ndim == 2
    assert torch.isfinite(made).all()
    assert not made.requires_grad
    assert torch.equal(made, feature(x))
    assert (made[1:] - made[0]).norm(dim=1).min() > 1e-3
    torch.testing.assert_close(feature(x[2:3]), made[2:3], rtol=1e-4, atol=1e-4)


def test_identity_flattens():
    x = images(3)
    assert torch.equal(REGISTRY.create("feature", "identity")(x), x.reshape(3, 64))


def test_classifier_names_held_out_digits(classifier):
    x, label = held_out()
    assert classifier(x).shape == (len(x), 64)
    accuracy = (classifier.predict(x) == label).float().mean()
    assert accuracy >= WANTED_ACCURACY
    assert (classifier.predict(x / 2 + 0.5) == label).float().mean() < accuracy  # [0, 1], not [-1, 1]: a wrong twin


def test_classifier_is_trained_on_no_held_out_digit(cache):
    seen = {image.numpy().tobytes() for image in digits_classifier.training_data()[0]}
    assert not any(image.numpy().tobytes() in seen for image in held_out()[0])
    whole = REGISTRY.create("dataset", "digits").batch(torch.arange(1797)).x1 / 8 - 1
    assert sum(image.numpy().tobytes() in seen for image in whole) == 1198


def test_classifier_training_is_deterministic_and_leaves_global_state(cache):
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = digits_classifier.train(SHORT)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    torch.manual_seed(6)
    with torch.no_grad():
        again = digits_classifier.train(SHORT)
    other = digits_classifier.train(replace(SHORT, seed=1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_classifier_weights_come_from_the_cache(classifier, cache, monkeypatch):
    assert (cache / f"{digits_classifier.Recipe().name}.safetensors").is_file()
    monkeypatch.setattr(digits_classifier, "train", lambda recipe: pytest.fail("trained again"))
    again = REGISTRY.create("feature", "digits-classifier")
    assert torch.equal(again(images(4)), classifier(images(4)))


def test_another_recipe_has_another_file():
    names = {replace(SHORT, **change).name for change in ({}, {"version": 2}, {"steps": 4}, {"seed": 1})}
    assert len(names) == 4


def test_classifier_works_without_a_cache_that_can_be_written(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    untrained = digits_classifier.network(SHORT).state_dict()
    monkeypatch.setattr(digits_classifier, "train", lambda recipe: untrained)
    monkeypatch.setenv("GFTKIT_CACHE", str(tmp_path / "file"))
    assert REGISTRY.create("feature", "digits-classifier")(images(2)).shape == (2, 64)


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 8, 8), (2, 64)])
def test_classifier_refuses_other_events(classifier, shape):
    with pytest.raises(ValueError, match=r"\(n, 1, 8, 8\), got"):
        classifier(torch.zeros(shape))


def test_photograph_features_are_pooled_and_take_grey_as_three_equal_channels(photographs):
    grey = images(2, side=40)
    made = photographs(grey)
    assert made.shape == (2, 1280)
    torch.testing.assert_close(made, photographs(grey.expand(-1, 3, -1, -1)))
    assert not torch.allclose(made, photographs(images(2, channels=3, side=40)), atol=1e-2)


def test_photograph_features_see_the_range_that_the_network_was_trained_on():
    ends = efficientnet._prepared(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1))
    assert ends.shape == (2, 3, 224, 224)
    assert ends.flatten(1).unique().tolist() == [(0 - 127) / 128, (255 - 127) / 128]
    sizes = efficientnet._prepared(functional.interpolate(images(1, side=4), size=(300, 200)))
    assert sizes.shape == (1, 3, 224, 224)


def test_building_photograph_features_leaves_global_state():
    before = torch.get_rng_state()
    REGISTRY.create("feature", "efficientnet-lite0")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (2, 64)])
def test_photograph_features_refuse_other_events(photographs, shape):
    with pytest.raises(ValueError, match="1 or 3, height, width"):
        photographs(torch.zeros(shape))


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("digits-classifier", "sklearn.datasets", "data"),
        ("efficientnet-lite0", "efficientnet_lite_pytorch", "features"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(name, module, extra, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("GFTKIT_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ConfigError, match=rf"pip install 'gftkit\[{extra}\]'"):
        REGISTRY.create("feature", name)
