"""Dropping volumes from a synthetic set: copies of patients, and those on which a segmenter disagrees with the mask."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError, LatentsynthError
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.features import volumes
from latentsynth.evaluation.inputs import synthetic_set
from latentsynth.evaluation.memorization.report import EXACT, FACTS, KIND, case_files
from latentsynth.metrics.surfaces import mean_dice
from latentsynth.outputs import claim_file
from latentsynth.parallel import share
from latentsynth.provenance import LEDGER, Ledger
from latentsynth.results import Result, write_csv
from latentsynth.segmentation import Segmenter

Verdicts = dict[str, dict[str, Any]]  # by case, what a report says of it


def filter_set(samples: Path, report: Path, out: Path, drop_mask_copies: bool = False) -> tuple[int, int]:
    """Writes a manifest of the volumes that no valid feature space flagged, and ``NAME_dropped.csv`` beside it.

    Args:
        samples: Manifest of the set, or its folder, also one of another program.
        report: ``memorization.json`` made for its files.
        out: Manifest to write; the files stay where they are.
        drop_mask_copies: Also drop volumes whose mask is a patient's, or a copy of a training patient's.

    Returns:
        How many volumes were kept and dropped.

    Raises:
        DataError: The report is of other files or another training set, clears nobody or did not compare the masks; nothing would be left; or
            ``out`` is the set itself, or anything else that stands there.
    """
    manifest = _opened(samples, out)
    result = read_report(report)
    if drop_mask_copies and not result.facts["masks"]:
        raise DataError(
            f"{report} did not compare masks, so it cannot say which are copies: measure again with masks on all cohorts"
        )
    verdicts = verdicts_on(manifest, result, report)
    require_valid(result, report)
    require_training_set(manifest, samples, result, report)
    reasons = {case.case_id: _reasons(verdicts[case.case_id], drop_mask_copies) for case in manifest.cases}
    return _keep(samples, manifest, reasons, out, f"{report}: train a model that copies less")


def filter_disagreeing(
    samples: Path, segmenter: Path, out: Path, least_dice: float, cache: Path, accelerator: Accelerator
) -> tuple[int, int]:
    """Writes a manifest of the volumes in which a segmenter finds the mask they were made for, and ``NAME_dropped.csv``.

    Args:
        samples: Manifest of the set.
        segmenter: Run or checkpoint folder of a segmenter that was trained on real patients.
        out: Manifest to write; the files stay where they are.
        least_dice: Mean Dice over labels, on the segmenter's grid, below which a volume is dropped.
        cache: Where preprocessed volumes are kept.
        accelerator: The processes that share the work; the first one writes.

    Returns:
        How many volumes were kept and dropped.

    Raises:
        DataError: The segmenter has seen synthetic cases, or works on other channels or labels; nothing would be left; or
            ``out`` is the set itself, or anything else that stands there.
    """
    _opened(samples, out)
    model = Segmenter.from_pretrained(segmenter)
    if model.trained_on.get("synthetic"):
        raise DataError(
            f"{segmenter} was trained on synthetic cases, which would judge themselves: give a real-trained one"
        )
    cohort = Cohort.load("samples", samples, annotated=True)
    domain = model.domain
    model.check(cohort.manifest.channels, cohort.manifest.labels, samples)
    volumes_ = volumes(cohort, domain.grid, domain.framing, domain.labels, cache, accelerator, masks=True)
    model.to(accelerator.device)

    def agreement(n: int) -> dict[str, float]:
        volume = volumes_.volume(n)
        assert volume.mask is not None
        return {"dice": mean_dice(volume.mask, model.on_grid(volume.image), len(domain.labels))}

    scores = [row["dice"] for row in share(accelerator, len(volumes_), agreement)]
    reasons = {
        case.case_id: f"Dice {dice:.3f} of the segmenter with the mask" if not dice >= least_dice else ""
        for case, dice in zip(cohort.cases, scores, strict=True)
    }
    counts = len(reasons), sum(map(bool, reasons.values()))
    if accelerator.is_main_process:
        manifest = replace(cohort.manifest, cases=cohort.cases)
        _keep(samples, manifest, reasons, out, f"{segmenter}, whose best is {max(scores):.2f}: lower the least Dice")
    accelerator.wait_for_everyone()
    return counts[0] - counts[1], counts[1]


def _opened(samples: Path, out: Path) -> Manifest:
    """The set, if the manifest of what is kept of it may be written."""
    if out.resolve() == samples.resolve():
        raise DataError(f"{out} is the set itself: give another --out")
    if out.is_dir() or out.suffix != ".json":
        raise DataError(
            f"{out} is no name for a manifest: give a .json file, for example {out.with_suffix('') / 'kept.json'}"
        )
    if out.name == LEDGER:
        raise DataError(f"{out} would stand where a ledger does: give another --out")
    manifest = synthetic_set(samples)
    claim_file(out, manifest.kind)
    if out.exists() and not _synthetic(out):
        raise DataError(f"{out} is a manifest of real cases: give another --out")
    if not out.exists() and _dropped(out).exists():
        raise DataError(f"{_dropped(out)} exists and is not of this command: give another --out")
    return manifest


def _dropped(out: Path) -> Path:
    """What was dropped and why, beside the manifest of what was kept."""
    return out.with_name(f"{out.stem}_dropped.csv")


def _keep(samples: Path, manifest: Manifest, reasons: dict[str, str], out: Path, cure: str) -> tuple[int, int]:
    """Writes those without a reason to go; the ledger travels with them."""
    kept = tuple(case for case in manifest.cases if not reasons[case.case_id])
    if not kept:
        raise DataError(f"every volume of {samples} is flagged by {cure}")
    replace(manifest, name=out.parent.name, cases=kept).save(out)
    home = samples if samples.is_dir() else samples.parent
    if (home / LEDGER).is_file() and out.parent.resolve() != home.resolve():
        # Whoever trains on these volumes must know whom they come from; another set there keeps its own entries.
        (Ledger.beside(samples) | Ledger.beside(out)).save(out.parent / LEDGER)
    dropped = [(name, why) for name, why in reasons.items() if why]
    write_csv(_dropped(out), ("case", "reason"), dropped)
    return len(kept), len(dropped)


def read_report(path: Path) -> Result:
    """A memorization report.

    Raises:
        DataError: Another file, the report of an older version, or one that was edited.
    """
    result = Result.load(path)
    if result.kind != KIND:
        raise DataError(
            f"{path} is a result of kind {result.kind}, expected {KIND}: make one with `latentsynth memorization`"
        )
    missing = [name for name in FACTS if name not in result.facts]
    if missing:
        raise DataError(f"{path} is of an older version and lacks {', '.join(missing)}: make it again")
    return result


def verdicts_on(manifest: Manifest, report: Result, path: Path) -> Verdicts:
    """What a report says of each case of a set, found by the contents of its files.

    Raises:
        DataError: Some case was not measured, or was changed since.
    """
    every = [facts for cases in report.facts["sets"].values() for facts in cases.values()]
    # One file may stand in two sets of a report: what speaks against it counts.
    by_files = {facts["files"]: facts for facts in sorted(every, key=lambda f: (len(f["flagged"]), f["mask_copy"]))}
    found = {case.case_id: by_files.get(case_files(case)) for case in manifest.cases}
    missing = [name for name, facts in found.items() if facts is None]
    if missing:
        raise DataError(
            f"{path} was not made for {len(missing)} of these {len(found)} volumes, as they are now ({', '.join(missing[:3])}): "
            "run `latentsynth memorization` on exactly these files"
        )
    return {name: facts for name, facts in found.items() if facts is not None}


def require_valid(report: Result, path: Path) -> None:
    """Refuses a report that clears nobody.

    Raises:
        DataError: No feature space of it is valid.
    """
    if not any(space["valid"] for space in report.facts["spaces"].values()):
        raise DataError(f"no feature space of {path} is valid, so it clears nobody: see its notes for why")


def sets_of(verdicts: Verdicts, result: Result) -> dict[str, dict[str, Any]]:
    """The sets of a report that these volumes come from."""
    files = {facts["files"] for facts in verdicts.values()}
    sets: dict[str, dict[str, Any]] = result.facts["sets"]
    return {name: cases for name, cases in sets.items() if files & {one["files"] for one in cases.values()}}


def require_training_set(manifest: Manifest, samples: Path, result: Result, report: Path) -> None:
    """Everybody that the generator saw must have been looked for.

    Raises:
        DataError: There is no ledger, or it names scans that the report did not look for.
    """
    ledger = Ledger.beside(samples)
    if not ledger.voxels and any(case.source != "external" for case in manifest.cases):
        raise DataError(
            f"no {LEDGER} beside {samples}, so nothing says whom its model saw: put the one of the set back beside it"
        )
    # Volumes of the set itself are not taken off: one that is somebody's scan would take its patient off the list.
    require_searched(ledger.voxels, result, report)


def require_searched(seen: Collection[str], result: Result, report: Path) -> None:
    """Refuses a report that did not look for all images that a model has seen.

    Raises:
        DataError: With how many it did not.
    """
    missed = set(seen) - set(result.facts["train"]["voxels"])
    if missed:
        raise DataError(
            f"{report} looked for {len(result.facts['train']['voxels'])} training images, and the generator, or the "
            f"autoencoder under it, saw {len(missed)} others: measure with everybody it saw as --train"
        )


def _synthetic(path: Path) -> bool:
    """Whether a file is a manifest without real cases."""
    try:
        return all(case.source != "real" for case in Manifest.load(path).cases)
    except LatentsynthError:
        return False


def _reasons(facts: dict[str, Any], drop_mask_copies: bool) -> str:
    spaces = [
        f"exact copy of {facts['nearest'][name]}" if name == EXACT else f"copy of {facts['nearest'][name]} by {name}"
        for name in facts["flagged"]
    ]
    return "; ".join([*spaces, *(["a patient's mask"] if drop_mask_copies and facts["mask_copy"] else [])])
