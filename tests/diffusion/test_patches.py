"""Overlapping patches denoised together: one volume, of any size, without seams."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentsynth.diffusion import patchwise, sample, schedule_named
from latentsynth.diffusion.guidance import Denoise
from latentsynth.errors import DataError
from latentsynth.types import Conditioning

FLOW = schedule_named("rectified")
PATCH, WHOLE = 8, 20


def field_denoiser(size: int = PATCH, length: float = 1.5) -> Callable[[Tensor, Tensor, Conditioning], Tensor]:
    """The exact posterior mean of a Gaussian field, for one who sees a patch of it and nothing else."""
    at = torch.stack(torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 3, indexing="ij"), -1).view(-1, 3)
    covariance = torch.exp(-((at[:, None] - at[None]) ** 2).sum(-1) / (2 * length**2))
    power, basis = torch.linalg.eigh(covariance + 1e-4 * torch.eye(size**3, dtype=torch.float64))

    def denoise(x: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        assert max(x.shape[2:]) <= size, "more than a patch was shown"
        alpha, sigma = float(FLOW.alpha(t.double())), float(FLOW.sigma(t.double()))
        gain = alpha * power / (alpha**2 * power + sigma**2)
        return (((x.double().flatten(2) @ basis) * gain) @ basis.T).view_as(x).to(x)

    return denoise


def sampled(denoise: Denoise, rows: int, whole: int = WHOLE) -> Tensor:
    noise = torch.randn(rows, 1, whole, whole, whole, generator=torch.Generator().manual_seed(0))
    return sample(denoise, FLOW, noise, "euler", 20)


def seam(volumes: Tensor, borders: list[int]) -> float:
    """Gradient across some borders over the gradient elsewhere, over all axes."""
    across, inside = [], []
    for axis in (2, 3, 4):
        steps = volumes.diff(dim=axis).square().movedim(axis, 0).flatten(1).mean(1)
        at = torch.zeros(len(steps), dtype=torch.bool)
        at[[n - 1 for n in borders]] = True
        across.append(steps[at].mean())
        inside.append(steps[~at].mean())
    return float((torch.stack(across).mean() / torch.stack(inside).mean()).sqrt())


def of_patches(overlap: float) -> Denoise:
    together = patchwise(field_denoiser(), (PATCH,) * 3, overlap)
    return lambda x, t: together(x, t, Conditioning(torch.zeros(len(x), 0, *x.shape[2:])))


def test_where_patches_meet_there_is_no_seam_and_side_by_side_there_is() -> None:
    volumes = sampled(of_patches(0.25), 16)
    assert seam(volumes, [6, 8, 12, 14]) == pytest.approx(1, abs=0.02)

    def side_by_side(x: Tensor, t: Tensor) -> Tensor:
        network, out = field_denoiser(4), torch.zeros_like(x)
        for i in range(0, WHOLE, 4):
            for j in range(0, WHOLE, 4):
                for k in range(0, WHOLE, 4):
                    part = (..., slice(i, i + 4), slice(j, j + 4), slice(k, k + 4))
                    out[part] = network(x[part], t, Conditioning(x))
        return out

    assert seam(sampled(side_by_side, 4), [4, 8, 12, 16]) > 1.3  # the measure sees what it is for


@pytest.mark.parametrize("shape", [(19, 8, 5), (8, 8, 8), (9, 30, 8)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_a_denoiser_of_single_cells_is_the_same_in_patches(shape: tuple[int, int, int], overlap: float) -> None:
    x = torch.randn(2, 3, *shape)
    given = Conditioning(torch.randn(2, 2, *shape))

    def pointwise(part: Tensor, t: Tensor, maps: Conditioning) -> Tensor:
        assert all(n <= 8 for n in part.shape[2:])
        return torch.tanh(part) * t + maps.spatial.sum(1, keepdim=True)

    for t in (0.02, 0.5, 0.97):
        time = torch.tensor(t)
        made = patchwise(pointwise, (8, 8, 8), overlap)(x, time, given)
        torch.testing.assert_close(made, torch.tanh(x) * time + given.spatial.sum(1, keepdim=True))


def test_patches_lie_elsewhere_at_every_time_and_at_the_same_places_at_the_same() -> None:
    starts: list[float] = []

    def remember(part: Tensor, t: Tensor, maps: Conditioning) -> Tensor:
        starts.append(float(part[0, 0, 0, 0, 0]))
        return part

    x = torch.arange(24.0).view(1, 1, 24, 1, 1).expand(1, 1, 24, 2, 2)
    together = patchwise(remember, (8, 8, 8), 0.25)
    runs = []
    for t in (0.3, 0.3, 0.7):
        starts.clear()
        together(x, torch.tensor(t), Conditioning(torch.zeros(1, 0, 24, 2, 2)))
        runs.append(list(starts))
    assert runs[0] == runs[1] != runs[2]


def test_what_cannot_be_cut_is_refused() -> None:
    x = torch.zeros(1, 1, 9, 9, 9)
    given = Conditioning(x, residuals=(x,))
    with pytest.raises(DataError, match="leave vector and residuals out"):
        patchwise(field_denoiser(), (8, 8, 8), 0.25)(x, torch.tensor(0.5), given)
