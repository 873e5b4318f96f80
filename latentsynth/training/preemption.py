"""SIGUSR1 tells a training that its machine is about to be taken away, as batch systems do with a notice of minutes."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator


class Notice:
    """Whether this process was told to end; listens inside a ``with`` block.

    The signal alone changes nothing: the training asks where all processes stand at one step, saves its state there, and
    ends. Outside of the block SIGUSR1 ends a process, as it does by default.
    """

    _signal = getattr(signal, "SIGUSR1", None)  # Windows has none

    def __init__(self) -> None:
        self._told = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if self._signal is not None and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(self._signal, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._signal is not None and self._before is not None:
            signal.signal(self._signal, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def given(self, accelerator: Accelerator) -> bool:
        """Whether any process was told; all of them must ask."""
        if accelerator.num_processes == 1:
            return self._told
        told = torch.tensor(float(self._told), device=accelerator.device)
        return bool(accelerator.reduce(told, "sum"))
