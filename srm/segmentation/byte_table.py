"""Token ids to the text they write, by a table over the vocabulary.

Shape letters: `B` responses, `T` tokens of all responses, `L` bytes of all responses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from srm.errors import UserError
from srm.segmentation.thinking import TAG

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ByteTable", "Written"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# How Python writes a byte that is no UTF-8.
_ESCAPED = re.compile("[\udc80-\udcff]")


class Written(NamedTuple):
    """What the tokens of `B` responses write.

    Attributes:
        raw: the bytes of all of them, [L].
        edge: int64 [T + 1], where in it each token begins; the last one ends it.
        escaped: [B], the responses as Python decodes them, a byte that is no UTF-8 as a lone surrogate, so that none is lost.
        texts: [B], the responses as text, U+FFFD for a byte that is no UTF-8.
    """

    raw: bytes
    edge: NDArray[np.int64]
    escaped: list[str]
    texts: list[str]


class ByteTable:
    """The bytes that each token id adds to a text.

    Ids behind the vocabulary write nothing, as in a tokenizer's `decode`: many models have more embeddings than there are tokens, and a
    policy may write such an id.

    Args:
        tokens: the bytes of id 0, 1, ...; `b""` for ids that write nothing (special tokens).
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = tuple(tokens)
        self._flat = np.frombuffer(b"".join(tokens), dtype=np.uint8)
        # The last one stands for all ids behind the vocabulary.
        self._length = np.array([*(len(token) for token in tokens), 0], dtype=np.int64)
        self._start = np.cumsum(self._length) - self._length

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, *, with_special: bool = False) -> ByteTable:
        """The table of a byte-level (GPT-2, Llama 3, Qwen, SmolLM) or byte-fallback (Llama 2, Mistral, Gemma) tokenizer.

        Special tokens write nothing, but for the tags of a thinking block; other added tokens, runs of blanks among them, write what the
        tokenizer's decoder makes of them.

        Args:
            tokenizer: a fast one.
            with_special: special tokens write their names, too.

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
            is_silent = token.special and not with_special and not re.fullmatch(TAG, token.content)
            tokens[index] = b"" if is_silent else to_bytes(token.content)
        return cls(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def decode(self, ids: Tensor | Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """The text that `ids` [T] write, and the characters `start:end` of it that each token covers.

        A byte that is no UTF-8, as where a response was cut inside a character, is one U+FFFD. A token that writes part of a character
        covers it, as in a fast tokenizer's own offsets; one that writes nothing covers nothing.

        Raises:
            IndexError: a negative id.
        """
        flat = ids.cpu().numpy() if isinstance(ids, Tensor) else np.array(ids, dtype=np.int64)
        written = self.write(flat, np.array([0, len(flat)]))
        character = _character_of_bytes(written.escaped[0])
        start, end = written.edge[:-1], written.edge[1:]
        # Empty tokens end where they start.
        stop = np.where(start < end, character[end - 1] + 1, character[start])
        return written.texts[0], list(zip(character[start].tolist(), stop.tolist(), strict=True))

    def write(self, ids: NDArray[np.integer], cu_tokens: NDArray[np.int64]) -> Written:
        """What responses write that lie behind one another.

        Args:
            ids: int [T], the tokens of all responses.
            cu_tokens: int64 [B + 1], offsets of the responses into `ids`.

        Returns:
            Their bytes and texts.

        Raises:
            IndexError: a negative id.
        """
        if ids.size and ids.min() < 0:
            raise IndexError(f"byte table: token id {ids.min()} is negative. Leave padding out, or fill it with an id of the vocabulary.")
        length = self._length.take(ids, mode="clip")
        edge = np.concatenate([[0], np.cumsum(length)])
        # A byte lies in the table as far behind its token's row as it lies behind the token's first byte here.
        at = np.repeat(self._start.take(ids, mode="clip") - edge[:-1], length)
        at += np.arange(len(at))
        raw = self._flat.take(at, mode="clip").tobytes()  # all lie inside; the mode saves looking
        edges = edge[cu_tokens].tolist()
        escaped, texts = [], []
        for start, end in pairwise(edges):
            try:
                escaped.append(raw[start:end].decode())
                texts.append(escaped[-1])
            except UnicodeDecodeError:
                escaped.append(raw[start:end].decode(errors="surrogateescape"))
                texts.append(_ESCAPED.sub("\ufffd", escaped[-1]))
        return Written(raw, edge, escaped, texts)


def _character_of_bytes(escaped: str) -> NDArray[np.int64]:
    """int64 [L + 1]: the character that each byte belongs to, and behind the last byte the number of characters."""
    width = [len(character.encode(errors="surrogateescape")) for character in escaped]
    return np.append(np.repeat(np.arange(len(width)), width), len(width))


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
