"""A utility study that drops copies: the planted ones go, whatever else was painted stays, and the page says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from reported_set import Reported, _sample, _set

from latentsynth.config import UtilityStudy, load
from latentsynth.data.manifest import Manifest
from latentsynth.errors import ConfigError
from latentsynth.experiments.utility.study import Utility
from latentsynth.experiments.utility.summary import _copies

DEBUG = Path(__file__).parents[2] / "configs" / "debug" / "utility.yaml"
ARMS = "arms={real: {}, clean: {model: diffusion, dose: 1, drop: {copies: true}}}"


def study(reported: Reported, folder: Path, *changes: str) -> Utility:
    return Utility(load(UtilityStudy, DEBUG, [
        f"folder={folder}", f"manifest={reported.real}", f"cache={reported.folder / 'cache'}", "sizes=[all]", "seeds=[0]",
        "roles={pool: 0.3, outside: 0.6, heldout: 0.1}", "copy_level=0.1", "autoencoder_patients=subset", ARMS, *changes,
    ]))  # fmt: skip


def test_planted_copies_are_dropped_before_anybody_trains_on_them(reported: Reported, tmp_path: Path) -> None:
    planned = study(reported, tmp_path / "study")
    job = next(job for job in planned.jobs if job.arm == "clean")
    subset = planned.subset(job)
    train = [case for case in Manifest.load(subset.manifest).cases if case.split == "train"]
    strangers = Manifest.load(reported.folder / "other.json").cases
    cell = planned.folder / "cells" / "paint-diffusion-nall-s0"
    copies = [_sample(cell / "samples", f"copy-{n}-s0000", train[n], strangers[0]) for n in range(3)]
    fresh = [_sample(cell / "samples", f"fresh-{n}-s0000", case, case) for n, case in enumerate(strangers)]
    _set(cell / "samples", Manifest.load(reported.real), [*copies, *fresh], train)

    names = [one.name for one in planned.cells()]
    name = "uncopied-voxels-diffusion-nall-s0"
    assert next(one.needs for one in planned.cells() if one.name == job.name) == (name,)
    assert names.index("paint-diffusion-nall-s0") < names.index(name) < names.index(job.name)
    folder = planned.folder / "cells" / name
    next(one for one in planned.cells() if one.name == name).work(folder)
    kept = Manifest.load(folder / "kept.json")
    assert {case.case_id for case in kept.cases} == {case.case_id for case in fresh}
    chosen = Manifest.load(planned._synthetic(job).choose(tmp_path / "cell"))
    assert len(chosen.cases) == min(len(train), len(fresh))
    assert {case.case_id for case in chosen.cases} <= {case.case_id for case in fresh}
    table = _copies({"voxels-diffusion-nall-s0": folder})
    assert table is not None
    assert table.columns[0] == "volumes"
    assert [(row[0], row[-1]) for row in table.rows] == [("voxels-diffusion-nall-s0", 3)]


def test_too_few_outside_patients_are_said_before_anything_is_trained(reported: Reported, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"0\.05") as caught:
        study(reported, tmp_path / "study", "copy_level=0.05")
    assert isinstance(caught.value, ValueError)
    with pytest.raises(ConfigError, match="needs patients outside"):
        study(reported, tmp_path / "study", "roles={pool: 0.7, outside: 0, heldout: 0.3}")
    with pytest.raises(ConfigError, match=r"arm clean: drop\.copies searches the subset's patients"):
        study(reported, tmp_path / "study", "autoencoder_patients=outside")
    assert not (tmp_path / "study").exists()
