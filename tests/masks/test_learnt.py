"""Loading trained makers: whatever family, strictly, and in the right place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_model

from latentsynth import checkpoint
from latentsynth.config import GanSamplingConfig, LabelSamplingConfig, ProgressiveGANConfig
from latentsynth.errors import CheckpointError, ConfigError, DataError
from latentsynth.gans import build_generator
from latentsynth.masks import LabelMap, Wanted
from latentsynth.masks.label_vae import LabelVAE, LabelVAEMaker
from latentsynth.masks.learnt import FAMILIES, load_mask_maker
from latentsynth.masks.mask_gan import MaskGANMaker
from latentsynth.provenance import Ledger
from latentsynth.synthesizers import load_synthesizer
from latentsynth.types import Domain, Framing, Grid, Labels

SHAPE, SPACING = (8, 16, 12), (4.0, 3.0, 5.0)
LABELS = Labels((0, 2, 5), ("background", "organ", "lesion"))
AFFINE = np.array([[4.0, 0, 0, -90], [0, 3, 0, -125], [0, 0, 5, -71], [0, 0, 0, 1]])


def common(lesions: tuple[int, ...] = (5,)) -> dict[str, Any]:
    domain = Domain(Grid(SHAPE, SPACING), Framing(lesion_labels=lesions), LABELS, (), ())
    return {"domain": domain, "affine": AFFINE, "volume_ml": (2.0, 10.0)}


def vae_maker(shape: tuple[int, ...] = SHAPE) -> LabelVAEMaker:
    torch.manual_seed(0)
    vae = LabelVAE(shape, 3, (4, 4), 8, 3).eval()
    with torch.no_grad():
        vae.decoder[-1].weight.mul_(20)  # so that every label occurs
    return LabelVAEMaker(**common(), sampling=LabelSamplingConfig(), vae=vae)


def gan_maker(spatial_dims: int = 3) -> MaskGANMaker:
    torch.manual_seed(0)
    axis = 1 if spatial_dims == 2 else None
    shape = [n for at, n in enumerate(SHAPE) if at != axis]
    config = ProgressiveGANConfig(form="mask_only", channels=4, max_channels=8, latent=8)
    generator = build_generator(config, shape, 3, 0, axis is not None).eval()
    return MaskGANMaker(
        **common(), sampling=GanSamplingConfig(), generator=generator, coding="one_hot", slice_axis=axis
    )


@pytest.mark.parametrize("make", [vae_maker, gan_maker, lambda: gan_maker(2)], ids=["vae", "gan", "gan of slices"])
def test_any_family_comes_back_and_makes_the_same_masks(make: Any, tmp_path: Path) -> None:
    maker = make()
    header = maker.save(tmp_path / "c", Ledger(frozenset({"p"})), {"loss": 1.0})
    again = load_mask_maker(tmp_path / "c")
    assert type(again) is type(maker)
    assert again.fingerprint == header.fingerprint
    assert again.ledger.patients == {"p"}
    assert again.volume_ml == (2.0, 10.0)
    for one, other in zip(again.make([3, 4], Wanted()), maker.make([3, 4], Wanted()), strict=True):
        assert isinstance(one, LabelMap)
        assert np.array_equal(one.values, other.values)
        assert np.array_equal(one.affine, AFFINE)
        assert one.values.shape == SHAPE
        assert set(np.unique(one.values)) <= {0, 2, 5}
        assert one.parents == ()


def test_every_family_has_a_name_of_its_own() -> None:
    assert len({family.kind for family in FAMILIES}) == len(FAMILIES) == 4


def test_what_is_sampled_otherwise_is_named_otherwise(tmp_path: Path) -> None:
    vae_maker().save(tmp_path / "c", Ledger(), {})
    plain, same, other = (load_mask_maker(tmp_path / "c", **s) for s in ({}, {"spread": 1.0}, {"spread": 0.5}))
    assert plain.fingerprint == same.fingerprint != other.fingerprint
    assert not np.array_equal(plain.make([0], Wanted())[0].values, other.make([0], Wanted())[0].values)
    with pytest.raises(ConfigError, match="unknown key exact_volume"):
        load_mask_maker(tmp_path / "c", exact_volume=True)
    with pytest.raises(ConfigError, match="spread"):
        load_mask_maker(tmp_path / "c", spread=-1)


def test_what_is_no_mask_generator_is_refused(tmp_path: Path) -> None:
    model = tiny_model("kl")
    model.save(tmp_path / "ldm", Ledger(), {})
    with pytest.raises(CheckpointError, match="kind latent_diffusion, which makes no masks alone"):
        load_mask_maker(tmp_path / "ldm")
    vae_maker().save(tmp_path / "vae", Ledger(), {})
    with pytest.raises(CheckpointError, match="kind label_vae, which makes no volumes"):
        load_synthesizer(tmp_path / "vae")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_mask_maker(tmp_path / "nowhere")


def test_altered_checkpoints_are_refused(tmp_path: Path) -> None:
    def altered(name: str, change: Any) -> Path:
        vae_maker().save(tmp_path / name, Ledger(), {})
        file = tmp_path / name / "config.json"
        value = json.loads(file.read_text())
        change(value["settings"])
        value["checksum"] = checkpoint.checksum(value)
        file.write_text(json.dumps(value))
        return tmp_path / name

    with pytest.raises(CheckpointError, match="has settings"):
        load_mask_maker(altered("more", lambda s: s.update(slice_axis=1)))
    impossible = {
        "affine": (None, "here", [[1.0] * 4] * 3, [[1.0] * 4] * 4, [["1", 0, 0, 0]] * 4, [[float("nan")] * 4] * 4),
        "volume_ml": (None, [1.0], [2.0, 1.0], [-1.0, 1.0], [0.0, float("inf")]),
    }
    for n, (name, value) in enumerate((name, value) for name, values in impossible.items() for value in values):
        with pytest.raises(CheckpointError, match=rf"{name}|NaN|Infinity") as caught:
            load_mask_maker(altered(str(n), lambda s, name=name, value=value: s.update({name: value})))
        assert "\n" not in str(caught.value)
    vae_maker((8, 16, 8)).save(tmp_path / "grid", Ledger(), {})
    with pytest.raises(CheckpointError, match=r"grid is \(8, 16, 8\), expected \(8, 16, 12\)"):
        load_mask_maker(tmp_path / "grid")
    weights = next((altered("weights", lambda s: None) / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))
    with pytest.raises(CheckpointError, match="part vae has fingerprint"):
        load_mask_maker(tmp_path / "weights")


def test_indices_become_label_values_and_label_maps_indices_whatever_their_axes(tmp_path: Path) -> None:
    maker = vae_maker()
    index = np.zeros(SHAPE, np.uint8)
    index[2:5, 3:9, 4:6] = 1
    index[3, 4:6, 4] = 2
    made = maker.placed("x", index)
    assert np.array_equal(made.values, np.array([0, 2, 5])[index])
    assert made.volume_ml(maker.lesions) == pytest.approx(2 * np.prod(SPACING) / 1000)
    back, affine = maker.laid(made)
    assert np.array_equal(back, index)
    assert np.allclose(affine, AFFINE)
    # The same map with its axes in another order and one of them reversed.
    turned = np.flip(made.values.transpose(2, 0, 1), 1)
    order = np.zeros((4, 4))
    order[2, 0] = order[1, 2] = order[3, 3] = 1
    order[0, 1], order[0, 3] = -1, SHAPE[0] - 1
    again, _ = maker.laid(LabelMap("turned", turned, AFFINE @ order))
    assert np.array_equal(again, index)


def test_what_is_out_of_reach_says_what_is_not() -> None:
    maker = vae_maker()
    assert maker.within_reach((0.0, 100.0)) == (1.0, 20.0)
    assert maker.within_reach((3.0, 4.0)) == (3.0, 4.0)
    for far in ((0.0, 0.9), (21.0, 30.0)):
        with pytest.raises(DataError, match=r"learnt from hold 2 to 10 ml and its grid 92\.16 ml; ask for 1 to 20 ml"):
            maker.within_reach(far)
    maker.volume_ml = (2.0, 90.0)
    assert maker.within_reach((50.0, 500.0)) == (50.0, pytest.approx(92.16))
