"""What a utility study found: scores, comparisons with the declared baseline in plain words, a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
from accelerate import Accelerator

from latentsynth.config import MarginsConfig, UtilityStudy
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
from latentsynth.experiments.utility.jobs import KEPT, FinishedStudy, Job, PatientScores, SeedScores
from latentsynth.metrics.bootstrap import mean_interval, ratio_interval
from latentsynth.metrics.significance import FEWEST_SEEDS, Paired, Verdict, holm, paired, verdict
from latentsynth.plots import panels
from latentsynth.results import Answer, Conclusion, Estimate, Picture, Question, Result, Table, TableCell, write_csv
from latentsynth.sharing.filter import read_report

KIND = "utility"
MEASURES = ("dice", "surface_dice", "hd95_mm", "lesions_found", "volume_error")
_READ = ("patient", "label", "dice", "surface_dice", "hd95_mm", "volume_error", "lesions", "lesions_found")
_TITLES = ("Dice", "surface Dice", "HD95 (mm)", "lesions found", "volume error, absolute")
TESTED = MEASURES[:4]
_LOWER_IS_BETTER = ("hd95_mm",)


class Design(Protocol):
    """What is declared of arms before anything is seen: of a whole study, or of segmenters of other programs."""

    @property
    def baseline(self) -> str:
        """The arm that all others are compared with."""

    @property
    def contrasts(self) -> tuple[tuple[str, str], ...]:
        """Further pairs to test."""

    @property
    def margins(self) -> MarginsConfig:
        """Differences that count as none."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the trainings of every arm."""


@dataclass(frozen=True)
class Comparison:
    """One arm beside another by one measure.

    Attributes:
        segmenter: Which.
        size: Patients of the subset, or "all".
        arm: The arm.
        reference: What it is compared with: the baseline, or the other arm of a declared contrast.
        measure: One of :data:`TESTED`.
        found: Differences, arm minus reference, and their tests.
        ranks: p of the ranks, by Holm over all comparisons of the study.
        mean: p of the mean, likewise.
        verdict: What may be said.
    """

    segmenter: str
    size: int | str
    arm: str
    reference: str
    measure: str
    found: Paired
    ranks: float
    mean: float
    verdict: Verdict

    @property
    def adjusted(self) -> float:
        """The larger of both, since a gain or harm needs both."""
        return max(self.ranks, self.mean)


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
    by_seed = read_scores(folder, jobs, lesions)
    scores = over_seeds(by_seed)
    found = comparisons(config, by_seed)
    drawn = figures.curves(config, scores)
    result = Result(
        KIND,
        "Does training on synthetic patients help?",
        {"cohort": finished.cohort, "baseline": config.baseline, "margins": config.margins.model_dump(), "seeds": list(config.seeds), "sizes": list(config.sizes),
         "arms": {name: arm.model_dump(mode="json") for name, arm in config.arms.items()},
         "comparisons": [asdict(one) for one in found]},
        tuple(table for table in (*tables(config, scores, found), _copies(finished.uncopied)) if table),
        (*(Picture(file, caption) for file, caption, *_ in drawn),
         Picture("utility_examples.png", "the test patients that the baseline segments worst, middling and best, and what each arm finds in them")),
        (*sentences(config, found), *finished.short_of),
        conclusions=tuple(conclusion(one) for one in found if _tells(config, one)),
    )  # fmt: skip
    shown = figures.shown(config, jobs, scores, cohort)
    cache = volumes(shown, config.grid, config.framing, labels, config.cache, accelerator, masks=True)
    if accelerator.is_main_process:
        result.save(folder)
        write_scores(folder, scores)
        for file, _, label, lines in drawn:
            panels(folder / file, lines, min(len(lines), 3), [label] * len(lines), "Dice of real test patients")
        figures.examples(folder / "utility_examples.png", folder, jobs, scores, shown, cache)
        write_report(folder, folder / "report.html")
    accelerator.wait_for_everyone()
    return result


