"""OpenRLHF: the answer to its remote reward request, as pure functions.

OpenRLHF sends the prompt's text, and as query what the policy's tokenizer decodes from the prompt's ids and the answer's. The two need not
agree: it cuts long prompts at their start, some tokenizers write a space behind special tokens, others compose accents. It has no way to
leave a sample out, and dies on one that was refused, so every sample gets the reward of what there is of it.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srm.data import EncodedResponse, ResponseEncoder
from srm.data.overlong import cut_group
from srm.errors import UserError
from srm.modeling import SentenceRewardModel
from srm.packing import PromptGroup
from srm.scoring.guards import require_finite
from srm.scoring.protocol import Reader
from srm.scoring.run import score_all
from srm.scoring.token_ids import NO_TEXT

__all__ = [
    "CUT_PROMPT",
    "NO_TOKENS",
    "OTHER_PROMPT",
    "TOO_LONG",
    "answer_request",
    "answer_rows",
    "check_policy_ends",
    "encode_request",
    "encode_samples",
]

CUT_PROMPT, OTHER_PROMPT = "only the end of the prompt is in the query", "the prompt is not in the query"
TOO_LONG, NO_TOKENS = "longer than the reward model reads", "the tokenizer makes no token of the response"
"""What a sample is counted as where not all of it could be scored."""

# A prompt, its response, and what is wrong with the sample, if anything.
_Split = tuple[str, str, str | None]
# How many characters of a prompt's end are taken for it: a letter or two begin or lie in many a text by chance.
_LEAST_OVERLAP, _LEAST_INSIDE = 4, 8

logger = logging.getLogger(__name__)


def answer_request(
    model: SentenceRewardModel, request: Mapping[str, Any], *, tokens_per_batch: int = 8192, policy_ends: Sequence[str] = ()
) -> dict[str, Any]:
    """Rewards for OpenRLHF's `{"query": [...], "prompts": [...], "labels": [...]}`.

    The prompt is read as it stands, in the policy's template; the response up to its first end token, as in training: one of the reward
    model's own, or of `policy_ends`. A policy may end its turn at once: a response without text gets what its prompt alone gets, as in
    `score_tokens`. Samples with one prompt share a pass over it. Of a sample that is not whole, what there is gets scored, and the log says
    so.

    Args:
        model: the reward model.
        request: `query`: prompt and response as one text, the policy's template and end token included. `prompts`: the prompts within, in
            the same order. `labels` is not asked.
        tokens_per_batch: bound on the tokens of one forward pass.
        policy_ends: the end tokens of a policy with another tokenizer, such as `</s>`. The reward model would read them as text.

    Returns:
        `{"rewards": [...], "scores": [...], "extra_logs": {"num_sentences": [...]}}`: a number a sample, in order.

    Raises:
        UserError: a field that is missing or of another type, lists of different lengths, or `policy_ends` that are no texts.
    """
    check_policy_ends(policy_ends)
    queries, prompts = encode_request(request)
    rows, mended = encode_samples(model, queries, prompts, max_length=model.config.max_positions, policy_ends=policy_ends)
    for what, count in mended.items():
        logger.warning("OpenRLHF: %d of %d samples were scored in part: %s.", count, len(rows), what)
    scored = score_all(model, rows, tokens_per_batch=tokens_per_batch, packing=None)
    require_finite(model, [score for (score,) in scored], [f"request: query {index}" for index in range(len(rows))])
    return answer_rows(rows, [score.reward for (score,) in scored])


def check_policy_ends(policy_ends: Sequence[str]) -> None:
    """Refuse end tokens that are none: an empty one would end every response where it begins.

    Args:
        policy_ends: as in `answer_request`.

    Raises:
        UserError: one string in place of several, or one that is empty or no string.
    """
    if isinstance(policy_ends, str) or not all(isinstance(end, str) and end.strip() for end in policy_ends):
        raise UserError(f"policy_ends: must be texts that are not empty, such as ['</s>'], got {policy_ends!r}.")


def encode_request(request: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The queries and prompts of a request.

    Args:
        request: as in `answer_request`.

    Raises:
        UserError: as `answer_request`.
    """
    queries, prompts = _texts(request, "query"), _texts(request, "prompts")
    if len(queries) != len(prompts):
        raise UserError(f"request: `query` has {len(queries)} entries and `prompts` {len(prompts)}; each query needs its prompt.")
    return queries, prompts


