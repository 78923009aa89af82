"""The token segmenter: the text segmenter's boundaries, on ids."""

from __future__ import annotations

import gzip
import json
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from srm.errors import UserError
from srm.segmentation import ByteTable, SegmentationConfig, Segmenter, TokenSegmenter, make_segmenter, sentence_ends_from_offsets
from srm.segmentation.characters import encode_text

MARK = "‖"
BLOCKS = (Path(__file__).parent / "cases.txt").read_text(encoding="utf-8").split("\n=== ")[1:]
CASES = {name: text.removesuffix("\n") for name, text in (block.split("\n", 1) for block in BLOCKS)}
BYTES = ByteTable([bytes([byte]) for byte in range(256)])
EOS, PAD = 256, 257


@pytest.fixture(scope="module")
def by_byte() -> TokenSegmenter:
    return TokenSegmenter(BYTES)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_tokenizer_dir)


def cut(segmenter: TokenSegmenter, texts: list[str]) -> list[list[str]]:
    """Sentences of `texts` through byte ids, white space at their ends left out."""
    data = [text.encode() for text in texts]
    ids = torch.tensor([byte for row in data for byte in row], dtype=torch.int64)
    ends = segmenter.segment_packed(ids, torch.tensor([0, *map(len, data)]).cumsum(0)).tolist()
    return [
        [row[start:end].decode().strip() for start, end in zip([0, *(e + 1 for e in found)], [e + 1 for e in found], strict=False)]
        for row, found in zip(data, ends, strict=True)
    ]


def test_the_table_of_cases(by_byte: TokenSegmenter) -> None:
    wanted = [[part.strip() for part in marked.split(MARK)] for marked in CASES.values()]
    got = cut(by_byte, [marked.replace(MARK, "") for marked in CASES.values()])
    assert {name: sentences for name, sentences, want in zip(CASES, got, wanted, strict=True) if sentences != want} == {}


def test_a_response_does_not_depend_on_its_neighbours(by_byte: TokenSegmenter) -> None:
    texts = [
        "Open:\n```python\nx = 1\n\ny = 2",
        "1. One. Then.\n2. Two.",
        "$$\na",
        "  ",
        "",
        "No. 5 is it. Yes",
        "é。「あ」い。う",
        "Yes.\n①",
    ]
    together = cut(by_byte, texts)
    assert together == [cut(by_byte, [text])[0] for text in texts]
    assert together[1] == ["1. One.", "Then.", "2. Two."]


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("abA1 .?!\n\t\"')-*#`:;{|$é。—😀x")), max_size=60))
def test_any_text_is_covered_in_order(text: str) -> None:
    ends = TokenSegmenter(BYTES).segment_packed(torch.tensor(list(text.encode()), dtype=torch.int64), torch.tensor([0, len(text.encode())]))
    found = ends.tolist()[0]
    assert found == sorted(set(found))
    assert (found[-1] if found else -1) == len(text.encode()) - 1


@pytest.mark.parametrize("text", ["a. B", "x" * 1300, "word " * 300, "```\n" + "a = 1\n" * 500 + "```", "好" * 1200, "One, two; " * 90])
def test_long_sentences_are_split_as_in_text(by_byte: TokenSegmenter, text: str) -> None:
    wanted = [text[start:end].strip() for start, end in make_segmenter("punkt").segment(text)]
    assert cut(by_byte, [text])[0] == wanted


def test_settings_of_the_text_segmenter() -> None:
    config = SegmentationConfig(abbreviations=("Foo.",), max_chars=20)
    text = "A foo. Bar sat on the long and winding mat. Yes."
    wanted = [text[start:end].strip() for start, end in make_segmenter(**config.to_dict()).segment(text)]
    assert cut(TokenSegmenter(BYTES, config), [text])[0] == wanted
    assert cut(TokenSegmenter(BYTES, SegmentationConfig(name="newline")), ["One. Two.\n\nThree.\n"])[0] == ["One. Two.", "Three."]
    with pytest.raises(UserError, match="no rules on ids for the segmenter 'sat'"):
        TokenSegmenter(BYTES, SegmentationConfig(name="sat"))
    with pytest.raises(UserError, match="`min_chars` must be 0 or 1, got 5"):
        TokenSegmenter(BYTES, SegmentationConfig(min_chars=5))


@pytest.mark.parametrize("pad", [EOS, PAD])
def test_end_of_the_text(pad: int) -> None:
    table = ByteTable([*(bytes([byte]) for byte in range(256)), b"", b""])
    segmenter = TokenSegmenter(table, end_ids=[EOS, pad])
    done, cut_off = list(b"Yes. No."), list(b"Yes. And th")
    behind = [*list(b"Hi."), EOS, *list(b" Bye. You.")]
    rows = [[*done, EOS], cut_off, behind, [EOS], done]
    ids = torch.tensor([row + [pad] * (20 - len(row)) for row in rows])
    found = segmenter.segment(ids)
    assert found.tolist() == [[4, 7], [4, 10], [2], [], [4, 7]]
    assert found.lengths.tolist() == [8, 11, 3, 0, 8]
    assert found.cu_sentences.tolist() == [0, 2, 4, 5, 5, 7]


