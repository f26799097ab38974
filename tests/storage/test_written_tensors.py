"""Tensors in a configuration: kept in it where they are small, and compared with their file where they aren't."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gftkit.kernel.errors import ConfigError, GftkitError, UnknownNameError
from gftkit.storage.written_tensors import read_written_tensor, resolve_written_tensor

WHERE = "constants.ids"


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_numbers_have_the_type_and_shape_that_are_written():
    assert torch.equal(read_written_tensor({"tensor": [[1, 2]]}, WHERE), torch.tensor([[1, 2]]))
    assert read_written_tensor({"tensor": True}, WHERE).dtype == torch.bool
    half = read_written_tensor({"tensor": 0.5, "shape": [2, 3], "dtype": "float16"}, WHERE)
    assert torch.equal(half, torch.full((2, 3), 0.5, dtype=torch.float16))


def test_a_small_file_is_kept_in_the_configuration(tmp_path):
    save_file({"one": draw(3, 2), "two": torch.arange(3)}, tmp_path / "ids.safetensors")
    resolved = resolve_written_tensor({"file": "ids.safetensors", "key": "two"}, tmp_path, WHERE)
    (tmp_path / "ids.safetensors").unlink()
    assert torch.equal(read_written_tensor(resolved, WHERE), torch.arange(3))
    assert resolve_written_tensor(resolved, tmp_path / "elsewhere", WHERE) == resolved
    with pytest.raises(ConfigError, match=r"constants.ids.content is damaged"):
        read_written_tensor({**resolved, "content": resolved["content"][:-8]}, WHERE)
    with pytest.raises(ConfigError, match=r"has changed: wanted a tensor of SHA-256 000"):
        read_written_tensor({**resolved, "sha256": "0" * 64}, WHERE)


def test_a_large_file_must_stay_as_it_was(tmp_path):
    np.save(tmp_path / "large.npy", draw(200, 200).numpy())
    resolved = resolve_written_tensor({"file": "large.npy"}, tmp_path, WHERE)
    assert "content" not in resolved
    assert torch.equal(read_written_tensor(resolved, WHERE), draw(200, 200))
    np.save(tmp_path / "large.npy", draw(200, 200).numpy() + 1)
    with pytest.raises(ConfigError, match=r"large.npy has changed"):
        read_written_tensor(resolved, WHERE)
    (tmp_path / "large.npy").unlink()
    with pytest.raises(GftkitError, match=r"large.npy"):
        read_written_tensor(resolved, WHERE)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"tensor": [1, [2]]}, "constants.ids.tensor: wanted numbers, or lists of one shape"),
        ({"tensor": 1, "file": "a.npy"}, "wanted either `tensor`, numbers, or `file`"),
        ({"tensor": 0.5, "dtype": "int64"}, "not all values are of type int64"),
        ({"tensor": 1, "dtype": "int4"}, "dtype: wanted one of bool"),
        ({"tensor": [1, 2], "shape": [3]}, r"shape: \(2,\) doesn't expand to \[3\]"),
        ({"file": "ids.pt"}, "wanted a .safetensors or .npy file"),
        ({"file": "ids.safetensors"}, r"key: wanted one of the tensors of .*\(one, two\), got None"),
        ({"file": "objects.npy"}, "isn't an array of numbers"),
        ({"file": "none.npy"}, "cannot read .*none.npy"),
    ],
)
def test_what_is_no_tensor_is_refused(written, message, tmp_path):
    save_file({"one": draw(2), "two": draw(2)}, tmp_path / "ids.safetensors")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(GftkitError, match=message):
        resolve_written_tensor(written, tmp_path, WHERE)


def test_an_unknown_key_is_refused():
    with pytest.raises(UnknownNameError, match="dtpye"):
        read_written_tensor({"tensor": 1, "dtpye": "int64"}, WHERE)
