"""Conversations and transcripts: how they come apart into a prompt and its responses."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from srm.data.messages import answerable, check_is_text, check_messages, check_prompt, is_prefilled, response_text
from srm.data.responses import check_end, check_response, own_prompt
from srm.data.schema import Message, Prompt, Response, RowProblem

__all__ = ["is_conversation", "split_conversations", "split_strings"]

_SETTING_ROLES = ("system", "developer")

# "\n\nHuman: ...\n\nAssistant: ...", the form of Anthropic's helpful and harmless data.
_TRANSCRIPT = re.compile(r"\s*Human:")
_TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")
_TURN_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_conversation(value: Any) -> bool:
    """Whether a response is a list of more than the one assistant message.

    Args:
        value: of a row.
    """
    if not isinstance(value, (list, tuple, np.ndarray)) or not len(value):
        return False
    return len(value) > 1 or (isinstance(value[0], dict) and value[0].get("role") != "assistant")


def split_conversations(prompt: Any, values: Sequence[Any], names: Sequence[str]) -> tuple[Prompt, tuple[Response, ...]]:
    """Prompt and responses of conversations: whole ones, or those that go on from the row's prompt.

    The prompt is the longest beginning that all share and that the assistant answers in each. Where there is none, it is what they share,
    perhaps nothing, and each response opens with the messages that it answers (`srm.data.responses.own_prompt`).

    Args:
        prompt: the row's `prompt` where it has one. It must agree with the conversations, or come before them.
        values: the conversations; behind a prompt, texts too.
        names: their columns.

    Raises:
        RowProblem: a conversation that does not end with the assistant's words, or a prompt that does not fit.
    """
    conversations = _as_conversations(prompt, values, names)
    start = _start(prompt, conversations, names)
    goes_on = is_prefilled(start) and conversations[0][0]["role"] == "assistant"
    whole = [_joined(start, conversation) if goes_on else [*start, *conversation] for conversation in conversations]
    # Of one conversation behind a prompt all is the response.
    known = len(start) - goes_on
    common = min(_common(whole), known if start and len(whole) == 1 else sys.maxsize)
    answered = next((length for length in range(common, max(known, 1) - 1, -1) if _is_answered(whole, length)), None)
    if answered is None:
        return _apart(whole, common, names)
    if goes_on and answered == known:
        return answerable(start, "`prompt`"), _responses(conversations, names)
    shared = answerable(whole[0][:answered], "`prompt`" if answered == len(start) else f"what {_listed(names)} share")
    return shared, _responses([conversation[answered:] for conversation in whole], names)


def _as_conversations(prompt: Any, values: Sequence[Any], names: Sequence[str]) -> list[list[Message]]:
    lists = {name: check_messages(value, name) for value, name in zip(values, names, strict=True) if not isinstance(value, str)}
    if len(lists) < len(values) and (prompt is None or any(messages[0]["role"] != "assistant" for messages in lists.values())):
        raise RowProblem(f"{_listed(names)} must all be strings or all be whole conversations")
    for name, messages in lists.items():
        check_end(messages, name)
    for value, name in zip(values, names, strict=True):
        if name not in lists:
            check_is_text(value, name)
            lists[name] = [{"role": "assistant", "content": response_text(value, name)}]
    return [lists[name] for name in names]


def _start(prompt: Any, conversations: list[list[Message]], names: Sequence[str]) -> list[Message]:
    """What of `prompt` comes before the conversations: nothing where they repeat it."""
    if prompt is None:
        return []
    if isinstance(prompt, str):
        check_prompt(prompt)
        shared = conversations[0][: _common(conversations)]
        repeated = any(message["role"] != "assistant" and message["content"].strip() == prompt.strip() for message in shared)
        given: list[Message] = [{"role": "user", "content": prompt}]
    else:
        given = check_messages(prompt, "prompt")
        repeated = all(conversation[: len(given)] == given for conversation in conversations)
    if repeated:
        return []
    opened = {conversation[0]["role"] == "assistant" for conversation in conversations}
    if not all(_continues(given, conversation) for conversation in conversations) or (is_prefilled(given) and len(opened) > 1):
        raise RowProblem(f"`prompt` is not among the messages that {_listed(names)} share", "Drop the column `prompt`, or make them agree")
    return given


def _continues(given: list[Message], conversation: list[Message]) -> bool:
    """Whether a conversation goes on from the prompt instead of repeating it."""
    role = conversation[0]["role"]
    return role in ("assistant", "tool") or (
        role not in _SETTING_ROLES and (is_prefilled(given) or all(message["role"] in _SETTING_ROLES for message in given))
    )


def _joined(start: list[Message], conversation: list[Message]) -> list[Message]:
    """`conversation` behind `start`, whose last message is the beginning of its first one."""
    first = conversation[0]
    return [*start[:-1], {**start[-1], **first, "content": start[-1]["content"] + first["content"]}, *conversation[1:]]


def _common(conversations: list[list[Message]]) -> int:
    """How many messages all begin with. Each keeps at least its last one, which is its response."""
    most = min(map(len, conversations)) - 1
    first = conversations[0]
    return next((index for index in range(most) if any(other[index] != first[index] for other in conversations)), most)


def _is_answered(conversations: list[list[Message]], length: int) -> bool:
    """Whether the assistant answers the first `length` messages in each."""
    return conversations[0][length - 1]["role"] != "assistant" and all(other[length]["role"] == "assistant" for other in conversations)


def _apart(conversations: list[list[Message]], shared: int, names: Sequence[str]) -> tuple[Prompt, tuple[Response, ...]]:
    """Conversations that answer different messages, the first `shared` the same."""
    while (
        shared and conversations[0][shared - 1]["role"] == "assistant" and any(one[shared]["role"] == "assistant" for one in conversations)
    ):
        # What the assistant says next would go on from its last words.
        shared -= 1
    prompt = conversations[0][:shared]
    responses = tuple(conversation[shared:] for conversation in conversations)
    for response, name in zip(responses, names, strict=True):
        own, _ = own_prompt(prompt, response, name)
        assert not isinstance(own, str), "made of messages"
        answerable(own, f"what `{name}` answers")
    return prompt, responses


def _responses(conversations: Sequence[list[Message]], names: Sequence[str]) -> tuple[Response, ...]:
    return tuple(check_response(conversation, name) for conversation, name in zip(conversations, names, strict=True))


def split_strings(chosen: str, rejected: str) -> tuple[Prompt, tuple[Response, ...]]:
    """Prompt and responses of two strings without a `prompt` column.

    Transcripts ("\\n\\nHuman: ...\\n\\nAssistant: ...") come apart into messages. Other strings share a prefix, which ends behind its
    last white space, so that no word is cut in two, and which leaves both responses at least a word.
    """
    names = ("chosen", "rejected")
    if _TRANSCRIPT.match(chosen) and _TRANSCRIPT.match(rejected):
        return split_conversations(None, [_turns(chosen), _turns(rejected)], names)
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
