"""What the published systems set, by family: used wherever a configuration is silent.

Learning rates, momenta, losses and weights are theirs. Sizes and batches are not: those belong to the data and machine.
"""

from __future__ import annotations

from typing import Any

_GAN_TRAIN = {"lr_schedule": "constant", "lr_warmup_images": 0, "grad_clip": 1000.0}

# Karras et al. 2020 (StyleGAN 2 and its training on limited data): R1 every 16 steps, adaptive augmentation.
_STYLEGAN = {
    "discriminator": {"kind": "residual", "lr": 2e-3},
    "game": {"loss": "non_saturating", "r1": 8.0, "r1_every": 16, "augment_target": 0.6, "mixing": 0.9},
    "train": {**_GAN_TRAIN, "lr": 2e-3, "betas": [0.0, 0.99]},
}

PRESETS: dict[str, dict[str, Any]] = {
    # Platscher et al. 2022, their code: least squares, L1, pool of 50, noise of 0.2 on what the discriminator sees.
    "pix2pix": {
        "discriminator": {"kind": "patch", "lr": 2e-4, "layers": 3},
        "game": {"loss": "least_squares", "l1": 10.0, "pool": 50, "noise": 0.2, "noise_decay": 1e-3},
        "train": {**_GAN_TRAIN, "lr": 2e-4, "betas": [0.5, 0.999]},
    },
    # Zhu et al. 2017, sec. 4: least squares, pool of 50.
    "cyclegan": {
        "discriminator": {"kind": "patch", "lr": 2e-4, "layers": 3},
        "game": {"loss": "least_squares", "pool": 50},
        "train": {**_GAN_TRAIN, "lr": 2e-4, "betas": [0.5, 0.999]},
    },
    # Park et al. 2019; Amirrajab et al. 2022, their code: hinge, features, two time-scales, two discriminators.
    "spade": {
        "discriminator": {"kind": "patch", "lr": 4e-4, "layers": 3, "scales": 2, "spectral": True},
        "game": {"loss": "hinge", "feature_matching": 10.0, "divergence": 0.05, "l1": 10.0},
        "train": {**_GAN_TRAIN, "lr": 1e-4, "betas": [0.0, 0.9]},
    },
    "latent_gan": {
        "discriminator": {"kind": "residual", "lr": 2e-3, "channels": 32, "max_channels": 64},
        "game": {"loss": "non_saturating", "r1": 0.1, "r1_every": 8, "l1": 5.0},
        "train": {**_GAN_TRAIN, "lr": 2e-4, "betas": [0.0, 0.99]},
    },
    # Karras et al. 2018: Wasserstein, gradient penalty of 10, drift of 0.001.
    "progressive_gan": {
        "discriminator": {"kind": "grown", "lr": 1e-3},
        "game": {"loss": "wasserstein", "gradient_penalty": 10.0, "drift": 1e-3},
        "train": {**_GAN_TRAIN, "lr": 1e-3, "betas": [0.0, 0.99]},
    },
    # Karras et al. 2019: non-saturating, R1 of 10 at every step, mixing of 0.9.
    "stylegan1": {
        "discriminator": {"kind": "grown", "lr": 1e-3},
        "game": {"loss": "non_saturating", "r1": 10.0, "r1_every": 1, "mixing": 0.9},
        "train": {**_GAN_TRAIN, "lr": 1e-3, "betas": [0.0, 0.99]},
    },
    "stylegan2": {**_STYLEGAN, "game": {**_STYLEGAN["game"], "path_length": 2.0, "path_length_every": 4}},
    "stylegan3": {**_STYLEGAN, "game": {**_STYLEGAN["game"], "mixing": 0.0}},
}


def with_presets(values: Any) -> Any:
    """The same configuration, with the settings of its family of generators wherever it is silent."""
    generator = values.get("generator") if isinstance(values, dict) else None
    kind = generator.get("kind") if isinstance(generator, dict) else None
    if kind not in PRESETS:
        return values
    filled = dict(values)
    for section, preset in PRESETS[kind].items():
        given = values.get(section, {})
        if not isinstance(given, dict):
            continue
        if section == "discriminator" and given.get("kind", preset["kind"]) != preset["kind"]:
            continue  # another network: its own defaults
        filled[section] = {**preset, **given}
    return filled
