"""Training a segmenter: it learns, resumes to the bit, keeps its best, and refuses every way to leak."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import on_two_processes, segmenter_config

from latentsynth import checkpoint
from latentsynth.config import SegmenterRun, load
from latentsynth.data import nifti
from latentsynth.data.cache.loading import Positions
from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.data.manifest import Manifest
from latentsynth.errors import CheckpointError, DataError
from latentsynth.metrics.surfaces import dice
from latentsynth.parallel import start
from latentsynth.provenance import Ledger
from latentsynth.segmentation import Segmenter
from latentsynth.training.recipes import segmenter as recipe
from latentsynth.training.recipes.segmenter import SegmentationLoss, TrainingMixture, initial, train_segmenter
from latentsynth.training.run import read_metrics
from latentsynth.types import Case, Labels

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
SOURCE = "0123456789abcdef:0"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As many threads here as in the processes that are compared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scores(run: Path) -> list[float]:
    return [line["val/dice"] for line in read_metrics(run) if "val/dice" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(next((run / "checkpoint" / "network").glob("*.safetensors")))


# Loss ------------------------------------------------------------------------------------------------------------


def loss_of(workplace: Path, outputs: torch.Tensor, mask: torch.Tensor, **weights: float) -> float:
    """The loss of given logits ``(B, D, L, I, J, K)``."""
    config = load(SegmenterRun, segmenter_config(workplace, "unused", loss=weights))
    given = torch.nn.Identity()
    total, logs = SegmentationLoss(config)({"network": given}, {"image": outputs, "mask": mask}, {})
    assert not logs
    return float(total)


def labels_and_logits(depth: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """One-hot masks of four samples, the last without any lesion, and random logits."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 3, (4, 6, 6, 6), generator=generator)
    index[3] = 0
    mask = torch.movedim(torch.nn.functional.one_hot(index, 3), -1, 1).float()
    return mask, torch.randn(4, depth, 3, 6, 6, 6, generator=generator)


@pytest.mark.parametrize("depth", [1, 3])
def test_the_loss_is_a_mean_over_samples(depth: int, workplace: Path) -> None:
    mask, logits = labels_and_logits(depth)
    singles = [loss_of(workplace, logits[n : n + 1], mask[n : n + 1]) for n in range(4)]
    assert loss_of(workplace, logits, mask) == pytest.approx(sum(singles) / 4, rel=1e-5)
    assert len({round(single, 3) for single in singles}) > 1


def test_perfect_logits_cost_nothing_and_inverted_ones_much(workplace: Path) -> None:
    mask, _ = labels_and_logits()
    perfect = 60 * mask[:, None]
    assert loss_of(workplace, perfect, mask) == pytest.approx(0, abs=1e-3)
    assert loss_of(workplace, -perfect, mask) > 10


def test_the_loss_is_soft_dice_of_the_foreground_plus_cross_entropy(workplace: Path) -> None:
    """Against both written out; each weight scales its own term."""
    mask, logits = labels_and_logits()
    share = torch.softmax(logits[:, 0], 1)
    overlap, total = ((share * mask).sum((2, 3, 4)), (share + mask).sum((2, 3, 4)))
    soft = float((1 - (2 * overlap + 1e-5) / (total + 1e-5))[:, 1:].mean())
    entropy = float(-(mask * share.log()).sum(1).mean())
    assert loss_of(workplace, logits, mask) == pytest.approx(soft + entropy, rel=1e-4)
    assert loss_of(workplace, logits, mask, dice_weight=2, ce_weight=0) == pytest.approx(2 * soft, rel=1e-4)
    assert loss_of(workplace, logits, mask, dice_weight=0, ce_weight=3) == pytest.approx(3 * entropy, rel=1e-4)


