"""Content is identity: caches, manifests and exports go by what files hold, never by what they are called."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers import GEOMETRIES
from tiny_runs import GRID

from latentsynth.config import AugmentConfig, DataConfig
from latentsynth.data import nifti
from latentsynth.data.cache.volumes import Recipe, VolumeCache
from latentsynth.data.identity import identity, unfit_id, volume_hash
from latentsynth.data.intake.prepare import prepare
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.types import Case


@pytest.fixture
def manifest(workplace: Path, tmp_path: Path) -> Path:
    """A cohort of its own, prepared."""
    shutil.copytree(workplace / "cohort", tmp_path / "cohort")
    prepare(tmp_path / "cohort", tmp_path / "manifest.json", fractions=(0.6, 0.2, 0.2), progress=False)
    return tmp_path / "manifest.json"


def cache_of(path: Path, folder: str = "cache") -> VolumeCache:
    manifest = Manifest.load(path)
    data = DataConfig.model_validate({"manifest": path, "grid": GRID, "framing": {"lesion_labels": [3]}})
    recipe = Recipe(data.grid, data.framing, manifest.labels, AugmentConfig(), 0)
    return VolumeCache(path.parent / folder, recipe, manifest.select("train"))


def edited(path: Path, change: Any) -> Path:
    """The manifest after a change by somebody who knows how fingerprints are made."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    try:
        Manifest.load(path)
    except DataError as error:
        if "contents " in str(error):  # the fingerprint covers it: make it agree
            value["fingerprint"] = str(error).split("contents ")[1].split(")")[0]
            path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_hash_knows_voxels_and_place_but_not_the_order_on_disk(name: str, tmp_path: Path) -> None:
    affine, shape = GEOMETRIES[name]
    voxels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    known = volume_hash(voxels, affine)
    turned = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
    assert volume_hash(np.asarray(turned.dataobj), turned.affine) == known
    nifti.write(tmp_path / "a.nii.gz", voxels, affine)
    assert volume_hash(*nifti.read(tmp_path / "a.nii.gz")) == known
    other = voxels.copy()
    other[3, 4, 5] += 1e-3
    moved = affine.copy()
    moved[0, 3] += 1
    assert len({known, volume_hash(other, affine), volume_hash(voxels, moved)}) == 3


@pytest.mark.parametrize("what", ["image", "mask"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_case_pointed_at_another_patients_file_is_refused_by_name(manifest: Path, what: str, cached: bool) -> None:
    if cached:
        cache_of(manifest).build()
    victim, other = Manifest.load(manifest).select("train")[0], Manifest.load(manifest).select("test")[0]

    def swap(value: dict[str, Any]) -> None:
        by_id = {case["case_id"]: case for case in value["cases"]}
        key = "images" if what == "image" else "mask"
        by_id[victim.case_id][key] = by_id[other.case_id][key]

    edited(manifest, swap)
    with pytest.raises(DataError, match=f"{other.case_id}.*does not hold what case {victim.case_id}"):
        cache_of(manifest).build()


def test_a_file_exchanged_under_its_name_is_refused_whatever_its_date(manifest: Path) -> None:
    cache_of(manifest).build()
    first, second = Manifest.load(manifest).select("train")[:2]
    stat = first.images[0].stat()
    first.images[0].write_bytes(second.images[0].read_bytes())
    with pytest.raises(DataError, match=f"case {first.case_id}"):
        cache_of(manifest).build()
    os.utime(first.images[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DataError, match=f"case {first.case_id}"):
        cache_of(manifest, "another").build()  # a first reading trusts no date


def test_a_cache_is_read_again_only_where_dates_have_changed(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_of(manifest).build()
    touched = Manifest.load(manifest).select("train")[0]
    os.utime(touched.images[0], (1, 1))
    read: list[Path] = []
    inner = nifti.read
    monkeypatch.setattr(nifti, "read", lambda path: read.append(Path(path)) or inner(path))
    cache_of(manifest).build()
    assert set(read) == {*touched.images, touched.mask}
    read.clear()
    cache_of(manifest).build()
    assert read == []


def test_a_carried_cache_is_found_by_content_and_never_by_name(manifest: Path) -> None:
    cache = cache_of(manifest)
    cache.build()
    volume = cache.volume(0)
    shutil.rmtree(manifest.parent / "cohort")
    again = cache_of(manifest)
    again.build()
    assert np.array_equal(again.volume(0).image, volume.image)
    namesake = replace(again.entries[0][0], image_hashes=("another scan",))
    stranger = VolumeCache(manifest.parent / "cache", again.recipe, [namesake])
    assert not stranger.path(0).is_file()
    with pytest.raises(DataError, match="does not exist"):
        stranger.build()


def test_cases_without_hashes_go_by_the_bytes_of_their_files(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        nifti.write(tmp_path / f"{name}.nii.gz", np.full((4, 4, 4), value, np.float32), np.eye(4))
    one, other = (Case("same", "same", (tmp_path / f"{name}.nii.gz",), None) for name in "ab")
    assert identity(one) != identity(other)
    assert identity(one) == identity(replace(one, patient_id="renamed"))
    with pytest.raises(DataError, match="does not exist"):
        identity(replace(one, images=(tmp_path / "absent.nii.gz",)))


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("case_id", "../../x", "slash"), ("case_id", "", "empty"), ("case_id", "a\0b", "NUL"), ("case_id", "a\tb", "control"), ("case_id", "x" * 300, "bytes"),
        ("split", "trian", "split 'trian'"), ("patient_id", "", "no patient"), ("case_id", 7, "no text"), ("age", 70, "age"),
    ],
)  # fmt: skip
def test_a_manifest_is_held_to_what_prepare_checks(manifest: Path, key: str, value: Any, complaint: str) -> None:
    edited(manifest, lambda found: found["cases"][0].update({key: value}))
    with pytest.raises(DataError, match=complaint):
        Manifest.load(manifest)


def test_unknown_keys_and_repeated_cases_are_refused(manifest: Path) -> None:
    kept = manifest.read_text()
    edited(manifest, lambda found: found.update({"extra": 1}))
    with pytest.raises(DataError, match="extra"):
        Manifest.load(manifest)
    manifest.write_text(kept)
    edited(manifest, lambda found: found["cases"].append(found["cases"][0]))
    with pytest.raises(DataError, match="more than once"):
        Manifest.load(manifest)


def test_what_prepare_accepts_as_an_id_a_manifest_accepts() -> None:
    assert not any(unfit_id(name) for name in ("case_01", "Müller 3", "a.b", "-x", "患者"))
