"""The utility study: who trains on what, no leak, and words that follow from planted effects."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import run

from latentsynth import checkpoint
from latentsynth.config import UtilityStudy, load
from latentsynth.data import nifti
from latentsynth.data.manifest import Manifest
from latentsynth.errors import ConfigError, DataError
from latentsynth.experiments.runs import RunPlace, autoencoder_run, generator_run
from latentsynth.experiments.utility.jobs import Job
from latentsynth.experiments.utility.study import Utility, own
from latentsynth.experiments.utility.summary import TESTED, comparisons, over_seeds, read_scores, sentences
from latentsynth.experiments.utility.synthetic import dosed
from latentsynth.metrics.significance import Verdict
from latentsynth.provenance import LEDGER, Ledger, voxel_hash
from latentsynth.results import Result
from latentsynth.sharing.filter import filter_disagreeing

DEBUG = Path(__file__).parents[2] / "configs" / "debug" / "utility.yaml"


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory, phantoms: list[str]) -> list[str]:
    """Points the debug configuration at phantoms, and makes it shorter still."""
    return [f"folder={tmp_path_factory.mktemp('utility') / 'study'}", *phantoms,
            "sizes=[5]", "seeds=[0]", "arms.synthetic.sizes=null"]  # fmt: skip


@pytest.fixture(scope="module")
def finished(overrides: list[str]) -> Utility:
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "experiment", "utility", DEBUG, *overrides) == 0
    return Utility(load(UtilityStudy, DEBUG, overrides))


def config(overrides: Sequence[str]) -> UtilityStudy:
    return load(UtilityStudy, DEBUG, overrides)


def test_every_arm_sees_its_own_patients_alone(finished: Utility) -> None:
    """The generator, its masks and the segmenter: nobody but the subset's training patients, nor any test patient."""
    job = finished.jobs[0]
    train, val = own(finished.roles.subset(5, 0), finished.config.validation)
    assert len(train) == 4
    assert len(val) == 1
    cases = {case.patient_id: case for case in finished.roles.cohort.cases}
    strangers = [case for patient, case in cases.items() if patient not in train]
    outside = [cases[patient] for patient, part in finished.roles.outside.items() if part == "train"]
    painted = finished.folder / "cells" / "paint-diffusion-n5-s0"
    assert {
        parent for case in Manifest.load(painted / "samples" / "manifest.json").cases for parent in case.parents
    } == set(train)
    trained = finished.folder / "cells" / "train-diffusion-n5-s0"
    for folder in (trained / "run", *(finished.folder / "cells" / job.name / "run" for job in finished.jobs)):
        ledger = checkpoint.read_ledger(folder / "checkpoint")
        seen, verified = ledger.seen(strangers)
        assert verified
        assert {case.patient_id for case in seen} <= {case.patient_id for case in outside}  # through the autoencoder
    with (finished.folder / "cells" / job.name / "test" / "segmenter.csv").open() as stream:
        assert {row["patient"] for row in csv.DictReader(stream)} == set(finished.roles.heldout)


def test_arms_are_mixed_as_declared_and_trained_equally_long(finished: Utility) -> None:
    seen = set()
    for job in finished.jobs:
        folder = finished.folder / "cells" / job.name
        last = [line for line in (folder / "run" / "metrics.jsonl").read_text().splitlines() if "images_seen" in line][
            -1
        ]
        seen.add((job.arm == "bridge", last.partition('"images_seen": ')[2].partition(",")[0].strip("}")))
    assert seen == {(False, "32"), (True, "16")}  # the bridge's other half was on synthetic volumes
    sets = {arm: Manifest.load(finished.folder / "cells" / f"unet-{arm}-n5-s0" / "synthetic" / "manifest.json") for arm in ("half", "added", "synthetic")}  # fmt: skip
    assert {arm: len(manifest.cases) for arm, manifest in sets.items()} == {"half": 2, "added": 6, "synthetic": 4}
    assert len({case.parents for case in sets["synthetic"].cases}) == 4  # every mask once before any twice


