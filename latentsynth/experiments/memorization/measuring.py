"""One model at one time of its training: copies, fidelity, diversity, membership, each beside its control."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from latentsynth.config import LdmRun, MemorizationStudy, build
from latentsynth.evaluation.cohorts import Cohort, rng
from latentsynth.evaluation.features import contrastive_extractor, extract, volumes
from latentsynth.evaluation.fidelity.comparison import FLOOR, compare
from latentsynth.evaluation.inputs import halves
from latentsynth.evaluation.memorization.joint import JOINT
from latentsynth.evaluation.memorization.measures import CONTROL, CopySearch, PatientGroups, search_copies
from latentsynth.evaluation.memorization.report import write_memorization
from latentsynth.evaluation.memorization.spaces import FeatureSpace, own_space
from latentsynth.experiments.memorization.arms import HELDOUT, SAMPLES, Arm
from latentsynth.experiments.roles import Roles
from latentsynth.extractors.networks import RandomNetwork
from latentsynth.files import read_json, write_json
from latentsynth.metrics.diversity import mean_similarity, random_pairs
from latentsynth.metrics.membership import membership
from latentsynth.strict import read_yaml
from latentsynth.training.recipes.membership import denoising_losses

_PAIRS = 40  # pairs of volumes whose similarity is averaged


def measure_stage(
    config: MemorizationStudy,
    roles: Roles,
    arm: Arm,
    stage: Path,
    out: Path,
    accelerator: Accelerator,
) -> None:
    """Measures the volumes of one stage and writes ``measures.json`` beside a whole memorization report.

    Args:
        config: The study.
        roles: Its patients.
        arm: The model and its subset.
        stage: Folder with ``checkpoint``, ``samples`` and ``cost.json``.
        out: Folder for the results.
        accelerator: The processes that share the volumes.
    """
    if (out / "measures.json").is_file():  # of a cell that was interrupted in a later stage
        return
    trained = roles.write(f"n{arm.size}-s{arm.seed}", roles.subset(arm.size, arm.seed))
    train = Cohort.load("training patients", trained, ("train",), filled=True)
    heldout = Cohort.load(HELDOUT, roles.heldout_manifest(), ("test",))
    groups = PatientGroups(train, *halves(heldout))
    samples = Cohort.load(SAMPLES, stage / "samples" / "manifest.json")
    labels = train.manifest.labels
    cohorts = (*groups.all, samples, heldout)
    caches = {
        c.name: volumes(c, config.grid, config.framing, labels, config.cache, accelerator, masks=True) for c in cohorts
    }
    spaces = study_spaces(config, caches[train.name])
    searches = search_copies(spaces, groups, [samples], caches, accelerator, config.level)
    write_memorization(out, groups, [samples], searches, None, caches, config.level, accelerator)
    kinds = [JOINT] * (len(searches) - len(spaces)) + [*config.spaces]  # joined first, where that could be
    found: dict[str, Any] = {
        "cost": read_json(stage / "cost.json"),
        "spaces": {one.space.name: {**_numbers(one), "kind": kind} for kind, one in zip(kinds, searches, strict=True)},
    }
    network = RandomNetwork(config.grid.channels)
    features = {c.name: extract([network], c, caches[c.name], accelerator)[network.name] for c in (heldout, samples)}
    scores = compare(features[HELDOUT], {SAMPLES: features[SAMPLES]})
    near = scores.frechet
    found["fidelity"] = {"frechet": near[SAMPLES], "floor": near[FLOOR]}
    found["similarity"] = {cohort.name: _similarity(cohort, caches[cohort.name]) for cohort in (heldout, samples)}
    found["membership"] = _membership(stage, groups, caches, accelerator)
    if accelerator.is_main_process:
        write_json(out / "measures.json", found)
    accelerator.wait_for_everyone()


def study_spaces(config: MemorizationStudy, training: Any) -> list[FeatureSpace]:
    """The feature spaces of a study; the detector was fitted once for all of its cells."""
    made = []
    for name in config.spaces:
        if name == "contrastive":
            made.append(FeatureSpace(contrastive_extractor(config.folder / "detector", config.grid, projected=True)))
        else:
            made.append(own_space(name, training))
    return made


def _numbers(one: CopySearch) -> dict[str, Any]:
    """What a figure needs."""
    sample, checked = one.sets[SAMPLES], one.controls.control
    return {
        "copy_rate": [sample.rate.value, sample.rate.low, sample.rate.high],
        "expected": sample.expected,
        "control_rate": checked.rate.value,
        "control_expected": checked.expected,
        "without_nearest": {"samples": sample.bound, "control": checked.bound},
        "reproduced": {name: one.measures[name].reproduced.value for name in (SAMPLES, CONTROL)},
        "authentic": {name: one.measures[name].authentic for name in (SAMPLES, CONTROL)},
        "data_copying": {name: one.measures[name].data_copying for name in (SAMPLES, CONTROL)},
        "found": dict(one.controls.found),
        "valid": one.controls.valid,
        "reasons": one.controls.reasons,
        "median_distance": {SAMPLES: float(np.median(sample.distances[:, 0])), CONTROL: float(np.median(checked.distances[:, 0]))},
    }  # fmt: skip


def _membership(
    stage: Path, groups: PatientGroups, caches: dict[str, Any], accelerator: Accelerator
) -> dict[str, Any] | None:
    """Membership inference from denoising losses, for models that have such a loss."""
    file = stage.parent / "run" / "config.yaml"
    values = read_yaml(file)
    if "generator" in values:
        return None
    run = build(LdmRun, values, str(file))
    sets = [
        (denoising_losses(run, stage / "checkpoint", caches[c.name], accelerator), c.patients)
        for c in (groups.train, groups.calibration, groups.control)
    ]
    (inside, members), (first, some), (second, others) = sets
    found = membership(inside, [*first, *second], members, [*some, *others], rng())
    return {"auc": [found.auc, found.low, found.high], "true_positives": found.true_positives}


def _similarity(cohort: Cohort, cache: Any) -> float:
    """Mean structural similarity of random pairs of a cohort's volumes."""
    pairs = random_pairs(cohort.patients, _PAIRS, rng())
    return float(mean_similarity(partial(_image, cache), pairs).mean())


def _image(cache: Any, n: int) -> torch.Tensor:
    return torch.from_numpy(cache.volume(n).image)
