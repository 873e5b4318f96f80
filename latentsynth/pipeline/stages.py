"""The stages of the road: what each is for, its share of the hours, and the command that does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError

if TYPE_CHECKING:
    from latentsynth.evaluation.memorization.cost import SearchCost

_TRAINING = {"train": 5, "val": 2, "test": 2}  # annotated patients, at least, of each split
_SHORT_HOURS = 4  # with fewer, feature extractors that have to be trained are left out
_FEWEST, _MOST = 10, 1000  # new patients
_PER_MASK = 2  # volumes for each mask of a test patient
_SEARCHES = (
    ("voxels", "registered", "parts"),
    ("voxels", "registered"),
    ("voxels",),
)  # for copies, the one that sees most first
_SEARCHED = 0.15  # of the hours that are kept for a search, at most
_LATE = 1.25  # of the time left, what a search may be expected to take
_WORTH = 40  # new patients for which a search that sees more is preferred to more patients


@dataclass(frozen=True)
class Work:
    """What the stages have to go by.

    Attributes:
        source: Folder or table of scans, or a manifest.
        name: Of the cohort; runs and configurations are named after it.
        hours: For everything.
        seed: Of splits, masks and volumes.
        licence: Under which the export is shared.
        folder: Where everything lies.
        scans_licence: Of the scans, where no ``dataset.json`` says it.
        scans_credit: Whom the scans are owed to.
        seconds: What every finished stage took.
    """

    source: Path
    name: str
    hours: float
    seed: int
    licence: str
    folder: Path
    scans_licence: str | None = None
    scans_credit: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def manifest(self) -> str:
        """Of the cohort, in the folder."""
        return f"{self.name}.json"

    @property
    def cohort(self) -> Manifest:
        """The cohort."""
        return Manifest.load(self.folder / self.manifest)

    def config(self, part: str) -> str:
        """A configuration that was planned, in the folder."""
        return f"configs/{self.name}_{part}.yaml"

    def run(self, part: str) -> str:
        """A run folder, in the folder."""
        return f"runs/{self.name}-{part}"

    def left_s(self, stage: str) -> float:
        """Seconds that a stage may take, if those before took what they took and those after take what is kept for them."""
        names = [one.name for one in STAGES]
        later = sum(self.kept_s(one) for one in names[names.index(stage) + 1 :])
        return self.hours * 3600 - later - sum(self.seconds.values())

    def kept_s(self, stage: str) -> float:
        """Seconds that are kept for a stage: its share, and for a search for copies what it costs, up to a limit."""
        share = _share(stage) * self.hours * 3600
        if stage != "copies":
            return share
        return max(share, min(self.search(_SEARCHES[0]).seconds(_WORTH), _SEARCHED * self.hours * 3600))

    def search(self, spaces: Sequence[str]) -> SearchCost:
        """What a search for copies by these feature spaces costs."""
        from latentsynth.config import AutoencoderRun, load
        from latentsynth.evaluation.memorization.cost import search_cost

        shape = load(AutoencoderRun, self.folder / self.config("autoencoder")).data.grid.shape
        splits = [case.split for case in self.cohort.cases]
        train = splits.count("train")
        return search_cost(spaces, (len(self.cohort.channels), *shape), train, len(splits) - train)


@dataclass(frozen=True)
class Stage:
    """One command of the road.

    Attributes:
        name: Short.
        purpose: For people.
        share: Of the hours.
        needed: Whether nothing that follows can do without it.
        command: Arguments of ``latentsynth``, run in the folder; raises :class:`DataError` where the data do not support it.
    """

    name: str
    purpose: str
    share: float
    needed: bool
    command: Callable[[Work], list[str]]


PLANNED_SHARE = 0.75  # of the hours, for everything that `plan` plans


def _prepare(work: Work) -> list[str]:
    terms = {"--licence": work.scans_licence, "--credit": work.scans_credit}
    said = [word for option, value in terms.items() if value is not None for word in (option, value)]
    return ["prepare", str(work.source), "--out", work.manifest, "--seed", str(work.seed), *said]


def _plan(work: Work) -> list[str]:
    check(work.cohort)
    return ["plan", work.manifest, "--out", "configs", "--hours", f"{PLANNED_SHARE * work.hours:g}"]


def check(cohort: Manifest) -> None:
    """Refuses a cohort that cannot support training and measuring, with what would.

    Raises:
        DataError: Too few annotated patients in a split.
    """
    found = {
        split: len({case.patient_id for case in cohort.cases if case.split == split and case.marked})
        for split in _TRAINING
    }
    if any(found[split] < least for split, least in _TRAINING.items()):
        had = ", ".join(f"{count} {split}" for split, count in found.items())
        wanted = ", ".join(f"{least} {split}" for split, least in _TRAINING.items())
        raise DataError(
            f"{cohort.name} has too few patients with lesions to train on and to measure with ({had}; expected at least {wanted}): "
            "give more patients, or other shares (`latentsynth prepare --fractions`) and the manifest in place of the scans"
        )


def _train(kind: str, part: str) -> Callable[[Work], list[str]]:
    return lambda work: ["train", kind, work.config(part)]


def _ldm(work: Work) -> list[str]:
    """The denoiser takes the time that is left: the others are planned by estimates, and it corrects them."""
    from latentsynth.config import AutoencoderRun, LdmRun, load
    from latentsynth.planning.plan import schedule

    planned = load(LdmRun, work.folder / work.config("ldm")).train.images
    first = load(AutoencoderRun, work.folder / work.config("autoencoder")).train.images
    expected = _share("autoencoder") * work.hours * 3600
    slower = work.seconds["autoencoder"] / expected if "autoencoder" in work.seconds and first > 100 else 1.0
    left = work.left_s("ldm") / slower
    images = max(int(planned * left / (_share("ldm") * work.hours * 3600)) // 100 * 100, 100)
    command = ["train", "ldm", work.config("ldm")]
    if 0.95 < images / planned < 1.05:
        return command
    return [*command, *(f"train.{key}={value}" for key, value in schedule(images).items())]


def _share(name: str) -> float:
    return next(stage.share for stage in STAGES if stage.name == name)


def _sample(work: Work, masks: str, split: str, out: str, *more: str) -> list[str]:
    return [
        *("sample", work.run("ldm"), "--masks", masks, "--split", split, "--fit", "scale", "--out", out),
        *("--seed", str(work.seed)),
        *more,
    ]


def _of_test(work: Work) -> list[str]:
    return _sample(work, work.manifest, "test", "samples/test", "--per-mask", str(_PER_MASK))


def _masks(work: Work) -> list[str]:
    """As many as there is time to paint, and to search for copies."""
    tested = sum(case.split == "test" and case.marked for case in work.cohort.cases) * _PER_MASK
    each = max(work.seconds.get("test volumes", 1.0) / max(tested, 1), 1e-3)
    painted = int(_share("new volumes") * work.hours * 3600 / each)
    between = sum(map(work.kept_s, ("obedience", "fidelity", "mask measures")))
    left = work.left_s("copies") - work.kept_s("masks") - between
    count = 0
    for spaces in _SEARCHES:
        cost = work.search(spaces)
        count = min(int((left - cost.fixed_s) / (each + cost.per_volume_s)), painted)
        if count >= min(painted, _WORTH):
            break
    count = min(max(count, _FEWEST), _MOST)
    return ["masks", "--real", work.manifest, "--out", "masks", "--n", str(count), "--seed", str(work.seed)]


def _new(work: Work) -> list[str]:
    return _sample(work, "masks/manifest.json", "train", "samples/new")


def _obedience(work: Work) -> list[str]:
    return [
        *("evaluate", "obedience", "--segmenter", work.run("unet"), "--samples", "test=samples/test/manifest.json"),
        *("--samples", "new=samples/new/manifest.json", "--real", work.manifest, "--split", "test"),
        *("--autoencoder", work.run("autoencoder"), "--out", "evaluation/obedience"),
    ]


def _fidelity(work: Work) -> list[str]:
    extractor = ("--extractor", "random") if work.hours < _SHORT_HOURS else ()
    return [
        *("evaluate", "fidelity", "--real", work.manifest, "--split", "test", "--samples"),
        *("test=samples/test/manifest.json", "--like", work.run("ldm"), "--out", "evaluation/fidelity", *extractor),
    ]


def _mask_measures(work: Work) -> list[str]:
    return [
        *("evaluate", "masks", "--real", work.manifest, "--split", "test", "--samples", "new=masks/manifest.json"),
        *("--out", "evaluation/masks"),
    ]


def _copies(work: Work) -> list[str]:
    """By as many feature spaces as there is time for; the report says what those do not see."""
    made, left = len(Manifest.load(work.folder / "samples" / "new" / "manifest.json").cases), work.left_s("copies")
    fitting = (spaces for spaces in _SEARCHES if work.search(spaces).seconds(made) <= _LATE * left)
    chosen = next(fitting, _SEARCHES[-1])
    named = [] if chosen == _SEARCHES[0] else [word for space in chosen for word in ("--space", space)]
    return [
        *("memorization", "--train", work.manifest, "--heldout", work.manifest),
        *("--samples", "new=samples/new/manifest.json", "--like", work.run("ldm"), "--out", "evaluation/copies"),
        *named,
    ]


def _filter(work: Work) -> list[str]:
    return [
        *("filter", "samples/new/manifest.json", "--out", "kept.json"),
        *("--report", "evaluation/copies/memorization.json", "--drop-mask-copies"),
    ]


def _export(work: Work) -> list[str]:
    return [
        *("export", "kept.json", "--out", "export", "--licence", work.licence),
        *("--report", "evaluation/copies/memorization.json"),
    ]


def _report(work: Work) -> list[str]:
    return ["report", ".", "--out", "report.html"]


STAGES = (
    Stage("prepare", "checks every file and splits by patient", 0.01, True, _prepare),
    Stage("plan", "looks at the scans and at this machine, and writes the configurations", 0.01, True, _plan),
    Stage("autoencoder", "learns to compress the volumes", 0.16, True, _train("autoencoder", "autoencoder")),
    Stage("selection segmenter", "chooses among checkpoints", 0.05, True, _train("segmenter", "selection_unet")),
    Stage("ldm", "learns to paint masks", 0.44, True, _ldm),
    Stage("segmenter", "looks for the masks in the volumes", 0.08, True, _train("segmenter", "unet")),
    Stage("test volumes", "paints the masks of patients that no model has seen", 0.03, True, _of_test),
    Stage("masks", "makes new masks", 0.01, True, _masks),
    Stage("new volumes", "paints them: new patients", 0.06, True, _new),
    Stage("obedience", "do the volumes show their masks?", 0.02, False, _obedience),
    Stage("fidelity", "do they look like scans?", 0.04, False, _fidelity),
    Stage("mask measures", "are the masks like those of patients?", 0.01, False, _mask_measures),
    Stage("copies", "are they copies of patients?", 0.06, False, _copies),
    Stage("filter", "leaves copies out", 0.005, False, _filter),
    Stage("export", "packs what is left, with a card", 0.005, False, _export),
    Stage("report", "one page of all of it", 0.01, False, _report),
)