def test_what_is_left_behind(finished: Utility) -> None:
    result = Result.load(finished.folder / "utility.json")
    assert result.facts["baseline"] == "real"
    facts = result.facts["comparisons"]
    assert {Verdict(one["verdict"]) for one in facts} == {row[-1] for row in result.tables[1].rows}
    assert [(one["arm"], one["found"]["difference"]) for one in facts] == [
        (row[2], row[6].value) for row in result.tables[1].rows
    ]
    assert [row[2] for row in result.tables[0].rows] == [*finished.config.arms]
    page = (finished.folder / "report.html").read_text()
    assert "Does training on synthetic patients help?" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for name in ("utility.png", "utility_examples.png"):
        assert (finished.folder / name).stat().st_size > 5000


def test_new_masks_are_made_from_the_arms_own_patients_alone(finished: Utility) -> None:
    train, _ = own(finished.roles.subset(5, 0), finished.config.validation)
    cells, cohort = finished.folder / "cells", finished.roles.cohort
    own_masks = {voxel_hash(nifti.read_labels(case.mask)[0]) for case in cohort.cases if case.mask is not None}
    for name in ("deformed", "rough"):
        folder = cells / f"masks-{name}-n5-s0" / "masks"
        made = Manifest.load(folder / "manifest.json")
        assert len(made.cases) == 4  # a dose of 1 for four training patients
        assert {parent for case in made.cases for parent in case.parents} <= set(train)
        assert not {voxel_hash(nifti.read_labels(case.mask)[0]) for case in made.cases if case.mask} & own_masks
    beside = Manifest.load(cells / "paint-rules-rough-n5-s0" / "samples" / "manifest.json")
    for case in beside.cases:  # in the scan of the patient whose anatomy it has, whose own lesions are still there
        host = next(one for one in cohort.cases if one.patient_id == case.parents[0])
        assert host.mask is not None
        assert case.mask is not None
        theirs, ours = (nifti.read_labels(file)[0] for file in (host.mask, case.mask))
        assert set(ours[theirs == 3].tolist()) == {3}
        assert (ours == 3).sum() > (theirs == 3).sum()
        before, after = (nifti.read(files[0])[0] for files in (host.images, case.images))
        assert (before == after).mean() > 0.3


def test_a_filtered_arm_keeps_what_the_baselines_segmenter_finds(finished: Utility) -> None:
    kept = Manifest.load(finished.folder / "cells" / "agreed-0.001-diffusion-n5-s0" / "kept.json")
    whole = Manifest.load(finished.folder / "cells" / "paint-diffusion-n5-s0" / "samples" / "manifest.json")
    assert {case.case_id for case in kept.cases} <= {case.case_id for case in whole.cases}
    chosen = Manifest.load(finished.folder / "cells" / "unet-agreed-n5-s0" / "synthetic" / "manifest.json")
    assert {case.case_id for case in chosen.cases} <= {case.case_id for case in kept.cases}
    segmenter = finished.folder / "cells" / "unet-real-n5-s0" / "run"
    synthetic = finished.folder / "cells" / "unet-synthetic-n5-s0" / "run"
    sample = finished.folder / "cells" / "paint-diffusion-n5-s0" / "samples" / "manifest.json"
    out = finished.folder / "filtered" / "kept.json"
    accelerator = finished.accelerator
    with pytest.raises(DataError, match=r"every volume .* whose best is .*: lower the least Dice"):
        filter_disagreeing(sample, segmenter, out, 0.9, finished.config.cache, accelerator)
    with pytest.raises(DataError, match="was trained on synthetic cases"):
        filter_disagreeing(sample, synthetic, out, 0.1, finished.config.cache, accelerator)
    assert not out.exists()


