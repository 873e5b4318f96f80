"""The measurement on plain folders of volumes that no voxel aligns, with feature spaces that do not apply, or are broken."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy import ndimage

from latentsynth.data import nifti
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.inputs import open_cohort
from latentsynth.evaluation.memorization.evaluate import measure_memorization
from latentsynth.evaluation.memorization.headers import Arrays
from latentsynth.evaluation.memorization.report import EXACT
from latentsynth.provenance import file_fingerprint
from latentsynth.results import Estimate, Result, Table
from latentsynth.types import Case, Labels

Measure = Callable[..., tuple[Result, float]]
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texture anywhere: 7 trained on, 10 held out, 6 mirrored copies and 6 strangers."""
    folder = tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(0)
    for name, count in (("train", 7), ("held", 10), ("strangers", 6)):
        for n in range(count):
            image = 8000 * ndimage.gaussian_filter(rng.normal(size=(24, 24, 24)), 2)
            nifti.write(folder / name / f"{name}_{n}_0000.nii.gz", image.astype(np.int16), AFFINE)
            if name == "train" and n < 6:
                whole = image.astype(np.int16)
                noisy = whole + rng.integers(-20, 21, whole.shape, np.int16)
                nifti.write(folder / "mirrored" / f"mirrored_{n}.nii.gz", noisy[::-1], AFFINE)
                turned = whole.transpose(2, 0, 1)[:, ::-1]
                for lost, voxels, affine in (
                    ("bare", whole, np.eye(4)), ("turned", turned, AFFINE), ("both", turned, np.eye(4)),
                    ("bare noisy", noisy, np.eye(4)), ("cut", noisy[:20], np.eye(4)),
                ):  # fmt: skip
                    nifti.write(folder / lost / f"{lost}_{n}.nii.gz", np.ascontiguousarray(voxels), affine)
    return folder


