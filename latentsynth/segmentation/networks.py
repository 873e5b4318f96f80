"""MONAI's segmentation networks behind one signature: ``image -> logits of every supervised output``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from monai.networks import blocks as monai_blocks
from monai.networks import nets
from monai.networks.nets.swin_unetr import SwinTransformerBlock
from torch import Tensor, nn

from latentsynth.config import DynUNetConfig, SwinUNETRConfig, UNetConfig
from latentsynth.pretrained import Pretrained, recompute, register_to_config


class SegmentationNetwork(Pretrained):
    """Base of the families. Subclasses fill ``network`` and name the blocks that gradient checkpointing recomputes."""

    network: nn.Module

    def forward(self, image: Tensor) -> Tensor:
        """Logits.

        Args:
            image: Shape ``(B, C, I, J, K)`` in [-1, 1].

        Returns:
            Shape ``(B, D, L, I, J, K)``: D supervised outputs, finest first. D is 1 but for training with deep
            supervision.
        """
        logits: Tensor = self.network(image)
        return logits if logits.ndim == 6 else logits[:, None]

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing recomputes."""

    def checkpoint_gradients(self) -> None:
        """Recomputes each block's activations in the backward pass instead of keeping them: less memory, more time."""
        for block in self.blocks:
            recompute(block)

    def _all(self, *kinds: type[nn.Module]) -> list[nn.Module]:
        return [module for module in self.network.modules() if isinstance(module, kinds)]


class UNet(SegmentationNetwork):
    """U-Net with residual units (Kerfoot et al. 2018), MONAI's ``UNet``.

    Args:
        image_channels: ``C``.
        labels: ``L``.
        channels: Feature channels per level.
        res_units: Residual units per level; 0 has plain convolutions.
        dropout: Dropout probability.
    """

    @register_to_config
    def __init__(self, image_channels: int, labels: int, channels: Sequence[int], res_units: int, dropout: float):
        super().__init__()
        self.network = nets.UNet(
            spatial_dims=3,
            in_channels=image_channels,
            out_channels=labels,
            channels=tuple(channels),
            strides=(2,) * (len(channels) - 1),
            num_res_units=res_units,
            dropout=dropout,
        )

    @property
    def blocks(self) -> list[nn.Module]:
        return self._all(monai_blocks.ResidualUnit) or self._all(monai_blocks.Convolution)


class DynUNet(SegmentationNetwork):
    """The network of nnU-Net (Isensee et al. 2021), MONAI's ``DynUNet``.

    Args:
        image_channels: ``C``.
        labels: ``L``.
        channels: Feature channels per level.
        deep_supervision: Whether training returns the outputs of the upper levels too.
    """

    @register_to_config
    def __init__(self, image_channels: int, labels: int, channels: Sequence[int], deep_supervision: bool):
        super().__init__()
        levels = len(channels)
        strides = (1, *(2,) * (levels - 1))
        self.network = nets.DynUNet(
            spatial_dims=3,
            in_channels=image_channels,
            out_channels=labels,
            kernel_size=(3,) * levels,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=tuple(channels),
            deep_supervision=deep_supervision,
            deep_supr_num=max(1, min(levels - 2, 3)),
        )
        # MONAI registers its blocks a second time beside skip_layers, which alone run; safetensors takes no tensor twice.
        for twin in ("input_block", "downsamples", "bottleneck", "upsamples", "deep_supervision_heads"):
            if hasattr(self.network, twin):
                delattr(self.network, twin)

    @property
    def blocks(self) -> list[nn.Module]:
        return self._all(monai_blocks.UnetBasicBlock)


class SwinUNETR(SegmentationNetwork):
    """Swin-UNETR (Hatamizadeh et al. 2022), MONAI's ``SwinUNETR``.

    Args:
        image_channels: ``C``.
        labels: ``L``.
        feature_size: Feature channels of the first level, a multiple of 12.
        window: Edge of the attention windows, in tokens of two voxels.
        dropout: Dropout probability.
    """

    @register_to_config
    def __init__(self, image_channels: int, labels: int, feature_size: int, window: int, dropout: float):
        super().__init__()
        self.network = nets.SwinUNETR(
            in_channels=image_channels,
            out_channels=labels,
            feature_size=feature_size,
            window_size=window,
            drop_rate=dropout,
        )

    @property
    def blocks(self) -> list[nn.Module]:
        return self._all(SwinTransformerBlock, monai_blocks.UnetrBasicBlock, monai_blocks.UnetrUpBlock)


def build_network(
    config: UNetConfig | DynUNetConfig | SwinUNETRConfig, image_channels: int, labels: int
) -> SegmentationNetwork:
    """A new network with random weights."""
    families: dict[str, type[SegmentationNetwork]] = {"unet": UNet, "dynunet": DynUNet, "swin_unetr": SwinUNETR}
    arguments = config.model_dump(exclude={"kind"})
    return families[config.kind](image_channels=image_channels, labels=labels, **arguments)
