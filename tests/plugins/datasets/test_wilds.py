"""Data sets of WILDS: splits, domains, file names and labels are those of WILDS, and what is wrong is named."""

import shutil

import pytest
import torch
from support.data_files import whole
from support.wilds_folders import MADE, camelyon17, fmow, picture, rxrx1, shade

from gftkit.kernel.errors import ConfigError, DataError

every = pytest.mark.parametrize("name", sorted(MADE))


@pytest.fixture
def rows_of(registry):
    """The numbers of the rows that a data set gives, told by the colours of its pictures."""

    def find(name, folder, count, **options):
        batch = whole(registry.create("dataset", name, folder=folder, **options))
        shades = [shade(index, count)[0] for index in range(count)]
        assert len(set(shades)) == count
        return [shades.index(int(value)) for value in batch.x1[:, 0, 0, 0]]

    return find


@pytest.fixture
def splits_of(registry, rows_of):
    """Every split's rows, in the order of the file."""

    def find(name, folder, count):
        split = next(option for option in registry.describe("dataset", name).options if option.name == "split")
        words = split.type_text.replace("'", "").split(" or ")
        return {word: some(name, folder, count, word) for word in words}

    def some(name, folder, count, word):
        try:
            return rows_of(name, folder, count, split=word)
        except DataError as error:
            if "No row is of that split" in str(error):
                return []
            raise

    return find


# Rules

CAMELYON17 = [
    # patient, node, x, y, tumor, slide, center, split
    ("004", 4, 3328, 21792, 1, 0, 0, 0),
    ("004", 4, 3200, 22272, 0, 0, 0, 1),
    ("020", 2, 96, 5, 1, 11, 1, 0),
    ("021", 0, 96, 5, 0, 12, 1, 1),
    ("042", 3, 11, 7, 1, 23, 2, 0),
    ("099", 1, 12, 8, 0, 24, 2, 1),
    ("060", 3, 13, 9, 1, 30, 3, 0),
    ("081", 4, 14, 9, 0, 40, 4, 1),
]
SPLITS = {"all": [0, 1, 2, 3, 4, 5, 6, 7], "train": [0, 6], "id_val": [1, 7], "val": [2, 3], "test": [4, 5]}


def test_camelyon17_is_split_by_hospital(splits_of, rows_of, registry, tmp_path):
    folder = camelyon17(tmp_path / "c", CAMELYON17)
    assert splits_of("camelyon17", folder, 8) == SPLITS
    assert rows_of("camelyon17", folder, 8, domains=[0, 2]) == [0, 1, 4, 5]
    assert rows_of("camelyon17", folder, 8, split="train", domains=[3]) == [6]
    data = registry.create("dataset", "camelyon17", folder=folder)
    assert (data.labels.tolist(), data.classes, data.event_shape) == ([1, 0] * 4, 2, (3, 6, 6))


@pytest.mark.parametrize(("row", "column", "value"), [(2, 6, 0), (4, 6, 1), (0, 7, 1), (1, 7, 0), (6, 6, 2)])
def test_camelyon17_with_a_rule_broken_is_split_otherwise(splits_of, tmp_path, row, column, value):
    changed = [list(each) for each in CAMELYON17]
    changed[row][column] = value
    assert splits_of("camelyon17", camelyon17(tmp_path / "c", changed), 8) != SPLITS


RXRX1 = [
    # cell type, dataset, experiment, plate, well, site, sirna_id
    ("HEPG2", "train", "HEPG2-01", 1, "B02", 1, 513),
    ("HEPG2", "train", "HEPG2-01", 1, "B02", 2, 513),
    ("U2OS", "train", "U2OS-03", 4, "O23", 2, 1138),
    ("HUVEC", "val", "HUVEC-17", 2, "C03", 1, 0),
    ("HUVEC", "val", "HUVEC-17", 2, "C03", 2, 0),
    ("RPE", "test", "RPE-08", 3, "D04", 1, 7),
    ("HEPG2", "test", "HEPG2-08", 3, "D04", 2, 7),
]
BY_SITE = {"all": [0, 1, 2, 3, 4, 5, 6], "train": [0], "id_test": [1, 2], "val": [3, 4], "test": [5, 6]}


def test_rxrx1_keeps_the_second_site_of_training_for_a_test(splits_of, rows_of, registry, tmp_path):
    folder = rxrx1(tmp_path / "r", RXRX1)
    assert splits_of("rxrx1", folder, 7) == BY_SITE
    assert rows_of("rxrx1", folder, 7, domains=["HUVEC-17", "RPE-08"]) == [3, 4, 5]
    assert rows_of("rxrx1", folder, 7, cell_types=["HEPG2"]) == [0, 1, 6]
    assert rows_of("rxrx1", folder, 7, cell_types=["HEPG2"], domains=["HEPG2-08", "RPE-08"]) == [6]
    data = registry.create("dataset", "rxrx1", folder=folder)
    assert (data.labels.tolist(), data.classes) == ([513, 513, 1138, 0, 0, 7, 7], 1139)


