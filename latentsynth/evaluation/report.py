"""One self-contained HTML page about everything below a folder: runs, synthetic cohorts, measurements, commands."""

from __future__ import annotations

import base64
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from latentsynth import __version__
from latentsynth.data.exchange.samples import KIND as VOLUMES
from latentsynth.documents import read_fields, read_json, read_json_lines
from latentsynth.errors import DataError
from latentsynth.evaluation.overview import MEASURED_BY, answers
from latentsynth.invocation import command_line
from latentsynth.outputs import Record, claim_file, write_marked
from latentsynth.plots import curves
from latentsynth.results import Result, Table, is_result, text

KIND = "report"
_ORDER = (
    "utility",
    "study",
    "memorization",
    "obedience",
    "fidelity",
    "edges",
    "mask_shapes",
    "segmenter",
    "reconstruction",
)
_SKIPPED = (
    "cache",
    "cells",
    "state",
    "latents",
    "imagesTr",
    "labelsTr",
    "masks_given",
    "sidecars",
    "tensorboard",
    "wandb",
    "mlruns",
)  # large, and nothing to show


_LARGEST = 64 << 20  # bytes of a file that is embedded


@dataclass(frozen=True)
class _Image:
    caption: str
    data: str  # base64 of a PNG


@dataclass(frozen=True)
class _Section:
    title: str
    anchor: str
    where: str
    command: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[_Image] = ()
    details: Sequence[tuple[str, str]] = ()


