"""Training a GAN of any family, from a configuration to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator

from latentsynth import checkpoint
from latentsynth.autoencoders import Autoencoder
from latentsynth.config import DenoiserConfig, GanRun
from latentsynth.data.cache.held import hold
from latentsynth.data.cache.loading import Positions, SlicePositions
from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.data.manifest import Manifest
from latentsynth.errors import CheckpointError, ConfigError, DataError
from latentsynth.gans import Annotation, Generator, build_discriminator, build_generator
from latentsynth.masks.mask_gan import MaskGANMaker
from latentsynth.parallel import mean_rows, share
from latentsynth.provenance import Ledger
from latentsynth.randomness import seed_weights
from latentsynth.synthesizers import GAN, LatentGAN, Synthesizer, load_synthesizer
from latentsynth.training.loop import Hooks, Modules, Player, fit, start_training
from latentsynth.training.recipes.adversarial import Game
from latentsynth.training.recipes.autoencoder import copy_weights, volume_caches
from latentsynth.training.recipes.collapse import CollapseMonitor
from latentsynth.training.recipes.cyclegan import CycleGame
from latentsynth.training.recipes.encode import encode, encoded_cohort
from latentsynth.training.recipes.ldm import build_conditioner
from latentsynth.training.recipes.mask_items import training_facts
from latentsynth.training.recipes.mask_sheets import mask_sheet
from latentsynth.training.recipes.scenes import LatentScenes, VoxelScenes
from latentsynth.training.recipes.sheets import sample_sheet
from latentsynth.training.run import RunFolder
from latentsynth.types import Condition, Domain


@dataclass(frozen=True)
class _Setting:
    """What the families need set up differently.

    Attributes:
        volumes: Validation volumes, for pictures and for the collapse monitor.
        items: Training items by position.
        players: Who trains, generator first.
        state: What the discriminator's side remembers.
        synthesizer: The model that samples, from the generator's modules.
        ledger: Whom the model has seen.
        masks: What samples where it learns from masks alone, and so is no synthesizer; None elsewhere.
    """

    volumes: VolumeCache
    items: Positions
    players: list[Player]
    state: dict[str, Any]
    synthesizer: Callable[[Modules], GAN | LatentGAN]
    ledger: Ledger
    masks: Callable[[Modules], MaskGANMaker] | None = None


def train_gan(config: GanRun) -> dict[str, float]:
    """Trains a GAN as configured; the same call again resumes it.

    Returns:
        Scores on validation patients, diversity and the discriminator's accuracy.

    Raises:
        LatentsynthError: Bad data, no usable autoencoder, another run in the folder, or a loss that is not finite.
    """
    # A growing network leaves its later stages unused, which a distributed wrapper must be told.
    accelerator = start_training(config.train, unused=config.generator.growing)
    setting = (_on_latents if config.latent else _on_voxels)(config, accelerator)
    run = RunFolder(config, accelerator)
    device = accelerator.device
    monitor = CollapseMonitor(setting.volumes, config.seed)
    scored = setting.volumes.annotated

    def validate(modules: Modules) -> dict[str, float]:
        model = setting.synthesizer(modules).to(device)
        rows = share(accelerator, len(scored), lambda n: score(model, setting.volumes, scored[n], config.seed))
        health = monitor(model, setting.state)
        accelerator.print(f"collapse: {health.words}")
        of_masks = setting.masks(modules).scores(range(config.seed, config.seed + 16)) if setting.masks else {}
        return {**mean_rows(rows), **health.scores, **of_masks}

    def sketch(modules: Modules, path: Path) -> None:
        if not accelerator.is_main_process:
            return
        if setting.masks:
            mask_sheet(path, setting.masks(modules), setting.volumes, config.seed)
        else:
            sample_sheet(path, setting.synthesizer(modules).to(device), setting.volumes, config.seed)

    def export(modules: Modules, last: dict[str, float]) -> None:
        if accelerator.is_main_process:
            model = setting.masks(modules) if setting.masks else setting.synthesizer(modules)
            model.save(run.path / "checkpoint", setting.ledger, last)
        accelerator.wait_for_everyone()

    return fit(setting.players, setting.items, run, config.train, Hooks(validate, sketch, export))


def _on_voxels(config: GanRun, accelerator: Accelerator) -> _Setting:
    """Everything but latents."""
    data = config.data.volumes()
    manifest = Manifest.load(data.manifest)
    if not data.grid.windows:
        manifest = manifest.masks_alone()
    training, validation = volume_caches(data, config.seed, manifest, accelerator)
    masked = training.annotated
    if not masked:
        raise DataError(f"no training case of {data.manifest} has a mask: a GAN learns images together with masks")
    recipe = training.recipe
    domain = Domain(recipe.grid, recipe.framing, recipe.labels, manifest.channels, training.median_limits())
    axis = config.slice_axis if config.spatial_dims == 2 else None
    annotation = Annotation(domain.labels.values, config.generator.coding)
    slices = None if axis is None else domain.grid.shape[axis]
    scenes = VoxelScenes(domain.lesion_indices, domain.grid.channels, config.form, annotation, slices)
    shape = tuple(n for at, n in enumerate(domain.grid.shape) if at != axis)
    labels = len(domain.labels) if config.form == "image_given_mask" else 0
    channels = scenes.intensity_channels + (0 if labels else annotation.channels)
    ledger = Ledger.of(manifest.select("train"))
    seed_weights(config.seed)
    game: Game | CycleGame
    if config.generator.recipe == "cycle":
        game = CycleGame(config, scenes)
        players = game.players(shape, channels, labels)
        items = _positions(unpaired(training, masked, axis), len(training), config.seed, slices)
    else:
        placed = axis is not None
        generator, seen = initial(config, build_generator(config.generator, shape, channels, labels, placed))
        ledger = ledger | seen
        game = Game(config, scenes)
        players = game.players(generator, build_discriminator(config.discriminator, shape, channels, labels, placed))
        items = _positions(lambda n, at: _part(training, masked[n], axis, at), len(masked), config.seed, slices)

    def synthesizer(modules: Modules) -> GAN:
        return GAN(domain, game.generator(modules), config.form, annotation, axis, config.sampling, ledger=ledger)

    facts = None if domain.grid.windows else training_facts(training)

    def masks(modules: Modules) -> MaskGANMaker:
        assert facts is not None
        return MaskGANMaker(
            **facts,
            sampling=config.sampling,
            generator=game.generator(modules),
            coding=annotation.coding,
            slice_axis=axis,
        )

    return _Setting(validation, items, players, game.state, synthesizer, ledger, masks if facts else None)


def _positions(item: Callable[[int, int], dict[str, Any]], count: int, seed: int, slices: int | None) -> Positions:
    """Items by index and slice; whole ones where there are no slices."""
    return Positions(lambda n: item(n, 0), count, seed) if slices is None else SlicePositions(item, slices, count, seed)


def _part(volumes: VolumeCache, entry: int, axis: int | None, at: int) -> dict[str, Any]:
    """A volume, or one slice of it along an axis."""
    return volumes.packed(entry) if axis is None else volumes.packed_slice(entry, axis, at)


def _on_latents(config: GanRun, accelerator: Accelerator) -> _Setting:
    """The latents of a frozen autoencoder, as the diffusion model of the same autoencoder sees them."""
    assert config.autoencoder is not None
    assert isinstance(config.generator, DenoiserConfig)  # as every family on latents is
    cohort = encoded_cohort(config.autoencoder, config.data.latents())
    domain = cohort.header.domain
    autoencoder = cohort.autoencoder.to(accelerator.device)
    _check_levels(len(config.generator.channels), autoencoder, domain)
    encode(cohort, accelerator)
    seed_weights(config.seed)
    conditioner = build_conditioner(config.conditioner, len(domain.labels), autoencoder.factors)
    channels, *shape = autoencoder.latent_shape(domain.grid.shape)
    fresh = build_generator(config.generator, shape, channels, conditioner.channels, False)
    generator, seen = initial(config, fresh)
    ledger = Ledger.of(cohort.manifest.select("train")) | checkpoint.read_ledger(cohort.folder) | seen
    game = Game(config, LatentScenes(config.seed, autoencoder, conditioner, domain.lesion_indices))
    players = game.players(
        generator, build_discriminator(config.discriminator, shape, channels, conditioner.channels, False)
    )
    held = hold(cohort.training, accelerator.device, accelerator.num_processes)
    items = Positions(held.packed, len(cohort.training), config.seed, held.on_device)

    def synthesizer(modules: Modules) -> LatentGAN:
        return LatentGAN(domain, autoencoder, conditioner, game.generator(modules), config.sampling, ledger=ledger)

    return _Setting(cohort.validation.volumes, items, players, game.state, synthesizer, ledger)


def _check_levels(levels: int, autoencoder: Autoencoder, domain: Domain) -> None:
    """Refuses a generator that cannot halve the latent grid as often as it has levels, with what would do."""
    _, *cells = autoencoder.latent_shape(domain.grid.shape)
    halvings = 2 ** (levels - 1)
    if any(n % halvings for n in cells):
        units = tuple(f * halvings for f in autoencoder.factors)
        raise ConfigError(
            f"generator.channels has {levels} levels, so the latent grid {tuple(cells)} must divide "
            f"by {halvings}: use fewer levels, or a grid whose axes are multiples of {units} voxels"
        )


def initial(config: GanRun, generator: Generator) -> tuple[Generator, Ledger]:
    """The generator that training starts from, and whom its weights have already seen.

    Raises:
        CheckpointError: ``init_from`` is not a GAN of this architecture.
    """
    if config.init_from is None:
        return generator, Ledger()
    folder = checkpoint.locate(config.init_from)
    source = load_synthesizer(folder)
    if not isinstance(source, GAN | LatentGAN):
        raise CheckpointError(f"init_from {folder} is not a GAN: give one of the same family")
    copy_weights(generator, source.generator, folder)
    return generator, source.ledger


def unpaired(training: VolumeCache, masked: list[int], axis: int | None = None) -> Callable[[int, int], dict[str, Any]]:
    """Items of an image and the mask of another patient: half the cohort away, so no pair ever meets; slices along an axis."""

    def item(n: int, at: int) -> dict[str, Any]:
        own = training.entries[n][0].patient_id
        start = (n + len(training) // 2) % len(masked)
        others = masked[start:] + masked[:start]
        other = next((m for m in others if training.entries[m][0].patient_id != own), None)
        if other is None:
            raise DataError(f"CycleGAN needs masks of at least two training patients, there is only {own}")
        return {"image": _part(training, n, axis, at)["image"], "mask": _part(training, other, axis, at)["mask"]}

    return item


@torch.no_grad()
def score(model: Synthesizer, volumes: VolumeCache, n: int, seed: int) -> dict[str, float]:
    """One validation case: the distance of a sample from the real image, or how clearly labels are named."""
    if model.makes_masks:
        return {"invalid_labels": float(cast(GAN, model).invalid_labels([seed + n])[0])}
    item = volumes.item(n)
    made = model.generate(Condition(item["mask"][None]), [seed + n]).image[0]
    return {"l1": float((made - item["image"]).abs().mean())}
