"""Errors come through to other processes as they were raised."""

from __future__ import annotations

import pickle

import pytest

from srm.client import RequestRefused
from srm.data.schema import BadRow, RowProblem
from srm.errors import UserError
from srm.packing import UnsupportedBackboneError


@pytest.mark.parametrize(
    "error",
    [
        UserError("a.jsonl line 3: no prompt."),
        RequestRefused("http://a answered 422: no", 422),
        UnsupportedBackboneError("Mamba", "its state is carried over"),
        BadRow("a.jsonl line 3", RowProblem("`prompt` is missing", "Add it")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_a_worker_is_the_same_here(error: UserError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
