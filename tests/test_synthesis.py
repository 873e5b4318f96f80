"""Volumes for masks: where they lie, what stands beside them, what a second run does, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
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
    run,
    tiny_domain,
    tiny_gan,
    write_mask,
)

from latentsynth.data import nifti
from latentsynth.data.cache.volumes import one_hot
from latentsynth.data.exchange.requests import Request
from latentsynth.data.exchange.samples import LostLesions
from latentsynth.data.identity import check_files
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.metrics.lesions import components
from latentsynth.provenance import Ledger, voxel_hash
from latentsynth.synthesis import synthesize
from latentsynth.synthesizers import GAN, Chained, LatentDiffusion, Synthesizer
from latentsynth.types import Case, Condition, Domain, Framing, Generated


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
            assert facts["voxels"] == [voxel_hash(np.asarray(turned_to_ras.dataobj))]
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
    alone = []
    for count in (1, 2):
        synthesize(Echo(tiny_domain()), masks[:count], tmp_path / str(count), cpu)
        alone.append(matplotlib.image.imread(tmp_path / str(count) / "contact_sheet.png").shape)
    grey = (sheet.max(-1) - sheet.min(-1)) < 0.02
    assert ((sheet.mean(-1) > 0.6) & grey).mean() > 0.02  # lesions are bright
    assert (~grey).sum() > 50  # outlines are coloured
    assert sheet.shape[1] > 1.5 * alone[0][1]  # the real scan takes a column of its own
    assert alone[0][0] == alone[1][0] < sheet.shape[0]  # masks of one volume each stand side by side


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
    before = {
        path: (out / path).read_bytes()
        for path in contents(out)
        if (out / path).suffix in (".gz", ".json") and path != "output.json"
    }
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
    assert volumes == sorted([*lost, "labelsTr/LPS-s0001.nii.gz", "masks_given/LPS-s0001.nii.gz"])
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
        with pytest.raises(DataError, match=rf"made with other {word}.*give another name"):
            synthesize(model, masks, out, cpu, **settings)
        assert not model.batches
    assert contents(out) == before
    (out / "output.json").unlink()
    with pytest.raises(DataError, match=r"contact_sheet\.png, dataset\.json, imagesTr and 5 more, which are not"):
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


# --- models that make their own masks

NEW = [Request("new", None)]
SPACING = (1.0, 2.0, 3.0)


@pytest.fixture
def own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key that ledgers are written with, away from the repository."""
    monkeypatch.setenv("LATENTSYNTH_KEY", str(tmp_path / "key"))


def patients(ids: list[str]) -> frozenset[str]:
    """How a ledger writes some patients."""
    return Ledger.of(Case(f"case {n}", name, (), None) for n, name in enumerate(ids)).patients


def joint(**changes: Any) -> GAN:
    """A tiny GAN that makes image and mask together, on a grid whose axes differ."""
    model = tiny_gan("StyleGAN 2, joint", (16, 24, 8))
    model.domain = tiny_domain((16, 24, 8), SPACING)
    model.fingerprint = "joint"
    return model


