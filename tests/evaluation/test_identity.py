"""A perfect generator, one that gives back the real scan: no measurement may find a difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from accelerate import Accelerator

from latentsynth.config import AugmentConfig
from latentsynth.data.cache.volumes import Recipe
from latentsynth.data.exchange.requests import Request, place
from latentsynth.data.manifest import Manifest
from latentsynth.evaluation.obedience.intensities import intensities_of
from latentsynth.synthesis import synthesize
from latentsynth.synthesizers import Synthesizer
from latentsynth.types import Case, Condition, Domain, Framing, Generated, Grid, Labels, Window

PERCENTILE = Window("percentile", 0.5, 99.5)


class Perfect(Synthesizer):
    """Answers the mask of a scan with the scan."""

    fingerprint = "perfect"

    def __init__(self, domain: Domain, image: np.ndarray):
        self.domain, self.image = domain, image

    def generate(self, condition, seeds, **settings):  # type: ignore[no-untyped-def]
        import torch

        image = torch.from_numpy(self.image)[None].expand(len(seeds), -1, -1, -1, -1)
        return Generated(image, (condition or Condition(image)).mask)

    def settings(self, **changes):  # type: ignore[no-untyped-def]
        return {}

    def to(self, device):  # type: ignore[no-untyped-def]
        return self


@pytest.mark.parametrize("crop", ["whole", "lesion"])
def test_a_perfect_copy_is_read_as_the_scan_is(crop: str, tmp_path: Path, cpu: Accelerator) -> None:
    """Bright fat outside the crop sets a scan's percentiles; its copy, which holds the crop alone, must not lose them."""
    size, affine = 40, np.diag([2.0, 2.0, 2.0, 1.0])
    rng = np.random.default_rng(0)
    scan = rng.normal(500, 60, (size,) * 3).astype(np.float32)
    scan[:, :, :8] = rng.normal(1000, 60, (size, size, 8))  # fat, far from the lesion
    mask = np.zeros((size,) * 3, np.int16)
    mask[18:24, 18:24, 22:28] = 1
    scan[mask == 1] = 650
    for name, voxels in (("scan", scan), ("mask", mask)):
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii.gz")
    shape = (40, 40, 40) if crop == "whole" else (16, 16, 16)
    labels, framing = Labels((0, 1)), Framing(crop)  # type: ignore[arg-type]
    grid = Grid(shape, (2.0, 2.0, 2.0), (PERCENTILE,))
    recipe = Recipe(grid, framing, labels, AugmentConfig(), 0)
    case = Case("a", "a", (tmp_path / "scan.nii.gz",), tmp_path / "mask.nii.gz")
    real = recipe.read(case)
    domain = Domain(grid, framing, labels, ("MR",), real.limits)
    request = Request("a", tmp_path / "mask.nii.gz", ("a",))
    assert place(request, domain).zoom == 1
    out = tmp_path / "out"
    made = synthesize(Perfect(domain, real.image), [request], out, cpu)
    copy = recipe.read(Manifest.load(out / "manifest.json").cases[0])
    np.testing.assert_allclose(copy.image, real.image, atol=1e-3)
    assert copy.mask is not None
    for volume in (real, copy):
        assert intensities_of(volume.image, volume.mask == 1).contrast[0] == pytest.approx(
            intensities_of(real.image, real.mask == 1).contrast[0], abs=1e-3
        )
    blind = recipe.read(replace(made.cases[0], limits=()))  # as another program's volume would be read
    assert (np.abs(blind.image - real.image).mean() > 0.05) == (crop == "lesion")