def encode_samples(
    model: Reader, queries: Sequence[str], prompts: Sequence[str], *, max_length: int | None, policy_ends: Sequence[str] = ()
) -> tuple[list[PromptGroup], Counter[str]]:
    """Samples as prompts with one response each.

    Args:
        model: the reward model, for its tokenizer.
        queries: prompt and response as one text.
        prompts: one for each query.
        max_length: longest prompt + response in tokens. Longer prompts lose their start, and longer responses their end.
        policy_ends: as in `answer_request`.

    Returns:
        A group a sample, and how many samples were not scored whole, by `CUT_PROMPT`, `OTHER_PROMPT`, `TOO_LONG` and `NO_TOKENS`.
    """
    encoder = model.encoder
    mended: Counter[str] = Counter()
    alignment = _Alignment(encoder, policy_ends)
    texts = []
    for query, prompt in zip(queries, prompts, strict=True):
        prompt, response, what = alignment.split(query, prompt)
        if what is not None:
            mended[what] += 1
        texts.append(_within(encoder, prompt, response, max_length))
    distinct = list(dict.fromkeys(prompt for prompt, _ in texts))
    ids = dict(zip(distinct, (np.array(ids, dtype=np.int32) for ids in encoder.encode_prompts(distinct)), strict=True))
    rows = []
    for (prompt, response), encoded in zip(texts, _responses(encoder, [response for _, response in texts]), strict=True):
        if encoded is None and response.strip():
            mended[NO_TOKENS] += 1
        row = PromptGroup(prompt_ids=ids[prompt], responses=[encoded or NO_TEXT])
        if max_length is not None and row.longest > max_length:
            mended[TOO_LONG] += 1
            row = _cut(row, max_length, len(encoder.boundary_ids))
        rows.append(row)
    return rows, mended


def answer_rows(rows: Sequence[PromptGroup], rewards: Sequence[float]) -> dict[str, Any]:
    """The answer to a request.

    Args:
        rows: from `encode_samples`.
        rewards: one a row.

    Returns:
        As `answer_request`.
    """
    num_sentences = [len(row.responses[0].sentence_ends) for row in rows]
    return {"rewards": list(rewards), "scores": list(rewards), "extra_logs": {"num_sentences": num_sentences}}


class _Alignment:
    """Finds where in a query the prompt ends."""

    def __init__(self, encoder: ResponseEncoder, policy_ends: Sequence[str] = ()) -> None:
        tokenizer = encoder.tokenizer
        self._answers = encoder.answers
        self._policy_ends = policy_ends
        self._lead = _lead(encoder)
        self._specials = _any_of(tokenizer.all_special_tokens)

    def split(self, query: str, prompt: str) -> _Split:
        """The prompt and the response in `query`, and what is wrong with the sample, if anything."""
        found: _Split | None
        if query.startswith(prompt):
            found = prompt, query[len(prompt) :], None
        else:
            composed = unicodedata.normalize("NFC", query), unicodedata.normalize("NFC", prompt)
            found = self._at_start(query, prompt) or self._at_start(*composed) or self._inside(*composed)
        # Nothing of the prompt: perhaps the query is the response alone.
        part, response, what = found or (prompt, query, OTHER_PROMPT)
        # A policy may write the assistant's header itself, which belongs to the prompt.
        part, response = self._answers.split_header_text(prompt if what is None else part, response)
        return part, self._answers.up_to_end(response, self._policy_ends).removeprefix(self._lead), what

    def _at_start(self, query: str, prompt: str) -> _Split | None:
        """`split` where `query` begins with the prompt or with the end of it."""
        seen, places = self._visible(query)
        wanted, wanted_places = self._visible(prompt)
        length = _overlap(wanted, seen)
        if length < min(_LEAST_OVERLAP, len(wanted)) or not length:
            return None
        rest = self._behind(prompt[wanted_places[-1] + 1 :], query[places[length - 1] + 1 :])
        start, lead = wanted_places[-length], query[: places[0]]
        start -= len(lead) if prompt[:start].endswith(lead) else 0
        return prompt[start:], rest, None if length == len(wanted) else CUT_PROMPT

    def _inside(self, query: str, prompt: str) -> _Split | None:
        """`split` where only the end of the prompt is as it was: everything before it in `query` counts as prompt."""
        seen, places = self._visible(query)
        wanted, wanted_places = self._visible(prompt)
        # How much of the end: a shorter one is there wherever a longer one is.
        length = bisect_right(range(1, len(wanted) + 1), False, key=lambda count: wanted[-count:] not in seen)
        if length < _LEAST_INSIDE:
            return None
        end = seen.index(wanted[-length:]) + length
        rest = self._behind(prompt[wanted_places[-1] + 1 :], query[places[end - 1] + 1 :])
        return query[: len(query) - len(rest)], rest, OTHER_PROMPT

    def _behind(self, tail: str, rest: str) -> str:
        """`rest` without `tail`, the tokens and the white space at the prompt's end, as far as it has them."""
        for piece in re.findall(rf"{self._specials}|\s", tail):
            if rest.startswith(piece):
                rest = rest[len(piece) :]
            elif not piece.isspace() and rest.lstrip().startswith(piece):
                rest = rest.lstrip()[len(piece) :]
        return rest

    def _visible(self, text: str) -> tuple[str, list[int]]:
        """What decoding keeps of `text`, and where: no white space, no special tokens, no halves of characters that a cut has left."""
        blank = re.sub(self._specials, lambda match: " " * len(match[0]), text)
        places = [index for index, character in enumerate(blank) if not character.isspace() and character != "\ufffd"]
        return "".join(text[index] for index in places), places


