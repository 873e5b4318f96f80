"""The documentation: every command it shows exists, every file it names is there, the reference is up to date."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from latentsynth.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def block_lines(page: Path) -> list[str]:
    """Lines of bash blocks, long ones joined."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and line[0] != "#"]


def mentioned(page: Path) -> list[str]:
    """Inline code that starts with our command or one of our scripts."""
    return re.findall(r"`((?:latentsynth|accelerate launch|ACCELERATE_USE_CPU)[^`]+)`", page.read_text())


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words lead to, and the words after it."""
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def ours(line: str) -> list[str] | None:
    """The words after our command, or those that a script of ours stands for; None for another program's line.

    Raises:
        FileNotFoundError: No such script.
    """
    words = shlex.split(line, comments=True)
    if "latentsynth" in words and words[0] != "docker":
        return words[words.index("latentsynth") + 1 :]
    script = next((n for n, word in enumerate(words) if word.startswith("scripts/")), None)
    if script is None:
        return None
    verbs = re.findall(r'"([a-z]+)"', (ROOT / words[script]).read_text().split("main([")[1].split("*")[0])
    return [*verbs, *words[script + 1 :]]


def complaint(line: str) -> str:
    """What is wrong with a line of a block, or ""."""
    try:
        words = ours(line)
    except FileNotFoundError as error:
        return f"{error.filename} does not exist"
    if words is None:
        return foreign(shlex.split(line, comments=True))
    command, rest = resolve(words)
    if getattr(command, "commands", None):
        known = any(rest[:1] == [option] for parameter in command.params for option in parameter.opts)
        return "" if known else f"{rest[0] if rest else line} is not a command"
    try:
        command.make_context(command.name, list(rest))  # every argument and option, their number and their types
    except Exception as error:  # typer's, whose base is not public
        return str(error)
    return ""


def foreign(words: list[str]) -> str:
    """What is wrong with another program's line."""
    targets = re.findall(
        r"^([a-z-]+):", (ROOT / "Makefile").read_text() + (ROOT / "results.mk").read_text(), flags=re.MULTILINE
    )
    if words[0] == "make" and words[1] not in targets:
        return f"make {words[1]}: no such target"
    if words[0] == "python" and words[1] != "-m" and not (ROOT / words[1]).is_file():
        return f"{words[1]} does not exist"
    return (
        ""
        if words[0] in ("make", "python", "pip", "docker", ".venv/bin/pre-commit")
        else f"{words[0]} is not known here"
    )


def doubt(line: str) -> str:
    """What is wrong with a command in a sentence, which may leave out what it needs, or ""."""
    words = ours(line)
    command, rest = resolve(words or [])
    if getattr(command, "commands", None) and rest and not rest[0].startswith("-"):
        return f"{rest[0]} is not a command"
    options = {option for parameter in getattr(command, "params", []) for option in parameter.opts} | {
        "--help",
        "--debug",
    }
    unknown = [word for word in rest if word.startswith("--") and word.split("=")[0] not in options]
    return f"unknown options {unknown}" if unknown else ""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_shown_command_can_be_typed(page: Path) -> None:
    wrong = {line: complaint(line) for line in block_lines(page)} | {line: doubt(line) for line in mentioned(page)}
    assert not {line: why for line, why in wrong.items() if why}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("latentsynth trian ldm x", "trian is not a command"),
        ("latentsynth sample x --mask y", "--mask"),
        ("latentsynth plan m.json --hours many", "should be a valid number"),
        ("latentsynth prepare", "source"),
        ("latentsynth demo here", "here"),
        ("accelerate launch scripts/train_everything.py x", "does not exist"),
        ("python benchmarks/nothing.py", "does not exist"),
        ("make coffee", "no such target"),
        ("latensynth demo", "is not known here"),
    ],
)
def test_a_wrong_command_would_be_found(line: str, why: str) -> None:
    assert why in complaint(line)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_named_file_and_link_is_there(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"(?:configs|tests|scripts|benchmarks|latentsynth)/[\w/.-]+\.(?:yaml|py)", text))
    planned = ("configs/mine/", "configs/brats/", "runs/")  # what commands of the page write
    missing = {name for name in named if not (ROOT / name).is_file() and not any(part in name for part in planned)}
    missing = {name for name in missing if f"runs/tutorial/{name}" not in text}
    links = re.findall(r"\]\(([^)#]+)\)", text)
    missing |= {link for link in links if "://" not in link and not (page.parent / link).exists()}
    assert not missing


def test_the_reference_is_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    cure = "run `python docs/generate.py`"
    assert (ROOT / "docs/reference/commands.md").read_text() == generate.commands(), cure
    assert (ROOT / "docs/reference/configuration.md").read_text() == generate.configuration(), cure
    assert (ROOT / "docs/reference/python.md").read_text() == generate.python(), cure


def test_committed_configurations_load() -> None:
    from latentsynth.config import (
        AutoencoderRun,
        GanRun,
        LdmRun,
        MaskRun,
        MemorizationStudy,
        SegmenterRun,
        Strict,
        UtilityStudy,
        load,
    )

    found = [path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name not in ("accelerate", "planned")]
    assert len(found) >= 18

    def kind(path: Path) -> type[Strict]:
        if path.stem.endswith("memorization"):
            return MemorizationStudy
        if path.stem.endswith("utility") or path.parent.name == "experiment":
            return UtilityStudy
        if "ldm" in path.stem or path.stem.endswith("insertion"):
            return LdmRun
        if any(word in path.stem for word in ("gan", "spade", "pix2pix")):
            return GanRun
        if any(word in path.stem for word in ("slice_vae", "label_vae", "diffusion")):
            return MaskRun
        judges = ("unet", "swin", "segmenter")
        return SegmenterRun if any(word in path.stem for word in judges) else AutoencoderRun

    for path in found:
        load(kind(path), path)
