"""The picture of the floors is drawn from the code as it is."""

import importlib.util

import pytest
from support.paths import ROOT


@pytest.fixture(scope="module")
def draw_floors():
    spec = importlib.util.spec_from_file_location("draw_floors", ROOT / "docs/draw_floors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(drawing):
    """The text in the rooms, without sizes, which change with every line of code."""
    return [line.partition(">")[2].split("(")[0] for line in drawing.splitlines() if line.startswith("<text")]


def test_the_picture_is_not_stale(draw_floors):
    assert names(draw_floors.PICTURE.read_text()) == names(draw_floors.drawing()), "run `make floors`"


def test_a_stale_picture_is_seen(draw_floors, monkeypatch):
    floors = draw_floors.layers()
    monkeypatch.setattr(draw_floors, "layers", lambda: floors[1:])
    assert names(draw_floors.PICTURE.read_text()) != names(draw_floors.drawing())


def test_lines_go_to_packages_that_are_imported(draw_floors):
    assert draw_floors.direct("kernel") == set()
    assert "kernel" in draw_floors.direct("runtime")
    assert "kernel" not in draw_floors.direct("data")  # through others
    assert "kernel" in draw_floors.reached("data")
