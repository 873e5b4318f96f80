"""Volumes for masks: where they lie, what stands beside them, what a second run does, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import (
    AUTOENCODERS,
    GEOMETRIES,
    SMALL,
    WINDOW,
    Echo,
    contents,
    lesion_mask,
    tiny_domain,
    write_mask,
)

from latentsynth.data.manifest import Manifest
from latentsynth.data.requests import Request
from latentsynth.errors import DataError
from latentsynth.provenance import voxel_hash
from latentsynth.synthesis import synthesize
from latentsynth.synthesizers import LatentDiffusion
from latentsynth.types import Condition, Framing, Generated


def load(file: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(file)
    return np.asanyarray(image.dataobj), image.affine


def image_of(out: Path, name: str, seed: int = 0) -> np.ndarray:
    return load(out / "imagesTr" / f"{name}-s{seed:04d}_0000.nii.gz")[0]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def centroid_mm(inside: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return np.asarray(affine[:3, :3] @ np.argwhere(inside).mean(0) + affine[:3, 3])


class Constant(Echo):
    """Paints everything in the window's maximum."""

    def generate(self, condition: Condition | None, seeds: Sequence[int], **settings: Any) -> Generated:
        made = super().generate(condition, seeds)
        return Generated(torch.ones_like(made.image), made.mask)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize(("radius", "fit"), [(SMALL, None), (SMALL, "scale"), (22.0, "scale")])
def test_what_is_painted_for_a_mask_lies_on_it(
    tmp_path: Path, cpu: Accelerator, name: str, radius: float, fit: Any
) -> None:
    """The mask goes to the model's grid, is painted there, and comes back to where it was."""
    affine, shape = GEOMETRIES[name]
    values = lesion_mask(affine, shape, radius)
    asked = write_mask(tmp_path / "a.nii.gz", values, affine)
    domain = tiny_domain((32, 32, 32), (1.1, 1.0, 1.2)) if radius == SMALL else tiny_domain((32, 32, 32), (1.1, 1, 1))
    synthesize(Echo(domain), [asked], tmp_path / "out", cpu, fit=fit)
    painted = image_of(tmp_path / "out", "a") > np.mean(WINDOW)
    assert dice(painted, values > 0) > 0.9
    spacing = np.linalg.norm(affine[:3, :3], axis=0).max()
    assert np.linalg.norm(centroid_mm(painted, affine) - centroid_mm(values > 0, affine)) < 0.15 * spacing
    zoom = json.loads((tmp_path / "out" / "sidecars" / "a-s0000.json").read_text())["zoom"]
    assert (zoom > 1.1) == (radius > SMALL)


def test_the_overlap_would_notice_a_flip_or_a_shift() -> None:
    affine, shape = GEOMETRIES["oblique"]
    lesion = lesion_mask(affine, shape, SMALL) > 0
    for axis in range(3):
        assert dice(np.flip(lesion, axis), lesion) < 0.9
        shifted = np.roll(lesion, 1, axis)
        assert np.linalg.norm(centroid_mm(shifted, affine) - centroid_mm(lesion, affine)) > 0.9 * 2


@pytest.mark.parametrize("framing", [Framing("lesion"), Framing("whole")])
def test_volumes_come_on_the_grid_of_their_mask(
    tmp_path: Path, cpu: Accelerator, masks: list[Request], model_of: Callable[[str], LatentDiffusion], framing: Framing
) -> None:
    model = model_of("kl")
    domain = tiny_domain((16, 16, 16), (3.0, 3.0, 3.0), framing)
    other = LatentDiffusion(domain, model.autoencoder, model.conditioner, model.denoiser, model.sampling)
    out = tmp_path / "out"
    synthesize(other, masks, out, cpu)
    for request in masks:
        values, affine = load(request.mask)
        made, made_affine = load(out / "imagesTr" / f"{request.name}-s0000_0000.nii.gz")
        np.testing.assert_allclose(made_affine, affine, atol=1e-5)
        assert made.shape == values.shape
        label, label_affine = load(out / "labelsTr" / f"{request.name}-s0000.nii.gz")
        np.testing.assert_array_equal(label, values)
        np.testing.assert_allclose(label_affine, affine, atol=1e-5)
        assert WINDOW[0] <= made.min()
        assert made.max() <= WINDOW[1]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_outside_the_crop_is_the_minimum_of_the_window(tmp_path: Path, cpu: Accelerator, name: str) -> None:
    affine, shape = GEOMETRIES[name]
    values = lesion_mask(affine, shape, SMALL)
    model = Constant(tiny_domain())
    synthesize(model, [write_mask(tmp_path / "a.nii.gz", values, affine)], tmp_path / "out", cpu)
    made = image_of(tmp_path / "out", "a")
    assert set(np.unique(made)) == {WINDOW[0], WINDOW[1]}
    inside = made == WINDOW[1]
    assert inside[values > 0].all()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    for axis in range(3):  # the crop is 32 mm wide; a box covers all voxels whose centres it holds
        others = tuple(n for n in range(3) if n != axis)
        assert abs(inside.any(axis=others).sum() * spacing[axis] - 32) <= spacing[axis] * 1.001


