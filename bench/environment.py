"""What a measured number needs beside it: device, versions, commit, settings. Every script in this folder puts it into its JSON."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

__all__ = ["describe", "settings"]

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "triton", "transformers", "accelerate", "datasets", "nltk", "peft", "trl")


def describe() -> dict[str, object]:
    """Device, CPU threads of torch, versions, commit (with `-dirty` where files differ from it) and time of this run."""
    return {
        "device": _gpu() or _cpu(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def settings(arguments: argparse.Namespace) -> dict[str, str]:
    """What a script was told, but for where it writes; files as seen from the repository, or by their names where they lie elsewhere."""
    return {name: _seen_from_here(str(value)) for name, value in vars(arguments).items() if name not in ("json", "plot")}


def _seen_from_here(value: str) -> str:
    if not os.path.isabs(value):
        return value
    beside = Path(value).is_relative_to(_ROOT.parent)
    return os.path.relpath(value, _ROOT) if beside else Path(value).name


def _gpu() -> str | None:
    return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})" if torch.cuda.is_available() else None


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown CPU")
    flags = next((line for line in lines if line.startswith("flags")), "")
    kinds = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags.split()]
    return f"{model}, {os.cpu_count()} cores, {', '.join(kinds) or 'no vector flags known'}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()

    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + (
        "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
    )
