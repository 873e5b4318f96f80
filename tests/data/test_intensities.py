"""What a channel is measured in is decided from several facts, and its window shows the lesion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from latentsynth.data.intake.intensities import Choice, intensities, propose_window
from latentsynth.errors import DataError

SHAPE = (24, 24, 24)


def scene(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A round body, a lesion inside, noise."""
    rng = np.random.default_rng(seed)
    at = np.indices(SHAPE) - 11.5
    body = (at**2).sum(0) < 10**2
    lesion = ((at - rng.uniform(-3, 3, (3, 1, 1, 1))) ** 2).sum(0) < 3**2
    return body, lesion, rng.normal(size=SHAPE)


def ct(seed: int, tissue: float = 40, lesion: float = 90, air: float = -1000) -> np.ndarray:
    body, inside, noise = scene(seed)
    fat = ndimage.binary_erosion(body, iterations=2)
    out = np.where(inside, lesion, np.where(fat, tissue, np.where(body, -100, air))) + np.where(body, 15, 3) * noise
    return out.round().astype(np.int16)


def mr(seed: int, scale: float = 1000.0) -> np.ndarray:
    """Mean 0 over the head, stored in thousandths; air at the head's minimum."""
    body, inside, noise = scene(seed)
    out = np.where(inside, 2.5, noise) * scale
    return np.where(body, out, out[body].min()).round().astype(np.int16)


def windowed(low: float, high: float) -> Callable[[int], np.ndarray]:
    return lambda seed: (low + (high - low) * (np.clip(ct(seed), -160, 240) + 160) / 400).astype(np.float32)


def proposed(name: str, image: Callable[[int], np.ndarray], scans: int = 4) -> Choice:
    rng = np.random.default_rng(0)
    return propose_window(name, [intensities(f"c{n}", image(n), scene(n)[1], rng) for n in range(scans)])


CHANNELS: dict[str, tuple[str, Callable[[int], np.ndarray], str]] = {
    "CT by name and values": ("CT", ct, "Hounsfield units"),
    "CT by values": ("channel", ct, "Hounsfield units"),
    "CT in a padding": ("image", lambda n: np.pad(ct(n), 4, constant_values=-3024), "Hounsfield units"),
    "CT of a masked organ": ("CT_portal", lambda n: np.where(scene(n)[0], ct(n), 0), "Hounsfield units"),
    "CT without sign": ("CT", lambda n: (ct(n) + 1024).clip(0).astype(np.uint16), "Hounsfield units + 1024"),
    "CT windowed to 0..1": ("CT", windowed(0, 1), "windowed CT"),
    "CT windowed to -1..1": ("CT", windowed(-1, 1), "windowed CT"),
    "CT windowed to bytes": ("CT", lambda n: windowed(0, 255)(n).astype(np.uint8), "windowed CT"),
    "CT scaled by each scan": ("CT", lambda n: ct(n) / (n + 1) / 1000, "none"),
    "MR in thousandths by name": ("FLAIR", mr, "none"),
    "MR in thousandths without a name": ("image", mr, "none"),
    "MR with air at -1000 by name": ("t1-weighted T1w", ct, "none"),
    "MR without sign": ("image", lambda n: (mr(n, 100) + 1024).clip(0).astype(np.uint16), "none"),
    "PET": ("PET", lambda n: np.abs(mr(n)), "uptake"),
}


@pytest.mark.parametrize("channel", CHANNELS)
def test_units_are_decided_from_name_and_values_and_said(channel: str) -> None:
    name, image, units = CHANNELS[channel]
    pad = np.array(image(0).shape) - SHAPE
    lesion = np.pad(scene(0)[1], pad[0] // 2)
    rng = np.random.default_rng(0)
    choice = propose_window(name, [intensities(f"c{n}", image(n), lesion if n == 0 else None, rng) for n in range(4)])
    assert choice.units == units
    assert choice.reasons
    low, high = choice.window["low"], choice.window["high"]
    assert choice.window["kind"] == ("percentile" if units == "none" else "fixed")
    if choice.window["kind"] == "fixed":
        values = np.concatenate([image(n).ravel() for n in range(4)]).astype(float)
        assert values.min() - 100 <= low < high <= values.max() + 100  # it fits the values
        assert choice.cut is not None
        assert choice.cut < 0.2 or units == "windowed CT"


def test_scans_that_look_otherwise_are_named() -> None:
    choice = proposed("CT", lambda n: ct(n) + (1024 if n == 2 else 0))
    assert choice.units == "Hounsfield units"
    assert any("c2" in reason and "1 of 4" in reason for reason in choice.reasons)


@pytest.mark.parametrize("lesion", [-650, -900, 90, 1500])
def test_a_fixed_window_shows_the_lesion(lesion: int) -> None:
    choice = proposed("CT", lambda n: ct(n, lesion=lesion))
    low, high = choice.window["low"], choice.window["high"]
    values = np.concatenate([ct(n, lesion=lesion)[scene(n)[1]] for n in range(4)])
    assert ((values <= low) | (values >= high)).mean() < 0.05
    assert low <= -50 < 50 <= high  # and the tissue around it
    assert lesion == 90 or any("widened" in reason for reason in choice.reasons)


def test_percentiles_are_widened_for_small_bright_lesions_but_not_to_hot_voxels() -> None:
    small = [np.zeros(SHAPE, bool) for _ in range(3)]
    for mask in small:
        mask[11, 11, 10:13] = True
    rng = np.random.default_rng(0)
    scans = [np.where(scene(n)[0], 300 + 40 * scene(n)[2], 0) + 200 * mask for n, mask in enumerate(small)]
    choice = propose_window("T2", [intensities("a", s, m, rng) for s, m in zip(scans, small, strict=True)])
    assert choice.window["high"] > 99.5
    assert choice.cut is not None
    assert choice.cut < 1 / 3 + 0.01
    for scan in scans:
        scan[5, 11, 11] = 1e6
    squeezed = propose_window("T2", [intensities("a", s, m, rng) for s, m in zip(scans, small, strict=True)])
    assert squeezed.window["high"] < 100
    assert squeezed.cut is not None


def test_a_case_whose_lesion_the_window_hides_is_named() -> None:
    choice = proposed("CT", lambda n: ct(n, lesion=-800 if n == 7 else 60), 24)
    assert any("warning" in reason and "c7" in reason for reason in choice.reasons)


def test_channels_of_two_values_have_a_window_too_but_not_beside_others() -> None:
    rng = np.random.default_rng(0)
    organs = [intensities(f"c{n}", scene(n)[0].astype(np.uint8), scene(n)[1], rng) for n in range(3)]
    assert propose_window("organ", organs).window == {"kind": "fixed", "low": 0, "high": 1}
    with pytest.raises(DataError, match=r"channel organ .* c0, c1, c2"):
        propose_window("organ", [*organs, intensities("d", mr(0), None, rng)])


def test_without_annotations_nothing_is_said_of_lesions() -> None:
    rng = np.random.default_rng(0)
    for name, image in (("CT", ct), ("T1", mr)):
        assert propose_window(name, [intensities("a", image(0), None, rng)]).cut is None