def _tells(config: UtilityStudy, found: Comparison) -> bool:
    """Whether a comparison says if synthetic patients help: one with them against the baseline without, by Dice."""
    return (
        found.measure == MEASURES[0]
        and found.reference == config.baseline
        and config.arms[found.arm].model is not None
        and config.arms[config.baseline].model is None
    )


def conclusion(found: Comparison) -> Conclusion:
    """Whether one arm gains over the baseline."""
    decided = found.verdict not in (Verdict.MIXED, Verdict.NO_EVIDENCE)
    answer: Answer = "yes" if found.verdict is Verdict.GAIN else "no" if decided else "undecided"
    reason = (
        f"{found.segmenter}, {found.size} patients: Dice of real test patients {found.found.difference:+.3f} [{found.found.low:+.3f}, "
        f"{found.found.high:+.3f}] against {found.reference}: {found.verdict}"
    )
    return Conclusion(Question.HELP, found.arm, answer, reason)


def tables(design: Design, scores: PatientScores, found: Sequence[Comparison]) -> tuple[Table, Table]:
    """Scores of every arm, and arms compared."""
    return _scores(design, scores), _comparisons(design, found)


def write_scores(folder: Path, scores: PatientScores) -> None:
    """``utility.csv``: a line per arm and patient."""
    rows = [
        (segmenter, size, arm, patient, *(by[m][patient] for m in MEASURES))
        for (segmenter, size, arm), by in scores.items()
        for patient in by[MEASURES[0]]
    ]
    write_csv(folder / f"{KIND}.csv", ("segmenter", "size", "arm", "patient", *MEASURES), rows)


def read_scores(folder: Path, jobs: Sequence[Job], lesions: Collection[str]) -> SeedScores:
    """Scores of test patients by seed, labels averaged: the unit is the patient. Folds add up to all patients.

    Args:
        folder: Of the study.
        jobs: Which cells.
        lesions: Names of the labels whose pieces are counted.

    Raises:
        DataError: The seeds of one arm were evaluated on other patients.
    """
    gathered: SeedScores = defaultdict(dict)
    for job in jobs:
        file = folder / "cells" / job.name / "test" / "segmenter.csv"
        found = by_patient(read_csv(file, _READ), lesions)
        whole = gathered[job.segmenter, job.size, job.arm].setdefault(job.seed, {measure: {} for measure in MEASURES})
        for measure in MEASURES:
            whole[measure] |= found[measure]
    for place, by_seed in gathered.items():
        if len({frozenset(one[MEASURES[0]]) for one in by_seed.values()}) > 1:
            raise DataError(f"the seeds of {place} were evaluated on other patients: remove these cells and run again")
    return dict(gathered)


def over_seeds(scores: SeedScores) -> PatientScores:
    """The mean over seeds of every patient's scores."""
    return {
        place: {
            measure: {
                p: float(np.mean([one[measure][p] for one in seeds.values()]))
                for p in sorted(next(iter(seeds.values()))[measure])
            }
            for measure in MEASURES
        }
        for place, seeds in scores.items()
    }


def comparisons(config: Design, scores: SeedScores) -> list[Comparison]:
    """Every arm against the baseline and every declared contrast, by each of :data:`TESTED`; Holm over all of them.

    Patients without an annotated lesion count in no comparison by lesions found; fewer than two make none.
    """
    made: list[tuple[tuple[str, int | str, str, str, str], Paired]] = []
    for segmenter, size in dict.fromkeys(place[:2] for place in scores):
        here = [arm for one, other, arm in scores if (one, other) == (segmenter, size)]
        pairs = [(arm, config.baseline) for arm in here if arm != config.baseline and config.baseline in here]
        for arm, reference in (*pairs, *(pair for pair in config.contrasts if set(pair) <= set(here))):
            for measure in TESTED:
                one, other = (_table_of(scores[segmenter, size, name], measure) for name in (arm, reference))
                scored = np.isfinite(one).all(0) & np.isfinite(other).all(0)
                if scored.sum() > 1:
                    found = paired(one[:, scored], other[:, scored], getattr(config.margins, measure))
                    made.append(((segmenter, size, arm, reference, measure), found))
    ranks, means = (holm([getattr(found, p) for _, found in made]).tolist() for p in ("p", "p_mean"))
    return [
        Comparison(
            *names, found, of_ranks, of_mean, verdict(found, of_ranks, of_mean, names[-1] not in _LOWER_IS_BETTER)
        )
        for (names, found), of_ranks, of_mean in zip(made, ranks, means, strict=True)
    ]


