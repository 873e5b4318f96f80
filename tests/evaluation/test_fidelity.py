"""Fidelity of planted cohorts: copies, blurred and collapsed ones, and what is refused or said."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import run
from scipy import ndimage

from latentsynth.data import nifti
from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.data.intake.prepare import prepare
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.features import volumes
from latentsynth.evaluation.fidelity.comparison import FLOOR
from latentsynth.evaluation.fidelity.evaluate import evaluate_fidelity
from latentsynth.extractors.networks import NetworkExtractor, RandomNetwork
from latentsynth.metrics.diversity import ms_ssim
from latentsynth.phantom.cohort import write_cohort
from latentsynth.results import Result, Table
from latentsynth.types import Case, Framing, Grid, Window

WHOLE = Framing()
GRID = Grid((24, 24, 24), (8.0, 8.0, 8.0), (Window("fixed", -160.0, 240.0),))


def phantoms(folder: Path, seed: int, cases: int = 10) -> Manifest:
    write_cohort(folder / "cohort", cases, seed=seed, shape=(24, 24, 24), spacing_mm=(8.0, 8.0, 8.0), channels=1)
    prepare(folder / "cohort", folder / "manifest.json", fractions=(0.0, 0.5, 0.5), progress=False)
    return Manifest.load(folder / "manifest.json")


def synthetic(folder: Path, manifest: Manifest, change: Any = None, parents: Sequence[str] | None = None) -> Manifest:
    """A cohort that says it is synthetic, its voxels changed, one parent per case."""
    cases = []
    for n, case in enumerate(manifest.cases):
        images = case.images
        if change is not None:
            voxels, affine = nifti.read(case.images[0])
            images = (folder / f"{n}.nii.gz",)
            nifti.write(images[0], change(n, voxels).astype(np.float32), affine)
        parent = parents[n] if parents else f"stranger-{n}"
        cases.append(Case(f"synthetic-{n}", f"synthetic-{n}", images, case.mask, "train", "model:0", (parent,)))
    made = replace(manifest, cases=tuple(cases))
    made.save(folder / "synthetic.json")
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, workplace: Path) -> dict[str, Manifest]:
    folder = tmp_path_factory.mktemp("fidelity")
    real, other = phantoms(folder / "real", 1), phantoms(folder / "other", 2)
    first, _ = nifti.read(other.cases[0].images[0])
    noise = np.random.default_rng(0).normal(0, 2.0, first.shape)
    return {
        "real": real,
        "good": synthetic(folder / "good", other),
        "blurred": synthetic(folder / "blurred", other, lambda n, voxels: ndimage.gaussian_filter(voxels, 1.5)),
        "collapsed": synthetic(folder / "collapsed", other, lambda n, voxels: first + noise * (n + 1) / 10),
        "pairs": synthetic(folder / "pairs", other, parents=[f"patient-{n // 2}" for n in range(10)]),
    }


def evaluate(
    out: Path,
    cpu: Accelerator,
    real: Manifest,
    *samples: tuple[str, Manifest],
    extractors: Sequence[Any] = (),
    framing: Framing = WHOLE,
) -> tuple[Result, dict[str, VolumeCache]]:
    cohorts = [Cohort(name, manifest, manifest.cases) for name, manifest in (("real", real), *samples)]
    caches = {c.name: volumes(c, GRID, framing, real.labels, out.parent / "cache", cpu) for c in cohorts}
    return evaluate_fidelity(cohorts[0], cohorts[1:], caches, extractors or [RandomNetwork(1)], out, cpu), caches


def table(result: Result, start: str) -> Table:
    return next(one for one in result.tables if one.title.startswith(start))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes long and is looked at elsewhere."""
    monkeypatch.setattr("latentsynth.evaluation.fidelity.evaluate._PAIRS", 3)
    monkeypatch.setattr("latentsynth.evaluation.fidelity.evaluate.contact_sheet", lambda *given: None)


