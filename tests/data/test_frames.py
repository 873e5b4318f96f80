"""The grid lies where it should on scans of any orientation, and resampling through it loses nothing it need not."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.processing import resample_from_to
from scipy.spatial.transform import Rotation

from latentsynth.data.frames import Frame, lay, resample, resample_labels
from latentsynth.errors import DataError
from latentsynth.types import Crop, Framing, Grid, Window

SHAPE = (22, 27, 19)
FRAMING = Framing()


def rotation(*degrees: float) -> np.ndarray:
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


def affine_of(linear: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = linear * spacing
    affine[:3, 3] = (-31.7, 12.3, 105.9)
    return affine


PERMUTED = np.array([[0, 0, -1.0], [-1, 0, 0], [0, 1, 0]])  # file axes run posterior, superior, left
SCANS = {
    "plain": affine_of(np.eye(3), (1.0, 1.0, 1.0)),
    "anisotropic": affine_of(np.eye(3), (0.8, 1.1, 3.0)),
    "LPS": affine_of(np.diag([-1.0, -1.0, 1.0]), (1.2, 1.2, 2.0)),
    "permuted": affine_of(PERMUTED, (0.9, 1.3, 2.2)),
    "oblique": affine_of(rotation(17, -11, 23), (1.0, 1.2, 2.5)),
    "oblique LPS": affine_of(rotation(-9, 14, 8) @ np.diag([-1.0, -1.0, 1.0]), (1.5, 0.9, 1.1)),
    "oblique permuted": affine_of(rotation(12, 20, -15) @ PERMUTED, (0.7, 1.6, 2.0)),
}
every_scan = pytest.mark.parametrize("affine", SCANS.values(), ids=SCANS.keys())


def grid(shape: tuple[int, int, int] = (16, 20, 12), spacing: tuple[float, ...] = (1.9, 1.4, 3.1)) -> Grid:
    return Grid(shape, (spacing[0], spacing[1], spacing[2]), (Window(),))


def laid(grid: Grid, affine: np.ndarray, framing: Framing = FRAMING, lesion: Any = None) -> tuple[Frame, float]:
    return lay(grid, framing, affine, SHAPE, lesion, "case 7")


def world(affine: np.ndarray, index: np.ndarray) -> np.ndarray:
    return index @ affine[:3, :3].T + affine[:3, 3]


def indices(shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(float)


def in_source(frame: Frame, affine: np.ndarray) -> np.ndarray:
    """Where every frame voxel lies in the scan, in voxels of the scan."""
    return world(np.linalg.inv(affine), world(frame.affine, indices(frame.shape)))


def inside(index: np.ndarray, margin: float = 1e-3, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return ((index >= margin) & (index <= np.array(shape) - 1 - margin)).all(axis=-1)


def centre(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return world(affine, (np.array(shape) - 1) / 2)


def own_spacing(affine: np.ndarray) -> tuple[float, ...]:
    """Spacing of a scan along the axes of its frame, found without the library: its nearest RAS+ version."""
    image = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), affine))
    return tuple(np.linalg.norm(image.affine[:3, :3], axis=0))


def box_lesion(low: tuple[int, ...], high: tuple[int, ...]) -> np.ndarray:
    lesion = np.zeros(SHAPE, bool)
    lesion[low] = lesion[high] = True
    return lesion


@every_scan
def test_axes_are_the_nearest_ras_axes_and_spacing_is_the_grids(affine: np.ndarray) -> None:
    frame, zoom = laid(grid(), affine)
    spacing = np.linalg.norm(frame.affine[:3, :3], axis=0)
    axes = frame.affine[:3, :3] / spacing
    assert zoom == 1
    np.testing.assert_allclose(spacing, grid().spacing_mm)
    assert (np.abs(axes).argmax(axis=0) == range(3)).all()
    assert (np.diag(axes) > 0).all()
    scan_axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(np.sort(np.abs(scan_axes.T @ axes).max(axis=0)), 1)  # the scan's own, up to a sign
    empty, _ = laid(grid(), affine, Framing(crop="lesion"), np.zeros(SHAPE, bool))  # no lesion is as no mask
    np.testing.assert_array_equal(empty.affine, frame.affine)


@every_scan
def test_the_grid_is_centred_on_the_scan_or_on_the_bounding_box_of_the_lesion(affine: np.ndarray) -> None:
    whole, _ = laid(grid(), affine)
    np.testing.assert_allclose(centre(whole.affine, whole.shape), centre(affine, SHAPE), atol=1e-9)
    lesion, _ = laid(grid(), affine, Framing(crop="lesion"), box_lesion((3, 14, 9), (6, 21, 12)))
    np.testing.assert_allclose(
        centre(lesion.affine, lesion.shape), world(affine, np.array([4.5, 17.5, 10.5])), atol=1e-9
    )


@every_scan
@pytest.mark.parametrize("shape", [(9, 8, 7), (30, 31, 32)], ids=["smaller", "larger"])
def test_equal_spacing_is_lossless(affine: np.ndarray, shape: tuple[int, int, int]) -> None:
    voxels = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    frame, _ = laid(grid(shape, own_spacing(affine)), affine)
    index = in_source(frame, affine)
    np.testing.assert_allclose(index, np.rint(index), atol=1e-6)
    off_centre = centre(frame.affine, frame.shape) - centre(affine, SHAPE)
    assert np.linalg.norm(off_centre) < 0.51 * np.linalg.norm(own_spacing(affine))
    index = np.rint(index).astype(int)
    there = inside(index, 0)  # the outermost voxels of the scan included
    expected = np.full(shape, -7, np.float32)
    expected[there] = voxels[tuple(index[there].T)]
    np.testing.assert_allclose(resample(voxels, affine, frame, fill=-7), expected, atol=1e-4)


@every_scan
def test_linear_function_of_world_coordinates_is_reproduced(affine: np.ndarray) -> None:
    def function(points: np.ndarray) -> np.ndarray:
        return points @ np.array([0.7, -1.3, 0.4]) + 5

    voxels = function(world(affine, indices(SHAPE)))
    for spacing, margin in ((0.65, 1e-3), (2.9, 5)):  # finer: only interpolated; coarser: smoothed first, not at edges
        frame, _ = laid(grid((14, 14, 14) if spacing > 1 else (25, 25, 25), (spacing,) * 3), affine)
        frame = frame.moved(np.array([4.0, -7, 9]), 1.0, np.array([0.3, 0.2, -0.4]), np.ones(3))
        where = inside(in_source(frame, affine), margin)
        assert where.sum() > 50
        got = resample(voxels, affine, frame, fill=0)
        np.testing.assert_allclose(got[where], function(world(frame.affine, indices(frame.shape)))[where], atol=2e-3)


@every_scan
def test_blob_survives_the_round_trip_to_the_grid_and_back(affine: np.ndarray) -> None:
    distance = np.linalg.norm(world(affine, indices(SHAPE)) - centre(affine, SHAPE), axis=-1)
    blob = np.exp(-0.5 * (distance / 6) ** 2)
    frame, _ = laid(grid((40, 40, 40), (1.6, 1.6, 1.6)), affine)
    there = resample(blob, affine, frame, fill=0)
    back = resample(there, frame.affine, Frame(affine, SHAPE), fill=0)
    where = inside(indices(SHAPE), 2)  # at the edges of the scan the blob is not over yet
    assert np.abs(back - blob)[where].max() < 0.08  # of 1
    np.testing.assert_allclose((back * blob)[where].sum() / (blob * blob)[where].sum(), 1, atol=0.05)


@pytest.mark.parametrize(("crop", "needed"), [("whole", "20 x 23 x 13 mm"), ("lesion", "16 x 8 x 6 mm")])
def test_lesion_larger_than_the_grid_is_refused_with_both_sizes(crop: Crop, needed: str) -> None:
    lesion = box_lesion((1, 2, 3), (16, 9, 8))  # whole: twice from the scan's centre to the farther side
    with pytest.raises(DataError, match=rf"case 7: .* needs {needed} .* covers 8 x 28 x 37 mm: .*framing\.fit=scale"):
        laid(grid((8, 20, 12), (1.0, 1.4, 3.1)), SCANS["plain"], Framing(crop=crop), lesion)


@every_scan
@pytest.mark.parametrize("crop", ["whole", "lesion"])
def test_scale_zooms_out_just_enough(affine: np.ndarray, crop: Crop) -> None:
    low, high = np.array([2, 3, 4]), np.array([17, 20, 16])
    lesion = box_lesion(tuple(low), tuple(high))
    frame, zoom = laid(grid((8, 7, 9), (1.1, 1.2, 1.3)), affine, Framing(crop, "scale"), lesion)
    np.testing.assert_allclose(np.linalg.norm(frame.affine[:3, :3], axis=0), zoom * np.array([1.1, 1.2, 1.3]))
    corners = world(affine, np.where(indices((2, 2, 2)).reshape(-1, 3) == 1, high + 0.5, low - 0.5))

    def outside(frame: Frame) -> float:
        index = world(np.linalg.inv(frame.affine), corners)
        return float(np.maximum(-0.5 - index, index - (np.array(frame.shape) - 0.5)).max())

    assert zoom > 1
    assert outside(frame) < 1e-6
    assert outside(frame.moved(np.zeros(3), 0.98, np.zeros(3), np.ones(3))) > 1e-3


def test_a_lesion_that_fits_exactly_is_not_zoomed() -> None:
    lesion = box_lesion((3, 4, 5), (6, 8, 10))
    assert laid(grid((4, 5, 6), (1.0, 1.0, 1.0)), SCANS["plain"], Framing("lesion"), lesion)[1] == 1


@every_scan
def test_moving_a_frame(affine: np.ndarray) -> None:
    frame, _ = laid(grid(), affine)
    none, one, ones = np.zeros(3), np.array([1.5, -2.5, 4.0]), np.ones(3)
    middle = centre(frame.affine, frame.shape)
    np.testing.assert_allclose(frame.moved(none, 1.0, none, ones).affine, frame.affine, atol=1e-9)
    turned = frame.moved(np.array([20.0, -30, 10]), 1.0, none, ones)
    np.testing.assert_allclose(centre(turned.affine, turned.shape), middle)
    np.testing.assert_allclose(np.linalg.norm(turned.affine[:3, :3], axis=0), grid().spacing_mm)
    between = (frame.affine[:3, :3] / grid().spacing_mm).T @ (turned.affine[:3, :3] / grid().spacing_mm)
    about = Rotation.from_euler("XYZ", [20, 30, 10], degrees=True).as_matrix()  # the second axis turns the other way
    np.testing.assert_allclose(between, about, atol=1e-12)
    wider = frame.moved(none, 1.1, none, ones)
    np.testing.assert_allclose(wider.affine[:3, :3], 1.1 * frame.affine[:3, :3])
    np.testing.assert_allclose(centre(wider.affine, wider.shape), middle)
    shifted = frame.moved(none, 1.0, one, ones)
    np.testing.assert_allclose(world(np.linalg.inv(frame.affine), centre(shifted.affine, shifted.shape)),
                               (np.array(frame.shape) - 1) / 2 + one / grid().spacing_mm)  # fmt: skip


def test_mirrored_and_turned_frames_see_the_flipped_and_turned_scan() -> None:
    voxels = np.random.default_rng(2).normal(size=(7, 7, 7))
    frame, zero, ones = Frame(SCANS["plain"], (7, 7, 7)), np.zeros(3), np.ones(3)
    seen = resample(voxels, SCANS["plain"], frame.moved(zero, 1.0, zero, np.array([-1.0, 1, 1])), 0)
    np.testing.assert_allclose(seen[1:-1, 1:-1, 1:-1], voxels[::-1][1:-1, 1:-1, 1:-1], atol=1e-5)
    for axis in range(3):
        turn = frame.moved(90.0 * np.eye(3)[axis], 1.0, zero, ones)
        seen = resample(voxels, SCANS["plain"], turn, 0)[1:-1, 1:-1, 1:-1]
        plane = [n for n in range(3) if n != axis]
        quarter, back = (np.rot90(voxels, k, plane)[1:-1, 1:-1, 1:-1] for k in (1, -1))  # type: ignore[arg-type]
        assert min(np.abs(seen - quarter).max(), np.abs(seen - back).max()) < 1e-4


@every_scan
def test_agrees_with_nibabel_where_nothing_is_smoothed(affine: np.ndarray) -> None:
    voxels = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)
    frame, _ = laid(grid((24, 24, 24), (0.6, 0.7, 0.65)), affine)
    frame = frame.moved(np.array([5.0, 3, -8]), 1.0, np.array([1.0, 2, 3]), np.ones(3))
    reference = resample_from_to(nib.Nifti1Image(voxels, affine), (frame.shape, frame.affine), order=1, cval=9)
    where = inside(in_source(frame, affine)) | ~inside(in_source(frame, affine), -1)
    np.testing.assert_allclose(resample(voxels, affine, frame, fill=9)[where], reference.get_fdata()[where], atol=1e-4)


def test_coarser_frames_average_noise_and_keep_its_mean() -> None:
    noise = np.random.default_rng(4).normal(loc=3, size=(40, 40, 40))
    frame = Frame(np.diag([3.0, 3, 3, 1]) + np.pad([[1.0]] * 3, ((0, 1), (3, 0))), (13, 13, 13))
    coarse = resample(noise, np.eye(4), frame, fill=0)
    assert coarse.mean() == pytest.approx(3, abs=0.03)
    assert coarse.std() < 0.35  # picking voxels would give 1, averaging 27 of them 0.19


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2), (1, 2, 0)])
def test_how_the_file_stores_its_axes_does_not_matter(order: tuple[int, int, int]) -> None:
    """Smoothing included, in a frame that is coarser along one axis alone."""
    voxels, affine = np.random.default_rng(5).normal(size=SHAPE), SCANS["oblique"]
    frame, _ = laid(grid((9, 9, 9), (1.0, 1.2, 9.0)), affine)
    stored = np.hstack([affine[:, list(order)], affine[:, 3:]])
    expected = resample(voxels, affine, frame, fill=0)
    np.testing.assert_allclose(resample(voxels.transpose(order), stored, frame, fill=0), expected, atol=1e-4)
    assert expected[1:-1, 1:-1, 3:6].std() > 0.3  # not smoothed along the others


def test_extend_reaches_the_true_edge_of_the_field_of_view() -> None:
    coarse = np.diag([4.0, 4, 4, 1])
    frame = Frame(np.array([[1, 0, 0, -2.5], [0, 1, 0, -2.5], [0, 0, 1, -2.5], [0, 0, 0, 1.0]]), (14, 14, 14))
    expected = np.pad(np.ones((12, 12, 12)), 1)  # three voxels of 4 mm; one fine voxel outside on either side
    np.testing.assert_array_equal(resample(np.ones((3, 3, 3)), coarse, frame, 0, extend=True) > 0.5, expected)
    assert (resample(np.ones((3, 3, 3)), coarse, frame, 0) > 0.5).sum() == 8**3


def ball(radius: float, middle: float = 14.3) -> np.ndarray:
    return np.linalg.norm(indices((30, 30, 30)) - middle, axis=-1) <= radius


@pytest.mark.parametrize("spacing", [1.0, 1.5, 2.0, 2.5, 3.0])
def test_labels_keep_their_volume(spacing: float) -> None:
    count = int(30 / spacing)
    frame = Frame(np.diag([spacing] * 3 + [1.0]), (count, count, count))
    kept = []
    for middle in (13.7, 14.0, 14.3, 14.6):  # where a coarse voxel's centre falls is luck, so a few of them
        got = resample_labels(ball(12, middle) * np.int16(3), np.eye(4), frame)
        assert set(np.unique(got)) == {0, 3}
        kept.append((got == 3).sum() * spacing**3 / (4 / 3 * np.pi * 12**3))
    assert np.mean(kept) == pytest.approx(1, abs=0.05)


def test_labels_never_mix() -> None:
    labels = np.zeros((30, 30, 30), np.int16)
    labels[ball(12)], labels[ball(8)], labels[ball(4)] = 2, 9, 4
    frame = Frame(np.eye(4), (14, 14, 14)).moved(np.array([10.0, 20, 30]), 2.1, np.array([8.0] * 3), np.ones(3))
    got = resample_labels(labels, np.eye(4), frame)
    assert set(np.unique(got)) == {0, 2, 4, 9}
    centres = np.rint(in_source(frame, np.eye(4))).astype(int)
    there = inside(centres, 0, labels.shape)
    assert (got[there] == labels[tuple(centres[there].T)]).mean() > 0.93


def test_no_background_appears_where_three_labels_meet() -> None:
    angle = np.arctan2(*(indices((30, 30, 30))[..., :2] - 14.5).transpose(3, 0, 1, 2))
    labels = (1 + np.digitize(angle, [-1, 1])).astype(np.int16)
    frame = Frame(np.diag([2.9, 2.9, 2.9, 1]), (10, 10, 10))
    assert (resample_labels(labels, np.eye(4), frame) > 0).all()


@pytest.mark.parametrize("surrounding", [0, 1], ids=["in background", "inside another label"])
def test_one_voxel_lesion_survives(surrounding: int) -> None:
    labels = np.full((30, 30, 30), surrounding, np.int16)
    labels[13, 17, 8] = 2
    frame = Frame(np.diag([3.7, 3.7, 3.7, 1]), (8, 8, 8))
    got = resample_labels(labels, np.eye(4), frame)
    where = np.argwhere(got == 2)
    assert len(where) == 1
    assert np.abs(where[0] * 3.7 - (13, 17, 8)).max() <= 3.7 / 2 + 1e-6


def test_two_neighbouring_one_voxel_lesions_both_survive() -> None:
    labels = np.zeros((12, 12, 12), np.int16)
    labels[6, 6, 6], labels[6, 6, 7] = 1, 2
    got = resample_labels(labels, np.eye(4), Frame(np.diag([3.0, 3, 3, 1]), (4, 4, 4)))
    assert set(np.unique(got)) == {0, 1, 2}


def test_cubic_splines_keep_their_points_and_are_sharper_between() -> None:
    """Through the source voxels exactly; closer than linear interpolation to a wave that the grid can hold."""
    n = 32
    wave = np.cos(2 * np.pi * np.arange(n) / 6)[:, None, None] * np.ones((n, 4, 4))
    source = np.eye(4)
    at = Frame(source, (n, 4, 4))
    np.testing.assert_allclose(resample(wave, source, at, 0.0, order=3), wave, atol=1e-4)
    finer = Frame(np.diag([0.5, 1.0, 1.0, 1.0]), (2 * n - 1, 4, 4))
    truth = np.cos(2 * np.pi * np.arange(2 * n - 1) / 12)
    middle = slice(12, -12)  # the spline must bend at the border, where the wave would go on
    errors = [
        np.abs(resample(wave, source, finer, 0.0, order=order)[middle, 2, 2] - truth[middle]).max() for order in (1, 3)
    ]
    assert errors[1] < errors[0] / 4
