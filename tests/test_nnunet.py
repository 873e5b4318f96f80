"""An nnU-Net dataset of real and synthetic patients: everybody once, nobody synthetic validated on, nobody leaked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from reported_set import Reported, reported  # noqa: F401 (fixture)

from latentsynth.data import nifti
from latentsynth.data.cache.volumes import to_index
from latentsynth.data.identity import volume_hash
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.provenance import LEDGER, Ledger
from latentsynth.sharing.nnunet import SPLITS, write_dataset
from latentsynth.types import Labels


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


def complaints(folder: Path) -> list[str]:
    """What nnU-Net 2.8 (``verify_dataset_integrity`` and its reader) would refuse or warn of in a raw dataset."""
    described = json.loads((folder / "dataset.json").read_text())
    found = [f"no {key}" for key in {"labels", "channel_names", "numTraining", "file_ending"} - set(described)]
    labels, ending = dict(described["labels"]), described["file_ending"]
    values = [value for name, value in labels.items() if name != "ignore"]
    if labels.get("background") != 0 or sorted(values) != list(range(len(values))):
        found.append(f"labels {labels} do not count up from background = 0")
    if "ignore" in labels and labels["ignore"] != len(values):
        found.append("ignore is not the highest label")
    ids = {file.name[: -len(ending) - 5] for file in (folder / "imagesTr").iterdir() if file.name.endswith(ending)}
    if len(ids) != described["numTraining"]:
        found.append(f"{len(ids)} cases, numTraining {described['numTraining']}")
    for name in ids:
        files = [folder / "imagesTr" / f"{name}_{n:04d}{ending}" for n in range(len(described["channel_names"]))]
        read = [sitk.ReadImage(str(file)) for file in (*files, folder / "labelsTr" / f"{name}{ending}")]
        arrays = [sitk.GetArrayFromImage(one) for one in read]
        if not set(np.unique(arrays[-1])) <= set(labels.values()):
            found.append(f"{name} holds labels {np.unique(arrays[-1])}")
        if any(np.isnan(one).any() or one.shape != arrays[0].shape for one in arrays):
            found.append(f"{name} has NaN or other shapes")
        if len({(one.GetSpacing(), one.GetOrigin(), one.GetDirection()) for one in read}) > 1:
            found.append(f"{name}: spacing, origin or direction differ")
    return found


def test_nnunet_finds_nothing_to_complain_of(reported: Reported, tmp_path: Path) -> None:  # noqa: F811
    """Not with labels that leave gaps, unannotated voxels in between, or headers that differ in their last digits."""
    labels = Labels((0, 1, 3, 7, 9), ("air", "body", "Ignored rim", "lesion", "unannotated"))

    def planted(manifest: Manifest, folder: Path) -> Manifest:
        cases = []
        for case in manifest.cases:
            assert case.mask is not None
            mask, affine = nifti.read_labels(case.mask)
            mask = np.array([0, 1, 3, 7])[np.arange(mask.size).reshape(mask.shape) % 4].astype(np.int16)
            mask[0, 0, 0] = 9
            file = folder / f"{case.case_id}.nii.gz"
            nifti.write(file, mask, affine + np.diag([1e-5, 0, 0, 0]))  # as another tool rounds
            hashed = volume_hash(*nifti.read(file))
            cases.append(replace(case, mask=file, mask_hash=hashed))
        return replace(manifest, labels=labels, cases=tuple(cases))

    planted(Manifest.load(reported.real), tmp_path / "a").save(tmp_path / "real.json")
    planted(Manifest.load(reported.fresh), tmp_path / "b").save(tmp_path / "made.json")
    out = tmp_path / "Dataset502"
    write_dataset(tmp_path / "real.json", [tmp_path / "made.json"], out)
    assert not complaints(out)
    described = json.loads((out / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "body": 1, "lesion": 2, "ignore": 3}
    written = nifti.read_labels(out / "labelsTr" / "synthetic_0_00000.nii.gz")[0].ravel()
    assert written[:8].tolist() == [3, 1, 3, 2, 0, 1, 3, 2]
    described["labels"]["lesion"] = 4
    (out / "dataset.json").write_text(json.dumps(described | {"numTraining": 1}))
    assert len(complaints(out)) > 2


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
