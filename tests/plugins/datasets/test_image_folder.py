"""Folders of pictures: order, classes, sizes and colours are right, and what can't be read is named."""

import importlib

import numpy as np
import pytest
import torch
from PIL import Image
from support.data_files import picture, pictures, whole

from gftkit.kernel.errors import ConfigError, DataError


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
    monkeypatch.setattr(importlib.import_module("gftkit_plugins.datasets.images.image_folder"), "_MEMORY", 0)


@pytest.mark.parametrize("options", [{}, {"size": 3}, {"mode": "L"}])
def test_a_large_folder_is_decoded_batch_by_batch(registry, tmp_path, request, options):
    folder = pictures(tmp_path / "classes")
    kept = load_folder(registry, folder, **options)
    request.getfixturevalue("lazily")
    lazy = load_folder(registry, folder, **options)
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
    with pytest.raises(DataError, match=r"b\.png: wanted a picture of 64 x 64 pixels, like a\.png, got 64 x 32"):
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
    refused(r"b\.png: wanted a picture of 5 x 4 pixels, like a\.png, got 4 x 5\. Set `size`")
    assert load_folder(registry, tmp_path, size=4).event_shape == (3, 4, 4)
    for damaged in (b"", b"no picture", bad.read_bytes()[:-40], bad.read_bytes()[:20]):
        bad.write_bytes(damaged)
        refused(r"b\.png: this picture can't be read \(.*\)\. It is damaged or incomplete\. Replace or remove it")
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(bad)
    refused(r"b\.png: wanted 8 bits for each colour, got Pillow mode 'I;16'\. Convert it to 8 bits")


def test_folder_options_are_checked(registry, tmp_path):
    folder = pictures(tmp_path / "classes")
    with pytest.raises(ConfigError, match=r"mode: wanted 'RGB' or 'L', got 'CMYK'"):
        load_folder(registry, folder, mode="CMYK")
    with pytest.raises(ConfigError, match=r"size: wanted int, > 0 or null, got 0"):
        load_folder(registry, folder, size=0)
