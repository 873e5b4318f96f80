"""Which checkpoint is kept, and what a run says of its own curves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_runs import ldm_config

from latentsynth import checkpoint
from latentsynth.config import LdmRun, SelectionConfig, load
from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.errors import ConfigError
from latentsynth.segmentation.segmenter import Segmenter
from latentsynth.synthesizers import LatentDiffusion
from latentsynth.training.recipes.encode import encoded_cohort
from latentsynth.training.recipes.ldm import DenoiserLoss, train_ldm
from latentsynth.training.recipes.selection import Convergence, Obedience, choose_guidance
from latentsynth.types import Condition, Domain, Generated


def kept_loss(run: Path) -> float:
    return checkpoint.read_header(run / "checkpoint").metrics["loss"]


@pytest.mark.parametrize(("keep", "expected"), [("best", 1.0), ("last", 3.0)])
def test_the_best_checkpoint_stays(
    workplace: Path, trained_autoencoder: Path, monkeypatch: pytest.MonkeyPatch, keep: str, expected: float
) -> None:
    """A validation loss that falls and rises again."""
    losses: Iterator[float] = iter([2.0, 1.0, 3.0])
    weights: list[torch.Tensor] = []
    asked: list[int] = []

    def score(self: DenoiserLoss, modules: dict, item: dict, case: int) -> dict[str, float]:  # type: ignore[type-arg]
        if not asked or len(asked) % per_validation == 0:
            weights.append(next(iter(modules["denoiser"].parameters())).detach().clone())
            current[0] = next(losses)
        asked.append(case)
        return {"loss": current[0], "mask_gain": 0.0}

    changes = [
        "train.images=12", "train.batch=4", "train.validate_every_images=4", "train.save_every_images=4",
        "train.lr_warmup_images=0", f"selection.keep={keep}",
    ]  # fmt: skip
    config = load(LdmRun, ldm_config(workplace, f"ldm-{keep}", trained_autoencoder.name), changes)
    cohort = encoded_cohort(config.autoencoder, config.data, config.conditioner)
    patients = len(cohort.manifest.select("train"))
    per_validation = len(cohort.validation) + min(len(cohort.validation), patients)
    current = [0.0]
    monkeypatch.setattr(DenoiserLoss, "score", score)
    returned = train_ldm(config)
    assert returned["loss"] == kept_loss(config.run) == expected
    model = LatentDiffusion.from_pretrained(config.run)
    stood = weights[1 if keep == "best" else 2]
    assert torch.equal(next(iter(model.denoiser.parameters())), stood)
    assert not torch.equal(weights[1], weights[2])


class Remembering:
    """Gives back the real volumes of the masks it is asked for, or air."""

    takes_context = False

    def __init__(self, volumes: VolumeCache, truthful: bool):
        self.volumes, self.truthful = volumes, truthful

    def generate(self, condition: Condition, seeds: list[int], guidance: float = 1.0) -> Generated:
        masks = [self.volumes.item(n)["mask"] for n in range(len(self.volumes))]
        found = [next(n for n, mask in enumerate(masks) if torch.equal(mask, wanted)) for wanted in condition.mask]
        images = torch.stack([torch.from_numpy(self.volumes.volume(n).image) for n in found])
        return Generated(images if self.truthful else torch.full_like(images, -1), condition.mask)


def test_obedience_is_what_the_segmenter_reaches_on_real_volumes(workplace: Path, trained_segmenter: Path) -> None:
    model = Segmenter.from_pretrained(trained_segmenter)
    config = load(LdmRun, ldm_config(workplace, "unused", "ae"))
    volumes = encoded_cohort(config.autoencoder, config.data).validation.volumes
    wanted = SelectionConfig(segmenter=trained_segmenter, cases=2)
    domain = Domain(model.domain.grid, model.domain.framing, volumes.recipe.labels, model.domain.channels, model.domain.limits)  # fmt: skip
    measure = Obedience.load(wanted, volumes, domain, seed=0)
    assert measure is not None
    real, air = (measure.of(Remembering(volumes, truthful)) for truthful in (True, False))  # type: ignore[arg-type]
    assert 0 <= air < real <= 1
    assert Obedience.load(SelectionConfig(), volumes, domain, seed=0) is None


class Stub:
    """Dice by guidance scale, and what scans reach."""

    def __init__(self, by_scale: dict[float, float], scans: float):
        self.by_scale, self.scans = by_scale, scans

    def of(self, model: object, guidance: float) -> float:
        return self.by_scale[guidance]

    def of_scans(self) -> float:
        return self.scans


@pytest.mark.parametrize(("scans", "chosen"), [(0.5, 1.0), (0.75, 1.5), (0.8, 1.5), (0.9, 2.0)])
def test_the_least_guidance_that_shows_masks_as_scans_do_is_chosen_or_the_best(scans: float, chosen: float) -> None:
    dice = {2.0: 0.85, 1.0: 0.7, 1.5: 0.8, 3.0: 0.83}
    found, tried = choose_guidance(Stub(dice, scans), None, list(dice))  # type: ignore[arg-type]
    assert found == chosen
    assert tried == dice


def test_scans_score_what_a_model_that_gives_them_back_scores(workplace: Path, trained_segmenter: Path) -> None:
    model = Segmenter.from_pretrained(trained_segmenter)
    config = load(LdmRun, ldm_config(workplace, "unused", "ae"))
    volumes = encoded_cohort(config.autoencoder, config.data).validation.volumes
    measure = Obedience(model, volumes, volumes.annotated[:2], 0)
    assert measure.of(Remembering(volumes, True)) == measure.of_scans()  # type: ignore[arg-type]


def test_the_chosen_guidance_is_the_checkpoints_own(
    workplace: Path, trained_autoencoder: Path, trained_segmenter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentsynth.training.recipes.ldm.choose_guidance", lambda *_: (1.5, {1.5: 0.5}))
    monkeypatch.setattr(
        "latentsynth.training.recipes.ldm.Obedience.load",
        lambda config, volumes, domain, seed: Obedience(
            Segmenter.from_pretrained(trained_segmenter), volumes, volumes.annotated[:1], seed
        ),
    )
    config = load(LdmRun, ldm_config(workplace, "ldm-guided", trained_autoencoder.name), ["train.images=4"])
    train_ldm(config)
    assert LatentDiffusion.from_pretrained(config.run).settings()["guidance"] == 1.5
    assert (config.run / "early").is_dir()


def test_a_segmenter_of_another_grid_is_refused(workplace: Path, trained_segmenter: Path, trained_ldm: Path) -> None:
    from dataclasses import replace

    model = LatentDiffusion.from_pretrained(trained_ldm)
    config = load(LdmRun, ldm_config(workplace, "unused", "ae"))
    volumes = encoded_cohort(config.autoencoder, config.data).validation.volumes
    finer = replace(model.domain, grid=replace(model.domain.grid, spacing_mm=(1.0, 1.0, 1.0)))
    with pytest.raises(ConfigError, match=r"trained on spacing .* this model has \(1\.0, 1\.0, 1\.0\)"):
        Obedience.load(SelectionConfig(segmenter=trained_segmenter), volumes, finer, seed=0)


def curve(*losses: tuple[float, float]) -> list[dict[str, float]]:
    return [
        {"images_seen": 100 * (n + 1), "val/loss": ours, "val/training_loss": theirs}
        for n, (ours, theirs) in enumerate(losses)
    ]


def test_what_a_run_says_of_itself() -> None:
    learning = Convergence.of(curve((1.0, 1.0), (0.8, 0.8), (0.7, 0.7)))
    assert learning is not None
    assert not learning.converged
    assert learning.copying_since is None
    level = Convergence.of(curve((1.0, 1.0), (0.7, 0.7), (0.7, 0.7)))
    assert level is not None
    assert level.converged
    assert level.copying_since is None
    by_heart = Convergence.of(curve((1.0, 1.0), (0.7, 0.6), (0.8, 0.4), (0.9, 0.2)))
    assert by_heart is not None
    assert (by_heart.copying_since, by_heart.best_images) == (200, 200)
    worse_on_both = Convergence.of(curve((1.0, 1.0), (0.7, 0.6), (0.8, 0.7)))  # diverging, not copying
    assert worse_on_both is not None
    assert worse_on_both.copying_since is None
    assert Convergence.of(curve((1.0, 1.0), (0.5, 0.5))) is None
    assert Convergence.of([{"images_seen": 4, "loss": 1.0}]) is None
