"""Small models and masks that tests are built from. Random weights, fixed seeds, nothing trained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from latentsynth.autoencoders import Autoencoder, build_autoencoder
from latentsynth.cli import main
from latentsynth.conditioning import MaskConditioner
from latentsynth.config import (
    CycleGANConfig,
    GanSamplingConfig,
    GeneratorConfig,
    KLConfig,
    LatentGANConfig,
    Pix2PixConfig,
    ProgressiveGANConfig,
    SamplingConfig,
    SPADEConfig,
    StyleGAN1Config,
    StyleGAN2Config,
    StyleGAN3Config,
    VQConfig,
)
from latentsynth.data.exchange.requests import Request
from latentsynth.diffusion import Denoiser
from latentsynth.gans import Annotation, Generator, build_generator
from latentsynth.gans.cyclegan import Translators
from latentsynth.synthesizers import GAN, LatentDiffusion, LatentGAN, Synthesizer
from latentsynth.types import Condition, Domain, Framing, Generated, Grid, Labels, Window

AUTOENCODERS = ("vq", "kl")
TRUNK = {"kind": "space_to_depth", "width": 8, "res_blocks": 1}
WINDOW = (-100.0, 300.0)
SMALL = 12.0  # a lesion radius in mm that the 32 mm of the tiny model hold


def tiny_domain(
    shape: tuple[int, int, int] = (16, 16, 16),
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0),
    framing: Framing = Framing("lesion"),  # noqa: B008 (frozen)
    lesions: tuple[int, ...] = (1, 4),
) -> Domain:
    """One CT channel; label values with a gap, so that a value taken for an index shows."""
    names = ("background", *(f"lesion {value}" for value in lesions))
    return Domain(
        Grid(shape, spacing_mm, (Window("fixed", *WINDOW),)), framing, Labels((0, *lesions), names), ("CT",), (WINDOW,)
    )


def perturb(module: nn.Module, seed: int, size: float = 0.05) -> None:
    """Moves all weights: fresh diffusion networks end in zeros, so they answer the same whatever they are given."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator))


def tiny_denoiser(schedule: str, prediction: str = "v", spatial: int = 3, latent: int = 4, seed: int = 0) -> Denoiser:
    """A small U-Net with attention on its lower level, its weights perturbed, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        denoiser = Denoiser(
            latent_channels=latent, spatial_channels=spatial, schedule=schedule, prediction=prediction,
            channels=(8, 16), attention=(False, True), res_blocks=1, head_channels=8, norm_groups=4,
        )  # fmt: skip
    perturb(denoiser, seed)
    return denoiser.eval()


def tiny_autoencoder(kind: str, seed: int = 0) -> Autoencoder:
    """A small autoencoder with random weights, its codebook and latent scale fitted to smooth random images."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        common: dict[str, Any] = {"trunk": TRUNK, "latent_channels": 4, "downsampling": 4}
        config = VQConfig(codebook_size=32, codebooks=2, **common) if kind == "vq" else KLConfig(**common)
        model = build_autoencoder(config, 1)
        for name, weight in model.named_parameters():  # wide enough that answers differ from input to input
            if not name.startswith("quantizer"):
                draw = nn.init.kaiming_normal_ if weight.ndim > 1 else nn.init.zeros_
                draw(weight)
        images = nn.functional.interpolate(2 * torch.rand(8, 1, 4, 4, 4) - 1, size=(16, 16, 16), mode="trilinear")
        model.train()
        with torch.no_grad():
            for _ in range(10):  # moving averages bring the codes to where the latents are
                model(images)
        model.eval()
        model.fit_latent_stats([model.moments(images)])
    return model


def tiny_model(kind: str = "kl", schedule: str = "rectified", seed: int = 0) -> LatentDiffusion:
    """A latent diffusion model on 16 x 16 x 16 voxels."""
    domain = tiny_domain()
    labels = len(domain.labels)
    autoencoder = tiny_autoencoder(kind, seed)
    conditioner = MaskConditioner(labels=labels, factors=autoencoder.factors).eval()
    denoiser = tiny_denoiser(schedule, "v", labels, autoencoder.latent_channels, seed + 1)
    return LatentDiffusion(domain, autoencoder, conditioner, denoiser, SamplingConfig(steps=3))


_SIZES: dict[str, Any] = {"channels": 4, "max_channels": 8}
_LATENT: dict[str, Any] = {"latent": 8, "style": 8, "mapping_layers": 2}

# name -> (section of a configuration, axis along which slices are stacked or None): GANs that paint a given mask
PAINTERS: dict[str, tuple[GeneratorConfig, int | None]] = {
    "pix2pix, unet": (Pix2PixConfig(levels=3, **_SIZES), None),
    "pix2pix, resnet": (Pix2PixConfig(network="resnet", channels=4, blocks=1), None),
    "pix2pix, slices": (Pix2PixConfig(levels=3, **_SIZES), 1),
    "CycleGAN": (CycleGANConfig(channels=4, blocks=1, attention=True), None),
    "SPADE, vae": (SPADEConfig(latent=8, hidden=4, style="vae", **_SIZES), None),
    "SPADE, bottleneck": (SPADEConfig(latent=8, hidden=4, style="bottleneck", **_SIZES), None),
    "SPADE, none": (SPADEConfig(latent=8, hidden=4, style="none", **_SIZES), None),
    "StyleGAN 2": (StyleGAN2Config(**_LATENT, **_SIZES), None),
    "StyleGAN 2, slices": (StyleGAN2Config(**_LATENT, **_SIZES), 2),
}