def rows(of: Table) -> dict[str, tuple[Any, ...]]:
    return {str(row[0]): row[1:] for row in of.rows}


def test_faults_are_told(tmp_path: Path, cpu: Accelerator, made: dict[str, Manifest]) -> None:
    names = ("good", "blurred", "collapsed")
    result, _ = evaluate(tmp_path / "out", cpu, made["real"], *((name, made[name]) for name in names))
    scores = rows(table(result, "fidelity by random:0"))
    floor = scores["floor: other half of real"]
    good, blurred, collapsed = (scores[name] for name in names)
    assert good[:2] == (10, 10)  # patients or masks, and volumes
    assert good[2].value < 1.7 * floor[2].value
    assert blurred[2].value > 2 * good[2].value
    assert collapsed[4].low > good[4].high  # KID
    assert collapsed[6].value < 0.3 < good[6].value  # recall
    apart = {row[:2]: row[2:] for row in table(result, "differences by random:0").rows}
    assert apart["good", FLOOR][0].low < 0 < apart["good", FLOOR][0].high
    assert apart["blurred", FLOOR][0].low > 0
    assert apart["blurred", "good"][0].low > 0
    looks = rows(table(result, "fidelity by radiomics of the body"))
    assert looks["good"][2].value < 1.7 * looks[FLOOR][2].value
    for fault in ("blurred", "collapsed"):
        assert looks[fault][2].low > looks["good"][2].value
    answers = {name: {one.answer for one in result.conclusions if one.about == name} for name in names}
    assert "no" in answers["blurred"]
    assert "no" in answers["collapsed"]
    assert "no" not in answers["good"]
    sharp = result.facts["sharpness"]
    assert {name: sharp[name]["as_real"] for name in ("good", "blurred")} == {"good": True, "blurred": False}
    finest = next(one for one in sharp["blurred"]["measures"] if one["measure"]["kind"] == "power")
    assert finest["value"]["high"] < 0.5 < finest["low"]
    assert sharp["grid and back"]["as_real"]  # the scans' own grid is the model's
    assert table(result, "sharpness of blurred").note.startswith("does not score as real")
    assert table(result, "sharpness of good").rows[0][:2] == ("CT", "power, 16 to 32 mm")
    alike = rows(table(result, "diversity"))
    assert alike["collapsed"][0] > alike["good"][0] + 0.1
    assert alike["good"][0] == pytest.approx(alike["real"][0], abs=0.1)
    assert all(row[2] is None and row[3] == 0 for row in alike.values())  # nobody has two volumes


@pytest.mark.usefixtures("quick")
def test_lesions_have_a_radiomics_distance_of_their_own(
    tmp_path: Path, cpu: Accelerator, made: dict[str, Manifest]
) -> None:
    """A lesion filled with one value differs by the lesion's texture far more than by the body's."""
    value = max(made["good"].labels.values)

    def filled(n: int, voxels: np.ndarray) -> np.ndarray:
        mask, _ = nifti.read(made["good"].cases[n].mask)  # type: ignore[arg-type]
        return np.where(mask == value, 60.0, voxels)

    (tmp_path / "filled").mkdir()
    flat = synthetic(tmp_path / "filled", made["good"], filled)
    around = Framing("lesion", "scale", (value,))
    result, _ = evaluate(tmp_path / "out", cpu, made["real"], ("good", made["good"]), ("flat", flat), framing=around)
    body, lesion = (rows(table(result, f"differences by radiomics of the {name}")) for name in ("body", "lesion"))
    by = {row[:2]: row[2] for row in table(result, "differences by radiomics of the lesion").rows}
    assert by["flat", "good"].low > 0  # type: ignore[union-attr]
    assert lesion["flat"][1].value > 3 * abs(body["flat"][1].value)
    assert rows(table(result, "fidelity by radiomics of the lesion"))["flat"][:2] == (10, 10)


