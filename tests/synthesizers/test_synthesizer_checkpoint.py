"""A checkpoint comes back as it was saved; whatever was damaged or exchanged is refused."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import AUTOENCODERS, tiny_model
from safetensors.torch import load_file, save_file

from latentsynth import checkpoint
from latentsynth.data.volumes import one_hot
from latentsynth.errors import CheckpointError, LatentsynthError
from latentsynth.provenance import Ledger
from latentsynth.synthesizers import LatentDiffusion, load_synthesizer
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


def reseal(folder: Path) -> None:
    """Renews the fingerprints in the header, so that only the strict loader of the parts can object."""
    parts = {name: checkpoint.part_fingerprint(folder / name) for name in ("autoencoder", "conditioner", "denoiser")}
    edit(folder / "config.json", lambda value: value.update(parts=parts))


def condition(model: LatentDiffusion) -> Condition:
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
    model.shift = 2.0
    assert model.save(tmp_path / "shifted", Ledger(), {}).fingerprint != first
    model.shift = 1.0
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


def part_config(part: str, **changes: Any) -> Callable[[Path], None]:
    """Changes keys of a part's config; None removes one."""

    def fault(folder: Path) -> None:
        file = folder / part / "config.json"
        value = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({key: v for key, v in value.items() if v is not None}))
        reseal(folder)

    return fault


def another_target(folder: Path) -> None:
    edit(folder / "denoiser" / "config.json", lambda value: value.update(prediction="x0"))


def header(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda value: value.update(changes))


def nested(section: str, key: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda found: found[section].update({key: value}))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing tensor": (drop_tensor, "missing tensor"),
    "unexpected tensor": (add_tensor, "unexpected tensor stowaway"),
    "tensor of another shape": (reshape_tensor, "latent_std has shape"),
    "pickle": (pickle_weights, "a pickle, which can run code"),
    "truncated weights": (truncate, "weights are damaged"),
    "truncated weights, as copied": (
        lambda folder: (folder / "denoiser" / WEIGHTS).write_bytes(b"\x08" * 100),
        "fingerprint",
    ),
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
    "format changed": (header(format="latentsynth-checkpoint/0"), "not a checkpoint of this version"),
    "unknown key": (header(author="me"), "author"),
    "missing key": (lambda folder: edit(folder / "config.json", lambda v: v.pop("metrics")), "metrics"),
    "fingerprints removed": (header(parts={}), "part"),  # fails: an empty list of parts verifies nothing
    "unknown setting": (nested("settings", "sigma", 1), "sigma"),
    "unknown sampling setting": (nested("settings", "sampling", {"stepz": 3}), "stepz"),  # fails: ConfigError
    "domain damaged": (nested("domain", "labels", {"values": [0, 0], "names": ["a", "b"]}), "domain is damaged"),
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
