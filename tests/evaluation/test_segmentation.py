"""Scores of a segmenter: right for planted answers, those of the metrics themselves, never of training patients."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from positive_controls import boxes, cohort, painted, positive_controls
from tiny_runs import segmenter_config

from latentsynth.cli import main
from latentsynth.data import nifti
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.segmentation import evaluate as segmentation
from latentsynth.evaluation.segmentation.evaluate import evaluate_segmenter
from latentsynth.evaluation.segmentation.scores import UNION, SegmentationScores, score_case
from latentsynth.evaluation.segmentation.strata import DIAMETERS, SizeBins, recall_by_diameter
from latentsynth.labelling import label_scans
from latentsynth.metrics.lesions import components, diameter_mm, lesion_scores, volume_error
from latentsynth.metrics.surfaces import dice, surface_scores, volume_ml
from latentsynth.phantom.cohort import phantom
from latentsynth.provenance import Ledger, project_key
from latentsynth.results import Estimate, Result, Table
from latentsynth.segmentation import Segmenter
from latentsynth.types import Case, Framing, Labels, Split

SHAPE, SPACING = (16, 16, 16), (2.0, 2.0, 2.0)
AFFINE = np.diag([*SPACING, 1.0])
WHOLE, LESION = Framing("whole"), Framing("lesion")
VOXEL_ML = 0.008
DIAGONAL = math.hypot(32, 32, 32)


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A project key of this test's own; runs on phantoms have the key of their workplace."""
    if "workplace" not in request.fixturenames:
        monkeypatch.setenv("LATENTSYNTH_KEY", str(tmp_path / "key"))
        project_key(create=True)


@pytest.fixture
def drawn() -> None:
    """For tests of the picture; others do without, since drawing takes longer than scoring."""


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(segmentation, "contact_sheet", lambda *arguments: None)


def patients(
    folder: Path, count: int, split: Split = "test", shown: Callable[[int], Any] = lambda n: None
) -> list[Case]:
    """Patient n has a lesion of label 1 of n + 2 slices and one of label 4 that is always as large."""
    cases = []
    for n in range(count):
        values = boxes(SHAPE, {1: np.s_[: n + 2, 2:6, 2:6], 4: np.s_[12:15, 9:13, 9:13]})
        case = painted(folder, f"{split}_{n}", values, AFFINE, shown(n))
        cases.append(replace(case, split=split))
    return cases


def misplaced(n: int) -> np.ndarray:
    """Found in the place of :func:`patients`: moved, cut, lost, and something where nothing is."""
    places = {1: np.s_[1 : n + 3, 2:6, 3:7], 4: np.s_[12:14, 9:13, 9:13]}
    if n % 3 == 0:
        del places[4]
    values = boxes(SHAPE, places)
    if n % 2:
        values[2:4, 12:14, 12:14] = 4
    return values


def evaluated(model: Segmenter, manifest: Path, folder: Path, cpu: Accelerator, **settings: Any) -> Result:
    model.save(folder / "run" / "checkpoint", {"dice": 0.5})
    return evaluate_segmenter(folder / "run", manifest, folder / "out", cpu, **{"split": "test", **settings})