def test_a_fine_mask_is_painted_up_to_the_edge_of_the_crop() -> None:
    values = np.zeros((48, 48, 48), np.int16)
    values[20:28, 20:28, 20:28] = 1
    made = Constant(tiny_domain())((values, np.eye(4)))[0].get_fdata()
    where = np.argwhere(made > WINDOW[0])
    assert where.min(0).tolist() == [8, 8, 8]  # the lesion's centre is 23.5, the crop reaches 16 mm to each side
    assert where.max(0).tolist() == [39, 39, 39]


def test_what_stands_beside_every_volume(
    tmp_path: Path, cpu: Accelerator, masks: list[Request], model_of: Callable[[str], LatentDiffusion]
) -> None:
    model, out = model_of("vq"), tmp_path / "out"
    returned = synthesize(model, masks, out, cpu, per_mask=2, seed=5, steps=2)
    names = [f"{request.name}-s{seed:04d}" for request in masks for seed in (5, 6)]
    noise_seeds: set[int] = set()
    for request in masks:
        for seed in (5, 6):
            facts = json.loads((out / "sidecars" / f"{request.name}-s{seed:04d}.json").read_text())
            assert facts["SYNTHETIC"] is True
            assert "Not a patient" in facts["notice"]
            assert facts["parents"] == list(request.parents)
            assert (facts["seed"], facts["checkpoint"]) == (seed, model.fingerprint)
            assert facts["settings"] == model.settings(steps=2)
            assert facts["mask"] == request.mask.name
            assert facts["limits"] == {"CT": list(WINDOW)}
            voxels, affine = load(out / "imagesTr" / f"{request.name}-s{seed:04d}_0000.nii.gz")
            turned_to_ras = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
            assert facts["voxels"] == voxel_hash(np.asarray(turned_to_ras.dataobj))
            noise_seeds.add(facts["noise_seed"])
    assert len(noise_seeds) == len(names)
    manifest = Manifest.load(out / "manifest.json")
    assert sorted(case.case_id for case in manifest.cases) == sorted(names)
    assert manifest.fingerprint == returned.fingerprint
    for case in manifest.cases:
        assert case.source.startswith(model.fingerprint)
        assert case.parents == (f"patient-{case.case_id.rsplit('-', 1)[0]}",)
        assert case.mask is not None
        assert all(path.is_file() for path in (*case.images, case.mask))
    # Volumes of one mask are no strangers to each other.
    assert {case.patient_id for case in manifest.cases} == {f"synthetic-{request.name}" for request in masks}
    assert all(case.limits == (WINDOW,) for case in manifest.cases)
    dataset = json.loads((out / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "lesion 1": 1, "lesion 4": 4}
    assert dataset["channel_names"] == {"0": "CT"}
    assert dataset["SYNTHETIC"] is True
    assert not [path for path in contents(out) if ".partial-" in path]


def test_the_contact_sheet_shows_the_samples(tmp_path: Path, cpu: Accelerator, masks: list[Request]) -> None:
    real = tmp_path / "real.nii.gz"
    values, affine = load(masks[0].mask)
    nib.save(nib.Nifti1Image(np.where(values > 0, 250.0, 0.0).astype(np.float32), affine), real)
    shown = [Request(masks[0].name, masks[0].mask, images=(real,)), masks[1]]
    synthesize(Echo(tiny_domain()), shown, tmp_path / "out", cpu)
    sheet = matplotlib.image.imread(tmp_path / "out" / "contact_sheet.png")[..., :3]
    bare = tmp_path / "bare"
    synthesize(Echo(tiny_domain()), masks[:2], bare, cpu)
    without = matplotlib.image.imread(bare / "contact_sheet.png")[..., :3]
    grey = (sheet.max(-1) - sheet.min(-1)) < 0.02
    assert ((sheet.mean(-1) > 0.6) & grey).mean() > 0.02  # lesions are bright
    assert (~grey).sum() > 50  # outlines are coloured
    assert sheet.shape[1] > 1.5 * without.shape[1]  # the real scan takes a column of its own


def test_a_second_run_makes_what_is_missing(
    tmp_path: Path, cpu: Accelerator, masks: list[Request], monkeypatch: pytest.MonkeyPatch,
    model_of: Callable[[str], LatentDiffusion],
) -> None:  # fmt: skip
    model, out, made = model_of("kl"), tmp_path / "out", []
    generate = model.generate

    def counting(condition: Condition | None, seeds: Sequence[int], **settings: Any) -> Generated:
        made.extend(seeds)
        return generate(condition, seeds, **settings)

    monkeypatch.setattr(model, "generate", counting)
    synthesize(model, masks, out, cpu, per_mask=2, batch=3)
    assert len(made) == len(set(made)) == 6
    before = {path: (out / path).read_bytes() for path in contents(out) if (out / path).suffix in (".gz", ".json")}
    written = {path: (out / path).stat().st_mtime_ns for path in before}

    lost = ["sidecars/LPS-s0001.json", "imagesTr/LPS-s0001_0000.nii.gz"]
    image = image_of(out, "LPS", 1)
    for path in lost:
        (out / path).unlink()
    synthesize(model, masks, out, cpu, per_mask=2, batch=3)
    assert len(made) == 7
    np.testing.assert_allclose(image_of(out, "LPS", 1), image, atol=1e-3)
    remade = [path for path in before if (out / path).stat().st_mtime_ns != written[path]]
    volumes = sorted(path for path in remade if "/" in path)
    assert volumes == sorted([*lost, "labelsTr/LPS-s0001.nii.gz"])
    again = {path: (out / path).read_bytes() for path in before if path.endswith(".json")}
    assert again == {path: text for path, text in before.items() if path.endswith(".json")}

    synthesize(model, masks, out, cpu, per_mask=3)
    assert len(made) == 10
    assert len(Manifest.load(out / "manifest.json").cases) == 9


def test_a_run_that_breaks_off_leaves_only_whole_volumes(
    tmp_path: Path, cpu: Accelerator, masks: list[Request]
) -> None:
    class Breaking(Echo):
        def generate(self, condition: Condition | None, seeds: Sequence[int], **settings: Any) -> Generated:
            if len(self.batches) == 2:
                raise RuntimeError("out of memory")
            return super().generate(condition, seeds, **settings)

    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="memory"):
        synthesize(Breaking(tiny_domain()), masks, out, cpu, batch=1)
    done = [path.stem for path in (out / "sidecars").iterdir()]
    assert len(done) == 2
    for name in done:
        load(out / "imagesTr" / f"{name}_0000.nii.gz")
        load(out / "labelsTr" / f"{name}.nii.gz")
    echo = Echo(tiny_domain())
    assert len(synthesize(echo, masks, out, cpu).cases) == 3
    assert sum(echo.batches) == 1


