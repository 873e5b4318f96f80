"""What shape a mask has, where it lies, and how much masks on different grids overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage, sparse

from latentsynth.errors import DataError
from latentsynth.metrics.lesions import components
from latentsynth.metrics.surfaces import Mask, check_masks, check_spacing, surface_points, volume_ml

_REACH = 1 << 20  # cells to either side of the origin that one whole number can name
_FULL = 0.5  # share of a cell that must be covered

CELL_MM = 4.0  # cells that overlap is measured on are no larger
CELLS = 512  # of a typical lesion, where that takes smaller cells


@dataclass(frozen=True)
class Shape:
    """The shape of one mask, of all its pieces together.

    Attributes:
        volume_ml: Voxels times their volume, ml.
        surface_mm2: Area of the surface of :func:`latentsynth.metrics.surfaces.surface_scores`, mm².
        sphericity: Surface of a ball of the same volume over the surface, ``(36 pi V^2)^(1/3) / A`` (IBSI, code QCFX).
            A surface through voxels is rougher than the body: balls come out at 0.92, whatever the resolution; compare
            only masks of equal voxels.
        pieces: Connected components; corners connect.
        largest_share: Volume of the largest piece over the volume.
        elongation: Square root of the second over the first principal moment (IBSI, code Q3CK): 1 for balls and cubes,
            near 0 for rods.
        centroid_mm: Centre of mass in world coordinates, mm.
    """

    volume_ml: float
    surface_mm2: float
    sphericity: float
    pieces: int
    largest_share: float
    elongation: float
    centroid_mm: tuple[float, float, float]

    @property
    def measures(self) -> dict[str, float]:
        """Its size and form as tables name them; of a volume also the logarithm, which a few large masks rule less."""
        return {
            "volume, ml": self.volume_ml,
            "volume, log10 ml": math.log10(self.volume_ml),
            "surface area, mm2": self.surface_mm2,
            "sphericity": self.sphericity,
            "pieces": float(self.pieces),
            "largest piece's share": self.largest_share,
            "elongation": self.elongation,
        }


def shape_of(mask: Mask, affine: np.ndarray) -> Shape:
    """The shape of a mask (Zwanenburg et al. 2020, Image Biomarker Standardisation Initiative).

    Args:
        mask: Boolean, ``(I, J, K)``, in the affine's axis order, whatever that is.
        affine: ``(4, 4)``, voxel indices to mm; its axes are perpendicular.

    Raises:
        DataError: The mask is not boolean and 3D, or is empty; or a voxel has no extent.
    """
    part, affine = _cropped(mask, affine)
    spacing = [float(edge) for edge in voxel_sizes(affine)]
    check_spacing(spacing)
    volume = float(volume_ml(part, spacing))
    area = float(surface_points(part, part, spacing)[0][1].sum())
    labels, count = components(part)
    points = np.argwhere(part) * spacing
    # Every voxel is a box, not a point: its own second moment makes those of a cuboid exact.
    covariance = np.cov(points.T, bias=True).reshape(3, 3) + np.diag(np.square(spacing)) / 12
    moments = np.linalg.eigvalsh(covariance)
    return Shape(
        volume,
        area,
        math.cbrt(36 * math.pi * (1000 * volume) ** 2) / area,
        count,
        float(np.bincount(labels[part])[1:].max() / len(points)),
        float(np.sqrt(moments[1] / moments[2])),
        centroid_mm(part, affine),
    )


def centroid_mm(mask: Mask, affine: np.ndarray) -> tuple[float, float, float]:
    """Centre of mass of a boolean mask ``(I, J, K)`` in world coordinates, mm.

    Raises:
        DataError: The mask is empty.
    """
    part, affine = _cropped(mask, affine)
    total = np.count_nonzero(part)
    index = [part.sum(axis=axes) @ np.arange(n) / total for axes, n in zip(((1, 2), (0, 2), (0, 1)), part.shape, strict=True)]  # fmt: skip
    x, y, z = (float(at) for at in affine[:3, :3] @ np.array(index) + affine[:3, 3])
    return x, y, z


def cells_of(mask: Mask, affine: np.ndarray, edge_mm: float, origin_mm: Sequence[float] | np.ndarray = (0.0, 0.0, 0.0)) -> np.ndarray:  # fmt: skip
    """The cells of a lattice along the world's axes that a mask covers to at least a half.

    Only voxels of the mask are looked at, so that large fields of view cost nothing. A mask too small to fill any cell
    keeps the one it covers most.

    Args:
        mask: Boolean, ``(I, J, K)``, in the affine's axis order.
        affine: ``(4, 4)``, voxel indices to mm.
        edge_mm: Edge of the cubic cells.
        origin_mm: World coordinates of a corner of the lattice.

    Returns:
        Ascending, int64, shape ``(N, 3)``; cell n reaches from ``n edge_mm`` to ``(n + 1) edge_mm`` beyond the origin.

    Raises:
        DataError: The mask is empty, or an edge is no length.
    """
    part, affine = _cropped(mask, affine)
    check_spacing([edge_mm] * 3)
    # Voxels that are long beside a cell are taken apart until several points fall into every cell they cover.
    spacing = voxel_sizes(affine)
    parts = [max(1, math.ceil(2 * edge / edge_mm - 1e-6)) for edge in spacing]
    steps = np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in parts), indexing="ij")
    within = np.stack(steps, -1).reshape(1, -1, 3)
    points = (np.argwhere(part)[:, None] + within).reshape(-1, 3) @ affine[:3, :3].T + affine[:3, 3]
    # A point on the border between cells must not fall to either side by rounding.
    found = np.floor((points - np.asarray(origin_mm)) / edge_mm + 1e-6).astype(np.int64)
    cells, counts = np.unique(_named(found), return_counts=True)
    covered = counts * abs(np.linalg.det(affine[:3, :3])) / within.shape[1] / edge_mm**3
    kept = covered >= min(_FULL, covered.max()) - 1e-9
    return _unnamed(cells[kept])


def mask_of(cells: np.ndarray, edge_mm: float) -> tuple[Mask, np.ndarray]:
    """Cells ``(N, 3)`` of a lattice at the world's origin as a boolean mask of their bounding box, and its affine."""
    low = cells.min(0)
    mask = np.zeros(cells.max(0) - low + 1, dtype=bool)
    mask[tuple((cells - low).T)] = True
    affine = np.diag([edge_mm, edge_mm, edge_mm, 1.0])
    affine[:3, 3] = (low + 0.5) * edge_mm
    return mask, affine


