"""Runs the commands that a user types, as modules of this Python."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["run_command"]


def run_command(command: Sequence[str], log: Path | None = None) -> float:
    """Run `command`, such as `["srm-train", "--seed", "0"]`; a failure ends the study. Returns its seconds.

    log: file for what it prints; None: it prints here.
    """
    start = time.monotonic()
    module = [sys.executable, "-m", f"srm.cli.{command[0].removeprefix('srm-')}", *command[1:]]
    if log is None:
        code, where = subprocess.run(module, check=False).returncode, "above"
    else:
        with log.open("w", encoding="utf-8") as file:
            code, where = subprocess.run(module, stdout=file, stderr=file, check=False).returncode, f"in {log}"
    if code:
        sys.exit(f"{shlex.join(command)}\nfailed with exit code {code}; its output is {where}")
    return round(time.monotonic() - start, 1)
