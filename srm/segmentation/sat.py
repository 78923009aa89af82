"""Segment any Text (wtpsplit), the segmenter that the paper's authors used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from itertools import accumulate

from srm.errors import UserError
from srm.extras import name_the_extra

__all__ = ["load_sat"]


def load_sat(model: str) -> Callable[[str], list[int]]:
    """The SaT model `model`, as a function from a text to the starts of its sentences, the first left out.

    Raises UserError where wtpsplit is not installed or the model cannot be loaded.
    """
    with name_the_extra("segmenter `sat`"):
        wtpsplit = importlib.import_module("wtpsplit")
    try:
        sat = wtpsplit.SaT(model)
    # wtpsplit passes on whatever the hub, the file system or the weights' reader raise.
    except Exception as error:
        raise UserError(
            f"segmenter `sat`: the model {model!r} did not load ({error}). Give `sat_model` a name such as sat-3l-sm or a folder."
        ) from error

    def starts(text: str) -> list[int]:
        # With these two settings the pieces joined are the text, white space and line ends included.
        pieces = sat.split(text, strip_whitespace=False, split_on_input_newlines=False)
        ends = list(accumulate(map(len, pieces)))
        if not ends or ends[-1] != len(text):
            raise RuntimeError(f"wtpsplit returned {ends[-1] if ends else 0} characters for a text of {len(text)}.")
        return ends[:-1]

    return starts
