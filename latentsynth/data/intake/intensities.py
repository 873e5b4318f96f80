"""Which intensity window suits a channel: decided from its name and from what its scans hold, with the reasons."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from latentsynth.data.intake.layouts import few
from latentsynth.data.windows import foreground
from latentsynth.errors import DataError

# Hounsfield units: air -1000, fat -100, water 0, soft tissue to 80, blood with contrast and spongy bone to 300.
_AIR, _BODY, _SOFT = (-1050.0, -950.0), -500.0, (-200.0, 300.0)
_OFFSET = 1024.0  # added by programs that store CT without sign
_MOSTLY = 0.5  # this share of a body's voxels is soft tissue
_SOME_AIR = 0.01  # a scan of an unnamed channel has at least this share of air if it is a CT
_LEAST_BODY = 0.05  # of the foreground, which may hold noise of air
_LEAST_RANGE = 80.0  # Hounsfield units between the ends of any CT that was not windowed before
_CUT = 0.05  # a window is widened if more than this share of the lesions' voxels lies at its ends
_WIDEST = 2.0  # times the usual range, at most
_PERCENTILES = (0.0, 0.1, 0.5, 99.5, 99.9, 100.0)
_USUAL = 2  # position of 0.5 among them
_SAMPLE = 4000  # voxels kept per scan

_CT = {"CT", "CTA", "CCTA", "CBCT", "NCCT", "CECT", "LDCT", "HRCT", "DECT", "HU"}
_PET = {"PET", "SUV", "FDG", "PSMA"}
_MR = re.compile(r"(MR|MRI|T[12]\w*|FLAIR|DWI|ADC|SWI|PDW?|DCE|DSC|TOF|BOLD|STIR|TIRM|MPRAGE|MP2RAGE)")

Units = Literal["Hounsfield units", "Hounsfield units + 1024", "windowed CT", "uptake", "none"]


@dataclass(frozen=True)
class Intensities:
    """What one channel of one scan holds.

    Attributes:
        case_id: Case.
        voxels: A sample of all voxels.
        tissue: A sample of the foreground.
        lesion: A sample of lesion voxels; empty where nobody annotated any.
        ends: Percentiles 0, 0.1, 0.5, 99.5, 99.9 and 100 of the foreground.
        lowest: Of all voxels.
        highest: The same.
    """

    case_id: str
    voxels: np.ndarray
    tissue: np.ndarray
    lesion: np.ndarray
    ends: np.ndarray
    lowest: float
    highest: float


@dataclass(frozen=True)
class Choice:
    """A window and why.

    Attributes:
        window: Fields of :class:`latentsynth.types.Window`.
        units: What the channel is measured in.
        reasons: What speaks for it, and what the user should know.
        cut: Share of the lesions' voxels at an end of the window; None where nobody annotated any.
    """

    window: dict[str, Any]
    units: Units
    reasons: tuple[str, ...]
    cut: float | None


def intensities(case_id: str, image: np.ndarray, lesion: np.ndarray | None, rng: np.random.Generator) -> Intensities:
    """Samples one channel of a scan.

    Args:
        case_id: Case.
        image: Voxels ``(I, J, K)`` that are not all equal.
        lesion: Boolean, the same shape, or None; one of another shape counts as None.
        rng: Which voxels are kept.
    """
    inside = foreground(image)
    tissue = image[inside] if inside.any() else image[image > image.min()]
    marked = image[lesion] if lesion is not None and lesion.shape == image.shape else image[:0]

    def some(values: np.ndarray) -> np.ndarray:
        return rng.choice(values.ravel(), min(values.size, _SAMPLE)).astype(np.float32) if values.size else values[:0]

    ends = np.percentile(tissue, _PERCENTILES)
    return Intensities(case_id, some(image), some(tissue), some(marked), ends, float(image.min()), float(image.max()))


def propose_window(name: str, scans: Sequence[Intensities]) -> Choice:
    """Fixed for units that mean the same in every scan (CT, PET), percentiles of each image otherwise.

    Args:
        name: Of the channel.
        scans: At least one.

    Raises:
        DataError: Some scans hold nothing but two values, so they have no percentiles.
    """
    units, reasons = decide_units(name, scans)
    if units in ("Hounsfield units", "Hounsfield units + 1024"):
        low, high = _of_tissue(scans, _OFFSET if units.endswith("1024") else 0.0)
        return _around_lesions(low, high, 10.0, units, reasons, scans)
    if units == "windowed CT":
        low, high = (float(f"{np.median([getattr(scan, end) for scan in scans]):.4g}") for end in ("lowest", "highest"))
        return _around_lesions(low, high, 0.0, units, reasons, scans)
    if units == "uptake":
        high = float(f"{np.percentile(np.concatenate([scan.tissue for scan in scans]), 99.9):.2g}")
        return _around_lesions(0.0, high or 1.0, high / 100, units, reasons, scans)
    return _percentile(name, reasons, scans)


def decide_units(name: str, scans: Sequence[Intensities]) -> tuple[Units, tuple[str, ...]]:
    """What a channel is measured in: by its name, whole numbers, air, soft tissue and range; most scans decide."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    named = "CT" if words & _CT else "PET" if words & _PET else "MR" if any(map(_MR.fullmatch, words)) else ""
    if named in ("PET", "MR"):
        reason = f"{named} by its name {name!r}"
        if named == "MR" and all(_is_hounsfield(scan, 0.0) and _has_air(scan) for scan in scans):
            reason += "; its values look like Hounsfield units: correct the name if it is a CT"
        return ("uptake" if named == "PET" else "none"), (reason,)
    found: list[Units] = [_units_of(scan, named == "CT") for scan in scans]
    if named and min(scan.lowest for scan in scans) >= 0 and _alike(scans, 0.001):
        found = ["windowed CT"] * len(scans)  # every CT has fat, below 0; none ends exactly where all others do
    units, _ = Counter(found).most_common(1)[0]
    others = [scan.case_id for scan, one in zip(scans, found, strict=True) if one != units]
    if units == "windowed CT" and not _alike(scans, 0.1):
        units, reasons = "none", [f"CT by its name {name!r}, but no units that all of its scans share"]
    else:
        soft = np.median([_soft_share(scan, _OFFSET if units.endswith("1024") else 0.0) for scan in scans])
        by = f"CT by its name {name!r}" if named else "CT by its values: whole numbers, air near -1000"
        reasons = [_WHY[units].format(name=repr(name), by=by, soft=f"{100 * soft:.0f} %")]
    if others:
        reasons.append(f"warning: {len(others)} of {len(scans)} scans look otherwise: {few(others)}")
    return units, tuple(reasons)


