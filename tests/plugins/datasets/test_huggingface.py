"""Parquet and arrow files: rows come back as they were written, and what is wrong is named with file, column or row."""

import importlib
import pickle
import sys

import datasets
import numpy as np
import pytest
import torch
from support.data_files import encoded, whole

from gftkit.data.samples import Samples, VisitOrder
from gftkit.kernel.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A cache folder of each test's own, and no bars."""
    monkeypatch.setenv("GFTKIT_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield tmp_path / "cache"
    datasets.enable_progress_bars()


@pytest.fixture
def load(registry, tmp_path):
    return lambda files, **options: registry.create("dataset", "huggingface", files=tmp_path / files, **options)


@pytest.fixture
def refused(load):
    """Expects a refusal with this message."""

    def refuse(message, files="a.parquet", **options):
        with pytest.raises(DataError, match=message):
            load(files, **options)

    return refuse


def rows(**columns):
    """A data set of these columns; ``features`` are theirs, where they can't be told."""
    features = columns.pop("features", None)
    return datasets.Dataset.from_dict(columns, features=features and datasets.Features(features))


def points(*values, **more):
    return rows(x=[[float(value), 0.5] for value in values], **more)


def shades(*values, kind=None):
    """Grey pictures of 4 x 4 pixels."""
    pictures = [encoded(np.full((4, 4), value, np.uint8)) for value in values]
    return (
        rows(image=pictures, features={"image": datasets.Value("binary")})
        if kind is None
        else rows(image=[{"bytes": picture, "path": None} for picture in pictures], features={"image": kind})
    )


def arrow(dataset, folder):
    """Writes a data set by save_to_disk."""
    dataset.save_to_disk(str(folder))


# What is read


@pytest.mark.parametrize("form", ["saved", "parquet", "arrow", "pattern", "folder"])
def test_every_form_gives_the_same(load, tmp_path, form):
    whole_set = points(*range(10), label=[i % 3 for i in range(10)])
    parts = [whole_set.select(range(6)), whole_set.select(range(6, 10))]
    if form == "saved":
        arrow(whole_set, tmp_path / "saved")
        dataset = load("saved")
    elif form == "parquet":
        whole_set.to_parquet(tmp_path / "all.parquet", batch_size=4)
        dataset = load("all.parquet")
    elif form == "arrow":
        arrow(whole_set, tmp_path / "saved")
        dataset = load("saved/data-*.arrow")
    else:
        (tmp_path / "parts").mkdir()
        for number, part in enumerate(parts):
            part.to_parquet(tmp_path / f"parts/{number}.parquet")
        dataset = load("parts/{0..1}.parquet" if form == "pattern" else "parts")
    assert (len(dataset), dataset.event_shape, dataset.range, dataset.classes) == (10, (2,), None, 3)
    batch = dataset.batch(torch.tensor([9, 0, 3, 3]))
    assert batch.x1.tolist() == [[9.0, 0.5], [0.0, 0.5], [3.0, 0.5], [3.0, 0.5]]
    assert batch.label.tolist() == [0, 0, 0, 0]
    assert dataset.batch(torch.empty(0, dtype=torch.int64)).x1.shape == (0, 2)
    assert torch.equal(whole(pickle.loads(pickle.dumps(dataset))).x1, whole(dataset).x1)


@pytest.mark.parametrize("kind", ["image", "bytes", "struct", "paths"])
def test_pictures_of_every_kind(load, tmp_path, kind):
    if kind == "bytes":
        made = shades(10, 20)
    elif kind == "struct":
        made = shades(10, 20, kind={"bytes": datasets.Value("binary"), "path": datasets.Value("string")})
    elif kind == "image":
        made = shades(10, 20, kind=datasets.Image())
    else:
        for value in (10, 20):
            (tmp_path / f"{value}.png").write_bytes(encoded(np.full((4, 4), value, np.uint8)))
        made = rows(image=[str(tmp_path / "10.png"), str(tmp_path / "20.png")], features={"image": datasets.Image()})
    arrow(made, tmp_path / "saved")
    dataset = load("saved", mode="L")
    assert (dataset.event_shape, dataset.range, dataset.labels) == ((1, 4, 4), (0.0, 255.0), None)
    assert whole(dataset).x1[:, 0, 0, 0].tolist() == [10.0, 20.0]
    assert load("saved", size=2).event_shape == (3, 2, 2)


@pytest.mark.parametrize(
    "feature",
    [
        lambda: datasets.Array2D((2, 3), "float32"),
        lambda: datasets.Array2D((2, 3), "uint8"),
        lambda: datasets.List(datasets.List(datasets.Value("float64"))),
        lambda: datasets.List(datasets.List(datasets.Value("int16"), length=3), length=2),
    ],
)
def test_arrays_of_every_kind(load, tmp_path, feature):
    values = np.arange(24).reshape(4, 2, 3)
    arrow(rows(x=values.tolist(), features={"x": feature()}), tmp_path / "saved")
    found = whole(load("saved")).x1
    assert found.dtype is torch.float32
    assert torch.equal(found, torch.from_numpy(values.astype(np.float32)))


def test_named_classes_and_other_columns(load, tmp_path):
    made = points(
        1,
        2,
        kind=[2, 0],
        note=["a", "b"],
        features={
            "x": datasets.List(datasets.Value("float32")),
            "kind": datasets.ClassLabel(names=["a", "b", "c", "d"]),
            "note": datasets.Value("string"),
        },
    )
    arrow(made, tmp_path / "saved")
    assert load("saved").labels is None
    dataset = load("saved", labels="kind")
    assert (dataset.labels.tolist(), dataset.classes) == ([2, 0], 4)


def test_conditions_are_further_columns(load, tmp_path):
    arrow(points(1, 2, 3, text=[[[float(i)] * 2] * 4 for i in range(3)]), tmp_path / "saved")
    dataset = load("saved", conditions=["text"])
    assert dataset.condition_shapes == {"text": (4, 2)}
    batch = Samples(dataset, "data").at(torch.tensor([2, 0]))
    assert batch.x1[:, 0].tolist() == [3.0, 1.0]
    assert batch.conditions["text"][:, 0, 0].tolist() == [2.0, 0.0]


def test_a_chosen_and_shuffled_set_keeps_its_choice(load, tmp_path):
    arrow(points(*range(6), label=list(range(6))).select([5, 1, 3]), tmp_path / "saved")
    dataset = load("saved")
    assert whole(dataset).x1[:, 0].tolist() == [5.0, 1.0, 3.0]
    assert dataset.labels.tolist() == [5, 1, 3]


def test_rows_come_in_blocks(load, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("gftkit_plugins.datasets.neighbours"), "MOST", 4)
    arrow(points(*range(10)), tmp_path / "saved")
    dataset = load("saved")
    assert dataset.blocks.tolist() == [4, 3, 3]
    assert sorted(VisitOrder(Samples(dataset, "data"), 0, 4).take(0, 10).x1[:, 0].tolist()) == list(range(10))
    assert load("saved", count=5).blocks.sum() == 5


def test_parquet_is_written_as_arrow_once(load, tmp_path, cache):
    points(1, 2).to_parquet(tmp_path / "a.parquet")
    load("a.parquet")
    made = {file: file.stat().st_mtime_ns for file in cache.rglob("*.arrow")}
    assert len(made) == 1
    load("a.parquet")
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.arrow")} == made
    points(3, 4, 5).to_parquet(tmp_path / "a.parquet")
    assert whole(load("a.parquet")).x1[:, 0].tolist() == [3.0, 4.0, 5.0]


# Bad input


def test_files_are_refused(refused, tmp_path):
    refused(r"a\.parquet: no such file\. Check the path")
    (tmp_path / "none").mkdir()
    refused(r"none: wanted a folder with \.parquet files, found none", "none")
    points(1, 2).to_parquet(tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    for damaged in (content[:-10], content[:20], b"", b"no columns"):
        (tmp_path / "b.parquet").write_bytes(damaged)
        refused(r"b\.parquet: can't be read \(.*\)\. Check its permissions", "{a,b}.parquet")
    rows(y=[[1.0]]).to_parquet(tmp_path / "b.parquet")
    refused(r"b\.parquet: wanted the columns of a\.parquet, \{'x': .*got \{'y'", "{a,b}.parquet")
    points(1).select([]).to_parquet(tmp_path / "b.parquet")
    refused(r"b\.parquet: it is empty: there is no row in it", "*.parquet")


def test_saved_folders_are_refused(refused, tmp_path):
    datasets.DatasetDict({"train": points(1), "test": points(2)}).save_to_disk(str(tmp_path / "both"))
    refused(r"both: wanted one data set, found several: test, train\. Give the folder of one", "both")
    arrow(points(1), tmp_path / "saved")
    (shard,) = (tmp_path / "saved").glob("*.arrow")
    shard.write_bytes(shard.read_bytes()[:200])
    refused(r"saved: can't be read \(.*\)", "saved")
    refused(r"arrow: can't be read \(.*\)", "saved/*.arrow")


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"x": [[1.0]]}, {"column": "y"}, r"no column 'y'\. Columns: x"),
        ({"x": [[1.0]]}, {"labels": "y"}, r"no column 'y'\. Columns: x"),
        (
            {"x": [[1.0]], "y": [[1.0]]},
            {},
            r"wanted one column of pictures or arrays, found x, y among x, y\. Set `column`",
        ),
        ({"x": [1.0]}, {}, r"wanted one column of pictures or arrays, found none among x"),
        ({"x": [1.0]}, {"column": "x"}, r"column 'x': wanted pictures or arrays of numbers, got Value\('float64'\)"),
        ({"x": [["a"]]}, {"column": "x"}, r"column 'x': wanted pictures or arrays of numbers, got List"),
        ({"x": [[1.0], None]}, {}, r"column 'x': some rows are empty\. Fill or drop them"),
        ({"x": [[1.0]], "label": [0.5]}, {}, r"column 'label': wanted one whole number in every row, got Value"),
        ({"x": [[1.0]] * 2, "label": [1, None]}, {}, r"column 'label': wanted one whole number .* rows without any"),
        ({"x": [[1.0]], "label": [-1]}, {}, r"column 'label': wanted labels from 0 on, got -1\. Drop"),
        ({"x": [[float("nan")]]}, {}, r"column 'x', row 0: wanted finite numbers"),
    ],
)
def test_columns_are_refused_at_the_start(refused, tmp_path, columns, options, message):
    arrow(rows(**columns), tmp_path / "saved")
    refused(r"saved.*" + message, "saved", **options)


