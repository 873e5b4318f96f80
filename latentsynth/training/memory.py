"""How much memory a training step needs, found without allocating it: the networks run on torch's meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentsynth.autoencoders import Autoencoder, build_autoencoder
from latentsynth.config import AutoencoderRun, LdmRun, SegmenterRun, TrainConfig
from latentsynth.diffusion import Denoiser
from latentsynth.segmentation import build_network
from latentsynth.training.recipes.ldm import build_conditioner, build_denoiser
from latentsynth.types import Conditioning, Domain

_WEIGHT_COPIES = 5  # float32 weights, gradients, two Adam moments, and the average
_WORKSPACE = 1.25  # convolution workspaces and fragmentation, a usual allowance on top of what autograd keeps


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one process of a training step needs.

    Attributes:
        parameters: Number of weights.
        weights: Bytes of weights, gradients, optimizer and average.
        activations: Bytes that autograd keeps for the backward pass, with a usual allowance for workspaces.
    """

    parameters: int
    weights: int
    activations: int

    @property
    def gib(self) -> float:
        """All of it, in GiB."""
        return (self.weights + self.activations) / 2**30


def measure(
    module: nn.Module, blocks: Sequence[nn.Module], step: Callable[[], Tensor], train: TrainConfig
) -> MemoryEstimate:
    """Counts what autograd would keep while ``step`` runs.

    With gradient checkpointing only the inputs of ``blocks`` are kept, and the insides of one block at a time.

    Args:
        module: The network, on the meta device, not checkpointed.
        blocks: What gradient checkpointing would recompute.
        step: Runs it forward on meta tensors and returns the loss.
        train: Its precision and whether it checkpoints.
    """
    own = {p.untyped_storage()._cdata for p in module.parameters()}  # counted as weights
    sizes: dict[int, int] = {}
    held: list[Any] = []  # keeps storages alive, so that no later one reuses the address of a freed one
    inputs, insides, before = 0, [0], 0

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held.append(storage)
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    def enter(block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal inputs, before
        inputs += sum(a.untyped_storage().nbytes() for a in (*arguments, *named.values()) if isinstance(a, Tensor))
        before = sum(sizes.values())

    def leave(block: nn.Module, arguments: Any, result: Any) -> None:
        insides.append(sum(sizes.values()) - before)

    hooks = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    for hook in hooks:
        hook.remove()
    activations = sum(sizes.values())
    if train.gradient_checkpointing:
        activations = activations - sum(insides) + inputs + max(insides)
    factor = 0.55 if train.precision == "bf16" else 1.0  # convolutions keep half the bytes, normalisations keep all
    parameters = sum(p.numel() for p in module.parameters())
    return MemoryEstimate(parameters, 4 * _WEIGHT_COPIES * parameters, int(activations * factor * _WORKSPACE))


def estimate_autoencoder(config: AutoencoderRun, processes: int = 1) -> MemoryEstimate:
    """Memory of one process while an autoencoder trains (without its discriminator, which is far smaller)."""
    with torch.device("meta"):
        model = build_autoencoder(config.autoencoder, config.data.grid.channels).train()
        shape = config.crop or config.data.grid.shape
        image = torch.zeros(_micro(config.train, processes), config.data.grid.channels, *shape)

        def step() -> Tensor:
            # Encoder and decoder alone: quantisation keeps a table of distances only under no_grad.
            raw = model.encoder(image)[:, : model.latent_channels]
            return (model.decoder(raw) - image).abs().mean()

        return measure(model, model.blocks, step, config.train)


def estimate_ldm(config: LdmRun, autoencoder: Autoencoder, domain: Domain, processes: int = 1) -> MemoryEstimate:
    """Memory of one process while a denoiser trains.

    Args:
        config: The run.
        autoencoder: The autoencoder, on any device; only its shapes are used.
        domain: The autoencoder's domain.
        processes: Over how many the batch is spread.
    """
    channels, *whole = autoencoder.latent_shape(domain.grid.shape)
    latent = (channels, *config.conditioner.seen(whole))
    with torch.device("meta"):
        conditioner = build_conditioner(config.conditioner, len(domain.labels), autoencoder.factors)
        denoiser: Denoiser = build_denoiser(config, latent[0], conditioner.channels).train()
        rows = _micro(config.train, processes)
        x = torch.zeros(rows, *latent)
        conditioning = Conditioning(torch.zeros(rows, conditioner.channels, *latent[1:]))

        def step() -> Tensor:
            return denoiser(x, torch.full((rows,), 0.5), conditioning).square().mean()

        return measure(denoiser, denoiser.blocks, step, config.train)


def estimate_segmenter(config: SegmenterRun, labels: int, processes: int = 1) -> MemoryEstimate:
    """Memory of one process while a segmenter of ``labels`` labels, background included, trains."""
    grid = config.data.grid
    # Built first: MONAI's Swin-UNETR reads numbers from tensors, and those of the meta device have none.
    network = build_network(config.network, grid.channels, labels).train().to("meta")
    with torch.device("meta"):
        image = torch.zeros(_micro(config.train, processes), grid.channels, *grid.shape)
        return measure(network, network.blocks, lambda: network(image).square().mean(), config.train)


def _micro(train: TrainConfig, processes: int) -> int:
    return max(1, train.batch // (train.accumulation * processes))