class Two(Synthesizer):
    """Makes its own masks, from the seed alone, and paints them as :class:`Echo` does."""

    makes_masks = True

    def __init__(self, domain: Domain):
        self.echo = Echo(domain)
        self.domain, self.fingerprint = domain, "two"
        self.seeds: list[int] = []

    def generate(self, condition: Condition | None, seeds: Sequence[int], **settings: Any) -> Generated:
        assert condition is None
        self.seeds.extend(seeds)
        labels, shape = len(self.domain.labels), self.domain.grid.shape
        index = [torch.randint(labels, shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return self.echo.generate(Condition(one_hot(torch.stack(index), labels)), seeds)

    def settings(self, **changes: Any) -> dict[str, Any]:
        return self.echo.settings(**changes)

    def to(self, device: torch.device | str) -> Two:
        return self


@pytest.mark.usefixtures("own_key")
def test_new_patients_come_with_the_masks_that_were_made(tmp_path: Path, cpu: Accelerator) -> None:
    model, out = joint(), tmp_path / "out"
    model.ledger = Ledger(frozenset({"somebody"}))
    manifest = synthesize(model, NEW, out, cpu, per_mask=3, seed=4, batch=2)
    names = [f"new-s{seed:04d}" for seed in (4, 5, 6)]
    assert [case.case_id for case in manifest.cases] == names
    assert [case.patient_id for case in manifest.cases] == [f"synthetic-{name}" for name in names]  # no two the same
    assert all(case.parents == () for case in manifest.cases)
    facts = {name: json.loads((out / "sidecars" / f"{name}.json").read_text()) for name in names}
    noise_seeds = [facts[name]["noise_seed"] for name in names]
    assert len(set(noise_seeds)) == 3
    made = model.generate(None, noise_seeds)
    values = np.array(model.domain.labels.values)
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = [-7.5 * 1, -11.5 * 2, -3.5 * 3]  # the middle of the grid lies at the origin
    for row, name in enumerate(names):
        label, label_affine = load(out / "labelsTr" / f"{name}.nii.gz")
        np.testing.assert_array_equal(label, values[made.mask[row].argmax(0).numpy()])
        image, image_affine = load(out / "imagesTr" / f"{name}_0000.nii.gz")
        expected = (made.image[row, 0].numpy() + 1) / 2 * (WINDOW[1] - WINDOW[0]) + WINDOW[0]
        np.testing.assert_allclose(image, expected, rtol=0, atol=1e-2)  # no resampling: it is the model's own grid
        np.testing.assert_allclose(image_affine, affine)
        np.testing.assert_allclose(label_affine, affine)
        assert facts[name]["mask"] is None
        assert facts[name]["parents"] == []
        assert facts[name]["mask_voxels"] == voxel_hash(label)
        assert facts[name]["zoom"] == 1
        assert "style" not in facts[name]
    assert len({facts[name]["mask_voxels"] for name in names}) == 3
    assert manifest == replace(Manifest.load(out / "manifest.json"), cases=manifest.cases)
    kept = Ledger.load(out / "ledger.json").everybody
    assert kept == {"somebody"} | patients([f"synthetic-{name}" for name in names])


@pytest.mark.usefixtures("own_key")
def test_a_second_run_of_new_patients_makes_what_is_missing(tmp_path: Path, cpu: Accelerator) -> None:
    model, out = Two(tiny_domain()), tmp_path / "out"
    synthesize(model, NEW, out, cpu, per_mask=3)
    assert len(model.seeds) == len(set(model.seeds)) == 3
    files = [path for path in contents(out) if path.startswith(("imagesTr/", "labelsTr/", "sidecars/"))]
    assert len(files) == 9
    voxels = {path: load(out / path)[0] for path in files if path.endswith(".gz")}
    facts = {path: (out / path).read_bytes() for path in files if path.endswith(".json")}
    written = {path: (out / path).stat().st_mtime_ns for path in files}

    synthesize(model, NEW, out, cpu, per_mask=3, batch=3)
    assert len(model.seeds) == 3
    assert {path: (out / path).stat().st_mtime_ns for path in files} == written

    (out / "sidecars" / "new-s0001.json").unlink()
    synthesize(model, NEW, out, cpu, per_mask=3)
    assert model.seeds[3:] == model.seeds[1:2]
    assert [path for path in files if (out / path).stat().st_mtime_ns != written[path]] == [
        "imagesTr/new-s0001_0000.nii.gz", "labelsTr/new-s0001.nii.gz", "sidecars/new-s0001.json",
    ]  # fmt: skip
    assert {path: (out / path).read_bytes() for path in facts} == facts
    for path, before in voxels.items():
        np.testing.assert_array_equal(load(out / path)[0], before)

    assert len(synthesize(model, NEW, out, cpu, per_mask=4).cases) == 4
    assert len(model.seeds) == 5


@pytest.mark.usefixtures("own_key")
def test_the_contact_sheet_of_new_patients_shows_each_with_its_own_mask(tmp_path: Path, cpu: Accelerator) -> None:
    def sheet(count: int) -> np.ndarray:
        out = tmp_path / f"out{count}"
        synthesize(Two(tiny_domain()), NEW, out, cpu, per_mask=count, batch=4)
        return matplotlib.image.imread(out / "contact_sheet.png")[..., :3]

    one, two, four = sheet(1), sheet(2), sheet(4)
    coloured = (one.max(-1) - one.min(-1)) > 0.1
    assert coloured.sum() > 50  # the outlines of a mask that no request holds
    assert two.shape[1] > 1.5 * one.shape[1]  # side by side
    assert four.shape[0] > 1.5 * two.shape[0]  # and then a new row


@pytest.mark.usefixtures("own_key")
def test_two_models_in_a_row_make_new_patients(tmp_path: Path, cpu: Accelerator) -> None:
    masks = tiny_gan("StyleGAN 2, masks")
    echo = Echo(tiny_domain())
    masks.ledger, echo.ledger = Ledger(frozenset({"a"})), Ledger(frozenset({"b"}))
    chain, out = Chained(masks, echo), tmp_path / "out"
    synthesize(chain, NEW, out, cpu, per_mask=2)
    for name in ("new-s0000", "new-s0001"):
        label = load(out / "labelsTr" / f"{name}.nii.gz")[0]
        painted = image_of(out, "new", int(name[-1]))
        index = np.searchsorted((0, 1, 4), label)
        np.testing.assert_allclose(painted, WINDOW[0] + index / 2 * (WINDOW[1] - WINDOW[0]), atol=1e-2)
        facts = json.loads((out / "sidecars" / f"{name}.json").read_text())
        assert facts["checkpoint"] == chain.fingerprint
    assert {"a", "b"} < Ledger.load(out / "ledger.json").patients


@pytest.mark.usefixtures("own_key")
def test_masks_and_counts_go_to_whoever_takes_them(tmp_path: Path, cpu: Accelerator, masks: list[Request]) -> None:
    wrong: list[tuple[Synthesizer, list[Request], str]] = [
        (joint(), masks, "makes its own masks: give --count instead of --masks"),
        (joint(), [*NEW, masks[0]], "makes its own masks: give --count instead of --masks"),
        (Echo(tiny_domain()), NEW, "paints masks: give --masks, or a --mask-model"),
        (Echo(tiny_domain()), [], "paints masks: give --masks, or a --mask-model"),
        (tiny_gan("StyleGAN 2, masks"), NEW, "makes masks without images: give it as --mask-model"),
    ]
    for model, requests, words in wrong:
        with pytest.raises(DataError, match=words):
            synthesize(model, requests, tmp_path / "out", cpu)
        assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("own_key")
def test_one_request_without_a_mask_is_not_lost_among_others(
    tmp_path: Path, cpu: Accelerator, masks: list[Request]
) -> None:
    """A painter would be given an empty mask, which files refuse."""
    with pytest.raises(DataError, match="paints masks"):
        synthesize(Echo(tiny_domain()), [masks[0], *NEW], tmp_path / "out", cpu)


# --- the look of another scan


class Styled(Echo):
    """Paints the mean of the reference scan everywhere."""

    takes_style = True  # type: ignore[assignment]

    def generate(self, condition: Condition | None, seeds: Sequence[int], **settings: Any) -> Generated:
        assert condition is not None
        assert condition.style is not None
        made = super().generate(condition, seeds)
        return Generated(condition.style.mean((2, 3, 4), keepdim=True).expand_as(made.image), made.mask)


def scan(folder: Path, name: str, level: float, channels: int = 1, shape: tuple[int, ...] = (30, 28, 26)) -> Case:
    """A scan of one grey level with a single darker voxel, so that it is not constant."""
    folder.mkdir(exist_ok=True)
    voxels = np.full(shape, level, np.float32)
    voxels[0, 0, 0] = level - 1
    files = tuple(folder / f"{name}_{n:04d}.nii.gz" for n in range(channels))
    for file in files:
        nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 2.0, 1.0])), file)
    return Case(name, f"person-{name}", files, None, parents=(f"parent-{name}",))


