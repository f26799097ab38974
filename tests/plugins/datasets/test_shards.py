"""Tar shards: every sample is found where it lies, and what is wrong is named with shard and member, early."""

import gzip
import importlib
import io
import os
import pickle
import re
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_files import encoded, tar, whole

from gftkit.data.samples import Samples, VisitOrder
from gftkit.kernel.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A cache folder of each test's own."""
    monkeypatch.setenv("GFTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def load(registry, tmp_path):
    return lambda files="*.tar", **options: registry.create("dataset", "shards", files=tmp_path / files, **options)


@pytest.fixture
def refused(load):
    """Expects a refusal with this message."""

    def refuse(message, files="*.tar", **options):
        with pytest.raises(DataError, match=message):
            load(files, **options)

    return refuse


def grey(value, height=4, width=4):
    return encoded(np.full((height, width), value, np.uint8))


def numbers(*values):
    return encoded(np.array(values, np.float32), "npy")


# What is read


def test_samples_come_in_the_order_of_the_shards(load, tmp_path):
    tar(tmp_path / "b.tar", {"x.png": grey(20), "x.cls": b"2\n"})
    tar(tmp_path / "a.tar", {"z.png": grey(10), "z.cls": b"0", "y.cls": b"1", "y.png": grey(15)})
    dataset = load(mode="L")
    assert (len(dataset), dataset.event_shape, dataset.range) == (3, (1, 4, 4), (0.0, 255.0))
    assert (dataset.labels.tolist(), dataset.classes, dataset.blocks.tolist()) == ([0, 1, 2], 3, [2, 1])
    assert whole(dataset).x1[:, 0, 0, 0].tolist() == [10.0, 15.0, 20.0]
    assert whole(load("{b,a}.tar", mode="L")).x1[:, 0, 0, 0].tolist() == [20.0, 10.0, 15.0]


def test_pictures_have_colours_rows_and_columns(load, tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[1, 2] = (255, 128, 7)
    tar(tmp_path / "a.tar", {"a.png": encoded(pixels)})
    x1 = whole(load()).x1[0]
    assert x1.shape == (3, 2, 3)
    assert x1[:, 1, 2].tolist() == [255.0, 128.0, 7.0]
    assert load(size=2).event_shape == (3, 2, 2)


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
@pytest.mark.parametrize("dtype", ["float64", "float16", "uint8", "int64"])
def test_arrays_come_back_as_float32(load, tmp_path, ending, dtype):
    values = np.arange(24).reshape(4, 2, 3).astype(dtype)
    tar(tmp_path / "a.tar", {f"{i}.{ending}": encoded(value, ending) for i, value in enumerate(values)})
    dataset = load("a.tar")
    assert dataset.range is dataset.labels is None
    assert torch.equal(whole(dataset).x1, torch.from_numpy(values.astype(np.float32)))
    assert dataset.batch(torch.empty(0, dtype=torch.int64)).x1.shape == (0, 2, 3)


def test_member_names_are_cut_at_the_first_dot(load, tmp_path):
    """Folders belong to the key, so that the same number may stand in several; endings are compared in lower case."""
    tar(
        tmp_path / "a.tar",
        [
            ("one/1.left.PNG", grey(1)),
            ("one/1.right.png", grey(2)),
            ("two/1.left.png", grey(3)),
            ("two/1.right.png", grey(4)),
        ],
    )
    assert whole(load(field="left.png", mode="L")).x1[:, 0, 0, 0].tolist() == [1.0, 3.0]
    assert whole(load(field="right.png", mode="L")).x1[:, 0, 0, 0].tolist() == [2.0, 4.0]


def test_hidden_members_are_passed_over(load, tmp_path):
    tar(
        tmp_path / "a.tar",
        {"__about__.json": b"{}", "a/._0.png": b"x", "a/0.png": grey(1), "a/.x": b"", "a/1.png": grey(2)},
    )
    assert len(load()) == 2


def test_labels_come_from_text_and_json(load, tmp_path):
    tar(tmp_path / "a.tar", {"0.npy": numbers(1), "0.txt": b" 4 ", "0.json": b'{"label": 1, "kind": 2}'})
    assert load().labels is None
    assert load(labels="txt").labels.tolist() == [4]
    assert load(labels="json").labels.tolist() == [1]
    assert load(labels="json", label_key="kind").classes == 3


def test_conditions_are_further_arrays(load, tmp_path):
    members = {}
    for i in range(3):
        members |= {f"{i}.npy": numbers(i), f"{i}.text.npy": numbers([i, 2], [3, 4]), f"{i}.cls": b"0"}
    tar(tmp_path / "a.tar", members)
    dataset = load(conditions=["text.npy"])
    assert dataset.condition_shapes == {"text": (2, 2)}
    batch = Samples(dataset, "data").at(torch.tensor([2, 0]))
    assert batch.x1[:, 0].tolist() == [2.0, 0.0]
    assert batch.conditions["text"][:, 0, 0].tolist() == [2.0, 0.0]
    with pytest.raises(DataError, match=r"found \.npy, \.text\.npy, \.cls\. Set `field`"):
        load()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=10)
def test_any_sample_of_any_shard_is_found(registry, tmp_path_factory, sizes, random):
    folder = tmp_path_factory.mktemp("shards")
    value = 0
    for number, size in enumerate(sizes):
        members = {}
        for _ in range(size):
            members[f"{value}.npy"] = numbers(*[value] * 3)
            members[f"{value}.txt"] = b"x" * random.randrange(2000)
            value += 1
        tar(folder / f"{number}.tar", members)
    dataset = registry.create("dataset", "shards", files=folder)
    indices = [random.randrange(value) for _ in range(20)]
    assert len(dataset) == value
    assert dataset.batch(torch.tensor(indices)).x1[:, 2].tolist() == [float(index) for index in indices]


def test_blocks_are_neighbours(load, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("gftkit_plugins.datasets.neighbours"), "MOST", 4)
    tar(tmp_path / "a.tar", {f"{i}.npy": numbers(i) for i in range(10)})
    tar(tmp_path / "b.tar", {f"{i}.npy": numbers(10 + i) for i in range(3)})
    dataset = load()
    assert dataset.blocks.tolist() == [4, 3, 3, 3]
    order = VisitOrder(Samples(dataset, "data"), 0, 4)
    assert sorted(order.take(0, 13).x1[:, 0].tolist()) == list(range(13))
    half = load(split="train", count=7, seed=1)
    assert half.blocks.sum() == 7
    assert sorted(VisitOrder(Samples(half, "data"), 0, 4).take(0, 7).x1[:, 0].tolist()) == half.indices.tolist()


def test_more_shards_than_may_be_open(load, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("gftkit_plugins.datasets.stretches"), "_OPEN", 2)
    for number in range(5):
        tar(tmp_path / f"{number}.tar", {"0.npy": numbers(number)})
    dataset = load()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        assert whole(dataset).x1[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert not before or len(os.listdir("/proc/self/fd")) <= before + 2
    assert whole(pickle.loads(pickle.dumps(dataset))).x1.sum() == 10


# The index


def test_headers_are_read_once(load, tmp_path, monkeypatch, cache):
    module = importlib.import_module("gftkit_plugins.datasets.archives.tar_index")
    made = []
    index = module._index
    monkeypatch.setattr(module, "_index", lambda *args: made.append(args[0].name) or index(*args))
    tar(tmp_path / "a.tar", {"0.npy": numbers(1)})
    tar(tmp_path / "b.tar", {"0.npy": numbers(2)})
    load()
    assert whole(load()).x1[:, 0].tolist() == [1.0, 2.0]
    assert made == ["a.tar", "b.tar"]
    tar(tmp_path / "b.tar", {"0.npy": numbers(3), "1.npy": numbers(4)})
    assert whole(load()).x1[:, 0].tolist() == [1.0, 3.0, 4.0]
    assert made == ["a.tar", "b.tar", "b.tar"]
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:30])
    assert len(load()) == 3
    assert len(made) == 5


