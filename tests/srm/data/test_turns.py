"""Answers of several messages, and such as go on from their prompt: their ids are the chat template's, their sentences the assistant's."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from srm.data import Conversation, EncodedResponse, ResponseEncoder, encode_comparisons, parse_row
from srm.errors import UserError
from srm.segmentation import make_segmenter

U = {"role": "user", "content": "Is the sky blue?"}
U2 = {"role": "user", "content": "And snow? Say."}
A = {"role": "assistant", "content": "Yes. It is blue."}
B = {"role": "assistant", "content": "No. It is white."}
BEGUN = {"role": "assistant", "content": "Yes."}
MORE = {"role": "assistant", "content": " It is blue. Snow is white."}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"at": "an old moon"}}}],
}
TOOL = {"role": "tool", "name": "look", "content": "blue, says the tool. Really."}
# As Qwen's: calls in JSON, thoughts before the words; a tool speaks in the user's place.
TOOLS = (
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<r>{{ m.content }}</r><|im_end|>\n{% else %}"
    "<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def agent(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> ResponseEncoder:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = TOOLS
    return ResponseEncoder(tokenizer, make_segmenter("punkt"))


def ids_of(encoder: ResponseEncoder, prompt: Any, response: Any) -> tuple[list[int], EncodedResponse]:
    """Prompt and response as the model reads them, and the response."""
    rendered, answer = encoder.read(prompt, response)
    (encoded,) = encoder.encode_responses([answer])
    return [*encoder.encode_prompts([rendered])[0], *encoded.ids.tolist()], encoded


def sentences(response: EncodedResponse) -> list[str]:
    return [response.text[start:end] for start, end in response.spans]


def ends(encoder: ResponseEncoder, response: EncodedResponse) -> list[str]:
    """The text up to each boundary."""
    return [encoder.tokenizer.decode(response.ids[: end + 1]) for end in response.sentence_ends]


@pytest.mark.parametrize("template", ["chatml", "chatml strips", "chatml thinks", "llama", "none"])
@pytest.mark.parametrize("byte_level", [True, False])
def test_ids_are_those_of_the_whole_conversation(
    template: str, byte_level: bool, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> None:
    tokenizer = make_tokenizer(template, byte_level=byte_level)
    encoder = ResponseEncoder(tokenizer, make_segmenter("punkt"))
    got, response = ids_of(encoder, [U], [A, U2, B])
    text = tokenizer.apply_chat_template([U, A, U2, B], chat_template=encoder.format._template, tokenize=False)
    text = text[: text.rindex(B["content"]) + len(B["content"])]
    assert got == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert sentences(response) == ["Yes. ", "It is blue.", "No. ", "It is white."]
    # No boundary lies in the user's turn, and none on the mark that ends a turn.
    assert [text.rstrip()[-8:] for text in ends(encoder, response)][1] == "is blue."


def test_what_stands_between_two_turns_counts_for_the_next_sentence(encoder: ResponseEncoder) -> None:
    _, response = ids_of(encoder, [U], [A, U2, B])
    assert ends(encoder, response) == [
        "Yes.",
        "Yes. It is blue.",
        "Yes. It is blue.<|im_end|>\n<|im_start|>user\nAnd snow? Say.<|im_end|>\n<|im_start|>assistant\nNo.",
        response.text,
    ]
    assert response.opening == 0
    assert (
        response.text == "Yes. It is blue.<|im_end|>\n<|im_start|>user\nAnd snow? Say.<|im_end|>\n<|im_start|>assistant\nNo. It is white."
    )


def test_one_message_is_read_as_before(encoder: ResponseEncoder) -> None:
    text = encoder.encode_response([U], A["content"])
    for response in ([A], A["content"]):
        got = encoder.encode_response([U], response)
        assert (got.ids.tolist(), got.sentence_ends.tolist(), got.spans) == (text.ids.tolist(), text.sentence_ends.tolist(), text.spans)


def test_boundary_tokens_stand_in_the_assistants_turns(marked_encoder: ResponseEncoder) -> None:
    _, response = ids_of(marked_encoder, [U], [A, U2, B])
    text = marked_encoder.tokenizer.decode(response.ids)
    assert text.replace("<END>", "") == response.text
    assert "It is blue.<END><|im_end|>" in text
    assert text.count("<END>") == len(response.spans) == 4


def test_calls_and_thoughts_are_read(agent: ResponseEncoder) -> None:
    thinks = {**CALL, "reasoning_content": "Better look. Now."}
    got, response = ids_of(agent, [U], [thinks, TOOL, A])
    text = agent.tokenizer.apply_chat_template([U, thinks, TOOL, A], tokenize=False)
    assert got == agent.tokenizer(text.removesuffix("<|im_end|>\n"), add_special_tokens=False)["input_ids"]
    assert "".join(sentences(response)) == response.text.replace(
        response.text[response.text.index("<|im_end|>") : response.text.index("Yes.")], ""
    )
    assert any("an old moon" in sentence for sentence in sentences(response))
    assert not any("tool" in sentence for sentence in sentences(response))


@pytest.mark.parametrize("key", ["tool_calls", "reasoning_content"])
@pytest.mark.parametrize("content", ["", "Better look, the sky, look."])
def test_what_the_template_leaves_out_is_refused(key: str, content: str, encoder: ResponseEncoder) -> None:
    value = {"tool_calls": CALL["tool_calls"], "reasoning_content": "Better look."}[key]
    with pytest.raises(UserError, match=f"does not write all of `{key}` of message 1 of the response") as caught:
        encoder.encode_response([U], [{"role": "assistant", "content": content or "Hm.", key: value}, U2, B])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        # Thoughts of earlier turns go, as in Qwen3.
        (
            TOOLS.replace("{{ m.content }}<|", "<|").replace("{{ m.content }}{%", "{{ m.content.split('</think>')[-1] }}{%"),
            "all of `content` of message 1",
        ),
        # Nothing but the assistant speaks.
        (TOOLS.replace("<r>{{ m.content }}</r>", "<r></r>"), r"does not write message 2 of the response \(tool\)"),
        # The tool's words stand in the assistant's turn.
        (
            TOOLS.replace(
                "{% if m.role == 'tool' %}<|im_start|>user\n<r>{{ m.content }}</r><|im_end|>\n{% else %}", "{% if m.role != 'tool' %}"
            ).replace(
                "{{ m.content }}{% for", "{% if m.tool_calls %}<r>{{ messages[loop.index].content }}</r>{% endif %}{{ m.content }}{% for"
            ),
            "message 2 of the response",
        ),
        # The prompt's last message is written otherwise before an answer.
        (
            TOOLS.replace("{{ m.content }}{% for", "{{ m.content | upper if m.role == 'user' and loop.last else m.content }}{% for"),
            "writes the prompt otherwise",
        ),
    ],
)
def test_templates_that_rewrite_are_refused(template: str, problem: str, make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = template
    encoder = ResponseEncoder(tokenizer, make_segmenter("punkt"))
    thinks = {"role": "assistant", "content": "<think>Hm.</think>Let me look.", "tool_calls": CALL["tool_calls"]}
    with pytest.raises(UserError, match=problem):
        encoder.encode_response([U], [thinks, TOOL, A])


def test_a_template_that_refuses_says_so_in_one_line(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    encoder = ResponseEncoder(make_tokenizer("llama"), make_segmenter("punkt"))
    with pytest.raises(UserError, match=r"refuses the messages \(user, assistant, assistant\): Roles must alternate"):
        encoder.encode_response([U], [A, B])


def test_an_open_thought_of_the_generation_prompt_is_left_out_as_in_the_whole(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = TOOLS.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
    encoder = ResponseEncoder(tokenizer, make_segmenter("punkt"))
    for turns in ([A, U2, B], [{**A, "reasoning_content": "Hm."}, U2, B]):
        got, _ = ids_of(encoder, [U], turns)
        text = tokenizer.apply_chat_template([U, *turns], tokenize=False).removesuffix("<|im_end|>\n")
        assert tokenizer.decode(got) == text


@pytest.mark.parametrize("template", ["chatml", "chatml thinks", "llama", "none"])
@pytest.mark.parametrize("byte_level", [True, False])
def test_an_answer_goes_on_from_its_beginning(
    template: str, byte_level: bool, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> None:
    tokenizer = make_tokenizer(template, byte_level=byte_level)
    encoder = ResponseEncoder(tokenizer, make_segmenter("punkt"))
    plain = encoder.format._template
    begun = tokenizer.apply_chat_template([U, BEGUN], chat_template=plain, tokenize=False, continue_final_message=True)
    assert encoder.encode_prompt([U, BEGUN]) == tokenizer(begun, add_special_tokens=False)["input_ids"]
    whole = tokenizer(begun + MORE["content"], add_special_tokens=False)["input_ids"]
    for response in (MORE["content"], [MORE]):
        got, encoded = ids_of(encoder, [U, BEGUN], response)
        assert got == whole
        assert encoded.text == MORE["content"]
        assert sentences(encoded) == [" It is blue. ", "Snow is white."]
    got, encoded = ids_of(encoder, [U, BEGUN], [MORE, U2, B])
    joined = {"role": "assistant", "content": BEGUN["content"] + MORE["content"]}
    text = tokenizer.apply_chat_template([U, joined, U2, B], chat_template=plain, tokenize=False)
    assert tokenizer.decode(got) == tokenizer.decode(
        tokenizer(text[: text.rindex(B["content"]) + len(B["content"])], add_special_tokens=False)["input_ids"]
    )
    assert sentences(encoded) == [" It is blue. ", "Snow is white.", "No. ", "It is white."]


def test_white_space_that_ends_the_beginning_stays(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    encoder = ResponseEncoder(make_tokenizer("chatml strips"), make_segmenter("punkt"))
    got, _ = ids_of(encoder, [U, {**BEGUN, "content": "Yes. It "}], "is blue.")
    assert encoder.tokenizer.decode(got).endswith("assistant\nYes. It is blue.")


def test_thoughts_are_left_out_of_a_first_turn_and_of_later_ones(agent: ResponseEncoder) -> None:
    encoder = ResponseEncoder(agent.tokenizer, make_segmenter("punkt", thinking="left_out"))
    think = "<think>Hm. So.</think>"
    first, second = ({**turn, "content": think + turn["content"]} for turn in (A, B))
    _, response = ids_of(encoder, [U], [first, U2, second])
    assert sentences(response) == ["Yes. ", "It is blue.", "No. ", "It is white."]
    assert agent.tokenizer.decode(response.ids[: response.opening]) == think
    # Nothing but a thought behind the last sentence has no boundary to end at.
    _, response = ids_of(encoder, [U], [first, U2, {**B, "content": think}])
    assert sentences(response) == ["Yes. ", "It is blue."]
    assert response.sentence_ends[-1] == len(response.ids) - 1
    _, response = ids_of(encoder, [U], [{**A, "content": think}, U2, second])
    assert sentences(response) == ["No. ", "It is white."]
    assert agent.tokenizer.decode(response.ids[: response.opening]).endswith(f"assistant\n{think}")


def test_conversations_that_answer_different_messages(encoder: ResponseEncoder, marked_encoder: ResponseEncoder) -> None:
    system = {"role": "system", "content": "Be brief."}
    for start in ([], [system]):
        row = parse_row({"chosen": [*start, U, A], "rejected": [*start, U2, A, U, B]}, where="w", id="1")
        for reader in (encoder, marked_encoder):
            (encoded,), _ = encode_comparisons([row], reader, max_length=None, progress=False)
            for response, prompt, answer in zip(encoded.responses, ([*start, U], [*start, U2]), (A["content"], [A, U, B]), strict=True):
                want, alone = ids_of(reader, prompt, answer)
                assert [*encoded.prompt_ids.tolist(), *response.ids.tolist()] == want
                # The first boundary is the last token of what this response answers, and the sentences are those that it has there.
                assert len(encoded.prompt_ids) + response.opening == len(reader.encode_prompt(prompt))
                assert (response.sentence_ends - response.opening).tolist() == alone.sentence_ends.tolist()
            assert response.opening > 0


def test_conversations_without_a_common_token_are_that_rows_fault(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    encoder = ResponseEncoder(make_tokenizer("none", eos=False), make_segmenter("punkt"))
    row = parse_row({"chosen": [{"role": "system", "content": "x"}, U, A], "rejected": [U, B]}, where="pairs.jsonl line 7", id="1")
    with pytest.raises(UserError, match=r"pairs\.jsonl line 7: its conversations do not share their first token") as caught:
        encode_comparisons([row], encoder, max_length=None, progress=False)
    assert "Give them the same system message" in str(caught.value)


def test_settings_of_the_row_reach_every_turn(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = "{{ '<s>' if loud is defined and loud else '' }}" + TOOLS
    encoder = ResponseEncoder(tokenizer, make_segmenter("punkt"))
    row = parse_row({"chosen": [U, A, U2, B], "rejected": [U2, B], "chat_template_kwargs": {"loud": True}}, where="w", id="1")
    assert row.prompt == Conversation([], loud=True)
    (encoded,), _ = encode_comparisons([row], encoder, max_length=None, progress=False)
    assert tokenizer.decode(np.concatenate([encoded.prompt_ids, encoded.responses[0].ids])).startswith("<s><|im_start|>user\nIs")


def _trl_templates() -> list[Path]:
    spec = importlib.util.find_spec("trl")
    folder = Path(spec.origin).parent / "chat_templates" if spec and spec.origin else Path("/nowhere")
    names = (
        "cohere",
        "gemma3",
        "glm4moe",
        "gptoss",
        "llama3_1",
        "phi3",
        "qwen2_5",
        "qwen3",
        "qwen3_6",
        "nemotron_3_nano",
        "deepseekv3_training",
    )
    return [path for name in names if (path := folder / f"{name}.jinja").is_file()]


@pytest.mark.skipif(not _trl_templates(), reason="no chat templates: trl is not installed")
@pytest.mark.parametrize("path", _trl_templates(), ids=lambda path: path.stem)
def test_texts_are_those_that_trl_trains_on(path: Path, make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    """TRL's `RewardTrainer` reads `apply_chat_template` of prompt and completion. What a template refuses is refused here too."""
    tokenizer = make_tokenizer("chatml")
    template = path.read_text(encoding="utf-8")
    marks = sorted(set(re.findall(r"<[|\uff5c][^<>\s'\"{}]*>|<(?:start|end)_of_turn>", template)))
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = template
    encoder = ResponseEncoder(tokenizer, make_segmenter("punkt"))
    for turns in ([A, U2, B], [CALL, TOOL, B]):
        try:
            whole = tokenizer.apply_chat_template([U, *turns], tokenize=False)
        except Exception:
            with pytest.raises(UserError, match="the chat template refuses the messages"):
                ids_of(encoder, [U], turns)
            continue
        if "an old moon" not in whole and CALL in turns:
            with pytest.raises(UserError, match="does not write all of `tool_calls`"):
                ids_of(encoder, [U], turns)
            continue
        _, answer = encoder.read([U], turns)
        assert whole.startswith(answer.prompt + answer.lead + answer.text)
        rest = whole.removeprefix(answer.prompt + answer.lead + answer.text)
        assert len(rest) < 30
        assert not re.search(r"[a-z]\s", re.sub(r"<[^>]*>", "", rest))
        (response,) = encoder.encode_responses([answer])
        assert sentences(response)[-2:] == ["No. ", "It is white."]
        assert not any("snow" in sentence or "tool." in sentence for sentence in sentences(response))
