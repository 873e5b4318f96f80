"""The configurations named after papers: they build, on no memory at all, and hold what the papers set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentsynth.config import CycleGANConfig, GanRun, load
from latentsynth.gans import Annotation, build_discriminator, build_generator
from latentsynth.gans.base import Inputs
from latentsynth.gans.cyclegan import Translators
from latentsynth.gans.progressive import GrownDiscriminator, ProgressiveGenerator, StyleGAN1Generator
from latentsynth.randomness import Draws

FOLDER = Path(__file__).parents[2] / "configs" / "generator"
PATHS = sorted(path for path in FOLDER.glob("*.yaml") if not path.stem.startswith("ldm"))
LABELS = (0, 1, 2, 4)


def test_every_family_has_one() -> None:
    kinds = {load(GanRun, path).generator.kind for path in PATHS}
    assert kinds == {
        "pix2pix", "spade", "cyclegan", "latent_gan", "progressive_gan", "stylegan1", "stylegan2", "stylegan3",
    }  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_builds_and_makes_what_its_discriminator_judges(path: Path) -> None:
    config = load(GanRun, path)
    if config.latent:
        shape, channels, labels = (32, 32, 32), 8, 32
    else:
        grid = config.data.volumes().grid
        shape = tuple(n for axis, n in enumerate(grid.shape) if config.spatial_dims == 3 or axis != config.slice_axis)
        labels = len(LABELS) if config.form == "image_given_mask" else 0
        image = 0 if config.form == "mask_only" else grid.channels
        channels = image + (
            0 if labels else Annotation(LABELS, getattr(config.generator, "coding", "one_hot")).channels
        )
    placed = config.spatial_dims == 2
    place = torch.zeros(2, device="meta") if placed else None
    with torch.device("meta"):
        judge = build_discriminator(config.discriminator, shape, channels, labels, placed)
        if isinstance(config.generator, CycleGANConfig):
            net = config.generator
            both = Translators(shape, channels, labels, net.channels, net.blocks, net.dropout, net.attention)
            assert sum(p.numel() for p in both.parameters()) > 1e6
            return
        generator = build_generator(config.generator, shape, channels, labels, placed)
        for network in (generator, judge):
            if isinstance(network, ProgressiveGenerator | StyleGAN1Generator | GrownDiscriminator):
                network.growth.grown = torch.tensor(1000 * network.growth.last, device="cpu")  # it is read as a number
        mask = torch.zeros(2, labels, *shape) if labels else None
        made = generator(Inputs(Draws.seeded([0, 1], "meta"), mask, place=place)).image
        opinion = judge(made, mask, place)
    assert made.shape == (2, channels, *shape)
    assert opinion.logits[0].shape[0] == 2
    assert sum(p.numel() for p in generator.parameters()) > 1e6


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("pix2pix_platscher", {"game.l1": 10, "game.pool": 50, "game.noise": 0.2, "game.noise_decay": 1e-3,
                               "game.loss": "least_squares", "train.lr": 2e-4, "train.betas": (0.5, 0.999)}),
        ("spade_amirrajab", {"game.loss": "hinge", "game.feature_matching": 10, "train.lr": 1e-4, "discriminator.lr": 4e-4,
                             "discriminator.scales": 2, "discriminator.layers": 4, "generator.latent": 512,
                             "generator.hidden": 128, "generator.style": "bottleneck"}),
        ("spade_vae_amirrajab", {"game.divergence": 0.05, "game.l1": 100, "generator.latent": 256}),
        ("spade_platscher", {"game.feature_matching": 0, "game.loss": "least_squares", "generator.style": "none"}),
        ("stylegan2_akbar", {"game.r1": 8, "train.images": 25_000_000, "train.batch": 32, "generator.coding": "cuts"}),
        ("stylegan3_akbar", {"game.r1": 8, "train.images": 25_000_000, "train.batch": 32, "generator.form": "joint"}),
        ("progressive_gan_akbar", {"train.images": 15_000_000, "game.grow_images": 600_000, "train.lr": 1e-3}),
        ("cyclegan_platscher", {"generator.cycle_weight": 10, "game.pool": 50}),
    ],
)  # fmt: skip
def test_it_holds_what_the_paper_sets(name: str, facts: dict[str, object]) -> None:
    config = load(GanRun, FOLDER / f"{name}.yaml")
    for key, expected in facts.items():
        section, field = key.split(".")
        assert getattr(getattr(config, section), field) == expected, key