LEVELS = {"a": 0.0, "b": 100.0, "c": 200.0}


@pytest.mark.usefixtures("own_key")
def test_volumes_take_the_looks_in_turn_and_say_whose(tmp_path: Path, cpu: Accelerator, masks: list[Request]) -> None:
    styles = [scan(tmp_path / "styles", name, level) for name, level in LEVELS.items()]
    out, model = tmp_path / "out", Styled(tiny_domain())
    manifest = synthesize(model, masks[:2], out, cpu, per_mask=4, batch=3, styles=styles)
    assert len(manifest.cases) == 8
    for request in masks[:2]:
        for n in range(4):
            style = styles[n % 3]
            facts = json.loads((out / "sidecars" / f"{request.name}-s{n:04d}.json").read_text())
            assert facts["style"] == style.case_id
            inside = load(out / "imagesTr" / f"{request.name}-s{n:04d}_0000.nii.gz")[0].max()  # elsewhere is empty
            assert inside == pytest.approx(LEVELS[style.case_id], abs=1)
            (case,) = (case for case in manifest.cases if case.case_id == f"{request.name}-s{n:04d}")
            family = {f"person-{style.case_id}", f"parent-{style.case_id}", *request.parents}
            assert set(case.parents) == set(facts["parents"]) == family
    everybody = [f"{kin}-{name}" for name in LEVELS for kin in ("person", "parent")]
    everybody += [parent for request in masks[:2] for parent in request.parents]
    everybody += [f"synthetic-{request.name}" for request in masks[:2]]
    assert Ledger.load(out / "ledger.json").everybody == patients(everybody)


