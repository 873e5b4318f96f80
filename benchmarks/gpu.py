"""What a GPU does with the library: every family steps in bf16, and how much of the card a training step uses.

`python -m benchmarks gpu` prints one table and, with `--out`, writes the same numbers as JSON. It needs torch, MONAI,
diffusers, nibabel and pydantic, no network and no data. `--small` is the same at a size that a CPU can do, to see that it
runs. A part that fails says so in its row; the others go on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from latentsynth import config as configuration
from latentsynth.autoencoders import Autoencoder, Moments, build_autoencoder
from latentsynth.config import AutoencoderRun, LdmRun, Run
from latentsynth.data.cache.loading import Positions
from latentsynth.data.cache.volumes import one_hot_flags
from latentsynth.data.intake.prepare import prepare
from latentsynth.phantom.cohort import write_cohort
from latentsynth.strict import read_yaml
from latentsynth.training.loop import Hooks, Loss, Player, fit, start_training
from latentsynth.training.recipes import train
from latentsynth.training.recipes.ldm import DenoiserLoss, build_conditioner, build_denoiser
from latentsynth.training.recipes.reconstruction import GeneratorLoss
from latentsynth.training.run import RunFolder, read_metrics
from latentsynth.types import Domain, Framing, Grid, Labels, Window

CONFIGS = Path(__file__).parents[1] / "configs"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LABELS = Labels((0, 1, 2, 3), ("background", "necrosis", "oedema", "tumour"))
PRECISION = (
    "bf16" if DEVICE.type == "cuda" else "no"
)  # CPUs without bf16 units are slow in it, and some torch kernels wrong
ITEMS = 16  # different volumes in a measured training
SILENT = Hooks(lambda modules: {"score": 0.0}, lambda modules, path: None, lambda modules, scores: None)


@dataclass
class Row:
    """One thing that was measured.

    Attributes:
        what: Its name.
        rate: Images per second.
        tflops: Of the forward and the backward pass, per second.
        share: Of the rate of a large matrix product on the same card.
        gib: Peak memory of the device.
        stops: How often a step waited for the device, four logs apart.
        note: Anything else, and what went wrong.
    """

    what: str
    rate: float | None = None
    tflops: float | None = None
    share: float | None = None
    gib: float | None = None
    stops: float | None = None
    note: str = ""


@dataclass
class Report:
    """All rows, and the card's own rate in TFLOP/s."""

    product: float
    rows: list[Row] = field(default_factory=list)

    def add(self, what: str, work: Callable[[], Row]) -> None:
        """Measures one thing; a failure is a row too."""
        print(f"{what} ...", file=sys.stderr, flush=True)
        try:
            row = work()
        except Exception as error:  # the table is worth more than the traceback of one row
            row = Row(what, note=f"failed: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
        if row.tflops and self.product:
            row.share = row.tflops / self.product
        self.rows.append(row)
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()

    def table(self) -> str:
        """For people."""
        lines = [
            "| what | images/s | TFLOP/s | of the product | GiB | stops a step | |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            numbers = [
                f"{row.rate:.4g}" if row.rate is not None else "",
                f"{row.tflops:.3g}" if row.tflops is not None else "",
                f"{row.share:.0%}" if row.share is not None else "",
                f"{row.gib:.2f}" if row.gib is not None else "",
                f"{row.stops:.2g}" if row.stops is not None else "",
            ]
            lines.append(f"| {row.what} | {' | '.join(numbers)} | {row.note} |")
        return "\n".join(lines)


def wait() -> None:
    """Until the device has done everything."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak_gib() -> float | None:
    """The device's peak memory since it was last reset."""
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else None


def product(size: int) -> float:
    """TFLOP/s of a bf16 matrix product."""
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    wait()
    began, repeats = time.perf_counter(), 10
    for _ in range(repeats):
        a @ b
    wait()
    return 2 * size**3 * repeats / (time.perf_counter() - began) / 1e12


class Watched:
    """A loss that has torch tell, from its second call to its last, how often Python waits for the device.

    Args:
        loss: The loss.
        calls: How often it will be called; what comes after the last belongs to no step.
    """

    def __init__(self, loss: Loss, calls: int):
        self.loss, self.calls, self.called = loss, calls, 0

    def __call__(self, modules: Any, batch: Any, state: Any) -> Any:
        self.called += 1
        if DEVICE.type == "cuda" and self.called in (2, self.calls):
            torch.cuda.set_sync_debug_mode("warn" if self.called == 2 else "default")
        return self.loss(modules, batch, state)


def places(caught: list[warnings.WarningMessage]) -> Counter[str]:
    """Where Python waited, and how often."""
    waits = [one for one in caught if "synchronizing" in str(one.message)]
    return Counter(f"{Path(one.filename).name}:{one.lineno}" for one in waits)


def training(what: str, config: Run, players: list[Player], item: Callable[[int], dict[str, Any]]) -> Row:
    """A whole training as the library runs it, over items that lie on the device; the first third warms up."""
    steps = config.train.images // config.train.batch
    accelerator = start_training(config.train)
    flops = _flops(players[0], item)
    run = RunFolder(config, accelerator)
    items = Positions(item, ITEMS, config.seed, on_device=True)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    players[0].loss = Watched(players[0].loss, steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(players, items, run, config.train, SILENT)
    wait()
    logged = [row for row in read_metrics(run.path) if "seconds" in row]
    first, last = logged[len(logged) // 3], logged[-1]
    rate = (last["images_seen"] - first["images_seen"]) / (last["seconds"] - first["seconds"])
    per_step = {place: n / (steps - 2) for place, n in places(caught).items()}
    note = ", ".join(f"{n:.1f} at {place}" for place, n in sorted(per_step.items()))
    return Row(what, rate, rate * flops / 1e12, None, peak_gib(), sum(per_step.values()), note)


def _flops(player: Player, item: Callable[[int], dict[str, Any]]) -> float:
    """Operations of an image's forward and backward pass."""
    rows = {key: torch.stack([item(0)[key]]).float().to(DEVICE) for key in item(0)}
    modules = {name: module.to(DEVICE) for name, module in player.modules.items()}
    with FlopCounterMode(display=False) as counter:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss, _ = player.loss(modules, {**rows, "position": torch.arange(1, device=DEVICE), "seen": 0}, {})
        loss.backward()
    for module in modules.values():
        module.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def _train(images: int, batch: int, **more: Any) -> dict[str, Any]:
    return {
        "images": images,
        "batch": batch,
        "lr": 1e-4,
        "precision": PRECISION,
        "log_every_images": images // 5,
        "save_every_images": images,
        "validate_every_images": images,
        "sample_every_images": images,
        **more,
    }


def _domain(side: int, channels: int) -> Domain:
    grid = Grid((side,) * 3, (1.0, 1.0, 1.0), (Window("fixed", 0.0, 1.0),) * channels)
    return Domain(grid, Framing(), LABELS, tuple(f"channel {n}" for n in range(channels)), ((0.0, 1.0),) * channels)


def denoiser(folder: Path, side: int, batch: int, steps: int, **changes: Any) -> Row:
    """The denoiser of the 24 GB configuration on latents of a volume of ``side`` voxels, four times smaller."""
    values = read_yaml(CONFIGS / "generator" / "ldm_gpu24_128.yaml")
    name = f"denoiser {side // 4}^3 x 16, batch {batch}" + "".join(f", {k} {v}" for k, v in changes.items())
    values |= {"run": str(folder / name.replace(" ", "-")), "train": _train(batch * steps, batch, **changes)}
    config = configuration.build(LdmRun, values, "benchmark")
    autoencoder = built().to(DEVICE)
    domain = _domain(side, 4)
    conditioner = build_conditioner(config.conditioner, len(LABELS), autoencoder.factors).to(DEVICE)
    network = build_denoiser(config, autoencoder.latent_channels, conditioner.channels)
    loss = DenoiserLoss(config, autoencoder, conditioner, domain)
    cells = autoencoder.latent_shape(domain.grid.shape)
    mean = torch.randn(ITEMS, *cells, device=DEVICE)
    mask = _masks(side)

    def item(n: int) -> dict[str, Any]:
        return {"mean": mean[n], "deviation": mean[n].abs() * 0.05, "mask": mask[n]}

    return training(name, config, [Player("denoiser", {"denoiser": network}, loss, config.train.lr)], item)


def config_of_autoencoder() -> AutoencoderRun:
    """The autoencoder of the 24 GB configuration."""
    return configuration.load(AutoencoderRun, CONFIGS / "autoencoder" / "gpu24_128_4ch.yaml")


def built() -> Autoencoder:
    """That autoencoder with random weights, its latent scale set."""
    model = build_autoencoder(config_of_autoencoder().autoencoder, 4)
    mean = torch.randn(1, model.latent_channels, 8, 8, 8)
    model.fit_latent_stats([Moments(mean, torch.full_like(mean, 0.05))])
    return model


def autoencoder(folder: Path, side: int, batch: int, steps: int) -> Row:
    """The autoencoder of the 24 GB configuration, without its discriminator."""
    name = f"autoencoder {side}^3 x 4, batch {batch}"
    values = read_yaml(CONFIGS / "autoencoder" / "gpu24_128_4ch.yaml")
    values |= {"run": str(folder / name.replace(" ", "-")), "train": _train(batch * steps, batch)}
    values["loss"] = {"lesion_weight": 2.0}
    config = configuration.build(AutoencoderRun, values, "benchmark")
    model = build_autoencoder(config.autoencoder, 4)
    loss = GeneratorLoss(config.loss, [1, 2, 3], model.latent_shape, model.last_layer, config.seed)
    image = torch.rand(ITEMS, 4, side, side, side, device=DEVICE).half() * 2 - 1
    mask = _masks(side)
    players = [Player("autoencoder", {"autoencoder": model}, loss, config.train.lr)]
    return training(name, config, players, lambda n: {"image": image[n], "mask": mask[n]})


def _masks(side: int) -> Tensor:
    """One-hot masks, ``(items, L, I, J, K)``."""
    index = torch.randint(0, len(LABELS), (ITEMS, side, side, side), device=DEVICE)
    return one_hot_flags(index, len(LABELS))


@torch.no_grad()
def decoding(side: int) -> Row:
    """Latents to a volume, in bf16."""
    model = built().to(DEVICE).eval()
    z = torch.randn(1, *model.latent_shape((side,) * 3), device=DEVICE)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        model.decode(z)
        wait()
        began = time.perf_counter()
        for _ in range(3):
            model.decode(z)
        wait()
    return Row(f"decode {side}^3 x 4", 3 / (time.perf_counter() - began), gib=peak_gib())


def family(file: Path) -> Row:
    """A family's debug configuration, from data to checkpoint."""
    values = read_yaml(file)
    values["train"] = {**values["train"], "precision": PRECISION}
    began = time.perf_counter()
    train(configuration.build(configuration.run_of(values), values, str(file)))
    return Row(
        f"training of {file.stem} in {PRECISION}",
        note=f"runs, {time.perf_counter() - began:.1f} s from start to checkpoint",
    )


def families(report: Report) -> None:
    """Every family on phantoms, in the working folder."""
    write_cohort(Path("runs/debug/cohort"), 10, 0, shape=(32, 32, 32), spacing_mm=(6.0, 6.0, 6.0))
    prepare(Path("runs/debug/cohort"), Path("runs/debug/manifest.json"))
    debug = CONFIGS / "debug"
    first = [debug / f"{name}.yaml" for name in ("autoencoder", "ldm", "segmenter")]
    for file in [*first, *sorted((debug / "gan").glob("*.yaml"))]:
        report.add(file.stem, lambda file=file: family(file))


def main(arguments: list[str]) -> None:
    """Measures everything and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the numbers here too, as JSON")
    parser.add_argument("--small", action="store_true", help="at a size that a CPU can do")
    parser.add_argument("--families", action="store_true", help="only whether every family trains in bf16")
    parser.add_argument("--rates", action="store_true", help="only how fast networks are")
    chosen = parser.parse_args(arguments)
    out = chosen.out.resolve() if chosen.out else None
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        report = Report(product(512 if chosen.small else 8192))
        folder = Path(name) / "measured"
        if not chosen.families:
            measure(report, folder, chosen.small)
        if not (chosen.families or chosen.rates or chosen.small):
            report.add("denoiser 128 compiled", lambda: denoiser(folder, 128, 8, 60, compile=True))
        if not chosen.rates:
            families(report)
        os.chdir("/")
    machine = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    title = f"{machine}, torch {torch.__version__}, product {report.product:.3g} TFLOP/s, {time.perf_counter() - began:.0f} s"
    print(f"{title}\n\n{report.table()}")
    if out is not None:
        out.write_text(json.dumps({"title": title, "rows": [asdict(row) for row in report.rows]}, indent=1))


def measure(report: Report, folder: Path, small: bool) -> None:
    """Rates of the networks themselves."""
    if small:
        report.add("autoencoder", lambda: autoencoder(folder, 16, 2, 6))
        report.add("decoding", lambda: decoding(16))
        return
    for side, batch in ((64, 16), (128, 4), (192, 2)):
        report.add(f"autoencoder {side}", lambda side=side, batch=batch: autoencoder(folder, side, batch, 60))
    for side, batch in ((64, 32), (128, 8), (192, 4)):
        report.add(f"denoiser {side}", lambda side=side, batch=batch: denoiser(folder, side, batch, 60))
    if importlib.util.find_spec("xformers"):
        report.add("denoiser 128, xformers", lambda: denoiser(folder, 128, 8, 60, attention="xformers"))
    for side in (128, 192, 256):
        report.add(f"decode {side}", lambda side=side: decoding(side))
