"""Responses as tokens: which tokens, and where each sentence ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from srm.data import EncodedResponse, ResponseEncoder
from srm.errors import UserError
from srm.segmentation import Span, make_segmenter

Make = Callable[..., PreTrainedTokenizerFast]


def pieces(encoder: ResponseEncoder, response: EncodedResponse) -> list[str]:
    """The text of each sentence's tokens."""
    starts = [0, *(end + 1 for end in response.sentence_ends)]
    return [
        encoder.tokenizer.decode(response.ids[start : end + 1], clean_up_tokenization_spaces=False)
        for start, end in zip(starts, response.sentence_ends, strict=False)
    ]


def parts(response: EncodedResponse) -> tuple[list[int], list[int], list[Span], str]:
    return response.ids.tolist(), response.sentence_ends.tolist(), list(response.spans), response.text


def test_sentences_end_at_their_last_token(encoder: ResponseEncoder) -> None:
    response = encoder.encode_response("Why?", "It is blue. Is it? Yes!\n\n- one\n- two")
    assert pieces(encoder, response) == ["It is blue.", " Is it?", " Yes!\n\n", "- one\n", "- two"]
    assert [response.text[span.start : span.end] for span in response.spans] == ["It is blue. ", "Is it? ", "Yes!\n\n", "- one\n", "- two"]


def test_the_tokens_are_the_policys(encoder: ResponseEncoder, chatml: PreTrainedTokenizerFast) -> None:
    """Prompt and response tokens together are what the template's whole text is made of."""
    text = "The sky is blue. Snow is white."
    conversation = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]
    whole = chatml(chatml.apply_chat_template(conversation, tokenize=False), add_special_tokens=False)["input_ids"]
    ids = [*encoder.encode_prompt("Why?"), *encoder.encode_response("Why?", text).ids]
    assert ids == whole[: len(ids)]
    assert chatml.decode(whole[len(ids) :]) == "<|im_end|>\n"


@pytest.mark.parametrize("byte_level", [True, False])
def test_the_space_a_template_writes_before_an_answer(byte_level: bool, make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer("llama", byte_level=byte_level)
    encoder = ResponseEncoder(tokenizer, make_segmenter("punkt"))
    text = "The sky is blue. Snow is white."
    conversation = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]
    whole = tokenizer(tokenizer.apply_chat_template(conversation, tokenize=False), add_special_tokens=False)["input_ids"]
    response = encoder.encode_response("Why?", text)
    ids = [*encoder.encode_prompt("Why?"), *response.ids]
    assert ids == whole[: len(ids)]
    assert tokenizer.decode(whole[len(ids) :]).strip() == "</s>"
    assert [response.text[span.start : span.end] for span in response.spans] == ["The sky is blue. ", "Snow is white."]
    first = tokenizer.convert_ids_to_tokens(response.ids[: response.sentence_ends[0] + 1])
    assert "".join(first).replace("Ġ", " ").replace("▁", " ") == " The sky is blue."


def test_a_response_is_not_stripped(make_tokenizer: Make) -> None:
    """A policy may open with white space; the template's opinion on that concerns what is written into prompts."""
    encoder = ResponseEncoder(make_tokenizer("chatml strips"), make_segmenter("punkt"))
    assert pieces(encoder, encoder.encode_response("Why?", "\n  Yes. ")) == ["\n  Yes. "]


def test_a_message_is_its_content(encoder: ResponseEncoder) -> None:
    message = [{"role": "assistant", "content": "Yes."}]
    assert parts(encoder.encode_response("Why?", message)) == parts(encoder.encode_response("Why?", "Yes."))


def test_the_last_boundary_is_a_token_of_the_text(encoder: ResponseEncoder) -> None:
    """As all the others are. An end-of-turn token there would take the head's whole lesson, and sentence rewards would mean nothing."""
    assert pieces(encoder, encoder.encode_response("Why?", "Yes. No.")) == ["Yes.", " No."]


def test_boundary_tokens(marked_encoder: ResponseEncoder, chatml: PreTrainedTokenizerFast) -> None:
    response = marked_encoder.encode_response("Why?", "Yes. No way.")
    assert pieces(marked_encoder, response) == ["Yes.<END>", " No way.<END>"]
    mark = chatml.convert_tokens_to_ids("<END>")
    assert [index for index, token in enumerate(response.ids) if token == mark] == response.sentence_ends.tolist()
    prompt = marked_encoder.encode_prompt("Why?")
    assert prompt.index(mark) == len(prompt) - 1


def test_an_unknown_boundary_token(chatml: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="boundary_token: the tokenizer has no token '<STOP>'"):
        ResponseEncoder(chatml, make_segmenter("punkt"), boundary_token="<STOP>")


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("", "`response` is empty"),
        (" \n", "`response` is empty"),
        ([{"role": "user", "content": "Yes."}], r"must be one assistant message, got 1 \(user\)"),
        ([{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "No."}], "ends with a message of the role user"),
    ],
)
def test_bad_responses(response: str, message: str, encoder: ResponseEncoder) -> None:
    with pytest.raises(UserError, match=message):
        encoder.encode_response("Why?", response)


def test_a_batch_is_its_parts(encoder: ResponseEncoder) -> None:
    texts = ["Yes. No.", "A long answer. With more.\n\nAnd more!", "x"]
    assert list(map(parts, encoder.encode_responses(texts))) == [parts(encoder.encode_response("Why?", text)) for text in texts]
    assert encoder.encode_responses([]) == []
    assert encoder.encode_prompts([]) == []


@pytest.fixture(scope="module", params=[("chatml", None), ("chatml", "<END>"), ("llama", None), ("none", None)])
def any_encoder(request: pytest.FixtureRequest, make_tokenizer: Make) -> ResponseEncoder:
    template, boundary = request.param
    return ResponseEncoder(make_tokenizer(template), make_segmenter("punkt"), boundary_token=boundary)


PARTS = ["Yes. ", "Is it?", "\n\n", "- one\n", "3.5", " e.g. ", "。", "é", "😀", "  ", "```\nx = 1\n```\n"]
ANSWER = st.lists(st.sampled_from(PARTS), max_size=12)


@settings(max_examples=60, deadline=None)
@given(parts=ANSWER, text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_answer_is_covered(any_encoder: ResponseEncoder, parts: list[str], text: str) -> None:
    encoder = any_encoder
    text = "".join(parts) + text
    if not text.strip():
        return
    response = encoder.encode_response("Why?", text)
    assert all(a < b for a, b in zip([-1, *response.sentence_ends], response.sentence_ends, strict=False))
    assert response.sentence_ends[-1] == len(response.ids) - 1
    assert "".join(text[span.start : span.end] for span in response.spans) == text
    assert len(response.spans) == len(response.sentence_ends)
    # Every token is there once: the sentences' tokens spell the text.
    written = encoder.tokenizer.decode(response.ids, clean_up_tokenization_spaces=False).replace("<END>", "")
    assert written == encoder.answers.lead + text
