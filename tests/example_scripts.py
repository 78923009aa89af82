"""The programs and shell scripts of examples/, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name: str) -> ModuleType:
    """`examples/name.py` as a module, which is not run."""
    spec = spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    # Dataclasses look for their module there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def arguments_of(script: str, folder: Path, *typed: str, **environment: str) -> list[str]:
    """The arguments with which `examples/script` starts `python`, here a program in `folder` that prints them."""
    python = folder / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    python.chmod(0o755)
    variables = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **environment}
    command = ["bash", str(EXAMPLES / script), *typed]
    printed = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, check=True).stdout
    return printed.split("\0")[:-1]
