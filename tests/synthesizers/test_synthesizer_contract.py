"""What every synthesizer must keep, whatever its family. A new family joins with one line in FAMILIES."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import AUTOENCODERS, Echo, tiny_domain, tiny_model
from torch import Tensor

from latentsynth.data.volumes import one_hot
from latentsynth.diffusion import SAMPLERS
from latentsynth.errors import ConfigError, DataError
from latentsynth.synthesizers import LatentDiffusion, Synthesizer
from latentsynth.synthesizers.base import seeded_noise
from latentsynth.types import Condition

FAMILIES = [f"latent diffusion, {kind}" for kind in AUTOENCODERS]
SEEDS = [3, 11, 2**61 + 5]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, model_of: Callable[[str], LatentDiffusion]) -> Synthesizer:
    return model_of(request.param.split(", ")[1])


@pytest.fixture(params=AUTOENCODERS)
def diffusion(request: pytest.FixtureRequest, model_of: Callable[[str], LatentDiffusion]) -> LatentDiffusion:
    return model_of(request.param)


def masks(model: Synthesizer, rows: int = 3) -> Condition:
    """A different box with a different label in every row."""
    index = torch.zeros(rows, *model.grid.shape)
    for row in range(rows):
        index[row, 2 + 3 * row : 8 + 3 * row, 4:12, 4:10] = 1 + row % 2
    return Condition(one_hot(index, len(model.domain.labels)))


def made(model: Synthesizer, condition: Condition | None, seeds: list[int], **settings: object) -> Tensor:
    return model.generate(condition, seeds, **settings).image


def test_a_batch_equals_one_by_one(model: Synthesizer) -> None:
    condition = masks(model)
    together = made(model, condition, SEEDS)
    for n, seed in enumerate(SEEDS):
        torch.testing.assert_close(made(model, condition[n : n + 1], [seed])[0], together[n], rtol=0, atol=1e-4)


def test_rows_do_not_know_their_place(model: Synthesizer) -> None:
    condition, order = masks(model), [2, 0, 1]
    moved = made(model, Condition(condition.mask[order]), [SEEDS[n] for n in order])
    torch.testing.assert_close(moved, made(model, condition, SEEDS)[order], rtol=0, atol=1e-4)


def test_seed_and_mask_both_decide(model: Synthesizer) -> None:
    condition = masks(model)
    one = Condition(condition.mask[:1].repeat(3, 1, 1, 1, 1))
    by_seed, by_mask = made(model, one, SEEDS), made(model, condition, [7, 7, 7])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert float((by_seed[a] - by_seed[b]).abs().mean()) > 1e-3
        assert float((by_mask[a] - by_mask[b]).abs().mean()) > 1e-4
    same = made(model, one, [7, 7, 7])
    torch.testing.assert_close(same[0], same[1], rtol=0, atol=1e-4)


def test_images_stay_in_the_window_and_say_what_they_show(model: Synthesizer) -> None:
    condition = masks(model)
    generated = model.generate(condition, SEEDS)
    assert generated.image.shape == (3, model.grid.channels, *model.grid.shape)
    assert generated.image.device.type == "cpu"
    assert float(generated.image.abs().max()) <= 1
    assert float(generated.image.std()) > 0.01
    assert torch.equal(generated.mask, condition.mask)


@pytest.mark.parametrize("scheduler", SAMPLERS)
def test_global_randomness_is_neither_used_nor_changed(model: Synthesizer, scheduler: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = made(model, masks(model, 1), [5], scheduler=scheduler)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(made(model, masks(model, 1), [5], scheduler=scheduler), first)


def test_no_condition_leaves_it_to_the_model(model: Synthesizer) -> None:
    free = made(model, None, SEEDS)
    assert free.shape == (3, model.grid.channels, *model.grid.shape)
    assert float((free - made(model, masks(model), SEEDS)).abs().mean()) > 1e-4


@pytest.mark.parametrize("wrong", ["rows", "labels", "grid"])
def test_a_mask_that_does_not_fit_is_refused(model: Synthesizer, wrong: str) -> None:
    mask = masks(model).mask
    bad = {"rows": mask[:2], "labels": mask[:, :2], "grid": mask[..., :8]}[wrong]
    with pytest.raises(DataError, match=r"expected .*16, 16, 16"):
        made(model, Condition(bad), SEEDS)


@pytest.mark.parametrize("name", ["context", "covariates", "style"])
def test_a_condition_it_was_not_trained_on_is_refused(model: Synthesizer, name: str) -> None:
    condition = Condition(masks(model).mask, **{name: torch.zeros(3, 1, *model.grid.shape)})
    with pytest.raises(DataError, match=name):
        made(model, condition, SEEDS)


def test_unknown_settings_are_refused_by_name(model: Synthesizer) -> None:
    with pytest.raises(ConfigError, match="cfg_scale"):
        made(model, masks(model), SEEDS, cfg_scale=2.0)
    with pytest.raises(ConfigError, match="unknown key step, did you mean steps"):
        model.settings(step=10)


def test_settings_tell_what_is_used(model: Synthesizer) -> None:
    default = model.settings()
    assert model.settings(**default) == default
    changed = model.settings(steps=2, guidance=None)  # None stands for "as it was"
    assert changed == {**default, "steps": 2}
    fewer = made(model, masks(model), SEEDS, steps=2)
    assert float((fewer - made(model, masks(model), SEEDS)).abs().max()) > 1e-4


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"steps": 1001}, {"guidance": -1.0}, {"guidance_interval": (0.0, 2.0)},
            {"guidance_interval": (0.8, 0.2)}, {"steps": "many"}],
    ids=str,
)  # fmt: skip
def test_impossible_settings_are_refused(model: Synthesizer, bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        model.settings(**bad)


def test_an_unknown_scheduler_is_refused_before_any_work(
    diffusion: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*args: object, **kwargs: object) -> Tensor:
        raise AssertionError("the denoiser was called")

    monkeypatch.setattr(diffusion.denoiser, "forward", forward)
    with pytest.raises(ConfigError, match="choose one of ddim"):
        made(diffusion, masks(diffusion), SEEDS, scheduler="magic")
    with pytest.raises(ConfigError, match="fresh noise"):
        diffusion.settings(scheduler="ddpm")
    with pytest.raises(AssertionError, match="was called"):  # or the stub above proves nothing
        made(diffusion, masks(diffusion), SEEDS)


def test_a_denoiser_that_knows_the_answer_brings_it_back(
    diffusion: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents are whitened on the way in and given their scale back on the way out."""
    generator = torch.Generator().manual_seed(0)
    coarse = 2 * torch.rand(2, 1, 4, 4, 4, generator=generator) - 1
    image = torch.nn.functional.interpolate(coarse, size=diffusion.grid.shape, mode="trilinear")
    with torch.no_grad():
        known = diffusion.autoencoder.encode(image)
        expected = diffusion.autoencoder.decode_raw(diffusion.autoencoder.moments(image).mean)
        unscaled = diffusion.autoencoder.decode_raw(known)
    monkeypatch.setattr(diffusion.denoiser, "forward", lambda x_t, t, conditioning: known.to(x_t))
    torch.testing.assert_close(made(diffusion, masks(diffusion, 2), [1, 2], steps=8), expected, rtol=0, atol=1e-3)
    assert float((unscaled - expected).abs().mean()) > 1e-2


