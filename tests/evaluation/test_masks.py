"""Sets of masks with planted faults: copied, grown, moved, broken, collapsed; and sets that are like the real ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from helpers import run

from latentsynth.data import nifti
from latentsynth.data.manifest import Manifest
from latentsynth.errors import ConfigError, DataError
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.masks.evaluate import evaluate_masks
from latentsynth.evaluation.masks.evaluate import figures as mask_figures
from latentsynth.metrics.wasserstein import halves_distance, set_distance
from latentsynth.provenance import Ledger
from latentsynth.results import Result, Table
from latentsynth.types import Case, Labels

SHAPE, VOXEL_MM = (36, 36, 36), 4.0
AFFINE = np.diag([VOXEL_MM] * 3 + [1.0])
LABELS = Labels((0, 1, 3), ("background", "organ", "lesion"))
COUNT = 24
_SHEET = mask_figures._sheet
Change = Callable[[np.ndarray], np.ndarray]


def anatomy(seed: int, growth: float = 1.0, shift: int = 0, split: bool = False) -> np.ndarray:
    """A round organ about the middle with an ellipsoid lesion about 16 mm to its left; the same for the same seed."""
    rng = np.random.default_rng(seed)
    # Along the patient: first the organ's place, then the lesion's in it.
    middle = np.array(SHAPE) / 2 + rng.normal(0, 1, 3)
    centre = middle + rng.normal((shift - 4, 0, 0), 1)
    radii = 16 / VOXEL_MM * np.exp(rng.normal(0, 0.1, 3)) * growth
    at = np.indices(SHAPE).reshape(3, -1).T
    values = np.zeros(SHAPE, np.int16)
    values[(np.linalg.norm(at - middle, axis=1) < 12).reshape(SHAPE)] = 1
    inside = (np.linalg.norm((at - centre) / radii, axis=1) < 1).reshape(SHAPE)
    if split:
        inside[:, :, round(centre[2])] = False
    values[inside] = 3
    return values


def write(folder: Path, maps: list[np.ndarray], source: str = "made:0", affine: np.ndarray = AFFINE, **facts: Any) -> Cohort:  # fmt: skip
    """A cohort of label maps, with its manifest on disk."""
    cases = []
    for n, values in enumerate(maps):
        file = folder / "masks" / f"{n:02d}.nii.gz"
        nifti.write(file, values, affine)
        split = facts.get("split", "train")
        cases.append(Case(f"{folder.name}-{n}", f"{folder.name}-{n}", (), file, split, source))
    manifest = Manifest(folder.name, (), facts.get("labels", LABELS), tuple(cases))
    manifest.save(folder / "manifest.json")
    return Cohort(folder.name, manifest, manifest.cases)


def maps(start: int, count: int = COUNT, **attribute: Any) -> list[np.ndarray]:
    return [anatomy(start + n, **attribute) for n in range(count)]


def with_stray(values: np.ndarray) -> np.ndarray:
    """The same lesion with a small one far off, which moves the centroid of both."""
    changed = values.copy()
    changed[30:33, 16:19, 16:19] = 3
    return changed


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Leaves out the pictures, which one test looks at, and most bootstrap draws."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mask_figures, "_sheet", lambda path, *given: path)
        patched.setattr(mask_figures, "set_distance", partial(set_distance, draws=200))
        patched.setattr(mask_figures, "halves_distance", partial(halves_distance, draws=100))
        yield


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory, workplace: Path) -> dict[str, Cohort]:
    folder = tmp_path_factory.mktemp("masks")
    learnt = maps(1000)
    sets = {
        "alike": maps(3000),
        "copies": learnt,
        "moved copies": [np.roll(values, (2, 3, -2), (0, 1, 2)) for values in learnt],
        "strays": [with_stray(values) for values in learnt],
        "grown": maps(4000, growth=2 ** (1 / 3)),
        "aside": maps(5000, shift=8),
        "broken": maps(6000, split=True),
        "collapsed": maps(7000, 1) * COUNT,
    }
    made = {name: write(folder / name, found) for name, found in sets.items()}
    made["real"] = write(folder / "real", maps(2000), "real", split="test")
    made["train"] = write(folder / "train", learnt, "real")
    return made


def evaluate(out: Path, cpu: Accelerator, made: dict[str, Cohort], *names: str, **given: Any) -> Result:
    return evaluate_masks(
        made["real"], [made["train"]], [made[name] for name in names], out, cpu, given.get("lesions", (3,))
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, cpu: Accelerator, cohorts: dict[str, Cohort]) -> Result:
    names = [name for name in cohorts if name not in ("real", "train")]
    return evaluate(tmp_path_factory.mktemp("out"), cpu, cohorts, *names)


def differs(result: Result, name: str) -> set[str]:
    """Measures in which a set is said to differ."""
    return {str(row[0]) for row in result.tables[0].rows if row[1] == name and row[-1] == "DIFFERS"}


def rows(table: Table) -> dict[str, dict[str, Any]]:
    return {str(row[0]): dict(zip(table.columns, row, strict=True)) for row in table.rows}


def table(result: Result, start: str) -> dict[str, dict[str, Any]]:
    return rows(next(one for one in result.tables if one.title.startswith(start)))


def test_a_set_like_the_real_one_is_not_flagged(result: Result) -> None:
    assert not differs(result, "alike")
    assert table(result, "copies")["alike"]["verdict"] == "as unseen patients"
    assert not [note for note in result.notes if note.startswith("alike:") and "ledger" not in note]


def test_copies_are_flagged_all_of_them_also_where_they_were_moved(result: Result) -> None:
    found = table(result, "copies")
    for name in ("copies", "moved copies"):
        assert found[name]["flagged"].value == 1
        assert found[name]["Dice with the nearest, median"] == 1
        assert found[name]["verdict"] == "COPIES"
        assert any(note.startswith(f"{name}: 100% of the masks overlap") for note in result.notes)
    # Centred on each other these would meet in far less: where they lie, they are copies.
    assert found["strays"]["Dice with the nearest, median"] > 0.94
    assert found["grown"]["verdict"] == found["aside"]["verdict"] == "as unseen patients"
    assert found["real"]["flagged"] is None


def test_twice_the_volume_is_told(result: Result) -> None:
    assert {"volume, ml", "volume, log10 ml", "surface area, mm2"} <= differs(result, "grown")
    away = next(row for row in result.tables[0].rows if row[:2] == ("volume, log10 ml", "grown"))[5]
    assert away.value == pytest.approx(np.log10(2), abs=0.08)  # type: ignore[union-attr]
    assert not {"pieces", "left to right, mm"} & differs(result, "grown")


def test_another_place_is_told_and_nothing_else(result: Result) -> None:
    assert differs(result, "aside") == {"left to right, mm"}
    moved = next(row for row in result.tables[0].rows if row[:2] == ("left to right, mm", "aside"))
    assert moved[5].value == pytest.approx(8 * VOXEL_MM, abs=6)  # type: ignore[union-attr]


def test_broken_lesions_are_told(result: Result) -> None:
    assert {"pieces", "largest piece's share"} <= differs(result, "broken")
    assert "left to right, mm" not in differs(result, "broken")


def test_one_mask_over_and_over_covers_little(result: Result) -> None:
    found = table(result, "how well shapes are covered")
    floor = found["floor: other half of real"]
    assert found["collapsed"]["coverage"].value < 0.5 * floor["coverage"].value
    assert found["collapsed"]["recall"].value < 0.1
    assert found["alike"]["coverage"].value > 0.75 * floor["coverage"].value
    assert found["aside"]["precision"].value < 0.3 < found["alike"]["precision"].value
    assert any(note.startswith("collapsed: masks leave real shapes out (recall 0.0") for note in result.notes)


def test_places_are_those_within_the_organ(tmp_path: Path, cpu: Accelerator, cohorts: dict[str, Cohort]) -> None:
    """The whole patient moved in the field of view is no other place; without the organ it is."""
    moved = [np.roll(anatomy(8000 + n), 5, 1) for n in range(COUNT)]
    made = {**cohorts, "moved": write(tmp_path / "moved", moved)}
    result = evaluate(tmp_path / "organ", cpu, made, "moved")
    assert not differs(result, "moved")
    assert "everything that is labelled" in result.tables[0].note
    bare = {
        name: write(tmp_path / "bare" / name, [np.where(v == 3, v, 0).astype(np.int16) for v in found],
                    "real" if name in ("real", "train") else "made:0", split="test" if name == "real" else "train")
        for name, found in (("real", maps(2000)), ("train", maps(1000)), ("moved", moved))
    }  # fmt: skip
    result = evaluate(tmp_path / "centre", cpu, bare, "moved")
    assert differs(result, "moved") == {"back to front, mm"}
    assert "centre of the field of view" in result.tables[0].note


def test_voxel_size_is_no_difference_of_shape(tmp_path: Path, cpu: Accelerator, cohorts: dict[str, Cohort]) -> None:
    """Smooth bodies on finer voxels have other surfaces: all are brought to the coarser ones first, and that is said."""
    fine = [values.repeat(2, 0).repeat(2, 1).repeat(2, 2) for values in maps(3000)]
    affine = np.diag([VOXEL_MM / 2] * 3 + [1.0])
    affine[:3, 3] = -VOXEL_MM / 4
    made = {**cohorts, "alike": write(tmp_path / "alike", fine, affine=affine)}
    result = evaluate(tmp_path / "out", cpu, made, "alike")
    assert not differs(result, "alike")
    assert any("brought to cubes of 4 mm" in note for note in result.notes)
    assert result.facts["voxel_mm"] == VOXEL_MM


def test_the_order_of_axes_on_disk_is_no_matter(
    tmp_path: Path, cpu: Accelerator, cohorts: dict[str, Cohort], result: Result
) -> None:
    affine = AFFINE[:, [2, 0, 1, 3]].copy()
    affine[:3, 3] = affine[:3, 0] * -(SHAPE[2] - 1) * -1
    affine[:3, 0] *= -1
    turned = [np.ascontiguousarray(np.transpose(values, (2, 0, 1))[::-1]) for values in maps(5000, shift=8)]
    made = {**cohorts, "aside": write(tmp_path / "aside", turned, affine=affine)}
    again = evaluate(tmp_path / "out", cpu, made, "aside")
    for one, other in zip(again.tables[0].rows, [r for r in result.tables[0].rows if r[1] == "aside"], strict=True):
        np.testing.assert_allclose(one[2:5], other[2:5], rtol=1e-5)  # type: ignore[arg-type]
        assert one[5].value == pytest.approx(other[5].value, rel=1e-4, abs=1e-6)  # type: ignore[union-attr]


def test_a_label_that_is_never_made_is_told(tmp_path: Path, cpu: Accelerator, cohorts: dict[str, Cohort]) -> None:
    lost = [np.where(values == 1, 0, values).astype(np.int16) for values in maps(3000)]
    made = {**cohorts, "lost": write(tmp_path / "lost", lost)}
    result = evaluate(tmp_path / "out", cpu, made, "lost", lesions=())
    assert "organ: present" in differs(result, "lost")
    words = {row[0]: row[-1] for row in result.tables[0].rows if row[1] == "lost"}
    assert words["organ: sphericity"] == "no such mask"
    assert words["lesion: present"] == words["lesion: sphericity"] == ""


def test_everything_is_written_and_a_report_shows_it(
    tmp_path: Path, cohorts: dict[str, Cohort], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_figures, "_sheet", _SHEET)
    some = write(tmp_path / "some", maps(3000, 8))
    path = {name: one.cases[0].mask.parents[1] / "manifest.json" for name, one in cohorts.items()}  # type: ignore[union-attr]
    out = tmp_path / "out"
    code = run(
        monkeypatch, "evaluate", "masks", "--real", path["real"], "--split", "test", "--train", path["train"], "--train",
        path["train"], "--samples", f"mine={tmp_path / 'some' / 'manifest.json'}", "--lesion-labels", "3", "--out", out,
    )  # fmt: skip
    assert code == 0
    assert "Wasserstein distance" in capsys.readouterr().out
    saved = Result.load(out / "mask_shapes.json")
    assert saved.facts["cohorts"]["mine"]["masks"] == 8
    assert all((out / picture.file).stat().st_size > 5000 for picture in saved.pictures)
    with (out / "mask_shapes.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == COUNT + 8
    for line in lines[-8:]:
        values, _ = nifti.read(some.cases[int(line["case"].split("-")[1])].mask)  # type: ignore[arg-type]
        assert float(line["volume, ml"]) == pytest.approx((values == 3).sum() * VOXEL_MM**3 / 1000, rel=1e-5)
    assert json.loads((out / "mask_shapes.json").read_text())["kind"] == "mask_shapes"
    assert run(monkeypatch, "report", out, "--out", tmp_path / "page.html") == 0
    assert "Are synthetic masks like real ones?" in (tmp_path / "page.html").read_text()


# What is refused --------------------------------------------------------------------------------------------------


def test_patients_that_a_maker_saw_are_refused(tmp_path: Path, cpu: Accelerator, cohorts: dict[str, Cohort]) -> None:
    ledger = Ledger.of(cohorts["real"].cases[:2])
    made = {**cohorts, "alike": replace(cohorts["alike"], ledger=ledger)}
    with pytest.raises(DataError, match="maker of alike was trained on 2 of these 24"):
        evaluate(tmp_path / "out", cpu, made, "alike")
    with pytest.raises(DataError, match="24 real cases are of training patients"):
        evaluate(tmp_path / "out", cpu, {**cohorts, "train": replace(cohorts["real"], name="train")}, "alike")


def test_a_ledger_of_others_passes_and_relatives_are_said(
    tmp_path: Path, cpu: Accelerator, cohorts: dict[str, Cohort]
) -> None:
    alike, real = cohorts["alike"], cohorts["real"]
    children = tuple(replace(case, parents=(real.cases[0].patient_id,)) for case in alike.cases)
    made = {**cohorts, "alike": replace(alike, cases=children, ledger=Ledger.of(cohorts["train"].cases))}
    result = evaluate(tmp_path / "out", cpu, made, "alike")
    assert any(note.startswith("alike: 24 of 24 masks were made from those of the real") for note in result.notes)
    assert not any("ledger" in note for note in result.notes)
    assert not differs(result, "alike")  # all of one patient: no interval, so nothing can be said
    assert {row[-1] for row in result.tables[0].rows} == {"too few to say"}


def test_sets_that_cannot_be_compared_are_refused(tmp_path: Path, cpu: Accelerator, cohorts: dict[str, Cohort]) -> None:
    few = write(tmp_path / "few", maps(1, 5))
    with pytest.raises(DataError, match=r"5 of 5 masks of few .* at least 6"):
        evaluate(tmp_path / "out", cpu, {**cohorts, "few": few}, "few")
    empty = write(tmp_path / "empty", [np.where(v == 3, 1, v).astype(np.int16) for v in maps(1, 8)])
    with pytest.raises(DataError, match="0 of 8 masks of empty show a lesion"):
        evaluate(tmp_path / "out", cpu, {**cohorts, "empty": empty}, "empty")
    with pytest.raises(ConfigError, match="not labels of this cohort"):
        evaluate(tmp_path / "out", cpu, cohorts, "alike", lesions=(2,))
    other = write(tmp_path / "other", [], labels=Labels((0, 1)))
    with pytest.raises(DataError, match="--lesion-labels"):
        evaluate(tmp_path / "out", cpu, {**cohorts, "other": other}, "other", lesions=())
    with pytest.raises(DataError, match="a name of its own"):
        evaluate(tmp_path / "out", cpu, cohorts, "alike", "alike")


def test_masks_without_a_lesion_are_left_out_and_counted(
    tmp_path: Path, cpu: Accelerator, cohorts: dict[str, Cohort]
) -> None:
    found = maps(3000)
    found[5][found[5] == 3] = 1
    result = evaluate(tmp_path / "out", cpu, {**cohorts, "some": write(tmp_path / "some", found)}, "some")
    assert "some: 1 masks without a lesion were left out" in result.notes
    assert {row[2] for row in result.tables[0].rows} == {COUNT - 1}
