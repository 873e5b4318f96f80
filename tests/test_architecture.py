"""The shape of the package: imports go one way, files stay short, everything public says what it is."""

from __future__ import annotations

import ast
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import latentsynth

PACKAGE = Path(latentsynth.__file__).parent
PROJECT = PACKAGE.parent
LINTER = Path(sys.executable).parent / "lint-imports"
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def public(path: Path) -> Iterator[tuple[str, ast.AST, bool]]:
    """Public classes, functions, and methods of public classes; whether a method's class has bases."""
    todo: list[tuple[str, bool, ast.stmt]] = [("", False, node) for node in tree_of(path).body]
    for prefix, derived, node in todo:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield prefix + node.name, node, derived
            if isinstance(node, ast.ClassDef):
                todo += [(f"{node.name}.", bool(node.bases), inner) for inner in node.body]


def undocumented(path: Path, known: frozenset[str] = frozenset()) -> list[str]:
    """Public things without a docstring; a method that a base class has documented (``known``) need not repeat it."""
    return [
        name
        for name, node, derived in public(path)
        if not ast.get_docstring(node) and not (derived and name.split(".")[1] in known)  # type: ignore[arg-type]
    ]


def lint(project: Path) -> subprocess.CompletedProcess[str]:
    command = [str(LINTER), "--no-cache", "--config", str(project / "pyproject.toml")]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


def test_imports_go_one_way() -> None:
    got = lint(PROJECT)
    assert got.returncode == 0, got.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("diffusion/noise.py", "import latentsynth.training"),
        ("diffusion/guidance.py", "from latentsynth.config import Strict"),
        ("data/frames.py", "from latentsynth.autoencoders import Autoencoder"),
        ("metrics/reconstruction.py", "from latentsynth.figures import Tile"),
        ("newcomer.py", "import latentsynth.types"),
    ],
)
def test_a_planted_import_is_caught(tmp_path: Path, file: str, line: str) -> None:
    shutil.copytree(PACKAGE, tmp_path / "latentsynth", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    path = tmp_path / "latentsynth" / file
    old = path.read_text() if path.exists() else ""
    path.write_text(f"{old}\n{line}\n")
    got = lint(tmp_path)
    assert got.returncode != 0
    assert Path(file).stem in got.stdout + got.stderr


@functools.cache
def documented_methods() -> frozenset[str]:
    """Names of the package's documented methods, and those that torch documents."""
    names = {name for path in FILES for name, node, _ in public(path) if ast.get_docstring(node)}  # type: ignore[arg-type]
    return frozenset(name.split(".")[1] for name in names if "." in name) | {"forward"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_everything_public_has_a_docstring(path: Path) -> None:
    assert undocumented(path, documented_methods()) == []
    assert ast.get_docstring(tree_of(path)), "the module itself"


def test_files_stay_short() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: n for name, n in lengths.items() if n > 300} == {}


HOMES = {
    "torchio": ("data/",),
    "diffusers": ("pretrained.py", "diffusion/", "autoencoders/", "conditioning.py", "masks/"),
    "vector_quantize_pytorch": ("autoencoders/",),
    "typer": ("cli/",),
}


@pytest.mark.parametrize("library", HOMES)
def test_libraries_stay_where_they_belong(library: str) -> None:
    users = [name_of(path) for path in FILES if library in imported(path)]
    assert users
    assert [name for name in users if not name.startswith(HOMES[library])] == []


def pickle_readers(path: Path) -> list[str]:
    """Where a file could run what a pickle holds. Weights alone (a MONAI bundle's) are read by torch's own reader."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    safe = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "torch.load"
        and any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
    }
    culprits = []
    for node in ast.walk(tree):
        reader = isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "np.load", "numpy.load")
        if (reader and id(node) not in safe) or (isinstance(node, ast.keyword) and node.arg == "allow_pickle"):
            culprits.append(f"{path.name}:{node.lineno}")
    return culprits + [path.name for name in imported(path) & {"pickle", "dill", "cloudpickle", "joblib"} if name]


def test_nothing_reads_pickles(tmp_path: Path) -> None:
    assert [where for path in FILES for where in pickle_readers(path)] == []
    bad = tmp_path / "bad.py"
    for line in (
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "read = torch.load",
        "np.load(f, allow_pickle=True)",
    ):
        bad.write_text(f"import torch\n{line}\n")
        assert pickle_readers(bad), line


def test_light_modules_import_nothing_heavy() -> None:
    light = ["__init__.py", "types.py", "errors.py", "files.py", "results.py", "cli/__init__.py", "cli/options.py"]
    light += sorted(str(path.relative_to(PACKAGE)) for path in (PACKAGE / "config").glob("*.py"))
    for name in light:
        top = {
            alias.name.split(".")[0]
            for node in tree_of(PACKAGE / name).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
        }
        assert top & {"torch", "numpy", "monai", "nibabel", "scipy", "diffusers", "matplotlib", "accelerate"} == set()


def test_the_checks_above_can_fail(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("def f():\n    import torchio.data\n\n\nclass A:\n    def g(self): ...\n    def _h(self): ...\n")
    assert imported(path) == {"torchio"}
    assert undocumented(path, frozenset({"g"})) == ["f", "A", "A.g"]
