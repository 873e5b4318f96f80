"""A run goes on from its newest sound state, to the bit; damage is passed over aloud, and nothing in a state is run."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentsynth.config import Run
from latentsynth.data.cache.loading import Positions
from latentsynth.errors import CheckpointError, TrainingError
from latentsynth.training import loop, state
from latentsynth.training.loop import Hooks, Player, _Training, fit, start_training
from latentsynth.training.run import RunFolder, read_metrics

SILENT = Hooks(lambda modules: {"score": 1.0}, lambda modules, path: None, lambda modules, scores: None)


def noisy_loss(name: str) -> Callable[..., Any]:
    """Draws from every global generator, and remembers numbers and tensors."""

    def call(modules: Any, batch: Any, memory: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        drawn = float(torch.rand(())) + random.random() + random.gauss(0, 1) + float(np.random.normal())
        made = modules[name](batch["x"] + drawn)
        memory.setdefault("pool", []).append(made.detach().mean())
        memory["mean"] = 0.9 * memory.get("mean", 0.0) + 0.1 * float(torch.stack(memory["pool"]).mean())
        return (made - memory["mean"]).square().mean(), {}

    return call


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1))


def train(folder: Path, images: int = 16) -> dict[str, Tensor]:
    """Trains two players with averages in one go, or goes on; returns all weights and memories."""
    train = {"images": images, "batch": 4, "lr": 0.1, "lr_warmup_images": 0, "lr_schedule": "constant"}
    train |= {"log_every_images": 4, "save_every_images": 4, "ema_halflife_images": 8}
    config = Run.model_validate({"run": folder, "train": train})
    run = RunFolder(config, start_training(config.train))
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    players = [Player("a", {"a": network()}, noisy_loss("a"), 0.1), Player("b", {"b": network()}, noisy_loss("b"), 0.1)]
    kept: dict[str, Tensor] = {}

    def export(modules: Any, scores: Any) -> None:
        kept.update({f"average/{k}": v.clone() for k, v in modules["a"].state_dict().items()})

    try:
        hooks = Hooks(SILENT.validate, SILENT.sketch, export)
        fit(players, Positions(lambda n: {"x": torch.full((3,), float(n))}, 8, 0), run, config.train, hooks)
    finally:
        run.close()
    for player in players:
        kept |= {f"{player.name}/{k}": v for k, v in player.modules[player.name].state_dict().items()}
        kept[f"{player.name}/memory"] = torch.tensor([player.state["mean"], *player.state["pool"]])
    return kept


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return train(tmp_path_factory.mktemp("run") / "whole")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A run that stopped after 12 of 16 images; its states are of 8 and of 12."""
    train(tmp_path / "run", 12)
    return tmp_path / "run"


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(broken: Path, whole: dict[str, Tensor]) -> None:
    assert equal(train(broken), whole)
    assert {f.suffix for f in (broken / "state").rglob("*") if f.is_file()} == {".json", ".safetensors"}


def truncate(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-7])


def change(file: str, before: bytes, after: bytes) -> Callable[[Path], None]:
    def fault(folder: Path) -> None:
        content = (folder / file).read_bytes()
        assert before in content
        (folder / file).write_bytes(content.replace(before, after))

    return fault


