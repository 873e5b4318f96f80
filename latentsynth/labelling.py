"""Label maps for scans: NIfTI on each scan's own grid, resumable, sharded, with a table of volumes and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from nibabel.affines import voxel_sizes

from latentsynth import outputs
from latentsynth.data import nifti
from latentsynth.data.cache.volumes import to_index
from latentsynth.data.frames import resample
from latentsynth.errors import DataError
from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.files import clear_partial
from latentsynth.metrics.surfaces import volume_ml
from latentsynth.parallel import own
from latentsynth.progress import bar
from latentsynth.provenance import fingerprint
from latentsynth.results import write_csv
from latentsynth.segmentation import Segmenter
from latentsynth.types import Case

_KIND = "label maps"
_SHOWN = 6


def label_scans(model: Segmenter, cases: Sequence[Case], out: Path, accelerator: Accelerator) -> list[Path]:
    """Segments the whole field of view of every scan and writes ``CASE.nii.gz``. A second call makes what is missing.

    Args:
        model: The segmenter.
        cases: Scans; masks are not read.
        out: Output folder; also gets ``volumes.csv`` (ml per label) and ``contact_sheet.png``.
        accelerator: The processes that share the scans.

    Returns:
        The label maps, in the order of the cases.

    Raises:
        DataError: A scan is unreadable or has other channels, or ``out`` holds label maps of another checkpoint or of
            other scans of the same names.
    """
    files = [out / f"{case.case_id}.nii.gz" for case in cases]
    if accelerator.is_main_process:
        _claim(out, model, cases, files)
    accelerator.wait_for_everyone()
    model.to(accelerator.device)
    todo = [n for n, file in enumerate(files) if not file.is_file()]
    accelerator.wait_for_everyone()  # every process must have looked before any of them writes
    mine = own(accelerator, todo)
    with bar("segmenting", len(mine), "scans", accelerator.is_main_process) as shown:
        for n in mine:
            labels, affine = model.segment(cases[n])
            nifti.write(files[n], labels, affine)
            shown.advance()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _table(model, cases, files, out)
        _sheet(model, cases, files, out)
        outputs.finish(out, [*files, out / "volumes.csv", out / "contact_sheet.png"])
    accelerator.wait_for_everyone()
    return files


def _claim(out: Path, model: Segmenter, cases: Sequence[Case], files: Sequence[Path]) -> None:
    """Opens the folder for this checkpoint and these scans, or refuses one that belongs to others."""
    labels = dict(zip(model.domain.labels.names, model.domain.labels.values, strict=True))
    recipe = {"checkpoint": model.fingerprint, "labels": labels}
    scans = dict(outputs.claim(out, _KIND, recipe).notes.get("scans", {}))
    clear_partial(out)
    for case, file in zip(cases, files, strict=True):
        stamp = _stamp(case)
        if file.is_file() and scans.get(case.case_id) != stamp:
            raise DataError(f"{file} was not made from {case.images[0]}: give another --out, or rename the scan")
        scans[case.case_id] = stamp
    outputs.claim(out, _KIND, recipe, notes={"scans": scans})


def _stamp(case: Case) -> str:
    """Changes with the files of a scan; of no file's contents, which would take as long as segmenting it."""
    stats = [path.stat() for path in case.images if path.is_file()]
    return fingerprint([case.content, [(stat.st_size, stat.st_mtime_ns) for stat in stats]])


def _table(model: Segmenter, cases: Sequence[Case], files: Sequence[Path], out: Path) -> None:
    values, names = model.domain.labels.values[1:], model.domain.labels.names[1:]
    rows = []
    for case, file in zip(cases, files, strict=True):
        labels, affine = nifti.read_labels(file)
        spacing = voxel_sizes(affine).tolist()
        rows.append((case.case_id, *(volume_ml(labels == value, spacing) for value in values)))
    write_csv(out / "volumes.csv", ("case", *(f"{name}_ml" for name in names)), rows)


def _sheet(model: Segmenter, cases: Sequence[Case], files: Sequence[Path], out: Path) -> None:
    domain, rows = model.domain, []
    for case, file in list(zip(cases, files, strict=True))[:_SHOWN]:
        frame = model.frame(case, whole=True)
        labels, affine = nifti.read_labels(file)
        found = to_index(resample(labels, affine, frame, 0, smooth=False, order=0), domain.labels)
        image = model.image(case, frame)
        rows.append([Tile(case.case_id, image), Tile("found", image, found)])
    contact_sheet(out / "contact_sheet.png", rows, Legend.of(domain), "", domain.lesion_indices)