def test_every_coarser_output_counts_half_as_much(workplace: Path) -> None:
    mask, logits = labels_and_logits(3)
    one, two, three = (loss_of(workplace, logits[:, n : n + 1], mask) for n in range(3))
    expected = (one + two / 2 + three / 4) / (1 + 1 / 2 + 1 / 4)
    assert loss_of(workplace, logits, mask) == pytest.approx(expected, rel=1e-5)
    assert one != pytest.approx(three, rel=1e-3)


# Training --------------------------------------------------------------------------------------------------------


def test_dice_on_new_patients_rises(trained_segmenter: Path) -> None:
    found = scores(trained_segmenter)
    assert len(found) == 10
    assert max(found[-3:]) > found[0] + 0.15
    assert max(found) > 2 * found[0]
    assert (trained_segmenter / "samples" / "0000000160.png").is_file()


def test_the_checkpoint_scores_what_it_says(trained_segmenter: Path, workplace: Path) -> None:
    """Its weights, loaded again, get the best validation score of the log."""
    model = Segmenter.from_pretrained(trained_segmenter)
    metrics = checkpoint.read_header(trained_segmenter / "checkpoint").metrics
    assert metrics["dice"] == pytest.approx(max(scores(trained_segmenter)), abs=1e-7)
    cohort = TrainingMixture.of(load(SegmenterRun, workplace / "segmenter.yaml"))
    rows = []
    for n in range(len(cohort.validation)):
        volume = cohort.validation.volume(n)
        assert volume.mask is not None
        found = model.on_grid(volume.image)
        rows.append([dice(volume.mask == index, found == index) for index in (1, 2, 3)])
    means = torch.tensor(rows).mean(0)
    assert metrics["dice"] == pytest.approx(float(means.mean()), abs=1e-6)
    for name, mean in zip(("liver", "kidney", "lesion"), means, strict=True):
        assert metrics[f"dice_{name}"] == pytest.approx(float(mean), abs=1e-6)


def test_the_checkpoint_knows_whom_it_has_seen(trained_segmenter: Path, workplace: Path) -> None:
    model, manifest = Segmenter.from_pretrained(trained_segmenter), Manifest.load(workplace / "manifest.json")
    seen, verified = model.ledger.seen(manifest.cases)
    assert verified
    assert seen == list(manifest.select("train"))
    assert model.trained_on == {"real": len(seen), "synthetic": 0}
    assert model.domain.labels == manifest.labels
    assert model.domain.channels == manifest.channels