_WHY: dict[Units, str] = {
    "Hounsfield units": "{by}, soft tissue around 0 in {soft} of the body",
    "Hounsfield units + 1024": "{by}, stored with 1024 added: soft tissue around 1024 in {soft} of the body",
    "windowed CT": "{by}, but without Hounsfield units: it was windowed before, and the window is its own range",
    "none": "no units of {name} that all scans share are known",
}


def _units_of(scan: Intensities, named: bool) -> Units:
    if not named:  # MR without sign looks like CT with an offset
        hounsfield = _is_hounsfield(scan, 0.0) and _has_air(scan) and _is_whole(scan)
        return "Hounsfield units" if hounsfield else "none"
    if scan.lowest > -_OFFSET / 2 and _is_hounsfield(scan, _OFFSET):  # first, since its air looks like soft tissue
        return "Hounsfield units + 1024"
    return "Hounsfield units" if _is_hounsfield(scan, 0.0) else "windowed CT"


def _is_hounsfield(scan: Intensities, offset: float) -> bool:
    """Whether the body is mostly soft tissue, in a range that no window has narrowed."""
    return _soft_share(scan, offset) >= _MOSTLY and scan.highest - scan.lowest > _LEAST_RANGE


def _soft_share(scan: Intensities, offset: float) -> float:
    """Share of soft tissue in what is neither lung nor air; 0 where that is next to nothing."""
    body = scan.tissue[scan.tissue - offset > _BODY] - offset
    enough = body.size >= _LEAST_BODY * scan.tissue.size
    return float(((body > _SOFT[0]) & (body < _SOFT[1])).mean()) if enough else 0.0


