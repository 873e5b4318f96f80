"""Configurations come back as written, and every wrong key or value is named."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentsynth import config
from latentsynth.config import AutoencoderRun, LdmRun, SegmenterRun, Strict, build, dump, load
from latentsynth.errors import ConfigError
from latentsynth.strict import members

VQ = Path(__file__).parents[1] / "configs" / "reference" / "hippocampus_autoencoder.yaml"

GRID = {"shape": [16, 32, 16], "spacing_mm": [1.5, 1.0, 3.0], "windows": [{"kind": "fixed", "low": -160, "high": 240}]}
MASK_GRID = {"shape": [16, 32, 16], "spacing_mm": [1.5, 1.0, 3.0]}
AUTOENCODER: dict[str, Any] = {"run": "runs/a", "data": {"manifest": "m.json", "grid": GRID}}
LDM: dict[str, Any] = {"run": "runs/b", "autoencoder": "runs/a"}
SEGMENTER_DATA: dict[str, Any] = {"train": [{"manifest": "m.json"}], "validation": {"manifest": "m.json"}, "grid": GRID}
SEGMENTER: dict[str, Any] = {"run": "runs/s", "data": SEGMENTER_DATA}

# For every section, values that all differ from the defaults.
STUDY: dict[str, Any] = {
    "folder": "f", "manifest": "m", "grid": GRID, "framing": {"crop": "lesion"}, "cache": "c", "seed": 5,
    "roles": {"pool": 0.5, "outside": 0.25, "heldout": 0.25}, "sizes": [3, "all"], "seeds": [7],
    "augment": {"copies": 2}, "autoencoder": {"train": {"images": 5}}, "models": {"ldm": {"train": {"images": 5}}},
}  # fmt: skip
CHANGED: dict[str, dict[str, Any]] = {
    "AugmentConfig": {"copies": 3, "rotate_deg": 1, "scale": 0.2, "shift_mm": 0, "flip_axes": [0, 2],
                      "elastic_mm": 2.5, "gamma": 0.1, "noise": 0.01, "bias": 0.2},
    "DataConfig": {"manifest": "a b/ä.json", "grid": {**GRID, "windows": [{}, {"low": 2}]}, "cache": "elsewhere",
                   "framing": {"crop": "lesion", "fit": "scale", "lesion_labels": [2, 5]}, "augment": {"copies": 1}},
    "SpaceToDepthConfig": {"kind": "space_to_depth", "width": 8, "res_blocks": 1},
    "ResnetConfig": {"kind": "resnet", "channels": [8, 16, 32], "res_blocks": 1},
    "FSQConfig": {"kind": "fsq", "downsampling": 2, "levels": 5, "trunk": {"width": 32}},
    "VQConfig": {"kind": "vq", "downsampling": [4, 4, 2], "trunk": {"width": 8}, "latent_channels": 6, "codebook_size": 64, "codebooks": 3, "commitment": 1, "codebook_decay": 0.5,
                 "restart_below": 0},
    "KLConfig": {"kind": "kl", "trunk": {"kind": "resnet", "channels": [8, 16, 32]}, "downsampling": 8,
                 "kl_weight": 1e-4},
    "DecoderPhaseConfig": {"share": 0.4, "noise": 0.3},
    "PerceptualConfig": {"path": "features.ts", "weight": 2},
    "ReconstructionConfig": {"reconstruction": "robust", "lesion_weight": 5, "adversarial_weight": 0.1,
                             "adversarial_after_images": 100, "high_band_weight": 2, "perceptual": {"path": "f.ts"}},
    "TrainConfig": {"images": 5, "batch": 2, "lr": 1e-5, "lr_schedule": "constant", "betas": [0, 0.5],
                    "precision": "bf16", "gradient_checkpointing": True, "attention": "xformers", "tracker": "wandb"},
    "Run": {"run": "r", "seed": 7, "train": {"images": 3}, "init_from": "old"},
    "AutoencoderRun": {**AUTOENCODER, "seed": 3, "autoencoder": {"kind": "vq"}, "loss": {"reconstruction": "l2"},
                       "crop": [8, 8, 8]},
    "DenoiserConfig": {"channels": [32, 64, 64], "attention": [False, True, True], "head_channels": 16},
    "DiffusionConfig": {"schedule": "cosine", "prediction": "x0", "time": "uniform", "shift": 1.5},
    "SelectionConfig": {"guidance": [1.0, 3.0], "keep": "last", "segmenter": "runs/judge", "cases": 3},
    "SamplingConfig": {"scheduler": "heun", "steps": 5, "guidance": 2.5, "guidance_interval": [0.1, 0.9],
                       "patch_overlap": 0.5, "grain": 0.5},
    "LatentDataConfig": {"manifest": "m", "augment": {"copies": 2}, "cache": "c"},
    "ConditionerConfig": {"detail": 4, "context": True, "cut_margin_mm": 6, "cut_weight": 2.0, "decoys": 0.1, "context_dropout": 0.2,
                          "patch": [8, 8, 4]},
    "LdmRun": {**LDM, "diffusion": {"shift": 1.5}, "data": {"manifest": "m"}, "conditioner": {"detail": 1}},
    "Pix2PixConfig": {"kind": "pix2pix", "network": "resnet", "channels": 8, "max_channels": 32, "levels": 2, "blocks": 1,
                      "dropout": 0},
    "CycleGANConfig": {"kind": "cyclegan", "channels": 8, "blocks": 1, "dropout": 0.5, "attention": True,
                       "cycle_weight": 5, "identity_weight": 0},
    "SPADEConfig": {"kind": "spade", "channels": 8, "max_channels": 32, "hidden": 8, "latent": 16, "style": "bottleneck"},
    "LatentGANConfig": {"kind": "latent_gan", "channels": [32, 64], "attention": [False, False], "head_channels": 16},
    "ProgressiveGANConfig": {"kind": "progressive_gan", "channels": 8, "max_channels": 32, "coding": "cuts",
                             "form": "mask_only", "latent": 16},
    "StyleGAN1Config": {"kind": "stylegan1", "channels": 8, "max_channels": 32, "coding": "cuts", "form": "mask_only",
                        "latent": 16, "style": 16, "mapping_layers": 1},
    "StyleGAN2Config": {"kind": "stylegan2", "channels": 8, "max_channels": 32, "coding": "cuts", "form": "joint",
                        "latent": 16, "style": 16, "mapping_layers": 1},
    "StyleGAN3Config": {"kind": "stylegan3", "channels": 8, "coding": "cuts", "form": "mask_only", "latent": 16,
                        "style": 16, "mapping_layers": 1, "layers": 4},
    "PatchConfig": {"kind": "patch", "lr": 1e-5, "channels": 8, "layers": 2, "scales": 3, "spectral": True},
    "ResidualConfig": {"kind": "residual", "lr": 1e-5, "channels": 8, "max_channels": 32},
    "GrownConfig": {"kind": "grown", "lr": 1e-5, "channels": 8, "max_channels": 32},
    "GameConfig": {"loss": "wasserstein", "l1": 1, "lesion_weight": 2, "feature_matching": 3, "divergence": 0.1,
                   "perceptual": {"path": "f.ts"}, "r1": 1, "r2": 2, "r1_every": 2, "gradient_penalty": 3, "drift": 0.1,
                   "path_length": 1, "path_length_every": 2, "mixing": 0.5, "pool": 5, "noise": 0.1, "noise_decay": 0.5,
                   "augment_target": 0.5, "augment_ramp_images": 10, "discriminator_steps": 2, "grow_images": 10},
    "GanSamplingConfig": {"truncation": 0.5},
    "GanDataConfig": {"manifest": "m", "grid": GRID, "framing": {"crop": "lesion"}, "augment": {"copies": 2},
                      "cache": "c"},
    "GanRun": {"run": "g", "data": {"manifest": "m", "grid": GRID}, "spatial_dims": 2, "slice_axis": 0,
               "generator": {"kind": "stylegan3"}, "sampling": {"truncation": 0.7}, "game": {"r1": 3}},
    "MaskDataConfig": {"manifest": "m", "grid": MASK_GRID, "framing": {"crop": "lesion"}, "augment": {"copies": 1},
                       "cache": "c"},
    "SliceSamplingConfig": {"method": "truncated_normal", "correlated": False, "population": "large"},
    "SliceVAEConfig": {"kind": "slice_vae", "channels": [8, 8], "hidden": 32, "latent": 8, "beta": 1, "free_bits": 0.1,
                       "dice": 5, "slice_axis": 0, "slices": 12, "slices_per_case": 3, "classes": {"ill": ["a", "b"]},
                       "sampling": {"population": "ill"}},
    "LabelSamplingConfig": {"spread": 0.8},
    "LabelVAEConfig": {"kind": "label_vae", "channels": [8, 8], "hidden": 32, "latent": 8, "beta": 1, "free_bits": 0,
                       "dice": 5, "coarse": False, "sampling": {"spread": 2}},
    "MaskSamplingConfig": {"scheduler": "heun", "steps": 5, "guidance": 2.5, "guidance_interval": [0.1, 0.9],
                           "exact_volume": True},
    "MaskDiffusionConfig": {"kind": "mask_diffusion", "coarsen": 1, "patch": 4, "reach_mm": 12,
                            "denoiser": {"res_blocks": 1}, "diffusion": {"condition_dropout": 0.3},
                            "sampling": {"exact_volume": True}},
    "MaskRun": {"run": "m", "seed": 3, "data": {"manifest": "m", "grid": MASK_GRID}, "generator": {"kind": "label_vae"},
                "train": {"images": 5}},
    "SourceConfig": {"manifest": "a b/ä.json", "split": "test", "patients": 5, "repeat": 3},
    "ValidationConfig": {"manifest": "v.json", "split": "test"},
    "SegmenterDataConfig": {"train": [{"manifest": "r", "split": "train", "patients": 2, "repeat": 1},
                                      {"manifest": "s", "split": "val", "patients": None, "repeat": 4}],
                            "validation": {"manifest": "v"}, "grid": GRID, "framing": {"crop": "lesion"},
                            "augment": {"copies": 2}, "cache": "c"},
    "UNetConfig": {"kind": "unet", "channels": [8, 16], "res_units": 0, "dropout": 0.1},
    "DynUNetConfig": {"kind": "dynunet", "channels": [8, 16, 16], "deep_supervision": False},
    "SwinUNETRConfig": {"kind": "swin_unetr", "feature_size": 12, "window": 4, "dropout": 0.2},
    "SegmentationLossConfig": {"dice_weight": 0.5, "ce_weight": 0},
    "InferenceConfig": {"overlap": 0, "windows_at_once": 4},
    "SegmenterRun": {**SEGMENTER, "network": {"kind": "dynunet", "channels": [8, 8, 8]}, "loss": {"ce_weight": 2},
                     "inference": {"overlap": 0.25}, "init_from": "old"},
    "ViewsConfig": {"rotate_deg": 1, "scale": 0, "shift": 0.2, "flip_axes": [1, 2], "gamma": 0, "brightness": 0.2,
                    "noise": 0},
    "ExtractorRun": {"run": "runs/e", "data": {"manifest": "m", "grid": GRID}, "channels": [8, 16], "projection": 8,
                     "head": "layout", "temperature": 0.5, "views": {"noise": 0.1, "smooth": 0.5}, "train": {"images": 5}},
    "RolesConfig": {"pool": 0.5, "outside": 0.25, "heldout": 0.25},
    "StudyConfig": STUDY,
    "DeformConfig": {"draw": "turn", "elastic_mm": 2, "control_mm": 12, "rotate_deg": 5, "scale": 0.05, "shift_mm": 1,
                     "mirror": ["left-right"], "grow_mm": 0.5, "shrink_mm": 0.5, "smooth_mm": 0.5, "split": 0.2, "merge": 0.2,
                     "gap_mm": 2, "bridge_mm": 1, "max_factor": 4},
    "ProceduralConfig": {"elongation": 0.5, "roughness": [0.3, 0.2], "gap_mm": 2, "place": "uniform", "place_smooth_mm": 3,
                         "reach": 0, "min_piece_ml": 0.1, "attempts": 5},
    "ComposeConfig": {"place": "same", "replace_lesions": False, "max_cut": 0.1, "gap_mm": 1, "attempts": 5},
    "MaskSetConfig": {"method": "procedural", "inside": [1, 2], "deform": {"split": 0}, "procedural": {"reach": 0},
                      "compose": {"gap_mm": 1}},
    "NewMasksConfig": {"method": "procedural", "inside": [1], "deform": {"split": 0}, "procedural": {"reach": 0},
                       "compose": {"gap_mm": 1}, "into_hosts": True, "model": {"generator": {"kind": "label_vae"}}},
    "MarginsConfig": {"dice": 0.02, "surface_dice": 0.03, "hd95_mm": 2, "lesions_found": 0.1},
    "DropConfig": {"copies": True, "agreement": 0.5},
    "ArmConfig": {"real": 0.5, "model": "ldm", "masks": "new", "dose": 2, "drop": {"copies": True}, "augment": False,
                  "bridge": True, "sizes": [3]},
    "UtilityStudy": {**STUDY, "pretrained_autoencoder": "a", "baseline": "real", "validation": 0.25, "margins": {"dice": 0.02},
                     "folds": 3, "surplus": 2, "copy_space": "ssim", "copy_level": 0.1, "masks": {"new": {"inside": [1]}},
                     "arms": {"real": {}, "more": {"model": "ldm", "dose": 1}, "half": {"real": 0.5}},
                     "contrasts": [["more", "half"]], "segmenters": {"unet": {}}},
    "MemorizationStudy": {**STUDY, "models": {"ldm": {}, "gan": {"generator": {"kind": "latent_gan"}}}, "minutes": 2, "stages": [0.5, 1], "spaces": ["ssim"], "level": 0.1,
                          "detector": {"projection": 8}, "claims": [["ldm", "gan"]]},
}  # fmt: skip


def sections() -> dict[str, type[Strict]]:
    return {name: kind for name, kind in vars(config).items() if isinstance(kind, type) and issubclass(kind, Strict)
            and kind is not Strict and not name.startswith("_")}  # fmt: skip


def test_every_section_is_tested() -> None:
    assert set(sections()) == set(CHANGED)


def write(path: Path, values: Any) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A deep copy with one value set; numbers in ``key`` are places in a list."""
    out = copy.deepcopy(values)
    *parents, last = key.split(".")
    at: Any = out
    for parent in parents:
        at = at[int(parent)] if isinstance(at, list) else at.setdefault(parent, {})
    at[last] = value
    return out


