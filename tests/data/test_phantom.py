"""The built-in cohort: repeatable, different from patient to patient, and learnable."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.sparse.csgraph import connected_components

from latentsynth.cli import main
from latentsynth.data import nifti
from latentsynth.errors import DataError
from latentsynth.masks import LabelMap, Wanted
from latentsynth.metrics.lesions import components, lesion_scores
from latentsynth.metrics.shapes import shape_of
from latentsynth.phantom.anatomy import body, many_lesions
from latentsynth.phantom.cohort import phantom, write_cohort

LIVER, KIDNEY, LESION = 1, 2, 3


@pytest.fixture(scope="module")
def patients() -> list[tuple[np.ndarray, np.ndarray]]:
    return [phantom(5, case) for case in range(8)]


def voxels(folder: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(folder)): nifti.read(path)[0] for path in sorted(folder.rglob("*.nii.gz"))}


def test_patient_does_not_depend_on_the_size_of_the_cohort(tmp_path: Path) -> None:
    few = voxels(write_cohort(tmp_path / "few", 1, 7))
    many = voxels(write_cohort(tmp_path / "many", 3, 7))
    assert len(few) == 3
    assert len(many) == 9
    for name in few:
        np.testing.assert_array_equal(few[name], many[name])
    assert not np.array_equal(many["imagesTr/phantom_000_0000.nii.gz"], many["imagesTr/phantom_001_0000.nii.gz"])


def test_seed_and_case_are_two_numbers_not_their_sum() -> None:
    small = {"shape": (24, 24, 24), "spacing_mm": (8.0, 8.0, 8.0)}
    images = [phantom(seed, case, **small)[0] for seed, case in ((0, 1), (1, 0), (0, 0), (1, 1))]
    assert all(not np.array_equal(a, b) for n, a in enumerate(images) for b in images[:n])


def test_ct_and_labels_do_not_depend_on_the_number_of_channels(patients: list[tuple[np.ndarray, np.ndarray]]) -> None:
    image, labels = phantom(5, 0, channels=1)
    assert image.shape == (1, 48, 48, 48)
    assert image.dtype == np.float32
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(image[0], patients[0][0][0])
    np.testing.assert_array_equal(labels, patients[0][1])


def test_patients_differ_in_anatomy_and_lesions(patients: list[tuple[np.ndarray, np.ndarray]]) -> None:
    livers = [np.isin(labels, (LIVER, LESION)).sum() for _, labels in patients]
    lesions = [(labels == LESION).sum() for _, labels in patients]
    places = np.array([np.argwhere(labels == LESION).mean(axis=0) for _, labels in patients])
    bodies = [(ndimage.gaussian_filter(image[0], 1) > -300).sum() for image, _ in patients]
    assert np.std(livers) > 0.08 * np.mean(livers)
    assert np.std(bodies) > 0.03 * np.mean(bodies)
    assert max(lesions) > 3 * min(lesions)
    assert np.linalg.norm(places.std(axis=0)) > 3  # voxels
    assert len({ndimage.label(labels == LESION)[1] for _, labels in patients}) > 1


def test_labels_are_anatomy(patients: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for _, labels in patients:
        assert set(np.unique(labels)) == {0, LIVER, KIDNEY, LESION}
        liver = np.isin(labels, (LIVER, LESION))
        assert ndimage.label(liver)[1] == 1
        sides = [(labels[:24] == KIDNEY).sum(), (labels[24:] == KIDNEY).sum()]
        assert min(sides) > 100
        middle = np.argwhere(liver).mean(axis=0)
        assert middle[0] > 24, "the first axis points to the patient's right, where the liver is"


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [((48, 48, 48), (4.0, 4.0, 4.0)), ((24, 24, 24), (4.0, 4.0, 4.0)), ((40, 32, 24), (2.0, 3.0, 6.0))],
)
def test_lesions_exist_and_lie_inside_the_liver(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> None:
    for case in range(8):
        _, labels = phantom(2, case, shape, spacing_mm, 1)
        lesion = labels == LESION
        assert lesion.sum() >= 20
        around = labels[ndimage.binary_dilation(lesion)]
        assert set(np.unique(around)) <= {LIVER, LESION}


def test_lesions_stand_out_with_one_sign(patients: list[tuple[np.ndarray, np.ndarray]]) -> None:
    steps = []
    for image, labels in patients:
        liver = image[:, ndimage.binary_erosion(labels == LIVER)]
        lesion = image[:, labels == LESION]
        step = liver.mean(axis=1) - lesion.mean(axis=1)
        steps.append(step[0])
        assert step[0] >= 40
        assert step[0] > 2 * liver[0].std()
        assert -step[1] > 0.5 * liver[1].mean()
    assert np.std(steps) > 3, "by how much must vary"


def test_lesions_are_rough(patients: list[tuple[np.ndarray, np.ndarray]]) -> None:
    away = np.linalg.norm(np.indices((41, 41, 41)) - 20, axis=0)

    def surface(solid: np.ndarray) -> int:
        return sum(int((np.diff(solid.astype(int), axis=axis) != 0).sum()) for axis in range(3))

    ratios = []
    for _, labels in patients:
        parts, count = ndimage.label(labels == LESION)
        for part in (parts == n for n in range(1, count + 1)):
            ball = away <= np.sort(away, axis=None)[part.sum() - 1]
            ratios.append(surface(part) / part.sum() / (surface(ball) / ball.sum()))
    assert np.median(ratios) > 1.1


def test_ct_is_in_hounsfield_units_with_correlated_noise(patients: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for image, labels in patients:
        ct = image[0]
        corner = ct[:4, :4, 8:40]
        assert abs(corner.mean() + 1000) < 10
        assert 2 < corner.std() < 20  # clipped at -1024, as scanners do
        liver = ct[ndimage.binary_erosion(labels == LIVER, iterations=2)]
        assert 80 < liver.mean() < 140
        assert 5 < liver.std() < 35
        assert ((ct > -130) & (ct < -70)).mean() > 0.03, "fat"
        assert (ct > 300).sum() > 100, "bone"
        steps = np.corrcoef(corner[:-1].ravel(), corner[1:].ravel())[0, 1]
        assert 0.15 < steps < 0.75


def test_mr_has_rician_noise_and_a_scale_of_its_own(patients: list[tuple[np.ndarray, np.ndarray]]) -> None:
    livers = []
    for image, labels in patients:
        mr = image[1]
        air = mr[:4, :4, 8:40]
        assert mr.min() >= 0
        assert air.mean() / air.std() == pytest.approx(1.91, rel=0.15)  # Rayleigh: sqrt(pi / (4 - pi))
        livers.append(mr[labels == LIVER].mean())
    assert max(livers) > 2 * min(livers)


def test_mr_bias_field_varies_slowly_within_the_liver(patients: list[tuple[np.ndarray, np.ndarray]]) -> None:
    slopes: dict[int, list[float]] = {0: [], 1: []}
    chances = []
    for image, labels in patients:
        liver = ndimage.binary_erosion(labels == LIVER, iterations=2)
        at = np.argwhere(liver) - 24.0
        design = np.column_stack([np.ones(len(at)), at])
        for channel, found in slopes.items():
            # The median of the neighbours leaves out thin vessels; the slope across the liver is the field.
            values = ndimage.median_filter(image[channel], 3)[liver]
            fit = design @ np.linalg.lstsq(design, values, rcond=None)[0]
            found.append(float(fit.std() / values.mean()))
        noise = image[1][:4, :4, 8:40].std() / 0.655  # of the complex signal, from its magnitude in air
        chances.append(float(noise * np.sqrt(3 / len(at)) / values.mean()))
    assert np.median(np.divide(slopes[1], chances)) > 5, "steeper than the slope that noise alone would give"
    assert np.median(slopes[1]) > 1.5 * np.median(slopes[0]), "in CT, which has no bias field, only vessels slope"


def test_files_and_description_agree(tmp_path: Path) -> None:
    write_cohort(tmp_path, 3, 1, shape=(24, 26, 28), spacing_mm=(8.0, 7.0, 6.0))
    first = voxels(tmp_path)
    write_cohort(tmp_path, 3, 1, shape=(24, 26, 28), spacing_mm=(8.0, 7.0, 6.0))
    again = voxels(tmp_path)
    assert first.keys() == again.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])

    write_cohort(tmp_path, 2, 1, shape=(24, 26, 28), spacing_mm=(8.0, 7.0, 6.0))  # no patient of three stays behind
    description = json.loads((tmp_path / "dataset.json").read_text())
    names = [path.name for path in sorted((tmp_path / "labelsTr").iterdir())]
    assert names == ["phantom_000.nii.gz", "phantom_001.nii.gz"]
    assert description["numTraining"] == 2
    assert description["file_ending"] == ".nii.gz"
    assert description["channel_names"] == {"0": "CT", "1": "MR"}
    assert description["labels"]["background"] == 0
    images = {path.name for path in (tmp_path / "imagesTr").iterdir()}
    assert images == {f"phantom_{n:03d}_{int(c):04d}.nii.gz" for n in range(2) for c in description["channel_names"]}
    for path in tmp_path.rglob("*.nii.gz"):
        volume, affine = nifti.read(path)
        assert volume.shape == (24, 26, 28)
        np.testing.assert_allclose(affine[:3, :3], np.diag([8.0, 7.0, 6.0]))
        if path.parent.name == "labelsTr":
            assert set(np.unique(volume)) == set(description["labels"].values())


MANY = {"shape": (32, 32, 32), "spacing_mm": (6.0, 6.0, 6.0), "channels": 1, "many": (1, 20)}


def test_many_lesions_are_as_many_and_as_large_as_asked_some_beside_another() -> None:
    """Counts from the whole range, diameters of 3 to 30 mm; those that touch nothing are pieces of their own."""
    counts, diameters, beside = [], [], 0
    for case in range(14):
        liver = body(np.random.default_rng([3, case]), MANY["shape"])[1] == LIVER
        each, ring = many_lesions(np.random.default_rng(case), liver, MANY["spacing_mm"], MANY["many"])
        assert set(np.unique(each)) == set(range(each.max() + 1))
        assert not (each > 0)[~ndimage.binary_erosion(liver)].any()
        assert ((ring >= 0) & (ring <= 1)).all()
        counts.append(int(each.max()))
        sizes = np.bincount(each.ravel())[1:]
        diameters += list((6 / np.pi * sizes * np.prod(MANY["spacing_mm"])) ** (1 / 3))
        pieces = ndimage.label(each > 0, np.ones((3, 3, 3)))[1]
        beside += counts[-1] - pieces
        assert pieces <= counts[-1]
    assert min(counts) < 5
    assert 15 < max(counts) <= 20
    assert 1 < beside < sum(counts) / 3
    voxel = (6 / np.pi * np.prod(MANY["spacing_mm"])) ** (1 / 3)  # no lesion is smaller than one
    assert voxel <= min(diameters) + 1e-9
    assert 20 < max(diameters) <= 31
    assert np.mean(np.array(diameters) < 10) > 0.3


def test_many_lesions_are_the_same_again_and_show_in_the_scan(tmp_path: Path) -> None:
    first, again = phantom(3, 1, **MANY), phantom(3, 1, **MANY)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    image, labels = first
    assert image[0][labels == LIVER].mean() - image[0][labels == LESION].mean() > 40
    few = phantom(3, 1, **{**MANY, "many": (2, 2)})[1]
    assert ndimage.label(few == LESION, np.ones((3, 3, 3)))[1] in (1, 2)
    write_cohort(tmp_path / "out", 2, 3, **MANY)
    np.testing.assert_array_equal(voxels(tmp_path / "out")["labelsTr/phantom_001.nii.gz"], labels)


def test_whatever_counts_lesions_counts_those_that_touch_as_one() -> None:
    """Against groups of drawn lesions that are neighbours, found without any labelling of voxels."""
    for case in range(5):
        each, _ = many_lesions(np.random.default_rng(case), np.ones((26, 26, 26), bool), (3.0, 3.0, 3.0), (3, 20))
        numbers = range(1, each.max() + 1)
        near = [np.unique(each[ndimage.binary_dilation(each == n, np.ones((3, 3, 3)))]) for n in numbers]
        touching = np.array([[m in beside for m in numbers] for beside in near])
        groups = connected_components(touching)[0]
        mask = each > 0
        made = LabelMap("many", np.where(mask, 3, 0).astype(np.int16), np.diag([3.0, 3.0, 3.0, 1.0]), ("p",))
        scores = lesion_scores(mask, mask, (3.0, 3.0, 3.0))
        counts = components(mask)[1], shape_of(mask, made.affine).pieces, made.pieces([3]), scores.lesions, scores.found
        assert counts == (groups,) * 5
        assert Wanted(lesions=(groups, groups)).refusal(made, [3]) == ""
        assert Wanted(lesions=(groups + 1, 99)).refusal(made, [3]) != ""


def test_the_command_draws_many_lesions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(lesions: str) -> int:
        with pytest.raises(SystemExit) as end:
            main(["phantom", "--out", str(tmp_path / "out"), "--cases", "1", "--size", "32", "--lesions", lesions])
        return int(end.value.code or 0)

    for wrong, words in (
        ("3", "LOW:HIGH"),
        ("1.5:3", "whole numbers"),
        ("nan:3", "nan:3"),
        ("0:3", "0:3"),
    ):
        assert command(wrong) != 0
        assert words in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert not (tmp_path / "out").exists()
    assert command("9:9") == 0
    (labels,) = (array for name, array in voxels(tmp_path / "out").items() if name.startswith("labelsTr"))
    assert 3 <= components(labels == LESION)[1] <= 9


def test_a_liver_without_room_for_so_many_is_refused() -> None:
    with pytest.raises(DataError, match=r"lesion \d+ of 50 finds no room in a liver of \d+ voxels: ask for fewer"):
        phantom(0, 0, (24, 24, 24), (4.0, 4.0, 4.0), 1, (50, 50))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cases": 0}, "at least 1"),
        ({"seed": -1}, "negative"),
        ({"shape": (48, 48, 23)}, "at least 24"),
        ({"shape": (48, 48)}, "three voxel counts"),
        ({"spacing_mm": (4.0, 4.0, 0.0)}, "spacing_mm"),
        ({"spacing_mm": (4.0, 4.0, float("nan"))}, "spacing_mm"),
        ({"channels": 3}, "3 channels"),
        ({"many": (0, 3)}, "0:3 lesions per patient: give the fewest and the most, from 1 to 50"),
        ({"many": (4, 3)}, "4:3 lesions"),
        ({"many": (4, 51)}, "4:51 lesions"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path: Path, change: dict, message: str) -> None:
    arguments = {"cases": 1, "seed": 0, **change}
    with pytest.raises(DataError, match=message):
        write_cohort(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_other_data_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    theirs = tmp_path / "imagesTr" / "liver_001_0000.nii.gz"
    theirs.write_bytes(b"a scan")
    with pytest.raises(DataError, match="imagesTr, which are not of this command"):
        write_cohort(tmp_path, 1, 0)
    assert theirs.read_bytes() == b"a scan"
