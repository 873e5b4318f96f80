"""Sheets of the same masks: every row holds one patient's volumes, and there is none without a patient in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_domain

from latentsynth.data.cache.volumes import Volume
from latentsynth.data.manifest import Manifest
from latentsynth.evaluation import sheets
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.types import Case


def cohort(name: str, *parents: str) -> Cohort:
    domain = tiny_domain()
    cases = tuple(
        Case(f"{name}-{n}", f"synthetic-{n}", (Path("x"),), Path("m"), source="external", parents=(parent,))
        for n, parent in enumerate(parents)
    )
    return Cohort(name, Manifest(name, domain.channels, domain.labels, cases), cases)


def test_rows_are_the_patients_that_all_cohorts_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []
    monkeypatch.setattr(
        sheets, "contact_sheet", lambda path, rows, *rest: shown.extend([t.title for t in r] for r in rows)
    )
    read: list[str] = []

    def volume(case: Case) -> Volume:
        read.append(case.parents[0])
        return Volume(np.zeros((1, 16, 16, 16), np.float32), np.zeros((16, 16, 16), np.uint8), (), 1.0)

    first, second = cohort("a", "p", "q", "r", "s"), cohort("b", "s", "x", "q", "p")
    assert sheets.shared_patients([first, second]) == ["p", "q", "s"]
    sheets.same_masks(tmp_path / "s.png", [first, second], volume, tiny_domain())
    assert shown == [["a", "b"]] * 3
    assert read == ["p", "p", "q", "q", "s", "s"]
    assert sheets.same_masks(tmp_path / "s.png", [first, cohort("c", "z")], volume, tiny_domain()) is None
    assert sheets.same_masks(tmp_path / "s.png", [first], volume, tiny_domain()) is None
