"""What every generator promises, and what each family adds: styles, dropout, codes, cycles. StyleGAN 3 has its own."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from helpers import perturb
from torch import Tensor, nn
from torch.nn import functional

from latentsynth.errors import ConfigError, DataError
from latentsynth.gans.base import Generator, Inputs, Painted
from latentsynth.gans.cyclegan import Cycle, CycleDiscriminators, Translators, cycle_loss
from latentsynth.gans.discriminators import PatchDiscriminators
from latentsynth.gans.latent import LatentGenerator
from latentsynth.gans.progressive import ProgressiveGenerator, StyleGAN1Generator
from latentsynth.gans.spade import SPADEBlock, SPADEGenerator, StyleEncoder, _spade
from latentsynth.gans.stylegan2 import StyleGAN2Generator, mixed_styles
from latentsynth.gans.translators import ResNetGenerator, UNetGenerator, drop
from latentsynth.randomness import Draws

FLAT, DEEP = (16, 12), (8, 12, 8)
LABELS, CHANNELS = 3, 2
WIDTHS: dict[str, Any] = {"channels": 4, "max_channels": 8}
STYLED: dict[str, Any] = {**WIDTHS, "latent": 8, "style": 8, "mapping_layers": 2}

FAMILIES: dict[str, Callable[..., Generator]] = {
    "unet": lambda shape, **more: UNetGenerator(shape, CHANNELS, LABELS, **{**WIDTHS, "levels": 2, **more}),
    "resnet": lambda shape, **more: ResNetGenerator(shape, CHANNELS, LABELS, channels=4, blocks=1, **more),
    "attention": lambda shape, **more: ResNetGenerator(shape, CHANNELS, LABELS, 4, 1, attention=True, **more),
    "spade vae": lambda shape: SPADEGenerator(shape, CHANNELS, LABELS, 8, 4, 8, 4, "vae"),
    "spade bottleneck": lambda shape: SPADEGenerator(shape, CHANNELS, LABELS, 8, 4, 8, 4, "bottleneck"),
    "spade none": lambda shape: SPADEGenerator(shape, CHANNELS, LABELS, 8, 4, 8, 4, "none"),
    "stylegan1": lambda shape, **more: StyleGAN1Generator(shape, CHANNELS, **STYLED, **more),
    "stylegan2": lambda shape, **more: StyleGAN2Generator(shape, CHANNELS, **STYLED, **more),
    "stylegan2 masks": lambda shape, **more: StyleGAN2Generator(shape, CHANNELS, LABELS, **STYLED, **more),
    "progressive": lambda shape, **more: ProgressiveGenerator(shape, CHANNELS, latent=8, **WIDTHS, **more),
    "latent": lambda shape: LatentGenerator(
        shape, CHANNELS, LABELS, (8, 16), (False, True), head_channels=8, norm_groups=4
    ),
}
PAINTS_MASKS = [name for name in FAMILIES if name not in ("stylegan1", "stylegan2", "progressive")]
PLACED = ["unet", "resnet", "attention", "stylegan1", "stylegan2", "stylegan2 masks", "progressive"]


def cases(names: list[str] | None = None) -> pytest.MarkDecorator:
    """Families on a slice and on a volume; latents have three axes."""
    return pytest.mark.parametrize(
        ("name", "shape"),
        [
            pytest.param(name, shape, id=f"{name}-{len(shape)}d")
            for name in names or FAMILIES
            for shape in (FLAT, DEEP)
            if name != "latent" or shape == DEEP
        ],
    )


def build(name: str, shape: tuple[int, ...], moved: bool = True, **more: Any) -> Generator:
    """With weights moved, since some begin at 0 and would hide what they do."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = FAMILIES[name](shape, **more)
    if moved:
        perturb(model, 1)
    return model.eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 + seed))


