"""Augmentations that change voxels rather than the frame: elastic, contrast, noise, bias field. TorchIO does them."""

from __future__ import annotations

import numpy as np
import torch
import torchio as tio

from latentsynth.config import AugmentConfig


def distort(
    image: np.ndarray,
    mask: np.ndarray | None,
    spacing_mm: tuple[float, float, float],
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Applies the voxel augmentations that are switched on.

    Args:
        image: In [-1, 1], shape ``(C, I, J, K)``.
        mask: Label indices, shape ``(I, J, K)``, or None; only the elastic deformation changes it.
        spacing_mm: Voxel spacing.
        augment: Which, and how strong.
        rng: The only source of randomness.

    Returns:
        The augmented image, clipped to [-1, 1], and mask.
    """
    steps: list[tio.Transform] = []
    if augment.elastic_mm:
        steps.append(tio.RandomElasticDeformation(max_displacement=augment.elastic_mm))
    if augment.gamma:
        steps.append(tio.RandomGamma(log_gamma=augment.gamma))
    if augment.bias:
        steps.append(tio.RandomBiasField(coefficients=augment.bias))
    if augment.noise:
        steps.append(tio.RandomNoise(std=(0, augment.noise)))
    if not steps:
        return image, mask
    affine = np.diag([*spacing_mm, 1.0])
    # On [0, 1], where a power keeps black and white in place.
    subject = tio.Subject(image=tio.ScalarImage(tensor=torch.from_numpy((image + 1) / 2), affine=affine))
    if mask is not None:
        subject.add_image(tio.LabelMap(tensor=torch.from_numpy(mask)[None], affine=affine), "mask")
    with torch.random.fork_rng(devices=[]):  # TorchIO draws from the global generator; the caller's stays untouched
        torch.manual_seed(int(rng.integers(2**31)))
        out = tio.Compose(steps)(subject)
    moved = (
        None if mask is None else np.rint(out["mask"].numpy()[0]).astype(mask.dtype)
    )  # TorchIO returns labels as float
    return np.clip(2 * out["image"].numpy() - 1, -1, 1).astype(np.float32), moved