def _table_of(by_seed: Mapping[int, Mapping[str, Mapping[str, float]]], measure: str) -> np.ndarray:
    """Scores ``(seeds, patients)``, both in ascending order, so that two arms are paired."""
    return np.array([[score for _, score in sorted(by_seed[seed][measure].items())] for seed in sorted(by_seed)])


def sentences(config: Design, found: Sequence[Comparison]) -> list[str]:
    """One sentence per pair of arms, by all measures, Dice first."""
    lines = []
    titles = dict(zip(MEASURES, _TITLES, strict=True))
    for (segmenter, size, arm, reference), group in groupby(found, lambda c: (c.segmenter, c.size, c.arm, c.reference)):
        said = [
            f"{titles[c.measure]} {c.verdict} ({c.found.difference:+.3f} [{c.found.low:+.3f}, {c.found.high:+.3f}], "
            f"adjusted p {c.adjusted:.3g}, seeds {c.found.signs})"
            for c in group
        ]
        lines.append(f"{segmenter}, {size} patients: {arm} against {reference}: {'; '.join(said)}")
    smallest = max((one.found.smallest_p for one in found), default=0.0)
    if smallest * len(found) > 0.05:
        lines.append(
            f"with {len(found)} comparisons and so few test patients no adjusted p can fall below {smallest * len(found):.2g}: "
            "nothing here can be significant; use more test patients or fewer arms"
        )
    if len(config.seeds) < FEWEST_SEEDS:
        lines.append(
            f"seeds: {len(config.seeds)}; one says nothing of how much trainings vary, and two so little that intervals are wide; "
            f"give {FEWEST_SEEDS} or more"
        )
    return lines


def by_patient(rows: Sequence[Mapping[str, str]], lesions: Collection[str]) -> dict[str, dict[str, float]]:
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


def _scores(config: Design, scores: PatientScores) -> Table:
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


def _comparisons(config: Design, found: Sequence[Comparison]) -> Table:
    titles = dict(zip(MEASURES, _TITLES, strict=True))
    rows: list[tuple[TableCell, ...]] = [
        (c.segmenter, c.size, c.arm, c.reference, titles[c.measure], c.found.patients,
         Estimate(c.found.difference, c.found.low, c.found.high), c.found.signs, c.found.p, c.found.p_mean, c.adjusted, c.found.smallest_p,
         c.found.effect, c.verdict.value)
        for c in found
    ]  # fmt: skip
    margins = ", ".join(f"{titles[name]} {value:g}" for name, value in config.margins.model_dump().items())
    return Table(
        "arms compared",
        ("segmenter", "patients", "arm", "against", "by", "n", "difference", "seeds", "p", "p, mean", "p, Holm", "smallest p", "effect", "verdict"),
        tuple(rows),
        "difference: arm minus reference with its 95 % interval over seeds and patients; seeds: its sign in each; p: Wilcoxon "
        "signed-rank test over test patients; p, mean: of the mean over seeds and patients; p, Holm: the larger of both, adjusted "
        "over all rows; smallest p: if every patient changed in one direction; effect: rank-biserial correlation; gain and harm "
        "need all of them to agree, else mixed; within the margin: by the "
        f"90 % interval ({margins})",
    )  # fmt: skip
