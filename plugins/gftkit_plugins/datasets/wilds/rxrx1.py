"""Cells under the microscope after gene knockdowns, as WILDS has them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gftkit.kernel import DataError, Dataset
from gftkit_plugins.datasets.wilds.metadata import read_rows, whole_number
from gftkit_plugins.datasets.wilds.parts import Entry, Part, Pictures, Size, check_folder, divide, select_rows

_COLUMNS = ("cell_type", "dataset", "experiment", "plate", "well", "site", "sirna_id")
_SPLITS = ("train", "val", "test")
_CLASSES = 1139


def rxrx1(
    folder: Path,
    split: Literal["all", "train", "id_test", "val", "test"] = "all",
    domains: Annotated[list[str], Field(min_length=1)] | None = None,
    cell_types: Annotated[list[str], Field(min_length=1)] | None = None,
    part: Part = "all",
    size: Size = None,
) -> Dataset:
    """RxRx1-WILDS, fluorescence microscopy of cells: (3, 256, 256) or (3, size, size), values in [0, 255].

    The class is the siRNA that the cells were treated with, 1,139 of them (0 to 1107 treatments, then 30 positive
    controls and a negative one). The domain is the experiment, such as HEPG2-01, a batch of one cell type. Pictures are
    decoded batch by batch; nothing is downloaded.

    Args:
        folder: ``rxrx1_v1.0``, with ``metadata.csv`` and ``images``.
        split: "train" is the first site of the wells of 33 experiments, "id_test" their second; "val" (4 experiments)
            and "test" (14) have both.
        domains: keep only these experiments.
        cell_types: keep only these types of cell.
        part: of what is left, "train" takes two thirds, "test" the other third: to tune and to measure on one split.
        size: side to which pictures are resized, bicubic and antialiased; by default they stay as they are.

    Raises:
        DataError: for a folder that isn't laid out so, a metadata file that is missing, empty, cut off or lacks a
            column, rows without a picture, experiments or types that aren't there, and a size above the pictures'.

    Reference: Taylor et al. (2019), RxRx1: an image set for cellular morphological variation across many experimental
    batches, ICLR workshop AI for social good; Koh et al. (2021), arXiv:2012.07421, for the splits.

    Example:
        >>> import gftkit, tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     below = Path(folder, "images", "HEPG2-01", "Plate1")
        ...     below.mkdir(parents=True)
        ...     Image.new("RGB", (256, 256)).save(below / "B02_s2.png")
        ...     columns = "cell_type,dataset,experiment,plate,well,site,sirna_id\\n"
        ...     _ = Path(folder, "metadata.csv").write_text(columns + "HEPG2,train,HEPG2-01,1,B02,2,1138\\n")
        ...     data = gftkit.load().create("dataset", "rxrx1", folder=folder, split="id_test", size=64)
        >>> data.event_shape, data.labels
        ((3, 64, 64), tensor([1138]))
    """
    check_folder(folder, "rxrx1_v1.0")
    file = folder / "metadata.csv"
    names, labels = select_rows(_entries(file), split, {"domains": domains, "cell_types": cell_types}, file)
    cure = "Unpack the archive again, or delete their rows."
    return divide(Pictures(folder, names, labels, _CLASSES, size, cure), part)


def _entries(file: Path) -> Iterator[Entry]:
    for number, (cell_type, split, experiment, plate, well, site, sirna) in enumerate(read_rows(file, _COLUMNS)):
        where = f"{file}, row {number}"
        if split not in _SPLITS:
            raise DataError(
                f"{where}: wanted in column 'dataset' {', '.join(_SPLITS[:-1])} or {_SPLITS[-1]}, got '{split}'. Copy "
                f"or unpack the file again."
            )
        picture = f"images/{experiment}/Plate{plate}/{well}_s{site}.png"
        second = split == "train" and site == "2"
        label = whole_number(sirna, "sirna_id", _CLASSES, where)
        yield Entry("id_test" if second else split, (experiment, cell_type), label, picture)
