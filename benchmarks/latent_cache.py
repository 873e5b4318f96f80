"""What the latent cache saves: a denoiser step on cached latents beside one that encodes first.

`python benchmarks/latent_cache.py`; the ratio is what matters, the seconds are this machine's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from latentsynth.autoencoders import build_autoencoder
from latentsynth.config import KLConfig
from latentsynth.diffusion import Denoiser
from latentsynth.types import Conditioning

SHAPE, BATCH, LABELS = (32, 48, 32), 8, 3


def seconds(step: Callable[[], None], repeats: int = 5) -> float:
    """Median wall time of a step, the first one left out."""
    took = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        step()
        took.append(time.perf_counter() - began)
    return median(took[1:])


def main() -> None:
    autoencoder = build_autoencoder(KLConfig(), 1)
    latent = autoencoder.latent_shape(SHAPE)
    denoiser = Denoiser(latent[0], LABELS, "rectified", "v", (48, 96), (False, True), 1, 48, 16)
    image, z = torch.rand(BATCH, 1, *SHAPE), torch.randn(BATCH, *latent)
    conditioning = Conditioning(torch.rand(BATCH, LABELS, *latent[1:]))
    t = torch.rand(BATCH)

    def cached() -> None:
        denoiser(z, t, conditioning).square().mean().backward()

    def encoding() -> None:
        with torch.no_grad():
            raw = autoencoder.moments(image).mean
        denoiser(raw, t, conditioning).square().mean().backward()

    with_cache, without = seconds(cached), seconds(encoding)
    print(f"cached {with_cache:.3f} s, encoding every step {without:.3f} s, ratio {without / with_cache:.2f}")


if __name__ == "__main__":
    main()
