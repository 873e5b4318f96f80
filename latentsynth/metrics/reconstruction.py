"""How well a reconstruction keeps an image, and what it keeps of the lesion."""

from __future__ import annotations

import torch
from monai.metrics.regression import compute_ssim_and_cs
from scipy import ndimage
from torch import Tensor

_RANGE = 2.0  # images live in [-1, 1]


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB per case.

    Args:
        a: Images in [-1, 1], shape ``(B, C, I, J, K)``.
        b: Same shape.

    Returns:
        Shape ``(B,)``; infinite where the two are equal.
    """
    return 10 * torch.log10(_RANGE**2 / ((a - b) ** 2).flatten(1).mean(1))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) per case, 3D Gaussian window of deviation 1.5, mean over channels.

    Args:
        a: Images in [-1, 1], shape ``(B, C, I, J, K)``, each axis at least 11 voxels.
        b: Same shape.

    Returns:
        Shape ``(B,)``.
    """
    full, _ = compute_ssim_and_cs(
        a, b, spatial_dims=3, data_range=_RANGE, kernel_type="gaussian", kernel_size=[11] * 3, kernel_sigma=[1.5] * 3
    )
    return full.flatten(1).mean(1)


def lesion_error(a: Tensor, b: Tensor, lesion: Tensor) -> Tensor:
    """Mean absolute error inside the lesion per case, in units of [-1, 1].

    Args:
        a: Images, shape ``(B, C, I, J, K)``.
        b: Same shape.
        lesion: Boolean, ``(B, I, J, K)``.

    Returns:
        Shape ``(B,)``; not a number where there is no lesion.
    """
    error = (a - b).abs().mean(dim=1)
    inside = lesion.float()
    return (error * inside).flatten(1).sum(1) / inside.flatten(1).sum(1)


def lesion_contrast(image: Tensor, lesion: Tensor, margin: int = 3) -> Tensor:
    """Mean intensity of each lesion minus that of a shell around it, per case and channel.

    Args:
        image: Shape ``(B, C, I, J, K)``.
        lesion: Boolean, ``(B, I, J, K)``.
        margin: Thickness of the shell in voxels.

    Returns:
        Shape ``(B, C)``; not a number where there is no lesion or no room around it.
    """
    rows = []
    for case, inside in zip(image, lesion.bool(), strict=True):
        grown = ndimage.binary_dilation(inside.cpu().numpy(), iterations=margin)
        shell = torch.from_numpy(grown).to(inside.device) & ~inside
        rows.append(case[:, inside].mean(dim=1) - case[:, shell].mean(dim=1))
    return torch.stack(rows)


def contrast_kept(original: Tensor, reconstruction: Tensor, lesion: Tensor) -> Tensor:
    """How much of the lesion's contrast survives: the slope of reconstructed on original contrast, over channels.

    1 keeps the lesion as it was, 0 loses it; a projection, so that channels in which the lesion is invisible to begin
    with do not count.

    Returns:
        Shape ``(B,)``; not a number where there is no lesion or it has no contrast.
    """
    before, after = lesion_contrast(original, lesion), lesion_contrast(reconstruction, lesion)
    return (before * after).sum(1) / (before**2).sum(1)
