"""A checkpoint comes back as it was saved; whatever was damaged or exchanged is refused."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import AUTOENCODERS, MAKERS, PAINTERS, tiny_gan, tiny_generator, tiny_latent_gan, tiny_model
from safetensors.torch import load_file, save_file

from latentsynth import checkpoint
from latentsynth.config import GanSamplingConfig, LatentGANConfig, Pix2PixConfig, StyleGAN2Config
from latentsynth.data.cache.volumes import one_hot
from latentsynth.errors import CheckpointError, LatentsynthError
from latentsynth.provenance import Ledger
from latentsynth.synthesizers import GAN, LatentDiffusion, LatentGAN, Synthesizer, load_synthesizer
from latentsynth.types import Condition

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, model_of: Callable[[str], LatentDiffusion]) -> Path:
    """A run folder with one checkpoint; tests work on copies."""
    run = tmp_path_factory.mktemp("run")
    model_of("kl").save(run / "checkpoint", Ledger(frozenset({"ab"}), frozenset({"cd"})), {"loss": 0.5})
    return run


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "checkpoint", tmp_path / "checkpoint"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def forge(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Alters a header as somebody would on purpose: with a checksum that fits."""

    def renewed(value: dict[str, Any]) -> None:
        change(value)
        value["checksum"] = checkpoint.checksum(value)

    edit(folder / "config.json", renewed)


def reseal(folder: Path) -> None:
    """Renews the hashes of parts too, so that only their strict loader can object."""
    forge(folder, lambda value: value.update(
        parts={name: checkpoint.part_fingerprint(folder / name) for name in value["parts"]}
    ))  # fmt: skip


def condition(model: Synthesizer) -> Condition:
    index = torch.zeros(2, *model.grid.shape)
    index[:, 4:10, 3:12, 6:11] = 2
    return Condition(one_hot(index, 3))


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_saved_and_loaded_volumes_are_identical(
    kind: str, tmp_path: Path, model_of: Callable[[str], LatentDiffusion]
) -> None:
    model = model_of(kind)
    header = model.save(tmp_path / "checkpoint", Ledger(), {})
    for source, load in ((tmp_path, load_synthesizer), (tmp_path / "checkpoint", LatentDiffusion.from_pretrained)):
        again = load(source)
        assert torch.equal(
            again.generate(condition(model), [1, 2]).image, model.generate(condition(model), [1, 2]).image
        )
        assert again.domain == model.domain
        assert again.settings() == model.settings()
        assert again.fingerprint == header.fingerprint != "unsaved"


def test_a_copy_of_the_folder_is_the_same_model(saved: Path, copied: Path) -> None:
    assert LatentDiffusion.from_pretrained(copied).fingerprint == load_synthesizer(saved).fingerprint
    assert checkpoint.read_ledger(copied) == Ledger(frozenset({"ab"}), frozenset({"cd"}))


def test_the_fingerprint_names_weights_and_settings(tmp_path: Path, saved: Path) -> None:
    first = checkpoint.read_header(saved / "checkpoint").fingerprint
    model = tiny_model("kl")
    assert model.save(tmp_path / "same", Ledger(), {"loss": 9.0}).fingerprint == first
    settings = model.sampling
    assert settings.shift == 0.33  # the scheduler's best, as a number
    model.sampling = settings.model_copy(update={"shift": 2.0})
    assert model.save(tmp_path / "shifted", Ledger(), {}).fingerprint != first
    model.sampling = settings
    with torch.no_grad():
        next(model.denoiser.parameters()).view(-1)[0] += 1e-3
    assert model.save(tmp_path / "trained", Ledger(), {}).fingerprint != first


def test_loading_and_saving_again_changes_nothing(tmp_path: Path, saved: Path) -> None:
    """Where a model came from is no property of it, and a path has no place in what is shared."""
    again = LatentDiffusion.from_pretrained(saved)
    assert again.save(tmp_path / "again", Ledger(), {}).fingerprint == again.fingerprint
    for file in (tmp_path / "again").rglob("*.json"):
        assert str(saved) not in file.read_text(), file


def drop_tensor(folder: Path) -> None:
    state = load_file(folder / "denoiser" / WEIGHTS)
    state.pop(sorted(state)[3])
    save_file(state, folder / "denoiser" / WEIGHTS)
    reseal(folder)