def test_guidance_runs_from_without_to_beyond_the_mask(diffusion: LatentDiffusion) -> None:
    condition = masks(diffusion)
    images = {scale: made(diffusion, condition, SEEDS, guidance=scale) for scale in (0.0, 1.0, 4.0)}
    torch.testing.assert_close(images[0.0], made(diffusion, None, SEEDS), rtol=0, atol=1e-5)
    assert float((images[4.0] - images[1.0]).abs().mean()) > 1e-4
    never = made(diffusion, condition, SEEDS, guidance=4.0, guidance_interval=(0.0, 0.0))
    torch.testing.assert_close(never, images[1.0], rtol=0, atol=1e-5)


def test_progress_counts_up(diffusion: LatentDiffusion) -> None:
    told: list[tuple[int, int]] = []
    diffusion.generate(masks(diffusion), SEEDS, progress=lambda done, total: told.append((done, total)), steps=4)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_seeded_noise_is_normal_and_each_row_its_own() -> None:
    noise = seeded_noise([0, 1, 2**63 + 1], (4, 16, 16, 16))
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(noise[1], seeded_noise([1], (4, 16, 16, 16))[0])
    assert abs(float((noise[0] * noise[1]).mean())) < 0.05
    first = torch.randn(4, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise[0], first)


def test_the_families_are_not_alike() -> None:
    """The contract would hold for a model that ignores its autoencoder; these two must not agree."""
    one, two = tiny_model("vq"), tiny_model("kl")
    assert float((made(one, masks(one), SEEDS) - made(two, masks(two), SEEDS)).abs().mean()) > 1e-2


def test_echo_keeps_the_contract_that_the_synthesis_tests_rely_on() -> None:
    echo = Echo(tiny_domain())
    values = made(echo, masks(echo), SEEDS).unique().tolist()
    assert values == [-1.0, 0.0, 1.0]
