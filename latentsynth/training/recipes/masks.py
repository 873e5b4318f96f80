"""Training a generator of masks alone, of any family, from a configuration to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from latentsynth.config import GanRun, LabelVAEConfig, MaskDiffusionConfig, MaskRun, SliceVAEConfig
from latentsynth.config.gan import makers_of_masks
from latentsynth.data.cache.loading import Positions
from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.data.manifest import Manifest
from latentsynth.diffusion import Denoiser
from latentsynth.errors import ConfigError
from latentsynth.masks.label_vae import LabelVAE, LabelVAEMaker
from latentsynth.masks.mask_diffusion import MaskDiffusionMaker
from latentsynth.masks.pathology import check_classes, population_of
from latentsynth.masks.slice_vae import SliceVAEMaker, describe
from latentsynth.masks.trained import TrainedMaker
from latentsynth.parallel import mean_rows, share
from latentsynth.provenance import Ledger
from latentsynth.randomness import VALIDATION, seed_weights
from latentsynth.training.loop import Hooks, Loss, Modules, Player, fit, start_training
from latentsynth.training.recipes.autoencoder import volume_caches
from latentsynth.training.recipes.gan import train_gan
from latentsynth.training.recipes.mask_items import DiffusionItems, training_facts
from latentsynth.training.recipes.mask_losses import MaskDenoiserLoss, VAELoss
from latentsynth.training.recipes.mask_sheets import mask_sheet
from latentsynth.training.run import RunFolder

_SAMPLES = 16  # that validation looks at


@dataclass(frozen=True)
class _Setting:
    """What the families need set up differently.

    Attributes:
        modules: The one network that trains, by name.
        loss: Its loss.
        items: Training items by number.
        count: How many there are.
        score: Of one validation item.
        scored: How many there are.
        maker: What samples, from the trained modules.
    """

    modules: dict[str, torch.nn.Module]
    loss: Loss
    items: Callable[[int], dict[str, Any]]
    count: int
    score: Callable[[Modules, int], dict[str, float]]
    scored: int
    maker: Callable[[Modules], TrainedMaker]


def train_masks(config: MaskRun | GanRun) -> dict[str, float]:
    """Trains a generator of masks as configured; the same call again resumes it.

    Returns:
        Scores on validation patients, and of samples how many are empty and how large the others are.

    Raises:
        ConfigError: A GAN of another form than ``mask_only``.
        LatentsynthError: Bad data, another run in the folder, or a loss that is not finite.
    """
    if isinstance(config, GanRun):
        if config.form != "mask_only":
            raise ConfigError(
                f"generator.form is {config.form}: give form: mask_only ({makers_of_masks()}), or train it with "
                "`latentsynth train gan`"
            )
        return train_gan(config)
    accelerator = start_training(config.train)
    manifest = Manifest.load(config.data.manifest).masks_alone()
    training, validation = volume_caches(config.data, config.seed, manifest, accelerator)
    run = RunFolder(config, accelerator)
    seed_weights(config.seed)
    setting = (_diffusion if config.generator.recipe == "diffusion" else _vae)(config, training, validation)
    ledger = Ledger.of(manifest.select("train"))

    def validate(modules: Modules) -> dict[str, float]:
        rows = share(accelerator, setting.scored, lambda n: setting.score(modules, n))
        return {**mean_rows(rows), **setting.maker(modules).scores(range(config.seed, config.seed + _SAMPLES))}

    def sketch(modules: Modules, path: Path) -> None:
        if accelerator.is_main_process:
            mask_sheet(path, setting.maker(modules), validation, config.seed)

    def export(modules: Modules, last: dict[str, float]) -> None:
        if accelerator.is_main_process:
            setting.maker(modules).save(run.path / "checkpoint", ledger, last)
        accelerator.wait_for_everyone()

    players = [Player("generator", setting.modules, setting.loss, config.train.lr)]
    items = Positions(setting.items, setting.count, config.seed)
    return fit(players, items, run, config.train, Hooks(validate, sketch, export))


def _vae(config: MaskRun, training: VolumeCache, validation: VolumeCache) -> _Setting:
    """A VAE of slices or of volumes."""
    generator = config.generator
    assert isinstance(generator, SliceVAEConfig | LabelVAEConfig)
    common = training_facts(training)
    shape = [n for at, n in enumerate(training.recipe.grid.shape) if at != generator.slice_axis]
    vae = LabelVAE(
        shape, len(training.recipe.labels), generator.channels, generator.hidden, generator.latent,
        coarse=generator.coarse,
    )  # fmt: skip
    if isinstance(generator, SliceVAEConfig):
        check_classes([case.case_id for case, _ in training.entries], generator.classes)
    loss = VAELoss(generator, config.seed)

    @torch.no_grad()
    def score(modules: Modules, n: int) -> dict[str, float]:
        mask = validation.item(n)["mask"][None].to(next(modules["vae"].parameters()).device)
        total, terms = loss(modules, {"mask": mask, "position": torch.tensor([VALIDATION + n])}, {})
        return {"loss": float(total), **{name: float(value) for name, value in terms.items()}}

    def maker(modules: Modules) -> TrainedMaker:
        net = cast(LabelVAE, modules["vae"])
        if isinstance(generator, LabelVAEConfig):
            return LabelVAEMaker(**common, sampling=generator.sampling, vae=net)
        return _slice_maker(net, generator, training, common)

    def items(n: int) -> dict[str, Any]:
        return {"mask": training.packed(n)["mask"]}

    return _Setting({"vae": vae}, loss, items, len(training), score, len(validation), maker)


def _slice_maker(
    vae: LabelVAE, generator: SliceVAEConfig, training: VolumeCache, common: dict[str, Any]
) -> SliceVAEMaker:
    """The slice model with its population: every training case, unaugmented, that has a label on the grid."""
    latents, extents, ids, volumes = [], [], [], []
    for n, (case, copy) in enumerate(training.entries):
        index = training.volume(n).mask
        if copy or index is None or not index.any():
            continue
        path, extent = describe(vae, index, generator.slice_axis, generator.slices)
        latents.append(path)
        extents.append(extent)
        ids.append(case.case_id)
        volumes.append(float(np.isin(index, common["domain"].lesion_indices).sum()))
    population = population_of(np.stack(latents), np.stack(extents), ids, volumes, generator.classes)
    return SliceVAEMaker(
        **common, sampling=generator.sampling, vae=vae, population=population, slice_axis=generator.slice_axis
    )


def _diffusion(config: MaskRun, training: VolumeCache, validation: VolumeCache) -> _Setting:
    """Diffusion of distance maps."""
    generator = config.generator
    assert isinstance(generator, MaskDiffusionConfig)
    common = training_facts(training)
    items = DiffusionItems(training, generator)
    seen = DiffusionItems(validation, generator, items)
    denoiser = Denoiser(
        latent_channels=items.maps.channels,
        spatial_channels=items.attributes.channels,
        schedule=generator.diffusion.schedule,
        prediction=generator.diffusion.prediction,
        **generator.denoiser.model_dump(),
    )
    loss = MaskDenoiserLoss(generator, items.attributes, int(np.prod(items.maps.cells)), config.seed)

    def maker(modules: Modules) -> TrainedMaker:
        net = cast(Denoiser, modules["denoiser"])
        parts = {"maps": items.maps, "attributes": items.attributes, "denoiser": net}
        return MaskDiffusionMaker(**common, sampling=generator.sampling, **parts)

    def score(modules: Modules, n: int) -> dict[str, float]:
        return loss.score(modules["denoiser"], seen(n), n)

    return _Setting({"denoiser": denoiser}, loss, items, len(items), score, len(seen), maker)
