"""Tools and calls of tools in messages: what of them a template must write, and how they are spelled out where it does not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from srm.data.schema import Message

__all__ = ["names_of", "spell_out", "texts_of", "unwritten"]


def names_of(tools: Iterable[Any]) -> list[str]:
    """The names of `tools`, which are JSON schemas of functions, or of calls of them.

    Args:
        tools: objects with a `name`, or with a `function` that has one.
    """
    return [str(function["name"]) for function in map(_function, tools) if "name" in function]


def texts_of(calls: Iterable[Any]) -> list[str]:
    """The words of `calls`: the functions' names and the texts and whole numbers in their arguments.

    Args:
        calls: a message's `tool_calls`.
    """
    calls = list(calls)
    return [*names_of(calls), *(leaf for call in calls for leaf in _leaves(_arguments(_function(call))))]


def unwritten(parts: Iterable[str], text: str) -> list[str]:
    """Those of `parts` that `text` holds neither as they are nor as JSON spells them.

    Args:
        parts: texts that should be in it.
        text: what a template wrote.
    """
    return [part for part in parts if part.strip() not in text and not any(spelled in text for spelled in _as_json(part))]


def _as_json(part: str) -> Iterator[str]:
    """`part` inside a JSON string, and inside JSON that is in a string itself, as the arguments of a call often are."""
    once = [json.dumps(part, ensure_ascii=ascii)[1:-1] for ascii in (False, True)]
    yield from once
    yield from (json.dumps(spelled, ensure_ascii=ascii)[1:-1] for spelled in once for ascii in (False, True))


def spell_out(messages: Iterable[Message]) -> list[Message]:
    """`messages` with their calls of tools as <tool_call> blocks of JSON behind their words, for templates that leave calls out.

    Args:
        messages: of a conversation.
    """
    return [_spelled(message) if message.get("tool_calls") else message for message in messages]


def _spelled(message: Message) -> Message:
    blocks = []
    for call in message["tool_calls"]:
        function = _function(call)
        said = {"name": function.get("name", ""), "arguments": _arguments(function)}
        blocks.append(f"<tool_call>\n{json.dumps(said, ensure_ascii=False)}\n</tool_call>")
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join([*([message["content"]] if message["content"] else []), *blocks])}


def _function(tool: Any) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, dict) else {}
    return function if isinstance(function, dict) else {}


def _arguments(function: dict[str, Any]) -> Any:
    """A call's arguments, which may be JSON in a string."""
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            return json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
    return arguments


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [leaf for one in value.values() for leaf in _leaves(one)]
    if isinstance(value, list):
        return [leaf for one in value for leaf in _leaves(one)]
    return [str(value)] if isinstance(value, str) or type(value) is int else []
