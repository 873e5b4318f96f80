"""A model is shared in half precision with its licence and what was measured, unless it copies; some come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reported_set import Reported, altered, reported  # noqa: F401 (fixture)
from safetensors.torch import load_file

from latentsynth import LatentDiffusion, checkpoint, models
from latentsynth.data.exchange.requests import requests, requests_of
from latentsynth.data.manifest import Manifest
from latentsynth.demo import MASKS, VOLUMES, run_demo, scaled
from latentsynth.errors import CheckpointError, DataError
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.masks import Wanted, make_masks
from latentsynth.masks.label_map import LabelMap
from latentsynth.masks.learnt import load_mask_maker
from latentsynth.parallel import start
from latentsynth.provenance import Ledger
from latentsynth.sharing.pack import CARD, LICENCE, pack
from latentsynth.synthesis import synthesize
from latentsynth.synthesizers import load_synthesizer
from latentsynth.types import Case, Condition

ROOM = 12 * 2**20  # bytes of the models of one cohort


@pytest.fixture
def licence(tmp_path: Path) -> Path:
    path = tmp_path / "licence.txt"
    path.write_text("CC BY 4.0", encoding="utf-8")
    return path


def test_a_packed_model_makes_the_same_volumes_at_half_the_size(
    trained_ldm: Path, tmp_path: Path, licence: Path
) -> None:
    card = pack(trained_ldm, tmp_path / "packed", licence, title="mine")
    whole, packed = (LatentDiffusion.from_pretrained(path) for path in (trained_ldm, tmp_path / "packed"))
    weights = load_file(next((tmp_path / "packed" / "denoiser").glob("*.safetensors")))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert all(parameter.dtype == torch.float32 for parameter in packed.denoiser.parameters())
    mask = torch.zeros(1, len(whole.domain.labels), *whole.grid.shape)
    mask[:, 0] = 1
    made = [model.generate(Condition(mask), [5]).image for model in (whole, packed)]
    assert (made[0] - made[1]).abs().max() < 0.05
    assert not torch.equal(*made)
    text = card.read_text(encoding="utf-8")
    assert text.startswith("# mine\n")
    assert "keyed" not in text.splitlines()[0]
    assert (tmp_path / "packed" / LICENCE).read_text(encoding="utf-8") == "CC BY 4.0"


def test_packing_again_changes_no_weight(trained_ldm: Path, tmp_path: Path, licence: Path) -> None:
    pack(trained_ldm, tmp_path / "once", licence)
    pack(tmp_path / "once", tmp_path / "twice", licence)
    pack(tmp_path / "once", tmp_path / "once", licence)  # over itself, as with what was measured of it
    found = {checkpoint.read_header(tmp_path / name).fingerprint for name in ("once", "twice")}
    assert len(found) == 1


def test_a_model_that_copies_is_not_packed(
    trained_ldm: Path,
    tmp_path: Path,
    licence: Path,
    reported: Reported,  # noqa: F811
) -> None:
    facts = json.loads(reported.clean.read_text())["facts"]
    with pytest.raises(DataError, match="looked for 12 training images, and the generator"):  # that of another model
        pack(trained_ldm, tmp_path / "packed", licence, [reported.clean])
    theirs = {**facts["train"], "voxels": sorted(load_synthesizer(trained_ldm).ledger.voxels)}
    said = facts["copies"]
    for fact in ({"copied": True}, {"discoveries": 1}):
        report = altered(
            reported.clean, tmp_path / "memorization.json", train=theirs, copies=[{**one, **fact} for one in said]
        )
        with pytest.raises(DataError, match=r"made holds copies of training patients"):
            pack(trained_ldm, tmp_path / "packed", licence, [report])
    assert not (tmp_path / "packed").exists()
    clean = altered(reported.clean, tmp_path / "memorization.json", train=theirs)
    card = pack(trained_ldm, tmp_path / "packed", licence, [clean]).read_text(encoding="utf-8")
    assert "as unseen patients" in card
    assert "Meier" not in card  # no patient is named
    assert str(reported.folder) not in card  # nor a folder


def test_what_cannot_be_packed_is_refused_unwritten(
    trained_ldm: Path, trained_autoencoder: Path, tmp_path: Path, licence: Path
) -> None:
    with pytest.raises(DataError, match=r"licence .*gone.txt cannot be read"):
        pack(trained_ldm, tmp_path / "packed", tmp_path / "gone.txt")
    with pytest.raises(CheckpointError, match=r"cannot be packed"):
        pack(trained_autoencoder, tmp_path / "packed", licence)
    other = tmp_path / "other"
    other.mkdir()
    (other / "scan.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match=r"something else"):
        pack(trained_ldm, other, licence)
    assert [file.name for file in other.iterdir()] == ["scan.txt"]


def test_models_of_the_package_are_whole_small_and_licensed() -> None:
    assert models.names() == sorted([MASKS, VOLUMES])
    sizes = 0
    for name in models.names():
        folder = checkpoint.locate(name)
        assert checkpoint.read_header(folder).kind in {"latent_diffusion", "label_vae"}
        assert "CC BY-SA 4.0" in (folder / LICENCE).read_text(encoding="utf-8")
        assert "Medical Segmentation Decathlon" in (folder / CARD).read_text(encoding="utf-8")
        sizes += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert sizes <= ROOM
    card = (checkpoint.locate(VOLUMES) / CARD).read_text(encoding="utf-8")
    assert "as unseen patients" in card
    assert "COPIES" not in card


def test_a_name_that_is_no_model_says_which_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"hippocampos does not exist.*hippocampus, hippocampus-masks"):
        LatentDiffusion.from_pretrained("hippocampos")
    monkeypatch.chdir(tmp_path)
    Path("hippocampus").mkdir()  # what lies in the working folder goes first
    with pytest.raises(CheckpointError, match=r"holds no config.json"):
        LatentDiffusion.from_pretrained("hippocampus")


def test_the_model_of_the_package_paints_what_its_mask_says() -> None:
    """On new masks, the structure is darker than what surrounds it, and another seed is another patient."""
    model, maker = load_synthesizer(VOLUMES), load_mask_maker(MASKS)
    assert model.domain.labels == maker.domain.labels
    assert model.grid.shape == maker.domain.grid.shape
    (new,) = maker.make([3], Wanted())
    assert isinstance(new, LabelMap)
    index = torch.from_numpy(new.values.astype("int64"))
    mask = torch.nn.functional.one_hot(index, 3).movedim(-1, 0)[None].float()
    made = model.generate(Condition(mask.repeat(2, 1, 1, 1, 1)), [1, 2]).image
    inside = index > 0
    around = (torch.nn.functional.max_pool3d(inside[None, None].float(), 5, 1, 2)[0, 0] > 0) & ~inside
    for image in made[:, 0]:
        assert 0.15 < image[around].mean() - image[inside].mean() < 0.5
    assert (made[0] - made[1]).abs().mean() > 0.1


def test_the_demo_makes_patients_a_picture_and_a_report(tmp_path: Path) -> None:
    files = run_demo(tmp_path / "demo", 2, 0)
    assert [file.name for file in files] == ["contact_sheet.png", "growing.webp", "report.html"]
    assert all(file.is_file() for file in files)
    made = Manifest.load(tmp_path / "demo" / "volumes" / "manifest.json").cases
    assert len(made) == 2
    before = [case.content for case in made]
    run_demo(tmp_path / "demo", 2, 0)  # goes on where it stopped, at the end
    assert [case.content for case in Manifest.load(tmp_path / "demo" / "volumes" / "manifest.json").cases] == before


def test_a_mask_that_a_model_made_is_nobodys(tmp_path: Path) -> None:
    """Volumes of one such mask are not independent, but they publish no patient's annotation."""
    make_masks(load_mask_maker(MASKS), 2, tmp_path / "masks")
    asked = requests(tmp_path / "masks" / "manifest.json", "train")
    model = load_synthesizer(VOLUMES)
    manifest = synthesize(model, asked, tmp_path / "made", start(), per_mask=2, steps=1)
    assert all(case.parents == () for case in manifest.cases)
    assert (
        Ledger.beside(tmp_path / "made" / "manifest.json").everybody - model.ledger.everybody
        == Ledger.of(manifest.cases).everybody
    )
    groups = Cohort.load("made", tmp_path / "made" / "manifest.json").patients
    assert groups[0] == groups[1] != groups[2] == groups[3]


@pytest.mark.parametrize("source", ["real", "external", "abc:0"])
def test_a_mask_is_whose_annotation_it_is(source: str) -> None:
    mask = Path("mask.nii.gz")
    own, drawn = (Case("a", "a", (), mask, source=source, parents=parents) for parents in ((), ("b",)))
    found = [request.parents for request in requests_of([own, drawn])]
    assert found == {"real": [("a",), ("a", "b")], "external": [("a",), ("b",)], "abc:0": [(), ("b",)]}[source]


def test_a_growing_mask_is_one_mask_about_its_middle() -> None:
    """At its own size nothing changes; larger, it holds the same place and as much more as the cube of the size."""
    index = np.zeros((20, 24, 22), np.int16)
    index[6:14, 8:16, 7:15], index[9:11, 11:13, 10:12] = 1, 2
    assert np.array_equal(scaled(index, 1.0), index)
    for size in (0.75, 1.25):
        found = scaled(index, size)
        assert set(np.unique(found)) == {0, 1, 2}
        assert np.argwhere(found > 0).mean(0) == pytest.approx(np.argwhere(index > 0).mean(0), abs=0.5)
        assert (found > 0).sum() == pytest.approx((index > 0).sum() * size**3, rel=0.2)