def _overlap(text: str, other: str) -> int:
    """The most characters at the end of `text` that are the start of `other` (Knuth, Morris and Pratt)."""
    if not text or not other:
        return 0
    other = other[: len(text)]
    failure, length = [0], 0
    for character in other[1:]:
        while length and character != other[length]:
            length = failure[length - 1]
        length += character == other[length]
        failure.append(length)
    length = 0
    for character in text:
        while length and (length == len(other) or character != other[length]):
            length = failure[length - 1]
        length += character == other[length]
    return length


def _lead(encoder: ResponseEncoder) -> str:
    """The white space that the encoder's tokens write before a response."""
    ids = encoder.answers.encode(["Hello"])[0][0]
    between = str(encoder.tokenizer.decode([*ids, *ids])).rpartition("Hello")[0].rpartition("Hello")[2]
    return between if between.isspace() else ""


def _any_of(tokens: Sequence[str]) -> str:
    # Longest first, so that none hides another that it begins.
    return "|".join(map(re.escape, sorted(filter(None, tokens), key=len, reverse=True))) or r"(?!)"


def _within(encoder: ResponseEncoder, prompt: str, response: str, max_length: int | None) -> tuple[str, str]:
    """The texts without what is certainly cut off anyway, so that nobody tokenises megabytes of it."""
    most = None if max_length is None else max_length * (encoder.floor.longest or 64)
    return (prompt, response) if most is None else (prompt[-most:], response[:most])


def _responses(encoder: ResponseEncoder, texts: Sequence[str]) -> list[EncodedResponse | None]:
    """None for a response without text, or without tokens."""
    visible = [text for text in texts if text.strip()]
    try:
        encoded = iter(encoder.encode_responses(visible))
        return [next(encoded) if text.strip() else None for text in texts]
    except UserError:
        if len(texts) == 1:
            return [None]
        return [one for text in texts for one in _responses(encoder, [text])]


def _cut(row: PromptGroup, max_length: int, num_closing: int) -> PromptGroup:
    if row.longest - len(row.prompt_ids) < max_length:
        return cut_group(row, max_length=max_length, policy="truncate_prompt", num_closing=num_closing, where="query")
    last = PromptGroup(prompt_ids=row.prompt_ids[-1:], responses=row.responses)
    return cut_group(last, max_length=max_length, policy="truncate_response", num_closing=num_closing, where="query")


def _texts(request: Mapping[str, Any], name: str) -> list[str]:
    value = request.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise UserError(f"request: `{name}` must be a list of strings, got {type(value).__name__}.")
    return value