def masks(shape: tuple[int, ...], batch: int, seed: int = 0) -> Tensor:
    """Blobs of every label, different from case to case."""
    coarse = noise(batch, LABELS, *[n // 4 for n in shape], seed=seed)
    index = functional.interpolate(coarse, shape).argmax(1)
    return functional.one_hot(index, LABELS).movedim(-1, 1).float()


def scene(model: Generator, batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """All that a model takes beside its noise."""
    given: dict[str, Tensor] = {}
    if model.labels:
        given["mask"] = masks(model.shape, batch, seed)
    if model.encodes_style:
        given["style"] = noise(batch, CHANNELS, *model.shape, seed=50 + seed)
    if model.config.get("placed"):
        given["place"] = torch.linspace(-0.8, 0.9, batch)
    return given


@torch.no_grad()
def paint(model: Generator, seeds: list[int], **given: Any) -> Tensor:
    return model(Inputs(Draws.seeded(seeds), **given)).image


def distance(one: Tensor, two: Tensor) -> float:
    """Mean absolute difference of the case that differs least."""
    return float((one - two).abs().flatten(1).mean(1).min())


def test_every_family_is_tested() -> None:
    known, todo = set(), [Generator]
    while todo:
        todo += (below := todo.pop().__subclasses__())
        known |= {kind for kind in below if kind.__module__.startswith("latentsynth.") and not inspect.isabstract(kind)}
    tested = {type(build(name, DEEP)) for name in FAMILIES}
    assert {kind.__name__ for kind in known - tested} == {"StyleGAN3Generator"}


# What all promise


@pytest.mark.parametrize("training", [False, True])
@cases()
def test_a_row_does_not_depend_on_the_others(name: str, shape: tuple[int, ...], training: bool) -> None:
    model = build(name, shape, **({"placed": True} if name in PLACED else {})).train(training)
    given, seeds = scene(model), [4, 5, 6]
    together = paint(copy.deepcopy(model), seeds, **given)  # a copy each, as spectral norms move on in training
    for n, seed in enumerate(seeds):
        alone = paint(copy.deepcopy(model), [seed], **{key: value[n : n + 1] for key, value in given.items()})
        torch.testing.assert_close(alone, together[n : n + 1], atol=1e-5, rtol=1e-4)
    assert distance(together, together.roll(1, 0)) > 1e-3


@cases()
def test_seeds_decide_the_image(name: str, shape: tuple[int, ...]) -> None:
    model = build(name, shape)
    given = scene(model, 1)
    if name != "spade bottleneck":  # which takes from a scan all that it needs
        assert distance(paint(model, [4], **given), paint(model, [5], **given)) > 1e-3
    assert torch.equal(paint(model, [4], **given), paint(model, [4], **given))
    given.pop("style", None)
    assert distance(paint(model, [4], **given), paint(model, [5], **given)) > 1e-3


@cases()
def test_the_global_state_of_randomness_is_left_alone(name: str, shape: tuple[int, ...]) -> None:
    model = build(name, shape)
    given = scene(model, 2)
    for training in (True, False):
        model.train(training)
        before = torch.get_rng_state()
        first = model(Inputs(Draws.seeded([1, 2]), **given, mixing=0.5)).image
        assert torch.equal(torch.get_rng_state(), before)
        model.load_state_dict(model.state_dict())
        torch.manual_seed(99)
        if not training:  # in training, running means and spectral norms move on
            assert torch.equal(model(Inputs(Draws.seeded([1, 2]), **given, mixing=0.5)).image, first)


@cases()
def test_a_saved_generator_makes_the_same_images(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    model = build(name, shape).train()
    given = scene(model, 2)
    with torch.enable_grad():
        model(Inputs(Draws.seeded([7, 8]), **given))  # moves what is tracked in training
    model.eval().save(tmp_path / "part")
    again = Generator.from_pretrained(tmp_path / "part")
    assert type(again) is type(model)
    assert not again.training
    assert again.shape == model.shape
    for settings in (given, {key: value for key, value in given.items() if key != "style"}):
        assert torch.equal(paint(again, [1, 2], **settings), paint(model, [1, 2], **settings))
    if model.truncates:
        assert torch.equal(paint(again, [1, 2], **given, truncation=0.4), paint(model, [1, 2], **given, truncation=0.4))


def before_norms(name: str, model: Generator) -> set[str]:
    """Biases that what is right behind them takes away."""
    if name == "unet":
        last = len(model.down) - 1  # ends in no normalisation
        return {f"down.{n}.0.bias" for n in range(last)} | {f"up.{n}.0.bias" for n in range(last + 1)}
    if name in ("resnet", "attention"):
        blocks = {f"residuals.0.{n}.0.bias" for n in range(2)}
        return {"start.0.bias", *blocks} | {f"{part}.{n}.0.bias" for part in ("down", "up") for n in range(2)}
    if name.startswith("spade"):
        shortcuts = range(max(n for n, block in enumerate(model.blocks) if block.skip is not None))  # normalised behind
        return {f"blocks.{n}.convs.0.bias" for n in range(len(model.blocks))} | {
            f"blocks.{n}.convs.1.bias" for n in shortcuts
        }
    if name in ("progressive", "stylegan1"):  # full-grown, images of smaller sizes are made no longer
        return {f"images.{n}.{kind}" for n in range(len(model.levels) - 1) for kind in ("weight", "bias")}
    if name == "latent":  # a constant in all keys changes no attention
        return {key for key, _ in model.named_parameters() if key.endswith("attn.to_k.bias")}
    return set()


class Doubles(Draws):
    """Double precision, so that what has no slope can be told from what has a small one."""

    def normal(self, *shape: int) -> Tensor:
        return super().normal(*shape).double()


@cases()
def test_gradient_reaches_every_parameter(name: str, shape: tuple[int, ...]) -> None:
    model = build(name, shape).double().train()
    given = {key: value.double() for key, value in scene(model, 2).items()}
    made = model(Inputs(Doubles.seeded([1, 2]), **given))
    (made.image * noise(2, CHANNELS, *shape)).sum().backward()
    idle = {
        key for key, weight in model.named_parameters() if weight.grad is None or float(weight.grad.abs().max()) < 1e-12
    }
    kept = {key for key in idle if not key.endswith(("mlp_gamma.conv.bias", "mlp_beta.conv.bias"))}  # see below
    assert kept == before_norms(name, model)


@cases(PAINTS_MASKS)
def test_another_mask_makes_another_image(name: str, shape: tuple[int, ...]) -> None:
    model = build(name, shape)
    given = scene(model, 2)
    first = paint(model, [1, 2], **given)
    assert distance(first, paint(model, [1, 2], **{**given, "mask": masks(shape, 2, seed=9)})) > 1e-3
    given.pop("mask")
    assert torch.equal(
        paint(model, [1, 2], **given), paint(model, [1, 2], **given, mask=torch.zeros(2, LABELS, *shape))
    )


@pytest.mark.parametrize("shape", [(48, 48), (24, 24, 24)])
@pytest.mark.parametrize("name", ["unet", "resnet", "spade none", "stylegan2 masks"])
def test_a_lesion_changes_the_image_where_it_is(name: str, shape: tuple[int, ...]) -> None:
    """At least twice as much within as in the opposite half; normalisation reaches everywhere, a little."""
    model = build(name, shape)
    empty = torch.zeros(1, LABELS, *shape)
    empty[:, 0] = 1
    lesion = empty.clone()
    place = (slice(None), *(slice(n // 12, n // 4) for n in shape))
    lesion[:, 0][place], lesion[:, 1][place] = 0, 1
    change = (paint(model, [1], mask=lesion) - paint(model, [1], mask=empty)).abs().mean(1)
    far = (slice(None), *(slice(n // 2, n) for n in shape))
    assert float(change[place].mean()) > 2 * float(change[far].mean())


@cases(PLACED)
def test_place_matters_where_it_is_asked_for(name: str, shape: tuple[int, ...]) -> None:
    model = build(name, shape, placed=True)
    given = scene(model, 2)
    here = {**given, "place": torch.tensor([-0.5, 0.2])}
    there = {**given, "place": torch.tensor([0.4, 0.9])}
    assert distance(paint(model, [1, 2], **here), paint(model, [1, 2], **there)) > 1e-4
    given.pop("place")
    assert torch.equal(paint(model, [1, 2], **given), paint(model, [1, 2], **given, place=torch.zeros(2)))


@cases()
def test_truncation_brings_images_together(name: str, shape: tuple[int, ...]) -> None:
    """At 0 they are one, but for noise per voxel, which is off before training. Who does not truncate does nothing."""
    model = build(name, shape, moved=name == "latent")
    seeds = list(range(6))
    given = {key: value[:1].expand(6, *value.shape[1:]) for key, value in scene(model, 1).items() if key != "style"}
    if not model.truncates:
        full = paint(model, seeds, **given)
        assert all(torch.equal(paint(model, seeds, **given, truncation=part), full) for part in (0.0, 0.3))
        return
    spread = [
        float(paint(model, seeds, **given, truncation=truncation).std(0).mean()) for truncation in (0.0, 0.3, 0.7, 1.0)
    ]
    assert spread[0] == pytest.approx(0, abs=1e-5)
    assert all(b > a for a, b in pairwise(spread)), spread
    assert spread[1] < 0.9 * spread[3], spread
    assert paint(model, seeds, **given).equal(paint(model, seeds, **given, truncation=1.0))


def test_families_say_whether_they_encode() -> None:
    assert {name for name in FAMILIES if build(name, DEEP).encodes_style} == {"spade vae", "spade bottleneck"}


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in ("resnet", "attention", "latent")])
def test_short_axes_are_taken_as_they_are(name: str) -> None:
    """Volumes of few thick slices, and slices of odd thirds."""
    model = build(name, (16, 16, 6))
    image = paint(model, [1], **scene(model, 1))
    assert image.shape == (1, CHANNELS, 16, 16, 6)
    assert torch.isfinite(image).all()
    assert float(image.std((2, 3)).min()) > 1e-4


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("unet", (3, 8 + 1), "cannot be halved once: use axes that are multiples of 4"),
        ("unet", (5, 7, 9), "cannot be halved once: use axes that are multiples of 4"),
        ("resnet", (32, 32, 6), "must have axes that are multiples of 4"),
        ("resnet", (18, 16), "must have axes that are multiples of 4"),
        ("stylegan2", (6, 7), "cannot be halved once: use axes that are multiples of 8"),
    ],
)
def test_wrong_grids_are_refused_with_a_cure(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FAMILIES[name](shape)


@pytest.mark.parametrize("axis", range(1, 14))
def test_a_residual_generator_accepts_multiples_of_4_and_paints_them(axis: int) -> None:
    """And no others: its two halvings must come back to the same grid, with room to mirror a border of one."""
    if axis % 4 or axis < 8:
        with pytest.raises(ConfigError, match="multiples of 4"):
            build("resnet", (axis, 16))
        return
    model = build("resnet", (axis, 16))
    given = scene(model, 2)
    made = paint(model, [1, 2], **given)
    assert made.shape[2:] == (axis, 16)
    assert float(made.std()) > 0
    torch.testing.assert_close(paint(model, [2], **{key: x[1:] for key, x in given.items()}), made[1:])


# pix2pix: dropout


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_dropout_keeps_the_mean(rate: float) -> None:
    x = 1 + noise(1, 3, 4, 5).square().expand(3000, 3, 4, 5)
    y = drop(x, Draws.seeded(range(3000)), rate)
    torch.testing.assert_close(y.mean(0), x[0], rtol=6 * math.sqrt(rate / (1 - rate) / 3000), atol=0)
    kept = y != 0
    torch.testing.assert_close(y[kept], (x / (1 - rate))[kept])
    assert float(kept.float().mean()) == pytest.approx(1 - rate, abs=0.01)
    together = (~kept[:, 0, 0, 0] & ~kept[:, 1, 0, 0]).float().mean()  # cells and channels fall on their own
    assert float(together) == pytest.approx(rate**2, abs=0.03)


def test_without_dropout_nothing_is_drawn() -> None:
    draws, x = Draws.seeded([1]), noise(1, 2, 4, 4)
    assert drop(x, draws, 0.0) is x
    assert torch.equal(draws.normal(3), Draws.seeded([1]).normal(3))


@pytest.mark.parametrize("name", ["unet", "resnet", "attention"])
def test_dropout_is_all_the_noise_and_stays_on_after_training(name: str) -> None:
    still, lively = build(name, FLAT, dropout=0.0), build(name, FLAT, dropout=0.3)
    given = scene(still, 1)
    assert torch.equal(paint(still, [1], **given), paint(still, [2], **given))
    for training in (True, False):
        lively.train(training)
        assert distance(paint(lively, [1], **given), paint(lively, [2], **given)) > 1e-3


@pytest.mark.parametrize("name", ["unet", "resnet", "attention", "spade vae"])
def test_squashed_images_lie_within_the_range(name: str) -> None:
    model = build(name, FLAT)
    assert model.config["squash"]
    perturb(model, 5, 1.0)
    assert float(paint(model, [1, 2], **scene(model, 2)).abs().max()) <= 1
    model.squash = False
    assert float(paint(model, [1, 2], **scene(model, 2)).abs().max()) > 1


@pytest.mark.parametrize("shape", [FLAT, DEEP])
def test_skips_lead_past_the_coarse_levels(shape: tuple[int, ...]) -> None:
    """With the way down and the last layer's own view of the mask cut, the mask is still seen."""
    model = build("unet", shape, dropout=0.0)
    assert isinstance(model, UNetGenerator)
    with torch.no_grad():
        model.out.weight[:, -LABELS:] = 0
        for weight in model.down[0].parameters():
            weight.zero_()
    one, two = (paint(model, [1], mask=masks(shape, 1, seed)) for seed in (0, 9))
    assert distance(one, two) > 1e-2


def test_attention_blends_with_a_map_of_the_mask() -> None:
    """m G + (1 - m) blend(mask): with attention forced to 0 the image is the blend, to 1 the plain network's."""
    model = build("attention", FLAT)
    given = scene(model, 1)
    with torch.no_grad():
        model.attend.weight.zero_()
        model.attend.bias.fill_(-50)
        blend = model.blend(given["mask"]).clamp(-1, 1)
        torch.testing.assert_close(paint(model, [1], **given), blend)
        model.attend.bias.fill_(50)
        full = paint(model, [1], **given)
        model.attend = model.blend = None
        torch.testing.assert_close(full, paint(model, [1], **given))


# SPADE: modulation and codes


@pytest.mark.parametrize("shape", [(16, 12), (12, 10, 10)])
def test_modulation_depends_on_the_mask_nearby(shape: tuple[int, ...]) -> None:
    """Two convolutions of kernel 3: what a label does to a voxel is no matter of how much of it lies elsewhere."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer, x = _spade(len(shape), LABELS, 4, 4), noise(1, 4, *shape)
    one, two = masks(shape, 1), masks(shape, 1, seed=1)
    near = (..., *(slice(n // 2 - 2, n // 2 + 3) for n in shape))
    two[near] = one[near]
    centre = (..., *(n // 2 for n in shape))
    assert not torch.allclose(layer(x, one), layer(x, two))
    torch.testing.assert_close(layer(x, one)[centre], layer(x, two)[centre])


def test_a_spade_block_normalises_its_learnt_shortcut_too() -> None:
    """So that the level and spread of its input's channels change nothing (Park et al. 2019, fig. 4)."""
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(2, 4, 6, 6, generator=generator), torch.rand(2, LABELS, 6, 6, generator=generator)
    other = 3 * x + torch.randn(1, 4, 1, 1, generator=generator)
    block = SPADEBlock(2, 4, 6, LABELS, 4).eval()
    torch.testing.assert_close(block(other, mask), block(x, mask), atol=1e-4, rtol=1e-4)
    straight = SPADEBlock(2, 4, 4, LABELS, 4).eval()  # as many features: the shortcut is the input itself
    assert not torch.allclose(straight(other, mask), straight(x, mask), atol=0.1)


@cases(["spade vae", "spade bottleneck"])
def test_a_reference_decides_the_look(name: str, shape: tuple[int, ...]) -> None:
    model = build(name, shape)
    mask, one, two = masks(shape, 1), noise(1, CHANNELS, *shape, seed=1), noise(1, CHANNELS, *shape, seed=2)
    assert torch.equal(paint(model, [1], mask=mask, style=one), paint(model, [1], mask=mask, style=one))
    assert distance(paint(model, [1], mask=mask, style=one), paint(model, [1], mask=mask, style=two)) > 1e-4
    seeds = torch.equal(paint(model, [1], mask=mask, style=one), paint(model, [2], mask=mask, style=one))
    assert seeds == (name == "spade bottleneck")  # a VAE draws around what it reads


@torch.no_grad()
def test_intensities_survive_the_encoder() -> None:
    """A normalisation would make scans that differ by brightness or contrast one style."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, scan = StyleEncoder(FLAT, 1, 4, 6), noise(1, 1, *FLAT)
    code = encoder(scan)
    for other in (scan + 0.5, 2 * scan):
        assert float((encoder(other) - code).abs().max()) > 0.05 * float(code.abs().max())


def test_a_model_without_encoder_refuses_a_reference() -> None:
    model = build("spade none", FLAT)
    with pytest.raises(DataError, match=r"without a style encoder: leave Condition\.style None"):
        paint(model, [1], style=noise(1, CHANNELS, *FLAT))


def test_an_unknown_style_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="'ae': choose vae, bottleneck or none"):
        SPADEGenerator(FLAT, 1, 2, style="ae")  # type: ignore[arg-type]


class Says(nn.Module):
    """An encoder that reads the same from every scan."""

    def __init__(self, answer: Tensor):
        super().__init__()
        self.answer = answer

    def forward(self, image: Tensor) -> Tensor:
        return self.answer


def reading(kind: str, answer: Tensor) -> SPADEGenerator:
    model = build(f"spade {kind}", FLAT)
    assert isinstance(model, SPADEGenerator)
    model.encoder = Says(answer)
    return model


def test_divergence_is_kullbacks_and_leiblers() -> None:
    mean, log_variance = noise(4, 8), noise(4, 8, seed=1) * 2
    mean[0], log_variance[0] = 0, 0
    model, scans = reading("vae", torch.cat([mean, log_variance], 1)), torch.zeros(4, CHANNELS, *FLAT)
    _, divergence = model.code(Draws.seeded(range(4)), scans)
    prior = torch.distributions.Normal(torch.zeros(4, 8), torch.ones(4, 8))
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    torch.testing.assert_close(divergence, torch.distributions.kl_divergence(posterior, prior).sum(1))
    assert float(divergence[0]) == 0
    assert float(divergence[1:].min()) > 0.5
    made = model(Inputs(Draws.seeded(range(4)), masks(FLAT, 4), style=scans))
    assert torch.equal(made.divergence, divergence)
    assert model(Inputs(Draws.seeded([0]))).divergence is None


def test_codes_of_a_vae_spread_as_it_reads() -> None:
    mean, log_variance = noise(1, 8), noise(1, 8, seed=1)
    answer = torch.cat([mean, log_variance], 1).expand(4000, 16)
    model, scans = reading("vae", answer), torch.zeros(4000, CHANNELS, *FLAT)
    for truncation in (1.0, 0.5, 0.0):
        codes, _ = model.code(Draws.seeded(range(4000)), scans, truncation)
        deviation = (log_variance[0] / 2).exp()
        torch.testing.assert_close(codes.std(0), deviation * truncation, rtol=0.06, atol=1e-5)
        assert float(((codes.mean(0) - mean[0]) / deviation).abs().max()) < 5 / math.sqrt(4000)


def test_a_wild_log_variance_stays_finite() -> None:
    model = reading("vae", torch.tensor([[500.0] * 16, [-500.0] * 16]))
    codes, divergence = model.code(Draws.seeded([1, 2]), torch.zeros(2, CHANNELS, *FLAT))
    assert torch.isfinite(codes).all()
    assert torch.isfinite(divergence).all()


def tracked(batch: int, steps: int = 800) -> tuple[SPADEGenerator, Tensor, Tensor]:
    """A bottleneck that has read codes of known mean and deviation."""
    mean, deviation = noise(8) * 3, noise(8, seed=1).exp()
    codes = mean + deviation * noise(steps, batch, 8, seed=2)
    model, scans = build("spade bottleneck", FLAT).train(), torch.zeros(batch, CHANNELS, *FLAT)
    for code in codes:
        model.encoder = Says(code)
        answer, _ = model.code(Draws.seeded(range(batch)), scans)
        assert torch.equal(answer, code)
    return model.eval(), mean, deviation


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_a_bottleneck_tracks_how_codes_are_spread(batch: int) -> None:
    """Running means over about 200 steps, so within some 5 standard errors of 100 batches."""
    model, mean, deviation = tracked(batch)
    error = 5 / math.sqrt(100 * batch)
    assert float(((model.code_mean - mean) / deviation).abs().max()) < error
    ratio = model.code_deviation / deviation
    assert float(ratio.log().mean().abs()) < max(0.03, error / math.sqrt(8))


def test_a_bottleneck_without_a_scan_draws_as_codes_are_spread() -> None:
    model, _, _ = tracked(32, steps=300)
    for truncation in (1.0, 0.5):
        codes, divergence = model.code(Draws.seeded(range(4000)), None, truncation)
        torch.testing.assert_close(codes.std(0), model.code_deviation * truncation, rtol=0.06, atol=0)
        away = (codes.mean(0) - model.code_mean) / model.code_deviation
        assert float(away.abs().max()) < 5 / math.sqrt(4000)
        assert divergence is None


def test_codes_are_tracked_in_training_with_gradients_alone() -> None:
    model, scans = build("spade bottleneck", FLAT), noise(2, CHANNELS, *FLAT)
    model.code(Draws.seeded([1, 2]), scans)
    with torch.no_grad():
        model.train().code(Draws.seeded([1, 2]), scans)
    model.code(Draws.seeded([1, 2]), None)
    assert torch.equal(model.code_mean, torch.zeros(8))
    model.code(Draws.seeded([1, 2]), scans)
    assert not torch.equal(model.code_mean, torch.zeros(8))


# StyleGAN 1 and 2: styles


@pytest.mark.parametrize("name", ["stylegan1", "stylegan2"])
def test_mixed_styles_change_hands_once(name: str) -> None:
    """The first layers follow the first latent, the last the second; every layer in between can be where."""
    model, seeds = build(name, FLAT), range(60)
    first, second = styles_of_two_latents(model, seeds)
    mixed = model(Inputs(Draws.seeded(seeds), mixing=1.0)).styles
    layers = mixed.shape[1]
    from_first = (mixed - first[:, None]).abs().amax(2) < 1e-6
    from_second = (mixed - second[:, None]).abs().amax(2) < 1e-6
    assert torch.equal(from_first, ~from_second)
    assert bool(from_first[:, 0].all())
    assert bool(from_second[:, -1].all())
    assert bool((from_first.int().diff(dim=1) <= 0).all())
    assert set(from_first.sum(1).tolist()) == set(range(1, layers))


def styles_of_two_latents(model: Generator, seeds: Any) -> tuple[Tensor, Tensor]:
    draws = Draws.seeded(seeds)
    return model.mapping(draws.normal(8)), model.mapping(draws.normal(8))


@pytest.mark.parametrize("name", ["stylegan1", "stylegan2"])
def test_unmixed_styles_are_one(name: str) -> None:
    model, seeds = build(name, FLAT), range(60)
    first, _ = styles_of_two_latents(model, seeds)
    styles = model(Inputs(Draws.seeded(seeds))).styles
    torch.testing.assert_close(styles, first[:, None].expand_as(styles))


def test_styles_are_mixed_as_often_as_asked() -> None:
    model = build("stylegan2", FLAT)
    styles = mixed_styles(model.mapping, 5, Inputs(Draws.seeded(range(600)), mixing=0.3))
    mixed = (styles[:, 0] != styles[:, -1]).any(1).float().mean()
    assert float(mixed) == pytest.approx(0.3, abs=0.09)  # 5 standard deviations


@pytest.mark.parametrize("name", ["stylegan1", "stylegan2"])
@torch.no_grad()
def test_every_layer_listens_to_its_own_style(name: str) -> None:
    model = build(name, FLAT)
    made = model(Inputs(Draws.seeded([1])))
    assert made.styles is not None

    def image(styles: Tensor) -> Tensor:
        if isinstance(model, StyleGAN2Generator):
            return model.synthesise(styles, Draws.seeded([5])).image
        start = model.start.expand(1, *model.start.shape)
        return model._climb(start, styles, Draws.seeded([5]))

    base = image(made.styles)
    for layer in range(made.styles.shape[1]):
        changed = made.styles.clone()
        changed[:, layer] += noise(8)
        assert float((image(changed) - base).abs().mean()) > 1e-5


@pytest.mark.parametrize("name", ["stylegan1", "stylegan2", "stylegan2 masks"])
def test_noise_per_voxel_comes_with_its_strength(name: str) -> None:
    """Off at first; once on, the same style has details that depend on the draw."""
    fresh = build(name, FLAT, moved=False)
    assert fresh.truncates
    given = scene(fresh, 1)
    assert torch.equal(paint(fresh, [1], **given, truncation=0.0), paint(fresh, [2], **given, truncation=0.0))
    with torch.no_grad():
        for key, weight in fresh.named_parameters():
            if "noise_strength" in key:
                weight.fill_(0.3)
    assert distance(paint(fresh, [1], **given, truncation=0.0), paint(fresh, [2], **given, truncation=0.0)) > 1e-3


def test_path_lengths_can_be_taken_of_styles() -> None:
    for name in ("stylegan1", "stylegan2"):
        made = build(name, FLAT)(Inputs(Draws.seeded([1, 2])))
        (gradient,) = torch.autograd.grad(made.image.square().sum(), made.styles)
        assert bool((gradient.abs().amax(2) > 0).all())


# CycleGAN


class Plays(nn.Module):
    """A generator that answers by a rule."""

    def __init__(self, rule: Callable[[Tensor], Tensor]):
        super().__init__()
        self.rule = rule

    def forward(self, inputs: Inputs) -> Painted:
        return Painted(self.rule(cast(Tensor, inputs.mask)))


def cycle_of(painter: Callable[[Tensor], Tensor], reader: Callable[[Tensor], Tensor], labels: int = 2) -> Cycle:
    translators = Translators(FLAT, labels, labels, 4, 1, 0.0, False)
    translators.painter, translators.reader = Plays(painter), Plays(reader)
    return translators(Draws.seeded([1]), masks(FLAT, 1)[:, :labels], 2 * noise(1, labels, *FLAT).sigmoid() - 1)


def test_a_perfect_cycle_costs_nothing() -> None:
    """Painter x -> 2 x - 1, reader x -> x: from masks in 0..1 through images in [-1, 1] and back."""
    mask, image = masks(FLAT, 1)[:, :2], 2 * noise(1, 2, *FLAT).sigmoid() - 1
    cycle = cycle_of(lambda x: 2 * x - 1, lambda x: x)
    assert float(cycle_loss(cycle, mask, image, 0.0)) == pytest.approx(0, abs=1e-6)
    assert float(cycle_loss(cycle, mask, image, 1.0)) > 0.1  # the identity is another matter
    for fault in ("mask_again", "image_again"):
        spoilt = cycle._replace(**{fault: getattr(cycle, fault) + 0.25})
        assert float(cycle_loss(spoilt, mask, image, 0.0)) == pytest.approx(0.25, abs=1e-6)
    same = cycle._replace(same_image=image + 0.5, same_mask=2 * mask - 1.25)
    assert float(cycle_loss(same, mask, image, 0.4)) == pytest.approx(0.4 * 0.75, abs=1e-6)


def test_the_cycle_calls_the_right_translator_in_the_right_units() -> None:
    mask, image = masks(FLAT, 1)[:, :2], 2 * noise(1, 2, *FLAT).sigmoid() - 1
    cycle = cycle_of(lambda x: x + 10, lambda x: x * 3)
    expected = Cycle(mask + 10, image * 3, (mask + 10) * 3, (image * 3 + 1) / 2 + 10, image + 10, mask * 3)
    for got, wanted in zip(cycle, expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("channels", "labels"), [(1, 3), (4, 2), (2, 2)])
@pytest.mark.parametrize("shape", [FLAT, DEEP])
def test_images_may_have_more_channels_than_masks_or_fewer(shape: tuple[int, ...], channels: int, labels: int) -> None:
    """Both translators take what they make, and all that they take counts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        both = Translators(shape, channels, labels, 4, 1, 0.0, False)
    mask = noise(1, labels, *shape).sigmoid().requires_grad_()
    image = noise(1, channels, *shape, seed=1).tanh().requires_grad_()
    cycle = both(Draws.seeded([1]), mask, image)
    sides = {"image": channels, "mask_again": labels, "mask": labels, "image_again": channels, "same_image": channels, "same_mask": labels}  # fmt: skip
    for name, wide in sides.items():
        made = getattr(cycle, name)
        assert made.shape == (1, wide, *shape)
        source = image if name in ("mask", "image_again", "same_image") else mask
        (gradient,) = torch.autograd.grad((made * noise(*made.shape, seed=3)).sum(), source, retain_graph=True)
        assert bool((gradient.abs().flatten(2).amax(2) > 0).all())


@pytest.mark.parametrize("name", ["unet", "resnet", "attention"])
def test_a_translator_takes_no_more_channels_than_it_knows(name: str) -> None:
    wide = masks(FLAT, 1).repeat(1, 2, 1, 1)
    with pytest.raises((ValueError, RuntimeError)):
        paint(build(name, FLAT), [1], mask=wide)


@pytest.mark.parametrize("attention", [False, True])
def test_the_painter_alone_has_attention_and_dropout(attention: bool) -> None:
    both = Translators(FLAT, 1, 3, 4, 1, 0.3, attention)
    assert (both.painter.attend is not None) == attention
    assert both.reader.attend is None
    mask, image = masks(FLAT, 1), noise(1, 1, *FLAT).tanh()
    one, two = (both(Draws.seeded([seed]), mask, image) for seed in (1, 2))
    assert torch.equal(one.mask, two.mask)
    assert not torch.equal(one.image, two.image)


def test_judges_judge_each_side() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        discriminators = CycleDiscriminators(
            PatchDiscriminators(FLAT, 1, channels=4, layers=1), PatchDiscriminators(FLAT, LABELS, channels=4, layers=1)
        )
    image, mask = noise(2, 1, *FLAT), noise(2, LABELS, *FLAT)
    of_image, of_mask = discriminators(image, mask)
    assert torch.equal(of_image.logits[0], discriminators.images(image).logits[0])
    assert torch.equal(of_mask.logits[0], discriminators.masks(mask).logits[0])
    other_image, same_mask = discriminators(image + noise(2, 1, *FLAT, seed=5), mask)
    assert not torch.equal(other_image.logits[0], of_image.logits[0])
    assert torch.equal(same_mask.logits[0], of_mask.logits[0])
