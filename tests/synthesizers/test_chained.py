"""Two models in a row: the painter gets the masks that come out, and parts that do not fit are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import Echo, tiny_domain, tiny_gan

from latentsynth.data.cache.volumes import one_hot
from latentsynth.errors import ConfigError, DataError
from latentsynth.provenance import Ledger
from latentsynth.synthesizers import Chained, Synthesizer, chained
from latentsynth.types import Condition, Domain, Framing, Generated

SEEDS = [3, 11, 2**61 + 5]


class Masks(Synthesizer):
    """Makes masks of random labels, from the seed alone."""

    makes_masks = True

    def __init__(self, domain: Domain, fingerprint: str = "masks", ledger: Ledger = Ledger()):  # noqa: B008 (frozen)
        self.domain, self.fingerprint, self.ledger = domain, fingerprint, ledger
        self.device: Any = None

    def generate(self, condition: Condition | None, seeds: Sequence[int], **settings: Any) -> Generated:
        assert condition is None
        assert not settings  # those are the painter's
        labels, shape = len(self.domain.labels), self.domain.grid.shape
        index = torch.stack(
            [torch.randint(labels, shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )
        return Generated(torch.full((len(seeds), 1, *shape), -1.0), one_hot(index, labels))

    def settings(self, **changes: Any) -> dict[str, Any]:
        return {"mask_setting": 1, **changes}

    def to(self, device: torch.device | str) -> Masks:
        self.device = device
        return self


class Painter(Echo):
    """An echo that keeps what it was asked."""

    def __init__(self, domain: Domain, fingerprint: str = "painter", ledger: Ledger = Ledger()):  # noqa: B008 (frozen)
        super().__init__(domain, fingerprint)
        self.ledger = ledger
        self.asked: list[tuple[Condition | None, list[int], dict[str, Any]]] = []
        self.device: Any = None

    def generate(self, condition: Condition | None, seeds: Sequence[int], **settings: Any) -> Generated:
        self.asked.append((condition, list(seeds), settings))
        return super().generate(condition, seeds)

    def to(self, device: torch.device | str) -> Painter:
        self.device = device
        return self


def test_the_painter_gets_exactly_the_masks_that_come_out() -> None:
    masks, painter = Masks(tiny_domain()), Painter(tiny_domain())
    made = Chained(masks, painter).generate(None, SEEDS, level=2)
    expected = masks.generate(None, SEEDS).mask
    ((condition, seeds, settings),) = painter.asked
    assert condition is not None
    assert torch.equal(condition.mask, expected)
    assert len(set(seeds) | set(SEEDS)) == 2 * len(SEEDS)  # seeds of its own, or mask and look would be coupled
    assert settings == {"level": 2}
    assert torch.equal(made.mask, expected)
    assert torch.equal(made.image, expected.argmax(1, keepdim=True).float() - 1)  # the painter's, not the masks'


def test_two_networks_in_a_row_are_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chained, "_APART", 0)
    masks, painter = tiny_gan("StyleGAN 2, joint"), tiny_gan("SPADE, vae", seed=1)
    made = Chained(masks, painter).generate(None, SEEDS, truncation=0.5)
    first = masks.generate(None, SEEDS)
    assert torch.equal(made.mask, first.mask)
    assert torch.equal(made.image, painter.generate(Condition(first.mask), SEEDS, truncation=0.5).image)
    assert float((made.image - first.image).abs().mean()) > 1e-2


def test_its_patients_are_those_of_both() -> None:
    one, two = (Ledger(frozenset({f"p{n}", "both"}), frozenset({f"v{n}"})) for n in (1, 2))
    chain = Chained(Masks(tiny_domain(), ledger=one), Painter(tiny_domain(), ledger=two))
    assert chain.ledger == Ledger(frozenset({"p1", "p2", "both"}), frozenset({"v1", "v2"}))


def test_either_part_changes_its_name() -> None:
    def name(masks: str, painter: str) -> str:
        return Chained(Masks(tiny_domain(), masks), Painter(tiny_domain(), painter)).fingerprint

    pairs = [("a", "b"), ("a", "c"), ("c", "b"), ("b", "a")]
    names = [name(*pair) for pair in pairs]
    assert len({*names, "a", "b"}) == 6
    assert name("a", "b") == names[0]


def test_domain_and_settings_are_the_painters_and_both_move() -> None:
    masks = Masks(tiny_domain())
    painter = Painter(replace(tiny_domain(), channels=("MR",), limits=((0.0, 1.0),)))
    chain = Chained(masks, painter)
    assert chain.makes_masks
    assert chain.domain == painter.domain
    assert chain.settings(level=3) == {"level": 3}
    assert chain.to("meta") is chain
    assert masks.device == painter.device == "meta"


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (tiny_domain((16, 16, 8)), "grid"),
        (tiny_domain(spacing_mm=(2.0, 2.0, 2.5)), "grid"),
        (tiny_domain(lesions=(1, 5)), "labels"),
        (tiny_domain(lesions=(1,)), "labels"),
        (tiny_domain(framing=Framing("whole")), "framing"),
    ],
    ids=["shape", "spacing", "label values", "fewer labels", "framing"],
)
def test_parts_that_do_not_fit_are_refused(other: Domain, word: str) -> None:
    Chained(Masks(tiny_domain()), Painter(tiny_domain()))
    for ours, theirs in ((tiny_domain(), other), (other, tiny_domain())):
        with pytest.raises(ConfigError, match=rf"mask model has {word} .* painter .*train both on the same"):
            Chained(Masks(ours), Painter(theirs))


def test_parts_in_each_others_place_are_refused() -> None:
    masks, painter = Masks(tiny_domain()), Painter(tiny_domain())
    with pytest.raises(ConfigError, match="the mask model makes no masks"):
        Chained(Painter(tiny_domain()), painter)
    with pytest.raises(ConfigError, match="the painting model makes its own masks"):
        Chained(masks, Masks(tiny_domain()))
    with pytest.raises(ConfigError, match="the mask model makes no masks"):
        Chained(painter, masks)
    with pytest.raises(ConfigError, match="the painting model makes its own masks"):
        Chained(masks, Chained(masks, painter))
    inner = Chained(masks, painter)  # makes masks too, so it may come first
    assert torch.equal(Chained(inner, painter).generate(None, SEEDS).mask, inner.generate(None, SEEDS).mask)


def test_a_condition_is_refused() -> None:
    painter = Painter(tiny_domain())
    chain = Chained(Masks(tiny_domain()), painter)
    with pytest.raises((DataError, ConfigError), match="makes its own masks: leave the condition None"):
        chain.generate(Condition(chain.masks.generate(None, SEEDS).mask), SEEDS)
    assert not painter.asked
