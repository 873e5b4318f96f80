"""Are volumes as sharp as real scans? Power and kurtosis of octave bands and traces of latent cells, on each scan's own grid.

Beside every set stands what no model can avoid: the real scans brought to the model's grid and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from latentsynth import checkpoint
from latentsynth.data import nifti, windows
from latentsynth.data.cache.volumes import Recipe, channel_limits, grid_and_back, read_mask
from latentsynth.data.frames import Frame
from latentsynth.errors import CheckpointError
from latentsynth.evaluation.cohorts import Cohort, rng
from latentsynth.metrics.band_power import BandPower, band_power, body, octaves
from latentsynth.metrics.bootstrap import statistic_interval
from latentsynth.metrics.prediction import mean_range
from latentsynth.parallel import over_cores
from latentsynth.pretrained import read_config
from latentsynth.results import Estimate, Table, TableCell
from latentsynth.types import Case

CONTROL = "grid and back"
_FLOOR = 1e-10  # power below rounding
Cell = tuple[int, int, int]


@dataclass(frozen=True)
class Measure:
    """One thing that is measured of every volume.

    Attributes:
        channel: Name of the channel.
        kind: ``"power"``, ``"kurtosis"``, ``"seams"`` or ``"pattern"``.
        band_mm: Wavelengths of the band; of the finest for cells.
    """

    channel: str
    kind: str
    band_mm: tuple[float, float]

    @property
    def bounded_below(self) -> bool:
        """Whether too little of it is a fault as well: nobody has too few traces of cells."""
        return self.kind in ("power", "kurtosis")

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.kind}, {self.band_mm[0]:.3g} to {self.band_mm[1]:.3g} mm" if self.bounded_below else self.kind


@dataclass(frozen=True)
class Share:
    """A measure of a set of volumes, as a share of the real patients'.

    Attributes:
        measure: What.
        real: Geometric mean over real patients.
        value: Share of that which the set's patients have, 95 % interval over patients of both, paired where they recur.
        low: Lower end of the range of real patients: where as many other real patients would be, all measures of a set at
            once in 95 of 100 sets; 0 where too little is no fault.
        high: Upper end.
    """

    measure: Measure
    real: float
    value: Estimate
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether the set is in the range of real patients."""
        return self.low <= self.value.value <= self.high


@dataclass(frozen=True)
class Sharpness:
    """All measures of a set of volumes.

    Attributes:
        shares: One per measure; those that nobody could measure are left out.
    """

    shares: tuple[Share, ...]

    @property
    def as_real(self) -> bool:
        """Whether the set scores as real: every measure is in the range of real patients."""
        return all(share.inside for share in self.shares)

    @property
    def facts(self) -> dict[str, Any]:
        """For programs."""
        return {
            "as_real": self.as_real,
            "measures": [{**asdict(share), "inside": share.inside} for share in self.shares],
        }


def latent_cell(like: Path | None) -> Cell | None:
    """Voxels of a model's grid per latent cell along each axis; None without a model, or for one without latents.

    Raises:
        CheckpointError: Its autoencoder does not say.
    """
    if like is None:
        return None
    folder = checkpoint.locate(like)
    if "autoencoder" not in checkpoint.read_header(folder).parts:
        return None
    factors = read_config(folder / "autoencoder").get("factors")
    if not isinstance(factors, list) or len(factors) != 3:
        raise CheckpointError(f"{folder / 'autoencoder'} has factors {factors!r}, expected three numbers: restore it")
    return (int(factors[0]), int(factors[1]), int(factors[2]))


