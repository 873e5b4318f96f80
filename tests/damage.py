"""Hostile inputs by kind: what is done to a good file, and what a command should do about it."""

from __future__ import annotations

import gzip
import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from safetensors.torch import load_file, save_file
from trial import Expected

REFUSED, EITHER = Expected.REFUSED, Expected.EITHER


@dataclass(frozen=True)
class Kind:
    """One kind of hostile input.

    Attributes:
        name: For people.
        damage: Spoils the file in place.
        expected: What a command should do.
        words: One of these must be said where it goes on and should say so.
    """

    name: str
    damage: Callable[[Path], None]
    expected: Expected = REFUSED
    words: tuple[str, ...] = ()


def _voxels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        image = nib.load(path)
        nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)

    return damage


def _one(value: float) -> Callable[[Path], None]:
    def change(voxels: np.ndarray) -> np.ndarray:
        voxels = voxels.astype(np.float32)
        voxels[2, 3, 4] = value
        return voxels

    return _voxels(change)


def _affine(change: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        raw = bytearray(gzip.decompress(path.read_bytes()))
        affine = np.array(struct.unpack("<12f", raw[280:328])).reshape(3, 4)
        change(affine)
        raw[280:328] = struct.pack("<12f", *affine.ravel())
        raw[252:256] = struct.pack("<2h", 0, 1)  # by the sform alone
        path.write_bytes(gzip.compress(bytes(raw), mtime=0))

    return damage


def _singular(affine: np.ndarray) -> None:
    affine[:, 1] = affine[:, 0]


def _nan_affine(affine: np.ndarray) -> None:
    affine[0, 3] = np.nan


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def _rgb(path: Path) -> None:
    image = nib.load(path)
    colours = np.zeros(image.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, image.affine), path)


def _wrong_checksum(raw: bytes) -> bytes:
    return raw[:-8] + struct.pack("<I", zlib.crc32(raw)) + raw[-4:]


def _bomb(path: Path) -> None:
    """A small file whose header promises 2048 x 2048 x 2048 voxels."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[40:56] = struct.pack("<8h", 3, 2048, 2048, 2048, 1, 1, 1, 1)
    path.write_bytes(gzip.compress(bytes(raw), mtime=0))


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside.txt").write_text("x")


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere.nii.gz")


VOLUMES = (
    Kind("one voxel is NaN", _one(np.nan)),
    Kind("one voxel is infinite", _one(np.inf)),
    Kind("complex voxels", _voxels(lambda v: v.astype(np.complex64))),
    Kind("RGB voxels", _rgb),
    Kind("singular affine", _affine(_singular)),
    Kind("NaN in the affine", _affine(_nan_affine)),
    Kind("two axes", _voxels(lambda v: v[0])),
    Kind("four axes", _voxels(lambda v: np.stack([v, v], -1))),
    Kind("empty file", _bytes(lambda raw: b"")),
    Kind("text", _bytes(lambda raw: b"not a scan\n" * 50)),
    Kind("cut in half", _bytes(lambda raw: raw[: len(raw) // 2])),
    Kind("gzip trailer cut off", _bytes(lambda raw: raw[:-6])),
    Kind("gzip checksum wrong", _bytes(_wrong_checksum)),
    Kind("header promises more than memory", _bomb),
    Kind("a folder of that name", _directory),
    Kind("a link to nowhere", _dangling),
)

MASKS = (
    Kind("fractions", _voxels(lambda v: v.astype(np.float32) + 0.5)),
    Kind("negative labels", _voxels(lambda v: v.astype(np.int16) - 1)),
    Kind("labels beyond 16 bits", _voxels(lambda v: v.astype(np.int32) * 40000)),
    Kind("unknown label", _voxels(lambda v: v.astype(np.int16) * 7)),
    Kind("nothing annotated", _voxels(np.zeros_like), EITHER),
    Kind("another shape", _voxels(lambda v: v[:-3]), EITHER),
)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in nested lists and dictionaries."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, inner in items for place in leaves(inner, (*path, key))]


def put(value: Any, place: tuple[Any, ...], new: Any) -> None:
    """Replaces the value at a place."""
    *way, last = place
    for key in way:
        value = value[key]
    value[last] = new


def _unknown_key(path: Path) -> None:
    text = path.read_text()
    path.write_text(
        f"no_such_key: 1\n{text}" if path.suffix == ".yaml" else json.dumps({"no_such_key": 1, **json.loads(text)})
    )


def _key_twice(path: Path) -> None:
    text = path.read_text()
    if path.suffix == ".yaml":
        path.write_text(f"run: elsewhere\n{text}")
        return
    key = next(iter(json.loads(text)))
    path.write_text(f'{{"{key}": "other", {text.lstrip().removeprefix("{")}')


TEXTS = (
    Kind("empty file", _bytes(lambda raw: b"")),
    Kind("null", _bytes(lambda raw: b"null")),
    Kind("a list", _bytes(lambda raw: b"[1, 2]")),
    Kind("a word", _bytes(lambda raw: b'"word"')),
    Kind("torn", _bytes(lambda raw: raw[: 2 * len(raw) // 3])),
    Kind("not UTF-8", _bytes(lambda raw: raw[:20] + b"\xff\xfe" + raw[20:])),
    Kind("deeply nested", _bytes(lambda raw: b"[" * 100_000)),
    Kind("a key twice", _key_twice),
    Kind("an unknown key", _unknown_key),
)


def _weights(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return damage


def _nan_weight(tensors: dict[str, Any]) -> None:
    name = max(tensors, key=lambda n: tensors[n].numel())
    tensors[name].view(-1)[0] = float("nan")


def _other_weight(tensors: dict[str, Any]) -> None:
    name = max(tensors, key=lambda n: tensors[n].numel())
    tensors[name].view(-1)[0] += 1.0


def _missing_weight(tensors: dict[str, Any]) -> None:
    tensors.pop(max(tensors))


WEIGHTS = (
    Kind("a weight is NaN", _weights(_nan_weight)),
    Kind("a weight is another", _weights(_other_weight)),
    Kind("a tensor is missing", _weights(_missing_weight)),
    Kind("empty file", _bytes(lambda raw: b"")),
    Kind("cut in half", _bytes(lambda raw: raw[: len(raw) // 2])),
    Kind("not there", os.unlink),
)
