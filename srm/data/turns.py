"""Answers of several messages, and answers that go on from their prompt's last words: what the chat template writes of them.

Where the assistant's words stand in the text is measured: a message is replaced by a mark, and what differs is the message.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from srm.data.answers import AnswerTokens
from srm.data.messages import check_prompt, is_prefilled
from srm.data.responses import THOUGHTS, check_response, own_prompt
from srm.data.schema import Message, Prompt, Response
from srm.data.template import ChatFormat
from srm.data.tool_calls import texts_of, unwritten
from srm.errors import UserError
from srm.segmentation import Span

__all__ = ["Turns", "answer_behind", "read_answers", "read_turns"]


@dataclass(frozen=True, kw_only=True)
class Turns:
    """An answer as the template writes it behind its prompt, up to the end of its last turn.

    Attributes:
        prompt: the text before it.
        lead: white space that the template writes between the two; it belongs to the answer's first token.
        text: the assistant's turns, and between them what the template writes of the other messages.
        words: where the turns are in `text`, without the marks that open and end them.
    """

    prompt: str
    lead: str = ""
    text: str
    words: tuple[Span, ...]


def read_answers(
    form: ChatFormat, answers: AnswerTokens, prompt: Prompt, responses: Iterable[Response]
) -> Iterator[tuple[str, str | Turns]]:
    """For each response the text of what it answers, and the answer: a text, or what the template writes of its messages.

    Args:
        form: the tokenizer's chat template.
        answers: how it reads an answer.
        prompt: text or chat messages; no message where each response opens with those that it answers.
        responses: in any form that a file may hold.

    Raises:
        RowProblem: a response is empty, answers nothing, or does not end with an assistant message.
        UserError: as `read_turns`.
    """
    shared: tuple[Prompt, str] | None = None
    for response in responses:
        own, answer = own_prompt(prompt, check_response(response, "response"))
        if not isinstance(answer, str):
            turns = [{**turn, "content": answers.without_end(turn["content"])} if turn["role"] == "assistant" else turn for turn in answer]
            written = read_turns(form, _checked(own), turns)
            yield written.prompt, written
            continue
        # Most responses answer the prompt alone, which is then written once.
        checked, rendered = shared if shared and own is prompt else _written(form, own)
        if own is prompt:
            shared = checked, rendered
        yield rendered, answer_behind(checked, rendered, answer)


def _written(form: ChatFormat, prompt: Prompt) -> tuple[Prompt, str]:
    checked = _checked(prompt)
    return checked, form.render(checked)


def _checked(prompt: Prompt) -> Prompt:
    # Pairs of texts that share no word come with an empty one.
    return check_prompt(prompt) if prompt or not isinstance(prompt, str) else prompt


def answer_behind(prompt: Prompt, rendered: str, text: str) -> str | Turns:
    """`text` as an answer to a prompt: itself, or what goes on from the prompt's last words.

    Args:
        prompt: text or chat messages.
        rendered: what the template has written of it.
        text: an answer.
    """
    return Turns(prompt=rendered, text=text, words=(Span(0, len(text)),)) if is_prefilled(prompt) else text


def read_turns(form: ChatFormat, prompt: Prompt, turns: list[Message]) -> Turns:
    """What the template writes of `turns` behind `prompt`.

    Both together are what the template writes of the whole conversation. So the prompt ends where the first turn's words begin there, which
    is behind the generation prompt but for a thought: one that the template writes only in a prompt, or only in a whole conversation.

    Args:
        form: the tokenizer's.
        prompt: text or chat messages, as `srm.data.messages.check_prompt` returns them.
        turns: from `srm.data.responses.own_prompt`; the first and the last are the assistant's.

    Raises:
        UserError: the template refuses the conversation, leaves out a part of it, or writes the prompt otherwise in it.
    """
    messages, settings, before = form.read(prompt)
    begun = messages[-1]["content"] if is_prefilled(messages) else ""
    if begun:
        turns = [{**messages[-1], **turns[0], "content": begun + turns[0]["content"]}, *turns[1:]]
        messages = messages[:-1]
    rendering = _Rendering(form, [*messages, *turns], settings)
    whole = rendering.text
    alone = form.write(messages, **settings)
    places = rendering.places(len(messages), _num_same(alone, whole))
    words = [place for place, turn in zip(places, turns, strict=True) if turn["role"] == "assistant"]
    # The messages of the prompt must be the same in both; what opens the answer behind them need not.
    fixed = len(alone.rstrip()) if before.startswith(alone) else len(before.removesuffix(form.header))
    if begun:
        (before, start), lead = _behind_beginning(whole, fixed, before, begun, words[0]), ""
    else:
        before, start, lead = _behind_prompt(whole, fixed, before, form.header, words[0])
    first, *others = words
    spans = (Span(0, first.end - start), *(Span(place.start - start, place.end - start) for place in others))
    return Turns(prompt=before, lead=lead, text=whole[start : words[-1].end], words=spans)


class _Place(NamedTuple):
    """Where a message is in the text. is_exact: what comes before it would be the same with other words."""

    start: int
    end: int
    is_exact: bool


class _Rendering:
    """A conversation as the template writes it, with the places of its messages."""

    def __init__(self, form: ChatFormat, messages: list[Message], settings: dict[str, Any]) -> None:
        self._form = form
        self._settings = settings
        self._messages = messages
        self.text = form.write(messages, **settings)
        # A character for private use that nobody has used.
        self._mark = next(mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in self.text)

    def places(self, first: int, begin: int) -> list[_Place]:
        """Where the messages from `first` on are, behind the character `begin`.

        Raises:
            UserError: the template leaves out a part of one, or mixes them.
        """
        places: list[_Place] = []
        for index in range(first, len(self._messages)):
            number = index - first + 1
            place = self._place(index, number)
            if place.start < begin:
                raise UserError(
                    f"the chat template writes message {number} of the response into another one, so that they cannot be told apart. Use "
                    "a tokenizer whose template keeps them apart."
                )
            if self._messages[index]["role"] == "assistant":
                self._check_written(index, number, self.text[begin : place.end])
            places.append(place)
            begin = place.end
        return places

    def _place(self, index: int, number: int) -> _Place:
        message = self._messages[index]
        if message["role"] != "assistant":
            place = self._where_differs(index, {**message, "content": self._mark}, may_open_otherwise=False)
        else:
            calls = "tool_calls" in message
            opens = calls or any(map(message.get, THOUGHTS)) or "</think" in message["content"]
            place = self._where_differs(index, {"role": "assistant", "content": self._mark}, may_open_otherwise=bool(opens))
            if place is None and calls:
                place = self._where_arguments_differ(index)
        if place is None:
            raise UserError(
                f"the chat template does not write message {number} of the response ({message['role']}), or writes more than the message "
                "by what it says, so its words cannot be found. Change the messages, or use a tokenizer whose template keeps them apart."
            )
        return place

    def _where_arguments_differ(self, index: int) -> _Place | None:
        """`_where_differs` of a call, for templates that need one there, or that end a turn by it."""
        inside = self._where_differs(index, _with_arguments(self._messages[index], self._mark), may_open_otherwise=True)
        if inside is None:
            return None
        # Braces stand behind the arguments, and then the token that ends the turn.
        ends = [at for token in self._form.special_tokens if (at := self.text.find(token, inside.end)) >= 0]
        return inside._replace(end=min(ends, default=len(self.text)))

    def _where_differs(self, index: int, message: Message, *, may_open_otherwise: bool) -> _Place | None:
        """Where the text differs from one with another message, which ends with the mark; None where more differs than the message."""
        other = self._other(index, message)
        if other is None or self._mark not in other:
            return None
        start = _num_same(self.text, other)
        same = _num_same(self.text[start:][::-1], other[start:][::-1])
        differs = other[start : len(other) - same]
        is_exact = differs == self._mark
        return _Place(start, len(self.text) - same, is_exact) if is_exact or (may_open_otherwise and differs.endswith(self._mark)) else None

    def _check_written(self, index: int, number: int, text: str) -> None:
        """Raise `UserError` where `text`, what the template wrote of an assistant message, lacks a part of it."""
        message = self._messages[index]
        packed = "".join(text.split())
        for key in ("content", *THOUGHTS):
            # Templates trim words, and put thoughts on lines of their own.
            if isinstance(message.get(key), str) and "".join(message[key].split()) not in packed:
                raise _left_out(key, number)
        calls = message.get("tool_calls")
        if calls and unwritten(texts_of(calls), text):
            raise _left_out("tool_calls", number)
        # The same words may stand in another part: what makes no difference is left out.
        thoughts = [key for key in THOUGHTS if message.get(key)]
        for keys in (thoughts, ["tool_calls"] * bool(calls), ["content"] * bool(calls and message["content"].strip())):
            rest = {key: value for key, value in message.items() if key not in keys}
            if keys and self._other(index, {"content": "", **rest}) == self.text:
                raise _left_out(keys[0], number)

    def _other(self, index: int, message: Message) -> str | None:
        """The text with another message in the place of one; None where the template refuses it."""
        try:
            return self._form.write([*self._messages[:index], message, *self._messages[index + 1 :]], **self._settings)
        except UserError:
            return None


def _num_same(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _with_arguments(message: Message, mark: str) -> Message:
    """An assistant message whose calls, and words where it has any, say `mark` and nothing else."""
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        arguments = {mark: mark} if isinstance(function.get("arguments"), dict) else json.dumps({mark: mark}, ensure_ascii=False)
        marked = {**function, "arguments": arguments}
        calls.append({**call, "function": marked} if "function" in call else marked)
    said = {key: mark for key in ("content", *THOUGHTS) if message.get(key)}
    return {**message, **said, "tool_calls": calls}


def _left_out(key: str, number: int) -> UserError:
    return UserError(
        f"the chat template does not write all of `{key}` of message {number} of the response, and what is left out cannot be scored. "
        "Delete it from the message, or use a tokenizer whose template writes it."
    )


def _behind_prompt(whole: str, fixed: int, prompt: str, header: str, first: _Place) -> tuple[str, int, str]:
    """The prompt's text, where the answer begins in `whole`, and the white space between the two.

    fixed: how much of `prompt` must be in `whole`. prompt: as it is written alone, with `header` at its end.
    """
    if header and not whole.startswith(prompt):
        # The answer opens otherwise than with the header, as one in another channel does.
        prompt = prompt.removesuffix(header)
    same = _num_same(prompt, whole)
    if same < fixed:
        raise UserError(
            f"the chat template writes the prompt otherwise before the response's messages than alone: {whole[same : same + 40]!r} for "
            f"{prompt[same : same + 40]!r}. Score the last message alone, with those before it in the prompt."
        )
    if not first.is_exact:
        return prompt[:same], same, ""
    between = whole[same : first.start]
    if same == len(prompt) and between.isspace():
        return prompt, first.start, between
    return whole[: first.start], first.start, ""


def _behind_beginning(whole: str, fixed: int, prompt: str, begun: str, first: _Place) -> tuple[str, int]:
    """The prompt's text, which ends with the answer's beginning `begun`, and where the answer goes on in `whole`."""
    if whole.startswith(prompt):
        return prompt, len(prompt)
    if _num_same(prompt, whole) >= fixed and (place := whole.find(begun.strip(), first.start, first.end)) >= 0:
        stop = place + len(begun.lstrip())
        if whole[place:stop] == begun.lstrip() and not whole[first.start : place].strip():
            return whole[:stop], stop
    raise UserError(
        f"the chat template does not write the beginning of the answer in the prompt ({begun[-40:]!r}) as it does in the whole "
        "conversation. Move it into the response."
    )
