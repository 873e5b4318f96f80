"""Features that survive sharding, the grid that nobody chose, and extractors by their words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from latentsynth import checkpoint
from latentsynth.errors import CheckpointError, DataError
from latentsynth.evaluation import features
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.features import (
    Features,
    comparison_space,
    extract,
    extract_volumes,
    load_extractors,
    volumes,
)
from latentsynth.extractors.networks import NetworkExtractor, RandomNetwork


@pytest.fixture
def real(workplace: Path) -> Cohort:
    return Cohort.load("real", workplace / "manifest.json")


def test_rows_keep_their_ids() -> None:
    whole = Features(tuple("abcd"), tuple("ppqr"), np.arange(8.0).reshape(4, 2))
    for rows in ([2, 0], np.array([2, 0])):
        part = whole[rows]
        assert (part.ids, part.patients) == (("c", "a"), ("q", "p"))
        np.testing.assert_array_equal(part.values, [[4, 5], [0, 1]])


def test_every_case_has_its_own_features(tmp_path: Path, real: Cohort, cpu: Accelerator) -> None:
    grid, framing = comparison_space(None, real.manifest)
    cache = volumes(real, grid, framing, real.manifest.labels, tmp_path / "cache", cpu)
    mean = NetworkExtractor("mean", "f", lambda image: image.flatten(1).mean(1, keepdim=True))
    found = extract([RandomNetwork(1), mean], real, cache, cpu)
    assert set(found) == {"random:0", "mean"}
    assert found["mean"].ids == tuple(case.case_id for case in real.cases)
    assert found["mean"].patients == tuple(real.patients)
    for n in range(len(real.cases)):
        image = cache.volume(n).image
        assert found["mean"].values[n, 0] == pytest.approx(image.mean(), abs=1e-6)
        expected = RandomNetwork(1).features(torch.from_numpy(image)[None])[0]
        np.testing.assert_allclose(found["random:0"].values[n], expected, rtol=1e-5)
    assert found["random:0"].values.dtype == np.float32
    assert len(np.unique(found["mean"].values)) == len(real.cases)


def test_processes_do_their_share_alone(
    tmp_path: Path, real: Cohort, cpu: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches of two processes, each asked for its own part, are those of one."""
    grid, framing = comparison_space(None, real.manifest)
    cache = volumes(real, grid, framing, real.manifest.labels, tmp_path / "cache", cpu)
    monkeypatch.setattr(features, "_BATCH", 2)

    def rows(accelerator: Any) -> np.ndarray:
        image = lambda n: torch.from_numpy(cache.volume(n).image)  # noqa: E731
        return extract_volumes([RandomNetwork(1)], image, len(real.cases), "features", accelerator)["random:0"]

    whole = rows(cpu)
    batches = [(n, [whole[2 * n : 2 * n + 2]]) for n in range(len(whole) // 2)]
    for rank in range(2):
        asked: list[int] = []

        def gather(found: list[Any], asked: list[int] = asked, others: list[Any] = batches[1 - rank :: 2]) -> list[Any]:
            asked.extend(row[0] for row in found)
            return [*others, *found]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("latentsynth.parallel.gather_object", gather)
            part = SimpleNamespace(process_index=rank, num_processes=2, is_main_process=False)
            np.testing.assert_array_equal(rows(part), whole)
        assert asked == list(range(rank, len(batches), 2))


def test_features_are_made_once(tmp_path: Path, real: Cohort, cpu: Accelerator) -> None:
    """A second measurement reads what the first one left; other weights do not."""
    grid, framing = comparison_space(None, real.manifest)
    cache = volumes(real, grid, framing, real.manifest.labels, tmp_path / "cache", cpu)
    seen: list[int] = []

    def network(image: torch.Tensor) -> torch.Tensor:
        seen.append(len(image))
        return image.flatten(1).mean(1, keepdim=True)

    first = extract([NetworkExtractor("mean", "f", network)], real, cache, cpu)["mean"]
    again = extract([NetworkExtractor("mean", "f", network)], real, cache, cpu)["mean"]
    assert sum(seen) == len(real.cases)
    np.testing.assert_array_equal(first.values, again.values)
    assert (first.ids, first.patients) == (again.ids, again.patients)
    extract([NetworkExtractor("mean", "g", network)], real, cache, cpu)
    assert sum(seen) == 2 * len(real.cases)


def test_a_network_gives_one_row_per_image(tmp_path: Path, real: Cohort, cpu: Accelerator) -> None:
    """Else cases would be given each other's features."""
    grid, framing = comparison_space(None, real.manifest)
    cache = volumes(real, grid, framing, real.manifest.labels, tmp_path / "cache", cpu)
    with pytest.raises(DataError, match="one row for each is needed"):
        extract([NetworkExtractor("whole", "f", lambda image: image.mean().view(1, 1))], real, cache, cpu)


def test_the_grid_nobody_chose_covers_the_scans(real: Cohort) -> None:
    grid, framing = comparison_space(None, real.manifest)
    assert framing.crop == "whole"
    assert all(extent >= 24 * 8 for extent in grid.extent_mm)
    assert np.prod(grid.shape) <= 64**3
    assert min(grid.spacing_mm) >= 8  # scans are not upsampled
    (window,) = grid.windows
    assert window.kind == "fixed"  # Hounsfield units
    assert comparison_space(None, real.manifest) == (grid, framing)


def test_the_grid_of_a_checkpoint(real: Cohort, trained_autoencoder: Path) -> None:
    domain = checkpoint.read_header(trained_autoencoder / "checkpoint").domain
    assert comparison_space(trained_autoencoder, real.manifest) == (domain.grid, domain.framing)
    with pytest.raises(DataError, match="give another --like"):
        comparison_space(trained_autoencoder, replace(real.manifest, channels=("MR",)))


def test_a_contrastive_extractor_is_trained_once(
    tmp_path: Path, workplace: Path, real: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, framing = comparison_space(None, real.manifest)
    train, calls = features.train_extractor, []

    def counting(config: object) -> dict[str, float]:
        calls.append(config)
        return train(config)  # type: ignore[arg-type]

    monkeypatch.setattr(features, "train_extractor", counting)
    manifest, cache = workplace / "manifest.json", tmp_path / "cache"
    first = load_extractors(["contrastive", "random:3"], manifest, grid, framing, cache, 16)
    again = load_extractors(["contrastive"], manifest, grid, framing, cache, 16)
    assert len(calls) == 1
    assert first[0].fingerprint == again[0].fingerprint
    assert [one.name.partition(":")[0] for one in first] == ["contrastive", "random"]
    assert first[1].name == "random:3"
    (run,) = (cache / "extractors").iterdir()
    assert load_extractors([f"contrastive:{run}"], manifest, grid, framing, cache, 16)[0].name == first[0].name
    assert len(calls) == 1
    load_extractors(["contrastive"], manifest, grid, framing, cache, 32)
    assert len(calls) == 2  # another length is another extractor


def test_unknown_extractors_are_refused(tmp_path: Path, workplace: Path, real: Cohort) -> None:
    grid, framing = comparison_space(None, real.manifest)
    arguments = workplace / "manifest.json", grid, framing, tmp_path / "cache", 16
    with pytest.raises(DataError, match="unknown extractor 'inception'"):
        load_extractors(["inception"], *arguments)
    with pytest.raises(CheckpointError):
        load_extractors([f"contrastive:{tmp_path / 'no'}"], *arguments)
    assert not (tmp_path / "cache").exists()