@pytest.fixture(scope="module")
def measure(place: Path, cpu: Accelerator) -> Measure:
    def run(out: str, sets: Sequence[str], spaces: Sequence[str], **options: Any) -> tuple[Result, float]:
        made = [(name, place / name) for name in sets]
        return measure_memorization(
            place / "train", place / "held", made, place / out, cpu, spaces, level=0.2, cache=place / "cache", **options
        )

    return run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out pictures, which are looked at elsewhere."""
    monkeypatch.setattr("latentsynth.evaluation.memorization.report.contact_sheet", lambda *given: None)


def verdicts(result: Result) -> dict[Any, Any]:
    """The last word on each set, by set and feature space."""
    return {row[:2]: row[-1] for row in copies(result).rows}


def copies(result: Result) -> Table:
    """How many copies."""
    return next(table for table in result.tables if table.title == "copies")


def test_copies_that_only_registration_sees(measure: Measure) -> None:
    """And strangers beside them, whom no feature space flags."""
    result, rate = measure("all", ("mirrored", "strangers"), ("voxels", "ssim", "registered"))
    assert rate == 1
    said = verdicts(result)
    for name in ("mirrored", "strangers"):
        assert said[name, "voxels"] == "not applicable"
        assert said[name, "ssim"] != "COPIES"
    assert said["mirrored", "registered"] == "COPIES"
    assert said["strangers", "registered"] != "COPIES"
    assert any(note.startswith("voxels is not applicable: volumes of different patients") for note in result.notes)
    assert said["mirrored", "joint"] == "COPIES"
    assert said["strangers", "joint"] != "COPIES"
    assert any(note.startswith("mirrored: copies by registered: 100%") for note in result.notes)
    assert "mirrored: no more copies than among unseen patients by ssim" in result.notes
    assert "strangers: no more copies than among unseen patients by joint, ssim, registered" in result.notes
    facts = result.facts["sets"]["mirrored"]
    assert {name: one["nearest"]["registered"] for name, one in facts.items()} == {
        f"mirrored_{n}": f"train_{n}" for n in range(6)
    }
    assert all("registered" in one["flagged"] for one in facts.values())
    assert not any("voxels" in one["flagged"] or "voxels" in one["nearest"] for one in facts.values())
    assert not any(table.title.startswith("masks") for table in result.tables)  # folders have none


LOST = {
    "bare": "6 of 6 volumes are training scans voxel for voxel, turned or under another header",
    "turned": "6 of 6 volumes are training scans voxel for voxel, turned or under another header",
    "both": "6 of 6 volumes are training scans voxel for voxel, turned or under another header",
    "bare noisy": "6 of 6 volumes have the shape of training scans and another voxel spacing",
}


def test_copies_are_found_whatever_became_of_their_headers(place: Path, measure: Measure) -> None:
    """Turned, mirrored, saved with a placeholder in place of the spacing, with noise or without."""
    result, rate = measure("lost", (*LOST, "cut", "strangers"), ("ssim",))
    assert rate == 1
    said = verdicts(result)
    assert {name: said[name, "ssim"] for name in LOST} == dict.fromkeys(LOST, "COPIES")
    assert said["strangers", "ssim"] != "COPIES"
    for name, words in LOST.items():
        assert any(note.startswith(f"{name}: {words}") for note in result.notes), name
        facts = result.facts["sets"][name]
        assert [one["nearest"]["ssim"] for one in facts.values()] == [f"train_{n}" for n in range(6)]
        assert facts[f"{name}_0"]["files"] == file_fingerprint(place / name / f"{name}_0.nii.gz")  # filter goes by them
    assert any(
        note.startswith("cut: voxel spacing 1 x 1 x 1 mm, and the real cases have 4 x 4") for note in result.notes
    )
    assert not any(note.startswith("strangers: ") and "header" in note for note in result.notes)


def test_a_held_out_scan_is_known_whatever_its_header(place: Path, measure: Measure, cpu: Accelerator) -> None:
    with pytest.raises(DataError, match=r"6 held-out cases have the voxels of training scans .* \(both_0, both_1"):
        measure_memorization(
            place / "train", place / "both", [], place / "x", cpu, ("ssim",), level=0.5, cache=place / "cache"
        )


def test_a_scan_is_known_by_any_channel_that_shows_something(tmp_path: Path) -> None:
    """Turned, beside another first channel; a channel of one value throughout is in many scans and names nobody."""
    rng = np.random.default_rng(0)
    ct, pet, other = (rng.integers(0, 100, (5, 6, 7)).astype(np.int16) for _ in range(3))
    flat = np.zeros_like(ct)
    for name, images in {
        "train/a": (ct, pet),
        "train/b": (other, flat),
        "held/c": (other[::-1] // 2, pet[:, ::-1]),
        "free/d": (ct // 3, flat),
    }.items():
        for n, image in enumerate(images):
            nifti.write(tmp_path / f"{name}_{n:04d}.nii.gz", np.ascontiguousarray(image), AFFINE)
    train, held, free = (open_cohort(name, tmp_path / name, channels=2) for name in ("train", "held", "free"))
    arrays = Arrays(train, tmp_path / "cache")
    with pytest.raises(DataError, match=r"1 held-out cases have the voxels of training scans .* \(c\)"):
        arrays.check_apart(held)
    arrays.check_apart(free)
    (laid,), (note,) = arrays.aligned(held)[0].cases, arrays.aligned(held)[1]
    assert np.array_equal(nifti.read(laid.images[1])[0], pet)
    assert "training scans voxel for voxel" in note.text


def test_one_copied_channel_is_a_copy_whatever_the_others_show(tmp_path: Path, cpu: Accelerator) -> None:
    """PET of training patients, turned or not, beside CT that nobody has: no feature space sees it, and the rate counts it."""
    rng = np.random.default_rng(1)
    texture = lambda: (8000 * ndimage.gaussian_filter(rng.normal(size=(24, 24, 24)), 2)).astype(np.int16)  # noqa: E731
    for name, count in (("train", 6), ("held", 10), ("made", 6)):
        for n in range(count):
            images = [texture(), texture()]
            if name == "made" and n < 3:
                images[1] = np.ascontiguousarray(
                    nifti.read(tmp_path / "train" / f"train_{n}_0001.nii.gz")[0][:: 1 - 2 * (n % 2)]
                )
            for channel, image in enumerate(images):
                nifti.write(tmp_path / name / f"{name}_{n}_{channel:04d}.nii.gz", image, AFFINE)
    result, rate = measure_memorization(
        tmp_path / "train", tmp_path / "held", [("made", tmp_path / "made")], tmp_path / "out", cpu, ("ssim",),
        level=0.2, cache=tmp_path / "cache",
    )  # fmt: skip
    facts = result.facts["sets"]["made"]
    assert [EXACT in one["flagged"] for one in facts.values()] == [True] * 3 + [False] * 3
    assert [one["nearest"][EXACT] for one in list(facts.values())[:3]] == [f"train_{n}" for n in range(3)]
    assert rate >= 0.5
    assert any("3 of 6 volumes hold an image of a training scan" in note for note in result.notes)


def test_nothing_is_said_where_no_space_applies(measure: Measure) -> None:
    """Not a number, which no limit of the command lets through."""
    result, rate = measure("nothing", ("mirrored",), ("voxels",))
    assert np.isnan(rate)
    assert not rate <= 1
    assert "mirrored: nothing can be said, no feature space is valid here" in result.notes


def test_losses_tell_members(place: Path, measure: Measure) -> None:
    """Seven members of losses 0 to 6, ten others of 4 to 13: three pairs tie, and three are the other way round."""
    path = place / "losses.csv"
    lines = [*(f"train_{n},{n}" for n in range(7)), *(f"held_{n},{n + 4}" for n in range(10))]
    path.write_text("\n".join(("case,loss", *lines)))
    result, _ = measure("losses", ("strangers",), ("ssim",), losses={"model": path})
    (row,) = next(table for table in result.tables if table.title.startswith("membership")).rows
    assert (row[0], row[2]) == ("model", "not estimable")
    assert isinstance(row[1], Estimate)
    assert row[1].value == pytest.approx(1 - (3 + 3 / 2) / 70)
    assert row[1].low <= row[1].value <= row[1].high
    for text, words in (("case,loss\nnobody,1", "case nobody is neither"), ("a,b\n1,2", "expected case, loss")):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            measure("wrong", ("strangers",), ("ssim",), losses={"model": path})


class Constant(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.ones(image.size(0), 8)


class Random(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.randn(image.size(0), 8)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:One of the clusters", "ignore:.*deprecated")
@pytest.mark.parametrize("network", [Constant, Random])
def test_broken_spaces_say_nothing(place: Path, measure: Measure, network: type[torch.nn.Module]) -> None:
    path = place / f"{network.__name__}.pt"
    torch.jit.script(network()).save(path)
    result, rate = measure(network.__name__, ("strangers",), (f"torchscript:{path}",))
    assert np.isnan(rate)
    assert verdicts(result)["strangers", f"torchscript:{path.name}"] == "not to be valid"
    assert any("is not valid here" in note and "of exact copies are found" in note for note in result.notes)
    assert all(one["flagged"] == [] and one["nearest"] == {} for one in result.facts["sets"]["strangers"].values())


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_sound_space_beside_a_broken_one_still_speaks(place: Path, measure: Measure) -> None:
    """And the copy rate is its own alone."""
    path = place / "Noise.pt"
    torch.jit.script(Random()).save(path)
    result, rate = measure("beside", ("mirrored",), (f"torchscript:{path}", "ssim"))
    sound = next(row for row in copies(result).rows if row[:2] == ("mirrored", "ssim"))
    assert rate == sound[3].value  # type: ignore[union-attr]
    assert verdicts(result)["mirrored", "torchscript:Noise.pt"] == "not to be valid"
    assert "mirrored: no more copies than among unseen patients by ssim" in result.notes


def test_files_of_one_name_size_and_time_are_told_apart(tmp_path: Path, cpu: Accelerator) -> None:
    """An archive may unpack two folders of equal names and times; one must not be read from the cache of the other."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 7), ("made", 7), ("held", 10)):
        for n in range(count):
            case = f"case_{n}" if name != "held" else f"held_{n}"
            path = tmp_path / name / f"{case}_0000.nii"
            image = 8000 * ndimage.gaussian_filter(rng.normal(size=(24, 24, 24)), 2)
            nifti.write(path, image.astype(np.int16), AFFINE)
            os.utime(path, (1_000_000_000, 1_000_000_000))
    _, rate = measure_memorization(
        tmp_path / "train", tmp_path / "held", [("made", tmp_path / "made")], tmp_path / "out", cpu, ("ssim",),
        level=0.2, cache=tmp_path / "cache",
    )  # fmt: skip
    assert rate < 0.8


def test_an_image_and_a_mask_of_one_name_stay_two_files(tmp_path: Path) -> None:
    """As in the Decathlon, where both are CASE.nii.gz: laid under another header, neither may replace the other."""
    rng = np.random.default_rng(0)
    voxels = rng.normal(size=(8, 8, 8)).astype(np.float32)
    labels = (voxels > 0).astype(np.int16)
    nifti.write(tmp_path / "imagesTr" / "case.nii.gz", voxels, AFFINE)
    nifti.write(tmp_path / "labelsTr" / "case.nii.gz", labels, AFFINE)
    case = Case("case", "case", (tmp_path / "imagesTr" / "case.nii.gz",), tmp_path / "labelsTr" / "case.nii.gz")
    cohort = Cohort("train", Manifest("train", ("MR",), Labels((0, 1), ("background", "lesion")), (case,)), (case,))
    (laid,) = Arrays(cohort, tmp_path / "cache").without_headers([case], "bare").cases
    assert laid.mask is not None
    np.testing.assert_array_equal(nifti.read(laid.images[0])[0], voxels)
    np.testing.assert_array_equal(nifti.read_labels(laid.mask)[0], labels)
    np.testing.assert_array_equal(nifti.geometry(laid.images[0])[1], np.eye(4))
