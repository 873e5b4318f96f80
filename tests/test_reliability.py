"""No command hangs, ends in a traceback, changes its input, leaves half a result, or passes silently over what is wrong.

The written list is in ``damage.py``; what a command may not do, in ``trial.py``. `pytest -m exhaustive tests/test_reliability.py`
tries every kind on every command that can meet it, and more random ones.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from damage import MASKS, TEXTS, VOLUMES, WEIGHTS, Kind, leaves, put
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from trial import Expected, Fault, Outcome, attempt

from latentsynth.data.intake.prepare import prepare

Words = Sequence[str | Path]
CASE = "phantom_002"
SCAN, MASK = f"cohort/imagesTr/{CASE}_0000.nii.gz", f"cohort/labelsTr/{CASE}.nii.gz"


@dataclass(frozen=True)
class Target:
    """A file that a command reads.

    Attributes:
        name: For people.
        file: Which one of the bench is spoilt.
        command: The command line, given the bench.
        kinds: Of damage.
    """

    name: str
    file: str
    command: Callable[[Path], Words]
    kinds: tuple[Kind, ...]


def _prepare(b: Path) -> Words:
    return ["prepare", b / "cohort", "--out", b / "new.json"]


def _sample(b: Path) -> Words:
    return ["sample", b / "ldm", "--masks", b / MASK, "--out", b / "out", "--steps", "1"]


def _segment(b: Path) -> Words:
    return ["segment", b / "segmenter", "--images", b / SCAN, "--out", b / "out"]


def _plan(b: Path) -> Words:
    return ["plan", b / "manifest.json", "--out", b / "planned", "--hours", "0.01"]


def _masks(b: Path) -> Words:
    return ["masks", "--real", b / "manifest.json", "--n", "5", "--set", "deform.draw=turn", "--out", b / "out"]


def _fidelity(b: Path) -> Words:
    samples = ["--samples", f"made={b / 'made/manifest.json'}", "--extractor", "random", "--cache", b / "cache"]
    return ["evaluate", "fidelity", "--real", b / "all.json", *samples, "--out", b / "out"]


def _memorization(b: Path) -> Words:
    folders = ["--train", b / "learnt", "--heldout", b / "heldout", "--samples", f"made={b / 'made/imagesTr'}"]
    return ["memorization", *folders, "--space", "voxels", "--level", "0.4", "--cache", b / "cache", "--out", b / "out"]


def _filter(b: Path) -> Words:
    segmenter = ["--segmenter", b / "segmenter", "--least-dice", "0.1"]
    return ["filter", b / "synthetic.json", *segmenter, "--cache", b / "cache", "--out", b / "f.json"]


def _export(b: Path) -> Words:
    return [
        "export",
        b / "made/manifest.json",
        "--licence",
        "CC0-1.0",
        "--without-privacy-report",
        "phantoms",
        "--out",
        b / "out",
    ]


def _report(b: Path) -> Words:
    return ["report", b / "ldm", "--out", b / "report.html"]


def _train(b: Path) -> Words:
    return ["train", "segmenter", b / "train.yaml", "--check"]


SCANS = (
    Target("prepare", SCAN, _prepare, VOLUMES),
    Target("segment", SCAN, _segment, VOLUMES),
    Target("memorization", f"learnt/{CASE}_0000.nii.gz", _memorization, VOLUMES),
    Target("prepare, a mask", MASK, _prepare, MASKS),
    Target("sample", MASK, _sample, VOLUMES[4:] + MASKS),
    Target("masks", MASK, _masks, VOLUMES[4:] + MASKS),
    Target("export", "made/labelsTr/*.nii.gz", _export, VOLUMES),
)


def _allowing(*names: str) -> tuple[Kind, ...]:
    """The kinds, some of which this file may have: others add keys to theirs, and half of a YAML file may be whole."""
    return tuple(replace(kind, expected=Expected.EITHER) if kind.name in names else kind for kind in TEXTS)


WRITTEN = (
    Target("prepare", "cohort/dataset.json", _prepare, _allowing("an unknown key")),
    Target("plan", "manifest.json", _plan, TEXTS),
    Target("masks", "manifest.json", _masks, TEXTS),
    Target("fidelity", "made/manifest.json", _fidelity, TEXTS),
    Target("filter", "synthetic.json", _filter, TEXTS),
    Target("export", "made/manifest.json", _export, TEXTS),
    Target("train", "train.yaml", _train, _allowing("torn")),
    Target("report", "ldm/config.yaml", _report, _allowing(*(kind.name for kind in TEXTS))),  # shown as it is
)
MODELS = (
    Target("sample, header", "ldm/checkpoint/config.json", _sample, TEXTS),
    Target("sample, ledger", "ldm/checkpoint/ledger.json", _sample, TEXTS),
    Target("sample, weights", "ldm/checkpoint/denoiser/*.safetensors", _sample, WEIGHTS),
    Target("segment, weights", "segmenter/checkpoint/*/*.safetensors", _segment, WEIGHTS),
)

OPTIONS: tuple[tuple[str, ...], ...] = (
    ("sample", "{b}/ldm", "--masks", "{b}/" + MASK, "--out", "{b}/out", "--seed", "-1"),
    ("sample", "{b}/ldm", "--masks", "{b}/" + MASK, "--out", "{b}/out", "--seed", str(2**64)),
    ("sample", "{b}/ldm", "--masks", "{b}/" + MASK, "--out", "{b}/out", "--per-mask", "1000000000"),
    ("sample", "{b}/ldm", "--masks", "{b}/" + MASK, "--out", "{b}/out", "--shift", "nan"),
    ("sample", "{b}/ldm", "--masks", "{b}/" + MASK, "--out", "{b}/out", "--guidance", "inf"),
    ("sample", "{b}/ldm", "--masks", "{b}/" + MASK, "--out", "{b}/out", "--steps", "0"),
    ("sample", "{b}/ldm", "--masks", "{b}/nowhere.nii.gz", "--out", "{b}/out"),
    ("sample", "{b}/nowhere", "--masks", "{b}/" + MASK, "--out", "{b}/out"),
    ("sample", "{b}/ldm", "--masks", "{b}/" + MASK, "--out", "{b}/cohort"),
    ("plan", "{b}/manifest.json", "--out", "{b}/planned", "--hours", "inf"),
    ("plan", "{b}/manifest.json", "--out", "{b}/planned", "--hours", "nan"),
    ("plan", "{b}/manifest.json", "--out", "{b}/planned", "--hours", "-1"),
    ("masks", "--real", "{b}/manifest.json", "--n", "1", "--out", "{b}/out", "--lesions", "1:inf"),
    ("masks", "--real", "{b}/manifest.json", "--n", "1", "--out", "{b}/out", "--volume-ml", "5:1"),
    ("masks", "--real", "{b}/manifest.json", "--n", "1", "--out", "{b}/out", "--seed", "-3"),
    ("masks", "--real", "{b}/manifest.json", "--n", "1000000000", "--out", "{b}/out"),
    ("balance", "{b}/manifest.json", "--by", "site", "--site", "(", "--out", "{b}/out"),
    ("train", "segmenter", "{b}/train.yaml", "train.lr=true", "--check"),
    ("train", "segmenter", "{b}/train.yaml", "train.lr=nan", "--check"),
    ("train", "segmenter", "{b}/train.yaml", "train.images=2026-01-01", "--check"),
    ("train", "segmenter", "{b}/train.yaml", "seed=-1", "--check"),
    ("train", "segmenter", "{b}/train.yaml", "no.such.key=1", "--check"),
    ("prepare", "{b}/cohort", "--out", "{b}/new.json", "--patient", "("),
    ("prepare", "{b}/cohort", "--out", "{b}/new.json", "--seed", "-1"),
    ("prepare", "{b}/cohort", "--out", "{b}/new.json", "--fractions", "nan", "0.5", "0.5"),
    ("prepare", "{b}/cohort", "--out", "{b}/" + "x" * 300 + ".json"),
    ("export", "{b}/made/manifest.json", "--out", "{b}/out", "--licence", " ", "--without-privacy-report", "phantoms"),
    ("phantom", "--out", "{b}/out", "--cases", "1", "--size", "1000000"),
    ("phantom", "--out", "{b}/out", "--cases", "1", "--seed", "-1"),
    ("report", "{b}/nowhere", "--out", "{b}/report.html"),
)  # fmt: skip


@pytest.fixture(scope="session")
def bench(
    workplace: Path, trained_ldm: Path, trained_segmenter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with everything that commands read, small and good."""
    top = tmp_path_factory.mktemp("bench")
    shutil.copytree(workplace / "cohort", top / "cohort")
    shutil.copy(workplace / "manifest.json", top / "manifest.json")
    for run in (trained_ldm, trained_segmenter):
        shutil.copytree(run, top / run.name, ignore=shutil.ignore_patterns("state", "latents"))
    shutil.copy(workplace / "segmenter.yaml", top / "train.yaml")
    masks = ["--masks", top / "manifest.json", "--split", "train"]
    made = attempt(_words(["sample", top / "ldm", *masks, "--out", top / "out", "--steps", "1"]), top)
    assert made.code == 0, made
    (top / "out").rename(top / "made")
    prepare(top / "cohort", top / "all.json", fractions=(0.0, 1.0, 0.0), progress=False)
    prepare(top / "cohort", top / "synthetic.json", fractions=(1.0, 0.0, 0.0), synthetic=True, progress=False)
    for number, file in enumerate(sorted((top / "cohort/imagesTr").iterdir())):
        folder = top / ("learnt" if number < 4 else "heldout")
        folder.mkdir(exist_ok=True)
        shutil.copy(file, folder)
    return top


