"""Many texts as one stream of character codes, with its words and lines. What the vectorised rules read.

Shape letters: `C` characters, `W` words (runs without white space), `M` lines, `R` texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from srm.segmentation.characters import Tables, encode_text, is_one_of, lookup, positions, tables

__all__ = ["PAD", "Lexicon", "Stream", "hash_words"]

# Codes before and behind the stream, so that windows need no bounds. A line break: it ends every word.
PAD = 64
_SPECIAL = "\n`*|=$\\"
# Two odd numbers without a pattern.
_FACTORS = 0x5851F42D4C957F2D, 0x2545F4914F6CDD1D


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Texts behind one another, a blank line between them.

    code: uint8 [PAD + C + PAD]; positions below count from the first character of the first text.
    text_start: int64 [R], where each text begins. text_end: int64 [R], behind its last character.
    """

    code: Tensor
    text_start: Tensor
    text_end: Tensor

    @property
    def num_characters(self) -> int:
        return self.code.numel() - 2 * PAD

    @cached_property
    def tables(self) -> Tables:
        return tables(self.code.device)

    @cached_property
    def _bounds(self) -> tuple[Tensor, Tensor]:
        # No code is as high as 161, so that less 33 only white space is 128 and above. Comparing bytes takes three times as long.
        white = (self.code[PAD - 1 : self.code.numel() - PAD + 1] - 33 >> 7).view(torch.bool)
        # White space stands at both ends, so words start and end by turns.
        turns = positions(white[1:] != white[:-1])
        return turns[0::2].contiguous(), turns[1::2].contiguous()

    @cached_property
    def word_start(self) -> Tensor:
        """int64 [W]."""
        return self._bounds[0]

    @cached_property
    def word_end(self) -> Tensor:
        """int64 [W], behind each word's last character."""
        return self._bounds[1]

    @cached_property
    def word_last(self) -> Tensor:
        """Codes [W] of each word's last character."""
        return self.at(self.word_end, -1)

    @cached_property
    def _special(self) -> tuple[Tensor, Tensor]:
        body = self.code[PAD : self.code.numel() - PAD]
        at = positions(is_one_of(body, _SPECIAL))
        return at, body.index_select(0, at)

    @cached_property
    def _places(self) -> dict[str, Tensor]:
        return {}

    @cached_property
    def foreign(self) -> tuple[Tensor, Tensor]:
        """Positions and codes of the characters outside ASCII."""
        body = self.code[PAD : self.code.numel() - PAD]
        at = positions((body >> 7).view(torch.bool))
        return at, body.index_select(0, at)

    def where(self, character: str) -> Tensor:
        """Positions of one of the characters that lay out a text."""
        if character not in self._places:
            at, code = self._special
            self._places[character] = at.index_select(0, positions(code == ord(character)))
        return self._places[character]

    def pairs(self, first: str, second: str) -> Tensor:
        """Positions of `first` with `second` right behind it; `first` is one of the characters that lay out a text."""
        at = self.where(first)
        return at[self.at(at + 1) == ord(second)]

    def at(self, position: Tensor, shift: int = 0) -> Tensor:
        """Codes at `position + shift`, up to PAD outside the stream."""
        return self.code.index_select(0, (position + (PAD + shift)).flatten()).view(position.shape)

    def window(self, position: Tensor, width: int) -> Tensor:
        """Codes [n, width] from each `position` on; with a negative width, those before it, the nearest first."""
        # Every window of the stream, as a view of it.
        windows = self.code.as_strided((self.code.numel() - abs(width) + 1, abs(width)), (1, 1))
        return windows.index_select(0, position + PAD) if width > 0 else windows.index_select(0, position + (PAD + width)).flip(1)

    def text_of(self, position: Tensor) -> Tensor:
        """Which text holds `position`."""
        return torch.searchsorted(self.text_start, position, right=True) - 1


def hash_words(codes: Tensor, size: Tensor) -> Tensor:
    """A number for the first `size` [n] codes of each row of `codes` [n, K], in small letters; K is 8 or 16."""
    of = tables(codes.device)
    # Eight codes are one number. The products wrap around at 64 bits, as do those they are compared with.
    parts = lookup(of.small, codes).view(torch.int64) & of.first.index_select(0, size)[:, : codes.shape[1] // 8]
    return parts[:, 0] * _FACTORS[0] if parts.shape[1] == 1 else parts[:, 0] * _FACTORS[0] + parts[:, 1] * _FACTORS[1]


class Lexicon:
    """Words by their hashes, each with the lists it is on, as bits: 1 for the first of `lists`, 2 for the second, 4 for the third ...

    backwards: whether the words are read from their end. Longer than 16: left out.
    """

    def __init__(self, lists: Iterable[Iterable[str]], device: torch.device, *, backwards: bool) -> None:
        bits: dict[int, int] = {}
        for at, words in enumerate(lists):
            for word in words:
                code = encode_text(word[::-1] if backwards else word)
                size = code.numel()
                if 0 < size <= 16:
                    found = int(hash_words(torch.nn.functional.pad(code, (0, 16 - size))[None], torch.tensor([size])))
                    bits[found] = bits.get(found, 0) | 1 << at
        self._hashes = torch.tensor(sorted(bits), device=device)
        self._bits = torch.tensor([bits[found] for found in sorted(bits)], device=device)

    def find(self, hashes: Tensor) -> Tensor:
        """int64 [n]: the bits of each of `hashes`; 0 for a word on no list, and for none."""
        at = torch.searchsorted(self._hashes, hashes).clamp(max=self._hashes.numel() - 1)
        return torch.where(self._hashes[at] == hashes, self._bits[at], 0)
