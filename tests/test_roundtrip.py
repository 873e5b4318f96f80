"""Reconstructed cohorts: where they lie, what they hold, what a second call does, what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import GEOMETRIES, SMALL, contents, lesion_mask, tiny_autoencoder, tiny_domain

from latentsynth import checkpoint
from latentsynth.autoencoders import Autoencoder
from latentsynth.autoencoders.reconstruction import reconstruct
from latentsynth.config import AugmentConfig
from latentsynth.data.cache.volumes import Recipe
from latentsynth.data.exchange.requests import Request, place, to_scanner
from latentsynth.data.manifest import Manifest
from latentsynth.errors import CheckpointError, DataError
from latentsynth.provenance import Ledger
from latentsynth.roundtrip import reconstruct_cohort
from latentsynth.types import Case, Domain, Grid, Labels, Window

PERCENTILE = (Window("percentile", 5.0, 95.0),)


def domain_of(windows: tuple[Window, ...] = PERCENTILE) -> Domain:
    """Windows of every image's own, so that the limits of a case matter."""
    domain = tiny_domain()
    return replace(domain, grid=Grid(domain.grid.shape, domain.grid.spacing_mm, windows), limits=((0.0, 1.0),))


def write(folder: Path, seed: int = 0, domain: Domain | None = None) -> Path:
    """An autoencoder's checkpoint."""
    parts = {"autoencoder": tiny_autoencoder("kl", seed)}
    checkpoint.write(folder, "autoencoder", domain or domain_of(), {}, parts, Ledger(), {})
    return folder


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """A smooth scan on every geometry, each of another brightness."""
    cases = []
    for n, (name, (affine, shape)) in enumerate(GEOMETRIES.items()):
        mask = lesion_mask(affine, shape, SMALL)
        wave = np.sin(np.arange(shape[0]) / 5)[:, None, None] * np.cos(np.arange(shape[2]) / 4)
        scan = (300 * n + 100 * wave + 80 * (mask > 0)).astype(np.float32)
        for kind, voxels in (("scan", scan), ("mask", mask)):
            nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}-{kind}.nii.gz")
        files = tmp_path / f"{name}-scan.nii.gz", tmp_path / f"{name}-mask.nii.gz"
        cases.append(Case(name, f"patient-{name}", files[:1], files[1], "val", voxels=(f"hash-{n}",)))
    made = Manifest("three", ("CT",), domain_of().labels, tuple(cases))
    made.save(tmp_path / "manifest.json")
    return made


def test_reconstructions_equal_those_made_by_hand(tmp_path: Path, cpu: Accelerator, manifest: Manifest) -> None:
    folder, domain = write(tmp_path / "ae"), domain_of()
    file = reconstruct_cohort(folder, manifest, manifest.cases, tmp_path / "out", cpu)
    made = Manifest.load(file)
    model = Autoencoder.from_pretrained(folder / "autoencoder")
    recipe = Recipe(domain.grid, domain.framing, domain.labels, AugmentConfig(), 0)
    for case, copy in zip(manifest.cases, made.cases, strict=True):
        assert case.mask is not None
        scan, image = nib.load(case.images[0]), nib.load(copy.images[0])
        assert image.shape == scan.shape
        np.testing.assert_allclose(image.affine, scan.affine, atol=1e-5)
        volume = recipe.read(case)
        placed = place(Request(case.case_id, case.mask), domain)
        by_hand = reconstruct(model, volume, torch.device("cpu")).numpy()
        expected = to_scanner(by_hand, placed, replace(domain, limits=volume.limits))[0]
        width = volume.limits[0][1] - volume.limits[0][0]
        found = np.asarray(image.dataobj)
        np.testing.assert_allclose(found, expected, atol=1e-4 * width)
        assert found.std() > 0.01 * width
        assert found.min() >= volume.limits[0][0] - 1e-3 * width  # in the units of this scan, not those of the domain
        assert found.max() <= volume.limits[0][1] + 1e-3 * width