@pytest.mark.parametrize("name", CHANGED)
def test_round_trip_through_yaml(tmp_path: Path, name: str) -> None:
    kind = sections()[name]
    one = build(kind, CHANGED[name])
    (tmp_path / "c.yaml").write_text(dump(one), encoding="utf-8")
    assert load(kind, tmp_path / "c.yaml") == one
    for key, given in CHANGED[name].items():  # nothing was dropped on the way in
        kept = json.loads(one.model_dump_json())[key]
        if not isinstance(given, dict):
            assert kept == given
        field = kind.model_fields[key]
        assert key == "kind" or field.is_required() or getattr(one, key) != field.default


@pytest.mark.parametrize(
    ("kind", "values", "key", "choices"),
    [
        (AutoencoderRun, AUTOENCODER, "tran", "train"),
        (AutoencoderRun, AUTOENCODER, "data.manifst", "manifest"),
        (AutoencoderRun, AUTOENCODER, "data.grid.spacing", "spacing_mm"),
        (AutoencoderRun, AUTOENCODER, "data.grid.windows.0.hihg", "high"),
        (AutoencoderRun, AUTOENCODER, "data.framing.lesion_label", "lesion_labels"),
        (AutoencoderRun, AUTOENCODER, "data.augment.rotate", "rotate_deg"),
        (AutoencoderRun, AUTOENCODER, "train.image", "images"),
        (AutoencoderRun, {**AUTOENCODER, "autoencoder": {"kind": "vq"}}, "autoencoder.codebook", "codebooks"),
        (AutoencoderRun, {**AUTOENCODER, "autoencoder": {"kind": "kl"}}, "autoencoder.kl_weigth", "kl_weight"),
        (AutoencoderRun, {**AUTOENCODER, "loss": {"perceptual": {"path": "f"}}}, "loss.perceptual.wieght", "weight"),
        (LdmRun, LDM, "diffusion.schedul", "schedule"),
        (LdmRun, LDM, "denoiser.channel", "channels"),
        (LdmRun, LDM, "sampling.step", "steps"),
        (LdmRun, LDM, "data.augment.copy", "copies"),
        (SegmenterRun, SEGMENTER, "data.train.0.patient", "patients"),
        (SegmenterRun, SEGMENTER, "data.validation.spilt", "split"),
        (SegmenterRun, SEGMENTER, "network.res_unit", "res_units"),
        (SegmenterRun, {**SEGMENTER, "network": {"kind": "dynunet"}}, "network.deep_supervison", "deep_supervision"),
        (SegmenterRun, SEGMENTER, "inference.overlaps", "overlap"),
    ],
)
def test_unknown_keys_are_named_with_what_exists(kind: Any, values: dict[str, Any], key: str, choices: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(kind, changed(values, key, 1))
    message = str(caught.value)
    assert message.startswith(f"config: unknown key {key}, did you mean {choices}? (choices: ")
    listed = message.split("choices: ")[1].rstrip(")").split(", ")
    assert choices in listed
    assert len(listed) > 1


def test_keys_of_the_other_autoencoder_are_unknown() -> None:
    with pytest.raises(ConfigError, match=r"unknown key autoencoder\.codebook_size.*kl_weight"):
        build(AutoencoderRun, {**AUTOENCODER, "autoencoder": {"kind": "kl", "codebook_size": 8}})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.images", 0, r"train\.images: .*greater than or equal to 1"),
        ("train.images", "many", r"train\.images: .*\(found 'many'\)"),
        ("train.images", 2.5, r"train\.images: "),
        ("train.batch", True, r"train\.batch: "),
        ("train.lr", 0, r"train\.lr: .*greater than 0"),
        ("train.lr", float("inf"), r"train\.lr: "),
        ("train.lr", float("nan"), r"train\.lr: "),
        ("train.betas", [0.9, 1.5], r"train\.betas\.1: "),
        ("train.precision", "fp8", r"train\.precision: .*'no' or 'bf16'"),
        ("train", None, "train: "),
        ("seed", -1, "seed: "),  # numpy's generators take none below zero
        ("data.grid", None, r"data\.grid: "),
        ("data.grid.shape", [16, 16], r"data\.grid\.shape"),
        ("data.grid.shape", [0, 16, 16], r"data\.grid.*shape"),
        ("data.grid.shape", [18, 16, 16], r"data\.grid\.shape .*not divisible by downsampling \(4, 4, 4\)"),
        ("data.grid.spacing_mm", [1, 0, 1], r"data\.grid.*spacing_mm"),
        ("data.grid.spacing_mm", [1, float("nan"), 1], r"data\.grid.*spacing_mm"),
        ("data.grid.windows", [], r"data: grid\.windows is empty"),
        ("data.grid.windows", [{"low": 60, "high": 40}], r"data\.grid\.windows\.0: window low"),
        ("data.framing.crop", "organ", r"data\.framing\.crop: .*'whole' or 'lesion'"),
        ("data.augment.scale", 0.5, r"data\.augment\.scale: "),
        ("data.augment.flip_axes", [3], r"data\.augment\.flip_axes\.0: "),
        ("autoencoder", {"kind": "gan"}, "autoencoder: .*'gan'.*'vq', 'kl', 'fsq'"),
        ("autoencoder", {"kind": "kl", "trunk": {"kind": "strided"}}, "trunk: .*'strided'.*'space_to_depth', 'resnet'"),
        ("autoencoder", {"kind": "kl", "latent_channels": 65}, "latent_channels 65 is more than the 64 values"),
        ("crop", [16, 16, 6], r"crop .*: each axis takes a multiple of the downsampling"),
        ("crop", [160, 16, 16], "crop .*at most the grid's"),
        ("autoencoder", {"kind": "vq", "downsampling": 3}, r"autoencoder\.downsampling"),
        ("autoencoder", {"kind": "vq", "downsampling": [4, 4, 3]}, "autoencoder: downsampling"),
        (
            "autoencoder",
            {"kind": "kl", "downsampling": 8, "trunk": {"kind": "resnet"}},
            r"autoencoder: trunk\.channels has 2 entries.* needs 3",
        ),
        ("autoencoder", {"kind": "vq", "latent_channels": 7}, "latent_channels 7 does not divide into 2 codebooks"),
        (
            "autoencoder",
            {"kind": "kl", "trunk": {"kind": "resnet"}, "downsampling": [4, 4, 2]},
            "use trunk space_to_depth",
        ),
        ("loss.lesion_weight", 0.5, r"loss\.lesion_weight: "),
        ("loss.perceptual", {"weight": 1}, r"loss\.perceptual\.path: Field required"),
    ],
)
def test_impossible_values_are_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(AutoencoderRun, changed(AUTOENCODER, key, value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("denoiser.attention", [True], "denoiser: attention has 1 entries, channels has 2"),
        ("denoiser.channels", [64, 100], r"denoiser: channels \[100\] must be multiples"),
        ("diffusion.condition_dropout", 1.1, r"diffusion\.condition_dropout: "),
        ("diffusion.shift", "big", r"diffusion\.shift"),
        ("diffusion", {"prediction": "epsilon"}, "diffusion: prediction: epsilon with schedule: rectified"),
        (
            "sampling.scheduler",
            "magic",
            r"sampling\.scheduler: unknown scheduler 'magic': choose one of ddim, dpmpp_2m",
        ),
        ("sampling.scheduler", "ddpm", r"scheduler ddpm is refused: .*use ddim"),
        ("sampling.scheduler", "pndm", r"scheduler pndm is refused: .*use unipc"),
        ("sampling.scheduler", "lcm", r"scheduler lcm is refused: .*distilled"),
        ("sampling", {"scheduler": "ddim", "shift": 2}, r"sampling\.shift 2: scheduler ddim takes none"),
        ("sampling.shift", 0, r"sampling\.shift"),
        ("sampling.guidance_interval", [0, 2], r"sampling\.guidance_interval\.1: "),
        ("autoencoder", None, "autoencoder: "),
    ],
)
def test_impossible_values_of_a_diffusion_run_are_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(LdmRun, changed(LDM, key, value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.train", [], r"data\.train: "),
        ("data.train.0.patients", 0, r"data\.train\.0\.patients: "),
        ("data.train.0.split", "all", r"data\.train\.0\.split: .*'train', 'val' or 'test'"),
        ("data.grid.shape", [18, 16, 16], r"data\.grid\.shape .*unet: .*multiple of 8 .*at least 16.*\(24, 16, 16\)"),
        ("data.grid.shape", [8, 16, 16], r"data\.grid\.shape .*at least 16"),
        ("network", {"kind": "vnet"}, "network: .*'vnet'.*'unet', 'dynunet', 'swin_unetr'"),
        ("network", {"kind": "swin_unetr"}, r"does not suit swin_unetr: .*multiple of 32 .*\(64, 64, 64\)"),
        ("network", {"kind": "dynunet", "channels": [8, 8]}, r"network\.channels: "),
        ("network.channels", [8], r"network\.channels: "),
        ("network.dropout", 1.5, r"network\.dropout: "),
        ("loss", {"dice_weight": 0, "ce_weight": 0}, "loss: .*both 0"),
        ("inference.overlap", 1, r"inference\.overlap: .*less than 1"),
    ],
)
def test_impossible_values_of_a_segmenter_are_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(SegmenterRun, changed(SEGMENTER, key, value))


