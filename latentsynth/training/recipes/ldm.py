"""Training a mask-conditioned latent diffusion model on cached latents, from a configuration to a checkpoint."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from latentsynth import checkpoint
from latentsynth.autoencoders import Autoencoder, Moments
from latentsynth.autoencoders.reconstruction import lost_lesion_warning
from latentsynth.conditioning import ContextConditioner, MaskConditioner, Place
from latentsynth.config import ConditionerConfig, LdmRun, SamplingConfig
from latentsynth.config.numbers import Axes
from latentsynth.data.cache.held import hold
from latentsynth.data.cache.latents import LatentCache
from latentsynth.data.cache.loading import Patches, Positions
from latentsynth.diffusion import Denoiser, TimeSampler, denoising_loss, schedule_named, target_weight
from latentsynth.diffusion.times import automatic_shift
from latentsynth.parallel import mean_rows, share
from latentsynth.provenance import Ledger
from latentsynth.randomness import VALIDATION, Stream, keyed_noise, keyed_uniform, seed_weights
from latentsynth.synthesizers import LatentDiffusion
from latentsynth.tensors import summed
from latentsynth.training.loop import Batch, Hooks, Modules, Player, fit, start_training
from latentsynth.training.recipes.autoencoder import copy_weights
from latentsynth.training.recipes.encode import encode, encoded_cohort
from latentsynth.training.recipes.selection import Convergence, Obedience, choose_guidance, deserves
from latentsynth.training.recipes.sheets import sample_sheet
from latentsynth.training.run import RunFolder, read_metrics
from latentsynth.types import Condition, Conditioning, Domain

_TIMES_PER_CASE = 4  # validation times per case, spread evenly
_SAME = 1e-3  # latents of two volumes count as the same within this share of the largest


def train_ldm(config: LdmRun) -> dict[str, float]:
    """Trains a latent diffusion model as configured; the same call again resumes it. Encodes what is not encoded yet.

    Returns:
        Scores on validation patients.

    Raises:
        LatentsynthError: No usable autoencoder, bad data, another run in the folder, or a loss that is not finite.
    """
    accelerator = start_training(config.train)
    cohort = encoded_cohort(config.autoencoder, config.data, config.conditioner)
    warning = lost_lesion_warning(dict(cohort.header.metrics))
    if warning and accelerator.is_main_process:
        warnings.warn(warning, UserWarning, stacklevel=2)
    run = RunFolder(config, accelerator)  # before anything is made: it may be refused
    encode(cohort, accelerator)
    autoencoder = cohort.autoencoder.to(accelerator.device)
    seed_weights(config.seed)  # after loading, which draws too
    conditioner = build_conditioner(
        config.conditioner, len(cohort.manifest.labels), autoencoder.factors, autoencoder.latent_channels,
        len(config.denoiser.channels),
    )  # fmt: skip
    denoiser, ledger = initial(config, autoencoder.latent_channels, conditioner.channels)
    ledger = ledger | Ledger.of(cohort.manifest.select("train")) | checkpoint.read_ledger(cohort.folder)
    loss = DenoiserLoss(config, autoencoder, conditioner, cohort.header.domain)
    training, validation = cohort.training, cohort.validation

    def synthesizer(modules: Modules) -> LatentDiffusion:
        net = cast(Denoiser, modules["denoiser"])
        return LatentDiffusion(cohort.header.domain, autoencoder, conditioner, net, config.sampling)

    items, part = training_items(config, training, autoencoder, cohort.header.domain, accelerator)
    unmoved = [n for n, (_, copy) in enumerate(training.volumes.entries) if copy == 0][: len(validation)]
    obedience = Obedience.load(config.selection, validation.volumes, cohort.header.domain, config.seed)
    best, early = run.path / "checkpoint", run.path / "early"
    if best.is_dir() and accelerator.is_main_process:
        resettle(best, config.sampling.resolved(config.diffusion.flow))
    accelerator.wait_for_everyone()

    def validate(modules: Modules) -> dict[str, float]:
        scores = mean_rows(share(accelerator, len(validation), lambda n: loss.score(modules, part(validation, n), n)))
        # As many training cases, with the same times and noise: where the two part, training patients are learnt by heart.
        known = share(accelerator, len(unmoved), lambda n: loss.score(modules, part(training, unmoved[n]), n))
        scores["training_loss"] = mean_rows(known)["loss"]
        if obedience is not None:
            scores["obedience"] = obedience.of(synthesizer(modules))
        return scores

    def sketch(modules: Modules, path: Path) -> None:
        if accelerator.is_main_process:
            how = f" ({config.sampling.scheduler}, {config.sampling.steps} steps)"
            sample_sheet(path, synthesizer(modules), validation.volumes, config.seed, how)

    def export(modules: Modules, last: dict[str, float]) -> None:
        if accelerator.is_main_process and not early.is_dir():
            synthesizer(modules).save(early, ledger, last)  # to guide the finished model away from
        if accelerator.is_main_process and (
            config.selection.keep == "last" or deserves(last, best, LatentDiffusion.kind)
        ):
            synthesizer(modules).save(best, ledger, last)
        accelerator.wait_for_everyone()

    players = [Player("denoiser", {"denoiser": denoiser}, loss, config.train.lr)]
    fit(players, items, run, config.train, Hooks(validate, sketch, export))
    if (convergence := Convergence.of(read_metrics(run.path))) is not None:
        accelerator.print(convergence.told())
    if obedience is not None and config.selection.guidance and accelerator.is_main_process:
        _settle_guidance(best, obedience, config.selection.guidance, accelerator)
    accelerator.wait_for_everyone()
    return dict(checkpoint.read_header(best, LatentDiffusion.kind).metrics)


Part = Callable[[LatentCache, int], dict[str, Any]]  # of an entry, for validation


def training_items(
    config: LdmRun, training: LatentCache, autoencoder: Autoencoder, domain: Domain, accelerator: Accelerator
) -> tuple[Positions, Part]:
    """What a denoiser trains on and is scored on: whole volumes, or patches of them; held in memory where they fit."""
    cells, count = config.conditioner.patch, len(training)
    held = hold(training, accelerator.device, accelerator.num_processes)
    if cells is None:
        return Positions(held.packed, count, config.seed, held.on_device), lambda cache, entry: cache.item(entry)
    _, i, j, k = autoencoder.latent_shape(domain.grid.shape)

    def placed(take: Callable[..., dict[str, Any]], entry: int, corner: Axes) -> dict[str, Any]:
        return {**take(entry, corner, cells), "corner": torch.tensor(corner)}

    items = Patches(partial(placed, held.packed), ((i, j, k), cells), count, config.seed, held.on_device)
    return items, lambda cache, entry: placed(cache.item, entry, items.corner(VALIDATION + entry))


def _settle_guidance(folder: Path, obedience: Obedience, scales: Sequence[float], accelerator: Accelerator) -> None:
    """Chooses the guidance that a checkpoint samples with on validation patients, and writes it there."""
    model = LatentDiffusion.from_pretrained(folder).to(accelerator.device)
    chosen, found = choose_guidance(obedience, model, scales)
    told = ", ".join(f"{dice:.3f} at {scale:g}" for scale, dice in found.items())
    accelerator.print(f"guidance {chosen:g}, chosen on validation patients: Dice of masks in samples {told}")
    resettle(folder, model.sampling.model_copy(update={"guidance": chosen}))


def resettle(folder: Path, sampling: SamplingConfig) -> None:
    """Gives a checkpoint the sampling defaults of a run that goes on: its weights may stay the best."""
    header = checkpoint.read_header(folder, LatentDiffusion.kind)
    if header.settings["sampling"] == sampling.model_dump(mode="json"):  # then no weights need to be read
        return
    model = LatentDiffusion.from_pretrained(folder)
    model.sampling = sampling
    model.save(folder, model.ledger, header.metrics)


def build_conditioner(
    config: ConditionerConfig, labels: int, factors: Sequence[int], latent_channels: int = 0, levels: int = 1
) -> MaskConditioner:
    """What brings masks to the latent grid, and scans to paint into, whose latents have so many channels."""
    common: dict[str, Any] = {
        "labels": labels, "factors": factors, "detail": config.detail, "levels": levels, "patch": config.patch
    }  # fmt: skip
    if not config.context:
        return MaskConditioner(**common)
    return ContextConditioner(
        **common, latent_channels=latent_channels, cut_margin_mm=config.cut_margin_mm, decoys=config.decoys
    )


def build_denoiser(config: LdmRun, latent_channels: int, spatial_channels: int) -> Denoiser:
    """A new denoiser with random weights."""
    return Denoiser(
        latent_channels=latent_channels,
        spatial_channels=spatial_channels,
        schedule=config.diffusion.schedule,
        prediction=config.diffusion.prediction,
        **config.denoiser.model_dump(),
    )


def initial(config: LdmRun, latent_channels: int, spatial_channels: int) -> tuple[Denoiser, Ledger]:
    """The denoiser that training starts from, and whom its weights have already seen.

    Raises:
        CheckpointError: ``init_from`` is not a latent diffusion model of this architecture.
    """
    denoiser = build_denoiser(config, latent_channels, spatial_channels)
    if config.train.gradient_checkpointing:
        denoiser.checkpoint_gradients()
    if config.init_from is None:
        return denoiser, Ledger()
    folder = checkpoint.locate(config.init_from)
    source = LatentDiffusion.from_pretrained(folder).denoiser
    if config.conditioner.context and source.config["spatial_channels"] == spatial_channels - latent_channels - 1:
        widen(source, spatial_channels)  # the road's model learns to look at the scan too
    copy_weights(denoiser, source, folder)
    return denoiser, checkpoint.read_ledger(folder)


def widen(denoiser: Denoiser, spatial_channels: int) -> None:
    """Lets a trained denoiser take further channels of conditioning, which at first change nothing: their weights are 0."""
    convolution = denoiser.network.conv_in.conv
    weight = convolution.weight.data
    more = denoiser.config["latent_channels"] + spatial_channels - weight.shape[1]
    convolution.weight.data = torch.cat([weight, weight.new_zeros(len(weight), more, *weight.shape[2:])], dim=1)


@dataclass
class DenoiserLoss:
    """The denoiser's loss. Every random number is keyed by (seed, position), so one process and many draw the same."""

    config: LdmRun
    autoencoder: Autoencoder
    conditioner: MaskConditioner
    domain: Domain

    def __post_init__(self) -> None:
        wanted = self.config.diffusion
        _, i, j, k = self.autoencoder.latent_shape(self.domain.grid.shape)
        self.whole = (i, j, k)
        seen = math.prod(self.config.conditioner.seen(self.whole))
        shift = automatic_shift(seen) if wanted.shift == "auto" else wanted.shift
        self.times = TimeSampler(wanted.time, wanted.time_mean, wanted.time_std, shift)
        self.schedule = schedule_named(wanted.schedule)
        self.lesions = self.domain.lesion_indices

    def __call__(self, modules: Modules, batch: Batch, state: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        positions, seed = batch["position"], self.config.seed
        t = self.times(keyed_uniform(seed, positions, Stream.TIME))
        keep = keyed_uniform(seed, positions, Stream.DROP_CONDITION) >= self.config.diffusion.condition_dropout
        keep_host = keyed_uniform(seed, positions, Stream.DROP_CONTEXT) >= self.config.conditioner.context_dropout
        if "decoy_mean" in batch:
            decoy = keyed_uniform(seed, positions, Stream.TAKE_DECOY) < self.config.conditioner.decoys
            decoy = decoy.to(batch["mean"].device).view(-1, 1, 1, 1, 1)
            batch = {**batch, "host_mean": torch.where(decoy, batch["decoy_mean"], batch["host_mean"])}
        losses = self.losses(modules, batch, positions, t, keep, keep_host)
        return losses.mean(), {}

    def losses(
        self,
        modules: Modules,
        batch: Batch,
        positions: Tensor,
        t: Tensor,
        keep: Tensor,
        keep_host: Tensor | None = None,
    ) -> Tensor:
        """A loss per case ``(B,)`` at times ``t``.

        The whole condition of cases where ``keep`` is False is removed, and the scan to paint into where ``keep_host`` is.
        Cases without a mask have none.
        """
        seed, wanted = self.config.seed, self.config.diffusion
        mean = batch["mean"]
        shape = tuple(mean.shape[1:])
        # A new draw from the cached moments each time: one cached draw would be a fixed noise floor.
        raw = Moments(mean, batch["deviation"]).sample(keyed_noise(seed, positions, shape, Stream.LATENT).to(mean))
        z = self.autoencoder.whiten(raw)
        host = self.autoencoder.whiten(batch["host_mean"]) if "host_mean" in batch else None
        # A scan that nobody annotated teaches what scans look like, as one whose mask is dropped: with the scan to paint
        # into beside it, from which nothing was cut, it would teach copying.
        keep = keep.to(mean.device) & batch["mask"].flatten(1).any(1)
        keep_host = keep if keep_host is None else keep_host.to(mean.device) & keep
        place = Place(batch["corner"], self.whole) if "corner" in batch else None
        given = self.conditioner(Condition(batch["mask"]), host, place)
        if host is not None:
            given = self.conditioner.without_host(given, keep_host)
        conditioning = self.conditioner.dropped(given, keep)
        t = t.to(mean)
        schedule = self.schedule
        return denoising_loss(
            modules["denoiser"],
            z,
            conditioning,
            schedule,
            t,
            keyed_noise(seed, positions, shape, Stream.NOISE).to(mean),
            target_weight(wanted.prediction, schedule, t),
            self._cell_weight(batch, given, keep_host),
        )

    def _cell_weight(self, batch: Batch, given: Conditioning, keep_host: Tensor) -> Tensor:
        """Loss weight of every cell, ``(B, 1, i, j, k)``: of lesions, and of what the cut hides where there is a scan to copy."""
        lesions = summed(self.conditioner.cell_fractions(given), self.lesions)
        weight = 1 + (self.config.diffusion.lesion_weight - 1) * lesions
        if "host_mean" in batch:
            apart = (batch["mean"] - batch["host_mean"]).abs().amax(1, keepdim=True)
            largest = batch["mean"].abs().amax(dim=(1, 2, 3, 4), keepdim=True)
            hidden = (apart > _SAME * largest) & keep_host.view(-1, 1, 1, 1, 1)
            weight = weight * torch.where(hidden, self.config.conditioner.cut_weight, 1.0)
        return weight

    @torch.no_grad()
    def score(self, modules: Modules, item: Batch, case: int) -> dict[str, float]:
        """Loss of one validation case over evenly spread times, with its mask and without.

        ``mask_gain`` is the share of the loss that knowing the mask removes: near 0, the mask is ignored.
        """
        device = next(modules["denoiser"].parameters()).device
        rows = _TIMES_PER_CASE
        batch = {k: v.to(device).expand(rows, *v.shape).contiguous() for k, v in item.items()}
        positions = torch.arange(rows) + VALIDATION + case * rows
        t = self.times((torch.arange(rows) + 0.5) / rows)
        everything, nothing = torch.ones(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.bool)

        def loss(keep: Tensor, keep_host: Tensor) -> float:
            return float(self.losses(modules, batch, positions, t, keep, keep_host).mean())

        # Without the scan to paint into on both sides, which would tell much of what the mask does.
        masked, dropped = loss(everything, nothing), loss(nothing, nothing)
        whole = loss(everything, everything) if "host_mean" in item else masked
        return {"loss": whole, "mask_gain": 1 - masked / dropped}
