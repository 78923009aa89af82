"""What runs in a process that is forked from one which has imported torch and transformers already: commands that tests kill."""

from __future__ import annotations

import os
import runpy
import sys

# What the commands import on their way; those that are missing are left out.
PRELOADED = ["srm.training", "srm.serving", "srm.evaluation.pairs", "transformers.models.llama.modeling_llama", "uvicorn", "deepspeed"]


def run_module(module: str, arguments: list[str], environment: dict[str, str], output: str) -> None:
    """As `python -m module arguments > output.out 2> output.err`."""
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.update(environment)
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
