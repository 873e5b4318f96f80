"""What a memorization measurement leaves behind: tables, verdicts in words, pictures of the worst pairs, JSON and CSV."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort, file_name
from latentsynth.evaluation.memorization import tables
from latentsynth.evaluation.memorization.controls import FOUND, text
from latentsynth.evaluation.memorization.joint import JOINT
from latentsynth.evaluation.memorization.measures import CONTROL, CopySearch, PatientGroups
from latentsynth.evaluation.memorization.reference import Measured
from latentsynth.evaluation.memorization.spaces import SAME_MASK
from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.files import make_folder
from latentsynth.metrics.copying import copy_rate as share_flagged
from latentsynth.metrics.membership import Membership
from latentsynth.plots import strips
from latentsynth.provenance import file_fingerprint, fingerprint
from latentsynth.results import Conclusion, Note, Picture, Question, Result, write_csv

KIND = "memorization"
_WORST = 5  # pairs per picture
EXACT = "exact"  # among what flags a volume: one of its images is a training scan's, voxel for voxel
FACTS = (
    "level",
    "train",
    "calibration",
    "control",
    "spaces",
    "masks",
    "sets",
    "ledgers",
    "copies",
    "near_exact",
    "notes",
)
_COLUMNS = ("volumes", "case", "space", "distance", "p", "flagged", "discovered", "nearest training case")


def write_memorization(
    out: Path,
    groups: PatientGroups,
    samples: Sequence[Cohort],
    searches: Sequence[CopySearch],
    masks: CopySearch | None,
    caches: Mapping[str, VolumeCache],
    level: float,
    accelerator: Accelerator,
    notes: Sequence[Note] = (),
    members: Mapping[str, Membership] | None = None,
    exact: Mapping[str, Mapping[str, str]] | None = None,
) -> Result:
    """Writes ``memorization.json``, ``memorization.csv`` and pictures.

    Args:
        out: The folder.
        groups: The real patients.
        samples: The synthetic sets.
        searches: What every feature space says.
        masks: What is to be said of masks, or None where there are none to compare.
        caches: The volumes of every cohort, by its name.
        level: Level of the p-values.
        accelerator: The processes; the first one writes.
        notes: What else must be said.
        members: Membership inference, by name of the set.
        exact: By name of the set and case, the training case of which it is a copy voxel for voxel, in one channel at least.
    """
    names = [cohort.name for cohort in samples]
    exact = exact or {}
    said = [*conclusions(searches, masks, samples, groups, level), *_exact(exact, samples), *notes]
    facts = _facts(groups, samples, searches, masks, level, said, exact)
    found = [
        tables.near_exact(tables.near_exact_volumes(searches, names)),
        tables.verdicts(facts),
        *(one.controls.table() for one in searches),
        tables.matched(searches, names),
        tables.without_nearest(searches, names),
        tables.measures(searches, names),
        tables.published(searches, names),
        tables.members(members or {}),
        tables.masks(masks, samples, groups) if masks else None,
    ]
    pictures = [Picture("memorization_distances.png", "distance to the nearest training patient: one point a case; left of most calibration patients means closer than unseen patients come")]  # fmt: skip
    pictures += [Picture(_pairs_file(name), _pairs_caption(name)) for name in names]
    result = Result(
        KIND,
        "Are synthetic volumes copies of the training patients?",
        facts,
        tuple(table for table in found if table is not None),
        tuple(pictures),
        tuple(note.text for note in said),
        conclusions=tuple(conclusion(searches, cohort, level, exact.get(cohort.name, {})) for cohort in samples),
    )
    if accelerator.is_main_process:
        result.save(make_folder(out))  # first: a picture that fails must not cost the numbers
        write_csv(out / "memorization.csv", _COLUMNS, _rows(searches, names))
        lead = leading(searches)
        columns = {"calibration": lead.reference.first, CONTROL: lead.controls.control.distances[:, 0]}
        columns |= {name: lead.sets[name].distances[:, 0] for name in names}
        strips(out / pictures[0].file, columns, f"distance by {lead.space.name}", lead.space.unit)
        for cohort in samples:
            _pairs(out / _pairs_file(cohort.name), lead, cohort, groups, caches)
    accelerator.wait_for_everyone()
    return result


def leading(searches: Sequence[CopySearch]) -> CopySearch:
    """The feature space that pictures are drawn by: the valid one that sees most positive controls."""
    return max(searches, key=lambda one: (one.controls.valid, float(np.mean(list(one.controls.found.values())))))


def decisions(searches: Sequence[CopySearch], name: str) -> dict[str, np.ndarray]:
    """By feature space, which volumes of a set it calls copies.

    Where several spaces are joined, the joint one alone decides by p-values, at its one rate of false alarms, and the others by
    near-exact volumes; otherwise every valid one decides.
    """
    valid = [one for one in searches if one.controls.valid]
    joint = any(one.space.name == JOINT for one in valid)
    return {
        one.space.name: one.sets[name].near_exact if joint and one.space.name != JOINT else one.sets[name].flagged
        for one in valid
    }


def copy_rate(searches: Sequence[CopySearch], exact: Mapping[str, Mapping[str, str]] | None = None) -> float:
    """The highest copy rate of any set by a space that decides on it, exact copies counted; not a number where none is valid."""
    rates = []
    for name, found in searches[0].sets.items():
        twins = np.isin(found.features.ids, list((exact or {}).get(name, {})))
        rates += [
            share_flagged(flags | twins, found.features.patients)[0] for flags in decisions(searches, name).values()
        ]
    return max(rates, default=float("nan"))


def conclusions(
    searches: Sequence[CopySearch],
    masks: CopySearch | None,
    samples: Sequence[Cohort],
    groups: PatientGroups,
    level: float,
) -> list[Note]:
    """The report in sentences, the answer first."""
    answers = [note for cohort in samples for note in _answers(searches, cohort, level)]
    origins = [note for cohort in samples for note in _origins(searches, masks, cohort, groups)]
    sight = []
    for one in searches:
        if one.space.doubt:
            sight.append(f"{one.space.name} is not applicable: {one.space.doubt}")
        if one.controls.reasons:
            sight.append(f"{one.space.name} is not valid here: {'; '.join(one.controls.reasons)}")
        sight.append(f"{one.space.name} {one.controls.sight}")
    blind = []
    if masks is not None and not masks.controls.valid:
        blind.append(f"masks: their comparison is not valid here: {'; '.join(masks.controls.reasons)}")
    named = tables.near_exact_volumes(searches, [cohort.name for cohort in samples])
    return [
        *_near_exact(named, samples),
        *map(Note, _gaps(searches)),
        *answers,
        *map(Note, sight),
        *origins,
        *map(Note, blind),
    ]


def conclusion(searches: Sequence[CopySearch], cohort: Cohort, level: float, exact: Collection[str] = ()) -> Conclusion:
    """Whether a set is free of copies: by the joint space where it is valid, by near-exact volumes of the others, and by exact ones.

    Args:
        searches: What every feature space says.
        cohort: The set.
        level: Level of the p-values.
        exact: Its cases of which a channel is a training scan's.
    """
    name = cohort.name
    valid = [one for one in searches if one.controls.valid]
    deciding = [one for one in valid if one.space.name == JOINT] or valid
    near = {cohort.cases[n].case_id for one in valid for n in np.flatnonzero(one.sets[name].near_exact)} | set(exact)
    copied = [one for one in deciding if one.sets[name].copied]
    heard = [one for one in deciding if not one.sets[name].mute]
    nearer = [one for one in deciding if one.nearer(name)]
    say = partial(Conclusion, Question.FREE, name)
    if near:
        return say("no", f"{len(near)} of {len(cohort.cases)} volumes are all but training scans")
    if copied:
        return say(
            "no",
            f"{copied[0].sets[name].rate.value:.0%} lie nearer to a training patient than {1 - level:.0%} of strangers do",
        )
    if not heard:
        return say(
            "undecided",
            "no near-exact copies; too few patients or no valid search to tell more"
            if valid
            else "no search is valid here",
        )
    hidden = max(0.0, (min(one.sets[name].rate.high for one in heard) - level) / (1 - level))
    if nearer:
        return say(
            "undecided",
            f"no copies, but nearer to training patients than to held-out ones (p = {nearer[0].measures[name].nearer:.2g})",
        )
    return say("yes", f"no more copies than among unseen patients; up to {hidden:.0%} could be all the same")


def _exact(exact: Mapping[str, Mapping[str, str]], samples: Sequence[Cohort]) -> list[Note]:
    """How many volumes hold a channel of a training scan."""
    texts = {
        cohort.name: f"{cohort.name}: {len(exact[cohort.name])} of {len(cohort.cases)} volumes hold an image of a training scan, voxel for voxel"
        for cohort in samples
        if exact.get(cohort.name)
    }
    return [Note(text, name) for name, text in texts.items()]


def _near_exact(found: Sequence[tables.NearExact], samples: Sequence[Cohort]) -> list[Note]:
    """How many volumes are all but training scans; the table names them, notes travel on cards of exported sets."""
    notes = []
    for cohort in samples:
        if cases := {one.case for one in found if one.volumes == cohort.name}:
            text = f"{cohort.name}: {len(cases)} of {len(cohort.cases)} volumes are all but training scans"
            notes.append(Note(text, cohort.name))
    sets = {cohort.name for cohort in samples}
    if unseen := {one.case for one in found if one.volumes not in sets}:
        text = f"{len(unseen)} held-out scans are all but training scans, perhaps of the same person: hold others back"
        notes.append(Note(text))
    return notes


def _gaps(searches: Sequence[CopySearch]) -> list[str]:
    """Which disguised copies would pass: by the joint space where it is valid, else by the best of the others for each."""
    valid = [one for one in searches if one.controls.valid]
    joint = [one for one in valid if one.space.name == JOINT]
    found = [one.controls.found for one in joint or valid]
    best = {name: max(shares[name] for shares in found) for name in found[0]} if found else {}
    missed = ", ".join(f"{name} ({share:.0%} found)" for name, share in best.items() if share < FOUND)
    return [f"copies with these disguises could pass here: {missed}"] if missed else []


def _answers(searches: Sequence[CopySearch], cohort: Cohort, level: float) -> list[Note]:
    """Whether a set holds copies, by the feature spaces that are valid."""
    name = cohort.name
    valid = [one for one in searches if one.controls.valid and not one.sets[name].mute]
    clean = [one.space.name for one in valid if not one.sets[name].copied]
    lines = [
        f"training patients lie nearer to it than held-out ones do, by {one.space.name} (p = {one.measures[name].nearer:.2g}): it "
        "knows more of them than of strangers, as samples of training patients' masks or of a model that has learnt them by heart do"
        for one in searches
        if one.controls.valid and one.nearer(name)
    ][:1]
    lines += [
        f"copies by {one.space.name}: {found.rate.value:.0%} lie closer to a training patient than "
        f"{1 - level:.0%} of unseen patients do, where independent volumes would give {text(found.expected)}"
        for one in valid
        if (found := one.sets[name]).calibrated and found.copied
    ]
    if clean:
        high = min(one.sets[name].rate.high for one in valid if not one.sets[name].copied)
        hidden = max(0.0, (high - level) / (1 - level))
        lines.append(f"no more copies than among unseen patients by {', '.join(clean)}")
        lines.append(f"up to {hidden:.0%} of it could be copies all the same: {len(cohort.cases)} volumes tell no more")
    if any(not one.sets[name].calibrated for one in searches):
        count = len(searches[0].reference.first)
        lines.append(
            f"no single volume can be tested: with {count} calibration patients no p-value is below 1/{count + 1}. Near-exact copies "
            "are found, and the set as a whole is tested"
        )
    elif any(one.sets[name].mute for one in searches):
        lines.append(
            f"nothing can be said of the set: its volumes show {len(set(cohort.patients))} independent masks, "
            "and even if all were flagged, that could be chance; make volumes of more masks"
        )
    elif not valid:
        lines.append("nothing can be said, no feature space is valid here")
    return [Note(f"{name}: {line}", name) for line in lines]


def _origins(
    searches: Sequence[CopySearch], masks: CopySearch | None, cohort: Cohort, groups: PatientGroups
) -> list[Note]:
    """Whose masks a set was made from, and whose its own are."""
    name, lines = cohort.name, []
    own, others = tables.from_patients(cohort, groups)
    if own:
        lines.append(
            f"{own} of {len(cohort.cases)} volumes were made from training patients' masks or scans: exported "
            "beside their masks they publish these annotations, and their images are closer for that reason alone"
        )
        if all(one.matched[name] is None for one in searches):
            lines.append(
                "no mask-matched null: sample masks of the held-out patients too, with the same model, and "
                "give both as one set"
            )
    if others:
        lines.append(
            f"{others} of {len(cohort.cases)} volumes were made from masks of patients who are not among the training "
            "cases: exported beside their masks they publish these annotations"
        )
    if masks is not None and masks.controls.valid and masks.sets[name].copied:
        lines.append(f"its masks are copies of training masks ({masks.sets[name].rate.value:.0%} flagged)")
    return [Note(f"{name}: {line}", name) for line in lines]


def mask_copies(masks: CopySearch, name: str) -> np.ndarray:
    """Which masks of a set are flagged: closer to a training mask than unseen ones come, or all but equal to a patient's."""
    found = masks.sets[name]
    return np.asarray(found.flagged | (np.minimum(found.distances[:, 0], masks.unseen[name]) <= SAME_MASK))


