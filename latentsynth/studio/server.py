"""The server of ``latentsynth studio``: masks in, volumes out, on this machine alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from latentsynth.data import nifti
from latentsynth.data.cache.volumes import read_mask
from latentsynth.documents import parse_json
from latentsynth.errors import DataError, LatentsynthError
from latentsynth.files import atomic_path, make_folder, write_json
from latentsynth.masks.base import MaskMaker, Rejected, Wanted
from latentsynth.strict import Strict, build
from latentsynth.studio.jobs import MOST, Bench, Job, Order
from latentsynth.studio.shapes import Ellipsoid, draw, empty_affine
from latentsynth.synthesizers import LatentDiffusion
from latentsynth.types import Case
from latentsynth.viewer.server import LocalHandler, LocalServer

_LARGEST = 256 * 2**20  # bytes of a mask that is sent
_TRIES = 20  # seeds of a model of masks before it is called unable


class _Shape(Strict):
    label: int
    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    roughness: float = 0.0
    seed: int = 0


class _Drawn(Strict):
    """A mask of ellipsoids, on the grid of a host where one is named."""

    shapes: tuple[_Shape, ...]
    host: int | None = None


class _New(Strict):
    """A mask of the model of masks."""

    seed: int = 0


class _Wanted(Strict):
    """A request for volumes."""

    mask: int
    seed: int = 0
    count: int = 1
    steps: int | None = None
    guidance: float | None = None
    host: int | None = None


@dataclass(frozen=True)
class _Mask:
    """A mask of this session: its file, and the host on whose grid it lies."""

    file: Path
    host: int | None = None


class Studio(LocalServer):
    """The server; :meth:`server_close` ends its work too.

    Args:
        model: What paints.
        out: Folder of masks and volumes; nothing is written outside.
        accelerator: Of this process.
        maker: Makes masks where the page asks for new ones, or None.
        hosts: Scans that lesions may be painted into.

    Raises:
        DataError: The model paints into no scan, or the masks have other labels.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        out: Path,
        accelerator: Accelerator,
        maker: MaskMaker | None = None,
        hosts: Sequence[Case] = (),
    ):
        self.model, self.maker, self.hosts = model, maker, tuple(hosts)
        if self.hosts and not model.takes_context:
            raise DataError(
                "this model cannot paint into a scan: train one with conditioner.context=true, or leave --host out"
            )
        if maker is not None and maker.labels.values != model.domain.labels.values:
            raise DataError(
                f"the masks have labels {maker.labels.values}, the model was trained on {model.domain.labels.values}: give a "
                "model of masks of its kind"
            )
        self.folder = make_folder(out / "masks")
        self._before = len(list(self.folder.glob("*.nii.gz")))
        self.masks: list[_Mask] = []
        self._lock = threading.Lock()
        self.bench = Bench(model, out, accelerator)
        super().__init__(_Handler, ("studio.html", "studio.js", "viewer.css", "niivue.umd.js"))

    def server_close(self) -> None:
        """Ends the work; what is finished stays."""
        self.bench.close()
        super().server_close()

    def told(self) -> dict[str, Any]:
        """What the page is told: of the model, and of every job."""
        domain = self.model.domain
        chosen = self.model.settings()
        return {
            "labels": [list(pair) for pair in zip(domain.labels.values, domain.labels.names, strict=True)],
            "channels": list(domain.channels),
            "size_mm": [n * mm for n, mm in zip(domain.grid.shape, domain.grid.spacing_mm, strict=True)],
            "steps": chosen["steps"],
            "guidance": chosen["guidance"],
            "most": MOST,
            "new_masks": self.maker is not None,
            "hosts": [case.case_id for case in self.hosts],
            "jobs": [_job(job) for job in self.bench.jobs],
        }

    def drawn(self, asked: _Drawn) -> dict[str, Any]:
        """A mask of ellipsoids."""
        domain = self.model.domain
        shape, affine = domain.grid.shape, empty_affine(domain.grid)
        if asked.host is not None:
            shape, affine = nifti.geometry(self._host(asked.host).images[0])
        shapes = [Ellipsoid(**one.model_dump()) for one in asked.shapes]
        values = draw(shapes, domain.labels, shape, affine)
        return self._kept(values, affine, asked.host, [asdict(one) for one in shapes])

    def made(self, asked: _New) -> dict[str, Any]:
        """A mask of the model of masks."""
        if self.maker is None:
            raise DataError("no model of masks was given: start with --masks")
        for seed in range(asked.seed, asked.seed + _TRIES):
            (made,) = self.maker.make([seed], Wanted())
            if not isinstance(made, Rejected):
                return self._kept(made.values, made.affine, None, {"masks": self.maker.fingerprint, "seed": seed})
        raise DataError(f"no mask came of seeds {asked.seed} to {asked.seed + _TRIES - 1}: try another seed")

    def loaded(self, body: bytes) -> dict[str, Any]:
        """A mask that was sent as a NIfTI file."""
        gz = body[:2] == b"\x1f\x8b"
        with atomic_path(self.folder / ("sent.nii.gz" if gz else "sent.nii")) as sent:
            sent.write_bytes(body)
            values, affine = read_mask(sent, self.model.domain.labels)
            made = self._kept(values, affine, None, {"sent": True})
        (self.folder / ("sent.nii.gz" if gz else "sent.nii")).unlink(missing_ok=True)
        return made

    def wanted(self, asked: _Wanted) -> dict[str, Any]:
        """A job."""
        if not 0 <= asked.mask < len(self.masks):
            raise DataError(f"mask {asked.mask} does not exist: draw or load one first")
        mask = self.masks[asked.mask]
        if asked.host is not None and mask.host != asked.host:
            raise DataError("the mask does not lie on the grid of this scan: draw it again with the scan chosen")
        settings = {name: value for name in ("steps", "guidance") if (value := getattr(asked, name)) is not None}
        host = None if asked.host is None else self._host(asked.host)
        return _job(self.bench.submit(Order(mask.file, asked.seed, asked.count, settings, host)))

    def cancelled(self, number: int) -> dict[str, Any]:
        """A job that is to stop."""
        if not 1 <= number <= len(self.bench.jobs):
            raise DataError(f"job {number} does not exist")
        self.bench.cancel(number)
        return _job(self.bench.jobs[number - 1])

    def _host(self, number: int) -> Case:
        if not 0 <= number < len(self.hosts):
            raise DataError(f"scan {number} does not exist: there are {len(self.hosts)}")
        return self.hosts[number]

    def _kept(self, values: np.ndarray, affine: np.ndarray, host: int | None, how: Any) -> dict[str, Any]:
        """Writes a mask beside how it was made, and says how large its labels are."""
        with self._lock:  # requests come in threads of their own
            number = len(self.masks)
            file = self.folder / f"mask{self._before + number + 1:04d}.nii.gz"
            nifti.write(file, values.astype(np.int16), affine)
            write_json(file.with_name(file.name.removesuffix(".nii.gz") + ".json"), how)
            self.masks.append(_Mask(file, host))
        voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
        labels = self.model.domain.labels
        sizes = {
            name: float((values == value).sum()) * voxel_ml
            for value, name in zip(labels.values, labels.names, strict=True)
            if value
        }
        return {"mask": number, "volume": f"masks/{number}/volume.nii.gz", "ml": sizes}