def command(*arguments: str | Path) -> int:
    """Exit code of a command run in this process."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "segmenter.csv").open() as stream:
        return list(csv.DictReader(stream))


def row(table: Table, name: str) -> dict[str, Any]:
    found = [cells for cells in table.rows if cells[0] == name]
    assert len(found) == 1
    return dict(zip(table.columns, found[0], strict=True))


def value(cell: Any) -> float:
    assert isinstance(cell, Estimate)
    return cell.value


def test_a_perfect_segmenter_scores_perfectly(tmp_path: Path, cpu: Accelerator) -> None:
    manifest = cohort(tmp_path / "manifest.json", patients(tmp_path, 6))
    result = evaluated(positive_controls(), manifest, tmp_path, cpu)
    for name in ("lesion 1", "lesion 4", UNION):
        found = row(result.tables[0], name)
        assert found["cases"] == 6
        assert found["Dice"] == Estimate(1, 1, 1)
        assert found["median Dice"] == 1
        assert found["surface Dice (2 mm)"] == Estimate(1, 1, 1)
        assert found["HD95 (mm)"] == Estimate(0, 0, 0)
        assert found["volume error"] == Estimate(0, 0, 0)
        assert found["lesions found"] == ("12 of 12" if name == UNION else "6 of 6")
        matched = row(result.tables[1], name)
        assert matched["false positives per case"] == 0
        assert matched["recall"] == matched["precision"] == matched["F1"] == Estimate(1, 1, 1)
    assert result.notes == ()
    for scores in rows_of(tmp_path):
        assert (scores["dice"], scores["hd95_mm"], scores["volume_error_ml"]) == ("1", "0", "0")
        slices = int(scores["case"].split("_")[1]) + 2
        voxels = {"lesion 1": 16 * slices, "lesion 4": 48, UNION: 16 * slices + 48}[scores["label"]]
        assert float(scores["reference_ml"]) == pytest.approx(voxels * VOXEL_ML, rel=1e-5)
        assert scores["patient"] == f"patient of {scores['case']}"


@pytest.mark.usefixtures("drawn")
def test_the_files_hold_the_result(tmp_path: Path, cpu: Accelerator) -> None:
    model = positive_controls()
    manifest = cohort(tmp_path / "manifest.json", patients(tmp_path, 6, shown=misplaced))
    result = evaluated(model, manifest, tmp_path, cpu)
    assert Result.load(tmp_path / "out" / "segmenter.json") == result
    assert (tmp_path / "out" / "segmenter.png").read_bytes().startswith(b"\x89PNG")
    assert result.facts == {
        "segmenter": Segmenter.from_pretrained(tmp_path / "run").fingerprint,
        "trained_on": {"real": 3, "synthetic": 1},
        "cohort": Manifest.load(manifest).fingerprint,
        "cases": 6,
        "region": "scan",
        "tolerance_mm": 2.0,
    }
    assert len(rows_of(tmp_path)) == 6 * 3


def test_a_segmenter_that_finds_nothing_gets_the_diagonal(tmp_path: Path, cpu: Accelerator) -> None:
    """A patient without label 4, of whom nothing is found, counts as right; all that is said in the notes."""
    cases = patients(tmp_path, 3)
    one = boxes(SHAPE, {1: np.s_[3:6, 3:6, 3:6]})
    cases.append(replace(painted(tmp_path, "alone", one, AFFINE), split="test"))
    result = evaluated(positive_controls(gain=0.0), cohort(tmp_path / "m.json", cases), tmp_path, cpu)
    for name in ("lesion 1", UNION):
        found = row(result.tables[0], name)
        assert found["Dice"] == Estimate(0, 0, 0)
        assert value(found["HD95 (mm)"]) == pytest.approx(DIAGONAL)
        assert value(found["volume error"]) == pytest.approx(-1)
        assert found["lesions found"] == ("0 of 7" if name == UNION else "0 of 4")
    four = row(result.tables[0], "lesion 4")
    assert value(four["Dice"]) == pytest.approx(1 / 4)
    assert value(four["HD95 (mm)"]) == pytest.approx(DIAGONAL * 3 / 4)
    assert value(four["volume error"]) == pytest.approx(-1)  # undefined where nothing is annotated, so left out
    assert sorted(result.notes) == [
        "1 of 12 label scores: no voxel annotated and none found: Dice 1, HD95 0",
        "11 of 12 label scores: nothing found where something is annotated: Dice 0, HD95 the image diagonal",
    ]


def test_scores_are_those_of_the_metrics_on_the_written_label_maps(tmp_path: Path, cpu: Accelerator) -> None:
    model, cases = positive_controls(), patients(tmp_path, 6, shown=misplaced)
    evaluated(model, cohort(tmp_path / "manifest.json", cases), tmp_path, cpu, tolerance_mm=3.0)
    maps = label_scans(model, cases, tmp_path / "maps", cpu)
    rows = iter(rows_of(tmp_path))
    seen = set()
    for case, file in zip(cases, maps, strict=True):
        assert case.mask is not None
        reference, found = nifti.read_labels(case.mask)[0], nifti.read_labels(file)[0]
        for label, name in ((1, "lesion 1"), (4, "lesion 4"), (None, UNION)):
            a, b = (x > 0 if label is None else x == label for x in (reference, found))
            surfaces, lesions = surface_scores(a, b, SPACING, 3.0), lesion_scores(a, b, SPACING)
            expected = {
                "case": case.case_id, "patient": case.patient_id, "label": name, "dice": dice(a, b),
                "surface_dice": surfaces.surface_dice, "hd95_mm": surfaces.hd95_mm, "empty": surfaces.empty,
                "reference_ml": volume_ml(a, SPACING), "predicted_ml": volume_ml(b, SPACING),
                "volume_error_ml": volume_error(a, b, SPACING)[0], "volume_error": volume_error(a, b, SPACING)[1],
                "lesions": lesions.lesions, "lesions_found": lesions.found, "false_positives": lesions.false_positives,
                "lesion_recall": lesions.recall, "lesion_precision": lesions.precision, "lesion_f1": lesions.f1,
            }  # fmt: skip
            scores = next(rows)
            assert list(scores) == list(SegmentationScores.__dataclass_fields__)
            for key, number in expected.items():
                if isinstance(number, str):
                    assert scores[key] == number
                elif math.isnan(number):
                    assert scores[key] == ""
                else:
                    assert float(scores[key]) == pytest.approx(number, rel=1e-5, abs=1e-9), key
            seen.add((0 < dice(a, b) < 1, lesions.false_positives > 0, surfaces.empty))
    assert seen >= {(True, False, ""), (True, True, ""), (False, False, "predicted")}  # the faults were there
    assert next(rows, None) is None


def test_tables_are_means_over_cases(tmp_path: Path, cpu: Accelerator) -> None:
    cases = patients(tmp_path, 7, shown=misplaced)
    result = evaluated(positive_controls(), cohort(tmp_path / "manifest.json", cases), tmp_path, cpu)
    for name in ("lesion 1", "lesion 4", UNION):
        rows, shown = [r for r in rows_of(tmp_path) if r["label"] == name], row(result.tables[0], name)
        for column, key in (("Dice", "dice"), ("HD95 (mm)", "hd95_mm"), ("volume error", "volume_error")):
            mean = np.mean([float(r[key]) for r in rows])
            assert value(shown[column]) == pytest.approx(mean, rel=1e-4)
            assert shown[column].low <= mean <= shown[column].high
        assert shown["median Dice"] == pytest.approx(np.median([float(r["dice"]) for r in rows]), rel=1e-4)
        matched = row(result.tables[1], name)
        assert matched["false positives per case"] == pytest.approx(np.mean([int(r["false_positives"]) for r in rows]))
        assert value(matched["F1"]) == pytest.approx(np.mean([float(r["lesion_f1"]) for r in rows]), rel=1e-4)
        assert shown["lesions found"] == (
            f"{sum(int(r['lesions_found']) for r in rows)} of {sum(int(r['lesions']) for r in rows)}"
        )


def test_strata_split_the_cases_by_annotated_volume(tmp_path: Path, cpu: Accelerator) -> None:
    cases = patients(tmp_path, 7, shown=misplaced)
    result = evaluated(positive_controls(), cohort(tmp_path / "manifest.json", cases), tmp_path, cpu)
    table = result.tables[2]
    assert table.title == f"by annotated volume ({UNION})"
    main_rows = [r for r in rows_of(tmp_path) if r["label"] == UNION]
    volumes = [(16 * (n + 2) + 48) * VOXEL_ML for n in range(7)]
    strata = SizeBins.of(volumes)
    assert strata is not None
    assert [cells[0] for cells in table.rows] == list(strata.names)
    assert [cells[1] for cells in table.rows] == [3, 2, 2]
    for cells, chosen in zip(table.rows, (main_rows[:3], main_rows[3:5], main_rows[5:]), strict=True):
        assert value(cells[2]) == pytest.approx(np.mean([float(r["dice"]) for r in chosen]), rel=1e-4)
    lesions = result.tables[3]
    assert lesions.title == f"lesions by diameter ({UNION})"
    assert [cells[0] for cells in lesions.rows] == [*DIAMETERS]
    hits = [float(hit) for r in main_rows for hit in r["lesion_found"].split()]
    assert sum(cells[1] for cells in lesions.rows) == len(hits)
    assert all(0 <= value(cells[2]) <= 1 for cells in lesions.rows if cells[1])
    few = evaluated(positive_controls(), cohort(tmp_path / "few.json", cases[:5]), tmp_path / "few", cpu)
    assert not any(one.title.startswith("by annotated") for one in few.tables)  # no thirds of five


def test_recall_by_diameter_says_which_sizes_are_lost() -> None:
    """Phantoms with up to 20 lesions; a planted segmenter finds those above 10 mm, and nothing else."""
    scores, patients = [], []
    for case in range(8):
        lesion = phantom(1, case, (32, 32, 32), (6.0, 6.0, 6.0), 1, (1, 20))[1] == 3  # taken for 4 mm
        pieces, count = components(lesion)
        sizes = np.array([diameter_mm((pieces == n).sum() * 0.064) for n in range(1, count + 1)])
        scores.append(lesion_scores(lesion, np.isin(pieces, 1 + np.flatnonzero(sizes > 10)), (4.0, 4.0, 4.0)))
        assert scores[-1].lesion_mm == pytest.approx(sizes)
        patients.append(str(case))
    found = recall_by_diameter(scores, patients)
    assert [value(recall) for _, recall in found if recall] == [0, 0, 1, 1][: sum(count > 0 for count, _ in found)]
    assert sum(count for count, _ in found) == sum(one.lesions for one in scores)
    assert min(count for count, _ in found[:3]) > 2
    at_the_ends = lesion_scores(np.ones((1, 1, 1), bool), np.ones((1, 1, 1), bool), (1, 1, 1))
    bins = [
        [count for count, _ in recall_by_diameter([replace(at_the_ends, lesion_ml=(np.pi / 6 * mm**3 / 1000,))], "p")]
        for mm in (4.999, 5.001, 9.999, 10.001, 19.999, 20.001)
    ]
    assert [row.index(1) for row in bins] == [0, 1, 1, 2, 2, 3]
    assert [recall is None for _, recall in recall_by_diameter([at_the_ends], "p")] == [
        False,
        True,
        True,
        True,
    ]


@given(st.lists(st.integers(1, 10_000), min_size=6, max_size=40, unique=True))
def test_strata_are_thirds(volumes: list[int]) -> None:
    strata = SizeBins.of([volume / 8 for volume in volumes])
    assert strata is not None
    small, medium, large = (sorted(v for v in volumes if strata.name(v / 8) == name) for name in strata.names)
    assert small[-1] < medium[0] <= medium[-1] < large[0]
    assert len(small) + len(medium) + len(large) == len(volumes)
    sizes = [len(small), len(medium), len(large)]
    assert max(sizes) - min(sizes) <= 1
    assert small[-1] / 8 <= strata.low_ml < medium[0] / 8
    assert medium[-1] / 8 <= strata.high_ml < large[0] / 8
    assert all(f"{bound:.3g} ml" in name for bound, name in
               zip((strata.low_ml, strata.high_ml, strata.high_ml), strata.names, strict=True))  # fmt: skip


@pytest.mark.parametrize("volumes", [[], [1.0] * 5, [1, 2, 3, 4, 5], [3.0] * 20, [1.0] + [2.0] * 20])
def test_too_few_or_equal_volumes_have_no_strata(volumes: Sequence[float]) -> None:
    assert SizeBins.of(volumes) is None


def test_patients_it_was_trained_on_are_refused_unless_asked_for(tmp_path: Path, cpu: Accelerator) -> None:
    cases = [*patients(tmp_path, 2, "train"), *patients(tmp_path, 2, "test")]
    manifest = cohort(tmp_path / "manifest.json", cases)
    for seen in (cases, [replace(cases[2], voxels=(), case_id="renamed")]):
        model = positive_controls(ledger=Ledger.of(seen))
        with pytest.raises(DataError, match=rf"trained on {min(len(seen), 2)} of these 2 cases \(test_0"):
            evaluated(model, manifest, tmp_path, cpu)
        assert not (tmp_path / "out").exists()
    model = positive_controls(ledger=Ledger.of(cases[:1]))
    assert evaluated(model, manifest, tmp_path, cpu).notes == ()
    result = evaluated(model, manifest, tmp_path, cpu, split="train")
    assert result.notes == ("the segmenter was trained on 1 of these 2 cases: no measure of new patients",)


def test_without_the_key_it_says_that_patients_were_not_compared(
    tmp_path: Path, cpu: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = cohort(tmp_path / "manifest.json", patients(tmp_path, 2))
    monkeypatch.setenv("LATENTSYNTH_KEY", str(tmp_path / "no-key"))
    assert any("cannot verify" in note for note in evaluated(positive_controls(), manifest, tmp_path, cpu).notes)
    assert not (tmp_path / "no-key").exists()


def test_a_cohort_that_does_not_fit_is_refused(tmp_path: Path, cpu: Accelerator) -> None:
    cases = patients(tmp_path, 2)
    bare = cohort(tmp_path / "bare.json", [replace(case, mask=None) for case in cases])
    with pytest.raises(DataError, match="has a mask: give annotated cases"):
        evaluated(positive_controls(), bare, tmp_path, cpu)
    other = tmp_path / "other.json"
    Manifest("other", ("CT", "PET"), Labels((0, 1, 2)), tuple(cases)).save(other)
    with pytest.raises(DataError, match=r"labels \(0, 1, 2\), the segmenter was trained on \(0, 1, 4\)"):
        evaluated(positive_controls(), other, tmp_path, cpu)
    only = cohort(tmp_path / "only.json", [cases[0], replace(cases[1], mask=None)])
    assert evaluated(positive_controls(), only, tmp_path, cpu).facts["cases"] == 1


def test_the_region_is_the_one_asked_for(tmp_path: Path, cpu: Accelerator) -> None:
    """On crops around the lesion a false positive far away is not seen; on the scan it is."""
    shape = (40, 16, 16)
    annotated = boxes(shape, {4: np.s_[3:7, 5:9, 5:9]})
    shown = annotated + boxes(shape, {1: np.s_[33:37, 5:9, 5:9]})
    case = replace(painted(tmp_path, "far", annotated, AFFINE, shown), split="test")
    manifest = cohort(tmp_path / "manifest.json", [case])
    told = "the segmenter was shown a crop centred on the annotated lesion; it did not have to find it"
    for framing, region, used in ((LESION, "auto", "crop"), (LESION, "crop", "crop"), (LESION, "scan", "scan"),
                                  (WHOLE, "auto", "scan"), (WHOLE, "scan", "scan")):  # fmt: skip
        result = evaluated(positive_controls(framing=framing), manifest, tmp_path, cpu, region=region)
        assert result.facts["region"] == used
        assert (told in result.notes) == (used == "crop")
        assert row(result.tables[1], UNION)["false positives per case"] == (used == "scan")
        assert row(result.tables[0], "lesion 4")["Dice"].value == 1


def test_the_tolerance_is_the_median_of_the_longest_edges_or_as_asked(tmp_path: Path, cpu: Accelerator) -> None:
    cases = []
    for name, edges in (("thin", (2.0, 2.0, 2.0)), ("thick", (2.0, 1.0, 3.0)), ("thickest", (2.0, 8.0, 1.0))):
        values = boxes(SHAPE, {1: np.s_[2:6, 2:6, 2:6], 4: np.s_[9:12, 9:12, 9:12]})
        cases.append(replace(painted(tmp_path, name, values, np.diag([*edges, 1.0])), split="test"))
    manifest = cohort(tmp_path / "manifest.json", cases)
    for given_mm, used in ((None, 3.0), (1.5, 1.5), (0.0, 0.0)):
        result = evaluated(positive_controls(), manifest, tmp_path, cpu, tolerance_mm=given_mm)
        assert result.facts["tolerance_mm"] == used
        assert f"surface Dice ({used:.3g} mm)" in result.tables[0].columns


@pytest.mark.parametrize(("count", "words"), [(1, ["best"]), (2, ["best", "worst"]), (3, ["best", "median", "worst"])])
def test_the_picture_names_its_cases_rightly(
    count: int, words: list[str], tmp_path: Path, cpu: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        segmentation, "contact_sheet", lambda path, rows, *rest: drawn.extend(tiles[0].title for tiles in rows)
    )
    cases = patients(tmp_path, 3, shown=lambda n: misplaced(n) if n else None)
    evaluated(positive_controls(), cohort(tmp_path / "manifest.json", cases[:count][::-1]), tmp_path, cpu)
    assert [title.split(":")[0] for title in drawn] == words
    assert "test_0" in drawn[0]


def test_labels_are_scored_one_by_one_and_together_where_there_are_several() -> None:
    case = Case("a", "p", (), None)
    reference = boxes((10, 4, 4), {1: np.s_[0:2], 4: np.s_[4:8]})
    swapped = boxes((10, 4, 4), {4: np.s_[0:2], 1: np.s_[4:8]})
    labels = Labels((0, 1, 4), ("background", "one", "four"))
    rows = {row.label: row for row in score_case(case, reference, swapped, (1, 1, 1), labels, (1, 4), 1.0)}
    assert list(rows) == ["one", "four", UNION]
    assert (rows["one"].dice, rows["four"].dice, rows[UNION].dice) == (0, 0, 1)
    assert rows["one"].volume_error == pytest.approx(1)
    assert rows["four"].volume_error == pytest.approx(-1 / 2)
    single = score_case(case, reference, swapped, (1, 1, 1), Labels((0, 4)), (4,), 1.0)
    assert [row.label for row in single] == ["label 4"]
    organ = score_case(case, reference, np.where(swapped == 4, 4, 0), (1, 1, 1), labels, (1,), 1.0)
    assert [row.label for row in organ] == ["one", "four"]  # an organ is no lesion, and hides none
    assert (organ[0].dice, organ[0].lesions_found) == (0, 0)


@pytest.mark.usefixtures("drawn")
def test_the_commands_run_end_to_end(
    workplace: Path, trained_segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `segment` writes scores what `evaluate segmenter` says."""
    manifest = workplace / "manifest.json"
    maps, out = tmp_path / "maps", tmp_path / "out"
    assert command("segment", trained_segmenter, "--images", manifest, "--out", maps, "--split", "test") == 0
    assert "2 label maps" in capsys.readouterr().out
    evaluate = ("evaluate", "segmenter", trained_segmenter)
    assert command(*evaluate, manifest, "--out", out) == 0
    assert capsys.readouterr().out.splitlines()[0].strip() == "split: val"
    assert Result.load(out / "segmenter.json").splits == ("val",)
    assert command(*evaluate, manifest, "--out", out, "--split", "test") == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].strip() == "split: test"
    assert str(out / "segmenter.json") in said
    assert "segmentation of 2 cases" in said
    assert Result.load(out / "segmenter.json").facts["cases"] == 2
    rows = rows_of(tmp_path)
    for case in Manifest.load(manifest).select("test"):
        assert case.mask is not None
        reference, found = nifti.read_labels(case.mask)[0], nifti.read_labels(maps / f"{case.case_id}.nii.gz")[0]
        liver = next(r for r in rows if (r["case"], r["label"]) == (case.case_id, "liver"))
        assert float(liver["dice"]) == pytest.approx(dice(reference == 1, found == 1), abs=1e-5)
    assert np.mean([float(r["dice"]) for r in rows if r["label"] == "liver"]) > 0.4
    assert command(*evaluate, manifest, "--out", out, "--split", "trian") != 0
    assert command(*evaluate, manifest, "--out", out, "--region", "all") != 0
    assert command("segment", trained_segmenter, "--images", manifest, "--out", maps, "--split", "all") != 0
    cases = [replace(case, split="test") for case in Manifest.load(manifest).select("train")]
    replace(Manifest.load(manifest), cases=tuple(cases)).save(workplace / "leak.json")
    capsys.readouterr()
    assert command(*evaluate, workplace / "leak.json", "--out", out, "--split", "test") == 1
    assert "error: the segmenter was trained on 4 of these 4 cases" in capsys.readouterr().err


def test_a_training_command_ends_with_its_scores(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = segmenter_config(workplace, "by-command")
    assert command("train", "segmenter", file, "train.images=8", "network.channels=[4, 8]") == 0
    said = capsys.readouterr().out
    assert "validation: dice " in said
    assert f"checkpoint: {workplace / 'by-command' / 'checkpoint'}" in said
    assert Segmenter.from_pretrained(workplace / "by-command").network.config["channels"] == [4, 8]
    assert command("train", "segmenter", file, "--check") == 0
    assert "kind: unet" in capsys.readouterr().out
