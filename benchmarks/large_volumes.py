"""Memory of volumes larger than the model, and what parts change: `python benchmarks/large_volumes.py [EDGE ...]`.

A fresh model of patches makes one volume of each edge length in a process of its own, two denoising steps, one thread. Beside
the peak above what importing takes stand the bytes that belong to the volume itself: its mask (one-hot), the maps made of it,
and the image. Then both trunks decode the same latents whole and in parts.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from unittest import mock

import torch

from latentsynth.autoencoders import Autoencoder, base, build_autoencoder
from latentsynth.autoencoders.space_to_depth import SpaceToDepthDecoder
from latentsynth.conditioning import MaskConditioner
from latentsynth.config import SamplingConfig
from latentsynth.config.autoencoder import KLConfig
from latentsynth.diffusion import Denoiser
from latentsynth.synthesizers import LatentDiffusion
from latentsynth.types import Condition, Domain, Framing, Grid, Labels, Window

_EDGES = (96, 128, 192, 256)
_PATCH = 12  # latent cells
_MIB = 2**20


def _autoencoder(trunk: dict[str, object]) -> Autoencoder:
    torch.manual_seed(0)
    model = build_autoencoder(KLConfig(latent_channels=8, trunk=trunk), 1).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05) if weight.ndim > 1 else None
    model.latent_mean.zero_()
    model.latent_std.fill_(1)
    return model


def _model(edge: int) -> LatentDiffusion:
    labels = Labels((0, 1), ("background", "lesion"))
    grid = Grid((edge,) * 3, (1.0, 1.0, 1.0), (Window("fixed", -1, 1),))
    domain = Domain(grid, Framing(), labels, ("image",), ((-1.0, 1.0),))
    autoencoder = _autoencoder({"width": 64, "res_blocks": 2})
    conditioner = MaskConditioner(labels=2, factors=autoencoder.factors, detail=2, patch=(_PATCH,) * 3)
    denoiser = Denoiser(
        latent_channels=8, spatial_channels=conditioner.channels, schedule="rectified", prediction="v", channels=(48, 96),
        attention=(False, True), res_blocks=1, head_channels=48, norm_groups=16,
    )  # fmt: skip
    return LatentDiffusion(
        domain, autoencoder, conditioner, denoiser.eval(), SamplingConfig(steps=2, scheduler="euler")
    )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MIB


def one(edge: int) -> None:
    """Makes a volume and prints its row."""
    torch.set_num_threads(1)
    before = _peak()
    model = _model(edge)
    mask = torch.zeros(1, 2, edge, edge, edge)
    mask[:, 1, edge // 3 : edge // 2, edge // 3 : edge // 2, edge // 3 : edge // 2] = 1
    mask[:, 0] = 1 - mask[:, 1]
    made = model.generate(Condition(mask), [0])
    own = (2 * mask.numel() + made.image.numel()) * 4 / _MIB
    peak = _peak() - before
    print(f"| {edge}^3 | {peak:.0f} | {own:.0f} | {peak - own:.0f} |", flush=True)


def parts() -> None:
    """What decoding in parts changes, for each trunk."""
    print("\n| trunk | largest difference of parts, share of the window | median |\n|---|---|---|")
    z = torch.randn(1, 8, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    for name, trunk in (
        ("space_to_depth", {"width": 64, "res_blocks": 2}),
        ("resnet", {"kind": "resnet", "channels": [16, 32], "res_blocks": 1}),
    ):
        model = _autoencoder(trunk)
        with torch.no_grad():
            whole = model.decode(z)
            with mock.patch.object(SpaceToDepthDecoder, "TILE", 12), mock.patch.object(base, "_RESNET", (12, 4)):
                apart = (model.decode(z) - whole).abs() / 2
        print(f"| {name} | {float(apart.max()):.1e} | {float(apart.median()):.1e} |")


def main(edges: list[int]) -> None:
    """Prints both tables."""
    if edges[:1] == [0]:
        one(edges[1])
        return
    print("| volume | MiB above imports | of it the volume's own | left |\n|---|---|---|---|", flush=True)
    for edge in edges or _EDGES:
        subprocess.run([sys.executable, __file__, "0", str(edge)], check=True)
    parts()


if __name__ == "__main__":
    main([int(edge) for edge in sys.argv[1:]])
