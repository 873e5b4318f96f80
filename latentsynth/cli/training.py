"""Commands that train: ``train ...`` and ``encode``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentsynth import config as configuration
from latentsynth.cli.advice import advice
from latentsynth.cli.options import TRAIN, Check, ConfigFile, Overrides, app, resolve, say, train_app
from latentsynth.strict import read_yaml


@train_app.command("autoencoder")
def train_autoencoder(config: ConfigFile, overrides: Overrides = None, check: Check = False) -> None:
    """Train a KL, VQ or FSQ autoencoder on volumes."""
    resolved = resolve(configuration.AutoencoderRun, config, overrides, check)
    from latentsynth.training.recipes.autoencoder import train_autoencoder as train

    _finished(train(resolved), resolved)


@train_app.command("ldm")
def train_ldm(config: ConfigFile, overrides: Overrides = None, check: Check = False) -> None:
    """Train a mask-conditioned latent diffusion model on the latents of a trained autoencoder."""
    resolved = resolve(configuration.LdmRun, config, overrides, check)
    from latentsynth.training.recipes.ldm import train_ldm as train

    _finished(train(resolved), resolved)


@train_app.command("gan")
def train_gan(config: ConfigFile, overrides: Overrides = None, check: Check = False) -> None:
    """Train a GAN: pix2pix, SPADE, CycleGAN, a GAN on latents, or one of the StyleGAN line."""
    resolved = resolve(configuration.GanRun, config, overrides, check)
    from latentsynth.training.recipes.gan import train_gan as train

    _finished(train(resolved), resolved)


@train_app.command("masks")
def train_masks(config: ConfigFile, overrides: Overrides = None, check: Check = False) -> None:
    """Train a generator of masks alone: a slice VAE, a label VAE, a diffusion model, or a GAN of form mask_only."""
    resolved: configuration.MaskRun | configuration.GanRun
    if configuration.run_of(read_yaml(config, overrides or [])) is configuration.GanRun:
        resolved = resolve(configuration.GanRun, config, overrides, check)
    else:
        resolved = resolve(configuration.MaskRun, config, overrides, check)
    from latentsynth.training.recipes.masks import train_masks as train

    _finished(train(resolved), resolved)


@train_app.command("segmenter")
def train_segmenter(config: ConfigFile, overrides: Overrides = None, check: Check = False) -> None:
    """Train a U-Net, DynUNet or Swin-UNETR on any mixture of real and synthetic cohorts."""
    resolved = resolve(configuration.SegmenterRun, config, overrides, check)
    from latentsynth.training.recipes.segmenter import train_segmenter as train

    _finished(train(resolved), resolved)


def _finished(scores: dict[str, float], config: configuration.Run) -> None:
    say("validation: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
    say(f"checkpoint: {config.run / 'checkpoint'}")
    if text := advice(config, scores):
        say(text)


@app.command(rich_help_panel=TRAIN)
def encode(
    source: Annotated[
        Path, typer.Argument(help="YAML file of `train ldm`, or the run folder of an autoencoder or of a latent model")
    ],
    overrides: Overrides = None,
) -> None:
    """Write the latents that training will use, if they are not there yet."""
    from latentsynth.parallel import start
    from latentsynth.training.recipes.encode import cohort_of
    from latentsynth.training.recipes.encode import encode as write

    cohort = cohort_of(source, overrides or [])
    write(cohort, start())
    say(f"latents: {cohort.training.folder}")