def test_folds_hold_everybody_out_once_and_autoencoders_may_be_a_subsets_own(
    overrides: list[str], tmp_path: Path
) -> None:
    changes = [*overrides[1:], f"folder={tmp_path / 'study'}", "folds=3", "roles={pool: 0.7, outside: 0.0, heldout: 0.3}",
               "autoencoder_patients=subset"]  # fmt: skip
    study = Utility(config(changes))
    held = [patient for roles in study.folds for patient in roles.heldout]
    assert sorted(held) == sorted(case.patient_id for case in study.roles.cohort.cases)
    for roles in study.folds:
        assert not set(roles.pool) & set(roles.heldout)
    names = [cell.name for cell in study.cells()]
    assert "autoencoder" not in names
    assert {f"autoencoder-n5-s0-f{fold}" for fold in range(3)} <= set(names)
    needs = {cell.name: cell.needs for cell in study.cells()}
    assert needs["train-diffusion-n5-s0-f2"] == ("autoencoder-n5-s0-f2",)
    assert needs["agreed-0.001-diffusion-n5-s0-f1"] == ("paint-diffusion-n5-s0-f1", "unet-real-n5-s0-f1")


def test_masks_that_two_models_paint_suffice_for_the_larger_dose(overrides: list[str]) -> None:
    more = (
        "arms={real: {}, few: {model: rules, masks: rough, dose: 1}, many: {model: diffusion, masks: rough, dose: 3}}"
    )
    cells = {cell.name: cell for cell in Utility(config([*overrides, more, "arms.real.sizes=null"])).cells()}
    assert cells["masks-rough-n5-s0"].facts["count"] == 12  # four training patients


def test_the_scale_shortens_everything_that_is_trained(overrides: list[str]) -> None:
    whole, half = config(overrides), config([*overrides, "scale=0.5"])
    for name in ("train.images", "train.lr_warmup_images", "train.validate_every_images"):
        runs = [generator_run(one, "diffusion", RunPlace(Path("x"), Path("x"))) for one in (whole, half)]
        runs += [autoencoder_run(one, Path("x"), Path("x")) for one in (whole, half)]
        values = [getattr(run.train, name.partition(".")[2]) for run in runs]
        assert [values[1], values[3]] == [round(values[0] / 2), round(values[2] / 2)]
    assert Utility(half).cells()[0].facts["scale"] == 0.5  # so that cells of another scale are not taken for these
    assert "scale" not in Utility(whole).cells()[0].facts


def test_folds_add_up_to_all_patients(tmp_path: Path, overrides: list[str]) -> None:
    jobs = written(tmp_path, config(overrides), {"real": 0.0}, patients=4)
    first = over_seeds(read_scores(tmp_path, jobs, ("lesion",)))["unet", 5, "real"]["dice"]
    moved = [replace(job, fold=fold) for job in jobs for fold in (0, 1)]
    for job in moved:
        whole = (tmp_path / "cells" / replace(job, fold=None).name / "test" / "segmenter.csv").read_text().splitlines()
        file = tmp_path / "cells" / job.name / "test" / "segmenter.csv"
        file.parent.mkdir(parents=True)
        file.write_text("\n".join([whole[0], *(whole[1:5] if job.fold == 0 else whole[5:])]))
    assert over_seeds(read_scores(tmp_path, moved, ("lesion",)))["unet", 5, "real"]["dice"] == first


def test_a_second_run_does_nothing(finished: Utility, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    done = {path: path.stat().st_mtime_ns for path in (finished.folder / "cells").rglob("*")}
    assert run(monkeypatch, "experiment", "utility", DEBUG, *overrides) == 0
    assert {path: path.stat().st_mtime_ns for path in (finished.folder / "cells").rglob("*")} == done


def test_an_autoencoder_that_saw_the_pool_is_refused(finished: Utility, overrides: list[str], tmp_path: Path) -> None:
    """A planted leak: it would carry other patients into every arm."""
    given = [*overrides[1:], f"folder={tmp_path / 'study'}"]
    good = Utility(config([*given, f"pretrained_autoencoder={finished.folder / 'autoencoder'}"]))
    assert "autoencoder" not in [cell.name for cell in good.cells()]
    pool = [case for case in finished.roles.cohort.cases if case.patient_id in finished.roles.pool]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "read_ledger", lambda folder: Ledger.of(pool[:1]))
        with pytest.raises(DataError, match=f"1 patients of this study's pool .*{pool[0].patient_id}"):
            Utility(config([*given, f"pretrained_autoencoder={finished.folder / 'autoencoder'}"]))


