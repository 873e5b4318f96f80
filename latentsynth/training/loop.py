"""One loop trains everything: a denoiser, a segmenter, an autoencoder with its discriminator, a GAN.

A :class:`Player` owns some modules and a loss; a game of two is two players. Everything counts in images seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from pydantic import Field
from torch import Tensor, nn

from latentsynth.config import TrainConfig
from latentsynth.data.cache.loading import Positions, Slices, batches
from latentsynth.errors import CheckpointError, PreemptedError, TrainingError
from latentsynth.parallel import start
from latentsynth.progress import bar
from latentsynth.strict import Strict, build
from latentsynth.tensors import check_tensors
from latentsynth.training.attention import use_xformers
from latentsynth.training.optim import Average, lr_factor
from latentsynth.training.preemption import Notice
from latentsynth.training.run import RunFolder
from latentsynth.training.state import random_state, restore_random_state

# Where every process holds all weights, which averages, checkpoints and states need.
_WHOLE = (
    "NO",
    "MULTI_CPU",
    "MULTI_GPU",
    "MULTI_NPU",
    "MULTI_MLU",
    "MULTI_SDAA",
    "MULTI_MUSA",
    "MULTI_XPU",
    "MULTI_HPU",
)


def start_training(config: TrainConfig, unused: bool = False) -> Accelerator:
    """:func:`latentsynth.parallel.start` with the precision and accumulation of a training configuration.

    Raises:
        TrainingError: As there; or the launch asks for weights that are spread over processes.
    """
    accelerator = start(config.precision, config.accumulation, unused)
    if accelerator.distributed_type.value not in _WHOLE:
        raise TrainingError(
            f"accelerate was told to spread weights over processes ({accelerator.distributed_type.value}), and averages and "
            "states are of whole weights: launch with plain data parallelism (docs/how-to/launch.md)"
        )
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # products of float32 in TF32, as cuDNN's convolutions already are
        torch.backends.cudnn.benchmark = True  # every step has the same shapes
    return accelerator


Batch = dict[str, Any]  # a collated item, the "position" of each row, and the images "seen" before this step
Modules = Mapping[str, nn.Module]
# (modules, batch, state) -> a loss that is a mean over the batch, and numbers to log. A player may leave tensors in
# the batch for the players after it (the reconstruction that a discriminator judges).
Loss = Callable[[Modules, Batch, dict[str, Any]], tuple[Tensor, dict[str, Tensor]]]


@dataclass
class Player:
    """One side of a game.

    Attributes:
        name: Prefix of what it logs.
        modules: What it trains, by name. Its loss gets these as the distributed wrapper made them, and everybody
            else's frozen and unwrapped.
        loss: See :data:`Loss`.
        lr: Learning rate.
        every: It moves once in so many steps (n_critic, lazy regularisers).
        after_images: It joins the game at this progress.
        state: What its loss remembers between steps (an image pool, a probability); checkpointed.
    """

    name: str
    modules: dict[str, nn.Module]
    loss: Loss
    lr: float
    every: int = 1
    after_images: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    optimizer: Any = field(default=None, init=False)

    def parameters(self) -> list[nn.Parameter]:
        """Everything it trains."""
        return [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]


@dataclass
class Hooks:
    """What a recipe does beside training. Each gets the averaged modules, in evaluation mode, on every process.

    Attributes:
        validate: Scores on validation patients.
        sketch: Writes a picture to the given path; called on every process, writes on the main one.
        export: Writes the checkpoint folder, given the last scores.
    """

    validate: Callable[[Modules], dict[str, float]]
    sketch: Callable[[Modules, Path], None]
    export: Callable[[Modules, dict[str, float]], None]


class _Counters(Strict):
    """How far a run has come."""

    images_seen: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0)
    cpu_seconds: float = Field(default=0.0, ge=0)


class _Training:
    """Everything that resumes: progress, weights and their averages, optimizers, what losses remember, random numbers.

    Args:
        accelerator: The processes that train.
        players: With their optimizers.
        averages: Of the first player's modules, by name.
    """

    def __init__(self, accelerator: Accelerator, players: list[Player], averages: Modules):
        self.accelerator, self.players = accelerator, players
        self.counters = _Counters()
        # Those of the players themselves: distributed wrappers around them hold the same weights under other names.
        self.modules = {f"{player.name}.{name}": m for player in players for name, m in player.modules.items()}
        self.modules |= {f"average.{name}": module for name, module in averages.items()}

    def sections(self) -> dict[str, Any]:
        """For :func:`latentsynth.training.state.write`. Every process has to ask for them."""
        scaler = self.accelerator.scaler
        return {
            "progress": self.counters.model_dump(),
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            # Its settings are those of the configuration; only the moments are kept.
            "optimizers": {
                player.name: {str(n): kept for n, kept in player.optimizer.state_dict()["state"].items()}
                for player in self.players
            },
            "memories": {player.name: player.state for player in self.players},
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": gather_object([random_state(self.accelerator.device)]),  # of every process
        }

    def restore(self, folder: Path, sections: Mapping[str, Any]) -> None:
        """Inverse of :meth:`sections`.

        Raises:
            CheckpointError: They are of other networks than these.
        """
        try:
            self._restore(folder, sections)
        except CheckpointError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise CheckpointError(
                f"{folder} is no state of this run ({reason}): remove it, or restore the run"
            ) from error

    def _restore(self, folder: Path, sections: Mapping[str, Any]) -> None:
        self.counters = build(_Counters, sections["progress"], str(folder))
        for name, module in self.modules.items():
            check_tensors(sections["modules"][name], module.state_dict(), f"{folder}, {name}")
        for name, module in self.modules.items():
            module.load_state_dict(sections["modules"][name])
        for player in self.players:
            moments = {int(n): kept for n, kept in sections["optimizers"][player.name].items()}
            for n, kept in moments.items():
                like = player.optimizer.param_groups[0]["params"][n]
                expected = {"step": torch.zeros(()), "exp_avg": like, "exp_avg_sq": like}
                check_tensors(kept, expected, f"{folder}, optimizer of {player.name}")
            groups = player.optimizer.state_dict()["param_groups"]
            player.optimizer.load_state_dict({"state": moments, "param_groups": groups})
            player.state.update(sections["memories"][player.name])
        if self.accelerator.scaler is not None and sections["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(sections["scaler"])
        rank = self.accelerator.process_index
        if rank < len(sections["random"]):  # of more processes than before, the new ones go on with their own
            restore_random_state(sections["random"][rank], self.accelerator.device)


def fit(players: list[Player], items: Positions, run: RunFolder, config: TrainConfig, hooks: Hooks) -> dict[str, float]:
    """Trains until ``config.images`` images were seen, from the newest state of the run folder if there is one.

    Args:
        players: Who trains; the first one's modules are averaged and handed to the hooks.
        items: Training items by position.
        run: Where everything goes.
        config: How long and how fast.
        hooks: Validation, pictures, checkpoint.

    Returns:
        The last validation scores.

    Raises:
        TrainingError: The batch does not divide over the processes, or a gradient is not finite.
        PreemptedError: SIGUSR1 came; the state is saved.
    """
    accelerator = run.accelerator
    own = {player.name: _prepared(player, config, accelerator) for player in players}
    first = players[0]
    averages = {
        name: Average(accelerator.unwrap_model(module), config.ema_halflife_images, config.batch)
        for name, module in own[first.name].items()
        if config.ema_halflife_images
    }
    training = _Training(accelerator, players, averages)
    found = run.read_state()
    if found is not None:
        training.restore(*found)
        accelerator.print(f"resuming {run.path} at {training.counters.images_seen} images")
    progress = training.counters
    run.forget_after(progress.images_seen)

    def shared() -> Modules:
        """The modules that hooks and checkpoints see."""
        kept = {
            name: averages[name].module if averages else accelerator.unwrap_model(m)
            for name, m in own[first.name].items()
        }
        return {name: module.eval() for name, module in kept.items()}

    seen, total = progress.images_seen, -(-config.images // config.batch) * config.batch
    # Families are compared at equal CPU seconds, which other work on the machine does not stretch.
    began, began_cpu = time.monotonic() - progress.seconds, time.process_time() - progress.cpu_seconds
    slices = Slices(
        seen, total, config.batch, config.accumulation, accelerator.process_index, accelerator.num_processes
    )
    loader = batches(items, slices, config.workers)
    wrapped_modules = [module for modules in own.values() for module in modules.values()]
    running: dict[str, list[Tensor]] = {}
    gradients = _Gradients(run)
    scores: dict[str, float] = {}
    with (
        Notice() as notice,
        bar(f"training {run.path.name}", total, "images", accelerator.is_main_process, seen) as shown,
    ):
        for batch in loader:
            batch = {**_to_device(batch, accelerator.device), "seen": seen}
            with accelerator.accumulate(*wrapped_modules):
                for player in players:
                    if seen < player.after_images or (seen // config.batch) % player.every:
                        continue
                    for name, value in _move(player, own, batch, accelerator, config, seen, gradients).items():
                        running.setdefault(f"{player.name}/{name}", []).append(value.detach())
            if not accelerator.sync_gradients:
                continue
            seen += config.batch
            for name, model in averages.items():
                model.update(accelerator.unwrap_model(own[first.name][name]), seen)
            due = _due(config, seen, total)
            ends = due["log"] and seen < total and notice.given(accelerator)
            if any(due.values()):
                gradients.check()
            seconds, cpu_seconds = time.monotonic() - began, time.process_time() - began_cpu
            note = ""
            if due["log"]:
                values = {key: float(accelerator.reduce(torch.stack(v).mean(), "mean")) for key, v in running.items()}
                running.clear()
                run.log(
                    seen,
                    {
                        **values,
                        "lr": first.lr * lr_factor(config, seen),
                        "seconds": seconds,
                        "cpu_seconds": cpu_seconds,
                    },
                )
                note = " ".join(f"{key.split('/')[-1]} {value:.3g}" for key, value in list(values.items())[:1])
            shown.advance(config.batch, note)
            if due["validate"]:
                scores = hooks.validate(shared())
                run.log(seen, {f"val/{key}": value for key, value in scores.items()})
                hooks.export(shared(), scores)
            if due["sample"]:
                hooks.sketch(shared(), run.path / "samples" / f"{seen:010d}.png")
            if due["save"] or ends:
                training.counters = _Counters(images_seen=seen, seconds=seconds, cpu_seconds=cpu_seconds)
                run.save_state(seen, training.sections())
            if ends:
                run.close()
                raise PreemptedError(
                    f"told to end (SIGUSR1): {run.path} saved its state at {seen} images; the same command goes on"
                )
    if not scores:  # resumed at the very end: the work was done, its scores are on disk
        scores = hooks.validate(shared())
        hooks.export(shared(), scores)
    accelerator.wait_for_everyone()
    run.close()
    return scores


def _prepared(player: Player, config: TrainConfig, accelerator: Accelerator) -> dict[str, nn.Module]:
    """Gives a player its optimizer; returns its modules as they train on this device and beside other processes."""
    if config.attention == "xformers":
        use_xformers(player.modules, accelerator.device)
    if config.compile:
        for module in player.modules.values():
            module.compile()
    optimizer = torch.optim.AdamW(
        player.parameters(),
        player.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=accelerator.device.type == "cuda",  # elsewhere what it was, so that results stand
    )
    *wrapped, player.optimizer = accelerator.prepare(*player.modules.values(), optimizer)
    return dict(zip(player.modules, wrapped, strict=True))


class _Gradients:
    """Whether gradients are finite; of a GPU this is asked before anything is logged or written, not at every step."""

    def __init__(self, run: RunFolder):
        self.run = run
        self._pending: list[tuple[str, int, Tensor, Tensor]] = []

    def of(self, player: str, seen: int, norm: Tensor, loss: Tensor) -> None:
        """Notes the norm of a player's gradient, and its loss, after so many images; raises as :meth:`check`."""
        self._pending.append((player, seen, norm, loss))
        if norm.device.type == "cpu":  # where asking costs nothing, weights stay good
            self.check()

    def check(self) -> None:
        """Refuses to go on after a gradient that was not finite.

        Raises:
            TrainingError: With the first one, and the last state before it.
        """
        pending, self._pending = self._pending, []
        if not pending or bool(torch.isfinite(torch.stack([norm for _, _, norm, _ in pending])).all()):
            return
        player, seen, _, loss = next(one for one in pending if not bool(torch.isfinite(one[2])))
        raise TrainingError(
            f"{player}: the gradient is not finite at {seen} images (loss {float(loss):g}). "
            f"The last good state is {next(iter(self.run.states()), 'none yet')}. Try a lower train.lr, "
            "train.precision=no, a smaller train.grad_clip or a longer train.lr_warmup_images, and run again"
        )


