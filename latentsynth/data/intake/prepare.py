"""``latentsynth prepare``: from a folder of scans to a checked manifest, split by patient."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from latentsynth.data.identity import files_of
from latentsynth.data.intake.checks import CaseFacts, Problem, check_cohort, twins
from latentsynth.data.intake.conversion import Wanted, converted
from latentsynth.data.intake.duplicates import NearDuplicate, near_duplicates
from latentsynth.data.intake.headers import CURES
from latentsynth.data.intake.joining import as_join
from latentsynth.data.intake.layouts import LAYOUTS, RawCohort, compiled, few, read_cohort, recognise
from latentsynth.data.intake.respacing import write_respaced
from latentsynth.data.intake.splits import FRACTIONS, declared_splits, require_fractions, split_cohort
from latentsynth.data.manifest import KIND, SPLITS, Manifest
from latentsynth.errors import ConfigError, DataError
from latentsynth.files import read_json
from latentsynth.outputs import claim_file
from latentsynth.types import Case, Labels, Origin, Split

_EXPLAINED = 3  # cases shown with their files
_SMALL = 8  # voxels; a lesion of fewer does not survive half the resolution
_OFTEN_IGNORED = 255
EXTERNAL = "external"  # source of synthetic cases that another program made


@dataclass(frozen=True)
class PrepareReport:
    """What was found and what was written.

    Attributes:
        source: Folder or table that was read.
        layout: ``"nnunet"``, ``"decathlon"``, ``"table"`` or ``"masks"``.
        path: Where the manifest stands, or would stand.
        manifest: The manifest that was written; None if problems kept it from being written.
        problems: Everything that is wrong, dropped cases included.
        notes: What the user should hear besides.
        volumes_per_patient: Least, median and most cases of one patient.
        facts: By case id, what was learnt about the cases of the manifest (or of the source, if there is none).
        near_duplicates: Pairs of cases of different patients that are all but the same scan.
    """

    source: Path
    layout: str
    path: Path
    manifest: Manifest | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    volumes_per_patient: tuple[int, float, int]
    facts: dict[str, CaseFacts]
    near_duplicates: tuple[NearDuplicate, ...] = ()


def prepare(
    source: Path | str,
    out: Path | str,
    *,
    layout: str | None = None,
    patient: str | None = None,
    split_file: Path | str | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
    skip_invalid: bool = False,
    allow_unlabelled: bool = False,
    synthetic: bool = False,
    resample: bool = False,
    fill_missing: Sequence[str] = (),
    healthy: str | None = None,
    several_masks: str | None = None,
    compare: bool = True,
    origin: Origin | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Reads a cohort, checks every file and writes the manifest if all is well.

    Splits come from ``split_file``, else from the source, else from
    :func:`latentsynth.data.intake.splits.split_cohort`.

    Args:
        source: Folder or table.
        out: Manifest to write; an older manifest there is replaced, nothing else is.
        layout: Layout of ``source``; recognised if None.
        patient: Regular expression that finds the patient in a case id.
        split_file: See :func:`latentsynth.data.intake.splits.read_split_file`.
        fractions: Shares of patients for train, val and test.
        seed: Which random split.
        skip_invalid: Leave out cases with problems (all copies of a duplicate) instead of writing nothing.
        allow_unlabelled: Accept cases without a mask, for autoencoders and diffusion models.
        synthetic: The cases are no patients but volumes that some program made; a ``dataset.json`` that says
            ``"SYNTHETIC": true`` says so too. They are never taken for real ones.
        resample: Resample channels that lie on another grid than the first onto it, into copies.
        fill_missing: Names of channels that are zeros where a case lacks them; such cases train and are never measured.
        healthy: Regular expression, searched in the ids of cases without a mask: those that match have no lesion.
        several_masks: What is made of several masks of one scan, files or channels: ``"union"``, one label; ``"labels"``, one
            each, of which the smaller structure lies on top; None refuses them.
        compare: Look for scans of two patients that are all but the same, and keep such patients in one split.
        origin: Where the scans are from, and under which licence; None takes what the source says of itself
            (``licence`` or ``license``, and ``reference``, in its ``dataset.json``).
        progress: Show progress on standard error: a bar on a terminal, a line now and then in a log.

    Raises:
        DataError: The source cannot be read, no case is left, splits and cases do not fit, or ``out`` cannot be
            written.
        ConfigError: An argument is wrong.
    """
    source, out = Path(source), Path(out)
    _require_free(out)  # all that can fail early does so before an hour of reading scans
    require_fractions(fractions)
    layout = layout or recognise(source)
    cohort = read_cohort(source, layout, patient)
    notes = list(cohort.notes)
    copies = out.with_name(f"{out.stem}_converted")
    declared_healthy = None if healthy is None else compiled("healthy", healthy)
    wanted = Wanted(resample, _to_fill(cohort, fill_missing), declared_healthy, as_join(several_masks))
    cohort, said = converted(cohort, copies, wanted)
    notes += said
    declared = declared_splits(cohort, Path(split_file) if split_file else None, notes)

    problems, facts = check_cohort(cohort, allow_unlabelled=allow_unlabelled, progress=progress)
    problems += _filled_but_measured(cohort, declared)
    wrong = {problem.case_id for problem in problems}
    kept = [(c, f) for c, f in zip(cohort.cases, facts, strict=True) if c.case_id not in wrong or not skip_invalid]
    if not kept:
        raise _nothing_left(cohort, source, problems[0])
    if wrong and skip_invalid:
        notes += _left_out(cohort, facts, wrong)
    synthetic = synthetic or _says_synthetic(source)
    origin = origin or _declared_origin(source)
    notes.append(
        f"licence of the scans: {origin.licence}"
        if origin.licence
        else "no licence is declared: give it with --licence, for whoever gets what is made of these scans"
    )
    cases = [_known(case, fact, EXTERNAL if synthetic else "real", origin) for case, fact in kept]
    if synthetic:
        notes.append("these cases are synthetic: nothing takes them for patients")
    notes += _remarks(cohort, cases, [fact for _, fact in kept], allow_unlabelled)

    near = near_duplicates(cases, [fact.outlines for _, fact in kept], progress) if compare else []
    manifest = None
    if skip_invalid or not problems:
        if declared is None:
            declared = split_cohort(
                cases, _persons(cases, near), {c.case_id for c, f in kept if f.lesion_voxels}, fractions, seed
            )
            shares = ", ".join(f"{name} {share:g}" for name, share in zip(SPLITS, fractions, strict=True))
            notes.append(f"patients were split at random with seed {seed} ({shares})")
        cases = [replace(case, split=declared[case.case_id]) for case in cases]
        notes += _near(near, declared)
        notes += _empty_splits(cases, [fact for _, fact in kept])
        labels = cohort.labels or _found_labels((fact for _, fact in kept), cohort.names)
        copies = out.with_name(f"{out.stem}_respaced")
        cases = write_respaced(cases, cohort.spacings, copies)
        if cohort.spacings:
            notes.append(f"{len(cohort.spacings)} cases have the spacing of the table, in copies under {copies}")
        manifest = Manifest(cohort.name, cohort.channels, labels, tuple(cases))
        manifest.save(out)
    volumes = Counter(case.patient_id for case in cases).values()
    return PrepareReport(
        source,
        layout,
        out,
        manifest,
        tuple(problems),
        tuple(notes),
        (min(volumes), float(median(volumes)), max(volumes)),
        {case.case_id: fact for case, (_, fact) in zip(cases, kept, strict=True)},
        tuple(near),
    )


