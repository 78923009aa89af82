"""`tools` and `chat_template_kwargs` beside a prompt, and what a template does with them."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from srm.data import Comparison, Conversation, parse_row
from srm.data.rows import parse_responses
from srm.data.schema import RawRow
from srm.data.settings import with_columns
from srm.data.template import ChatFormat
from srm.errors import UserError

Make = Callable[..., PreTrainedTokenizerFast]
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {"city": {"type": "string"}}}}
ROW = {"prompt": "Is it warm?", "chosen": "Yes.", "rejected": "No."}
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)


def call(city: str, **message: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": {"city": city}}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}], **message}


@pytest.fixture
def form(make_tokenizer: Make) -> ChatFormat:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = TEMPLATE
    return ChatFormat(tokenizer)


def parse(**columns: Any) -> Comparison:
    return parse_row({**ROW, **columns}, where="w", id="1")


@pytest.mark.parametrize("spell", [lambda value: value, json.dumps])
def test_columns_reach_the_template(spell: Callable[[Any], Any], form: ChatFormat) -> None:
    row = parse(tools=spell([TOOL]), chat_template_kwargs=spell({"enable_thinking": False}))
    assert row.prompt == Conversation([{"role": "user", "content": "Is it warm?"}], tools=[TOOL], enable_thinking=False)
    assert row.extra == {}
    text = form.render(row.prompt)
    assert text.startswith('[{"type": "function"')
    assert "weather" in text
    assert text.endswith("<think></think>")
    assert pickle.loads(pickle.dumps(row.prompt)) == row.prompt


def test_rows_to_score_have_them_too() -> None:
    fields = {"prompt": "Is it warm?", "response": "Yes.", "tools": [TOOL], "subset": "easy"}
    (row,) = parse_responses(RawRow(where="w", id="1", number=1, fields=fields))
    assert isinstance(row.prompt, Conversation)
    assert row.prompt.settings == {"tools": [TOOL]}
    assert row.extra == {"subset": "easy"}


def test_empty_columns_change_nothing() -> None:
    for empty in (None, [], "", " "):
        assert parse(tools=empty).prompt == ROW["prompt"]
    assert parse(chat_template_kwargs={"a": None}).prompt == ROW["prompt"]


def test_columns_of_a_trainer() -> None:
    got = with_columns(["a", [{"role": "user", "content": "b"}]], {"tools": [None, [TOOL]], "subset": ["x", "y"]})
    assert got == ["a", Conversation([{"role": "user", "content": "b"}], tools=[TOOL])]
    with pytest.raises(UserError, match="`prompt` is empty"):
        with_columns([""], {})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tools": {"name": "x"}}, "`tools` must be a list, got dict"),
        ({"tools": ["weather"]}, "`tools` must be a list of JSON schemas"),
        ({"tools": "[{'name': 'x'}]"}, "`tools` must be a list, and is text that is no JSON"),
        ({"chat_template_kwargs": [1]}, "`chat_template_kwargs` must be an object, got list"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "sets `add_generation_prompt`, which is not for a row to say"),
    ],
)
def test_bad_columns(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(**columns)
    assert message in str(caught.value)


def test_tools_that_the_template_leaves_out(make_tokenizer: Make) -> None:
    with pytest.raises(UserError, match="the chat template does not write `tools`"):
        ChatFormat(make_tokenizer("chatml")).render(parse(tools=[TOOL], prompt="weather").prompt)


def heard(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("srm")]


PROMPT = [{"role": "user", "content": "Rome weather?"}, call("Rome"), {"role": "tool", "content": "warm"}]


def test_calls_are_the_templates_where_it_writes_them(form: ChatFormat, caplog: pytest.LogCaptureFixture) -> None:
    assert 'weather({"city": "Rome"})' in form.render(PROMPT)
    spelled = call('Röm "east"')
    spelled["tool_calls"][0]["function"]["arguments"] = json.dumps({"city": 'Röm "east"'})
    assert "<tool_call>" not in form.render([PROMPT[0], spelled, PROMPT[2]])
    assert heard(caplog) == []


def test_calls_are_spelled_out_where_the_template_leaves_them_out(make_tokenizer: Make, caplog: pytest.LogCaptureFixture) -> None:
    form = ChatFormat(make_tokenizer("chatml"))
    with caplog.at_level(logging.WARNING, logger="srm"):
        text = [form.render([*PROMPT[:1], call(city, content="Wait."), PROMPT[2]]) for city in ("Rome", "Oslo")]
    block = '<|im_start|>assistant\nWait.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>\n'
    assert block in text[1]
    assert text[0] == text[1].replace("Oslo", "Rome")
    # Once, not for each row.
    assert len(heard(caplog)) == 1
    assert "leaves out calls of tools" in heard(caplog)[0]


def test_thoughts_of_earlier_answers_are_the_templates(make_tokenizer: Make, caplog: pytest.LogCaptureFixture) -> None:
    form = ChatFormat(make_tokenizer("chatml"))
    answer = {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."}
    with caplog.at_level(logging.WARNING, logger="srm"):
        text = form.render([{"role": "user", "content": "2 + 2?"}, answer, {"role": "user", "content": "Sure?"}])
    assert "Four." in text
    assert "Two and two." not in text
    assert "leaves the thoughts of earlier answers out" in heard(caplog)[0]


@pytest.mark.parametrize("template", ["{{ messages[0].content + 1 }}", "{{ messages[0]['x']['y'] }}", "{{ 1 / (messages | length - 1) }}"])
def test_whatever_a_template_raises_is_one_line(template: str, make_tokenizer: Make) -> None:
    form = ChatFormat(make_tokenizer("chatml"))
    form._tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"the chat template refuses the messages \(user\): "):
        form.render("Hi")
