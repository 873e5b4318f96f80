"""Mask obedience with planted generators and a planted judge: who paints what was asked for, and who does not."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import Echo, run, tiny_domain, write_mask
from scipy import ndimage

from latentsynth import checkpoint
from latentsynth.config import InferenceConfig, UNetConfig
from latentsynth.data.exchange.requests import requests
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort, named
from latentsynth.evaluation.obedience.evaluate import Answer, evaluate_obedience, exchanged, mean_dice
from latentsynth.evaluation.obedience.intensities import intensities_of
from latentsynth.evaluation.segmentation.strata import SizeBins
from latentsynth.metrics.lesions import components, diameter_mm, lesion_scores
from latentsynth.phantom.cohort import phantom
from latentsynth.provenance import Ledger
from latentsynth.results import Estimate, Result, Table
from latentsynth.segmentation import Segmenter
from latentsynth.segmentation.networks import build_network
from latentsynth.synthesis import synthesize
from latentsynth.types import Case, Condition, Domain, Framing, Generated

PATIENTS = 8
DOMAIN = tiny_domain((24, 24, 24), (2.0, 2.0, 2.0), Framing("whole"))
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


class Painter(Echo):
    """Echo in milder greys with noise: label index n comes out near -0.6 + 0.3 * gain * n."""

    def __init__(self, gain: float = 1.0, fingerprint: str = "painter"):
        super().__init__(DOMAIN, fingerprint)
        self.gain = gain

    def generate(self, condition: Condition | None, seeds: Sequence[int], **settings: Any) -> Generated:
        made = super().generate(condition, seeds)
        noise = torch.stack(
            [torch.randn(made.image.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )
        index = (made.image + 1) / 2 * 2
        return Generated(-0.6 + 0.3 * self.gain * index + 0.03 * noise, made.mask)


def levels(self: Segmenter, image: np.ndarray) -> np.ndarray:
    """A judge that reads the greys of an honest painter."""
    return np.clip(np.rint((image[0] + 0.6) / 0.3), 0, 2).astype(np.uint8)


def lesion(n: int, radius: float = 4.0) -> np.ndarray:
    """Patient n's label map: a shell of value 4 with a core of value 1, in a corner of its own."""
    middle = np.array([7 + 9 * (n & 1), 7 + 9 * (n >> 1 & 1), 7 + 9 * (n >> 2 & 1)])
    distance = np.linalg.norm(np.indices((24, 24, 24)).reshape(3, -1).T - middle, axis=1).reshape(24, 24, 24)
    grown = radius + 0.25 * n
    return np.where(distance < 0.6 * grown, 1, np.where(distance < grown, 4, 0)).astype(np.int16)


def paint(folder: Path, cpu: Accelerator, model: Echo, per_mask: int = 1, seed: int = 0) -> Manifest:
    """A cohort for the masks of all patients."""
    asked = [
        write_mask(
            folder.with_name(f"{folder.name}-asked") / f"m{n}.nii.gz", lesion(n), AFFINE, parents=(f"patient-{n}",)
        )
        for n in range(PATIENTS)
    ]
    return synthesize(model, asked, folder, cpu, per_mask=per_mask, seed=seed, batch=8)


def cohort(name: str, manifest: Manifest) -> Cohort:
    return Cohort(name, manifest, manifest.cases)


def as_real(manifest: Manifest) -> Manifest:
    """The same volumes, held for scans of the patients whose masks they show."""
    cases = tuple(
        replace(case, patient_id=case.parents[0], parents=(), source="real", split="val") for case in manifest.cases
    )
    return replace(manifest, cases=cases)


def shuffled(manifest: Manifest) -> Manifest:
    """Volumes that were painted for the mask of the next patient."""
    cases = manifest.cases
    moved = tuple(
        replace(case, images=other.images, image_hashes=other.image_hashes)
        for case, other in zip(cases, (*cases[2:], *cases[:2]), strict=True)
    )  # two of each
    return replace(manifest, cases=moved)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory, cpu: Accelerator, workplace: Path) -> dict[str, Manifest]:
    """Cohorts by name; the ledger key is the workplace's."""
    folder = tmp_path_factory.mktemp("painted")
    with pytest.MonkeyPatch.context() as quick:
        quick.setattr("latentsynth.synthesis.contact_sheet", lambda *given, **named: None)
        real = as_real(paint(folder / "real", cpu, Painter(), seed=100))
        honest = paint(folder / "honest", cpu, Painter(), per_mask=2)
        caricature = paint(folder / "caricature", cpu, Painter(2.0))
    return {"real": real, "honest": honest, "shuffled": shuffled(honest), "caricature": caricature}