def overlaps(queries: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> np.ndarray:
    """Dice coefficients of sets of cells, each as :func:`cells_of` gives them.

    Args:
        queries: N sets.
        reference: M sets, on the same lattice.

    Returns:
        Shape ``(N, M)``, 0 to 1.
    """
    names = [_named(cells) for cells in (*queries, *reference)]
    _, column = np.unique(np.concatenate(names), return_inverse=True)
    sizes = np.array([len(one) for one in names])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    table = sparse.csr_matrix((np.ones(len(column), np.int64), column, starts))
    common = (table[: len(queries)] @ table[len(queries) :].T).toarray()
    return np.asarray(2 * common / (sizes[: len(queries), None] + sizes[len(queries) :]))


def _cropped(mask: Mask, affine: np.ndarray) -> tuple[Mask, np.ndarray]:
    """The mask's bounding box and the affine of that."""
    check_masks(mask)
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        raise DataError("an empty mask has no shape: leave it out")
    moved = np.array(affine, dtype=np.float64)
    moved[:3, 3] += moved[:3, :3] @ [side.start for side in found[0]]
    return mask[found[0]], moved


def _named(cells: np.ndarray) -> np.ndarray:
    """A whole number per cell ``(N, 3)``, ordered as the cells are."""
    if len(cells) and np.abs(cells).max() >= _REACH:
        raise DataError(f"a mask lies {np.abs(cells).max()} cells from the origin, at most {_REACH}: check its affine")
    i, j, k = (np.asarray(cells, dtype=np.int64) + _REACH).T
    return np.asarray((i << 42) | (j << 21) | k)


def _unnamed(names: np.ndarray) -> np.ndarray:
    """Inverse of :func:`_named`."""
    low = 2 * _REACH - 1
    return np.stack([names >> 42, (names >> 21) & low, names & low], -1) - _REACH
