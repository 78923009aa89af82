"""Prompts and responses to token ids and sentence boundaries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import Self

from srm.data.answers import AnswerTokens
from srm.data.bounds import TokenFloor
from srm.data.messages import check_prompt, response_text
from srm.data.schema import Message, Prompt, Response, RowProblem
from srm.data.template import ChatFormat
from srm.data.turns import Turns, read_answers
from srm.errors import UserError
from srm.packing import ResponseIds
from srm.packing.batch import IntArray
from srm.segmentation import Segmenter, Span, TokenSegmenter, sentence_ends_from_offsets
from srm.segmentation.tokens import opening_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["EncodedResponse", "ResponseEncoder"]


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedResponse(ResponseIds):
    """One response as tokens, with its text.

    Attributes:
        ids: int32 [tokens], with the boundary token after each sentence where there is one.
        sentence_ends: int32 [sentences], index into `ids` of each sentence's boundary.
        opening: how many of the first ids belong to no sentence, with their boundary token where there is one.
        spans: the sentences' characters in `text`, one for each end.
        text: the response.
        truncated: whether it was too long with its prompt, and one of the two was cut.
    """

    spans: Sequence[Span]
    text: str
    truncated: bool = False

    def cut(self, ids: IntArray, sentence_ends: IntArray) -> Self:
        """The same response with only its first tokens and sentences; the text stays whole.

        Args:
            ids: int32 [tokens], the first of the ids.
            sentence_ends: int32 [sentences], one for each sentence that stays; the last one may lie before where it was.
        """
        return replace(super().cut(ids, sentence_ends), spans=self.spans[: len(sentence_ends)])


class ResponseEncoder:
    """Turns prompts and responses into what the model reads, the same way in training and in scoring.

    A prompt goes through the tokenizer's chat template, up to where the answer begins. A response is tokenised by itself, as a policy that
    continues the prompt produces it. No end-of-turn token follows, and one that a response brings is left out: the last boundary is to be
    a token of the same kind as the others, or what the head learns at the end of a response says nothing about the sentences before it
    (docs/decisions.md).

    Args:
        tokenizer: a fast one.
        segmenter: from `srm.segmentation.make_segmenter`.
        boundary_token: None, or a special token of the tokenizer that is put after the prompt and after each sentence and is the boundary
            in place of the sentence's last token.
        listed_ends: ids that the model's configuration names as end tokens, beside those of the tokenizer and its template.

    Raises:
        UserError: a slow tokenizer, a template that does not write responses as they are, or a boundary token that the tokenizer lacks.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        segmenter: Segmenter,
        *,
        boundary_token: str | None = None,
        listed_ends: Iterable[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.segmenter = segmenter
        self.format = ChatFormat(tokenizer)
        self.answers = AnswerTokens(tokenizer, self.format, listed_ends)
        self._token_segmenter: tuple[PreTrainedTokenizerBase, TokenSegmenter] | None = None
        self.boundary_ids = [] if boundary_token is None else [_token_id(tokenizer, boundary_token)]

    @cached_property
    def floor(self) -> TokenFloor:
        """Finds texts that certainly have too many tokens without tokenising them."""
        return TokenFloor(self.tokenizer)

    def token_segmenter(self, tokenizer: PreTrainedTokenizerBase) -> TokenSegmenter:
        """Cuts ids of `tokenizer` into the sentences that this encoder finds in their text; kept, because it takes a while to build."""
        if self._token_segmenter is None or self._token_segmenter[0] is not tokenizer:
            self._token_segmenter = tokenizer, TokenSegmenter(tokenizer, self.segmenter)
        return self._token_segmenter[1]

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Tokens of `prompt`, at least one: its last one is the first boundary.

        Raises:
            UserError: the prompt is empty, ends with the assistant's words, holds more than text, or the chat template refuses it.
        """
        return self.encode_prompts([self.render(prompt)])[0]

    def render(self, prompt: Prompt) -> str:
        """The text of `prompt` in any form that a file may hold, for `encode_prompts`. Raises as `encode_prompt`."""
        with _as_user_error():
            return self.format.render(check_prompt(prompt))

    def encode_prompts(self, rendered: list[str]) -> list[list[int]]:
        """Tokens of prompts that `format.render` has written, as a batch."""
        return [ids + self.boundary_ids for ids in self.format.prompt_ids(rendered)]

    def encode_response(self, prompt: Prompt, response: Response) -> EncodedResponse:
        """Tokens and sentences of `response`, an answer to `prompt`.

        The tokens of one message do not depend on the prompt: a policy's answer is the same text wherever it stands.

        Args:
            prompt: text or chat messages.
            response: text, one assistant message, or several messages that end with one.

        Returns:
            Its ids, where its sentences end in them, and its text; of several messages, what the chat template writes of them.

        Raises:
            UserError: the response is empty, does not end with an assistant message, or is written otherwise by the chat template.
        """
        return self.encode_responses([self.read(prompt, response)[1]])[0]

    def read(self, prompt: Prompt, response: Response) -> tuple[str, str | Turns]:
        """The text of what `response` answers, for `encode_prompts`, and the answer, for `encode_responses`. Both are good keys.

        Args:
            prompt: text or chat messages; no message where `response` opens with those that it answers.
            response: in any form that a file may hold.

        Raises:
            UserError: as `encode_prompt` and `encode_response`.
        """
        return next(self.read_each(prompt, [response]))

    def read_each(self, prompt: Prompt, responses: Iterable[Response]) -> Iterator[tuple[str, str | Turns]]:
        """`read` of each of several responses to a prompt, which is written once.

        Args:
            prompt: as in `read`.
            responses: each as in `read`.

        Raises:
            UserError: as `read`, at the response that is to blame.
        """
        with _as_user_error():
            yield from read_answers(self.format, self.answers, prompt, responses)

    def encode_responses(self, responses: Sequence[str | list[Message] | Turns]) -> list[EncodedResponse]:
        """Tokens and sentences of answers, as a batch: several times faster than one by one.

        Args:
            responses: texts, assistant messages, or what `read` gave.

        Raises:
            UserError: as `encode_response`.
        """
        with _as_user_error():
            answers = [self._answer(response) for response in responses]
        texts = [answer for answer in answers if isinstance(answer, str)]
        found = iter(zip(self.answers.encode(texts), self.segmenter.segment_batch(texts), strict=True) if texts else ())
        encoded = []
        for answer in answers:
            if isinstance(answer, str):
                (ids, offsets), spans = next(found)
                encoded.append(self._encode(answer, ids, offsets, spans))
            else:
                encoded.append(self._encode_turns(answer))
        return encoded

    def _answer(self, response: Response | Turns) -> str | Turns:
        if not isinstance(response, Turns):
            return self.answers.words_of(response_text(response, "response"))
        if len(response.words) > 1:
            return response
        text = self.answers.words_of(response.text)
        return replace(response, text=text, words=(Span(response.words[0].start, len(text)),))

    def _encode_turns(self, turns: Turns) -> EncodedResponse:
        spans: list[Span] = []
        begins: dict[int, int] = {}
        stop = 0
        for place, sentences in zip(turns.words, self.segmenter.segment_batch([turns.text[a:b] for a, b in turns.words]), strict=True):
            if not sentences:
                continue
            # What stands between two turns goes to the sentence behind it, so that all boundaries are in the assistant's words.
            begin = place.start + sentences[0].start
            opening = stop if spans else begin
            begins[opening] = begin
            edges = [opening, *(place.start + sentence.end for sentence in sentences)]
            spans += [Span(*edge) for edge in pairwise(edges)]
            stop = place.end
        # A turn without sentences at the end, all of it a thought that is left out, has no boundary to end at.
        text = turns.text[:stop] if spans else turns.text
        encoded = self._encode(text, *self.answers.encode_behind(turns.prompt, turns.lead, text), spans)
        # In the result a sentence is its words alone.
        return replace(encoded, spans=[Span(begins.get(start, start), end) for start, end in encoded.spans])

    def _encode(self, text: str, ids: list[int], offsets: list[tuple[int, int]], spans: list[Span]) -> EncodedResponse:
        if not ids:
            raise UserError(f"the tokenizer makes no token of the response {text[:40]!r}. Fix or delete the row.")
        opening = opening_tokens(spans, offsets, text)
        ends, spans = sentence_ends_from_offsets(spans, offsets, text=text) if spans else ([], [])
        # A token over the end of what is left out and the first sentence belongs to the former.
        first = next((index for index, end in enumerate(ends) if end >= opening), len(ends))
        marked, marks, opening = self.with_boundaries(np.array(ids, np.int32), np.array(ends[first:], np.int32), opening)
        return EncodedResponse(ids=marked, sentence_ends=marks, opening=opening, spans=spans[first:], text=text)

    def with_boundaries(self, ids: IntArray, ends: IntArray, opening: int = 0) -> tuple[IntArray, IntArray, int]:
        """Put the boundary token behind each sentence, and behind what opens the response and belongs to none.

        Without a boundary token all come back as they are.

        Args:
            ids: int32 [tokens].
            ends: int32 [sentences], index of each sentence's last token.
            opening: how many of the first ids belong to no sentence.

        Returns:
            The ids with the boundary tokens, int32; where those of the sentences are, int32 [sentences]; and `opening` with its own.
        """
        if not self.boundary_ids:
            return ids, ends, opening
        own = int(opening > 0)
        marked = np.insert(ids, [*([opening] * own), *(ends + 1)], self.boundary_ids[0])
        return marked, (ends + np.arange(1 + own, len(ends) + 1 + own)).astype(np.int32), opening + own


@contextmanager
def _as_user_error() -> Iterator[None]:
    try:
        yield
    except RowProblem as problem:
        raise UserError(f"{problem}. {problem.fix}.") from None


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise UserError(
            f"boundary_token: the tokenizer has no token {token!r}. Train with `boundary_token` set, which adds it, or load the "
            "tokenizer that was saved with the model."
        )
    return vocabulary[token]
