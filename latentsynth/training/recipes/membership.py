"""One denoising loss per case, for membership inference: a model that memorized is better on whom it has seen."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from latentsynth import checkpoint
from latentsynth.config import LdmRun
from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.parallel import over_cases
from latentsynth.synthesizers import LatentDiffusion
from latentsynth.training.recipes.ldm import DenoiserLoss


def denoising_losses(config: LdmRun, path: Path, volumes: VolumeCache, accelerator: Accelerator) -> list[float]:
    """Mean loss of each case over evenly spread times and fixed noise, with its mask.

    Args:
        config: The run that trained the model; its loss is used.
        path: Checkpoint of the model.
        volumes: The cases, each with a mask.
        accelerator: The processes that share the cases.

    Raises:
        CheckpointError: No latent diffusion model there.
    """
    model = LatentDiffusion.from_pretrained(checkpoint.locate(path)).to(accelerator.device)
    loss = DenoiserLoss(config, model.autoencoder, model.conditioner, model.domain)

    @torch.no_grad()
    def work(n: int) -> float:
        item = volumes.item(n)
        moments = model.autoencoder.moments(item["image"][None].to(accelerator.device))
        given = {"mean": moments.mean[0].cpu(), "deviation": moments.deviation[0].cpu(), "mask": item["mask"]}
        # The same noise for every case, so that cases differ by themselves alone.
        return loss.score({"denoiser": model.denoiser}, given, 0)["loss"]

    return over_cases(accelerator, "losses", volumes.entries, work)
