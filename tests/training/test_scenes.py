"""What a GAN is shown: the right slice at the right place, the annotation it must learn, fakes of earlier steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import tiny_autoencoder
from torch.utils.data import default_collate

from latentsynth.conditioning import MaskConditioner
from latentsynth.data.cache.loading import SlicePositions
from latentsynth.gans import Annotation
from latentsynth.gans.base import slice_places
from latentsynth.parallel import start
from latentsynth.training.recipes.pool import from_pool
from latentsynth.training.recipes.scenes import LatentScenes, VoxelScenes

SHAPE = (6, 8, 10)


def batch(rows: int = 64) -> dict[str, torch.Tensor]:
    """Volumes whose voxels say where they are: channel 0 holds 100 i + 10 j + k."""
    i, j, k = torch.meshgrid(*(torch.arange(n) for n in SHAPE), indexing="ij")
    image = (100 * i + 10 * j + k).float().expand(rows, 1, *SHAPE).clone()
    mask = torch.zeros(rows, 3, *SHAPE)
    mask[:, 0], mask[:, 2, 2:4, 3:5, :5] = 1, 1
    mask[:, 0, 2:4, 3:5, :5] = 0
    return {"image": image, "mask": mask, "position": torch.arange(rows), "seen": torch.tensor(0)}


def scenes(form: str = "image_given_mask", slices: int | None = None, coding: str = "one_hot") -> VoxelScenes:
    return VoxelScenes([2], 1, form, Annotation((0, 1, 4), coding), slices)  # type: ignore[arg-type]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_lie_where_they_are_said_to_lie(axis: int) -> None:
    whole, count = batch(), SHAPE[axis]

    def item(index: int, at: int) -> dict[str, torch.Tensor]:
        return {name: whole[name][index].select(1 + axis, at) for name in ("image", "mask")}

    def drawn(seed: int) -> dict[str, torch.Tensor]:
        positions = SlicePositions(item, count, 64, seed)
        return default_collate([positions[n] for n in range(64)])

    given = drawn(0)
    scene = scenes(slices=count)(given)
    assert scene.place is not None
    digit = [100, 10, 1][axis]
    index = (scene.real.amin(dim=(1, 2, 3)) // digit).long()  # the other two axes start at 0
    torch.testing.assert_close(scene.place, slice_places(count, torch.device("cpu"))[index])
    assert set(index.tolist()) == set(range(count))  # all of them are drawn
    assert torch.equal(index, given["slice"])
    assert torch.equal(drawn(0)["slice"], given["slice"])
    assert not torch.equal(drawn(1)["slice"], given["slice"])


def test_places_are_symmetric_and_evenly_spaced() -> None:
    places = slice_places(8, torch.device("cpu"))
    torch.testing.assert_close(places, -places.flip(0))
    torch.testing.assert_close(places.diff(), torch.full((7,), 0.25))


@pytest.mark.parametrize("coding", ["one_hot", "cuts"])
def test_forms_say_what_is_made_and_what_is_given(coding: str) -> None:
    given = batch(2)
    painter = scenes()(given)
    assert torch.equal(painter.real, given["image"])
    assert painter.mask is given["mask"]
    code = Annotation((0, 1, 4), coding).encode(given["mask"])  # type: ignore[arg-type]
    joint = scenes("joint", coding=coding)
    assert joint.intensity_channels == 1
    assert torch.equal(joint(given).real, torch.cat([given["image"], code], 1))
    alone = scenes("mask_only", coding=coding)
    assert alone.intensity_channels == 0
    assert torch.equal(alone(given).real, code)
    assert joint(given).mask is None
    assert torch.equal(joint(given).lesion[:, 0], given["mask"][:, 2])


def test_latents_come_whitened_and_drawn_anew() -> None:
    autoencoder = tiny_autoencoder("kl")
    conditioner = MaskConditioner(3, autoencoder.factors, 2)
    mask = torch.zeros(8, 3, 16, 16, 16)
    mask[:, 1] = 1
    images = torch.nn.functional.interpolate(2 * torch.rand(8, 1, 4, 4, 4) - 1, size=(16, 16, 16), mode="trilinear")
    with torch.no_grad():
        moments = autoencoder.moments(images)
    given = {"mean": moments.mean, "deviation": moments.deviation, "mask": mask, "position": torch.arange(8)}
    found = LatentScenes(0, autoencoder, conditioner, [1])(given)
    expected = autoencoder.whiten(moments.mean)
    noise = (found.real - expected).std() / (moments.deviation / autoencoder.latent_std).square().mean().sqrt()
    assert float(noise) == pytest.approx(1, abs=0.15)
    assert found.mask is not None
    assert found.mask.shape[1] == conditioner.channels
    assert float(found.lesion.min()) == 1
    later = LatentScenes(0, autoencoder, conditioner, [1])({**given, "position": torch.arange(8, 16)})
    assert float((later.real - found.real).abs().mean()) > 0


def show(state: dict, first: int, size: int, rows: int = 4) -> torch.Tensor:
    fakes = torch.arange(first, first + rows).float().view(-1, 1).repeat(1, 2)  # both channels hold the same number
    return from_pool(state, fakes, {"position": torch.arange(first, first + rows)}, size, seed=0)


def test_the_pool_brings_back_earlier_fakes_half_of_the_time(tmp_path: Path) -> None:
    start()
    state: dict = {}
    assert show(state, 0, 0).tolist() == [[n, n] for n in range(4)]
    assert state == {}
    earlier = []
    for first in range(0, 4000, 4):
        shown = show(state, first, 20)
        assert torch.equal(shown[:, 0], shown[:, 1])  # an image keeps the mask it was made for
        if first < 20:
            assert shown[:, 0].tolist() == list(range(first, first + 4))
        else:
            earlier += [float(value) < first for value in shown[:, 0]]
    assert len(state["pool"]) == 20
    assert sum(earlier) / len(earlier) == pytest.approx(0.49, abs=0.03)  # one in 50 comes from the same step
    torch.save(state, tmp_path / "state.pt")
    kept = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(show(kept, 4000, 20), show(state, 4000, 20))
