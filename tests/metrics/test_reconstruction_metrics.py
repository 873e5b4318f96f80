"""Scores of a reconstruction against closed forms and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import structural_similarity
from torch import Tensor

from latentsynth.metrics.reconstruction import contrast_kept, lesion_contrast, lesion_error, psnr, ssim

NAN = float("nan")


def images(count: int = 3, channels: int = 2, size: int = 16, seed: int = 0) -> Tensor:
    """Smooth images in [-1, 1]."""
    noise = np.random.default_rng(seed).normal(size=(count, channels, size, size, size))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 1.5, 1.5, 1.5), mode="wrap")
    return torch.from_numpy(smooth / np.abs(smooth).max()).float()


def noise(like: Tensor, strength: float) -> Tensor:
    return strength * torch.randn(like.shape, generator=torch.Generator().manual_seed(9))


def ball(size: int = 16, radius: float = 3.2, centre: float = 7.5) -> Tensor:
    index = torch.stack(torch.meshgrid(*[torch.arange(float(size))] * 3, indexing="ij"))
    return ((index - centre) ** 2).sum(0) <= radius**2


@pytest.mark.parametrize("error", [0.02, 0.5, 2.0])
def test_psnr_of_a_constant_error(error: float) -> None:
    a = images() / 2
    expected = 20 * np.log10(2 / error)  # the range is 2
    torch.testing.assert_close(psnr(a, a - error), torch.full((3,), expected, dtype=torch.float32))


def test_psnr_is_per_case_and_infinite_for_equal_images() -> None:
    a, b = images(), images()
    b[1] += 0.1
    b[2, 0, 0, 0, 0] += 1
    assert psnr(a, b).tolist() == pytest.approx([float("inf"), 26.0206, 10 * np.log10(4 * 2 * 16**3)], abs=1e-3)


def test_ssim_agrees_with_scikit_image() -> None:
    """MONAI leaves out the rim where the window is cut, so scikit-image's map is cropped: equal to 1e-3."""
    a = images(size=20)
    b = (0.8 * a + 0.1 + noise(a, 0.1)).clamp(-1, 1)
    expected = []
    for case in range(3):
        maps = []
        for channel in range(2):
            _, full = structural_similarity(
                (1 + a[case, channel].double().numpy()) / 2, (1 + b[case, channel].double().numpy()) / 2, data_range=1.0, full=True,
                gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            )  # fmt: skip
            maps.append(full[5:-5, 5:-5, 5:-5].mean())
        expected.append(np.mean(maps))
    assert 0.1 < min(expected) < max(expected) < 0.95
    np.testing.assert_allclose(ssim(a, b).numpy(), expected, atol=1e-3)


def test_ssim_is_one_for_equal_images_symmetric_and_falls_with_noise() -> None:
    a = images()
    torch.testing.assert_close(ssim(a, a), torch.ones(3))
    b, worse = a + noise(a, 0.05), a + noise(a, 0.3)
    torch.testing.assert_close(ssim(a, b), ssim(b, a))
    assert (ssim(a, b) > ssim(a, worse) + 0.1).all()


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_ssim_of_opposite_constants_is_their_luminance_from_zero(level: float) -> None:
    """Two constants x and y in [0, 1] score (2 x y + c) / (x^2 + y^2 + c): opposites in [-1, 1] are unlike."""
    a = torch.full((1, 1, 12, 12, 12), level)
    x, y, c = (1 + level) / 2, (1 - level) / 2, 0.01**2
    assert ssim(a, -a).item() == pytest.approx((2 * x * y + c) / (x**2 + y**2 + c), abs=5e-3)  # MONAI works in float32


def test_an_image_and_its_negative_are_unlike() -> None:
    a = images()
    assert (ssim(a, -a) < -0.5).all()  # their structures are opposite
    bright = 0.7 + 0.3 * a  # so are those of a bright scan, which only agreed in the size of its mean
    assert (ssim(bright, -bright) < 0.1).all()


def test_lesion_error_by_hand() -> None:
    a = torch.zeros(3, 2, 4, 4, 4)
    b, lesion = a.clone(), torch.zeros(3, 4, 4, 4, dtype=torch.bool)
    lesion[0, 0, 0, :2] = True
    b[0, 0, 0, 0, 0], b[0, 1, 0, 0, 0], b[0, 1, 0, 0, 1] = 0.4, -0.2, 0.6  # (0.3 + 0.3) / 2
    b[0, :, 3] = 1  # outside, so of no account
    lesion[1] = True
    b[1] = 0.5
    b[2] = 0.7  # no lesion
    assert lesion_error(a, b, lesion).tolist() == pytest.approx([0.3, 0.5, NAN], nan_ok=True)


def test_lesion_contrast_is_the_planted_one() -> None:
    lesion = torch.stack([ball(), ball(radius=2), torch.zeros_like(ball())])
    image = torch.full((3, 2, 16, 16, 16), -0.3)
    image[0, 0, lesion[0]] += 0.5
    image[0, 1, lesion[0]] -= 0.2
    image[1, 0, lesion[1]] += 1.0
    expected = torch.tensor([[0.5, -0.2], [1.0, 0.0], [NAN, NAN]])
    torch.testing.assert_close(lesion_contrast(image, lesion), expected, equal_nan=True)


def test_lesion_contrast_looks_no_further_than_its_margin() -> None:
    lesion = ball(radius=2)[None]
    image = torch.zeros(1, 1, 16, 16, 16)
    image[0, 0, lesion[0]] = 0.4
    for margin in (1, 3):
        shell = torch.from_numpy(ndimage.binary_dilation(lesion[0].numpy(), iterations=margin))
        far = image.clone()
        far[0, 0, ~shell] = -1
        assert lesion_contrast(far, lesion, margin).item() == pytest.approx(0.4)
        near = image.clone()
        near[0, 0, shell & ~lesion[0]] = -1
        assert lesion_contrast(near, lesion, margin).item() == pytest.approx(1.4)


def test_lesion_contrast_without_surroundings_is_not_a_number() -> None:
    assert lesion_contrast(torch.zeros(1, 1, 4, 4, 4), torch.ones(1, 4, 4, 4)).isnan().all()


@pytest.mark.parametrize(("factor", "kept"), [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0), (-1.0, -1.0)])
def test_contrast_kept_is_the_factor_on_the_contrast(factor: float, kept: float) -> None:
    before = torch.tensor([[0.4, -0.2], [0.7, 0.1]])
    assert contrast_kept(before, factor * before).item() == pytest.approx(kept)


def test_contrast_kept_of_images() -> None:
    lesion = torch.stack([ball(), ball(radius=2)])
    background = images(2)
    image = background + 0.4 * lesion[:, None]
    halved = background + 0.2 * lesion[:, None]
    noise_free = lesion_contrast(background, lesion)
    before, after = (lesion_contrast(i, lesion) - noise_free for i in (image, halved))
    assert contrast_kept(before, after).item() == pytest.approx(0.5, abs=1e-4)


def test_contrast_kept_is_pooled_and_ignores_what_is_no_number() -> None:
    before = torch.tensor([[1.0, 0.0], [0.5, NAN], [NAN, 1.0]])
    after = torch.tensor([[1.0, 0.3], [0.0, 9.0], [9.0, NAN]])
    # The invisible channel (contrast 0) and the rows without a lesion do not count: (1*1 + 0.5*0) / (1 + 0.25).
    assert contrast_kept(before, after).item() == pytest.approx(0.8)
    assert contrast_kept(torch.tensor([NAN]), torch.tensor([NAN])).isnan()
    assert contrast_kept(torch.zeros(3), torch.zeros(3)).isnan()
