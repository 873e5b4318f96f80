"""Two processes: the same weights on both, the same loss curve as one, the same volumes as one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_runs import autoencoder_config, extractor_config, gan_config, ldm_config, masks_config, on_two_processes

from latentsynth.config import load, run_of
from latentsynth.data import nifti
from latentsynth.data.exchange.requests import requests
from latentsynth.data.manifest import Manifest
from latentsynth.parallel import start
from latentsynth.synthesis import synthesize
from latentsynth.synthesizers import load_synthesizer
from latentsynth.training.recipes import train
from latentsynth.training.run import read_metrics


@pytest.fixture(scope="module")
def pair(workplace: Path, trained_autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains an autoencoder and a diffusion model and samples, on two processes; returns the folder of digests."""
    folder = tmp_path_factory.mktemp("digests")
    arguments = [
        autoencoder_config(workplace, "ae-pair"),
        ldm_config(workplace, "ldm-pair", trained_autoencoder.name),
        workplace / "manifest.json",
        folder / "samples",
    ]
    on_two_processes(folder, *arguments)
    return folder


@pytest.mark.parametrize("name", ["ae-pair", "ldm-pair"])
def test_both_processes_end_with_the_same_weights(name: str, pair: Path) -> None:
    ranks = [json.loads((pair / f"{name}-32-rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["world"] for rank in ranks] == [2, 2]
    assert ranks[0]["digests"] == ranks[1]["digests"]
    early = json.loads((pair / f"{name}-8-rank0.json").read_text())
    assert all(a != b for a, b in zip(early["digests"][:1], ranks[0]["digests"], strict=False))  # and they did train


def test_two_processes_resume_from_a_sound_state_to_the_same_weights(pair: Path, workplace: Path) -> None:
    """The newest state was damaged after an unbroken run, so both went on from the one before."""
    for rank in (0, 1):
        unbroken, resumed = (
            json.loads((pair / f"{name}-32-rank{rank}.json").read_text()) for name in ("ae-pair-unbroken", "ae-pair")
        )
        assert unbroken == resumed
    assert sorted(p.name for p in (workplace / "ae-pair" / "state").iterdir()) == ["0000000024", "0000000032"]
    seen = [line["images_seen"] for line in read_metrics(workplace / "ae-pair") if "autoencoder/loss" in line]
    assert seen == list(range(4, 33, 4))


def test_two_processes_have_the_loss_curve_of_one(pair: Path, workplace: Path, trained_ldm: Path) -> None:
    curves = []
    for run in (trained_ldm, workplace / "ldm-pair"):
        lines = [line for line in read_metrics(run) if "denoiser/loss" in line]
        curves.append([line["denoiser/loss"] for line in lines])
        assert [line["images_seen"] for line in lines] == list(range(4, 33, 4))
    assert np.allclose(curves[0], curves[1], rtol=1e-4)
    assert curves[0][0] != curves[0][-1]


def test_two_processes_sample_the_volumes_of_one(pair: Path, workplace: Path, tmp_path: Path) -> None:
    model = load_synthesizer(workplace / "ldm-pair")
    alone = synthesize(model, requests(workplace / "manifest.json"), tmp_path, start(), per_mask=3)
    together = Manifest.load(pair / "samples" / "manifest.json")
    assert [case.case_id for case in together.cases] == [case.case_id for case in alone.cases]
    assert len(together.cases) >= 3
    for ours, theirs in zip(alone.cases, together.cases, strict=True):
        a, b = nifti.read(ours.images[0])[0], nifti.read(theirs.images[0])[0]
        assert np.allclose(a, b, atol=0.5)  # Hounsfield units, of a window of 400


GANS = ("spade", "stylegan2", "stylegan1", "pix2pix", "cyclegan")


@pytest.fixture(scope="module")
def gans(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains GANs on two processes; returns the folder of digests."""
    folder = tmp_path_factory.mktemp("gan-digests")
    game = {
        "stylegan2": {"r1_every": 2, "path_length_every": 2, "augment_target": 0.1, "augment_ramp_images": 50},
        "pix2pix": {"pool": 6, "noise": 0.2},
        "stylegan1": {"grow_images": 8},
    }
    configs = [gan_config(workplace, f"{family}-pair", family, game=game.get(family, {}), seed=1) for family in GANS]
    on_two_processes(folder, "train", *configs)
    return folder


@pytest.mark.parametrize("family", GANS)
def test_both_players_of_a_gan_step_alike_on_both_processes(family: str, gans: Path) -> None:
    ranks = [
        {seen: json.loads((gans / f"{family}-pair-{seen}-rank{rank}.json").read_text()) for seen in (8, 32)}
        for rank in (0, 1)
    ]
    assert [rank[32]["world"] for rank in ranks] == [2, 2]
    for seen in (8, 32):
        assert ranks[0][seen]["digests"] == ranks[1][seen]["digests"]
    early, late = ranks[0][8]["digests"], ranks[0][32]["digests"]
    assert len(late) == 2  # generator and discriminator
    assert all(a != b for a, b in zip(early, late, strict=True))


def test_losses_of_a_gan_are_those_of_one_process(gans: Path, workplace: Path) -> None:
    """Of the players' first step: later ones differ where a loss is no mean over images (statistics of a batch)."""
    from latentsynth.config import GanRun, load
    from latentsynth.training.recipes.gan import train_gan

    alone = load(GanRun, gan_config(workplace, "spade-alone", "spade", seed=1), ["train.images=4"])
    train_gan(alone)
    one, two = (read_metrics(run)[0] for run in (alone.run, workplace / "spade-pair"))
    for key in ("generator/l1", "generator/divergence", "generator/adversarial", "discriminator/loss"):
        assert one[key] == pytest.approx(two[key], rel=1e-3), key


OTHERS = ("slice_vae", "label_vae", "mask_diffusion", "mask_gan", "extractor", "latent_gan", "fsq", "kl")


def _config(workplace: Path, kind: str, name: str, autoencoder: Path) -> Path:
    if kind in ("fsq", "kl"):
        network = {"kind": kind, "trunk": {"width": 16, "res_blocks": 1}, "latent_channels": 4}
        return autoencoder_config(workplace, name, autoencoder=network)
    if kind == "extractor":
        return extractor_config(workplace, name)
    if kind == "latent_gan":
        return gan_config(workplace, name, kind, autoencoder.name)
    return masks_config(workplace, kind.removeprefix("mask_") if kind == "mask_gan" else kind, name)


@pytest.fixture(scope="module")
def others(workplace: Path, trained_autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains one of each other kind on two processes; returns the folder of digests."""
    folder = tmp_path_factory.mktemp("other-digests")
    configs = [_config(workplace, kind, f"{kind}-pair", trained_autoencoder) for kind in OTHERS]
    on_two_processes(folder, "train", *configs)
    return folder


@pytest.mark.parametrize("kind", OTHERS)
def test_whatever_else_is_trained_steps_alike_on_both_and_begins_as_on_one(
    kind: str, others: Path, workplace: Path, trained_autoencoder: Path
) -> None:
    early, late = (
        [json.loads((others / f"{kind}-pair-{seen}-rank{rank}.json").read_text()) for rank in (0, 1)]
        for seen in (8, 32)
    )
    assert [rank["world"] for rank in late] == [2, 2]
    assert early[0]["digests"] == early[1]["digests"]
    assert late[0]["digests"] == late[1]["digests"] != early[0]["digests"]
    if kind == "mask_gan":
        return  # its discriminator looks at how much the images of a process's batch differ
    path = _config(workplace, kind, f"{kind}-alone", trained_autoencoder)
    alone = load(run_of(yaml.safe_load(path.read_text())), path, ["train.images=16"])
    train(alone)
    one, two = (read_metrics(run)[0] for run in (alone.run, workplace / f"{kind}-pair"))
    losses = [key for key in one if key.endswith("/loss")]
    assert losses
    for key in losses:
        assert one[key] == pytest.approx(two[key], rel=2e-3), key
