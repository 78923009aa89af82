"""Thinking blocks that a model leaves out of its reward: which characters and which tokens have a sentence."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from srm.errors import UserError
from srm.segmentation import ByteTable, TokenSegmenter, make_segmenter
from srm.segmentation.thinking import behind_thinking
from srm.segmentation.tokens import opening_tokens, sentence_ends_from_offsets

BYTES = ByteTable([bytes([byte]) for byte in range(256)])
LEFT_OUT = make_segmenter(thinking="left_out")

CASES = [
    ("<think>\nLet me see. It is 4.\n</think>\n\nIt is 4. Sure.", ["It is 4. ", "Sure."]),
    (" \n<thinking>So. And so.</thinking>Hello! You?", ["Hello! ", "You?"]),
    # Where a generation prompt opens the block, the answer begins inside it.
    ("Let me see. It is 4.\n</think>\n\nIt is 4.", ["It is 4."]),
    ("<think>\n\n</think>\n\n<think>Again. And.</think> Yes.", ["Yes."]),
    # Nothing is answered yet.
    ("<think>Let me see. It is", []),
    ("<think>Let me see.</think>\n", []),
    # Other blocks are part of the answer.
    ("Yes. <think>No. Or.</think> Yes.", None),
    ("Yes. It is.", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "want"), CASES)
@pytest.mark.parametrize("name", ["punkt", "newline"])
def test_the_block_has_no_sentence(text: str, want: list[str] | None, name: str) -> None:
    left_out, scored = make_segmenter(name, thinking="left_out"), make_segmenter(name)
    spans = left_out.segment(text)
    start = behind_thinking(text)
    assert spans == ([(a + start, b + start) for a, b in scored.segment(text[start:])] if start else scored.segment(text))
    if name == "punkt":
        assert [text[a:b] for a, b in spans] == (want if want is not None else [text[a:b] for a, b in scored.segment(text)])


def test_the_setting_is_checked_and_kept() -> None:
    with pytest.raises(UserError, match="`thinking` must be one of scored, left_out, got 'no'"):
        make_segmenter(thinking="no")
    assert make_segmenter(**LEFT_OUT.config.to_dict()).config == LEFT_OUT.config
    assert pickle.loads(pickle.dumps(LEFT_OUT)).config == LEFT_OUT.config
    assert LEFT_OUT.without_limits().config.thinking == "left_out"


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "Yes. ", "No.", "\n\n", "é 🙂. ", " ", "x"]), max_size=10).map("".join)


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(PIECES, min_size=1, max_size=4))
def test_ids_are_cut_as_text_is(texts: list[str]) -> None:
    """Bytes as ids, so that each character has tokens of its own."""
    data = [text.encode() for text in texts]
    width = max(map(len, data), default=0)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in data], dtype=torch.int64).view(len(data), width)
    found = TokenSegmenter(BYTES, LEFT_OUT).segment(ids, torch.tensor([len(row) for row in data]))
    for text, ends, opening in zip(texts, found.tolist(), found.opening.tolist(), strict=True):
        spans = LEFT_OUT.segment(text)
        assert ends == [len(text[:end].rstrip().encode()) + len(text[:end]) - len(text[:end].rstrip()) - 1 for _, end in spans] or not spans
        offsets = [(at, at + 1) for at, character in enumerate(text) for _ in character.encode()]
        assert opening == opening_tokens(spans, offsets, text)
        if spans:
            assert ends == sentence_ends_from_offsets(spans, offsets, text=text).ends
        else:
            assert ends == []


def test_tags_that_are_special_tokens(tiny_tokenizer_dir: object) -> None:
    """Some tokenizers hide the tags when they decode; a text has them."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    tokenizer.add_tokens([AddedToken("<think>", special=True), AddedToken("</think>", special=True)])
    text = "<think>So. It is.</think>No. It is."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = TokenSegmenter(tokenizer, LEFT_OUT).segment(torch.tensor([ids]))
    assert tokenizer.decode(ids[int(found.opening) :]) == "No. It is."
    assert found.opening.item() == ids.index(tokenizer.convert_tokens_to_ids("</think>")) + 1