def _nothing_left(cohort: RawCohort, source: Path, first: Problem) -> DataError:
    return DataError(
        f"none of the {len(cohort.cases)} cases of {source} passed the checks; the first is {first.file}: found "
        f"{first.found}, expected {first.expected}: {first.cure}"
    )


def _left_out(cohort: RawCohort, facts: Sequence[CaseFacts], wrong: Set[str]) -> list[str]:
    """Which cases are left out for their problems."""
    gone = sorted(wrong & {case.case_id for case in cohort.cases})
    notes = [f"left out {len(gone)} of {len(cohort.cases)} cases: {few(sorted(wrong))}"]
    if any(len({case.patient_id for case, _ in group}) > 1 for group in twins(cohort.cases, facts)):
        notes.append("of a scan found under several patients, every copy was left out")
    return notes


def _known(case: Case, fact: CaseFacts, source: str, origin: Origin) -> Case:
    """A case with what the checks found of it."""
    return replace(
        case,
        voxels=fact.voxels,
        image_hashes=fact.image_hashes,
        mask_hash=fact.mask_hash,
        source=source,
        healthy=set(fact.label_voxels) == {0},
        origin=origin,
    )


def _persons(cases: Sequence[Case], near: Iterable[NearDuplicate]) -> dict[str, str]:
    """By patient the one whose split they share: the same for patients with near-duplicates, else themselves."""
    person = {case.patient_id: case.patient_id for case in cases}
    for pair in near:
        kept, gone = sorted((person[pair.first.patient_id], person[pair.second.patient_id]))
        person = {patient: kept if one == gone else one for patient, one in person.items()}
    return person


