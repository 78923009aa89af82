"""The token segmenter: the text segmenter's boundaries, on ids."""

from __future__ import annotations

import gzip
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from srm.errors import UserError
from srm.segmentation import ByteTable, Segmenter, Span, TokenSegmenter, content_lengths, make_segmenter, sentence_ends_from_offsets

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


def ends_of(segmenter: TokenSegmenter, texts: list[str]) -> list[list[int]]:
    """The last byte of each sentence of `texts`, through byte ids."""
    data = [list(text.encode()) for text in texts]
    width = max(map(len, data))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in data], dtype=torch.int64).view(len(data), width)
    return segmenter.segment(ids, torch.tensor([len(row) for row in data])).tolist()


def cut(segmenter: TokenSegmenter, texts: list[str]) -> list[list[str]]:
    """Sentences of `texts` through byte ids, white space at their ends left out."""
    return [
        [text.encode()[start + 1 : end + 1].decode().strip() for start, end in pairwise([-1, *found])]
        for text, found in zip(texts, ends_of(segmenter, texts), strict=True)
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


SEGMENTERS = [
    make_segmenter(),
    make_segmenter(min_chars=12, max_chars=40),
    make_segmenter("newline"),
    make_segmenter(min_chars=0, max_chars=8, max_code_chars=8),
]


@pytest.mark.parametrize("segmenter", SEGMENTERS)
@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("abA1 .?!\n\t\"')-*#`:;{|$é。—😀x\u3000\u00a0")), min_size=1, max_size=60))
def test_any_text_is_cut_as_in_text(segmenter: Segmenter, text: str) -> None:
    """A token a byte: each sentence ends with the byte before the first visible one of the next."""
    starts = [len(text[: span.start].encode()) for span in segmenter.segment(text)[1:]]
    assert ends_of(TokenSegmenter(BYTES, segmenter), [text])[0] == [*(start - 1 for start in starts), len(text.encode()) - 1]


@pytest.mark.parametrize("text", ["a. B", "x" * 1300, "word " * 300, "```\n" + "a = 1\n" * 500 + "```", "好" * 1200, "One, two; " * 90])
def test_long_sentences_are_split_as_in_text(by_byte: TokenSegmenter, text: str) -> None:
    wanted = [text[start:end].strip() for start, end in make_segmenter("punkt").segment(text)]
    assert cut(by_byte, [text])[0] == wanted


def test_every_segmenter_works_on_ids() -> None:
    segmenter = make_segmenter(abbreviations=["Foo."], max_chars=20)
    text = "A foo. Bar sat on the long and winding mat. Yes."
    wanted = [text[start:end].strip() for start, end in segmenter.segment(text)]
    assert cut(TokenSegmenter(BYTES, segmenter), [text])[0] == wanted
    assert cut(TokenSegmenter(BYTES, make_segmenter("newline")), ["One. Two.\n\nThree.\n"])[0] == ["One. Two.", "Three."]
    assert cut(TokenSegmenter(BYTES, make_segmenter(min_chars=5)), ["Go. Yes. It is late."])[0] == ["Go. Yes.", "It is late."]


class EveryWord:
    """A segmenter of somebody else's: anything with `segment_batch` will do."""

    def segment_batch(self, texts: list[str]) -> list[list[Span]]:
        edges = [[0, *(word.start() for word in re.finditer(r"(?<=\s)\S", text)), len(text)] for text in texts]
        return [[Span(start, end) for start, end in pairwise(edge) if start < end] for edge in edges]


def test_a_segmenter_of_your_own() -> None:
    assert cut(TokenSegmenter(BYTES, EveryWord()), ["one two  three", ""]) == [["one", "two", "three"], []]  # type: ignore[arg-type]  # has what is used


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
    assert found.cu_boundaries.tolist() == [0, 2, 4, 5, 5, 7]


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
    with pytest.raises(IndexError, match="token id -2 is negative"):
        by_byte.segment(torch.tensor([[1, -2]]))
    with pytest.raises(ValueError, match=r"`ids` must be integers \[B, L\], got torch.int64 \[2\]"):
        by_byte.segment(torch.tensor([1, 2]))


