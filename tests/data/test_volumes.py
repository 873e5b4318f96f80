"""Cases on the grid, their cache, and augmentation: nothing stale, nothing torn apart, nothing random by accident."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsynth.config import AugmentConfig
from latentsynth.data import nifti
from latentsynth.data.cache.transforms import distort
from latentsynth.data.cache.volumes import Recipe, VolumeCache, to_index
from latentsynth.errors import DataError
from latentsynth.types import Case, Framing, Grid, Labels, Window

SHAPE = (26, 24, 22)
AFFINE = np.array([[-2.0, 0, 0, 25], [0, -2.0, 0, 24], [0, 0, 2.2, -20], [0, 0, 0, 1]])  # LPS
LABELS = Labels((0, 1, 5))
GRID = Grid((16, 16, 16), (2.5, 2.5, 2.5), (Window("fixed", -100, 200), Window("percentile", 1, 99)))
STILL = AugmentConfig(rotate_deg=0, scale=0, shift_mm=0)
MOVING = AugmentConfig(rotate_deg=20, scale=0.2, shift_mm=6, flip_axes=(0, 1, 2))


def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    return (((index - centre) / radii) ** 2).sum(axis=-1) <= 1


def case(folder: Path, name: str = "a", seed: int = 0, masked: bool = True) -> Case:
    """An organ with a lesion, in two channels; the lesion off the centre so that flips show."""
    rng = np.random.default_rng(seed)
    mask = ellipsoid((13, 11, 11), (9, 7, 8)) * np.int16(1)
    mask[ellipsoid((10, 13, 9), (3.5, 3, 3))] = 5
    images = []
    for channel in range(2):
        path = folder / f"{name}_{channel}.nii.gz"
        voxels = np.choose(mask.clip(max=2), [-90, 40, 130]) + rng.normal(0, 8, SHAPE)
        nifti.write(path, voxels.astype(np.float32), AFFINE)
        images.append(path)
    nifti.write(folder / f"{name}_mask.nii.gz", mask, AFFINE)
    return Case(name, name, tuple(images), folder / f"{name}_mask.nii.gz" if masked else None)


def recipe(augment: AugmentConfig = STILL, seed: int = 0) -> Recipe:
    return Recipe(GRID, Framing(), LABELS, augment, seed)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("copy", [0, 1])
def test_cache_gives_what_reading_gives_to_half_precision(tmp_path: Path, copy: int) -> None:
    one = case(tmp_path)
    cache = VolumeCache(tmp_path / "cache", recipe(MOVING), [one], copies=1)
    cache.build()
    direct, cached, item = recipe(MOVING).read(one, copy), cache.volume(copy), cache.item(copy)
    np.testing.assert_allclose(cached.image, direct.image, atol=5e-4)
    np.testing.assert_array_equal(cached.mask, direct.mask)
    assert cached.limits == direct.limits
    assert cached.zoom == direct.zoom
    assert direct.image.std() > 0.3
    assert item["mask"].shape == (3, *GRID.shape)
    np.testing.assert_array_equal(item["mask"].argmax(0), direct.mask)
    assert (item["mask"].sum(0) == 1).all()


def test_mask_values_become_indices(tmp_path: Path) -> None:
    volume = recipe().read(case(tmp_path))
    assert volume.mask is not None
    assert set(np.unique(volume.mask)) == {0, 1, 2}  # 5 is the third label
    means = [volume.image[0][volume.mask == index].mean() for index in range(3)]
    np.testing.assert_allclose(means, [v / 150 - 1 - 1 / 3 + 1 for v in (-90 - 0, 40, 130)], atol=0.12)


def test_key_changes_with_everything_that_changes_a_volume_and_not_with_copies() -> None:
    base = recipe(MOVING)
    changed = [
        replace(base, seed=1),
        replace(base, grid=replace(GRID, shape=(16, 16, 24))),
        replace(base, grid=replace(GRID, spacing_mm=(2.5, 2.5, 2.4))),
        replace(base, grid=replace(GRID, windows=(Window("fixed", -100, 201), GRID.windows[1]))),
        replace(base, framing=Framing(crop="lesion")),
        replace(base, framing=Framing(fit="scale")),
        replace(base, framing=Framing(lesion_labels=(5,))),
        replace(base, labels=Labels((0, 1, 4))),
        *(
            replace(base, augment=MOVING.model_copy(update={name: value}))
            for name, value in {
                "rotate_deg": 1.0, "scale": 0.1, "shift_mm": 1.0, "flip_axes": (0,),
                "elastic_mm": 1.0, "gamma": 0.1, "noise": 0.1, "bias": 0.1,
            }.items()
        ),
    ]  # fmt: skip
    keys = [r.key for r in (base, *changed)]
    assert len(set(keys)) == len(keys)
    assert set(AugmentConfig.model_fields) - {"copies"} == {
        "rotate_deg", "scale", "shift_mm", "flip_axes", "elastic_mm", "gamma", "noise", "bias"
    }  # fmt: skip
    assert replace(base, augment=MOVING.model_copy(update={"copies": 9})).key == base.key


@pytest.mark.parametrize("edited", ["image", "mask"])
def test_editing_a_file_makes_the_cache_read_it_again(tmp_path: Path, edited: str) -> None:
    one = case(tmp_path)
    cache = VolumeCache(tmp_path / "cache", recipe(), [one])
    cache.build()
    before = cache.volume(0)
    path = one.images[1] if edited == "image" else one.mask
    assert path is not None
    voxels, affine = nifti.read(path)
    nifti.write(path, np.where(np.arange(SHAPE[0])[:, None, None] > 13, 0, voxels).astype(voxels.dtype), affine)
    os.utime(path, ns=(1, 1))
    cache = VolumeCache(tmp_path / "cache", recipe(), [one])  # of a later run
    with pytest.raises(DataError, match="missing"):
        cache.volume(0)
    cache.build()
    after = cache.volume(0)
    assert before.mask is not None
    assert after.mask is not None
    assert (before.mask != after.mask).any() == (edited == "mask")
    assert (before.image != after.image).any() == (edited == "image")


def test_entries_follow_what_every_file_holds_and_not_its_date(tmp_path: Path) -> None:
    """Of a case whose manifest holds no hashes."""
    one = case(tmp_path)
    files = [*one.images, one.mask or Path()]

    def name() -> Path:
        return VolumeCache(tmp_path / "cache", recipe(), [one]).path(0)

    names = {name()}
    for file in files:
        os.utime(file, ns=(8, 8))
        assert name() in names
        file.write_bytes(file.read_bytes() + b"more")
        names.add(name())
    assert len(names) == 1 + len(files)


def test_nothing_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = VolumeCache(tmp_path / "cache", recipe(), [case(tmp_path)])
    cache.build()
    monkeypatch.setattr(Recipe, "read", lambda *_: pytest.fail("read a cached case"))
    cache.build()
    assert cache.item(0)["image"].shape == (2, *GRID.shape)


def test_copies_differ_and_are_reproducible(tmp_path: Path) -> None:
    one, other = case(tmp_path), case(tmp_path, "b")
    volumes = [recipe(MOVING).read(one, copy).image for copy in range(4)]
    for a, b in itertools.combinations(volumes, 2):
        assert np.abs(a - b).mean() > 0.05
    np.testing.assert_array_equal(recipe(MOVING).read(one, 2).image, volumes[2])
    assert (recipe(MOVING).read(other, 2).image != volumes[2]).any()  # the draw is the case's own
    assert (recipe(MOVING, seed=1).read(one, 2).image != volumes[2]).any()
    np.testing.assert_array_equal(recipe(MOVING, seed=1).read(one, 0).image, volumes[0])  # the scan as it is


@pytest.mark.parametrize("augment", [MOVING, MOVING.model_copy(update={"elastic_mm": 4.0})], ids=["rigid", "elastic"])
def test_mask_and_image_move_together(tmp_path: Path, augment: AugmentConfig) -> None:
    one = case(tmp_path)
    mask, affine = nifti.read(one.mask or "")
    nifti.write(one.images[0], (mask > 0).astype(np.float32) * 300 - 100, affine)  # the mask's indicator
    untouched = recipe(augment).read(one, 0)
    for copy in range(1, 5):
        volume = recipe(augment).read(one, copy)
        assert volume.mask is not None
        assert untouched.mask is not None
        assert dice(volume.mask > 0, volume.image[0] > 0) > 0.95
        assert dice(volume.mask > 0, untouched.mask > 0) < 0.95  # it did move


def test_two_processes_build_what_one_builds(tmp_path: Path) -> None:
    cases = [case(tmp_path, name, seed) for seed, name in enumerate("abc")]
    one = VolumeCache(tmp_path / "one", recipe(MOVING), cases, 1)
    two = VolumeCache(tmp_path / "two", recipe(MOVING), cases, 1)
    one.build()
    for rank in (0, 1):
        two.build(rank, 2)
    files = sorted(path.name for path in one.folder.iterdir())
    assert files == sorted(path.name for path in two.folder.iterdir())
    assert len(files) == 8  # three cases, twice each; the recipe; where they came from
    assert (one.folder / "recipe.json").read_bytes() == (two.folder / "recipe.json").read_bytes()
    for entry in range(len(one)):
        np.testing.assert_array_equal(one.volume(entry).image, two.volume(entry).image)
        np.testing.assert_array_equal(one.volume(entry).mask, two.volume(entry).mask)


def test_unannotated_cases_have_no_label_anywhere(tmp_path: Path) -> None:
    cache = VolumeCache(tmp_path / "cache", recipe(), [case(tmp_path, masked=False)])
    cache.build()
    assert cache.volume(0).mask is None
    mask = cache.item(0)["mask"]
    assert mask.shape == (3, *GRID.shape)
    assert not mask.any()  # not even background


def test_median_limits_are_the_medians_of_the_scans(tmp_path: Path) -> None:
    cache = VolumeCache(tmp_path / "cache", recipe(MOVING), [case(tmp_path, n, s) for s, n in enumerate("abc")], 1)
    cache.build()
    rows = [recipe().read(case).limits[1] for case, copy in cache.entries if copy == 0]
    assert cache.median_limits() == ((-100, 200), tuple(np.median(rows, axis=0)))


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_damaged_cache_file_is_named_with_its_cure(tmp_path: Path, damage: str) -> None:
    cache = VolumeCache(tmp_path / "cache", recipe(), [case(tmp_path)])
    cache.build()
    whole = cache.path(0).read_bytes()
    cache.path(0).write_bytes({"truncated": whole[:-100], "empty": b"", "garbage": b"\xff" * 200}[damage])
    with pytest.raises(DataError, match=r"of case a \(.*damaged.*delete it and run again"):
        cache.item(0)


def test_unknown_label_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a_mask.*holds label 5, known are 0 = background, 1 = label 1"):
        replace(recipe(), labels=Labels((0, 1))).read(case(tmp_path))


def test_more_labels_than_a_byte_counts_stay_apart(tmp_path: Path) -> None:
    values = 7 * (np.arange(16**3) // 14).reshape(16, 16, 16).astype(np.int16)  # 293 labels up to 2044
    affine = np.diag([2.5, 2.5, 2.5, 1.0])
    nifti.write(tmp_path / "mask.nii.gz", values, affine)
    nifti.write(tmp_path / "image.nii.gz", values.astype(np.float32), affine)
    labels = Labels(tuple(range(0, 2045, 7)))
    made = Recipe(replace(GRID, windows=GRID.windows[:1]), Framing(), labels, AugmentConfig(noise=0.1, flip_axes=()), 0)
    cache = VolumeCache(
        tmp_path / "cache", made, [Case("a", "a", (tmp_path / "image.nii.gz",), tmp_path / "mask.nii.gz")]
    )
    cache.build()
    seen = cache.item(0)["mask"].argmax(0).numpy()
    np.testing.assert_array_equal(np.array(labels.values)[seen], values)
    volume = cache.volume(0)
    assert volume.mask is not None
    _, noisy = distort(volume.image, volume.mask, GRID.spacing_mm, AugmentConfig(noise=0.1), np.random.default_rng(0))
    np.testing.assert_array_equal(noisy, seen)


def test_a_value_between_two_labels_is_no_index_of_either() -> None:
    with pytest.raises(DataError, match=r"holds label 3, 9, known are 0 = background"):
        to_index(np.array([[[0, 3, 5, 9]]]), Labels((0, 2, 5)))


def test_torchio_is_loaded_for_voxel_augmentation_alone(tmp_path: Path) -> None:
    case(tmp_path)
    program = f"""
