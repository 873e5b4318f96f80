"""Edges of painted lesions: a planted rim shows, real lesions beside real ones do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from scipy import ndimage

from latentsynth.data import nifti
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.edges import evaluate_edges
from latentsynth.files import write_json
from latentsynth.results import Estimate, Result
from latentsynth.types import Case, Framing, Grid, Labels, Window

_SEAM_MM = 5.0
GRID = Grid((24, 24, 24), (1.0, 1.0, 1.0), (Window("fixed", -1, 1),))


def cohort(
    folder: Path,
    name: str,
    rim: float = 0.0,
    real: bool = False,
    lesion: bool = True,
    blurred: bool = False,
    seam: float = 0.0,
) -> Cohort:
    """Ten scans with a soft-edged ball of random size.

    Perhaps a bright rim around it, no texture within it, or all brighter up to 5 mm from it, as a sidecar's blend ends.
    """
    rng = np.random.default_rng(len(name))
    cases = []
    axes = np.indices(GRID.shape) - 11.5
    distance = np.sqrt((axes**2).sum(0))
    for n in range(10):
        radius = rng.uniform(4.5, 7.5)
        inside = distance < radius
        image = ndimage.gaussian_filter(np.where(inside, 0.5, -0.3), 1.5) + 0.01 * rng.standard_normal(GRID.shape)
        image[ndimage.binary_dilation(inside) & ~inside] += rim
        if blurred:
            image[inside] = ndimage.gaussian_filter(image, 1.5)[inside]
        image[distance < radius + _SEAM_MM] += seam
        files = [folder / name / part / f"{name}-{n}.nii.gz" for part in ("imagesTr", "labelsTr")]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
        if seam:
            write_json(
                folder / name / "sidecars" / f"{name}-{n}.json", {"blend": {"whole_mm": 2.0, "end_mm": _SEAM_MM}}
            )
        nifti.write(files[0], image.astype(np.float32), np.eye(4))
        nifti.write(files[1], (inside & lesion).astype(np.uint8), np.eye(4))
        source = "real" if real else "x:0"
        cases.append(Case(f"{name}-{n}", f"{name}-{n}", (files[0],), files[1], "val" if real else "train", source))
    path = folder / f"{name}.json"
    Manifest(name, ("CT",), Labels((0, 1)), tuple(cases)).save(path)
    return Cohort.load(name, path, ("val",) if real else ("train",), annotated=True)


def test_a_rim_shows_and_real_lesions_beside_real_ones_do_not(tmp_path: Path) -> None:
    real = cohort(tmp_path, "real", real=True)
    sets = [cohort(tmp_path, "fair"), cohort(tmp_path, "rimmed", 0.4)]
    out = tmp_path / "out"
    result = evaluate_edges(real, sets, GRID, Framing(), out, Accelerator(cpu=True), tmp_path / "cache")
    rows = {row[1]: row for row in result.tables[0].rows}
    assert list(rows) == ["real", "fair", "rimmed"]
    fair, rimmed = rows["fair"], rows["rimmed"]
    for row in (fair, rimmed):
        assert isinstance(row[5], Estimate)
        assert isinstance(row[6], Estimate)
    assert rimmed[5].low > rimmed[6].high  # type: ignore[union-attr]
    assert fair[5].low <= fair[6].high  # type: ignore[union-attr]
    assert Result.load(out / "edges.json").tables == result.tables
    assert (out / "edges.png").stat().st_size > 5000


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    real = cohort(tmp_path, "real", real=True)
    empty = cohort(tmp_path, "empty", lesion=False)
    with pytest.raises(DataError, match="no case of empty has a lesion"):
        evaluate_edges(real, [empty], GRID, Framing(), tmp_path / "out", Accelerator(cpu=True), tmp_path / "cache")
    assert not (tmp_path / "out").exists()


def test_a_seam_around_and_a_blurred_lesion_show(tmp_path: Path) -> None:
    real = cohort(tmp_path, "real", real=True)
    sets = [cohort(tmp_path, "fair"), cohort(tmp_path, "blurred", blurred=True), cohort(tmp_path, "seamed", seam=0.1)]
    out = tmp_path / "out"
    result = evaluate_edges(real, sets, GRID, Framing(), out, Accelerator(cpu=True), tmp_path / "cache")
    _, seams, detail = result.tables
    at = {row[1]: row[3] for row in seams.rows}
    within = {row[1]: row[3] for row in detail.rows}
    assert at["seamed"].low > at["real"].high  # type: ignore[union-attr]
    assert at["fair"].low < at["real"].high  # type: ignore[union-attr]
    assert within["blurred"].high < within["real"].low  # type: ignore[union-attr]
    assert within["fair"].high > within["real"].low  # type: ignore[union-attr]
