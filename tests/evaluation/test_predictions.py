"""Label maps in the place of a segmenter: the same scores as of the segmenter that made them, and nothing taken on trust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

from latentsynth.data import nifti
from latentsynth.data.intake.prepare import prepare
from latentsynth.data.manifest import Manifest
from latentsynth.errors import CheckpointError, DataError
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.obedience.evaluate import evaluate_obedience
from latentsynth.evaluation.segmentation.evaluate import evaluate_segmenter
from latentsynth.evaluation.segmentation.predictions import open_segmenter
from latentsynth.metrics.surfaces import dice
from latentsynth.phantom.cohort import write_cohort
from latentsynth.types import Case


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight phantoms of 24 voxels, all of them test patients."""
    folder = tmp_path_factory.mktemp("scans")
    write_cohort(folder / "real", 8, seed=3, shape=(24, 24, 24), spacing_mm=(6.0, 6.0, 6.0), channels=1)
    prepare(folder / "real", folder / "real.json", fractions=(0.0, 0.0, 1.0), progress=False)
    return folder / "real.json"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are looked at elsewhere."""
    for module in ("obedience", "segmentation"):
        monkeypatch.setattr(f"latentsynth.evaluation.{module}.evaluate.contact_sheet", lambda *given, **named: None)


def written(folder: Path, cases: Sequence[Case], moved: int) -> Path:
    """What a program may have found: every mask moved by some voxels."""
    for case in cases:
        assert case.mask is not None
        labels, affine = nifti.read_labels(case.mask)
        nifti.write(folder / f"{case.case_id}.nii.gz", np.roll(labels, moved, 0), affine)
    return folder


def made(real: Path, out: Path) -> Cohort:
    """A set of another program: the same scans under other names."""
    manifest = Manifest.load(real)
    cases = tuple(
        replace(c, case_id=f"made-{c.case_id}", patient_id=f"made-{c.case_id}", source="external:0", split="train")
        for c in manifest.cases
    )
    replace(manifest, cases=cases).save(out)
    return Cohort.load("made", out, annotated=True)


def test_scores_are_those_of_the_label_maps(scans: Path, tmp_path: Path, cpu: Accelerator) -> None:
    cases = Manifest.load(scans).cases
    result = evaluate_segmenter(
        written(tmp_path / "found", cases, 1), scans, tmp_path / "out", cpu, "test", tolerance_mm=1.0
    )
    masks = [nifti.read_labels(case.mask)[0] for case in cases if case.mask]
    labels = Manifest.load(scans).labels
    for row in result.tables[0].rows[: len(labels) - 1]:
        value = labels.values[labels.names.index(str(row[0]))]
        scores = [dice(mask == value, np.roll(mask, 1, 0) == value) for mask in masks if (mask == value).any()]
        assert row[2].value == pytest.approx(np.mean(scores))  # type: ignore[union-attr]
    assert any("whom it was trained on is your word" in note for note in result.notes)


def test_obedience_by_label_maps_in_one_folder_or_a_folder_a_cohort(
    scans: Path, tmp_path: Path, cpu: Accelerator
) -> None:
    """Of the scans themselves perfect, of the set half: the share says so."""
    real, cohort = Cohort.load("real", scans, ("test",), annotated=True), made(scans, tmp_path / "made" / "set.json")
    shares = []
    for one in (True, False):
        folder = tmp_path / f"found{one}"
        written(folder if one else folder / "real", real.cases, 0)
        written(folder if one else folder / "made", cohort.cases, 2)
        result = evaluate_obedience(folder, [cohort], [real], tmp_path / f"out{one}", cpu)
        rows = {row[0]: row for row in result.tables[0].rows}
        assert rows["real"][3].value == 1  # type: ignore[union-attr]
        shares.append(rows["made"][4].value)  # type: ignore[union-attr]
    assert shares[0] == shares[1]
    assert 0.05 < shares[0] < 0.95


def test_what_is_missing_or_does_not_fit_is_named(scans: Path, tmp_path: Path, cpu: Accelerator) -> None:
    manifest = Manifest.load(scans)
    folder = written(tmp_path / "found", manifest.cases, 0)
    first, second = (folder / f"{case.case_id}.nii.gz" for case in manifest.cases[:2])
    labels, affine = nifti.read_labels(first)
    nifti.write(first, labels + 5 * (labels > 0), affine)
    with pytest.raises(DataError, match=rf"{first.name} holds label"):
        evaluate_segmenter(folder, scans, tmp_path / "out", cpu, "test")
    nifti.write(first, labels[:-1], affine)
    with pytest.raises(DataError, match="write label maps on the scan's own grid"):
        evaluate_segmenter(folder, scans, tmp_path / "out", cpu, "test")
    nifti.write(first, labels, affine)
    second.rename(folder / "nobody.nii.gz")
    with pytest.raises(DataError, match=f"no label map of case {manifest.cases[1].case_id}"):
        evaluate_segmenter(folder, scans, tmp_path / "out", cpu, "test")
    (folder / "again").mkdir()
    nifti.write(folder / "again" / first.name, labels, affine)
    with pytest.raises(DataError, match="are both of case"):
        open_segmenter(folder, manifest)
    with pytest.raises(CheckpointError):
        open_segmenter(tmp_path / "nothing", manifest)
