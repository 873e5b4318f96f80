"""The nouns everything else is written in, and the legend of shape letters.

Shape letters, used in every docstring:

=========  ==================================================================
``B``      batch
``C``      image channels (CT, PET, T1, ...)
``L``      mask labels, 0 is background
``I J K``  voxels along the axes of RAS+ (nibabel's and TorchIO's order)
``c``      latent channels
``i j k``  latent cells
``N``      cases
``F``      features
=========  ==================================================================

Units stand in names: ``spacing_mm``, ``images_seen``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from latentsynth.errors import ConfigError

if TYPE_CHECKING:  # this module is imported by the configuration, which must not wait for torch
    from torch import Tensor

Crop = Literal["whole", "lesion"]
Fit = Literal["error", "scale"]
Split = Literal["train", "val", "test"]

MAX_VOXELS = 1024**3  # of a scan or a grid: 4 GiB as float32, and work needs several copies

_STRICT = {"extra": "forbid", "allow_inf_nan": False}  # read by pydantic, in configurations and checkpoints


class Origin(NamedTuple):
    """Where scans are from.

    Attributes:
        licence: Under which they came, as an SPDX identifier or in words; "" where nobody says.
        credit: Whom they are owed to; "" where nobody says.
    """

    licence: str = ""
    credit: str = ""


@dataclass(frozen=True)
class Case:
    """One imaging study: the files of one patient at one time.

    Attributes:
        case_id: Unique in its manifest.
        patient_id: Splits never separate cases that share it.
        images: One file per channel, in the manifest's channel order; all on one voxel grid.
        mask: Label map on the grid of the images, or None where nobody annotated the case.
        split: ``"train"``, ``"val"`` or ``"test"``.
        source: ``"real"``; ``"<checkpoint fingerprint>:<seed>"`` for a synthetic case of ours, ``"external"`` for one of
            another program.
        parents: Patients whose mask or scan a synthetic case was made from.
        voxels: Hash of each image's voxels on a canonical grid (:func:`latentsynth.data.identity.scan_hashes`); empty where
            nobody knows.
        image_hashes: Hash of the voxels and the place of each image, as it was prepared; empty where nobody knows.
        mask_hash: The same of the mask, or "".
        limits: Per channel, the scanner units that a synthetic case was written with for -1 and 1; empty where nobody
            knows them. Percentiles of a crop would be others than those of the scan it stands for.
        filled: Channels, by position, that nobody scanned: their files hold one value, and every loader takes them for
            empty, -1 throughout. Never the first.
        healthy: Its mask is empty, because there is nothing to mark.
        origin: Where its files are from; what a model of ours made has that of the scans in the ledger beside it.
    """

    case_id: str
    patient_id: str
    images: tuple[Path, ...]
    mask: Path | None
    split: Split = "train"
    source: str = "real"
    parents: tuple[str, ...] = ()
    voxels: tuple[str, ...] = ()
    image_hashes: tuple[str, ...] = ()
    mask_hash: str = ""
    limits: tuple[tuple[float, float], ...] = ()
    filled: tuple[int, ...] = ()
    healthy: bool = False
    origin: Origin = Origin()  # noqa: RUF009 (a tuple)

    @property
    def marked(self) -> bool:
        """Whether it has a mask that marks something."""
        return self.mask is not None and not self.healthy

    @property
    def scans(self) -> frozenset[str]:
        """Hashes by which any of its images, whichever channel, is known again."""
        return frozenset(filter(None, self.voxels))

    @property
    def content(self) -> str:
        """Changes with whatever its files hold; "" where one of them has no hash."""
        held = (*(self.image_hashes if self.images else ()), *((self.mask_hash,) if self.mask else ()))
        complete = len(self.image_hashes) == len(self.images) or not self.images
        return ":".join(held) if held and complete and all(held) else ""


@dataclass(frozen=True)
class Window:
    """What maps to [-1, 1] in one channel.

    ``fixed`` takes ``low`` and ``high`` in scanner units (Hounsfield units, SUV), the same for every scan.
    ``percentile`` takes them in per cent of each image's own foreground, for scanners without units (MR).
    """

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    kind: Literal["fixed", "percentile"] = "percentile"
    low: float = 0.5
    high: float = 99.5

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(f"window low {self.low} is not below high {self.high}: swap or widen them")
        if self.kind == "percentile" and not (self.low >= 0 and self.high <= 100):
            raise ConfigError(f"percentile window {self.low}:{self.high} leaves 0:100: give percentages")


@dataclass(frozen=True)
class Grid:
    """The voxel grid that every volume of a run is resampled to.

    Attributes:
        shape: Voxels ``(I, J, K)``.
        spacing_mm: Millimetres per voxel along each axis.
        windows: One intensity window per channel, so its length is the number of channels; none for masks alone.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    windows: tuple[Window, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "spacing_mm", tuple(self.spacing_mm))
        object.__setattr__(self, "windows", tuple(self.windows))
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ConfigError(f"grid shape {self.shape} must be three positive voxel counts")
        if math.prod(self.shape) > MAX_VOXELS:
            raise ConfigError(
                f"grid shape {self.shape} holds {math.prod(self.shape):,} voxels, more than the limit, {MAX_VOXELS:,}: give "
                "fewer voxels, or coarser ones"
            )
        if len(self.spacing_mm) != 3 or not all(0 < s < float("inf") for s in self.spacing_mm):
            raise ConfigError(f"grid spacing_mm {self.spacing_mm} must be three positive lengths in mm")
        if len(self.windows) > 8:
            raise ConfigError(f"grid has {len(self.windows)} windows: give one per channel, for at most 8 channels")

    @property
    def channels(self) -> int:
        """Number of image channels ``C``."""
        return len(self.windows)

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Edge lengths of the grid in mm."""
        i, j, k = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return (i, j, k)


@dataclass(frozen=True)
class Framing:
    """Where the grid is laid over a scan.

    Attributes:
        crop: ``"whole"`` centres the grid on the scan, ``"lesion"`` on the bounding box of the lesion labels.
        fit: What to do with a lesion larger than the grid: ``"error"``, or ``"scale"`` (zoom out just enough).
        lesion_labels: Label values that count as lesion; empty means every label but background.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    crop: Crop = "whole"
    fit: Fit = "error"
    lesion_labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Condition:
    """What a volume is asked for.

    Attributes:
        mask: One-hot labels, shape ``(B, L, I, J, K)``; a row of zeros everywhere means "no mask given".
        context: Scan to paint into, shape ``(B, C, I, J, K)`` in [-1, 1], or None.
        covariates: Numbers such as age, shape ``(B, V)``, or None.
        style: Style code or reference scan for models that take one, or None.
        cut: Where the model must not see the scan to paint into, boolean ``(B, I, J, K)``; None hides the mask's lesions.
    """

    mask: Tensor
    context: Tensor | None = None
    covariates: Tensor | None = None
    style: Tensor | None = None
    cut: Tensor | None = None

    def __len__(self) -> int:
        return int(self.mask.shape[0])

    def __getitem__(self, rows: slice) -> Condition:
        """The same request for some rows of the batch."""
        optional = (self.context, self.covariates, self.style, self.cut)
        return Condition(self.mask[rows], *(None if value is None else value[rows] for value in optional))