def test_an_output_folder_belongs_to_one_recipe(tmp_path: Path, cpu: Accelerator, masks: list[Request]) -> None:
    out = tmp_path / "out"
    synthesize(Echo(tiny_domain()), masks[:1], out, cpu)
    before = contents(out)
    for model, settings, word in (
        (Echo(tiny_domain()), {"level": 2}, "settings"),
        (Echo(tiny_domain(), "another"), {}, "checkpoint"),
    ):
        with pytest.raises(DataError, match=rf"made with (another|other) {word}.*give another --out"):
            synthesize(model, masks, out, cpu, **settings)
        assert not model.batches
    assert contents(out) == before
    (out / "synthesis.json").unlink()
    with pytest.raises(DataError, match=r"holds volumes but no synthesis\.json"):
        synthesize(Echo(tiny_domain()), masks, out, cpu)


def test_an_edited_mask_does_not_keep_its_old_volume(tmp_path: Path, cpu: Accelerator, masks: list[Request]) -> None:
    out, echo = tmp_path / "out", Echo(tiny_domain())
    synthesize(echo, masks[:1], out, cpu)
    affine, shape = GEOMETRIES["oblique"]
    smaller = lesion_mask(affine, shape, 6.0)
    write_mask(masks[0].mask, smaller, affine)
    with suppress(DataError):  # refusing it would do as well as making it anew
        synthesize(echo, masks[:1], out, cpu)
        np.testing.assert_array_equal(load(out / "labelsTr" / f"{masks[0].name}-s0000.nii.gz")[0], smaller)


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_volumes_do_not_depend_on_the_batch_and_equal_a_direct_call(
    tmp_path: Path, cpu: Accelerator, masks: list[Request], model_of: Callable[[str], LatentDiffusion], kind: str
) -> None:
    model = model_of(kind)
    for batch in (1, 2, 3):
        synthesize(model, masks, tmp_path / f"out{batch}", cpu, batch=batch, seed=4, steps=2)
    width = WINDOW[1] - WINDOW[0]
    for request in masks:
        first = image_of(tmp_path / "out1", request.name, 4)
        assert first.std() > 1e-3 * width
        values, affine = load(request.mask)
        by_path = model(request.mask, seed=4, steps=2)[0]
        by_array = model((values, affine), seed=4, steps=2)[0]
        np.testing.assert_allclose(by_path.affine, affine)
        for other in (
            image_of(tmp_path / "out2", request.name, 4), image_of(tmp_path / "out3", request.name, 4),
            np.asarray(by_path.dataobj), np.asarray(by_array.dataobj),
        ):  # fmt: skip
            np.testing.assert_allclose(other, first, rtol=0, atol=1e-4 * width)
        assert np.abs(np.asarray(model(request.mask, seed=5, steps=2)[0].dataobj) - first).max() > 1e-3 * width
