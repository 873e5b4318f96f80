"""Code decides by numbers and fields: nobody reads a table, a note or the text of an error to find out what is so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import latentsynth

PACKAGE = Path(latentsynth.__file__).parent
SHOWN = ("rows", "tables", "notes")
# What a module may read all the same, and why.
MAY_READ = {
    "results.py": SHOWN,  # writes, reads back and prints results
    "evaluation/report.py": ("tables", "notes"),  # the page shows what results hold
    "sharing/card.py": ("tables", "notes"),  # cards show what results hold
    "sharing/pack.py": ("tables", "notes"),
    "evaluation/fidelity/comparison.py": ("rows",),  # numbers of its own, from which tables are made
    "evaluation/fidelity/evaluate.py": ("rows",),  # writes the same as CSV
    "evaluation/masks/figures.py": ("rows",),  # the same again
    "outputs.py": ("notes",),  # of a record: values by name
    "labelling.py": ("notes",),  # the same
    "data/intake/layouts/__init__.py": ("notes",),  # of a layout, handed on
    "data/intake/prepare.py": ("notes",),  # the same, printed
}
READS = ("startswith", "endswith", "partition", "rpartition", "removeprefix", "removesuffix", "find", "index", "count")
PLANTED = """
def decided(result, path):
    if any("no ledger" in note for note in result.notes):
        return result.tables[0]
    try:
        read(path)
    except DataError as problem:
        found, _, cure = str(problem).removeprefix(f"{path} ").rpartition(": ")
        if "axes" in str(problem) or re.match("x", problem.args[0]):
            return str(problem).splitlines()[0]  # to be shown
    return [row[2] for row in made.rows if row[0] == "samples"]
"""


def _texts(tree: ast.AST) -> list[ast.AST]:
    """Every ``str(error)`` and ``error.args`` of an error that was caught."""
    caught = {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)}

    def is_error(node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id in caught

    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str"
    ]
    said = [node for node in calls if any(map(is_error, node.args))]
    return [
        *said,
        *(n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "args" and is_error(n.value)),
    ]


def of_errors(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and kind of everything that looks for words in the text of an error."""
    texts = _texts(tree)

    def holds(*nodes: ast.AST) -> bool:
        return any(inner in texts for node in nodes for inner in ast.walk(node))

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.In | ast.NotIn | ast.Eq) for op in node.ops):
            if holds(*node.comparators) or (isinstance(node.ops[0], ast.Eq) and holds(node.left)):
                yield node.lineno, "compared"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asked = node.func.attr in READS and holds(node.func.value)
            searched = isinstance(node.func.value, ast.Name) and node.func.value.id == "re" and holds(*node.args)
            if asked or searched:
                yield node.lineno, node.func.attr


def of_shown(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every attribute read that is made to be shown."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in SHOWN and isinstance(node.ctx, ast.Load):
            yield node.lineno, node.attr


def test_planted_reading_is_found() -> None:
    tree = ast.parse(PLANTED)
    assert sorted(of_shown(tree)) == [(3, "notes"), (4, "tables"), (11, "rows")]
    assert sorted(of_errors(tree)) == [(8, "removeprefix"), (8, "rpartition"), (9, "compared"), (9, "match")]


def test_nobody_reads_what_is_made_to_be_shown() -> None:
    read: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name, tree = path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
        assert not list(of_errors(tree)), name
        if found := {attribute for _, attribute in of_shown(tree)}:
            read[name] = found
    assert read == {name: set(attributes) for name, attributes in MAY_READ.items()}  # nor more than is needed


def test_no_import_of_ours_hides_a_circle_in_the_studies() -> None:
    for path in (PACKAGE / "experiments").rglob("*.py"):
        assert "TYPE_CHECKING" not in path.read_text(encoding="utf-8"), path
