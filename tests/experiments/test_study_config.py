"""The study's configuration: nothing that cannot be run gets as far as a training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import run

from latentsynth.config import GanRun, LdmRun, MemorizationStudy, load
from latentsynth.errors import ConfigError
from latentsynth.experiments.runs import RunPlace, detector_run, generator_run

ROOT = Path(__file__).parents[2]
DEBUG = ROOT / "configs" / "debug" / "memorization.yaml"
NOTHING = Path("x")


def study(*overrides: str) -> MemorizationStudy:
    return load(MemorizationStudy, DEBUG, overrides)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages=[1.0, 0.5]", "stages (1.0, 0.5) must ascend"),
        ("stages=[0.5, 0.5]", "stages (0.5, 0.5) must ascend"),
        ("stages=[0, 1]", "greater than 0 (found 0)"),
        ("stages=[0.5, 1.5]", "less than or equal to 1 (found 1.5)"),
        ("stages=[]", "stages: Tuple should have at least 1 item"),
        ("sizes=[0, all]", "greater than or equal to 1 (found 0)"),
        ("sizes=[some]", "'all' (found 'some')"),
        ("sizes=[]", "sizes: Tuple should have at least 1 item"),
        ("seeds=[]", "seeds: Tuple should have at least 1 item"),
        ("minutes=0", "minutes: Input should be greater than 0 (found 0)"),
        ("roles.pool=0.5", "pool, outside and heldout add up to 1.1, not 1"),
        ("roles.pool=0", "roles.pool: Input should be greater than 0 (found 0)"),
        ("level=1", "level: Input should be less than 1 (found 1)"),
        ("models={}", "models: Dictionary should have at least 1 item"),
        ("claims=[[diffusion, vae]]", "['diffusion', 'vae'] are not two of the models diffusion, latent_gan"),
        ("claims=[[diffusion, diffusion]]", "are not two of the models"),
        ("claims=[[diffusion, latent_gan], [latent_gan, diffusion]]", "claims holds ['diffusion', 'latent_gan'] twice"),
        ("sizes=[4, 4]", "sizes holds 4 twice: list each once"),
        ("seeds=[0, 0]", "seeds holds 0 twice: list each once"),
        ("seeds=[-1]", "greater than or equal to 0 (found -1)"),
        ("spaces=[voxls]", "choose one or more of voxels, ssim, registered, parts, contrastive"),
        ("spaces=[]", "choose one or more of voxels"),
        ("spaces=[voxels, voxels]", "spaces holds voxels twice"),
        ("models.diffusion.run=elsewhere", "models.diffusion.run is decided by the study: remove it"),
        ("models.diffusion.seed=5", "models.diffusion.seed is decided by the study"),
        ("models.diffusion.autoencoder=other", "models.diffusion.autoencoder is decided by the study"),
        ("models.diffusion.data.manifest=other.json", "models.diffusion.data.manifest is decided by the study"),
        ("autoencoder.data.manifest=other.json", "autoencoder.data is decided by the study"),
        ("detector.run=elsewhere", "detector.run is decided by the study"),
        ("models.x={generator: latent_gan}", "models.x.generator is 'latent_gan', expected keys and values"),
        ("models.x={generator: {kind: stylegan2, form: joint}}", "form joint makes masks of its own"),
        ("models.pilot-x={}", "'pilot-x' names cells"),
        ("claim=[]", "unknown key claim, did you mean claims?"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        study(override)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("models.diffusion.denoiser.chanels=[8]", "diffusion: unknown key denoiser.chanels, did you mean channels?"),
        ("models.diffusion.train.lr=-1", "diffusion: train.lr: Input should be greater than 0 (found -1)"),
        ("models.latent_gan.generator.stile=8", "latent_gan: unknown key generator.stile"),
        ("models.latent_gan.generator.kind=latent_gun", "latent_gun"),
        ("models.pix={generator: {kind: pix2pix, chanels: 4}}", "pix: unknown key generator.chanels, did you mean channels?"),
        ("autoencoder.train.imagse=8", "autoencoder: unknown key train.imagse, did you mean images?"),
        ("detector.views.rotate=8", "detector: unknown key views.rotate"),
        ("augment.copy=3", "unknown key data.augment.copy, did you mean copies?"),
        ("models.diffusion.data.augmnt={}", "unknown key data.augmnt, did you mean augment?"),
    ],
)  # fmt: skip
def test_a_wrong_key_inside_a_model_shows_before_anything_is_trained(
    override: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    words_of_command = ("experiment", "memorization", DEBUG, f"folder={folder}", "manifest=/nowhere.json", override)
    assert run(monkeypatch, *words_of_command) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert words in line
    assert not folder.exists()


def test_runs_are_the_models_on_the_studys_data() -> None:
    found = study("models.pix={generator: {kind: pix2pix}}", "augment.copies=2", "cache=here")
    diffusion, latent, pixels = (
        generator_run(found, name, RunPlace(Path("run"), Path("m"), 7)) for name in found.models
    )
    assert isinstance(diffusion, LdmRun)
    assert isinstance(latent, GanRun)
    assert isinstance(pixels, GanRun)
    for one in (diffusion, latent, pixels):
        assert (one.run, one.seed) == (Path("run"), 7)
        assert one.data is not None
        assert one.data.augment is not None
        assert (one.data.cache, one.data.augment.copies) == (Path("here"), 2)
    assert diffusion.autoencoder == latent.autoencoder == found.folder / "autoencoder"
    assert pixels.data is not None
    assert pixels.data.grid == found.grid
    assert detector_run(found, NOTHING, NOTHING).data.augment.copies != 2  # it has views of its own