@pytest.mark.usefixtures("own_key")
def test_the_look_belongs_to_the_seed_wherever_a_run_begins(
    tmp_path: Path, cpu: Accelerator, masks: list[Request]
) -> None:
    """Or two runs into one folder would not agree on what a volume looks like."""
    styles = [scan(tmp_path / "styles", name, level) for name, level in LEVELS.items()]
    for out, seed, count in (("whole", 0, 6), ("parts", 4, 2), ("parts", 0, 4)):
        synthesize(Styled(tiny_domain()), masks[:1], tmp_path / out, cpu, per_mask=count, seed=seed, styles=styles)
    for file in sorted((tmp_path / "whole" / "sidecars").iterdir()):
        assert file.read_bytes() == (tmp_path / "parts" / "sidecars" / file.name).read_bytes()


@pytest.mark.usefixtures("own_key")
def test_an_output_folder_belongs_to_its_looks(tmp_path: Path, cpu: Accelerator, masks: list[Request]) -> None:
    styles = [scan(tmp_path / "styles", name, level) for name, level in LEVELS.items()]
    out, model = tmp_path / "out", Styled(tiny_domain())
    synthesize(model, masks[:1], out, cpu, styles=styles[:2])
    count = len(model.batches)
    for other in (styles[:1], styles[1::-1], styles):
        with pytest.raises(DataError, match="made with other styles"):
            synthesize(model, masks[:1], out, cpu, styles=other)
    synthesize(model, masks[:1], out, cpu, styles=styles[:2])
    assert len(model.batches) == count


@pytest.mark.usefixtures("own_key")
def test_a_network_takes_the_look_of_the_scan_that_the_sidecar_names(
    tmp_path: Path, cpu: Accelerator, masks: list[Request]
) -> None:
    model = tiny_gan("SPADE, bottleneck")
    styles = [scan(tmp_path / "styles", name, level) for name, level in LEVELS.items()]
    for first in range(2):
        synthesize(model, masks[:1], tmp_path / f"out{first}", cpu, styles=styles[first : first + 1])
    synthesize(model, masks[:1], tmp_path / "both", cpu, per_mask=2, styles=styles[:2])
    one, two = (image_of(tmp_path / f"out{n}", masks[0].name) for n in range(2))
    assert np.abs(one - two).max() > 1  # Hounsfield units
    np.testing.assert_allclose(image_of(tmp_path / "both", masks[0].name, 0), one, atol=0.1)
    # A bottleneck hears of nothing but the scan and the mask, so another seed makes the same volume.
    np.testing.assert_allclose(image_of(tmp_path / "both", masks[0].name, 1), two, atol=0.1)


@pytest.mark.usefixtures("own_key")
def test_a_look_that_cannot_be_taken_leaves_nothing_behind(
    tmp_path: Path, cpu: Accelerator, masks: list[Request]
) -> None:
    out = tmp_path / "out"
    two = scan(tmp_path / "styles", "two", 0.0, channels=2)
    with pytest.raises(DataError, match="style two has 2 channels, the model makes 1: give one file per channel"):
        synthesize(tiny_gan("SPADE, vae"), masks[:1], out, cpu, styles=[two])
    gone = replace(scan(tmp_path / "styles", "gone", 0.0), images=(tmp_path / "styles" / "nothing.nii.gz",))
    with pytest.raises(DataError, match="nothing"):
        synthesize(tiny_gan("SPADE, vae"), masks[:1], out, cpu, styles=[gone])
    assert not out.exists()


@pytest.mark.parametrize("name", ["SPADE, none", "pix2pix, unet", "StyleGAN 2, joint"])
@pytest.mark.usefixtures("own_key")
def test_a_look_is_refused_by_a_model_that_takes_none(
    tmp_path: Path, cpu: Accelerator, masks: list[Request], name: str
) -> None:
    """Before the folder is claimed, so that the same command without the look goes on."""
    model, out = tiny_gan(name), tmp_path / "out"
    asked = NEW if model.makes_masks else masks[:1]
    with pytest.raises(DataError, match="style"):
        synthesize(model, asked, out, cpu, styles=[scan(tmp_path / "styles", "a", 0.0)])
    assert not list(out.rglob("*.nii.gz"))
    synthesize(model, asked, out, cpu)


