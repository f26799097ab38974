"""Samples in parquet or arrow files, through Hugging Face datasets."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from gftkit.kernel import Batch, DataError
from gftkit_plugins.datasets import cache
from gftkit_plugins.datasets.archives.columns import Column, holds_arrays, holds_pictures
from gftkit_plugins.datasets.images.pictures import Decoder, Mode
from gftkit_plugins.datasets.neighbours import blocks_of_neighbours
from gftkit_plugins.datasets.patterns import files_of

_LABEL = "label"
_EMPTY = "{}: it is empty: there is no row in it. Write it again, or leave it out."


class HuggingFace:
    """A Hugging Face data set on disk: parquet or arrow files, or a folder of ``save_to_disk``; pictures or arrays.

    Pictures are (3, h, w) or (1, h, w) with values in [0, 255]. Arrays (lists of numbers, ``Array2D`` and so on) are
    given out as float32 and never rescaled. Nothing is downloaded.

    Arrow files are mapped into memory, and any row can be read at once. Parquet files are first written as arrow files
    into the cache folder (``GFTKIT_CACHE``), which takes their unpacked size on disk. Training visits blocks of up to
    1,024 neighbours (``train.shuffle_buffer``).

    Args:
        files: a folder, a file, or a pattern such as ``train-*.parquet``.
        column: the column with the samples; by default the only one that holds pictures or arrays.
        labels: the column with the class, whole numbers from 0 or a ``ClassLabel``; by default ``label``, if there is
            one.
        conditions: further columns of arrays, each given to the drift as the condition of its name.
        size: side of the square that every picture is cut (centrally) and resized to, bicubic and antialiased. Without
            it all pictures must have one size.
        mode: "RGB" for colour, "L" for grey.

    Raises:
        ImportError: without datasets, which the extra ``gftkit[streaming]`` brings.
        DataError: for files that are missing, damaged, empty or of different columns, columns that aren't there or hold
            something else, empty values, and samples of different shapes.

    Example:
        >>> import datasets, gftkit, tempfile, torch
        >>> made = datasets.Dataset.from_dict({"x": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made.save_to_disk(folder)
        ...     data = gftkit.load().create("dataset", "huggingface", files=folder)
        ...     data.event_shape, data.classes, data.batch(torch.tensor([1])).x1
        ((2,), 2, tensor([[3., 4.]]))
    """

    def __init__(
        self,
        files: Path,
        column: str | None = None,
        labels: str | None = None,
        conditions: tuple[str, ...] = (),
        size: Annotated[int, Field(gt=0)] | None = None,
        mode: Mode = "RGB",
    ) -> None:
        self._where = str(files)
        table = _open_files(files)
        if len(table) == 0:
            raise DataError(_EMPTY.format(files))
        names = list(table.column_names)
        for name in filter(None, (column, labels, *conditions)):
            if name not in names:
                raise DataError(f"{files}: no column '{name}'. Columns: {', '.join(names)}.")
        if labels is None and _LABEL in names and _LABEL not in (column, *conditions):
            labels = _LABEL
        column = column or self._only_column(table, (labels, *conditions))
        self.labels: Tensor | None = None
        self.classes: int | None = None
        if labels is not None:
            self.labels = self._labels(table, labels)
            self.classes = getattr(table.features[labels], "num_classes", None) or int(self.labels.max()) + 1
        pictures = holds_pictures(table.features[column])
        self.range: tuple[float, float] | None = (0.0, 255.0) if pictures else None
        self._samples = self._column(table, column, Decoder(size, mode) if pictures else None)
        self._conditions = [self._column(table, name, None) for name in conditions]
        self.event_shape = self._samples.shape or ()
        if not self.event_shape:
            raise DataError(
                f"{files}, column '{column}': wanted pictures or arrays, got single numbers. Put them in lists."
            )
        self.condition_shapes = {each.name: each.shape or () for each in self._conditions}
        self.blocks = blocks_of_neighbours(len(table))
        self._length = len(table)

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: Tensor) -> Batch:
        """The samples at these indices, (batch,) of int64.

        Raises:
            DataError: naming the row, for a picture that can't be read, another shape than the first row's, or numbers
                that aren't finite.
        """
        rows = indices.tolist()
        label = None if self.labels is None else self.labels[indices]
        return Batch(self._samples.read(rows), label, None, {each.name: each.read(rows) for each in self._conditions})

    def _column(self, table: Any, name: str, decoder: Decoder | None) -> Column:
        from datasets import Image

        if decoder is None and not holds_arrays(table.features[name]):
            raise DataError(
                f"{self._where}, column '{name}': wanted pictures or arrays of numbers, got {table.features[name]}. "
                f"Name another column."
            )
        rows = table.select_columns([name])
        if type(table.features[name]).__name__ == "Image":
            rows = rows.cast_column(name, Image(decode=False))
        return Column(rows.with_format("numpy"), name, self._where, decoder)

    def _only_column(self, table: Any, taken: tuple[str | None, ...]) -> str:
        able = [
            name
            for name, feature in table.features.items()
            if name not in taken and (holds_pictures(feature) or holds_arrays(feature))
        ]
        if len(able) != 1:
            raise DataError(
                f"{self._where}: wanted one column of pictures or arrays, found {', '.join(able) or 'none'} among "
                f"{', '.join(table.column_names)}. Set `column` to one of them."
            )
        return able[0]

    def _labels(self, table: Any, name: str) -> Tensor:
        """(n,) of int64, checked."""
        values = table.select_columns([name]).with_format("numpy")[:][name]
        if values.dtype.kind not in "iu" or values.ndim != 1:
            raise DataError(
                f"{self._where}, column '{name}': wanted one whole number in every row, got {table.features[name]}, or "
                f"rows without any. Number the classes from 0."
            )
        labels = torch.from_numpy(values).to(torch.int64)
        if (low := int(labels.min())) < 0:
            raise DataError(f"{self._where}, column '{name}': wanted labels from 0 on, got {low}. Drop such rows.")
        return labels


def _open_files(files: Path) -> Any:
    """The data set of the datasets library; parquet files as arrow files in the cache folder."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"the package datasets is required: {error}. Install it: pip install 'gftkit[streaming]'"
        ) from error
    if (files / "dataset_dict.json").is_file():
        names = ", ".join(sorted(part.name for part in files.iterdir() if part.is_dir()))
        raise DataError(f"{files}: wanted one data set, found several: {names}. Give the folder of one.")
    if (files / "state.json").is_file():
        if not any(files.glob("*.arrow")):  # so the library writes a set without rows, and can't read it
            raise DataError(_EMPTY.format(files))
        return _guard(files, lambda: datasets.load_from_disk(str(files)))
    ending = (
        ".parquet" if files.suffix != ".arrow" and not (files.is_dir() and any(files.glob("*.arrow"))) else ".arrow"
    )
    paths = files_of(files, ending)
    if ending == ".arrow":
        parts = [_guard(file, lambda file=file: datasets.Dataset.from_file(str(file))) for file in paths]
        _check_alike(paths, [part.features for part in parts])
        return datasets.concatenate_datasets(parts)
    _check_parquet(paths)
    return _guard(
        files,
        lambda: datasets.Dataset.from_parquet(
            [str(file) for file in paths], cache_dir=str(cache.folder() / "huggingface"), keep_in_memory=False
        ),
    )


def _check_parquet(files: list[Path]) -> None:
    """Read every file's end, where a parquet file says what it holds."""
    from pyarrow import parquet

    schemas = []
    for file in files:
        about = _guard(file, lambda file=file: parquet.ParquetFile(str(file)))
        if about.metadata.num_rows == 0:
            raise DataError(_EMPTY.format(file))
        schemas.append({column.name: str(column.type) for column in about.schema_arrow})
        about.close()
    _check_alike(files, schemas)


def _check_alike(files: list[Path], columns: list[Any]) -> None:
    for file, own in zip(files, columns, strict=True):
        if own != columns[0]:
            raise DataError(
                f"{file}: wanted the columns of {files[0].name}, {columns[0]}, got {own}. Write all files with the "
                f"same columns."
            )


def _guard(file: Path, read: Any) -> Any:
    """The result of ``read``; any failure in a library becomes one message about the file."""
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:  # pyarrow and datasets raise nearly anything for damaged bytes
        cause = error.__cause__ or error
        reason = str(cause).split("\n", 1)[0].rstrip(".") or type(cause).__name__
        raise DataError(
            f"{file}: can't be read ({reason}). Check its permissions and the space in the cache folder. If it is "
            f"damaged or of another format, write it again."
        ) from error
