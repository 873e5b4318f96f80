"""Earlier fakes that a discriminator is shown again, so that it does not forget (Shrivastava et al. 2017, sec. 2.3)."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import gather
from torch import Tensor

from latentsynth.randomness import Stream, keyed_uniform
from latentsynth.training.loop import Batch


def from_pool(state: dict[str, Any], fakes: Tensor, batch: Batch, size: int, seed: int) -> Tensor:
    """The fakes, each with probability 1/2 exchanged for one of the last ``size``.

    Every process keeps the same pool of all processes' fakes, so that a run resumes exactly on any of them.

    Args:
        state: Where the pool lives between steps (key ``pool``).
        fakes: ``(B, ...)``, this process's.
        batch: Its ``position`` decides what is exchanged.
        size: Of the pool; 0 exchanges nothing.
        seed: Of the run.
    """
    if not size:
        return fakes
    pool: list[Tensor] = state.setdefault("pool", [])
    positions = batch["position"].to(fakes.device)
    everybody: Tensor = gather(fakes.contiguous())
    where: Tensor = gather(positions)
    swap, which = (keyed_uniform(seed, where.cpu(), stream) for stream in (Stream.POOL_SWAP, Stream.POOL_PLACE))
    shown = []
    for n, fake in enumerate(everybody):
        if len(pool) < size:
            pool.append(fake.cpu().clone())
            shown.append(fake)
        elif float(swap[n]) < 0.5:
            place = int(float(which[n]) * size)
            shown.append(pool[place].to(fakes))
            pool[place] = fake.cpu().clone()
        else:
            shown.append(fake)
    mine = [shown[int((where == p).nonzero()[0, 0])] for p in positions]
    return torch.stack(mine)