def add_tensor(folder: Path) -> None:
    state = load_file(folder / "denoiser" / WEIGHTS)
    save_file({**state, "stowaway": torch.zeros(1)}, folder / "denoiser" / WEIGHTS)
    reseal(folder)


def reshape_tensor(folder: Path) -> None:
    state = load_file(folder / "autoencoder" / WEIGHTS)
    state["latent_std"] = torch.ones(5)
    save_file(state, folder / "autoencoder" / WEIGHTS)
    reseal(folder)


def pickle_weights(folder: Path) -> None:
    state = load_file(folder / "denoiser" / WEIGHTS)
    torch.save(state, folder / "denoiser" / "diffusion_pytorch_model.bin")
    (folder / "denoiser" / WEIGHTS).unlink()
    reseal(folder)


def truncate(folder: Path) -> None:
    file = folder / "denoiser" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1000])
    reseal(folder)


def poison(value: float) -> Callable[[Path], None]:
    """One weight of a thousand; the samples would still look plausible."""

    def fault(folder: Path) -> None:
        state = load_file(folder / "denoiser" / WEIGHTS)
        next(tensor for tensor in state.values() if tensor.ndim > 1).view(-1)[7] = value
        save_file(state, folder / "denoiser" / WEIGHTS)
        reseal(folder)

    return fault


def swap(folder: Path) -> None:
    """Weights of the same architecture, from another training."""
    state = load_file(folder / "denoiser" / WEIGHTS)
    save_file(
        {name: tensor * 1.5 if tensor.is_floating_point() else tensor for name, tensor in state.items()},
        folder / "denoiser" / WEIGHTS,
    )


def part_config(part: str, **changes: Any) -> Callable[[Path], None]:
    """Changes keys of a part's config; None removes one."""

    def fault(folder: Path) -> None:
        file = folder / part / "config.json"
        value = {**json.loads(file.read_text()), **changes}
        removed = {key for key, v in changes.items() if v is None}
        file.write_text(json.dumps({key: v for key, v in value.items() if key not in removed}))
        reseal(folder)

    return fault


def another_target(folder: Path) -> None:
    edit(folder / "denoiser" / "config.json", lambda value: value.update(prediction="x0"))