@dataclass(frozen=True)
class Conditioning:
    """A condition as a network takes it in. Whatever is absent says "no condition", and so do zeros.

    Attributes:
        spatial: Feature maps on the latent grid, shape ``(B, S, i, j, k)``, concatenated to the input.
        coarser: The same at the lower resolutions of the network, each half the one before.
        vector: One feature vector per case, ``(B, V)``, for networks that take one.
        residuals: Feature maps added to a network's skip connections, finest first, and last to its middle block
            (ControlNet: Zhang et al. 2023).
    """

    spatial: Tensor
    coarser: tuple[Tensor, ...] = ()
    vector: Tensor | None = None
    residuals: tuple[Tensor, ...] = ()

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """Feature maps at every resolution of the network, finest first."""
        return (self.spatial, *self.coarser)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same with every tensor changed in one way."""
        vector = None if self.vector is None else change(self.vector)
        coarser, residuals = (tuple(change(one) for one in many) for many in (self.coarser, self.residuals))
        return Conditioning(change(self.spatial), coarser, vector, residuals)


@dataclass(frozen=True)
class Generated:
    """What came out.

    Attributes:
        image: Shape ``(B, C, I, J, K)`` in [-1, 1].
        mask: One-hot labels that the image claims to show, shape ``(B, L, I, J, K)``.
        host: The scan that was painted into as the model can show it, through its autoencoder, shaped like ``image``; None
            for a model that shows it as it is.
    """

    image: Tensor
    mask: Tensor
    host: Tensor | None = None


@dataclass(frozen=True)
class Labels:
    """The label values of a cohort and their names; position in ``values`` is the one-hot index.

    Attributes:
        values: Ascending label values as they stand in the mask files; the first is 0, background.
        names: One name per value, all different.

    Raises:
        ConfigError: Values do not ascend from 0, or names and values do not pair up one to one.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    values: tuple[int, ...]
    names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(int(v) for v in self.values))
        names = tuple(self.names) or tuple("background" if v == 0 else f"label {v}" for v in self.values)
        object.__setattr__(self, "names", names)
        if not self.values or self.values[0] != 0 or list(self.values) != sorted(set(self.values)):
            raise ConfigError(f"label values {self.values} must ascend from 0 (background) without repeats")
        if len(self.names) != len(self.values):
            raise ConfigError(f"{len(self.names)} label names for {len(self.values)} label values")
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise ConfigError(f"label names {', '.join(repeated)} appear more than once: give every label its own name")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def ignored(self) -> tuple[int, ...]:
        """Values of voxels that nobody annotated: labels called "ignore", as nnU-Net does, or "unannotated"."""
        named = zip(self.values, self.names, strict=True)
        return tuple(v for v, name in named if v and name.strip().casefold().startswith(("ignore", "unannotated")))

    def lesions(self, framing: Framing) -> tuple[int, ...]:
        """Label values that count as lesion under ``framing``; what nobody annotated never does.

        Raises:
            ConfigError: ``framing.lesion_labels`` holds a value that the cohort does not have, or an ignored one.
        """
        known = tuple(value for value in self.values[1:] if value not in self.ignored)
        unknown = set(framing.lesion_labels) - set(known)
        if unknown:
            raise ConfigError(
                f"lesion_labels {sorted(unknown)} are not labels of this cohort that can be lesions: choose from {known}"
            )
        return framing.lesion_labels or known


@dataclass(frozen=True)
class Domain:
    """The space of volumes a trained model belongs to; every checkpoint carries it.

    Attributes:
        grid: Voxel grid and intensity windows.
        framing: Where the grid is laid over a scan.
        labels: Label values and names.
        channels: Channel names.
        limits: Per channel, the scanner units that -1 and 1 come out as: fixed windows as they are, windows taken per
            image as the median over the training images.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    grid: Grid
    framing: Framing
    labels: Labels
    channels: tuple[str, ...]
    limits: tuple[tuple[float, float], ...]

    @property
    def lesion_indices(self) -> list[int]:
        """One-hot indices of the labels that count as lesion."""
        values = self.labels.lesions(self.framing)
        return [index for index, value in enumerate(self.labels.values) if value in values]
