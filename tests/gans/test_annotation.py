"""Labels as channels: back and forth, the published cuts, and what counts as no label."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from latentsynth.gans.annotation import Annotation, Coding

CODINGS: tuple[Coding, ...] = get_args(Coding)
BRATS = (0, 1, 2, 4)
VALUES = [BRATS, (0, 1), (0, 2, 5, 6, 11)]
SHAPES = [(8, 6), (6, 4, 5)]


def labels(count: int, shape: tuple[int, ...], batch: int = 3, seed: int = 0) -> Tensor:
    """Random one-hot labels, float."""
    index = torch.randint(0, count, (batch, *shape), generator=torch.Generator().manual_seed(seed))
    return functional.one_hot(index, count).movedim(-1, 1).float()


def brats(units: list[float]) -> Tensor:
    """Grey levels in units of the labels, 0 to 5, as channels of two cases with one voxel per row."""
    return (torch.tensor(units) * 2 / 5 - 1).view(1, 1, -1, 1).repeat(2, 1, 1, 3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("coding", CODINGS)
def test_labels_come_back_exactly(coding: Coding, values: tuple[int, ...], shape: tuple[int, ...]) -> None:
    annotation, mask = Annotation(values, coding), labels(len(values), shape)
    channels = annotation.encode(mask)
    assert channels.shape[1] == annotation.channels == (1 if coding == "cuts" else len(values))
    assert channels.abs().max() <= 1
    assert torch.equal(annotation.decode(channels), mask)
    assert torch.equal(annotation.invalid(channels), torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("coding", CODINGS)
def test_labels_come_back_from_other_precisions(coding: Coding, dtype: torch.dtype) -> None:
    annotation, mask = Annotation(BRATS, coding), labels(4, (8, 6))
    channels = annotation.encode(mask).to(dtype)
    assert torch.equal(annotation.decode(channels), mask.to(dtype))
    assert annotation.invalid(channels).max() == 0


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("coding", CODINGS)
def test_small_noise_keeps_the_labels(coding: Coding, values: tuple[int, ...]) -> None:
    """Up to just less than half a step between neighbouring values, or 1 where each label has a channel."""
    annotation, mask = Annotation(values, coding), labels(len(values), (16, 16))
    channels = annotation.encode(mask)
    reach = 1.0 if coding == "one_hot" else 1 / (values[-1] + 1)
    push = 2 * torch.rand(channels.shape, generator=torch.Generator().manual_seed(1)) - 1
    assert torch.equal(annotation.decode(channels + 0.99 * reach * push), mask)
    assert not torch.equal(annotation.decode(channels + 4 * reach * push), mask)


def test_grey_levels_are_those_of_the_publication() -> None:
    """BraTS labels stand at v / 5 in [0, 1]."""
    annotation, mask = Annotation(BRATS, "cuts"), labels(4, (6, 5))
    value = (mask * torch.tensor(BRATS).view(1, 4, 1, 1)).sum(1)
    torch.testing.assert_close((annotation.encode(mask)[:, 0] + 1) / 2, value / 5)


@pytest.mark.parametrize(("cut", "below", "above"), [(0.5, 0, 1), (1.5, 1, 2), (3.0, 2, 4)])
def test_cuts_are_those_of_the_publication(cut: float, below: int, above: int) -> None:
    decoded = Annotation(BRATS, "cuts").decode(brats([cut - 1e-3, cut + 1e-3]))
    value = (decoded * torch.tensor(BRATS).view(1, 4, 1, 1)).sum(1)
    assert torch.equal(value[:, 0], torch.full((2, 3), float(below)))
    assert torch.equal(value[:, 1], torch.full((2, 3), float(above)))


@pytest.mark.parametrize("values", VALUES)
def test_cuts_choose_the_nearest_level(values: tuple[int, ...]) -> None:
    channels = torch.linspace(-1.3, 1.3, 1001).view(1, 1, -1, 1)
    levels = torch.tensor(values) * 2 / (values[-1] + 1) - 1
    nearest = (channels[0, 0] - levels).abs().argmin(1)
    assert torch.equal(Annotation(values, "cuts").decode(channels)[0, :, :, 0].argmax(0), nearest)


def test_one_hot_chooses_the_largest_channel() -> None:
    channels = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    chosen = Annotation(BRATS).decode(channels)
    assert torch.equal(chosen.sum(1), torch.ones(2, 8, 6))
    assert torch.equal((chosen * channels).sum(1), channels.amax(1))


def test_no_label_and_several_labels_are_invalid_in_one_hot() -> None:
    annotation = Annotation(BRATS)
    assert annotation.invalid(-torch.rand(2, 4, 8, 6) - 0.01).tolist() == [1, 1]
    assert annotation.invalid(torch.rand(2, 4, 8, 6) + 0.01).tolist() == [1, 1]
    channels = annotation.encode(labels(4, (8, 6), batch=2))
    channels[1, :, 0] = -1  # a row of six voxels without a label
    channels[1, :2, 1, :3] = 0.2  # three with two at least
    assert annotation.invalid(channels).tolist() == pytest.approx([0, 9 / 48])


def test_half_way_to_a_cut_is_invalid_in_cuts() -> None:
    """Label 2 reaches to the cuts at 1.5 and 3, so it is clear from 1.75 to 2.5, not as far on either side."""
    annotation = Annotation(BRATS, "cuts")
    units = {0.0: 0, 0.2: 0, 0.3: 1, 0.7: 1, 0.8: 0, 1.2: 0, 1.3: 1, 1.7: 1, 1.8: 0, 2.45: 0, 2.55: 1, 3.45: 1, 3.55: 0, 4.0: 0}  # fmt: skip
    for value, wrong in units.items():
        assert annotation.invalid(brats([value])).tolist() == [wrong, wrong], value
    assert annotation.invalid(brats(list(units))).tolist() == pytest.approx([6 / 14] * 2)


def test_the_share_is_of_each_case_alone() -> None:
    clear, torn = brats([0, 1, 2, 4])[:1], brats([0, 1.5, 2, 4])[:1]
    assert Annotation(BRATS, "cuts").invalid(torch.cat([clear, torn])).tolist() == [0, 0.25]
