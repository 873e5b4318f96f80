"""ONNX files of a model do what the model does: a sampler of ten lines of numpy makes the same latents and volumes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentsynth.diffusion.times import EDGE
from latentsynth.errors import CheckpointError, DataError
from latentsynth.randomness import Draws
from latentsynth.sharing import onnx_files
from latentsynth.sharing.onnx_files import write_onnx
from latentsynth.synthesizers import LatentDiffusion
from latentsynth.types import Condition

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
STEPS = 6


@pytest.fixture(scope="module")
def model(trained_ldm: Path) -> LatentDiffusion:
    return LatentDiffusion.from_pretrained(trained_ldm)


@pytest.fixture(scope="module")
def written(model: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_onnx(model, tmp_path_factory.mktemp("onnx") / "model")


def call(folder: Path, name: str, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, inputs)[0]
    return found


def test_a_sampler_without_torch_makes_the_same_volumes(
    model: LatentDiffusion, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Euler steps down straight lines, x_t = (1 - t) x0 + t noise, by the files alone; the decoder gives its mean."""
    decode = model.autoencoder.decode
    monkeypatch.setattr(model.autoencoder, "decode", lambda z, white: decode(z))
    mask = torch.zeros(2, len(model.domain.labels), *model.grid.shape)
    mask[:, 0], mask[0, 0, 8:16, 8:16, 8:16], mask[0, 3, 8:16, 8:16, 8:16] = 1, 0, 1
    wanted = model.generate(
        Condition(mask), [5, 6], scheduler="euler", steps=STEPS, guidance=1.0, shift=1.0
    ).image.numpy()
    x = Draws.seeded([5, 6]).normal(*model.autoencoder.latent_shape(model.grid.shape)).numpy()
    maps = call(written, "conditioner", mask=mask.numpy())
    times = np.linspace(1, 0, STEPS + 1, dtype=np.float32)
    for t, then in pairwise(times):
        at = np.float32(min(t, 1 - EDGE / 2))
        clean = call(written, "denoiser", noisy=x, time=np.full(2, at), maps=maps)
        x = clean + (x - clean) * (then / t)
    found = call(written, "decoder", latents=x.astype(np.float32))
    assert np.abs(found - wanted).max() < 2e-3
    assert np.abs(found[0] - found[1]).max() > 0.05


def test_what_a_program_must_know_stands_beside(model: LatentDiffusion, written: Path) -> None:
    about = json.loads((written / "model.json").read_text())
    assert about["grid"]["shape"] == list(model.grid.shape)
    assert about["limits"] == [list(ends) for ends in model.domain.limits]
    assert max(about["largest_difference_from_torch"].values()) <= 1e-4
    assert {file.name for file in written.iterdir()} == {"model.json", *about["files"]}


def test_a_file_that_gives_something_else_is_refused(
    model: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(path: Path, part: Any, batch: int) -> float:
        return 2e-4 if path.name == "decoder.onnx" else 0.0

    monkeypatch.setattr(onnx_files, "_distance", off)
    with pytest.raises(CheckpointError, match=r"decoder.onnx gives 2.0e-04 other values than torch, expected 0.0001"):
        write_onnx(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_model_that_needs_a_scan_is_refused(
    model: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatentDiffusion, "takes_context", True)
    with pytest.raises(DataError, match="paints into scans, or in patches"):
        write_onnx(model, tmp_path / "model")
