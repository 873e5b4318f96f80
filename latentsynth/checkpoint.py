"""Checkpoint folders: what is shared. One ``config.json``, a model card, a patient ledger, one folder per part.

The header binds its parts by fingerprint, so an autoencoder of one run cannot be put under the denoiser of another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latentsynth.errors import CheckpointError, ConfigError, DataError
from latentsynth.files import atomic_folder, read_json, write_json, write_text
from latentsynth.pretrained import Pretrained, part_fingerprint, read_config
from latentsynth.provenance import LEDGER, Ledger, fingerprint
from latentsynth.strict import ConfigT, build
from latentsynth.types import Domain

FORMAT = "latentsynth-checkpoint/2"
_FIELDS = {"format", "kind", "domain", "settings", "parts", "metrics"}


@dataclass(frozen=True)
class Header:
    """The ``config.json`` of a checkpoint.

    Attributes:
        kind: What it holds, for example ``"autoencoder"`` or ``"latent_diffusion"``.
        domain: The volumes it works on.
        settings: Whatever else its kind needs to work as trained.
        parts: Fingerprint of the weights of each part.
        metrics: Scores on validation patients, for the card and for warnings.
    """

    kind: str
    domain: Domain
    settings: Mapping[str, Any]
    parts: Mapping[str, str]
    metrics: Mapping[str, float]

    @property
    def fingerprint(self) -> str:
        """Names the checkpoint in sidecars and caches."""
        return fingerprint([self.kind, asdict(self.domain), dict(self.settings), dict(self.parts)])


def locate(path: Path | str) -> Path:
    """The checkpoint folder of a run folder, or the folder itself.

    Raises:
        CheckpointError: Neither is there.
    """
    path = Path(path)
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
        return str(read_json(folder / "config.json")["format"]).startswith(FORMAT.partition("/")[0])
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
) -> Header:
    """Writes a checkpoint atomically; scores that are not numbers (of lesions where there are none) are left out."""
    metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    with atomic_folder(folder, is_checkpoint) as temporary:
        temporary.mkdir()
        for name, part in parts.items():
            part.save(temporary / name)
        prints = {name: part_fingerprint(temporary / name) for name in parts}
        header = Header(kind, domain, settings, prints, metrics)
        write_json(
            temporary / "config.json",
            {
                "format": FORMAT,
                "kind": kind,
                "domain": asdict(domain),
                "settings": dict(settings),
                "parts": prints,
                "metrics": dict(metrics),
            },
        )
        ledger.save(temporary / LEDGER)
        write_text(temporary / "README.md", _card(header, parts, ledger))
    return header


def read_header(folder: Path, kind: str | None = None) -> Header:
    """Reads and verifies the header: every part must be the one that was saved with it.

    Args:
        folder: Checkpoint folder.
        kind: The kind that is wanted; None accepts any.

    Raises:
        CheckpointError: Not a checkpoint, of another kind, damaged, or with a part exchanged.
    """
    value = read_config(folder)
    if value.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} is a checkpoint of {value.get('format') or 'no known version'}, expected {FORMAT}: train it again"
        )
    if set(value) != _FIELDS:
        raise CheckpointError(f"{folder}/config.json: keys {sorted(set(value) ^ _FIELDS)} are unknown or missing")
    if kind is not None and value["kind"] != kind:
        raise CheckpointError(
            f"{folder} holds a checkpoint of kind {value['kind']}, expected {kind}: give another folder"
        )
    try:
        domain = Domain.from_json(value["domain"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}/config.json: the domain is damaged ({error}): restore the checkpoint"
        ) from error
    for name, saved in value["parts"].items():
        found = part_fingerprint(folder / name) if (folder / name).is_dir() else "nothing"
        if found != saved:
            raise CheckpointError(
                f"{folder}: part {name} has fingerprint {found}, the checkpoint was saved with {saved}: "
                "parts of different checkpoints do not fit together; restore the whole folder"
            )
    return Header(value["kind"], domain, value["settings"], value["parts"], value["metrics"])


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


def _card(header: Header, parts: Mapping[str, Pretrained], ledger: Ledger) -> str:
    """The model card, for people."""
    domain = header.domain
    scores = "".join(f"| {name} | {value:.4g} |\n" for name, value in sorted(header.metrics.items()))
    weights = ", ".join(f"{n} {sum(p.numel() for p in m.parameters()) / 1e6:.2f} M" for n, m in parts.items())
    settings = json.dumps(dict(header.settings), indent=2)
    return f"""# {header.kind} ({header.fingerprint})

Made by latentsynth. Learned from {len(ledger.patients)} patients; `ledger.json` lists them as keyed hashes.

- channels: {", ".join(domain.channels)}
- labels: {", ".join(f"{v} = {n}" for v, n in zip(domain.labels.values, domain.labels.names, strict=True))}
- grid: {" x ".join(map(str, domain.grid.shape))} voxels of {" x ".join(f"{s:g}" for s in domain.grid.spacing_mm)} mm
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
