"""A run's metrics in TensorBoard, Weights & Biases or MLflow, through Accelerate's trackers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import filter_trackers

from latentsynth.config import Run
from latentsynth.errors import TrainingError

_PROJECT = "latentsynth"
_LONGEST = 500  # letters of a parameter that MLflow takes


def start_tracker(name: str, config: Run, accelerator: Accelerator) -> None:
    """Opens a tracker under the name of the run folder, in which its files lie, with the run's settings.

    Args:
        name: As Accelerate calls it.
        config: The run's.
        accelerator: Whose tracker it becomes; metrics reach it by ``accelerator.log``.

    Raises:
        TrainingError: Its package is not installed.
    """
    run = Path(config.run)
    accelerator.project_configuration.set_directories(str(run))
    accelerator.log_with = filter_trackers([name], accelerator.logging_dir)
    if not accelerator.log_with:
        raise TrainingError(f"train.tracker={name} needs the package {name}: pip install {name}, or leave the key out")
    own: dict[str, dict[str, Any]] = {
        "wandb": {"dir": str(run), "name": run.name},
        "mlflow": {"logging_dir": str(run.resolve() / "mlruns"), "run_name": run.name},
    }
    if name == "mlflow":  # else a database in whatever folder the command was typed in
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{run.resolve() / 'mlflow.db'}")
    # TensorBoard's project is the folder of its files.
    accelerator.init_trackers(
        name if name == "tensorboard" else _PROJECT,
        config=_flat(config.model_dump(mode="json")),
        init_kwargs={key: value for key, value in own.items() if key == name},
    )


def _flat(values: Any, prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested settings by ``section.key``; what trackers do not take as it is becomes text."""
    if not isinstance(values, dict):
        plain = values if isinstance(values, str | int | float | bool) else str(values)
        return {prefix: plain[:_LONGEST] if isinstance(plain, str) else plain}
    found: dict[str, str | int | float | bool] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return found
