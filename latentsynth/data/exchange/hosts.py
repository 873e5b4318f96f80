"""Real scans that a lesion is painted into, and the way back: all but the lesion's surroundings stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from nibabel.affines import voxel_sizes

from latentsynth.data import nifti, windows
from latentsynth.data.cache.cutting import distance_to
from latentsynth.data.cache.volumes import channel_limits, check_grids, window_channels
from latentsynth.data.exchange.requests import Placed, Request, to_scanner
from latentsynth.data.frames import Frame, resample
from latentsynth.data.identity import check_files, scan_hashes
from latentsynth.data.intake.checks import disagreement
from latentsynth.errors import DataError
from latentsynth.types import Case, Domain


@dataclass(frozen=True)
class Blend:
    """How what was generated gives way to the scan with the distance from the lesion.

    Attributes:
        whole_mm: Up to this distance what was generated counts wholly: as far as the model did not see the scan.
        end_mm: From this distance on the scan stays as it is.
    """

    whole_mm: float
    end_mm: float

    def share(self, distance_mm: np.ndarray) -> np.ndarray:
        """Of what was generated, from 1 to 0, linear in between."""
        width = max(self.end_mm - self.whole_mm, 1e-6)
        return np.clip((self.end_mm - distance_mm) / width, 0, 1)


@dataclass(frozen=True)
class Host:
    """A real scan.

    Attributes:
        case: Its files.
        native: Per channel, voxels as stored and their affine.
        limits: Per channel, the scanner units that map to -1 and 1.
        domain: Of the model that paints into it.
    """

    case: Case
    native: tuple[tuple[np.ndarray, np.ndarray], ...]
    limits: tuple[windows.Limits, ...]
    domain: Domain

    @classmethod
    def read(cls, case: Case, domain: Domain) -> Host:
        """Reads a scan.

        Raises:
            DataError: A file is unreadable or constant, channels lie on different grids, or the scan has another number of
                channels.
        """
        if len(case.images) != domain.grid.channels:
            raise DataError(
                f"host {case.case_id} has {len(case.images)} channels, the model makes {domain.grid.channels} "
                f"({', '.join(domain.channels)}): give one file per channel"
            )
        if case.filled:
            names = ", ".join(domain.channels[n] for n in case.filled)
            raise DataError(
                f"host {case.case_id} was never scanned in {names}: give a scan of all channels to paint into"
            )
        native = tuple(nifti.read(path) for path in case.images)
        check_files(case, native)
        check_grids(native, case.images)
        return cls(case, native, channel_limits(native, domain.grid.windows, case), domain)

    @property
    def scans(self) -> frozenset[str]:
        """Hashes of its images, as ledgers hold them."""
        return self.case.scans or frozenset(filter(None, scan_hashes(self.native)))

    def context(self, frame: Frame) -> np.ndarray:
        """The scan in a frame, float32 in [-1, 1], ``(C, *frame.shape)``."""
        case = replace(self.case, limits=self.limits)  # known by now
        return window_channels(self.native, self.domain.grid.windows, frame, case)[0]

    def check(self, placed: Placed, name: str, blend: Blend) -> None:
        """Refuses a mask on another grid, or one that calls lesions of the scan healthy.

        Raises:
            DataError: With how the grids differ, or how much of the scan's own lesions would stay without a label.
        """
        voxels, affine = self.native[0]
        apart = disagreement(voxels.shape, affine, placed.values.shape, placed.affine)
        if apart:
            raise DataError(
                f"mask {name} does not lie on the grid of host {self.case.case_id} ({apart}): make masks for this scan, for "
                "example with `latentsynth masks --into`"
            )
        if self.case.mask is None or self.case.source != "real":
            return
        values = self.domain.labels.lesions(self.domain.framing)
        theirs = np.isin(nifti.read_labels(self.case.mask)[0], values)
        asked = np.isin(placed.values, values)
        spacing = voxel_sizes(placed.affine)
        left = int((theirs & (distance_to(asked, spacing) > blend.whole_mm)).sum())
        if left:
            raise DataError(
                f"{left} lesion voxels of host {self.case.case_id} would stay in the scan, and mask {name} does not label them: "
                "keep the lesions it has (`latentsynth masks --into ... --set compose.replace_lesions=false`)"
            )

    def painted(self, image: np.ndarray, shown: np.ndarray, placed: Placed, blend: Blend) -> list[np.ndarray]:
        """The scan with what was generated in place of the lesion, and changed around it as the model would have it.

        Around the lesion the scan gets the difference of what was generated and of itself as the model shows it: all that
        the model's grid and autoencoder cannot show, its own texture above all, stays. The difference fades as ``blend`` says.

        Args:
            image: What was generated, in [-1, 1], shape ``(C, I, J, K)`` on the model's grid.
            shown: The scan as the model shows it, same shape.
            placed: The mask.
            blend: How the difference fades; voxels beyond its end are the scan's own, exactly.

        Returns:
            Per channel, voxels on the scan's grid, in its own number type, or in the smallest that holds what was painted
            where that does not: a lesion darker than anything an unsigned scan can store.
        """
        lesion = np.isin(placed.values, self.domain.labels.lesions(self.domain.framing))
        spacing = voxel_sizes(placed.affine)
        share = blend.share(distance_to(lesion, spacing))
        share[lesion] = 1
        # Beyond the model's grid nothing was generated: the scan goes on there.
        ones = np.ones(placed.frame.shape, np.float32)
        target = Frame(placed.affine, placed.values.shape)
        share[resample(ones, placed.frame.affine, target, 0.0, extend=True, smooth=False, order=0) == 0] = 0
        where = share > 0
        made = to_scanner(image, placed, self.domain, self.limits)
        own = to_scanner(shown, placed, self.domain, self.limits)
        out = []
        for (voxels, _), new, before, (low, high) in zip(self.native, made, own, self.limits, strict=True):
            scan = voxels[where].astype(np.float64)
            changed = scan + share[where] * (new[where] - before[where])
            # Within the window, or where the scan lies beyond it, as far as the scan.
            changed = np.clip(changed, np.minimum(low, scan), np.maximum(high, scan))
            mixed = np.where(lesion[where], new[where], changed)
            mixed = np.rint(mixed) if voxels.dtype.kind in "iu" else mixed
            kept = voxels.astype(_holding(voxels.dtype, mixed))
            kept[where] = mixed
            out.append(kept)
        return out


def _holding(stored: np.dtype, values: np.ndarray) -> np.dtype:
    """A number type that holds all that another one does, and some values besides."""
    if stored.kind not in "iu" or not values.size:
        return stored
    low, high = int(values.min()), int(values.max())
    # Wider types hold the narrower one's values: 16 bits with a sign those of 8 without, and so on.
    wider = (np.dtype(f"i{size}") for size in (2, 4, 8) if size > stored.itemsize)
    return next(t for t in (stored, *wider) if np.iinfo(t).min <= low and high <= np.iinfo(t).max)


def paired(requests: Sequence[Request], hosts: Sequence[Case]) -> list[Case]:
    """The host of every mask: the only one there is, or the mask's first parent, in whose anatomy it was made.

    Raises:
        DataError: A mask whose first parent is none of several hosts, or has several scans among them.
    """
    if len(hosts) == 1:
        return [hosts[0]] * len(requests)
    found = []
    for request in requests:
        own = [case for case in hosts if request.parents and case.patient_id == request.parents[0]]
        if len(own) != 1:
            raise DataError(
                f"mask {request.name} belongs to {len(own)} of the {len(hosts)} hosts: give one host, or masks that were made "
                "for these, for example with `latentsynth masks --into`"
            )
        found.append(own[0])
    return found