def _job(job: Job) -> dict[str, Any]:
    """What the page is told of a job: no path of this machine, but the name of its folder."""
    return {
        "job": job.number,
        "state": job.state,
        "count": job.order.count,
        "done": len(job.volumes),
        "calls": job.calls,
        "error": job.error,
        "folder": job.folder.name,
        "volumes": [
            {"seed": seed, "images": [f"made/{job.number}/{seed}/{n}/volume.nii.gz" for n in range(len(images))]}
            for seed, images in list(job.volumes.items())
        ],
    }


class _Handler(LocalHandler):
    server: Studio

    def do_GET(self) -> None:  # noqa: N802 (as the base class calls it)
        """Answers a request for the page, the state of things, a mask or a volume."""
        parts = self.asked()
        if parts is None or self.sent_page(parts):
            return
        if parts == ["studio.json"]:
            self._say(self.server.told())
        else:
            self.send_file(self._file(parts))

    def do_POST(self) -> None:  # noqa: N802 (as the base class calls it)
        """Takes masks and requests; only the page itself may post, as its origin says."""
        parts = self.asked()
        if parts is None:
            return
        if self.headers.get("Origin") is None:
            return self.refuse(HTTPStatus.FORBIDDEN)
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _LARGEST:
            return self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        body = self.rfile.read(int(length))
        server = self.server
        takes: Mapping[str, Callable[[], dict[str, Any]]] = {
            "masks/drawn": lambda: server.drawn(self._parsed(_Drawn, body)),
            "masks/new": lambda: server.made(self._parsed(_New, body)),
            "masks/loaded": lambda: server.loaded(body),
            "jobs": lambda: server.wanted(self._parsed(_Wanted, body)),
        }
        asked = "/".join(parts)
        if len(parts) == 3 and parts[0] == "jobs" and parts[1].isdecimal() and parts[2] == "cancel":
            take: Callable[[], dict[str, Any]] | None = lambda: server.cancelled(int(parts[1]))  # noqa: E731
        else:
            take = takes.get(asked)
        if take is None:
            return self.refuse(HTTPStatus.NOT_FOUND)
        try:
            self._say(take())
        except (LatentsynthError, OSError) as error:
            self._say({"error": str(error)}, HTTPStatus.BAD_REQUEST)

    def _parsed(self, kind: type[Any], body: bytes) -> Any:
        try:
            value = parse_json(body.decode())
        except ValueError as error:
            raise DataError(f"the request is no JSON ({error})") from error
        if not isinstance(value, dict):
            raise DataError("the request is no object of JSON")
        return build(kind, value, "the request")

    def _say(self, value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send(json.dumps(value).encode(), "application/json", status)

    def _file(self, parts: list[str]) -> Path | None:
        """``masks/N/NAME`` and ``made/JOB/SEED/CHANNEL/NAME``: found by numbers, never by a path."""
        numbers = [int(part) for part in parts[1:-1] if part.isdecimal()]
        if len(parts) == 3 and parts[0] == "masks" and len(numbers) == 1 and numbers[0] < len(self.server.masks):
            return self.server.masks[numbers[0]].file
        if len(parts) == 5 and parts[0] == "made" and len(numbers) == 3:
            job, seed, channel = numbers
            if 1 <= job <= len(self.server.bench.jobs):
                images = self.server.bench.jobs[job - 1].volumes.get(seed, ())
                return images[channel] if channel < len(images) else None
        return None