def test_a_cache_that_cannot_be_written_costs_time_only(load, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GFTKIT_CACHE", str(tmp_path / "file"))
    tar(tmp_path / "a.tar", {"0.npy": numbers(1)})
    assert len(load()) == 1


# Bad input


def test_missing_shards_are_named(refused, tmp_path):
    tar(tmp_path / "s-00.tar", {"0.npy": numbers(1)})
    refused(r"s-01\.tar, \S+s-02\.tar, \S+s-03\.tar and 6 more: no such file\. Check the path", "s-{00..09}.tar")
    refused(r"t-\*\.tar: no such file", "t-*.tar")
    refused(r"braces hold a range .* got \{0-9\}", "s-{0-9}.tar")
    (tmp_path / "none").mkdir()
    refused(r"none: wanted a folder with \.tar files, found none", "none")


def test_shards_that_are_no_tar_files(refused, tmp_path):
    whole_shard = tar(tmp_path / "a.tar", {f"{i}.png": grey(i) for i in range(5)}).read_bytes()

    def bad(content, message):
        (tmp_path / "b.tar").write_bytes(content)
        refused(r"b\.tar: " + message)

    bad(b"", r"the shard is empty \(0 bytes\)\. Write it again")
    bad(bytes(10240), r"the shard is empty: it holds no sample")
    bad(gzip.compress(whole_shard), r"wanted a plain \.tar file, got one compressed by gzip\. Decompress it")
    bad(b"these are no members" * 100, r"wanted a complete \.tar file, .* Write or copy it again")
    bad(whole_shard + whole_shard, r"the archive ends at byte \d+, and more bytes follow.*tar --concatenate")


@pytest.mark.parametrize("cut", [300, 512, 600, 1024, 1500, 2048, 4000, 5120])
def test_a_shard_cut_off_anywhere_is_refused(refused, tmp_path, cut):
    """Also between two members, where tarfile sees an archive that ends."""
    whole_shard = tar(tmp_path / "a.tar", {f"{i}.png": grey(i) for i in range(5)}).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole_shard[:cut])
    refused(r"a\.tar: wanted a complete \.tar file, and this one is damaged, incomplete")


