"""Attention by xFormers in place of torch's, where a run asks for it."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from monai.networks.blocks.selfattention import SABlock
from torch import Tensor, nn

from latentsynth.errors import ConfigError


class XformersAttention(SABlock):
    """MONAI's self-attention with the same weights, computed by xFormers (Lefaudeux et al. 2022).

    Equal to torch's to 1e-5 in float32. It only ever takes the place of a block that attends to everything.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Of tokens ``(B, N, C)``."""
        if attn_mask is not None:
            raise ConfigError("train.attention=xformers attends to all cells, and a mask was given: set it to torch")
        if self.use_combined_linear:
            q, k, v = self.input_rearrange(self.qkv(x))
        else:
            q, k, v = (self.input_rearrange(to(x)) for to in (self.to_q, self.to_k, self.to_v))
        rows = [part.transpose(1, 2) for part in (q, k, v)]  # (B, N, heads, C)
        attended = _operators().memory_efficient_attention(*rows, p=self.dropout_rate, scale=self.scale)
        x = self.out_rearrange(attended.transpose(1, 2))
        return self.drop_output(self.out_proj(x) if self.include_fc else x)


def use_xformers(modules: dict[str, nn.Module], device: torch.device) -> None:
    """Makes every self-attention block of some networks attend by xFormers, in place; their weights stay.

    Args:
        modules: By name.
        device: Where they train.

    Raises:
        ConfigError: No GPU, xFormers is not installed or has no kernel for this one, or nothing in the networks attends.
    """
    if device.type != "cuda":
        raise ConfigError(f"train.attention is xformers, which needs a GPU, and this is {device.type}: set it to torch")
    blocks = [block for module in modules.values() for block in module.modules() if type(block) is SABlock]
    if not blocks:
        raise ConfigError(
            f"train.attention is xformers, and nothing in {', '.join(modules)} attends: set it to torch, or add attention"
        )
    probe = torch.zeros(1, 8, 1, 32, device=device, dtype=torch.float16)
    try:
        _operators().memory_efficient_attention(probe, probe, probe)
    except NotImplementedError as error:
        raise ConfigError(
            f"train.attention is xformers, whose build has no kernel for {torch.cuda.get_device_name(device)} with torch "
            f"{torch.__version__}: set it to torch, or install the xformers of this torch"
        ) from error
    for block in blocks:
        if block.causal or getattr(block, "rel_positional_embedding", None) is not None:
            raise ConfigError(
                "train.attention is xformers, and a network attends causally or by position: set it to torch"
            )
        block.__class__ = XformersAttention


def _operators() -> Any:
    """xFormers' own.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module("xformers.ops")
    except ImportError as error:
        raise ConfigError(
            "train.attention is xformers, which is not installed: pip install 'latentsynth[xformers]', or set it to torch"
        ) from error
