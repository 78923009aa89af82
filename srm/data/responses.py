"""Responses in any of their forms: text, one assistant message, or several messages of which an assistant's is the last."""

from __future__ import annotations

from typing import Any

from srm.data.messages import METADATA, check_messages, check_words_only, is_message_list, response_text
from srm.data.schema import Conversation, Message, Prompt, Response, RowProblem
from srm.data.tool_calls import texts_of

__all__ = ["THOUGHTS", "check_end", "check_response", "check_turns", "num_chars", "own_prompt", "words_of"]

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# What of an assistant message a chat template may write.
_WRITTEN = METADATA | {"tool_calls", *THOUGHTS}


def check_response(value: Any, name: str) -> Response:
    """A response as the rest of the program takes it.

    Args:
        value: text, or messages that end with the assistant's. Those before its first one belong to the prompt (`own_prompt`).
        name: what a message calls it.

    Returns:
        The text of a response that is one assistant message, else the messages.

    Raises:
        RowProblem: it is neither, is empty, ends with someone else's message, or holds what no chat template writes.
    """
    if not is_message_list(value) or len(value) == 1:
        return response_text(value, name)
    return check_turns(check_messages(value, name), name)


def check_turns(messages: list[Message], name: str) -> list[Message]:
    """`messages` of a response, or a `RowProblem`.

    Args:
        messages: from `check_messages`.
        name: what a message calls the response.
    """
    check_end(messages, name)
    for number, message in enumerate(messages, start=1):
        if message["role"] == "assistant":
            check_words_only(message, f"`{name}`: message {number}", beside=_WRITTEN)
            if not message["content"].strip() and "tool_calls" not in message:
                raise RowProblem(f"`{name}`: message {number} is empty")
    return messages


def check_end(messages: list[Message], name: str) -> None:
    """Raise `RowProblem` where somebody else than the assistant ends a conversation.

    Args:
        messages: of the conversation.
        name: what a message calls it.
    """
    if messages[-1]["role"] != "assistant":
        raise RowProblem(
            f"`{name}` ends with a message of the role {messages[-1]['role']}, and must end with the assistant's",
            "Delete what stands behind its last answer, or the row",
        )


def own_prompt(prompt: Prompt, response: Response, name: str = "response") -> tuple[Prompt, Response]:
    """What one response answers, and the answer: messages before the assistant's first one go to the prompt.

    Args:
        prompt: of the row; no message where its responses share none.
        response: from `check_response`.
        name: what a message calls it.

    Raises:
        RowProblem: there is nothing that the response answers.
    """
    if isinstance(response, str):
        return prompt, response
    first = _first_turn(prompt, response)
    answer = check_response(response[first:], name)
    if not first:
        return prompt, answer
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    settings = prompt.settings if isinstance(prompt, Conversation) else {}
    messages += response[:first]
    return Conversation(messages, **settings) if settings else messages, answer


def _first_turn(prompt: Prompt, response: list[Message]) -> int:
    if prompt and response[0]["role"] == "assistant":
        return 0
    # A greeting that opens a conversation is no answer.
    for index in range(1, len(response)):
        if response[index]["role"] == "assistant" and response[index - 1]["role"] != "assistant":
            return index
    raise RowProblem("there is no prompt, and no message that the response answers", "Add a `prompt` column")


def words_of(response: Response) -> str:
    """What the assistant says in a response: the text, or its messages' words and the words of its calls of tools, a paragraph each.

    Args:
        response: from `check_response`.
    """
    if isinstance(response, str):
        return response
    turns = [message for message in response if message["role"] == "assistant"]
    said = [part for turn in turns for part in (turn["content"].strip(), " ".join(texts_of(turn.get("tool_calls") or ()))) if part]
    return "\n\n".join(said)


def num_chars(response: Response) -> int:
    """The characters of what the assistant says in a response, at least 1.

    Args:
        response: from `check_response`.
    """
    return max(len(words_of(response)), 1)
