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


def shown_commands(page: Path) -> list[str]:
    """Lines of bash blocks and inline code that start with our command or one of our scripts."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`((?:latentsynth|accelerate launch|ACCELERATE_USE_CPU)[^`]+)`", text)
    return [line for line in lines if "latentsynth " in line or "scripts/" in line]


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words lead to, and the words after it."""
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def complaint(line: str) -> str:
    """What is wrong with a shown command, or ""."""
    words = shlex.split(line)
    if "latentsynth" in words:
        words = words[words.index("latentsynth") + 1 :]
    else:
        script = next(n for n, word in enumerate(words) if word.startswith("scripts/"))
        if not (ROOT / words[script]).is_file():
            return f"{words[script]} does not exist"
        verbs = re.findall(r'"([a-z]+)"', (ROOT / words[script]).read_text().split("main([")[1].split("*")[0])
        words = [*verbs, *words[script + 1 :]]
    if words and words[0].startswith("--"):
        return ""
    command, rest = resolve(words)
    if getattr(command, "commands", None) and rest and not rest[0].startswith("-"):
        return f"{rest[0]} is not a command"
    options = {option for parameter in getattr(command, "params", []) for option in parameter.opts} | {
        "--help",
        "--debug",
    }
    unknown = [word for word in rest if word.startswith("--") and word.split("=")[0] not in options]
    return f"unknown options {unknown}" if unknown else ""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_shown_command_exists(page: Path) -> None:
    wrong = {line: complaint(line) for line in shown_commands(page)}
    assert not {line: why for line, why in wrong.items() if why}


def test_a_wrong_command_would_be_found() -> None:
    assert complaint("latentsynth trian ldm x") == "trian is not a command"
    assert "--mask'" in complaint("latentsynth sample x --mask y")
    assert "does not exist" in complaint("accelerate launch scripts/train_everything.py x")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_named_file_and_link_is_there(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"(?:configs|tests|scripts|benchmarks|latentsynth)/[\w/.-]+\.(?:yaml|py)", text))
    missing = {
        name for name in named if not (ROOT / name).is_file() and "configs/mine" not in name and "runs/" not in name
    }
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
