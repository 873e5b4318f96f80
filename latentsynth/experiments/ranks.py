"""Which arm is best over data sets: finished utility studies, ranked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latentsynth.documents import finite_number, read_csv
from latentsynth.errors import DataError
from latentsynth.experiments.utility.summary import KIND as STUDY
from latentsynth.metrics.significance import FEWEST_DATASETS, rank_models
from latentsynth.plots import critical_differences
from latentsynth.results import Picture, Result, Table, TableCell, close_results, open_results

KIND = "ranks"
_PICTURE = "ranks.png"


def rank_studies(studies: Sequence[Path], out: Path, size: str = "all") -> Result:
    """Ranks the arms that several studies share, by mean Dice over patients (Demsar 2006).

    Args:
        studies: Folders of finished studies; each is one data set.
        out: Folder for ``ranks.json`` and the diagram.
        size: Size of the real subset that is looked at.

    Raises:
        DataError: A folder without a finished study, two of one cohort, fewer than five, or fewer than three arms in
            common.
    """
    cohorts: dict[str, Path] = {}
    means: list[dict[str, float]] = []
    for folder in studies:
        report = folder / f"{STUDY}.json"
        if not report.is_file() or (result := Result.load(report)).kind != STUDY:
            raise DataError(
                f"{folder} holds no finished utility study: run `latentsynth experiment utility` to its end"
            )
        cohort = str(result.facts.get("cohort"))
        if cohort in cohorts:
            raise DataError(
                f"{cohorts[cohort]} and {folder} are studies of one cohort, which counts once: give one of them"
            )
        cohorts[cohort] = folder
        means.append(_means(folder / f"{STUDY}.csv", size))
    shared = [model for model in means[0] if all(model in one for one in means)]
    if len(studies) >= FEWEST_DATASETS and len(shared) < 3:
        raise DataError(
            f"{len(shared)} arms are in all {len(studies)} studies at size {size}, at least 3 can be ranked: give studies of the same arms"
        )
    scores = np.array([[one[model] for model in shared] for one in means])
    found = rank_models(scores)
    ranks = dict(zip(shared, (float(rank) for rank in found.mean), strict=True))
    rows: list[tuple[TableCell, ...]] = [
        (model, ranks[model], *(float(value) for value in scores[:, n])) for n, model in enumerate(shared)
    ]
    rows.sort(key=lambda row: ranks[str(row[0])])
    table = Table(
        f"mean ranks over {len(studies)} data sets, {size} real patients",
        ("arm", "mean rank", *(folder.name for folder in studies)),
        tuple(rows),
        f"1 is best, by mean Dice over test patients; two arms differ if their ranks differ by more than "
        f"{found.critical_difference:.2f} (Nemenyi, 5 %)",
    )
    answer = "differ" if found.p <= 0.05 else "cannot be told apart"
    facts = {"studies": [folder.name for folder in studies], "cohorts": list(cohorts), "size": size,
             "p": found.p, "critical_difference": found.critical_difference}  # fmt: skip
    result = Result(
        KIND,
        "Which arm is best over data sets?",
        facts,
        (table,),
        (Picture(_PICTURE, "mean ranks; a bar joins arms that do not differ"),),
        (f"over {len(studies)} data sets the {len(shared)} arms {answer} (Friedman, p = {found.p:.3g})",),
    )
    open_results(out)
    result.save(out)
    critical_differences(out / _PICTURE, ranks, found.critical_difference)
    close_results(out, result)
    return result


def _means(file: Path, size: str) -> dict[str, float]:
    """Mean Dice of each segmenter and arm at one size."""
    values: dict[str, list[float]] = defaultdict(list)
    segmenters = set()
    rows = [row for row in read_csv(file, ("segmenter", "size", "arm", "dice")) if row["size"] == size]
    segmenters = {row["segmenter"] for row in rows}
    for row in rows:
        values[row["arm"] if len(segmenters) == 1 else f"{row['segmenter']}, {row['arm']}"].append(
            finite_number(row, "dice", file)
        )
    if not values:
        raise DataError(f"{file} has nothing at size {size}: choose a size that all studies have, with --size")
    return {model: float(np.mean(dice)) for model, dice in values.items()}
