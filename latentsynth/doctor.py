"""What this machine has, and what will be used of it."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

_NEEDED = ("torch", "monai", "diffusers", "accelerate", "torchio", "nibabel", "einops", "vector-quantize-pytorch")
_OPTIONAL = {
    "tensorboard": "train.tracker=tensorboard; pip install 'latentsynth[tensorboard]'",
    "wandb": "train.tracker=wandb; pip install wandb",
    "mlflow": "train.tracker=mlflow; pip install mlflow",
    "xformers": "train.attention=xformers on a GPU; pip install 'latentsynth[xformers]'",
}


@dataclass(frozen=True)
class Finding:
    """One row: what, how it stands, and what to do if it does not stand well."""

    what: str
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Looks at packages, devices, memory, attention and precision. Allocates nothing."""
    findings = [Finding("python", f"{platform.python_version()} on {platform.platform()}")]
    for name in ("latentsynth", *_NEEDED):
        findings.append(_package(name, "pip install latentsynth"))
    for name, purpose in _OPTIONAL.items():
        findings.append(_package(name, f"optional: {purpose}"))
    memory = psutil.virtual_memory()
    findings.append(Finding("memory", f"{memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} GiB free"))
    findings.append(Finding("disk here", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB free"))
    return findings + _devices()


def _package(name: str, advice: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "missing", advice)


def _devices() -> list[Finding]:
    try:
        import torch
    except ImportError:
        return [Finding("device", "unknown without torch", "install torch first")]
    cores = os.cpu_count() or 1
    found = [Finding("CPU", f"{cores} cores, torch uses {torch.get_num_threads()} threads")]
    if not torch.cuda.is_available():
        policy = os.environ.get("OMP_WAIT_POLICY", "not set")
        found.append(Finding("GPU", "none", "configs/reference and configs/debug are sized for a CPU"))
        found.append(Finding("threads wait", policy, "" if policy == "PASSIVE" else "export OMP_WAIT_POLICY=PASSIVE"))
        found.append(Finding("precision", "float32 (train.precision=no)", "bf16 is slow on a CPU without bf16 units"))
        found.append(Finding("attention", "torch scaled_dot_product_attention, CPU kernel"))
        return found
    for n in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(n)
        found.append(
            Finding(f"GPU {n}", f"{torch.cuda.get_device_name(n)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
        )
    bf16 = torch.cuda.is_bf16_supported()
    found.append(
        Finding("precision", "bf16 works (train.precision=bf16)" if bf16 else "float32 only (train.precision=no)")
    )
    kernels = [
        name
        for name, on in (
            ("flash", torch.backends.cuda.flash_sdp_enabled()),
            ("memory-efficient", torch.backends.cuda.mem_efficient_sdp_enabled()),
            ("math", torch.backends.cuda.math_sdp_enabled()),
        )
        if on
    ]
    found.append(Finding("attention", f"torch scaled_dot_product_attention ({', '.join(kernels)})"))
    return found


def write_findings(findings: list[Finding], console: Console) -> None:
    """Prints the findings as a table."""
    table = Table("what", "found", "advice")
    for finding in findings:
        table.add_row(finding.what, finding.found, finding.advice)
    console.print(table)
