"""Features are the network's own, the same every time, and nothing that is loaded can run code or reach out."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.networks.nets import UNet
from torch import Tensor, nn

from latentsynth.errors import CheckpointError, DataError
from latentsynth.extractors.networks import (
    BundleNetwork,
    Extractor,
    OnnxNetwork,
    RandomNetwork,
    TorchScriptNetwork,
    extractor,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of TorchScript and its exporter
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
]

UNET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}


class Small(nn.Module):
    """Maps, a vector, or several things, of ``channels`` channels; dropout and batch norm tell training from use."""

    def __init__(self, channels: int = 2, answer: str = "vector"):
        super().__init__()
        self.conv = nn.Conv3d(channels, 5, 3, stride=2)
        self.norm = nn.BatchNorm3d(5)
        self.drop = nn.Dropout(0.5)
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        maps = self.drop(self.norm(self.conv(x))).relu()
        vector = maps.mean((2, 3, 4))
        if self.answer == "maps":
            return maps
        if self.answer == "tuple":
            return maps, 2 * vector
        if self.answer == "dict":
            return {"maps": maps, "vector": 3 * vector}
        if self.answer == "flat":
            return vector.flatten()
        return vector


def images(count: int = 3, channels: int = 2, edge: int = 16, seed: int = 0) -> Tensor:
    return 2 * torch.rand(count, channels, edge, edge, edge, generator=torch.Generator().manual_seed(seed)) - 1


def small(channels: int = 2, answer: str = "vector", seed: int = 0) -> Small:
    """In training mode, so that an extractor that forgets ``eval`` shows; its norm has seen data."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Small(channels, answer)
        network.norm(torch.randn(4, 5, 3, 3, 3) * 2 + 1)
    return network.train()


def vector(network: Small, x: Tensor) -> Tensor:
    network.eval()
    with torch.no_grad():
        return network.norm(network.conv(x)).relu().mean((2, 3, 4))