def test_volumes_of_one_mask_are_told_from_strangers(
    tmp_path: Path, cpu: Accelerator, made: dict[str, Manifest]
) -> None:
    result, caches = evaluate(tmp_path / "out", cpu, made["real"], ("pairs", made["pairs"]))
    apart, count, alike, pairs = rows(table(result, "diversity"))["pairs"]
    assert (count, pairs) == (45 - 5, 5)
    images = [caches["pairs"].volume(n).image[None] for n in range(10)]

    def similarity(a: int, b: int) -> float:
        return float(ms_ssim(torch.from_numpy(images[a]), torch.from_numpy(images[b])))

    assert alike == pytest.approx(np.mean([similarity(2 * n, 2 * n + 1) for n in range(5)]), rel=1e-5)
    others = [similarity(a, b) for a in range(10) for b in range(a + 1, 10) if a // 2 != b // 2]
    assert apart == pytest.approx(np.mean(others), rel=1e-5)


def test_what_is_written(tmp_path: Path, cpu: Accelerator, made: dict[str, Manifest]) -> None:
    out = tmp_path / "out"
    mean = NetworkExtractor(
        "mean", "print", lambda image: torch.stack([image.mean((1, 2, 3, 4)), image.std((1, 2, 3, 4))], 1)
    )
    result, _ = evaluate(out, cpu, made["real"], ("good", made["good"]), extractors=[RandomNetwork(1, 4), mean])
    assert Result.load(out / "fidelity.json").notes == result.notes
    assert set(result.facts["extractors"]) == {"random:4", "mean", "radiomics of the body"}
    assert result.facts["cohorts"]["good"] == {"manifest": made["good"].fingerprint, "cases": 10}
    for picture in result.pictures:
        assert (out / picture.file).read_bytes().startswith(b"\x89PNG")
    with (out / "fidelity.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["extractor"], line["volumes"]) for line in lines] == [
        (name, row) for name in ("random:4", "mean", "radiomics of the body") for row in (FLOOR, "good")
    ]
    shown = rows(table(result, "fidelity by mean"))["good"]
    assert float(lines[3]["frechet"]) == pytest.approx(shown[2].value, rel=1e-5)
    assert float(lines[3]["frechet_low"]) == pytest.approx(shown[2].low, rel=1e-5)
    assert "24 x 24 x 24 voxels of 8 x 8 x 8 mm" in result.notes[-1]
    assert "fixed -160 to 240" in result.notes[-1]
    again, _ = evaluate(
        tmp_path / "again", cpu, made["real"], ("good", made["good"]), extractors=[RandomNetwork(1, 4), mean]
    )
    assert again.tables == result.tables


@pytest.mark.usefixtures("quick")
def test_an_extractor_of_one_feature_will_do(tmp_path: Path, cpu: Accelerator, made: dict[str, Manifest]) -> None:
    mean = NetworkExtractor("mean", "print", lambda image: image.flatten(2).mean(2))
    _, caches = evaluate(tmp_path / "out", cpu, made["real"], ("good", made["good"]), extractors=[mean])
    one, other = (np.array([caches[name].volume(n).image.mean() for n in range(10)]) for name in ("real", "good"))
    # Of numbers, the Frechet distance is that of two normal densities.
    expected = (one.mean() - other.mean()) ** 2 + (one.std(ddof=1) - other.std(ddof=1)) ** 2
    with (tmp_path / "out" / "fidelity.csv").open(newline="") as stream:
        found = {line["volumes"]: line["frechet_raw"] for line in csv.DictReader(stream) if line["extractor"] == "mean"}
    assert float(found["good"]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.usefixtures("quick")
def test_relatives_are_said(tmp_path: Path, cpu: Accelerator, made: dict[str, Manifest]) -> None:
    children = [made["real"].cases[n].patient_id if n < 3 else f"stranger-{n}" for n in range(10)]
    cases = tuple(replace(case, parents=(who,)) for case, who in zip(made["good"].cases, children, strict=True))
    result, _ = evaluate(tmp_path / "out", cpu, made["real"], ("kin", replace(made["good"], cases=cases)))
    assert any(note.startswith("kin: 3 of 10 volumes were made from") for note in result.notes)
    strangers, _ = evaluate(tmp_path / "out2", cpu, made["real"], ("good", made["good"]))
    assert len(strangers.notes) == 1


@pytest.mark.usefixtures("quick")
def test_synthetic_references_are_said(tmp_path: Path, cpu: Accelerator, made: dict[str, Manifest]) -> None:
    result, _ = evaluate(tmp_path / "out", cpu, made["good"], ("blurred", made["blurred"]))
    assert any("real holds synthetic cases" in note for note in result.notes)


def test_what_cannot_be_compared_is_refused(tmp_path: Path, cpu: Accelerator, made: dict[str, Manifest]) -> None:
    scans = tuple(replace(case, patient_id="p", split="val") for case in made["real"].cases)
    with pytest.raises(DataError, match="1 real patients are too few"):  # patients count, not scans
        evaluate(tmp_path / "out", cpu, replace(made["real"], cases=scans), ("good", made["good"]))
    for names in (("good", "good"), ("real",)):
        with pytest.raises(DataError, match="give every one a name of its own"):
            evaluate(tmp_path / "out", cpu, made["real"], *((name, made["good"]) for name in names))
    with pytest.raises(DataError, match=r"good has channels \('MR',\)"):
        evaluate(tmp_path / "out", cpu, made["real"], ("good", replace(made["good"], channels=("MR",))))
    assert not (tmp_path / "out").exists()


def test_the_command(
    tmp_path: Path, made: dict[str, Manifest], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = tuple(replace(case, split="val" if n < 2 else "test") for n, case in enumerate(made["real"].cases))
    replace(made["real"], cases=scans).save(tmp_path / "real.json")
    made["good"].save(tmp_path / "samples" / "manifest.json")
    out = tmp_path / "out"
    command = (
        "evaluate", "fidelity", "--real", tmp_path / "real.json", "--samples", tmp_path / "samples" / "manifest.json",
        "--cache", tmp_path / "cache",
    )  # fmt: skip
    assert run(monkeypatch, *command, "--split", "test", "--extractor", "random", "--out", out) == 0
    printed = capsys.readouterr().out
    value = json.loads((out / "fidelity.json").read_text())
    assert [row[0] for row in value["tables"][0]["rows"]] == ["floor: other half of real", "samples"]
    assert value["facts"]["cohorts"]["real"]["cases"] == len(scans) - 2
    assert value["splits"] == ["test"]
    for name in ("fidelity.json", *(picture["file"] for picture in value["pictures"])):
        assert (out / name).is_file()
        assert str(out / name) in printed.replace("\n", "")

    for wrong, words in (
        (("--split", "all"), "choose one of train, val, test"),
        (("--extractor-images", "3"), "equal to 16"),
        (("--colour", "red"), "No such option"),
    ):
        assert run(monkeypatch, *command, "--out", tmp_path / "wrong", *wrong) == 2
        assert words in " ".join(capsys.readouterr().err.replace("│", "").split())
    for wrong, words in (
        (("--split", "test", "--extractor", "inception"), "unknown extractor 'inception'"),
        (("--split", "train"), "no case in split train"),
    ):
        assert run(monkeypatch, *command, "--out", tmp_path / "wrong", "--extractor", "random", *wrong) == 1
        (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
        assert words in line
    assert not (tmp_path / "wrong").exists()

    few = tmp_path / "few"  # the split val has two patients: what needs no halves is measured all the same
    assert run(monkeypatch, *command, "--extractor", "random", "--out", few) == 0
    value = json.loads((few / "fidelity.json").read_text())
    assert any("no distances between sets: real has 2 patients" in note for note in value["notes"])
    assert not any("Frechet" in column for table in value["tables"] for column in table["columns"])
    assert value["facts"]["sharpness"]
    assert {one["question"] for one in value["conclusions"]} == {"Do they look right?"}
