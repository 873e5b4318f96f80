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

    The same as for images in [0, 1] with a data range of 1. Its luminance term is made for values from 0: on [-1, 1]
    it multiplies two wrongs, and an image and its negative would be alike.

    Args:
        a: Images in [-1, 1], shape ``(B, C, I, J, K)``, each axis at least 11 voxels.
        b: Same shape.

    Returns:
        Shape ``(B,)``.
    """
    full, _ = compute_ssim_and_cs(
        a + 1,
        b + 1,
        spatial_dims=3,
        data_range=_RANGE,
        kernel_type="gaussian",
        kernel_size=[11] * 3,
        kernel_sigma=[1.5] * 3,
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


def contrast_kept(before: Tensor, after: Tensor) -> Tensor:
    """How much of the lesions' contrast survives: the slope of reconstructed on original contrast.

    1 keeps the lesions as they were, 0 loses them. Pooled over cases and channels, so that a case or a channel in
    which the lesion is invisible to begin with does not count.

    Args:
        before: :func:`lesion_contrast` of the originals, any shape; entries that are not a number are left out.
        after: Of the reconstructions, same shape.

    Returns:
        A scalar; not a number if there is no contrast at all.
    """
    valid = torch.isfinite(before) & torch.isfinite(after)
    return (before[valid] * after[valid]).sum() / (before[valid] ** 2).sum()


def perplexity(usage: Tensor) -> Tensor:
    """Exponential of the entropy of code usage: how many codes are in use, as if all were used alike.

    Args:
        usage: Counts, shape ``(codebooks, codes)``.

    Returns:
        A scalar, the mean over codebooks; between 1 and the number of codes.
    """
    share = usage / usage.sum(dim=1, keepdim=True)
    return torch.exp(-torch.special.xlogy(share, share).sum(dim=1)).mean()
