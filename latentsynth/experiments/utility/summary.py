"""What a utility study found: scores, comparisons with the declared baseline in plain words, a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from latentsynth.config import UtilityStudy
from latentsynth.data.manifest import Manifest
from latentsynth.documents import read_csv
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort, rng
from latentsynth.evaluation.features import volumes
from latentsynth.evaluation.memorization.measures import CONTROL
from latentsynth.evaluation.memorization.tables import VERDICTS, verdict_row, verdicts_note
from latentsynth.evaluation.report import write_report
from latentsynth.evaluation.segmentation.scores import UNION
from latentsynth.experiments.utility import figures
from latentsynth.experiments.utility.jobs import KEPT, FinishedStudy, Job, PatientScores, Place
from latentsynth.metrics.bootstrap import mean_interval, ratio_interval
from latentsynth.metrics.significance import Paired, holm, paired, verdict
from latentsynth.plots import panels
from latentsynth.results import Estimate, Picture, Result, Table, TableCell, write_csv
from latentsynth.sharing.filter import read_report

KIND = "utility"
MEASURES = ("dice", "surface_dice", "hd95_mm", "lesions_found", "volume_error")
_READ = ("patient", "label", "dice", "surface_dice", "hd95_mm", "volume_error", "lesions", "lesions_found")
_TITLES = ("Dice", "surface Dice", "HD95 (mm)", "lesions found", "volume error, absolute")


def summarise(config: UtilityStudy, finished: FinishedStudy, accelerator: Accelerator) -> Result:
    """Writes ``utility.json``, ``utility.csv``, pictures and ``report.html``.

    Args:
        config: The study.
        finished: What all cells left.
        accelerator: The processes; the first one writes.

    Raises:
        DataError: The seeds of one arm were evaluated on other patients, or a report is of an older version.
    """
    folder, jobs = config.folder, finished.jobs
    cohort = Cohort.load("test patients", finished.test, ("test",))
    labels = cohort.manifest.labels
    lesions = {labels.names[labels.values.index(value)] for value in labels.lesions(config.framing)}
    scores = read_scores(folder, jobs, lesions)
    found = comparisons(config, scores)
    drawn = figures.curves(config, scores)
    result = Result(
        KIND,
        "Does training on synthetic patients help?",
        {"cohort": finished.cohort, "baseline": config.baseline, "margin": config.margin, "seeds": list(config.seeds), "sizes": list(config.sizes),
         "arms": {name: arm.model_dump(mode="json") for name, arm in config.arms.items()}},
        tuple(table for table in (_scores(config, scores), _comparisons(config, found), _copies(finished.uncopied)) if table),
        (*(Picture(file, caption) for file, caption, *_ in drawn),
         Picture("utility_examples.png", "the test patients that the baseline segments worst, middling and best, and what each arm finds in them")),
        (*sentences(config, found), *finished.short_of),
    )  # fmt: skip
    shown = figures.shown(config, jobs, scores, cohort)
    cache = volumes(shown, config.grid, config.framing, labels, config.cache, accelerator, masks=True)
    if accelerator.is_main_process:
        result.save(folder)
        rows = [
            (segmenter, size, arm, patient, *(by[m][patient] for m in MEASURES))
            for (segmenter, size, arm), by in scores.items()
            for patient in by[MEASURES[0]]
        ]
        write_csv(folder / "utility.csv", ("segmenter", "size", "arm", "patient", *MEASURES), rows)
        for file, _, label, lines in drawn:
            panels(folder / file, lines, min(len(lines), 3), [label] * len(lines), "Dice of real test patients")
        figures.examples(folder / "utility_examples.png", folder, jobs, scores, shown, cache)
        write_report(folder, folder / "report.html")
    accelerator.wait_for_everyone()
    return result


def read_scores(folder: Path, jobs: Sequence[Job], lesions: Collection[str]) -> PatientScores:
    """Scores of test patients, labels averaged first, then seeds: the unit is the patient. Folds add up to all patients.

    Args:
        folder: Of the study.
        jobs: Which cells.
        lesions: Names of the labels whose pieces are counted.

    Raises:
        DataError: The seeds of one arm were evaluated on other patients.
    """
    gathered: dict[Place, dict[int, dict[str, dict[str, float]]]] = defaultdict(dict)
    for job in jobs:
        file = folder / "cells" / job.name / "test" / "segmenter.csv"
        found = _by_patient(read_csv(file, _READ), lesions)
        whole = gathered[job.segmenter, job.size, job.arm].setdefault(job.seed, {measure: {} for measure in MEASURES})
        for measure in MEASURES:
            whole[measure] |= found[measure]
    scores: PatientScores = {}
    for place, by_seed in gathered.items():
        seeds = list(by_seed.values())
        patients = set(seeds[0][MEASURES[0]])
        if any(set(one[MEASURES[0]]) != patients for one in seeds):
            raise DataError(f"the seeds of {place} were evaluated on other patients: remove these cells and run again")
        scores[place] = {
            measure: {p: float(np.mean([one[measure][p] for one in seeds])) for p in sorted(patients)}
            for measure in MEASURES
        }
    return scores


def comparisons(config: UtilityStudy, scores: PatientScores) -> dict[Place, tuple[Paired, float]]:
    """Every arm against the baseline by Dice, with p-values that Holm adjusted over the whole study."""
    found = {}
    for (segmenter, size, arm), by in scores.items():
        reference = scores.get((segmenter, size, config.baseline))
        if arm == config.baseline or reference is None:
            continue
        patients = sorted(by["dice"])
        pair = [np.array([one["dice"][p] for p in patients]) for one in (by, reference)]
        found[segmenter, size, arm] = paired(pair[0], pair[1], config.margin, rng())
    adjusted = holm([one.p for one in found.values()])
    return {place: (one, float(p)) for (place, one), p in zip(found.items(), adjusted, strict=True)}


def sentences(config: UtilityStudy, found: dict[Place, tuple[Paired, float]]) -> list[str]:
    """One sentence per comparison."""
    words = {
        "gain": "a gain",
        "harm": "harm",
        "equivalent": f"equivalent, within {config.margin:g}",
        "no evidence": "no evidence of a difference, nor of equivalence",
    }
    lines = []
    for (segmenter, size, arm), (one, p) in found.items():
        lines.append(
            f"{segmenter}, {size} patients: {arm} against {config.baseline}: {words[verdict(one, p)]} "
            f"(Dice {one.difference:+.3f} [{one.low:+.3f}, {one.high:+.3f}], adjusted p {p:.3g})"
        )
    smallest = max((one.smallest_p for one, _ in found.values()), default=0.0)
    if smallest * len(found) > 0.05:
        lines.append(
            f"with {len(found)} comparisons and so few test patients no adjusted p can fall below {smallest * len(found):.2g}: "
            "nothing here can be significant; use more test patients or fewer arms"
        )
    return lines


def _by_patient(rows: list[dict[str, str]], lesions: Collection[str]) -> dict[str, dict[str, float]]:
    """Measure to patient to the mean over labels; pieces are counted over all lesion labels together."""
    kept: dict[str, dict[str, list[float]]] = {measure: defaultdict(list) for measure in MEASURES}
    counted = {UNION} if any(row["label"] == UNION for row in rows) else set(lesions)
    for row in rows:
        patient = row["patient"]
        if row["label"] != UNION:
            for measure in ("dice", "surface_dice", "hd95_mm"):
                kept[measure][patient].append(float(row[measure]))
            if row["volume_error"]:
                kept["volume_error"][patient].append(abs(float(row["volume_error"])))
        if row["label"] in counted and int(row["lesions"]):
            kept["lesions_found"][patient].append(int(row["lesions_found"]) / int(row["lesions"]))
    patients = list(dict.fromkeys(row["patient"] for row in rows))
    return {m: {p: float(np.mean(by[p])) if by.get(p) else float("nan") for p in patients} for m, by in kept.items()}


def interval(values: dict[str, float]) -> Estimate:
    """The mean over patients with its 95 % interval."""
    return Estimate(*mean_interval(list(values.values()), list(values), rng()))


def _copies(uncopied: Mapping[str, Path]) -> Table | None:
    """What the memorization reports of cells that dropped copies say, by name of the volumes."""
    rows: list[tuple[TableCell, ...]] = []
    note = ""
    for name, cell in sorted(uncopied.items()):
        facts = read_report(cell / "memorization.json").facts
        dropped = sum(map(len, facts["sets"].values())) - len(Manifest.load(cell / KEPT).cases)
        rows += [(*verdict_row({**one, "set": name}), dropped) for one in facts["copies"] if one["set"] != CONTROL]
        note = verdicts_note(facts)
    return Table("copies among the synthetic volumes", (*VERDICTS, "dropped"), tuple(rows), note) if rows else None


def _scores(config: UtilityStudy, scores: PatientScores) -> Table:
    rows: list[tuple[TableCell, ...]] = []
    for (segmenter, size, arm), by in scores.items():
        reference = scores.get((segmenter, size, config.baseline))
        share: TableCell = None
        if reference is not None and arm != config.baseline:
            pair = [(list(one["dice"].values()), list(one["dice"])) for one in (by, reference)]
            share = Estimate(*ratio_interval(pair[0], pair[1], rng()))
        rows.append((segmenter, size, arm, *(interval(by[m]) for m in MEASURES), share))
    return Table(
        "scores of real test patients",
        ("segmenter", "patients", "arm", *_TITLES, "share of baseline"),
        tuple(rows),
        f"labels averaged first, then {len(config.seeds)} seeds, then patients, with 95 % intervals over patients; "
        f"the share is Dice over that of {config.baseline}",
    )


def _comparisons(config: UtilityStudy, found: dict[Place, tuple[Paired, float]]) -> Table:
    rows: list[tuple[TableCell, ...]] = [
        (segmenter, size, arm, one.patients, Estimate(one.difference, one.low, one.high), one.p, p, one.smallest_p, one.effect, verdict(one, p))
        for (segmenter, size, arm), (one, p) in found.items()
    ]  # fmt: skip
    return Table(
        f"against {config.baseline}, by Dice",
        ("segmenter", "patients", "arm", "n", "difference", "p", "p, Holm", "smallest p", "effect", "verdict"),
        tuple(rows),
        "Wilcoxon signed-rank test over test patients; Holm over all rows; smallest p: if every patient changed in one "
        "direction; effect: rank-biserial correlation; equivalent: 90 % interval of the difference within the margin of "
        f"{config.margin:g}",
    )
