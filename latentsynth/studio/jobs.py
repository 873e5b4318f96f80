"""Volumes made one request after the other, in a thread of their own: progress, cancelling, nothing lost."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from torch import nn

from latentsynth.data.exchange.requests import Request
from latentsynth.data.exchange.samples import name_of
from latentsynth.errors import DataError, LatentsynthError
from latentsynth.synthesis import synthesize
from latentsynth.synthesizers import LatentDiffusion
from latentsynth.types import Case

State = Literal["queued", "running", "done", "cancelled", "failed"]
MOST = 16  # volumes of one request


class JobCancelledError(LatentsynthError):
    """A request was cancelled while its volume was made."""


@dataclass(frozen=True)
class Order:
    """What to make.

    Attributes:
        mask: File of the label map.
        seed: First seed.
        count: Volumes, of consecutive seeds.
        settings: Sampling settings of the model.
        host: Scan to paint the lesion into, or None.
    """

    mask: Path
    seed: int = 0
    count: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    host: Case | None = None


@dataclass
class Job:
    """An order, and how far it is.

    Attributes:
        number: From 1.
        order: What to make.
        folder: Where its volumes are: a cohort like any other.
        state: Where it stands.
        calls: Calls of the network so far.
        volumes: Images of every finished volume, by seed.
        error: Why it failed.
    """

    number: int
    order: Order
    folder: Path
    state: State = "queued"
    calls: int = 0
    volumes: dict[int, tuple[Path, ...]] = field(default_factory=dict)
    error: str = ""


class Bench:
    """Makes volumes for orders, one after the other; :meth:`close` ends it.

    The volumes are those of :func:`latentsynth.synthesis.synthesize` for the same mask, seeds and settings.

    Args:
        model: What paints.
        out: Folder of all jobs.
        accelerator: Of this process.
    """

    def __init__(self, model: LatentDiffusion, out: Path, accelerator: Accelerator):
        self.model, self.out, self.accelerator = model, out, accelerator
        self.jobs: list[Job] = []
        earlier = [int(place.name) for place in out.glob("[0-9]" * 4)] if out.is_dir() else []
        self._before = max(earlier, default=0)  # of an earlier session, which stay as they are
        self._waiting: queue.Queue[Job | None] = queue.Queue()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="painting", daemon=True)
        self._thread.start()

    def submit(self, order: Order) -> Job:
        """Takes an order.

        Raises:
            DataError: Too many volumes, or a seed that is none.
            ConfigError: An impossible setting.
        """
        if not 1 <= order.count <= MOST or not 0 <= order.seed < 2**31:
            raise DataError(
                f"{order.count} volumes from seed {order.seed}: ask for 1 to {MOST}, from a seed that is 0 or more"
            )
        self.model.settings(**order.settings)
        with self._lock:
            number = len(self.jobs) + 1
            job = Job(number, order, self.out / f"{self._before + number:04d}")
            self.jobs.append(job)
        self._waiting.put(job)
        return job

    def cancel(self, number: int) -> None:
        """Stops a job before its next call of the network; volumes that are finished stay."""
        with self._lock:
            job = self.jobs[number - 1]
            if job.state in ("queued", "running"):
                job.state = "cancelled"

    def close(self) -> None:
        """Cancels what is left and waits for the thread."""
        for job in self.jobs:
            self.cancel(job.number)
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            with self._lock:
                if job.state == "cancelled":
                    continue
                job.state = "running"
            try:
                self._make(job)
            except JobCancelledError:
                continue
            except Exception as error:  # whatever it is, the next request must be served
                job.state, job.error = "failed", str(error) or repr(error)
                continue
            with self._lock:
                if job.state == "running":
                    job.state = "done"

    def _make(self, job: Job) -> None:
        order = job.order
        request = Request(order.mask.name.removesuffix(".nii.gz"), order.mask)
        if order.host is not None:
            request = Request(request.name, order.mask, (order.host.patient_id,))

        def before(module: nn.Module, given: object) -> None:
            if job.state == "cancelled":
                raise JobCancelledError("cancelled")
            job.calls += 1

        watch = self.model.denoiser.register_forward_pre_hook(before)
        try:
            for count in range(1, order.count + 1):  # a second call makes what is missing
                hosts: Sequence[Case] = [] if order.host is None else [order.host]
                manifest = synthesize(
                    self.model,
                    [request],
                    job.folder,
                    self.accelerator,
                    count,
                    order.seed,
                    1,
                    hosts=hosts,
                    **order.settings,
                )
                images = {case.case_id: case.images for case in manifest.cases}
                job.volumes = {order.seed + n: images[name_of(request, order.seed + n)] for n in range(count)}
        finally:
            watch.remove()
