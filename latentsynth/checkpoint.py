"""Checkpoint folders: what is shared. One ``config.json``, a model card, a patient ledger, one folder per part.

The header binds parts and ledger by the hashes of their files, so an autoencoder of one run cannot be put under the
denoiser of another, and itself by a checksum, so that nobody edits it unnoticed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from latentsynth.errors import CheckpointError, ConfigError, DataError
from latentsynth.files import atomic_folder, read_json, write_json, write_text
from latentsynth.models import packaged
from latentsynth.pretrained import CONFIG, Pretrained, part_fingerprint, read_config
from latentsynth.provenance import LEDGER, Ledger, file_fingerprint, fingerprint
from latentsynth.strict import ConfigT, Strict, build
from latentsynth.types import Domain

FORMAT = "latentsynth-checkpoint/4"
_SHOWN = 60  # characters of a wrong value
_Part = Annotated[str, Field(pattern=r"^[a-z_]+$")]  # a folder inside the checkpoint


class Header(Strict):
    """The ``config.json`` of a checkpoint.

    Attributes:
        format: Which version.
        kind: What it holds, for example ``"autoencoder"`` or ``"latent_diffusion"``.
        domain: The volumes it works on.
        settings: Whatever else its kind needs to work as trained.
        parts: Hash of the files of each part, weights included.
        ledger: Hash of the patient ledger.
        metrics: Scores on validation patients, for the card and for warnings.
        checksum: Of everything above.
    """

    format: Literal["latentsynth-checkpoint/4"]
    kind: str
    domain: Domain
    settings: dict[str, Any]
    parts: dict[_Part, str]
    ledger: str
    metrics: dict[str, float]
    checksum: str

    @property
    def fingerprint(self) -> str:
        """Names the model in sidecars and caches; its scores and whose key its ledger has do not matter."""
        return fingerprint([self.kind, asdict(self.domain), self.settings, self.parts])


def checksum(header: Mapping[str, Any]) -> str:
    """Of a header as it stands in the file."""
    return fingerprint({key: value for key, value in header.items() if key != "checksum"})


def locate(path: Path | str) -> Path:
    """The checkpoint folder of a run folder, the folder itself, or that of a model in the package by its name.

    Raises:
        CheckpointError: None of them is there.
    """
    path = Path(path)
    if not path.exists():
        path = packaged(str(path)) or path
    inner = path / "checkpoint"
    if inner.is_dir():
        return inner
    if (path / "config.yaml").is_file():
        raise CheckpointError(f"run {path} has no checkpoint yet: let its training reach the first validation")
    read_config(path)
    return path


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint, of whatever version."""
    try:
        return str(read_json(folder / CONFIG)["format"]).startswith(FORMAT.partition("/")[0])
    except (DataError, KeyError, TypeError):
        return False


def write(
    folder: Path,
    kind: str,
    domain: Domain,
    settings: Mapping[str, Any],
    parts: Mapping[str, Pretrained],
    ledger: Ledger,
    metrics: Mapping[str, float],
    half: bool = False,
) -> Header:
    """Writes a checkpoint atomically; scores that are not numbers (of lesions where there are none) are left out.

    Weights are written in half precision where that is asked for, to be passed on rather than trained on.
    """
    metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    with atomic_folder(folder, is_checkpoint) as temporary:
        temporary.mkdir()
        for name, part in parts.items():
            part.save(temporary / name, half)
        ledger.save(temporary / LEDGER)
        values = {
            "format": FORMAT,
            "kind": kind,
            "domain": asdict(domain),
            "settings": dict(settings),
            "parts": {name: part_fingerprint(temporary / name) for name in parts},
            "ledger": file_fingerprint(temporary / LEDGER),
            "metrics": metrics,
        }
        values["checksum"] = checksum(values)
        header = _validated(values, folder)
        write_json(temporary / CONFIG, values)
        write_text(temporary / "README.md", _card(header, parts, ledger))
    return header


def read_header(folder: Path, kind: str | None = None) -> Header:
    """Reads and verifies the header: every part and the ledger must be those that were saved with it.

    Args:
        folder: Checkpoint folder.
        kind: The kind that is wanted; None accepts any.

    Raises:
        CheckpointError: Not a checkpoint, of another kind, damaged, edited, or with a part exchanged or added.
    """
    value = read_config(folder)
    if value.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} is a checkpoint of {value.get('format') or 'no known version'}, expected {FORMAT}: train it again"
        )
    header = _validated(value, folder)
    if checksum(value) != header.checksum:
        raise CheckpointError(
            f"{folder / CONFIG} was edited since it was written: restore it, or train again with other settings"
        )
    if kind is not None and header.kind != kind:
        raise CheckpointError(
            f"{folder} holds a checkpoint of kind {header.kind}, expected {kind}: give another folder"
        )
    unbound = sorted({file.parent.name for file in folder.glob(f"*/{CONFIG}")} - set(header.parts))
    if unbound:
        raise CheckpointError(
            f"{folder} holds part {unbound[0]}, which was not saved with it: restore the whole folder"
        )
    bound = {f"part {name}": (saved, _hash_of(folder / name)) for name, saved in header.parts.items()}
    bound[LEDGER] = (header.ledger, _hash_of(folder / LEDGER))
    for name, (saved, found) in bound.items():
        if found != saved:
            raise CheckpointError(
                f"{folder}: {name} has fingerprint {found}, the checkpoint was saved with {saved}: "
                "parts of different checkpoints do not fit together; restore the whole folder"
            )
    return header


