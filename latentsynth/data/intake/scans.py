"""Scans without annotations, to run a model on: a manifest, a folder, or a file."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from latentsynth.data import nifti
from latentsynth.data.manifest import SPLITS, Manifest
from latentsynth.errors import DataError
from latentsynth.types import Case, Split


def scans(source: Path, channels: int, split: Split | None = None) -> list[Case]:
    """The cases of a source.

    Args:
        source: A manifest; a NIfTI file (one channel); or a folder of ``CASE_0000.nii.gz, CASE_0001.nii.gz, ...``
            (nnU-Net's names, one number per channel) or of ``CASE.nii.gz`` (one channel).
        channels: Files per case.
        split: For a manifest, the split to take; None takes all.

    Raises:
        DataError: Nothing there, or a case without one of its channels.
    """
    if source.is_dir():
        files = nifti.files(source)
        if not files:
            raise DataError(f"{source} holds no NIfTI file (*.nii, *.nii.gz): give a folder of scans")
        return _grouped(source, files, channels)
    if source.name.lower().endswith(nifti.SUFFIXES):
        return _grouped(source, [source], channels)
    manifest = Manifest.load(source)
    return list(manifest.select(*((split,) if split else SPLITS)))


def _grouped(source: Path, files: list[Path], channels: int) -> list[Case]:
    numbered: dict[str, dict[int, Path]] = defaultdict(dict)
    stems = {nifti.stem(file) for file in files}
    for file in files:
        match = re.fullmatch(r"(.+)_(\d{4})", nifti.stem(file))
        if match and channels == 1 and f"{match[1]}_0000" not in stems:
            match = None  # no first channel of that name, so the digits are the case's own: AMOS_0001
        name, number = (match[1], int(match[2])) if match else (nifti.stem(file), 0)
        if number in numbered[name]:
            raise DataError(f"{source} holds two files for channel {number} of case {name}: remove or rename one")
        numbered[name][number] = file
    cases = []
    for name, found in sorted(numbered.items()):
        if sorted(found) != list(range(channels)):
            raise DataError(
                f"case {name} in {source} has channel numbers {sorted(found)}, expected {list(range(channels))}: name "
                f"the files {name}_0000.nii.gz and so on, one per channel"
            )
        cases.append(Case(name, name, tuple(found[n] for n in range(channels)), None))
    return cases
