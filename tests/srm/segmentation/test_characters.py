"""The vectorised helpers against plain loops."""

from __future__ import annotations

from itertools import takewhile

import pytest
import torch

from srm.segmentation.characters import Code, any_of, encode_text, leading, lookup, num_leading, prefix, to_codes


@pytest.mark.parametrize("width", [1, 4, 6, 8, 13, 16])
def test_leading(width: int) -> None:
    mask = torch.rand(500, width, generator=torch.Generator().manual_seed(width)) < 0.9
    mask[0], mask[1] = True, False
    expected = [len(list(takewhile(bool, row))) for row in mask.tolist()]
    assert num_leading(mask).tolist() == expected
    assert leading(mask).sum(1).tolist() == expected
    # A view whose rows do not lie behind one another.
    assert num_leading(mask.flip(1)).tolist() == [len(list(takewhile(bool, row[::-1]))) for row in mask.tolist()]


def test_lookup() -> None:
    table = torch.arange(256) % 3 == 0
    codes = torch.arange(256, dtype=torch.uint8).view(16, 16)
    for part in (codes, codes.T, codes[:0]):
        assert lookup(table, part).tolist() == [[code % 3 == 0 for code in row] for row in part.tolist()]


@pytest.mark.parametrize("width", [8, 16])
def test_prefix_and_any_of(width: int) -> None:
    sizes = torch.arange(width + 1)
    assert prefix(sizes, width).tolist() == [[column < size for column in range(width)] for size in range(width + 1)]
    mask = torch.eye(width, dtype=torch.bool)
    mask[3] = False
    assert any_of(mask).tolist() == [row != 3 for row in range(width)]


def test_codes_of_characters() -> None:
    assert encode_text("aB\n. é É 好 𒀀 😀").tolist() == [97, 66, 10, 46, 32, 128, 32, 129, 32, 131, 32, 130, 32, 132]
    # Bytes that begin no character have no code, and one that is cut short has.
    codes, begin = to_codes(torch.tensor([0x80, 0x61, 0x80, 0x62, 0xE3], dtype=torch.uint8))
    assert codes[:2].tolist() == [97, 98]
    assert begin.tolist() == [1, 3, 4]


def test_only_white_space_is_128_and_above_less_33() -> None:
    # What `Stream` finds its words by.
    assert max(Code) < 33 + 128
