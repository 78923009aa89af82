# ruff: noqa: RUF001  # Punctuation of other scripts is the subject of this file.
"""UTF-8 bytes to one small code a character, so that rules on characters are comparisons of bytes.

ASCII keeps its code. Other characters are known by what the rules ask of them: `Code`. Shape letters: `L` bytes, `C` characters.
"""

from __future__ import annotations

import re
import unicodedata
from enum import IntEnum
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from srm.segmentation.scripts import TERMINATORS

__all__ = [
    "CLOSERS",
    "Code",
    "Tables",
    "any_of",
    "character_codes",
    "encode_text",
    "is_one_of",
    "leading",
    "lookup",
    "num_leading",
    "positions",
    "prefix",
    "tables",
    "to_codes",
]

# Eight booleans as one number, each 1 a byte.
_ONES = 0x0101010101010101


class Code(IntEnum):
    """What a character outside ASCII is to the rules. White space is 32."""

    LOWER = 128
    UPPER = 129
    LETTER = 130
    CJK = 131
    EMOJI = 132
    CLOSER = 133
    OPEN_QUOTE = 134
    TERMINATOR = 135
    WIDE_STOP = 136
    ELLIPSIS = 137
    CLAUSE = 138
    DASH = 139
    BULLET = 140
    CIRCLED = 141
    LIST_COMMA = 142
    SIGN = 143
    OTHER = 144
    COMBINING = 145
    PARTICLE_TO = 146
    CORNER = 147
    JOINER = 148


# Later rows win.
_MEMBERS: tuple[tuple[Code, str], ...] = (
    (Code.CLOSER, "”’»›】》〉）］｝〗〙"),
    (Code.OPEN_QUOTE, "“‘«"),
    (Code.TERMINATOR, TERMINATORS),
    (Code.WIDE_STOP, "．"),
    (Code.ELLIPSIS, "…"),
    (Code.CLAUSE, "，；：،؛၊፣፤፥"),
    (Code.DASH, "–—"),
    (Code.BULLET, "•◦▪‣●○"),
    (Code.CIRCLED, "①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳"),
    (Code.LIST_COMMA, "、"),
    (Code.SIGN, "≤≥≈×÷"),
    (Code.PARTICLE_TO, "と"),
    (Code.CORNER, "」』"),
    (Code.JOINER, "\u200d\ufe0e\ufe0f"),
)
# What may stand between a terminator and the end of its sentence, footnotes and emoji apart: ASCII and codes.
CLOSERS = "\"')]}*_~`", Code.CLOSER, Code.OPEN_QUOTE, Code.CORNER
_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")


def _code(character: str) -> int:
    if character.isspace():
        return 32
    if character.isdecimal():
        return ord("0") + unicodedata.decimal(character)
    if _CJK.match(character):
        return Code.CJK
    if character.isalnum():
        return Code.LOWER if character.islower() else Code.UPPER if character.isupper() else Code.LETTER
    if "\u2600" <= character <= "\u27bf":
        return Code.EMOJI
    return Code.COMBINING if unicodedata.combining(character) else Code.OTHER


class Tables(NamedTuple):
    """Lookup tables on one device.

    code: uint8 [65536], the code of each character of the basic plane.
    alnum, lower, upper, letter, closer, opener: bool [256] over codes. `closer` may stand between a full stop and the end of its sentence,
        `opener` before the first letter of the next one.
    small: uint8 [256], the code of a letter's small form where both are ASCII.
    first: int64 [17, 2], sixteen bytes of which the first 0, 1, ... 16 are all ones.
    """

    code: Tensor
    alnum: Tensor
    lower: Tensor
    upper: Tensor
    letter: Tensor
    closer: Tensor
    opener: Tensor
    small: Tensor
    first: Tensor


@cache
def tables(device: torch.device) -> Tables:
    """The tables on `device`, built once."""
    if device.type != "cpu":
        return Tables(*(table.to(device) for table in tables(torch.device("cpu"))))
    code = [point if point < 128 else Code.OTHER if 0xD800 <= point < 0xE000 else _code(chr(point)) for point in range(0x10000)]
    for member, characters in _MEMBERS:
        for character in characters:
            code[ord(character)] = member
    ascii_ = [chr(point) for point in range(128)]

    def table(of_ascii: str, *codes: Code) -> Tensor:
        flags = torch.zeros(256, dtype=torch.bool)
        flags[[ord(character) for character in of_ascii] + [int(code) for code in codes]] = True
        return flags

    lower = "".join(filter(str.islower, ascii_))
    digits = "0123456789"
    caseless = (Code.LETTER, Code.CJK, Code.PARTICLE_TO)
    return Tables(
        code=torch.tensor(code, dtype=torch.uint8),
        alnum=table(lower + lower.upper() + digits, Code.LOWER, Code.UPPER, *caseless, Code.CIRCLED),
        lower=table(lower, Code.LOWER),
        upper=table(lower.upper(), Code.UPPER),
        letter=table(lower + lower.upper(), Code.LOWER, Code.UPPER, *caseless),
        closer=table(*CLOSERS),
        opener=table("\"'([*_", Code.OPEN_QUOTE),
        small=torch.tensor([ord(chr(code).lower()) if code < 128 else code for code in range(256)], dtype=torch.uint8),
        first=(255 * torch.ones(17, 16, dtype=torch.uint8).tril(-1)).view(torch.int64),
    )