def test_rows_are_refused_when_they_are_read(load, refused, tmp_path):
    arrow(rows(x=[[1.0, 2.0], [1.0], [3.0, float("inf")]]), tmp_path / "saved")
    dataset = load("saved")
    with pytest.raises(DataError, match=r"saved, column 'x', row 1: wanted numbers of shape \(2,\), .*got .* \(1,\)"):
        dataset.batch(torch.tensor([0, 1]))
    with pytest.raises(DataError, match=r"column 'x', row 2: wanted finite numbers"):
        dataset.batch(torch.tensor([0, 2]))
    wide = encoded(np.zeros((4, 8), np.uint8))
    pictures = [encoded(np.zeros((4, 4), np.uint8)), wide, b"no picture", b""]
    arrow(rows(x=pictures, features={"x": datasets.Value("binary")}), tmp_path / "pictures")
    dataset = load("pictures")
    messages = {1: "wanted a picture of 4 x 4 pixels, like row 0, got 8 x 4", 2: "can't be read", 3: "got nothing"}
    for row, message in messages.items():
        with pytest.raises(DataError, match=rf"column 'x', row {row}: .*{message}"):
            dataset.batch(torch.tensor([row]))


def test_an_empty_set_is_refused(refused, tmp_path):
    arrow(rows(x=[], features={"x": datasets.List(datasets.Value("float32"))}), tmp_path / "saved")
    refused(r"saved: it is empty: there is no row in it", "saved")


def test_a_missing_package_names_the_extra(load, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"dataset 'huggingface'.*pip install 'gftkit\[streaming\]'"):
        load("a.parquet")