def write_report(source: Path, out: Path) -> Path:
    """Writes the page.

    Args:
        source: A run folder, or any folder of runs, synthetic cohorts and results of ``evaluate``.
        out: The HTML file; it links to nothing outside itself.

    Raises:
        DataError: There is nothing to report.
    """
    if out.suffix != ".html":
        raise DataError(f"{out} is no name for a page: give a file that ends in .html, for example {out}.html")
    claim_file(out, KIND)
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: give a run folder, or a folder of runs and results")
    folders = _folders(source)
    found = [
        (file, Result.load(file))
        for folder in folders
        for file in sorted(folder.glob("*.json"))
        if _holds(file, source)
    ]
    found.sort(key=lambda pair: (_ORDER.index(pair[1].kind) if pair[1].kind in _ORDER else len(_ORDER), str(pair[0])))
    results = [_result(result, file, source) for file, result in found]
    cohorts = [_cohort(folder, source) for folder in folders if _kind_of(folder) == VOLUMES]
    runs = [_run(folder, source) for folder in folders if _inside(folder / "metrics.jsonl", source)]
    sections = [*results, *cohorts, *runs]  # conclusions first, then what led to them
    if not sections:
        raise DataError(
            f"{source} holds no run (metrics.jsonl), no synthetic cohort (from `latentsynth sample`) and no result of "
            "`latentsynth evaluate`: give the folder that holds them"
        )
    # Running numbers: names may be alike, and paths would name this machine.
    sections = [replace(section, anchor=f"section-{n}") for n, section in enumerate(sections, 1)]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("latentsynth.evaluation", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["cell"] = text
    page = environment.get_template("report.html.j2").render(
        title=f"latentsynth: {source.resolve().name}",
        version=__version__,
        written=time.strftime("%Y-%m-%d"),
        sections=sections,
        made=[cohort.where for cohort in cohorts],
        answers=answers([one for _, result in found for one in result.conclusions]),
        measured_by=MEASURED_BY,
        commands=list(dict.fromkeys(one.command for one in (*runs, *cohorts, *results) if one.command)),
    )
    write_marked(out, page, KIND)
    return out


def _folders(source: Path) -> list[Path]:
    """The folder and those below it that may hold something to show; links to folders are not followed."""
    found = [source]
    for child in sorted(source.iterdir()):
        if child.is_dir() and not (child.is_symlink() or child.name.startswith(".") or child.name in _SKIPPED):
            found += _folders(child)
    return found


def _inside(file: Path, source: Path) -> bool:
    """Whether a file may be embedded: a page that is passed on holds nothing from outside the folder it reports on."""
    return file.is_file() and file.resolve().is_relative_to(source.resolve()) and file.stat().st_size <= _LARGEST


def _holds(file: Path, source: Path) -> bool:
    """Whether a JSON file is a result; others (manifests, datasets) are none of our business."""
    try:
        return _inside(file, source) and is_result(read_json(file))
    except DataError:
        return False


def _kind_of(folder: Path) -> str:
    """What a folder's record says it holds; "" where there is none, or one that cannot be read."""
    try:
        record = Record.read(folder)
    except DataError:
        return ""
    return record.kind if record else ""


def _run(folder: Path, source: Path) -> _Section:
    lines = [_numbers(line) for line in read_json_lines(folder / "metrics.jsonl")]
    lines = [line for line in lines if "images_seen" in line]
    series: dict[str, tuple[list[float], list[float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key not in ("images_seen", "seconds", "lr"):
                x, y = series.setdefault(key, ([], []))
                x.append(line["images_seen"])
                y.append(value)
    pictures = []
    if series:
        with tempfile.TemporaryDirectory() as temporary:
            drawn = curves(Path(temporary) / "curves.png", series, "images seen")
            pictures.append(_image(drawn, "training and validation (val/) curves"))
    sheets = sorted(p for p in (folder / "samples").glob("*.png") if p.stem.isdecimal() and _inside(p, source))
    if sheets:
        pictures.append(_image(sheets[-1], f"written while training, at {int(sheets[-1].stem)} images"))
    settings = folder / "config.yaml"
    details = [(settings.name, settings.read_text(errors="replace"))] if _inside(settings, source) else []
    environment = folder / "environment.json"
    facts = read_fields(environment, command=list, processes=int) if _inside(environment, source) else {}
    last = next((line for line in reversed(lines) if any(key.startswith("val/") for key in line)), {"images_seen": 0})
    seconds = [line["seconds"] for line in lines if line.get("seconds")]
    scores = tuple((key, value) for key, value in last.items() if key.startswith("val/"))
    table = Table(
        f"after {last['images_seen']:g} images" + (f" and {seconds[-1] / 60:.1f} minutes" if seconds else ""),
        ("score", "value"),
        scores,
    )
    tables = [table] if scores else []
    card = folder / "checkpoint" / "config.json"
    if _inside(card, source):
        kept = tuple(_numbers(read_fields(card, metrics=dict)["metrics"]).items())
        tables.append(Table("of the checkpoint, on validation patients", ("score", "value"), kept))
    arguments = [str(argument) for argument in facts.pop("command", [])]
    command = command_line(arguments, facts.get("processes", 1)) if arguments else ""
    if facts:
        details.append(("environment.json", json.dumps(facts, indent=2)))
    return _Section(
        f"Run {folder.resolve().name}", "", _place(folder, source), command, (), tables,
        pictures, details,
    )  # fmt: skip


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those values that are numbers; a line of metrics has null for what is none."""
    return {key: value for key, value in values.items() if type(value) in (int, float)}


def _cohort(folder: Path, source: Path) -> _Section:
    record = Record.read(folder)
    assert record is not None
    facts = record.recipe
    count = len(list((folder / "sidecars").glob("*.json")))
    sheet = folder / "contact_sheet.png"
    pictures = (
        [_image(sheet, "real scan where there is one, then samples, the mask outlined")]
        if _inside(sheet, source)
        else []
    )
    chosen = facts.get("settings")
    settings = ", ".join(f"{key} {value}" for key, value in chosen.items()) if isinstance(chosen, dict) else ""
    return _Section(
        f"Synthetic cohort {folder.resolve().name}",
        "",
        f"{_place(folder, source)}: {count} volumes by checkpoint {facts.get('checkpoint')}; {settings}",
        record.command,
        pictures=pictures,
    )


def _result(result: Result, file: Path, source: Path) -> _Section:
    pictures = [
        _image(file.parent / picture.file, picture.caption)
        for picture in result.pictures
        if _inside(file.parent / picture.file, source) and picture.file.endswith(".png")
    ]
    return _Section(
        f"{file.parent.resolve().name}: {result.title}",
        "",
        _place(file, source) + (f", split: {', '.join(result.splits)}" if result.splits else ""),
        result.command,
        result.notes,
        result.tables,
        pictures,
        [("facts", json.dumps(result.facts, indent=2))],
    )


def _image(file: Path, caption: str) -> _Image:
    return _Image(caption, base64.b64encode(file.read_bytes()).decode())


def _place(path: Path, source: Path) -> str:
    """Where it stands, from the reported folder, so that the page names no machine."""
    relative = path.relative_to(source)
    return str(relative) if relative.parts else "."