RUNS = ("AutoencoderRun", "LdmRun", "GanRun", "MaskRun", "SegmenterRun", "ExtractorRun")


@pytest.mark.parametrize("name", RUNS)
def test_the_run_of_a_configuration_is_found(name: str) -> None:
    kind = sections()[name]
    assert config.run_of(CHANGED[name]) is kind
    assert config.run_of(json.loads(build(kind, CHANGED[name]).model_dump_json())) is kind  # as a run folder keeps it
    assert config.run_of({**CHANGED[name], "trian": {"images": 5}}) is kind  # mistakes are for its loader to name


@pytest.mark.parametrize(("kind", "values"), [(AutoencoderRun, AUTOENCODER), (LdmRun, LDM), (SegmenterRun, SEGMENTER)])
def test_the_run_of_a_configuration_that_names_no_kind_is_found(kind: Any, values: dict[str, Any]) -> None:
    assert config.run_of(values) is kind


def test_every_kind_belongs_to_one_run() -> None:
    tags = [tag for run in config.RUNS for section in run.model_fields for tag in members(run, section)]
    assert len(tags) == len(set(tags)) > 15


@pytest.mark.parametrize(
    ("kind", "key", "message"),
    [
        ("GanRun", "generator.layer", r"unknown key generator\.layer, did you mean layers\?"),
        ("GanRun", "discriminator.chanels", r"unknown key discriminator\.chanels, did you mean channels\?"),
        ("MaskRun", "generator.sampling.spraed", r"unknown key generator\.sampling\.spraed, did you mean spread\?"),
        ("UtilityStudy", "arms.more.dosis", r"unknown key arms\.more\.dosis, did you mean dose\?"),
    ],
)
def test_tags_of_unions_are_no_part_of_a_key(kind: str, key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(sections()[kind], changed(CHANGED[kind], key, 1))


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build(AutoencoderRun, {"run": "r", "train": {"lr": -1}, "tran": 1})
    assert all(fault in str(caught.value) for fault in ("train.lr: ", "data: Field required", "unknown key tran,"))


def test_settings_of_the_default_autoencoder_need_no_kind() -> None:
    """Leaving the section out gives a KL one, so changing one number of it must too."""
    run = build(AutoencoderRun, {**AUTOENCODER, "autoencoder": {"kl_weight": 1e-3, "trunk": {"width": 8}}})
    assert run.autoencoder == config.KLConfig(kl_weight=1e-3, trunk=config.SpaceToDepthConfig(width=8))


def test_overrides(tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", AUTOENCODER)
    changes = ["train.lr=3e-4", "train.betas=[0.5, 0.6]", "data.framing.crop=lesion", "seed=9", "init_from=null",
               "autoencoder={kind: kl, latent_channels: 3}", "run=out=put"]  # fmt: skip
    got = load(AutoencoderRun, file, changes)
    assert got.train.lr == 3e-4
    assert got.train.betas == (0.5, 0.6)
    assert got.data.framing.crop == "lesion"
    assert got.seed == 9
    assert got.autoencoder == config.KLConfig(latent_channels=3)
    assert got.run == Path("out=put")
    assert got.data.grid == load(AutoencoderRun, file).data.grid


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.images", "'train.images' is not key=value"),
        ("=3", "'=3' is not key=value"),
        ("run.images=3", "run is a value, not a section"),
        ("train.images=[1", "is not a YAML value"),
        ("train.imagse=3", r"unknown key train\.imagse, did you mean images"),
    ],
)
def test_wrong_overrides_are_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(AutoencoderRun, write(tmp_path / "c.yaml", AUTOENCODER), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"run: [1, 2", r"c\.yaml is not readable YAML \(.*line 1"),
        (b"- run\n- data\n", r"c\.yaml holds list"),
        (b"", r"c\.yaml holds NoneType"),
        (b"\xff\xfe\x00", r"c\.yaml is not readable YAML"),
    ],
)
def test_files_that_hold_no_configuration(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "c.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(AutoencoderRun, tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)  # the command prints one line


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml does not exist"):
        load(AutoencoderRun, tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="not readable"):
        load(AutoencoderRun, tmp_path)


HELP = """
import contextlib, io, sys
import latentsynth
print(sorted(latentsynth.__all__)[0], "torch" in sys.modules)
import click, typer
from latentsynth.cli import main
from latentsynth.cli.app import app

def walk(command, path):
    yield path
    for name, sub in getattr(command, "commands", {}).items():
        yield from walk(sub, [*path, name])

commands = list(walk(typer.main.get_command(app), []))
runs = [[*path, "--help"] for path in commands]
runs += [["train", "autoencoder", sys.argv[1], "--check"], ["train", "ldm", sys.argv[2], "--check"]]
for run in runs:
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            main(run)
    except SystemExit as end:
        assert not end.code, (run, end.code)
    print(" ".join(run), len(out.getvalue()) > 40, "torch" in sys.modules)
"""


def test_help_and_check_wait_for_nothing_heavy(tmp_path: Path) -> None:
    files = [str(write(tmp_path / name, v)) for name, v in (("a.yaml", AUTOENCODER), ("b.yaml", LDM))]
    got = subprocess.run([sys.executable, "-c", HELP, *files], capture_output=True, text=True, check=False)
    assert got.returncode == 0, got.stderr
    lines = got.stdout.splitlines()
    assert lines[0].endswith(" False")
    assert len(lines) > 12
    assert any(line.startswith("evaluate reconstruction --help") for line in lines)
    assert [line for line in lines[1:] if not line.endswith("True False")] == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lr=true", r"train\.lr: expected a number, not true or false"),
        ("train.betas=[true, 0.9]", r"train\.betas\.0: expected a number, not true or false"),
        ("train.images=true", r"train\.images: expected a number, not true or false"),
        ("data.grid.windows=[{kind: fixed, low: -.inf, high: 240}]", r"windows\.0.*finite"),
        ("data.grid.windows=[{kind: fixed, low: -160, high: .inf}]", r"windows\.0.*finite"),
        ("data.grid.spacing_mm=[1, 1, .inf]", r"spacing_mm"),
        ("train.lr=.inf", r"train\.lr: .*finite"),
        ("train.lr=2024-13-45", r"train\.lr: .*number"),
        ("seed=-1", r"seed: .*greater than or equal to 0"),
        ("seed=18446744073709551616", r"seed: .*less than 9223372036854775808"),
        ("train={lr: 1, lr: 2}", "key 'lr' stands twice"),
        ("seed=!!timestamp 2024-13-45", "not a YAML value"),
    ],
)
def test_values_that_python_would_take_for_others_are_refused_by_name(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load(AutoencoderRun, VQ, [override])
    assert "\n" not in str(caught.value)


def test_a_date_is_a_name_like_any_other() -> None:
    assert load(AutoencoderRun, VQ, ["run=2024-01-02"]).run == Path("2024-01-02")