@pytest.fixture
def fresh(bench: Path, tmp_path: Path) -> Path:
    """A copy of the bench to spoil."""
    shutil.copytree(bench, tmp_path / "b")
    return tmp_path / "b"


def _words(words: Words) -> list[str]:
    return [str(word) for word in words]


def _one(b: Path, pattern: str) -> Path:
    return sorted(b.glob(pattern))[0]


def _pairs(targets: Iterable[Target], share: int) -> list[Any]:
    """Kinds on the commands that can meet them: all with the marker, and without it one in ``share``, each kind on some command."""
    found = []
    for at, target in enumerate(targets):
        for n, kind in enumerate(target.kinds):
            marks = [] if (n + at) % share == 0 else [pytest.mark.exhaustive]
            found.append(pytest.param(target, kind, id=f"{target.name}: {kind.name}", marks=marks))
    return found


def _check(outcome: Outcome, expected: Expected, words: tuple[str, ...] = ()) -> None:
    fault = outcome.fault(expected, words)
    assert fault is None, (
        f"{fault}; should {expected}\n{outcome.said[-600:]}\n{outcome.raised[-900:]}\n{outcome.left}{outcome.changed}"
    )


@pytest.mark.parametrize(("target", "kind"), [*_pairs(SCANS, 3), *_pairs(WRITTEN, 3), *_pairs(MODELS, 2)])
def test_damaged_files(fresh: Path, target: Target, kind: Kind) -> None:
    kind.damage(_one(fresh, target.file))
    _check(attempt(_words(target.command(fresh)), fresh), kind.expected, kind.words)


