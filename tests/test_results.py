"""Results survive the disk, read as people write, and say what made them."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from latentsynth.errors import DataError
from latentsynth.files import write_json
from latentsynth.invocation import this_command
from latentsynth.results import (
    Conclusion,
    Estimate,
    Picture,
    Question,
    Result,
    Table,
    TableCell,
    is_result,
    text,
    write_csv,
)

NAN, INF = float("nan"), float("inf")


def result(*rows: tuple[TableCell, ...], **changes: Any) -> Result:
    values: dict[str, Any] = {
        "kind": "obedience",
        "title": "Do they?",
        "facts": {"path": Path("a/b"), "share": np.float32(0.5), "count": np.int64(3), "hole": NAN, 7: [INF, 1.5]},
        "tables": (Table("scores", ("volumes", "score"), rows, "what it is"), Table("empty", ("a",), ())),
        "pictures": (Picture("a.png", "a picture"),),
        "notes": ("first", "second"),
        "command": "latentsynth evaluate obedience",
        "splits": ("val",),
        "conclusions": (Conclusion(Question.FREE, "samples", "undecided", "too few"),),
    }
    return Result(**{**values, **changes})


def test_a_result_survives_the_disk(tmp_path: Path) -> None:
    made = result(("real", 0.125), ("samples", Estimate(0.5, 0.25, 0.75)), ("nothing", None), ("count", 7))
    path = made.save(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "obedience.json"
    loaded = Result.load(path)
    assert loaded.tables == made.tables
    assert isinstance(loaded.tables[0].rows[3][1], int)
    for field in ("kind", "title", "pictures", "notes", "command", "conclusions"):
        assert getattr(loaded, field) == getattr(made, field)
    assert loaded.facts == {"path": "a/b", "share": 0.5, "count": 3, "hole": None, "7": [None, 1.5]}
    again = loaded.save(tmp_path / "again")
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [(0.95, 1.0, "yes"), (0.9, 0.94, "no"), (0.9, 0.96, "undecided"), (NAN, NAN, "undecided")],
)
def test_a_question_is_decided_by_a_whole_interval(low: float, high: float, answer: str) -> None:
    found = Conclusion.at_least(Question.LOOK, "samples", Estimate(0.93, low, high), 0.95, "a number")
    assert found.answer == answer


def test_what_is_not_finite_becomes_null_and_comes_back_undefined(tmp_path: Path) -> None:
    path = result((NAN, INF, -INF, Estimate(1.5, NAN, INF), Estimate(NAN, NAN, NAN))).save(tmp_path)
    raw = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert raw["tables"][0]["rows"][0][:3] == [None, None, None]
    row = Result.load(path).tables[0].rows[0]
    assert row[:3] == (None, None, None)
    one, none = row[3:]
    assert isinstance(one, Estimate)
    assert isinstance(none, Estimate)
    assert one.value == 1.5
    assert all(math.isnan(end) for end in (one.low, one.high, none.value))
    assert [text(cell) for cell in row] == ["-", "-", "-", "1.500 [-, -]", "- [-, -]"]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (None, "-"), (NAN, "-"), (INF, "-"), (0.0, "0.000"), (0.5, "0.500"), (-0.25, "-0.250"), (9.87654, "9.877"),
        (12.345, "12.3"), (-999.94, "-999.9"), (1234.5678, "1235"), (0.0004, "4.0e-04"), (-0.0004, "-4.0e-04"),
        (0.001, "0.001"), (7, "7"), (12345, "12345"), ("small", "small"), ("", ""),
        (Estimate(0.5, 0.25, 12.0), "0.500 [0.250, 12.0]"), (Estimate(0.5, NAN, NAN), "0.500 [-, -]"),
    ],
)  # fmt: skip
def test_cells_read_as_people_write(cell: TableCell, expected: str) -> None:
    assert text(cell) == expected


@pytest.mark.parametrize("value", [{}, [], {"format": "latentsynth-result/0"}, {"format": None}, "text", None, 3])
def test_foreign_json_is_refused(tmp_path: Path, value: object) -> None:
    assert not is_result(value)
    write_json(tmp_path / "a.json", value)
    with pytest.raises(DataError, match=r"is not a result .*make it again"):
        Result.load(tmp_path / "a.json")


def test_a_missing_file_and_one_that_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        Result.load(tmp_path / "no.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match="not readable JSON"):
        Result.load(tmp_path / "a.json")


@pytest.mark.parametrize("lost", ["kind", "title", "facts", "tables", "pictures", "notes", "command", "splits"])
def test_a_damaged_result_is_refused(tmp_path: Path, lost: str) -> None:
    path = result(("real", 0.5)).save(tmp_path)
    value = json.loads(path.read_text())
    assert is_result(value)
    del value[lost]
    write_json(path, value)
    with pytest.raises(DataError, match=f"{lost} is nothing, expected"):
        Result.load(path)


@pytest.mark.parametrize("where", [("tables", 0, "rows"), ("tables", 0, "columns"), ("pictures", 0, "file")])
def test_damage_further_in_is_refused(tmp_path: Path, where: tuple[str, int, str]) -> None:
    path = result(("real", 0.5)).save(tmp_path)
    value = json.loads(path.read_text())
    outer, index, key = where
    del value[outer][index][key]
    write_json(path, value)
    with pytest.raises(DataError, match="damaged result"):
        Result.load(path)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/opt/x/bin/latentsynth", "report", "runs"], "latentsynth report runs"),
        (["scripts/train.py", "a.yaml"], "python scripts/train.py a.yaml"),
        (["latentsynth", "sample", "--out", "my runs/a"], "latentsynth sample --out 'my runs/a'"),
        (["latentsynth", "x;rm", "$HOME"], "latentsynth 'x;rm' '$HOME'"),
    ],
)
def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch, argv: list[str], expected: str) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert this_command() == expected
    assert shlex.split(this_command())[-len(argv) + 1 :] == argv[1:]
    assert result(command=this_command()).command == expected


def test_a_result_remembers_the_command_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["latentsynth", "evaluate", "fidelity"])
    assert Result("fidelity", "?", {}, ()).command == "latentsynth evaluate fidelity"


def test_everything_is_printed() -> None:
    stream = io.StringIO()
    result(("real", 0.125), ("samples", Estimate(0.5, NAN, 12.0))).show(Console(file=stream, width=120))
    printed = stream.getvalue()
    assert printed.splitlines()[0].strip() == "split: val"
    for word in ("scores", "volumes", "real", "0.125", "0.500 [-, 12.0]", "what it is", "- first", "- second"):
        assert word in printed


def test_brackets_are_printed_as_they_are() -> None:
    stream = io.StringIO()
    made = result(("[real] cases", 0.125), notes=("see [red] there", "a [/closing] one"))
    made.show(Console(file=stream, width=120))
    for word in ("[real] cases", "see [red] there", "a [/closing] one"):
        assert word in stream.getvalue()


def test_csv_holds_plain_values(tmp_path: Path) -> None:
    rows = [("a, b", 1 / 3, 7), ('say "no"', NAN, None), ("line\nbreak", 123456789.0, -INF)]
    write_csv(tmp_path / "new" / "a.csv", ("name", "x", "y"), rows)
    with (tmp_path / "new" / "a.csv").open(newline="") as stream:
        read = list(csv.reader(stream))
    assert read == [
        ["name", "x", "y"],
        ["a, b", "0.333333", "7"],
        ['say "no"', "", ""],
        ["line\nbreak", "1.23457e+08", ""],
    ]


def test_csv_is_whole_or_not_there(tmp_path: Path) -> None:
    def rows() -> Any:
        yield ("a",)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_csv(tmp_path / "a.csv", ("name",), rows())
    assert not list(tmp_path.iterdir())
