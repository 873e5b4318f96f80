"""Sampling volumes for masks: masks on any grid in, NIfTI in scanner units on the same grid out, resumable, sharded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from latentsynth.config import AugmentConfig
from latentsynth.data import nifti, windows
from latentsynth.data.cache.volumes import Recipe, to_index
from latentsynth.data.exchange import samples
from latentsynth.data.exchange.hosts import Blend, Host, paired
from latentsynth.data.exchange.requests import Placed, Request, place, to_scanner, volume_seed
from latentsynth.data.frames import Frame, resample
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.parallel import own
from latentsynth.progress import bar
from latentsynth.provenance import LEDGER, Ledger, origins_of, voxel_hash
from latentsynth.synthesizers import Synthesizer
from latentsynth.types import Case, Domain, Fit, Framing
from latentsynth.workers import in_background

_SHOWN = 6  # masks on the contact sheet
_SHOWN_EACH = 3  # volumes per mask on it


def synthesize(
    model: Synthesizer,
    masks: Sequence[Request],
    out: Path,
    accelerator: Accelerator,
    per_mask: int = 1,
    seed: int = 0,
    batch: int = 2,
    fit: Fit | None = None,
    styles: Sequence[Case] = (),
    hosts: Sequence[Case] = (),
    margin_mm: float | None = None,
    remove: bool = False,
    **settings: Any,
) -> Manifest:
    """Makes ``per_mask`` volumes for every mask and writes them as a cohort. A second call makes what is missing.

    A model that makes its own masks takes one request without a mask; each of its volumes counts as a patient.

    Args:
        model: Any synthesizer.
        masks: What to make.
        out: Output folder.
        accelerator: The processes that share the work.
        per_mask: Volumes per mask; number n has seed ``seed + n``.
        seed: First seed.
        batch: Volumes made together; no volume depends on it.
        fit: Overrides what to do with a lesion that does not fit the grid.
        styles: Reference scans whose look to take in turn, for a model that takes one: the volume of seed s gets style
            ``s`` modulo their number.
        hosts: Real scans to paint the lesions into, for a model that can: one for all masks, or several, of which each
            mask names its own by its parents. Masks must lie on the grid of their host.
        margin_mm: Distance from the lesion by which the generated volume has given way to the host; everything farther away
            is the host's own, exactly. None takes what the model needs (:meth:`Synthesizer.blend`).
        remove: Put healthy tissue in place of the masks' lesions: healthy counterparts of the hosts, paired with them in
            ``pairs.csv``.
        settings: Sampling settings of the model.

    Returns:
        The manifest of everything in ``out``.

    Raises:
        DataError: Masks for a model that makes its own, or the reverse; a mask is wrong, or belongs to no host (checked
            before any volume is made); or ``out`` holds volumes of another checkpoint or other settings.
        ConfigError: An impossible setting.
    """
    chosen = model.settings(**settings)
    domain = model.domain
    _check_asked(model, masks, styles, hosts, remove)
    placed = [place(request, domain, fit) for request in masks]
    shown = [p.healthy(domain) for p in placed] if remove else placed  # what the volumes show
    blend = model.blend(margin_mm)
    scans = _hosts(masks, placed, hosts, domain, blend)
    looks = [read_style(case, domain) for case in styles]
    recipe = {
        "checkpoint": model.fingerprint,
        "settings": chosen,
        "styles": [[case.case_id, voxel_hash(look.numpy())] for case, look in zip(styles, looks, strict=True)],
        "hosts": [
            {**asdict(blend), "remove": remove},
            *({"case": h.case.case_id, "scans": sorted(h.scans)} for h in scans),
        ]
        if scans
        else [],
    }
    if accelerator.is_main_process:
        samples.claim(out, recipe, domain)
    accelerator.wait_for_everyone()
    model.to(accelerator.device)
    jobs = [(m, seed + n) for m in range(len(masks)) for n in range(per_mask)]
    todo = [job for job in jobs if not samples.is_done(out, masks[job[0]], job[1], shown[job[0]])]
    accelerator.wait_for_everyone()  # every process must have looked before any of them writes
    mine = own(accelerator, todo)
    with bar("sampling", len(mine), "volumes", accelerator.is_main_process) as progress, in_background() as hand_over:
        for start in range(0, len(mine), batch):
            part = mine[start : start + batch]
            where = [placed[m] for m, _ in part]
            seeds = [volume_seed(s, p) for (_, s), p in zip(part, where, strict=True)]
            style = torch.stack([looks[s % len(looks)] for _, s in part]) if looks else None
            context, cut = None, None
            if hosts:
                context = torch.stack([torch.from_numpy(scans[m].context(placed[m].frame)) for m, _ in part])
            if remove:
                cut = torch.stack([torch.from_numpy(np.isin(p.index, domain.lesion_indices)) for p in where])
            made = model.paint([shown[m] for m, _ in part], seeds, style, context, cut, **chosen)
            shown_hosts = context if made.host is None else made.host
            for row, (m, s) in enumerate(part):
                one = _Made(
                    masks[m], placed[m], shown[m], s, made.image[row].numpy(), made.mask[row],
                    {"checkpoint": model.fingerprint, "settings": chosen, "seed": s, "noise_seed": seeds[row]},
                    styles[s % len(styles)] if styles else None, scans[m] if hosts else None,
                    None if shown_hosts is None else shown_hosts[row].numpy(),
                )  # fmt: skip
                hand_over(one.write, out, domain, blend, remove, model.makes_masks)
                progress.advance()
    accelerator.wait_for_everyone()
    manifest = samples.collect(out, domain)
    if accelerator.is_main_process:
        manifest.save(out / "manifest.json")
        # Without the volumes' own hashes: one that is somebody's scan would hide that the model saw that person.
        seen = model.ledger | replace(Ledger.of(manifest.cases), voxels=frozenset())
        for ledger in {request.ledger for request in masks}:
            seen |= ledger
        seen |= Ledger.used(h.case.patient_id for h in scans) | Ledger(
            voxels=frozenset().union(*(host.scans for host in scans)), origins=origins_of(h.case for h in scans)
        )
        seen.save(out / LEDGER)  # for whoever trains on these volumes
        shown_each = _SHOWN_EACH * (_SHOWN if model.makes_masks else 1)
        shown_seeds = [seed + n for n in range(min(per_mask, shown_each))]
        shown_masks = [replace(m, images=s.case.images) for m, s in zip(masks, scans, strict=True)] if hosts else masks
        _sheet(out, shown_masks, placed, shown_seeds, domain, [s.limits for s in scans])
        if remove:
            samples.write_pairs(out, manifest, [host.case for host in scans])
        samples.finish(out, manifest)
    accelerator.wait_for_everyone()
    return manifest


@dataclass(frozen=True)
class _Made:
    """A volume that was made, and all that is to be told of it."""

    request: Request
    placed: Placed
    shown: Placed
    seed: int
    image: np.ndarray
    mask: Tensor
    facts: dict[str, Any]
    style: Case | None
    host: Host | None
    host_shown: np.ndarray | None

    def write(self, out: Path, domain: Domain, blend: Blend, removed: bool, makes_masks: bool) -> None:
        """Brings it to scanner units on its own grid, and writes it."""
        placed = _own_mask(self.placed, self.mask, domain) if makes_masks else self.placed
        request, facts = self.request, dict(self.facts)
        if self.style is not None:
            facts["style"] = self.style.case_id
            request = replace(request, parents=(*request.parents, self.style.patient_id, *self.style.parents))
        if self.host is None or self.host_shown is None:
            voxels, limits = list(to_scanner(self.image, placed, domain)), domain.limits
        else:
            scan = self.host.case
            voxels, limits = self.host.painted(self.image, self.host_shown, placed, blend), self.host.limits
            facts |= {"host": scan.case_id, "blend": asdict(blend), "lesions_removed": removed}
            request = replace(request, parents=tuple(dict.fromkeys((*request.parents, scan.patient_id, *scan.parents))))
        placed = self.shown if removed else placed
        samples.write(out, request, self.seed, placed, voxels, limits, domain, {**facts, "zoom": placed.zoom})


def read_style(case: Case, domain: Domain) -> Tensor:
    """A reference scan on the model's grid, centred: ``(C, I, J, K)`` in [-1, 1].

    Raises:
        DataError: A file is unreadable, or the scan has another number of channels.
    """
    if len(case.images) != domain.grid.channels:
        raise DataError(
            f"style {case.case_id} has {len(case.images)} channels, the model makes {domain.grid.channels}: give one "
            "file per channel"
        )
    if case.filled:
        raise DataError(f"style {case.case_id} was never scanned in all channels: give a scan of all of them")
    recipe = Recipe(domain.grid, Framing(), domain.labels, AugmentConfig(), 0)
    return torch.from_numpy(recipe.read(replace(case, mask=None)).image)


def _hosts(
    masks: Sequence[Request], placed: Sequence[Placed], hosts: Sequence[Case], domain: Domain, blend: Blend
) -> list[Host]:
    """The host of every mask, read once; none where nothing is painted into."""
    if not hosts:
        return []
    cases = paired(masks, hosts)
    read = {case.case_id: Host.read(case, domain) for case in cases}
    found = [read[case.case_id] for case in cases]
    for request, p, host in zip(masks, placed, found, strict=True):
        host.check(p, request.name, blend)
    return found


def _check_asked(
    model: Synthesizer, masks: Sequence[Request], styles: Sequence[Case], hosts: Sequence[Case], remove: bool
) -> None:
    given = any(request.mask is not None for request in masks)
    if given and model.makes_masks:
        raise DataError("this model makes its own masks: give --count instead of --masks")
    if not model.makes_masks and (not masks or any(request.mask is None for request in masks)):
        raise DataError("this model paints masks: give --masks, or a --mask-model that makes them")
    if styles and not model.takes_style:
        raise DataError("this model takes no reference scan: leave --style out, or give a SPADE model with an encoder")
    if hosts and not model.takes_context:
        raise DataError(
            "this model cannot paint into a scan: train one with conditioner.context=true, or leave --into out"
        )
    if remove and not (hosts and model.removes_lesions):
        raise DataError(
            "lesions are removed from given scans, by a model that has seen healthy tissue cut out: give the scans, and a "
            "model trained with conditioner.context=true and conditioner.decoys above 0"
        )
    if not model.makes_images:
        raise DataError("this model makes masks without images: give it as --mask-model of one that paints them")


def _own_mask(placed: Placed, mask: Tensor, domain: Domain) -> Placed:
    """The place of a volume whose mask the model made: one-hot ``(L, I, J, K)``."""
    index = mask.argmax(0).numpy().astype(np.int16)
    return replace(placed, index=index, values=np.array(domain.labels.values, np.int16)[index])


def _sheet(
    out: Path,
    masks: Sequence[Request],
    placed: Sequence[Placed],
    seeds: Sequence[int],
    domain: Domain,
    limits: Sequence[Sequence[windows.Limits]],
) -> None:
    """Picture of the first masks: the real scan where there is one, and the samples, read back from disk."""
    rows = []
    for n, (request, p) in enumerate(list(zip(masks, placed, strict=True))[:_SHOWN]):
        between = limits[n] if limits else domain.limits
        tiles = [_tile(f"{request.name}, real", request.images, p.frame, p.index, domain)] if request.images else []
        for seed in seeds:
            name = samples.name_of(request, seed)
            files = [out / "imagesTr" / f"{name}_{c:04d}.nii.gz" for c in range(len(domain.channels))]
            index = p.index
            if request.mask is None:
                index = to_index(nifti.read(out / "labelsTr" / f"{name}.nii.gz")[0].astype(np.int16), domain.labels)
            tiles.append(_tile(f"{request.name}, sample {seed}", files, p.frame, index, domain, between))
        rows += [tiles] if request.mask else [tiles[n : n + _SHOWN_EACH] for n in range(0, len(tiles), _SHOWN_EACH)]
    alone = all(len(row) == 1 for row in rows)  # different masks side by side, not one below the other
    if alone:
        rows = [[tile for (tile,) in rows[n : n + _SHOWN_EACH]] for n in range(0, len(rows), _SHOWN_EACH)]
    title, lesions = f"{out.name}: masks outlined", domain.lesion_indices
    contact_sheet(out / "contact_sheet.png", rows, Legend.of(domain), title, lesions, shared_cut=not alone)


def _tile(
    title: str,
    files: Sequence[Path],
    frame: Frame,
    index: np.ndarray,
    domain: Domain,
    limits: Sequence[windows.Limits] | None = None,
) -> Tile:
    channels = []
    for n, file in enumerate(files):
        voxels, affine = nifti.read(file)
        between = limits[n] if limits else windows.limits(domain.grid.windows[n], voxels, str(file))
        channels.append(windows.normalise(resample(voxels, affine, frame, between[0]), between))
    return Tile(title, np.stack(channels), index)
