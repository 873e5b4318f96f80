"""From scan to label map: geometry comes back, windows cover everything, foreign checkpoints are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import GEOMETRIES, lesion_mask, tiny_domain
from positive_controls import LESIONS, boxes, painted, positive_controls

from latentsynth import checkpoint
from latentsynth.config import DynUNetConfig, InferenceConfig, UNetConfig
from latentsynth.data import nifti
from latentsynth.errors import CheckpointError, DataError
from latentsynth.metrics.surfaces import dice
from latentsynth.provenance import Ledger
from latentsynth.segmentation import Segmenter, build_network
from latentsynth.types import Framing, Labels

WHOLE, LESION = Framing("whole"), Framing("lesion")


def two_lesions(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Label values 1 and 4, both lopsided, and the affine of a geometry."""
    affine, shape = GEOMETRIES[name]
    values = lesion_mask(affine, shape, 12.0, value=4)
    voxels = np.moveaxis(np.indices(shape), 0, -1)
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3] + (-22.0, 10.0, -14.0)
    values[(np.linalg.norm((world - middle) / (1.0, 1.3, 0.8), axis=-1) < 9) & (values == 0)] = 1
    return values, affine


@pytest.mark.parametrize("spacing_mm", [(2.0, 2.0, 2.0), (1.5, 2.5, 2.0)])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_label_maps_lie_on_the_scans_own_grid(
    name: str, spacing_mm: tuple[float, float, float], tmp_path: Path
) -> None:
    values, affine = two_lesions(name)
    found, where = positive_controls(spacing_mm=spacing_mm).segment(painted(tmp_path, name, values, affine))
    assert found.shape == values.shape
    assert found.dtype == np.int16
    assert np.allclose(where, affine, atol=1e-4)
    assert set(np.unique(found)) == {0, *LESIONS}  # values, not indices
    for value in LESIONS:
        assert dice(values == value, found == value) > 0.95


@pytest.mark.parametrize("name", ["oblique", "LPS"])
def test_on_a_grid_of_the_scans_spacing_thresholding_comes_back_to_the_voxel(name: str, tmp_path: Path) -> None:
    values, affine = two_lesions(name)
    found, _ = positive_controls().segment(painted(tmp_path, name, values, affine))
    assert np.array_equal(found, values)


def test_the_stored_order_of_axes_does_not_matter(tmp_path: Path) -> None:
    """A scan saved anew with axes swapped and flipped gets the label map swapped and flipped alike."""
    values, affine = two_lesions("anisotropic")
    model = positive_controls()
    found, _ = model.segment(painted(tmp_path, "one", values, affine))
    canonical = nib.as_closest_canonical(nib.Nifti1Image(values, affine))
    again, where = model.segment(painted(tmp_path, "two", np.asarray(canonical.dataobj), canonical.affine))
    expected = nib.as_closest_canonical(nib.Nifti1Image(found, affine))
    assert np.allclose(expected.affine, where, atol=1e-4)
    assert np.mean(np.asarray(expected.dataobj) != again) < 1e-4


def test_windows_cover_scans_larger_than_the_grid_to_the_last_corner(tmp_path: Path) -> None:
    shape = (41, 35, 50)
    corner = boxes(shape, {1: np.s_[:3, :3, :3], 4: np.s_[-3:, -3:, -3:]})
    case = painted(tmp_path, "corners", corner, np.diag([2.0, 2.0, 2.0, 1.0]))
    found, _ = positive_controls(framing=WHOLE).segment(case)
    assert np.array_equal(found, corner)
    centre, _ = positive_controls(framing=WHOLE).segment(replace(case, mask=None), whole=False)
    assert not centre.any()  # the grid in the middle of the scan reaches neither
    with pytest.raises(DataError, match="corners: the lesion needs"):  # known to lie outside
        positive_controls(framing=WHOLE).segment(case, whole=False)


def test_the_outermost_voxels_of_a_finer_scan_are_covered(tmp_path: Path) -> None:
    """37.5 mm in voxels of 0.5 mm, on a grid of 2 mm: neither a lost remainder nor half a grid voxel may be cut off."""
    values = boxes((75, 24, 24), {1: np.s_[:10], 4: np.s_[-10:]})
    found, _ = positive_controls().segment(painted(tmp_path, "fine", values, np.diag([0.5, 0.5, 0.5, 1.0])))
    assert (found[:5, 4:-4, 4:-4] == 1).all()
    assert (found[-5:, 4:-4, 4:-4] == 4).all()
    assert not found[20:-20].any()


@pytest.mark.parametrize("shape", [(9, 12, 5), (16, 7, 40)])
def test_scans_smaller_than_the_window_are_padded(shape: tuple[int, int, int], tmp_path: Path) -> None:
    values = boxes(shape, {1: np.s_[:2], 4: np.s_[-2:]})
    found, _ = positive_controls().segment(painted(tmp_path, "small", values, np.diag([-2.0, 2.0, -2.0, 1.0])))
    assert np.array_equal(found, values)


