"""The shape of the package: imports go one way, functions stay short, everything public says what it is."""

from __future__ import annotations

import ast
import functools
import graphlib
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


def test_everything_public_has_a_docstring() -> None:
    missing = {name_of(path): undocumented(path, documented_methods()) for path in FILES}
    assert {name: found for name, found in missing.items() if found} == {}
    assert [name_of(path) for path in FILES if not ast.get_docstring(tree_of(path))] == []


LONGEST = 100


def lengths(path: Path) -> dict[str, int]:
    """Lines of every function of a file, without its docstring."""
    found = {}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = node.body[0] if ast.get_docstring(node) is not None else None
            said = text.end_lineno - text.lineno + 1 if text else 0  # type: ignore[operator]
            found[node.name] = max(found.get(node.name, 0), node.end_lineno - node.lineno + 1 - said)  # type: ignore[operator]
    return found


def test_functions_stay_short() -> None:
    """The ceiling only goes down, to 70 in the end; whoever shortens the longest function lowers it."""
    every = {f"{name_of(path)}: {name}": n for path in FILES for name, n in lengths(path).items()}
    assert {name: n for name, n in every.items() if n > LONGEST} == {}


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(root: Path) -> dict[str, set[str]]:
    """Modules of a package that each module imports at its top level, for its types alone as well."""
    paths = {module_of(path, root): path for path in sorted(root.rglob("*.py"))}
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        wanted: set[str] = set()
        todo = list(tree_of(path).body)
        for node in todo:
            if isinstance(node, ast.If | ast.Try):
                todo += [*node.body, *node.orelse]
            elif isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                # from a package, its modules are imported; anything else is made by the package itself
                wanted |= {
                    full if (full := f"{node.module}.{alias.name}") in paths else node.module for alias in node.names
                }
        graph[module] = {name for name in wanted if name in paths} - {module}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in turn, the first named again at the end; empty if there are none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_closes_a_circle() -> None:
    """Nor one under ``if TYPE_CHECKING``, which Python never sees: modules in a circle are one module in pieces."""
    assert circle(import_graph(PACKAGE)) == []


def test_a_circle_of_types_is_seen(tmp_path: Path) -> None:
    root = tmp_path / "package"
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "a.py").write_text("from package.b import B\n")
    (root / "b.py").write_text("from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from package import a\n")
    assert set(circle(import_graph(root))) == {"package.a", "package.b"}


# A library's rooms are those that need it today; the list may lose entries and gains none.
HOMES = {
    "torchio": ("data/",),
    "diffusers": ("pretrained.py", "diffusion/", "autoencoders/", "conditioning.py", "masks/"),
    "vector_quantize_pytorch": ("autoencoders/",),
    "typer": ("cli/",),
    "accelerate": (
        "evaluation/", "experiments/", "labelling.py", "parallel.py", "roundtrip.py", "sharing/filter.py", "studio/", "synthesis.py",
        "training/",
    ),
    "nibabel": (
        "data/", "evaluation/masks/figures.py", "evaluation/segmentation/evaluate.py", "labelling.py", "masks/",
        "metrics/shapes.py", "segmentation/segmenter.py", "sharing/balance.py", "synthesizers/base.py",
    ),
    "scikit_posthocs": ("plots.py",),
    "pandas": ("plots.py",),
}  # fmt: skip


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
        reader = isinstance(node, ast.Attribute) and ast.unparse(node) in (
            "torch.load", "np.load", "numpy.load", "joblib.load",
        )  # fmt: skip
        if (reader and id(node) not in safe) or (isinstance(node, ast.keyword) and node.arg == "allow_pickle"):
            culprits.append(f"{path.name}:{node.lineno}")
    named = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "joblib"]
    culprits += [f"{path.name}:{node.lineno}" for node in named if any(one.name in ("load", "*") for one in node.names)]
    return culprits + [path.name for name in imported(path) & {"pickle", "dill", "cloudpickle"} if name]


def test_nothing_reads_pickles(tmp_path: Path) -> None:
    assert [where for path in FILES for where in pickle_readers(path)] == []
    bad = tmp_path / "bad.py"
    for line in (
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "read = torch.load",
        "np.load(f, allow_pickle=True)",
        "import joblib; joblib.load(f)",
        "from joblib import load",
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
    path = tmp_path / "long.py"
    path.write_text('def f():\n    """Says\n    much."""\n' + "    x = 1\n" * 101)
    assert lengths(path) == {"f": 102}
