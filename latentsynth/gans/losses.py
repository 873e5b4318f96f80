"""Adversarial losses and what keeps the game fair: gradient penalties, path lengths, feature matching."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from latentsynth.gans.base import Opinion

LOSSES = ("hinge", "least_squares", "non_saturating", "relativistic", "wasserstein")
RELATIVE = ("relativistic", "wasserstein")  # only differences between logits count: 0 is no middle


def discriminator_loss(kind: str, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """What the discriminator minimises, a mean over scales, places and cases.

    ``hinge`` (Lim & Ye 2017, eq. 9), ``least_squares`` (Mao et al. 2017, eq. 9), ``non_saturating`` (Goodfellow et al.
    2014, sec. 3), ``relativistic`` (Jolicoeur-Martineau 2019, eq. 4, in pairs, as Huang et al. 2024 do, eq. 2),
    ``wasserstein`` (Arjovsky et al. 2017, eq. 3).
    """
    terms = []
    for r, f in zip(real, fake, strict=True):
        match kind:
            case "hinge":
                terms.append((functional.relu(1 - r).mean() + functional.relu(1 + f).mean()) / 2)
            case "least_squares":
                terms.append(((r - 1).square().mean() + f.square().mean()) / 2)
            case "non_saturating":
                terms.append(functional.softplus(-r).mean() + functional.softplus(f).mean())
            case "relativistic":
                terms.append(functional.softplus(f - r).mean())
            case "wasserstein":
                terms.append(f.mean() - r.mean())
            case _:
                raise ValueError(f"loss {kind!r}: choose one of {', '.join(LOSSES)}")
    return torch.stack(terms).mean()


def generator_loss(kind: str, fake: Sequence[Tensor], real: Sequence[Tensor] = ()) -> Tensor:
    """What the generator minimises, against the same discriminator; ``real`` for the ``relativistic`` one alone."""
    if kind == "relativistic":
        return discriminator_loss(kind, real=fake, fake=real)
    terms = []
    for f in fake:
        match kind:
            case "hinge" | "wasserstein":
                terms.append(-f.mean())
            case "least_squares":
                terms.append((f - 1).square().mean())
            case "non_saturating":
                terms.append(functional.softplus(-f).mean())
            case _:
                raise ValueError(f"loss {kind!r}: choose one of {', '.join(LOSSES)}")
    return torch.stack(terms).mean()


def accuracy(kind: str, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Share of logits on the right side of the middle: 0.5 is a draw, 1 a discriminator that has won."""
    right = []
    for r, f in zip(real, fake, strict=True):
        # Where differences alone count, logits may lie anywhere: their own middle is the one that counts.
        between = (r.mean() + f.mean()) / 2 if kind in RELATIVE else middle(kind)
        right.append(((r >= between).float().mean() + (f < between).float().mean()) / 2)
    return torch.stack(right).mean()


def middle(kind: str) -> float:
    """The logit that calls an image neither real nor fake."""
    return 0.5 if kind == "least_squares" else 0.0


def squared_gradient(logits: Sequence[Tensor], image: Tensor) -> Tensor:
    """Mean squared norm of the gradient of logits by their images (Mescheder et al. 2018, eq. 9), without gamma/2.

    On real images it is R1, on fake ones R2.

    Args:
        logits: Of the images, a scale each.
        image: What required gradients when it was judged; batch first.
    """
    total = torch.stack([one.flatten(1).mean(1).sum() for one in logits]).mean()
    (gradient,) = torch.autograd.grad(total, image, create_graph=True)
    return gradient.flatten(1).square().sum(1).mean()


def gradient_penalty(logits: Sequence[Tensor], mixed: Tensor) -> Tensor:
    """Mean squared distance of gradient norms from 1 on images between real and fake (Gulrajani et al. 2017, eq. 3)."""
    total = torch.stack([one.flatten(1).mean(1).sum() for one in logits]).mean()
    (gradient,) = torch.autograd.grad(total, mixed, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def path_lengths(image: Tensor, styles: Tensor, noise: Tensor) -> Tensor:
    """How far an image moves for a step in style space, per case (Karras et al. 2020, sec. 3.2).

    Args:
        image: ``(B, T, *shape)``, made from ``styles``.
        styles: ``(B, layers, w)``.
        noise: Standard normal, like ``image``.
    """
    projected = (image * noise).sum() / math.sqrt(math.prod(image.shape[2:]))
    (gradient,) = torch.autograd.grad(projected, styles, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


def feature_matching(fake: Opinion, real: Opinion) -> Tensor:
    """Mean absolute difference of the discriminator's features (Wang et al. 2018, eq. 4), mean over scales."""
    scales = [
        torch.stack([functional.l1_loss(f, r.detach()) for f, r in zip(ours, theirs, strict=True)]).sum()
        for ours, theirs in zip(fake.features, real.features, strict=True)
    ]
    return torch.stack(scales).mean()


def split(opinion: Opinion, parts: int) -> list[Opinion]:
    """The opinions of equal runs of a batch that was judged in one call."""
    logits = zip(*(one.chunk(parts) for one in opinion.logits), strict=True)
    features = [[one.chunk(parts) for one in scale] for scale in opinion.features]
    return [
        Opinion(list(rows), [[chunks[n] for chunks in scale] for scale in features]) for n, rows in enumerate(logits)
    ]