def segmenter(folder: Path, domain: Domain = DOMAIN, seen: Sequence[Case] = (), synthetic: int = 0) -> Path:
    """A segmenter's checkpoint with random weights."""
    network = build_network(
        UNetConfig(channels=(4, 8), res_units=0), domain.grid.channels, len(domain.labels)
    )  # fmt: skip
    ledger = Ledger.of(seen) if seen else Ledger()
    trained_on = {"real": len(seen), "synthetic": synthetic}
    Segmenter(domain, network, InferenceConfig(), trained_on, ledger).save(folder, {})
    return folder


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a segmenter that reads greys, whatever its weights; leaves out the slow picture unless asked for it."""
    monkeypatch.setattr(Segmenter, "on_grid", levels)

    def write(pictures: bool = False, **facts: Any) -> Path:
        if not pictures:
            monkeypatch.setattr("latentsynth.evaluation.obedience.evaluate.contact_sheet", lambda *given, **named: None)
        return segmenter(tmp_path / "reader", **facts)

    return write


def table(result: Result, start: str) -> Table:
    return next(one for one in result.tables if one.title.startswith(start))


def column(of: Table, name: str) -> dict[str, Any]:
    """A column by the name of the row."""
    place = of.columns.index(name)
    return {str(row[0]): row[place] for row in of.rows}


OTHER = "other patients' masks"


def test_obedient_and_disobedient_volumes(
    tmp_path: Path, cpu: Accelerator, painted: dict[str, Manifest], reader: Callable[..., Path]
) -> None:
    names = ("honest", "shuffled")
    result = evaluate_obedience(
        reader(),
        [cohort(n, painted[n]) for n in names],
        [cohort("real", painted["real"])],
        tmp_path / "out",
        cpu,
    )
    main_table = table(result, "Dice of what")
    own, other = column(main_table, "own mask"), column(main_table, OTHER)
    share = column(main_table, "share of real")
    assert [row[:3] for row in main_table.rows] == [("real", 8, 8), ("honest", 16, 8), ("shuffled", 16, 8)]
    assert own["honest"].value > 0.95
    assert own["honest"].low > other["honest"].high + 0.5
    assert share["real"] is None
    assert share["honest"].value == pytest.approx(own["honest"].value / own["real"].value)
    assert abs(own["shuffled"].value - other["honest"].value) < 0.1  # as one that ignores its mask
    assert share["shuffled"].high < 0.2
    by_label = table(result, "the same by label")
    assert by_label.columns == ("volumes", "lesion 1", "lesion 4")
    both = [column(by_label, name)["honest"].value for name in by_label.columns[1:]]
    assert np.mean(both) == pytest.approx(own["honest"].value)
    assert result.facts["dice"]["honest"] == pytest.approx(own["honest"].value)
    answers = {one.about: one.answer for one in result.conclusions}
    assert "real" not in answers
    assert answers["shuffled"] == "no"
    assert answers["honest"] != "no"
    assert [note for note in result.notes if not note.startswith("validation patients")] == []


def test_one_label_alone_may_be_disobeyed(
    tmp_path: Path, cpu: Accelerator, painted: dict[str, Manifest], reader: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Segmenter, "on_grid", lambda self, image: np.where(levels(self, image) > 0, 2, 0))
    result = evaluate_obedience(reader(), [cohort("honest", painted["honest"])], [], tmp_path / "out", cpu)
    (row,) = table(result, "the same by label").rows
    core, shell = row[1:]
    assert isinstance(core, Estimate)
    assert isinstance(shell, Estimate)
    assert core.value == 0
    assert shell.value > 0.8


def test_a_caricature_is_told_by_its_intensities(
    tmp_path: Path, cpu: Accelerator, painted: dict[str, Manifest], reader: Callable[..., Path]
) -> None:
    names = ("honest", "caricature")
    result = evaluate_obedience(
        reader(),
        [cohort(n, painted[n]) for n in names],
        [cohort("real", painted["real"])],
        tmp_path / "out",
        cpu,
    )
    contrast = table(result, "lesion contrast")
    (row,) = contrast.rows
    real, honest, caricature = (cell.value for cell in row[1:] if isinstance(cell, Estimate))
    assert honest == pytest.approx(real, abs=0.02)
    assert caricature == pytest.approx(2 * real, rel=0.05)
    distances = table(result, "Wasserstein distance of intensities to real")
    assert [row[:2] for row in distances.rows] == [("CT", "inside"), ("CT", "around"), ("CT", "elsewhere")]
    for _, region, floor, near, far in distances.rows:
        assert isinstance(floor, float)
        assert isinstance(near, Estimate)
        assert isinstance(far, Estimate)
        assert near.value < 3 * floor
        if region == "inside":
            assert far.low > 5 * floor
            assert far.value == pytest.approx(real, rel=0.3)  # the contrast that was added, shell and core together
        else:
            assert far.value < 0.05


def test_what_is_written(
    tmp_path: Path, cpu: Accelerator, painted: dict[str, Manifest], reader: Callable[..., Path]
) -> None:
    out = tmp_path / "out"
    chosen = [cohort(name, painted[name]) for name in ("honest", "shuffled")]
    result = evaluate_obedience(reader(pictures=True), chosen, [cohort("real", painted["real"])], out, cpu)
    assert Result.load(out / "obedience.json").tables == result.tables
    assert len(result.pictures) == 4
    for picture in result.pictures:
        assert (out / picture.file).read_bytes().startswith(b"\x89PNG")
    with (out / "obedience.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == [
        case.case_id for name in ("real", "honest", "shuffled") for case in painted[name].cases
    ]
    dice, other = column(result.tables[0], "own mask"), column(result.tables[0], OTHER)
    for name in ("real", "honest", "shuffled"):
        mine = [row for row in rows if row["volumes"] == name]
        assert np.mean([float(row["dice"]) for row in mine]) == pytest.approx(dice[name].value, abs=1e-5)
        assert np.mean([float(row["dice_other_masks"]) for row in mine]) == pytest.approx(other[name].value, abs=1e-5)
        labels = [[float(row[key]) for key in ("dice_lesion 1", "dice_lesion 4")] for row in mine]
        np.testing.assert_allclose(np.mean(labels, 1), [float(row["dice"]) for row in mine], atol=1e-5)
        for row in mine:
            number = int(row["made_from"].removeprefix("patient-"))
            assert float(row["lesion_ml"]) == pytest.approx((lesion(number) > 0).sum() * 8 / 1000, rel=1e-5)


def test_strata_are_those_of_the_first_cohort_for_all(
    tmp_path: Path, cpu: Accelerator, painted: dict[str, Manifest], reader: Callable[..., Path]
) -> None:
    """The samples show the larger half of the lesions alone, and are still counted by the thirds of real ones."""
    few = replace(painted["honest"], cases=painted["honest"].cases[8:])
    result = evaluate_obedience(
        reader(), [cohort("few", few)], [cohort("real", painted["real"])], tmp_path / "out", cpu
    )
    sizes = table(result, "the same by lesion volume")
    volumes = [(lesion(n) > 0).sum() * 8 / 1000 for n in range(PATIENTS)]
    low, high = np.quantile(volumes, (1 / 3, 2 / 3))
    counts = [
        [sum(v <= low for v in chosen), sum(low < v <= high for v in chosen), sum(v > high for v in chosen)]
        for chosen in (volumes, [v for v in volumes[4:] for _ in range(2)])
    ]
    assert [[int(cell) for cell in row[2::2]] for row in sizes.rows] == counts
    assert f"{low:.3g}" in sizes.columns[1]
    assert counts[1][0] == 0
    empty = sizes.rows[1][1]
    assert isinstance(empty, Estimate)
    assert np.isnan(empty.value)


def test_small_lesions_that_are_not_painted_are_missed_in_their_bin(
    tmp_path: Path, cpu: Accelerator, reader: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks of phantoms with up to 20 lesions; a planted generator paints those above 10 mm alone, and one that is not asked for."""
    asked, kept = [], []
    for n in range(4):
        lesions = phantom(1, n, (24, 24, 24), (8.0, 8.0, 8.0), 1, (6, 20))[1] == 3
        pieces, _ = components(lesions)
        sizes = np.bincount(pieces.ravel())[1:] * 0.008  # 2 mm here
        large = np.isin(pieces, 1 + np.flatnonzero([diameter_mm(ml) > 5 for ml in sizes]))
        large[0, 0, 0] = True
        asked.append(
            write_mask(tmp_path / f"m{n}.nii.gz", np.where(lesions, 4, 0).astype(np.int16), AFFINE, parents=(f"p{n}",))
        )
        kept.append((lesions, large, [diameter_mm(ml) for ml in sizes]))
    monkeypatch.setattr("latentsynth.synthesis.contact_sheet", lambda *given, **named: None)
    manifest = synthesize(Painter(), asked, tmp_path / "made", cpu)
    shown = {levels_key(np.where(lesions, 2, 0)): large for lesions, large, _ in kept}

    def found(self: Segmenter, image: np.ndarray) -> np.ndarray:
        return np.where(shown[levels_key(levels(self, image))], 2, 0)

    file = reader()
    monkeypatch.setattr(Segmenter, "on_grid", found)
    result = evaluate_obedience(file, [cohort("many", manifest)], [], tmp_path / "out", cpu)
    (row,) = table(result, "lesions asked for").rows
    sizes = [mm for *_, each in kept for mm in each]
    bins = [sum(low < mm <= high for mm in sizes) for low, high in ((0, 5), (5, 10), (10, 20), (20, 99))]
    assert row[1] == len(sizes)
    assert list(row[6::2]) == bins
    assert bins[0] > 3
    assert bins[1] > 3
    assert (row[5].value, row[7].value) == (0, 1)  # type: ignore[union-attr]
    recall = [np.mean([mm > 5 for mm in each]) for *_, each in kept]
    assert row[2].value == pytest.approx(np.mean(recall))  # type: ignore[union-attr]
    precision = [np.sum([mm > 5 for mm in each]) / (1 + np.sum([mm > 5 for mm in each])) for *_, each in kept]
    assert row[3].value == pytest.approx(np.mean(precision))  # type: ignore[union-attr]
    with (tmp_path / "out" / "obedience.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [int(line["lesions"]) for line in lines] == [len(each) for *_, each in kept]
    assert {line["false_positives"] for line in lines} == {"1"}


def levels_key(values: np.ndarray) -> bytes:
    return np.asarray(values > 0).tobytes()


def test_strata_by_hand() -> None:
    strata = SizeBins.of([1, 2, 3, 4, 5, 6, 7])
    assert strata is not None
    assert [strata.names.index(strata.name(v)) for v in (0.1, 3.0, 3.01, 5.0, 5.01, 99)] == [0, 0, 1, 1, 2, 2]
    assert SizeBins.of([1, 2, 3, 4, 5]) is None
    assert SizeBins.of([2.0] * 9) is None


def answers(masks: Sequence[np.ndarray]) -> list[Answer]:
    """Answers of a perfect judge."""
    nothing = intensities_of(np.zeros((1, 12, 12, 12), np.float32), np.zeros((12, 12, 12), bool))
    return [Answer(mask, mask, 1.0, 1.0, nothing, lesion_scores(mask > 0, mask > 0, (1, 1, 1))) for mask in masks]


def corner(n: int) -> np.ndarray:
    mask = np.zeros((12, 12, 12), np.uint8)
    i, j = divmod(n, 3)
    mask[4 * i : 4 * i + 3, 4 * j : 4 * j + 3, :3] = 1
    return mask


def test_masks_are_never_exchanged_within_a_patient() -> None:
    """Masks of one patient are alike, those of two never touch: one pair of the same patient would score 1."""
    patients = [str(n) for n in (0, 1, 2, 3, 0, 1, 2, 3, 0, 0)]
    found = exchanged(answers([corner(int(p)) for p in patients]), patients, 2)
    assert found == [0.0] * len(patients)
    strangers = exchanged(answers([corner(0)] * 4), list("abcd"), 2)
    assert np.isnan(strangers).all()  # a mask given twice is no other mask


def test_nobody_to_exchange_with() -> None:
    assert np.isnan(exchanged(answers([corner(0)] * 3), ["a"] * 3, 2)).all()


def test_masks_of_one_patient_in_the_second_generation_are_not_exchanged(painted: dict[str, Manifest]) -> None:
    """Volumes painted for masks of synthetic volumes: all go back to the same patient."""
    case = painted["honest"].cases[0]
    cases = tuple(
        replace(case, case_id=f"c{n}", parents=(f"synthetic-{n}", "patient-0")) for n in range(3)
    )  # as `requests` names the parents of a mask of a synthetic manifest
    grandchildren = Cohort("grandchildren", replace(painted["honest"], cases=cases), cases)
    assert np.isnan(exchanged(answers([corner(0)] * 3), grandchildren.patients, 2)).all()


def test_mean_dice_leaves_out_the_background() -> None:
    mask = np.zeros((6, 6, 6), np.uint8)
    mask[:2], mask[2:4] = 1, 2
    found = np.where(mask == 1, 1, 0)
    assert mean_dice(mask, mask, 3) == 1
    assert mean_dice(mask, found, 3) == pytest.approx(0.5)
    assert mean_dice(mask, np.zeros_like(mask), 3) == 0


def test_without_real_patients_it_says_so(
    tmp_path: Path, cpu: Accelerator, painted: dict[str, Manifest], reader: Callable[..., Path]
) -> None:
    result = evaluate_obedience(reader(), [cohort("honest", painted["honest"])], [], tmp_path / "out", cpu)
    (row,) = result.tables[0].rows
    assert row[4] is None
    assert not [one for one in result.tables if "contrast" in one.title or "Wasserstein" in one.title]
    assert len(result.notes) == 1
    assert "no real patients were given" in result.notes[0]
    assert [picture.file for picture in result.pictures] == ["obedience_cases.png", "obedience_dice.png"]
    assert not (tmp_path / "out" / "obedience_intensities.png").exists()


def test_training_patients_are_no_reference(
    tmp_path: Path, cpu: Accelerator, painted: dict[str, Manifest], reader: Callable[..., Path]
) -> None:
    real = cohort("real", painted["real"])
    with pytest.raises(DataError, match="was trained on 2 of these 8 cases"):
        evaluate_obedience(
            reader(seen=real.cases[3:5]), [cohort("honest", painted["honest"])], [real], tmp_path / "out", cpu
        )
    assert not (tmp_path / "out").exists()


def test_training_patients_among_synthetic_cases_are_no_reference(
    tmp_path: Path, cpu: Accelerator, painted: dict[str, Manifest], reader: Callable[..., Path]
) -> None:
    mixed = replace(painted["real"], cases=(*painted["real"].cases, painted["honest"].cases[0]))
    with pytest.raises(DataError, match="was trained on"):
        evaluate_obedience(
            reader(seen=painted["real"].cases),
            [cohort("honest", painted["honest"])],
            [cohort("real", mixed)],
            tmp_path / "out",
            cpu,
        )


def test_what_the_judge_knows_is_said(
    tmp_path: Path, cpu: Accelerator, painted: dict[str, Manifest], reader: Callable[..., Path]
) -> None:
    """It was trained on patients 1 and 5, whose masks four of the sixteen volumes show, and on synthetic cases."""
    seen = [painted["real"].cases[n] for n in (1, 5)]
    result = evaluate_obedience(
        reader(seen=seen, synthetic=7), [cohort("honest", painted["honest"])], [], tmp_path / "out", cpu
    )
    assert any("trained on 7 synthetic cases" in note for note in result.notes)
    assert any("honest: 4 of 16 masks come from patients the segmenter was trained on" in note for note in result.notes)


def test_without_the_project_key_it_says_so(
    tmp_path: Path, cpu: Accelerator, painted: dict[str, Manifest], reader: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = reader()
    monkeypatch.setenv("LATENTSYNTH_KEY", str(tmp_path / "no-key"))
    caricature = [cohort("caricature", painted["caricature"])]
    result = evaluate_obedience(path, caricature, [cohort("real", painted["real"])], tmp_path / "out", cpu)
    assert any("cannot verify by patient" in note for note in result.notes)


def test_a_cohort_that_does_not_fit_is_refused(
    tmp_path: Path, cpu: Accelerator, painted: dict[str, Manifest], reader: Callable[..., Path]
) -> None:
    other = replace(painted["honest"], channels=("MR",))
    with pytest.raises(DataError, match="honest has channels"):
        evaluate_obedience(reader(), [cohort("honest", other)], [], tmp_path / "out", cpu)


def test_equal_names_are_refused(
    tmp_path: Path, cpu: Accelerator, painted: dict[str, Manifest], reader: Callable[..., Path]
) -> None:
    twice = [cohort("samples", painted["honest"]), cohort("samples", painted["shuffled"])]
    with pytest.raises(DataError, match="name of its own"):
        evaluate_obedience(reader(), twice, [], tmp_path / "out", cpu)


def test_intensities_by_region() -> None:
    mask = np.zeros((16, 16, 16), bool)
    mask[5:9, 5:9, 5:9] = True
    around = ndimage.binary_dilation(mask, iterations=3) & ~mask
    image = np.full((2, 16, 16, 16), -0.99, np.float32)
    image[0, mask], image[0, around], image[1, mask] = 0.41, 0.01, -0.59
    found = intensities_of(image, mask)
    edges = np.linspace(-1, 1, 101)
    for channel, region, value in ((0, 0, 0.41), (0, 1, 0.01), (0, 2, -0.99), (1, 0, -0.59), (1, 1, -0.99)):
        shares = found.histograms[channel, region]
        assert shares[np.digitize(value, edges) - 1] == 1
        assert shares.sum() == 1
    np.testing.assert_allclose(found.contrast, [0.4, 0.4], atol=1e-6)
    nothing = intensities_of(image, np.zeros_like(mask))
    assert np.isnan(nothing.histograms[:, :2]).all()
    assert np.isfinite(nothing.histograms[:, 2]).all()
    assert np.isnan(nothing.contrast).all()


def test_names_of_cohorts(tmp_path: Path) -> None:
    assert named("a=b/c.json") == ("a", Path("b/c.json"))
    assert named("runs/samples/manifest.json") == ("samples", Path("runs/samples/manifest.json"))


@pytest.fixture
def phantom_judge(tmp_path: Path, trained_autoencoder: Path) -> Path:
    """A segmenter with random weights for the phantoms."""
    return segmenter(tmp_path / "segmenter", checkpoint.read_header(trained_autoencoder / "checkpoint").domain)


def test_the_command(
    tmp_path: Path, cpu: Accelerator, workplace: Path, trained_autoencoder: Path, phantom_judge: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    domain = checkpoint.read_header(trained_autoencoder / "checkpoint").domain
    synthesize(Echo(domain), requests(workplace / "manifest.json", "val"), tmp_path / "samples", cpu)
    samples, out = tmp_path / "samples" / "manifest.json", tmp_path / "out"
    code = run(
        monkeypatch, "evaluate", "obedience", "--segmenter", phantom_judge, "--samples", samples, "--samples", f"echo={samples}",
        "--real", workplace / "manifest.json", "--autoencoder", trained_autoencoder, "--out", out,
    )  # fmt: skip
    assert code == 0
    printed = capsys.readouterr().out
    value = json.loads((out / "obedience.json").read_text())
    assert [row[0] for row in value["tables"][0]["rows"]] == ["real", "reconstructed", "samples", "echo"]
    assert value["command"].startswith("latentsynth evaluate obedience --segmenter")
    for name in ("obedience.json", *(picture["file"] for picture in value["pictures"])):
        assert (out / name).is_file()
        assert str(out / name) in printed.replace("\n", "")
    assert "reconstructed" in printed


def test_wrong_options_are_one_line(
    tmp_path: Path, workplace: Path, phantom_judge: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    samples = ("--samples", workplace / "manifest.json", "--out", tmp_path / "out")
    command = ("evaluate", "obedience", "--segmenter", phantom_judge, *samples)
    for wrong, words in (
        (("--split", "validation"), "choose one of train, val, test"),
        (("--autoencoder", phantom_judge), "give --real too"),
        (("--colour", "red"), "No such option"),
    ):
        capsys.readouterr()
        assert run(monkeypatch, *command, *wrong) == 2
        assert words in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert run(monkeypatch, "evaluate", "obedience", "--segmenter", tmp_path / "no", *samples) == 1
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "out").exists()
