"""Sharpness of sets: faults of every kind are told from real patients, and other real patients are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from planted_sharpness import CELL, KINDS, plant

from latentsynth.config import AugmentConfig
from latentsynth.data import nifti
from latentsynth.data.cache.volumes import Recipe
from latentsynth.data.manifest import Manifest
from latentsynth.data.windows import limits, normalise
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.fidelity.sharpness import (
    CONTROL,
    Measure,
    _logarithms,
    _measures,
    compare_sharpness,
    sharpness,
    sharpness_table,
)
from latentsynth.metrics.band_power import band_power, body, octaves
from latentsynth.phantom.cohort import phantom
from latentsynth.types import Case, Framing, Grid, Labels, Window

MM = 6.0
WINDOWS = (Window("fixed", -160, 240), Window())
EDGES = octaves((MM,) * 3)
MEASURES = _measures(["x"], EDGES, True)


def values(image: np.ndarray) -> list[float]:
    return _logarithms([band_power(image, body(image), (MM,) * 3, EDGES, (CELL,) * 3)], MEASURES)


def named(rows: list[list[float]] | np.ndarray, letter: str) -> tuple[np.ndarray, list[str]]:
    return np.array(rows), [f"{letter}{n}" for n in range(len(rows))]


@pytest.fixture(scope="module")
def patients() -> dict[str, list[np.ndarray]]:
    made = [phantom(5, n, (32, 32, 32), (MM,) * 3, 2)[0] for n in range(26)]
    return {
        name: [normalise(scan[c], limits(WINDOWS[c], scan[c])) for scan in made] for c, name in enumerate(("CT", "MR"))
    }


@pytest.fixture(scope="module")
def measured(patients: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.array([values(image) for image in images]) for name, images in patients.items()}


@pytest.mark.parametrize("channel", ["CT", "MR"])
def test_other_real_patients_score_as_real(measured: dict[str, np.ndarray], channel: str) -> None:
    """All measures together in 95 of 100 sets; 5 of 30 would be one in 60."""
    rng, refused = np.random.default_rng(0), 0
    for _ in range(30):
        order = rng.permutation(26)
        real, other = (
            named(measured[channel][part], letter) for part, letter in ((order[:18], "a"), (order[18:], "b"))
        )
        refused += not compare_sharpness(real, other, MEASURES).as_real
    assert refused <= 4


@pytest.mark.parametrize("channel", ["CT", "MR"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_planted_fault_scores_as_real(
    patients: dict[str, list[np.ndarray]], measured: dict[str, np.ndarray], channel: str, kind: str
) -> None:
    rng = np.random.default_rng(0)
    faulty = [values(plant(kind, image, body(image), rng)) for image in patients[channel][22:]]
    found = compare_sharpness(named(measured[channel][:22], "a"), named(faulty, "b"), MEASURES)
    outside = {share.measure.kind for share in found.shares if not share.inside}
    assert not found.as_real
    if kind.startswith(("blocky", "checkered")):
        assert outside & {"seams", "pattern"}
    if "noise" in kind:
        assert "kurtosis" in outside
    if kind.startswith("blurred ") or kind == "sharpened":
        assert "power" in outside


def test_shares_and_ranges_by_hand() -> None:
    measure = Measure("x", "power", (2, 4))
    real, other = np.log([[1.0], [2.0], [4.0]]), np.log([[3.0], [3.0], [6.0], [6.0]])
    (share,) = compare_sharpness((real, ["a", "b", "c"]), (other, ["d", "d", "e", "e"]), [measure]).shares
    assert share.real == pytest.approx(2)
    assert share.value.value == pytest.approx(np.sqrt(18) / 2)  # rows of a patient are one
    half = 4.302653 * np.log(2) * np.sqrt(1 / 2 + 1 / 3)  # t of 2 degrees of freedom
    assert (share.low, share.high) == pytest.approx((np.exp(-half), np.exp(half)), rel=1e-5)
    assert share.inside
    (seams,) = compare_sharpness(
        (real, ["a", "b", "c"]), (other - 99, ["d"] * 4), [Measure("x", "seams", (2, 4))]
    ).shares
    assert seams.inside  # too few traces of cells are no fault


def scans(folder: Path, name: str, images: list[np.ndarray], turned: bool = False) -> Cohort:
    """Phantoms on disk, with their axes permuted and one flipped where ``turned``."""
    cases = []
    for n, image in enumerate(images):
        file = folder / f"{name}{n}.nii.gz"
        affine = np.diag([MM, MM, MM, 1.0])
        if turned:
            image, affine = image.transpose(2, 0, 1)[::-1], np.eye(4)
            affine[:3, :3] = np.array([[0, 1, 0], [0, 0, 1], [-1, 0, 0]]) * MM
        nifti.write(file, np.ascontiguousarray(image, np.float32), affine)
        cases.append(Case(f"{name}{n}", f"{name}{n}", (file,), None))
    return Cohort(name, Manifest(name, ("CT",), Labels((0,)), tuple(cases)), tuple(cases))


def recipe(voxels: int, extent: float = 32 * MM) -> Recipe:
    grid = Grid((voxels,) * 3, (extent / voxels,) * 3, (Window("fixed", -1, 1),))
    return Recipe(grid, Framing(), Labels((0,)), AugmentConfig(), 0)


def test_scans_are_measured_on_their_own_grid_and_the_control_pays_for_the_models(
    tmp_path: Path, cpu: Accelerator, patients: dict[str, list[np.ndarray]], measured: dict[str, np.ndarray]
) -> None:
    images = patients["CT"]
    real, same = scans(tmp_path, "real", images[:6]), scans(tmp_path, "same", images[:6], turned=True)
    sharp = sharpness([real, same], recipe(16), (2, 2, 2), cpu)  # 12 mm for scans of 6 mm: cells of 4 voxels
    found = {share.measure.name: share for share in sharp["same"].shares}
    assert found["power, 12 to 24 mm"].real == pytest.approx(np.exp(measured["CT"][:6, 0].mean()), rel=0.01)
    assert found["seams"].real == pytest.approx(np.exp(measured["CT"][:6, 6].mean()), rel=0.05)
    # Equal however its axes are stored, and far from what the coarse grid leaves of it.
    assert all(share.value.value == pytest.approx(1, abs=0.02) for share in found.values())
    assert sharp["same"].as_real
    control = {share.measure.name: share for share in sharp[CONTROL].shares}
    assert control["power, 12 to 24 mm"].value.value < 0.3
    assert not sharp[CONTROL].as_real
    table = sharpness_table("same", sharp["same"], sharp[CONTROL])
    assert table.columns[-1] == "real, grid and back"
    assert len(table.rows) == len(found)
    kept = sharpness([real, same], recipe(32), None, cpu)
    assert all(share.value.value == pytest.approx(1, abs=0.02) for share in kept[CONTROL].shares)
    assert {share.measure.kind for share in kept["same"].shares} == {"power", "kurtosis"}


def test_only_what_the_grid_covers_is_looked_at(
    tmp_path: Path, cpu: Accelerator, patients: dict[str, list[np.ndarray]]
) -> None:
    """A sample shows nothing outside its grid, so neither may the real scans."""
    images = patients["CT"][:4]
    inside = np.zeros((32, 32, 32), bool)
    inside[8:24, 8:24, 8:24] = True
    real = scans(tmp_path, "real", images)
    changed = scans(tmp_path, "changed", [np.where(inside, image, np.clip(image**3, -1, 1)) for image in images])
    sharp = sharpness([real, changed], recipe(16, 16 * MM), None, cpu)["changed"]
    # The body's outline next to the grid's edge depends on what is beyond, hardly.
    assert all(share.value.value == pytest.approx(1, abs=0.05) for share in sharp.shares)
    assert sharp.as_real
