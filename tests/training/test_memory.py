"""The configurations for large GPUs: built on the meta device, with their shapes, keys and memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from latentsynth.autoencoders import build_autoencoder
from latentsynth.config import AutoencoderRun, LdmRun, SegmenterRun, TrainConfig, load
from latentsynth.training.memory import estimate_autoencoder, estimate_ldm, estimate_segmenter, measure
from latentsynth.training.recipes.ldm import build_denoiser
from latentsynth.types import Conditioning, Domain, Labels

CONFIGS = Path(__file__).parents[2] / "configs"
PAIRS = [("gpu24_128_4ch", "ldm_gpu24_128", 24, 128), ("gpu80_192_4ch", "ldm_gpu80_192", 80, 192)]
LABELS = Labels((0, 1, 2, 3))


@pytest.mark.parametrize(("autoencoder", "generator", "gib", "size"), PAIRS)
def test_gpu_configurations_fit_their_gpu(autoencoder: str, generator: str, gib: int, size: int) -> None:
    first = load(AutoencoderRun, CONFIGS / "autoencoder" / f"{autoencoder}.yaml")
    second = load(LdmRun, CONFIGS / "generator" / f"{generator}.yaml")
    assert first.data.grid.shape == (size,) * 3
    assert first.data.grid.channels == 4
    assert second.autoencoder == first.run
    with torch.device("meta"):
        model = build_autoencoder(first.autoencoder, 4)
        latent = model.latent_shape(first.data.grid.shape)
        assert latent == (16, size // 4, size // 4, size // 4)
        raw = model.moments(torch.zeros(1, 4, *first.data.grid.shape)).mean
        assert tuple(raw.shape[1:]) == latent
        assert tuple(model.decoder(raw).shape[1:]) == (4, *first.data.grid.shape)
        denoiser = build_denoiser(second, latent[0], len(LABELS))
        x = torch.zeros(1, *latent)
        out = denoiser(x, torch.tensor(0.5), Conditioning(torch.zeros(1, len(LABELS), *latent[1:])))
        assert out.shape == x.shape
    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder", "decoder", "latent_mean", "latent_std"}
    assert {name.split(".")[0] for name in denoiser.state_dict()} == {"network"}
    domain = Domain(first.data.grid, first.data.framing, LABELS, tuple("abcd"), ())
    for estimate in (estimate_autoencoder(first), estimate_ldm(second, model, domain)):
        assert 0.5 < estimate.gib < 0.9 * gib


@pytest.mark.parametrize("path", sorted((CONFIGS / "segmenter").glob("*.yaml")), ids=lambda path: path.stem)
def test_gpu_segmenters_fit_their_gpu(path: Path) -> None:
    config = load(SegmenterRun, path)
    estimate = estimate_segmenter(config, len(LABELS))
    assert 0.5 < estimate.gib < 0.9 * 24
    assert estimate.parameters > 1e6


def chain(depth: int) -> tuple[nn.Sequential, list[nn.Module]]:
    blocks: list[nn.Module] = [
        nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()) for _ in range(depth)
    ]
    return nn.Sequential(*blocks), blocks


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_counts_what_autograd_keeps(checkpointing: bool) -> None:
    """A chain of linear layers and tanh keeps, per layer, its input and the tanh's output: known in closed form."""
    depth, rows = 5, 32
    size = rows * 64 * 4  # bytes of one activation
    with torch.device("meta"):
        module, blocks = chain(depth)
        train = TrainConfig(gradient_checkpointing=checkpointing)
        estimate = measure(module, blocks, lambda: module(torch.zeros(rows, 64)).sum(), train)
    # Tanh's output is the next layer's input, kept once; the chain's own input is kept as well.
    expected = (depth + 2) * size if checkpointing else (2 * depth + 1) * size
    assert estimate.activations / 1.25 == pytest.approx(expected, rel=0.25 if checkpointing else 0.01)
    assert estimate.weights == 4 * 5 * sum(p.numel() for p in module.parameters())


def test_memory_grows_with_the_batch_and_shrinks_with_checkpointing() -> None:
    file = CONFIGS / "reference" / "hippocampus_autoencoder.yaml"

    def gib(*changes: str) -> int:
        return estimate_autoencoder(load(AutoencoderRun, file, list(changes))).activations

    whole = gib()
    assert gib("train.batch=8") == pytest.approx(2 * whole, rel=0.01)
    assert gib("train.accumulation=2") == pytest.approx(whole / 2, rel=0.01)
    assert gib("train.gradient_checkpointing=true") < 0.7 * whole