def sharpness(
    cohorts: Sequence[Cohort], recipe: Recipe, cell: Cell | None, accelerator: Accelerator
) -> dict[str, Sharpness]:
    """Measures sets of volumes against the first, of real scans; their files are read.

    Args:
        cohorts: Real scans, then sets to judge.
        recipe: The model's grid, its windows and where it is laid; only what lies inside it is looked at.
        cell: Voxels of the grid per latent cell; None leaves out traces of cells.
        accelerator: The processes that share the cases.

    Returns:
        By cohort but the first, and for :data:`CONTROL`.
    """
    real = cohorts[0]
    spacings = [np.sort(_spacing(nifti.geometry(case.images[0])[1])) for case in real.cases]
    edges = octaves(np.median(spacings, axis=0).tolist())
    measures = _measures(real.manifest.channels, edges, cell is not None)
    found = {}
    for cohort in cohorts:
        work = partial(_measure, cohort, recipe, edges, cell, cohort is real)
        rows = over_cores(accelerator, f"sharpness of {cohort.name}", cohort.cases, work)
        found[cohort.name] = np.array([_logarithms(row[: len(real.manifest.channels)], measures) for row in rows])
        if cohort is real:
            found[CONTROL] = np.array([_logarithms(row[len(real.manifest.channels) :], measures) for row in rows])
    nyquist = 1 / (2 * np.array([spacing[0] for spacing in spacings]))
    reference = found.pop(real.name)
    for n, measure in enumerate(measures):  # a real scan that holds less than half of a band says nothing about it
        reference[nyquist < 0.75 / measure.band_mm[0], n] = np.nan
    patients = {cohort.name: cohort.patients for cohort in cohorts} | {CONTROL: real.patients}
    return {
        name: compare_sharpness((reference, real.patients), (values, patients[name]), measures)
        for name, values in found.items()
    }


def compare_sharpness(
    real: tuple[np.ndarray, Sequence[str]], other: tuple[np.ndarray, Sequence[str]], measures: Sequence[Measure]
) -> Sharpness:
    """Shares of every measure, with intervals and the range of real patients.

    Args:
        real: Logarithms, ``(N, measures)``, not a number where a measure could not be taken, and the patient of each row.
        other: The same of a set.
        measures: What was measured.
    """
    sides = [[_by_patient(values[:, n], patients) for n in range(len(measures))] for values, patients in (real, other)]
    known = [n for n in range(len(measures)) if len(sides[0][n]) > 1 and sides[1][n]]
    shares = []
    for n in known:
        (names, a), (others, b) = ((list(side[n]), np.array(list(side[n].values()))) for side in sides)
        value = statistic_interval(
            lambda v, w, a=a, b=b: np.exp(w @ b / w.sum(1) - v @ a / v.sum(1)), (names, others), rng()
        )
        low, high = np.exp(np.array(mean_range(a, len(b), questions=len(known))) - a.mean())
        floor = low if measures[n].bounded_below else 0.0
        shares.append(Share(measures[n], float(np.exp(a.mean())), Estimate(*value), float(floor), float(high)))
    return Sharpness(tuple(shares))


def sharpness_table(name: str, found: Sharpness, control: Sharpness) -> Table:
    """One set beside the control without a model."""
    plain = {share.measure: share for share in control.shares}
    rows: list[tuple[TableCell, ...]] = [
        (
            share.measure.channel,
            share.measure.name,
            share.real,
            share.value,
            f"{share.low:.3g} to {share.high:.3g}" if share.measure.bounded_below else f"up to {share.high:.3g}",
            "yes" if share.inside else "no",
            plain[share.measure].value if share.measure in plain else None,
        )
        for share in found.shares
    ]
    return Table(
        f"sharpness of {name}",
        ("channel", "measure", "real", "share of real", "range of real patients", "inside", f"real, {CONTROL}"),
        tuple(rows),
        f"{'scores' if found.as_real else 'does not score'} as real: {'every' if found.as_real else 'not every'} measure is "
        "where the mean of as many other real patients would be (95 %, all measures at once). Windowed intensities inside the "
        "body, each scan on its own grid; geometric means over patients. Power: energy of an octave band; below 1 smoother, "
        "above 1 rougher than real. Kurtosis: 3 for noise, more for edges. Seams and pattern: energy at the period of a "
        f"latent cell over that beside it, 1 without. {CONTROL.capitalize()}: the real scans resampled to the model's grid "
        "and back, without a model",
    )


