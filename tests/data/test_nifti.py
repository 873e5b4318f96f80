"""Volumes come back as they went out; files that are no volume are refused in one line."""

from __future__ import annotations

import gzip
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from latentsynth.data import nifti
from latentsynth.errors import AxesError, DataError, VolumeError

SHAPE = (4, 5, 6)


def oblique() -> np.ndarray:
    """Turned about two axes, with three different edges."""
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.7, 0.9, 2.5])
    affine[:3, 3] = (-12.5, 40.25, 7.125)
    return affine


def sheared() -> np.ndarray:
    affine = np.eye(4)
    affine[0, 2] = 0.2  # a tilted gantry: a qform cannot hold it
    return affine


AFFINES = {
    "oblique": oblique(),
    "LPS": np.array([[-1.0, 0, 0, 90], [0, -1.0, 0, 120], [0, 0, 1.0, -70], [0, 0, 0, 1]]),
    "anisotropic": np.diag([0.5, 0.5, 6.0, 1.0]),
    "permuted": np.array([[0, 0, 2.0, 1], [1.5, 0, 0, 2], [0, -1.0, 0, 3], [0, 0, 0, 1]]),
    "sheared": sheared(),
}


def save(path: Path, voxels: np.ndarray) -> Path:
    """Writes without latentsynth's help."""
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("suffix", nifti.SUFFIXES)
def test_values_and_affine_come_back(tmp_path: Path, name: str, suffix: str) -> None:
    voxels = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    nifti.write(tmp_path / f"a{suffix}", voxels, AFFINES[name])
    back, affine = nifti.read(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(back, voxels)
    np.testing.assert_allclose(affine, AFFINES[name], atol=1e-5)
    assert affine.dtype == np.float64
    assert contents(tmp_path) == [f"a{suffix}"]


def test_header_says_millimetres_and_scanner_space(tmp_path: Path) -> None:
    nifti.write(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.int16), AFFINES["oblique"])
    header = nib.load(tmp_path / "a.nii.gz").header
    assert header.get_xyzt_units()[0] == "mm"
    assert header.get_sform(coded=True)[1] == 1
    np.testing.assert_allclose(header.get_zooms(), (0.7, 0.9, 2.5), rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "stored"),
    [(bool, np.uint8), (np.int64, np.int32), (np.uint64, np.int32), (np.int32, np.int32), (np.float64, np.float64)],
)
def test_types_that_few_programs_read_are_stored_as_others(tmp_path: Path, given: type, stored: type) -> None:
    voxels = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 2).astype(given)
    nifti.write(tmp_path / "a.nii.gz", voxels, np.eye(4))
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == stored
    np.testing.assert_array_equal(nifti.read(tmp_path / "a.nii.gz")[0], voxels)


@pytest.mark.parametrize("value", [np.int64(2**31), np.int64(-(2**31) - 1), np.uint64(2**63)])
def test_whole_numbers_beyond_32_bits_are_refused(tmp_path: Path, value: np.generic) -> None:
    with pytest.raises(DataError, match=str(value)):
        nifti.write(tmp_path / "a.nii.gz", np.full(SHAPE, value), np.eye(4))
    assert not contents(tmp_path)


def test_truncated_gzip(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(16, 16, 16)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"a\.nii\.gz is not a readable NIfTI file") as caught:
        nifti.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "words"), [((4, 5), "2 axes"), ((4, 5, 6, 2), "4 axes"), ((4, 5, 6, 1, 3), "5 axes")]
)
def test_what_is_not_3d_is_refused(tmp_path: Path, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(DataError, match=words):
        nifti.read(save(tmp_path / "a.nii.gz", np.zeros(shape, np.float32)))


def damaged(path: Path, change: Callable[[bytearray], None]) -> Path:
    """A gzipped volume after something happened to its bytes."""
    content = bytearray(save(path, np.random.default_rng(0).normal(size=(16, 16, 16))).read_bytes())
    change(content)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.__delitem__(slice(-8, None)),  # checksum and length
        lambda content: content.__delitem__(slice(-1, None)),
        lambda content: content.__setitem__(-8, content[-8] ^ 1),  # checksum
        lambda content: content.__setitem__(-1, content[-1] ^ 1),  # length
        lambda content: content.extend(b"something else"),
    ],
    ids=["no trailer", "torn trailer", "wrong checksum", "wrong length", "more behind"],
)
def test_a_gzip_is_read_to_its_checksum(tmp_path: Path, change: Callable[[bytearray], None]) -> None:
    with pytest.raises(VolumeError, match=r"a\.nii\.gz is not a readable NIfTI file .*: copy or convert it again"):
        nifti.read(damaged(tmp_path / "a.nii.gz", change))


