"""Every registered feature keeps the contract; the digit classifier is honest about its data."""

import inspect
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

import gftkit
from gftkit.evaluation.metrics import Scope, check_metrics
from gftkit.kernel.errors import ConfigError, WeightsError
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


NAMES = [name for name in REGISTRY.names("feature") if name != "module"]  # that one wants a network: see below


@pytest.mark.parametrize("name", NAMES)
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
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(classifier(doubled), classifier(x))


def test_classifier_is_trained_on_no_held_out_digit(cache):
    seen = {image.numpy().tobytes() for image in digits_classifier.training_data()[0]}
    assert not any(image.numpy().tobytes() in seen for image in held_out()[0])
    whole = REGISTRY.create("dataset", "digits").batch(torch.arange(1797)).x1 / 8 - 1
    assert sum(image.numpy().tobytes() in seen for image in whole) == 1198


def test_classifier_training_is_deterministic_and_leaves_global_state(cache):
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = digits_classifier.train_classifier(SHORT)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    torch.manual_seed(6)
    with torch.no_grad():
        again = digits_classifier.train_classifier(SHORT)
    other = digits_classifier.train_classifier(replace(SHORT, seed=1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_classifier_weights_come_from_the_cache(classifier, cache, monkeypatch):
    assert (cache / f"{digits_classifier.Recipe().name}.safetensors").is_file()
    monkeypatch.setattr(digits_classifier, "train_classifier", lambda recipe: pytest.fail("trained again"))
    again = REGISTRY.create("feature", "digits-classifier")
    assert torch.equal(again(images(4)), classifier(images(4)))


def test_classifier_file_depends_on_its_recipe():
    names = {replace(SHORT, **change).name for change in ({}, {"version": 2}, {"steps": 4}, {"seed": 1})}
    assert len(names) == 4


def test_classifier_works_without_a_cache_that_can_be_written(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    untrained = digits_classifier.build_classifier(SHORT).state_dict()
    monkeypatch.setattr(digits_classifier, "train_classifier", lambda recipe: untrained)
    monkeypatch.setenv("GFTKIT_CACHE", str(tmp_path / "file"))
    assert REGISTRY.create("feature", "digits-classifier")(images(2)).shape == (2, 64)


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 8, 8), (2, 64), (2, 1, 16, 8)])
def test_classifier_refuses_other_events(classifier, shape):
    with pytest.raises(ValueError, match=r"\(n, 1, 8, 8\) or \(n, 1, 16, 16\), got"):
        classifier(torch.zeros(shape))


def test_photograph_features_are_pooled_and_take_grey_as_three_equal_channels(photographs):
    grey = images(2, side=40)
    made = photographs(grey)
    assert made.shape == (2, 1280)
    torch.testing.assert_close(made, photographs(grey.expand(-1, 3, -1, -1)))
    assert not torch.allclose(made, photographs(images(2, channels=3, side=40)), atol=1e-2)


def test_photograph_features_see_the_range_that_the_network_was_trained_on():
    ends = efficientnet._prepare(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1))
    assert ends.shape == (2, 3, 224, 224)
    assert ends.flatten(1).unique().tolist() == [(0 - 127) / 128, (255 - 127) / 128]
    sizes = efficientnet._prepare(functional.interpolate(images(1, side=4), size=(300, 200)))
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


# A network of the user's own


class Halves(torch.nn.Module):
    """Features of an 8x8 image: linear, with dropout, which does nothing in evaluation mode."""

    def __init__(self, size: int = 3, shape: str = "vector") -> None:
        super().__init__()
        self.linear, self.dropout, self.shape = torch.nn.Linear(64, size), torch.nn.Dropout(0.5), shape

    def forward(self, x):
        made = self.dropout(self.linear(x.flatten(1)))
        return {"vector": made, "scalar": made[:, 0], "pair": (made, made)}[self.shape]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module that holds ``Halves``, and weights for it."""
    folder = tmp_path / "code"
    folder.mkdir()
    source = "import torch\n\n\n" + inspect.getsource(Halves)
    (folder / "my_features.py").write_text(source)
    network = Halves()
    save_file(network.state_dict(), tmp_path / "halves.safetensors")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield {"target": "my_features:Halves", "folder": str(folder)}, network, tmp_path / "halves.safetensors"
    sys.modules.pop("my_features", None)


def test_a_network_of_ones_own_is_a_feature(own):
    spec, network, weights = own
    before = torch.get_rng_state()
    feature = REGISTRY.create("feature", "module", **spec, weights=str(weights), batch_size=2)
    assert torch.equal(torch.get_rng_state(), before)
    x = images(5)
    with torch.no_grad():
        wanted = network.linear(x.flatten(1))
    torch.testing.assert_close(feature(x), wanted)
    assert not feature(x).requires_grad
    assert not torch.allclose(feature(x), network.train()(x))  # dropout at work: a wrong twin
    new = [REGISTRY.create("feature", "module", **spec)(x) for _ in range(2)]
    assert torch.equal(*new)
    assert not torch.allclose(new[0], wanted)


def test_a_network_that_is_no_feature_is_refused(own, tmp_path):
    spec, _, weights = own
    with pytest.raises(WeightsError, match="don't fit the feature"):
        REGISTRY.create("feature", "module", **spec, options={"size": 4}, weights=str(weights))
    pickled = tmp_path / "halves.pt"
    torch.save({}, pickled)
    with pytest.raises(ConfigError, match=r"wanted a \.safetensors file"):
        REGISTRY.create("feature", "module", **spec, weights=str(pickled))
    with pytest.raises(ConfigError, match=r"feature\.target: my_features has no 'Halfs'\. Networks in it: Halves"):
        REGISTRY.create("feature", "module", target="my_features:Halfs", folder=spec["folder"])
    with pytest.raises(ConfigError, match=r"feature\.options: .* fails: TypeError"):
        REGISTRY.create("feature", "module", **spec, options={"sise": 4})
    for shape, came in (("scalar", r"got \(4,\)"), ("pair", "got tuple")):
        feature = REGISTRY.create("feature", "module", **spec, options={"shape": shape})
        with pytest.raises(ValueError, match=rf"wanted vectors \(n, d\), {came}"):
            feature(images(4))
    feature = REGISTRY.create("feature", "module", **spec)
    with pytest.raises(ValueError, match=r"fails on events of shape \(4, 1, 9, 9\): RuntimeError"):
        feature(images(4, side=9))
    metric = REGISTRY.create("metric", "frechet", feature=feature)
    with pytest.raises(ConfigError, match=r"evaluate\.metrics\[0\] \(Frechet\): feature .* fails on events"):
        check_metrics([("evaluate.metrics[0]", metric)], Scope(40, 40, 40, True, (1, 9, 9)))
