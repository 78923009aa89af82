"""One door for prompts and responses: what every form becomes, and what is refused because it would be lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from srm.data import parse_row
from srm.data.messages import check_messages, check_prompt, response_text
from srm.data.schema import Conversation, RowProblem
from srm.errors import UserError

U = {"role": "user", "content": "Weather in Rome?"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}


def objects(*messages: Any) -> np.ndarray:
    """As pandas and verl hold lists: arrays of objects."""
    array = np.empty(len(messages), dtype=object)
    array[:] = messages
    return array


@pytest.mark.parametrize(
    "value",
    [
        [U],
        (U,),
        objects(U),
        [{**U, "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Rome?"}]}],
        objects({**U, "content": objects({"type": "text", "text": "Weather in Rome?", "image_url": None})}),
        [{**U, "tool_calls": None, "name": None}],
        [{**U, "tool_calls": []}],
    ],
)
def test_the_forms_of_a_prompt(value: Any) -> None:
    assert check_prompt(value) == [U]


def test_null_fields_go_deep_inside() -> None:
    """Arrow fills them in wherever only another row has a value."""
    call = {
        **CALL,
        "function": {"name": "weather", "arguments": {"city": "Rome", "zone": None, "when": [{"day": 1, "hour": None}]}},
        "id": None,
    }
    (message,) = check_messages([{"role": "assistant", "content": None, "tool_calls": objects(call)}], "prompt")
    arguments = {"city": "Rome", "when": [{"day": 1}]}
    assert message["tool_calls"] == [{**CALL, "function": {"name": "weather", "arguments": arguments}}]
    assert message["content"] == ""


def test_the_older_form_of_a_call() -> None:
    (message,) = check_messages([{"role": "assistant", "content": None, "function_call": CALL["function"]}], "prompt")
    assert message == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_settings_stay_with_a_conversation() -> None:
    got = check_prompt(Conversation([{**U, "name": None}], enable_thinking=False))
    assert got == Conversation([U], enable_thinking=False)
    assert got != [U]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"content": "Let me look.", "tool_calls": [CALL]}, "`chosen` has `tool_calls` beside its content"),
        ({"content": None, "tool_calls": [CALL]}, "`chosen` has `tool_calls` beside its content"),
        ({"content": "4", "function_call": CALL["function"]}, "`chosen` has `tool_calls` beside"),
        ({"content": "4", "reasoning_content": "2 and 2."}, "`chosen` has `reasoning_content` beside its content"),
        ({"content": "4", "thinking": "2 and 2."}, "`chosen` has `thinking` beside its content"),
        ({"content": "4", "audio": {"id": "a"}}, "message 1 has `audio`; only text can be scored"),
        ({"content": "4", "images": ["a.png"]}, "message 1 has `images`; only text can be scored"),
        ({"content": [{"type": "text", "text": "4"}, {"type": "image"}]}, "content that is not text"),
        ({"content": [{"type": "text", "text": "4", "image_url": "x"}]}, "content that is not text"),
        ({"content": [{"type": "thinking", "text": "2 and 2."}, {"type": "text", "text": "4"}]}, "content that is not text"),
    ],
)
def test_nothing_of_an_answer_is_dropped(message: dict[str, Any], problem: str) -> None:
    row = {"prompt": [U], "chosen": [{"role": "assistant", **message}], "rejected": "5"}
    with pytest.raises(UserError) as caught:
        parse_row(row, where="pairs.jsonl line 7", id="7")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "extra", [{}, {"name": "bot", "id": "a1"}, {"num_tokens": 3, "toxic": False}, {"tool_calls": []}, {"reasoning": ""}]
)
def test_what_says_nothing_may_stand_beside_an_answer(extra: dict[str, Any]) -> None:
    assert response_text([{"role": "assistant", "content": "4", **extra}], "response") == "4"


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': 'user', 'content': 'Hi'}]",
        '[{"role": "user", "content": "Hi"}]',
        " [{'content': 'Hi', 'role': 'user'} {'content': 'Ho', 'role': 'assistant'}]",
        "array([{'role': 'assistant', 'content': 'Hi'}], dtype=object)",
        "{'role': 'assistant', 'content': 'Hi'}",
        "[{'from': 'human', 'value': 'Hi'}]",
    ],
)
def test_messages_as_text_are_no_text(text: str) -> None:
    with pytest.raises(RowProblem, match="`prompt` is messages written as text") as caught:
        check_prompt(text)
    assert caught.value.fix == "Write a list of messages as JSON (json.dumps)"
    for row in ({"prompt": "Hi", "chosen": text, "rejected": "No."}, {"chosen": text, "rejected": text + " "}):
        with pytest.raises(UserError, match="`chosen` is messages written as text"):
            parse_row(row, where="w", id="1")


@pytest.mark.parametrize(
    "text",
    ['{"from": "Rome", "value": 3}', '[{"content": "Hi"}]', "[1, 2]", "The role: [{'role': 'user'}]", '{"role": "baker", "content": 3}'],
)
def test_other_json_is_text(text: str) -> None:
    assert check_prompt(text) == text


@pytest.mark.parametrize("column", ["images", "image", "videos", "audio"])
def test_pictures_beside_the_prompt(column: str) -> None:
    row = {"prompt": "What is this?", "chosen": "A cat.", "rejected": "A dog."}
    with pytest.raises(UserError, match=f"`{column}` belongs to the prompt, and only text can be scored"):
        parse_row({**row, column: [{"path": "a.png"}]}, where="w", id="1")
    assert parse_row({**row, column: None}, where="w", id="1").responses == ("A cat.", "A dog.")


def test_half_a_surrogate_pair_in_a_call() -> None:
    call = {"function": {"name": "f", "arguments": {"city": "\ud83d"}}}
    with pytest.raises(RowProblem, match="half a surrogate pair"):
        check_messages([{"role": "assistant", "content": "", "tool_calls": [call]}], "prompt")
