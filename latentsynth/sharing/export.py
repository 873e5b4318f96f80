"""Packing a synthetic set for sharing: volumes, masks and a data card, after a privacy report on exactly these files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from latentsynth.data.exchange.samples import ORIGINS, describe
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.inputs import synthetic_set
from latentsynth.files import atomic_path, write_text
from latentsynth.outputs import check_free
from latentsynth.progress import bar
from latentsynth.provenance import Ledger, origins_of
from latentsynth.results import Result
from latentsynth.sharing.card import Declared, card_of
from latentsynth.sharing.filter import Verdicts, read_report, require_training_set, require_valid, verdicts_on
from latentsynth.sharing.licences import check_licences
from latentsynth.sharing.raw import renumbered, write_case


def export_set(
    samples: Path,
    out: Path,
    licence: str,
    report: Path | None = None,
    publish_mask_copies: bool = False,
    without_report: str | None = None,
    results: Sequence[Path] = (),
    faces: bool | None = None,
    accepted: Collection[str] = (),
) -> Path:
    """Writes ``imagesTr``, ``labelsTr``, ``dataset.json`` and the card ``README.md`` (nnU-Net raw layout).

    Labels are renumbered where they are not consecutive, which nnU-Net asks for; the card says which.

    No parents, no ledger and no original case names are exported: those name patients.

    Args:
        samples: Manifest of the set, or its folder, also one of another program.
        out: Folder to write; new or empty.
        licence: Printed in the card.
        report: ``memorization.json`` made for exactly these files and the generator's training set.
        publish_mask_copies: Masks of patients may be published; the card says so.
        without_report: Why there is no report, or why one that refuses is overruled; printed in the card.
        results: Other measurements of these volumes (``fidelity.json``, ``obedience.json``, ``reading.json``), for the card.
        faces: Whether faces can be seen in the scans that the generator learnt from; None does not say.
        accepted: Licences of these scans that forbid it and are overruled.

    Returns:
        The card.

    Raises:
        DataError: Real cases; no report and no reason; a report of other files or another training set, or that cannot
            be valid; flagged volumes or masks; scans whose licence forbids it; a folder that exists.
    """
    manifest = synthetic_set(samples)
    real = [case.case_id for case in manifest.cases if case.source == "real"]
    if real:
        raise DataError(f"{samples} holds {len(real)} real cases ({real[0]}): export synthetic volumes alone")
    check_free(out)
    origins = Ledger.beside(samples).origins | origins_of(manifest.cases)
    check_licences(origins, accepted, licence)
    if without_report is not None and not without_report.strip():
        raise DataError("--without-privacy-report needs a reason: say why, the card prints it")
    result = read_report(report) if report else None
    told = [Result.load(path) for path in results]
    # The card must not tell of other files, whatever the reason.
    verdicts = verdicts_on(manifest, result, report) if result is not None and report is not None else {}
    if without_report is None:
        if report is None or result is None:
            raise DataError(
                "no memorization report: run `latentsynth memorization` on these files and give --report, or say why there "
                "is none with --without-privacy-report REASON"
            )
        _check(manifest, samples, result, report, verdicts, publish_mask_copies)
    with atomic_path(out) as temporary:
        _copy(manifest, temporary, verdicts)
        packed = replace(manifest, labels=renumbered(manifest.labels)[0])
        # The fingerprint names nobody; `latentsynth ledger` finds the export by it.
        describe(temporary, f"{out.name} (synthetic)", packed, licence=licence, **{ORIGINS: [manifest.fingerprint]})
        write_text(
            temporary / "README.md",
            card_of(
                manifest,
                out.name,
                licence,
                result,
                verdicts,
                Declared(without_report, publish_mask_copies, faces, tuple(sorted(origins)), tuple(accepted)),
                told,
            ),
        )
    return out / "README.md"


def _check(
    manifest: Manifest,
    samples: Path,
    result: Result,
    report: Path,
    verdicts: Verdicts,
    publish_mask_copies: bool,
) -> None:
    require_valid(result, report)
    require_training_set(manifest, samples, result, report)
    flagged = [name for name, facts in verdicts.items() if facts["flagged"]]
    if flagged:
        raise DataError(
            f"{len(flagged)} of {len(verdicts)} volumes are flagged as copies ({', '.join(flagged[:3])}): drop them with "
            "`latentsynth filter`"
        )
    if any(case.mask for case in manifest.cases) and not result.facts["masks"] and not publish_mask_copies:
        raise DataError(
            f"{report} did not compare masks, and these volumes have masks: measure again with masks on all cohorts, or "
            "give --publish-mask-copies"
        )
    masks = [name for name, facts in verdicts.items() if facts["mask_copy"]]
    if masks and not publish_mask_copies:
        raise DataError(
            f"{len(masks)} of {len(verdicts)} masks are patients' own or copies of theirs ({', '.join(masks[:3])}): drop "
            "them with `latentsynth filter --drop-mask-copies`, or give --publish-mask-copies if you may publish them"
        )


def _copy(manifest: Manifest, folder: Path, measured: Collection[str]) -> None:
    with bar("exporting", len(manifest.cases), "volumes") as shown:
        for sub in ("imagesTr", "labelsTr"):
            (folder / sub).mkdir(parents=True)
        for n, case in enumerate(manifest.cases):
            name = f"synthetic_{n:05d}"  # case names may name patients
            if not case.content and case.case_id not in measured:  # a report goes by the bytes of the files
                raise DataError(
                    f"case {case.case_id} has no hash of its files, so nothing says that they are what was made: run "
                    "`latentsynth prepare --synthetic` on the set"
                )
            # Under a header of ours: the file's own has room for names and comments.
            write_case(case, name, folder, "Tr", manifest.labels)
            shown.advance()