def _near(pairs: Sequence[NearDuplicate], splits: Mapping[str, Split]) -> list[str]:
    """What is said of near-duplicates: those that a declared split tears apart are a warning."""
    apart = [pair for pair in pairs if splits[pair.first.case_id] != splits[pair.second.case_id]]
    together = [pair for pair in pairs if pair not in apart]
    notes = []
    for found, word, where in (
        (together, "", "kept in one split"),
        (apart, "warning: ", "in different splits, so that one is held out from a model that learns the other"),
    ):
        if found:
            named = few([f"{p.first.case_id} and {p.second.case_id} (r = {p.correlation:.3f})" for p in found])
            notes.append(
                f"{word}{len(found)} pairs of different patients are all but the same scan: {named}: {where}; give both the same "
                "patient, or remove one"
            )
    return notes


def _says_synthetic(source: Path) -> bool:
    """Whether a folder's ``dataset.json`` marks its volumes, as that of ``latentsynth sample`` does."""
    file = source / "dataset.json"
    value = read_json(file) if file.is_file() else {}
    return isinstance(value, dict) and value.get("SYNTHETIC") is True


def _declared_origin(source: Path) -> Origin:
    """What a folder's ``dataset.json``, or a data list like it, says of its licence and of whom to credit."""
    file = source / "dataset.json" if source.is_dir() else source
    value = read_json(file) if file.suffix == ".json" and file.is_file() else {}
    texts = value if isinstance(value, dict) else {}
    licence, credit = (
        next((texts[key].strip() for key in keys if isinstance(texts.get(key), str)), "")
        for keys in (("licence", "license"), ("reference",))
    )
    return Origin(licence, credit)


def _require_free(out: Path) -> None:
    """Refuses to replace anything but a manifest of the same kind (a folder of scans, the table that is being read)."""
    claim_file(out, KIND)
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise DataError(f"cannot write {out}: {parent} is not a writable folder; choose another place")


