"""The command: bad input is one clear line and a non-zero exit, and nothing half-written is left."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from safetensors.torch import load_file, save_file
from tiny_runs import ldm_config

import latentsynth
from latentsynth.cli import main
from latentsynth.cli.app import app
from latentsynth.config import LatentDataConfig, LdmRun, load
from latentsynth.data import nifti
from latentsynth.errors import DataError
from latentsynth.training.recipes.encode import encoded_cohort

REFERENCE = Path(__file__).parents[1] / "configs" / "reference" / "hippocampus_autoencoder.yaml"


def run(*arguments: str | Path) -> int:
    """Exit code of a command run in this process."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a failing command prints."""
    capsys.readouterr()
    assert run(*arguments) != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """A good mask for the phantom model."""
    labels = np.zeros((24, 24, 24), np.uint8)
    labels[6:18, 6:18, 6:18] = 1
    labels[10:14, 10:14, 10:14] = 3
    nifti.write(tmp_path / "masks" / "good.nii.gz", labels, np.diag([8.0, 8.0, 8.0, 1.0]))
    return tmp_path / "masks" / "good.nii.gz"


def test_check_prints_the_resolved_configuration_and_stops(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "autoencoder", REFERENCE, "train.images=8", "--check") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["train"]["images"] == 8
    assert printed["autoencoder"]["kl_weight"] == 1e-6  # a default, resolved


def test_an_unknown_key_names_itself_and_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "train", "autoencoder", REFERENCE, "train.imagse=8", "--check")
    assert "train.imagse" in line
    assert "did you mean images" in line


def test_a_missing_configuration_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "does not exist" in fails(capsys, "train", "ldm", tmp_path / "no.yaml")


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    from latentsynth.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["--debug", "train", "ldm", str(tmp_path / "no.yaml")])