@pytest.mark.parametrize(("row", "column", "value"), [(1, 5, 3), (0, 5, 2), (3, 1, "train"), (6, 1, "val")])
def test_rxrx1_with_a_rule_broken_is_split_otherwise(splits_of, tmp_path, row, column, value):
    changed = [list(each) for each in RXRX1]
    changed[row][column] = value
    assert splits_of("rxrx1", rxrx1(tmp_path / "r", changed), 7) != BY_SITE


FMOW = [
    # split, category, country code, timestamp
    ("train", "zoo", "PER", "2012-12-31T23:59:59Z"),
    ("seq", "no category", "USA", "2010-01-01T00:00:00Z"),
    ("train", "airport", "KEN", "2013-01-01T00:00:00Z"),
    ("val", "airport", "KEN", "2009-02-03T04:05:06.789Z"),
    ("val", "tower", "ATA", "2013-01-01T00:00:00Z"),
    ("seq", "airport", "PER", "2016-01-01T00:00:00Z"),
    ("val", "tower", "XXX", "2016-01-01T00:00:00Z"),
    ("test", "zoo", "PER", "2012-07-01T00:00:00Z"),
    ("test", "zoo", "PER", "2015-12-31T23:59:59Z"),
    ("test", "zoo", "KEN", "2015-12-31T22:30:00-02:00"),
    ("test", "multi-unit_residential", "KEN", "2016-01-01 00:00:00"),
    ("val", "zoo", "KEN", "2016-01-01T00:30:00+01:00"),
    ("train", "zoo", "KEN", "2017-05-01T00:00:00Z"),
]
BY_YEAR = {
    "all": [0, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12],
    "train": [0],
    "id_val": [3],
    "id_test": [7],
    "val": [4, 11],
    "test": [9, 10],
}


def test_fmow_is_split_by_year_and_counts_the_rows_that_it_drops(splits_of, rows_of, registry, tmp_path):
    folder = fmow(tmp_path / "f", FMOW)
    assert splits_of("fmow", folder, 13) == BY_YEAR
    assert rows_of("fmow", folder, 13, domains=[2013, 2017]) == [2, 4, 12]
    assert rows_of("fmow", folder, 13, regions=["Other"]) == [4, 6]
    assert rows_of("fmow", folder, 13, regions=["Africa", "Americas"], domains=[2012, 2013]) == [0, 2, 7]
    data = registry.create("dataset", "fmow", folder=folder)
    assert (data.labels.tolist(), data.classes) == ([61, 0, 0, 56, 56, 61, 61, 61, 30, 61, 61], 62)


def test_fmow_s_categories_are_numbered_by_the_alphabet():
    from gftkit_plugins.datasets.wilds.fmow import CATEGORIES

    assert len(set(CATEGORIES)) == 62
    assert list(CATEGORIES) == sorted(CATEGORIES)


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [
        (0, 3, "2013-01-01T00:00:00Z"),
        (4, 3, "2012-12-31T23:59:59Z"),
        (9, 3, "2015-12-31T22:30:00+02:00"),
        (11, 3, "2016-01-01T00:30:00-01:00"),
        (7, 0, "val"),
        (12, 0, "test"),
    ],
)
def test_fmow_with_a_rule_broken_is_split_otherwise(splits_of, tmp_path, row, column, value):
    changed = [list(each) for each in FMOW]
    changed[row][column] = value
    assert splits_of("fmow", fmow(tmp_path / "f", changed), 13) != BY_YEAR


def test_fmow_without_its_sequestered_rows_gives_other_pictures(rows_of, tmp_path):
    """Whoever drops them from the file moves all numbers: the pictures are then those of other rows."""
    folder = fmow(tmp_path / "f", FMOW)
    file = folder / "rgb_metadata.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("seq")))
    assert rows_of("fmow", folder, 13, split="train") == BY_YEAR["train"]
    assert rows_of("fmow", folder, 13, split="id_val") == [2]
    assert rows_of("fmow", folder, 13, split="test") == [7, 8]


@every
def test_a_part_divides_a_split(rows_of, registry, tmp_path, name):
    folder = MADE[name](tmp_path / "d")
    test = rows_of(name, folder, 30, split="test")
    tuned, held = (rows_of(name, folder, 30, split="test", part=part) for part in ("train", "test"))
    assert len(held) == round(len(test) / 3) > 0
    assert sorted([*tuned, *held]) == test
    chosen = registry.create("dataset", name, folder=folder, split="test", part="train", count=2, seed=1)
    assert len(chosen) == 2


# Pictures


