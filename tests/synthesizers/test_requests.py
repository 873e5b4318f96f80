"""Masks to make volumes for: where they are found, and which are refused before anything is written."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from helpers import GEOMETRIES, SMALL, WINDOW, Echo, contents, lesion_mask, tiny_domain, write_mask

from latentsynth.data.exchange.requests import Request, place_array, requests, volume_seed
from latentsynth.errors import ConfigError, DataError
from latentsynth.synthesis import synthesize
from latentsynth.synthesizers import LatentDiffusion


def unknown_label(file: Path) -> None:
    write_mask(file, lesion_mask(*GEOMETRIES["LPS"], SMALL, value=2), GEOMETRIES["LPS"][0])


def empty(file: Path) -> None:
    write_mask(file, np.zeros((20, 20, 20), np.int16), np.eye(4))


def flat(file: Path) -> None:
    write_mask(file, np.ones((20, 20), np.int16), np.eye(4))


def cut_short(file: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (32, 32, 32)).astype(np.int16)
    write_mask(file, noise, np.eye(4))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


def large(file: Path) -> None:
    write_mask(file, lesion_mask(*GEOMETRIES["LPS"], 22.0), GEOMETRIES["LPS"][0])


def text(file: Path) -> None:
    file.write_bytes(gzip.compress(b"not an image"))


def missing(file: Path) -> None:
    file.unlink(missing_ok=True)


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "unknown label": (unknown_label, "holds label 2, known are 0 = background, 1 = lesion 1, 4 = lesion 4"),
    "empty": (empty, "is empty"),
    "2D": (flat, "2 axes"),
    "truncated": (cut_short, "not a readable NIfTI"),
    "too large": (large, "the grid covers 32 x 32 x 32 mm: use a larger grid"),
    "no image": (text, "not a readable NIfTI"),
    "missing": (missing, "does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_mask_stops_everything_before_it_begins(
    tmp_path: Path, cpu: Accelerator, masks: list[Request], name: str
) -> None:
    make, words = BAD[name]
    file = tmp_path / "masks" / "bad.nii.gz"
    make(file)
    echo = Echo(tiny_domain())
    with pytest.raises(DataError, match=words) as caught:
        synthesize(echo, [*masks, Request("bad", file)], tmp_path / "out", cpu)
    assert "bad.nii.gz" in str(caught.value)
    assert not echo.batches
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=words):
        echo(file)


@pytest.mark.parametrize("shape", [(20, 20), (20, 20, 20, 1)])
def test_an_array_that_is_not_3d_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="axes"):
        Echo(tiny_domain())((np.ones(shape, np.int16), np.eye(4)))


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, cpu: Accelerator, masks: list[Request]) -> None:
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        echo = Echo(tiny_domain())
        with pytest.raises(DataError, match=r"cannot create folder|is not a folder"):
            synthesize(echo, masks, out, cpu)
        assert not echo.batches
    assert contents(tmp_path) == before


def test_an_unknown_setting_is_refused_before_anything_is_written(
    tmp_path: Path, cpu: Accelerator, masks: list[Request], model_of: Callable[[str], LatentDiffusion]
) -> None:
    for settings, word in (({"stepz": 3}, "stepz"), ({"scheduler": "magic"}, "magic")):
        with pytest.raises(ConfigError, match=word):
            synthesize(model_of("kl"), masks, tmp_path / "out", cpu, **settings)
    assert not (tmp_path / "out").exists()


def test_masks_are_found_in_files_folders_and_manifests(tmp_path: Path, cpu: Accelerator, masks: list[Request]) -> None:
    folder = tmp_path / "masks"
    assert [r.name for r in requests(folder)] == sorted(r.name for r in masks)
    assert [r.mask for r in requests(masks[0].mask)] == [masks[0].mask]
    (folder / "notes.txt").write_text("not a mask")
    assert len(requests(folder)) == 3
    synthesize(Echo(tiny_domain()), masks, tmp_path / "out", cpu)
    again = requests(tmp_path / "out" / "manifest.json", "train")
    # Whoever a synthetic case was made from is the parent; the case itself is nobody.
    assert [r.parents for r in again] == [r.parents for r in sorted(masks, key=lambda r: r.name)]
    (tmp_path / "nothing").mkdir()
    for source in (tmp_path / "nothing", tmp_path / "out" / "manifest.json"):  # the manifest has no validation case
        with pytest.raises(DataError, match=r"holds no NIfTI|no case in split val"):
            requests(source)


def test_masks_of_one_name_are_refused_by_that_name(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz", "b.nii"):
        write_mask(tmp_path / name, np.ones((4, 4, 4), np.int16), np.eye(4))
    with pytest.raises(DataError, match="equal name, 'b'"):
        requests(tmp_path)


def test_no_two_volumes_share_their_noise() -> None:
    affine, shape = GEOMETRIES["oblique"]
    placed = [place_array(lesion_mask(affine, shape, SMALL - n), affine, tiny_domain(), "m") for n in range(3)]
    seeds = [volume_seed(seed, p) for p in placed for seed in (0, 1)]
    assert len(set(seeds)) == 6
    assert seeds == [volume_seed(seed, p) for p in placed for seed in (0, 1)]


def test_the_type_of_the_voxels_does_not_matter(model_of: Callable[[str], LatentDiffusion]) -> None:
    model = model_of("kl")
    affine, shape = GEOMETRIES["LPS"]
    values = lesion_mask(affine, shape, SMALL, value=1)
    first = np.asarray(model((values, affine))[0].dataobj)
    for kind in (bool, np.uint8, np.int64, np.float64):
        np.testing.assert_array_equal(np.asarray(model((values.astype(kind), affine))[0].dataobj), first)


def test_label_values_with_gaps_keep_their_own_place() -> None:
    values = np.zeros((24, 20, 20), np.int16)
    values[4:10, 6:14, 6:14], values[14:20, 6:14, 6:14] = 2, 5
    made = Echo(tiny_domain(lesions=(2, 5)))((values, np.eye(4)))[0].get_fdata()
    expected = [np.mean(WINDOW), WINDOW[0], WINDOW[1]]  # cubic splines ring a little around small blocks
    assert [made[n, 10, 10] for n in (7, 12, 17)] == pytest.approx(expected, abs=0.1 * (WINDOW[1] - WINDOW[0]))