def test_lengths_bound_the_text(by_byte: TokenSegmenter) -> None:
    ids = torch.tensor([list(b"Aa. Cc d.")])
    assert by_byte.segment(ids, torch.tensor([6])).tolist() == [[3, 5]]
    assert by_byte.segment(ids.repeat(2, 1), torch.tensor([0, 99])).tolist() == [[], [3, 8]]
    assert by_byte.segment(ids[:0]).tolist() == []
    assert by_byte.segment(ids[:, :0]).tolist() == [[]]


def test_token_owns_its_first_black_character() -> None:
    table = ByteTable([b"One", b". ", b"Two", b".", b" Two", "。但".encode(), b"", "é".encode()[:1], "é".encode()[1:]])
    segmenter = TokenSegmenter(table)
    ids = torch.tensor([[0, 1, 2, 3], [0, 3, 4, 3], [0, 5, 0, 3], [0, 3, 6, 4], [7, 8, 1, 2]])
    # A token that straddles ends the first sentence; an empty one stays with the token before it; the two bytes of é stay together.
    assert segmenter.segment(ids).tolist() == [[1, 3], [1, 3], [1, 3], [2, 3], [2, 3]]


def test_bad_ids(by_byte: TokenSegmenter) -> None:
    with pytest.raises(IndexError, match="token id 256 is outside the vocabulary of 256 ids"):
        by_byte.segment(torch.tensor([[1, 256]]))
    with pytest.raises(ValueError, match=r"`ids` must be integers \[B, L\], got torch.int64 \[2\]"):
        by_byte.segment(torch.tensor([1, 2]))


def test_bytes_that_are_no_utf8(by_byte: TokenSegmenter) -> None:
    found = by_byte.segment(torch.tensor([[0x80, 0xE3, 0x41, 0x2E, 0x20, 0x42, 0xF0, 0x9F]]))
    assert found.tolist() == [[4, 7]]


def test_byte_level_table(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "The cat sat.\n\n\tÉté, 你好 😀 <|im_end|> it's"
    table = ByteTable.from_tokenizer(tokenizer)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    written, offsets = table.expand(ids)
    assert bytes(written.tolist()).decode() == text.replace("<|im_end|>", "")
    assert offsets.tolist()[-1] == written.numel()


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("aB. é。好—😀𒀀\u0301")), max_size=30), st.data())
def test_codes_do_not_depend_on_where_tokens_part(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted({0, len(raw), *data.draw(st.lists(st.integers(0, len(raw))))})
    tokens = [raw[start:end] for start, end in pairwise(cuts)]
    # A token without bytes in front: its row is empty, and what stands behind it must not move.
    codes, offsets = ByteTable([b"", *tokens]).expand_codes(torch.arange(len(tokens) + 1))
    assert codes.tolist() == encode_text(text).tolist()
    begun = [sum(byte & 0xC0 != 0x80 for byte in token) for token in (b"", *tokens)]
    assert offsets.tolist() == [0, *accumulate(begun)]


# Blocks that stand by themselves, so that any row of them is a text whose sentences are known.
PARTS = [
    "One is here.",
    "Is it? Yes!",
    "Dr. Lee left at 5 p.m. today.",
    "- An item, with e.g. this.",
    "2. Second. And more.",
    "## Heading",
    "**Bold:**",
    "```python\nx = 1.\n\ny = 2\n```",
    "$$\na + b\n$$",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "> Quoted. Twice.",
    "for x in y:\n    z = x\n    f(z)",
    "你好。我是谁。",
    'He said "Stop!" and left. Then…  No.',
    "Wait... what? 😀 Fine. [1] Next.",
    "1. One 2. Two 3. Three",
    "long words and clauses, " * 30,
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PARTS), st.sampled_from(["\n", "\n\n", "\n \n\n"])), min_size=1, max_size=8))
def test_any_layout_is_cut_as_in_text(punkt: Segmenter, by_byte: TokenSegmenter, parts: list[tuple[str, str]]) -> None:
    text = "".join(part + gap for part, gap in parts)
    assert cut(by_byte, [text])[0] == [text[start:end].strip() for start, end in punkt.segment(text)]


def test_byte_fallback_table() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={"<unk>": 0, "<0x0A>": 1, "\u2581Hi": 2, ".": 3, "</s>": 4}, merges=[], unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    table = ByteTable.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    written, _ = table.expand(torch.tensor([2, 3, 1, 4]))
    assert bytes(written.tolist()) == b" Hi.\n"


def test_tokenizer_without_bytes_is_refused() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match="its tokens do not stand for bytes"):
        ByteTable.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_agrees_with_the_text_segmenter_on_real_responses(shared_data: Path, tokenizer: PreTrainedTokenizerBase, punkt: Segmenter) -> None:
    with gzip.open(shared_data / "pairs_test.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(800), strict=False)]
    texts = [row[key] for row in rows[::4] for key in ("chosen", "rejected") if row[key].strip()]
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in batch["input_ids"]], batch_first=True)
    found = TokenSegmenter(tokenizer).segment(ids, torch.tensor([len(row) for row in batch["input_ids"]])).tolist()
    both = errors = 0
    for text, offsets, ends in zip(texts, batch["offset_mapping"], found, strict=True):
        wanted = sentence_ends_from_offsets(punkt.segment(text), offsets, text=text).ends
        both += len(set(wanted) & set(ends))
        errors += len(set(wanted) ^ set(ends))
    assert 2 * both / (2 * both + errors) >= 0.9995
