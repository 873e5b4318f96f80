"""The plan: grids that cover, divide and fit; lesions counted; configurations that run as they are."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from latentsynth.config import AutoencoderRun, LdmRun, SegmenterRun, load
from latentsynth.data import nifti
from latentsynth.data.cache.volumes import Recipe, Volume
from latentsynth.data.intake.survey import choose_grid, survey
from latentsynth.data.manifest import Manifest
from latentsynth.errors import ConfigError, DataError
from latentsynth.metrics.lesions import components
from latentsynth.planning import plan_runs, write_plan
from latentsynth.planning.machine import this_machine
from latentsynth.planning.plan import _FEWEST_IMAGES, _SHARES, _denoiser
from latentsynth.training.recipes.autoencoder import train_autoencoder
from latentsynth.training.recipes.ldm import train_ldm
from latentsynth.training.recipes.segmenter import train_segmenter
from latentsynth.types import Case, Labels, Split

lengths = st.floats(20, 600)
spacings = st.floats(0.4, 6)


@settings(max_examples=60, deadline=None)
@given(
    extent=st.tuples(lengths, lengths, lengths),
    spacing=st.tuples(spacings, spacings, spacings),
    voxels=st.sampled_from([80_000, 128**3]),
    halvings=st.integers(1, 2),
)
def test_a_grid_covers_divides_and_fits(
    extent: tuple[float, ...], spacing: tuple[float, ...], voxels: int, halvings: int
) -> None:
    shape, step, factors = choose_grid(np.array(extent), np.array(spacing), voxels, halvings)
    assert math.prod(shape) <= max(voxels, 16**3)
    for n, s, f, e in zip(shape, step, factors, extent, strict=True):
        assert n % (f * 2**halvings) == 0
        assert n * s >= e * 0.999
        assert s >= min(spacing) * 0.99  # never finer than the finest axis of the scans


def test_thick_slices_stay_thick() -> None:
    _, step, factors = choose_grid(np.array([200.0, 200.0, 100.0]), np.array([1.0, 1.0, 8.0]), 128**3, 1)
    assert step[2] > 4 * step[0]
    assert factors == (4, 4, 2)


def test_a_planned_folder_trains_from_the_files_as_written(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_runs(workplace / "manifest.json", 0.01)
    write_plan(plan, tmp_path / "configs", Console(quiet=True))
    short = [
        "train.images=8",
        "train.validate_every_images=8",
        "train.sample_every_images=8",
        "train.save_every_images=8",
    ]
    first = load(AutoencoderRun, tmp_path / "configs" / "manifest_autoencoder.yaml", short)
    second = load(LdmRun, tmp_path / "configs" / "manifest_ldm.yaml", [*short, "train.batch=8"])
    assert first.data.framing.crop == "whole"  # these lesions are large beside their scans
    selector = load(SegmenterRun, tmp_path / "configs" / "manifest_selection_unet.yaml", short)
    assert train_autoencoder(first)["psnr"] > 0
    assert train_segmenter(selector)["dice"] >= 0
    scores = train_ldm(second)
    assert scores["loss"] > 0
    assert "obedience" in scores
    third = load(SegmenterRun, tmp_path / "configs" / "manifest_unet.yaml", short)
    assert third.data.grid.spacing_mm == first.data.grid.spacing_mm
    assert train_segmenter(third)["dice"] >= 0
    assert all(estimate.gib < 4 for estimate in plan.memory)


def test_a_case_that_was_not_read_and_is_larger_ends_no_training(tmp_path: Path, quick: None) -> None:
    """The grid is laid by the scans that were looked at; a validation patient with a lesion beyond it is zoomed, not refused."""
    mask = np.zeros((24, 24, 24), np.uint8)
    mask[8:16, 8:16, 8:16] = 1
    manifest = cohort(tmp_path, mask, 2.0)
    planned = plan_runs(manifest, 0.01).autoencoder.data
    wide = np.zeros((72, 24, 24), np.uint8)
    wide[2:70, 8:16, 8:16] = 1
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    nifti.write(tmp_path / "1.nii.gz", np.random.default_rng(9).normal(300, 40, wide.shape).astype(np.float32), affine)
    nifti.write(tmp_path / "1_mask.nii.gz", wide, affine)
    recipe = Recipe(planned.grid, planned.framing, Labels((0, 1)), planned.augment, 0)
    assert recipe.read(Manifest.load(manifest).select("val")[0]).zoom > 1.5


def cohort(folder: Path, mask: np.ndarray, spacing: float, labels: tuple[int, ...] = (0, 1)) -> Path:
    """Three patients with one mask, each scan its own noise."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    cases: list[Case] = []
    splits: tuple[Split, ...] = ("train", "val", "test")
    for number, split in enumerate(splits):
        image, drawn = folder / f"{number}.nii.gz", folder / f"{number}_mask.nii.gz"
        nifti.write(image, np.random.default_rng(number).normal(300, 40, mask.shape).astype(np.float32), affine)
        nifti.write(drawn, mask, affine)
        cases.append(Case(f"c{number}", f"p{number}", (image,), drawn, split))
    Manifest("many", ("T1",), Labels(labels), tuple(cases)).save(folder / "manifest.json")
    return folder / "manifest.json"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No speed is measured."""
    monkeypatch.setattr("latentsynth.planning.plan._speeds", lambda *_: (1.0, 1.0, 1.0))
    monkeypatch.setattr(
        "latentsynth.planning.plan._cells_per_second", lambda *_: 2_083 * _FEWEST_IMAGES / (0.01 * 3600 * _SHARES[1])
    )  # as many cells a second as let the denoiser see the fewest images of 2 083 cells in 0.01 h


def scattered(size: int, edge: int, low: int, high: int) -> np.ndarray:
    """Cubes far apart, between two planes of every axis, and one large one in the middle."""
    mask = np.zeros((size,) * 3, np.uint8)
    for corner in itertools.product(range(low, high - edge, 3 * edge), repeat=3):
        mask[tuple(slice(c, c + edge) for c in corner)] = 1
    mask[size // 2 - 6 : size // 2 + 6, size // 2 - 6 : size // 2 + 6, size // 2 - 6 : size // 2 + 6] = 1
    return mask


@pytest.mark.usefixtures("quick")
def test_lesions_that_the_grid_loses_are_counted_and_a_spacing_that_holds_them_is_named(tmp_path: Path) -> None:
    mask = scattered(128, 2, 4, 124)
    plan = plan_runs(cohort(tmp_path, mask, 1.0), 0.01)
    total = components(mask > 0)[1]
    assert plan.kept.lesions == total
    assert plan.kept.lost > total / 2
    assert plan.kept.cases == ("c0",)
    said = dict(plan.facts)
    assert f"{plan.kept.lost} lesions" in said["warning"]
    assert "would hold 95 %" in said["warning"]
    assert "c0" in said["warning"]


@pytest.mark.usefixtures("quick")
def test_the_crop_that_holds_more_lesions_is_chosen(tmp_path: Path) -> None:
    mask = scattered(96, 2, 6, 90)
    mask[:, :, :20] = mask[:, :, -20:] = 0
    manifest = cohort(tmp_path, mask, 2.0)
    kept = {crop: plan_runs(manifest, 0.01, crop).kept for crop in ("whole", "lesion", "auto")}  # type: ignore[arg-type]
    assert kept["whole"].lost != kept["lesion"].lost
    assert kept["auto"].lost <= min(kept["whole"].lost, kept["lesion"].lost)


@pytest.mark.usefixtures("quick")
def test_scans_fill_the_grid_where_that_loses_no_lesion(tmp_path: Path) -> None:
    """Crops of 34 to 46 voxels along each axis: over the largest, more than half of the grid would lie outside of most."""
    affine, cases = np.eye(4), []
    for number, edge in enumerate((34, 34, 34, 46)):
        image, drawn = tmp_path / f"{number}.nii.gz", tmp_path / f"{number}_mask.nii.gz"
        mask = np.zeros((edge,) * 3, np.uint8)
        mask[4:16, 4:16, 4:16] = 1
        nifti.write(image, np.random.default_rng(number).normal(300, 40, mask.shape).astype(np.float32), affine)
        nifti.write(drawn, mask, affine)
        cases.append(Case(f"c{number}", f"p{number}", (image,), drawn, "train"))
    cases = [*cases, replace(cases[0], case_id="v", patient_id="v", split="val")]
    Manifest("crops", ("T1",), Labels((0, 1)), tuple(cases)).save(tmp_path / "manifest.json")
    shapes = {
        crop: plan_runs(tmp_path / "manifest.json", 0.1, crop).autoencoder.data.grid.shape for crop in ("auto", "whole")
    }  # type: ignore[arg-type]
    assert shapes == {"auto": (32, 32, 32), "whole": (48, 48, 48)}


@pytest.mark.usefixtures("quick")
def test_nothing_is_planned_for_masks_alone_or_without_time(tmp_path: Path) -> None:
    manifest = cohort(tmp_path, scattered(32, 2, 4, 28), 1.0)
    for hours in (math.inf, 0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="no length of time"):
            plan_runs(manifest, hours)
    Manifest.load(manifest).masks_alone().save(tmp_path / "masks.json")
    with pytest.raises(DataError, match="masks without images"):
        plan_runs(tmp_path / "masks.json", 1.0)


def test_what_nobody_annotated_adds_nothing_to_the_extent_of_lesions(tmp_path: Path) -> None:
    mask = scattered(32, 2, 4, 28)
    mask[:3] = 2
    manifest = Manifest.load(cohort(tmp_path, mask, 1.0, (0, 1, 2)))
    named = Labels((0, 1, 2), ("background", "tumour", "ignore"))
    for labels, extent in ((named, 20), (manifest.labels, 24)):
        found = survey(manifest.select("train"), 1, labels)
        assert found.extents[0].tolist() == [extent, *(20 if labels is named else 32,) * 2]


@pytest.mark.parametrize("cells", [512, 4_000, 1e9])
def test_the_scans_own_spacing_is_taken_where_there_is_time_for_it(cells: float) -> None:
    """36 x 50 x 35 voxels of 1 mm are 9 x 13 x 9 cells, which the denoiser's halving makes 10 x 14 x 10."""
    shape, step, factors = choose_grid(np.array([36.0, 50.0, 35.0]), np.ones(3), 400_000, 1, cells)
    assert math.prod(shape) <= cells * math.prod(factors)
    assert (step == [1.0, 1.0, 1.0]) is (cells >= 10 * 14 * 10)


