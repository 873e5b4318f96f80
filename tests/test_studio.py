"""The studio makes what the Python call makes, one request after the other, and takes nothing from anybody else."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from helpers import tiny_model
from scipy import ndimage

from latentsynth import LatentDiffusion
from latentsynth.conditioning import ContextConditioner
from latentsynth.data import nifti
from latentsynth.data.exchange.requests import Request
from latentsynth.errors import DataError
from latentsynth.strict import build
from latentsynth.studio.server import Studio, _Drawn, _Wanted
from latentsynth.studio.shapes import Ellipsoid, draw, empty_affine
from latentsynth.synthesis import synthesize
from latentsynth.training.recipes.ldm import widen
from latentsynth.types import Case, Grid, Labels, Window

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LABELS = Labels((0, 2, 5), ("background", "core", "rim"))
GRID = Grid((32, 40, 24), (1.0, 1.0, 2.0), (Window("percentile", 0.5, 99.5),))


# Shapes ---------------------------------------------------------------------------------------------------------


def drawn(*shapes: Ellipsoid) -> np.ndarray:
    return draw(shapes, LABELS, GRID.shape, empty_affine(GRID))


def test_an_ellipsoid_has_its_volume_and_place() -> None:
    values = drawn(Ellipsoid(2, (3.0, -4.0, 2.0), (8.0, 10.0, 12.0)))
    voxel_mm3 = 2.0
    assert (values == 2).sum() * voxel_mm3 == pytest.approx(4 / 3 * np.pi * 8 * 10 * 12, rel=0.02)
    centre = empty_affine(GRID)[:3] @ [*np.argwhere(values == 2).mean(0), 1]
    np.testing.assert_allclose(centre, (3, -4, 2), atol=0.1)
    assert (np.argwhere(values == 2).max(0) - np.argwhere(values == 2).min(0) + 1).tolist() == pytest.approx(
        [16, 20, 12], abs=1
    )


def test_later_shapes_lie_over_earlier_ones() -> None:
    shell, core = Ellipsoid(5, (0, 0, 0), (10, 10, 10)), Ellipsoid(2, (0, 0, 0), (5, 5, 5))
    values = drawn(shell, core)
    assert values[16, 20, 12] == 2
    assert set(np.unique(values)) == {0, 2, 5}
    assert set(np.unique(drawn(core, shell))) == {0, 5}


def test_roughness_is_its_seeds_and_keeps_the_size() -> None:
    plain = drawn(Ellipsoid(2, (0, 0, 0), (10, 10, 10))) > 0
    rough = [drawn(Ellipsoid(2, (0, 0, 0), (10, 10, 10), 0.15, seed)) > 0 for seed in (1, 1, 2)]
    assert np.array_equal(rough[0], rough[1])
    assert not np.array_equal(rough[0], rough[2])
    assert rough[0].sum() == pytest.approx(plain.sum(), rel=0.3)
    surface = lambda x: (x & ~ndimage.binary_erosion(x)).sum() / x.sum() ** (2 / 3)  # noqa: E731
    assert surface(rough[0]) > surface(plain)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (Ellipsoid(3, (0, 0, 0), (5, 5, 5)), "label 3 is none of 2 = core, 5 = rim"),
        (Ellipsoid(0, (0, 0, 0), (5, 5, 5)), "label 0 is none of"),
        (Ellipsoid(2, (0, 0, 0), (0, 5, 5)), "half axes above 0"),
        (Ellipsoid(2, (float("nan"), 0, 0), (5, 5, 5)), "finite"),
        (Ellipsoid(2, (500, 0, 0), (5, 5, 5)), "holds no voxel"),
    ],
)
def test_shapes_that_cannot_be_drawn_are_refused(shape: Ellipsoid, words: str) -> None:
    with pytest.raises(DataError, match=words):
        drawn(shape)


# The server -----------------------------------------------------------------------------------------------------


@pytest.fixture
def studio(trained_ldm: Path, tmp_path: Path, cpu: Accelerator) -> Iterator[Studio]:
    server = Studio(LatentDiffusion.from_pretrained(trained_ldm), tmp_path / "out", cpu)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def ask(studio: Studio, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    """Status and body; a body makes it a post of the page itself, unless told otherwise."""
    connection = http.client.HTTPConnection("127.0.0.1", studio.server_address[1], timeout=30)
    address = f"/{studio.token}/{path}"
    if body is None:
        connection.request("GET", address, headers=headers)
    else:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        own = {"Origin": f"http://127.0.0.1:{studio.server_address[1]}"}
        connection.request("POST", address, content, {**own, **headers})
    answer = connection.getresponse()
    return answer.status, answer.read()


def told(answer: tuple[int, bytes], status: int = 200) -> dict[str, Any]:
    assert answer[0] == status, answer
    return json.loads(answer[1])  # type: ignore[no-any-return]


def shape_of(studio: Studio, radius: float = 0.25) -> dict[str, Any]:
    domain = studio.model.domain
    size = min(n * mm for n, mm in zip(domain.grid.shape, domain.grid.spacing_mm, strict=True))
    return {"label": domain.labels.values[1], "centre_mm": [0, 0, 0], "radii_mm": [radius * size] * 3, "roughness": 0.1}


def finished(studio: Studio, number: int) -> dict[str, Any]:
    for _ in range(600):
        job = told(ask(studio, "studio.json"))["jobs"][number - 1]
        if job["state"] not in ("queued", "running"):
            return job  # type: ignore[no-any-return]
        time.sleep(0.1)
    raise AssertionError("never finished")


def test_what_is_drawn_is_painted_as_the_python_call_paints_it(
    studio: Studio, trained_ldm: Path, tmp_path: Path, cpu: Accelerator
) -> None:
    mask = told(ask(studio, "masks/drawn", {"shapes": [shape_of(studio)]}))
    assert sum(mask["ml"].values()) > 0
    job = told(ask(studio, "jobs", {"mask": mask["mask"], "seed": 7, "count": 2, "steps": 3, "guidance": 2.0}))
    job = finished(studio, job["job"])
    assert (job["state"], [one["seed"] for one in job["volumes"]]) == ("done", [7, 8])
    assert job["calls"] >= 3 * 2
    (file,) = (tmp_path / "out" / "masks").glob("*.nii.gz")
    again = synthesize(
        LatentDiffusion.from_pretrained(trained_ldm), [Request("again", file)], tmp_path / "again", cpu, 2, 7, steps=3, guidance=2.0
    )  # fmt: skip
    for one, case in zip(job["volumes"], sorted(again.cases, key=lambda case: case.case_id), strict=True):
        status, body = ask(studio, one["images"][0])
        assert status == 200
        (tmp_path / "got.nii.gz").write_bytes(body)
        np.testing.assert_array_equal(nifti.read(tmp_path / "got.nii.gz")[0], nifti.read(case.images[0])[0])
    assert (tmp_path / "out" / job["folder"] / "manifest.json").is_file()  # a cohort like any other


def test_a_file_is_taken_as_it_is_and_a_bad_one_refused(studio: Studio, tmp_path: Path) -> None:
    value = studio.model.domain.labels.values[1]
    labels = np.zeros(studio.model.domain.grid.shape, np.int16)
    labels[2:6, 2:6, 2:6] = value
    nifti.write(tmp_path / "mask.nii.gz", labels, np.eye(4))
    mask = told(ask(studio, "masks/loaded", (tmp_path / "mask.nii.gz").read_bytes()))
    _, body = ask(studio, mask["volume"])
    (tmp_path / "back.nii.gz").write_bytes(body)
    np.testing.assert_array_equal(nifti.read_labels(tmp_path / "back.nii.gz")[0], labels)
    nifti.write(tmp_path / "mask.nii.gz", labels + 90 * (labels > 0), np.eye(4))
    assert "holds label" in told(ask(studio, "masks/loaded", (tmp_path / "mask.nii.gz").read_bytes()), 400)["error"]
    assert told(ask(studio, "masks/loaded", b"no volume"), 400)["error"]
    assert {file.name for file in (tmp_path / "out" / "masks").iterdir()} == {"mask0001.nii.gz", "mask0001.json"}


def test_requests_wait_for_each_other_and_can_be_cancelled(studio: Studio) -> None:
    mask = told(ask(studio, "masks/drawn", {"shapes": [shape_of(studio)]}))["mask"]
    release, calls = threading.Event(), []

    def held(module: Any, given: Any) -> None:
        calls.append(len(calls))
        release.wait(30)

    watch = studio.model.denoiser.register_forward_pre_hook(held)
    first, second, third = (
        told(ask(studio, "jobs", {"mask": mask, "seed": n, "count": 2, "steps": 2}))["job"] for n in range(3)
    )
    while not calls:
        time.sleep(0.01)
    states = [job["state"] for job in told(ask(studio, "studio.json"))["jobs"]]
    assert states == ["running", "queued", "queued"]
    for number in (first, third):
        ask(studio, f"jobs/{number}/cancel", {})
    release.set()
    watch.remove()
    assert finished(studio, second)["state"] == "done"
    jobs = told(ask(studio, "studio.json"))["jobs"]
    assert [job["state"] for job in jobs] == ["cancelled", "done", "cancelled"]
    assert jobs[2]["calls"] == 0
    assert jobs[0]["done"] < 2


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("jobs", {"mask": 0}, "mask 0 does not exist"),
        ("jobs", {"mask": 0, "nonsense": 1}, "nonsense"),
        ("jobs", b"{", "no JSON"),
        ("jobs", [], "no object"),
        ("masks/drawn", {"shapes": []}, "draw 1 to"),
        ("masks/new", {"seed": 0}, "no model of masks"),
        ("jobs/5/cancel", {}, "job 5 does not exist"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(studio: Studio, path: str, body: Any, words: str) -> None:
    assert words in told(ask(studio, path, body), 400)["error"]


def test_settings_that_cannot_be_are_refused_before_anything_is_made(studio: Studio, tmp_path: Path) -> None:
    mask = told(ask(studio, "masks/drawn", {"shapes": [shape_of(studio)]}))["mask"]
    for wrong in ({"steps": 0}, {"count": 0}, {"count": 1000}, {"seed": -1}, {"host": 0}):
        told(ask(studio, "jobs", {"mask": mask, **wrong}), 400)
    assert told(ask(studio, "studio.json"))["jobs"] == []
    assert [place.name for place in (tmp_path / "out").iterdir()] == ["masks"]


def test_nobody_but_the_page_posts_and_nothing_else_is_given_out(studio: Studio) -> None:
    shapes = {"shapes": [shape_of(studio)]}
    assert ask(studio, "masks/drawn", shapes, Origin="http://evil.example")[0] == 403
    assert ask(studio, "masks/drawn", shapes, Host="evil.example")[0] == 403
    connection = http.client.HTTPConnection("127.0.0.1", studio.server_address[1], timeout=10)
    connection.request("POST", f"/{studio.token}/masks/drawn", json.dumps(shapes))  # as a form of another page might
    assert connection.getresponse().status == 403
    for path in ("masks/0/volume.nii.gz", "made/1/0/0/volume.nii.gz", "masks/../../etc/passwd", "jobs", "studio.py"):
        assert ask(studio, path)[0] == 404
    assert told(ask(studio, "studio.json"))["jobs"] == []


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_the_page_draws_and_generates_in_a_browser(studio: Studio, tmp_path: Path) -> None:
    assert BROWSER is not None
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", f"--user-data-dir={tmp_path / 'browser'}",
        "--virtual-time-budget=60000", "--dump-dom", f"{studio.address}?draw=1&generate=1",
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    assert finished(studio, 1)["state"] == "done"
    assert "0001: " in shown


@pytest.fixture
def host(tmp_path: Path) -> Case:
    """A noisy scan on a grid of its own."""
    affine = np.diag([3.0, 2.5, 2.0, 1.0])
    affine[:3, 3] = (10, -20, 5)
    voxels = np.random.default_rng(0).uniform(-90, 250, (20, 24, 30)).astype(np.float32)
    nifti.write(tmp_path / "host.nii.gz", voxels, affine)
    return Case("host", "host", (tmp_path / "host.nii.gz",), None)


def test_a_lesion_is_drawn_on_the_grid_of_a_scan_and_painted_into_it(
    host: Case, tmp_path: Path, cpu: Accelerator
) -> None:
    plain = tiny_model()
    conditioner = ContextConditioner(3, plain.autoencoder.factors, 1, plain.autoencoder.latent_channels, 2.0).eval()
    widen(plain.denoiser, conditioner.channels)
    model = LatentDiffusion(plain.domain, plain.autoencoder, conditioner, plain.denoiser, plain.sampling)
    server = Studio(model, tmp_path / "out", cpu, hosts=[host])
    try:
        lesion = {"label": model.domain.labels.values[1], "centre_mm": [2, -3, 1], "radii_mm": [7, 8, 6]}
        mask = server.drawn(build(_Drawn, {"shapes": [lesion], "host": 0}))
        alone = server.drawn(build(_Drawn, {"shapes": [{**lesion, "centre_mm": [0, 0, 0]}]}))
        with pytest.raises(DataError, match="does not lie on the grid"):
            server.wanted(build(_Wanted, {"mask": alone["mask"], "host": 0}))
        server.wanted(build(_Wanted, {"mask": mask["mask"], "host": 0, "steps": 2}))
        (job,) = server.bench.jobs
        while job.state in ("queued", "running"):
            time.sleep(0.05)
        assert (job.state, job.error) == ("done", "")
        values, affine = nifti.read(job.volumes[0][0])
        scan, own = nifti.read(host.images[0])
        np.testing.assert_allclose(affine, own, atol=1e-4)
        assert np.array_equal(values[0], scan[0])  # far from the lesion the scan is its own
        assert not np.array_equal(values, scan)
    finally:
        server.server_close()


def test_scans_are_refused_by_a_model_that_paints_into_none(
    trained_ldm: Path, host: Case, tmp_path: Path, cpu: Accelerator
) -> None:
    with pytest.raises(DataError, match="cannot paint into a scan"):
        Studio(LatentDiffusion.from_pretrained(trained_ldm), tmp_path / "out", cpu, hosts=[host])


def test_a_fault_fails_its_request_alone(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = told(ask(studio, "masks/drawn", {"shapes": [shape_of(studio)]}))["mask"]

    def broken(*given: Any, **named: Any) -> None:
        raise ValueError("out of paint")

    with monkeypatch.context() as patched:
        patched.setattr("latentsynth.studio.jobs.synthesize", broken)
        first = finished(studio, told(ask(studio, "jobs", {"mask": mask, "steps": 2}))["job"])
    assert (first["state"], first["error"]) == ("failed", "out of paint")
    assert finished(studio, told(ask(studio, "jobs", {"mask": mask, "steps": 2}))["job"])["state"] == "done"
