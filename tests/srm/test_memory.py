"""Large blocks stay with the process once it is asked to keep them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# In a thread, as in the server: other threads' heaps have a limit that the block is over.
PROGRAM = """
import resource, sys, threading, torch
from srm.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    # Blocks settle where they fit within the first eight.
    for _ in range(10):
        torch.ones(20_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(20_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=faults)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc, on Linux, can be told")
def test_freed_blocks_are_used_again() -> None:
    root = Path(__file__).parents[2]
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", PROGRAM, word], cwd=root, capture_output=True, text=True, check=True).stdout)
        for word in ("plain", "keep")
    )
    # Five blocks, whose pages are all new where they were given back; where they were kept, one may not fit the gap that the last one left.
    assert kept <= given_back / 3