def test_the_best_validation_is_kept_and_not_the_last(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    positive_controls, seen = [0.3, 0.9, 0.5, 0.8, 0.95], []

    def plan(model: Segmenter) -> None:
        """Scores by the number of the validation; keeps the weights that it scored."""
        seen.append({name: value.clone() for name, value in model.network.state_dict().items()})

    calls = iter(range(10**6))
    monkeypatch.setattr(recipe, "mean_dice", lambda *masks: positive_controls[next(calls) // 2])  # 2 patients
    on_grid = Segmenter.on_grid

    def noted(self: Segmenter, image: Any) -> Any:
        if next(images) % 2 == 0:
            plan(self)
        return on_grid(self, image)

    images = iter(range(10**6))
    monkeypatch.setattr(Segmenter, "on_grid", noted)
    monkeypatch.setattr(recipe, "segmentation_sheet", lambda *arguments: None)
    changes = ["train.lr_schedule=constant", "train.validate_every_images=8"]
    for images_in_all, best in ((24, 1), (32, 1), (40, 4)):  # the same run, gone on with
        config = load(SegmenterRun, segmenter_config(workplace, "best"), [*changes, f"train.images={images_in_all}"])
        assert train_segmenter(config)["dice"] == pytest.approx(positive_controls[best])
        kept = weights(config.run)
        assert all(torch.equal(kept[name], seen[best][name]) for name in kept)
        assert kept.keys() == seen[best].keys()
    assert any(not torch.equal(seen[1][name], seen[2][name]) for name in seen[1])
    assert scores(config.run) == pytest.approx(positive_controls)


def test_a_killed_run_resumes_to_the_same_weights(workplace: Path) -> None:
    """SIGKILL after the first saved state; the same command goes on and ends as an unbroken run, to the bit."""
    whole, broken = (load(SegmenterRun, segmenter_config(workplace, f"segmenter-{n}")) for n in ("whole", "broken"))
    train_segmenter(whole)
    command = [sys.executable, "-m", "latentsynth", "train", "segmenter", str(workplace / "segmenter-broken.yaml")]
    with (workplace / "broken.log").open("wb") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 240
            while not (broken.run / "state" / "0000000008").is_dir() and time.monotonic() < deadline:
                assert process.poll() is None, (workplace / "broken.log").read_text()
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "the run ended before it was killed: make it longer"
        finally:
            process.kill()
    assert max(line["images_seen"] for line in read_metrics(broken.run)) < 32
    train_segmenter(broken)
    expected, found = weights(whole.run), weights(broken.run)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert scores(whole.run) == scores(broken.run)
    lines = [[line["images_seen"] for line in read_metrics(config.run)] for config in (whole, broken)]
    assert lines[0] == lines[1]  # work done twice is logged once


def test_two_processes_train_as_one(workplace: Path, tmp_path: Path) -> None:
    """Equal weights on both, and the loss curve and the validation scores of one process."""
    alone = load(SegmenterRun, segmenter_config(workplace, "segmenter-alone"))
    train_segmenter(alone)
    on_two_processes(tmp_path, "train", segmenter_config(workplace, "segmenter-pair"))
    ranks = [json.loads((tmp_path / f"segmenter-pair-32-rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["world"] for rank in ranks] == [2, 2]
    assert ranks[0]["digests"] == ranks[1]["digests"]
    early = json.loads((tmp_path / "segmenter-pair-8-rank0.json").read_text())
    assert early["digests"] != ranks[0]["digests"]
    curves = [
        [line["segmenter/loss"] for line in read_metrics(run) if "segmenter/loss" in line]
        for run in (alone.run, workplace / "segmenter-pair")
    ]
    assert len(curves[0]) == 8
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    assert curves[0][-1] < curves[0][0]
    assert scores(alone.run) == pytest.approx(scores(workplace / "segmenter-pair"), abs=1e-2)


def test_training_starts_from_another_segmenter_and_inherits_its_patients(
    workplace: Path, trained_segmenter: Path
) -> None:
    source = Segmenter.from_pretrained(trained_segmenter)
    file = segmenter_config(workplace, "tuned", init_from=str(trained_segmenter))
    network = initial(load(SegmenterRun, file), source.domain)
    pairs = zip(network.state_dict().values(), source.network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    inherited = TrainingMixture.of(load(SegmenterRun, file)).ledger
    assert inherited.patients >= source.ledger.patients
    with pytest.raises(CheckpointError, match="this configuration needs"):
        initial(load(SegmenterRun, file, ["network.channels=[8, 8]"]), source.domain)


def test_weights_that_saw_a_validation_patient_are_refused(workplace: Path, trained_segmenter: Path) -> None:
    """Starting from them would leak as training on the patient does."""
    source = Segmenter.from_pretrained(trained_segmenter)
    seen = replace(source, ledger=source.ledger | Ledger.of(Manifest.load(workplace / "manifest.json").select("val")))
    seen.save(workplace / "has-seen", {"dice": 0.5})
    file = segmenter_config(workplace, "leaked", init_from=str(workplace / "has-seen"))
    with pytest.raises(DataError, match="validation patients"):
        train_segmenter(load(SegmenterRun, file, ["train.images=4"]))


def test_deep_supervision_and_recomputed_blocks_train_to_a_checkpoint(workplace: Path) -> None:
    network = {"kind": "dynunet", "channels": [4, 8, 8]}
    file = segmenter_config(workplace, "dynunet", network=network)
    config = load(SegmenterRun, file, ["train.images=8", "train.gradient_checkpointing=true"])
    train_segmenter(config)
    model = Segmenter.from_pretrained(config.run)
    assert type(model.network).__name__ == "DynUNet"
    image = torch.rand(1, 24, 24, 24).numpy()
    assert model.probabilities(image).shape == (4, 24, 24, 24)


# Mixtures --------------------------------------------------------------------------------------------------------


def synthetic(workplace: Path, name: str, parents: tuple[str, ...], **changes: Any) -> Path:
    """A manifest of one synthetic case per parent, in a folder of its own; the files are those of a patient."""
    real = Manifest.load(workplace / "manifest.json")
    files = real.select("train")[0]
    cases = [
        replace(files, case_id=f"synthetic_{n}", patient_id=f"synthetic_{n}", source=SOURCE, parents=(parent,),
                voxels=(f"{name}{n}",), image_hashes=(), mask_hash="")
        for n, parent in enumerate(parents)
    ]  # fmt: skip
    folder = workplace / name
    folder.mkdir()
    replace(real, name=name, cases=tuple(replace(case, **changes) for case in cases)).save(folder / "manifest.json")
    return folder / "manifest.json"


def data(workplace: Path, *train: dict[str, Any], **validation: Any) -> SegmenterRun:
    """A configuration with other sources."""
    manifest = str(workplace / "manifest.json")
    config = load(SegmenterRun, segmenter_config(workplace, "mixture"))
    values = config.model_dump(mode="json")
    values["data"]["train"] = [{"manifest": manifest, **source} for source in train]
    values["data"]["validation"] = {"manifest": manifest, **validation}
    return SegmenterRun.model_validate(values)


def parents_of(workplace: Path, split: str) -> tuple[str, ...]:
    return tuple(case.patient_id for case in Manifest.load(workplace / "manifest.json").select(split))  # type: ignore[arg-type]


def test_real_and_synthetic_cohorts_are_mixed_as_asked(workplace: Path) -> None:
    """In one epoch every case comes as often as its source repeats it."""
    made = synthetic(workplace, "mixed", parents_of(workplace, "train")[:2])
    cohort = TrainingMixture.of(data(workplace, {"repeat": 3}, {"manifest": str(made), "repeat": 2}))
    assert cohort.trained_on == {"real": 4, "synthetic": 2}
    assert len(cohort) == 3 * 4 + 2 * 2
    drawn = []
    for cache in cohort.training:
        cache.packed = lambda n, cache=cache: {"case": cache.entries[n][0].case_id}  # type: ignore[method-assign]
    items = Positions(cohort.packed, len(cohort), seed=5)
    drawn = [items[position]["case"] for position in range(len(cohort))]
    counts = Counter(drawn)
    assert sorted(counts.values()) == [2, 2, 3, 3, 3, 3]
    assert all(count == (2 if name.startswith("synthetic") else 3) for name, count in counts.items())
    with pytest.raises(IndexError):
        cohort.packed(len(cohort))
    again = [items[position]["case"] for position in range(len(cohort), 2 * len(cohort))]
    assert Counter(again) == counts
    assert again != drawn
    seen, _ = cohort.ledger.seen(Manifest.load(workplace / "manifest.json").cases)
    assert {case.split for case in seen} == {"train"}


def test_parents_of_synthetic_cases_and_the_ledger_beside_them_are_inherited(workplace: Path) -> None:
    parent = parents_of(workplace, "train")[0]
    made = synthetic(workplace, "inherited", (parent,))
    test = Manifest.load(workplace / "manifest.json").select("test")[:1]
    Ledger.of(test).save(made.parent / "ledger.json")
    cohort = TrainingMixture.of(data(workplace, {"manifest": str(made)}))
    assert cohort.trained_on == {"real": 0, "synthetic": 1}
    seen, _ = cohort.ledger.seen(Manifest.load(workplace / "manifest.json").cases)
    assert {case.patient_id for case in seen} == {parent, test[0].patient_id}


def test_augmented_copies_multiply_entries_and_not_cases(workplace: Path) -> None:
    config = data(workplace, {"repeat": 2})
    copied = config.model_copy(update={"data": config.data.model_copy(
        update={"augment": config.data.augment.model_copy(update={"copies": 3})})})  # fmt: skip
    cohort = TrainingMixture.of(copied)
    assert len(cohort) == 2 * 4 * 4
    assert cohort.trained_on == {"real": 4, "synthetic": 0}
    assert len(cohort.validation) == 2  # as they are


def drawn_patients(config: SegmenterRun, seed: int) -> set[str]:
    cohort = TrainingMixture.of(config.model_copy(update={"seed": seed}))
    return {case.patient_id for case, _ in cohort.training[0].entries}


def test_more_patients_hold_the_fewer_of_the_same_seed(workplace: Path) -> None:
    for seed in range(6):
        subsets = [drawn_patients(data(workplace, {"patients": n}), seed) for n in (1, 2, 3, 4)]
        assert [len(subset) for subset in subsets] == [1, 2, 3, 4]
        assert all(few < more for few, more in pairwise(subsets))
        assert subsets[1] == drawn_patients(data(workplace, {"patients": 2}), seed)
    assert len({frozenset(drawn_patients(data(workplace, {"patients": 1}), seed)) for seed in range(12)}) > 2
    with pytest.raises(DataError, match=r"has 4 (annotated )?patients in split train, patients=5 asks for more"):
        TrainingMixture.of(data(workplace, {"patients": 5}))


def changed(workplace: Path, name: str, cases: list[Case], **facts: Any) -> str:
    """The phantom manifest with other cases, or other facts, beside the first."""
    file = workplace / f"{name}.json"
    replace(Manifest.load(workplace / "manifest.json"), cases=tuple(cases), **facts).save(file)
    return str(file)


def test_patients_are_counted_among_the_annotated(workplace: Path) -> None:
    """Asked for two patients, it must not take one who has no mask and train on the other alone."""
    cases = list(Manifest.load(workplace / "manifest.json").cases)
    bare = [c.case_id for c in cases if c.split == "train"][:2]
    file = changed(workplace, "half-bare", [replace(c, mask=None) if c.case_id in bare else c for c in cases])
    for seed in range(6):
        assert len(drawn_patients(data(workplace, {"manifest": file, "patients": 2}), seed)) == 2
    with pytest.raises(DataError, match=r"patients=3 asks for more"):
        TrainingMixture.of(data(workplace, {"manifest": file, "patients": 3}))


def test_all_cases_of_a_drawn_patient_are_taken(workplace: Path) -> None:
    cases = list(Manifest.load(workplace / "manifest.json").cases)
    train = [case for case in cases if case.split == "train"]
    twice = [replace(case, case_id=f"{case.case_id}_again") for case in train]
    file = changed(workplace, "twice", cases + twice)
    cohort = TrainingMixture.of(data(workplace, {"manifest": file, "patients": 3}))
    assert Counter(case.patient_id for case, _ in cohort.training[0].entries).most_common()[-1][1] == 2
    assert cohort.trained_on == {"real": 6, "synthetic": 0}


# Refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals come before an hour of reading scans."""

    def read(path: Path) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(nifti, "read", read)
    monkeypatch.setattr(VolumeCache, "build", read)


def refused(config: SegmenterRun, message: str) -> None:
    before = config.run.exists()
    with pytest.raises(DataError, match=message):
        train_segmenter(config)
    assert config.run.exists() == before


@pytest.mark.usefixtures("no_voxels")
class TestRefusals:
    def test_synthetic_validation_cases(self, workplace: Path) -> None:
        made = synthetic(workplace, "made-val", ("somebody",), split="val")
        refused(data(workplace, {}, manifest=str(made)), r"validation case synthetic_0 is synthetic \(1 are\)")

    def test_a_validation_patient_in_training(self, workplace: Path) -> None:
        refused(data(workplace, {}, {"split": "val"}), r"2 validation patients \(phantom_")

    def test_a_validation_patient_who_is_a_parent(self, workplace: Path) -> None:
        patient = parents_of(workplace, "val")[1]
        made = synthetic(workplace, "leaky", ("somebody", patient))
        refused(data(workplace, {}, {"manifest": str(made)}), rf"1 validation patients \({patient}\)")

    def test_a_validation_patient_whom_the_generator_saw(self, workplace: Path) -> None:
        made = synthetic(workplace, "seen", ("somebody",))
        TrainingMixture.of(data(workplace, {}, {"manifest": str(made)}))
        patient = Manifest.load(workplace / "manifest.json").select("val")[:1]
        Ledger.of(patient).save(made.parent / "ledger.json")
        refused(data(workplace, {}, {"manifest": str(made)}), rf"1 validation patients \({patient[0].patient_id}\)")

    def test_a_validation_scan_under_another_patients_name(self, workplace: Path) -> None:
        manifest = Manifest.load(workplace / "manifest.json")
        scan = manifest.select("val")[0]
        assert scan.voxels
        twin = replace(scan, case_id="twin", patient_id="twin", split="train")
        file = changed(workplace, "twins", [twin])
        refused(data(workplace, {}, {"manifest": file}), rf"1 validation patients \({scan.patient_id}\)")

    def test_other_labels(self, workplace: Path) -> None:
        cases = list(Manifest.load(workplace / "manifest.json").select("train"))
        file = changed(workplace, "labels", cases, labels=Labels((0, 1, 2)))
        refused(data(workplace, {}, {"manifest": file}), r"has label values \(0, 1, 2\), .* has \(0, 1, 2, 3\)")

    def test_other_channels(self, workplace: Path) -> None:
        cases = list(Manifest.load(workplace / "manifest.json").select("train"))
        file = changed(workplace, "channels", cases, channels=("MR",))
        refused(data(workplace, {}, {"manifest": file}), r"has channels \('MR',\), .* has \('CT',\)")

    def test_more_windows_than_channels(self, workplace: Path) -> None:
        config = data(workplace, {})
        grid = replace(config.data.grid, windows=config.data.grid.windows * 2)
        config = config.model_copy(update={"data": config.data.model_copy(update={"grid": grid})})
        refused(config, r"has 1 channels \(CT\), data\.grid\.windows has 2")

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_cases_without_a_mask(self, split: str, workplace: Path) -> None:
        cases = [
            replace(c, mask=None) if c.split == split else c for c in Manifest.load(workplace / "manifest.json").cases
        ]
        file = changed(workplace, f"no-masks-{split}", cases)
        config = data(workplace, {"manifest": file}, manifest=file)
        refused(config, r"no case of .*no-masks-.*\.json has a mask")

    def test_a_split_without_cases(self, workplace: Path) -> None:
        file = changed(workplace, "no-val", list(Manifest.load(workplace / "manifest.json").select("train")))
        refused(data(workplace, {}, manifest=file), "no case in split val")


def test_a_case_without_a_mask_is_left_out_of_a_cohort_that_has_some(workplace: Path) -> None:
    cases = list(Manifest.load(workplace / "manifest.json").cases)
    first = next(case.case_id for case in cases if case.split == "train")
    file = changed(workplace, "one-bare", [replace(c, mask=None) if c.case_id == first else c for c in cases])
    cohort = TrainingMixture.of(data(workplace, {"manifest": file}))
    assert cohort.trained_on == {"real": 3, "synthetic": 0}
    assert first not in {case.case_id for case, _ in cohort.training[0].entries}
    assert start().num_processes == 1
