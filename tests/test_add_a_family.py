"""A family of generators is added in four places (docs/contributing.md). Here a toy one is, and trains for two steps."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field
from tiny_runs import GRID, SCHEDULE
from torch import nn

import latentsynth
from latentsynth.config import GanRun, MaskRun, Pix2PixConfig, Strict, build
from latentsynth.config.generators import Painter, Published
from latentsynth.errors import ConfigError
from latentsynth.gans import Generator, Painted, builds
from latentsynth.gans.base import Inputs
from latentsynth.gans.build import networks_of, settings_of
from latentsynth.pretrained import register_to_config
from latentsynth.strict import Positive, members
from latentsynth.synthesizers import GAN, load_synthesizer
from latentsynth.training.recipes.gan import train_gan
from latentsynth.training.run import read_metrics
from latentsynth.types import Condition


class ToyConfig(Painter):
    """Place 1, config/generators.py: the settings, what is true of it, and what its authors set."""

    published: ClassVar[Published] = {
        "discriminator": {"kind": "patch", "channels": 4, "layers": 1},
        "game": {"loss": "least_squares", "l1": 2.0},
    }
    dims = (3,)

    kind: Literal["toy"] = "toy"
    width: Positive = 4


class ToyRun(GanRun):
    """Places 1 and 2: the union and its re-export, which a test cannot write into; so it brings a union of its own."""

    generator: Annotated[ToyConfig | Pix2PixConfig, Field(discriminator="kind")]  # type: ignore[assignment]


@builds(ToyConfig)
class ToyGenerator(Generator):
    """Place 3, gans/toy.py: two convolutions. Place 4, gans/__init__.py, imports it; here it is imported already."""

    truncates = True

    @register_to_config
    def __init__(self, shape: Sequence[int], out_channels: int, labels: int, width: int = 4):
        super().__init__()
        self.shape, self.labels = tuple(shape), labels
        self.first = nn.Conv3d(labels + 1, width, 3, padding=1)
        self.last = nn.Conv3d(width, out_channels, 3, padding=1)

    def forward(self, inputs: Inputs) -> Painted:
        noise = inputs.draws.normal(1, *self.shape) * inputs.truncation
        mask = noise.new_zeros(len(noise), self.labels, *self.shape) if inputs.mask is None else inputs.mask
        return Painted(self.last(self.first(torch.cat([mask, noise], 1)).relu()).tanh())


def values(workplace: Path, **generator: Any) -> dict[str, Any]:
    """A run of two steps."""
    data = {"manifest": str(workplace / "manifest.json"), "grid": GRID, "framing": {"lesion_labels": [3]}}
    train = {**SCHEDULE, "images": 8, "validate_every_images": 8, "sample_every_images": 8}
    return {
        "run": str(workplace / "toy"),
        "data": {**data, "cache": str(workplace / "cache")},
        "generator": {"kind": "toy", **generator},
        "train": train,
    }


def test_its_settings_are_read_and_its_mistakes_are_named() -> None:
    run = build(ToyRun, values(Path("w"), width=3))
    assert run.generator == ToyConfig(width=3)
    assert (run.game.loss, run.game.l1, run.discriminator.kind) == ("least_squares", 2.0, "patch")
    with pytest.raises(ConfigError, match=r"unknown key generator\.widht, did you mean width\?"):
        build(ToyRun, values(Path("w"), widht=3))
    with pytest.raises(ConfigError, match="a toy works on volumes"):
        build(ToyRun, {**values(Path("w")), "spatial_dims": 2})
    with pytest.raises(ConfigError, match=r"game\.path_length needs a generator with styles per layer"):
        build(ToyRun, {**values(Path("w")), "game": {"path_length": 1}})


def test_it_trains_samples_and_comes_back_from_its_checkpoint(workplace: Path) -> None:
    run = build(ToyRun, values(workplace, width=3))
    scores = train_gan(run)
    assert scores["l1"] > 0
    assert [line["images_seen"] for line in read_metrics(run.run) if "generator/l1" in line] == [4, 8]
    model = load_synthesizer(run.run)
    assert isinstance(model, GAN)
    assert isinstance(model.generator, ToyGenerator)
    assert model.generator.config["width"] == 3
    made = model.generate(Condition(torch.zeros(2, 4, 24, 24, 24)), [1, 2], truncation=0.5).image
    assert made.shape == (2, 1, 24, 24, 24)
    assert not torch.equal(made[0], made[1])


_OF_NO_NETWORK = {"kind", "form", "coding", "network", "lr"}
UNIONS = [(GanRun, "generator"), (GanRun, "discriminator")]
SECTIONS = [section for run, name in UNIONS for section in members(run, name).values()]


@pytest.mark.parametrize("section", [s for s in SECTIONS if networks_of(s)], ids=lambda section: section.__name__)
def test_every_setting_reaches_a_network_and_both_agree(section: type[Strict]) -> None:
    networks = networks_of(section)
    known = set().union(*(settings_of(network) for network in networks))
    assert set(section.model_fields) - _OF_NO_NETWORK <= known
    for network in networks:
        if issubclass(network, Generator):
            assert section.truncates == network.truncates  # type: ignore[attr-defined]


def test_only_a_cyclegan_is_more_than_one_network() -> None:
    assert [section.__name__ for section in SECTIONS if not networks_of(section)] == ["CycleGANConfig"]


def compared(path: Path) -> set[str]:
    """Words that a file compares something with."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    places = [node for node in ast.walk(tree) if isinstance(node, ast.Compare | ast.match_case)]
    words = [
        inner for place in places for inner in ast.walk(place if isinstance(place, ast.Compare) else place.pattern)
    ]
    return {word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)}


def test_nobody_asks_for_a_family_by_name(tmp_path: Path) -> None:
    names = {*members(GanRun, "generator"), *members(MaskRun, "generator")}
    package = Path(latentsynth.__file__).parent
    asking = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if compared(path) & names}
    assert asking == set()
    (tmp_path / "bad.py").write_text("if kind in ('spade', other):\n    pass\n")
    assert compared(tmp_path / "bad.py") & names