def character_codes(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Codes uint8 [C] of characters by the first three bytes of their UTF-8, uint8 [C] each; what a shorter one has none of is not read."""
    first, second, third = (byte.to(torch.int64) for byte in (first, second, third))
    two = (first & 0x1F) << 6 | second & 0x3F
    three = (first & 0x0F) << 12 | (second & 0x3F) << 6 | third & 0x3F
    point = torch.where(first < 0x80, first, torch.where(first < 0xE0, two, three))
    # Beyond the basic plane, U+1F000 to U+1FFFF are emoji and symbols, the rest letters.
    astral = torch.where((first == 0xF0) & (second == 0x9F), int(Code.EMOJI), int(Code.LETTER)).to(torch.uint8)
    return torch.where(first < 0xF0, tables(first.device).code.index_select(0, point), astral)


def to_codes(bytes_L: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [C] of the characters of UTF-8 `bytes_L`, and where they begin, int64 [C]. Bytes that begin none are left out."""
    begin = positions((bytes_L & 0xC0) != 0x80)
    padded = torch.nn.functional.pad(bytes_L, (0, 2))
    return character_codes(*(padded[step:].index_select(0, begin) for step in range(3))), begin


def encode_text(text: str) -> Tensor:
    """Codes of a text, for the words that rules look up."""
    return to_codes(torch.tensor(list(text.encode()), dtype=torch.uint8))[0]


def is_one_of(codes: Tensor, characters: str, *members: Code) -> Tensor:
    """Whether each of `codes` is one of the ASCII `characters` or one of `members`."""
    return lookup(_member_table(characters, members, codes.device), codes)


@cache
def _member_table(characters: str, members: tuple[Code, ...], device: torch.device) -> Tensor:
    table = torch.zeros(256, dtype=torch.bool)
    table[[*map(ord, characters), *map(int, members)]] = True
    return table.to(device)


def positions(mask: Tensor) -> Tensor:
    """Indices int64 of the set elements of `mask`, one dimension."""
    if mask.device.type == "cpu":
        # Five times as fast as torch's own on one core.
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(1)


def lookup(table: Tensor, codes: Tensor) -> Tensor:
    """`table[codes]` for a bool or uint8 table [256] and uint8 codes, which torch would take for a mask."""
    if codes.device.type == "cpu" and codes.numel():
        # Four times as fast as an index on one core.
        found = bytearray(codes.contiguous().numpy()).translate(table.numpy().tobytes())
        return torch.frombuffer(found, dtype=table.dtype).view(codes.shape)
    return table.index_select(0, codes.flatten().to(torch.int32)).view(codes.shape)


def num_leading(mask: Tensor) -> Tensor:
    """int64 [n]: how many True each row of `mask` [n, K] opens with; K at most 16."""
    if mask.shape[1] % 8:
        mask = torch.nn.functional.pad(mask, (0, -mask.shape[1] % 8))
    # A row is one or two numbers: the bits below the lowest False say how many bytes come before it, and the product adds them up.
    false = mask.contiguous().view(torch.int64) ^ _ONES
    count = (((false - 1) & ~false & _ONES) * _ONES) >> 56
    return count[:, 0] if count.shape[1] == 1 else count[:, 0] + torch.where(count[:, 0] == 8, count[:, 1], 0)


def prefix(size: Tensor, width: int) -> Tensor:
    """bool [n, width]: the first `size` [n] columns of each row; `width` at most 16."""
    return torch.arange(width, device=size.device, dtype=torch.int8) < size.to(torch.int8)[:, None]


def leading(mask: Tensor) -> Tensor:
    """bool [n, K]: the True that each row of `mask` opens with, K at most 16."""
    return prefix(num_leading(mask), mask.shape[1])


def any_of(mask: Tensor) -> Tensor:
    """bool [n]: whether a row of `mask` [n, K] holds a True; K is 8 or 16."""
    parts = mask.view(torch.int64)
    return (parts[:, 0] if parts.shape[1] == 1 else parts[:, 0] | parts[:, 1]) != 0
