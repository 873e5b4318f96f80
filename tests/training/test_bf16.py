"""Everything that trains takes two steps under bf16 autocast, with every regulariser that its family takes.

On a CPU at the smallest size that has all layers: types meet there as they do on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from tiny_runs import GANS, GRID, SCHEDULE, autoencoder_config, gan_config, ldm_config, segmenter_config

from latentsynth.config import (
    AutoencoderRun,
    ExtractorRun,
    GanRun,
    LdmRun,
    MaskRun,
    SegmenterRun,
    SwinUNETRConfig,
    build,
    load,
)
from latentsynth.segmentation import build_network
from latentsynth.training.recipes.autoencoder import train_autoencoder
from latentsynth.training.recipes.extractor import train_extractor
from latentsynth.training.recipes.gan import train_gan
from latentsynth.training.recipes.ldm import train_ldm
from latentsynth.training.recipes.masks import train_masks
from latentsynth.training.recipes.segmenter import train_segmenter
from latentsynth.training.run import read_metrics

BRIEF = ["train.precision=bf16", "train.images=8", "train.batch=4", "train.log_every_images=4"]


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """The precision of a process is settled once; here each test settles its own."""
    before = dict(AcceleratorState._shared_state)
    AcceleratorState._reset_state()
    # oneDNN's bf16 convolutions leave numbers that are not finite now and then, on CPUs without such units.
    with torch.backends.mkldnn.flags(enabled=False):
        yield
    AcceleratorState._reset_state()
    AcceleratorState._shared_state.update(before)  # accelerators of other tests go on


def steps(run: Path) -> list[dict[str, Any]]:
    """What was logged at each of two steps, all of it finite."""
    lines = [line for line in read_metrics(run) if "lr" in line]
    assert [line["images_seen"] for line in lines][:2] == [4, 8]
    for line in lines:
        assert all(value is not None and math.isfinite(value) for value in line.values()), line
    return lines


def all_regularisers(family: str) -> list[str]:
    """Every term of the game that the family takes, at once and at every step."""
    if family == "cyclegan":
        return ["game.pool=4"]
    terms = {
        "r1": 1.0, "r1_every": 1, "gradient_penalty": 1.0, "drift": 0.1, "divergence": 0.1, "mixing": 0.9, "pool": 4,
        "noise": 0.1,
    }  # fmt: skip
    kind, form = GANS[family]["generator"]["kind"], GANS[family]["generator"].get("form", "")
    if family in ("pix2pix", "spade", "latent_gan", "stylegan2"):  # paint a mask
        terms |= {"l1": 1.0, "feature_matching": 1.0}
    if kind in ("stylegan1", "stylegan2"):
        terms |= {"path_length": 1.0, "path_length_every": 1}
    if kind != "progressive_gan" and form != "mask_only":
        terms |= {"augment_target": 0.6, "augment_ramp_images": 4}
    return [f"game.{name}={value}" for name, value in terms.items()]


def small(data: dict[str, Any], workplace: Path) -> dict[str, Any]:
    """The same data on a grid of 16 x 16 x 16."""
    return {**data, "grid": {**GRID, "shape": [16, 16, 16], "spacing_mm": [12.0, 12.0, 12.0]}}


@pytest.mark.parametrize("family", [*GANS, "progressive_gan, volumes", "stylegan1, volumes"])
def test_gans(family: str, workplace: Path, trained_autoencoder: Path) -> None:
    family, *volumes = family.split(", ")
    name = f"bf16-{family}{len(volumes)}"
    changes = [*BRIEF, *all_regularisers(family)]
    if "grow_images" in GANS[family].get("game", {}):  # the second step falls into the fading of a stage
        changes += ["game.grow_images=3", "train.images=12", f"spatial_dims={2 + len(volumes)}"]
    if family == "spade":
        changes += ["discriminator.layers=1"]
    file = gan_config(workplace, name, family, trained_autoencoder.name)
    values = yaml.safe_load(file.read_text())
    if "data" in values:
        file.write_text(yaml.safe_dump({**values, "data": small(values["data"], workplace)}))
    config = load(GanRun, file, changes)
    train_gan(config)
    logged = set().union(*steps(config.run))
    for term, player in (("r1", "discriminator"), ("gradient_penalty", "discriminator"), ("path_length", "generator")):
        assert (f"{player}/{term}" in logged) == bool(getattr(config.game, term)), term


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_autoencoders(kind: str, workplace: Path) -> None:
    section = {"kind": kind, "trunk": {"width": 16, "res_blocks": 1}, "latent_channels": 4}
    loss = {"adversarial_weight": 0.1, "adversarial_after_images": 4, "discriminator_channels": 8}
    config = load(AutoencoderRun, autoencoder_config(workplace, f"bf16-{kind}", autoencoder=section, loss=loss), BRIEF)
    train_autoencoder(config)
    assert "discriminator/loss" in steps(config.run)[1]


@pytest.mark.parametrize("context", [False, True])
def test_latent_diffusion(context: bool, workplace: Path, trained_autoencoder: Path) -> None:
    name, changes = f"bf16-ldm-{context}", {"conditioner": {"context": context}}
    config = load(LdmRun, ldm_config(workplace, name, trained_autoencoder.name, **changes), BRIEF)
    train_ldm(config)
    steps(config.run)


MASKS: dict[str, dict[str, Any]] = {
    "slice_vae": {"kind": "slice_vae", "channels": [8, 8], "hidden": 16, "latent": 4, "slices": 6},
    "label_vae": {"kind": "label_vae", "channels": [8, 8], "hidden": 16, "latent": 4},
    "mask_diffusion": {
        "kind": "mask_diffusion", "coarsen": 2, "patch": 1, "reach_mm": 30, "sampling": {"steps": 4},
        "denoiser": {"channels": [16, 16], "attention": [False, True], "head_channels": 16, "res_blocks": 1},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", MASKS)
def test_generators_of_masks(kind: str, workplace: Path) -> None:
    data = {**small(yaml.safe_load(gan_config(workplace, "bf16-data", "pix2pix").read_text())["data"], workplace)}
    data["grid"].pop("windows")
    values = {
        "run": str(workplace / f"bf16-{kind}"), "data": data, "generator": MASKS[kind],
        "train": {**SCHEDULE, "precision": "bf16", "images": 8},
    }  # fmt: skip
    config = build(MaskRun, values)
    train_masks(config)
    steps(config.run)


@pytest.mark.parametrize(
    "network", [{"channels": [8, 16], "res_units": 1}, {"kind": "dynunet", "channels": [8, 8, 16]}]
)
def test_segmenters(network: dict[str, Any], workplace: Path) -> None:
    file = segmenter_config(workplace, f"bf16-{network.get('kind', 'unet')}", network=network)
    config = load(SegmenterRun, file, BRIEF)
    train_segmenter(config)
    steps(config.run)


def test_swin_unetr() -> None:
    """A forward and a backward pass: whole runs of its least grid, 64 x 64 x 64, take minutes on a CPU."""
    network = build_network(SwinUNETRConfig(feature_size=12), 1, 4)
    with torch.backends.mkldnn.flags(enabled=True), torch.autocast("cpu", torch.bfloat16):
        loss = (
            network(torch.randn(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))).float().square().mean()
        )
        loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)
    assert sum(p.grad is not None for p in network.parameters()) > 100


def test_the_contrastive_extractor(workplace: Path) -> None:
    data = {"manifest": workplace / "manifest.json", "grid": GRID, "cache": workplace / "cache"}
    values = {"run": workplace / "bf16-extractor", "data": data, "channels": (8, 16), "projection": 8}
    config = build(ExtractorRun, {**values, "train": {**SCHEDULE, "precision": "bf16", "images": 8}})
    train_extractor(config)
    steps(config.run)