def test_a_crop_follows_the_annotated_lesion_and_leaves_the_rest_background(tmp_path: Path) -> None:
    shape = (48, 20, 20)
    annotated = boxes(shape, {4: np.s_[5:9, 5:9, 5:9]})
    shown = annotated + boxes(shape, {1: np.s_[40:44, 5:9, 5:9]})
    case = painted(tmp_path, "far", annotated, np.diag([2.0, 2.0, 2.0, 1.0]), shown)
    model = positive_controls(framing=LESION)
    assert np.array_equal(model.segment(case, whole=False)[0], annotated)
    assert np.array_equal(model.segment(case, whole=True)[0], shown)
    unannotated = replace(case, mask=None)  # nothing to follow: the middle, where nothing is
    assert not model.segment(unannotated, whole=False)[0].any()
    assert np.array_equal(model.segment(unannotated, whole=True)[0], shown)


def test_one_window_is_the_network_alone(tmp_path: Path) -> None:
    """No window to blend: probabilities are the softmax of the network's answer, also with deep supervision."""
    model = random_model(DynUNetConfig(channels=(4, 8, 8)))
    image = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 16)).astype(np.float32)
    with torch.no_grad():
        logits = model.network.eval()(torch.from_numpy(image)[None])[:, 0]
    found = model.probabilities(image)
    assert np.allclose(found, torch.softmax(logits, 1)[0].numpy(), atol=1e-5)
    assert np.allclose(found.sum(0), 1, atol=1e-5)
    assert np.array_equal(model.on_grid(image), found.argmax(0))


def random_model(config: Any = UNetConfig(channels=(4, 8))) -> Segmenter:  # noqa: B008 (frozen)
    torch.manual_seed(0)
    network = build_network(config, 1, 3)
    ledger = Ledger(frozenset({"a"}), frozenset({"b"}))
    return Segmenter(tiny_domain(), network, InferenceConfig(), {"real": 3, "synthetic": 1}, ledger)


def test_how_many_windows_go_through_at_once_changes_nothing() -> None:
    model = random_model()
    image = np.random.default_rng(0).uniform(-1, 1, (1, 24, 17, 30)).astype(np.float32)
    rows = [
        replace(model, inference=InferenceConfig(windows_at_once=n)).probabilities(image) for n in (1, 2, 5)
    ]  # 5 leaves a last batch of another size
    assert np.allclose(rows[0], rows[1], atol=1e-5)
    assert np.allclose(rows[0], rows[2], atol=1e-5)
    other = replace(model, inference=InferenceConfig(overlap=0.0)).probabilities(image)
    assert not np.allclose(rows[0], other, atol=1e-3)


def test_dropout_is_off_also_right_after_training() -> None:
    model = random_model(UNetConfig(channels=(4, 8), dropout=0.5))
    image = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 16)).astype(np.float32)
    model.network.train()
    first = model.probabilities(image)
    model.network.train()
    assert np.array_equal(first, model.probabilities(image))


def test_a_scan_with_other_channels_is_refused(tmp_path: Path) -> None:
    case = painted(tmp_path, "one", boxes((16, 16, 16), {1: np.s_[4:8]}), np.eye(4))
    alone = replace(case, images=case.images[:1])
    with pytest.raises(DataError, match=r"case one has 1 images, .* 2 channels \(CT, PET\)"):
        positive_controls().segment(alone)


def test_a_lesion_larger_than_the_crop_is_refused(tmp_path: Path) -> None:
    case = painted(tmp_path, "large", boxes((30, 16, 16), {1: np.s_[2:28, 4:8, 4:8]}), np.diag([2.0, 2.0, 2.0, 1.0]))
    with pytest.raises(DataError, match="the lesion needs 52"):
        positive_controls(framing=LESION).segment(case, whole=False)


def test_a_cohort_of_other_channels_or_labels_is_refused() -> None:
    model = positive_controls()
    model.check(("CT", "PET"), Labels((0, 1, 4), ("background", "other", "names")), "m.json")
    with pytest.raises(DataError, match=r"m\.json has channels \('PET', 'CT'\)"):
        model.check(("PET", "CT"), model.domain.labels, "m.json")
    with pytest.raises(DataError, match=r"m\.json has labels \(0, 1, 2\), the segmenter was trained on \(0, 1, 4\)"):
        model.check(model.domain.channels, Labels((0, 1, 2)), "m.json")


def test_a_saved_segmenter_is_the_same(tmp_path: Path) -> None:
    model = replace(random_model(), inference=InferenceConfig(overlap=0.25, windows_at_once=3))
    header = model.save(tmp_path / "run" / "checkpoint", {"dice": 0.5, "dice_lesion": float("nan")})
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint"):
        loaded = Segmenter.from_pretrained(folder)
        for name in ("domain", "inference", "trained_on", "ledger"):
            assert getattr(loaded, name) == getattr(model, name), name
        assert loaded.fingerprint == header.fingerprint
    image = np.random.default_rng(0).uniform(-1, 1, (1, 20, 16, 16)).astype(np.float32)
    assert np.array_equal(loaded.probabilities(image), model.probabilities(image))


