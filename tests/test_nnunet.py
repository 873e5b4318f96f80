"""An nnU-Net dataset of real and synthetic patients: everybody once, nobody synthetic validated on, nobody leaked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reported_set import Reported, reported  # noqa: F401 (fixture)

from latentsynth.data import nifti
from latentsynth.data.cache.volumes import to_index
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.provenance import LEDGER, Ledger
from latentsynth.sharing.nnunet import SPLITS, write_dataset


def names(folder: Path) -> set[str]:
    return {file.name.removesuffix(".nii.gz") for file in folder.iterdir()}


def test_synthetic_patients_train_and_real_ones_validate(reported: Reported, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "Dataset501_mixed"
    write_dataset(reported.real, [reported.fresh, reported.fresh.parent], out)  # a manifest, and its folder
    real, made = Manifest.load(reported.real), Manifest.load(reported.fresh)
    (fold,) = json.loads((out / SPLITS).read_text())
    split = {name: {case.case_id for case in real.select(name)} for name in ("train", "val", "test")}  # type: ignore[arg-type]
    synthetic = {f"synthetic_{part}_{n:05d}" for part in (0, 1) for n in range(len(made.cases))}
    assert set(fold["val"]) == split["val"]
    assert set(fold["train"]) == split["train"] | synthetic
    assert names(out / "labelsTr") == set(fold["train"]) | set(fold["val"])
    assert names(out / "imagesTr") == {f"{name}_0000" for name in names(out / "labelsTr")}
    assert names(out / "labelsTs") == split["test"]
    described = json.loads((out / "dataset.json").read_text())
    assert described["numTraining"] == len(names(out / "labelsTr"))
    assert set(described["synthetic_cases"]) == synthetic
    assert sorted(described["labels"].values()) == list(range(len(real.labels)))
    for name, case in (("synthetic_0_00002", made.cases[2]), (real.cases[0].case_id, real.cases[0])):
        assert case.mask is not None
        np.testing.assert_array_equal(
            nifti.read(out / "imagesTr" / f"{name}_0000.nii.gz")[0], nifti.read(case.images[0])[0]
        )
        written, _ = nifti.read_labels(out / "labelsTr" / f"{name}.nii.gz")
        np.testing.assert_array_equal(written, to_index(nifti.read_labels(case.mask)[0], real.labels))


def test_what_would_leak_or_cannot_be_trained_on_is_refused(reported: Reported, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "out"
    path = reported.copy(tmp_path / "set", fresh=True)
    manifest, real = Manifest.load(path), Manifest.load(reported.real)
    Ledger.used([real.select("val")[0].patient_id]).save(path.parent / LEDGER)
    with pytest.raises(DataError, match="come from 1 validation or test patients"):
        write_dataset(reported.real, [path], out)
    Ledger().save(path.parent / LEDGER)
    replace(manifest, channels=("PET",)).save(path)
    with pytest.raises(DataError, match="has channels"):
        write_dataset(reported.real, [path], out)
    replace(manifest, cases=tuple(replace(c, mask=None, mask_hash="") for c in manifest.cases)).save(path)
    with pytest.raises(DataError, match="have no mask"):
        write_dataset(reported.real, [path], out)
    manifest.save(path)
    bare = tmp_path / "bare.json"
    replace(real, cases=real.select("train")).save(bare)
    with pytest.raises(DataError, match="no case in split val"):
        write_dataset(bare, [path], out)
    assert not out.exists()
    write_dataset(reported.real, [path], out)
    with pytest.raises(DataError, match="nothing was written"):
        write_dataset(reported.real, [path], out)