def flip(folder: Path) -> None:
    content = bytearray((folder / "modules.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "modules.safetensors").write_bytes(bytes(content))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated tensors": (truncate("optimizers.safetensors"), "optimizers.safetensors does not hold what was written"),
    "truncated header": (truncate("state.json"), "state.json is not readable JSON"),
    "empty header": (lambda folder: (folder / "state.json").write_text(""), "state.json is not readable JSON"),
    "one bit": (flip, "modules.safetensors does not hold what was written"),
    "missing tensors": (lambda folder: (folder / "random.safetensors").unlink(), "random.safetensors is missing"),
    "missing header": (lambda folder: (folder / "state.json").unlink(), "state.json does not exist"),
    "missing everything": (lambda folder: [file.unlink() for file in folder.iterdir()], "state.json does not exist"),
    "foreign file": (lambda folder: (folder / "notes.txt").write_text("mine"), "notes.txt is no part of the state"),
    "edited header": (change("state.json", b'"images_seen": 12', b'"images_seen": 4'), "was changed since"),
    "unknown key": (change("state.json", b'"format"', b'"x": 1, "format"'), "unknown key x"),
    "no object": (lambda folder: (folder / "state.json").write_text("[]"), "not a JSON object"),
    "another version": (change("state.json", b"latentsynth-state/1", b"latentsynth-state/0"), "latentsynth-state/"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_newest_state_is_passed_over_aloud(
    name: str, broken: Path, whole: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    fault, words = DAMAGE[name]
    fault(broken / "state" / "0000000012")
    assert equal(train(broken), whole)
    told = [line for line in capsys.readouterr().out.splitlines() if "is damaged" in line]
    assert len(told) == 1
    assert "0000000012" in told[0]
    assert words in told[0]
    assert [p.name for p in sorted((broken / "state").iterdir())] == ["0000000012", "0000000016"]  # made again
    lines = [line["images_seen"] for line in read_metrics(broken) if "a/loss" in line]
    assert lines == [4, 8, 12, 16]


def test_a_run_without_a_sound_state_is_refused(broken: Path) -> None:
    for folder in (broken / "state").iterdir():
        flip(folder)
    before = {file: file.read_bytes() for file in (broken / "state").rglob("*") if file.is_file()}
    with pytest.raises(TrainingError, match=r"no state of .* is sound .*remove .* to start again") as caught:
        train(broken)
    assert "\n" not in str(caught.value)
    assert before == {file: file.read_bytes() for file in (broken / "state").rglob("*") if file.is_file()}


class Bomb:
    """Writes a file where somebody reads it as a pickle."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("alone", [True, False], ids=["of Accelerate", "beside a sound state"])
@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "x.pt"])
def test_a_pickle_in_a_received_run_is_never_read(name: str, alone: bool, broken: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    newest = broken / "state" / "0000000012"
    for file in newest.iterdir() if alone else ():
        file.unlink()
    (newest / name).write_bytes(pickle.dumps(Bomb(marker)))
    pickle.loads((newest / name).read_bytes())
    assert marker.exists()  # it would go off
    marker.unlink()
    with pytest.raises(TrainingError, match=rf"{name} is a pickle, which can run code") as caught:
        train(broken)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_a_pickle_under_the_name_of_tensors_is_never_read(broken: Path, tmp_path: Path) -> None:
    """Nor by somebody who forges the hashes too."""
    marker = tmp_path / "marker"
    for folder in (broken / "state").iterdir():
        (folder / "modules.safetensors").write_bytes(pickle.dumps(Bomb(marker)))
        reseal(folder)
    with pytest.raises(TrainingError, match=r"modules\.safetensors is damaged"):
        train(broken)
    assert not marker.exists()


def reseal(folder: Path, edit: Callable[[dict[str, Any]], Any] = lambda header: None) -> None:
    """Renews the hashes, as somebody would who alters a state on purpose."""
    header = state.read_json(folder / state.HEADER)
    edit(header)
    header.pop("checksum")
    header["files"] = {name: state.file_fingerprint(folder / name) for name in header["files"]}
    state.write_json(folder / state.HEADER, {**header, "checksum": state.fingerprint(header)})


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no progress": lambda header: header["sections"].pop("progress"),
    "progress below zero": lambda header: header["sections"]["progress"].update(images_seen=-4),
    "progress in words": lambda header: header["sections"]["progress"].update(images_seen="many"),
    "a module fewer": lambda header: header["sections"]["modules"].pop("b.b"),
    "a tensor fewer": lambda header: header["sections"]["modules"]["a.a"].pop("0.weight"),
    "another shape": lambda header: header["sections"]["modules"]["a.a"].update(
        {"0.weight": header["sections"]["modules"]["a.a"]["0.bias"]}
    ),
    "a number for a tensor": lambda header: header["sections"]["modules"]["a.a"].update({"0.weight": 1}),
    "modules in a list": lambda header: header["sections"].update(modules=[]),
    "a parameter too many": lambda header: header["sections"]["optimizers"]["a"].update(
        {"99": header["sections"]["optimizers"]["a"]["0"]}
    ),
    "moments of another shape": lambda header: header["sections"]["optimizers"]["a"].update(
        {"0": header["sections"]["optimizers"]["a"]["1"]}
    ),
    "random state": lambda header: header["sections"]["random"][0].update(torch=3),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_state_of_another_run_is_refused(name: str, broken: Path) -> None:
    reseal(broken / "state" / "0000000012", FORGED[name])
    with pytest.raises(CheckpointError, match="0000000012") as caught:
        train(broken)
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    tree = {
        "numbers": {"a": 1, "b": 0.1, "c": None, "d": True, "e": [1, [2.5, "x"]], "f": {}, "g": []},
        "tensors": {
            "pool": [torch.tensor(3), torch.tensor(True), torch.zeros(0), torch.ones(2, dtype=torch.bfloat16)],
            "shared": shared, "view": shared.T, "part": shared[1],
        },
    }  # fmt: skip
    state.write(tmp_path / "1", tree)
    found = state.read(tmp_path / "1")
    assert found["numbers"] == tree["numbers"]
    for name in ("shared", "view", "part"):
        assert torch.equal(found["tensors"][name], tree["tensors"][name])
    for ours, theirs in zip(found["tensors"]["pool"], tree["tensors"]["pool"], strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    for unfit in (object(), {1: 2}, np.zeros(3)):
        with pytest.raises(TypeError, match="which a state cannot hold"):
            state.write(tmp_path / "2", {"x": unfit})
    assert not list(tmp_path.glob("2")) + list(tmp_path.glob(".partial-*"))


def test_all_global_generators_come_back(tmp_path: Path) -> None:
    def draws() -> list[float]:
        return [random.gauss(0, 1), random.random(), float(np.random.normal()), np.random.rand(), float(torch.rand(()))]

    random.gauss(0, 1)  # half of a pair is kept for the next call
    np.random.normal()
    state.write(tmp_path / "1", {"random": [state.random_state(torch.device("cpu"))]})
    expected = draws()
    assert draws() != expected
    state.restore_random_state(state.read(tmp_path / "1")["random"][0], torch.device("cpu"))
    assert draws() == expected


def test_the_scale_of_half_precision_comes_back(tmp_path: Path) -> None:
    def training(scale: float) -> _Training:
        accelerator = start_training(Run.model_validate({"run": tmp_path}).train)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        player = Player("a", {"a": nn.Linear(3, 1)}, noisy_loss("a"), 0.1)
        player.optimizer = torch.optim.AdamW(player.parameters())
        return _Training(accelerator, [player], {})

    first, second = training(8.0), training(2.0)
    state.write(tmp_path / "1", first.sections())
    second.restore(tmp_path / "1", state.read(tmp_path / "1"))
    assert second.accelerator.scaler.state_dict() == first.accelerator.scaler.state_dict()


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_every_file_has_the_mode_of_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        train(tmp_path / "run", 4)
    finally:
        os.umask(before)
    for path in (tmp_path / "run").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "TP"])
def test_weights_spread_over_processes_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their states would hold pieces, in formats that pickle."""
    launched = SimpleNamespace(distributed_type=SimpleNamespace(value=kind))
    monkeypatch.setattr(loop, "start", lambda *_: launched)
    with pytest.raises(TrainingError, match=f"spread weights over processes .{kind}."):
        start_training(Run.model_validate({"run": "x"}).train)
