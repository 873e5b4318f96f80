"""What a report begins with: what was made, and an answer to each of the questions that people ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentsynth.results import Answer, Conclusion, Question

# Which command answers a question that nothing under the folder answers.
MEASURED_BY = {
    Question.LOOK: "latentsynth evaluate obedience, latentsynth evaluate fidelity",
    Question.HELP: "latentsynth experiment utility",
    Question.FREE: "latentsynth memorization",
}


@dataclass(frozen=True)
class Answered:
    """One question about one set of volumes.

    Attributes:
        about: The set.
        answer: "yes" where everything that was measured says so, "no" where anything says no.
        reasons: What says so; where the answer is no, what says no.
    """

    about: str
    answer: Answer
    reasons: tuple[str, ...]


def answers(conclusions: Sequence[Conclusion]) -> dict[Question, list[Answered]]:
    """Every question, with what is known of every set; nothing where nobody measured."""
    found: dict[Question, list[Answered]] = {}
    for question in Question:
        mine = [one for one in conclusions if one.question is question]
        found[question] = [
            _together([one for one in mine if one.about == about]) for about in dict.fromkeys(one.about for one in mine)
        ]
    return found


def _together(said: Sequence[Conclusion]) -> Answered:
    given = {one.answer for one in said}
    answer: Answer = "no" if "no" in given else "yes" if given == {"yes"} else "undecided"
    return Answered(said[0].about, answer, tuple(dict.fromkeys(one.reason for one in said if one.answer == answer)))