def _hash_of(path: Path) -> str:
    if path.is_dir():
        return part_fingerprint(path)
    return file_fingerprint(path) if path.is_file() else "nothing"


def _validated(value: Mapping[str, Any], folder: Path) -> Header:
    """A header from plain values.

    Raises:
        CheckpointError: A key is unknown or missing, a value is of another type, impossible or not finite, or what it
            says of channels contradicts itself.
    """
    try:
        header = Header.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        where, found = ".".join(map(str, problem["loc"])), repr(problem.get("input"))
        raise CheckpointError(
            f"{folder / CONFIG}: {where}: {problem['msg'].removeprefix('Value error, ')} (found {found[:_SHOWN]}): "
            "restore the checkpoint"
        ) from None
    domain = header.domain
    if json.loads(json.dumps(asdict(domain))) != json.loads(json.dumps(value["domain"])):  # defaults filled a gap
        raise CheckpointError(f"{folder / CONFIG}: the domain is incomplete: restore the checkpoint")
    counts = (domain.grid.channels, len(domain.channels), len(domain.limits))
    if len(set(counts)) > 1 or any(low > high for low, high in domain.limits):
        raise CheckpointError(
            f"{folder / CONFIG}: {counts[0]} windows, channels {domain.channels} and limits {domain.limits}, expected one ascending "
            "pair of limits and one window per channel: restore the checkpoint"
        )
    return header


def check_keys(folder: Path, header: Header, parts: set[str], settings: set[str]) -> None:
    """Refuses a checkpoint that binds other parts or settings than its kind needs.

    Raises:
        CheckpointError: With what was found and what is expected.
    """
    for what, found, expected in (("binds parts", header.parts, parts), ("has settings", header.settings, settings)):
        if set(found) != expected:
            raise CheckpointError(
                f"{folder}/config.json {what} {sorted(found)}, expected {', '.join(sorted(expected))}: restore the checkpoint"
            )


def check_facts(folder: Path, facts: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuses parts that do not fit each other or the domain.

    Args:
        folder: Named in the error.
        facts: Name to (found, expected).

    Raises:
        CheckpointError: Some differ.
    """
    for name, (found, expected) in facts.items():
        if found != expected:
            raise CheckpointError(f"{folder}: {name} is {found}, expected {expected}: the parts do not fit together")


def read_settings(kind: type[ConfigT], value: Any, folder: Path) -> ConfigT:
    """Settings of a checkpoint as the section of a configuration.

    Raises:
        CheckpointError: They are damaged.
    """
    try:
        return build(kind, dict(value), f"{folder}/config.json")
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{error}: restore the checkpoint") from error


def read_ledger(folder: Path) -> Ledger:
    """The patients that a checkpoint has seen."""
    return Ledger.load(folder / LEDGER)


def _origins(ledger: Ledger) -> str:
    """Whom the scans are owed to, and under which licence they came."""
    told = (
        f"{one.credit or 'not stated'} (licence: {one.licence or 'not declared'})" for one in sorted(ledger.origins)
    )
    return "; ".join(told) or "not stated (licence: not declared)"


def _card(header: Header, parts: Mapping[str, Pretrained], ledger: Ledger) -> str:
    """The model card, for people."""
    domain = header.domain
    scores = "".join(f"| {name} | {value:.4g} |\n" for name, value in sorted(header.metrics.items()))
    weights = ", ".join(f"{n} {sum(p.numel() for p in m.parameters()) / 1e6:.2f} M" for n, m in parts.items())
    settings = json.dumps(header.settings, indent=2)
    # Patients that two machines counted are two, each under its own key; images are known by their voxels.
    learnt = f"{len(ledger.voxels)} images" if ledger.voxels else f"{len(ledger.patients)} patients"
    return f"""# {header.kind} ({header.fingerprint})

Made by latentsynth. Learned from {learnt}; `ledger.json` lists them as hashes.

- channels: {", ".join(domain.channels)}
- labels: {", ".join(f"{v} = {n}" for v, n in zip(domain.labels.values, domain.labels.names, strict=True))}
- grid: {" x ".join(map(str, domain.grid.shape))} voxels of {" x ".join(f"{s:g}" for s in domain.grid.spacing_mm)} mm
- scans of: {_origins(ledger)}
- crop: {domain.framing.crop}, a lesion that does not fit: {domain.framing.fit}
- parameters: {weights}

Volumes made with it are synthetic. They show what the training patients have in common, and may show one of them:
measure memorization before sharing any.

| validation | value |
|---|---|
{scores}
```json
{settings}
```
"""
