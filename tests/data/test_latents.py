"""The latent cache gives training exactly what the encoder gave, and refuses what is missing, damaged or not finite."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from latentsynth.autoencoders import KLAutoencoder
from latentsynth.config import AugmentConfig
from latentsynth.data import nifti
from latentsynth.data.cache.cutting import Cut
from latentsynth.data.cache.held import HeldLatents, hold
from latentsynth.data.cache.latents import LatentCache
from latentsynth.data.cache.volumes import Recipe, VolumeCache
from latentsynth.errors import DataError
from latentsynth.types import Case, Framing, Grid, Labels, Window
from tests.helpers import TRUNK

GRID = Grid((16, 16, 16), (1.0, 1.0, 1.0), (Window("fixed", -3, 3),))
Encoder = Callable[[Tensor], tuple[Tensor, Tensor]]


@pytest.fixture
def volumes(tmp_path: Path) -> VolumeCache:
    """Three built cases, the last one not annotated."""
    cases = []
    for seed, name in enumerate("abc"):
        rng = np.random.default_rng(seed)
        image, mask = tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_mask.nii.gz"
        nifti.write(image, rng.normal(size=GRID.shape).astype(np.float32), np.eye(4))
        nifti.write(mask, rng.integers(0, 3, GRID.shape).astype(np.uint8), np.eye(4))
        cases.append(Case(name, name, (image,), mask if name != "c" else None))
    recipe = Recipe(GRID, Framing(), Labels((0, 1, 2)), AugmentConfig(), 0)
    cache = VolumeCache(tmp_path / "volumes", recipe, cases)
    cache.build()
    return cache


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    model = KLAutoencoder(1, 3, [4, 4, 4], TRUNK, 1e-6).eval()

    def encode(image: Tensor) -> tuple[Tensor, Tensor]:
        moments = model.moments(image)
        return moments.mean, moments.deviation

    return encode


def test_items_are_what_the_encoder_gave(tmp_path: Path, volumes: VolumeCache, encoder: Encoder) -> None:
    latents = LatentCache(tmp_path / "latents", "weights", volumes)
    done: list[None] = []
    latents.write(range(3), encoder, lambda: done.append(None))
    assert len(latents) == len(done) == 3
    for entry in range(3):
        with torch.no_grad():
            mean, deviation = encoder(torch.from_numpy(volumes.volume(entry).image)[None])
        item = latents.item(entry)
        torch.testing.assert_close(item["mean"], mean[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(item["deviation"], deviation[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(item["mask"], volumes.item(entry)["mask"])
    assert not latents.item(2)["mask"].any()
    assert latents.item(0)["mask"].any()


def test_a_part_is_read_as_it_lies_in_the_whole(tmp_path: Path, volumes: VolumeCache, encoder: Encoder) -> None:
    latents = LatentCache(tmp_path / "latents", "weights", volumes)
    latents.write(range(3), encoder)
    for entry, corner, cells in [(0, (1, 0, 2), (2, 3, 2)), (1, (0, 0, 0), (9, 4, 1)), (2, (2, 2, 2), (2, 2, 2))]:
        whole, part = latents.item(entry), latents.item(entry, corner, cells)
        at = [slice(a, a + n) for a, n in zip(corner, cells, strict=True)]
        voxels = [slice(4 * a, 4 * (a + n)) for a, n in zip(corner, cells, strict=True)]
        for name in ("mean", "deviation"):
            assert torch.equal(part[name], whole[name][:, *at])
        assert torch.equal(part["mask"], whole["mask"][:, *voxels])


def test_held_in_memory_they_are_what_the_files_hold(tmp_path: Path, volumes: VolumeCache, encoder: Encoder) -> None:
    latents = LatentCache(tmp_path / "latents", "weights", volumes, Cut((1,), 2.0, GRID.spacing_mm))
    latents.write(range(3), encoder)
    held = hold(latents, torch.device("cpu"))
    assert isinstance(held, HeldLatents)
    for entry in range(3):
        for part in [(), ((1, 0, 2), (2, 4, 3))]:
            there, here = latents.packed(entry, *part), held.packed(entry, *part)
            assert there.keys() == here.keys() >= {"mean", "host_mean", "mask"}
            assert all(torch.equal(there[name], here[name]) for name in there)
            assert all(there[name].dtype == here[name].dtype for name in there)


def test_what_would_fill_the_memory_stays_on_disk(
    tmp_path: Path, volumes: VolumeCache, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = LatentCache(tmp_path / "latents", "weights", volumes)
    latents.write(range(3), encoder)
    size = 3 * sum(tensor.nbytes for tensor in latents.packed(0).values())
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=4 * size))
    assert isinstance(hold(latents, torch.device("cpu")), HeldLatents)
    assert hold(latents, torch.device("cpu"), processes=2) is latents


def test_encoding_together_or_singly_is_the_same(tmp_path: Path, volumes: VolumeCache, encoder: Encoder) -> None:
    together = LatentCache(tmp_path / "together", "weights", volumes)
    singly = LatentCache(tmp_path / "singly", "weights", volumes)
    together.write([0, 1, 2], encoder)
    for entry in (2, 0, 1):
        singly.write([entry], encoder)
    for entry in range(3):
        for key in ("mean", "deviation", "mask"):
            torch.testing.assert_close(singly.item(entry)[key], together.item(entry)[key], atol=1e-5, rtol=1e-5)


def test_missing_entries_are_known_and_refused(tmp_path: Path, volumes: VolumeCache, encoder: Encoder) -> None:
    latents = LatentCache(tmp_path / "latents", "weights", volumes)
    assert latents.missing() == [0, 1, 2]
    latents.write([1], encoder)
    assert latents.missing() == [0, 2]
    with pytest.raises(DataError, match="latents of case a are missing: run `latentsynth encode "):
        latents.item(0)


def test_latents_belong_to_one_autoencoder_and_one_recipe(
    tmp_path: Path, volumes: VolumeCache, encoder: Encoder
) -> None:
    latents = LatentCache(tmp_path / "latents", "weights", volumes)
    latents.write(range(3), encoder)
    assert LatentCache(tmp_path / "latents", "weights", volumes).missing() == []
    assert LatentCache(tmp_path / "latents", "other weights", volumes).missing() == [0, 1, 2]
    cases = [case for case, _ in volumes.entries]
    recipe = Recipe(GRID, Framing(), Labels((0, 1, 2)), AugmentConfig(), seed=1)
    other = VolumeCache(tmp_path / "volumes", recipe, cases)
    assert LatentCache(tmp_path / "latents", "weights", other).missing() == [0, 1, 2]


def test_an_edited_scan_needs_new_latents(tmp_path: Path, volumes: VolumeCache, encoder: Encoder) -> None:
    latents = LatentCache(tmp_path / "latents", "weights", volumes)
    latents.write(range(3), encoder)
    nifti.write(volumes.entries[1][0].images[0], np.zeros(GRID.shape, np.float32), np.eye(4))
    later = VolumeCache(tmp_path / "volumes", volumes.recipe, [case for case, _ in volumes.entries])
    assert LatentCache(tmp_path / "latents", "weights", later).missing() == [1]


def test_latents_carried_to_another_machine_need_no_volumes(
    tmp_path: Path, volumes: VolumeCache, encoder: Encoder
) -> None:
    latents = LatentCache(tmp_path / "latents", "weights", volumes)
    latents.write(range(3), encoder)
    means = [latents.item(entry)["mean"] for entry in range(3)]
    shutil.rmtree(volumes.folder)
    there = VolumeCache(tmp_path / "volumes", volumes.recipe, [case for case, _ in volumes.entries])
    assert not any(there.path(entry).is_file() for entry in range(3))
    carried = LatentCache(tmp_path / "latents", "weights", there)
    assert carried.missing() == []
    assert all(torch.equal(carried.item(entry)["mean"], mean) for entry, mean in enumerate(means))


@pytest.mark.parametrize("part", [0, 1], ids=["mean", "deviation"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 1], ids=["first", "second"])
def test_what_is_not_finite_is_refused_by_name(
    tmp_path: Path, volumes: VolumeCache, encoder: Encoder, part: int, value: float, row: int
) -> None:
    def spoilt(image: Tensor) -> tuple[Tensor, Tensor]:
        out = encoder(image)
        out[part][row, 0, 0, 0, 0] = value
        return out

    latents = LatentCache(tmp_path / "latents", "weights", volumes)
    with pytest.raises(DataError, match=rf"latents of case {'ab'[row]} are not finite"):
        latents.write([0, 1], spoilt)
    assert row in latents.missing()


def test_damaged_file_is_named_with_its_cure(tmp_path: Path, volumes: VolumeCache, encoder: Encoder) -> None:
    latents = LatentCache(tmp_path / "latents", "weights", volumes)
    latents.write([0], encoder)
    latents.path(0).write_bytes(latents.path(0).read_bytes()[:-8])
    with pytest.raises(DataError, match=r"damaged.*delete the file and encode again"):
        latents.item(0)
