"""The configurations that come with the package."""

from __future__ import annotations

import shutil
from pathlib import Path

from latentsynth.files import atomic_path
from latentsynth.outputs import check_free

READY = Path(__file__).parents[1] / "configs"  # of a clone, a link to the folder at its root


def write_ready(out: Path) -> Path:
    """Copies the ready configurations into a new folder, under the names that the documentation gives them.

    Args:
        out: The folder; nothing may stand there but an empty one.

    Returns:
        The folder.

    Raises:
        DataError: Something stands there.
    """
    check_free(out)
    with atomic_path(out) as temporary:
        shutil.copytree(READY, temporary)
    return out