# the same for GANs that make their own masks
MAKERS: dict[str, tuple[GeneratorConfig, int | None]] = {
    "StyleGAN 2, joint": (StyleGAN2Config(form="joint", **_LATENT, **_SIZES), None),
    "StyleGAN 2, masks": (StyleGAN2Config(form="mask_only", **_LATENT, **_SIZES), None),
    "StyleGAN 1, joint slices": (StyleGAN1Config(coding="cuts", **_LATENT, **_SIZES), 0),
    "StyleGAN 3, joint slices": (StyleGAN3Config(channels=8, layers=4, **_LATENT), 1),
    "progressive GAN, joint slices": (ProgressiveGANConfig(latent=8, **_SIZES), 2),
}


def tiny_generator(
    config: GeneratorConfig, shape: Sequence[int], channels: int, labels: int, placed: bool = False, seed: int = 0
) -> Generator:
    """A generator of any family with random weights, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if isinstance(config, CycleGANConfig):
            made: Generator = Translators(
                shape, channels, labels, config.channels, config.blocks, config.dropout, config.attention
            ).painter
        else:
            made = build_generator(config, shape, channels, labels, placed)
    perturb(made, seed)  # so that what starts at zero, as the strength of noise inputs, counts
    return made.eval()


def tiny_gan(kind: str, shape: tuple[int, int, int] = (16, 16, 16), seed: int = 0) -> GAN:
    """A GAN on voxels, by its name in PAINTERS or MAKERS."""
    config, axis = {**PAINTERS, **MAKERS}[kind]
    domain = tiny_domain(shape)
    form = getattr(config, "form", "image_given_mask")
    annotation = Annotation(domain.labels.values, getattr(config, "coding", "one_hot"))
    grid = tuple(n for at, n in enumerate(shape) if at != axis)
    painter = form == "image_given_mask"
    channels = (form != "mask_only") * domain.grid.channels + (not painter) * annotation.channels
    generator = tiny_generator(config, grid, channels, painter * len(domain.labels), axis is not None, seed)
    return GAN(domain, generator, form, annotation, axis)


def tiny_latent_gan(kind: str = "kl", seed: int = 0) -> LatentGAN:
    """A GAN on the latents of the autoencoder of :func:`tiny_model`."""
    domain = tiny_domain()
    autoencoder = tiny_autoencoder(kind, seed)
    conditioner = MaskConditioner(labels=len(domain.labels), factors=autoencoder.factors).eval()
    channels, *shape = autoencoder.latent_shape(domain.grid.shape)
    config = LatentGANConfig(channels=(8, 16), attention=(False, True), res_blocks=1, head_channels=8, norm_groups=4)
    generator = tiny_generator(config, shape, channels, conditioner.channels, seed=seed + 1)
    return LatentGAN(domain, autoencoder, conditioner, generator, GanSamplingConfig())


class Echo(Synthesizer):
    """Paints the mask itself: label index n of L comes out at -1 + 2 n / (L - 1). Counts what it is asked for."""

    def __init__(self, domain: Domain, fingerprint: str = "echo"):
        self.domain, self.fingerprint = domain, fingerprint
        self.batches: list[int] = []

    def generate(self, condition: Condition | None, seeds: Sequence[int], **settings: Any) -> Generated:
        self.check(condition, seeds)
        assert condition is not None
        self.batches.append(len(seeds))
        labels = condition.mask.shape[1]
        image = condition.mask.argmax(1, keepdim=True).float() / (labels - 1) * 2 - 1
        return Generated(image, condition.mask)

    def settings(self, **changes: Any) -> dict[str, Any]:
        return {"level": 1, **changes}

    def to(self, device: torch.device | str) -> Echo:
        return self


def turned(spacing_mm: Sequence[float], degrees: float) -> np.ndarray:
    """An oblique affine, turned about two axes."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing_mm)
    affine[:3, 3] = (-30.0, 12.0, 55.0)
    return affine


# name -> (affine, shape): different edges everywhere, so that a swapped axis shows
GEOMETRIES: dict[str, tuple[np.ndarray, tuple[int, int, int]]] = {
    "oblique": (turned((2.0, 2.0, 2.0), 17), (40, 44, 36)),
    "LPS": (np.array([[-2.0, 0, 0, 90], [0, -2.0, 0, 120], [0, 0, 2.0, -70], [0, 0, 0, 1]]), (42, 38, 40)),
    "anisotropic": (np.array([[0, 0, 4.0, 1], [1.0, 0, 0, 2], [0, -1.5, 0, 3], [0, 0, 0, 1]]), (80, 52, 22)),
}


def lesion_mask(affine: np.ndarray, shape: tuple[int, int, int], radius_mm: float, value: int = 4) -> np.ndarray:
    """A lopsided lesion off the centre, in mm, the same in world orientation on every grid."""
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3] + (4.0, -3.0, 2.0)
    ball = np.linalg.norm(world - middle, axis=-1) < radius_mm
    knob = np.linalg.norm(world - middle - radius_mm * np.array([0.6, 0.5, 0.4]), axis=-1) < 0.6 * radius_mm
    return np.where(ball | knob, value, 0).astype(np.int16)


def write_mask(path: Path, values: np.ndarray, affine: np.ndarray, **facts: Any) -> Request:
    """Writes a mask without latentsynth's help."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)
    return Request(path.name.split(".")[0], path, **facts)


def contents(folder: Path) -> list[str]:
    """All paths below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Exit code of a command that this process takes for its own."""
    words = [str(argument) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["latentsynth", *words])
    try:
        main(words)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0
