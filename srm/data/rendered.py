"""Whole conversations in the ids of a chat template: where the last answer begins and ends in them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from srm.data.template import QUESTION
from srm.errors import UserError
from srm.segmentation import ByteTable

if TYPE_CHECKING:
    from srm.data.encode import ResponseEncoder

__all__ = ["RenderedConversations"]

_ANSWER = "Xylophone"


class RenderedConversations:
    """Takes conversations apart that other programs have written with the chat template, answer included, and turned into ids.

    The last answer begins behind the last place where the template ends a turn and opens the assistant's, in its generation prompt or in
    a whole conversation. Where the two differ (an empty thought, a space), the prompt comes back as the generation prompt writes it.

    Args:
        encoder: of the model that the ids are for.

    Raises:
        UserError: the tokenizer's ids cannot be read back as text, or its template writes nothing between a question and its answer.
    """

    def __init__(self, encoder: ResponseEncoder) -> None:
        self._encoder = encoder
        self._table = ByteTable.from_tokenizer(encoder.tokenizer, with_special=True)
        form = encoder.format
        # All texts here are read back from ids, for some tokenizers swallow the line break behind a mark, or put a space there.
        whole = self._read(self._spell(form.head + _ANSWER + form.behind))
        head, _, self._behind = whole.rpartition(_ANSWER)
        question = self._read(self._spell(form.question))
        self._prompt_opening, opening = (text.rpartition(QUESTION)[2] for text in (question, head))
        if not (self._prompt_opening.strip() and opening.strip() and QUESTION in question and QUESTION in head):
            raise UserError(
                f"{_name(encoder)}: its chat template writes no mark between a question and its answer, so an answer cannot be found in a "
                "conversation's tokens. Use `score`, which takes the two apart from the start."
            )
        self._openings = {self._prompt_opening, opening}
        ids = form.prompt_ids([form.question])[0]
        self._num_bos = self._count_bos(ids)
        text, spans = self._table.decode(ids)
        count = _count_up_to(len(text) - len(self._prompt_opening), spans)
        self._opening_ids = None if count is None else ids[count:]

    def split(self, ids: Sequence[int], *, where: str) -> tuple[list[int], str]:
        """The prompt's ids and the answer's text; the text is empty where there is no answer.

        Args:
            ids: one conversation, without padding.
            where: what a message calls it.

        Raises:
            UserError: no answer begins in it, more turns follow the answer, or the ids are not of this tokenizer.
        """
        # Nobody samples these ids: what is in no vocabulary is of another one, embedding or not.
        if (unknown := next((token for token in ids if not 0 <= token < len(self._table)), None)) is not None:
            raise UserError(
                f"{where}: token id {unknown} is not in the vocabulary of {_name(self._encoder)}. "
                "Tokenize with the tokenizer that was saved with the model."
            )
        text, spans = self._table.decode(list(ids))
        # Where both begin at one place, one goes on from the other, and the longer one counts.
        start, opening = max((text.rfind(opening), opening) for opening in self._openings)
        if start < 0:
            raise UserError(
                f"{where}: no answer begins in it. Expected {self._prompt_opening!r}, as the chat template writes it before an answer, got "
                f"{text[-60:]!r} at its end. Give conversations as messages, or texts that `apply_chat_template` wrote, with the answer."
            )
        answer = self._answer(ids, [begin for begin, _ in spans], text, start + len(opening), where)
        # What the answer's opening has beyond the generation prompt's is not the prompt's.
        stop = start + len(self._prompt_opening) if opening.startswith(self._prompt_opening) else -1
        if (count := _count_up_to(stop, spans)) is not None:
            return self._with_bos(list(ids[:count])), answer
        # The prompt ends otherwise here, or its last token goes on into the answer, as two line breaks do.
        if (count := _count_up_to(start, spans)) is None or self._opening_ids is None:
            raise UserError(
                f"{where}: the prompt's last token is also the answer's first one in the ids. Use `score`, which takes the two apart from "
                "the start."
            )
        return self._with_bos([*ids[:count], *self._opening_ids]), answer

    def _answer(self, ids: Sequence[int], begins: Sequence[int], text: str, start: int, where: str) -> str:
        """The text from `start` to the end of the turn, behind which nothing may follow."""
        ends = self._encoder.answers.end_ids
        at = next((index for index, (token, begin) in enumerate(zip(ids, begins, strict=True)) if begin >= start and token in ends), None)
        if at is None:
            answer = text[start:]
            marks: tuple[str, ...] = (self._behind, self._behind.rstrip())
        else:
            answer = text[start : begins[at]]
            marks = (self._behind[: len(self._behind) - len(self._behind.lstrip())],)
            if rest := self._read([token for token in ids[at:] if token not in ends]).strip():
                raise UserError(
                    f"{where}: the conversation goes on behind its last answer, with {rest[:60]!r}. Its last message must be the answer."
                )
        return answer.removesuffix(next((mark for mark in marks if mark and answer.endswith(mark)), ""))

    def _spell(self, text: str) -> list[int]:
        return self._encoder.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]

    def _read(self, ids: Sequence[int]) -> str:
        return self._table.decode(list(ids))[0]

    def _count_bos(self, ids: Sequence[int]) -> int:
        bos = self._encoder.tokenizer.bos_token_id
        return sum(1 for _ in takewhile(lambda token: token == bos, ids))

    def _with_bos(self, ids: list[int]) -> list[int]:
        """`ids` with the bos tokens that a prompt has here: those who tokenize a rendered text often add one, or take one away."""
        bos = self._encoder.tokenizer.bos_token_id
        return [bos] * self._num_bos + ids[self._count_bos(ids) :]


def _count_up_to(stop: int, spans: Sequence[tuple[int, int]]) -> int | None:
    """How many tokens lie before the character `stop`; None where one goes on beyond it."""
    count = sum(1 for _ in takewhile(lambda span: span[1] <= stop, spans))
    return count if (spans[count - 1][1] if count else 0) == stop and (count == len(spans) or spans[count][0] >= stop) else None


def _name(encoder: ResponseEncoder) -> str:
    return str(encoder.tokenizer.name_or_path or "the tokenizer")