@pytest.mark.parametrize("cut", [2048, 4096])
def test_a_shard_cut_off_within_a_sample_is_not_told_to_lack_a_member(refused, tmp_path, cut):
    """The last sample is whole but for a member that lies behind the cut."""
    members = {f"{i}.{ending}": content for i in range(3) for ending, content in (("png", grey(i)), ("cls", b"0"))}
    whole_shard = tar(tmp_path / "a.tar", members).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole_shard[: cut + 1024])
    refused(r"a\.tar: wanted a complete \.tar file, and this one is damaged, incomplete")


def test_a_damaged_header_is_refused(refused, tmp_path):
    """tarfile takes a bad header in the middle for the end of the archive."""
    shard = bytearray(tar(tmp_path / "a.tar", {f"{i}.png": grey(i) for i in range(5)}).read_bytes())
    shard[2048 + 100] ^= 255
    (tmp_path / "a.tar").write_bytes(shard)
    refused(r"a\.tar: wanted a complete \.tar file, .*from byte 2048 on it isn't readable")


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ({"0.png": b"no picture"}, {}, r"member '0\.png': this picture can't be read"),
        ({"0.png": grey(0)[:20]}, {}, r"member '0\.png': this picture can't be read"),
        (
            {"0.png": grey(0), "1.png": grey(0, 4, 5)},
            {},
            r"'1\.png': wanted a picture of 4 x 4 .* like .*'0\.png', got 5 x 4",
        ),
        ({"0.png": encoded(np.zeros((4, 4), np.uint16))}, {}, r"'0\.png': wanted 8 bits for each colour, got .*I;16"),
        (
            {"0.png": grey(0), "1.cls": b"1"},
            {},
            r"sample '1': no member \.png, only \.cls\. The members of a sample",
        ),
        ({"0.png": grey(0), "0.cls": b"1", "1.png": grey(0)}, {}, r"sample '1': no member \.cls"),
        ({"0.png": grey(0), "0.cls": b"cat"}, {}, r"'0\.cls': wanted a class as a whole number, got b'cat'"),
        ({"0.png": grey(0), "0.cls": b"-1"}, {}, r"'0\.cls': wanted a class from 0 on, got -1"),
        (
            {"0.png": grey(0), "0.json": b"{}"},
            {"labels": "json"},
            r"under the key 'label', got b'\{\}'\. .*`label_key`",
        ),
        ({"0.png": grey(0), "0.json": b'{"label": 1.5}'}, {"labels": "json"}, r"wanted a class from 0 on, got 1\.5"),
        ({"0.png": grey(0), "0.json": b'{"label": true}'}, {"labels": "json"}, r"wanted a class from 0 on, got True"),
        (
            {"0.png": grey(0), "0.npy": numbers(1)},
            {},
            r"sample '0': wanted one picture or array, found \.png, \.npy\. Set",
        ),
        ({"0.txt": b"word"}, {}, r"sample '0': wanted one picture or array, found \.txt"),
        ({"0.txt": b"word"}, {"field": "txt"}, r"'txt' is neither a picture nor an array .*It has \.txt"),
        ({"0.npy": b"no array"}, {}, r"'0\.npy': wanted a complete \.npy file, .*damaged"),
        ({"0.npy": numbers(1, 2)[:-4]}, {}, r"'0\.npy': .*its header says 136 bytes, and it has 132"),
        ({"0.npy": numbers(1), "1.npy": numbers(1, 2)}, {}, r"'1\.npy': wanted an array of shape \(1,\), .*got \(2,\)"),
        (
            {"0.npy": numbers(1), "1.npy": numbers([1])},
            {},
            r"'1\.npy': wanted an array of shape \(1,\), .*got \(1, 1\)",
        ),
        ({"0.npy": encoded(np.array(["a"]), "npy")}, {}, r"'0\.npy': wanted real numbers .*got dtype <U1"),
        ({"0.safetensors": b"12345678901"}, {}, r"'0\.safetensors': wanted a complete \.safetensors file"),
        ({"0.safetensors": encoded({"a": [1.0], "b": [2.0]}, "safetensors")}, {}, r"wanted one array, .*Arrays: a, b"),
        ({"0.safetensors": encoded({"a": [True]}, "safetensors")}, {}, r"wanted real numbers .*got BOOL"),
        ([("0.png", grey(0)), ("0.png", grey(1))], {}, r"member '0\.png': it occurs twice"),
        ({"0.png": grey(0)}, {"conditions": ["npy"]}, r"wanted endings such as 'text\.npy', .*got 'npy'"),
        (
            {"0.png": grey(0), "0.b.png": grey(0)},
            {"field": "png", "conditions": ["b.png"]},
            r"wanted arrays .*got 'b\.png'",
        ),
    ],
)
def test_content_is_refused_at_the_start(refused, tmp_path, members, options, message):
    tar(tmp_path / "a.tar", members)
    refused(r"a\.tar.*" + message if "conditions" not in options else message, **options)


