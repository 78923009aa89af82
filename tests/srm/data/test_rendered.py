"""Conversations that other programs rendered and tokenized, taken apart again: the same ids as from the messages."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from srm.data import PLAIN_TEMPLATE, ResponseEncoder
from srm.data.rendered import RenderedConversations
from srm.errors import UserError
from srm.segmentation import make_segmenter

Make = Callable[..., PreTrainedTokenizerFast]

TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
OWN = {
    "no generation prompt": TURNS,
    "opens a thought": TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "ends with a word": TURNS.replace("<|im_end|>", "[END]") + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "has no line breaks": TURNS.replace("\n", "") + "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}",
}
CONVERSATIONS = [
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Is it?\n"},
        {"role": "assistant", "content": "Yes. No."},
        {"role": "user", "content": "Why?"},
    ],
]
ANSWERS = [
    "The cat sat. It was warm.",
    "\tYes. No.",
    "\nYes. It is",
    "1. One.\n2. Two.\n",
    " Yes. It is.",
    "é 🙂 warm. No.",
    "Yes. ",
    "it assistant\n",
]


def build(make_tokenizer: Make, template: str, **options: bool) -> ResponseEncoder:
    tokenizer = make_tokenizer("chatml" if template in OWN else template, **options)
    tokenizer.chat_template = OWN.get(template, tokenizer.chat_template)
    return ResponseEncoder(tokenizer, make_segmenter("punkt"))


def render(encoder: ResponseEncoder, conversation: list[dict[str, str]], answer: str) -> str:
    template = encoder.tokenizer.chat_template or PLAIN_TEMPLATE
    turns = [*conversation, {"role": "assistant", "content": answer}]
    return encoder.tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)


def split(encoder: ResponseEncoder, text: str, *, add_special_tokens: bool = False) -> tuple[list[int], str]:
    return RenderedConversations(encoder).split(encoder.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"], where="row 0")


@pytest.mark.parametrize("byte_level", [True, False])
@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", ["none", "chatml", "chatml thinks", "llama", *OWN])
def test_the_ids_of_the_messages(template: str, adds_bos: bool, byte_level: bool, make_tokenizer: Make) -> None:
    """Rendered whole or from the generation prompt, tokenized with the tokenizer's own bos or without."""
    encoder = build(make_tokenizer, template, adds_bos=adds_bos, byte_level=byte_level)
    rendered = RenderedConversations(encoder)
    strips = template == "llama"
    for conversation in CONVERSATIONS[: 1 if strips else 2]:
        for answer in ANSWERS if byte_level else filter(str.isascii, ANSWERS):
            wanted = answer.strip() if strips else answer
            for text in (render(encoder, conversation, answer), encoder.format.render(conversation) + (" " if strips else "") + wanted):
                for special in (False, True):
                    ids = encoder.tokenizer(text, add_special_tokens=special)["input_ids"]
                    assert rendered.split(ids, where="row 0") == (encoder.encode_prompt(conversation), wanted), (text, special)


def test_a_mark_that_swallows_the_line_break_behind_it(make_tokenizer: Make) -> None:
    encoder = build(make_tokenizer, "chatml")
    tokenizer = encoder.tokenizer
    for token in ("<|im_start|>", "<|im_end|>", "<|assistant|>"):
        tokenizer.add_tokens([AddedToken(token, rstrip=True, special=True)], special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' if m['role'] == 'user' else '<|assistant|>' }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    encoder = ResponseEncoder(tokenizer, make_segmenter("punkt"))
    assert split(encoder, render(encoder, CONVERSATIONS[0], "Yes. No.")) == (encoder.encode_prompt("Hi"), "Yes. No.")


@pytest.mark.parametrize("end", ["", "<|im_end|>", "<|im_end|>\n", "<|im_end|>\n</s>", "</s>"])
def test_an_answer_ends_with_its_turn_or_with_the_text(end: str, encoder: ResponseEncoder) -> None:
    assert split(encoder, encoder.format.render("Hi") + "Yes. No." + end) == (encoder.encode_prompt("Hi"), "Yes. No.")


def test_an_answer_that_is_empty(encoder: ResponseEncoder) -> None:
    assert split(encoder, render(encoder, CONVERSATIONS[0], "")) == (encoder.encode_prompt("Hi"), "")
    assert split(encoder, encoder.format.render("Hi")) == (encoder.encode_prompt("Hi"), "")


def test_a_header_inside_an_answer_opens_no_turn(encoder: ResponseEncoder) -> None:
    answer = "Write <|im_start|>assistant\nYes."
    assert split(encoder, render(encoder, CONVERSATIONS[0], answer)) == (encoder.encode_prompt("Hi"), answer)


def test_a_conversation_cut_on_the_left_keeps_its_last_answer(encoder: ResponseEncoder) -> None:
    whole = encoder.tokenizer(render(encoder, CONVERSATIONS[1], "Yes. No."), add_special_tokens=False)["input_ids"]
    prompt, answer = RenderedConversations(encoder).split(whole[10:], where="row 0")
    assert (prompt, answer) == (encoder.encode_prompt(CONVERSATIONS[1])[10:], "Yes. No.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Hi", r"row 0: no answer begins in it. Expected '<|im_end|>\n<|im_start|>assistant\n'"),
        ("", "no answer begins"),
        ("<|im_start|>user\nHi<|im_end|>\n", "no answer begins"),
        ("<|im_start|>assistant\nYes. No.<|im_end|>\n", "no answer begins"),
        ("{whole}<|im_start|>user\nAnd?<|im_end|>\n", "row 0: the conversation goes on behind its last answer, with '<|im_start|>user"),
    ],
)
def test_what_is_no_conversation_is_one_line(text: str, message: str, encoder: ResponseEncoder) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        split(encoder, text.replace("{whole}", render(encoder, CONVERSATIONS[0], "Yes.")))
    assert "\n" not in str(raised.value)


def test_ids_of_another_tokenizer(encoder: ResponseEncoder) -> None:
    with pytest.raises(UserError, match="row 3: token id 99999 is not in the vocabulary"):
        RenderedConversations(encoder).split([5, 99999], where="row 3")


def test_a_template_without_marks(make_tokenizer: Make) -> None:
    with pytest.raises(UserError, match="writes no mark between a question and its answer"):
        RenderedConversations(build(make_tokenizer, "nothing"))