def _measures(channels: Sequence[str], edges: Sequence[float], cells: bool) -> list[Measure]:
    bands = [(1 / (2 * edge), 1 / edge) for edge in edges]
    return [
        *(Measure(channel, kind, band) for channel in channels for kind in ("power", "kurtosis") for band in bands),
        *(Measure(channel, kind, bands[0]) for channel in channels for kind in ("seams", "pattern") if cells),
    ]


def _logarithms(found: Sequence[BandPower], measures: Sequence[Measure]) -> list[float]:
    """Logarithms of all measures of one volume, in their order."""
    values: list[float] = []
    for one in found:
        values += [*np.maximum(one.power, _FLOOR), *one.kurtosis]
    for one in found:
        values += [one.seams, one.pattern]
    return np.log(values[: len(measures)]).tolist()


def _by_patient(values: np.ndarray, patients: Sequence[str]) -> dict[str, float]:
    """Mean of each patient's values that are numbers."""
    rows: dict[str, list[float]] = {}
    for value, patient in zip(values, patients, strict=True):
        if np.isfinite(value):
            rows.setdefault(patient, []).append(float(value))
    return {patient: float(np.mean(one)) for patient, one in rows.items()}


def _measure(
    cohort: Cohort, recipe: Recipe, edges: Sequence[float], cell: Cell | None, control: bool, n: int
) -> list[BandPower]:
    """One case channel by channel, then, where a control is wanted, its channels after a way to the grid and back."""
    case = cohort.cases[n]
    native = [nifti.read(path) for path in case.images]
    frame = _frame(case, recipe, native[0][1], native[0][0].shape)
    limits = channel_limits(native, recipe.grid.windows, case)
    plain, returned = [], []
    for (voxels, affine), ends in zip(native, limits, strict=True):
        channel = windows.normalise(voxels, ends)
        own = Frame(affine, (voxels.shape[0], voxels.shape[1], voxels.shape[2]))
        across = np.abs(np.linalg.inv(affine) @ frame.affine)[:3, :3]
        period = None if cell is None else (across @ np.array(cell)).tolist()
        seen = _covered(frame, own)

        def measured(
            channel: np.ndarray, seen: np.ndarray = seen, own: Frame = own, period: Sequence[float] | None = period
        ) -> BandPower:
            return band_power(channel, body(channel) & seen, _spacing(own.affine).tolist(), edges, period)

        plain.append(measured(channel))
        if control:
            returned.append(measured(grid_and_back(voxels, affine, frame, ends)))
    return plain + returned


def _frame(case: Case, recipe: Recipe, affine: np.ndarray, shape: tuple[int, ...]) -> Frame:
    """Where the model's grid lies in a scan; a mask is read only where it decides."""
    framing = recipe.framing
    decides = framing.crop == "lesion" or framing.fit == "scale"
    if case.mask is None or not decides:
        return recipe.frame(affine, shape, None, case.case_id)[0]
    labels, own = read_mask(case.mask, recipe.labels)
    return recipe.frame(own, labels.shape, labels, case.case_id)[0]


def _covered(frame: Frame, own: Frame) -> np.ndarray:
    """Voxels of a scan that a frame laid along its axes covers, boolean."""
    matrix = np.linalg.inv(frame.affine) @ own.affine
    covered = np.ones(own.shape, dtype=bool)
    for axis, count in enumerate(own.shape):
        along = int(np.argmax(np.abs(matrix[:3, axis])))
        # The frame's axis moves with this one alone, so the others' share of its coordinate is the offset.
        at = matrix[along, axis] * np.arange(count) + matrix[along, 3]
        line = (at >= -0.5) & (at <= frame.shape[along] - 0.5)
        covered &= line.reshape([-1 if n == axis else 1 for n in range(3)])
    return covered


def _spacing(affine: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))
