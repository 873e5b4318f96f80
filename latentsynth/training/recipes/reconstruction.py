"""The autoencoder's game: a generator that reconstructs, a discriminator that judges patches.

The adversarial term and its adaptive weight are those of VQGAN (Esser et al. 2021, eqs. 6 and 7); the discriminator's
loss is the hinge (Lim & Ye 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torch.nn import functional

from latentsynth.config import ReconstructionConfig
from latentsynth.errors import TrainingError
from latentsynth.randomness import Stream, keyed_noise, keyed_uniform
from latentsynth.tensors import summed
from latentsynth.training.loop import Batch, Modules

_ENERGY_FLOOR = 1e-5  # keeps the root's slope finite where there is no detail


def build_discriminator(config: ReconstructionConfig, channels: int) -> nn.Module:
    """A 3D PatchGAN. Instance statistics, since batch statistics would couple cases and processes."""
    return PatchDiscriminator(
        spatial_dims=3,
        channels=config.discriminator_channels,
        in_channels=channels,
        num_layers_d=config.discriminator_layers,
        norm="INSTANCE",
    )


@dataclass
class GeneratorLoss:
    """Reconstruction, bottleneck and, once it has joined, the discriminator's opinion.

    Attributes:
        config: Terms and weights.
        lesions: One-hot indices of lesion labels.
        latent_shape: Of an image shape, ``(c, i, j, k)`` of the bottleneck's noise.
        last_layer: Where the adversarial weight is balanced.
        seed: Key of the bottleneck's noise.
        perceptual: Feature network, or None.
        decoder_noise: Largest level of the noise on its latents while the decoder trains alone.
        decoder_from: Images seen from which it does.
    """

    config: ReconstructionConfig
    lesions: list[int]
    latent_shape: Callable[[tuple[int, int, int]], tuple[int, int, int, int]]
    last_layer: nn.Parameter
    seed: int
    perceptual: nn.Module | None = None
    decoder_noise: float = 0.0
    decoder_from: float = math.inf

    def __call__(self, modules: Modules, batch: Batch, state: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        image, terms = batch["image"], self.config
        out = modules["autoencoder"](image, *self._disturbance(batch))
        made = out.image.float()  # details are differences of near numbers, which drown in bfloat16
        weight = 1 + (terms.lesion_weight - 1) * summed(batch["mask"], self.lesions)
        error = (_pointwise(terms.reconstruction, made - image) * weight).mean() / weight.mean()
        total = error
        logs = {"reconstruction": error, "bottleneck": out.bottleneck_loss, "perplexity": out.perplexity}
        for name, factor, difference in _details(terms, made, image, self._decoder_alone(batch)):
            logs[name] = (_pointwise(terms.reconstruction, difference) * weight).mean() / weight.mean()
            total = total + factor * logs[name]
        if self.perceptual is not None and terms.perceptual is not None:
            logs["perceptual"] = feature_distance(self.perceptual, made, image)
            total = total + terms.perceptual.weight * logs["perceptual"]
        batch["fake"] = made.detach()  # what the discriminator judges next
        if terms.adversarial_weight and batch["seen"] >= terms.adversarial_after_images:
            opinion = modules["discriminator"](made)[-1]
            adversarial = -opinion.mean()
            balance = adaptive_weight(total, adversarial, self.last_layer)
            logs |= {"adversarial": adversarial, "adversarial_balance": balance}
            total = total + terms.adversarial_weight * balance * adversarial
        return total + out.bottleneck_loss, logs

    def _decoder_alone(self, batch: Batch) -> bool:
        return bool(batch["seen"] >= self.decoder_from)

    def _disturbance(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Noise of the bottleneck, and while the decoder trains alone its level per case."""
        image, positions = batch["image"], batch["position"]
        i, j, k = image.shape[2:]
        noise = keyed_noise(self.seed, positions, self.latent_shape((i, j, k)), Stream.RECONSTRUCTION).to(image)
        if not self._decoder_alone(batch):
            return noise, None
        level = self.decoder_noise * keyed_uniform(self.seed, positions, Stream.DECODER_NOISE)
        return noise, level.to(image)


