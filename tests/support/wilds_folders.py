"""Small folders laid out as those of WILDS, every picture in a colour of its own."""

from support.data_files import picture

CAMELYON17 = ("", "patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split")
RXRX1 = ("cell_type", "dataset", "experiment", "plate", "well", "site", "well_type", "sirna", "sirna_id")
FMOW = ("split", "img_filename", "category", "country_code", "cloud_cover", "timestamp")
COUNTRIES = "name,alpha-3,region\nPeru,PER,Americas\nKenya,KEN,Africa\nAntarctica,ATA,\n"


def table(file, columns, rows):
    """A metadata file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(",".join(map(str, row)) + "\n" for row in (columns, *rows)))
    return file


def shade(index, count):
    """The grey of one of ``count`` pictures: from black to white, no two alike."""
    return (round(255 * index / max(1, count - 1)),) * 3


def camelyon17(folder, rows=None, size=6):
    """Rows are (patient, node, x, y, tumor, slide, center, split); patients are text with leading zeros."""
    if rows is None:
        rows = [
            (f"{index % 5:03}", index % 3, 32 * index, 8, index % 2, 0, index % 5, index // 5 % 2)
            for index in range(30)
        ]
    table(folder / "metadata.csv", CAMELYON17, [(index, *row) for index, row in enumerate(rows)])
    for index, (patient, node, x, y, *_) in enumerate(rows):
        node_of = f"patient_{patient}_node_{node}"
        file = folder / "patches" / node_of / f"patch_{node_of}_x_{x}_y_{y}.png"
        picture(file, (*shade(index, len(rows)), 255), (size, size), "RGBA")
    return folder


def rxrx1(folder, rows=None, size=6):
    """Rows are (cell type, dataset, experiment, plate, well, site, sirna_id)."""
    if rows is None:
        names = [("HEPG2", "train"), ("HUVEC", "val"), ("U2OS", "test")]
        rows = [
            (cell, split, f"{cell}-{1 + index % 2:02}", 1 + index % 4, f"B{index:02}", 1 + index // 3 % 2, index % 2)
            for index, (cell, split) in enumerate(names * 10)
        ]
    written = [(*row[:6], "treatment", f"s{row[6]}", row[6]) for row in rows]
    table(folder / "metadata.csv", RXRX1, written)
    for index, (_, _, experiment, plate, well, site, _) in enumerate(rows):
        file = folder / "images" / experiment / f"Plate{plate}" / f"{well}_s{site}.png"
        picture(file, shade(index, len(rows)), (size, size))
    return folder


def fmow(folder, rows=None, size=6):
    """Rows are (split, category, country code, timestamp); those that are sequestered have no picture."""
    if rows is None:
        splits, kinds, codes, years = (
            ("train", "val", "test"),
            ("airport", "airport_hangar"),
            ("PER", "KEN"),
            (2012, 2016),
        )
        rows = [
            (splits[index % 3], kinds[index % 2], codes[index % 2], f"{years[index % 2]}-06-01T10:00:00Z")
            for index in range(30)
        ]
    written = [(split, f"{kind}_0_rgb.jpg", kind, code, 3, time) for split, kind, code, time in rows]
    table(folder / "rgb_metadata.csv", FMOW, written)
    (folder / "country_code_mapping.csv").write_text(COUNTRIES)
    for index, (split, *_) in enumerate(rows):
        if split != "seq":
            picture(folder / "images" / f"rgb_img_{index}.png", shade(index, len(rows)), (size, size))
    return folder


MADE = {"camelyon17": camelyon17, "rxrx1": rxrx1, "fmow": fmow}
FOLDERS = {"camelyon17": "camelyon17_v1.0", "rxrx1": "rxrx1_v1.0", "fmow": "fmow_v1.1"}
"""What each folder is called where WILDS unpacks it."""
