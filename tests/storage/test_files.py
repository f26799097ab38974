"""Files and folders: locks, leftovers of killed writes, and names that are synced."""

import errno
import os

import pytest
import torch
from support import killing

from gftkit.kernel.errors import RunError
from gftkit.storage.documents import write_text
from gftkit.storage.files import lock_folder, remove_leftovers
from gftkit.storage.tensors import write_tensors


def test_the_lock_of_a_folder_is_released_after_an_error(tmp_path):
    with pytest.raises(RunError, match="gone wrong"), lock_folder(tmp_path / "new" / "deep"):
        raise RunError("gone wrong")
    assert os.listdir(tmp_path) == []


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    kept = ["step-000000003.safetensors", ".hidden", "x.part", ".notes-abcdefgh.txt"]
    for name in (*kept, ".step-000000006-abcdefgh.part.safetensors", ".config-12345678.part.yaml", ".tmpT8EkcD"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    remove_leftovers(tmp_path / "none")


def write_large(path):
    write_tensors(path, {"x": torch.zeros(50_000_000)}, {})


def test_leftovers_of_a_killed_write_are_removed_whoever_named_them(tmp_path):
    """safetensors writes into a file of its own first."""
    killing.preload()
    process = killing.CONTEXT.Process(target=write_large, args=(tmp_path / "step-000000001.safetensors",))
    process.start()
    while not any(path.stat().st_size for path in tmp_path.iterdir()):
        assert process.is_alive()
    killing.kill_after(process, 0)
    assert os.listdir(tmp_path)
    remove_leftovers(tmp_path)
    assert not os.listdir(tmp_path)


def test_the_name_of_a_new_file_is_synced_too(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def watched(handle):
        synced.append((os.path.realpath(f"/proc/self/fd/{handle}"), os.listdir(tmp_path)))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    write_text(tmp_path / "a.txt", "text")
    (file, before), (folder, after) = synced
    assert ".part" in file
    assert len(before) == 1
    assert "a.txt" not in before
    assert (folder, after) == (str(tmp_path.resolve()), ["a.txt"])


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_cannot_sync_folders_is_tolerated(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def refuse(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    if number == errno.EINVAL:
        write_text(tmp_path / "a.txt", "text")
    else:
        with pytest.raises(RunError, match="cannot write"):
            write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"