def _facts(
    groups: PatientGroups,
    samples: Sequence[Cohort],
    searches: Sequence[CopySearch],
    masks: CopySearch | None,
    level: float,
    said: Sequence[Note],
    exact: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """What the report was made for; ``filter`` and ``export`` read it."""
    valid = [one for one in searches if one.controls.valid]
    sets = {}
    for cohort in samples:
        decided, twins = decisions(searches, cohort.name), exact.get(cohort.name, {})
        # Without a comparison a mask that was made from a patient's counts as theirs; one that was bent until it is not, does not.
        copied = mask_copies(masks, cohort.name) if masks else np.array([bool(case.parents) for case in cohort.cases])
        sets[cohort.name] = {
            case.case_id: {
                "files": case_files(case),
                "voxels": sorted(case.scans),
                "flagged": [
                    *([EXACT] if case.case_id in twins else []),
                    *(space for space, flags in decided.items() if flags[n]),
                ],
                "mask_copy": bool(copied[n]),
                "nearest": {one.space.name: one.reference.train.ids[one.sets[cohort.name].nearest[n]] for one in valid}
                | ({EXACT: twins[case.case_id]} if case.case_id in twins else {}),
            }
            for n, case in enumerate(cohort.cases)
        }
    return {
        "level": level,
        "train": {"cases": len(groups.train.cases), "fingerprint": training_fingerprint(groups.train), "voxels": sorted(scan for c in groups.train.cases for scan in c.scans)},
        "calibration": {"cases": len(groups.calibration.cases), "patients": len(searches[0].reference.first), "fingerprint": training_fingerprint(groups.calibration)},
        "control": {"cases": len(groups.control.cases), "fingerprint": training_fingerprint(groups.control)},
        "spaces": {one.space.name: {"fingerprint": one.space.extractor.fingerprint, "preprocessing": one.space.extractor.preprocessing, "unit": one.space.unit, "valid": one.controls.valid, "found": dict(one.controls.found)} for one in searches},
        "masks": masks is not None,
        "sets": sets,
        "ledgers": {cohort.name: bool(cohort.ledger.voxels) for cohort in samples},
        "copies": tables.copies(searches, [cohort.name for cohort in samples]),
        "near_exact": [asdict(one) for one in tables.near_exact_volumes(searches, [cohort.name for cohort in samples])],
        "notes": [{"set": note.about, "text": note.text} for note in said],
    }  # fmt: skip


def case_files(case: Any) -> str:
    """Fingerprint of the files of a case, images and mask.

    Raises:
        DataError: One is missing.
    """
    files = (*case.images, *([case.mask] if case.mask else []))
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{missing[0]} of case {case.case_id} does not exist: restore it, or measure what is left")
    return file_fingerprint(*files)


def training_fingerprint(cohort: Cohort) -> str:
    """Names a set of real cases: changes with any patient or scan, not with where files lie or how they are split."""
    return fingerprint(sorted([case.case_id, case.patient_id, case.voxels] for case in cohort.cases))


def _rows(searches: Sequence[CopySearch], names: Sequence[str]) -> list[tuple[Any, ...]]:
    return [
        (name, case, one.space.name, *found.distances[n, :1].tolist(), float(found.p[n]), int(found.flagged[n]),
         int(found.discovered[n]), one.reference.train.ids[found.nearest[n]])
        for one in searches
        for name, found in tables.everything(one, names).items()
        for n, case in enumerate(found.features.ids)
    ]  # fmt: skip


def _pairs_file(name: str) -> str:
    return f"memorization_pairs_{file_name(name)}.png"


def _pairs_caption(name: str) -> str:
    return (
        f"{name}: the volumes that lie closest to a training patient, that patient, and the difference (grey is none); the "
        "last row is the closest pair of an unseen control patient, which nobody copied"
    )


def _pairs(
    path: Path, one: CopySearch, cohort: Cohort, groups: PatientGroups, caches: Mapping[str, VolumeCache]
) -> None:
    def row(found: Measured, n: int, cache: VolumeCache, rows: Mapping[str, int]) -> list[Tile]:
        case, near = found.features.ids[n], found.nearest[n]
        volume, training = cache.volume(rows[case]), caches[groups.train.name].volume(int(near))
        p = f"{case}, p = {found.p[n]:.3f}"
        return [
            Tile(p, volume.image, volume.mask),
            Tile(f"nearest: {one.reference.train.ids[near]}", training.image, training.mask),
            Tile("difference", np.clip((volume.image - training.image) / 2, -1, 1)),
        ]

    found, checked = one.sets[cohort.name], one.controls.control
    worst = np.argsort(found.distances[:, 0], kind="stable")[:_WORST]
    by_id = {case.case_id: n for n, case in enumerate(cohort.cases)}
    rows = [row(found, int(n), caches[cohort.name], by_id) for n in worst]
    of_control = {case.case_id: n for n, case in enumerate(groups.control.cases)}
    rows.append(row(checked, int(checked.distances[:, 0].argmin()), caches[groups.control.name], of_control))
    contact_sheet(path, rows, _legend(caches[cohort.name], cohort), f"{cohort.name}: worst pairs by {one.space.name}")


def _legend(cache: VolumeCache, cohort: Cohort) -> Legend:
    return Legend(cache.recipe.grid.spacing_mm, cohort.manifest.channels, cohort.manifest.labels.names)
