"""Prompts and responses in any of their forms: the one door through which files, the Python API, the server and the adapters take them."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from srm.data.schema import Conversation, Message, Prompt, RowProblem

__all__ = [
    "MEDIA",
    "METADATA",
    "ROLES",
    "answerable",
    "check_is_text",
    "check_messages",
    "check_prompt",
    "check_words_only",
    "is_message_list",
    "is_prefilled",
    "plain",
    "response_text",
    "whole_text",
]

ROLES = ("system", "developer", "user", "assistant", "tool")
# What says something about a message and is no part of what it says. So do numbers.
METADATA = frozenset({"role", "content", "name", "id"})
MEDIA = frozenset({"image", "images", "image_url", "video", "videos", "audio", "audios", "input_audio"})
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
# Messages that went through a CSV file or `str`: {'role': 'user', ...} in a list or alone.
_MESSAGES_AS_TEXT = re.compile(r"""\s*(?:array\(\s*)?\[?\s*\{\s*(['"])(?:role|content|from|value)\1\s*:""")
_SPEAKER = re.compile(r"""(['"])(?:role|from)\1\s*:\s*(['"])(?:system|developer|user|human|assistant|gpt|tool)\2""")


def check_messages(value: Any, name: str) -> list[Message]:
    """`value` as a list of messages with text content, or a `RowProblem` that names the column and the message.

    Args:
        value: a list, tuple or array of messages. Null fields, which Arrow puts wherever only other rows have a value, are left out, deep
            inside as well.
        name: what a message calls the column.

    Raises:
        RowProblem: what is no list of messages, or holds more than text.
    """
    settings = value.settings if isinstance(value, Conversation) else {}
    value = plain(value)
    if not isinstance(value, list):
        raise RowProblem(f"`{name}` must be a string or a list of messages, got {_kind(value)}")
    if not value:
        raise RowProblem(f"`{name}` is an empty list")
    messages = [_check_message(message, f"`{name}`: message {number}") for number, message in enumerate(value, start=1)]
    return Conversation(messages, **settings) if settings else messages


def plain(value: Any) -> Any:
    """`value` as JSON has it: arrays and tuples are lists, and objects have no null fields.

    Args:
        value: out of a file or a data set.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if one is not None}
    return value.item() if isinstance(value, np.generic) else value


def _check_message(message: Any, name: str) -> Message:
    if not isinstance(message, dict):
        raise RowProblem(f'{name} must be an object {{"role": ..., "content": ...}}, got {_kind(message)}')
    if "role" not in message:
        raise RowProblem(f"{name} has no `role` (found: {', '.join(map(str, message)) or 'nothing'})")
    if message["role"] not in ROLES:
        raise RowProblem(f"{name} has the unknown role {message['role']!r}; known are {', '.join(ROLES)}")
    if media := sorted(key for key in MEDIA if message.get(key)):
        raise RowProblem(f"{name} has `{media[0]}`; only text can be scored")
    if "function_call" in message:
        # The older form of one call.
        call = {"type": "function", "function": message["function_call"]}
        message = {**{key: value for key, value in message.items() if key != "function_call"}, "tool_calls": [call]}
    if not message.get("tool_calls", True):
        message = {key: value for key, value in message.items() if key != "tool_calls"}
    if not isinstance(message.get("tool_calls", []), list):
        raise RowProblem(f"{name} has `tool_calls` that are no list, but {_kind(message['tool_calls'])}")
    if message.keys() - {"role", "content"}:
        whole_text(json.dumps(message, ensure_ascii=False, default=str), name)
    return {**message, "content": _content(message, name)}


def _content(message: Message, name: str) -> str:
    content = message.get("content")
    if content is None and "tool_calls" in message:
        return ""
    if isinstance(content, str):
        return whole_text(content, name)
    if isinstance(content, list) and all(_is_text(part) for part in content):
        return whole_text("".join(part["text"] for part in content), name)
    if isinstance(content, list):
        raise RowProblem(f"{name} has content that is not text; only text can be scored")
    raise RowProblem(f"{name} must have a string `content`, got {_kind(content)}")


def _is_text(part: Any) -> bool:
    """Whether a part of a content is text and nothing else."""
    return (
        isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type", "text") in _TEXT_PARTS and not MEDIA & part.keys()
    )


def whole_text(text: str, name: str) -> str:
    """`text` itself. JSON can spell half a surrogate pair, which no tokenizer takes.

    Args:
        text: out of a row.
        name: what a message calls it.

    Raises:
        RowProblem: it holds half a pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowProblem(f"{name} holds half a surrogate pair at character {error.start + 1}, which is no valid text") from None
    return text


def check_prompt(value: Any) -> Prompt:
    """A prompt as given by the column `prompt`: not empty, and such that an answer can follow.

    Args:
        value: text or messages.

    Returns:
        The text, or messages as templates take them.

    Raises:
        RowProblem: it is neither, or says nothing.
    """
    if isinstance(value, str):
        if not value.strip():
            raise RowProblem("`prompt` is empty")
        check_is_text(value, "prompt")
        return whole_text(value, "`prompt`")
    if value is None:
        raise RowProblem("`prompt` is null")
    return answerable(check_messages(value, "prompt"), "`prompt`")


def answerable(messages: list[Message], name: str) -> list[Message]:
    """`messages` that an answer can follow, or a `RowProblem`. An assistant message at their end is the answer's beginning.

    Args:
        messages: of a prompt.
        name: what a message calls them.
    """
    if not any(message["content"].strip() for message in messages):
        raise RowProblem(f"{name} is empty")
    if is_prefilled(messages):
        if all(message["role"] == "assistant" for message in messages):
            raise RowProblem(f"{name} ends with an assistant message, and holds nothing that it answers")
        if "tool_calls" in messages[-1] or not messages[-1]["content"].strip():
            what = "calls a tool" if "tool_calls" in messages[-1] else "is empty"
            raise RowProblem(f"{name} ends with an assistant message that {what}, from which no answer can go on")
    return messages


def is_prefilled(prompt: Prompt) -> bool:
    """Whether `prompt` ends with the beginning of the answer, from which a response goes on.

    Args:
        prompt: text or chat messages.
    """
    return not isinstance(prompt, str) and len(prompt) > 0 and prompt[-1]["role"] == "assistant"


def response_text(value: Any, name: str) -> str:
    """The words of a response: a string, or a list of one assistant message.

    Args:
        value: the response.
        name: what a message calls it.

    Raises:
        RowProblem: it is neither, is empty, or says more than its words: a call of a tool, a thought beside them, a picture.
    """
    if isinstance(value, str):
        text = whole_text(value, f"`{name}`")
    elif value is None:
        raise RowProblem(f"`{name}` is null")
    else:
        messages = check_messages(value, name)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            roles = ", ".join(message["role"] for message in messages)
            raise RowProblem(
                f"`{name}` must be one assistant message, got {len(messages)} ({roles})", "Move the messages before it into `prompt`"
            )
        check_words_only(messages[0], f"`{name}`")
        text = messages[0]["content"]
    if not text.strip():
        raise RowProblem(f"`{name}` is empty")
    return text


def check_words_only(message: Message, name: str, *, beside: frozenset[str] = METADATA) -> None:
    """Raise `RowProblem` where an assistant message says more than would be scored.

    Args:
        message: from `check_messages`.
        name: what a message calls it.
        beside: fields that may stand in it.
    """
    for key, value in message.items():
        if key not in beside and value and not isinstance(value, (bool, int, float)):
            raise RowProblem(
                f"{name} has `{key}` beside its content, and only the content of a response is scored",
                f"Write `{key}` into the content as your chat template does, or delete it",
            )


def is_message_list(value: Any) -> bool:
    """Whether `value` is a list of messages, and not of several responses.

    Args:
        value: what may be a response.
    """
    return isinstance(value, (list, tuple, np.ndarray)) and len(value) > 0 and isinstance(value[0], dict)


def check_is_text(text: str, name: str) -> None:
    """Raise `RowProblem` where `text` is a list of messages that somebody wrote as text, such as a cell of a CSV file.

    Not asked of what a policy wrote, which may be anything.

    Args:
        text: of a prompt, or of a response in a file.
        name: what a message calls it.
    """
    if (found := _MESSAGES_AS_TEXT.match(text)) and _SPEAKER.search(text, found.start()):
        raise RowProblem(
            f"`{name}` is messages written as text, not as JSON ({text.strip()[:40]!r})", "Write a list of messages as JSON (json.dumps)"
        )


def _kind(value: Any) -> str:
    return {type(None): "null", dict: "an object", list: "a list", bool: "true/false", str: "a string"}.get(
        type(value), type(value).__name__
    )
