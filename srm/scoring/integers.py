"""Integers that came from outside, as they are: never rounded, read from text, or made of True. Needs neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

from srm.errors import UserError

__all__ = ["check_integers", "integer_rows"]


def integer_rows(name: str, rows: Iterable[Any]) -> list[list[int]]:
    """Rows of token ids as lists of Python's integers.

    Args:
        name: what a message calls the argument, as in "score_tokens: `prompt_ids`".
        rows: lists, or arrays or tensors [L] of integers.

    Raises:
        UserError: a row is no sequence, or holds something other than integers.
    """
    return [_integers(name, number, row) for number, row in enumerate(rows)]


def check_integers(name: str, values: Any, *, or_bool: bool = False) -> None:
    """Refuse a tensor or an array of another kind than integers.

    Args:
        name: what a message calls the argument.
        values: has a `dtype`.
        or_bool: whether it may be bool.

    Raises:
        UserError: it has another dtype.
    """
    kind = str(getattr(values, "dtype", type(values).__name__)).removeprefix("torch.")
    if not kind.startswith(("int", "uint")) and not (or_bool and kind == "bool"):
        raise UserError(f"{name} must be integers{' or bool' if or_bool else ''}, got {kind}. Convert it first.")


def _integers(name: str, number: int, row: Any) -> list[int]:
    kind = str(getattr(row, "dtype", "object")).removeprefix("torch.")
    if kind.startswith(("int", "uint")) and row.ndim == 1:
        return row.tolist()
    if kind != "object" or isinstance(row, (str, bytes)) or not hasattr(row, "__iter__"):
        shape = f" {list(row.shape)}" if hasattr(row, "shape") else ""
        raise UserError(f"{name}: row {number} must be a list of integers, got {type(row).__name__ if kind == 'object' else kind}{shape}.")
    tokens: Sequence[Any] = list(row)
    # At once, because a row may have many thousands.
    return list(tokens) if set(map(type, tokens)) <= {int} else [_integer(name, number, token) for token in tokens]


def _integer(name: str, number: int, token: Any) -> int:
    is_bool = isinstance(token, bool) or str(getattr(token, "dtype", "")).endswith("bool")
    try:
        if not is_bool:
            return index(token)
    except TypeError:
        pass
    shown = str(token)[:40] if hasattr(token, "dtype") else repr(token)[:40]
    raise UserError(f"{name}: row {number} must hold integers only, got {shown} ({type(token).__name__}). Give token ids.")
