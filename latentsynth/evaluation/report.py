"""One self-contained HTML page about everything below a folder: runs, synthetic cohorts, measurements, commands."""

from __future__ import annotations

import base64
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from latentsynth import __version__
from latentsynth.data.exchange.samples import KIND as VOLUMES
from latentsynth.errors import DataError
from latentsynth.files import read_json
from latentsynth.invocation import command_line
from latentsynth.outputs import Record, claim_file, write_marked
from latentsynth.plots import curves
from latentsynth.results import Result, Table, is_result, text
from latentsynth.training.run import read_metrics

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
    "sidecars",
    "tensorboard",
)  # large, and nothing to show


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
    found = [(file, Result.load(file)) for folder in folders for file in sorted(folder.glob("*.json")) if _holds(file)]
    found.sort(key=lambda pair: (_ORDER.index(pair[1].kind) if pair[1].kind in _ORDER else len(_ORDER), str(pair[0])))
    sections = [_result(result, file, source) for file, result in found]  # conclusions first, then what led to them
    sections += [_cohort(folder, source) for folder in folders if _kind_of(folder) == VOLUMES]
    sections += [_run(folder, source) for folder in folders if (folder / "metrics.jsonl").is_file()]
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
    )
    write_marked(out, page, KIND)
    return out


def _folders(source: Path) -> list[Path]:
    """The folder and those below it that may hold something to show."""
    found = [source]
    for child in sorted(source.iterdir()):
        if child.is_dir() and not child.name.startswith(".") and child.name not in _SKIPPED:
            found += _folders(child)
    return found


def _holds(file: Path) -> bool:
    """Whether a JSON file is a result; others (manifests, datasets) are none of our business."""
    try:
        return is_result(read_json(file))
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
    lines = read_metrics(folder)
    series: dict[str, tuple[list[float], list[float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key not in ("images_seen", "seconds", "lr") and value is not None:
                x, y = series.setdefault(key, ([], []))
                x.append(line["images_seen"])
                y.append(value)
    pictures = []
    if series:
        with tempfile.TemporaryDirectory() as temporary:
            drawn = curves(Path(temporary) / "curves.png", series, "images seen")
            pictures.append(_image(drawn, "training and validation (val/) curves"))
    sheets = sorted(path for path in (folder / "samples").glob("*.png") if path.stem.isdecimal())
    if sheets:
        pictures.append(_image(sheets[-1], f"written while training, at {int(sheets[-1].stem)} images"))
    details = [(name, (folder / name).read_text()) for name in ("config.yaml",) if (folder / name).is_file()]
    environment = folder / "environment.json"
    facts: dict[str, Any] = read_json(environment) if environment.is_file() else {}
    last = next((line for line in reversed(lines) if any(key.startswith("val/") for key in line)), {"images_seen": 0})
    seconds = [line["seconds"] for line in lines if line.get("seconds")]
    scores = tuple((key, float(value)) for key, value in last.items() if key.startswith("val/") and value is not None)
    table = Table(
        f"after {last['images_seen']} images" + (f" and {seconds[-1] / 60:.1f} minutes" if seconds else ""),
        ("score", "value"),
        scores,
    )
    tables = [table] if scores else []
    card = folder / "checkpoint" / "config.json"
    if card.is_file():
        kept = tuple((name, float(value)) for name, value in read_json(card).get("metrics", {}).items())
        tables.append(Table("of the checkpoint, on validation patients", ("score", "value"), kept))
    arguments, processes = facts.pop("command", []), int(facts.get("processes", 1))
    command = command_line(arguments, processes) if arguments else ""
    if facts:
        details.append(("environment.json", json.dumps(facts, indent=2)))
    return _Section(
        f"Run {folder.resolve().name}", "", _place(folder, source), command, (), tables,
        pictures, details,
    )  # fmt: skip


def _cohort(folder: Path, source: Path) -> _Section:
    record = Record.read(folder)
    assert record is not None
    facts = record.recipe
    count = len(list((folder / "sidecars").glob("*.json")))
    sheet = folder / "contact_sheet.png"
    pictures = (
        [_image(sheet, "real scan where there is one, then samples, the mask outlined")] if sheet.is_file() else []
    )
    settings = ", ".join(f"{key} {value}" for key, value in facts.get("settings", {}).items())
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
        if (file.parent / picture.file).is_file()
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
