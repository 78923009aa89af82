"""Offsets past 2^31 elements, by inspection: compile_check reads the width of each, and here every kernel is broken to see that it does."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("triton")

from srm_kernels import compile_check

TARGET = "cuda:90"
# A case of each kernel: the first ones take 32-bit indices, which are what must be widened. With one head nothing is multiplied by them.
CASES = {
    case.kernel.__name__: case
    for op in compile_check.OPS
    for case in reversed(list(compile_check._cases(op)))
    if not case.label.endswith("H=1")
}
# What widens the number of a program, and the same forgotten, or done too late.
BREAK = ("tl.program_id(0).to(tl.int64)", "tl.program_id(0)")
BREAKS = {
    "carry_kernel": ("tl.zeros((), tl.int64)", "0"),
    "scatter_norm_kernel": ("tl.program_id(0).to(tl.int64) * ROWS", "(tl.program_id(0) * ROWS).to(tl.int64)"),
}
# Kernels that go to a row, or to a segment, whose number they read from memory.
READ_INDICES = (
    "gather_rows_kernel",
    "gather_norm_kernel",
    "weight_partial_kernel",
    "segment_softmax_kernel",
    "segment_softmax_backward_kernel",
    "pool_kernel",
    "pool_backward_kernel",
    "token_rewards_backward_kernel",
)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """A kernel from the cache comes without its compiler's report."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@contextmanager
def rewritten(kernel: Any, source: str) -> Iterator[None]:
    original = kernel.src
    assert source != original
    kernel._unsafe_update_src(source)
    try:
        yield
    finally:
        kernel._unsafe_update_src(original)


@pytest.mark.parametrize("name", CASES)
def test_a_program_id_that_stays_32_bits_wide_is_caught(name):
    case = CASES[name]
    with rewritten(case.kernel, case.kernel.src.replace(*BREAKS.get(name, BREAK))):
        assert "32-bit" in compile_check.check_case(case, TARGET).problem


@pytest.mark.parametrize("name", READ_INDICES)
def test_an_index_that_stays_as_it_was_read_is_caught(name):
    case = CASES[name]
    with rewritten(case.kernel, re.sub(r"(tl\.load\([^\n]*\))\.to\(tl\.int64\)", r"\1", case.kernel.src)):
        assert "32-bit" in compile_check.check_case(case, TARGET).problem


@pytest.mark.parametrize("name", CASES)
def test_counts_past_two_to_the_31_compile_too(name):
    """Triton passes an integer that needs them in 64 bits: another binary, which no run here has asked for."""
    case = CASES[name]
    signature = {argument: "i64" if kind == "i32" else kind for argument, kind in case.signature.items()}
    assert compile_check.check_case(dataclasses.replace(case, signature=signature), TARGET).problem == ""