def discriminator_loss(modules: Modules, batch: Batch, state: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Hinge loss on real and reconstructed volumes, judged in one call as distributed wrappers require."""
    real, fake = modules["discriminator"](torch.cat([batch["image"], batch["fake"]]))[-1].chunk(2)
    # Not MONAI's PatchAdversarialLoss: its hinge squashes the opinions through tanh first.
    on_real, on_fake = functional.relu(1 - real).mean(), functional.relu(1 + fake).mean()
    accuracy = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
    return (on_real + on_fake) / 2, {"accuracy": accuracy}


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: nn.Parameter) -> Tensor:
    """Makes both terms pull equally on the last layer: the ratio of their gradient norms there, at most 10^4."""
    one = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0].norm()
    other = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0].norm()
    return (one / (other + 1e-4)).clamp(0, 1e4).detach()


def load_perceptual(path: Path) -> nn.Module:
    """A frozen TorchScript feature network: ``(B, C, I, J, K)`` to a feature map or a list of them.

    Raises:
        TrainingError: The file is missing or is not TorchScript.
    """
    if not path.is_file():
        raise TrainingError(f"loss.perceptual.path {path} does not exist: give a TorchScript file on this machine")
    try:
        network: nn.Module = torch.jit.load(str(path), map_location="cpu")
    except RuntimeError as error:
        raise TrainingError(f"loss.perceptual.path {path} is not TorchScript: save it with torch.jit.save") from error
    for weight in network.parameters():  # a scripted module has no requires_grad_ of its own
        weight.requires_grad_(False)
    return network.eval()


def _details(
    terms: ReconstructionConfig, made: Tensor, image: Tensor, decoder_alone: bool
) -> Iterator[tuple[str, float, Tensor]]:
    """Name, weight and difference of the terms of fine detail that are asked for."""
    if not (terms.high_band_weight or terms.energy_weight):
        return
    ours, theirs = high_band(made), high_band(image)
    if terms.high_band_weight:
        yield "high_band", terms.high_band_weight, ours - theirs
    # Where noise hides the detail, as much of it as there was becomes the same grain in every cell.
    if terms.energy_weight and not decoder_alone:
        yield "energy", terms.energy_weight, local_energy(ours) - local_energy(theirs)


def high_band(image: Tensor) -> Tensor:
    """The finest detail: each voxel minus the mean of its 3 x 3 x 3 neighbourhood, same shape; the edge is repeated."""
    return image - _smooth(image)


def local_energy(detail: Tensor) -> Tensor:
    """Root mean square of detail over each 3 x 3 x 3 neighbourhood, same shape."""
    return torch.sqrt(_smooth(detail**2) + _ENERGY_FLOOR)


def _smooth(image: Tensor) -> Tensor:
    """Mean over each 3 x 3 x 3 neighbourhood; the edge is repeated."""
    return functional.avg_pool3d(functional.pad(image, (1,) * 6, mode="replicate"), 3, stride=1)


def _pointwise(kind: str, difference: Tensor) -> Tensor:
    if kind == "l1":
        return difference.abs()
    if kind == "l2":
        return difference**2
    return torch.sqrt(difference**2 + 1e-3**2)  # Charbonnier


def feature_distance(network: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of unit-length feature vectors (Zhang et al. 2018, eq. 1, without learnt weights)."""
    network = network.to(a.device)
    ours, theirs = network(a), network(b)
    ours, theirs = ([ours], [theirs]) if isinstance(ours, Tensor) else (ours, theirs)
    parts = [
        (functional.normalize(x, dim=1) - functional.normalize(y, dim=1)).square().sum(1).mean()
        for x, y in zip(ours, theirs, strict=True)
    ]
    return torch.stack(parts).mean()
