"""A blinded reading: real and synthetic volumes on one page in random order, and what a reader's answers are worth."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from scipy.stats import binomtest

from latentsynth.config import AugmentConfig
from latentsynth.data.cache.volumes import Recipe
from latentsynth.documents import read_csv, read_fields
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.features import comparison_space
from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.files import make_folder, write_json, write_text
from latentsynth.progress import bar
from latentsynth.results import Estimate, Result, Table, TableCell, close_results, open_results

PAGE, KEY = "reading.html", "reading_key.json"
_REAL, _SYNTHETIC = "real", "synthetic"
_SURE = ("real", "synthetic")


@dataclass(frozen=True)
class Reading:
    """What a page shows.

    Attributes:
        page: The page; it names nobody and holds its pictures.
        key: Which volume is which; for whoever scores the answers, not for the reader.
        volumes: How many of each kind.
    """

    page: Path
    key: Path
    volumes: int


def write_reading(
    real: Cohort,
    made: Cohort,
    out: Path,
    count: int = 20,
    like: Path | None = None,
    seed: int = 0,
    outlined: bool = False,
) -> Reading:
    """Writes a page of real and synthetic volumes in random order, and apart from it the key.

    All volumes are brought to one grid and one intensity window, so that neither resolution nor greys give them away. As many
    real as synthetic ones are shown, at most one a patient or mask, and no patient whose mask a shown volume was made from.

    Args:
        real: Patients, best those that the generator never saw.
        made: Synthetic volumes.
        out: Folder for both files.
        count: How many of each.
        like: Run or checkpoint folder whose grid is taken; None chooses one for the scans.
        seed: Of the choice and of the order.
        outlined: Draw the outline of the masks.

    Raises:
        DataError: Too few volumes, other channels.
    """
    if made.manifest.channels != real.manifest.channels:
        raise DataError(f"{made.name} has channels {made.manifest.channels}, {real.name} has {real.manifest.channels}")
    rng = np.random.default_rng(seed)
    chosen = _chosen(made, count, rng, ())
    parents = {parent for n in chosen for parent in made.cases[n].parents}
    patients = _chosen(real, count, rng, parents)
    least = min(len(chosen), len(patients))
    if least < 2:
        raise DataError(
            f"{len(patients)} patients whose masks were not used and {len(chosen)} volumes cannot be read blindly: give at least "
            "two of each"
        )
    grid, framing = comparison_space(like, real.manifest)
    recipe = Recipe(grid, framing, real.manifest.labels, AugmentConfig(), 0)
    cases = [(_REAL, real.cases[n]) for n in patients[:least]] + [(_SYNTHETIC, made.cases[n]) for n in chosen[:least]]
    order = rng.permutation(len(cases))
    legend = Legend(grid.spacing_mm, real.manifest.channels, real.manifest.labels.names)
    folder, shown = make_folder(out), []
    with bar("drawing", len(cases), "volumes") as progress:
        for place, n in enumerate(order, 1):
            volume = recipe.read(cases[n][1])
            picture = folder / ".volume.png"
            tile = Tile("", volume.image, volume.mask, outlined)
            contact_sheet(picture, [[tile]], legend, f"volume {place}", shared_cut=False)
            shown.append((place, base64.b64encode(picture.read_bytes()).decode()))
            picture.unlink()
            progress.advance()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("latentsynth.evaluation", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    write_text(folder / PAGE, environment.get_template("reading.html.j2").render(volumes=shown, each=least))
    truth = {str(place): {"kind": cases[n][0], "case": cases[n][1].case_id} for place, n in enumerate(order, 1)}
    write_json(folder / KEY, {"seed": seed, "volumes": truth})
    return Reading(folder / PAGE, folder / KEY, least)


def _chosen(cohort: Cohort, count: int, rng: np.random.Generator, without: Sequence[str] | set[str]) -> list[int]:
    """Rows of at most one case a patient or mask, in random order."""
    first: dict[str, int] = {}
    for n in rng.permutation(len(cohort.cases)):
        if cohort.cases[n].patient_id not in without:
            first.setdefault(cohort.patients[n], int(n))
    return list(first.values())[:count]


def score_reading(key: Path, answers: Sequence[Path], out: Path) -> Result:
    """What readers' answers are worth: could they tell synthetic volumes from real ones?

    Args:
        key: ``reading_key.json`` of the page.
        answers: One CSV file per reader, columns ``volume,answer`` with answers ``real`` or ``synthetic``, as the page saves.
        out: Folder for ``reading.json``.

    Raises:
        DataError: Answers to other volumes, twice, or of another kind.
    """
    truth = {place: one["kind"] for place, one in read_fields(key, volumes=dict)["volumes"].items()}
    open_results(out)
    rows: list[tuple[TableCell, ...]] = []
    facts = {}
    for path in answers:
        said = _answers(path, truth)
        hits = {kind: [said[place] == kind for place in said if truth[place] == kind] for kind in _SURE}
        right, count = sum(map(sum, hits.values())), len(said)
        found = [_share(sum(hits[kind]), len(hits[kind])) for kind in (_SYNTHETIC, _REAL)]
        p = float(binomtest(right, count).pvalue)
        rows.append((path.stem, count, *found, _share(right, count), p))
        facts[path.stem] = {"answers": count, "right": right, "p": p}
    table = Table(
        "readers",
        ("reader", "answers", "synthetic ones found (sensitivity)", "real ones found (specificity)", "right", "p"),
        tuple(rows),
        "with exact 95 % intervals (Clopper and Pearson 1934); p: of a reader who guesses (two-sided binomial test)",
    )
    told = [row[0] for row in rows if float(str(row[5])) <= 0.05]
    note = (
        f"told real from synthetic volumes better or worse than by guessing: {', '.join(map(str, told))}"
        if told
        else "no reader told real from synthetic volumes; the intervals say how well one could all the same"
    )
    result = Result("reading", "Can readers tell synthetic volumes from real ones?", facts, (table,), (), (note,))
    result.save(out)
    close_results(out, result)
    return result


def _share(hits: int, count: int) -> Estimate | None:
    if not count:
        return None
    interval = binomtest(hits, count).proportion_ci()
    return Estimate(hits / count, float(interval.low), float(interval.high))


def _answers(path: Path, truth: dict[str, str]) -> dict[str, str]:
    said: dict[str, str] = {}
    for row in read_csv(path, ("volume", "answer")):
        place, answer = row["volume"], row["answer"].strip().lower()
        if place not in truth:
            raise DataError(f"{path}: volume {place} is none of the {len(truth)} of this page: give its own answers")
        if place in said:
            raise DataError(f"{path}: volume {place} is answered twice: leave one answer")
        if answer not in _SURE:
            raise DataError(f"{path}: answer {answer!r} to volume {place}: expected real or synthetic")
        said[place] = answer
    if not said:
        raise DataError(f"{path} holds no answers: save them from the page")
    return said
