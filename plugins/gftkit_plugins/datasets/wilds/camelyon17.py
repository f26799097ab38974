"""Lymph node tissue from five hospitals, as WILDS has it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gftkit.kernel import DataError, Dataset
from gftkit_plugins.datasets.wilds.metadata import read_rows, whole_number
from gftkit_plugins.datasets.wilds.parts import Entry, Part, Pictures, Size, check_folder, divide, select_rows

_COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split")
_OF_CENTER = {1: "val", 2: "test"}
"""Hospitals that are held out whole."""
_OF_ROW = {"0": "train", "1": "id_val"}
"""What the column ``split`` says of the other hospitals' rows."""
_MOST = 2**31


def camelyon17(
    folder: Path,
    split: Literal["all", "train", "id_val", "val", "test"] = "all",
    domains: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None,
    part: Part = "all",
    size: Size = None,
) -> Dataset:
    """Camelyon17-WILDS, patches of stained lymph nodes: (3, 96, 96) or (3, size, size), values in [0, 255].

    Class 1 has tumour in its central 32x32 pixels, class 0 has none. The domain is the hospital, column ``center``.
    Patches are decoded batch by batch; nothing is downloaded.

    Args:
        folder: ``camelyon17_v1.0``, with ``metadata.csv`` and ``patches``.
        split: "train" and "id_val" are of hospitals 0, 3 and 4, "val" is hospital 1, "test" hospital 2.
        domains: keep only these hospitals.
        part: of what is left, "train" takes two thirds, "test" the other third: to tune and to measure on one split.
        size: side to which patches are resized, bicubic and antialiased; by default they stay as they are.

    Raises:
        DataError: for a folder that isn't laid out so, a metadata file that is missing, empty, cut off or lacks a
            column, rows without a picture, hospitals that aren't there, and a size above the pictures'.

    Reference: Bandi et al. (2019), IEEE Transactions on Medical Imaging 38(2); Koh et al. (2021), arXiv:2012.07421, for
    the splits.

    Example:
        >>> import gftkit, tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     below = Path(folder, "patches", "patient_004_node_4")
        ...     below.mkdir(parents=True)
        ...     Image.new("RGB", (96, 96)).save(below / "patch_patient_004_node_4_x_3328_y_21792.png")
        ...     columns = ",patient,node,x_coord,y_coord,tumor,slide,center,split\\n"
        ...     _ = Path(folder, "metadata.csv").write_text(columns + "0,004,4,3328,21792,1,0,3,0\\n")
        ...     data = gftkit.load().create("dataset", "camelyon17", folder=folder, split="train", size=64)
        >>> data.event_shape, data.labels
        ((3, 64, 64), tensor([1]))
    """
    check_folder(folder, "camelyon17_v1.0")
    file = folder / "metadata.csv"
    names, labels = select_rows(_entries(file), split, {"domains": domains}, file)
    cure = "Unpack the archive again, or delete their rows."
    return divide(Pictures(folder, names, labels, 2, size, cure), part)


def _entries(file: Path) -> Iterator[Entry]:
    for number, (patient, node, x, y, tumor, center, split) in enumerate(read_rows(file, _COLUMNS)):
        where = f"{file}, row {number}"
        hospital = whole_number(center, "center", _MOST, where)
        if split not in _OF_ROW and hospital not in _OF_CENTER:
            raise DataError(f"{where}: wanted in column 'split' 0 or 1, got '{split}'. Copy or unpack the file again.")
        lymph_node = f"patient_{patient}_node_{node}"
        picture = f"patches/{lymph_node}/patch_{lymph_node}_x_{x}_y_{y}.png"
        label = whole_number(tumor, "tumor", 2, where)
        yield Entry(_OF_CENTER.get(hospital) or _OF_ROW[split], (hospital,), label, picture)