@every
def test_pictures_are_resized_down_only(registry, tmp_path, name):
    folder = MADE[name](tmp_path / "d", size=12)
    data = registry.create("dataset", name, folder=folder, size=4)
    assert data.event_shape == (3, 4, 4)
    assert data.batch(torch.tensor([29, 0])).x1[:, :, 2, 1].tolist() == [[255.0] * 3, [0.0] * 3]
    with pytest.raises(
        DataError, match=r"size: wanted at most 12, .* \(.*\.png: 12 x 12\), got 13\. Choose a smaller size"
    ):
        registry.create("dataset", name, folder=folder, size=13)
    with pytest.raises(ConfigError, match=r"size: wanted int, > 0 or null, got 0"):
        registry.create("dataset", name, folder=folder, size=0)


def test_a_picture_of_another_size_is_named(registry, tmp_path):
    folder = fmow(tmp_path / "f")
    odd = picture(folder / "images" / "rgb_img_3.png", 0, (6, 5))
    data = registry.create("dataset", "fmow", folder=folder)
    with pytest.raises(DataError, match=r"rgb_img_3\.png: wanted .* 6 x 6 pixels, like rgb_img_0\.png, got 6 x 5"):
        data.batch(torch.tensor([3]))
    odd.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"rgb_img_3\.png: this picture can't be read"):
        data.batch(torch.tensor([3]))
    assert len(data.batch(torch.tensor([2]))) == 1


# What is refused


def test_folders_are_refused(registry, tmp_path):
    def refused(message, folder):
        with pytest.raises(DataError, match=message):
            registry.create("dataset", "camelyon17", folder=folder)

    folder = camelyon17(tmp_path / "camelyon17_v1.0")
    refused(r"wanted the data set's own folder, which is inside this one\. Give .*camelyon17_v1\.0\.", tmp_path)
    refused(r"missing: wanted the folder camelyon17_v1\.0 as .*, found nothing there", tmp_path / "missing")
    refused(r"wanted the folder camelyon17_v1\.0 as WILDS unpacks it, found a file", folder / "metadata.csv")
    refused(r"metadata\.csv: wanted a metadata file, found nothing there", folder / "patches")


METADATA = {"camelyon17": "metadata.csv", "rxrx1": "metadata.csv", "fmow": "rgb_metadata.csv"}


