"""Chat messages: what is accepted, and how whole conversations come apart into a prompt and its responses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from srm.data.schema import Message, Prompt, Response, RowProblem

__all__ = [
    "ROLES",
    "check_messages",
    "check_prompt",
    "is_conversation",
    "response_text",
    "split_conversations",
    "split_strings",
    "whole_text",
]

ROLES = ("system", "developer", "user", "assistant", "tool")
_SETTING_ROLES = ("system", "developer")

# "\n\nHuman: ...\n\nAssistant: ...", the form of Anthropic's helpful and harmless data.
_TRANSCRIPT = re.compile(r"\s*Human:")
_TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")
_TURN_ROLES = {"Human": "user", "Assistant": "assistant"}


def check_messages(value: Any, name: str) -> list[Message]:
    """`value` as a list of messages with text content, or a `RowProblem` that names the column and the message."""
    if not isinstance(value, (list, tuple)):
        raise RowProblem(f"`{name}` must be a string or a list of messages, got {_kind(value)}")
    if not value:
        raise RowProblem(f"`{name}` is an empty list")
    return [_check_message(message, f"`{name}`: message {number}") for number, message in enumerate(value, start=1)]


def _check_message(message: Any, name: str) -> Message:
    if not isinstance(message, dict):
        raise RowProblem(f'{name} must be an object {{"role": ..., "content": ...}}, got {_kind(message)}')
    # Arrow fills the keys that only some messages have with null.
    message = {key: value for key, value in message.items() if value is not None}
    if "role" not in message:
        raise RowProblem(f"{name} has no `role` (found: {', '.join(message) or 'nothing'})")
    if message["role"] not in ROLES:
        raise RowProblem(f"{name} has the unknown role {message['role']!r}; known are {', '.join(ROLES)}")
    return {**message, "content": _content(message, name)}


def _content(message: Message, name: str) -> str:
    content = message.get("content")
    if content is None and "tool_calls" in message:
        return ""
    if isinstance(content, str):
        return whole_text(content, name)
    if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return whole_text("".join(part["text"] for part in content), name)
    if isinstance(content, list):
        raise RowProblem(f"{name} has content that is not text; only text can be scored")
    raise RowProblem(f"{name} must have a string `content`, got {_kind(content)}")


def whole_text(text: str, name: str) -> str:
    """`text` itself. JSON can spell half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowProblem(f"{name} holds half a surrogate pair at character {error.start + 1}, which is no valid text") from None
    return text


def check_prompt(value: Any) -> Prompt:
    """A prompt as given by the column `prompt`: not empty, and not ending with the assistant's words."""
    if isinstance(value, str):
        if not value.strip():
            raise RowProblem("`prompt` is empty")
        return whole_text(value, "`prompt`")
    if value is None:
        raise RowProblem("`prompt` is null")
    return _answerable(check_messages(value, "prompt"), "`prompt`")


def _answerable(messages: list[Message], name: str) -> list[Message]:
    if messages[-1]["role"] == "assistant":
        raise RowProblem(f"{name} ends with an assistant message, and a response must answer someone else's")
    if not any(message["content"].strip() for message in messages):
        raise RowProblem(f"{name} is empty")
    return messages


def response_text(value: Any, name: str) -> str:
    """The words of a response: a string, or a list of one assistant message."""
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
        text = messages[0]["content"]
    if not text.strip():
        raise RowProblem(f"`{name}` is empty")
    return text


def is_conversation(value: Response) -> bool:
    """Whether a list holds more than the one assistant message that a response is."""
    if not isinstance(value, list) or not value:
        return False
    return len(value) > 1 or (isinstance(value[0], dict) and value[0].get("role") != "assistant")


def split_conversations(prompt: Any, values: Sequence[Any], names: Sequence[str]) -> tuple[Prompt, tuple[str, ...]]:
    """Prompt and responses of whole conversations: the prompt is the messages that all of them begin with.

    prompt: the row's `prompt` where it has one. It must agree with the conversations, or come before them.
    """
    if any(isinstance(value, str) for value in values):
        raise RowProblem(f"{_listed(names)} must all be strings or all be whole conversations")
    conversations = [check_messages(value, name) for value, name in zip(values, names, strict=True)]
    # Each keeps at least its last message: the response.
    length = min(len(conversation) for conversation in conversations) - 1
    shared = 0
    while shared < length and all(conversation[shared] == conversations[0][shared] for conversation in conversations):
        shared += 1
    for conversation, name in zip(conversations, names, strict=True):
        if len(conversation) != shared + 1 or conversation[shared]["role"] != "assistant":
            raise RowProblem(
                f"{_listed(names)} differ before their last message (they share {shared}, `{name}` has {len(conversation)}); "
                "a response must be one assistant message that ends its conversation"
            )
    start = _join_prompt(prompt, conversations[0][:shared], names)
    return start, tuple(response_text(conversation[shared:], name) for conversation, name in zip(conversations, names, strict=True))


def _join_prompt(prompt: Any, shared: list[Message], names: Sequence[str]) -> list[Message]:
    if prompt is None:
        if not shared:
            raise RowProblem(f"there is no prompt: {_listed(names)} share no message", "Add a `prompt` column")
        return _answerable(shared, f"what {_listed(names)} share")
    given = check_prompt(prompt)
    if isinstance(given, str):
        agrees = any(message["content"].strip() == given.strip() for message in shared)
    else:
        agrees = shared[: len(given)] == given
        if not agrees and _continues(given, shared):
            shared, agrees = [*given, *shared], True
    if not agrees:
        raise RowProblem(f"`prompt` is not among the messages that {_listed(names)} share", "Drop the column `prompt`, or make them agree")
    return _answerable(shared, f"what {_listed(names)} share")


def _continues(given: list[Message], shared: list[Message]) -> bool:
    """Whether the conversations go on from the prompt instead of repeating it."""
    if not shared or shared[0]["role"] in _SETTING_ROLES:
        return False
    return shared[0]["role"] == "assistant" or all(message["role"] in _SETTING_ROLES for message in given)


def split_strings(chosen: str, rejected: str) -> tuple[Prompt, tuple[str, str]]:
    """Prompt and responses of two strings without a `prompt` column.

    Transcripts ("\\n\\nHuman: ...\\n\\nAssistant: ...") come apart into messages. Other strings share a prefix, which ends behind its
    last white space, so that no word is cut in two, and which leaves both responses at least a word.
    """
    names = ("chosen", "rejected")
    if _TRANSCRIPT.match(chosen) and _TRANSCRIPT.match(rejected):
        prompt, (first, second) = split_conversations(None, [_turns(chosen), _turns(rejected)], names)
        return prompt, (first, second)
    chosen, rejected = chosen.rstrip(), rejected.rstrip()
    length = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b:
            break
        length += 1
    while length and not chosen[length - 1].isspace():
        length -= 1
    return chosen[:length].rstrip(), (chosen[length:], rejected[length:])


def _turns(transcript: str) -> list[Message]:
    parts = _TURN.split(transcript)[1:]
    return [{"role": _TURN_ROLES[speaker], "content": text.strip()} for speaker, text in zip(parts[::2], parts[1::2], strict=True)]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in names) if len(names) < 4 else f"`{names[0]}` ... `{names[-1]}`"


def _kind(value: Any) -> str:
    return {type(None): "null", dict: "an object", list: "a list", bool: "true/false", str: "a string"}.get(
        type(value), type(value).__name__
    )