def test_a_scaled_gzip_is_read_in_scanner_units(tmp_path: Path) -> None:
    for order in "<>":
        header = nib.Nifti1Header(endianness=order)
        header.set_data_dtype(np.int16)
        image = nib.Nifti1Image(np.arange(np.prod(SHAPE)).reshape(SHAPE) / 4 - 7.0, oblique(), header)
        nib.save(image, tmp_path / f"{order}.nii.gz")
        nib.save(image, tmp_path / f"{order}.nii")
        packed, plain = (nifti.read(tmp_path / f"{order}{suffix}")[0] for suffix in nifti.SUFFIXES)
        np.testing.assert_array_equal(packed, plain)
        np.testing.assert_allclose(packed, image.get_fdata(), atol=0.01)


def header_of(shape: tuple[int, ...], dtype: type) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return bytes(header.binaryblock) + bytes(4)


def test_a_small_file_cannot_fill_the_memory(tmp_path: Path) -> None:
    """Neither by what its header says nor by what follows the voxels."""
    (tmp_path / "huge.nii.gz").write_bytes(gzip.compress(header_of((2048, 2048, 2048), np.int16) + bytes(1000)))
    words = r"huge\.nii\.gz has 8,589,934,592 voxels \(2048 x 2048 x 2048\), more than the limit.*: crop it"
    for call in (nifti.read, nifti.geometry):
        with pytest.raises(VolumeError, match=words):
            call(tmp_path / "huge.nii.gz")
    content = header_of((4, 4, 4), np.int16) + bytes(128)
    (tmp_path / "padded.nii.gz").write_bytes(gzip.compress(content + bytes(1 << 10)))
    assert nifti.read(tmp_path / "padded.nii.gz")[0].shape == (4, 4, 4)
    (tmp_path / "long.nii.gz").write_bytes(gzip.compress(content + bytes(1 << 28), 1))
    with pytest.raises(VolumeError, match="much more than the voxels"):
        nifti.read(tmp_path / "long.nii.gz")


@pytest.mark.parametrize(
    ("voxels", "affine", "words"),
    [
        (np.full(SHAPE, 1j, np.complex64), np.eye(4), "type complex64"),
        (np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4), "type colours"),
        (
            np.where(np.arange(120).reshape(SHAPE) < 3, np.nan, 0),
            np.eye(4),
            "NaN or infinity in 3 voxels: replace them",
        ),
        (
            np.where(np.arange(120).reshape(SHAPE) < 3, np.inf, 0),
            np.eye(4),
            "NaN or infinity in 3 voxels: replace them",
        ),
        (np.where(np.arange(120).reshape(SHAPE) < 3, -np.inf, 0), np.eye(4), "NaN or infinity in 3 voxels"),
        (np.where(np.arange(120).reshape(SHAPE) < 3, -1e39, 0), np.eye(4), "NaN or infinity in 3 voxels"),
        (np.zeros(SHAPE), np.diag([1.0, 0, 1, 1]), "an affine that has no inverse: correct the header"),
        (np.zeros(SHAPE), np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "no inverse"),
        (np.zeros(SHAPE), np.diag([1.0, np.nan, 1, 1]), "no inverse"),
        (np.zeros(SHAPE), np.diag([1.0, np.inf, 1, 1]), "no inverse"),
    ],
)
@pytest.mark.parametrize("suffix", nifti.SUFFIXES)
def test_what_is_no_scan_is_refused_by_name(
    tmp_path: Path, voxels: np.ndarray, affine: np.ndarray, words: str, suffix: str
) -> None:
    image = nib.Nifti1Image(voxels, np.eye(4))
    image.header["sform_code"] = 1
    for row, name in zip(affine, ("srow_x", "srow_y", "srow_z"), strict=False):
        image.header[name] = row
    image.header["magic"], image.header["vox_offset"] = b"n+1", 352
    content = bytes(image.header.binaryblock) + bytes(4) + voxels.tobytes(order="F")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(VolumeError, match=rf"a{suffix}.* {words}"):
            nifti.read(path)