def _remarks(cohort: RawCohort, cases: Sequence[Case], facts: Sequence[CaseFacts], allow_unlabelled: bool) -> list[str]:
    notes = []
    if not cohort.patients_declared:
        notes.append("every case counts as a patient of its own: if some share a patient, give --patient REGEX")
    unlabelled = [case.case_id for case in cases if case.mask is None]
    if unlabelled and allow_unlabelled:  # otherwise they stand in the table of problems
        notes.append(
            f"without a mask: {len(unlabelled)} cases ({few(unlabelled)}); they train autoencoders, and diffusion models as if their mask was dropped"
        )
    notes += _filled(cohort.channels, cases)
    healthy = [case.case_id for case in cases if case.healthy]
    if healthy and len(healthy) == sum(bool(fact.label_voxels) for fact in facts):
        raise DataError(
            f"every mask is empty ({few(healthy)}): give cases with lesions, or scans alone with --allow-unlabelled"
        )
    if healthy:
        notes.append(
            f"without a lesion: {len(healthy)} cases ({few(healthy)}): their masks are empty: they train and are measured as healthy, and nothing is painted for them"
        )
    for group in twins(cases, facts):
        if len({case.patient_id for case, _ in group}) == 1:
            names = few([case.case_id for case, _ in group])
            notes.append(f"warning: the same scan {len(group)} times in patient {group[0][0].patient_id}: {names}")
    notes += _headers(facts)
    notes += _unannotated(cohort.labels, cases, facts)
    notes += _small_lesions(cases, facts)
    seen = {value for fact in facts for value in fact.label_voxels}
    named = zip(cohort.labels.values, cohort.labels.names, strict=True) if cohort.labels else ()
    absent = [name for value, name in named if value and value not in seen]
    if absent and seen:
        notes.append(f"declared labels that no mask holds: {few(absent)}")
    return notes


def _to_fill(cohort: RawCohort, names: Sequence[str]) -> tuple[int, ...]:
    """Positions of the channels that may be filled.

    Raises:
        ConfigError: A name is no channel, or that of the first.
    """
    unknown = sorted(set(names) - set(cohort.channels))
    if unknown:
        raise ConfigError(
            f"--fill-missing {', '.join(unknown)}: no such channel, expected {', '.join(cohort.channels[1:])}"
        )
    if cohort.channels[:1] and cohort.channels[0] in names:
        raise ConfigError(
            f"--fill-missing {cohort.channels[0]}: the first channel says where a scan lies and which it is, so it cannot be "
            "filled: leave such cases out with --skip-invalid, or put another channel first in a table"
        )
    return tuple(n for n, name in enumerate(cohort.channels) if name in names)


def _filled_but_measured(cohort: RawCohort, declared: Mapping[str, Split] | None) -> list[Problem]:
    """Cases with a filled channel that a file or the source puts where volumes are measured."""
    return [
        Problem(
            case.case_id,
            case.case_id,
            f"a filled channel in split {declared[case.case_id]}",
            "split train, since nothing can be measured on an empty channel",
            "move its patient to train, or leave the case out",
        )
        for case in cohort.cases
        if declared is not None and case.filled and declared[case.case_id] != "train"
    ]


def _filled(channels: Sequence[str], cases: Sequence[Case]) -> list[str]:
    """How many cases lack which channel.

    Raises:
        DataError: All of them do.
    """
    notes = []
    for n, name in enumerate(channels):
        held = [case.case_id for case in cases if n in case.filled]
        if held and len(held) == len(cases):
            raise DataError(f"no case has a scan of {name}: leave that channel out of the cohort")
        if held:
            notes.append(
                f"warning: {name} was never scanned in {len(held)} of {len(cases)} cases ({few(held)}) and is empty there: they "
                "train only, and a generator trained on them leaves it empty as often"
            )
    return notes


def _empty_splits(cases: Sequence[Case], facts: Sequence[CaseFacts]) -> list[str]:
    """Splits without a case, and those without a lesion where others have some."""
    notes = []
    empty = [split for split in SPLITS if split not in {case.split for case in cases}]
    if empty:
        notes.append(f"no case is in split {' or '.join(empty)}")
    lesioned = {case.split for case, fact in zip(cases, facts, strict=True) if fact.lesion_voxels}
    bare = [split for split in SPLITS if lesioned and split not in {*empty, *lesioned}]
    if bare:
        notes.append(f"warning: no lesion is in split {' or '.join(bare)}: nothing about lesions can be measured there")
    return notes


def _headers(facts: Iterable[CaseFacts]) -> list[str]:
    """One note per kind of doubt, with the first file in full and the number of others."""
    remarks = [remark for fact in facts for remark in fact.remarks]
    notes = []
    for doubt, cure in CURES.items():
        found = [remark for remark in remarks if remark.doubt == doubt]
        if found:
            others = f" and {len(found) - 1} files more" if len(found) > 1 else ""
            notes.append(f"warning: header with {doubt} in {found[0].file}{others}: {found[0].found}: {cure}")
    return notes


