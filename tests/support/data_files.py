"""What the tests of data sets share: files that they make, and the whole of a data set as one batch."""

import io
import tarfile

import numpy as np
import safetensors.torch
import torch
from PIL import Image


def whole(dataset):
    return dataset.batch(torch.arange(len(dataset)))


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


def picture(file, color, size=(4, 4), mode="RGB"):
    """A picture of one colour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(file)
    return file


def pictures(folder):
    """21 pictures of 5 x 4 random pixels in the classes ant, bee and cat."""
    generator = np.random.default_rng(0)
    for label in ("cat", "ant", "bee"):
        (folder / label).mkdir(parents=True)
        for number in range(7):
            pixels = generator.integers(256, size=(5, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def tar(file, members):
    """A plain tar file of these members: name -> bytes, or pairs of them."""
    with tarfile.open(file, "w") as opened:
        for name, content in members.items() if isinstance(members, dict) else members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            opened.addfile(about, io.BytesIO(content))
    return file


def encoded(values, ending="png"):
    """The bytes of a file: a picture of (h, w) or (h, w, 3) of uint8, or an array, one or by name."""
    stream = io.BytesIO()
    if ending == "npy":
        np.save(stream, values)
    elif ending == "safetensors":
        named = values if isinstance(values, dict) else {"x1": values}
        return safetensors.torch.save({name: torch.as_tensor(array) for name, array in named.items()})
    else:
        Image.fromarray(values).save(stream, ending)
    return stream.getvalue()
