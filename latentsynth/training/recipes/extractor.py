"""Training a contrastive feature extractor on real training patients, from a configuration to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from latentsynth import checkpoint
from latentsynth.config import ExtractorRun
from latentsynth.data.cache.loading import Positions
from latentsynth.data.cache.volumes import Recipe, VolumeCache
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.extractors.contrastive import ContrastiveEncoder, contrastive_loss, views
from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.parallel import fill, rows_of_all
from latentsynth.provenance import Ledger
from latentsynth.randomness import VALIDATION, Draws, Stream, seed_weights
from latentsynth.training.loop import Batch, Hooks, Modules, Player, fit, start_training
from latentsynth.training.run import RunFolder
from latentsynth.types import Domain

KIND = "extractor"
_SHOWN = 4
_CELLS = 6  # per axis, at most, that a head which keeps the layout tells apart
_MOST = 128  # validation scans that are told apart


def train_extractor(config: ExtractorRun) -> dict[str, float]:
    """Trains a feature extractor as configured; the same call again resumes it.

    Returns:
        ``retrieval``: the share of validation scans of which one view finds the other among the views of all of them.

    Raises:
        LatentsynthError: Bad or synthetic data, another run in the folder, or a loss that is not finite.
    """
    accelerator = start_training(config.train)
    manifest = Manifest.load(config.data.manifest)
    cases = manifest.select("train")
    if any(case.source != "real" for case in cases):
        raise DataError(
            f"{config.data.manifest} holds synthetic cases: an extractor that judges them learns from real ones"
        )
    data = config.data
    recipe = Recipe(data.grid, data.framing, manifest.labels, data.augment, config.seed)
    training = VolumeCache(data.cache, recipe, cases, data.augment.copies)
    validation = VolumeCache(data.cache, recipe, manifest.select("val"))
    fill(training, "preparing training volumes", accelerator)
    fill(validation, "preparing validation volumes", accelerator)
    run = RunFolder(config, accelerator)
    seed_weights(config.seed)
    cells = (
        [min(_CELLS, max(1, n >> len(config.channels))) for n in data.grid.shape] if config.head == "layout" else None
    )
    network = ContrastiveEncoder(
        image_channels=data.grid.channels, channels=config.channels, projection=config.projection, cells=cells
    )
    domain = Domain(data.grid, data.framing, manifest.labels, manifest.channels, training.median_limits())
    numbers = {patient: n for n, patient in enumerate(dict.fromkeys(case.patient_id for case in cases))}
    device = accelerator.device

    def item(n: int) -> dict[str, Any]:
        return {**training.packed(n), "patient": numbers[training.entries[n][0].patient_id]}

    def loss(modules: Modules, batch: Batch, state: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        pair = [
            _view(batch["image"], config, batch["position"], stream)
            for stream in (Stream.FIRST_VIEW, Stream.SECOND_VIEW)
        ]
        # Partners are found among the whole batch, however many processes share it.
        first, second = (rows_of_all(accelerator, half) for half in modules["network"](torch.cat(pair)).chunk(2))
        patients = rows_of_all(accelerator, batch["patient"])
        return contrastive_loss(first, second, config.temperature, patients), {}

    @torch.no_grad()
    def validate(modules: Modules) -> dict[str, float]:
        rows = range(min(len(validation), _MOST))
        found = []
        for stream in (Stream.FIRST_VIEW, Stream.SECOND_VIEW):
            vectors = []
            for n in rows:
                image = torch.from_numpy(validation.volume(n).image)[None].to(device)
                view = _view(image, config, torch.tensor([VALIDATION + n]), stream)
                vectors.append(modules["network"](view))
            found.append(torch.cat(vectors))
        nearest = (found[0] @ found[1].T).argmax(1).cpu()
        return {"retrieval": float((nearest == torch.arange(len(nearest))).float().mean())}

    def sketch(modules: Modules, path: Path) -> None:
        if accelerator.is_main_process:
            rows = []
            for n in range(min(_SHOWN, len(validation))):
                image = torch.from_numpy(validation.volume(n).image)[None]
                pair = [
                    _view(image, config, torch.tensor([n]), stream)[0].numpy()
                    for stream in (Stream.FIRST_VIEW, Stream.SECOND_VIEW)
                ]
                name = validation.entries[n][0].case_id
                rows.append([Tile(name, image[0].numpy()), Tile("one view", pair[0]), Tile("another", pair[1])])
            contact_sheet(path, rows, Legend.of(domain), "what counts as the same scan")

    def export(modules: Modules, last: dict[str, float]) -> None:
        if accelerator.is_main_process:
            network = cast(ContrastiveEncoder, modules["network"])
            ledger = Ledger.of(cases)
            checkpoint.write(run.path / "checkpoint", KIND, domain, {}, {"network": network}, ledger, last)
        accelerator.wait_for_everyone()

    players = [Player("extractor", {"network": network}, loss, config.train.lr)]
    items = Positions(item, len(training), config.seed)
    return fit(players, items, run, config.train, Hooks(validate, sketch, export))


def _view(images: Tensor, config: ExtractorRun, positions: Tensor, stream: Stream) -> Tensor:
    return views(images, config.views, Draws.keyed(config.seed, positions, stream))
