"""Positive controls: what disguises do, how the copy rate answers, and broken feature spaces, which must come out as broken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from latentsynth.evaluation.features import Features
from latentsynth.evaluation.memorization.controls import Controls, control
from latentsynth.evaluation.memorization.positive_controls import (
    DISGUISES,
    MASK_DISGUISES,
    SHARES,
    make_copies,
    response,
)
from latentsynth.evaluation.memorization.reference import ReferenceDistances
from latentsynth.evaluation.memorization.spaces import FeatureSpace, WholeVolume
from latentsynth.extractors.networks import NetworkExtractor

SHAPE = (1, 10, 11, 12)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, *SHAPE)).astype(np.float32)


class Volumes(list[SimpleNamespace]):
    """Stands for a cache."""

    def volume(self, n: int) -> SimpleNamespace:
        return self[n]


def positive_controls(training: np.ndarray, count: int, cpu: Accelerator, **disguises: Any) -> dict[str, np.ndarray]:
    volumes, strangers = (
        Volumes(SimpleNamespace(image=image) for image in several) for several in (training, images(5, 9))
    )
    one, read = WholeVolume(), lambda cache, n: cache.volume(n).image
    made: Any = make_copies
    return made([one], volumes, strangers, count, disguises or DISGUISES, read, cpu)[one.name]


def features(values: np.ndarray, name: str = "x") -> Features:
    ids = tuple(f"{name}{n}" for n in range(len(values)))
    return Features(ids, ids, values.reshape(len(values), -1).astype(np.float32))


@pytest.mark.parametrize("count", [1, 3, 7, 100, 250])
def test_all_training_cases_are_copied_before_any_again(count: int, cpu: Accelerator) -> None:
    training = images(3)
    rows = positive_controls(training, count, cpu, exact=DISGUISES["exact"])["exact"]
    whose = (rows[:, None] == training.reshape(3, -1)).all(2)
    assert (whose.sum(1) == 1).all()  # every copy is one training case, to the bit
    times = whose.sum(0)
    assert times.sum() == min(count, 40)
    assert np.ptp(times) <= 1


def test_copies_are_the_same_every_time_and_of_the_same_cases_in_every_disguise(cpu: Accelerator) -> None:
    training = images(6)
    first, again = (positive_controls(training, 9, cpu) for _ in range(2))
    assert set(first) == set(DISGUISES)
    for name, rows in first.items():
        np.testing.assert_array_equal(rows, again[name])
        assert rows.min() >= -1
        assert rows.max() <= 1
        assert np.array_equal(rows, first["exact"]) == (name == "exact")


def test_disguises_do_what_they_say() -> None:
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (24, 30, 20)), indexing="ij")
    smooth = (0.8 * np.sin(2 * axes[0] + 1) * np.cos(2 * axes[1] - 0.4) * np.cos(axes[2] + 0.3))[None].astype(
        np.float32
    )
    other = np.zeros_like(smooth)

    def made(name: str, image: np.ndarray = smooth) -> np.ndarray:
        return DISGUISES[name](image, other, rng)

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b)[:, 7:-7, 8:-8, 6:-6].mean())

    for name, axis in (("mirrored left-right", 1), ("mirrored front-back", 2)):
        assert np.array_equal(np.flip(made(name), axis), smooth)
    twice = made("rotated 20 degrees", made("rotated 20 degrees", smooth)[:, ::-1])[
        :, ::-1
    ]  # mirrored, the turn goes back
    assert apart(twice, smooth) < 0.02 < apart(made("rotated 20 degrees"), smooth)
    assert apart(made("mirrored and turned by 10 degrees", made("mirrored and turned by 10 degrees")), smooth) < 0.02
    assert np.array_equal(made("moved 4 voxels")[:, 4:, :-4, 4:], smooth[:, :-4, 4:, :-4])
    inner = made("zoomed .8")[0, 12, 15, 10]
    assert inner == pytest.approx(float(smooth[0, 12, 15, 10]), abs=0.05)
    assert made("zoomed .8")[0, 8, 15, 10] == pytest.approx(float(smooth[0, 7, 15, 10]), abs=0.03)  # 4.5 off the middle
    grey = np.linspace(-1, 1, 50)
    assert np.allclose((made("gamma 2.2", grey) + 1) / 2, ((grey + 1) / 2) ** 2.2)
    assert np.array_equal(made("inverted"), -smooth)
    assert np.allclose(made("mean of two"), smooth / 2)
    assert (made("with noise") - smooth).std() == pytest.approx(0.1, rel=0.1)
    for name, share in (("half copied", 1 / 2), ("a third copied", 1 / 3)):
        edge = round(30 * share)
        part = made(name)
        assert np.array_equal(part[:, :, :edge], smooth[:, :, :edge])
        assert not part[:, :, edge:].any()
    bent = made("elastic 2 voxels")
    steepest = max(float(np.abs(np.diff(smooth, axis=axis)).max()) for axis in (1, 2, 3))
    assert 0.01 < apart(bent, smooth) < 2 * 3**0.5 * steepest
    labels = (np.random.default_rng(1).random((1, 24, 24, 24)) * 4).astype(np.uint8)
    for change in MASK_DISGUISES.values():
        assert set(np.unique(change(labels, labels, rng))) == {0, 1, 2, 3}


@pytest.mark.parametrize(("base", "copies"), [(60, 60), (40, 100), (130, 100), (3, 3)])
def test_response_to_exact_copies_rises_from_the_base_rate(base: int, copies: int) -> None:
    """At 0 % it is the rate of the samples that copies will replace; every sample is replaced once, or kept."""
    flags = np.random.default_rng(base).random(base) < 0.2
    count = min(base, copies)
    rates = np.array(response(flags, np.ones(copies, bool)))
    assert rates[0] == pytest.approx(flags[:count].mean())
    assert rates[-1] == 1
    assert (np.diff(rates) >= 0).all()
    replaced = np.ceil(np.array(SHARES) * count) / count
    assert (rates >= replaced - 1e-12).all()
    assert (rates <= rates[0] + replaced + 1e-12).all()
    blind = np.array(response(flags, np.zeros(copies, bool)))
    assert (np.diff(blind) <= 0).all()
    np.testing.assert_allclose(rates - blind, replaced)  # the same samples are replaced, whatever the copies


def controls(calibration: np.ndarray, unseen: np.ndarray, train: np.ndarray, copies: dict[str, np.ndarray]) -> Controls:
    reference = ReferenceDistances(FeatureSpace(WholeVolume()), features(train), features(calibration), 0.05)
    base = reference.measure(features(images(40, 4).reshape(40, -1)[:, : train.shape[1]]))
    return control(reference, reference.measure(features(unseen)), base, "samples", copies)


def test_a_sound_space_is_trusted(cpu: Accelerator) -> None:
    train, calibration, unseen = (images(40, seed).reshape(40, -1) for seed in (1, 2, 3))
    copies = positive_controls(images(40, 1), 40, cpu)
    found = controls(calibration, unseen, train, copies)
    assert found.valid
    assert found.reasons == []
    assert found.found["exact"] == 1
    assert found.responses["exact"][0] == pytest.approx(
        found.responses["mirrored left-right"][0]
    )  # the same base in every row
    assert found.found["mirrored left-right"] < 0.5
    assert "finds copies exact" in found.sight
    assert "is blind to copies mirrored left-right" in found.sight
    row = next(row for row in found.table().rows if row[0] == "exact")
    assert row[1:] == (1.0, *found.responses["exact"], "yes")


def test_a_doubtful_space_is_not_trusted_however_well_it_does(cpu: Accelerator) -> None:
    train, calibration, unseen = (features(images(30, seed)) for seed in (1, 2, 3))
    reference = ReferenceDistances(FeatureSpace(WholeVolume(), doubt="of no use here"), train, calibration, 0.05)
    measured = reference.measure(unseen)
    found = control(reference, measured, measured, "samples", {"exact": train.values})
    assert (found.reasons, found.valid) == ([], False)


@pytest.mark.parametrize("broken", ["constant", "random"])
def test_spaces_that_see_nothing_are_not_trusted(broken: str) -> None:
    """Extractors that return the same for every volume, or something else every time."""
    rng = np.random.default_rng(0)

    def network(image: torch.Tensor) -> torch.Tensor:
        rows = np.ones((len(image), 8)) if broken == "constant" else rng.normal(size=(len(image), 8))
        return torch.from_numpy(rows)

    one = NetworkExtractor(broken, broken, network)
    sets = [one.features(torch.from_numpy(images(40, seed))).numpy() for seed in (1, 2, 3)]
    copies = {"exact": one.features(torch.from_numpy(images(40, 1))).numpy()}
    found = controls(sets[1], sets[2], sets[0], copies)
    assert not found.valid
    assert any("of exact copies are found" in reason for reason in found.reasons)


def test_biased_calibration_fails_the_control() -> None:
    """Calibration patients far from the training set make every unseen patient look like a copy."""
    train, calibration, unseen = (images(40, seed).reshape(40, -1)[:, :20] for seed in (1, 2, 3))
    fair = controls(calibration, unseen, train, {"exact": train})
    biased = controls(calibration + 4, unseen, train, {"exact": train})
    assert fair.valid
    assert not biased.valid
    assert biased.found["exact"] == 1
    (reason,) = biased.reasons
    assert reason.startswith("100% of unseen control patients are flagged, expected 0% to")
