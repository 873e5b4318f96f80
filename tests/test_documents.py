"""What a person may have edited is read by one set of rules: nothing is guessed, nothing wins silently."""

from __future__ import annotations

import ast
import copy
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from damage import leaves
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import latentsynth
from latentsynth import outputs
from latentsynth.data.manifest import Manifest
from latentsynth.documents import (
    cell,
    finite_number,
    parse_yaml,
    read_csv,
    read_fields,
    read_json,
    read_json_lines,
    read_yaml,
)
from latentsynth.errors import DataError, LatentsynthError
from latentsynth.provenance import Ledger
from latentsynth.results import Estimate, Picture, Result, Table, write_csv
from latentsynth.types import Case, Labels

PACKAGE = Path(latentsynth.__file__).parent
# Who else parses these formats, and why.
MAY_PARSE = {
    "documents.py": {"json.loads", "csv.reader"},
    "data/cache/volumes.py": {"json.loads"},  # facts in the header of safetensors, which this library wrote
    "data/intake/splits.py": {"csv.DictReader"},  # lists of cases, with errors of their own
    "data/intake/tables.py": {"csv.reader", "json.loads"},  # the same, of paths; any delimiter
    "training/run.py": {"json.loads"},  # what a run wrote into its own folder
}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' stands twice"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": [-Infinity]}', "-Infinity is not a finite number"),
        (b'{"a": 1e999}', "1e999 is not a finite number"),
        (b'{"a": "\\ud800"}', "not readable JSON"),
        (b'{"a\\u0000": 1}', "NUL"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not readable JSON"),
        (b'{"a": "\xe9"}', "byte 7 is not UTF-8"),
        (b'{"a": 1', "not readable JSON"),
    ],
)
def test_json_that_cannot_be_meant_is_refused_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"lr: 1\nimages: 2\nlr: 3\n", r"key 'lr' stands twice, again in line 3"),
        (b"a: &a [1, 1]\nb: &b [*a, *a]\n", ""),
        (b"a: &a [1]\n" + b"".join(b"b%d: &b%d [%s]\n" % (n, n, b"*b%d, *b%d" % (n - 1, n - 1) if n else b"*a") for n in range(40)),
         "stands for more than 100000 values"),
        (b"a: &a [*a]\n", "an alias holds itself"),
        (b"a: " + b"[" * 5000, "nested too deeply"),
        (b"a: !!python/object/apply:os.system [x]\n", "could not determine a constructor"),
        (b"a: !!timestamp 2024-13-45\n", "not readable YAML"),
        (b"a: \xff\n", "byte 3 is not UTF-8"),
        (b"? [a]\n: 1\n", "unhashable key"),
    ],
)  # fmt: skip
def test_yaml_that_cannot_be_meant_is_refused_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    if not words:
        assert read_yaml(tmp_path / "a.yaml")["b"] == [[1, 1], [1, 1]]
        return
    with pytest.raises(DataError, match=words) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


