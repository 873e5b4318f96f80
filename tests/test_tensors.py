"""Files of tensors have the mode of any other output, come back as they were written, and are whole or refused."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latentsynth
from latentsynth.errors import CheckpointError
from latentsynth.tensors import check_finite, check_tensors, read_tensors, write_tensors

PACKAGE = Path(latentsynth.__file__).parent


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_file_has_the_mode_of_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def private_writers(path: Path) -> list[str]:
    """Where safetensors itself is asked to write; its files are private."""
    return [
        f"{path.name}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("safetensors")
        if any(alias.name == "save_file" for alias in node.names)
    ]


def test_nobody_else_writes_tensors(tmp_path: Path) -> None:
    found = [where for path in PACKAGE.rglob("*.py") for where in private_writers(path)]
    assert [where.partition(":")[0] for where in found] == ["tensors.py"]
    (tmp_path / "bad.py").write_text("from safetensors.numpy import load_file, save_file\n")
    assert private_writers(tmp_path / "bad.py") == ["bad.py:1"]


def test_whatever_training_leaves_can_be_read_by_others(trained_ldm: Path) -> None:
    """Volumes, latents, states, weights, metrics, pictures; patients' key alone is private."""
    mode = 0o666 & ~_umask()
    private = [path for path in trained_ldm.parent.rglob("*") if path.is_file() and path.stat().st_mode & 0o777 != mode]
    assert [path.name for path in private] == ["key"]


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_what_is_written_is_read(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    written = {
        "half": torch.randn(3).half(), "flags": torch.tensor([True, False]), "number": torch.tensor(7), "empty": torch.zeros(0, 2),
        "shared": shared, "turned": shared.T, "row": shared[1], "array": np.eye(3), "every other": shared[:, ::2],
    }  # fmt: skip
    write_tensors(tmp_path / "a", written, {"why": "test"})
    found = read_tensors(tmp_path / "a")
    assert found.keys() == written.keys()
    for name, value in written.items():
        assert torch.equal(found[name], torch.as_tensor(value)), name
        assert found[name].dtype == torch.as_tensor(value).dtype
    check_tensors(found, {name: torch.as_tensor(value) for name, value in written.items()}, "a")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1], lambda content: content[:20], lambda content: b"", lambda content: b"\xff" * 99,
        lambda content: content.replace(b"F32", b"F33"), lambda content: content.replace(b'"a"', b'"\xe9"'),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"a": torch.zeros(4)})
    (tmp_path / "a").write_bytes(damage((tmp_path / "a").read_bytes()))
    with pytest.raises(CheckpointError, match="a is damaged") as caught:
        read_tensors(tmp_path / "a")
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="nothing is damaged"):
        read_tensors(tmp_path / "nothing")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_no_number_is_no_weight(value: float, dtype: Any) -> None:
    tensors = {"fine": torch.zeros(9, dtype=dtype), "counter": torch.tensor(3), "wrong": torch.zeros(3, 3, dtype=dtype)}
    check_finite(tensors, "part")
    tensors["wrong"][1, 2] = value
    with pytest.raises(CheckpointError, match="part: tensor wrong holds NaN or infinity"):
        check_finite(tensors, "part")