@pytest.mark.parametrize("target", [*SCANS, *WRITTEN, *MODELS], ids=lambda target: target.name)
def test_the_same_commands_take_good_files(fresh: Path, target: Target) -> None:
    """Without this, a command that refuses everything would pass."""
    _check(attempt(_words(target.command(fresh)), fresh), Expected.TAKEN)


@pytest.mark.parametrize("words", list(OPTIONS), ids=" ".join)
def test_values_out_of_range(fresh: Path, words: tuple[str, ...]) -> None:
    _check(attempt([word.replace("{b}", str(fresh)) for word in words], fresh), Expected.REFUSED)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.just("../../x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
_UNSHRUNK = (Phase.explicit, Phase.generate)  # examples are small, and each takes a second
_QUIET = settings(max_examples=12, suppress_health_check=list(HealthCheck), phases=_UNSHRUNK)
_LONG = settings(max_examples=150, suppress_health_check=list(HealthCheck), phases=_UNSHRUNK)
_EDITED = (*WRITTEN, *MODELS[:2])


@contextmanager
def _copy(bench: Path, folder: Path) -> Iterator[Path]:
    """A bench to spoil, as ``fresh`` gives once a test, for each of many examples."""
    top = folder / f"b{next(_COUNT)}"
    shutil.copytree(bench, top)
    try:
        yield top
    finally:
        shutil.rmtree(top)


def _edited(bench: Path, tmp_path: Path, data: st.DataObject) -> None:
    """One value of a file that a person could edit becomes another."""
    target = data.draw(st.sampled_from(_EDITED))
    with _copy(bench, tmp_path) as top:
        file = _one(top, target.file)
        plain = file.suffix == ".json"
        value = json.loads(file.read_text()) if plain else yaml.safe_load(file.read_text())
        put(value, data.draw(st.sampled_from(leaves(value))), data.draw(_JSON))
        file.write_text(json.dumps(value) if plain else yaml.safe_dump(value, allow_unicode=True))
        _check(attempt(_words(target.command(top)), top), Expected.EITHER)


def _flipped(bench: Path, tmp_path: Path, data: st.DataObject) -> None:
    """A few bytes of a scan's header or of its compressed stream become others."""
    target = data.draw(st.sampled_from(SCANS))
    with _copy(bench, tmp_path) as top:
        file = _one(top, target.file)
        compressed = data.draw(st.booleans())
        raw = bytearray(file.read_bytes() if compressed else gzip.decompress(file.read_bytes()))
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1 if compressed else 351))] = data.draw(st.integers(0, 255))
        file.write_bytes(bytes(raw) if compressed else gzip.compress(bytes(raw)))
        _check(attempt(_words(target.command(top)), top), Expected.EITHER)


