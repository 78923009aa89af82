"""The lane of tests that executes compiled kernels: `pytest -p tests.ptx.plugin --ptx 90 -m interpreter tests/srm_kernels`.

The interpreter lane's tests, unchanged, on the PTX that Triton compiles for sm_80, sm_90 or sm_100; see docs/ptx.md.
"""

from __future__ import annotations

import pytest
import triton

from .driver import TARGETS, Driver, emulated
from .opcode_cases import untested

__all__: list[str] = []

DRIVER = pytest.StashKey[Driver]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--ptx`."""
    parser.addoption("--ptx", type=int, default=90, choices=TARGETS, help="kernels are compiled for sm_.. and executed without a GPU")


def pytest_configure(config: pytest.Config) -> None:
    """Kernels run here until the session ends."""
    context = emulated(config.getoption("--ptx"), inspect=untested)
    try:
        config.stash[DRIVER] = context.__enter__()
    except RuntimeError as error:
        raise pytest.UsageError(f"{__name__}: {error}") from None
    config.add_cleanup(lambda: context.__exit__(None, None, None))


def pytest_report_header(config: pytest.Config) -> str:
    """What is executed."""
    return f"PTX: compiled by Triton {triton.__version__} for sm_{config.getoption('--ptx')}, executed on the CPU"


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Nobody reads the counters here."""
    item.config.stash[DRIVER].launches.clear()
