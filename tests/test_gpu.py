"""What only a GPU can show. Everywhere else these are skipped; `python -m benchmarks gpu` measures the rest."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from latentsynth.config import Run
from latentsynth.data.cache.loading import Positions
from latentsynth.errors import TrainingError
from latentsynth.randomness import CounterDraws, Stream, keyed_noise
from latentsynth.training.loop import Batch, Hooks, Player, fit, start_training
from latentsynth.training.run import RunFolder, read_metrics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SILENT = Hooks(lambda modules: {"score": 1.0}, lambda modules, path: None, lambda modules, scores: None)


def play(folder: Path, loss, images: int = 400) -> RunFolder:
    train = {"images": images, "batch": 4, "lr": 0.01, "log_every_images": 100, "save_every_images": images,
             "validate_every_images": images, "sample_every_images": images}  # fmt: skip
    config = Run.model_validate({"run": folder, "train": train})
    run = RunFolder(config, start_training(config.train))
    x = torch.arange(24.0, device="cuda").view(8, 3)
    torch.manual_seed(0)
    players = [Player("p", {"net": nn.Linear(3, 3)}, loss, config.train.lr)]
    try:
        fit(players, Positions(lambda n: {"x": x[n]}, 8, 0, on_device=True), run, config.train, SILENT)
    finally:
        run.close()
    return run


def noisy(modules, batch: Batch, state):
    """A loss with training noise, as a denoiser has."""
    noise = keyed_noise(0, batch["position"], (3,), Stream.NOISE)
    return (modules["net"](batch["x"] / 24 + noise) - 1).square().mean(), {}


def test_numbers_of_a_gpu_are_those_of_the_same_counters_on_a_cpu() -> None:
    positions = torch.arange(500)
    here, there = CounterDraws(3, positions, Stream.NOISE), CounterDraws(3, positions.cuda(), Stream.NOISE)
    torch.testing.assert_close(there.normal(4, 5).cpu(), here.normal(4, 5), atol=1e-5, rtol=1e-5)
    assert torch.equal(there.uniform(7).cpu(), here.uniform(7))
    assert keyed_noise(3, positions.cuda(), (4,), Stream.NOISE).is_cuda


def test_a_step_waits_for_nothing_but_what_is_logged(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run = play(tmp_path / "run", noisy)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in caught if "synchronizing" in str(one.message)]
    logs = len([row for row in read_metrics(run.path) if "seconds" in row])
    assert logs == 4
    assert len(waits) < 100  # steps; a handful at each log and at the end


def test_a_gradient_that_is_not_finite_stops_before_anything_is_logged(tmp_path: Path) -> None:
    def broken(modules, batch: Batch, state):
        value, logs = noisy(modules, batch, state)
        return value * (torch.nan if batch["seen"] == 40 else 1), logs

    with pytest.raises(TrainingError, match=r"not finite at 40 images"):
        play(tmp_path / "run", broken)
    assert not (tmp_path / "run" / "metrics.jsonl").is_file() or not read_metrics(tmp_path / "run")


def test_the_fused_optimizer_moves_as_the_plain_one() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(8, 8).cuda()
    fused = copy.deepcopy(plain)
    pair = [(net, torch.optim.AdamW(net.parameters(), 0.01, fused=way)) for net, way in ((plain, False), (fused, True))]
    for _ in range(20):
        for net, optimizer in pair:
            net(torch.ones(2, 8, device="cuda")).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(plain.weight, fused.weight, atol=1e-5, rtol=1e-4)