@pytest.mark.usefixtures("quick")
def test_a_grid_coarser_than_the_scans_says_what_it_loses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = cohort(tmp_path, scattered(48, 3, 4, 44), 1.0)
    fine = plan_runs(manifest, 1.0, "whole")
    assert fine.autoencoder.data.grid.spacing_mm == (1, 1, 1)
    assert not any("coarser than the scans" in said for _, said in fine.facts)
    monkeypatch.setattr("latentsynth.planning.plan._cells_per_second", lambda *_: 500.0)
    coarse = plan_runs(manifest, 1.0, "whole")
    assert coarse.autoencoder.data.grid.spacing_mm[0] > 1.2
    (said,) = [said for _, said in coarse.facts if "coarser than the scans" in said]
    kept = int(said.split("keeps ")[1].split(" %")[0])
    assert kept < 60  # white noise has most of its power where a coarser grid shows nothing
    assert coarse.autoencoder.autoencoder.latent_channels <= fine.autoencoder.autoencoder.latent_channels


@pytest.mark.usefixtures("quick")
def test_small_scans_get_no_more_channels_than_their_blocks_can_fill(tmp_path: Path) -> None:
    """Blocks of 2 x 2 x 2 voxels hold eight values."""
    mask = np.zeros((14, 14, 10), np.uint8)
    mask[4:9, 4:9, 4:7] = 1
    plan = plan_runs(cohort(tmp_path, mask, 3.0), 1.0, "whole")
    factors = plan.autoencoder.autoencoder.factors
    assert factors == (2, 2, 2)
    assert plan.autoencoder.autoencoder.latent_channels == 2


