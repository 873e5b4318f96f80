"""The loop: two players, accumulation, lazy moves, frozen opponents, a loss that breaks, and trackers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from torch import Tensor, nn

from latentsynth.config import Run
from latentsynth.data.cache.loading import Positions
from latentsynth.errors import TrainingError
from latentsynth.parallel import start
from latentsynth.training.loop import Hooks, Player, fit, start_training
from latentsynth.training.optim import Average, lr_factor
from latentsynth.training.run import RunFolder, read_metrics

SILENT = Hooks(lambda modules: {"score": 1.0}, lambda modules, path: None, lambda modules, scores: None)


def run_config(folder: Path, **train: object) -> Run:
    defaults = {
        "images": 16,
        "batch": 4,
        "lr": 0.1,
        "lr_warmup_images": 0,
        "lr_schedule": "constant",
        "log_every_images": 4,
    }
    return Run.model_validate({"run": folder, "train": {**defaults, **train}})


def item(n: int) -> dict[str, Tensor]:
    return {"x": torch.full((3,), float(n))}


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def play(folder: Path, players: list[Player], **train: object) -> RunFolder:
    config = run_config(folder, **train)
    run = RunFolder(config, start_training(config.train))
    try:
        fit(players, Positions(item, 8, 0), run, config.train, SILENT)
    finally:
        run.close()
    return run


def error(name: str):
    """A mean squared error of the player's own module."""

    def loss(modules, batch, state):
        state["moves"] = state.get("moves", 0) + 1
        return (modules[name](batch["x"]) - 1).square().mean(), {}

    return loss


def test_both_players_step_when_the_batch_is_accumulated(tmp_path: Path) -> None:
    a, b = linear(0), linear(1)
    before = [m.weight.detach().clone() for m in (a, b)]
    play(tmp_path, [Player("a", {"a": a}, error("a"), 0.1), Player("b", {"b": b}, error("b"), 0.1)], accumulation=2)
    assert not torch.equal(a.weight, before[0])
    assert not torch.equal(b.weight, before[1])


def test_accumulation_does_not_change_the_weights(tmp_path: Path) -> None:
    weights = []
    for parts in (1, 2, 4):
        model = linear()
        play(tmp_path / str(parts), [Player("a", {"a": model}, error("a"), 0.1)], accumulation=parts)
        weights.append(model.weight.detach())
    assert torch.allclose(weights[0], weights[1], atol=1e-5)
    assert torch.allclose(weights[0], weights[2], atol=1e-5)


def test_a_lazy_player_moves_once_in_so_many_steps_and_a_late_one_joins_late(tmp_path: Path) -> None:
    players = [
        Player("always", {"a": linear()}, error("a"), 0.1),
        Player("lazy", {"b": linear()}, error("b"), 0.1, every=2),
        Player("late", {"c": linear()}, error("c"), 0.1, after_images=8),
    ]
    play(tmp_path, players)
    assert [player.state["moves"] for player in players] == [4, 2, 2]


def test_an_opponent_is_frozen_while_another_moves(tmp_path: Path) -> None:
    seen: list[bool] = []

    def uses_both(modules, batch, state):
        seen.append(all(not p.requires_grad for p in modules["b"].parameters()))
        return (modules["a"](batch["x"]) + modules["b"](batch["x"])).square().mean(), {}

    b = linear(1)
    before = b.weight.detach().clone()
    play(
        tmp_path,
        [Player("a", {"a": linear()}, uses_both, 0.1), Player("b", {"b": b}, error("b"), 0.1, after_images=99)],
    )
    assert seen
    assert all(seen)
    assert torch.equal(b.weight, before)
    assert all(p.requires_grad for p in b.parameters())


def test_a_loss_that_breaks_stops_with_the_last_good_state_kept(tmp_path: Path) -> None:
    model = linear()

    def breaks(modules, batch, state):
        loss = modules["a"](batch["x"]).square().mean()
        return loss * float("nan") if int(batch["position"].min()) >= 8 else loss, {}

    with pytest.raises(TrainingError, match=r"not finite at 8 images.*0000000008.*train.lr"):
        play(tmp_path, [Player("a", {"a": model}, breaks, 0.1)], save_every_images=4)
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["0000000004", "0000000008"]
    assert torch.isfinite(model.weight).all()


def test_two_states_are_kept_and_metrics_are_complete(tmp_path: Path) -> None:
    run = play(tmp_path, [Player("a", {"a": linear()}, error("a"), 0.1)], save_every_images=4)
    assert sorted(p.name for p in (run.path / "state").iterdir()) == ["0000000012", "0000000016"]
    lines = read_metrics(run.path)
    assert [line["images_seen"] for line in lines if "a/loss" in line] == [4, 8, 12, 16]
    assert lines[-1]["val/score"] == 1.0


