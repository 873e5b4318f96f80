"""Packing a trained model for sharing: weights in half precision, and a card with what was measured of its volumes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from latentsynth import checkpoint
from latentsynth.errors import DataError
from latentsynth.evaluation.memorization.report import KIND
from latentsynth.evaluation.memorization.tables import verdicts
from latentsynth.files import atomic_folder, write_text
from latentsynth.masks import learnt
from latentsynth.provenance import Ledger
from latentsynth.results import Result, markdown
from latentsynth.sharing.filter import read_report, require_searched, require_valid
from latentsynth.sharing.licences import check_licences, origins_table
from latentsynth.synthesizers.build import FAMILIES
from latentsynth.synthesizers.checkpointed import load

CARD, LICENCE = "README.md", "LICENSE.txt"


def pack(
    model: Path,
    out: Path,
    licence: Path,
    results: Sequence[Path] = (),
    title: str = "",
    about: Path | None = None,
    accepted: Collection[str] = (),
) -> Path:
    """Writes a checkpoint in half precision with its licence, and a card that tells what was measured.

    A checkpoint that was packed before is packed again to the same weights, so measure it in between: what is measured
    of the packed model is what its users get.

    Args:
        model: Run or checkpoint folder of anything that makes volumes or masks.
        out: Folder to write, or that of an earlier packing of the same kind.
        licence: Text of the licence of the weights, with whom the patients' scans are owed to; copied.
        results: Results (``obedience.json``, ``fidelity.json``, ``memorization.json``) of volumes it made.
        title: First line of the card; the folder's name unless given.
        about: Text that is printed under it.
        accepted: Licences of the scans it learnt from that forbid it and are overruled.

    Returns:
        The card.

    Raises:
        DataError: A result is unreadable, or the copy search found copies, looked for others than the model saw, or clears nobody; the licence is missing; that of the scans
            forbids it.
        CheckpointError: There is no such model, or something else stands at ``out``.
    """
    texts = [_text(file, what) for file, what in ((licence, "licence"), (about, "about")) if file is not None]
    folder = checkpoint.locate(model)
    loaded = load([*FAMILIES, *learnt.FAMILIES], folder, "cannot be packed: give a model that makes volumes or masks")
    told = [_result(path, loaded.ledger) for path in results]
    header = checkpoint.read_header(folder)
    check_licences(loaded.ledger.origins, accepted)
    with atomic_folder(out, checkpoint.is_checkpoint) as temporary:
        loaded.save(temporary, loaded.ledger, header.metrics, half=True)
        write_text(temporary / LICENCE, texts[0])
        card = (temporary / CARD).read_text(encoding="utf-8").partition("\n")[2]
        write_text(
            temporary / CARD,
            "\n".join(
                [
                    f"# {title or out.name}",
                    "",
                    *texts[1:],
                    card.strip(),
                    *_origins(loaded.ledger, accepted),
                    *_sections(told),
                    "",
                ]
            ),
        )
    return out / CARD


def _origins(ledger: Ledger, accepted: Collection[str]) -> list[str]:
    return ["", "## Scans learnt from", "", origins_table(ledger.origins, accepted)]


def _text(path: Path, what: str) -> str:
    """What a text file holds.

    Raises:
        DataError: It is missing or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{what} {path} cannot be read ({error}): give a text file in UTF-8") from error


def _result(path: Path, ledger: Ledger) -> Result:
    """A result, which must not say that the model copies, and must have looked for everybody it saw.

    Raises:
        DataError: It is unreadable, says so, or looked for others.
    """
    result = Result.load(path)
    if result.kind != KIND:
        return result
    report = read_report(path)
    require_valid(report, path)
    valid = {name for name, space in report.facts["spaces"].items() if space["valid"]}
    copying = [
        one["set"]
        for one in report.facts["copies"]
        if one["set"] in report.facts["sets"] and one["space"] in valid and (one["copied"] or one["discoveries"])
    ]
    if copying:
        raise DataError(
            f"{path} says that {copying[0]} holds copies of training patients: a model that copies is not shared; train it "
            "shorter, or on more augmented copies"
        )
    require_searched(ledger.voxels, report, path)
    return report


def _sections(results: Sequence[Result]) -> list[str]:
    """What was measured, for people."""
    lines: list[Any] = []
    for result in results:
        lines += ["", f"## {result.title}", ""]
        # Of a search for copies the rest names patients; commands name folders of whoever measured.
        tables = [verdicts(result.facts)] if result.kind == KIND else result.tables
        for table in tables:
            lines += ["", f"### {table.title}", "", *markdown(table)]
        lines += ["", *(f"- {note}" for note in result.notes)]
    return lines
