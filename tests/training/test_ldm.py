"""The diffusion recipe: cached latents, keyed randomness, warnings, starting from another checkpoint."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from tiny_runs import autoencoder_config, ldm_config

from latentsynth import checkpoint
from latentsynth.autoencoders import Autoencoder, VQAutoencoder
from latentsynth.config import AutoencoderRun, LdmRun, load
from latentsynth.data.cache.volumes import one_hot
from latentsynth.data.manifest import Manifest
from latentsynth.diffusion import Denoiser
from latentsynth.errors import CheckpointError, TrainingError
from latentsynth.parallel import start
from latentsynth.synthesizers import LatentDiffusion
from latentsynth.training.recipes.autoencoder import initial as initial_autoencoder
from latentsynth.training.recipes.encode import encoded_cohort
from latentsynth.training.recipes.ldm import DenoiserLoss, build_conditioner, initial, train_ldm, training_items
from latentsynth.types import Condition, Conditioning


def test_training_never_runs_the_encoder(workplace: Path, trained_ldm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encoder_was_run(*arguments: object) -> None:
        raise AssertionError("the encoder was run")

    monkeypatch.setattr(VQAutoencoder, "moments", encoder_was_run)  # the latents are there since trained_ldm
    config = load(LdmRun, ldm_config(workplace, "ldm-cached", "ae"), ["train.images=4"])
    scores = train_ldm(config)
    assert scores["loss"] > 0
    # The latents it learned from are those on disk: without them the patched encoder has to be asked.
    cohort = encoded_cohort(config.autoencoder, config.data, config.conditioner)
    shutil.move(cohort.training.folder, cohort.training.folder.with_name("away"))
    try:
        with pytest.raises(AssertionError, match="the encoder was run"):
            train_ldm(load(LdmRun, ldm_config(workplace, "ldm-uncached", "ae"), ["train.images=4"]))
    finally:
        shutil.rmtree(cohort.training.folder, ignore_errors=True)
        shutil.move(cohort.training.folder.with_name("away"), cohort.training.folder)


def test_a_loss_depends_on_its_own_case_alone(workplace: Path, trained_autoencoder: Path, trained_ldm: Path) -> None:
    config = load(LdmRun, ldm_config(workplace, "unused", trained_autoencoder.name))
    cohort = encoded_cohort(config.autoencoder, config.data)
    model = LatentDiffusion.from_pretrained(trained_ldm)
    loss = DenoiserLoss(config, model.autoencoder, model.conditioner, model.domain)
    items = [cohort.training.item(n) for n in range(3)]
    positions = torch.tensor([5, 17, 40])
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    t, keep = torch.tensor([0.2, 0.5, 0.9]), torch.ones(3, dtype=torch.bool)
    modules = {"denoiser": model.denoiser}
    together = loss.losses(modules, batch, positions, t, keep)
    for n in range(3):
        one = {key: value[n : n + 1] for key, value in batch.items()}
        alone = loss.losses(modules, one, positions[n : n + 1], t[n : n + 1], keep[n : n + 1])
        assert torch.allclose(alone, together[n : n + 1], rtol=1e-4)


@pytest.mark.parametrize("context", [False, True])
def test_a_scan_that_nobody_annotated_trains_as_one_whose_mask_is_dropped(
    workplace: Path, trained_autoencoder: Path, trained_ldm: Path, context: bool
) -> None:
    changes = [f"conditioner.context={str(context).lower()}"]
    config = load(LdmRun, ldm_config(workplace, "unused", trained_autoencoder.name), changes)
    model = LatentDiffusion.from_pretrained(trained_ldm)
    item = encoded_cohort(config.autoencoder, config.data).training.item(0)
    conditioner = build_conditioner(
        config.conditioner, len(item["mask"]), model.autoencoder.factors, model.autoencoder.latent_channels
    )
    denoiser, _ = initial(config, model.autoencoder.latent_channels, conditioner.channels)
    loss = DenoiserLoss(config, model.autoencoder, conditioner, model.domain)
    batch = {key: value[None] for key, value in item.items()}
    if context:
        batch["host_mean"] = batch["mean"]  # nothing was cut out: the answer itself
    bare = {**batch, "mask": torch.zeros_like(batch["mask"])}
    position, t, yes = torch.tensor([7]), torch.tensor([0.5]), torch.tensor([True])

    def of(rows: dict[str, torch.Tensor], keep: torch.Tensor) -> torch.Tensor:
        return loss.losses({"denoiser": denoiser}, rows, position, t, keep, yes)

    with torch.no_grad():  # fresh, it ends in zeros
        denoiser.network.out[-1].conv.weight.normal_(generator=torch.Generator().manual_seed(0))
    assert torch.equal(of(bare, yes), of(bare, ~yes))
    assert not torch.equal(of(batch, yes), of(batch, ~yes))


def test_sampling_may_change_when_a_run_goes_on_and_nothing_else(workplace: Path, trained_autoencoder: Path) -> None:
    file = ldm_config(workplace, "ldm-resampled", trained_autoencoder.name)
    train_ldm(load(LdmRun, file, ["train.images=4"]))
    changed = load(LdmRun, file, ["train.images=8", "sampling.scheduler=dpmpp_2m", "sampling.steps=5"])
    train_ldm(changed)
    kept = LatentDiffusion.from_pretrained(changed.run).sampling
    assert (kept.scheduler, kept.steps, kept.shift) == ("dpmpp_2m", 5, 0.5)
    with pytest.raises(TrainingError, match="they differ in diffusion"):
        train_ldm(load(LdmRun, file, ["train.images=12", "diffusion.shift=2"]))


def test_an_autoencoder_that_loses_the_lesion_is_warned_of_with_the_numbers(workplace: Path, trained_ldm: Path) -> None:
    config = load(LdmRun, ldm_config(workplace, "ldm-warned", "ae"), ["train.images=4"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_ldm(config)
    texts = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    assert any("of the lesions' contrast" in text and "dB" in text for text in texts)


def test_the_checkpoint_carries_the_patients_of_all_it_was_made_from(workplace: Path, trained_ldm: Path) -> None:
    manifest = Manifest.load(workplace / "manifest.json")
    ledger = checkpoint.read_ledger(trained_ldm / "checkpoint")
    seen, verified = ledger.seen(manifest.cases)
    assert verified
    assert {case.split for case in seen} == {"train"}
    assert len(seen) == len(manifest.select("train"))


def test_training_starts_from_another_checkpoint_and_inherits_its_patients(workplace: Path, trained_ldm: Path) -> None:
    start = ldm_config(workplace, "ldm-tuned", "ae", init_from=str(trained_ldm))
    config = load(LdmRun, start)
    width = build_conditioner(config.conditioner, 4, (4, 4, 4)).channels
    denoiser, ledger = initial(config, 4, width)
    source = LatentDiffusion.from_pretrained(trained_ldm).denoiser
    assert all(
        torch.equal(a, b) for a, b in zip(denoiser.state_dict().values(), source.state_dict().values(), strict=True)
    )
    assert ledger.patients
    other = load(LdmRun, start, ["denoiser.channels=[16, 16]"])
    with pytest.raises(CheckpointError, match=r"init_from .* this configuration needs"):
        initial(other, 4, width)


def test_an_autoencoder_starts_from_another(workplace: Path, trained_autoencoder: Path) -> None:
    file = autoencoder_config(workplace, "ae-tuned", init_from=str(trained_autoencoder))
    domain = checkpoint.read_header(trained_autoencoder / "checkpoint").domain
    model, ledger = initial_autoencoder(load(AutoencoderRun, file), domain, [])
    source = Autoencoder.from_pretrained(trained_autoencoder / "checkpoint" / "autoencoder")
    assert torch.equal(model.last_layer, source.last_layer)
    assert ledger.patients
    with pytest.raises(CheckpointError, match="architecture"):
        initial_autoencoder(load(AutoencoderRun, file, ["autoencoder.trunk.width=8"]), domain, [])


def test_gradient_checkpointing_changes_memory_and_not_weights(workplace: Path, trained_autoencoder: Path) -> None:
    weights = []
    for switch in ("false", "true"):
        file = ldm_config(workplace, f"ldm-checkpointing-{switch}", trained_autoencoder.name)
        config = load(LdmRun, file, ["train.images=8", f"train.gradient_checkpointing={switch}"])
        train_ldm(config)
        weights.append(LatentDiffusion.from_pretrained(config.run).denoiser.state_dict())
    # The averaged weights: a copy of a checkpointed network must run its own blocks, not those it was copied from.
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


def test_a_model_of_patches_trains_on_parts_and_makes_whole_volumes(
    workplace: Path, trained_autoencoder: Path, trained_segmenter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, seen = (2, 4, 3), set()
    forward = Denoiser.forward

    def watched(self: Denoiser, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        seen.add(tuple(x_t.shape[2:]))
        return forward(self, x_t, t, conditioning)

    monkeypatch.setattr(Denoiser, "forward", watched)
    changes = {"conditioner": {"patch": list(patch)}, "selection": {"segmenter": str(trained_segmenter), "cases": 1}}
    config = load(LdmRun, ldm_config(workplace, "ldm-patches", trained_autoencoder.name, **changes))
    assert train_ldm(config)["loss"] > 0
    assert seen == {patch}  # of 6 x 6 x 6 cells, in training, validation and sampling
    model = LatentDiffusion.from_pretrained(config.run / "checkpoint")
    mask = one_hot(torch.randint(0, len(model.domain.labels), (1, 24, 24, 24)), len(model.domain.labels))
    made = model.generate(Condition(mask), [3]).image
    assert made.shape == (1, 1, 24, 24, 24)
    assert torch.equal(made, model.generate(Condition(mask), [3]).image)
    assert not torch.equal(made, model.generate(Condition(mask), [3], patch_overlap=0.5).image)
    assert seen == {patch}
    # Every part is met somewhere in training, and a part is the same on every way to it.
    cohort = encoded_cohort(config.autoencoder, config.data, config.conditioner)
    items, _ = training_items(config, cohort.training, model.autoencoder, model.domain, start())
    corners = {tuple(items[position]["corner"].tolist()) for position in range(400)}
    assert corners == {(i, j, k) for i in range(5) for j in range(3) for k in range(4)}
    assert all(torch.equal(items[7][key], items[7][key]) for key in ("mean", "mask", "corner"))