# --- the command


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str], Path]:
    """The folder of a saved GAN, by its name in PAINTERS or MAKERS."""

    def save(name: str) -> Path:
        folder = tmp_path / "models" / name.replace(", ", "-").replace(" ", "-")
        tiny_gan(name).save(folder / "checkpoint", Ledger(frozenset({name})), {})
        return folder

    return save


@pytest.mark.usefixtures("own_key")
def test_the_command_makes_as_many_as_asked(
    tmp_path: Path, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = saved("StyleGAN 2, joint"), tmp_path / "out"
    command = ("sample", folder, "--count", "3", "--out", out, "--truncation", "0.7")
    assert run(monkeypatch, *command) == 0
    assert "3 volumes" in capsys.readouterr().out
    names = [f"new-s{n:04d}" for n in range(3)]
    assert [case.case_id for case in Manifest.load(out / "manifest.json").cases] == names
    facts = json.loads((out / "sidecars" / "new-s0002.json").read_text())
    model = GAN.from_pretrained(folder)
    assert facts["checkpoint"] == model.fingerprint
    assert facts["settings"] == {"truncation": 0.7}
    made = model.generate(None, [facts["noise_seed"]], truncation=0.7)
    label = load(out / "labelsTr" / "new-s0002.nii.gz")[0]
    np.testing.assert_array_equal(label, np.array([0, 1, 4])[made.mask[0].argmax(0).numpy()])
    assert "StyleGAN 2, joint" in Ledger.load(out / "ledger.json").patients


@pytest.mark.usefixtures("own_key")
def test_the_command_chains_a_mask_model_and_a_painter(
    tmp_path: Path, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    painter, makes = saved("StyleGAN 2, slices"), saved("StyleGAN 2, masks")
    out = tmp_path / "out"
    assert run(monkeypatch, "sample", painter, "--mask-model", makes, "--count", "2", "--out", out) == 0
    assert len(Manifest.load(out / "manifest.json").cases) == 2
    chain = Chained(GAN.from_pretrained(makes), GAN.from_pretrained(painter))
    facts = json.loads((out / "sidecars" / "new-s0001.json").read_text())
    assert facts["checkpoint"] == chain.fingerprint
    image = chain.generate(None, [facts["noise_seed"]]).image[0, 0].numpy()
    expected = (image + 1) / 2 * (WINDOW[1] - WINDOW[0]) + WINDOW[0]
    np.testing.assert_allclose(image_of(out, "new", 1), expected, atol=1e-2)
    assert {"StyleGAN 2, slices", "StyleGAN 2, masks"} < Ledger.load(out / "ledger.json").patients


@pytest.mark.usefixtures("own_key")
def test_the_command_takes_styles(
    tmp_path: Path, saved: Callable[[str], Path], masks: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        scan(tmp_path / "styles", name, LEVELS[name])
    asked = ("sample", saved("SPADE, vae"), "--masks", masks[0].mask, "--style", tmp_path / "styles")
    assert run(monkeypatch, *asked, "--out", tmp_path / "out", "--per-mask", "2") == 0
    facts = [json.loads(file.read_text()) for file in sorted((tmp_path / "out" / "sidecars").iterdir())]
    assert [fact["style"] for fact in facts] == ["a", "b"]
    assert [fact["parents"] for fact in facts] == [["a"], ["b"]]


@pytest.mark.usefixtures("own_key")
def test_the_command_refuses_what_does_not_go_together(
    tmp_path: Path, saved: Callable[[str], Path], masks: list[Request], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = masks[0].mask.parent
    joint, painter, makes = (saved(name) for name in ("StyleGAN 2, joint", "pix2pix, unet", "StyleGAN 2, masks"))
    out = ("--out", tmp_path / "out")
    wrong: list[tuple[tuple[str | Path, ...], str]] = [
        ((painter, "--masks", folder, "--count", "2", *out), "give one"),
        ((painter, "--masks", folder, "--mask-model", makes, *out), "give one"),
        ((painter, *out), "missing --masks or --count"),
        ((painter, "--mask-model", makes, *out), "missing --masks or --count"),
        ((joint, "--count", "2"), "missing --out"),
        ((joint, "--count", "0", *out), "--count"),
        ((joint, "--masks", folder, *out), "give --count instead of --masks"),
        ((painter, "--count", "2", *out), "give --masks, or a --mask-model"),
        ((makes, "--count", "2", *out), "give it as --mask-model"),
        ((joint, "--count", "2", "--mask-model", makes, *out), "makes its own masks"),
        ((painter, "--count", "2", "--mask-model", painter, *out), "makes no masks"),
        ((painter, "--masks", folder, "--truncation", "0.5", *out), "has no latent to truncate"),
        ((joint, "--count", "2", "--truncation", "1.5", *out), "--truncation"),
        ((joint, "--count", "2", "--steps", "5", *out), "steps"),
    ]
    for arguments, words in wrong:
        assert run(monkeypatch, "sample", *arguments) != 0, arguments
        said = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert words in said, (arguments, said)
        assert not (tmp_path / "out").exists(), arguments


# --- lesions that the model's grid cannot hold


def many_lesions(folder: Path) -> tuple[Request, np.ndarray]:
    """On voxels of 1 mm: one lesion of 12 mm, one of 4 mm, and five of a voxel."""
    values = np.zeros((64, 64, 64), np.int16)
    values[26:38, 26:38, 26:38] = 4
    for at in ((20, 20, 20), (20, 44, 20), (44, 20, 44), (44, 44, 20), (20, 32, 44)):
        values[at] = 1
    values[:4, :4, :4] = 4
    return write_mask(folder / "many.nii.gz", values, np.eye(4)), values


def test_no_label_map_claims_a_lesion_that_the_model_never_got(tmp_path: Path, cpu: Accelerator) -> None:
    request, asked = many_lesions(tmp_path)
    domain = tiny_domain((16, 16, 16), (4.0, 4.0, 4.0), Framing("whole"))
    out = tmp_path / "out"
    made = synthesize(Echo(domain), [request], out, cpu, per_mask=2)
    pieces = components(asked > 0)[0]
    alone = np.isin(pieces, np.flatnonzero(np.bincount(pieces.ravel()) == 1))  # of them the grid keeps one, as a cell
    for seed in (0, 1):
        written, given = (load(out / folder / f"many-s{seed:04d}.nii.gz")[0] for folder in ("labelsTr", "masks_given"))
        claimed = components(written > 0)[0]
        assert set(np.unique(claimed[given > 0])) == {0, 1, 2, 3}
        assert set(np.unique(claimed[image_of(out, "many", seed) > np.mean(WINDOW)])) == {0, 1, 3}  # of label 4, bright
        assert np.array_equal(written > 0, (asked > 0) & ~(alone & (given == 0)))
        assert dice(given == 4, asked == 4) > 0.6  # in steps of 4 mm
        facts = json.loads((out / "sidecars" / f"many-s{seed:04d}.json").read_text())
        assert (facts["lesions"], facts["lesions_lost"]) == (7, 4)
    assert LostLesions.of(out) == LostLesions(2, 2, 14, 8)
    assert [case.mask for case in made.cases] == [out / "labelsTr" / f"many-s{seed:04d}.nii.gz" for seed in (0, 1)]
    for case in made.cases:
        check_files(case, mask=nifti.read_labels(case.mask))  # type: ignore[arg-type]


def test_what_is_written_is_a_cohort_for_nnunet(tmp_path: Path, cpu: Accelerator, masks: list[Request]) -> None:
    """What its verifier asks of dataset.json and of the files, label values aside, which are the masks' own."""
    out, domain = tmp_path / "out", tiny_domain()
    labels = replace(domain.labels, names=("air", "a", "b"))
    synthesize(Echo(replace(domain, labels=labels)), masks, out, cpu, per_mask=2)
    dataset = json.loads((out / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "a": 1, "b": 4}
    images, maps = (sorted(p.name for p in (out / folder).iterdir()) for folder in ("imagesTr", "labelsTr"))
    assert dataset["numTraining"] == len(images) == len(maps) == 2 * len(masks)
    ending = dataset["file_ending"]
    assert images == [name.removesuffix(ending) + "_0000" + ending for name in maps]
    for name in (*images, *maps):
        file = out / ("imagesTr" if name in images else "labelsTr") / name
        assert nib.load(file).header["qform_code"] == 1
