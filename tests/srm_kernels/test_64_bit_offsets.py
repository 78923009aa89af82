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
from srm_kernels.ops.bradley_terry_loss.kernels import load_pair
from srm_kernels.ops.token_rewards.kernels import closed_by_each

TARGET = "cuda:90"
# A case of each kernel: the first ones take 32-bit indices, which are what must be widened. With one head nothing is multiplied by them.
CASES = {
    case.kernel.__name__: case
    for op in compile_check.OPS
    for case in reversed(list(compile_check._cases(op)))
    if not case.label.endswith("H=1")
}
# What widens the number of a program, or of a step, and the same forgotten, or done too late.
PROGRAM, STEP = ("tl.program_id(0).to(tl.int64)", "tl.program_id(0)"), ("tl.zeros((), tl.int64)", "0")
BREAKS = {
    **{name: [PROGRAM] for name in CASES},
    "bradley_terry_kernel": [PROGRAM, STEP],
    "carry_kernel": [STEP],
}
# Kernels that go to a row, an element or a segment whose number they read from memory.
READ_INDICES = (
    "bradley_terry_kernel",
    "gather_rows_kernel",
    "operands_kernel",
    "segment_softmax_kernel",
    "segment_softmax_backward_kernel",
    "pool_kernel",
    "pool_backward_kernel",
    "penalty_kernel",
    "pay_kernel",
    "token_rewards_backward_kernel",
    "value_gradient_kernel",
)
# Where one reads it, if not in its own lines.
READERS = {"bradley_terry_kernel": load_pair, "penalty_kernel": closed_by_each, "token_rewards_backward_kernel": closed_by_each}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """A kernel from the cache comes without its compiler's report."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@contextmanager
def rewritten(function: Any, source: str) -> Iterator[None]:
    original = function.src
    assert source != original
    function._unsafe_update_src(source)
    try:
        yield
    finally:
        function._unsafe_update_src(original)


@pytest.mark.parametrize(("name", "change"), [(name, change) for name, changes in BREAKS.items() for change in changes])
def test_a_number_that_stays_32_bits_wide_is_caught(name, change):
    case = CASES[name]
    with rewritten(case.kernel, case.kernel.src.replace(*change)):
        assert "32-bit" in compile_check.check_case(case, TARGET).problem


@pytest.mark.parametrize("name", READ_INDICES)
def test_an_index_that_stays_as_it_was_read_is_caught(name):
    case = CASES[name]
    reader = READERS.get(name, case.kernel)
    with rewritten(reader, re.sub(r"(tl\.load\([^\n]*\))\.to\(tl\.int64\)", r"\1", reader.src)):
        assert "32-bit" in compile_check.check_case(case, TARGET).problem


@pytest.mark.parametrize("name", CASES)
def test_counts_past_two_to_the_31_compile_too(name):
    """Triton passes an integer that needs them in 64 bits: another binary, which no run here has asked for."""
    case = CASES[name]
    signature = {argument: "i64" if kind == "i32" else kind for argument, kind in case.signature.items()}
    assert compile_check.check_case(dataclasses.replace(case, signature=signature), TARGET).problem == ""