def _unannotated(labels: Labels | None, cases: Sequence[Case], facts: Sequence[CaseFacts]) -> list[str]:
    """What the labels leave unannotated, and in which cases how much."""
    notes = []
    for value in labels.ignored if labels else ():
        held = [(c.case_id, f) for c, f in zip(cases, facts, strict=True) if f.label_voxels.get(value)]
        shares = [100 * fact.label_voxels[value] / sum(fact.label_voxels.values()) for _, fact in held]
        where = f"{min(shares):.2g} to {max(shares):.2g} % of {few([name for name, _ in held])}" if held else "no case"
        name = labels.names[labels.values.index(value)] if labels else ""
        notes.append(
            f"label {value} ({name}) marks voxels that nobody annotated, {where}: it never counts as lesion and stays a "
            "label of its own; leave cases out that hold much of it"
        )
    found = sorted({value for fact in facts for value in fact.label_voxels})
    if labels is None and len(found) > 2 and found[-1] == _OFTEN_IGNORED and found[-2] < _OFTEN_IGNORED // 2:
        notes.append(
            f"warning: label {_OFTEN_IGNORED} beside {found[:-1]} often marks voxels that nobody annotated, and counts as "
            'lesion here: if so, name it "ignore" in a dataset.json, or set it to 0'
        )
    return notes


def _small_lesions(cases: Sequence[Case], facts: Sequence[CaseFacts]) -> list[str]:
    held = {c.case_id: n for c, f in zip(cases, facts, strict=True) if (n := sum(v < _SMALL for v in f.lesion_voxels))}
    if not held:
        return []
    every = sum(len(fact.lesion_voxels) for fact in facts)
    return [
        f"{sum(held.values())} of {every} lesions are smaller than 2 x 2 x 2 voxels of their scan, in {len(held)} cases "
        f"({few(sorted(held))}): a coarser grid loses them, and `latentsynth plan` counts what its grid holds"
    ]


def _found_labels(facts: Iterable[CaseFacts], names: Mapping[int, str]) -> Labels:
    """The labels that masks hold, by the names that the layout has for them."""
    plain = Labels(tuple(sorted({0}.union(*(fact.label_voxels for fact in facts)))))
    return Labels(plain.values, tuple(names.get(v, name) for v, name in zip(plain.values, plain.names, strict=True)))


def explain(source: Path | str, layout: str | None = None, patient: str | None = None) -> list[tuple[str, str]]:
    """How a source is understood, before any scan is opened: rows of what and value, for people.

    Raises:
        DataError: As :func:`prepare`.
        ConfigError: As :func:`prepare`.
    """
    source = Path(source)
    named = layout or recognise(source)
    cohort = read_cohort(source, named, patient)
    patients = {case.patient_id for case in cohort.cases}
    masks = sum(case.mask is not None or case.case_id in cohort.several for case in cohort.cases)
    missing = [path for case in cohort.cases for path in files_of(case) if not path.is_file()]
    labels = cohort.labels or Labels((0,))
    known = ", ".join(f"{v} = {n}" for v, n in zip(labels.values, labels.names, strict=True) if cohort.labels)
    known = known or ", ".join(f"{value} = {name}" for value, name in cohort.names.items())
    rows = [
        ("layout", f"{named} ({'given' if layout else 'recognised'}; others: {', '.join(x for x in LAYOUTS if x != named)})"),
        ("channels", ", ".join(f"{n}: {name}" for n, name in enumerate(cohort.channels)) or "none, masks alone"),
        ("labels", known or "whatever the masks hold"),
        ("cases", f"{len(cohort.cases)}, {masks} with a mask"),
        ("patients", f"{len(patients)}" if cohort.patients_declared else f"{len(patients)}, one per case: --patient REGEX says otherwise"),
        ("splits", "those of the source" if cohort.splits_declared else "by patient, at random"),
    ]  # fmt: skip
    if cohort.several:
        first = next(iter(cohort.several.values()))
        held = few([path.name for path in first.values()])
        rows.append(
            ("several masks", f"{len(cohort.several)} cases, such as {held}: --several-masks says what they are")
        )
    if missing:
        rows.append(("missing", f"{len(missing)} files: {few([str(path) for path in missing], 3)}"))
    rows += [("note", note) for note in cohort.notes]
    for case in cohort.cases[:_EXPLAINED]:
        files = ", ".join(
            str(path.relative_to(source)) if path.is_relative_to(source) else str(path) for path in case.images
        )
        found = [case.mask] if case.mask else cohort.several.get(case.case_id, {}).values()
        mask = ", ".join(path.name for path in found) or "no mask"
        rows.append((case.case_id, f"patient {case.patient_id}: {files}; {mask}"))
    if len(cohort.cases) > _EXPLAINED:
        rows.append(("...", f"{len(cohort.cases) - _EXPLAINED} more"))
    return rows


