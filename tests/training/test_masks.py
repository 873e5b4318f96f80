"""Training generators of masks: tiny runs of every family learn from label maps alone, resume, and load as makers."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from tiny_runs import GRID
from tiny_runs import MASK_GENERATORS as GENERATORS
from tiny_runs import masks_config as write

from latentsynth.cli import main
from latentsynth.config import GanRun, MaskDiffusionConfig, MaskRun, SliceVAEConfig, build, load, run_of
from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.data.manifest import Manifest
from latentsynth.errors import ConfigError, DataError
from latentsynth.masks import LabelMap, Wanted, make_masks
from latentsynth.masks.learnt import load_mask_maker
from latentsynth.parallel import start
from latentsynth.training.recipes.autoencoder import volume_caches
from latentsynth.training.recipes.mask_items import DiffusionItems, training_facts
from latentsynth.training.recipes.mask_losses import VAELoss
from latentsynth.training.recipes.masks import train_masks
from latentsynth.training.run import read_metrics


@pytest.fixture(scope="module")
def runs(workplace: Path) -> dict[str, Path]:
    """Every family, trained for a moment."""
    for family in GENERATORS:
        train_masks(load(GanRun if family == "gan" else MaskRun, write(workplace, family, f"masks-{family}")))
    return {family: workplace / f"masks-{family}" for family in GENERATORS}


@pytest.fixture(scope="module")
def caches(workplace: Path) -> tuple[VolumeCache, VolumeCache]:
    data = load(MaskRun, write(workplace, "slice_vae", "masks-cohort")).data
    return volume_caches(data, 0, Manifest.load(data.manifest).masks_alone(), start())


@pytest.mark.parametrize("family", GENERATORS)
def test_a_run_leaves_a_maker_of_label_maps(
    family: str, runs: dict[str, Path], workplace: Path, tmp_path: Path
) -> None:
    run = runs[family]
    assert list((run / "samples").glob("*.png"))
    scores = {key for line in read_metrics(run) for key in line}
    assert {"val/empty", "val/volume_ml", "cpu_seconds"} <= scores
    maker = load_mask_maker(run)
    manifest = Manifest.load(workplace / "manifest.json")
    assert maker.labels == manifest.labels
    assert maker.lesions == (3,)
    seen, verified = maker.ledger.seen(manifest.cases)
    assert verified
    assert {case.case_id for case in seen} == {case.case_id for case in manifest.select("train")}
    for one in maker.make([1, 2], Wanted()):
        assert isinstance(one, LabelMap)
        assert one.values.shape == (24, 24, 24)
        assert set(np.unique(one.values)) <= set(manifest.labels.values)
        assert one.spacing_mm == pytest.approx((8, 8, 8))
    # The phantoms' grids are the model's own, so masks come out where theirs lie.
    assert np.allclose(maker.affine, nib.load(manifest.cases[0].mask).affine, atol=1e-4)


@pytest.mark.parametrize("family", ["slice_vae", "mask_diffusion"])
def test_a_stopped_run_goes_on_to_the_same_weights(family: str, runs: dict[str, Path], workplace: Path) -> None:
    for images in (16, 32):
        train_masks(load(MaskRun, write(workplace, family, f"stopped-{family}", images=32), [f"train.images={images}", "train.lr_schedule=constant"]))  # fmt: skip
    whole = load(MaskRun, write(workplace, family, f"whole-{family}"), ["train.lr_schedule=constant"])
    train_masks(whole)
    a, b = (load_mask_maker(workplace / f"{name}-{family}") for name in ("stopped", "whole"))
    part = "vae" if family == "slice_vae" else "denoiser"
    for one, other in zip(getattr(a, part).parameters(), getattr(b, part).parameters(), strict=True):
        assert torch.equal(one, other)


def test_masks_of_a_trained_model_can_be_written(runs: dict[str, Path], tmp_path: Path) -> None:
    maker = load_mask_maker(runs["mask_diffusion"], exact_volume=True)
    low, high = maker.volume_ml
    wanted = Wanted(volume_ml=(low, high))
    manifest = make_masks(maker, 3, tmp_path / "set", wanted)
    assert len(manifest.cases) == 3
    assert (tmp_path / "set/contact_sheet.png").is_file()
    with pytest.raises(DataError, match="out of reach"):
        make_masks(maker, 1, tmp_path / "huge", Wanted(volume_ml=(1e5, 1e6)))


def test_facts_are_those_of_the_unaugmented_training_masks(caches: tuple[VolumeCache, VolumeCache]) -> None:
    facts = training_facts(caches[0])
    volumes = [LabelMap.read(case, caches[0].recipe.labels).volume_ml([3]) for case, _ in caches[0].entries]
    assert facts["volume_ml"] == pytest.approx((min(v for v in volumes if v), max(volumes)))
    nowhere = VolumeCache(caches[0].folder.parent, caches[0].recipe, [])
    with pytest.raises(DataError, match="no training mask has a lesion"):
        training_facts(nowhere)


def test_diffusion_items_know_volume_count_and_healed_organs(caches: tuple[VolumeCache, VolumeCache]) -> None:
    config = MaskDiffusionConfig(coarsen=1, patch=2, reach_mm=30)
    items = DiffusionItems(caches[0], config)
    unit = config.unit
    for n in range(len(items)):
        item, index = items(n), caches[0].volume(items.usable[n]).mask
        assert index is not None
        assert float(item["volume_ml"]) == pytest.approx((index == 3).sum() * 0.512)
        assert item["organs"].shape == (2, *items.maps.cells)
        back = items.maps.index(items.maps.fields(item["maps"][None]))[0].numpy()
        assert np.array_equal(back == 3, index == 3)  # the box holds every training lesion
        assert math.isclose(
            float(item["organs"].sum()) * 8, np.isin(index[items.maps.box], (1, 2, 3)).sum(), rel_tol=0.2
        )
    assert all((side.stop - side.start) % unit == 0 for side in items.maps.box)
    assert DiffusionItems(caches[1], config, items).maps is items.maps


def test_slices_that_train_hold_the_case(caches: tuple[VolumeCache, VolumeCache]) -> None:
    """Slices beyond the first and the last label would teach nothing but background."""
    config = SliceVAEConfig(slices_per_case=16)
    masks = torch.zeros(2, 12, 3, 4, 4)  # (B, K, L, ...)
    masks[:, :, 0] = 1
    for at in (4, 7):
        masks[0, at, 0, 1, 1], masks[0, at, 1, 1, 1] = 0, 1
    marked = torch.arange(12.0).view(1, 12, 1, 1, 1).expand(2, 12, 3, 4, 4)
    loss = VAELoss(config, seed=0)
    chosen = loss._slices(torch.where(masks > 0, marked * 0 + masks, 0), torch.tensor([3, 9]), 16)
    assert chosen.shape == (32, 3, 4, 4)
    places = loss._slices(torch.cat([masks[:, :, :1] * marked[:, :, :1], masks[:, :, 1:]], 2), torch.tensor([3, 9]), 16)
    first = places[:16, 0].amax((1, 2))
    assert first.min() >= 4
    assert first.max() <= 7
    assert places[16:, 0].amax((1, 2)).max() > 7  # a case without a label trains on any slice


def test_wrong_configurations_say_so(workplace: Path) -> None:
    def changed(family: str, *changes: str) -> MaskRun:
        return load(MaskRun, write(workplace, family, "wrong"), changes)

    with pytest.raises(ConfigError, match="does not divide by 16"):
        changed("label_vae", "generator.channels=[4, 4, 4, 4]")
    with pytest.raises(ConfigError, match="does not divide by 32"):
        changed("mask_diffusion", "generator.coarsen=4", "generator.patch=4")
    with pytest.raises(ConfigError, match="leave the windows out"):
        changed("slice_vae", "data.grid.windows=[{}]")
    with pytest.raises(ConfigError, match="need an image"):
        changed("slice_vae", "data.augment={elastic_mm: 3}")
    with pytest.raises(ConfigError, match="init_from is not available"):
        changed("slice_vae", "init_from=elsewhere")
    with pytest.raises(ConfigError, match=r"generator: .*slice_vae.*label_vae"):
        changed("slice_vae", "generator.kind=vae")
    gan = load(GanRun, write(workplace, "gan", "wrong"))
    with pytest.raises(ConfigError, match="windows is empty"):
        build(GanRun, {**gan.model_dump(), "generator": {"kind": "progressive_gan", "form": "joint"}})
    picture = {"manifest": "m", "grid": GRID}
    with pytest.raises(ConfigError, match=r"generator\.form is image_given_mask: give form: mask_only"):
        train_masks(build(GanRun, {"run": "r", "data": picture, "generator": {"kind": "spade"}}))


@pytest.mark.parametrize("family", GENERATORS)
def test_the_command_tells_families_apart(family: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(workplace, family, f"told-{family}")
    with pytest.raises(SystemExit) as end:
        main(["train", "masks", str(path), "--check"])
    assert not end.value.code
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["generator"]["kind"] == GENERATORS[family]["kind"]
    assert ("discriminator" in shown) == (family == "gan")
    assert run_of(yaml.safe_load(path.read_text())) is (GanRun if family == "gan" else MaskRun)


def test_a_class_that_names_no_training_case_stops_before_any_work(workplace: Path) -> None:
    with pytest.raises(DataError, match="class ill names nobody"):
        train_masks(
            load(MaskRun, write(workplace, "slice_vae", "classes"), ["generator.classes={ill: [nobody, none]}"])
        )
    assert not (workplace / "classes" / "metrics.jsonl").exists()
