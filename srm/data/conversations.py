"""Whole conversations and transcripts: how they come apart into a prompt and its responses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from srm.data.messages import answerable, check_messages, check_prompt, response_text
from srm.data.schema import Message, Prompt, Response, RowProblem

__all__ = ["is_conversation", "split_conversations", "split_strings"]

_SETTING_ROLES = ("system", "developer")

# "\n\nHuman: ...\n\nAssistant: ...", the form of Anthropic's helpful and harmless data.
_TRANSCRIPT = re.compile(r"\s*Human:")
_TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")
_TURN_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_conversation(value: Response) -> bool:
    """Whether a list holds more than the one assistant message that a response is."""
    if not isinstance(value, (list, tuple, np.ndarray)) or not len(value):
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
        return answerable(shared, f"what {_listed(names)} share")
    given = check_prompt(prompt)
    if isinstance(given, str):
        agrees = any(message["content"].strip() == given.strip() for message in shared)
    else:
        agrees = shared[: len(given)] == given
        if not agrees and _continues(given, shared):
            shared, agrees = [*given, *shared], True
    if not agrees:
        raise RowProblem(f"`prompt` is not among the messages that {_listed(names)} share", "Drop the column `prompt`, or make them agree")
    return answerable(shared, f"what {_listed(names)} share")


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
