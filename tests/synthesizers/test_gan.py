"""What GANs alone can be held to: truncation, slices put together to volumes, styles, annotations beside the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from helpers import MAKERS, PAINTERS, Echo, tiny_domain, tiny_gan, tiny_generator, tiny_latent_gan
from torch import Tensor, nn

from latentsynth.config import SPADEConfig
from latentsynth.data.cache.volumes import one_hot
from latentsynth.errors import ConfigError, DataError
from latentsynth.gans import Annotation, Generator, Painted
from latentsynth.gans.base import Inputs
from latentsynth.pretrained import register_to_config
from latentsynth.randomness import Draws
from latentsynth.synthesizers import GAN, LatentGAN
from latentsynth.types import Condition, Domain, Window

SEEDS = [3, 11, 2**61 + 5]
ODD = (16, 24, 8)  # no two edges alike, so that a swapped axis shows
STYLED = ["SPADE, vae", "SPADE, bottleneck", "SPADE, vae, slices"]
TRUNCATING = [
    "latent GAN", *(name for name in (*PAINTERS, *MAKERS) if not name.startswith(("pix2pix", "CycleGAN", "progressive")))
]  # fmt: skip


class Stub(Generator):
    """Answers with whatever a test plants.

    Args:
        shape: Grid, two axes or three.
        out_channels: Channels of its answer.
        labels: Labels of the mask that it takes.
    """

    truncates = True

    @register_to_config
    def __init__(self, shape: tuple[int, ...], out_channels: int, labels: int = 0):
        super().__init__()
        self.shape, self.labels = tuple(shape), labels
        self.dial = nn.Parameter(torch.zeros(1))  # tells where the generator stands
        self.answer: Callable[..., Tensor] | None = None

    def forward(self, inputs: Inputs) -> Painted:
        assert self.answer is not None
        return Painted(self.answer(inputs.draws, inputs.mask, inputs.style, inputs.place))


def stub(
    answer: Callable[..., Tensor],
    form: str = "image_given_mask",
    coding: str = "one_hot",
    axis: int | None = None,
    domain: Domain | None = None,
) -> GAN:
    domain = domain or tiny_domain(ODD)
    annotation = Annotation(domain.labels.values, coding)
    image = 0 if form == "mask_only" else domain.grid.channels
    labels = len(domain.labels) if form == "image_given_mask" else 0
    grid = tuple(n for at, n in enumerate(domain.grid.shape) if at != axis)
    generator = Stub(grid, image + (0 if labels else annotation.channels), labels)
    generator.answer = answer
    return GAN(domain, generator, form, annotation, axis)


def speckle(shape: tuple[int, ...] = ODD, rows: int = 3, labels: int = 3) -> Tensor:
    """One-hot masks in which every voxel has a label of its own, so that any move of a voxel shows."""
    index = torch.randint(labels, (rows, *shape), generator=torch.Generator().manual_seed(0))
    return one_hot(index, labels)


@cache
def styled(name: str) -> GAN:
    if name != "SPADE, vae, slices":
        return tiny_gan(name)
    config = SPADEConfig(latent=8, hidden=4, channels=4, max_channels=8)
    domain = tiny_domain()
    generator = tiny_generator(config, (16, 16), 1, 3)
    return GAN(domain, generator, "image_given_mask", Annotation(domain.labels.values), 1)


def reference(rows: int = 3, channels: int = 1) -> Tensor:
    """Smooth scans, each another, no two slices alike."""
    coarse = torch.rand(rows, channels, 4, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return nn.functional.interpolate(coarse, (16, 16, 16), mode="trilinear")


# --- truncation


@pytest.mark.parametrize("name", TRUNCATING)
def test_without_truncation_seeds_differ_and_at_zero_they_are_alike(name: str) -> None:
    """Up to noise inputs, which are no part of the latent: they are silenced here."""
    model: GAN | LatentGAN = tiny_latent_gan() if name == "latent GAN" else tiny_gan(name)
    with torch.no_grad():
        for key, weight in model.generator.named_parameters():
            if key.endswith("noise_strength"):
                weight.zero_()
    mask = None if model.makes_masks else Condition(speckle((16, 16, 16))[:1].repeat(12, 1, 1, 1, 1))

    def spread(truncation: float) -> float:
        made = model.generate(mask, range(12), truncation=truncation)
        shown = made.mask if "mask" in name else made.image  # masks are decided voxel by voxel, so not in proportion
        return float((shown - shown.mean(0)).abs().mean())

    assert spread(0.0) < 1e-5
    assert spread(1.0) > 1e-2
    assert 1e-5 < spread(0.5) < spread(1.0)


@pytest.mark.parametrize("name", [name for name in PAINTERS if name.startswith(("pix2pix", "CycleGAN"))])
def test_truncation_is_refused_where_there_is_no_latent(name: str) -> None:
    model = tiny_gan(name)
    for truncation in (0.0, 0.9):
        with pytest.raises(ConfigError, match="has no latent to truncate"):
            model.settings(truncation=truncation)
        with pytest.raises(ConfigError, match="has no latent to truncate"):
            model.generate(Condition(speckle((16, 16, 16))), SEEDS, truncation=truncation)
    assert model.settings(truncation=1) == {"truncation": 1.0}


# --- slices


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_every_voxel_is_painted_where_its_label_lies(axis: int | None) -> None:
    """A generator that paints its own mask must come out as one that paints the whole volume at once."""

    def paint(draws: Draws, mask: Tensor, style: Tensor, place: Tensor) -> Tensor:
        return mask.argmax(1, keepdim=True).float() - 1

    model, condition = stub(paint, axis=axis), Condition(speckle())
    expected = Echo(model.domain).generate(condition, SEEDS).image
    assert torch.equal(model.generate(condition, SEEDS).image, expected)
    for other in range(3):  # a reversed axis would show
        assert not torch.equal(expected.flip(2 + other), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_told_where_they_lie(axis: int) -> None:
    def paint(draws: Draws, mask: Tensor | None, style: Tensor, place: Tensor) -> Tensor:
        assert place.shape == (ODD[axis],)
        return place.view(-1, 1, 1, 1).expand(-1, 1, *(n for at, n in enumerate(ODD) if at != axis))

    image = stub(paint, axis=axis).generate(None, SEEDS).image.movedim(2 + axis, 0)
    heights = image.flatten(1).unique(dim=1)
    assert heights.shape[1] == 1  # a slice lies at one place, in every volume at the same
    places = heights[:, 0]
    steps = places.diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 2 / ODD[axis]))  # upward, evenly
    torch.testing.assert_close(places, -places.flip(0))  # and centred


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_all_slices_of_a_volume_share_their_draws(axis: int) -> None:
    plane = tuple(n for at, n in enumerate(ODD) if at != axis)

    def paint(draws: Draws, mask: Tensor, style: Tensor, place: Tensor) -> Tensor:
        draws.normal(5)  # a latent; what follows would be a map of noise
        return draws.normal(1, *plane).tanh()

    image = stub(paint, axis=axis).generate(None, SEEDS).image
    slices = image.movedim(2 + axis, 1)
    assert torch.equal(slices, slices[:, :1].expand_as(slices))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert float((slices[a, 0] - slices[b, 0]).abs().mean()) > 0.1


def test_slices_of_a_network_differ_by_their_place_and_their_mask_alone() -> None:
    model = tiny_gan("StyleGAN 2, slices")
    assert model.slice_axis == 2
    by_place = model.generate(None, SEEDS).image
    assert float((by_place[..., 1:] - by_place[..., :-1]).abs().mean()) > 1e-4
    model.generator.mapping.place = None
    same = model.generate(None, SEEDS).image
    torch.testing.assert_close(same, same[..., :1].expand_as(same), rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_take_the_look_of_the_middle_slice_of_a_scan(axis: int) -> None:
    style = torch.rand(3, 1, *ODD, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def paint(draws: Draws, mask: Tensor, style: Tensor, place: Tensor) -> Tensor:
        return style

    model = stub(paint, axis=axis)
    model.generator.encodes_style = True
    image = model.generate(Condition(speckle(), style=style), SEEDS).image
    middle = style.narrow(2 + axis, ODD[axis] // 2, 1)
    assert torch.equal(image, middle.expand_as(image))


# --- styles


@pytest.mark.parametrize("name", STYLED)
def test_the_look_of_a_scan_is_taken_and_the_mask_still_decides(name: str) -> None:
    model, mask, scans = styled(name), speckle((16, 16, 16)), reference()
    one = mask[:1].repeat(3, 1, 1, 1, 1)
    by_style = model.generate(Condition(one, style=scans), [7, 7, 7])
    by_mask = model.generate(Condition(mask, style=scans[:1].repeat(3, 1, 1, 1, 1)), [7, 7, 7])
    free = model.generate(Condition(one), [7, 7, 7]).image
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert float((by_style.image[a] - by_style.image[b]).abs().mean()) > 1e-3
        assert float((by_mask.image[a] - by_mask.image[b]).abs().mean()) > 1e-3
    assert float((by_style.image - free).abs().mean()) > 1e-3
    assert torch.equal(by_style.mask, one)
    again = model.generate(Condition(one[:1], style=scans[1:2]), [7]).image
    torch.testing.assert_close(again, by_style.image[1:2], rtol=0, atol=1e-5)  # alone or in a batch


def test_a_bottleneck_takes_exactly_the_look_and_a_vae_draws_around_it() -> None:
    mask = speckle((16, 16, 16))[:1].repeat(3, 1, 1, 1, 1)
    scans = reference()[:1].repeat(3, 1, 1, 1, 1)

    def spread(name: str, truncation: float) -> float:
        image = styled(name).generate(Condition(mask, style=scans), SEEDS, truncation=truncation).image
        return float((image - image[:1]).abs().mean())

    assert spread("SPADE, bottleneck", 1.0) < 1e-6
    assert spread("SPADE, vae", 1.0) > 1e-3
    assert spread("SPADE, vae", 0.0) < 1e-6


@pytest.mark.parametrize("name", [name for name in PAINTERS if name not in STYLED])
def test_a_style_is_refused_where_there_is_no_encoder(name: str) -> None:
    with pytest.raises(DataError, match=r"takes no style: leave Condition\.style None"):
        tiny_gan(name).generate(Condition(speckle((16, 16, 16)), style=reference()), SEEDS)


WRONG_STYLES = {
    "another grid": reference()[..., :8],
    "two channels": reference(channels=2),
    "fewer scans": reference(rows=2),
    "one scan for all": reference(rows=1),
    "a code": torch.zeros(3, 8),
}


@pytest.mark.parametrize("wrong", WRONG_STYLES)
@pytest.mark.parametrize("name", STYLED)
def test_a_style_that_does_not_fit_is_refused_with_what_is_expected(name: str, wrong: str) -> None:
    condition = Condition(speckle((16, 16, 16)), style=WRONG_STYLES[wrong])
    with pytest.raises(DataError, match=r"style has shape .*, expected .*1, 16, 16, 16"):
        styled(name).generate(condition, SEEDS)


# --- annotations beside the image


def two_channels() -> Domain:
    domain = tiny_domain(ODD)
    window = domain.grid.windows[0]
    grid = replace(domain.grid, windows=(window, Window("fixed", 0.0, 1.0)))
    return replace(domain, grid=grid, channels=("CT", "PET"), limits=(*domain.limits, (0.0, 1.0)))


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("coding", ["one_hot", "cuts"])
@pytest.mark.parametrize("form", ["joint", "mask_only"])
def test_annotation_channels_come_back_as_the_mask(form: str, coding: str, axis: int | None) -> None:
    """Planted: two image channels, then the annotation of a known mask, of which noise hides nothing."""
    domain = two_channels()
    mask, generator = speckle(), torch.Generator().manual_seed(1)
    images = torch.rand(3, 2, *ODD, generator=generator) * 1.8 - 0.9
    if coding == "one_hot":
        channels = mask * 2 - 1
    else:  # label values 0, 1, 4 as grey levels out of 5
        channels = (mask * torch.tensor([0.0, 1.0, 4.0]).view(3, 1, 1, 1)).sum(1, keepdim=True) / 5 * 2 - 1
    channels = channels + 0.1 * (torch.rand(channels.shape, generator=generator) - 0.5)
    positive_controls = torch.cat([images, channels], 1) if form == "joint" else channels

    def paint(draws: Draws, mask: Tensor | None, style: Tensor | None, place: Tensor) -> Tensor:
        assert mask is None
        rows = [positive_controls[g.bit_generator.seed_seq.entropy] for g in draws.generators]
        if axis is None:
            return torch.stack(rows)
        return rows[0].movedim(1 + axis, 0)  # one volume at a time

    model = stub(paint, form, coding, axis, domain)
    generated = model.generate(None, [2, 0, 1])
    assert torch.equal(generated.mask, mask[[2, 0, 1]])
    expected = images[[2, 0, 1]] if form == "joint" else torch.full((3, 2, *ODD), -1.0)
    assert torch.equal(generated.image, expected)
    alone = model.generate(None, [1])
    assert torch.equal(alone.mask, mask[1:2])
    assert model.invalid_labels([0, 1, 2]).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("form", ["joint", "mask_only"])
@pytest.mark.parametrize("coding", ["one_hot", "cuts"])
def test_voxels_that_name_no_label_are_counted(form: str, coding: str, axis: int | None) -> None:
    domain = tiny_domain(ODD)
    mask = speckle()
    annotation = Annotation(domain.labels.values, coding)
    channels = annotation.encode(mask)
    image = torch.zeros(3, 1, *ODD)  # above no label's threshold, and far from the grey levels of most
    if coding == "one_hot":
        channels[1, :, :4] = -0.5  # no label in a quarter of the volume
        channels[2, :2, :, :12] = 0.5  # two labels in a half
        channels[2, 2, :, :12] = -1.0
    else:
        channels[1, :, :4] = -0.82  # nearly half-way from 0 to 1
        channels[2, :, :, :12] = 0.1  # near the cut between 1 and 4
    positive_controls = torch.cat([image, channels], 1) if form == "joint" else channels

    def paint(draws: Draws, mask: Tensor | None, style: Tensor | None, place: Tensor) -> Tensor:
        rows = [positive_controls[g.bit_generator.seed_seq.entropy] for g in draws.generators]
        return torch.stack(rows) if axis is None else rows[0].movedim(1 + axis, 0)

    model = stub(paint, form, coding, axis, domain)
    assert model.invalid_labels([0, 1, 2]).tolist() == [0.0, 0.25, 0.5]
    assert model.invalid_labels([2]).tolist() == [0.5]


def test_what_a_network_leaves_undecided_lies_between_none_and_all() -> None:
    """Random networks name no label in some voxels; the share belongs to the seed, not to its place."""
    model = tiny_gan("StyleGAN 2, joint")
    shares = model.invalid_labels(SEEDS)
    assert float(shares.min()) > 0
    assert float(shares.max()) < 1
    torch.testing.assert_close(model.invalid_labels(SEEDS[::-1]), shares.flip(0), rtol=0, atol=1e-3)
    assert len(shares.unique()) == 3