def test_a_run_folder_refuses_other_settings_but_not_a_longer_training(tmp_path: Path) -> None:
    play(tmp_path, [Player("a", {"a": linear()}, error("a"), 0.1)])
    play(tmp_path, [Player("a", {"a": linear()}, error("a"), 0.1)], images=24)
    assert read_metrics(tmp_path)[-1]["images_seen"] == 24
    other = run_config(tmp_path).model_copy(update={"seed": 1})
    with pytest.raises(TrainingError, match="differ in seed"):
        RunFolder(other, start())
    with pytest.raises(TrainingError, match=r"differ in train\.batch"):
        play(tmp_path, [Player("a", {"a": linear()}, error("a"), 0.1)], batch=8)


def test_two_trainings_in_one_folder_are_refused(tmp_path: Path) -> None:
    first = RunFolder(run_config(tmp_path), start())
    with pytest.raises(TrainingError, match="another process is training"):
        RunFolder(run_config(tmp_path), start())
    first.close()
    RunFolder(run_config(tmp_path), start()).close()


def test_torn_metrics_of_a_killed_run_are_dropped(tmp_path: Path) -> None:
    run = play(tmp_path, [Player("a", {"a": linear()}, error("a"), 0.1)])
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"images_seen": 99, "a/loss": 1}\n{"images_se')
    run.forget_after(16)
    assert max(line["images_seen"] for line in read_metrics(tmp_path)) == 16


def test_several_launched_processes_that_would_run_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, value in (("RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match="ACCELERATE_USE_CPU=true"):
        start()


def test_learning_rate_warms_up_and_decays() -> None:
    train = run_config(Path("x"), images=1000, batch=10, lr_warmup_images=100, lr_schedule="cosine").train
    factors = [lr_factor(train, seen) for seen in range(0, 1001, 10)]
    assert factors[0] == pytest.approx(10 / 110)
    assert max(factors) == pytest.approx(1.0)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.01)


def test_the_average_halves_its_memory_every_half_life_and_keeps_buffers() -> None:
    model = nn.BatchNorm1d(2)
    kept = Average(model, halflife_images=40, batch=10)
    kept.update(model, 10)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.running_mean.fill_(4.0)
        model.num_batches_tracked.fill_(7)
    for n in range(4):  # one half-life, late enough that it is not shortened
        kept.update(model, 1000 + 10 * n)
    assert torch.allclose(kept.module.weight, torch.full((2,), 1.5), atol=1e-5)
    assert torch.allclose(kept.module.running_mean, torch.full((2,), 2.0), atol=1e-5)
    assert int(kept.module.num_batches_tracked) == 7


class Stub(GeneralTracker):
    """Keeps what it is told; stands in for Weights & Biases, with whose arguments it is made."""

    name = "wandb"
    requires_logging_directory = False
    made: list[Stub]

    def __init__(self, run_name: str, **settings: str) -> None:
        super().__init__()
        self.project, self.settings, self.told, self.finished = run_name, settings, [], 0
        Stub.made.append(self)

    @property
    def tracker(self) -> Stub:
        return self

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.stored = values

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        self.told.append((step or 0, values))

    def finish(self) -> None:
        self.finished += 1


def test_metrics_arrive_with_their_image_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Stub)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])
    Stub.made = []
    run = play(
        tmp_path / "run",
        [Player("a", {"a": linear()}, error("a"), 0.1)],
        tracker="wandb",
        images=16,
        batch=4,
        log_every_images=4,
    )
    (stub,) = Stub.made
    lines = read_metrics(run.path)
    assert [step for step, _ in stub.told] == [line["images_seen"] for line in lines]
    assert {4, 8, 12, 16} <= {step for step, _ in stub.told}
    for (_, values), line in zip(stub.told, lines, strict=True):
        assert {key: pytest.approx(value, abs=1e-7) for key, value in values.items()} == {
            key: value for key, value in line.items() if key != "images_seen"
        }
    assert stub.settings == {"dir": str(run.path), "name": "run"}
    assert (stub.project, stub.stored["train.batch"], stub.stored["train.betas"]) == ("latentsynth", 4, "[0.9, 0.99]")
    assert stub.finished == 1


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(TrainingError, match=f"train.tracker={name} needs the package {name}"):
        play(tmp_path / "run", [Player("a", {"a": linear()}, error("a"), 0.1)], tracker=name)