def test_a_perfect_autoencoder_gives_the_scan_back(
    tmp_path: Path, cpu: Accelerator, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside the crop the scan returns to its own voxels; outside is the minimum of its window."""

    def perfect(model: object, volume: object, device: object) -> torch.Tensor:
        return torch.from_numpy(volume.image)  # type: ignore[attr-defined]

    monkeypatch.setattr("latentsynth.roundtrip.reconstruct", perfect)
    made = Manifest.load(reconstruct_cohort(write(tmp_path / "ae"), manifest, manifest.cases, tmp_path / "out", cpu))
    for case, copy in zip(manifest.cases, made.cases, strict=True):
        scan, image = (np.asarray(nib.load(one.images[0]).dataobj) for one in (case, copy))
        lesion = np.asarray(nib.load(case.mask).dataobj) > 0
        assert np.corrcoef(scan[lesion], image[lesion])[0, 1] > 0.8
        assert abs(np.median(image[lesion] - scan[lesion])) < 12  # of a range of about 280


def test_what_stands_in_the_manifest(tmp_path: Path, cpu: Accelerator, manifest: Manifest) -> None:
    made = Manifest.load(reconstruct_cohort(write(tmp_path / "ae"), manifest, manifest.cases, tmp_path / "out", cpu))
    assert (made.channels, made.labels) == (manifest.channels, manifest.labels)
    for case, copy in zip(manifest.cases, made.cases, strict=True):
        assert copy.parents == (case.patient_id,)
        assert copy.source != "real"
        assert copy.patient_id != case.patient_id
        assert copy.mask is not None
        assert case.mask is not None
        assert copy.mask.samefile(case.mask)
        assert copy.voxels == ()  # no scan of the patient


def test_a_second_call_makes_what_is_missing(tmp_path: Path, cpu: Accelerator, manifest: Manifest) -> None:
    folder, out = write(tmp_path / "ae"), tmp_path / "out"
    reconstruct_cohort(folder, manifest, manifest.cases[:2], out, cpu)
    stamps = {path: path.stat().st_mtime_ns for path in (out / "imagesTr").iterdir()}
    assert len(stamps) == 2
    text = (out / "manifest.json").read_bytes()
    reconstruct_cohort(folder, manifest, manifest.cases[:2], out, cpu)
    assert {path: path.stat().st_mtime_ns for path in (out / "imagesTr").iterdir()} == stamps
    assert (out / "manifest.json").read_bytes() == text
    file = reconstruct_cohort(folder, manifest, manifest.cases, out, cpu)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(list((out / "imagesTr").iterdir())) == len(Manifest.load(file).cases) == 3
    assert not [name for name in contents(out) if ".partial-" in name]


def test_the_folder_belongs_to_one_autoencoder_and_cohort(tmp_path: Path, cpu: Accelerator, manifest: Manifest) -> None:
    folder, out = write(tmp_path / "ae"), tmp_path / "out"
    reconstruct_cohort(folder, manifest, manifest.cases[:1], out, cpu)
    shutil.copytree(folder, tmp_path / "moved")
    reconstruct_cohort(tmp_path / "moved", manifest, manifest.cases[:1], out, cpu)  # the same weights elsewhere
    before = contents(out)
    with pytest.raises(DataError, match=r"made with other autoencoder: .*give another name"):
        reconstruct_cohort(write(tmp_path / "other", seed=1), manifest, manifest.cases, out, cpu)
    edited = replace(manifest, cases=(replace(manifest.cases[0], mask_hash="edited"), *manifest.cases[1:]))
    with pytest.raises(DataError, match=r"made with other cohort: .*give another name"):
        reconstruct_cohort(folder, edited, edited.cases, out, cpu)
    assert contents(out) == before


def test_a_cohort_that_does_not_fit_is_refused(tmp_path: Path, cpu: Accelerator, manifest: Manifest) -> None:
    folder, out = write(tmp_path / "ae"), tmp_path / "out"
    other = replace(manifest, labels=Labels((0, 1, 5), manifest.labels.names))
    for wrong in (other, replace(manifest, channels=("MR",))):
        with pytest.raises(DataError, match="give a cohort that has them"):
            reconstruct_cohort(folder, wrong, wrong.cases, out, cpu)
    named = replace(manifest, labels=Labels(manifest.labels.values, ("a", "b", "c")))
    reconstruct_cohort(folder, named, named.cases[:1], tmp_path / "named", cpu)  # names are words alone
    assert not out.exists()


def test_a_model_that_holds_an_autoencoder_will_do(
    tmp_path: Path, cpu: Accelerator, workplace: Path, trained_autoencoder: Path, trained_ldm: Path
) -> None:
    manifest = Manifest.load(workplace / "manifest.json")
    cases = manifest.select("val")[:1]
    found = [
        Manifest.load(reconstruct_cohort(path, manifest, cases, tmp_path / path.name, cpu)).cases[0].images[0]
        for path in (trained_autoencoder, trained_ldm)
    ]
    np.testing.assert_array_equal(*(np.asarray(nib.load(path).dataobj) for path in found))


def test_a_checkpoint_without_an_autoencoder_is_refused(tmp_path: Path, cpu: Accelerator, manifest: Manifest) -> None:
    checkpoint.write(tmp_path / "empty", "segmenter", domain_of(), {}, {}, Ledger(), {})
    with pytest.raises(CheckpointError, match="kind segmenter without an autoencoder"):
        reconstruct_cohort(tmp_path / "empty", manifest, manifest.cases, tmp_path / "out", cpu)
