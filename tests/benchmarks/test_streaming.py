"""Memory doesn't grow with the size of the set; what benchmarks/streaming.py measures is what it says."""

import importlib.util
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.data_files import encoded, tar
from support.paths import ROOT

import gftkit

TOLERANCE_MB = 25.0
"""By how much the peak of one process may differ from another's: allocators and the page size of what is mapped."""


@pytest.fixture(scope="module")
def streaming():
    file = ROOT / "benchmarks/streaming.py"
    spec = importlib.util.spec_from_file_location("streaming", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread_and_a_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GFTKIT_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["shards", "array"])
def test_sets_are_what_they_are_called(streaming, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(streaming, "SHARD", 3)
    spec = streaming.WRITERS[kind](tmp_path, 8)
    dataset = gftkit.load().create("dataset", spec.pop("name"), **spec)
    sample = streaming.samples()
    assert len(dataset) == 8
    for index in (0, 3, 7):
        assert torch.equal(dataset.batch(torch.tensor([index])).x1[0], torch.from_numpy(sample(index)).float())
    found = streaming.read({"name": "shards" if kind == "shards" else "arrays", **spec})
    assert found["samples"] == 8
    assert found["peak_mb"] > 50


def test_every_speed_is_measured(streaming, monkeypatch):
    monkeypatch.setattr(streaming, "BATCH", 4)
    rows = streaming.speed(count=8, rounds=1, where=None)
    assert [row["kind"] for row in rows] == ["image-folder", "shards of .png", "shards of .npy", "arrays, mapped"]
    assert rows[0]["times_image_folder"] == 1
    assert all(row["samples_per_second"] > 0 for row in rows)


def test_a_short_disk_is_refused_first(streaming, tmp_path):
    with pytest.raises(SystemExit, match=r"1200000000500 MB are wanted and \d+ MB are free\. Free some"):
        streaming.main(["--megabytes", str(10**12), "--folder", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_tables_and_figures(streaming, tmp_path, capsys):
    streaming.main(["--megabytes", "1", "--rounds", "1", "--pictures", "8", "--json", str(tmp_path / "f.json")])
    shown, found = capsys.readouterr().out, json.loads((tmp_path / "f.json").read_text())
    assert [row["kind"] for row in found["memory"]] == ["nothing", "shards"]
    assert "| shards | 1 | 20 |" in shown
    assert len(found["speed"]) == 4


@pytest.mark.slow
def test_memory_does_not_grow_with_shards(streaming):
    small, large = (streaming.memory("shards", size, None) for size in (30, 300))
    assert large["samples"] == pytest.approx(10 * small["samples"], abs=10)
    assert large["peak_mb"] - small["peak_mb"] < TOLERANCE_MB
    held = streaming.memory("shards", 60, None, held=True)  # a reader that keeps what it read is seen
    assert held["peak_mb"] - small["peak_mb"] > 100


@pytest.mark.slow
def test_memory_does_not_grow_with_an_array(streaming, tmp_path):
    """Files with holes: 1.1 and 2.2 GB that take no space on the disk."""
    peaks = []
    for size in (1.1, 2.2):
        file = tmp_path / f"{size}.npy"
        np.lib.format.open_memmap(file, "w+", np.float32, (int(size * 1e9) // 4 // 50_000, 50_000)).flush()
        peaks.append(streaming.in_a_process({"name": "arrays", "file": str(file)}, False, tmp_path)["peak_mb"])
    assert peaks[1] - peaks[0] < TOLERANCE_MB


def stream_of(kind, folder):
    """A small set in blocks of eight: its specification."""
    values = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    if kind == "shards":
        for number in range(2):
            part = range(25 * number, 25 * number + 25)
            tar(folder / f"{number}.tar", {f"{i}.npy": encoded(values[i], "npy") for i in part})
        return {"name": "shards", "files": str(folder / "{0..1}.tar")}
    if kind == "huggingface":
        datasets.Dataset.from_dict({"x": values.tolist()}).to_parquet(folder / "x.parquet")
        return {"name": "huggingface", "files": str(folder / "x.parquet")}
    np.save(folder / "x.npy", values)
    return {"name": "arrays", "file": str(folder / "x.npy")}


SLOW = pytest.mark.slow


@pytest.mark.parametrize("kind", ["shards", pytest.param("huggingface", marks=SLOW), pytest.param("array", marks=SLOW)])
def test_a_resumed_run_goes_on_in_the_same_order(registry, pretrain_config, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("gftkit_plugins.datasets.neighbours.MOST", 8)
    monkeypatch.setattr("gftkit_plugins.datasets.arrays._LARGE", 0)
    monkeypatch.setattr("gftkit_plugins.datasets.arrays._BLOCK_ROWS", 8)
    train = {**pretrain_config["train"], "shuffle_buffer": 16}
    config = {**pretrain_config, "data": stream_of(kind, tmp_path), "train": train}
    whole = gftkit.pretrain(config, tmp_path / "whole", registry=registry).folder
    broken = shutil.copytree(whole, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    sorted((broken / "checkpoints").glob("*.safetensors"))[-1].unlink()
    gftkit.pretrain(config, broken, registry=registry, resume=True)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
