"""What a NIfTI header leaves open: forms that contradict each other, no form, no spacing, a spacing that nobody measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError

Doubt = Literal["contradiction", "no orientation", "no spacing", "placeholder spacing", "other units"]

CURES: dict[Doubt, str] = {
    "contradiction": "correct the header, or give the true spacing in a column spacing of a table",
    "no orientation": "nothing says which side is left: correct the header if that matters",
    "no spacing": "correct the header, or give the true spacing in a column spacing of a table",
    "placeholder spacing": "if nobody measured it, give the true spacing in a column spacing of a table",
    "other units": "the numbers are taken for mm: correct the header if they are none",
}
_RTOL = 0.01  # two spacings agree to this part
_FLATTER = 2  # 1 x 1 x 1 mm is doubted where an axis has so many times fewer voxels than the next longer one


@dataclass(frozen=True)
class Remark:
    """One thing that a header leaves open.

    Attributes:
        doubt: What kind.
        file: Path.
        found: What the header says, all of its forms.
    """

    doubt: Doubt
    file: Path
    found: str


def header_remarks(path: Path) -> list[Remark]:
    """What the header of a readable NIfTI file leaves open; the voxels are not read."""
    image: Any = nib.load(path)
    with ImageOpener(path) as stream:  # nibabel mends what it loads: a spacing of 0 becomes 1
        raw = image.header_class.from_fileobj(stream, check=False)
    pixdim = np.array(raw["pixdim"][1:4], dtype=np.float64)
    sform, qform = (matrix for matrix in (image.header.get_sform(coded=True)[0], _qform(image.header)))
    forms = _forms(raw, sform, qform, pixdim)
    found: list[tuple[Doubt, str]] = []
    if not (pixdim > 0).all() and sform is None:
        found.append(("no spacing", forms))
    elif not _agree(sform, qform, pixdim):
        found.append(("contradiction", forms))
    if sform is None and qform is None:
        found.append(("no orientation", forms))
    shape = sorted(int(n) for n in image.shape[:3])
    if np.allclose(voxel_sizes(image.affine), 1) and shape[0] * _FLATTER <= shape[1]:
        found.append(("placeholder spacing", f"{forms}; {' x '.join(map(str, image.shape[:3]))} voxels"))
    unit = raw.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        found.append(("other units", f"unit {unit}; {forms}"))
    return [Remark(doubt, path, text) for doubt, text in found]


def _qform(header: Any) -> np.ndarray | None:
    try:
        matrix: np.ndarray | None = header.get_qform(coded=True)[0]
    except HeaderDataError:  # a quaternion that is none
        return None
    return matrix


def _agree(sform: np.ndarray | None, qform: np.ndarray | None, pixdim: np.ndarray) -> bool:
    """Whether all that is stated has one spacing and one orientation; places may differ, as forms of two spaces do."""
    stated = [voxel_sizes(form) for form in (sform, qform) if form is not None] + [np.abs(pixdim)]
    same = all(np.allclose(edges, stated[0], rtol=_RTOL, atol=0) for edges in stated)
    if sform is None or qform is None:
        return same
    ways = [nib.orientations.io_orientation(form) for form in (sform, qform)]
    return same and np.array_equal(*ways)


def _forms(raw: Any, sform: np.ndarray | None, qform: np.ndarray | None, pixdim: np.ndarray) -> str:
    used = "sform" if sform is not None else "qform" if qform is not None else "pixdim"
    parts = [("sform", sform, int(raw["sform_code"])), ("qform", qform, int(raw["qform_code"]))]
    texts = [
        f"no {name}"
        if form is None
        else f"{name} {_mm(voxel_sizes(form))}, axes {''.join(nib.orientations.aff2axcodes(form))} (code {code})"
        for name, form, code in parts
    ]
    return f"{'; '.join(texts)}; pixdim {_mm(pixdim)}; {used} is used"


def _mm(edges: Iterable[float]) -> str:
    return " x ".join(f"{edge:.4g}" for edge in edges) + " mm"
