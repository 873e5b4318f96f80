"""The page shows what is at the given paths, beside what belongs to it, and gives out nothing else to nobody else."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from latentsynth.data import nifti
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.memorization.report import FACTS, KIND, case_files
from latentsynth.results import Result
from latentsynth.types import Case, Labels
from latentsynth.viewer.collection import entries
from latentsynth.viewer.moving import moving_picture
from latentsynth.viewer.server import Viewer

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def cohort(tmp_path: Path) -> list[Path]:
    """A patient with two channels and a mask, and a sample made for that mask; the two manifests."""
    grid = np.indices((24, 28, 20)).transpose(1, 2, 3, 0) - [12, 14, 10]
    ball = (grid**2).sum(-1) < 36
    paths = []
    for source, name in (("real", "anna"), ("abc:0", "anna-s0000")):
        folder = tmp_path / source[:3]
        images = tuple(folder / f"{name}_{c:04d}.nii.gz" for c in range(2))
        for c, image in enumerate(images):
            nifti.write(image, np.where(ball, 900 - 400 * c, 100).astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
        mask = folder / "mask.nii.gz"
        nifti.write(mask, ball.astype(np.uint8), np.diag([2.0, 2.0, 2.0, 1.0]))
        patient, parents = ("anna", ()) if source == "real" else (f"synthetic-{name}", ("anna",))
        case = Case(name, patient, images, mask, "test", source, parents)
        manifest = Manifest(source[:3], ("CT", "MR"), Labels((0, 1), ("background", "tumour")), (case,))
        manifest.save(folder / "manifest.json")
        paths.append(folder / "manifest.json")
    return paths


@pytest.fixture
def viewer(cohort: list[Path]) -> Iterator[Viewer]:
    server = Viewer(entries(cohort))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def ask(viewer: Viewer, path: str, **headers: str) -> tuple[int, bytes]:
    """Status and body of an address below the secret, which ``path`` may replace by beginning with a slash."""
    connection = http.client.HTTPConnection("127.0.0.1", viewer.server_address[1], timeout=10)
    connection.request("GET", path if path.startswith("/") else f"/{viewer.token}/{path}", headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_a_sample_stands_beside_the_patient_whose_mask_it_shows(cohort: list[Path]) -> None:
    real, made = entries(cohort)
    assert (real.name, real.synthetic, real.beside) == ("anna", False, None)
    assert (made.name, made.synthetic, made.beside) == ("anna-s0000", True, 0)
    assert made.channels == ("CT", "MR")
    assert made.labels == ((0, "background"), (1, "tumour"))
    assert [entry.name for entry in entries([cohort[1].parent, cohort[0]])] == ["anna-s0000", "anna"]
    assert entries([cohort[1], cohort[0]])[0].beside == 1


def test_of_several_scans_of_a_patient_the_one_whose_mask_is_shown_stands_beside(cohort: list[Path]) -> None:
    real, made = (Manifest.load(path) for path in cohort)
    first, second = (replace(real.cases[0], case_id=f"visit-{n}", mask_hash=f"mask {n}") for n in (1, 2))
    replace(real, cases=(first, second)).save(cohort[0])
    for mask_hash, beside in (("mask 2", 1), ("mask 1", 0), ("another", 0)):
        replace(made, cases=(replace(made.cases[0], mask_hash=mask_hash),)).save(cohort[1])
        assert entries(cohort)[2].beside == beside
    replace(made, cases=(replace(made.cases[0], parents=("somebody else",)),)).save(cohort[1])
    assert entries(cohort)[2].beside is None


def test_the_nearest_training_case_of_a_report_stands_beside_a_sample(cohort: list[Path], tmp_path: Path) -> None:
    """By all feature spaces together where the report has that, by whichever set holds the very files."""
    real, made = (Manifest.load(path) for path in cohort)
    people = tuple(replace(real.cases[0], case_id=name, patient_id=name) for name in ("anna", "bea", "cleo"))
    replace(real, cases=people).save(cohort[0])
    files = case_files(made.cases[0])
    told = {"flagged": [], "mask_copy": False, "voxels": ""}
    sets = {
        "other": {"anna-s0000": {**told, "files": "0" * 16, "nearest": {"voxels": "anna"}}},
        "mine": {"anna-s0000": {**told, "files": files, "nearest": {"voxels": "cleo", "joint": "bea"}}},
    }
    facts: dict[str, object] = {name: [] for name in FACTS}
    Result(KIND, "a report", {**facts, "sets": sets}, (), (), ()).save(tmp_path / "report")
    found = entries([*cohort, tmp_path / "report" / "memorization.json"])
    assert (found[3].beside, found[3].why) == (1, "the nearest training case, by joint")
    assert entries(cohort)[3].why == "the patient whose mask it shows"
    assert len(found) == 4  # the report is no case


def test_a_file_and_a_folder_of_files_are_shown_as_they_are(cohort: list[Path]) -> None:
    file = next(cohort[0].parent.glob("*_0000.nii.gz"))
    (one,) = entries([file])
    assert one.files == (file,)
    loose = cohort[0].parent / "loose"
    loose.mkdir()
    shutil.copy(file, loose)
    assert [entry.name for entry in entries([loose])] == ["anna_0000"]


def test_a_run_folder_shows_its_volumes_and_the_nearest_cases_of_its_report(cohort: list[Path], tmp_path: Path) -> None:
    """Real and sampled volumes stand in it one or two folders below; masks alone, and manifests of others, are passed over."""
    run, (real, made) = tmp_path / "run", (Manifest.load(path) for path in cohort)
    real.save(run / "manifest.json")
    made.save(run / "samples" / "new" / "manifest.json")
    masks = replace(made, channels=(), cases=tuple(replace(case, images=()) for case in made.cases))
    masks.save(run / "masks" / "manifest.json")
    (run / "web").mkdir()
    (run / "web" / "manifest.json").write_text('{"name": "a page"}')
    assert [entry.name for entry in entries([run])] == ["anna", "anna-s0000"]
    told = {"flagged": [], "mask_copy": False, "voxels": "", "files": case_files(made.cases[0])}
    facts: dict[str, object] = {name: [] for name in FACTS}
    sets = {"new": {"anna-s0000": {**told, "nearest": {"voxels": "anna"}}}}
    Result(KIND, "a report", {**facts, "sets": sets}, (), (), ()).save(run / "evaluation" / "copies")
    assert entries([run])[1].why == "the nearest training case, by voxels"


def test_a_training_run_says_how_it_gets_volumes(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(DataError, match="is a training run, which holds no volumes: make some, `latentsynth sample"):
        entries([tmp_path])


def test_what_is_no_volume_is_refused(tmp_path: Path, cohort: list[Path]) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(DataError, match=r"notes.txt is no NIfTI file, manifest or folder"):
        entries([tmp_path / "notes.txt"])
    next(cohort[0].parent.glob("*_0001.nii.gz")).unlink()
    with pytest.raises(DataError, match=r"anna: .*_0001.nii.gz does not exist"):
        entries(cohort)


def test_the_page_gets_its_cases_and_their_files_and_no_path(viewer: Viewer, cohort: list[Path]) -> None:
    assert ask(viewer, "")[0] == 200
    status, body = ask(viewer, "cases.json")
    assert status == 200
    assert str(cohort[0].parent).encode() not in body
    for case, entry in zip(json.loads(body), entries(cohort), strict=True):
        for url, file in zip([*case["images"], case["mask"]], entry.files, strict=True):
            assert ask(viewer, url) == (200, file.read_bytes())


@pytest.mark.parametrize(
    "path",
    ["files/2/0/volume.nii.gz", "files/0/3/volume.nii.gz", "files/0/-1/volume.nii.gz", "files/0/0/../../../etc/passwd",
     "files/%2e%2e/0/volume.nii.gz", "../manifest.json", "server.py", "static/index.html", "files/0/0", "files/²/0/volume.nii"],
)  # fmt: skip
def test_nothing_else_is_given_out(viewer: Viewer, path: str) -> None:
    try:
        status, _ = ask(viewer, path)
    except UnicodeEncodeError:  # no such address can be asked for
        return
    assert status == 404


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1:1"}, {"Origin": "http://evil.example"}, {"Origin": "null"}],
)
def test_other_pages_and_other_names_are_refused(viewer: Viewer, headers: dict[str, str]) -> None:
    assert ask(viewer, "cases.json", **headers)[0] == 403


@pytest.mark.parametrize("path", ["/", "/wrong/", "/wrong/cases.json", "//cases.json"])
def test_without_the_secret_nothing_is_told(viewer: Viewer, path: str) -> None:
    assert ask(viewer, path)[0] == 403


def test_it_listens_on_this_machine_alone(viewer: Viewer) -> None:
    assert viewer.server_address[0] == "127.0.0.1"
    assert Viewer([]).token != Viewer([]).token


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_browser_draws_the_volume_and_its_mask(viewer: Viewer, tmp_path: Path) -> None:
    """Looked at by its pixels: grey tissue, the mask in the colour of its label, two of them where they are compared."""
    assert BROWSER is not None
    coloured = []
    for asked in ("case=anna-s0000", "case=anna-s0000&compare=1"):
        picture = tmp_path / f"{len(coloured)}.png"
        subprocess.run(
            [BROWSER, "--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
             "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", f"--user-data-dir={tmp_path / 'profile'}",
             f"--screenshot={picture}", "--window-size=1000,600", "--virtual-time-budget=20000",
             f"{viewer.address}?{asked}"],
            capture_output=True, timeout=180, check=True,
        )  # fmt: skip
        pixels = imread(picture)[60:560, 260:, :3]  # without the list and the controls
        yellow = (pixels[..., 0] > pixels[..., 2] + 0.1) & (pixels[..., 1] > pixels[..., 2] + 0.05)
        half = yellow.shape[1] // 2
        coloured.append((yellow[:, :half].sum(), yellow[:, half:].sum()))
        assert (pixels.max(-1) > 0.2).sum() > 5000
    assert sum(coloured[0]) > 500
    left, right = coloured[1]
    assert left > 300
    assert 0.5 < left / right < 2  # the same mask on both sides


def test_a_moving_picture_shows_cases_turned_alike(cohort: list[Path], tmp_path: Path) -> None:
    """However the axes of a file run, the walk is the same; cases of two spacings are refused."""
    shown = entries(cohort)
    first = moving_picture(tmp_path / "a.webp", shown, "slices").read_bytes()
    turned = np.diag([2.0, 2.0, 2.0, 1.0])[[2, 0, 1, 3]]
    for file in shown[1].files:
        voxels, _ = nifti.read(file)
        nifti.write(file, voxels.transpose(1, 2, 0).astype(np.int16), turned)
    assert moving_picture(tmp_path / "b.webp", entries(cohort), "slices").read_bytes() == first
    nifti.write(shown[1].files[0], np.arange(8**3, dtype=np.int16).reshape(8, 8, 8), np.diag([1.0, 2.0, 2.0, 1.0]))
    with pytest.raises(DataError, match="show cases of one spacing together"):
        moving_picture(tmp_path / "c.webp", entries(cohort), "slices")
