"""A blinded reading: the page gives nothing away, and answers are worth what exact intervals say."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import binomtest

from latentsynth.data.intake.prepare import prepare
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.reader import Reading, score_reading, write_reading
from latentsynth.phantom.cohort import write_cohort
from latentsynth.results import Estimate

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, Cohort]:
    """Eight patients, and six volumes of which two were made from the first patient's mask."""
    folder = tmp_path_factory.mktemp("reading")
    write_cohort(folder / "scans", 14, seed=5, shape=(24, 24, 24), spacing_mm=(6.0, 6.0, 6.0), channels=1)
    prepare(folder / "scans", folder / "all.json", fractions=(0.0, 0.0, 1.0), progress=False)
    manifest = Manifest.load(folder / "all.json")
    real, rest = manifest.cases[:8], manifest.cases[8:]
    made = [
        replace(c, case_id=f"made-{n}", patient_id=f"made-{n}", source="model:0", split="train", parents=(real[0].patient_id,) if n < 2 else ())
        for n, c in enumerate(rest)
    ]  # fmt: skip
    return tuple(Cohort(name, replace(manifest, cases=tuple(cases)), tuple(cases)) for name, cases in (("real", real), ("made", made)))  # type: ignore[return-value]  # fmt: skip


@pytest.fixture(scope="module")
def reading(cohorts: tuple[Cohort, Cohort], tmp_path_factory: pytest.TempPathFactory) -> Reading:
    return write_reading(*cohorts, tmp_path_factory.mktemp("page"), count=20, seed=3)


def truth(reading: Reading) -> dict[str, dict[str, str]]:
    return json.loads(reading.key.read_text())["volumes"]  # type: ignore[no-any-return]


def test_as_many_of_each_and_nobody_whose_mask_is_shown(reading: Reading, cohorts: tuple[Cohort, Cohort]) -> None:
    shown = truth(reading)
    kinds = [one["kind"] for one in shown.values()]
    # Six volumes show five masks' worth of independent draws: two are of one patient.
    assert kinds.count("real") == kinds.count("synthetic") == reading.volumes == 5
    assert cohorts[0].cases[0].case_id not in {one["case"] for one in shown.values()}
    assert len({one["case"] for one in shown.values()}) == 10


def test_the_page_gives_nothing_away(reading: Reading, cohorts: tuple[Cohort, Cohort]) -> None:
    text = reading.page.read_text()
    assert not any(case.case_id in text or case.patient_id in text for cohort in cohorts for case in cohort.cases)
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("data:image/png;base64,") == 10


def test_the_order_is_the_seeds(cohorts: tuple[Cohort, Cohort], reading: Reading, tmp_path: Path) -> None:
    again, other = (write_reading(*cohorts, tmp_path / str(seed), seed=seed) for seed in (3, 4))
    assert truth(again) == truth(reading) != truth(other)


def answered(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("\n".join(["volume,answer", *(f"{place},{answer}" for place, answer in rows)]))
    return path


def test_answers_are_scored_with_exact_intervals(reading: Reading, tmp_path: Path) -> None:
    shown = truth(reading)
    other = {"real": "synthetic", "synthetic": "real"}
    sharp = answered(tmp_path / "sharp.csv", [(place, one["kind"]) for place, one in shown.items()])
    fooled = answered(tmp_path / "fooled.csv", [(place, "real") for place in shown])
    wrong = answered(tmp_path / "wrong.csv", [(place, other[one["kind"]]) for place, one in shown.items()])
    result = score_reading(reading.key, [sharp, fooled, wrong], tmp_path / "out")
    rows = {row[0]: row[1:] for row in result.tables[0].rows}
    interval = binomtest(5, 5).proportion_ci()
    assert rows["sharp"][:3] == (10, Estimate(1, interval.low, 1), Estimate(1, interval.low, 1))
    assert rows["fooled"][1].value == 0  # type: ignore[union-attr]
    assert rows["fooled"][2].value == 1  # type: ignore[union-attr]
    assert rows["fooled"][3].value == 0.5  # type: ignore[union-attr]
    assert rows["fooled"][-1] == 1
    assert rows["sharp"][-1] == rows["wrong"][-1] == pytest.approx(2 * 0.5**10)
    assert result.notes == ("told real from synthetic volumes better or worse than by guessing: sharp, wrong",)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("99", "real")], "volume 99 is none of the 10"),
        ([("1", "real"), ("1", "real")], "answered twice"),
        ([("1", "maybe")], "expected real or synthetic"),
        ([], "holds no answers"),
    ],
)
def test_answers_that_are_none_are_refused(
    reading: Reading, tmp_path: Path, rows: list[tuple[str, str]], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        score_reading(reading.key, [answered(tmp_path / "answers.csv", rows)], tmp_path / "out")


def test_two_of_each_are_the_least(cohorts: tuple[Cohort, Cohort], tmp_path: Path) -> None:
    real, made = cohorts
    with pytest.raises(DataError, match="at least two of each"):
        write_reading(replace(real, cases=real.cases[:2]), made, tmp_path)


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_the_page_opens_in_a_browser(reading: Reading, tmp_path: Path) -> None:
    assert BROWSER is not None
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom", reading.page.as_uri()]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "10 to go" in shown
