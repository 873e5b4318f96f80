"""A part is saved whole or not at all, and loads only if it is exactly what its configuration says."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentsynth.conditioning import MaskConditioner
from latentsynth.errors import CheckpointError
from latentsynth.pretrained import Pretrained, part_fingerprint, read_config, recompute


class Part(Pretrained, ABC):
    """Abstract base, so that a family can be loaded through it."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Something."""


class Line(Part):
    """One weight, one buffer."""

    @register_to_config
    def __init__(self, width: int, names: tuple[str, ...] = ("a",)):
        super().__init__()
        self.linear = nn.Linear(width, 2)
        self.names = tuple(names)
        self.register_buffer("offset", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + self.offset)


class Curve(Line):
    """Another one of the family."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = Line(3, ("b", "c"))
    model.offset.copy_(torch.tensor([1.0, 2, 3]))
    model.save(tmp_path / "part")
    return tmp_path / "part"


def weights(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    state = load_file(weights(folder))
    change(state)
    save_file(state, weights(folder))


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("through", [Line, Part])
def test_round_trip(folder: Path, through: type[Part]) -> None:
    loaded = through.from_pretrained(folder)
    assert type(loaded) is Line
    assert loaded.names == ("b", "c")
    assert not loaded.training
    assert loaded.offset.tolist() == [1, 2, 3]
    torch.manual_seed(0)
    assert torch.equal(loaded.linear.weight, Line(3).linear.weight)
    loaded.save(folder.parent / "again")
    assert part_fingerprint(folder.parent / "again") == part_fingerprint(folder)
    assert type(Part.from_pretrained(folder.parent / "again")) is Line


def test_a_part_without_weights_round_trips(tmp_path: Path) -> None:
    MaskConditioner(3, (4, 4, 2)).save(tmp_path / "conditioner")
    loaded = MaskConditioner.from_pretrained(tmp_path / "conditioner")
    assert loaded.labels == 3
    assert loaded.factors == (4, 4, 2)


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing tensor": (lambda s: s.pop("linear.bias"), r"missing tensor linear\.bias"),
    "missing buffer": (lambda s: s.pop("offset"), "missing tensor offset"),
    "extra tensor": (lambda s: s.update(more=torch.ones(1)), "unexpected tensor more"),
    "renamed tensor": (lambda s: s.update(bias=s.pop("linear.bias")), r"missing tensor linear\.bias .*unexpected tensor bias"),
    "wrong shape": (lambda s: s.update({"linear.weight": torch.ones(2, 4)}), r"linear\.weight has shape \(2, 4\), .*\(2, 3\)"),
    "not a number": (lambda s: s["linear.weight"][1].fill_(torch.nan), r"tensor linear\.weight holds NaN or infinity"),
    "infinite buffer": (lambda s: s["offset"][:1].fill_(-torch.inf), "tensor offset holds NaN or infinity"),
    "transposed": (lambda s: s.update({"linear.weight": torch.ones(3, 2)}), r"linear\.weight has shape \(3, 2\)"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_altered_weights_are_refused(folder: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    edit_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        Part.from_pretrained(folder)


CONFIG_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown key": (lambda c: c.update(colour="red"), r"keys \['colour'\] are unknown for Line"),
    "missing key": (lambda c: c.pop("width"), r"keys \['width'\] are missing for Line"),
    "missing key with a default": (lambda c: c.pop("names"), r"keys \['names'\] are missing for Line"),
    "other width": (lambda c: c.update(width=4), r"has shape .*belong to different models"),
    "foreign class": (lambda c: c.update(_class_name="UNet2DModel"), "names class 'UNet2DModel', expected one of Curve, Line:"),
    "another part": (lambda c: c.update(_class_name="MaskConditioner"), "names class 'MaskConditioner'"),
    "abstract class": (lambda c: c.update(_class_name="Part"), "names class 'Part', expected one of Curve, Line:"),
    "no width": (lambda c: c.update(width=None), "no Line can be made of it"),
    "width below zero": (lambda c: c.update(width=-1), "no Line can be made of it"),
    "no class": (lambda c: c.pop("_class_name"), "names class None"),
    "class is a list": (lambda c: c.update(_class_name=["Line"]), "names class"),
}  # fmt: skip


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_altered_configurations_are_refused(folder: Path, fault: str) -> None:
    change, message = CONFIG_FAULTS[fault]
    edit_config(folder, change)
    with pytest.raises(CheckpointError, match=message):
        Part.from_pretrained(folder)


@pytest.mark.parametrize("text", ["[1, 2]", "3", "{not json", ""])
def test_a_configuration_that_is_no_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(folder)


def test_a_part_is_not_loaded_as_a_sibling(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="names class 'Line', expected one of Curve"):
        Curve.from_pretrained(folder)


@pytest.mark.parametrize("pickled", [True, False])
def test_pickles_are_never_read(folder: Path, pickled: bool) -> None:
    weights(folder).unlink()
    if pickled:
        (folder / "pytorch_model.bin").write_bytes(b"any pickle could run code")
    with pytest.raises(CheckpointError, match=r"only pytorch_model\.bin, a pickle" if pickled else "no weights"):
        Part.from_pretrained(folder)


def test_damaged_weights_are_refused(folder: Path) -> None:
    weights(folder).write_bytes(weights(folder).read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="is damaged"):
        Part.from_pretrained(folder)


def test_a_missing_folder_is_never_taken_for_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("went to the network"))
    for name in (tmp_path / "absent", "some-user/some-model"):
        with pytest.raises(CheckpointError, match=r"does not exist.*nothing is fetched from a hub"):
            Part.from_pretrained(name)
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        Part.from_pretrained(tmp_path)


def test_options_of_diffusers_are_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="use_safetensors"):
        Part.from_pretrained(folder, use_safetensors=False)


def test_fingerprint_changes_with_a_weight_and_not_with_the_place(folder: Path, tmp_path: Path) -> None:
    before = part_fingerprint(folder)
    folder.rename(tmp_path / "moved")
    assert part_fingerprint(tmp_path / "moved") == before
    edit_weights(tmp_path / "moved", lambda s: s["linear.bias"].add_(1e-6))
    assert part_fingerprint(tmp_path / "moved") != before


def test_an_error_while_saving_leaves_the_old_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    save = Line.save_pretrained

    def breaks(self: Line, place: Path, **options: Any) -> None:
        save(self, place, **options)  # everything is written, then the disk fails
        raise OSError("no space left")

    monkeypatch.setattr(Line, "save_pretrained", breaks)
    with pytest.raises(OSError, match="no space"):
        Line(5).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["part"]


def test_saving_replaces_the_old_part_whole(folder: Path) -> None:
    (folder / "stale.safetensors").write_bytes(b"left by an earlier version")
    Line(5).save(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(["config.json", weights(folder).name])
    assert Line.from_pretrained(folder).linear.in_features == 5


def test_recomputing_blocks_keep_names_and_gradients() -> None:
    torch.manual_seed(0)
    calls: list[str] = []

    class Counted(nn.Tanh):
        def forward(self, x: Tensor) -> Tensor:
            calls.append("forward")
            return super().forward(x)

    plain = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    again = nn.Sequential(nn.Linear(4, 4), Counted(), nn.Linear(4, 1))
    again.load_state_dict(plain.state_dict())
    recompute(again[1])
    assert again.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(3, 4)
    for model in (plain, again):
        model(x).sum().backward()
    assert len(calls) == 2  # once forward, once more in the backward pass
    for ours, theirs in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    with torch.no_grad():
        assert torch.equal(again(x), plain(x))
    assert len(calls) == 3  # nothing to recompute for
