"""Label maps of another program's segmenters: known differences between arms come out as planted, and mix-ups are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from typer.testing import CliRunner

from latentsynth.cli.app import app
from latentsynth.data import nifti
from latentsynth.data.manifest import Manifest
from latentsynth.documents import read_csv
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.experiments.utility.predictions import compare_predictions
from latentsynth.results import Result
from latentsynth.types import Case, Labels

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
COUNT = 12


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Patients with a slab of lesion of 10 voxels' width; arms that find n voxels of it less, another n for each patient."""
    rng, cases = np.random.default_rng(0), []
    for n in range(COUNT):
        mask = np.zeros((16, 12, 12), np.uint8)
        mask[3:13, 3:9, 3:9] = 1
        image, label = tmp_path / "scans" / f"c{n}.nii.gz", tmp_path / "masks" / f"c{n}.nii.gz"
        nifti.write(image, rng.normal(size=mask.shape).astype(np.float32), AFFINE)
        nifti.write(label, mask, AFFINE)
        cases.append(Case(f"c{n}", f"p{n}", (image,), label, "test"))
        for arm, short in (("perfect", 0), ("real", 1 + n % 3), ("both", n % 3), ("worse", 3 + n % 3)):
            found = mask.copy()
            found[3 : 3 + short] = 0
            nifti.write(tmp_path / arm / f"c{n}.nii.gz", found, AFFINE)
    Manifest("m", ("MR",), Labels((0, 1), ("background", "lesion")), tuple(cases)).save(tmp_path / "m.json")
    return tmp_path


def compared(place: Path, arms: dict[str, list[str]], cpu: Accelerator) -> Result:
    cohort = Cohort.load("patients", place / "m.json", ("test",), annotated=True)
    folders = {arm: [place / name for name in names] for arm, names in arms.items()}
    return compare_predictions(cohort, folders, "real", place / "out", cpu)


def test_planted_differences_come_out(place: Path, cpu: Accelerator) -> None:
    """Dice of a slab of 10 - n voxels with one of 10, and its difference to that of the baseline."""
    result = compared(place, {arm: [arm] for arm in ("real", "both", "worse", "perfect")}, cpu)
    rows = read_csv(place / "out" / "utility.csv", ("arm", "patient", "dice"))
    dice = {(row["arm"], row["patient"]): float(row["dice"]) for row in rows}
    assert len(dice) == 4 * COUNT
    closed = lambda short: 2 * (10 - short) / (20 - short)  # noqa: E731
    for n in range(COUNT):
        for arm, short in (("perfect", 0), ("real", 1 + n % 3), ("both", n % 3), ("worse", 3 + n % 3)):
            assert dice[arm, f"p{n}"] == pytest.approx(closed(short))
    of_dice = {one["arm"]: one for one in result.facts["comparisons"] if one["measure"] == "dice"}
    assert {arm: one["verdict"] for arm, one in of_dice.items()} == {"both": "gain", "worse": "harm", "perfect": "gain"}
    expected = np.mean([closed(n % 3) - closed(1 + n % 3) for n in range(COUNT)])
    assert of_dice["both"]["found"]["difference"] == pytest.approx(expected)
    kept = Result.load(place / "out" / "utility.json").facts["comparisons"]
    assert [one["verdict"] for one in kept] == [one["verdict"] for one in result.facts["comparisons"]]


def test_trainings_are_paired(place: Path, cpu: Accelerator) -> None:
    """Two of each arm: the mean over them, and a sign for each."""
    result = compared(place, {"real": ["real", "worse"], "both": ["both", "perfect"]}, cpu)
    (dice,) = (one for one in result.facts["comparisons"] if one["measure"] == "dice")
    assert len(dice["found"]["by_seed"]) == 2
    assert min(dice["found"]["by_seed"]) > 0


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ({"real": ["real"]}, "give two or more"),
        ({"both": ["both"], "worse": ["worse"]}, "the baseline, 'real'"),
        ({"real": ["real", "worse"], "both": ["both"]}, "give every arm as many"),
        ({"real": ["real"], "both": ["again"]}, "hold the same label maps"),
        ({"real": ["real", "real"], "both": ["both", "perfect"]}, "hold the same label maps"),
        ({"real": ["real"], "both": ["lacking"]}, "holds no label map of case c3"),
        ({"real": ["real"], "both": ["moved"]}, "on the scan's own grid"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    place: Path, cpu: Accelerator, arms: dict[str, list[str]], words: str
) -> None:
    shutil.copytree(place / "real", place / "again")
    shutil.copytree(place / "both", place / "lacking")
    (place / "lacking" / "c3.nii.gz").unlink()
    shutil.copytree(place / "both", place / "moved")
    nifti.write(place / "moved" / "c3.nii.gz", nifti.read(place / "moved" / "c3.nii.gz")[0], np.eye(4))
    with pytest.raises(DataError, match=words):
        compared(place, arms, cpu)


def test_the_command(place: Path) -> None:
    options = [f"--predictions={arm}={place / arm}" for arm in ("real", "both")]
    result = CliRunner().invoke(
        app, ["evaluate", "utility", "--real", str(place / "m.json"), "--split", "test", *options, "--baseline", "real", "--out", str(place / "out")]
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "both against real: Dice gain" in " ".join(result.output.split())