def script(network: nn.Module, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dictionary = getattr(network, "answer", "") == "dict"
    training = network.training  # a trace, as torch.jit.script wants one type of answer
    torch.jit.save(torch.jit.trace(network.eval(), images(1, 2), strict=not dictionary), str(path))
    network.train(training)
    return path


def export(network: nn.Module, path: Path, channels: int = 2) -> Path:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    torch.onnx.export(
        network.eval(), (images(1, channels),), str(path), dynamo=False, input_names=["x"], output_names=["y"]
    )
    return path


def unet(seed: int = 0) -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet(**UNET).eval()


def bundle(folder: Path, definition: Any = None, name: str = "inference.json", state: Any = None, **more: Any) -> Path:
    """A MONAI bundle of the U-Net above. Everything else in the config would fail if it were built."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    config = {
        "imports": ["$import not_a_module"],
        "trap": "$1 / 0",
        "loader": {"_target_": "CheckpointLoader", "load_path": "/nowhere"},
        "network_def": {"_target_": "UNet", **UNET} if definition is None else definition,
        "network": "$@network_def.to('cuda:99')",
        **more,
    }
    text = json.dumps(config) if name.endswith("json") else yaml.safe_dump(config)
    (folder / "configs" / name).write_text(text)
    torch.save(unet().state_dict() if state is None else state, folder / "models" / "model.pt")
    return folder


MAKERS: dict[str, Callable[[Path], Extractor]] = {
    "random": lambda path: RandomNetwork(2),
    "torchscript": lambda path: TorchScriptNetwork(script(small(), path / "net.ts")),
    "onnx": lambda path: OnnxNetwork(export(small(), path / "net.onnx")),
    "bundle": lambda path: BundleNetwork(bundle(path / "bundle")),
    "layer": lambda path: BundleNetwork(bundle(path / "bundle"), "model.0"),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_features_are_the_same_every_time(maker: str, tmp_path: Path) -> None:
    """Whatever the batch, the global random state or the mode; and that state is left alone."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    network = MAKERS[maker](tmp_path)
    got = network.features(images())
    assert torch.equal(torch.get_rng_state(), state)
    assert got.dtype == torch.float32
    assert got.shape[0] == 3
    assert got.std(0).max() > 1e-4  # images differ
    assert not got.requires_grad
    torch.manual_seed(2)
    assert torch.equal(network.features(images()), got)
    assert torch.equal(network.features(images().double().requires_grad_()), got)
    for n in (2, 0, 1):
        assert torch.equal(network.features(images()[n : n + 1]), got[n : n + 1])
    assert network.preprocessing.startswith("Images in [-1, 1]")
    assert network.name.startswith(maker if maker != "layer" else "bundle:bundle:model.0")
    with pytest.raises(DataError, match=r"shape \(2, 16, 16, 16\), expected \(B, C, I, J, K\)"):
        network.features(images()[0])


def test_random_features_of_a_level_are_its_mean_and_deviation() -> None:
    network, x = RandomNetwork(2), images(1, edge=20)
    maps, levels = x, []
    for weight in network._weights:
        maps = nn.functional.conv3d(nn.functional.pad(maps, [1] * 6, mode="replicate"), weight, stride=2)
        maps = torch.where(maps > 0, maps, 0.2 * maps)
        levels.append(maps)
    expected = [s for m in levels[1:] for s in (m.mean((2, 3, 4)), m.std((2, 3, 4), unbiased=False))]
    torch.testing.assert_close(network.features(x), torch.cat(expected, 1))


@pytest.mark.parametrize("edge", [16, 17, 33])
def test_random_features_keep_their_scale(edge: int) -> None:
    """He initialisation: no level vanishes or explodes."""
    got = RandomNetwork(1).features(images(2, 1, edge))
    assert got.shape == (2, 2 * (64 + 128 + 256))
    # At 16 voxels the last level is a single one, which has no deviation.
    for level in (got[:, :64], got[:, 128:256], got[:, 384:640]):
        assert 0.03 < level.pow(2).mean().sqrt() < 3


def test_random_fingerprint_follows_the_weights_not_the_machine() -> None:
    first = RandomNetwork(2, 5)
    torch.manual_seed(99)
    torch.set_default_dtype(torch.float64)
    try:
        again = RandomNetwork(2, 5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.features(images()), first.features(images()))
    others = [RandomNetwork(2, 6), RandomNetwork(1, 5)]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 3
    assert not torch.equal(others[0].features(images()), first.features(images()))


def test_random_network_refuses_what_it_cannot_take() -> None:
    with pytest.raises(DataError, match=r"image has 1 channels .* expected 2 channels"):
        RandomNetwork(2).features(images(1, 1))
    with pytest.raises(DataError, match="at least 16 voxels"):
        RandomNetwork(2).features(images(1, 2, 15))


@pytest.mark.parametrize(("answer", "factor"), [("vector", 1), ("maps", 1), ("tuple", 2), ("dict", 3)])
@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_exported_networks_give_the_features_of_the_network(
    kind: str, answer: str, factor: int, tmp_path: Path
) -> None:
    network = small(answer=answer)
    if kind == "onnx":
        if answer == "dict":
            pytest.skip("ONNX has no dictionaries")
        got = OnnxNetwork(export(network, tmp_path / "net.onnx")).features(images())
    else:
        got = TorchScriptNetwork(script(network, tmp_path / "net.ts")).features(images())
    torch.testing.assert_close(got, factor * vector(network, images()), rtol=1e-4, atol=1e-5)


def test_a_script_saved_in_training_mode_is_evaluated(tmp_path: Path) -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(x).mean((2, 3, 4))

    torch.jit.save(torch.jit.script(Dropped().train()), str(tmp_path / "net.ts"))
    torch.testing.assert_close(TorchScriptNetwork(tmp_path / "net.ts").features(images()), images().mean((2, 3, 4)))


def test_a_network_for_one_channel_gets_each_alone(tmp_path: Path) -> None:
    network = small(channels=1)
    torch.jit.save(torch.jit.trace(network.eval(), images(1, 1)), str(tmp_path / "net.ts"))
    x = images()
    alone = torch.cat([vector(network, x[:, c : c + 1]) for c in range(2)], dim=1)
    for made in (TorchScriptNetwork(tmp_path / "net.ts"), OnnxNetwork(export(network, tmp_path / "net.onnx", 1))):
        assert "together" in made.preprocessing
        assert made.features(x[:, :1]).shape == (3, 5)
        assert "together" in made.preprocessing
        torch.testing.assert_close(made.features(x), alone, rtol=1e-4, atol=1e-5)
        assert "each channel alone" in made.preprocessing
        torch.testing.assert_close(made.features(x), alone, rtol=1e-4, atol=1e-5)


def test_a_network_for_other_channels_is_refused_with_both_reasons(tmp_path: Path) -> None:
    made = TorchScriptNetwork(script(small(), tmp_path / "net.ts"))
    with pytest.raises(DataError, match=r"\(1, 3, 16, 16, 16\) .*got 3 channels.*each channel alone: .*got 1 channels"):
        made.features(images(1, 3))
    with pytest.raises(DataError, match=r"\(1, 1, 16, 16, 16\) .*for 1 channels") as caught:
        made.features(images(1, 1))
    assert "alone" not in str(caught.value)
    made.features(images())
    assert "together" in made.preprocessing


def test_what_is_no_feature_vector_is_refused_with_its_shape(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"net\.ts returns a tensor of shape \(5,\) for one image, expected features"):
        TorchScriptNetwork(script(small(answer="flat"), tmp_path / "net.ts")).features(images())


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_file_fingerprints_follow_the_contents(kind: str, tmp_path: Path) -> None:
    write = script if kind == "torchscript" else export
    write(small(), tmp_path / "a")
    write(small(seed=1), tmp_path / "b")
    (tmp_path / "c").write_bytes((tmp_path / "a").read_bytes())
    first, other, moved = (extractor(f"{kind}:{tmp_path / name}", 2).fingerprint for name in "abc")
    assert moved == first != other


@pytest.mark.parametrize("kind", [TorchScriptNetwork, OnnxNetwork, BundleNetwork])
def test_missing_files_are_named(kind: type[Extractor], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent does not exist.*nothing is fetched"):
        kind(tmp_path / "absent")  # type: ignore[call-arg]


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    torch.save(small(), tmp_path / "module.pt")
    for name in ("junk", "module.pt"):
        with pytest.raises(CheckpointError, match="is not TorchScript"):
            TorchScriptNetwork(tmp_path / name)
    pytest.importorskip("onnxruntime")
    with pytest.raises(CheckpointError, match="is not a readable ONNX file"):
        OnnxNetwork(tmp_path / "junk")


def test_without_onnxruntime_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(DataError, match="pip install onnxruntime"):
        OnnxNetwork(tmp_path / "net.onnx")


def test_onnx_weights_beside_the_file_count(tmp_path: Path) -> None:
    path = export(small(), tmp_path / "net.onnx")
    before = OnnxNetwork(path).fingerprint
    (tmp_path / "net.onnx.data").write_bytes(b"weights")
    assert OnnxNetwork(path).fingerprint != before


@pytest.mark.parametrize("name", ["inference.json", "inference.yaml", "train.json", "train.yaml"])
def test_bundle_builds_its_network_and_nothing_else(name: str, tmp_path: Path) -> None:
    x = images(2, 1)
    with torch.no_grad():
        expected, inner = unet()(x).mean((2, 3, 4)), unet().model[0](x).mean((2, 3, 4))
    folder = bundle(tmp_path / "b", name=name)
    torch.testing.assert_close(BundleNetwork(folder).features(x), expected)
    torch.testing.assert_close(BundleNetwork(folder, "model.0").features(x), inner)
    torch.testing.assert_close(extractor(f"bundle:{folder}:model.0", 1).features(x), inner)
    assert BundleNetwork(folder).fingerprint != BundleNetwork(folder, "model.0").fingerprint


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_bundle_finds_weights_beside_an_optimiser(key: str, tmp_path: Path) -> None:
    plain = BundleNetwork(bundle(tmp_path / "a"))
    nested = BundleNetwork(bundle(tmp_path / "b", state={key: unet().state_dict(), "optimizer": {}}))
    assert torch.equal(plain.features(images(1, 1)), nested.features(images(1, 1)))


def test_bundle_references_and_literals_are_followed(tmp_path: Path) -> None:
    definition = {"_target_": "monai.networks.nets.UNet", **UNET, "in_channels": "@sizes::in", "channels": "@wide",
                  "strides": "$(2,)"}  # fmt: skip
    folder = bundle(tmp_path / "b", definition, sizes={"in": 1}, wide="@widths", widths=[4, 8])
    plain = BundleNetwork(bundle(tmp_path / "a"))
    assert torch.equal(BundleNetwork(folder).features(images(1, 1)), plain.features(images(1, 1)))


def test_bundle_prefers_its_script_but_for_a_layer(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b")
    built = BundleNetwork(folder)
    inner = BundleNetwork(folder, "model.0").features(images(1, 1))
    torch.jit.save(torch.jit.trace(unet(7), images(1, 1)), str(folder / "models" / "model.ts"))
    with torch.no_grad():
        expected = unet(7)(images(1, 1)).mean((2, 3, 4))
    torch.testing.assert_close(BundleNetwork(folder).features(images(1, 1)), expected)
    assert BundleNetwork(folder).fingerprint != built.fingerprint
    assert torch.equal(BundleNetwork(folder, "model.0").features(images(1, 1)), inner)
    with pytest.raises(DataError, match=r"no layer 'nose': choose one of model, model\.0"):
        BundleNetwork(folder, "nose")


class Bomb:
    """Goes off where a pickle is valid."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was run",))


STATE_FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "whole module": (unet, "does not hold weights alone"),
    "code": (Bomb, "does not hold weights alone"),
    "missing tensor": (lambda: dict(list(unet().state_dict().items())[1:]), "does not fit network_def .*Missing key"),
    "unknown tensor": (lambda: {**unet().state_dict(), "x": torch.zeros(1)}, "does not fit .*Unexpected key"),
    "other width": (lambda: UNet(**{**UNET, "channels": [6, 8]}).state_dict(), "does not fit .*size mismatch"),
    "a list": (lambda: [1, 2], "does not fit"),
}


@pytest.mark.parametrize("fault", STATE_FAULTS)
def test_bundle_weights_that_are_none_are_refused(fault: str, tmp_path: Path) -> None:
    make, message = STATE_FAULTS[fault]
    with pytest.raises(CheckpointError, match=rf"model\.pt {message}"):
        BundleNetwork(bundle(tmp_path / "b", state=make()))


def test_plain_pickles_are_refused(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b")
    for content in (pickle.dumps(Bomb()), b"", b"junk"):
        (folder / "models" / "model.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match="does not hold weights alone"):
            BundleNetwork(folder)


DEFINITION_FAULTS: dict[str, tuple[Any, str]] = {
    "function": ({"_target_": "os.system", "command": "false"}, r"builds 'os\.system', expected a module of"),
    "function behind a module": ({"_target_": "torch.nn.modules.module.torch.manual_seed", "seed": 1}, "expected a module"),
    "foreign module": ({"_target_": "torchvision.models.ResNet"}, "expected a module"),
    "other part of MONAI": ({"_target_": "LoadImage"}, "builds 'LoadImage', expected a module"),
    "download": ({"_target_": "download_url", "url": "http://localhost"}, "expected a module"),
    "nested": ({"_target_": "UNet", **UNET, "act": {"_target_": "os.getcwd"}}, r"builds 'os\.getcwd'"),
    "expression": ({"_target_": "UNet", **UNET, "in_channels": "$__import__('os').getpid()"}, "would run code"),
    "whole expression": ("$__import__('pathlib').Path('x')", "would run code"),
    "reference to a trap": ({"_target_": "UNet", **UNET, "in_channels": "@trap"}, "would run code"),
    "dangling": ({"_target_": "UNet", **UNET, "in_channels": "@absent"}, "refers to '@absent', which is not there"),
    "circle": ({"_target_": "UNet", **UNET, "in_channels": "@network_def::in_channels"}, "refers to"),
    "other file": ("%other.json::network_def", "refers to '%other"),
    "unknown argument": ({"_target_": "UNet", **UNET, "colour": "red"}, "cannot be built"),
    "no network": ({"channels": 3}, "network_def is dict, expected a network"),
    "disabled": ({"_target_": "UNet", **UNET, "_disabled_": True}, "network_def is NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("fault", DEFINITION_FAULTS)
def test_bundle_definitions_that_would_do_more_are_refused(fault: str, tmp_path: Path) -> None:
    definition, message = DEFINITION_FAULTS[fault]
    with pytest.raises(CheckpointError, match=message):
        BundleNetwork(bundle(tmp_path / "b", definition))


def test_bundle_never_fetches_pretrained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("went to the network"))
    definition = {"_target_": "DenseNet121", "spatial_dims": 2, "in_channels": 3, "out_channels": 2, "pretrained": True}
    with pytest.raises(CheckpointError, match="does not fit network_def"):  # it was built, without fetching
        BundleNetwork(bundle(tmp_path / "b", definition))


def test_incomplete_bundles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"none of inference\.json, .* in configs"):
        BundleNetwork(tmp_path / "empty")
    folder = bundle(tmp_path / "b")
    (folder / "models" / "model.pt").unlink()
    with pytest.raises(CheckpointError, match=r"model\.pt does not exist"):
        BundleNetwork(folder)
    config = folder / "configs" / "inference.json"
    for text, message in (("{}", "has no network_def"), ("[1]", "holds list"), ("{", "is not readable")):
        config.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            BundleNetwork(folder)


def test_words_name_extractors(tmp_path: Path) -> None:
    assert extractor("random", 2).fingerprint == extractor("random:0", 2).fingerprint == RandomNetwork(2).fingerprint
    assert extractor("random:7", 2).fingerprint == RandomNetwork(2, 7).fingerprint
    folder = bundle(tmp_path / "with:colon")
    assert extractor(f"bundle:{folder}", 1).name == "bundle:with:colon"
    assert extractor(f"bundle:{folder}:model.0", 1).name == "bundle:with:colon:model.0"
    for spec in ("inception", "", "random:x", "random:-1", "torchscript", "onnx:", "bundle:"):
        with pytest.raises(DataError, match=r"unknown extractor .* choose one of random, random:SEED, torch"):
            extractor(spec, 1)
