"""The contrastive loss term by term, and views that are what they claim to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from latentsynth.config import ViewsConfig
from latentsynth.extractors.contrastive import ContrastiveEncoder, contrastive_loss, views
from latentsynth.randomness import Draws

SHAPE = (20, 16, 12)  # different edges, so that an exchanged axis shows
STILL = {"rotate_deg": 0.0, "scale": 0.0, "shift": 0.0, "flip_axes": (), "gamma": 0.0, "brightness": 0.0, "noise": 0.0}


def config(**changes: object) -> ViewsConfig:
    """No change at all but these."""
    return ViewsConfig.model_validate({**STILL, **changes})


def generators(*seeds: int) -> Draws:
    return Draws.seeded(seeds)


def smooth(rows: int, channels: int = 1, shape: Sequence[int] = SHAPE, seed: int = 0) -> Tensor:
    """Smooth random images within (-0.8, 0.8)."""
    noise = np.random.default_rng(seed).normal(size=(rows, channels, *shape))
    image = ndimage.gaussian_filter(noise, (0, 0, 2, 2, 2))
    return torch.from_numpy(0.8 * image / np.abs(image).max()).float()


def units(rows: int, width: int = 5, seed: int = 0) -> Tensor:
    drawn = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return functional.normalize(drawn, dim=1)


def brute(first: Tensor, second: Tensor, temperature: float, patients: Sequence[int]) -> float:
    """Chen et al. 2020, eq. 1, written out; views of other images of the same patient are left out."""
    rows = [row.tolist() for row in torch.cat([first, second])]
    who = [*patients, *patients]
    losses = []
    for i, row in enumerate(rows):
        partner = (i + len(first)) % len(rows)

        def similarity(j: int, row: list[float] = row) -> float:
            return math.exp(sum(a * b for a, b in zip(row, rows[j], strict=True)) / temperature)

        others = [j for j in range(len(rows)) if j == partner or who[j] != who[i]]
        losses.append(-math.log(similarity(partner) / sum(map(similarity, others))))
    return float(np.mean(losses))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("patients", [None, [0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 2, 2], [7] * 6])
def test_the_loss_is_the_sum_over_views(temperature: float, patients: list[int] | None) -> None:
    first, second = units(6), units(6, seed=1)
    got = contrastive_loss(first, second, temperature, None if patients is None else torch.tensor(patients))
    assert float(got) == pytest.approx(brute(first, second, temperature, patients or range(6)), rel=1e-10, abs=1e-12)


def test_the_loss_is_least_for_perfect_pairs() -> None:
    """Partners alike and strangers opposed; the least possible value of n orthogonal pairs is known."""
    basis = torch.eye(4, dtype=torch.float64)
    best = float(contrastive_loss(basis, basis, 0.5))
    assert best == pytest.approx(-2 + math.log(math.exp(2) + 6))
    for seed in range(20):
        assert float(contrastive_loss(units(4, 4, seed), units(4, 4, seed + 100), 0.5)) > best
    exchanged = float(contrastive_loss(basis, basis[[1, 0, 3, 2]], 0.5))
    assert exchanged > best + 1.9  # the partner is a stranger, a stranger is the partner


def test_views_of_the_same_patient_are_no_wrong_answers() -> None:
    """Two scans of one patient that look alike cost nothing; of two patients, they do."""
    first = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 2]]
    alone = contrastive_loss(first, first, 0.1, torch.tensor([0, 0, 1, 2]))
    apart = contrastive_loss(first, first, 0.1, torch.tensor([0, 3, 1, 2]))
    assert float(alone) < 0.001
    assert float(apart) > 0.3


def test_the_loss_does_not_depend_on_the_order() -> None:
    first, second, patients = units(6), units(6, seed=1), torch.tensor([0, 0, 1, 2, 2, 3])
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    mixed = contrastive_loss(first[order], second[order], 0.2, patients[order])
    whole = contrastive_loss(first, second, 0.2, patients)
    assert float(mixed) == pytest.approx(float(whole))
    assert float(contrastive_loss(second, first, 0.2, patients)) == pytest.approx(float(whole))
    assert float(contrastive_loss(first, second, 0.2, patients + 9)) == pytest.approx(float(whole))


def test_without_ranges_a_view_is_the_image() -> None:
    images = smooth(3, 2)
    torch.testing.assert_close(views(images, config(), generators(0, 1, 2)), images, atol=1e-5, rtol=0)


def test_every_range_changes_something() -> None:
    images = smooth(1)
    changes: dict[str, object] = {
        "rotate_deg": 10.0, "scale": 0.1, "shift": 0.1, "gamma": 0.3, "brightness": 0.1, "noise": 0.1,
    }  # fmt: skip
    for key, value in changes.items():
        assert (views(images, config(**{key: value}), generators(3)) - images).abs().max() > 0.01, key


def test_a_view_depends_on_its_own_generator_alone() -> None:
    images = smooth(3, 2)
    wild = ViewsConfig(flip_axes=(0, 1, 2))
    together = views(images, wild, generators(5, 6, 7))
    for n in range(3):
        alone = views(images[n : n + 1], wild, generators(5 + n))
        torch.testing.assert_close(alone[0], together[n], atol=1e-5, rtol=0)
    other = views(images, wild, generators(5, 99, 7))
    torch.testing.assert_close(other[[0, 2]], together[[0, 2]], atol=1e-5, rtol=0)
    assert (other[1] - together[1]).abs().max() > 0.1
    torch.manual_seed(1)
    torch.testing.assert_close(views(images, wild, generators(5, 6, 7)), together)  # not on the global state


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flip_mirrors_its_own_axis(axis: int) -> None:
    image = smooth(1)
    mirrored = image.flip(2 + axis)
    found = []
    for seed in range(40):
        view = views(image, config(flip_axes=(axis,)), generators(seed))
        near = [float((view - one).abs().max()) for one in (image, mirrored)]
        assert min(near) < 1e-4
        found.append(near[1] < near[0])
    assert 8 < sum(found) < 32  # about half of them


def test_axes_are_mirrored_independently() -> None:
    image = smooth(1)
    found = set()
    for seed in range(60):
        view = views(image, config(flip_axes=(0, 2)), generators(seed))
        for dims in ((), (2,), (4,), (2, 4)):
            if (view - image.flip(dims)).abs().max() < 1e-4:
                found.add(dims)
    assert found == {(), (2,), (4,), (2, 4)}


def test_views_stay_in_the_window() -> None:
    images = torch.where(smooth(8) > 0, 1.0, -1.0)
    wild = ViewsConfig(gamma=2.0, brightness=0.9, noise=0.9)
    found = views(images, wild, generators(*range(8)))
    assert torch.isfinite(found).all()
    assert found.min() == -1
    assert found.max() == 1


def ball(radius: float) -> tuple[Tensor, np.ndarray]:
    """A soft ball in the middle of a long grid, and every voxel's place from the middle."""
    shape = (36, 24, 30)
    places = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"), axis=-1)
    distance = np.linalg.norm(places, axis=-1)
    return torch.from_numpy(np.clip(radius - distance, -1, 1)).float()[None, None], places


