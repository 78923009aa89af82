"""Texts that certainly have too many tokens, found without tokenising them: a line of 50 MB takes minutes and gigabytes to tokenise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenFloor"]

# Characters that are tokenised at once where only their number is asked for.
_PIECE = 1 << 16
# Unicode composes up to four characters into one.
_COMPOSED = 4
# Pieces may have a few more tokens than the text that they were cut from.
_MARGIN = 1.1
# Of each kind, a character that some tokenizers drop, merge without end, or write as one unknown token.
_PROBES = (" ", "\n", "a", "1", "-", "\u0301", "\u200b", "\ue000", "\U00012000")


class TokenFloor:
    """Lower bounds on the tokens of texts.

    longest: the most characters that one token can stand for; None for a tokenizer that drops characters or runs them together.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = tokenizer.backend_tokenizer
        composed = 1 if self._backend.normalizer is None else _COMPOSED
        longest = composed * max(map(len, tokenizer.get_vocab()), default=1)
        # A token that takes the white space beside it has no longest form.
        swallows = any(token.lstrip or token.rstrip for token in tokenizer.added_tokens_decoder.values())
        runs = self._counts([4 * longest * character for character in _PROBES])
        self.longest = None if swallows or min(runs) < 4 else longest

    def at_least(self, texts: Sequence[str], *, limit: int) -> Iterator[int]:
        """Growing lower bounds on the tokens of `texts` together, each after little work; the last one is above `limit` only if they are.

        The first one counts characters. Only where the texts are long, and it does not decide, their tokens are counted piece by piece.
        """
        by_characters = 0 if self.longest is None else sum(-(-len(text) // self.longest) for text in texts)
        yield by_characters
        if by_characters > limit or sum(map(len, texts)) <= max(_PIECE, 4 * limit):
            return
        counted = 0
        for piece in (piece for text in texts for piece in _pieces(text)):
            counted += self._counts([piece])[0]
            least = int(counted / _MARGIN)
            yield least
            if least > limit:
                return

    def _counts(self, texts: list[str]) -> list[int]:
        return [len(encoding) for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces that begin with white space, where hardly any tokenizer joins what stands on both sides."""
    start = 0
    while start < len(text):
        end = start + _PIECE
        if end < len(text):
            spaces = [match.start() for match in re.compile(r"(?<=\S)\s").finditer(text, end - 256, end)]
            end = spaces[-1] if spaces else end
        yield text[start:end]
        start = end
