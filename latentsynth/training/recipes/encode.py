"""Encoding a cohort once: what the latent diffusion model trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from latentsynth import checkpoint
from latentsynth.autoencoders import Autoencoder
from latentsynth.config import (
    AugmentConfig,
    AutoencoderRun,
    ConditionerConfig,
    GanRun,
    LatentDataConfig,
    LdmRun,
    build,
    run_of,
)
from latentsynth.data.cache.cutting import Cut
from latentsynth.data.cache.latents import LatentCache
from latentsynth.data.cache.volumes import Recipe, VolumeCache
from latentsynth.data.manifest import Manifest
from latentsynth.errors import ConfigError, DataError
from latentsynth.parallel import fill, own
from latentsynth.pretrained import part_fingerprint
from latentsynth.progress import bar
from latentsynth.strict import read_yaml
from latentsynth.types import Split


@dataclass(frozen=True)
class EncodedCohort:
    """A frozen autoencoder and the latents it made.

    Attributes:
        folder: The autoencoder's checkpoint folder.
        header: Its header, with domain and scores.
        manifest: The cohort.
        training: Latents of the training cases, copies included.
        validation: Latents of the validation cases.
    """

    folder: Path
    header: checkpoint.Header
    manifest: Manifest
    training: LatentCache
    validation: LatentCache

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder, frozen; loaded once."""
        return Autoencoder.from_pretrained(self.folder / "autoencoder").requires_grad_(False)


def encoded_cohort(
    autoencoder: Path, data: LatentDataConfig, conditioner: ConditionerConfig | None = None
) -> EncodedCohort:
    """Finds an autoencoder and names the caches of its latents, without making them.

    Args:
        autoencoder: Run folder or checkpoint folder.
        data: What differs from what the autoencoder was trained on.
        conditioner: Says whether the latents of scans without their lesions are needed too.

    Raises:
        CheckpointError: No autoencoder there.
        DataError: The manifest does not fit it.
        ConfigError: A bare checkpoint folder, and ``data.manifest`` is not given.
    """
    folder = checkpoint.locate(autoencoder)
    header = checkpoint.read_header(folder, "autoencoder")
    manifest_path, augment, cache, seed = _settings(autoencoder, data)
    manifest = Manifest.load(manifest_path)
    domain = header.domain
    for what, ours, theirs in (
        ("channels", manifest.channels, domain.channels),
        ("labels", manifest.labels.values, domain.labels.values),
    ):
        if ours != theirs:
            raise DataError(f"manifest {manifest_path} has {what} {ours}, the autoencoder was trained on {theirs}")
    recipe = Recipe(domain.grid, domain.framing, manifest.labels, augment, seed)
    weights = part_fingerprint(folder / "autoencoder")
    cut = None
    if conditioner is not None and conditioner.context:
        cut = Cut(
            tuple(domain.lesion_indices), conditioner.cut_margin_mm, domain.grid.spacing_mm, conditioner.decoys > 0
        )

    def latents(split: Split, copies: int) -> LatentCache:
        volumes = VolumeCache(cache, recipe, manifest.select(split), copies)
        return LatentCache(folder.parent / "latents", weights, volumes, cut)

    return EncodedCohort(folder, header, manifest, latents("train", augment.copies), latents("val", 0))


def cohort_of(source: Path, overrides: Sequence[str] = ()) -> EncodedCohort:
    """The cohort of a configuration or run folder.

    Args:
        source: Configuration of a latent diffusion model, or a run folder: of such a model, of a latent GAN, or of an
            autoencoder, whose own training data are meant then.
        overrides: ``key=value`` changes of a configuration.

    Raises:
        ConfigError: No such configuration.
        LatentsynthError: As :func:`encoded_cohort`.
    """
    file = source / "config.yaml" if source.is_dir() else source
    values = read_yaml(file, overrides)
    kind = run_of(values)
    if kind is AutoencoderRun:
        trained = build(AutoencoderRun, values, str(file))
        return encoded_cohort(source if source.is_dir() else trained.run, LatentDataConfig())
    if kind is GanRun:
        gan = build(GanRun, values, str(file))
        if gan.autoencoder is None:
            raise ConfigError(f"{file} is of a GAN on voxels, which has no latents: give a run on latents")
        return encoded_cohort(gan.autoencoder, gan.data.latents())
    ldm = build(LdmRun, values, str(file))  # which also says of any other run what it is not
    return encoded_cohort(ldm.autoencoder, ldm.data, ldm.conditioner)


def encode(cohort: EncodedCohort, accelerator: Accelerator) -> None:
    """Writes the latents that are missing, each process its share, volumes first."""
    model: Autoencoder | None = None
    for name, cache in (("training", cohort.training), ("validation", cohort.validation)):
        fill(cache.volumes, f"preparing {name} volumes", accelerator)
        missing = cache.missing()
        accelerator.wait_for_everyone()  # every process must have looked before any of them writes
        if not missing:
            continue
        if model is None:
            model = cohort.autoencoder.to(accelerator.device)
        run_encoder = _moments_on(model, accelerator)
        mine = own(accelerator, missing)
        with bar(f"encoding {name} volumes", len(mine), "volumes", accelerator.is_main_process) as shown:
            cache.write(mine, run_encoder, shown.advance)
        accelerator.wait_for_everyone()


def _moments_on(model: Autoencoder, accelerator: Accelerator):  # type: ignore[no-untyped-def]
    def run_encoder(image: Tensor) -> tuple[Tensor, Tensor]:
        moments = model.moments(image.to(accelerator.device))
        return moments.mean.cpu(), moments.deviation.cpu()

    return run_encoder


def _settings(autoencoder: Path, data: LatentDataConfig) -> tuple[Path, AugmentConfig, Path, int]:
    """Manifest, augmentation, cache root and seed: as the autoencoder was trained, unless given."""
    file = Path(autoencoder) / "config.yaml"
    if file.is_file():
        trained = build(AutoencoderRun, read_yaml(file), str(file))
        return (
            data.manifest or trained.data.manifest,
            data.augment or trained.data.augment,
            data.cache or trained.data.cache,
            trained.seed,
        )
    if data.manifest is None:
        raise ConfigError(f"{autoencoder} is a checkpoint without its run, so data.manifest must say what to train on")
    return data.manifest, data.augment or AugmentConfig(), data.cache or Path("runs/cache"), 0