def test_validation_patients_of_nested_subsets_are_nested() -> None:
    order = [f"p{n}" for n in range(40)]
    for share, count in ((0.2, 8), (0.25, 10), (0.4, 16), (0.5, 20)):
        train, val = own(order, share)
        assert len(val) == count
        assert sorted(train + val) == sorted(order)
        for size in range(2, 40):
            some, few = own(order[:size], share)
            assert set(some) | set(few) == set(order[:size])
            assert some
            assert few
            if size >= 1 / share:
                assert len(few) == int(size * share + 1e-9)
                assert set(few) <= set(val)
    with pytest.raises(DataError, match="give at least 2"):
        own(["p"], 0.2)


def test_a_larger_dose_keeps_the_volumes_of_a_smaller_one(finished: Utility, tmp_path: Path) -> None:
    painted = finished.folder / "cells" / "paint-diffusion-n5-s0" / "samples"
    kept: set[str] = set()
    for count in (1, 3, 4, 7, 8):
        path = dosed(painted / "manifest.json", count, 0, tmp_path / str(count), True)
        names = {case.case_id for case in Manifest.load(path).cases}
        assert len(names) == count
        assert kept <= names
        kept = names
        assert Ledger.beside(path) == Ledger.load(painted / LEDGER)


def written(
    folder: Path, study: UtilityStudy, shifts: dict[str, float], patients: int = 40, seeds: int = 3
) -> list[Job]:
    """Cells whose segmenters differ by planted shifts: of Dice, as much of surface Dice, and 100 mm of HD95 for every 1 of it."""
    jobs = [Job(arm, "unet", 5, seed) for arm in shifts for seed in range(seeds)]
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 0.8, patients)
    columns = ("patient", "label", "dice", "surface_dice", "hd95_mm", "volume_error", "lesions", "lesions_found")
    for job in jobs:
        file = folder / "cells" / job.name / "test" / "segmenter.csv"
        file.parent.mkdir(parents=True)
        score = base + shifts[job.arm] + 0.01 * rng.standard_normal(patients)
        with file.open("w", newline="") as stream:
            lines = csv.writer(stream)
            lines.writerow(columns)
            for n in range(patients):
                lesions = 4 if n else 0  # the first patient has none
                for label, dice in (("liver", score[n] - 0.1), ("lesion", score[n] + 0.1)):
                    far = 30 - 100 * shifts[job.arm]
                    lines.writerow(
                        (f"p{n}", label, dice, dice, far, -0.5, lesions, min(lesions, 1 if label == "lesion" else 4))
                    )
    return jobs


def test_planted_effects_get_their_verdict_by_every_measure(tmp_path: Path, overrides: list[str]) -> None:
    study = config([*overrides, "contrasts=[[added, half]]"])
    shifts = {"real": 0.0, "half": -0.05, "added": 0.05, "bridge": 0.003}
    by_seed = read_scores(tmp_path, written(tmp_path, study, shifts), ("lesion",))
    by = over_seeds(by_seed)["unet", 5, "added"]
    assert by["lesions_found"]["p1"] == 0.25  # the liver is no lesion
    assert by["volume_error"]["p0"] == 0.5
    found = comparisons(study, by_seed)
    words: dict[tuple[str, str], list[str]] = {(one.arm, one.reference): [] for one in found}
    for one in found:
        words[one.arm, one.reference].append(one.verdict.value)
    assert words == {
        ("half", "real"): ["harm", "harm", "harm", "equivalent"],
        ("added", "real"): ["gain", "gain", "gain", "equivalent"],  # a smaller distance is a gain
        ("bridge", "real"): ["equivalent", "equivalent", "lower, within the margin", "equivalent"],
        ("added", "half"): ["gain", "gain", "gain", "equivalent"],
    }
    assert [one.measure for one in found] == [*TESTED] * 4
    one = next(one for one in found if (one.arm, one.reference, one.measure) == ("added", "real", "dice"))
    assert one.found.patients == 40  # patients, not patients times seeds
    assert one.found.difference == pytest.approx(0.05, abs=0.005)
    assert one.found.signs == "+++"
    assert one.found.p <= one.ranks <= len(found) * one.found.p + 1e-12
    assert one.found.p_mean <= one.mean <= one.adjusted == max(one.ranks, one.mean)
    assert {one.found.patients for one in found if one.measure == "lesions_found"} == {39}
    said = sentences(study, found)
    assert len(said) == 4 + 1  # the debug study has one seed
    assert said[0].startswith("unet, 5 patients: half against real: Dice harm (-0.05")


