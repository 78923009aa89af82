"""What each kind of chat template makes of a prompt, and how it closes a response."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from srm.data.answers import AnswerTokens
from srm.data.template import ChatFormat
from srm.errors import UserError

Make = Callable[..., PreTrainedTokenizerFast]
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": " Bye "}]
SYSTEM = [{"role": "system", "content": "Be nice."}, {"role": "user", "content": "Hi"}]


def written(tokenizer: PreTrainedTokenizerFast, prompt: Any) -> str:
    """The prompt's text as its tokens spell it."""
    form = ChatFormat(tokenizer)
    return tokenizer.decode(form.prompt_ids([form.render(prompt)])[0], clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    ("template", "prompt", "text"),
    [
        ("chatml", "Hi", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        ("chatml", "", "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"),
        ("chatml", SYSTEM, "<|im_start|>system\nBe nice.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (
            "chatml",
            TURNS,
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
            "<|im_start|>user\n Bye <|im_end|>\n<|im_start|>assistant\n",
        ),
        ("chatml strips", [TURNS[2]], "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"),
        ("chatml thinks", "Hi", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        ("llama", "Hi", "<s>[INST] Hi [/INST]"),
        ("llama", TURNS, "<s>[INST] Hi [/INST] Hello. </s><s>[INST] Bye [/INST]"),
        ("none", "Hi", "User:\nHi\n\nAssistant:\n"),
        ("none", SYSTEM, "System:\nBe nice.\n\nUser:\nHi\n\nAssistant:\n"),
        ("none", TURNS, "User:\nHi\n\nAssistant:\nHello.</s>\n\nUser:\n Bye \n\nAssistant:\n"),
    ],
)
def test_prompts(template: str, prompt: Any, text: str, make_tokenizer: Make) -> None:
    assert written(make_tokenizer(template), prompt) == text


@pytest.mark.parametrize(
    ("template", "adds_bos", "num_bos"),
    [("llama", False, 1), ("llama", True, 1), ("chatml", True, 0), ("none", True, 1), ("none", False, 0)],
)
def test_never_two_bos(template: str, adds_bos: bool, num_bos: int, make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(template, adds_bos=adds_bos)
    form = ChatFormat(tokenizer)
    (ids,) = form.prompt_ids([form.render("Hi")])
    assert ids.count(tokenizer.bos_token_id) == num_bos
    if num_bos:
        assert ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("template", "byte_level", "lead"), [("llama", True, " "), ("llama", False, ""), ("chatml", True, ""), ("chatml thinks", True, "")]
)
def test_the_space_before_an_answer(template: str, byte_level: bool, lead: str, make_tokenizer: Make) -> None:
    """SentencePiece writes the template's space before a text by itself, byte-level tokenizers do not."""
    tokenizer = make_tokenizer(template, byte_level=byte_level)
    assert AnswerTokens(tokenizer, ChatFormat(tokenizer)).lead == lead


def test_an_empty_prompt_has_a_token(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer("nothing")
    form = ChatFormat(tokenizer)
    assert form.render("") == ""
    assert form.prompt_ids([""]) == [[tokenizer.bos_token_id]]
    without = ChatFormat(make_tokenizer("nothing", eos=False))
    with pytest.raises(UserError, match="a prompt is empty, and the tokenizer has neither a bos nor an eos token"):
        without.prompt_ids([""])


def test_a_template_that_rewrites_answers(make_tokenizer: Make) -> None:
    with pytest.raises(UserError, match="chat template does not write the assistant's words as they are"):
        ChatFormat(make_tokenizer("chatml shouts"))


def test_a_template_that_refuses(make_tokenizer: Make) -> None:
    form = ChatFormat(make_tokenizer("llama"))
    with pytest.raises(UserError) as caught:
        form.render(SYSTEM)
    assert str(caught.value) == (
        "the chat template refuses the messages (system, user): Roles must alternate user/assistant. Change the messages, or use a "
        "tokenizer whose template takes them."
    )


def test_a_slow_tokenizer() -> None:
    with pytest.raises(UserError, match=r"ByT5Tokenizer cannot tell which characters a token covers.*Use its fast version"):
        ChatFormat(ByT5Tokenizer())
