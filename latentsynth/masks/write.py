"""Sets of new masks on disk: NIfTI, a sidecar per mask, what was rejected and why, a manifest, a picture; resumable."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np

from latentsynth import outputs
from latentsynth.data import nifti
from latentsynth.data.cache.volumes import to_index
from latentsynth.data.exchange.samples import case_files, describe
from latentsynth.data.frames import lay, resample
from latentsynth.data.identity import volume_hash
from latentsynth.data.manifest import Manifest
from latentsynth.documents import finite_number, read_csv, read_fields
from latentsynth.errors import DataError
from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.files import clear_partial, write_json
from latentsynth.masks.base import MaskMaker, Rejected, Wanted
from latentsynth.masks.label_map import LabelMap
from latentsynth.progress import bar
from latentsynth.provenance import LEDGER, Ledger, sidecar
from latentsynth.results import write_csv
from latentsynth.types import Case, Framing, Grid, Labels

KIND = "synthetic masks"
_FOLDERS = ("labelsTr", "sidecars")
_PATIENCE = 100  # tries per mask before a wish counts as out of reach
_SHOWN = 12
_SHOWN_EACH = 4
_PIXELS = 96  # along the longest side of a tile


def make_masks(
    maker: MaskMaker, count: int, out: Path, wanted: Wanted | None = None, seed: int = 0, batch: int = 8
) -> Manifest:
    """Makes so many masks as wanted and writes them; a second call makes what is missing.

    Seeds are tried in ascending order, and a mask that is not as wanted is counted by its reason (``rejected.csv``).

    Args:
        maker: What makes them.
        count: How many.
        out: Output folder.
        wanted: What they must be like; None takes whatever comes.
        seed: First seed.
        batch: Masks made together; no mask depends on it.

    Returns:
        The manifest of everything in ``out``: cases without images.

    Raises:
        DataError: ``out`` holds masks of another maker or other wishes, or a hundred tries per mask did not suffice.
    """
    wanted = wanted or Wanted()
    _claim(out, maker, wanted, seed)
    rejected = _read_rejected(out)
    for file in sorted((out / "sidecars").glob("*.json")):  # a mask that was deleted is made again
        if not _mask_of(file).is_file():
            file.unlink()
    done = {read_fields(file, seed=int)["seed"] for file in (out / "sidecars").glob("*.json")}
    tried = {*done, *rejected}
    following = max(tried, default=seed - 1) + 1
    pending = [s for s in range(seed, following) if s not in tried]
    with bar("making masks", count, "masks", start=len(done)) as shown:
        while len(done) < count:
            if len(rejected) >= _PATIENCE * (len(done) + 1):
                write_csv(out / "rejected.csv", ("seed", "reason"), sorted(rejected.items()))
                raise DataError(_hopeless(wanted, len(done), rejected))
            missing = min(batch, count - len(done))
            while len(pending) < missing:
                pending.append(following)
                following += 1
            seeds, pending = pending[:missing], pending[missing:]
            for number, made in zip(seeds, maker.make(seeds, wanted), strict=True):
                reason = made.reason if isinstance(made, Rejected) else wanted.refusal(made, maker.lesions)
                if reason or isinstance(made, Rejected):
                    rejected[number] = reason
                    continue
                _write(out, number, made, maker)
                done.add(number)
                shown.advance()
    write_csv(out / "rejected.csv", ("seed", "reason"), sorted(rejected.items()))
    manifest = _collect(out, maker.labels)
    manifest.save(out / "manifest.json")
    describe(out, f"{out.name} (synthetic masks)", manifest)
    (maker.ledger | _parents(manifest)).save(out / LEDGER)
    sheet(out / "contact_sheet.png", manifest, maker.lesions)
    kept = ("dataset.json", "manifest.json", LEDGER, "rejected.csv", "contact_sheet.png")
    outputs.finish(out, [*case_files(out, manifest), *(out / name for name in kept)])
    return manifest


def sheet(path: Path, manifest: Manifest, lesions: tuple[int, ...]) -> None:
    """A picture of the first masks of a set, each cut through the middle of its own lesions."""
    maps = [LabelMap.read(case, manifest.labels) for case in manifest.cases[:_SHOWN]]
    grid = sheet_grid(maps)
    tiles = [tile(f"{made.name}, {made.volume_ml(lesions):.3g} ml", made, manifest.labels, grid) for made in maps]
    rows = [tiles[n : n + _SHOWN_EACH] for n in range(0, len(tiles), _SHOWN_EACH)]
    focus = [n for n, value in enumerate(manifest.labels.values) if value in lesions]
    contact_sheet(
        path,
        rows,
        Legend(grid.spacing_mm, (), manifest.labels.names),
        f"{manifest.name}: masks",
        focus,
        shared_cut=False,
    )


def sheet_grid(maps: Sequence[LabelMap]) -> Grid:
    """A grid that holds the largest of some label maps, coarse enough for a picture."""
    extents = []
    for made in maps:
        order = np.argsort(nib.orientations.io_orientation(made.affine)[:, 0])
        extents.append((np.array(made.values.shape) * made.spacing_mm)[order])
    extent = np.max(extents, axis=0)
    spacing = float(max(extent.max() / _PIXELS, min(min(made.spacing_mm) for made in maps)))
    i, j, k = (int(np.ceil(length / spacing)) for length in extent)
    return Grid((i, j, k), (spacing,) * 3)


def tile(title: str, made: LabelMap, labels: Labels, grid: Grid) -> Tile:
    """A label map to look at: labels filled, brighter with their number, and outlined."""
    frame, _ = lay(grid, Framing(), made.affine, made.values.shape, None, made.name)
    # Nearest voxels: a picture needs no coverage, which costs more than making the mask did.
    shown = resample(made.values, made.affine, frame, 0.0, smooth=False, order=0)
    index = to_index(np.rint(shown).astype(np.int16), labels)
    shades = np.where(index > 0, -0.6 + 1.4 * index / max(1, len(labels) - 1), -1.0)
    return Tile(title, shades[None].astype(np.float32), index)


def _claim(out: Path, maker: MaskMaker, wanted: Wanted, seed: int) -> None:
    """Opens the output folder for this maker and these wishes, or refuses one that belongs to others."""
    recipe = {"maker": maker.fingerprint, "wanted": json.loads(json.dumps(asdict(wanted))), "seed": seed}
    outputs.claim(out, KIND, recipe, _FOLDERS)
    for name in _FOLDERS:
        clear_partial(out / name)


def _write(out: Path, seed: int, made: LabelMap, maker: MaskMaker) -> None:
    """The mask, then the sidecar that makes it count."""
    name = f"mask-{seed:05d}"
    nifti.write(out / "labelsTr" / f"{name}.nii.gz", made.values.astype(np.int16), made.affine)
    facts = {
        "seed": seed,
        "maker": maker.fingerprint,
        "parents": list(made.parents),
        "lesion_ml": made.volume_ml(maker.lesions),
        "lesions": made.pieces(maker.lesions),
        "mask_hash": volume_hash(made.values, made.affine),
    }
    write_json(out / "sidecars" / f"{name}.json", sidecar(**facts))


def _collect(out: Path, labels: Labels) -> Manifest:
    cases = []
    for file in sorted((out / "sidecars").glob("*.json")):
        facts = read_fields(file, seed=int, maker=str, parents=list, mask_hash=str)
        mask = _mask_of(file)
        source = f"{facts['maker']}:{facts['seed']}"
        cases.append(
            Case(file.stem, f"synthetic-{file.stem}", (), mask, "train", source, tuple(facts["parents"]),
                 mask_hash=facts["mask_hash"])
        )  # fmt: skip
    return Manifest(out.name, (), labels, tuple(cases))


def _mask_of(sidecar: Path) -> Path:
    return sidecar.parent.parent / "labelsTr" / f"{sidecar.stem}.nii.gz"


def _parents(manifest: Manifest) -> Ledger:
    """Whom the masks were made from."""
    return Ledger.used(parent for case in manifest.cases for parent in case.parents)


def _read_rejected(out: Path) -> dict[int, str]:
    file = out / "rejected.csv"
    if not file.is_file():
        return {}
    return {int(finite_number(row, "seed", file)): row["reason"] for row in read_csv(file, ("seed", "reason"))}


def _hopeless(wanted: Wanted, done: int, rejected: dict[int, str]) -> str:
    reasons = ", ".join(f"{count} x {reason}" for reason, count in Counter(rejected.values()).most_common(4))
    return (
        f"{done} of {done + len(rejected)} masks came out as wanted, {wanted} (rejected: {reasons}): ask for what the "
        "masks that it learnt from are like, or take another method"
    )