def test_sampling_writes_a_cohort_and_goes_on(
    capsys: pytest.CaptureFixture[str], trained_ldm: Path, mask: Path, tmp_path: Path
) -> None:
    assert run("sample", trained_ldm, "--masks", mask, "--out", tmp_path / "out", "--per-mask", "2") == 0
    assert "2 volumes" in capsys.readouterr().out
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    assert run("sample", trained_ldm, "--masks", mask, "--out", tmp_path / "out", "--per-mask", "3") == 0
    assert "3 volumes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("label", r"holds label 7, known are 0 = background"),
        ("2D", "2 axes"),
        ("4D", "4 axes"),
        ("truncated", "not a readable NIfTI file"),
        ("empty", "is empty"),
        ("folder", "holds no NIfTI file"),
        ("missing", "does not exist"),
    ],
)
def test_bad_masks_are_one_line_and_leave_nothing(
    fault: str, expected: str, capsys: pytest.CaptureFixture[str], trained_ldm: Path, mask: Path, tmp_path: Path
) -> None:
    voxels, affine = nifti.read(mask)
    target = mask
    if fault == "label":
        nifti.write(mask, np.where(voxels == 3, 7, voxels).astype(np.uint8), affine)
    elif fault == "2D":
        nifti.write(mask, voxels[0], affine)
    elif fault == "4D":
        nifti.write(mask, np.stack([voxels, voxels], -1), affine)
    elif fault == "truncated":
        mask.write_bytes(mask.read_bytes()[:-40])
    elif fault == "empty":
        nifti.write(mask, np.zeros_like(voxels), affine)
    elif fault == "folder":
        target = tmp_path / "nothing"
        target.mkdir()
    else:
        target = tmp_path / "missing.nii.gz"
    assert expected in fails(capsys, "sample", trained_ldm, "--masks", target, "--out", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_an_unwritable_output_is_one_line(
    capsys: pytest.CaptureFixture[str], trained_ldm: Path, mask: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    line = fails(capsys, "sample", trained_ldm, "--masks", mask, "--out", tmp_path / "file" / "out")
    assert "choose a place you can write to" in line


def test_an_unknown_scheduler_and_a_refused_one(
    capsys: pytest.CaptureFixture[str], trained_ldm: Path, mask: Path, tmp_path: Path
) -> None:
    command = ("sample", trained_ldm, "--masks", mask, "--out", tmp_path / "out", "--scheduler")
    assert "choose one of ddim" in fails(capsys, *command, "eulerr")
    assert "refused: it draws fresh noise" in fails(capsys, *command, "ddpm")
    assert "takes none" in fails(capsys, *command, "ddim", "--shift", "0.5")
    assert run("sample", "--list-schedulers") == 0


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"latentsynth {latentsynth.__version__}\n"


def test_help_groups_every_command_along_the_road(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    panels = re.findall(r"^╭─ ([A-Z][\w ]+?) ─", text, flags=re.MULTILINE)
    assert panels == [
        "Options",
        "Look around",
        "Prepare scans",
        "Train",
        "Make masks and volumes",
        "Measure",
        "Study",
        "Share",
    ]


def test_encode_takes_what_errors_recommend(
    capsys: pytest.CaptureFixture[str], workplace: Path, trained_autoencoder: Path, trained_ldm: Path, tmp_path: Path
) -> None:
    """The run folder of an autoencoder, of a model on its latents, or a configuration; each encodes what it trains on."""
    context = ldm_config(workplace, "ldm-context", trained_autoencoder.name, conditioner={"context": True})
    folders = []
    for source in (trained_autoencoder, trained_ldm, context):
        assert run("encode", source) == 0
        folders.append(Path(capsys.readouterr().out.strip().removeprefix("latents: ")))
    assert folders[0] == folders[1] != folders[2]  # scans without their lesions are other latents
    kept = encoded_cohort(trained_autoencoder, LatentDataConfig(), load(LdmRun, context).conditioner).training
    assert kept.folder == folders[2]
    assert kept.missing() == []
    assert "host_mean" in kept.item(0)
    lost = kept.path(0)
    lost.unlink()
    with pytest.raises(DataError, match="latentsynth encode"):
        kept.item(0)
    assert run("encode", context) == 0
    assert lost.is_file()
    assert "does not exist" in fails(capsys, "encode", tmp_path)


@pytest.mark.parametrize("fault", ["missing tensor", "unknown key", "pickle", "foreign class", "exchanged part"])
def test_damaged_checkpoints_are_refused(
    fault: str, capsys: pytest.CaptureFixture[str], trained_ldm: Path, mask: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(trained_ldm / "checkpoint", copy)
    part = copy / "denoiser"
    weights = next(part.glob("*.safetensors"))
    config = json.loads((part / "config.json").read_text())
    if fault == "missing tensor":
        state = load_file(weights)
        state.popitem()
        save_file(state, weights)
    elif fault == "pickle":
        weights.rename(part / "pytorch_model.bin")
    elif fault == "exchanged part":
        (part / "config.json").write_text(json.dumps({**config, "prediction": "epsilon"}))
    else:
        change = {"surprise": 1} if fault == "unknown key" else {"_class_name": "os.system"}
        (part / "config.json").write_text(json.dumps({**config, **change}))
    if fault != "exchanged part":
        _bind(copy)  # so that the fault itself is met, not the fingerprint that guards it
    line = fails(capsys, "sample", copy, "--masks", mask, "--out", tmp_path / "out")
    words = {
        "missing tensor": "missing tensor",
        "unknown key": "'surprise'",
        "pickle": "a pickle",
        "foreign class": "'os.system'",
        "exchanged part": "do not fit together",
    }
    assert words[fault] in line


def _bind(folder: Path) -> None:
    """Renews the fingerprints of a checkpoint, as somebody who alters it on purpose would."""
    from latentsynth.checkpoint import checksum, part_fingerprint

    file = folder / "config.json"
    header = json.loads(file.read_text())
    header["parts"] = {name: part_fingerprint(folder / name) for name in header["parts"]}
    header["checksum"] = checksum(header)
    file.write_text(json.dumps(header))


def test_prepare_writes_nothing_when_a_case_is_bad(
    capsys: pytest.CaptureFixture[str], workplace: Path, tmp_path: Path
) -> None:
    shutil.copytree(workplace / "cohort", tmp_path / "cohort")
    victim = sorted((tmp_path / "cohort" / "imagesTr").iterdir())[0]
    victim.write_bytes(gzip.compress(b"no scan"))
    assert run("prepare", tmp_path / "cohort", "--out", tmp_path / "m.json") == 1
    assert victim.name in capsys.readouterr().out.replace("\n", "").replace(" ", "").replace("│", "")
    assert not (tmp_path / "m.json").exists()
    assert run("prepare", tmp_path / "cohort", "--out", tmp_path / "m.json", "--skip-invalid") == 0


def test_an_autoencoder_is_not_scored_on_patients_it_saw(
    capsys: pytest.CaptureFixture[str], workplace: Path, trained_autoencoder: Path, tmp_path: Path
) -> None:
    assert run("evaluate", "reconstruction", trained_autoencoder, workplace / "manifest.json", "--out", tmp_path) == 0
    assert (tmp_path / "reconstruction.csv").read_text().count("\n") == 3  # header and two validation cases
    from latentsynth.data.manifest import Manifest

    manifest = Manifest.load(workplace / "manifest.json")
    moved = manifest.with_splits({case.case_id: "val" for case in manifest.cases})
    moved.save(tmp_path / "moved.json")
    line = fails(capsys, "evaluate", "reconstruction", trained_autoencoder, tmp_path / "moved.json", "--out", tmp_path)
    assert "was trained on" in line


def test_doctor_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    out = capsys.readouterr().out
    for word in ("torch", "memory", "attention", "precision"):
        assert word in out


def test_python_dash_m_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["latentsynth", "train", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "autoencoder" in capsys.readouterr().out


def test_every_measure_of_real_cases_takes_one_split_validation_unless_told() -> None:
    """Choices are made on validation patients; a command that would fall back to the test patients spoils them unseen."""
    commands = typer.main.get_command(app).commands["evaluate"].commands  # type: ignore[attr-defined]
    for name, one in commands.items():
        if name == "readers":  # scores answers, and opens no case
            continue
        (split,) = [option for option in one.params if option.name == "split"]
        assert (split.default, split.multiple) == ("val", False), name
