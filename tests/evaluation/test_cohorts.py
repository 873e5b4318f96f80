"""Cohorts: who their patients are, and what must be said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from accelerate import Accelerator
from positive_controls import boxes, painted
from positive_controls import cohort as write_cohort

from latentsynth.data.manifest import Manifest
from latentsynth.evaluation import features
from latentsynth.evaluation.cohorts import Cohort, chosen_on, generator_saw
from latentsynth.evaluation.segmentation.scores import score_case
from latentsynth.provenance import Ledger
from latentsynth.types import Case, Framing, Grid, Labels, Window

SHAPE = (20, 20, 20)


def made(name: str, *parents: str, source: str = "generator:0") -> Case:
    return Case(name, f"synthetic-{name}", (), None, source=source, parents=parents, voxels=(f"hash of {name}",))


def of(*cases: Case, ledger: Ledger = Ledger()) -> Cohort:  # noqa: B008 (frozen)
    return Cohort("made", Manifest("made", (), Labels((0, 1)), ()), cases, ledger)


def test_cases_that_share_a_parent_are_one_patient() -> None:
    cohort = of(made("a", "p1"), made("b", "p2"), made("c", "p2", "p1"), made("d", "p3"), made("e"))
    one, two, three, four, five = cohort.patients
    assert one == two == three
    assert len({one, four, five}) == 3


def test_a_real_case_is_its_own_patient_whatever_its_parents() -> None:
    assert of(made("a", "p1", source="real"), made("b", "p1")).patients == ["synthetic-a", "p1"]


def test_a_generator_that_saw_the_real_cases_is_named() -> None:
    real = [made("a", source="real"), made("b", source="real")]
    seen = of(made("c"), ledger=Ledger(frozenset(), frozenset({"hash of a"})))
    (note,) = generator_saw(real, seen)
    assert "trained on 1 of the 2 real cases" in note
    assert generator_saw(real, of(made("c"))) == []


def test_validation_patients_are_said_to_have_chosen_the_judge() -> None:
    real = made("a", source="real")
    assert chosen_on([real]) == []
    assert len(chosen_on([Case("v", "v", (), None, "val")])) == 1
    assert chosen_on([Case("v", "v", (), None, "val", "generator:0")]) == []


def test_an_annotation_at_the_edge_does_not_stop_a_comparison_of_whole_scans(tmp_path: Path, cpu: Accelerator) -> None:
    """The grid covers the middle scan; a longer one with its organ at the end is cropped like any other."""
    long = painted(tmp_path, "long", boxes((20, 20, 40), {1: np.s_[8:12, 8:12, :]}), np.eye(4))
    manifest = Manifest.load(write_cohort(tmp_path / "cohort.json", [long]))
    grid = Grid(SHAPE, (1.0, 1.0, 1.0), tuple(Window("fixed", 0, 1) for _ in manifest.channels))
    cohort = Cohort("real", manifest, manifest.cases)
    cache = features.volumes(cohort, grid, Framing(), manifest.labels, tmp_path / "cache", cpu)
    assert cache.volume(0).image.shape[1:] == SHAPE


def test_small_lesions_are_counted_beside_a_large_one() -> None:
    """Missing the small one of two lesions costs hardly any Dice, but half the lesions."""
    reference = boxes(SHAPE, {1: np.s_[2:12, 2:12, 2:12]}) + boxes(SHAPE, {1: np.s_[16:18, 16:18, 16:18]})
    found = boxes(SHAPE, {1: np.s_[2:12, 2:12, 2:12]})
    (row,) = score_case(made("a"), reference, found, (1, 1, 1), Labels((0, 1)), (1,), 1.0)
    assert row.dice > 0.99
    assert sorted(zip(row.lesion_ml, row.lesion_found, strict=True)) == [(0.008, False), (1.0, True)]