def test_a_date_stays_text_and_a_merged_key_may_be_set_anew() -> None:
    assert parse_yaml("run: 2024-13-45\nday: 2024-01-02") == {"run": "2024-13-45", "day": "2024-01-02"}
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("read", [read_json, read_yaml, read_json_lines, lambda path: read_csv(path, ())])
def test_only_files_are_read_and_only_of_a_size_that_they_have(tmp_path: Path, read: Any) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(1 << 40)
    for name, words in (
        ("pipe", "is not a file"),
        (".", "is not a file"),
        ("large", "MiB"),
        ("none", "does not exist"),
    ):
        with pytest.raises(DataError, match=words):
            read(tmp_path / name)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_a_torn_line_is_left_out_aloud_and_costs_no_other(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"images_seen": 4}\n{"images_seen": 8, "lo{"images_seen": 12}\n{"images_seen": 16}\n{"images_s')
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 2, 4 is damaged and left out"):
        assert [line["images_seen"] for line in read_json_lines(file)] == [4, 16]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "holds list"),
        ({}, "seed is nothing, expected a whole number"),
        ({"seed": True, "rate": 1}, "seed is True"),
        ({"seed": "1", "rate": 1}, "seed is '1'"),
        ({"seed": 1, "rate": None}, "rate is None, expected a number"),
    ],
)
def test_fields_of_another_type_are_refused_by_name(tmp_path: Path, value: Any, words: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=words):
        read_fields(tmp_path / "a.json", seed=int, rate=float)
    (tmp_path / "a.json").write_text('{"seed": 1, "rate": 2, "more": 3}')
    assert read_fields(tmp_path / "a.json", seed=int, rate=float)["rate"] == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has columns none"),
        ("a,c\n1,2\n", "expected a, b, each once"),
        ("a,a,b\n1,2,3\n", "each once"),
        ("a,b\n1\n", "row 2 has not 2 cells"),
        ("a,b\nx,1\n", "'x' is not a finite number"),
        ("a,b\nnan,1\n", "'nan' is not a finite number"),
        ('a,b\n"1,2\n', "not readable CSV"),
    ],
)
def test_a_bad_table_is_refused_by_column_or_row(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        [finite_number(row, "a", tmp_path / "a.csv") for row in read_csv(tmp_path / "a.csv", ("a", "b"))]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_table_comes_back_and_no_cell_of_it_is_a_formula(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    file = tmp_path_factory.getbasetemp() / "names.csv"
    for text in (name, f"={name}", f"'{name}", f"'+{name}", f"-{name}", f"@{name}"):
        write_csv(file, ("case", "loss"), [(text, -1.5)])
        assert read_csv(file, ("case", "loss")) == [{"case": text, "loss": "-1.5"}]
        number = re.fullmatch(r"[+-][0-9.eE+-]+", text)  # shown as it is
        assert number or not str(cell(text)).startswith(("=", "+", "-", "@", "\t", "\r"))


def parsers(path: Path) -> Iterator[str]:
    """Calls that parse JSON, YAML or CSV; a value that was just dumped may be read back."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            dumped = node.args and isinstance(node.args[0], ast.Call) and ast.unparse(node.args[0].func) == "json.dumps"
            if (name in ("json.load", "json.loads", "csv.reader", "csv.DictReader") and not dumped) or (
                name.startswith("yaml.") and "load" in name
            ):
                yield name


def test_nothing_else_parses_what_people_edit(tmp_path: Path) -> None:
    found = {path.relative_to(PACKAGE).as_posix(): set(parsers(path)) for path in sorted(PACKAGE.rglob("*.py"))}
    assert {
        name: calls - MAY_PARSE.get(name, set()) for name, calls in found.items() if calls - MAY_PARSE.get(name, set())
    } == {}
    (tmp_path / "new.py").write_text("import json, yaml\njson.loads(x)\nyaml.safe_load(x)\njson.loads(json.dumps(x))\n")
    assert list(parsers(tmp_path / "new.py")) == ["json.loads", "yaml.safe_load"]


BAD = (None, [], {}, "", -1, 1.5, True, ["a"], {"a": 1}, [[1]], 10**30)


def edited(value: Any) -> Iterator[Any]:
    """The value with one thing in it replaced by something of another type, or removed."""
    for path in leaves(value):
        for bad in (*BAD, KeyError):
            changed = copy.deepcopy(value)
            holder = changed
            for key in path[:-1]:
                holder = holder[key]
            if bad is KeyError:
                del holder[path[-1]]
            else:
                holder[path[-1]] = bad
            yield changed


def shown(file: Path) -> None:
    Result.load(file).show(Console(file=io.StringIO()))


def claimed(file: Path) -> None:
    outputs.claim(file.parent, "volumes", {"steps": 1}, ("x",))


@pytest.mark.parametrize("kind", ["result", "record", "ledger", "manifest"])
def test_an_edited_file_is_understood_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    if kind == "result":
        tables = (Table("t", ("a", "b"), ((1, Estimate(1, 2, 3)), ("x", None)), "n"),)
        file, read = Result("edges", "t", {"a": 1}, tables, (Picture("a.png", "c"),), ("n",), "c").save(tmp_path), shown
    elif kind == "record":
        file, read = tmp_path / "out" / outputs.RECORD, claimed
        claimed(file)
        (file.parent / "x" / "f").write_text("1")
        outputs.finish(file.parent, ["x/f"])
    elif kind == "ledger":
        file, read = tmp_path / "ledger.json", Ledger.load
        Ledger(frozenset(["a"]), frozenset(["b"])).save(file)
    else:
        file, read = tmp_path / "manifest.json", Manifest.load
        labels = Labels((0, 1), ("background", "lesion"))
        Manifest("m", ("CT",), labels, (Case("a", "p", (Path("a.nii.gz"),), Path("b.nii.gz"), "train"),)).save(file)
    good = json.loads(file.read_text())
    read(file)
    said = []
    for value in edited(good):
        file.write_text(json.dumps(value))
        try:
            read(file)
        except LatentsynthError as error:
            said.append(str(error))
    assert said
    assert not [text for text in said if "\n" in text]
