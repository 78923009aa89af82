"""What `compile_check` compiles: each op's `cases.py` lists every configuration that its launchers can choose.

Triton needed, a GPU not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton.language as tl

__all__ = ["ACC", "ACC_NAME", "DTYPES", "INDEX", "ITEMSIZE", "CompileCase"]

DTYPES = ("fp16", "bf16", "fp32", "fp64")
ACC = {"fp16": tl.float32, "bf16": tl.float32, "fp32": tl.float32, "fp64": tl.float64}
ACC_NAME = {"fp16": "fp32", "bf16": "fp32", "fp32": "fp32", "fp64": "fp64"}
ITEMSIZE = {"fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}
# Both index dtypes, one for every other dtype: how an index is loaded has nothing to do with the data.
INDEX = {"fp16": "i32", "bf16": "i64", "fp32": "i32", "fp64": "i64"}


@dataclass(frozen=True, kw_only=True)
class CompileCase:
    """One kernel in one configuration.

    Attributes:
        kernel: the `triton.jit` function.
        label: dtype and sizes, for the table.
        signature: type of each run-time argument, as in `{"x_ptr": "*fp32", "num": "i32"}`.
        constants: compile-time arguments, and None for a pointer that is not passed.
        num_threads: of a program.
        divisible: integers that are multiples of 16 here, which Triton finds out by itself at a launch.
        unaligned: pointers that are no multiples of 16 bytes; it finds that out too.
        wide_load: whether the layout lets the bulk of the data be read in 128-bit accesses.
        wide_store: whether it lets the bulk be written in them.
    """

    kernel: Any
    label: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_threads: int = 128
    divisible: tuple[str, ...] = ()
    unaligned: tuple[str, ...] = ()
    wide_load: bool = False
    wide_store: bool = False

    def __post_init__(self) -> None:
        names = set(self.signature) | set(self.constants)
        if names != set(self.kernel.arg_names) or len(names) != len(self.signature) + len(self.constants):
            raise ValueError(f"{self.kernel.__name__}: arguments are {self.kernel.arg_names}, the case has {sorted(names)}.")
