"""How answers go on from their prompts: the ids of a policy, with every kind of tokenizer and template."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from srm.data import ResponseEncoder
from srm.errors import UserError
from srm.segmentation import make_segmenter

Make = Callable[..., PreTrainedTokenizerFast]
CORPUS = ["The cat sat on the mat. It was warm there. Yes. No.", "user assistant system User Assistant\n\n", "1. One.\n2. Two.\n"] * 3
TURN = "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
OPEN = "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
CHANNEL = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ('<END>final\n' if m['role'] == 'assistant' else '\n') + m['content'] + "
    "'<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
ANSWERS = ["The cat sat. It was warm.", "\tYes. No.", " Yes.", "1. One.\n2. Two.\n", "é 🙂 warm. No."]


def sentencepiece(template: str | None, *, prefix: str = "normalizer") -> PreTrainedTokenizerFast:
    """Words marked as SentencePiece marks them, with a space before each text: by a normalizer, or by the pre-tokenizer."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prefix == "normalizer":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if prefix == "always" else "first", split=False)
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, special_tokens=tokens, show_progress=False))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    # The byte tokens are words of the vocabulary.
    state = json.loads(made.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    fast.chat_template = template
    return fast


def encoder_of(tokenizer: PreTrainedTokenizerFast) -> ResponseEncoder:
    return ResponseEncoder(tokenizer, make_segmenter("punkt"))


@pytest.mark.parametrize("prefix", ["normalizer", "always", "first"])
@pytest.mark.parametrize("template", [None, TURN + OPEN])
@pytest.mark.parametrize("answer", ANSWERS)
def test_no_space_that_no_policy_writes(prefix: str, template: str | None, answer: str) -> None:
    """A header that ends in a line break: prompt and answer together are the tokens of the whole."""
    encoder = encoder_of(sentencepiece(template, prefix=prefix))
    rendered = encoder.format.render("Hi")
    (prompt,) = encoder.format.prompt_ids([rendered])
    (whole,) = encoder.format.prompt_ids([rendered + answer])
    response = encoder.encode_responses([answer])[0]
    assert [*prompt, *response.ids.tolist()] == whole
    assert "".join(answer[span.start : span.end] for span in response.spans) == answer


def test_a_space_that_the_whole_conversation_has_stays() -> None:
    """Behind a special token some tokenizers begin a new text, with its space."""
    encoder = encoder_of(
        sentencepiece(TURN.replace("'<|' + m['role'] + '|>\n'", "bos_token") + "{% if add_generation_prompt %}<s>{% endif %}")
    )
    first = encoder.tokenizer.convert_ids_to_tokens(encoder.encode_responses(["Yes."])[0].ids)[0]
    assert first.startswith("▁")


def heard(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("srm")]


@pytest.mark.parametrize("template", [CHATML, CHANNEL])
def test_a_header_missing_from_the_generation_prompt_is_put_there(
    template: str, make_tokenizer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = template
    with caplog.at_level(logging.WARNING, logger="srm"):
        encoder = encoder_of(tokenizer)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes. No."}]
    whole = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
    ids = [*encoder.encode_prompt("Hi"), *encoder.encode_responses(["Yes. No."])[0].ids.tolist()]
    assert ids == whole[: len(ids)]
    assert len(heard(caplog)) == 1
    assert "before an answer, but not in its generation prompt; it is put behind each prompt" in heard(caplog)[0]


@pytest.mark.parametrize("prefix", ["normalizer", "always"])
def test_no_second_space_behind_a_header_that_ends_in_one(prefix: str) -> None:
    """Prompt and answer cannot be the tokens of the whole, but they spell its text."""
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    encoder = encoder_of(sentencepiece(template + "{% if add_generation_prompt %}assistant: {% endif %}", prefix=prefix))
    ids = [*encoder.encode_prompt("Hi"), *encoder.encode_responses(["Yes. It was."])[0].ids.tolist()]
    assert encoder.tokenizer.decode(ids).endswith("assistant: Yes. It was.")


def test_a_policy_that_writes_the_header_itself(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = CHATML
    encoder = encoder_of(tokenizer)
    prompt, answer = encoder.encode_prompt("Hi"), encoder.encode_responses(["Yes."])[0].ids.tolist()
    header = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    assert encoder.answers.split_header(prompt[: -len(header)], [*header, *answer]) == (prompt, len(header))
    assert encoder.answers.split_header(prompt, [*header, *answer]) == (prompt, len(header))
    assert encoder.answers.split_header(prompt, answer) == (prompt, 0)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}", "ends its generation prompt with"),
        (
            CHATML.replace("<|im_end|>", "[END]") + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            "which is no token of its own",
        ),
        (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
            "whose tokens depend on the answer's first word",
        ),
    ],
)
def test_what_a_template_cannot_do_is_said(template: str, message: str, make_tokenizer: Make, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = template
    with caplog.at_level(logging.WARNING, logger="srm"):
        encoder_of(tokenizer)
    assert any(message in line for line in heard(caplog)), heard(caplog)


@pytest.mark.parametrize("template", ["chatml", "llama", "none"])
def test_an_ordinary_template_says_nothing(template: str, make_tokenizer: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="srm"):
        encoder_of(make_tokenizer(template)).encode_prompt([{"role": "user", "content": "Hi"}])
    assert heard(caplog) == []


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", "</s>", "<|im_end|>\n</s>"])
def test_an_end_token_spelled_out_is_no_text(end: str, encoder: ResponseEncoder) -> None:
    want, got = encoder.encode_responses(["Yes. No.", "Yes. No." + end])
    assert got.ids.tolist() == want.ids.tolist()
    assert got.text == want.text
    with pytest.raises(UserError, match="`response` is empty"):
        encoder.encode_responses([end])


def test_an_end_token_inside_the_text_stays(encoder: ResponseEncoder) -> None:
    text = "Write <|im_end|> there. Yes."
    assert encoder.encode_responses([text])[0].text == text