@pytest.mark.usefixtures("quick")
def test_few_images_get_a_narrow_denoiser_and_many_a_wide_one() -> None:
    machine = this_machine()
    few, many = (_denoiser(machine, images) for images in (5_000, 50_000))
    assert few["channels"] == machine.narrow
    assert many["channels"] == machine.denoiser == _denoiser(machine)["channels"]
    assert sum(machine.narrow) <= sum(machine.denoiser)
    for chosen in (few, many):
        LdmRun.model_validate({"run": "r", "autoencoder": "a", "denoiser": chosen})


def test_preparation_is_counted_and_never_eats_the_hours(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Recipe.read
    plans = {}
    for seconds in (0.0, 0.02):  # of 36: volumes that cost nothing, and such that no copy can be paid for

        def slow(self: Recipe, case: Case, copy: int = 0, seconds: float = seconds) -> Volume:
            time.sleep(5 * seconds)
            return read(self, case, copy)

        monkeypatch.setattr(Recipe, "read", slow)
        monkeypatch.setattr("latentsynth.planning.plan.cores", lambda: 1)
        plans[seconds] = plan_runs(workplace / "manifest.json", 0.01)
    cheap, dear = plans[0.0], plans[0.02]
    assert cheap.autoencoder.data.augment.copies > dear.autoencoder.data.augment.copies
    assert dear.segmenter.data.augment.copies == dear.autoencoder.data.augment.copies
    facts = dict(dear.facts)
    assert "minutes of the 0.01 hours" in facts["preparation"]
    short = dict(plan_runs(workplace / "manifest.json", 0.001).facts)
    assert "learns next to nothing: give at least --hours" in short["too short"]