@every
def test_metadata_are_refused(registry, tmp_path, name):
    file = MADE[name](tmp_path / "d") / METADATA[name]
    text = file.read_text()

    def refused(message, content):
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(DataError, match=message):
            registry.create("dataset", name, folder=tmp_path / "d")

    refused(r"the file is empty \(0 bytes\)\. Copy or unpack it again", "")
    refused(r"it has column names and no rows", text.splitlines(keepends=True)[0])
    refused(r"the last line has no line break, so the file may be incomplete", text[:-1])
    refused(r"the last line has no line break", text[: len(text) // 2])
    lines = text.splitlines(keepends=True)
    refused(r"line 4: wanted \d values, one for each column, got 2\. The", "".join([*lines[:3], "1,2\n"]))
    refused(r"line 2: wanted \d values, .* got \d+\.", "".join([lines[0], lines[1][:-1] + ",5\n"]))
    refused(r"wanted comma-separated values in UTF-8, got something else", lines[0].encode() + b"\xff\xfe,\n")
    refused(r"wanted comma-separated values in UTF-8, got something else", lines[0] + '"an open quote\n')
    refused(r"wanted the columns .*; missing: .*\. It has: nothing, here\.", "nothing,here\n1,2\n")


@pytest.mark.parametrize(
    ("name", "columns"), [("camelyon17", ["center", "node"]), ("rxrx1", ["site"]), ("fmow", ["timestamp", "category"])]
)
def test_missing_columns_are_named(registry, tmp_path, name, columns):
    file = MADE[name](tmp_path / "d") / METADATA[name]
    head, rest = file.read_text().split("\n", 1)
    file.write_text(",".join("x" + word if word in columns else word for word in head.split(",")) + "\n" + rest)
    with pytest.raises(DataError, match=r"missing: (\w+(?:, )?)+\. It has: ") as found:
        registry.create("dataset", name, folder=tmp_path / "d")
    missing = str(found.value).split("missing: ")[1].split(". It has")[0]
    assert sorted(missing.split(", ")) == sorted(columns)


@pytest.mark.parametrize(
    ("name", "rows", "column", "value", "message"),
    [
        ("camelyon17", CAMELYON17, 4, 2, "row 6: wanted in column 'tumor' a whole number from 0 to 1, got '2'"),
        ("camelyon17", CAMELYON17, 6, "two", "row 6: wanted in column 'center' a whole number .*, got 'two'"),
        ("camelyon17", CAMELYON17, 7, "", "row 6: wanted in column 'split' 0 or 1, got ''"),
        ("rxrx1", RXRX1, 6, 1139, "row 6: wanted in column 'sirna_id' a whole number from 0 to 1138, got '1139'"),
        ("rxrx1", RXRX1, 1, "Train", "row 6: wanted in column 'dataset' train, val or test, got 'Train'"),
        ("fmow", FMOW, 0, "", "row 6: wanted in column 'split' train, val, test or seq, got ''"),
        ("fmow", FMOW, 1, "castle", "row 6: wanted in column 'category' one of the 62 categories .*, got 'castle'"),
        ("fmow", FMOW, 3, "2016", "row 6: wanted in column 'timestamp' a time such as .*, got '2016'"),
    ],
)
def test_values_are_refused(registry, tmp_path, name, rows, column, value, message):
    changed = [list(row) for row in rows]
    changed[6][column] = value
    folder = MADE[name](tmp_path / "d", changed)
    with pytest.raises(DataError, match=message):
        registry.create("dataset", name, folder=folder)


@every
def test_rows_without_a_picture_are_counted(registry, tmp_path, name):
    folder = MADE[name](tmp_path / "d")
    gone = sorted(registry.create("dataset", name, folder=folder).names.tolist())[:3]
    for file in gone:
        (folder / file.decode()).unlink()
    with pytest.raises(DataError, match=r"3 of 30 rows have no picture; the first is \w+/.*\.png\. Unpack"):
        registry.create("dataset", name, folder=folder)
    shutil.rmtree(next(path for path in (folder / "patches", folder / "images") if path.exists()))
    with pytest.raises(DataError, match="30 of 30 rows have no picture"):
        registry.create("dataset", name, folder=folder)


def test_pictures_of_other_splits_may_be_missing(registry, rows_of, tmp_path):
    folder = camelyon17(tmp_path / "c", CAMELYON17)
    shutil.rmtree(folder / "patches" / "patient_042_node_3")
    assert rows_of("camelyon17", folder, 8, split="val") == [2, 3]
    with pytest.raises(DataError, match="1 of 2 rows have no picture"):
        registry.create("dataset", "camelyon17", folder=folder, split="test")


def test_unknown_splits_and_domains_are_refused_with_the_known_ones(registry, tmp_path):
    folders = {"camelyon17": camelyon17(tmp_path / "c", CAMELYON17), "rxrx1": rxrx1(tmp_path / "r", RXRX1)}
    folders["fmow"] = fmow(tmp_path / "f", FMOW)

    def refused(message, name, error=DataError, **options):
        with pytest.raises(error, match=message):
            registry.create("dataset", name, folder=folders[name], **options)

    splits = "'all' or 'train' or 'id_val' or 'val' or 'test'"
    refused(f"split: wanted {splits}, got 'id_test'", "camelyon17", ConfigError, split="id_test")
    refused(r"split: wanted .* got 'id_val'", "rxrx1", ConfigError, split="id_val")
    refused(r"part: wanted 'all' or 'train' or 'test', got 'val'", "fmow", ConfigError, part="val")
    refused(r"domains: .* got \[\]", "camelyon17", ConfigError, domains=[])
    refused(r"domains: 5, 7 isn't in .*metadata\.csv\. Known: 0, 1, 2, 3, 4\.", "camelyon17", domains=[0, 7, 5])
    refused(
        r"domains: HEPG2 isn't in .*\. Known: HEPG2-01, HEPG2-08, HUVEC-17, RPE-08, U2OS-03", "rxrx1", domains=["HEPG2"]
    )
    refused(r"cell_types: hepg2 isn't in .*\. Known: HEPG2, HUVEC, RPE, U2OS", "rxrx1", cell_types=["hepg2"])
    refused(r"domains: 2018 isn't in .*\. Known: 2009, 2012, 2013, 2015, 2016, 2017", "fmow", domains=[2018])
    refused(r"regions: Peru isn't in .*\. Known: Africa, Americas, Other", "fmow", regions=["Peru"])
    refused(
        r"no row is of split 'train' and of domains 2\. That split has: domains 0, 3\. Choose another split or",
        "camelyon17",
        split="train",
        domains=[2],
    )
    (folders["fmow"] / "country_code_mapping.csv").unlink()
    refused(r"country_code_mapping\.csv: wanted a metadata file, found nothing there", "fmow", regions=["Africa"])
    assert len(registry.create("dataset", "fmow", folder=folders["fmow"], domains=[2016])) == 3


def test_a_split_without_a_row_is_refused(registry, tmp_path):
    folder = rxrx1(tmp_path / "r", RXRX1[:1])
    with pytest.raises(DataError, match=r"no row is of split 'val'\. No row is of that split\. Choose another split\."):
        registry.create("dataset", "rxrx1", folder=folder, split="val")