def test_ids_behind_the_vocabulary_write_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    """As in the tokenizer's own `decode`; they stay with the token before them, as special tokens do."""
    segmenter = TokenSegmenter(tokenizer)
    (first, second), size = (tokenizer(text)["input_ids"] for text in ("It is. ", "Is it?")), len(segmenter.table)
    ids = [size + 1, *first, size, *second, 2**40]
    assert segmenter.segment(torch.tensor([ids])).tolist() == [[len(first) + 1, len(ids) - 1]]
    text, spans = segmenter.table.decode(ids)
    assert text == tokenizer.decode(ids[:-1]) == "It is. Is it?"
    assert [spans[at] for at in (0, len(first) + 1, -1)] == [(0, 0), (7, 7), (13, 13)]


def test_bytes_that_are_no_utf8(by_byte: TokenSegmenter) -> None:
    found = by_byte.segment(torch.tensor([[0x80, 0xE3, 0x41, 0x2E, 0x20, 0x42, 0xF0, 0x9F]]))
    assert found.tolist() == [[4, 7]]


def test_content_lengths() -> None:
    ids = torch.tensor([[1, 2, 3], [3, 1, 1], [1, 1, 1], [1, 4, 3]])
    assert content_lengths(ids, {3, 4}).tolist() == [2, 0, 3, 1]
    assert content_lengths(ids, {3, 4}, torch.tensor([1, 9, 2, 9])).tolist() == [1, 0, 2, 1]
    assert content_lengths(ids, ()).tolist() == [3, 3, 3, 3]
    assert content_lengths(ids[:, :0], {3}).tolist() == [0, 0, 0, 0]


def test_byte_level_table(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "The cat sat.\n\n\tÉté, 你好 😀 <|im_end|> it's"
    table = ByteTable.from_tokenizer(tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    written, offsets = table.decode(torch.tensor(encoded["input_ids"]))
    assert written == text.replace("<|im_end|>", "")
    # Up to the special token, which writes nothing, these are the tokenizer's own offsets.
    special = encoded["input_ids"].index(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    assert offsets[:special] == encoded["offset_mapping"][:special]
    assert offsets[special] == (len(text.split("<|im_end|>")[0]),) * 2
    assert offsets[-1][1] == len(written)


def test_decode_of_bytes_that_are_no_utf8() -> None:
    table = ByteTable([b"a", b"\xc3", b"\xa9", b"\xf0\x9f", b"", b"b\xe3\x81"])
    assert table.decode([0, 1, 2, 4, 0]) == ("aéa", [(0, 1), (1, 2), (1, 2), (2, 2), (2, 3)])
    assert table.decode([2, 1, 0]) == ("\ufffd\ufffda", [(0, 1), (1, 2), (2, 3)])
    assert table.decode([0, 3]) == ("a\ufffd\ufffd", [(0, 1), (1, 3)])
    assert table.decode(torch.tensor([5])) == ("b\ufffd\ufffd", [(0, 3)])
    assert table.decode([]) == ("", [])
    assert table.decode([4]) == ("", [(0, 0)])
    with pytest.raises(IndexError, match="token id -1 is negative"):
        table.decode([0, -1])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *(piece.encode() for piece in ["a", "B. ", ". ", " C", "é", "。但", "\u3000", "\n\n", "", "好", "!"]),
                b"\x80",
                b"\xe3\x80",
                b"\x80.",
                b"\xf0\x9f",
            ]
        ),
        min_size=1,
        max_size=24,
    )
)
def test_ids_and_text_are_one_rule(punkt: Segmenter, tokens: list[bytes]) -> None:
    """However tokens part characters, valid or not: through ids it is what `decode`, `segment` and `sentence_ends_from_offsets` say."""
    table = ByteTable(tokens)
    text, offsets = table.decode(range(len(tokens)))
    wanted = sentence_ends_from_offsets(punkt.segment(text), offsets, text=text).ends if text else [len(tokens) - 1]
    ids = torch.arange(len(tokens))
    assert TokenSegmenter(table, punkt).segment(torch.stack([ids, ids])).tolist() == [wanted, wanted]


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
    assert table.decode([2, 3, 1, 4])[0] == " Hi.\n"