def _move(
    player: Player,
    own: dict[str, dict[str, nn.Module]],
    batch: Batch,
    accelerator: Accelerator,
    config: TrainConfig,
    seen: int,
    gradients: _Gradients,
) -> dict[str, Tensor]:
    """One micro-batch of one player; the optimizer steps when the batch is complete."""
    modules: dict[str, nn.Module] = {}
    frozen: list[nn.Parameter] = []
    for name, theirs in own.items():
        for key, module in theirs.items():
            if name == player.name:
                modules[key] = module.train()
                continue
            # Unwrapped: a distributed wrapper would wait for gradients that a frozen opponent never gets.
            modules[key] = accelerator.unwrap_model(module)
            frozen += [p for p in modules[key].parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    with accelerator.autocast():
        loss, logs = player.loss(modules, batch, player.state)
    accelerator.backward(loss)
    for parameter in frozen:
        parameter.requires_grad_(True)
    if accelerator.sync_gradients:
        # The norm is of the averaged gradient, so every process sees the same number and they stop together.
        norm = torch.as_tensor(accelerator.clip_grad_norm_(player.parameters(), config.grad_clip))
        gradients.of(player.name, seen, norm, loss.detach())
        for group in player.optimizer.param_groups:
            group["lr"] = player.lr * lr_factor(config, seen)
        player.optimizer.step()
        player.optimizer.zero_grad()
    return {"loss": loss, **logs}


def _due(config: TrainConfig, seen: int, total: int) -> dict[str, bool]:
    """What comes after a step: whether a multiple of its images was passed in it, or training is over."""
    every = {
        "log": config.log_every_images,
        "validate": config.validate_every_images,
        "sample": config.sample_every_images,
        "save": config.save_every_images,
    }
    return {name: seen // n != (seen - config.batch) // n or seen >= total for name, n in every.items()}


def _to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device, what travelled in half precision or as booleans in float32."""
    moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
    return {k: v.float() if getattr(v, "dtype", None) in (torch.half, torch.bool) else v for k, v in moved.items()}
