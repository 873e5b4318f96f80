"""Near-duplicates: one scan under two patients is found whatever was done to its voxels, strangers and visits are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from latentsynth.data import nifti
from latentsynth.data.intake.duplicates import near_duplicates, outline
from latentsynth.data.intake.prepare import prepare
from latentsynth.types import Case

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
RNG = np.random.default_rng(0)
COMMON = ndimage.gaussian_filter(RNG.normal(size=(24, 28, 20)), 3)


def scan(seed: int) -> np.ndarray:
    """What all share, and something of one's own."""
    own = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=COMMON.shape), 2)
    volume = COMMON / COMMON.std() + own / own.std()
    return np.asarray(1000 * (volume - volume.min()), np.float32)


def noisy(volume: np.ndarray) -> np.ndarray:
    return volume + 0.1 * volume.std() * np.random.default_rng(9).normal(size=volume.shape).astype(np.float32)


DISGUISES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "noise": noisy,
    "mirrored": lambda v: noisy(v)[::-1],
    "turned": lambda v: noisy(v).transpose(2, 0, 1)[:, ::-1],
    "another scale and gamma": lambda v: 3 + 0.01 * v**1.5,
    "resampled": lambda v: ndimage.zoom(v, (0.8, 1.2, 1.0), order=1),
    "smoothed": lambda v: ndimage.gaussian_filter(v, 0.7),
}


def pairs(volumes: list[np.ndarray], patients: list[str]) -> list[set[str]]:
    cases = [Case(f"case {n}", patient, (Path("x"),), None) for n, patient in enumerate(patients)]
    found = near_duplicates(cases, [[outline(volume, AFFINE)] for volume in volumes], progress=False)
    return [{pair.first.patient_id, pair.second.patient_id} for pair in found]


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_disguised_scan_is_found_among_strangers(disguise: str, count: int) -> None:
    """In a cohort of two as well as in a larger one."""
    volumes = [scan(n) for n in range(count)]
    names = [f"p{n}" for n in range(count)]
    assert pairs([*volumes, DISGUISES[disguise](volumes[0])], [*names, "double"]) == [{"p0", "double"}]


def test_strangers_and_scans_of_one_patient_are_no_pairs() -> None:
    volumes = [scan(n) for n in range(12)]
    assert pairs(volumes, [f"p{n}" for n in range(12)]) == []
    assert pairs([*volumes, noisy(volumes[0])], [f"p{n}" for n in range(12)] + ["p0"]) == []


def test_scans_that_are_mirrored_alike_are_no_pair_and_hide_none() -> None:
    """Half of the cohort lies the other way round, one of them is a double."""
    volumes = [scan(n)[:: 1 - 2 * (n % 2)] for n in range(12)]
    names = [f"p{n}" for n in range(12)]
    assert pairs(volumes, names) == []
    assert pairs([*volumes, DISGUISES["resampled"](scan(3))], [*names, "double"]) == [{"p3", "double"}]


def test_any_channel_will_do() -> None:
    cases = [Case(f"c{n}", f"p{n}", (Path("x"),) * 2, None) for n in range(6)]
    outlines = [[outline(scan(n), AFFINE), outline(scan(10 + n), AFFINE)] for n in range(5)]
    outlines.append([outline(scan(5), AFFINE), outline(noisy(scan(10)), AFFINE)])
    (found,) = near_duplicates(cases, outlines, progress=False)
    assert (found.first.case_id, found.second.case_id) == ("c0", "c5")
    assert found.correlation > 0.95


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eleven patients, and a double of the first under another name."""
    for n in range(12):
        volume = noisy(scan(0)) if n == 11 else scan(n)
        mask = np.zeros(volume.shape, np.uint8)
        mask[4:8, 4:8, 4 : 6 + n % 3] = 1
        nifti.write(tmp_path / "raw" / "imagesTr" / f"p{n:02d}_0000.nii.gz", volume, AFFINE)
        nifti.write(tmp_path / "raw" / "labelsTr" / f"p{n:02d}.nii.gz", mask, AFFINE)
    described = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps({**described, "numTraining": 12}))
    return tmp_path / "raw"


def test_a_double_shares_its_patients_split(source: Path, tmp_path: Path) -> None:
    """Whatever the seed; the note names both. Without the comparison some seed tears them apart."""
    torn = []
    for compare in (True, False):
        for seed in range(8):
            out = tmp_path / f"{compare}{seed}.json"
            report = prepare(source, out, seed=seed, layout="nnunet", compare=compare, progress=False)
            assert report.manifest
            split = {case.case_id: case.split for case in report.manifest.cases}
            torn.append((compare, split["p00"] != split["p11"]))
            assert any("p00 and p11" in note and "kept in one split" in note for note in report.notes) == compare
    assert (True, True) not in torn
    assert (False, True) in torn


def test_a_declared_split_that_tears_them_apart_is_a_warning(source: Path, tmp_path: Path) -> None:
    lists = {"train": [f"p{n:02d}" for n in range(11)], "val": ["p11"]}
    (tmp_path / "split.json").write_text(json.dumps(lists))
    report = prepare(source, tmp_path / "m.json", layout="nnunet", split_file=tmp_path / "split.json", progress=False)
    assert [(pair.first.case_id, pair.second.case_id) for pair in report.near_duplicates] == [("p00", "p11")]
    (note,) = (note for note in report.notes if "p00 and p11" in note)
    assert note.startswith("warning: ")
    assert "different splits" in note