def test_tokenizer_without_bytes_is_refused() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match="its tokens do not stand for bytes"):
        ByteTable.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_real_responses_are_cut_as_in_text(shared_data: Path, tokenizer: PreTrainedTokenizerBase, punkt: Segmenter) -> None:
    with gzip.open(shared_data / "pairs_test.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(2500), strict=False)]
    texts = [row[key] for row in rows for key in ("chosen", "rejected") if row[key].strip()]
    assert len(texts) > 4900
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in batch["input_ids"]], batch_first=True)
    found = TokenSegmenter(tokenizer, punkt).segment(ids, torch.tensor([len(row) for row in batch["input_ids"]])).tolist()
    for text, spans, offsets, ends in zip(texts, punkt.segment_batch(texts), batch["offset_mapping"], found, strict=True):
        assert spans == punkt.segment(text)
        assert ends == sentence_ends_from_offsets(spans, offsets, text=text).ends


def _trained(kind: str) -> Tokenizer:
    """Byte-level as GPT-NeoX and Phi, or words marked as SentencePiece marks them, decoded as in Gemma or as in older Llamas."""
    made = Tokenizer(models.BPE() if kind == "bytes" else models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if kind == "bytes":
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    elif kind == "replaced":
        made.normalizer = normalizers.Replace(" ", "▁")
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        made.decoder = decoders.Metaspace(prepend_scheme="never")
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else list("Yes. No\nItw")
    made.train_from_iterator(
        ["Yes. No. It is.\n"] * 3, trainers.BpeTrainer(special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False)
    )
    return made


FLAGS: list[dict[str, bool]] = [
    {},
    {"normalized": True},
    {"normalized": False},
    {"lstrip": True},
    {"rstrip": True},
    {"lstrip": True, "rstrip": True},
]


@pytest.mark.parametrize("kind", ["bytes", "replaced", "metaspace"])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("content", ["  ", "    ", "\t\t", "\n\n", "▁▁", "▁▁▁▁", "ĠĠ", "Ċ", "<x>", "é"])
def test_added_tokens_decode_as_in_the_tokenizer(kind: str, flags: dict[str, bool], content: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_trained(kind), unk_token="<unk>")
    tokenizer.add_tokens([AddedToken(content, **flags)])
    before, behind = tokenizer(["Yes.", "No."], add_special_tokens=False)["input_ids"]
    ids = [*before, tokenizer.convert_tokens_to_ids(content), *behind]
    text, offsets = ByteTable.from_tokenizer(tokenizer).decode(ids)
    assert text == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert offsets[len(before)][0] == 4
    assert offsets[-1][1] == len(text)


@pytest.mark.parametrize(("kind", "content"), [("bytes", "   "), ("replaced", "▁▁▁"), ("metaspace", "▁▁▁")])
def test_blanks_that_are_one_token_part_sentences(kind: str, content: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_trained(kind), unk_token="<unk>")
    tokenizer.add_tokens([AddedToken(content)])
    before, behind = tokenizer(["Yes.", "It is."], add_special_tokens=False)["input_ids"]
    ids = [*before, tokenizer.convert_tokens_to_ids(content), *behind]
    assert TokenSegmenter(tokenizer).segment(torch.tensor([ids])).tolist() == [[len(before), len(ids) - 1]]