def test_few_patients_cannot_be_significant_and_it_is_said(tmp_path: Path, overrides: list[str]) -> None:
    study = config(overrides)
    jobs = written(tmp_path, study, {"real": 0.0, "half": -0.2, "added": 0.2}, patients=5)
    found = comparisons(study, read_scores(tmp_path, jobs, ("lesion",)))
    assert {one.verdict for one in found} <= {Verdict.NO_EVIDENCE, Verdict.EQUIVALENT}
    said = sentences(study, found)
    assert "nothing here can be significant" in said[-2]
    assert said[-1].startswith("seeds: 1; one says nothing")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["contrasts=[[half, none]]"], "contrasts: 'none' is none of the arms"),
        (["contrasts=[[half, real]]"], "or with the baseline, which is tested anyway"),
        (["contrasts=[[half, half]]"], "tests an arm with itself"),
        (["contrasts=[[half, added], [added, half]]"], "contrasts holds ['added', 'half'] twice"),
        (
            ["sizes=[5, all]", "arms.synthetic.sizes=[all]", "contrasts=[[rules, synthetic]]"],
            "are never trained at one size",
        ),
        (["margins.hd95_mm=0"], "margins.hd95_mm: Input should be greater than 0"),
        (["baseline=none"], "baseline 'none' is none of the arms"),
        (["arms.real.sizes=[9]"], "size 9 is none of the study's sizes"),
        (["arms.added.model=gan"], "model 'gan' is none of diffusion"),
        (["arms.added.dose=0"], "an arm with synthetic volumes needs both"),
        (["arms.real.real=0"], "nothing to train on"),
        (["arms.synthetic.bridge=true"], "bridge needs real patients and a dose"),
        (["segmenters.unet.data={}"], "segmenters.unet.data is decided by the study"),
        (["segmenters.unet.network.chanels=[4]"], "did you mean channels?"),
        (["arms={real: {}}"], "at least 2 items"),
        (["arms.real.drop={copies: true}"], "drop is about synthetic volumes"),
        (["arms.rules.drop={copies: true}"], "around their lesions these volumes are the patients' scans"),
        (["models.diffusion.conditioner={context: true}"], "arm drawn: lesions are painted into scans here"),
        (["models.joint={generator: {kind: stylegan2, form: joint}}", "arms.drawn.model=joint"], "makes its own masks"),
        (["segmenters={masks: {}}"], "'masks' names cells"),
        (["arms.rules.masks=deformed"], "masks.deformed needs into_hosts"),
        (["arms.drawn.masks=none"], "masks 'none' are none of own, deformed, rough"),
        (["masks.deformed.deform={elastic_mm: 50}"], "elastic_mm 50 folds space"),
        (["models.rules={}"], "rules names lesions by rule"),
        (["baseline=half"], "drop.agreement asks the baseline's segmenter"),
        (["roles={pool: 0.7, outside: 0, heldout: 0.3}"], "roles.outside is 0"),
        (["models.x={generator: {kind: stylegan2, form: mask_only}}"], "form mask_only makes no images"),
        (["validation=0.6"], "less than or equal to 0.5 (found 0.6)"),
        (["segmenters={paint: {}}"], "'paint' names cells"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(overrides: list[str], changes: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        config([*overrides, *changes])


def test_a_dry_run_makes_nothing(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: list[Any] = [*overrides[1:], f"folder={tmp_path / 'study'}"]
    assert run(monkeypatch, "experiment", "utility", DEBUG, *changes, "--dry-run") == 0
    assert "0 of 18 cells done" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
