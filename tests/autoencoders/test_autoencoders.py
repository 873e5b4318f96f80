"""What holds for every autoencoder: the latent scale, saving and loading, recomputed gradients, learning."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentsynth.autoencoders import (
    Autoencoder,
    FSQAutoencoder,
    KLAutoencoder,
    Moments,
    VQAutoencoder,
    build_autoencoder,
)
from latentsynth.config import FSQConfig, KLConfig, VQConfig
from latentsynth.errors import CheckpointError, TrainingError
from latentsynth.phantom.cohort import phantom
from tests.helpers import TRUNK, perturb

MODELS: dict[str, dict[str, Any]] = {
    "vq": {"kind": "vq", "codebooks": 1, "codebook_size": 16},
    "fsq": {"kind": "fsq"},
    "fsq, anisotropic": {"kind": "fsq", "downsampling": (1, 8, 2), "levels": 5},
    "vq, 4 codebooks, anisotropic": {"kind": "vq", "codebooks": 4, "downsampling": (4, 4, 2), "codebook_size": 16},
    "vq, resnet": {
        "kind": "vq",
        "codebooks": 4,
        "trunk": {"kind": "resnet", "channels": (8,), "res_blocks": 1},
        "downsampling": 2,
        "codebook_size": 16,
    },
    "kl": {"kind": "kl"},
    "kl, anisotropic": {"kind": "kl", "downsampling": (4, 4, 2)},
    "kl, resnet": {"kind": "kl", "trunk": {"kind": "resnet", "channels": (8,), "res_blocks": 1}, "downsampling": 2},
}
CONFIGS = {"vq": VQConfig, "kl": KLConfig, "fsq": FSQConfig}
KINDS = {"vq": VQAutoencoder, "kl": KLAutoencoder, "fsq": FSQAutoencoder}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name: str, image_channels: int = 2, seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    facts = {"downsampling": 4, "trunk": TRUNK, "latent_channels": 4, **MODELS[name]}
    model = build_autoencoder(CONFIGS[facts["kind"]].model_validate(facts), image_channels)
    assert type(model) is KINDS[facts["kind"]]
    if facts["trunk"]["kind"] == "space_to_depth":  # fresh ones end in zeros, and answer linearly
        perturb(model.encoder, seed)
        perturb(model.decoder, seed)
    return model.eval()


def images(count: int = 2, channels: int = 2, seed: int = 1) -> Tensor:
    return torch.rand((count, channels, 8, 8, 8), generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def moments_of(model: Autoencoder, batches: int = 3) -> list[Moments]:
    return [model.moments(images(seed=seed)) for seed in range(batches)]


def fitted(name: str) -> Autoencoder:
    model = build(name)
    model.fit_latent_stats(moments_of(model))
    return model


@every_model
@torch.no_grad()
def test_latents_have_the_announced_shape_and_images_stay_in_range(name: str) -> None:
    model = fitted(name)
    z = model.encode(images())
    assert tuple(z.shape[1:]) == model.latent_shape((8, 8, 8))
    decoded = model.decode(100 * z)
    assert decoded.shape == images().shape
    assert decoded.abs().max() <= 1


@every_model
def test_indivisible_shapes_are_refused(name: str) -> None:
    model = build(name)
    factors = model.factors
    assert model.latent_shape((8, 16, 24)) == (4, 8 // factors[0], 16 // factors[1], 24 // factors[2])
    for axis in (n for n in range(3) if factors[n] > 1):
        shape = [8, 8, 8]
        shape[axis] += 1
        with pytest.raises(TrainingError, match=r"not divisible by downsampling"):
            model.latent_shape((shape[0], shape[1], shape[2]))


@every_model
@torch.no_grad()
def test_fitted_scale_whitens_what_it_was_fitted_on(name: str) -> None:
    model = fitted(name)
    generator = torch.Generator().manual_seed(3)
    z = torch.cat([model.whiten(m.sample(torch.randn(m.mean.shape, generator=generator))) for m in moments_of(model)])
    rows = z.movedim(1, 0).flatten(1)
    if not isinstance(model, KLAutoencoder):  # no noise, so to the last digits
        torch.testing.assert_close(rows.mean(1), torch.zeros(4), atol=1e-3, rtol=0)
        torch.testing.assert_close(rows.std(1, correction=0), torch.ones(4), atol=1e-3, rtol=0)
    else:
        assert rows.mean(1).abs().max() < 5 / rows.shape[1] ** 0.5
        assert (rows.std(1) - 1).abs().max() < 5 / rows.shape[1] ** 0.5


def scattered(count: int = 4, cells: int = 8) -> Iterator[Moments]:
    """Means and deviations of known scatter: means N(c, (c + 1)^2), deviations uniform in [0, 2 c)."""
    generator = torch.Generator().manual_seed(4)
    channel = torch.arange(3.0).view(1, 3, 1, 1, 1)
    for _ in range(count):
        shape = (2, 3, cells, cells, cells)
        mean = channel + (channel + 1) * torch.randn(shape, generator=generator)
        yield Moments(mean, 2 * channel * torch.rand(shape, generator=generator))


def test_scale_is_that_of_sampled_latents() -> None:
    model = KLAutoencoder(1, 3, [4, 4, 4], TRUNK, 1.0)
    model.fit_latent_stats(scattered())
    generator = torch.Generator().manual_seed(5)
    drawn = torch.cat(
        [m.sample(torch.randn(m.mean.shape, generator=generator)) for m in scattered() for _ in range(20)]
    )
    rows = drawn.movedim(1, 0).flatten(1)
    torch.testing.assert_close(model.latent_mean, rows.mean(1), atol=0.02, rtol=0)
    torch.testing.assert_close(model.latent_std, rows.std(1), atol=0, rtol=0.01)
    means = torch.cat([m.mean for m in scattered()]).movedim(1, 0).flatten(1)
    spread = torch.cat([m.deviation for m in scattered()]).movedim(1, 0).flatten(1).square().mean(1)
    torch.testing.assert_close(model.latent_std, (means.var(1, correction=0) + spread).sqrt(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_scale_survives_a_large_offset(offset: float) -> None:
    model = KLAutoencoder(1, 3, [4, 4, 4], TRUNK, 1.0)
    shifted = [Moments(m.mean + offset, m.deviation) for m in scattered()]
    model.fit_latent_stats(shifted)
    assert model.latent_std[0] == pytest.approx(1, abs=0.05)
    assert model.latent_mean[0] == pytest.approx(offset, abs=0.05)


def test_faulty_latents_set_no_scale() -> None:
    model = KLAutoencoder(1, 3, [4, 4, 4], TRUNK, 1.0)
    constant, bad = list(scattered()), list(scattered())
    for moments in constant:
        moments.mean[:, 1], moments.deviation[:, 1] = 7, 0
    bad[2].mean[0, 0, 0, 0, 0] = torch.nan
    for moments, message in ((constant, r"channels \[1\] are constant"), (bad, "not finite"), ([], "no latents")):
        with pytest.raises(TrainingError, match=message):
            model.fit_latent_stats(moments)
        assert model.latent_std.isnan().all()


@every_model
@torch.no_grad()
def test_a_scale_that_was_never_fitted_is_refused(name: str) -> None:
    model = build(name)
    with pytest.raises(CheckpointError, match="never fitted"):
        model.encode(images())
    with pytest.raises(CheckpointError, match="never fitted"):
        model.decode(torch.zeros(1, *model.latent_shape((8, 8, 8))))


@every_model
@torch.no_grad()
def test_decoding_undoes_the_scale(name: str) -> None:
    model = fitted(name)
    raw = model.moments(images()).mean
    torch.testing.assert_close(model.decode(model.encode(images())), model.decode_raw(raw), atol=1e-4, rtol=0)
    noise = torch.randn(raw.shape, generator=torch.Generator().manual_seed(6))
    moments = model.moments(images())
    sampled = model.encode(images(), noise) * model.latent_std.view(1, -1, 1, 1, 1) + model.latent_mean.view(
        1, -1, 1, 1, 1
    )
    torch.testing.assert_close(sampled, moments.mean + moments.deviation * noise, atol=1e-5, rtol=1e-5)


@every_model
@torch.no_grad()
def test_saved_models_come_back_bit_equal_through_the_base_class(tmp_path: Path, name: str) -> None:
    model = fitted(name)
    model.save(tmp_path / "part")
    loaded = Autoencoder.from_pretrained(tmp_path / "part")
    assert type(loaded) is type(model)
    assert not loaded.training
    state = loaded.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(loaded.encode(images()), model.encode(images()))
    assert torch.equal(loaded.decode(model.encode(images())), model.decode(model.encode(images())))


@every_model
def test_recomputed_gradients_are_the_same(name: str) -> None:
    plain, recomputing = build(name), build(name)
    recomputing.checkpoint_gradients()
    assert plain.state_dict().keys() == recomputing.state_dict().keys()
    for model in (plain, recomputing):
        out = model.train()(images(), torch.zeros(2, *model.latent_shape((8, 8, 8))))
        (out.image.square().mean() + out.bottleneck_loss).backward()
    for ours, theirs in zip(plain.parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)
    assert sum(float(p.grad.abs().sum()) for p in plain.parameters() if p.grad is not None) > 0


def test_recomputing_keeps_fewer_activations() -> None:
    kept = []
    for recomputing in (False, True):
        model = build("kl")
        if recomputing:
            model.checkpoint_gradients()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            model(images())
        kept.append(sum(sizes))
    assert kept[1] < 0.8 * kept[0]


@torch.no_grad()
def test_a_copy_of_a_recomputing_model_uses_its_own_weights() -> None:
    """The weight average is such a copy."""
    model = build("kl")
    model.checkpoint_gradients()
    average = copy.deepcopy(model)
    before = average(images()).image
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(average(images()).image, before)
    for parameter in average.parameters():
        parameter.zero_()
    assert not torch.equal(average(images()).image, before)


@every_model
@torch.no_grad()
def test_images_are_affine_in_the_last_layer(name: str) -> None:
    model = build(name)
    weight = model.last_layer
    z = torch.randn(2, *model.latent_shape((8, 8, 8)), generator=torch.Generator().manual_seed(0))
    once = model.decoder(z)
    weight.mul_(2)
    twice = model.decoder(z)
    weight.zero_()
    none = model.decoder(z)
    assert (once - none).abs().mean() > 1e-3
    torch.testing.assert_close(twice - once, once - none, atol=1e-5, rtol=1e-4)


def test_kl_term_is_the_divergence_per_voxel_and_channel() -> None:
    """As the reconstruction error is: the evidence bound of a case, divided by its 2 x 8^3 numbers."""
    model = KLAutoencoder(2, 4, [4, 4, 4], TRUNK, 0.3)
    moments = model.moments(images())
    mean, log_variance = model.encoder(images()).chunk(2, dim=1)
    torch.testing.assert_close(moments.mean, mean)
    torch.testing.assert_close(moments.deviation, log_variance.exp().sqrt())
    normal = torch.distributions.Normal(moments.mean, moments.deviation)
    standard = torch.distributions.Normal(torch.zeros_like(moments.mean), torch.ones_like(moments.mean))
    divergence = torch.distributions.kl_divergence(normal, standard).flatten(1).sum(1).mean()
    torch.testing.assert_close(model(images()).bottleneck_loss, 0.3 * divergence / (2 * 8**3))


@torch.no_grad()
def test_kl_training_pass_decodes_mean_plus_deviation_times_noise() -> None:
    model = build("kl")
    moments = model.moments(images())
    noise = torch.randn(moments.mean.shape, generator=torch.Generator().manual_seed(7))
    expected = model.decoder(moments.mean + moments.deviation * noise)
    assert torch.equal(model(images(), noise).image, expected)
    assert torch.equal(model(images()).image, model.decoder(moments.mean))
    assert (expected - model(images()).image).abs().mean() > 1e-3


@pytest.fixture(scope="module")
def volumes() -> Tensor:
    """Four tiny abdomens."""
    cubes = [phantom(0, case, (24, 24, 24), (8.0, 8.0, 8.0), channels=1)[0] for case in range(4)]
    return torch.from_numpy(np.stack(cubes)).clamp(-160, 240) / 200 - 0.2


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_few_steps_learn_four_volumes_from_nothing(volumes: Tensor, kind: str) -> None:
    torch.manual_seed(0)
    facts = {"latent_channels": 8, "trunk": {**TRUNK, "width": 16}}
    model = build_autoencoder(CONFIGS[kind].model_validate({"kind": kind, **facts}), 1).train()
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    noise = torch.randn(4, *model.latent_shape((24, 24, 24)))
    errors = []
    for _ in range(90):
        out = model(volumes, noise)
        error = (out.image - volumes).abs().mean()
        optimizer.zero_grad()
        (error + out.bottleneck_loss).backward()
        optimizer.step()
        errors.append(float(error))
    assert errors[-1] < errors[0] / 3
    with torch.no_grad():
        final = (model.eval()(volumes).image - volumes).abs().mean()
    assert final < errors[0] / 3
    predicted_mean = (volumes - volumes.mean()).abs().mean()
    assert final < predicted_mean  # it tells voxels apart


def test_noise_for_the_decoder_is_a_share_of_latents_whatever_their_scale() -> None:
    """Larger latents are no way out: the decoder gets the same noise beside the same signal."""
    model = build_autoencoder(KLConfig.model_validate({"downsampling": 4, "trunk": TRUNK, "latent_channels": 4}), 2)
    levels = torch.tensor([0.2, 0.0])
    for scale in (1.0, 10.0):
        generator = torch.Generator().manual_seed(0)
        mean = scale * torch.randn(2, 4, 12, 12, 12, generator=generator)
        moments = Moments(mean, torch.zeros_like(mean))
        model.moments = lambda image, moments=moments: moments  # type: ignore[method-assign,misc]
        noise = torch.randn(mean.shape, generator=generator)
        added = model.disturbed(torch.zeros(2, 2, 48, 48, 48), noise, levels) - mean
        torch.testing.assert_close(added[0].std() / mean[0].std(), torch.tensor(0.2), rtol=0.05, atol=0)
        torch.testing.assert_close(added[1], torch.zeros_like(added[1]))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_decoder_that_trains_alone_leaves_encoder_and_codes_as_they_are(volumes: Tensor, kind: str) -> None:
    torch.manual_seed(0)
    facts = {"latent_channels": 8, "trunk": {**TRUNK, "width": 16}}
    model = build_autoencoder(CONFIGS[kind].model_validate({"kind": kind, **facts}), 1).train()
    model(volumes, torch.zeros(4, *model.latent_shape((24, 24, 24))))  # a codebook takes its first codes from here
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):  # the head of the decoder starts at zero, and with it what reaches the rest of it
        noise = torch.randn(4, *model.latent_shape((24, 24, 24)))
        out = model.train()(volumes, noise, torch.full((4,), 0.5))
        ((out.image - volumes).abs().mean() + out.bottleneck_loss).backward()
        optimizer.step()
    moved = {
        name.split(".")[0]
        for name, tensor in model.state_dict().items()
        if not torch.allclose(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    }
    assert moved == {"decoder"}


@pytest.mark.parametrize("kind", CONFIGS)
def test_noise_of_level_0_changes_nothing_but_who_learns(volumes: Tensor, kind: str) -> None:
    torch.manual_seed(0)
    facts = {"latent_channels": 8, "trunk": {**TRUNK, "width": 16}}
    model = build_autoencoder(CONFIGS[kind].model_validate({"kind": kind, **facts}), 1).eval()
    noise = torch.randn(4, *model.latent_shape((24, 24, 24)))
    torch.testing.assert_close(model(volumes, noise, torch.zeros(4)).image, model(volumes, noise).image)