def test_shapes_are_compared_across_shards(refused, load, tmp_path):
    tar(tmp_path / "a.tar", {"0.png": grey(0)})
    tar(tmp_path / "b.tar", {"0.png": grey(0, 8, 8), "1.png": grey(0, 8, 8)})
    refused(
        r"b\.tar, member '0\.png': wanted a picture of 4 x 4 pixels, like \S+a\.tar, member '0\.png', got 8 x 8\. Set"
    )
    assert load(size=4).event_shape == (3, 4, 4)
    tar(tmp_path / "a.tar", {"0.npy": numbers(1)})
    tar(tmp_path / "b.tar", {"0.npy": numbers([1])})
    refused(r"b\.tar, member '0\.npy': wanted an array of shape \(1,\), as the first, got \(1, 1\)")


def test_links_are_refused(refused, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as opened:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        opened.addfile(link)
    refused(r"member '0\.png': wanted a plain file, got a link")


def test_pickled_content_never_runs(refused, tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    stream = io.BytesIO()
    np.save(stream, np.array([Payload()], dtype=object), allow_pickle=True)
    tar(tmp_path / "a.tar", {"0.npy": stream.getvalue()})
    refused(r"'0\.npy': wanted real numbers .*got dtype object")
    assert not (tmp_path / "ran").exists()


def test_bad_content_behind_good_headers_is_named_when_it_is_read(load, tmp_path):
    picture = encoded(np.random.default_rng(0).integers(256, size=(32, 32), dtype=np.uint8))
    damaged = picture[: len(picture) // 2] + bytes(len(picture) - len(picture) // 2)
    tar(tmp_path / "a.tar", {"0.png": picture, "x/1.png": damaged})
    dataset = load(mode="L")
    dataset.batch(torch.tensor([0]))
    with pytest.raises(DataError, match=r"a\.tar, member 'x/1\.png': this picture can't be read"):
        dataset.batch(torch.tensor([0, 1]))
    tar(tmp_path / "b.tar", {"0.npy": numbers(1.0), "1.npy": numbers(np.nan)})
    dataset = load("b.tar", count=2)
    with pytest.raises(DataError, match=r"b\.tar, member '1\.npy': wanted finite numbers .*Correct or remove"):
        whole(dataset)


def test_a_shard_that_shrinks_or_goes_is_named(load, tmp_path):
    shard = tar(tmp_path / "a.tar", {f"{i}.npy": numbers(i) for i in range(50)})
    dataset = load()
    os.truncate(shard, 2048)
    with pytest.raises(DataError, match=r"a\.tar: wanted 132 bytes from byte \d+ on, and the file is shorter"):
        whole(dataset)
    shard.unlink()
    with pytest.raises(DataError, match=r"a\.tar: can't be read \(No such file or directory\)"):
        whole(pickle.loads(pickle.dumps(dataset)))


def test_a_shard_without_permission_is_named(refused, tmp_path, monkeypatch):
    shard = tar(tmp_path / "a.tar", {"0.npy": numbers(1)})

    def open_refused(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.open", open_refused)
    refused(rf"^{re.escape(str(shard))}: can't be read \(Permission denied\)\. Check the path and its permissions")


def test_options_of_shards_are_checked(load, tmp_path):
    tar(tmp_path / "a.tar", {"0.png": grey(0)})
    with pytest.raises(ConfigError, match=r"size: wanted int, > 0 or null, got 0"):
        load(size=0)
    with pytest.raises(ConfigError, match=r"conditions: wanted list of str, got 'text\.npy'"):
        load(conditions="text.npy")