def header(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: forge(folder, lambda value: value.update(changes))


def nested(section: str, key: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: forge(folder, lambda found: found[section].update({key: value}))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing tensor": (drop_tensor, "missing tensor"),
    "unexpected tensor": (add_tensor, "unexpected tensor stowaway"),
    "tensor of another shape": (reshape_tensor, "latent_std has shape"),
    "pickle": (pickle_weights, "a pickle, which can run code"),
    "truncated weights": (truncate, r"safetensors is damaged"),
    "truncated weights, as copied": (
        lambda folder: (folder / "denoiser" / WEIGHTS).write_bytes(b"\x08" * 100),
        "fingerprint",
    ),
    "weights that are not numbers": (poison(torch.nan), "tensor .* holds NaN or infinity"),
    "infinite weights": (poison(torch.inf), "tensor .* holds NaN or infinity"),
    "weights of another training": (swap, "part denoiser has fingerprint .* do not fit together"),
    "part that cannot be": (part_config("denoiser", channels="wide"), "no Denoiser can be made of it"),
    "part that was added": (
        lambda folder: shutil.copytree(folder / "denoiser", folder / "other"),
        "part other, which was not saved with it",
    ),
    "ledger edited": (
        lambda folder: (folder / "ledger.json").write_text('{"patients": [], "voxels": []}'),
        "ledger.json has fingerprint",
    ),
    "no ledger": (lambda folder: (folder / "ledger.json").unlink(), "ledger.json has fingerprint nothing"),
    "no part": (lambda folder: shutil.rmtree(folder / "denoiser"), "part denoiser has fingerprint nothing"),
    "unknown key of a part": (part_config("denoiser", dropout=0.1), "dropout.* unknown for Denoiser"),
    "missing key of a part": (part_config("denoiser", prediction=None), "prediction.* missing for Denoiser"),
    "class from elsewhere": (part_config("denoiser", _class_name="UNet3DConditionModel"), "UNet3DConditionModel"),
    "class of another part": (part_config("autoencoder", _class_name="Denoiser"), "KLAutoencoder, VQAutoencoder"),
    "class that is abstract": (part_config("autoencoder", _class_name="Autoencoder"), "expected one of"),
    "no class": (part_config("conditioner", _class_name=None), "names class None"),
    "conditioner of other labels": (part_config("conditioner", labels=4), "conditioner labels is 4, expected 3"),
    "other cells": (part_config("conditioner", factors=[2, 2, 2]), "conditioner factors"),
    "another target": (another_target, "part denoiser has fingerprint"),
    "kind changed": (header(kind="autoencoder"), "kind autoencoder"),
    "format changed": (header(format="latentsynth-checkpoint/0"), "checkpoint/0, expected latentsynth-checkpoint/"),
    "unknown key": (header(author="me"), "author"),
    "missing key": (lambda folder: forge(folder, lambda v: v.pop("metrics")), "metrics"),
    "fingerprints removed": (header(parts={}), "part"),  # fails: an empty list of parts verifies nothing
    "unknown setting": (nested("settings", "sigma", 1), "sigma"),
    "unknown sampling setting": (nested("settings", "sampling", {"stepz": 3}), "stepz"),  # fails: ConfigError
    "domain damaged": (
        nested("domain", "labels", {"values": [0, 0], "names": ["a", "b"]}),
        r"domain\.labels.*must ascend",
    ),
    "domain that is nothing": (header(domain=None), "domain: "),
    "domain incomplete": (
        lambda folder: forge(folder, lambda v: v["domain"]["framing"].pop("fit")),
        "domain is incomplete",
    ),
    "unknown key of the domain": (nested("domain", "colour", "red"), r"domain\.colour"),
    "unknown crop": (
        lambda folder: forge(folder, lambda v: v["domain"]["framing"].update(crop="evil")),
        r"framing\.crop.*'evil'",
    ),
    "a switch for a length": (
        lambda folder: forge(folder, lambda v: v["domain"]["grid"].update(shape=[True, 16, 16])),
        r"grid\.shape\.0",
    ),
    "text for a length": (
        lambda folder: forge(folder, lambda v: v["domain"]["grid"].update(shape=["16", 16, 16])),
        r"grid\.shape\.0",
    ),
    "limits that are not numbers": (nested("domain", "limits", [[float("nan"), 1.0]]), r"config\.json.*(limits|NaN)"),
    "infinite limits": (nested("domain", "limits", [[0.0, float("inf")]]), r"config\.json.*(limits|Infinity)"),
    "limits upside down": (nested("domain", "limits", [[300.0, -100.0]]), "expected one ascending pair"),
    "limits of two channels": (nested("domain", "limits", [[0.0, 1.0], [0.0, 1.0]]), "expected one ascending pair"),
    "no limits": (nested("domain", "limits", []), "expected one ascending pair"),
    "parts that are nothing": (header(parts=None), "parts: "),
    "parts in a list": (header(parts=["denoiser"]), "parts: "),
    "part outside the folder": (nested("parts", "../denoiser", "0" * 16), r"parts\.\.\./denoiser"),
    "part without hash": (nested("parts", "denoiser", None), r"parts\.denoiser"),
    "scores that are not numbers": (header(metrics={"loss": float("nan")}), r"config\.json.*(metrics|NaN)"),
    "scores in words": (header(metrics={"loss": "good"}), r"metrics\.loss"),
    "settings that are nothing": (header(settings=None), "settings: "),
    "kind that is nothing": (header(kind=None), "kind: "),
    "shift that is not a number": (
        lambda folder: forge(folder, lambda v: v["settings"]["sampling"].update(shift=float("nan"))),
        r"config\.json.*(shift|NaN)",
    ),
    "steps of the sampler in words": (
        lambda folder: forge(folder, lambda v: v["settings"]["sampling"].update(steps="few")),
        "steps",
    ),
    "not JSON": (lambda folder: (folder / "config.json").write_text('{"format": '), "config.json"),  # fails: DataError
    "not an object": (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
    "no header": (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.usefixtures("no_network")
def test_a_damaged_checkpoint_is_refused(copied: Path, name: str) -> None:
    LatentDiffusion.from_pretrained(copied)
    fault, words = FAULTS[name]
    fault(copied)
    with pytest.raises(CheckpointError, match=words) as caught:
        LatentDiffusion.from_pretrained(copied)
    assert "\n" not in str(caught.value)


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "crop": lambda value: value["domain"]["framing"].update(crop="whole"),
    "limits": lambda value: value["domain"].update(limits=[[0.0, 1.0]]),
    "name of a label": lambda value: value["domain"]["labels"]["names"].__setitem__(1, "nothing"),
    "sampling": lambda value: value["settings"]["sampling"].update(steps=1),
    "score": lambda value: value["metrics"].update(loss=0.1),
    "hash of the ledger": lambda value: value.update(ledger="0" * 16),
    "checksum": lambda value: value.update(checksum="0" * 16),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_header_edited_by_hand_is_refused(copied: Path, name: str) -> None:
    """Every value is possible by itself; what it says is not what was saved."""
    edit(copied / "config.json", EDITS[name])
    for load in (LatentDiffusion.from_pretrained, load_synthesizer):
        with pytest.raises(CheckpointError, match="was edited since it was written"):
            load(copied)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_every_file_has_the_mode_of_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        tiny_model("kl").save(tmp_path / "checkpoint", Ledger(), {})
    finally:
        os.umask(before)
    for path in [tmp_path / "checkpoint", *(tmp_path / "checkpoint").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


def test_parts_of_two_checkpoints_do_not_mix(copied: Path, tmp_path: Path) -> None:
    tiny_model("kl", seed=1).save(tmp_path / "other", Ledger(), {})
    shutil.rmtree(copied / "autoencoder")
    shutil.copytree(tmp_path / "other" / "autoencoder", copied / "autoencoder")
    with pytest.raises(CheckpointError, match=r"part autoencoder has fingerprint .* do not fit together"):
        LatentDiffusion.from_pretrained(copied)
    with pytest.raises(CheckpointError, match="do not fit together"):
        load_synthesizer(copied)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("load", [LatentDiffusion.from_pretrained, load_synthesizer])
def test_a_missing_folder_is_not_looked_for_on_a_hub(load: Callable[[str], object], tmp_path: Path) -> None:
    for path in ("stabilityai/stable-diffusion-2", str(tmp_path / "nothing")):
        with pytest.raises(CheckpointError, match="does not exist: check the path"):
            load(path)


def test_other_folders_are_told_apart(tmp_path: Path, copied: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_synthesizer(tmp_path / "empty")
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        load_synthesizer(tmp_path / "early")
    header(kind="autoencoder")(copied)
    with pytest.raises(CheckpointError, match="kind autoencoder, which makes no volumes"):
        load_synthesizer(copied)


def test_a_failed_save_leaves_the_old_checkpoint(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("kl", seed=1)
    before = checkpoint.read_header(copied).fingerprint

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(model.denoiser, "save", fail)
    with pytest.raises((OSError, LatentsynthError)):
        model.save(copied, Ledger(), {})
    assert LatentDiffusion.from_pretrained(copied).fingerprint == before
    assert not list(copied.parent.glob(".partial-*"))
    monkeypatch.undo()
    assert model.save(copied, Ledger(), {}).fingerprint != before
    assert LatentDiffusion.from_pretrained(copied).fingerprint != before


# --- GANs

SHAPE = (16, 16, 8)  # slices along one axis are no slices along another
LEDGER = Ledger(frozenset({"ab"}), frozenset({"cd"}))


def gan(name: str) -> GAN | LatentGAN:
    return tiny_latent_gan() if name == "latent GAN" else tiny_gan(name, SHAPE)


@pytest.mark.parametrize("name", ["latent GAN", *PAINTERS, *MAKERS])
@pytest.mark.usefixtures("no_network")
def test_a_gan_comes_back_as_it_was_saved(name: str, tmp_path: Path) -> None:
    model = gan(name)
    truncation = 1.0 if name.startswith(("pix2pix", "CycleGAN", "progressive")) else 0.75
    model.sampling = GanSamplingConfig(truncation=truncation)
    header = model.save(tmp_path / "checkpoint", LEDGER, {"loss": 0.5})
    wanted = None if model.makes_masks else condition(model)
    made = model.generate(wanted, [1, 2])
    for source, load in ((tmp_path, load_synthesizer), (tmp_path / "checkpoint", type(model).from_pretrained)):
        again = load(source)
        assert type(again) is type(model)
        generated = again.generate(wanted, [1, 2])
        assert torch.equal(generated.image, made.image)
        assert torch.equal(generated.mask, made.mask)
        assert again.makes_masks == model.makes_masks
        assert again.domain == model.domain
        assert again.settings() == model.settings() == {"truncation": truncation}
        assert again.ledger == LEDGER
        assert again.fingerprint == header.fingerprint != "unsaved"
        assert not again.generator.training
    assert again.save(tmp_path / "again", LEDGER, {}).fingerprint == header.fingerprint


def test_the_fingerprint_of_a_gan_names_weights_and_settings(tmp_path: Path) -> None:
    model = gan("StyleGAN 2, joint")

    def saved_as(name: str) -> str:
        return model.save(tmp_path / name, LEDGER, {}).fingerprint

    prints = [saved_as("first")]
    assert model.save(tmp_path / "same", Ledger(), {"loss": 9.0}).fingerprint == prints[0]
    model.sampling = GanSamplingConfig(truncation=0.5)
    prints.append(saved_as("truncated"))
    with torch.no_grad():
        next(model.generator.parameters()).view(-1)[0] += 1e-3
    prints.append(saved_as("trained"))
    with torch.no_grad():
        model.generator.mapping.mean[0] += 1e-3  # a buffer, which truncation pulls towards
    prints.append(saved_as("tracked"))
    assert len(set(prints)) == 4


def test_a_progressive_gan_comes_back_as_far_grown_as_it_was(tmp_path: Path) -> None:
    model = gan("progressive GAN, joint slices")
    full = model.generate(None, [1]).image
    model.generator.grow(0.5)
    made = model.generate(None, [1]).image
    assert float((made - full).abs().mean()) > 1e-2
    model.save(tmp_path / "checkpoint", LEDGER, {})
    assert torch.equal(load_synthesizer(tmp_path).generate(None, [1]).image, made)


def another_generator(make: Callable[[], Any]) -> Callable[[Path], None]:
    """Puts another generator in, and renews the fingerprints, so that only what the parts are can object."""

    def fault(folder: Path) -> None:
        make().save(folder / "generator")
        reseal(folder)

    return fault


def setting(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: forge(folder, lambda value: value["settings"].update(changes))


def without(key: str) -> Callable[[Path], None]:
    return lambda folder: forge(folder, lambda value: value["settings"].pop(key))


def exchange(folder: Path) -> None:
    """The generator of another checkpoint, as somebody would put it there who does not know of fingerprints."""
    tiny_gan("StyleGAN 2, joint", SHAPE, seed=1).generator.save(folder / "generator")


def styled(*shape: int, channels: int = 4, labels: int = 0) -> Callable[[Path], None]:
    small: dict[str, Any] = {"channels": 4, "max_channels": 8, "latent": 8, "style": 8, "mapping_layers": 2}
    return another_generator(lambda: tiny_generator(StyleGAN2Config(form="joint", **small), shape, channels, labels))


def translator(*shape: int, channels: int = 1, labels: int = 3, placed: bool = False) -> Callable[[Path], None]:
    config = Pix2PixConfig(channels=4, max_channels=8, levels=2)
    return another_generator(lambda: tiny_generator(config, shape, channels, labels, placed))


def latents(channels: int, *shape: int, labels: int = 3) -> Callable[[Path], None]:
    config = LatentGANConfig(channels=(8, 16), attention=(False, True), res_blocks=1, head_channels=8, norm_groups=4)
    return another_generator(lambda: tiny_generator(config, shape, channels, labels))


def another_autoencoder(folder: Path) -> None:
    tiny_latent_gan(seed=1).autoencoder.save(folder / "autoencoder")


JOINT, SLICES, PAINTER, ON_LATENTS = "StyleGAN 2, joint", "pix2pix, slices", "pix2pix, unet", "latent GAN"
# name -> (model, fault, words of the refusal)
GAN_FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "joint taken for a painter": (JOINT, setting(form="image_given_mask"), "generator channels is 4, expected 1"),
    "joint taken for masks": (JOINT, setting(form="mask_only"), "generator channels is 4, expected 3"),
    "painter taken for joint": (PAINTER, setting(form="joint"), "generator channels is 1, expected 4"),
    "unknown form": (JOINT, setting(form="both"), "form"),
    "slices taken for volumes": (SLICES, setting(slice_axis=None), "generator grid"),
    "volumes taken for slices": (PAINTER, setting(slice_axis=1), "generator grid"),
    "slices along another axis": (SLICES, setting(slice_axis=2), "generator grid"),
    "axis that does not exist": (PAINTER, setting(slice_axis=5), "axis"),
    "axis counted from the end": (PAINTER, setting(slice_axis=-1), "axis"),
    "axis in words": (PAINTER, setting(slice_axis="axial"), "axis"),
    "generator of another grid": (JOINT, styled(16, 16, 16), "generator grid"),
    "generator of slices": (JOINT, styled(16, 8), "generator grid"),
    "generator of other channels": (JOINT, styled(*SHAPE, channels=5), "generator channels is 5, expected 4"),
    "generator of other labels": (PAINTER, translator(*SHAPE, labels=2), "labels"),
    "generator that paints masks": (JOINT, styled(*SHAPE, labels=3), "labels"),
    "generator that takes no mask": (PAINTER, styled(*SHAPE, channels=1), "labels"),
    "unknown coding, as channels count": (JOINT, setting(coding="grey"), "coding|generator channels"),
    "unknown coding, painter": (PAINTER, setting(coding="grey"), "coding"),
    "unknown coding, grey levels": ("StyleGAN 1, joint slices", setting(coding="grey"), "coding"),
    "one coding for another": (JOINT, setting(coding="cuts"), "generator channels is 4, expected 2"),
    **{f"no {key}": (JOINT, without(key), f"has settings .*expected .*{key}") for key in
       ("sampling", "form", "coding", "slice_axis")},
    "unknown setting": (JOINT, setting(sigma=1), "sigma"),
    "unknown sampling setting": (JOINT, setting(sampling={"truncatio": 1}), "truncatio"),
    "impossible truncation": (JOINT, setting(sampling={"truncation": 2}), "truncation"),
    "exchanged generator": (JOINT, exchange, "part generator has fingerprint .* do not fit together"),
    "class of another part": (JOINT, part_config("generator", _class_name="Denoiser"), "names class 'Denoiser'"),
    "class that is abstract": (JOINT, part_config("generator", _class_name="Generator"), "Generator"),
    "no generator": (JOINT, lambda folder: shutil.rmtree(folder / "generator"), "fingerprint nothing"),
    "taken for a latent GAN": (JOINT, header(kind="latent_gan"), "kind latent_gan|binds parts"),
    "latents of other channels": (ON_LATENTS, latents(3, 4, 4, 4), "generator latents is .3, 4, 4, 4."),
    "latents of another grid": (ON_LATENTS, latents(4, 8, 4, 4), "generator latents is .4, 8, 4, 4."),
    "conditioner of other labels": (ON_LATENTS, part_config("conditioner", labels=4), "conditioner labels is 4"),
    "conditioner of finer parts": (ON_LATENTS, part_config("conditioner", detail=2), "generator labels is 3"),
    "latents of other labels": (ON_LATENTS, latents(4, 4, 4, 4, labels=2), "generator labels is 2, expected 3"),
    "exchanged autoencoder": (ON_LATENTS, another_autoencoder, "part autoencoder has fingerprint"),
    "no sampling": (ON_LATENTS, without("sampling"), "has settings .*expected sampling"),
    "foreign setting": (ON_LATENTS, setting(form="joint"), "has settings .*form"),
    "no autoencoder": (ON_LATENTS, lambda folder: shutil.rmtree(folder / "autoencoder"), "fingerprint nothing"),
    "fewer parts": (
        ON_LATENTS, lambda folder: forge(folder, lambda value: value["parts"].pop("autoencoder")),
        "part autoencoder, which was not saved with it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GAN_FAULTS)
@pytest.mark.usefixtures("no_network")
def test_a_damaged_gan_is_refused(name: str, tmp_path: Path) -> None:
    kind, fault, words = GAN_FAULTS[name]
    model = gan(kind)
    folder = tmp_path / "checkpoint"
    model.save(folder, Ledger(), {})
    type(model).from_pretrained(folder)
    fault(folder)
    for load in (type(model).from_pretrained, load_synthesizer):
        with pytest.raises(CheckpointError, match=words) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def test_one_kind_of_gan_is_not_taken_for_another(tmp_path: Path) -> None:
    gan(JOINT).save(tmp_path / "voxels", Ledger(), {})
    gan(ON_LATENTS).save(tmp_path / "latents", Ledger(), {})
    with pytest.raises(CheckpointError, match="kind latent_gan, expected gan"):
        GAN.from_pretrained(tmp_path / "latents")
    with pytest.raises(CheckpointError, match="kind gan, expected latent_gan"):
        LatentGAN.from_pretrained(tmp_path / "voxels")
    with pytest.raises(CheckpointError, match="kind gan, expected latent_diffusion"):
        LatentDiffusion.from_pretrained(tmp_path / "voxels")
