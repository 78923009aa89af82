"""Texts that certainly do not fit are found at once, and no text that fits is among them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from srm import SentenceRewardModel, UserError
from srm.data.bounds import TokenFloor
from srm.scoring.text import encode_groups

CHARACTERS = ["a", " ", "\n", "é", "e\u0301", "1", "-", "\u200b", "\U00012000", "It was warm there. ", "<|im_end|>"]
runs = st.lists(st.tuples(st.sampled_from(CHARACTERS), st.integers(1, 500)), max_size=8).map(
    lambda parts: "".join(text * count for text, count in parts)
)


def bpe(**more: object) -> Tokenizer:
    """A word of letters is one token, and so is every run of white space that ends in one."""
    vocabulary = {"<unk>": 0, "a": 1, "▁": 2, "aa": 3, "aaaa": 4, "e": 5, "\u0301": 6, "é": 7}
    return Tokenizer(models.BPE(vocabulary, [("a", "a"), ("aa", "aa")], unk_token="<unk>", **more))


def tokenizers(tiny: PreTrainedTokenizerFast) -> dict[str, PreTrainedTokenizerFast]:
    """Byte-level, composing, running unknown characters together, dropping white space, and with a token that swallows it."""
    made = {"tiny": tiny}
    for name in ("composing", "unknown", "dropping", "swallowing"):
        backend = bpe(fuse_unk=name == "unknown")
        backend.normalizer = normalizers.NFC() if name == "composing" else normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if name == "dropping" else None
        backend.decoder = decoders.Replace("▁", " ")
        made[name] = PreTrainedTokenizerFast(tokenizer_object=backend)
    made["swallowing"].backend_tokenizer.add_special_tokens([AddedToken("<|im_end|>", rstrip=True, special=True)])
    return made


@pytest.fixture(scope="module")
def floors(tiny_tokenizer_dir) -> dict[str, tuple[PreTrainedTokenizerFast, TokenFloor]]:
    made = tokenizers(AutoTokenizer.from_pretrained(tiny_tokenizer_dir))
    return {name: (tokenizer, TokenFloor(tokenizer)) for name, tokenizer in made.items()}


def test_the_longest_token_is_known_where_there_is_one(floors):
    longest = {name: floor.longest for name, (_, floor) in floors.items()}
    assert longest["tiny"] == max(map(len, floors["tiny"][0].get_vocab()))
    assert longest["composing"] == 4 * 5
    assert [longest[name] for name in ("unknown", "dropping", "swallowing")] == [None, None, None]


@settings(max_examples=50)
@given(texts=st.lists(runs, min_size=1, max_size=2), limit=st.integers(1, 300))
def test_no_text_that_fits_is_called_too_long(floors, texts, limit):
    for name, (tokenizer, floor) in floors.items():
        tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
        assert max(floor.at_least(texts, limit=limit)) <= tokens, name


def test_long_texts_are_counted_until_it_is_clear(floors):
    tokenizer, floor = floors["tiny"]
    text = "It was warm there. " * 20_000
    tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    # So large a limit that characters do not decide.
    bounds = list(floor.at_least([text], limit=tokens // 2))
    assert tokens // 2 < bounds[-1] <= tokens
    assert len(bounds) < len(text) / 2**16, "counted to the end"
    assert max(floor.at_least([text], limit=tokens)) <= tokens


@pytest.mark.parametrize("part", ["response", "prompt"])
def test_a_line_of_50_megabytes_is_refused_at_once(awake_model: Callable[..., SentenceRewardModel], part: str):
    model = awake_model()
    long = "It was warm there. " * 2_700_000
    prompt, response = (long, "It is.") if part == "prompt" else ("Is it warm?", long)
    model.encoder.floor  # noqa: B018
    started = time.perf_counter()
    with pytest.raises(
        UserError, match=r"^row 3: prompt and response are more than \d+ tokens \(51,300,\d+ characters\), the model reads 256\. "
    ):
        encode_groups(model, prompt, [response], where=["row 3"], max_length=None)
    assert time.perf_counter() - started < 0.5
