"""A trained segmenter: scans on any grid in, label maps on the same grid out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from nibabel.affines import voxel_sizes
from torch import Tensor

from latentsynth import checkpoint
from latentsynth.config import AugmentConfig, InferenceConfig, build
from latentsynth.data import nifti
from latentsynth.data.cache.volumes import Recipe, window_channels
from latentsynth.data.frames import Frame, lay, resample
from latentsynth.errors import CheckpointError, ConfigError, DataError
from latentsynth.parallel import at_least_two
from latentsynth.provenance import Ledger
from latentsynth.segmentation.networks import SegmentationNetwork
from latentsynth.types import MAX_VOXELS, Case, Domain, Framing, Labels

KIND = "segmenter"


@dataclass
class Segmenter:
    """A segmentation network and the space of scans it was trained on.

    Attributes:
        domain: Grid (the sliding window), windows, labels.
        network: The averaged weights.
        inference: How windows slide over scans larger than the grid.
        trained_on: Number of training cases by source, ``{"real": 140, "synthetic": 0}``.
        ledger: Whom it has seen, directly or through synthetic cases.
        fingerprint: Of the checkpoint, or "unsaved".
    """

    domain: Domain
    network: SegmentationNetwork
    inference: InferenceConfig
    trained_on: Mapping[str, int]
    ledger: Ledger = Ledger()  # noqa: RUF009 (frozen)
    fingerprint: str = "unsaved"

    def to(self, device: torch.device | str) -> Segmenter:
        """Moves the weights."""
        self.network.to(device)
        return self

    @property
    def recipe(self) -> Recipe:
        """How a case is brought to the grid it was trained on."""
        domain = self.domain
        return Recipe(domain.grid, domain.framing, domain.labels, AugmentConfig(), 0)

    @torch.no_grad()
    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Probability of every label, by windows that overlap, weighted towards their middles.

        Args:
            image: Shape ``(C, I, J, K)`` in [-1, 1] at the grid's spacing; any size.

        Returns:
            float32, shape ``(L, I, J, K)``.
        """
        network = self.network.eval()
        device = next(network.parameters()).device

        def predict(windows: Tensor) -> Tensor:
            return at_least_two(network, windows)[:, 0].float()

        logits = sliding_window_inference(
            torch.from_numpy(image)[None],
            roi_size=self.domain.grid.shape,
            sw_batch_size=self.inference.windows_at_once,
            predictor=predict,
            overlap=self.inference.overlap,
            mode="gaussian",
            padding_mode="replicate",
            sw_device=device,
            device="cpu",  # the whole scan's logits need not fit into the accelerator
        )
        return torch.softmax(logits[0], dim=0).numpy()

    def on_grid(self, image: np.ndarray) -> np.ndarray:
        """Label indices ``(I, J, K)``, int16, of an image ``(C, I, J, K)`` in [-1, 1]."""
        return self.probabilities(image).argmax(0).astype(np.int16)

    def found(self, case: Case, image: np.ndarray) -> np.ndarray:
        """The same of a case that was brought to the grid by :attr:`recipe`."""
        return self.on_grid(image)

    @property
    def remark(self) -> str:
        """What a measurement should say of it, or ""."""
        synthetic = self.trained_on.get("synthetic", 0)
        return (
            f"the segmenter was trained on {synthetic} synthetic cases: a segmenter that measures should know real patients alone"
            if synthetic
            else ""
        )

    def frame(self, case: Case, whole: bool) -> Frame:
        """Where to look for labels in a scan.

        Args:
            case: Its files.
            whole: The whole field of view; False lays the grid as training did, on the annotated lesion if the
                segmenter was trained on crops around lesions.

        Raises:
            DataError: The scan is unreadable or too large, or a lesion does not fit the grid.
        """
        shape, affine = nifti.geometry(case.images[0])
        if not whole:
            labels, affine = (None, affine) if case.mask is None else nifti.read_labels(case.mask)
            return self.recipe.frame(affine, shape, labels, case.case_id)[0]
        domain = self.domain
        order = np.argsort(nib.orientations.io_orientation(affine)[:, 0])
        extent = (np.array(shape) * voxel_sizes(affine))[order]
        sides = zip(extent, domain.grid.spacing_mm, domain.grid.shape, strict=True)
        i, j, k = (max(math.ceil(length / step - 1e-3), least) for length, step, least in sides)
        if i * j * k > MAX_VOXELS:
            raise DataError(
                f"{case.images[0]} covers {' x '.join(f'{n:.0f}' for n in extent)} mm, {i * j * k:,} voxels of the segmenter "
                f"where the limit is {MAX_VOXELS:,}: correct its header, or crop it"
            )
        return lay(replace(domain.grid, shape=(i, j, k)), Framing("whole"), affine, shape, None, case.case_id)[0]

    def image(self, case: Case, frame: Frame) -> np.ndarray:
        """The channels of a scan in a frame, windowed as in training, ``(C, *frame.shape)`` in [-1, 1].

        Raises:
            DataError: A file is unreadable, a channel is constant, or channels lie on different grids.
        """
        native = [nifti.read(path) for path in case.images]
        return window_channels(native, self.domain.grid.windows, frame, case)[0]

    def look(self, case: Case, whole: bool) -> tuple[np.ndarray, Frame, np.ndarray]:
        """A scan as the segmenter sees it, in [-1, 1], where that lies, and the label indices that it finds there."""
        frame = self.frame(case, whole)
        image = self.image(case, frame)
        return image, frame, self.on_grid(image)

    def segment(self, case: Case, whole: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Label values of a scan on its own grid.

        Probabilities, not labels, are interpolated back to the scan, so that outlines are smooth on fine grids.

        Args:
            case: Its images; the mask is read only where ``whole`` is False.
            whole: See :meth:`frame`.

        Returns:
            int16 label values, shape of the scan in file order, and its affine ``(4, 4)``.

        Raises:
            DataError: A file is unreadable, or the scan has another number of channels.
        """
        domain = self.domain
        if len(case.images) != domain.grid.channels:
            raise DataError(
                f"case {case.case_id} has {len(case.images)} images, the segmenter was trained on "
                f"{domain.grid.channels} channels ({', '.join(domain.channels)}): give one file per channel"
            )
        shape, affine = nifti.geometry(case.images[0])
        frame, target = self.frame(case, whole), Frame(affine, shape)
        probabilities = self.probabilities(self.image(case, frame))

        def on_scan(index: int, outside: float) -> np.ndarray:
            return resample(probabilities[index], frame.affine, target, outside, extend=True, smooth=False)

        labels = np.zeros(shape, dtype=np.int16)
        best = on_scan(0, 1.0)  # all is background where the frame does not reach
        for index in range(1, len(probabilities)):
            there = on_scan(index, 0.0)
            wins = there > best
            labels[wins], best[wins] = domain.labels.values[index], there[wins]
        return labels, affine

    def check(self, channels: Sequence[str], labels: Labels, name: Path | str) -> None:
        """Refuses a cohort of other channels or labels than it was trained on.

        Raises:
            DataError: With both.
        """
        for what, found, expected in (
            ("channels", tuple(channels), self.domain.channels),
            ("labels", labels.values, self.domain.labels.values),
        ):
            if found != expected:
                raise DataError(
                    f"{name} has {what} {found}, the segmenter was trained on {expected}: give a cohort that has them"
                )

    def save(self, folder: Path, metrics: Mapping[str, float]) -> checkpoint.Header:
        """Writes the checkpoint folder that :meth:`from_pretrained` reads."""
        settings = {"inference": self.inference.model_dump(mode="json"), "trained_on": dict(self.trained_on)}
        return checkpoint.write(folder, KIND, self.domain, settings, {"network": self.network}, self.ledger, metrics)

    @classmethod
    def from_pretrained(cls, path: Path | str) -> Self:
        """Loads a checkpoint folder, or the one inside a run folder.

        Raises:
            CheckpointError: It is not a segmenter's, or it is damaged.
        """
        folder = checkpoint.locate(path)
        header = checkpoint.read_header(folder, KIND)
        if set(header.settings) != {"inference", "trained_on"} or set(header.parts) != {"network"}:
            raise CheckpointError(
                f"{folder}/config.json: settings {sorted(header.settings)} and parts {sorted(header.parts)}, expected "
                "inference, trained_on and network: restore the checkpoint"
            )
        try:
            inference = build(InferenceConfig, dict(header.settings["inference"]), f"{folder}/config.json")
            trained_on = {str(source): int(count) for source, count in dict(header.settings["trained_on"]).items()}
        except (ConfigError, TypeError, ValueError) as error:
            raise CheckpointError(f"{error}: restore the checkpoint") from error
        network = SegmentationNetwork.from_pretrained(folder / "network")
        facts = (network.config["image_channels"], network.config["labels"])
        if facts != (header.domain.grid.channels, len(header.domain.labels)):
            raise CheckpointError(
                f"{folder}: the network has {facts[0]} channels and {facts[1]} labels, the header says "
                f"{header.domain.grid.channels} and {len(header.domain.labels)}: the parts do not fit together"
            )
        return cls(header.domain, network, inference, trained_on, checkpoint.read_ledger(folder), header.fingerprint)
