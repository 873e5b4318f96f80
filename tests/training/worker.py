"""Run under `accelerate launch`: trains, samples, and leaves a digest of every process's weights.

Arguments: the folder of digests, then ``train`` and configurations of anything, or what :func:`main` takes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from latentsynth.config import AutoencoderRun, LdmRun, load, run_of
from latentsynth.data.exchange.requests import requests
from latentsynth.parallel import start
from latentsynth.synthesis import synthesize
from latentsynth.synthesizers import load_synthesizer
from latentsynth.training.recipes import train
from latentsynth.training.recipes.autoencoder import train_autoencoder
from latentsynth.training.recipes.ldm import train_ldm
from latentsynth.training.run import RunFolder


def leave_digests(folder: Path) -> None:
    """Makes every saving of state also write what this process's weights are."""
    save = RunFolder.save_state

    def save_and_tell(run: RunFolder, images_seen: int, sections: Mapping[str, Any]) -> None:
        digests = []
        for model in run.accelerator._models:
            digest = hashlib.sha256()
            for tensor in run.accelerator.unwrap_model(model).state_dict().values():
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
            digests.append(digest.hexdigest())
        facts = {"world": run.accelerator.num_processes, "digests": digests}
        name = f"{run.path.name}-{images_seen}-rank{run.accelerator.process_index}.json"
        (folder / name).write_text(json.dumps(facts))
        save(run, images_seen, sections)

    RunFolder.save_state = save_and_tell


def damage_newest_state(run: Path, folder: Path) -> None:
    """Makes the next training of a finished run go on from the state before, and keeps the digests of the first."""
    accelerator = start()
    if accelerator.is_main_process:
        for file in folder.glob(f"{run.name}-32-rank*.json"):
            file.rename(folder / file.name.replace(run.name, f"{run.name}-unbroken"))
        newest = sorted((run / "state").iterdir())[-1]
        (newest / "modules.safetensors").write_bytes(b"torn")
    accelerator.wait_for_everyone()


def main(folder: Path, autoencoder: Path, ldm: Path, masks: Path, samples: Path) -> None:
    leave_digests(folder)
    config = load(AutoencoderRun, autoencoder)
    train_autoencoder(config)
    damage_newest_state(config.run, folder)
    train_autoencoder(config)
    run = load(LdmRun, ldm)
    train_ldm(run)
    synthesize(load_synthesizer(run.run), requests(masks), samples, start(), per_mask=3)


def trainings(folder: Path, *configs: Path) -> None:
    leave_digests(folder)
    for path in configs:
        train(load(run_of(yaml.safe_load(path.read_text())), path))


if __name__ == "__main__":
    arguments = [Path(argument) for argument in sys.argv[1:]]
    if arguments[1] == Path("train"):
        trainings(arguments[0], *arguments[2:])
    else:
        main(*arguments)