import sys
from pathlib import Path
from latentsynth.config import AugmentConfig
from latentsynth.data.cache.volumes import Recipe, VolumeCache
from latentsynth.types import Case, Framing, Grid, Labels, Window
home = Path({str(tmp_path)!r})
case = Case("a", "a", (home / "a_0.nii.gz",), home / "a_mask.nii.gz")
grid = Grid((8, 8, 8), (6.0, 6.0, 6.0), (Window(),))
for noise in (0.0, 0.1):
    recipe = Recipe(grid, Framing(), Labels((0, 1, 5)), AugmentConfig(noise=noise), 0)
    cache = VolumeCache(home / "cache", recipe, [case], copies=1)
    cache.build()
    cache.item(1)
    print("torchio" in sys.modules)
"""
    got = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert got.returncode == 0, got.stderr
    assert got.stdout.split() == ["False", "True"]


SWITCHES = {"elastic_mm": 5.0, "gamma": 0.4, "noise": 0.1, "bias": 0.4}


@pytest.fixture
def volume() -> tuple[np.ndarray, np.ndarray]:
    """A ramp, so that intensities tell, and its upper part as mask."""
    ramp = np.linspace(-0.9, 0.9, 20, dtype=np.float32)[:, None, None] * np.ones((1, 20, 20), np.float32)
    return np.stack([ramp, -ramp]), (ramp > 0.1).astype(np.uint8)


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_voxel_augmentation(volume: tuple[np.ndarray, np.ndarray], switch: str) -> None:
    image, mask = volume
    augment = AugmentConfig(**{switch: SWITCHES[switch]})
    torch.manual_seed(5)
    before = torch.get_rng_state()
    out, moved = distort(image, mask, (2, 2, 2), augment, np.random.default_rng(1))
    again, _ = distort(image, mask, (2, 2, 2), augment, np.random.default_rng(1))
    other, _ = distort(image, mask, (2, 2, 2), augment, np.random.default_rng(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert moved is not None
    assert np.abs(out - image).mean() > 0.005
    assert out.dtype == np.float32
    assert out.shape == image.shape
    assert np.abs(out).max() <= 1
    np.testing.assert_array_equal(out, again)
    assert (out != other).any()
    assert (moved != mask).any() == (switch == "elastic_mm")
    assert moved.dtype == mask.dtype
    if switch == "elastic_mm":
        assert dice(moved == 1, out[0] > 0.1) > 0.95
        assert dice(moved == 1, mask == 1) < 0.999


def test_nothing_switched_on_changes_nothing(volume: tuple[np.ndarray, np.ndarray]) -> None:
    out, mask = distort(*volume, (2, 2, 2), STILL, np.random.default_rng(1))
    np.testing.assert_array_equal(out, volume[0])
    np.testing.assert_array_equal(mask, volume[1])


@pytest.mark.parametrize("seed", range(4))
def test_gamma_bends_the_grey_scale_between_its_ends(seed: int) -> None:
    ramp = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 4, 4, 4)
    out, _ = distort(ramp, None, (1, 1, 1), AugmentConfig(gamma=0.5), np.random.default_rng(seed))
    values = out.ravel()
    assert values[[0, -1]].tolist() == pytest.approx([-1, 1], abs=1e-5)  # neither end is cut off or darkened
    assert (np.diff(values) > 0).all()  # so no two tissues become one