@pytest.mark.parametrize("name", AFFINES)
def test_a_qform_says_the_same_as_the_sform_where_it_can(tmp_path: Path, name: str) -> None:
    nifti.write(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.int16), AFFINES[name].astype(np.float32))
    image = nib.load(tmp_path / "a.nii.gz")
    qform, code = image.get_qform(coded=True)
    np.testing.assert_allclose(image.get_sform(), AFFINES[name], atol=1e-5)
    if name == "sheared":
        assert code == 0
    else:
        assert code == 1
        np.testing.assert_allclose(qform, AFFINES[name], atol=1e-4)


def test_hidden_files_are_no_scans(tmp_path: Path) -> None:
    for name in ("b.nii", "a.nii.gz", "._a.nii.gz", ".b.nii", "a.json"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in nifti.files(tmp_path)] == ["a.nii.gz", "b.nii"]


def test_a_trailing_axis_of_one_is_dropped(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 9, (*SHAPE, 1)).astype(np.int16)
    back, _ = nifti.read(save(tmp_path / "a.nii.gz", voxels))
    np.testing.assert_array_equal(back, voxels[..., 0])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist: check the path"):
        nifti.read(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_labels_of_any_type_are_accepted(tmp_path: Path, dtype: type) -> None:
    voxels = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)
    labels, affine = nifti.read_labels(save(tmp_path / "a.nii.gz", voxels))
    assert labels.dtype == np.int16
    np.testing.assert_array_equal(labels, voxels)
    np.testing.assert_array_equal(affine, np.eye(4))


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (0.5, np.float32, "not whole numbers"),
        (np.nan, np.float32, "NaN or infinity"),
        (np.inf, np.float64, "NaN or infinity"),
        (40000, np.int32, "from 0 to 40000, and the limit is 0 to 32767"),
        (40000, np.float32, "from 0 to 40000, and the limit is 0 to 32767"),
        (-1, np.int16, "from -1 to 0"),
    ],
)
def test_what_is_no_label_map_is_refused(tmp_path: Path, value: complex, dtype: type, words: str) -> None:
    voxels = np.zeros(SHAPE, dtype)
    voxels[1, 2, 3] = value
    path = save(tmp_path / "a.nii.gz", voxels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a cast of NaN warns
        with pytest.raises(DataError, match=words):
            nifti.read_labels(path)


def test_unwritable_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "a.nii.gz", tmp_path / "file" / "deeper" / "a.nii.gz"):
        with pytest.raises(DataError, match="cannot create folder"):
            nifti.write(path, np.zeros(SHAPE, np.uint8), np.eye(4))
    assert contents(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_stem() -> None:
    assert [nifti.stem(name) for name in ("x/a.nii.gz", "a.nii", "a.b.nii.gz", "a.csv")] == ["a", "a", "a.b", "a"]


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 6, 1)])
def test_geometry_is_that_of_the_voxels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    affine = np.diag([-2.0, 1.5, 3.0, 1.0])
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), affine), tmp_path / "a.nii.gz")
    voxels, read = nifti.read(tmp_path / "a.nii.gz")
    found, header = nifti.geometry(tmp_path / "a.nii.gz")
    assert found == voxels.shape
    np.testing.assert_array_equal(header, read)


def test_geometry_refuses_what_reading_refuses(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3, 2), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes(b"nothing")
    for name, words in (("a", "expected 3"), ("b", "not a readable NIfTI"), ("c", "does not exist")):
        with pytest.raises(DataError, match=words):
            nifti.geometry(tmp_path / f"{name}.nii.gz")


def test_parts_of_an_error_are_fields(tmp_path: Path) -> None:
    """Whatever the file is called: a table of problems shows each part in a column of its own."""
    (tmp_path / "two axes: say.nii.gz").write_text("hello")
    with pytest.raises(VolumeError, match="is not a readable NIfTI file") as caught:
        nifti.read(tmp_path / "two axes: say.nii.gz")
    assert not isinstance(caught.value, AxesError)
    assert caught.value.found.startswith("is not a readable NIfTI file (")
    assert caught.value.cure == "copy or convert it again"
    nib.save(nib.Nifti1Image(np.zeros((4, 5), np.int16), np.eye(4)), tmp_path / "flat.nii.gz")
    with pytest.raises(AxesError) as flat:
        nifti.geometry(tmp_path / "flat.nii.gz")
    same = pickle.loads(pickle.dumps(flat.value))  # as workers hand it on
    assert (str(same), same.found, same.cure) == (str(flat.value), "has 2 axes (4, 5)", "split it into 3D volumes")
    assert str(same) == f"{tmp_path / 'flat.nii.gz'} has 2 axes (4, 5), expected 3: split it into 3D volumes"
