"""The report: one page that links nowhere, holds everything, and lets no name become markup."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from accelerate import Accelerator
from helpers import Echo, lesion_mask, run, tiny_domain, write_mask

from latentsynth.data.exchange.requests import Request
from latentsynth.errors import DataError
from latentsynth.evaluation.report import write_report
from latentsynth.plots import strips
from latentsynth.results import Conclusion, Estimate, Picture, Question, Result, Table, text
from latentsynth.synthesis import synthesize

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = "<script>alert('x')</script> & \"quoted\" </td>"


class Page(HTMLParser):
    """Everything that a test wants to know of a page; refuses tags that do not balance."""

    def __init__(self, markup: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def result(kind: str = "obedience", **changes: object) -> Result:
    values: dict[str, object] = {
        "kind": kind,
        "title": f"How is {kind}?",
        "facts": {"segmenter": "0123456789abcdef"},
        "tables": (
            Table("scores of all", ("volumes", "n", "score"), (("real", 7, 0.123), ("none", 8, None)), "their note"),
            Table("more", ("volumes", "interval"), (("samples", Estimate(0.777, 0.666, 0.888)),)),
        ),
        "pictures": (Picture(f"{kind}.png", f"picture of {kind}"), Picture("lost.png", "a picture that is gone")),
        "notes": ("the first note", "the second note"),
        "command": f"latentsynth evaluate {kind} --out 'a b'",
        **changes,
    }
    return Result(**values)  # type: ignore[arg-type]


def write(folder: Path, one: Result) -> Path:
    one.save(folder)
    if one.pictures:
        strips(folder / one.pictures[0].file, {"a": [0.1, 0.2]}, "y")
    return folder


def page(source: Path, out: Path | None = None) -> Page:
    path = write_report(source, out or source / "report.html")
    return Page(path.read_text(encoding="utf-8"))


def normal(words: str) -> str:
    return " ".join(words.split())


def test_everything_of_a_result_is_on_the_page(tmp_path: Path) -> None:
    made = result()
    write(tmp_path / "runs" / "eval", made)
    found = page(tmp_path / "runs")
    body = normal(found.texts["body"][0])
    cells = [text(cell) for table in made.tables for row in table.rows for cell in row]
    assert found.texts["td"] == cells
    assert found.texts["th"] == [column for table in made.tables for column in table.columns]
    assert found.texts["h3"] == [table.title for table in made.tables]
    assert found.texts["li"] == list(made.notes)
    assert made.command in found.texts["pre"]
    assert found.texts["figcaption"] == ["picture of obedience"]
    for words in (made.title, "their note", "0123456789abcdef", "0.777 [0.666, 0.888]"):
        assert words in body
    assert "gone" not in body  # a caption without its picture


def test_the_page_begins_with_an_answer_to_every_question(tmp_path: Path) -> None:
    """A set looks right where everything says so, and not where anything says no; what nobody measured is said too."""
    look, free = Question.LOOK, Question.FREE
    said = [
        Conclusion(look, "good", "yes", "reason a"), Conclusion(look, "good", "yes", "reason b"),
        Conclusion(look, "bad", "yes", "reason c"), Conclusion(look, "bad", "no", "reason d"),
        Conclusion(look, "dim", "yes", "reason e"), Conclusion(look, "dim", "undecided", "reason f"),
        Conclusion(free, "good", "yes", "reason g"),
    ]  # fmt: skip
    write(tmp_path, result(conclusions=tuple(said[::2])))
    write(tmp_path, result("fidelity", conclusions=tuple(said[1::2])))
    body = normal(page(tmp_path).texts["body"][0])
    summary = body[: body.index("How is obedience?")]
    assert "good: yes. reason a. reason b." in summary
    assert "bad: no. reason d." in summary
    assert "dim: undecided. reason f." in summary
    assert "Are they free of copies? good: yes. reason g." in summary
    assert "Does training on them help? Not measured. Answered by latentsynth experiment utility." in summary


def test_pictures_are_inside(tmp_path: Path) -> None:
    write(tmp_path / "eval", result())
    found = page(tmp_path)
    (source,) = found.values("src")
    start = "data:image/png;base64,"
    assert source.startswith(start)
    assert base64.b64decode(source.removeprefix(start)) == (tmp_path / "eval" / "obedience.png").read_bytes()


def test_the_page_links_nowhere(tmp_path: Path, trained_ldm: Path) -> None:
    top = tmp_path / "runs"
    shutil.copytree(trained_ldm, top / "ldm")
    for kind in ("fidelity", "obedience"):
        write(top / "measured" / kind, result(kind))
    found = page(top, tmp_path / "report.html")
    for name in ("src", "href"):
        for value in found.values(name):
            assert value.startswith(("data:", "#"))
    markup = (tmp_path / "report.html").read_text()
    markup = re.sub(r'src="data:[^"]*"', "", markup)
    assert "http://" not in markup
    assert "https://" not in markup
    assert "url(" not in markup
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(found.tags)
    targets = {value.removeprefix("#") for value in found.values("href")}
    assert targets == set(found.values("id"))
    assert len(found.values("id")) == len(set(found.values("id"))) == found.tags["section"] == 3


def test_names_never_become_markup(tmp_path: Path) -> None:
    table = Table(EVIL, (EVIL, "x"), ((EVIL, 0.5),), EVIL)
    evil = result(
        title=EVIL, tables=(table,), notes=(EVIL,), command=EVIL, facts={EVIL: EVIL},
        pictures=(Picture("a.png", EVIL),),
    )  # fmt: skip
    write(tmp_path / "runs <b>" / "eval <i>", evil)
    found = page(tmp_path / "runs <b>")
    assert not {"script", "b", "i"} & set(found.tags)
    assert found.texts["li"] == [EVIL]
    assert found.texts["td"][0] == found.texts["th"][0] == EVIL
    assert found.texts["h2"][0] == f"eval <i>: {EVIL}"
    assert EVIL in found.texts["pre"]
    assert found.values("alt") == [EVIL]
    assert {name for _, name, _ in found.attributes} <= {
        "lang",
        "charset",
        "name",
        "content",
        "class",
        "href",
        "id",
        "alt",
        "src",
    }


def test_a_run_gets_its_curves(tmp_path: Path, trained_autoencoder: Path) -> None:
    found = page(trained_autoencoder, tmp_path / "report.html")
    lines = [json.loads(line) for line in (trained_autoencoder / "metrics.jsonl").read_text().splitlines()]
    last = {key: value for key, value in lines[-1].items() if key.startswith("val/")}
    assert last
    shown = dict(zip(found.texts["td"][::2], found.texts["td"][1::2], strict=True))
    kept = json.loads((trained_autoencoder / "checkpoint" / "config.json").read_text())["metrics"]
    assert shown == {key: text(float(value)) for key, value in {**last, **kept}.items() if value is not None}
    assert "training and validation (val/) curves" in found.texts["figcaption"]
    assert any("while training, at 32 images" in caption for caption in found.texts["figcaption"])
    assert (trained_autoencoder / "config.yaml").read_text().strip() in [one.strip() for one in found.texts["pre"]]
    assert "config.yaml" in found.texts["summary"]


def test_a_run_without_numbers_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert page(tmp_path).tags["figure"] == 0


def test_a_synthetic_cohort_gets_its_sheet(tmp_path: Path, cpu: Accelerator) -> None:
    import numpy as np

    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    asked: Request = write_mask(tmp_path / "m.nii.gz", lesion_mask(affine, (24, 24, 24), 8.0), affine)
    synthesize(Echo(tiny_domain()), [asked], tmp_path / "runs" / "samples", cpu, per_mask=2)
    found = page(tmp_path / "runs")
    body = normal(found.texts["body"][0])
    assert "2 volumes by checkpoint echo; level 1" in body
    assert found.tags["figure"] == 1
    assert json.loads((tmp_path / "runs" / "samples" / "output.json").read_text())["command"] in found.texts["pre"]


def test_sections_come_in_one_order(tmp_path: Path) -> None:
    for kind in ("other", "fidelity", "segmenter", "obedience", "reconstruction"):
        write(tmp_path / kind, result(kind, pictures=()))
    order = ("obedience", "fidelity", "segmenter", "reconstruction", "other")  # what a reader asks first
    wanted = [f"{kind}: How is {kind}?" for kind in order]
    assert page(tmp_path).texts["h2"] == wanted


def test_the_page_names_no_machine(tmp_path: Path) -> None:
    write(tmp_path / "eval" / "deep", result(pictures=()))
    found = page(tmp_path)
    assert "eval/deep/obedience.json" in normal(found.texts["section"][0])
    assert str(tmp_path) not in (tmp_path / "report.html").read_text()


def test_the_anchors_name_no_machine(tmp_path: Path) -> None:
    write(tmp_path / "eval", result(pictures=()))
    page(tmp_path)
    assert re.sub(r"[^a-z0-9]+", "-", str(tmp_path).lower()) not in (tmp_path / "report.html").read_text()


def test_anchors_of_similar_folders_differ(tmp_path: Path) -> None:
    for name in ("a-b", "a_b"):
        write(tmp_path / name, result(pictures=()))
    anchors = page(tmp_path).values("id")
    assert len(anchors) == len(set(anchors)) == 2


def test_foreign_json_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "eval", result(pictures=()))
    (tmp_path / "eval" / "manifest.json").write_text('{"format": "latentsynth-manifest/1"}')
    (tmp_path / "eval" / "broken.json").write_text("{")
    (tmp_path / "eval" / "list.json").write_text("[1]")
    write(tmp_path / "cache", result("fidelity", pictures=()))
    write(tmp_path / ".hidden", result("fidelity", pictures=()))
    assert page(tmp_path).tags["section"] == 1


def test_nothing_to_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no run"):
        write_report(tmp_path, tmp_path / "report.html")
    with pytest.raises(DataError, match="is not a folder"):
        write_report(tmp_path / "no", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "runs" / "eval", result())
    for extra, file in (((), tmp_path / "runs" / "report.html"), (("--out", tmp_path / "p.html"), tmp_path / "p.html")):
        assert run(monkeypatch, "report", tmp_path / "runs", *extra) == 0
        assert capsys.readouterr().out.strip() == str(file)
        assert Page(file.read_text()).tags["section"] == 1
    (tmp_path / "empty").mkdir()
    assert run(monkeypatch, "report", tmp_path / "empty") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "holds no run" in line
    assert run(monkeypatch, "report", tmp_path / "runs", "--pages", "3") == 2
    assert "No such option" in capsys.readouterr().err


def test_nothing_from_outside_the_folder_comes_onto_the_page(tmp_path: Path) -> None:
    """A result from elsewhere may name any file; a page is passed on."""
    folder, secret = tmp_path / "runs", tmp_path / "secret.png"
    folder.mkdir()
    secret.write_bytes(b"patient")
    (tmp_path / "elsewhere").mkdir()
    result(kind="fidelity", title="of elsewhere").save(tmp_path / "elsewhere")
    (folder / "link.png").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "circle").symlink_to(folder)
    (folder / "linked.json").symlink_to(tmp_path / "elsewhere" / "fidelity.json")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.json")
    (folder / "huge.png").touch()
    os.truncate(folder / "huge.png", 1 << 33)
    (folder / "notes.txt").write_text("private")
    named = ("../secret.png", str(secret), "link.png", "pipe.png", "huge.png", "notes.txt", "none.png")
    result(pictures=tuple(Picture(name, "taken from somewhere") for name in named)).save(folder)
    page = write_report(folder, folder / "report.html").read_text()
    assert base64.b64encode(b"patient").decode() not in page
    assert "taken from somewhere" not in page
    assert "of elsewhere" not in page
    assert page.count("<img") == 0


def test_torn_and_foreign_lines_of_a_run_cost_no_page(tmp_path: Path) -> None:
    lines = (
        '{"images_seen": 4, "loss": 1.0}',
        '{"images_se',
        "[]",
        '{"loss": 3}',
        '{"images_seen": 8, "loss": "x", "val/a": 2}',
    )
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="line 2, 3 is damaged"):
        page = write_report(tmp_path, tmp_path / "report.html").read_text()
    assert "after 8 images" in page
    (tmp_path / "environment.json").write_text('{"command": "latentsynth", "processes": 1}')
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(DataError, match=r"environment\.json: command is 'latentsynth'"),
    ):
        write_report(tmp_path, tmp_path / "report.html")
