"""A stream of codes: its words, and the words that lists hold."""

from __future__ import annotations

import pytest
import torch

from srm.segmentation.characters import encode_text
from srm.segmentation.stream import PAD, Lexicon, Stream, hash_words


def stream_of(text: str) -> Stream:
    code = torch.nn.functional.pad(encode_text(text), (PAD, PAD), value=10)
    return Stream(code=code, text_start=torch.tensor([0]), text_end=torch.tensor([len(text)]))


@pytest.mark.parametrize("text", ["", " \n", "a", "  One\ttwo.\n\n好 — é\u3000x ", "~\x7f\x00!"])
def test_words_are_what_white_space_leaves(text: str) -> None:
    stream = stream_of(text)
    words = [text[start:end] for start, end in zip(stream.word_start.tolist(), stream.word_end.tolist(), strict=True)]
    # Control characters part words, as white space does.
    assert words == text.replace("\x00", " ").split()
    assert stream.word_last.tolist() == [int(encode_text(word[-1])) for word in words]


def test_places_and_foreign_characters() -> None:
    stream = stream_of("a=b\n``é\n$$ —")
    assert {character: stream.where(character).tolist() for character in "\n`*|=$\\"} == {
        "\n": [3, 7],
        "`": [4, 5],
        "*": [],
        "|": [],
        "=": [1],
        "$": [8, 9],
        "\\": [],
    }
    assert stream.pairs("$", "$").tolist() == [8]
    assert stream.foreign[0].tolist() == [6, 11]


@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("backwards", [False, True])
def test_words_on_several_lists(width: int, backwards: bool) -> None:
    words = Lexicon([["no", "mr"], ["Mr", "z.b"], ["abcdefgh", "x" * 17]], torch.device("cpu"), backwards=backwards)

    def find(text: str, size: int) -> int:
        row = encode_text((text[::-1] if backwards else text).ljust(width, "?"))[None, :width]
        return int(words.find(hash_words(row, torch.tensor([size]))))

    assert [find(word, len(word)) for word in ("no", "NO", "mr", "MR", "z.b", "abcdefgh")] == [1, 1, 3, 3, 2, 4]
    assert [find("no", 0), find("no", 1), find("nor", 3), find("on", 2)] == [0] * 4
