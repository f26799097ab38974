"""Pictures as arrays of pixels."""

from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import numpy as np

from gftkit.kernel import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Mode = Literal["RGB", "L"]
Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_ORIENTATION = 0x0112
_TURNED = range(5, 9)
"""The EXIF tag for orientation, and its values that swap width and height."""


class Decoder:
    """Decodes pictures to one size and mode, (c, h, w) of uint8.

    Orientation from a camera is applied; transparency is dropped; of an animation the first picture counts.

    Args:
        size: side of the square that every picture is cut (centrally) and resized to, bicubic and antialiased; None
            keeps pictures as they are.
        mode: "RGB" for colour, "L" for grey.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("L", (6, 4), 9).save(file, "png")
        >>> Decoder(2, "RGB").decode(file, "a grey picture").shape
        (3, 2, 2)
    """

    def __init__(self, size: int | None, mode: Mode) -> None:
        self.size, self.mode = size, mode
        self.first: tuple[str, tuple[int, int]] | None = None
        """Name and (h, w) of the picture whose size all must have; used where there is no ``size``."""

    def decode(self, source: Path | IO[bytes], who: str) -> Pixels:
        """The pixels of one picture.

        Raises:
            DataError: naming ``who``, for a picture that can't be read, has more than 8 bits, or another size than the
                first.
        """
        from PIL import Image, ImageOps

        try:
            with Image.open(source) as opened:
                opened.load()
                image: Image.Image = ImageOps.exif_transpose(opened)
            check_depth(image, who)
            self.check_shape((image.height, image.width), who)
            if "transparency" in image.info:
                image = image.convert("RGBA")  # Pillow warns where a palette with transparency goes straight to RGB
            image = image.convert(self.mode)
            if self.size is not None:
                image = _square(image).resize((self.size, self.size), Image.Resampling.BICUBIC)
            pixels = np.array(image, dtype=np.uint8)
        except (DataError, MemoryError):
            raise
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
            raise _unreadable(who, error) from error
        return pixels[None] if self.mode == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def check_shape(self, shape: tuple[int, int], who: str) -> None:
        """Refuse a picture that wants resizing where no ``size`` is given.

        Raises:
            DataError: naming both pictures and sizes.
        """
        if self.size is None and self.first is not None and self.first[1] != shape:
            first, (height, width) = self.first
            raise DataError(
                f"{who}: wanted a picture of {width} x {height} pixels, like {first}, got {shape[1]} x {shape[0]}. "
                f"Set `size` to cut and resize all of them."
            )


def header_shape(source: Path | IO[bytes], who: str) -> tuple[int, int]:
    """(h, w) of a picture by its header; one turned by a note at the end of a PNG file isn't noticed.

    Raises:
        DataError: naming ``who``, for what is no picture or has more than 8 bits.
    """
    from PIL import Image

    try:
        with Image.open(source) as image:
            check_depth(image, who)
            # a PNG keeps its orientation at the end: looking there would decode it
            turned = image.format != "PNG" and image.getexif().get(_ORIENTATION) in _TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise _unreadable(who, error) from error


def check_depth(image: "Image", who: str) -> None:
    """Refuse pictures of more than 8 bits.

    Raises:
        DataError: naming ``who`` and the mode.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        raise DataError(
            f"{who}: wanted 8 bits for each colour, got Pillow mode '{image.mode}'. Convert it to 8 bits, or give "
            f"the numbers as arrays (data set 'arrays', or .npy members of 'shards')."
        )


def _square(image: "Image") -> "Image":
    """The central square, as large as the picture allows."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _unreadable(who: str, error: Exception) -> DataError:
    return DataError(f"{who}: this picture can't be read ({error}). It is damaged or incomplete. Replace or remove it.")
