"""Punkt as NLTK implements it, with a model that NLTK offers for download."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable

from srm.errors import UserError
from srm.extras import name_the_extra
from srm.segmentation.punkt import NEXT, goes_on
from srm.segmentation.scripts import CLOSERS

__all__ = ["load_punkt_tab"]

_WIDE_SPACE = re.compile(r"[^\S \t\n\r\f\v]")
# The candidates of `punkt`, as NLTK wants them: the group names are its own.
_CANDIDATE = re.compile(rf"[.?!](?={CLOSERS}(?P<after_tok>\s+(?P<next_tok>{NEXT}+)))")


def load_punkt_tab(language: str) -> Callable[[str], list[int]]:
    """NLTK's model for `language`, as a function from a text to the starts of its sentences, the first left out.

    Raises UserError where nltk or the model is not installed.
    """
    # Late, because only this segmenter needs nltk, which takes long to import.
    with name_the_extra("segmenter `punkt_tab`"):
        punkt, data = importlib.import_module("nltk.tokenize.punkt"), importlib.import_module("nltk.data")
    try:
        folder = data.find(f"tokenizers/punkt_tab/{language}/")
    except (LookupError, ValueError) as error:
        raise UserError(
            f"segmenter `punkt_tab`: NLTK's model for {language!r} is not on this machine. "
            "Get it with `python -m nltk.downloader punkt_tab`, or use the segmenter `punkt`, which needs no download."
        ) from error

    class Words(punkt.PunktLanguageVars):  # type: ignore[name-defined]  # NLTK is imported at run time only
        def period_context_re(self) -> re.Pattern[str]:
            return _CANDIDATE

    tokenizer = punkt.PunktSentenceTokenizer(punkt.load_punkt_params(folder), lang_vars=Words())

    def starts(text: str) -> list[int]:
        if not text.isascii():
            # NLTK looks for the word before a full stop behind an ASCII space only.
            text = _WIDE_SPACE.sub(" ", text)
        # Boundaries need no realigning: only the starts are used, and `_CANDIDATE` has already skipped what closes a sentence.
        found = [start for start, _ in tokenizer.span_tokenize(text, realign_boundaries=False)][1:]
        return [start for start in found if text[start].isupper() or not goes_on(text, start)]

    return starts
