"""The card of a synthetic set: what it is, in plain words, and what was measured of it by the criteria of the literature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latentsynth.data.manifest import Manifest
from latentsynth.evaluation.memorization.report import KIND
from latentsynth.evaluation.memorization.tables import verdicts as verdicts_table
from latentsynth.results import Result, markdown
from latentsynth.sharing.filter import Verdicts, sets_of
from latentsynth.sharing.licences import origins_table
from latentsynth.sharing.raw import renumbered
from latentsynth.types import Origin

_NOT = "not measured"
# By criterion of the scorecard for synthetic medical data (Zamzmi et al. 2025, https://arxiv.org/abs/2406.11143), what it asks and the
# kinds of results that answer it.
_CRITERIA = (
    ("congruence", "do the volumes look like patients'?", ("fidelity", "reading")),
    ("coverage", "are all kinds of patients there?", ("fidelity", "mask_shapes")),
    ("constraint", "does anatomy obey the mask?", ("obedience",)),
    ("compliance", "is anybody copied?", (KIND,)),
    ("consistency", "is it so for small lesions too?", ("obedience",)),
)


@dataclass(frozen=True)
class Declared:
    """What whoever exports a set says of it.

    Attributes:
        reason: Why it is exported without a report that clears it, or None.
        masks: Masks of patients, or copies of them, may be among these.
        faces: Whether faces can be seen in the scans that the generator learnt from; None where nobody says.
        origins: Where the scans are from that the generator learnt from.
        accepted: Their licences that forbid passing this on and were overruled.
    """

    reason: str | None = None
    masks: bool = False
    faces: bool | None = None
    origins: tuple[Origin, ...] = ()
    accepted: tuple[str, ...] = ()


def card_of(
    manifest: Manifest,
    name: str,
    licence: str,
    report: Result | None,
    verdicts: Verdicts,
    declared: Declared,
    results: Sequence[Result] = (),
) -> str:
    """The card, in Markdown."""
    makers = sorted({case.source.partition(":")[0] for case in manifest.cases})
    labels = ", ".join(
        f"{n} = {name}" + (f" ({value} before: values are consecutive here, as nnU-Net asks)" if value != n else "")
        for n, value, name in zip(
            renumbered(manifest.labels)[1], manifest.labels.values, manifest.labels.names, strict=True
        )
    )
    faces = {None: "not stated", True: "yes: not removed", False: "no: removed, or out of view"}[declared.faces]
    kinds = {result.kind for result in results} | ({KIND} if report else set())
    return f"""# {name}: synthetic volumes

**SYNTHETIC. Not patients; not for diagnosis.** Packed by latentsynth.

{_plainly(manifest, report, verdicts, declared)}

| | |
|---|---|
| volumes | {len(manifest.cases)} |
| channels | {", ".join(manifest.channels)} |
| labels | {labels} |
| licence | {licence} |
| made by | {", ".join("another program" if maker == "external" else f"model {maker}" for maker in makers)} |
| training set | {report.facts["train"]["fingerprint"] if report else "not stated"} |
| faces in the scans learnt from | {faces} |
| without | names, dates, age, sex, history, outcome: volumes and label maps alone |

## Scans learnt from

{origins_table(declared.origins, declared.accepted)}

## Scorecard

| criterion | question | measured |
|---|---|---|
{_scores(kinds)}
| completeness | what is missing? | see the table above |
| comprehension | how was it made? | {len(makers)} generator(s), by the fingerprints above; masks of {_masks(manifest)} |

## Privacy
{_overruled(declared)}
{_privacy(report, verdicts) if report else "No privacy report was made."}
{_measured(results)}"""


def _plainly(manifest: Manifest, report: Result | None, verdicts: Verdicts, declared: Declared) -> str:
    """A paragraph for somebody who treats patients."""
    count = len(manifest.cases)
    who = "They are meant to show nobody" if report else "Whether somebody in these volumes exists was not looked into"
    near = ""
    if report:
        flagged = sum(bool(one["flagged"]) for one in verdicts.values())
        near = (
            f" A search compared each of them with the {report.facts['train']['cases']} scans that the program had learnt from, and "
            f"called {flagged or 'none'} of them a copy; the section on privacy says what it can find and what would pass."
        )
    masks = (
        " The outlines of lesions may be those of patients."
        if declared.masks
        else " The outlines of lesions are compared in the same way."
        if report and report.facts["masks"]
        else ""
    )
    return (
        f"A computer program drew these {count} volumes after it had learnt from scans of patients. {who}.{near}{masks} They are made "
        "for training and testing other programs. How often something is seen in them says nothing about how often it is seen in "
        "patients, and no treatment should rest on them."
    )


def _scores(kinds: set[str]) -> str:
    lines = []
    for criterion, question, answered in _CRITERIA:
        found = [kind for kind in answered if kind in kinds]
        where = f"yes, under {' and '.join('Privacy' if kind == KIND else kind for kind in found)}" if found else _NOT
        lines.append(f"| {criterion} | {question} | {where} |")
    return "\n".join(lines)


def _masks(manifest: Manifest) -> str:
    of_patients = sum(bool(case.parents) for case in manifest.cases)
    return f"patients in {of_patients} of {len(manifest.cases)} volumes" if of_patients else "nobody in particular"


def _overruled(declared: Declared) -> str:
    lines = []
    if declared.reason is not None:
        lines.append(f"\n**Exported without a privacy report that clears it. Reason given: {declared.reason}**\n")
    if declared.masks:
        lines.append("\nMasks of patients, or copies of them, may be among these, as the exporter declared.\n")
    return "".join(lines)


def _measured(results: Sequence[Result]) -> str:
    """Tables and notes of the other measurements; their commands name folders of whoever measured."""
    lines: list[str] = []
    for result in results:
        if result.kind == KIND:  # names patients; the report is printed under privacy
            continue
        lines += ["", f"## {result.kind}: {result.title}"]
        for table in result.tables:
            lines += ["", f"### {table.title}", "", *markdown(table)]
        lines += ["", *(f"- {note}" for note in result.notes)]
    return "\n".join(lines) + ("\n" if lines else "")


def _privacy(result: Result, verdicts: Verdicts) -> str:
    """What the report says of the sets that these volumes come from; its paths and other sets are nobody's business."""
    facts: dict[str, Any] = result.facts
    sets = sets_of(verdicts, result)
    others = set(facts["sets"]) - set(sets)
    measured = sum(len(cases) for cases in sets.values())
    flagged = sum(bool(one["flagged"]) for cases in sets.values() for one in cases.values())
    fewer = f"; {len(verdicts)} of the {measured} volumes measured are here, {flagged} of these were flagged as copies"
    unverified = not all(facts["ledgers"][name] for name in sets)
    lines = [
        f"Measured against {facts['train']['cases']} training cases, calibrated by {facts['calibration']['cases']} and checked by "
        f"{facts['control']['cases']} unseen cases{fewer}.",
        *(
            ["", "That the generator saw these training cases and no others is the exporter's word."]
            if unverified
            else []
        ),
        "",
        *markdown(verdicts_table(facts, without=others)),
        "",
        *(f"- {note['text']}" for note in facts["notes"] if note["set"] not in others),
    ]
    return "\n".join(lines) + "\n"
