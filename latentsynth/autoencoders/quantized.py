"""What autoencoders with a discrete bottleneck share: a deterministic encoder, and codes whose use is counted."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from latentsynth.autoencoders.base import Autoencoder, Moments, Reconstruction
from latentsynth.metrics.reconstruction import perplexity


class QuantizedAutoencoder(Autoencoder):
    """Autoencoder that replaces its latents by codes before it decodes them.

    Attributes:
        codes: Values that each index can take.
        quantizer: What replaces latents by codes.
    """

    codes: int
    quantizer: nn.Module

    @abstractmethod
    def quantize(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nearest codes.

        Args:
            raw: Shape ``(B, c, i, j, k)``.

        Returns:
            Codes shaped like ``raw``, their indices ``(B, codebooks, i, j, k)``, and the bottleneck's weighted loss.
        """

    def moments(self, image: Tensor) -> Moments:
        raw = self.encoded(image)
        return Moments(raw, torch.zeros_like(raw))

    def bottleneck(self, raw: Tensor) -> Tensor:
        return self.quantize(raw)[0]

    def code_usage(self, image: Tensor) -> Tensor:
        return self._usage(self.quantize(self.encoded(image))[1]).cpu()

    def _usage(self, indices: Tensor) -> Tensor:
        """Counts per codebook and code, ``(codebooks, codes)``."""
        rows = [torch.bincount(book.flatten(), minlength=self.codes) for book in indices.unbind(1)]
        return torch.stack(rows).float()

    def forward(self, image: Tensor, noise: Tensor | None = None, level: Tensor | None = None) -> Reconstruction:
        if level is None or noise is None:
            codes, indices, loss = self.quantize(self.encoder(image))
            return Reconstruction(self.decoder(codes), loss, perplexity(self._usage(indices)))
        self.quantizer.eval()  # its codes stay where the encoder's latents lie, whatever noise makes of them
        with torch.no_grad():
            codes, indices, _ = self.quantize(self.disturbed(image, noise, level))
        return Reconstruction(self.decoder(codes), image.new_zeros(()), perplexity(self._usage(indices)))