def test_rotation_keeps_distances() -> None:
    """A centred ball stays that ball, though the grid's edges differ; an off-centre one keeps its size and distance."""
    image, places = ball(8.0)
    knob = torch.from_numpy(np.clip(3.0 - np.linalg.norm(places - (0, 5.0, 0), axis=-1), -1, 1)).float()[None, None]
    turns = []
    for seed in range(12):
        turning = config(rotate_deg=60.0)
        view = views(image, turning, generators(seed))
        assert (view - image).abs().mean() < 0.02
        moved = views(knob, turning, generators(seed))[0, 0].numpy()
        weight = (moved + 1) / 2
        middle = (weight[..., None] * places).sum((0, 1, 2)) / weight.sum()
        assert np.linalg.norm(middle) == pytest.approx(5.0, abs=0.1)
        assert weight.sum() == pytest.approx(float((knob + 1).sum()) / 2, rel=0.03)
        turns.append(np.degrees(np.arccos(np.clip(middle[1] / np.linalg.norm(middle), -1, 1))))
    assert 20 < max(turns) < 120  # it does turn; two turns of up to 60 degrees move this axis


def test_rotation_is_about_every_axis() -> None:
    image, places = ball(3.0)
    for axis in range(3):
        offset = np.zeros(3)
        offset[axis] = 7.0
        knob = torch.from_numpy(np.clip(3.0 - np.linalg.norm(places - offset, axis=-1), -1, 1)).float()[None, None]
        spread = []
        for seed in range(10):
            weight = np.clip(views(knob, config(rotate_deg=30.0), generators(seed))[0, 0].numpy(), 0, 1)
            spread.append((weight[..., None] * places).sum((0, 1, 2)) / weight.sum())
        for other in set(range(3)) - {axis}:
            assert np.std([row[other] for row in spread]) > 0.5
    assert image.max() == 1


