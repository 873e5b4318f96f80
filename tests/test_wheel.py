"""The built wheel is the whole package: it works from a folder that knows nothing of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel puts into site-packages; built from a copy, since a build leaves its folders in the source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    kept = [ROOT / "latentsynth", ROOT / "configs"]
    for part in kept:
        shutil.copytree(part, source / part.name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    build = "import sys, setuptools.build_meta as backend; print(backend.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def outside(installed: Path, cwd: Path, *arguments: str) -> str:
    """What Python prints with the wheel alone in the place of the repository."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "LATENTSYNTH_KEY": str(cwd / "key")}
    done = subprocess.run(
        [sys.executable, "-P", *arguments], cwd=cwd, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout


def test_the_wheel_holds_every_file_that_is_no_code(unpacked: Path) -> None:
    held = {path.relative_to(unpacked) for path in unpacked.rglob("*") if path.is_file()}
    asked = subprocess.run(["git", "ls-files", "latentsynth", "configs"], cwd=ROOT, capture_output=True, text=True)
    if asked.returncode:
        pytest.skip("this is no clone")
    tracked = [Path(name) for name in asked.stdout.splitlines() if name != "latentsynth/configs"]
    wanted = {"latentsynth" / name if name.parts[0] == "configs" else name for name in tracked}
    assert not sorted(map(str, wanted - held))
    assert not [path for path in held if path.parts[0] not in ("latentsynth",) and ".dist-info" not in path.parts[0]]


def test_the_wheel_works_outside_of_a_clone(unpacked: Path, tmp_path: Path) -> None:
    assert "Add --debug" in outside(unpacked, tmp_path, "-m", "latentsynth", "--help")
    assert outside(unpacked, tmp_path, "-m", "latentsynth", "configs").strip() == "configs"
    shown = outside(unpacked, tmp_path, "-m", "latentsynth", "train", "ldm", "configs/debug/ldm.yaml", "--check")
    assert "run: runs/debug/ldm" in shown
    code = (
        "import numpy as np, latentsynth, latentsynth.models, latentsynth.viewer as viewer\n"
        "print(latentsynth.__file__, *latentsynth.models.names())\n"
        "labels = np.zeros((32, 48, 40), np.uint8); labels[8:24, 10:24, 12:28] = 1; labels[8:24, 24:36, 12:28] = 2\n"
        "(image,) = latentsynth.LatentDiffusion.from_pretrained('hippocampus')((labels, np.eye(4)), seed=0, steps=1)\n"
        "print(image.shape)"
    )
    home, *rest = outside(unpacked, tmp_path, "-c", code).split(maxsplit=1)
    assert Path(home).is_relative_to(unpacked)
    assert rest == ["hippocampus hippocampus-masks\n(32, 48, 40)\n"]


def test_configurations_are_written_over_nothing(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text("mine")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        outside(unpacked, tmp_path, "-m", "latentsynth", "configs")
    assert "configs-2" in refused.value.stderr
    assert [path.name for path in (tmp_path / "configs").iterdir()] == ["mine.yaml"]