def settings(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A fault in the settings of a checkpoint."""

    def fault(folder: Path) -> None:
        value = json.loads((folder / "config.json").read_text())
        change(value)
        value["checksum"] = checkpoint.checksum(value)
        (folder / "config.json").write_text(json.dumps(value))

    return fault


def exchange_part(folder: Path) -> None:
    build_network(UNetConfig(channels=(4, 8)), 1, 3).save(folder / "network")


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another kind": (settings(lambda v: v.update(kind="autoencoder")), "kind autoencoder, expected segmenter"),
    "setting lost": (settings(lambda v: v["settings"].pop("trained_on")), r"settings \['inference'\]"),
    "setting added": (settings(lambda v: v["settings"].update(more=1)), "'more'"),
    "inference misspelt": (
        settings(lambda v: v["settings"]["inference"].update(overlop=0.5)), "did you mean overlap.*restore"),
    "inference impossible": (settings(lambda v: v["settings"]["inference"].update(overlap=1.5)), "inference|overlap"),
    "inference no section": (settings(lambda v: v["settings"].update(inference=3)), "restore the checkpoint"),
    "counts no section": (settings(lambda v: v["settings"].update(trained_on=[3])), "restore the checkpoint"),
    "counts no numbers": (settings(lambda v: v["settings"].update(trained_on={"real": "few"})), "restore the checkpoint"),
    "weights exchanged": (exchange_part, "part network has fingerprint"),
    "labels lost": (
        settings(lambda v: v["domain"]["labels"].update(values=[0, 1], names=["background", "one"])), "do not fit"),
    "weights lost": (
        settings(lambda v: v["parts"].clear()), "part network, which was not saved with it"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_altered_checkpoints_are_refused(fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    random_model().save(folder, {"dice": 0.5})
    Segmenter.from_pretrained(folder)
    alter, message = FAULTS[fault]
    alter(folder)
    with pytest.raises(CheckpointError, match=message):
        Segmenter.from_pretrained(folder)


def test_the_fingerprint_changes_with_any_setting(tmp_path: Path) -> None:
    model = random_model()
    one = model.save(tmp_path / "one", {})
    assert model.save(tmp_path / "two", {"dice": 1.0}).fingerprint == one.fingerprint  # scores are no setting
    assert replace(model, trained_on={"real": 4, "synthetic": 0}).save(tmp_path / "three", {}).fingerprint != (
        one.fingerprint
    )
    assert replace(model, inference=InferenceConfig(overlap=0)).save(tmp_path / "4", {}).fingerprint != one.fingerprint
    assert checkpoint.read_ledger(tmp_path / "one") == model.ledger


def test_a_scan_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    case = painted(tmp_path, "one", boxes((16, 16, 16), {1: np.s_[4:8]}), np.eye(4))
    case.images[1].unlink()
    with pytest.raises(DataError, match=r"one_0001\.nii\.gz does not exist"):
        positive_controls().segment(case)
    assert nifti.read(case.images[0])[0].shape == (16, 16, 16)


def test_channels_that_do_not_lie_on_one_grid_are_refused(tmp_path: Path) -> None:
    """By the name of the file; so is a scan that covers more than any body, or whose voxels are not those of one."""
    values, affine = two_lesions("oblique")
    case = painted(tmp_path, "a", values, affine)
    image, other = nifti.read(case.images[0])[0], affine.copy()
    other[:3, 3] += 5000
    for voxels, where, words in (
        (image, other, "mm away"), (image, np.eye(4), "mm away"), (image[::2], affine @ np.diag([2, 1, 1, 1]), "shape"),
    ):  # fmt: skip
        nifti.write(case.images[1], voxels, where)
        with pytest.raises(DataError, match=rf"a_0001.* does not lie on the grid of a_0000\.nii\.gz .*{words}"):
            positive_controls().segment(case)
    for factor, words in (
        (1e-3, r"voxels of 0\.002 x 0\.002 x 0\.002 mm.*correct the header"),
        (1e3, "covers 80000 x"),
    ):
        for file in case.images:
            nifti.write(file, image, affine @ np.diag([factor] * 3 + [1]))
        with pytest.raises(DataError, match=words):
            positive_controls().segment(case)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_scan_with_a_voxel_that_is_no_number_gets_no_label_map(tmp_path: Path, value: float) -> None:
    values, affine = two_lesions("oblique")
    case = painted(tmp_path, "a", values, affine)
    image = nifti.read(case.images[1])[0].copy()
    image[0, 0, 0] = value
    nib.save(nib.Nifti1Image(image, affine), case.images[1])
    with pytest.raises(DataError, match=r"a_0001.* has NaN or infinity in 1 voxels"):
        positive_controls().segment(case)