def test_scale_and_shift_stay_in_their_ranges() -> None:
    image, places = ball(6.0)
    radii, shifts = [], []
    for seed in range(40):
        weight = np.clip(views(image, config(scale=0.2), generators(seed))[0, 0].numpy(), 0, 1)
        radii.append((weight.sum() / float(image.clamp(0, 1).sum())) ** (1 / 3))
        weight = np.clip(views(image, config(shift=0.1), generators(seed))[0, 0].numpy(), 0, 1)
        shifts.append(np.abs((weight[..., None] * places).sum((0, 1, 2)) / weight.sum()) / places.shape[:3])
    assert 1 / 1.25 < min(radii) < 0.9 < 1.1 < max(radii) < 1.25
    assert 0.07 < np.max(shifts) <= 0.102
    assert np.all(np.max(shifts, axis=0) > 0.06)


def test_brightness_and_gamma_are_what_they_say() -> None:
    grey = torch.full((64, 1, *SHAPE), 0.5)  # 0.75 of the window
    bright = views(grey, config(brightness=0.1), generators(*range(64))).mean((1, 2, 3, 4)) - 0.5
    assert 0.08 < bright.abs().max() <= 0.1 + 1e-6
    assert bright.min() < -0.05 < 0.05 < bright.max()
    gamma = (views(grey, config(gamma=0.3), generators(*range(64))).mean((1, 2, 3, 4)) + 1) / 2
    log = torch.log(torch.log(gamma) / math.log(0.75))
    assert 0.25 < log.abs().max() <= 0.3 + 1e-4
    noisy = views(torch.zeros(64, 1, *SHAPE), config(noise=0.05), generators(*range(64))).std((1, 2, 3, 4))
    assert 0.04 < noisy.max() < 0.052
    assert noisy.min() < 0.01


def test_smoothing_lies_between_the_image_and_its_binomial_mean() -> None:
    """At most twice the filter 1, 2, 1 along every axis, edge voxels repeated; the share is the image's own."""
    images = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0)).repeat(40, 1, 1, 1, 1) * 1.8 - 0.9
    most = images[0, 0].double().numpy()
    for axis in (0, 1, 2, 0, 1, 2):
        most = ndimage.convolve1d(most, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    found = views(images, config(smooth=1.0), generators(*range(40)))[:, 0].double().numpy()
    rough = [np.abs(np.diff(one, axis=0)).mean() for one in (images[0, 0].numpy(), *found, most)]
    assert rough[0] >= max(rough[1:-1]) - 1e-6
    assert min(rough[1:-1]) >= rough[-1] - 1e-6
    nearly = int(np.argmin(rough[1:-1]))
    np.testing.assert_allclose(found[nearly], most, atol=0.08)
    assert len({round(float(r), 6) for r in rough[1:-1]}) == 40
    level = torch.full((1, 1, *SHAPE), 0.3)
    torch.testing.assert_close(views(level, config(smooth=1.0), generators(0)), level)


def test_only_a_head_that_keeps_the_layout_knows_where_things_lie() -> None:
    torch.manual_seed(0)
    pooled = ContrastiveEncoder(1, (4, 8), 6).eval()
    layout = ContrastiveEncoder(1, (4, 8), 6, cells=(2, 2, 2)).eval()
    layout.network.load_state_dict(pooled.network.state_dict())
    image = smooth(1)
    torch.testing.assert_close(layout.features(image), pooled.features(image))

    def exchanged(maps: Tensor) -> Tensor:
        return maps.roll(maps.shape[2] // 2, 2)

    before = [pooled(image), layout(image)]
    for network in (pooled, layout):
        network.network.append(Exchange(exchanged))
    torch.testing.assert_close(pooled(image), before[0])
    assert (layout(image) - before[1]).norm() > 0.05


class Exchange(torch.nn.Module):
    """Lays the last maps elsewhere."""

    def __init__(self, move: Callable[[Tensor], Tensor]):
        super().__init__()
        self.move = move

    def forward(self, maps: Tensor) -> Tensor:
        return self.move(maps)


def test_features_of_an_image_do_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    network = ContrastiveEncoder(image_channels=2, channels=(4, 8), projection=6).eval()
    images = smooth(3, 2)
    together = network.features(images)
    torch.testing.assert_close(network.features(images[1:2])[0], together[1])
    assert together.shape == (3, 16)
    torch.testing.assert_close(network(images).norm(dim=1), torch.ones(3))


def test_weights_survive_the_disk(tmp_path: Path) -> None:
    network = ContrastiveEncoder(image_channels=1, channels=(4, 8), projection=6).eval()
    network.save(tmp_path / "network")
    loaded = ContrastiveEncoder.from_pretrained(tmp_path / "network")
    torch.testing.assert_close(loaded.features(smooth(1)), network.features(smooth(1)))
