"""What every script that measures shares: its flags, and a JSON file with device, versions, commit and settings beside the numbers."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

__all__ = ["UNFINISHED", "describe", "parser", "read_as_here", "say", "settings", "write"]

# A list of numbers or words, over several lines as json writes it.
_FLAT_LIST = re.compile(r"\[\n\s+([^\[\]{}]+?)\n\s+\]")
# Exit code of a script whose time was over before it was done, and that goes on with `--resume` (EX_TEMPFAIL).
UNFINISHED = 75

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "triton", "transformers", "accelerate", "datasets", "nltk", "peft", "trl", "fbgemm-gpu", "pyg-lib", "torch-geometric")


def describe() -> dict[str, Any]:
    """Device, CPU threads of torch, versions, commit and time of this run.

    The commit has `-dirty` where files differ from it; `SRM_COMMIT` names it where a copy of the tree came without its history.
    """
    return {
        "device": _gpu() or _cpu(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def parser(documentation: str | None, **options: Any) -> argparse.ArgumentParser:
    """A parser with `--json`, whose help is the docstring of the script. options: of `argparse.ArgumentParser`."""
    made = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
    made.add_argument("--json", type=Path, help="file to write what was measured to")
    return made


def write(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write `result` as JSON, whole or not at all, a flat list on one line; nothing where no `path` was given."""
    if path is not None:
        text = _FLAT_LIST.sub(lambda found: "[" + re.sub(r"\n *", " ", found[1]) + "]", json.dumps(result, indent=2))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)


def read_as_here(path: Path | None) -> dict[str, Any]:
    """What an earlier run of this device, these versions and this commit wrote to `path`; nothing where another did, or none."""
    if path is None or not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    same = all(found.get(name) == value for name, value in describe().items() if name != "time")
    if not same:
        say(f"{path}: of another device, other versions or another commit, so nothing of it is kept")
    return found if same else {}


def say(line: str) -> None:
    """A line on how it goes, at once and apart from the results."""
    print(line, file=sys.stderr, flush=True)


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

    if told := os.environ.get("SRM_COMMIT"):
        return told
    try:
        commit, changed = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except OSError:  # no git on this machine
        return "unknown"
    return (commit or "unknown") + ("-dirty" if changed else "")
