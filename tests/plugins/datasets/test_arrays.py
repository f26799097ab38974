"""Files of arrays: what is read comes back, large ones stay on disk, and a bad file is refused with its place."""

import importlib
import pickle
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_files import whole, write

from gftkit.kernel.errors import DataError

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
        ({"a": np.zeros((2, 1)), "b": np.ones((2, 1))}, {}, r"named x1, samples or data\. Arrays: a, b\. Set `key`"),
        ({"label": np.zeros(2, int)}, {}, r"wanted one array of samples.*Arrays: label"),
        ({"a": np.zeros((2, 1))}, {"key": "b"}, r"no array 'b'\. Arrays: a\. Set `key` to one of them"),
        ({"a": np.zeros((2, 1))}, {"labels": "b"}, r"no array 'b' for labels\. Arrays: a"),
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
        DataError, match=rf"^{re.escape(str(file))}.* NaN, infinity or too large a number in row 17 .*Correct"
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
    assert "Arrays: weight, bias. Set `key`" in refused("weights.pt")
    assert "wanted a tensor or a dict of tensors, got a list" in refused("list.pt")
    assert "wanted a dense array" in refused("sparse.pt")
    assert "got dtype <U1" in refused("text.npy")
    assert "got dtype datetime64[s]" in refused("time.npy")
    assert "got dtype float128" in refused("long.npy") or np.longdouble is np.float64
    assert "wanted real numbers" in refused("fields.npy")
    assert "Arrays: none" in refused("none.npz")


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
        with pytest.raises(DataError, match=r"bad\S+: (wanted a complete .*Write or copy it again|it holds pickled)"):
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
        assert "damaged, incomplete or of another format" in str(caught.value)


def test_the_payload_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran"))).close()
    assert (tmp_path / "ran").exists()


# Large arrays


@pytest.fixture
def nothing_is_small(monkeypatch):
    """Makes every array a large one, in blocks of at most four rows."""
    module = importlib.import_module("gftkit_plugins.datasets.arrays")
    monkeypatch.setattr(module, "_LARGE", 0)
    monkeypatch.setattr(module, "_BLOCK_ROWS", 4)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", ">f8", "float16", "uint8"])
def test_a_large_array_gives_what_a_small_one_does(registry, tmp_path, request, ending, dtype):
    if dtype == ">f8" and ending in (".pt", ".safetensors"):
        pytest.skip("torch has no foreign byte order")
    values = np.arange(66).reshape(11, 2, 3).astype(dtype)
    file = write(tmp_path / f"s{ending}", {"" if ending in (".npy", ".pt") else "x1": values})
    small = registry.create("dataset", "arrays", file=file)
    request.getfixturevalue("nothing_is_small")
    large = registry.create("dataset", "arrays", file=file)
    assert small.blocks is None
    assert large.blocks is None if ending == ".npz" else large.blocks.tolist() == [4, 4, 3]
    indices = torch.tensor([10, 0, 3, 3])
    assert torch.equal(large.batch(indices).x1, small.batch(indices).x1)
    assert large.batch(indices[:0]).x1.shape == (0, 2, 3)
    assert torch.equal(pickle.loads(pickle.dumps(large)).batch(indices).x1, small.batch(indices).x1)


def test_a_large_array_in_fortran_order_is_read_right(registry, tmp_path, nothing_is_small):
    np.save(tmp_path / "f.npy", np.asfortranarray(np.arange(12.0).reshape(4, 3)))
    dataset = registry.create("dataset", "arrays", file=tmp_path / "f.npy")
    assert dataset.batch(torch.tensor([2, 0])).x1.tolist() == [[6.0, 7.0, 8.0], [0.0, 1.0, 2.0]]


@pytest.mark.parametrize("ending", [".npy", ".pt", ".safetensors"])
def test_a_large_array_names_a_bad_row_when_it_is_read(registry, tmp_path, nothing_is_small, ending):
    values = np.zeros((20, 2))
    values[17, 1] = np.nan
    file = write(tmp_path / f"s{ending}", {"" if ending in (".npy", ".pt") else "x1": values})
    dataset = registry.create("dataset", "arrays", file=file, split="all")
    dataset.batch(torch.arange(17))
    with pytest.raises(DataError, match=rf"^{re.escape(str(file))}.* in row 17 .*Correct"):
        dataset.batch(torch.tensor([3, 17]))
    rows = registry.create("dataset", "arrays", file=file, count=20, seed=1)  # a subset names the row of the file
    with pytest.raises(DataError, match="in row 17 "):
        whole(rows)


def test_a_large_file_that_shrinks_is_named(registry, tmp_path, nothing_is_small):
    """A map of it would end the process with a bus error."""
    file = write(tmp_path / "s.npy", {"": np.ones((1000, 100))})
    dataset = registry.create("dataset", "arrays", file=file)
    with file.open("r+b") as stream:
        stream.truncate(2000)
    assert whole_rows(dataset, 0, 2) == 1.0
    with pytest.raises(DataError, match=r"s\.npy: wanted 800 bytes from byte \d+ on, and the file is shorter"):
        dataset.batch(torch.tensor([999]))
    file.unlink()
    with pytest.raises(DataError, match=r"s\.npy: can't be read \(No such file or directory\)\. Check the path"):
        pickle.loads(pickle.dumps(dataset)).batch(torch.tensor([0]))


def whole_rows(dataset, first, last):
    return float(dataset.batch(torch.arange(first, last)).x1.unique())


def test_a_file_is_large_by_its_bytes(registry, tmp_path):
    """A file with a hole: 1.2 GB that take no space. Nothing of it is read at the start."""
    shape = (300_000, 1000)
    np.lib.format.open_memmap(tmp_path / "hole.npy", mode="w+", dtype=np.float32, shape=shape).flush()
    dataset = registry.create("dataset", "arrays", file=tmp_path / "hole.npy")
    assert dataset.blocks.sum() == 300_000
    assert dataset.blocks.max() * 4000 <= 2**22
    assert whole_rows(dataset, 299_990, 300_000) == 0.0
