"""YAML files: numbers, broken ones, and keys that stand twice."""

import pytest

from gftkit.kernel.errors import ConfigError
from gftkit.storage.documents import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("-2.5e-4", -2.5e-4), (".5", 0.5), ("1.", 1.0), ("3", 3), ("1_000", 1000),
        ("1e-3x", "1e-3x"), ("e5", "e5"), ("'1e-3'", "1e-3"), ("null", None), ("[1e-3, 2]", [1e-3, 2]),
        ("{a: {b: 1e2}}", {"a": {"b": 100.0}}), ("1.2.3", "1.2.3"), ("-", [None]),
    ],
)  # fmt: skip
def test_yaml_numbers_are_numbers(text, value):
    found = parse_yaml(text, "here")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["a: [1", "a: b: c", "a: 1\n b: 2", "\ta: 1", "a: !!python/object/apply:os.system ['true']", "a: 1\na: 2"]
)
def test_broken_yaml_names_file_and_line(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml is not YAML: .*line \d"):
        read_yaml(tmp_path / "c.yaml")


def test_a_yaml_key_that_stands_twice_is_named():
    with pytest.raises(ConfigError, match="'steps' occurs twice"):
        parse_yaml("train: {steps: 1, steps: 2}", "here")
    assert parse_yaml("x: &a {k: 1}\ny: {<<: *a, k: 2}", "here")["y"] == {"k": 2}


@pytest.mark.parametrize(("text", "came"), [("", "NoneType"), ("- a", "list"), ("text", "str"), ("{}", "dict")])
def test_a_file_holds_a_mapping(tmp_path, text, came):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"c\.yaml: wanted a YAML mapping .* got {came}"):
        read_yaml(tmp_path / "c.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"missing\.yaml: there is no such file\.$"):
        read_yaml(tmp_path / "missing.yaml")
    for name in ("binary.yaml", "."):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_yaml(tmp_path / name)
