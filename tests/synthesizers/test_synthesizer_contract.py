"""What every synthesizer must keep, whatever its family. A new family joins with one line in FAMILIES or in OWN."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import AUTOENCODERS, MAKERS, PAINTERS, Echo, tiny_domain, tiny_gan, tiny_latent_gan, tiny_model
from torch import Tensor

from latentsynth.data.cache.volumes import one_hot
from latentsynth.data.exchange.requests import Placed
from latentsynth.data.frames import Frame
from latentsynth.diffusion import SAMPLERS
from latentsynth.errors import ConfigError, DataError
from latentsynth.randomness import Draws
from latentsynth.synthesizers import Chained, LatentDiffusion, Synthesizer
from latentsynth.types import Condition, Generated

SEEDS = [3, 11, 2**61 + 5]


class Family(NamedTuple):
    """What the contract must know about a family.

    Attributes:
        build: Makes a tiny one.
        change: A setting and another value of it, which makes other volumes; empty where nothing can be changed.
        wrong: A setting misspelt, and what it is taken for.
        impossible: Settings that it must refuse.
        takes_style: Whether it takes a reference scan.
    """

    build: Callable[[], Synthesizer]
    change: dict[str, Any]
    wrong: tuple[str, str]
    impossible: tuple[dict[str, Any], ...]
    takes_style: bool = False


diffusion_family = partial(
    Family,
    change={"steps": 2},
    wrong=("step", "steps"),
    impossible=(
        {"steps": 0}, {"steps": 1001}, {"steps": "many"}, {"guidance": -1.0}, {"guidance_interval": (0.0, 2.0)},
        {"guidance_interval": (0.8, 0.2)}, {"scheduler": "magic"},
    ),
)  # fmt: skip
gan_family = partial(
    Family,
    change={"truncation": 0.5},
    wrong=("truncatio", "truncation"),
    impossible=({"truncation": -0.1}, {"truncation": 1.1}, {"truncation": "much"}, {"truncation": float("nan")}),
)
NO_LATENT = ("pix2pix", "CycleGAN", "progressive")  # by the first word of a name: nothing to truncate
STYLED = ("SPADE, vae", "SPADE, bottleneck")

# Models that paint a given mask.
FAMILIES: dict[str, Family] = {
    **{f"latent diffusion, {kind}": diffusion_family(partial(tiny_model, kind)) for kind in AUTOENCODERS},
    "latent GAN": gan_family(tiny_latent_gan),
    **{
        name: gan_family(
            partial(tiny_gan, name), takes_style=name in STYLED,
            change={} if name.startswith(NO_LATENT) else {"truncation": 0.5},
        )
        for name in PAINTERS
    },
}  # fmt: skip
# Models that make their own masks.
OWN: dict[str, Family] = {
    **{
        name: gan_family(partial(tiny_gan, name), change={} if name.startswith(NO_LATENT) else {"truncation": 0.5})
        for name in MAKERS
    },
    "chained, two GANs": gan_family(lambda: Chained(tiny_gan("StyleGAN 2, masks"), tiny_gan("StyleGAN 2", seed=1))),
    "chained, GAN and diffusion": diffusion_family(lambda: Chained(tiny_gan("StyleGAN 2, joint"), tiny_model("kl"))),
}
EVERY = {**FAMILIES, **OWN}


@pytest.fixture(scope="module")
def built() -> Callable[[str], Synthesizer]:
    """Models by their name, each built once; tests must not change them."""
    return cache(lambda name: EVERY[name].build())


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, built: Callable[[str], Synthesizer]) -> Synthesizer:
    return built(request.param)


@pytest.fixture(params=OWN)
def maker(request: pytest.FixtureRequest, built: Callable[[str], Synthesizer]) -> Synthesizer:
    return built(request.param)


@pytest.fixture(params=EVERY)
def named(request: pytest.FixtureRequest, built: Callable[[str], Synthesizer]) -> tuple[Synthesizer, Family]:
    """Any model, and what the contract knows about its family."""
    return built(request.param), EVERY[request.param]


@pytest.fixture(params=AUTOENCODERS)
def diffusion(request: pytest.FixtureRequest, model_of: Callable[[str], LatentDiffusion]) -> LatentDiffusion:
    return model_of(request.param)


def masks(model: Synthesizer, rows: int = 3) -> Condition:
    """A different box with a different label in every row."""
    index = torch.zeros(rows, *model.grid.shape)
    for row in range(rows):
        index[row, 2 + 3 * row : 8 + 3 * row, 4:12, 4:10] = 1 + row % 2
    return Condition(one_hot(index, len(model.domain.labels)))


def asked(model: Synthesizer) -> Condition | None:
    """What to ask a model for, whether it makes its masks or not."""
    return None if model.makes_masks else masks(model)


def made(model: Synthesizer, condition: Condition | None, seeds: list[int], **settings: object) -> Tensor:
    return model.generate(condition, seeds, **settings).image


def agree(one: Generated, other: Generated) -> None:
    """Equal but for rounding, which may tip a voxel of a mask that lies between two labels."""
    torch.testing.assert_close(one.image, other.image, rtol=0, atol=1e-4)
    assert float((one.mask != other.mask).float().mean()) < 1e-3


def apart(made: Generated, model: Synthesizer) -> list[float]:
    """How far volumes lie apart, pair by pair: in their images or, for models that make masks alone, in those."""
    what = made.image if model.makes_images else made.mask
    return [float((what[a] - what[b]).abs().mean()) for a, b in ((0, 1), (0, 2), (1, 2))]


def test_the_table_knows_what_each_model_does() -> None:
    assert {name for name, family in EVERY.items() if family.build().makes_masks} == set(OWN)


def test_a_batch_equals_one_by_one(named: tuple[Synthesizer, Family]) -> None:
    model, condition = named[0], asked(named[0])
    together = model.generate(condition, SEEDS)
    for n, seed in enumerate(SEEDS):
        alone = model.generate(None if condition is None else condition[n : n + 1], [seed])
        agree(alone, Generated(together.image[n : n + 1], together.mask[n : n + 1]))


def test_rows_do_not_know_their_place(named: tuple[Synthesizer, Family]) -> None:
    model, condition, order = named[0], asked(named[0]), [2, 0, 1]
    moved = model.generate(
        None if condition is None else Condition(condition.mask[order]), [SEEDS[n] for n in order]
    )  # fmt: skip
    straight = model.generate(condition, SEEDS)
    agree(moved, Generated(straight.image[order], straight.mask[order]))


def test_seed_and_mask_both_decide(model: Synthesizer) -> None:
    condition = masks(model)
    one = Condition(condition.mask[:1].repeat(3, 1, 1, 1, 1))
    assert min(apart(model.generate(one, SEEDS), model)) > 1e-3
    assert min(apart(model.generate(condition, [7, 7, 7]), model)) > 1e-4
    assert max(apart(model.generate(one, [7, 7, 7]), model)) < 1e-5


def test_seeds_decide_image_and_mask_of_a_model_that_makes_both(maker: Synthesizer) -> None:
    generated = maker.generate(None, SEEDS)
    assert min(apart(generated, maker)) > 1e-3
    index = generated.mask.argmax(1)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert float((index[a] != index[b]).float().mean()) > 0.01
    again = maker.generate(None, [SEEDS[0]] * 3)
    assert max(apart(again, maker)) < 1e-5
    agree(again, Generated(generated.image[:1].expand_as(again.image), generated.mask[:1].expand_as(again.mask)))


def test_images_stay_in_the_window_and_say_what_they_show(model: Synthesizer) -> None:
    condition = masks(model)
    generated = model.generate(condition, SEEDS)
    assert generated.image.shape == (3, model.grid.channels, *model.grid.shape)
    assert generated.image.device.type == "cpu"
    assert generated.image.dtype == torch.float32
    assert float(generated.image.abs().max()) <= 1
    assert float(generated.image.std()) > 0.01
    assert torch.equal(generated.mask, condition.mask)


def test_masks_that_a_model_makes_are_one_hot(maker: Synthesizer) -> None:
    generated = maker.generate(None, SEEDS)
    assert generated.mask.shape == (3, len(maker.domain.labels), *maker.grid.shape)
    assert set(generated.mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(generated.mask.sum(1), torch.ones(3, *maker.grid.shape))
    assert len(generated.mask.argmax(1).unique()) == len(maker.domain.labels)  # or it would be easy
    assert generated.image.shape == (3, maker.grid.channels, *maker.grid.shape)
    assert {generated.image.device.type, generated.mask.device.type} == {"cpu"}
    assert float(generated.image.abs().max()) <= 1
    if not maker.makes_images:
        assert float(generated.image.max()) == -1  # left empty
    else:
        assert float(generated.image.std()) > 0.01


def test_global_randomness_is_neither_used_nor_changed(named: tuple[Synthesizer, Family]) -> None:
    model, condition = named[0], asked(named[0])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = model.generate(condition, SEEDS)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = model.generate(condition, SEEDS)
    assert torch.equal(second.image, first.image)
    assert torch.equal(second.mask, first.mask)


def test_no_condition_leaves_it_to_the_model(model: Synthesizer) -> None:
    free = model.generate(None, SEEDS)
    assert free.image.shape == (3, model.grid.channels, *model.grid.shape)
    assert free.mask.shape == (3, len(model.domain.labels), *model.grid.shape)
    assert not free.mask.any()  # none is claimed
    assert float((free.image - made(model, masks(model), SEEDS)).abs().mean()) > 1e-4


@pytest.mark.parametrize("wrong", ["rows", "labels", "grid"])
def test_a_mask_that_does_not_fit_is_refused(model: Synthesizer, wrong: str) -> None:
    mask = masks(model).mask
    bad = {"rows": mask[:2], "labels": mask[:, :2], "grid": mask[..., :8]}[wrong]
    with pytest.raises(DataError, match=r"expected .*16, 16, 16"):
        made(model, Condition(bad), SEEDS)


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family in FAMILIES for name in ("context", "covariates", "style")
     if not (name == "style" and FAMILIES[family].takes_style)],
)  # fmt: skip
def test_a_condition_it_was_not_trained_on_is_refused(
    built: Callable[[str], Synthesizer], family: str, name: str
) -> None:
    model = built(family)
    condition = Condition(masks(model).mask, **{name: torch.zeros(3, 1, *model.grid.shape)})
    with pytest.raises(DataError, match=name):
        made(model, condition, SEEDS)


def test_a_model_that_makes_masks_takes_none(maker: Synthesizer) -> None:
    mask = masks(maker).mask
    with pytest.raises(DataError, match="makes its own masks"):
        maker.generate(Condition(mask), SEEDS)
    with pytest.raises(DataError, match="makes its own masks"):
        maker((mask[0].argmax(0).numpy().astype(np.int16), np.eye(4)))


def placed(index: Tensor) -> Placed:
    """Label indices of a mask that stands on the model's grid already."""
    affine = np.eye(4)
    values = index.numpy().astype(np.uint8)
    return Placed(values, values.astype(np.int16), affine, Frame(affine, values.shape), 1.0)


