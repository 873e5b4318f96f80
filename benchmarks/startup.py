"""How long commands that need no torch take, beside importing torch: `python benchmarks/startup.py`."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

CONFIG = str(Path(__file__).parents[1] / "configs" / "reference" / "hippocampus_autoencoder.yaml")
COMMANDS = {
    "import latentsynth": ["-c", "import latentsynth"],
    "latentsynth --help": ["-m", "latentsynth", "--help"],
    "latentsynth sample --help": ["-m", "latentsynth", "sample", "--help"],
    "train autoencoder --check": ["-m", "latentsynth", "train", "autoencoder", CONFIG, "--check"],
    "import torch": ["-c", "import torch"],
}


def seconds(arguments: list[str], repeats: int = 5) -> float:
    """Median wall time of a Python process."""
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - began)
    return median(took)


if __name__ == "__main__":
    times = {name: seconds(arguments) for name, arguments in COMMANDS.items()}
    print("| command | seconds | share of importing torch |\n|---|---|---|")
    for name, took in times.items():
        print(f"| `{name}` | {took:.2f} | {took / times['import torch']:.2f} |")
