"""Training an autoencoder, from a configuration to a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latentsynth import checkpoint
from latentsynth.autoencoders import Autoencoder, Moments, build_autoencoder
from latentsynth.autoencoders.reconstruction import (
    CaseScores,
    reconstruct,
    reconstruction_sheet,
    scores,
    summarise,
)
from latentsynth.config import AutoencoderRun, DataConfig
from latentsynth.data.cache.loading import Crops, Positions
from latentsynth.data.cache.volumes import Recipe, VolumeCache
from latentsynth.data.manifest import Manifest
from latentsynth.errors import CheckpointError, DataError
from latentsynth.metrics.reconstruction import perplexity
from latentsynth.parallel import fill, share
from latentsynth.provenance import Ledger
from latentsynth.randomness import seed_weights
from latentsynth.training.loop import Hooks, Modules, Player, fit, start_training
from latentsynth.training.recipes.reconstruction import (
    GeneratorLoss,
    build_discriminator,
    discriminator_loss,
    load_perceptual,
)
from latentsynth.training.run import RunFolder
from latentsynth.types import Domain

KIND = "autoencoder"
_STATS_CASES = 64  # the latents of so many training cases set the latent scale
_SHOWN_CASES = 4


def train_autoencoder(config: AutoencoderRun) -> dict[str, float]:
    """Trains an autoencoder as configured; the same call again resumes it.

    Returns:
        Scores on validation patients.

    Raises:
        LatentsynthError: Bad data, another run in the folder, or a loss that is not finite.
    """
    accelerator = start_training(config.train, unused=config.decoder_phase.share > 0)  # the encoder, by then
    manifest = Manifest.load(config.data.manifest)
    run = RunFolder(config, accelerator)  # before anything is made: it may be refused
    training, validation = volume_caches(config.data, config.seed, manifest, accelerator)
    recipe = training.recipe
    domain = Domain(recipe.grid, recipe.framing, recipe.labels, manifest.channels, training.median_limits())
    seed_weights(config.seed)
    model, ledger = initial(config, domain, _spread(training))
    ledger = ledger | Ledger.of(manifest.select("train"))
    players = _players(config, model, domain)
    device = accelerator.device

    def validate(modules: Modules) -> dict[str, float]:
        model = cast(Autoencoder, modules["autoencoder"])

        def score(n: int) -> CaseScores:
            volume = validation.volume(n)
            return scores(volume, reconstruct(model, volume, device), domain)

        return {**summarise(share(accelerator, len(validation), score)), **_codes(model, validation, device)}

    def sketch(modules: Modules, path: Path) -> None:
        if accelerator.is_main_process:
            model = cast(Autoencoder, modules["autoencoder"])
            volumes = [validation.volume(n) for n in range(min(_SHOWN_CASES, len(validation)))]
            names = [case.case_id for case, _ in validation.entries[: len(volumes)]]
            images = [reconstruct(model, volume, device) for volume in volumes]
            reconstruction_sheet(path, names, volumes, images, domain)

    def export(modules: Modules, last: dict[str, float]) -> None:
        model = cast(Autoencoder, modules["autoencoder"])
        model.fit_latent_stats(_moments(model, training, device))
        model.fit_texture(lambda: (image.to(device) for image in _spread(training)))
        if accelerator.is_main_process:
            checkpoint.write(run.path / "checkpoint", KIND, domain, {}, {"autoencoder": model}, ledger, last)
        accelerator.wait_for_everyone()

    items = Positions(training.packed, len(training), config.seed)
    if config.crop:
        items = Crops(training.packed, len(training), config.seed, config.crop)
    return fit(players, items, run, config.train, Hooks(validate, sketch, export))


def volume_caches(
    data: DataConfig, seed: int, manifest: Manifest, accelerator: Accelerator
) -> tuple[VolumeCache, VolumeCache]:
    """Caches of the training (with copies) and validation volumes, filled, each process its share.

    Raises:
        DataError: The manifest has another number of channels than the grid has windows.
    """
    grid = data.grid
    if len(manifest.channels) != grid.channels:
        raise DataError(
            f"manifest {data.manifest} has {len(manifest.channels)} channels ({', '.join(manifest.channels)}), "
            f"data.grid.windows has {grid.channels}: give one window per channel"
        )
    recipe = Recipe(grid, data.framing, manifest.labels, data.augment, seed)
    training = VolumeCache(data.cache, recipe, manifest.select("train"), data.augment.copies)
    validation = VolumeCache(data.cache, recipe, manifest.select("val"))
    fill(training, "preparing training volumes", accelerator)
    fill(validation, "preparing validation volumes", accelerator)
    return training, validation


def initial(config: AutoencoderRun, domain: Domain, images: Iterable[Tensor]) -> tuple[Autoencoder, Ledger]:
    """The autoencoder that training starts from, and whom its weights have already seen.

    Args:
        config: The run.
        domain: Of its volumes.
        images: Training images, ``(1, C, I, J, K)`` each, whose blocks a new trunk starts from.

    Raises:
        CheckpointError: ``init_from`` is not an autoencoder of this architecture.
        TrainingError: Its trunk starts from principal components, and blocks of the volumes vary in too few directions.
    """
    model = build_autoencoder(config.autoencoder, domain.grid.channels)
    if config.train.gradient_checkpointing:
        model.checkpoint_gradients()
    if config.init_from is None:
        model.start_from(images)
        return model, Ledger()
    folder = checkpoint.locate(config.init_from)
    checkpoint.read_header(folder, KIND)
    copy_weights(model, Autoencoder.from_pretrained(folder / "autoencoder"), folder)
    return model, checkpoint.read_ledger(folder)


def copy_weights(model: nn.Module, source: nn.Module, folder: Path) -> None:
    """Starts ``model`` from the weights of ``source``, which ``folder`` held.

    Raises:
        CheckpointError: The two differ in architecture.
    """
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in source.state_dict().items()}
    differing = sorted(name for name in set(ours) | set(theirs) if ours.get(name) != theirs.get(name))
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"init_from {folder}: tensor {name} is {theirs.get(name, 'missing')}, this configuration needs "
            f"{ours.get(name, 'none')}: use the architecture that the checkpoint was trained with"
        )
    model.load_state_dict(source.state_dict())


def _players(config: AutoencoderRun, model: Autoencoder, domain: Domain) -> list[Player]:
    perceptual = config.loss.perceptual
    loss = GeneratorLoss(
        config.loss,
        domain.lesion_indices,
        model.latent_shape,
        model.last_layer,
        config.seed,
        load_perceptual(perceptual.path) if perceptual else None,
        config.decoder_phase.noise,
        (1 - config.decoder_phase.share) * config.train.images if config.decoder_phase.share else math.inf,
    )
    players = [Player("autoencoder", {"autoencoder": model}, loss, config.train.lr)]
    if config.loss.adversarial_weight:
        modules = {"discriminator": build_discriminator(config.loss, domain.grid.channels)}
        after = config.loss.adversarial_after_images
        players.append(
            Player("discriminator", modules, discriminator_loss, config.loss.discriminator_lr, after_images=after)
        )
    return players


@torch.no_grad()
def _moments(model: Autoencoder, cache: VolumeCache, device: torch.device) -> Iterator[Moments]:
    """Moments of training cases, copies included."""
    for image in _spread(cache):
        yield model.moments(image.to(device))


def _spread(cache: VolumeCache) -> Iterator[Tensor]:
    """Volumes spread evenly over the cache, ``(1, C, I, J, K)`` each."""
    for entry in torch.linspace(0, len(cache) - 1, min(_STATS_CASES, len(cache))).long().unique().tolist():
        yield torch.from_numpy(cache.volume(entry).image)[None]


@torch.no_grad()
def _codes(model: Autoencoder, cache: VolumeCache, device: torch.device) -> dict[str, float]:
    """Codebook perplexity over all validation cases together; nothing for a model without a codebook."""
    usage: Tensor | None = None
    for n in range(len(cache)):
        counts = model.code_usage(torch.from_numpy(cache.volume(n).image)[None].to(device))
        if counts is None:
            return {}
        usage = counts if usage is None else usage + counts
    return {} if usage is None else {"perplexity": float(perplexity(usage))}