def test_painting_placed_masks_is_generating_for_them(model: Synthesizer) -> None:
    condition = masks(model)
    painted = model.paint([placed(index) for index in condition.mask.argmax(1)], SEEDS)
    assert torch.equal(painted.mask, condition.mask)
    agree(painted, model.generate(condition, SEEDS))


def test_a_model_that_makes_masks_uses_none_that_were_placed(maker: Synthesizer) -> None:
    agree(maker.paint([placed(index) for index in masks(maker).mask.argmax(1)], SEEDS), maker.generate(None, SEEDS))


def test_a_style_is_refused_by_whoever_takes_none(named: tuple[Synthesizer, Family]) -> None:
    """Not ignored: a sidecar would name a scan that had no part in the volume."""
    model, family = named
    where = [placed(index) for index in masks(model).mask.argmax(1)]
    style = torch.rand(3, 1, *model.grid.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if family.takes_style:
        styled = model.paint(where, SEEDS, style)
        assert float((styled.image - model.paint(where, SEEDS).image).abs().mean()) > 1e-3
        agree(styled, model.generate(Condition(masks(model).mask, style=style), SEEDS))
    else:
        with pytest.raises(DataError, match="style"):
            model.paint(where, SEEDS, style)


def test_unknown_settings_are_refused_by_name(named: tuple[Synthesizer, Family]) -> None:
    model, (misspelt, meant) = named[0], named[1].wrong
    with pytest.raises(ConfigError, match="cfg_scale"):
        made(model, asked(model), SEEDS, cfg_scale=2.0)
    with pytest.raises(ConfigError, match=f"unknown key {misspelt}, did you mean {meant}"):
        model.settings(**{misspelt: 1})


def test_settings_tell_what_is_used(named: tuple[Synthesizer, Family]) -> None:
    model, family = named
    default = model.settings()
    assert model.settings(**default) == default
    nothing = dict.fromkeys(default)  # None stands for "as it was"
    assert model.settings(**nothing) == default
    asked_for = asked(model)
    first = model.generate(asked_for, SEEDS)
    agree(model.generate(asked_for, SEEDS, **default), first)
    if not family.change:
        return
    assert model.settings(**{**nothing, **family.change}) == {**default, **family.change}
    other = model.generate(asked_for, SEEDS, **family.change)
    moved = float((other.image - first.image).abs().max()), float((other.mask != first.mask).float().mean())
    assert max(moved) > 1e-3


def test_impossible_settings_are_refused(named: tuple[Synthesizer, Family]) -> None:
    model, family = named
    for bad in family.impossible:
        key = next(iter(bad))
        with pytest.raises(ConfigError, match=key):
            model.settings(**bad)
        with pytest.raises(ConfigError, match=key):
            model.generate(asked(model), SEEDS, **bad)


@pytest.mark.parametrize("scheduler", SAMPLERS)
def test_no_scheduler_uses_or_changes_global_randomness(diffusion: LatentDiffusion, scheduler: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = made(diffusion, masks(diffusion, 1), [5], scheduler=scheduler)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(made(diffusion, masks(diffusion, 1), [5], scheduler=scheduler), first)


def test_a_setting_of_none_stays_as_it_was(diffusion: LatentDiffusion) -> None:
    assert diffusion.settings(steps=2, guidance=None) == {**diffusion.settings(), "steps": 2}


def test_an_unknown_scheduler_is_refused_before_any_work(
    diffusion: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*args: object, **kwargs: object) -> Tensor:
        raise AssertionError("the denoiser was called")

    monkeypatch.setattr(diffusion.denoiser, "forward", forward)
    with pytest.raises(ConfigError, match="choose one of ddim"):
        made(diffusion, masks(diffusion), SEEDS, scheduler="magic")
    with pytest.raises(ConfigError, match="fresh noise"):
        diffusion.settings(scheduler="ddpm")
    with pytest.raises(AssertionError, match="was called"):  # or the stub above proves nothing
        made(diffusion, masks(diffusion), SEEDS)


def test_a_denoiser_that_knows_the_answer_brings_it_back(
    diffusion: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents are whitened on the way in and given their scale back on the way out."""
    generator = torch.Generator().manual_seed(0)
    coarse = 2 * torch.rand(2, 1, 4, 4, 4, generator=generator) - 1
    image = torch.nn.functional.interpolate(coarse, size=diffusion.grid.shape, mode="trilinear")
    with torch.no_grad():
        known = diffusion.autoencoder.encode(image)
        expected = diffusion.autoencoder.decode_raw(diffusion.autoencoder.moments(image).mean)
        unscaled = diffusion.autoencoder.decode_raw(known)
    monkeypatch.setattr(diffusion.denoiser, "forward", lambda x_t, t, conditioning: known.to(x_t))
    torch.testing.assert_close(made(diffusion, masks(diffusion, 2), [1, 2], steps=8), expected, rtol=0, atol=1e-3)
    assert float((unscaled - expected).abs().mean()) > 1e-2


def test_guidance_runs_from_without_to_beyond_the_mask(diffusion: LatentDiffusion) -> None:
    condition = masks(diffusion)
    images = {scale: made(diffusion, condition, SEEDS, guidance=scale) for scale in (0.0, 1.0, 4.0)}
    torch.testing.assert_close(images[0.0], made(diffusion, None, SEEDS), rtol=0, atol=1e-5)
    assert float((images[4.0] - images[1.0]).abs().mean()) > 1e-4
    never = made(diffusion, condition, SEEDS, guidance=4.0, guidance_interval=(0.0, 0.0))
    torch.testing.assert_close(never, images[1.0], rtol=0, atol=1e-5)


def test_a_model_is_guided_by_an_earlier_one_of_its_own_latents_alone() -> None:
    model, early = tiny_model(), tiny_model()
    with torch.no_grad():
        for weight in early.denoiser.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    condition = masks(model)
    plain = model.generate(condition, SEEDS, guidance=1.0).image
    agree(
        model.guided_by(model).generate(condition, SEEDS, guidance=3.0), model.generate(condition, SEEDS, guidance=1.0)
    )
    guided = model.guided_by(early)
    assert guided.fingerprint != model.fingerprint
    torch.testing.assert_close(guided.generate(condition, SEEDS, guidance=1.0).image, plain)
    assert float((guided.generate(condition, SEEDS, guidance=3.0).image - plain).abs().mean()) > 1e-3
    with torch.no_grad():
        next(early.autoencoder.parameters()).add_(1)
    with pytest.raises(DataError, match="another autoencoder"):
        model.guided_by(early)


def test_progress_counts_up(diffusion: LatentDiffusion) -> None:
    told: list[tuple[int, int]] = []
    diffusion.generate(masks(diffusion), SEEDS, progress=lambda done, total: told.append((done, total)), steps=4)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_noise_is_normal_and_each_row_its_own() -> None:
    noise = Draws.seeded([0, 1, 2**63 + 1]).normal(4, 16, 16, 16)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(noise[1], Draws.seeded([1]).normal(4, 16, 16, 16)[0])
    assert abs(float((noise[2] * noise[1]).mean())) < 0.05  # every bit of a seed counts
    assert abs(float((noise[0] * noise[1]).mean())) < 0.05


def test_the_families_are_not_alike() -> None:
    """The contract would hold for a model that ignores its autoencoder; these two must not agree."""
    one, two = tiny_model("vq"), tiny_model("kl")
    assert float((made(one, masks(one), SEEDS) - made(two, masks(two), SEEDS)).abs().mean()) > 1e-2
    vq, kl = tiny_latent_gan("vq"), tiny_latent_gan("kl")
    assert float((made(vq, masks(vq), SEEDS) - made(kl, masks(kl), SEEDS)).abs().mean()) > 1e-2


def test_echo_keeps_the_contract_that_the_synthesis_tests_rely_on() -> None:
    echo = Echo(tiny_domain())
    values = made(echo, masks(echo), SEEDS).unique().tolist()
    assert values == [-1.0, 0.0, 1.0]
