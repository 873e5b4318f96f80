"""Licences of scans travel to whatever is made of them, and what they forbid is not passed on unless it is overruled by name."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from reported_set import Reported, reported  # noqa: F401 (fixture)

from latentsynth import checkpoint, models
from latentsynth.data.exchange.requests import requests
from latentsynth.data.intake.prepare import prepare
from latentsynth.data.manifest import Manifest
from latentsynth.errors import CheckpointError, DataError
from latentsynth.phantom.cohort import write_cohort
from latentsynth.provenance import LEDGER, Ledger
from latentsynth.sharing.export import export_set
from latentsynth.sharing.licences import check_licences, terms_of
from latentsynth.sharing.nnunet import write_dataset
from latentsynth.sharing.pack import pack
from latentsynth.types import Origin

FORBIDDEN = Origin("CC-BY-NC-ND-4.0", "Doe 2020")


@pytest.mark.parametrize(
    ("licence", "terms"),
    [
        ("CC0", ""), ("CC0-1.0", ""), ("https://creativecommons.org/publicdomain/zero/1.0/", ""),
        ("CC BY 3.0", "a"), ("Creative Commons Attribution 4.0 International", "a"), ("Apache-2.0", "a"),
        ("CC-BY-SA 4.0", "as"), ("https://creativecommons.org/licenses/by-sa/4.0/", "as"), ("ODbL-1.0", "as"),
        ("CC-BY-NC 3.0 IGO", "an"), ("Attribution-NonCommercial-ShareAlike 4.0 International", "asn"),
        ("CC BY-ND 4.0", "ad"), ("cc_by_nc_nd", "and"), ("Attribution-NoDerivatives 4.0", "ad"),
        ("no derivatives", "d"), ("may not be redistributed", "r"), ("No redistribution", "r"), ("do not share", "r"),
        ("a data use agreement", None), ("", None), ("Data sharing allowed", None), ("CC-BY-XY-4.0", None),
    ],
)  # fmt: skip
def test_what_a_licence_asks(licence: str, terms: str | None) -> None:
    found = terms_of(licence)
    letters = {
        "a": found.attribution, "s": found.share_alike, "n": found.noncommercial,
        "d": "derivatives" in found.forbids, "r": "redistribution" in found.forbids,
    }  # fmt: skip
    assert found.known == (terms is not None)
    assert {letter for letter, holds in letters.items() if holds} == set(terms or "")


def test_nothing_is_overruled_but_by_its_name() -> None:
    free = Origin("CC-BY-4.0", "Roe 2021")
    with pytest.raises(DataError, match="forbids derivatives"):
        check_licences([free, FORBIDDEN])
    with pytest.raises(DataError, match="is no licence of these scans"):
        check_licences([free], [FORBIDDEN.licence])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_licences([free, FORBIDDEN], [FORBIDDEN.licence])
        check_licences([Origin("CC-BY-SA-4.0")], given="CC BY-SA 4.0")
    for origins in ([], [Origin()], [Origin("a data use agreement")]):
        with pytest.warns(UserWarning, match="for you to know"):
            check_licences(origins)
    with pytest.warns(UserWarning, match="asks for the same licence"):
        check_licences([Origin("CC-BY-SA-4.0")], given="CC-BY-4.0")


def test_from_the_folder_to_the_ledger_and_the_masks(tmp_path: Path) -> None:
    """What dataset.json says is taken unless something is given; an edited licence is an edited manifest."""
    write_cohort(tmp_path / "raw", 4, seed=1, shape=(24, 24, 24), spacing_mm=(8.0, 8.0, 8.0), channels=1)
    file = tmp_path / "raw" / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "license": "CC BY 3.0", "reference": "Roe"}))
    out = tmp_path / "m.json"
    (tmp_path / "beside").mkdir()
    for given, expected in ((None, Origin("CC BY 3.0", "Roe")), (FORBIDDEN, FORBIDDEN)):
        prepare(tmp_path / "raw", out, origin=given, progress=False)
        manifest = Manifest.load(out)
        assert Ledger.of(manifest.cases).origins == {expected}
        assert {one.ledger.origins for one in requests(out, "train")} == {frozenset({expected})}
        Ledger.of(manifest.cases).save(tmp_path / "beside" / LEDGER)
        assert Ledger.load(tmp_path / "beside" / LEDGER).origins == {expected}
    out.write_text(out.read_text().replace("CC-BY-NC-ND-4.0", "CC0-1.0"))
    with pytest.raises(DataError, match="edited"):
        Manifest.load(out)
    (tmp_path / "beside" / LEDGER).write_text(
        json.dumps({**json.loads((tmp_path / "beside" / LEDGER).read_text()), "origins": ["CC0"]})
    )
    with pytest.raises(CheckpointError, match="not a patient ledger"):
        Ledger.load(tmp_path / "beside" / LEDGER)


def owed(reported: Reported, folder: Path, origin: Origin) -> Path:  # noqa: F811
    """The set without copies, whose ledger says where the scans are from."""
    samples = reported.copy(folder, fresh=True)
    replace(Ledger.beside(samples), origins=frozenset({origin})).save(folder / LEDGER)
    return samples


def test_an_export_refuses_or_tells(reported: Reported, tmp_path: Path) -> None:  # noqa: F811
    samples = owed(reported, tmp_path / "made", FORBIDDEN)
    with pytest.raises(DataError, match=r"'CC-BY-NC-ND-4\.0' of Doe 2020 forbids derivatives"):
        export_set(samples, tmp_path / "out", "CC-BY-4.0", reported.clean)
    assert not (tmp_path / "out").exists()
    card = export_set(samples, tmp_path / "out", "CC-BY-4.0", reported.clean, accepted=[FORBIDDEN.licence]).read_text()
    assert "| Doe 2020 | CC-BY-NC-ND-4.0 | forbids derivatives; attribution; no commercial use; overruled" in card
    samples = owed(reported, tmp_path / "alike", Origin("CC-BY-SA-4.0", "Roe"))
    card = export_set(samples, tmp_path / "alike out", "CC-BY-SA-4.0", reported.clean).read_text()
    assert "| Roe | CC-BY-SA-4.0 | attribution; share alike: under the same licence |" in card
    with pytest.warns(UserWarning, match="not declared"):
        card = export_set(reported.fresh, tmp_path / "unknown", "CC0", reported.clean).read_text()
    assert "| not declared | not declared | terms unknown to this program: read them |" in card


def test_a_dataset_for_nnunet_refuses(reported: Reported, tmp_path: Path) -> None:  # noqa: F811
    samples = owed(reported, tmp_path / "made", FORBIDDEN)
    with pytest.raises(DataError, match="forbids derivatives"):
        write_dataset(reported.real, [samples], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_says_what_it_learnt_from(tmp_path: Path) -> None:
    """Those of the package do, and are packed again with what their scans ask for."""
    (tmp_path / "licence").write_text("CC BY-SA 4.0")
    card = pack(Path("hippocampus-masks"), tmp_path / "packed", tmp_path / "licence").read_text()
    assert "| CC-BY-SA-4.0 | attribution; share alike: under the same licence |" in card
    folder = models.packaged("hippocampus")
    assert folder is not None
    assert {one.licence for one in checkpoint.read_ledger(folder).origins} == {"CC-BY-SA-4.0"}