# Report ---------------------------------------------------------------------------------------------------------


def write_report(report: PrepareReport, console: Console) -> None:
    """Prints the problems, then the notes, then a summary of the cohort.

    File names are printed as they are: nothing is cut off or read as markup.
    """
    if report.problems:
        table = Table(title=Text(f"{len(report.problems)} problems in {report.source}"), show_lines=True)
        for column in ("File", "Found", "Expected", "Cure"):
            table.add_column(column, overflow="fold")
        for problem in report.problems:
            file = problem.file.removeprefix(f"{report.source}{os.sep}")
            table.add_row(*(Text(cell) for cell in (file, problem.found, problem.expected, problem.cure)))
        console.print(table)
    for note in report.notes:
        console.print(Text(f"note: {note}"))
    if report.manifest is None:
        count = len({problem.case_id for problem in report.problems})
        console.print(Text(f"nothing was written: cure {count} cases, or leave them out with --skip-invalid"))
        return
    for name, value in _summary(report, report.manifest):
        console.print(Text(f"{name:20}", style="bold") + Text(value), soft_wrap=True)


def _summary(report: PrepareReport, manifest: Manifest) -> list[tuple[str, str]]:
    cases, facts = manifest.cases, report.facts
    low, mid, high = report.volumes_per_patient
    lines = [
        ("cohort", f"{manifest.name} ({report.layout}; channels {', '.join(manifest.channels)})"),
        ("cases", str(len(cases))),
        ("patients", str(len({case.patient_id for case in cases}))),
        ("volumes per patient", f"least {low}, median {mid:g}, most {high}"),
    ]
    for split in SPLITS:
        chosen = [case for case in cases if case.split == split]
        lines.append((f"split {split}", f"{len(chosen)} cases, {len({case.patient_id for case in chosen})} patients"))
    for value, name in zip(manifest.labels.values, manifest.labels.names, strict=True):
        voxels = [fact.label_voxels[value] for fact in facts.values() if value in fact.label_voxels]
        typical = f", median {median(voxels):g} voxels there" if voxels else ""
        lines.append((f"label {value}", f"{name}: in {len(voxels)} cases{typical}"))
    lesions = [len(fact.lesion_voxels) for fact in facts.values() if fact.label_voxels]
    if lesions:
        lines.append(
            ("lesions", f"{sum(lesions)} in {len(lesions)} masks, {_range(lesions, 'd')} each (all labels together)")
        )
    shapes = [fact.shape for fact in facts.values() if fact.shape]
    edges = [fact.spacing_mm for fact in facts.values() if fact.spacing_mm]
    lines.append(("shape", " x ".join(_range(axis, "d") for axis in zip(*shapes, strict=True))))
    lines.append(("spacing_mm", " x ".join(_range(axis, ".4g") for axis in zip(*edges, strict=True))))
    return [*lines, ("fingerprint", manifest.fingerprint), ("manifest", str(report.path))]


def _range(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low}..{high}"
