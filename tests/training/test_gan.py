"""Training GANs: tiny runs of every family learn, paint the mask they are given, and refuse what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import GANS, gan_config
from torch import Tensor

from latentsynth.config import GanRun, build, load
from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.data.manifest import Manifest
from latentsynth.errors import CheckpointError, ConfigError, DataError
from latentsynth.gans.base import Inputs
from latentsynth.parallel import start
from latentsynth.provenance import Ledger
from latentsynth.randomness import Draws
from latentsynth.synthesizers import GAN, LatentGAN, load_synthesizer
from latentsynth.training.recipes.autoencoder import volume_caches
from latentsynth.training.recipes.gan import initial, train_gan, unpaired
from latentsynth.training.run import read_metrics
from latentsynth.types import Condition

# Images after which each family has learnt something.
LENGTH = {
    "pix2pix": 160, "spade": 200, "cyclegan": 120, "stylegan2": 120, "stylegan2_joint": 120, "latent_gan": 320,
    "progressive_gan": 960, "stylegan1": 640, "stylegan3": 320,
}  # fmt: skip


@pytest.fixture(scope="module")
def cohort(workplace: Path) -> VolumeCache:
    """The training volumes."""
    data = load(GanRun, gan_config(workplace, "gan-cohort", "pix2pix")).data.volumes()
    return volume_caches(data, 0, Manifest.load(data.manifest), start())[0]


def stacked(cohort: VolumeCache, key: str) -> Tensor:
    return torch.stack([cohort.item(n)[key] for n in range(len(cohort))])


@pytest.fixture(scope="module")
def trained(workplace: Path, trained_autoencoder: Path) -> dict[str, GAN | LatentGAN]:
    """Every family, trained for some seconds."""
    models: dict[str, GAN | LatentGAN] = {}
    for family in GANS:
        config = load(GanRun, gan_config(workplace, f"gan-{family}", family, trained_autoencoder.name))
        images = f"train.images={LENGTH[family]}"
        rare = [f"train.{what}_every_images=1000" for what in ("validate", "sample", "save")]
        train_gan(build(GanRun, load(GanRun, workplace / f"gan-{family}.yaml", [images, *rare]).model_dump()))
        model = load_synthesizer(config.run)
        assert isinstance(model, GAN | LatentGAN)
        models[family] = model
    return models


@pytest.mark.parametrize("family", GANS)
def test_a_run_leaves_everything_that_is_promised(
    family: str, trained: dict[str, Any], workplace: Path, cohort: VolumeCache
) -> None:
    run = workplace / f"gan-{family}"
    assert (run / "checkpoint" / "README.md").is_file()
    assert list((run / "samples").glob("*.png"))
    lines = read_metrics(run)
    assert {"generator/loss", "discriminator/accuracy", "cpu_seconds"} <= set(lines[0])
    last = next(line for line in reversed(lines) if "val/diversity" in line)
    assert 0 <= last["val/discriminator_accuracy"] <= 1
    assert ("val/invalid_labels" in last) == trained[family].makes_masks
    found, verified = trained[family].ledger.seen([cohort.entries[0][0]])
    assert verified
    assert len(found) == 1


@pytest.mark.parametrize("family", ["pix2pix", "spade"])
def test_lesions_move_with_the_mask(family: str, trained: dict[str, Any], cohort: VolumeCache) -> None:
    """A sample lies nearer to the scan of its own mask than to those of others, and changes where the mask does."""
    real, masks = stacked(cohort, "image"), stacked(cohort, "mask")
    calm = {"truncation": 0.0} if trained[family].generator.truncates else {}  # styles of their own are no anatomy
    made = trained[family].generate(Condition(masks), list(range(len(masks))), **calm).image
    distance = torch.tensor([[float((a - b).abs().mean()) for b in real] for a in made])
    others = (distance.sum() - distance.diag().sum()) / (len(real) ** 2 - len(real))
    assert float(distance.diag().mean()) < 0.98 * float(others)
    moved = masks[:1].roll(4, 3)
    one, two = (trained[family].generate(Condition(m), [5]).image for m in (masks[:1], moved))
    inside = (masks[:1, 3:] + moved[:, 3:]).clamp(max=1)
    change = (one - two).abs()
    assert float((change * inside).sum() / inside.sum()) > 1.5 * float(change.mean())


@pytest.mark.parametrize("family", [f for f in GANS if f != "latent_gan"])
def test_training_brings_samples_nearer_to_real_volumes(
    family: str, trained: dict[str, Any], workplace: Path, cohort: VolumeCache
) -> None:
    """Against the same family after a single step: mean image, deviation of all voxels, mean label map."""
    grown = ["game.grow_images=1"] if "grow_images" in GANS[family].get("game", {}) else []
    config = load(GanRun, gan_config(workplace, f"gan-{family}-young", family), ["train.images=4", *grown])
    train_gan(config)
    young = load_synthesizer(config.run)
    real, masks = stacked(cohort, "image"), stacked(cohort, "mask")
    wanted = None if young.makes_masks else Condition(masks)

    def far(model: Any) -> float:
        made = model.generate(wanted, list(range(len(masks))))
        labels = (made.mask.mean(0) - masks.mean(0)).abs().sum(0).mean()
        return float((made.image.mean(0) - real.mean(0)).abs().mean() + (made.image.std() - real.std()).abs() + labels)

    assert far(trained[family]) < 0.9 * far(young)


def test_a_latent_gan_learns_the_latents_of_the_mask(
    trained: dict[str, Any], workplace: Path, trained_autoencoder: Path, cohort: VolumeCache
) -> None:
    """Against itself after a single step: the distance to the latents of the scan that the mask belongs to."""
    config = load(
        GanRun, gan_config(workplace, "gan-latent-young", "latent_gan", trained_autoencoder.name), ["train.images=4"]
    )
    train_gan(config)
    real, masks = stacked(cohort, "image"), stacked(cohort, "mask")

    def far(model: Any) -> float:
        with torch.no_grad():
            spatial = model.conditioner(Condition(masks)).spatial
            made = model.generator(Inputs(Draws.seeded(range(len(masks))), spatial)).image
            return float((made - model.autoencoder.encode(real)).abs().mean())

    assert far(trained["latent_gan"]) < 0.9 * far(load_synthesizer(config.run))


def test_unpaired_items_never_hold_a_patient_with_its_own_mask(cohort: VolumeCache) -> None:
    lonely = [n for n in range(len(cohort)) if cohort.entries[n][0].patient_id == cohort.entries[0][0].patient_id]
    with pytest.raises(DataError, match="at least two training patients"):
        unpaired(cohort, lonely)(0, 0)
    item = unpaired(cohort, list(range(len(cohort))))
    masks = stacked(cohort, "mask")
    used = []
    for n in range(len(cohort)):
        given = item(n, 0)
        assert torch.equal(given["image"], cohort.item(n)["image"])
        owner = next(m for m in range(len(masks)) if torch.equal(masks[m], given["mask"]))
        assert cohort.entries[owner][0].patient_id != cohort.entries[n][0].patient_id
        used.append(owner)
    assert len(set(used)) > len(cohort) / 2  # nor always the same one


def test_training_starts_from_another_gan_of_the_same_architecture(trained: dict[str, Any], workplace: Path) -> None:
    source = trained["pix2pix"]
    config = load(GanRun, gan_config(workplace, "gan-next", "pix2pix", init_from=str(workplace / "gan-pix2pix")))
    from latentsynth.gans import build_generator

    fresh = build_generator(config.generator, source.generator.shape, 1, 4, False)
    copied, ledger = initial(config, fresh)
    for name, tensor in source.generator.state_dict().items():
        assert torch.equal(copied.state_dict()[name], tensor)
    assert ledger == source.ledger != Ledger()
    other = build_generator(config.generator, source.generator.shape, 2, 4, False)
    with pytest.raises(CheckpointError, match="init_from"):
        initial(config, other)
    wrong = config.model_copy(update={"init_from": workplace / "gan-latent_gan"})
    with pytest.raises(CheckpointError, match="init_from"):
        initial(wrong, fresh)


def test_a_cohort_without_masks_is_refused(workplace: Path) -> None:
    manifest = Manifest.load(workplace / "manifest.json")
    from dataclasses import replace

    bare = replace(manifest, cases=tuple(replace(case, mask=None) for case in manifest.cases))
    bare.save(workplace / "bare.json")
    data = {"manifest": str(workplace / "bare.json")}
    values = load(GanRun, gan_config(workplace, "gan-bare", "pix2pix")).model_dump()
    values["data"] |= data
    with pytest.raises(DataError, match=r"no training case of .* has a mask"):
        train_gan(build(GanRun, values))


GRID = {"shape": [16, 16, 16], "spacing_mm": [1, 1, 1], "windows": [{}]}
VOXEL = {"run": "r", "data": {"manifest": "m", "grid": GRID}}


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"generator": {"kind": "latent_gan"}, "run": "r"}, "needs autoencoder"),
        ({"generator": {"kind": "latent_gan"}, "autoencoder": "a", **VOXEL}, "come from the autoencoder"),
        ({"generator": {"kind": "spade"}, "autoencoder": "a", **VOXEL}, "leave it out"),
        ({"generator": {"kind": "spade"}, "run": "r"}, "data.manifest is missing"),
        ({"generator": {"kind": "stylegan3"}, **VOXEL}, "spatial_dims: 2"),
        ({"generator": {"kind": "spade"}, "discriminator": {"kind": "grown"}, **VOXEL}, "go together"),
        ({"generator": {"kind": "stylegan1"}, "discriminator": {"kind": "patch"}, **VOXEL}, "go together"),
        ({"generator": {"kind": "spade"}, "game": {"path_length": 1}, **VOXEL}, "path_length"),
        ({"generator": {"kind": "stylegan2", "form": "joint"}, "game": {"l1": 1}, **VOXEL}, "form has none"),
        (
            {"generator": {"kind": "stylegan2", "form": "joint"}, "game": {"feature_matching": 1}, **VOXEL},
            "form has none",
        ),
        ({"generator": {"kind": "progressive_gan"}, "game": {"augment_target": 0.6}, **VOXEL}, "augment_target"),
        ({"generator": {"kind": "progressive_gan"}, "train": {"images": 1000}, **VOXEL}, "at least 8000"),
        ({"generator": {"kind": "pix2pix"}, "sampling": {"truncation": 0.8}, **VOXEL}, "no latent to truncate"),
        (
            {"generator": {"kind": "spade"}, "train": {"gradient_checkpointing": True}, **VOXEL},
            "not available for GANs",
        ),
        ({"generator": {"kind": "cyclegan"}, "game": {"r1": 1}, **VOXEL}, r"game\.r1 is no part of CycleGAN"),
        (
            {"generator": {"kind": "cyclegan"}, "game": {"loss": "relativistic"}, **VOXEL},
            "pairs fakes with real images",
        ),
        ({"generator": {"kind": "cyclegan"}, "init_from": "a", **VOXEL}, "init_from is not available"),
        ({"generator": {"kind": "gan"}, **VOXEL}, "pix2pix"),
        ({"generator": {"kind": "spade", "style": "best"}, **VOXEL}, "generator.style"),
        ({"generator": {"kind": "spade", "widht": 1}, **VOXEL}, "unknown key generator.widht"),
    ],
)
def test_impossible_configurations_are_refused_with_a_cure(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build(GanRun, values)


def test_published_settings_hold_where_the_user_is_silent() -> None:
    config = build(GanRun, {**VOXEL, "generator": {"kind": "spade"}, "game": {"l1": 3}, "train": {"lr": 5e-5}})
    assert (config.game.loss, config.game.feature_matching, config.game.l1) == ("hinge", 10.0, 3)
    assert (config.train.lr, config.train.betas, config.discriminator.lr) == (5e-5, (0.0, 0.9), 4e-4)
    other = build(GanRun, {**VOXEL, "generator": {"kind": "spade"}, "discriminator": {"kind": "residual"}})
    assert other.discriminator.lr == 2e-3  # another judge: its own default
    assert build(GanRun, config.model_dump()) == config  # and a resolved configuration stays as it is


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_that_is_read_alone_is_that_of_the_volume(cohort: VolumeCache, axis: int) -> None:
    whole = cohort.packed(1)
    for at in (0, 7):
        found = cohort.packed_slice(1, axis, at)
        assert set(found) == set(whole)
        for name, tensor in whole.items():
            assert torch.equal(found[name], tensor.select(1 + axis, at))
