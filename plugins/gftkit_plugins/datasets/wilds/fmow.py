"""Satellite pictures of the world over the years, as WILDS has them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gftkit.kernel import DataError, Dataset
from gftkit_plugins.datasets.wilds.metadata import read_rows
from gftkit_plugins.datasets.wilds.parts import Entry, Part, Pictures, Size, check_folder, divide, select_rows

_COLUMNS = ("split", "category", "country_code", "timestamp")
_SEQUESTERED = "seq"
_SPLITS = ("train", "val", "test", _SEQUESTERED)
_VALIDATION_FROM, _TEST_FROM = 2013, 2016
"""Years that are held out: of the rows before the first one there are train, id_val and id_test."""
_OTHER = "Other"
"""The region of a country that the mapping doesn't have."""
_NAMES = """
    airport airport_hangar airport_terminal amusement_park aquaculture archaeological_site barn border_checkpoint
    burial_site car_dealership construction_site crop_field dam debris_or_rubble educational_institution
    electric_substation factory_or_powerplant fire_station flooded_road fountain gas_station golf_course
    ground_transportation_station helipad hospital impoverished_settlement interchange lake_or_pond lighthouse
    military_facility multi-unit_residential nuclear_powerplant office_building oil_or_gas_facility park
    parking_lot_or_garage place_of_worship police_station port prison race_track railway_bridge recreational_facility
    road_bridge runway shipyard shopping_mall single-unit_residential smokestack solar_farm space_facility stadium
    storage_tank surface_mine swimming_pool toll_booth tower tunnel_opening waste_disposal water_treatment_facility
    wind_farm zoo
"""
CATEGORIES = tuple(_NAMES.split())
"""The classes, in the order of their numbers."""


def fmow(
    folder: Path,
    split: Literal["all", "train", "id_val", "id_test", "val", "test"] = "all",
    domains: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None,
    regions: Annotated[list[str], Field(min_length=1)] | None = None,
    part: Part = "all",
    size: Size = None,
) -> Dataset:
    """FMoW-WILDS, satellite pictures: (3, 224, 224) or (3, size, size), values in [0, 255].

    The class is what the land or building is used for, 62 of them, numbered by the alphabet. The domain is the year of
    the picture, in UTC. Pictures are decoded batch by batch; nothing is downloaded.

    Args:
        folder: ``fmow_v1.1``, with ``rgb_metadata.csv`` and ``images``; for ``regions`` with
            ``country_code_mapping.csv``, too.
        split: "train", "id_val" and "id_test" are from before 2013, "val" from 2013 to 2015, "test" from 2016 on. "all"
            has rows of no split, too, such as the training rows from 2013 on. Sequestered rows are never given.
        domains: keep only these years.
        regions: keep only these parts of the world: Africa, Americas, Asia, Europe, Oceania, Other.
        part: of what is left, "train" takes two thirds, "test" the other third: to tune and to measure on one split.
        size: side to which pictures are resized, bicubic and antialiased; by default they stay as they are.

    Raises:
        DataError: for a folder that isn't laid out so, a metadata file that is missing, empty, cut off or lacks a
            column, rows without a picture, years or regions that aren't there, and a size above the pictures'.

    Reference: Christie et al. (2018), Functional Map of the World, arXiv:1711.07846; Koh et al. (2021),
    arXiv:2012.07421, for the splits.

    Example:
        >>> import gftkit, tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "images").mkdir()
        ...     Image.new("RGB", (224, 224)).save(Path(folder, "images", "rgb_img_0.png"))
        ...     columns = "split,category,country_code,timestamp\\n"
        ...     _ = Path(folder, "rgb_metadata.csv").write_text(columns + "test,zoo,PER,2016-02-29T15:04:05Z\\n")
        ...     data = gftkit.load().create("dataset", "fmow", folder=folder, domains=[2016], size=64)
        >>> data.event_shape, data.labels
        ((3, 64, 64), tensor([61]))
    """
    check_folder(folder, "fmow_v1.1")
    file = folder / "rgb_metadata.csv"
    region_of = None
    if regions is not None:
        pairs = read_rows(folder / "country_code_mapping.csv", ("alpha-3", "region"))
        region_of = {code: region or _OTHER for code, region in pairs}
    names, labels = select_rows(_entries(file, region_of), split, {"domains": domains, "regions": regions}, file)
    cure = "Unpack the archive again. Don't delete rows: a picture is named by the number of its row."
    return divide(Pictures(folder, names, labels, len(CATEGORIES), size, cure), part)


def _entries(file: Path, region_of: dict[str, str] | None) -> Iterator[Entry]:
    numbers = {category: number for number, category in enumerate(CATEGORIES)}
    for row, (stated, category, country, timestamp) in enumerate(read_rows(file, _COLUMNS)):
        if stated == _SEQUESTERED:
            continue
        where = f"{file}, row {row}"
        if stated not in _SPLITS:
            raise DataError(
                f"{where}: wanted in column 'split' {', '.join(_SPLITS[:-1])} or {_SPLITS[-1]}, got '{stated}'. "
                f"Copy or unpack the file again."
            )
        if category not in numbers:
            raise DataError(
                f"{where}: wanted in column 'category' one of the {len(numbers)} categories of FMoW, got '{category}'. "
                f"Copy or unpack the file again."
            )
        year = _year(timestamp, where)
        region = _OTHER if region_of is None else region_of.get(country, _OTHER)
        yield Entry(_split(stated, year), (year, region), numbers[category], f"images/rgb_img_{row}.png")


def _split(stated: str, year: int) -> str | None:
    """The split of a row by what the file says and its year."""
    if year < _VALIDATION_FROM:
        return stated if stated == "train" else f"id_{stated}"
    return stated if stated == ("test" if year >= _TEST_FROM else "val") else None


def _year(timestamp: str, where: str) -> int:
    """The year in UTC of a time in ISO 8601, which is UTC where it names no zone."""
    try:
        time = datetime.fromisoformat(timestamp)
    except ValueError:
        raise DataError(
            f"{where}: wanted in column 'timestamp' a time such as 2016-01-31T12:00:00Z, got '{timestamp}'. Copy or "
            f"unpack the file again."
        ) from None
    return time.year if time.tzinfo is None else time.astimezone(UTC).year
