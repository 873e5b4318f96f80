"""Sets of masks on disk: as wanted, counted where not, the same whatever the batch, and continued after a crash."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import run

from latentsynth.data import nifti
from latentsynth.data.exchange.requests import requests
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.files import read_json
from latentsynth.masks import LabelMap, MaskMaker, Rejected, Wanted, make_masks
from latentsynth.provenance import LEDGER, Ledger
from latentsynth.types import Case, Labels

AFFINE = np.diag([2.0, 1.0, 3.0, 1.0])  # a voxel is 6 cubic mm


class Cubes(MaskMaker):
    """A cube of seed mod 7 voxels a side, from the patient of that number; none for multiples of 7."""

    labels = Labels((0, 1, 4), ("background", "organ", "lesion"))
    lesions = (4,)
    ledger = Ledger()

    def __init__(self, name: str = "cubes"):
        self.fingerprint = name
        self.batches: list[int] = []

    def make(self, seeds: Sequence[int], wanted: Wanted) -> list[LabelMap | Rejected]:
        self.batches.append(len(seeds))
        return [self.one(seed) for seed in seeds]

    def one(self, seed: int) -> LabelMap | Rejected:
        side = seed % 7
        if not side:
            return Rejected("nothing there")
        values = np.ones((12, 14, 10), np.int16)
        values[1 : 1 + side, 1 : 1 + side, 1 : 1 + side] = 4
        if side == 6:
            values[10, 12, 9] = 4
        return LabelMap("", values, AFFINE, (f"p{side}",))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "labelsTr").iterdir())


def reasons(folder: Path) -> dict[int, str]:
    with (folder / "rejected.csv").open(newline="") as stream:
        return {int(row["seed"]): row["reason"] for row in csv.DictReader(stream)}


def test_masks_are_as_wanted_and_the_others_are_counted(tmp_path: Path) -> None:
    wanted = Wanted((0.1, 1.0), (1, 1))  # 17 to 166 voxels in one piece: sides 3, 4, 5
    made = make_masks(Cubes(), 6, tmp_path, wanted, seed=7)
    assert names(tmp_path) == [f"mask-{seed:05d}.nii.gz" for seed in (10, 11, 12, 17, 18, 19)]
    assert reasons(tmp_path) == {
        7: "nothing there", 8: "too small", 9: "too small", 13: "too large", 14: "nothing there", 15: "too small", 16: "too small",
    }  # fmt: skip
    for case in made.cases:
        values, affine = nifti.read_labels(case.mask)  # type: ignore[arg-type]
        volume = (values == 4).sum() * 6 / 1000
        assert 0.1 <= volume <= 1.0
        np.testing.assert_allclose(affine, AFFINE)
        facts = read_json(tmp_path / "sidecars" / f"{case.case_id}.json")
        assert facts["SYNTHETIC"] is True
        assert facts["lesion_ml"] == pytest.approx(volume)
        assert case.parents == (f"p{facts['seed'] % 7}",)
        assert case.source == f"cubes:{facts['seed']}"
    pieces = make_masks(Cubes(), 1, tmp_path / "pieces", Wanted(None, (2, 2)))
    assert [case.case_id for case in pieces.cases] == ["mask-00006"]
    assert set(reasons(tmp_path / "pieces").values()) == {"nothing there", "too few lesions"}


def test_the_set_is_the_same_whatever_the_batch_and_after_a_crash(tmp_path: Path) -> None:
    whole = make_masks(Cubes(), 9, tmp_path / "a", Wanted((0.1, 1.0)), batch=16)
    single = make_masks(Cubes(), 9, tmp_path / "b", Wanted((0.1, 1.0)), batch=1)
    assert [case.content for case in whole.cases] == [case.content for case in single.cases]

    class Crashing(Cubes):
        def make(self, seeds: Sequence[int], wanted: Wanted) -> list[LabelMap | Rejected]:
            if max(seeds) > 12:
                raise KeyboardInterrupt
            return super().make(seeds, wanted)

    with pytest.raises(KeyboardInterrupt):
        make_masks(Crashing(), 9, tmp_path / "c", Wanted((0.1, 1.0)), batch=2)
    before = names(tmp_path / "c")
    assert 0 < len(before) < 9
    again = make_masks(Cubes(), 9, tmp_path / "c", Wanted((0.1, 1.0)), batch=2)
    assert [case.content for case in again.cases] == [case.content for case in whole.cases]
    assert reasons(tmp_path / "c") == reasons(tmp_path / "a")
    more = make_masks(Cubes(), 12, tmp_path / "a", Wanted((0.1, 1.0)))
    assert [case.content for case in more.cases[:9]] == [case.content for case in whole.cases]


def test_a_mask_that_was_deleted_is_made_again_as_it_was(tmp_path: Path) -> None:
    lost = make_masks(Cubes(), 4, tmp_path).cases[1].mask
    assert lost is not None
    before = nifti.read_labels(lost)[0]
    lost.unlink()
    assert len(make_masks(Cubes(), 4, tmp_path).cases) == 4
    assert np.array_equal(nifti.read_labels(lost)[0], before)


def test_other_masks_are_not_mixed_in(tmp_path: Path) -> None:
    make_masks(Cubes(), 2, tmp_path)
    for changes in ({"maker": Cubes("others")}, {"wanted": Wanted((0.1, 1.0))}, {"seed": 1}):
        arguments = {"maker": Cubes(), "wanted": None, "seed": 0, **changes}
        with pytest.raises(DataError, match=r"made with other (maker|wanted|seed)"):
            make_masks(arguments["maker"], 3, tmp_path, arguments["wanted"], arguments["seed"])  # type: ignore[arg-type]


def test_a_wish_out_of_reach_ends_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0 of 1\d\d masks came out as wanted, 5 to 9 ml \(rejected: .* x too small"):
        make_masks(Cubes(), 2, tmp_path, Wanted((5.0, 9.0)))
    assert reasons(tmp_path)
    for bad in ((5.0, 1.0), (-1.0, 2.0)):
        with pytest.raises(DataError, match="is no range"):
            Wanted(bad)


def test_whom_masks_come_from_is_known_to_whoever_paints_them(tmp_path: Path) -> None:
    made = make_masks(Cubes(), 3, tmp_path)
    patients = [Case(f"p{n}", f"p{n}", (), None) for n in range(1, 7)]
    seen, verified = Ledger.load(tmp_path / LEDGER).seen(patients)
    assert verified
    assert [case.patient_id for case in seen] == ["p1", "p2", "p3"]
    asked = requests(tmp_path / "manifest.json", "train")
    assert [request.parents for request in asked] == [("p1",), ("p2",), ("p3",)]
    assert {request.ledger for request in asked} == {Ledger.load(tmp_path / LEDGER)}  # who the maker learnt from, too
    assert made.channels == ()


def test_a_map_measures_in_mm_whatever_its_axes() -> None:
    made = Cubes().one(3)
    assert isinstance(made, LabelMap)
    assert made.volume_ml((4,)) == pytest.approx(27 * 6 / 1000)
    assert made.spacing_mm == (2.0, 1.0, 3.0)
    turned = LabelMap("", made.values.transpose(2, 0, 1), made.affine[:, [2, 0, 1, 3]])
    assert turned.spacing_mm == (3.0, 2.0, 1.0)
    assert turned.volume_ml((4,)) == made.volume_ml((4,))
    pieces = np.zeros((9, 9, 9), np.int16)
    pieces[[1, 2, 5], [1, 2, 5], [1, 2, 5]] = 4  # corners connect
    assert LabelMap("", pieces, np.eye(4)).pieces((4,)) == 2
    assert LabelMap("", pieces, np.eye(4)).pieces((7,)) == 0


def phantom(folder: Path) -> Path:
    """Six subjects with an organ and a lesion each, three of them small."""
    source = folder / "source"
    for n in range(6):
        values = np.zeros((20, 20, 20), np.uint8)
        values[2:18, 2:18, 2:18] = 1
        side = 3 if n < 3 else 7
        values[4 : 4 + side, 4 : 4 + side, 4 : 4 + side] = 4
        (source).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(values, AFFINE), source / f"{'north' if n % 3 else 'south'}-{n}.nii.gz")
    return source


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    out = tmp_path / "manifest.json"
    assert (
        run(monkeypatch, "prepare", phantom(tmp_path), "--layout", "masks", "--out", out, "--fractions", "1", "0", "0")
        == 0
    )
    made = Manifest.load(out)
    assert made.channels == ()
    assert made.labels.values == (0, 1, 4)
    assert all(case.content for case in made.cases)
    return out


def test_the_command_makes_masks_inside_an_organ(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    settings = ("--set", "deform.elastic_mm=1", "--set", "deform.control_mm=8")
    assert (
        run(
            monkeypatch,
            "masks",
            "--real",
            manifest,
            "--inside",
            "1",
            "--n",
            "4",
            "--volume-ml",
            "0.2:1.5",
            "--out",
            out,
            *settings,
        )
        == 0
    )
    made = Manifest.load(out / "manifest.json")
    assert len(made.cases) == 4
    for case in made.cases:
        values, _ = nifti.read_labels(case.mask)  # type: ignore[arg-type]
        assert 0.2 <= (values == 4).sum() * 6 / 1000 <= 1.5
    assert (out / "contact_sheet.png").stat().st_size > 3000
    drawn = tmp_path / "drawn"
    assert (
        run(
            monkeypatch,
            "masks",
            "--real",
            manifest,
            "--method",
            "procedural",
            "--inside",
            "1",
            "--n",
            "3",
            "--into",
            manifest,
            "--out",
            drawn,
        )
        == 0
    )
    assert (
        run(
            monkeypatch,
            "masks",
            "--real",
            manifest,
            "--volume-ml",
            "500:600",
            "--inside",
            "1",
            "--out",
            tmp_path / "no",
        )
        == 1
    )
    assert "500" in capsys.readouterr().err
    assert run(monkeypatch, "masks", "--real", manifest, "--set", "deform.elastics=1", "--out", tmp_path / "no") == 1
    assert "did you mean elastic_mm?" in capsys.readouterr().err
    assert run(monkeypatch, "masks", "--real", manifest, "--lesion-label", "9", "--out", tmp_path / "no") == 1
    assert "labels [9]: choose lesions and organ from 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (("lesion_volume", "--bins", "2", "--target", "5"), {"0.162 to 0.577 ml": (3, 2), "0.577 to 2.06 ml": (3, 2)}),
        (("site", "--site", "^(north|south)"), {"north": (4, 0), "south": (2, 2)}),
    ],
)
def test_a_cohort_is_balanced_by_what_it_lacks(
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: tuple[str, ...],
    expected: dict[str, tuple[int, int]],
) -> None:
    out = tmp_path / "balanced"
    gentle = [part for name in ("elastic_mm", "shift_mm", "rotate_deg", "scale", "grow_mm", "split", "merge", "smooth_mm") for part in ("--set", f"deform.{name}=0")] + ["--set", "deform.reject_copies=false"]  # fmt: skip
    assert (
        run(
            monkeypatch,
            "balance",
            manifest,
            "--by",
            *by,
            "--inside",
            "1",
            "--out",
            out,
            *gentle,
            "--set",
            "deform.shrink_mm=1",
        )
        == 0
    )
    rows = read_json(out / "masks" / "balance.json")["tables"][0]["rows"]
    assert {row[0]: (row[1], row[2]) for row in rows} == expected
    made = Manifest.load(out / "masks" / "manifest.json")
    assert len(made.cases) == sum(missing for _, missing in expected.values())
    for case in made.cases:
        kind = [name for name in expected if name.replace(" ", "_") in case.case_id]
        assert len(kind) == 1
        values, _ = nifti.read_labels(case.mask)  # type: ignore[arg-type]
        if by[0] == "site":
            assert case.parents[0].startswith(kind[0])
        else:
            low, _, high, _ = kind[0].split()
            assert float(low) * 0.99 <= (values == 4).sum() * 6 / 1000 <= float(high) * 1.01


def test_nothing_to_balance_is_said(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in (
        (("--by", "label"), "one lesion label alone"),
        (("--by", "site"), "needs --site"),
        (("--by", "site", "--site", "east"), "finds nothing in case id"),
        (("--by", "lesion_volume", "--bins", "2"), "nothing to balance"),
    ):
        assert run(monkeypatch, "balance", manifest, *arguments, "--inside", "1", "--out", tmp_path / "no") == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