_COUNT = count()


@_QUIET
@given(data=st.data())
def test_random_values_in_edited_files(
    bench: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    _edited(bench, tmp_path_factory.getbasetemp(), data)


@_QUIET
@given(data=st.data())
def test_random_bytes_in_scans(bench: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    _flipped(bench, tmp_path_factory.getbasetemp(), data)


@pytest.mark.exhaustive
@_LONG
@given(data=st.data())
def test_more_random_damage(bench: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    data.draw(st.sampled_from((_edited, _flipped)))(bench, tmp_path_factory.getbasetemp(), data)


def _row(what: str, targets: Sequence[Target], share: int) -> str:
    kinds = {kind.name for target in targets for kind in target.kinds}
    pairs = _pairs(targets, share)
    quick = sum(not pair.marks for pair in pairs)
    return f"| {what} | {len(kinds)} | {len(targets)} | {len(pairs)} | {quick} |"


def test_the_documents_count_what_is_tried() -> None:
    rows = [
        _row("scans and masks: NaN, torn gzip streams, singular affines, colours, wrong labels ...", SCANS, 3),
        _row("files that people edit: torn, repeated and unknown keys, other types, deep nesting ...", WRITTEN, 3),
        _row("checkpoints: headers, ledgers, weights", MODELS, 2),
        f"| options and overrides out of range | {len(OPTIONS)} | {len({words[0] for words in OPTIONS})} | {len(OPTIONS)} | {len(OPTIONS)} |",
    ]
    text = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text()
    for row in rows:
        assert row in text, row


# The suite itself: commands that do each of the things that none may do.


def _hangs(_: list[str]) -> None:
    time.sleep(30)


def _raises(_: list[str]) -> None:
    raise KeyError("x")


def _gives_up(_: list[str]) -> None:
    print("error: unexpected KeyError: 'x'; this is a fault of latentsynth")
    sys.exit(70)


def _leaves(arguments: list[str]) -> None:
    Path(arguments[0], "half.nii.gz").write_bytes(b"\x1f")
    print("error: no")
    sys.exit(1)


def _changes(arguments: list[str]) -> None:
    Path(arguments[0], "given.txt").write_text("other")


def _leaves_partial(arguments: list[str]) -> None:
    Path(arguments[0], ".partial-x").write_text("")


def _says_nothing(_: list[str]) -> None:
    sys.exit(1)


def _passes(_: list[str]) -> None:
    print("done")


def _refuses(_: list[str]) -> None:
    print("error: x is not y: do z")
    sys.exit(1)


@pytest.mark.parametrize(
    ("command", "expected", "fault"),
    [
        (_hangs, Expected.REFUSED, Fault.HANG),
        (_raises, Expected.EITHER, Fault.TRACEBACK),
        (_gives_up, Expected.REFUSED, Fault.TRACEBACK),
        (_leaves, Expected.REFUSED, Fault.LEFT_BEHIND),
        (_leaves_partial, Expected.TAKEN, Fault.LEFT_BEHIND),
        (_changes, Expected.TAKEN, Fault.CHANGED),
        (_says_nothing, Expected.REFUSED, Fault.SPEECHLESS),
        (_passes, Expected.REFUSED, Fault.SILENT),
        (_passes, Expected.SAID, Fault.SILENT),
        (_refuses, Expected.TAKEN, Fault.WRONGLY_REFUSED),
        (_refuses, Expected.REFUSED, None),
        (_passes, Expected.TAKEN, None),
    ],
)
def test_planted_faults_are_caught(
    tmp_path: Path, command: Callable[[list[str]], None], expected: Expected, fault: Fault | None
) -> None:
    (tmp_path / "given.txt").write_text("as it was")
    outcome = attempt([str(tmp_path)], tmp_path, command, limit_s=0.3)
    assert outcome.fault(expected, ("lost",)) is fault
