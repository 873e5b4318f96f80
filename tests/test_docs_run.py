"""What the documentation shows runs as it stands: the tutorial, the Python blocks and the tour, with trainings cut to a few images."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from latentsynth.cli import main
from latentsynth.data import nifti

pytestmark = pytest.mark.timeout(1200)  # a minute of work, which a busy machine stretches

DOCS = Path(__file__).parents[1] / "docs"
TINY = "images=16 batch=4 lr_warmup_images=4 validate_every_images=16 sample_every_images=16"
CUT = {  # what is added to commands of the tutorial, so that they take seconds
    "phantom": ["--size", "24"],
    "plan": ["--hours", "0.02"],
    "train": [f"train.{change}" for change in TINY.split()],
}
SHORTER = {r"\b1000\b": "4", r'"images": [\d_]+': '"images": 16'}  # in Python: patients, and images of a training


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def execute(code: str, origin: Path) -> None:
    for long, short in SHORTER.items():
        code = re.sub(long, short, code)
    exec(compile(code, str(origin), "exec"), {"__name__": "shown"})


def code_of(words: list[str]) -> object:
    """The exit code of a command run in this process."""
    try:
        main(words)
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which somebody has typed the tutorial, and works."""
    folder = tmp_path_factory.mktemp("walked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LATENTSYNTH_KEY", str(folder / "key"))
        for line in "".join(blocks(DOCS / "tutorial.md", "bash")).splitlines():
            words = shlex.split(line, comments=True)[1:]
            assert code_of([*words, *CUT.get(words[0], [])]) == 0, line
        yield folder


def test_the_tutorial_ends_in_a_report(walked: Path) -> None:
    report = (walked / "runs/tutorial/report.html").read_text()
    assert "obedience" in report
    assert "fidelity" in report
    assert len(list((walked / "runs/tutorial/synthetic/imagesTr").glob("*_0000.nii.gz"))) == 24  # 8 patients, 3 each


@pytest.mark.parametrize("page", ["../README.md", "how-to/sample.md"])
def test_python_blocks_run(page: str, walked: Path) -> None:
    for name, made in {
        "mine-ldm": "manifest-ldm",
        "autoencoder": "manifest-autoencoder",
        "synthetic": "tutorial/synthetic",
    }.items():
        if not (walked / "runs" / name).exists():
            (walked / "runs" / name).symlink_to(walked / "runs" / made)
    labels = np.zeros((32, 48, 40), np.uint8)
    labels[8:24, 10:24, 12:28], labels[8:24, 24:36, 12:28] = 1, 2
    nifti.write(walked / "mask.nii.gz", labels, np.eye(4))
    shown = blocks(DOCS / page, "python")
    assert shown
    for code in shown:
        execute(code, DOCS / page)


def test_every_page_with_python_is_run_or_known() -> None:
    """Those of the results need models that took hours."""
    found = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if blocks(page, "python")}
    assert found == {"how-to/sample.md", "results.md"}
    for code in blocks(DOCS / "results.md", "python"):
        compile(code, "results.md", "exec")


def cells(script: str) -> list[tuple[str, str]]:
    """Kind and text of the cells of a script, comment marks off."""
    parts = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)[1:]
    kinds = ["markdown" if "markdown" in mark else "code" for mark in parts[::2]]
    texts = [text.strip() for text in parts[1::2]]
    return [
        (kind, re.sub(r"^# ?", "", text, flags=re.MULTILINE) if kind == "markdown" else text)
        for kind, text in zip(kinds, texts, strict=True)
    ]


def test_the_notebook_is_its_source_and_small() -> None:
    notebook = json.loads((DOCS / "tour.ipynb").read_text())
    kept = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert kept == cells((DOCS / "tour.py").read_text()), "run `make tour`"
    assert (DOCS / "tour.ipynb").stat().st_size < 400_000
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output for output in outputs if output["output_type"] == "error"]


def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("LATENTSYNTH_KEY", str(tmp_path / "key"))
    execute((DOCS / "tour.py").read_text(), DOCS / "tour.py")
    assert (tmp_path / "runs/tour/obedience/obedience.json").is_file()


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="pip install -e '.[docs]' brings what builds it")
def test_the_site_is_built_without_a_warning_and_asks_nobody(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    offline = {**os.environ, "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    built = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        env=offline,
    )
    assert built.returncode == 0, built.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']((?:https?:)?//[^"']+)""", page.read_text()
        )
        assert not loaded, page
    assert "LatentDiffusion" in (tmp_path / "site/reference/python.html").read_text()
