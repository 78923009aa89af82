"""Prompts and responses to token ids and sentence boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from srm.data.messages import response_text
from srm.data.schema import Prompt, Response, RowProblem
from srm.data.template import ChatFormat
from srm.errors import UserError
from srm.segmentation import Segmenter, Span, sentence_ends_from_offsets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["EncodedResponse", "ResponseEncoder"]


@dataclass(frozen=True, kw_only=True)
class EncodedResponse:
    """One response as tokens.

    ids: the tokens, with the boundary token after each sentence where there is one.
    sentence_ends: index into `ids` of each sentence's boundary, strictly increasing; the last one is `len(ids) - 1`.
    spans: the sentences' characters in `text`, one for each end.
    text: the response.
    """

    ids: list[int]
    sentence_ends: list[int]
    spans: list[Span]
    text: str


class ResponseEncoder:
    """Turns prompts and responses into what the model reads, the same way in training and in scoring.

    A prompt goes through the tokenizer's chat template, up to where the answer begins. A response is tokenised by itself, as a policy that
    continues the prompt produces it. No end-of-turn token follows: the last boundary is to be a token of the same kind as the others, or
    what the head learns at the end of a response says nothing about the sentences before it (docs/decisions.md).

    tokenizer: a fast one.
    segmenter: from `srm.segmentation.make_segmenter`.
    boundary_token: None, or a special token of the tokenizer that is put after the prompt and after each sentence and is the boundary in
        place of the sentence's last token.

    Raises:
        UserError: a slow tokenizer, a template that does not write responses as they are, or a boundary token that the tokenizer lacks.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, segmenter: Segmenter, *, boundary_token: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.segmenter = segmenter
        self.format = ChatFormat(tokenizer)
        self.boundary_ids = [] if boundary_token is None else [_token_id(tokenizer, boundary_token)]

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Tokens of `prompt`, at least one: its last one is the first boundary.

        Raises:
            UserError: the chat template refuses the messages.
        """
        return self.encode_prompts([self.format.render(prompt)])[0]

    def encode_prompts(self, rendered: list[str]) -> list[list[int]]:
        """Tokens of prompts that `format.render` has written, as a batch."""
        return [ids + self.boundary_ids for ids in self.format.prompt_ids(rendered)]

    def encode_response(self, prompt: Prompt, response: Response) -> EncodedResponse:
        """Tokens and sentences of `response`, an answer to `prompt`.

        The tokens do not depend on the prompt: a policy's answer is the same text wherever it stands.

        Raises:
            ValueError: the response is empty, or is no single assistant message.
        """
        return self.encode_responses([response])[0]

    def encode_responses(self, responses: Sequence[Response]) -> list[EncodedResponse]:
        """Tokens and sentences of `responses`, as a batch: several times faster than one by one. Raises as `encode_response`."""
        try:
            texts = [response_text(response, "response") for response in responses]
        except RowProblem as problem:
            raise UserError(f"{problem}. {problem.fix}.") from None
        if not texts:
            return []
        lead = self.format.lead
        batch = self.tokenizer(
            [lead + text for text in texts],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        spans = self.segmenter.segment_batch(texts)
        return [self._encode(*parts) for parts in zip(texts, spans, batch["input_ids"], batch["offset_mapping"], strict=True)]

    def _encode(self, text: str, spans: list[Span], ids: list[int], offsets: list[tuple[int, int]]) -> EncodedResponse:
        if lead := len(self.format.lead):
            offsets = [(max(start - lead, 0), max(end - lead, 0)) for start, end in offsets]
        if not ids:
            raise UserError(f"the tokenizer makes no token of the response {text[:40]!r}. Fix or delete the row.")
        ends, spans = sentence_ends_from_offsets(spans, offsets, text=text)
        if self.boundary_ids:
            ids, ends = _with_boundaries(ids, ends, self.boundary_ids)
        return EncodedResponse(ids=ids, sentence_ends=ends, spans=spans, text=text)


def _with_boundaries(ids: list[int], ends: list[int], boundary: list[int]) -> tuple[list[int], list[int]]:
    """`ids` with the boundary token after each sentence, and where those tokens are."""
    marked: list[int] = []
    marks: list[int] = []
    start = 0
    for end in ends:
        marked += ids[start : end + 1] + boundary
        marks.append(len(marked) - 1)
        start = end + 1
    return marked, marks


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise UserError(
            f"boundary_token: the tokenizer has no token {token!r}. Train with `boundary_token` set, which adds it, or load the "
            "tokenizer that was saved with the model."
        )
    return vocabulary[token]
