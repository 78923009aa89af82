"""Token ids to the bytes and to the character codes of their text, by tables over the vocabulary.

Shape letters: `V` ids, `T` tokens, `L` bytes, `C` characters.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srm.errors import UserError
from srm.segmentation.characters import character_codes, positions, to_codes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

__all__ = ["ByteTable"]

_SEPARATOR = b"\n\n"
# The least first bytes of characters of two, three and four bytes.
_LEADS = 0xC0, 0xE0, 0xF0
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class _Rows:
    """Rows of uint8, one an id: `flat` [S], cut into `lengths` int64 [V + 1]."""

    def __init__(self, flat: Tensor, lengths: Tensor) -> None:
        self.flat = flat
        self.lengths = lengths
        # Half the width, because reading them is most of the work.
        self.ends = lengths.cumsum(0).to(torch.int32)
        self.starts = self.ends - lengths.to(torch.int32)

    def to(self, device: torch.device) -> None:
        self.flat, self.lengths, self.starts, self.ends = (part.to(device) for part in (self.flat, self.lengths, self.starts, self.ends))

    def expand(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of `ids` [T] behind one another, and the offset int64 [T + 1] of each."""
        length_T = self.lengths.index_select(0, ids)
        offset_T = length_T.new_zeros(ids.numel() + 1)
        torch.cumsum(length_T, 0, out=offset_T[1:])
        # Where an element lies in the table: one further than the one before it, but for a jump where a row begins.
        # Where rows are empty, several jumps add up.
        index = torch.ones(int(offset_T[-1]) + 1, dtype=torch.int32, device=ids.device)
        jump = self.starts.index_select(0, ids)
        jump[1:] -= self.ends.index_select(0, ids[:-1])
        jump[:1] -= 1
        index.scatter_add_(0, offset_T[:-1], jump)
        return self.flat.index_select(0, torch.cumsum(index, 0, dtype=torch.int32, out=index)[:-1]), offset_T


class ByteTable:
    """The bytes that each token id adds to a text.

    tokens: the bytes of id 0, 1, ...; `b""` for ids that write nothing (special tokens).

    The table moves to the ids' device with its first use there.
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        entries = [*tokens, _SEPARATOR]
        lengths = torch.tensor([len(token) for token in entries])
        flat = torch.frombuffer(bytearray(b"".join(entries)), dtype=torch.uint8)
        codes, begin = to_codes(flat)
        end = lengths.cumsum(0)
        count = torch.bincount(torch.searchsorted(end, begin, right=True), minlength=len(entries))
        self._bytes, self._codes = _Rows(flat, lengths), _Rows(codes, count)
        # How many bytes of its last character a token writes where the tokens behind it write the rest; 0 where the character is whole.
        last = begin[(count.cumsum(0) - 1).clamp(min=0)]
        behind = torch.searchsorted(torch.tensor(_LEADS), flat[last].to(torch.int64), right=True)
        self._open = torch.where((count > 0) & (last + behind >= end), end - last, 0).to(torch.uint8)

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> ByteTable:
        """The table of a byte-level (GPT-2, Llama 3, Qwen, SmolLM) or byte-fallback (Llama 2, Mistral, Gemma) tokenizer.

        Special tokens write nothing; other added tokens write their text.

        Raises:
            UserError: a slow tokenizer, or one whose tokens do not stand for bytes.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"byte table: {type(tokenizer).__name__} has no fast backend to read its vocabulary's bytes from. "
                "Load a fast tokenizer (AutoTokenizer with use_fast=True)."
            )
        decoder = json.dumps(json.loads(backend.to_str())["decoder"] or {})
        if "ByteLevel" in decoder:
            to_bytes = _byte_level
        elif "ByteFallback" in decoder or "Metaspace" in decoder:
            to_bytes = _with_fallback
        else:
            raise UserError(
                f"byte table: the tokenizer's decoder is {decoder[:80]}, and its tokens do not stand for bytes. Use the policy's text with "
                "`score`, or a byte-level or byte-fallback tokenizer."
            )
        added = backend.get_added_tokens_decoder()
        vocabulary = tokenizer.get_vocab()
        tokens = [b""] * (max([*vocabulary.values(), *added], default=-1) + 1)
        for token, index in vocabulary.items():
            tokens[index] = to_bytes(token)
        for index, token in added.items():
            tokens[index] = b"" if token.special else token.content.encode()
        return cls(tokens)

    def __len__(self) -> int:
        return self._bytes.lengths.numel() - 1

    @property
    def separator(self) -> int:
        """An id behind the vocabulary that writes a blank line."""
        return len(self)

    def check(self, ids: Tensor) -> None:
        """Raises IndexError for an id outside the vocabulary."""
        if not ids.numel():
            return
        least, most = ids.aminmax()
        if int(least) < 0 or int(most) >= len(self):
            bad = ids[(ids < 0) | (ids >= len(self))][0]
            raise IndexError(f"byte table: token id {int(bad)} is outside the vocabulary of {len(self)} ids the table was made from.")

    def to(self, device: torch.device) -> ByteTable:
        """This table, moved to `device` in place."""
        if self._open.device != device:
            self._bytes.to(device)
            self._codes.to(device)
            self._open = self._open.to(device)
        return self

    def expand(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes uint8 [L] of `ids` [T] and the offset int64 [T + 1] of each token's first byte."""
        self.to(ids.device)
        return self._bytes.expand(ids)

    def expand_codes(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Codes uint8 [C] of the characters of `ids` [T] and the offset int64 [T + 1] of each token's first one; see `characters`.

        A character belongs to the token that writes its first byte. Bytes that begin none (a response cut inside one) belong to the
        character before them, or to none.
        """
        self.to(ids.device)
        codes, offset_T = self._codes.expand(ids)
        parted = positions(self._open.index_select(0, ids) > 0)
        if parted.numel():
            codes[offset_T[parted + 1] - 1] = self._parted_codes(ids, parted)
        return codes, offset_T

    def _parted_codes(self, ids: Tensor, parted: Tensor) -> Tensor:
        """Codes of the characters that the tokens `parted` begin and those behind them, at least one byte each, go on with."""
        near = (parted[:, None] + torch.arange(4, device=ids.device)).clamp(max=ids.numel() - 1)
        bytes_L, offset = self._bytes.expand(ids[near.flatten()])
        begin = offset[1::4] - self._open[ids[parted]]
        padded = torch.nn.functional.pad(bytes_L, (0, 2))
        return character_codes(*(padded[begin + step] for step in range(3)))


def _printable_bytes() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(0x100 + at): byte for at, byte in enumerate(others)}}


_ALPHABET = _printable_bytes()


def _byte_level(token: str) -> bytes:
    if all(character in _ALPHABET for character in token):
        return bytes(_ALPHABET[character] for character in token)
    return token.encode()


def _with_fallback(token: str) -> bytes:
    if found := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(found[1], 16)])
    return token.replace("\u2581", " ").encode()
