"""The run folder: what was asked, on what machine, how it went, and the state to go on from."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from latentsynth import config as configuration
from latentsynth.config import Run
from latentsynth.documents import read_json_lines
from latentsynth.errors import CheckpointError, TrainingError
from latentsynth.files import clear_partial, write_json, write_text
from latentsynth.outputs import claim
from latentsynth.strict import read_yaml
from latentsynth.training import state
from latentsynth.training.tracker import start_tracker

_KEPT_STATES = 2
_PACKAGES = (
    "latentsynth",
    "torch",
    "monai",
    "diffusers",
    "accelerate",
    "torchio",
    "nibabel",
    "numpy",
    "vector-quantize-pytorch",
)


class RunFolder:
    """A run's folder on disk; the same configuration opens it again and resumes.

    Args:
        config: The resolved configuration.
        accelerator: The processes that share the folder.

    Raises:
        TrainingError: The folder holds a run with another configuration, or another process is training in it.
        ConfigError: Its configuration is damaged.
    """

    def __init__(self, config: Run, accelerator: Accelerator):
        self.path = Path(config.run)
        self.accelerator = accelerator
        self._lock = FileLock(self.path / "run.lock")
        if accelerator.is_main_process:
            claim(self.path, "run", alone=False)
            self._lock_out_others()
            self._claim(config)
            write_json(self.path / "environment.json", environment(accelerator))
            clear_partial(self.path)
            clear_partial(self._states)
            if config.train.tracker:
                start_tracker(config.train.tracker, config, accelerator)
        accelerator.wait_for_everyone()

    def _lock_out_others(self) -> None:
        """Two trainings in one folder would overwrite each other's states. The lock dies with its process."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise TrainingError(
                f"another process is training in {self.path}: wait for it, or give run=ANOTHER_FOLDER"
            ) from None

    def close(self) -> None:
        """Lets others train in the folder, and closes the tracker."""
        if self.accelerator.is_main_process:
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator.trackers = []
        self._lock.release()

    def _claim(self, config: Run) -> None:
        """Writes the configuration, or refuses a folder that belongs to another.

        What ``config.may_change`` names may change from one call to the next.
        """
        file = self.path / "config.yaml"
        wanted = config.model_dump(mode="json")
        if file.is_file():
            found = read_yaml(file)
            before, now = (_without(values, config.may_change) for values in (found, wanted))
            differing = [key for key in sorted(set(now) | set(before)) if now.get(key) != before.get(key)]
            if differing or _at(found, "train.batch") != config.train.batch:
                differing = differing or ["train.batch"]
                raise TrainingError(
                    f"{self.path} holds a run with other settings (they differ in {', '.join(differing)}): "
                    "give run=ANOTHER_FOLDER, or restore the settings to go on with this one"
                )
        write_text(file, configuration.dump(config))

    @property
    def _states(self) -> Path:
        return self.path / "state"

    def states(self) -> list[Path]:
        """Folders of the states that were kept, newest first; damaged ones among them."""
        return sorted((p for p in self._states.glob("[0-9]*") if p.is_dir()), reverse=True)

    def read_state(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest sound state and its sections (:func:`latentsynth.training.state.read`); None before the first.

        A damaged one is passed over for the one before, and a line says so. The main process chooses for all.

        Raises:
            TrainingError: No state is sound, or one holds a pickle, which is never read.
        """
        found = self._newest_sound() if self.accelerator.is_main_process else None
        (name,) = broadcast_object_list([found and found[0].name])
        if name is None or found is not None:
            return found
        return self._states / name, state.read(self._states / name)

    def _newest_sound(self) -> tuple[Path, dict[str, Any]] | None:
        damage = ""
        for folder in self.states():
            pickled = state.find_pickle(folder)
            if pickled is not None:
                raise TrainingError(
                    f"{pickled} is a pickle, which can run code, and no part of a state: it was not read; remove {folder} to go "
                    "on from an older state, or to start again where there is none"
                )
            try:
                return folder, state.read(folder)
            except CheckpointError as error:
                damage = str(error)
                self.accelerator.print(
                    f"warning: the state {folder} is damaged ({damage}): it is passed over for the one before"
                )
        if damage:
            raise TrainingError(
                f"no state of {self.path} is sound ({damage}): restore one, or remove {self._states} to start again"
            )
        return None

    def save_state(self, images_seen: int, sections: Mapping[str, Any]) -> None:
        """Saves everything that training needs to go on, from the main process.

        The older of two states before it goes, and so does what stands beyond it: damaged states that were passed over.
        """
        if self.accelerator.is_main_process:
            target = self._states / f"{images_seen:010d}"
            for beyond in (folder for folder in self.states() if folder.name >= target.name):
                shutil.rmtree(beyond)
            state.write(target, sections)
            for old in self.states()[_KEPT_STATES:]:
                shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def forget_after(self, images_seen: int) -> None:
        """Drops metrics of work that a killed run did after its last state: it will be done again."""
        file = self.path / "metrics.jsonl"
        if not self.accelerator.is_main_process or not file.is_file():
            return
        kept = []
        for line in file.read_text().splitlines():
            try:
                if json.loads(line)["images_seen"] <= images_seen:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError):  # the last line of a killed process may be torn
                continue
        write_text(file, "".join(f"{line}\n" for line in kept))

    def log(self, images_seen: int, values: Mapping[str, float]) -> None:
        """Appends one line of metrics; not a number is written as null, which JSON can hold."""
        if not self.accelerator.is_main_process:
            return
        finite = {k: (round(v, 8) if v == v and abs(v) != float("inf") else None) for k, v in values.items()}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"images_seen": images_seen, **finite}) + "\n")
        self.accelerator.log(dict(values), step=images_seen)


def _without(values: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Nested values without some of them, named ``section.key``."""
    kept = dict(values)
    for key in keys:
        first, _, rest = key.partition(".")
        if rest and isinstance(kept.get(first), dict):
            kept[first] = _without(kept[first], [rest])
        elif not rest:
            kept.pop(first, None)
    return kept


def _at(values: Any, key: str) -> Any:
    """The nested value that ``section.key`` names; None where there is none."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a result may depend on beside its configuration."""

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed(name) for name in _PACKAGES},
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "device_name": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``."""
    file = run / "metrics.jsonl"
    return read_json_lines(file) if file.is_file() else []