def _has_air(scan: Intensities) -> bool:
    air = (scan.voxels > _AIR[0]) & (scan.voxels < _AIR[1])
    return bool(air.mean() >= _SOME_AIR)


def _is_whole(scan: Intensities) -> bool:
    return bool((np.rint(scan.voxels) == scan.voxels).mean() > 0.9)  # resampling leaves air and clipped values whole


def _alike(scans: Sequence[Intensities], share: float) -> bool:
    """Whether all scans end where the others do, to a share of their range, as those that were windowed in one way."""
    lows, highs = np.array([[scan.lowest, scan.highest] for scan in scans]).T
    return bool(max(np.ptp(lows), np.ptp(highs)) <= share * (np.median(highs) - np.median(lows)))


def _of_tissue(scans: Sequence[Intensities], offset: float) -> tuple[float, float]:
    values = np.concatenate([scan.tissue for scan in scans]) - offset
    low, high = np.percentile(values[values > _BODY], (1, 99.5))
    return float(np.floor(low / 10) * 10) + offset, float(np.ceil(high / 10) * 10) + offset


def _around_lesions(
    low: float, high: float, step: float, units: Units, reasons: tuple[str, ...], scans: Sequence[Intensities]
) -> Choice:
    """A fixed window, widened to ends that are multiples of ``step`` where it cuts the lesions."""
    marked = [scan for scan in scans if scan.lesion.size]
    if not marked:
        return Choice({"kind": "fixed", "low": low, "high": high}, units, reasons, None)
    values = np.concatenate([scan.lesion for scan in marked])
    first, last = (float(end) for end in np.percentile(values, (0.5, 99.5)))
    margin = (last - first) / 4
    before = low, high
    if step and (values <= low).mean() > _CUT:
        low = float(np.floor((first - margin) / step) * step)
    if step and (values >= high).mean() > _CUT:
        high = float(np.ceil((last + margin) / step) * step)
    if (low, high) != before:
        reasons += (f"widened from {before[0]:g} to {before[1]:g}, which cut the lesions off",)
    cut = float(((values <= low) | (values >= high)).mean())
    hidden = [scan.case_id for scan in marked if ((scan.lesion <= low) | (scan.lesion >= high)).mean() > _MOSTLY]
    if hidden:
        reasons += (f"warning: most of the lesion lies at an end in {len(hidden)} cases: {few(hidden)}",)
    return Choice({"kind": "fixed", "low": low, "high": high}, units, reasons, cut)


def _percentile(name: str, reasons: tuple[str, ...], scans: Sequence[Intensities]) -> Choice:
    """Percentiles of each image, wider ones where the usual cut the lesions."""
    flat = [scan.case_id for scan in scans if scan.ends[_USUAL] >= scan.ends[-1 - _USUAL]]
    if len(flat) == len(scans):
        low, high = min(scan.lowest for scan in scans), max(scan.highest for scan in scans)
        return Choice({"kind": "fixed", "low": low, "high": high}, "none", ("each scan holds two values",), None)
    if flat:
        raise DataError(f"channel {name} has one intensity in the foreground of {few(flat)}: remove these cases")
    marked = [scan for scan in scans if scan.lesion.size]
    spans = [np.median([scan.ends[-1 - n] - scan.ends[n] for scan in scans]) for n in range(len(_PERCENTILES) // 2)]
    found: list[tuple[int, float]] = []
    for n in range(_USUAL, -1, -1):
        cut = np.mean([((s.lesion <= s.ends[n]) | (s.lesion >= s.ends[-1 - n])).mean() for s in marked] or [0.0])
        if n == _USUAL or spans[n] <= _WIDEST * spans[_USUAL]:  # a few hot voxels must not squeeze all others together
            found.append((n, float(cut)))
        if found[-1][1] <= _CUT:
            break
    n, share = found[-1]
    if n < _USUAL:
        reasons += ("widened, because the usual 0.5 to 99.5 cut the lesions off",)
    return Choice(
        {"kind": "percentile", "low": _PERCENTILES[n], "high": _PERCENTILES[-1 - n]},
        "none",
        reasons,
        share if marked else None,
    )
