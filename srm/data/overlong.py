"""What happens to rows that are longer than the limit, and the account of it.

Lengths are tokens of prompt + response; a row is as long as its longest response makes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from srm.data.schema import Pair
from srm.errors import UserError
from srm.packing import PromptGroup, ResponseIds

__all__ = ["EncodedComparison", "OverlongPolicy", "OverlongReport", "Shortened", "cut_group", "length_limit", "shorten", "way_out"]

OverlongPolicy = Literal["drop", "truncate_prompt", "truncate_response", "error"]
Group = TypeVar("Group", bound=PromptGroup)


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedComparison(PromptGroup):
    """`Comparison` as tokens: a prompt and its responses, and which are better than which.

    Attributes:
        pairs: (better, worse, margin) as indices into `responses`.
        where: file and row, for messages.
    """

    pairs: tuple[Pair, ...]
    where: str

    @property
    def num_tokens(self) -> int:
        """Tokens with the prompt counted once, as `packing="shared"` runs them."""
        return len(self.prompt_ids) + sum(len(response.ids) for response in self.responses)


@dataclass(frozen=True, kw_only=True)
class OverlongReport:
    """What happened to how many rows. `kept` counts those that stay, as they are or shortened.

    Attributes:
        policy: `drop`, `truncate_prompt`, `truncate_response` or `error`.
        max_length: limit on prompt + response in tokens; None for no limit.
        rows: how many were read.
        overlong: longer than `max_length`.
        dropped: overlong and dropped (policy `drop`).
        shortened: overlong and cut (policies `truncate_prompt`, `truncate_response`).
        indistinct: dropped because, once cut, no better response differs from the worse one.
        longest: tokens of the longest row before anything was done.
    """

    policy: OverlongPolicy
    max_length: int | None
    rows: int
    overlong: int
    dropped: int
    shortened: int
    indistinct: int
    longest: int

    @property
    def kept(self) -> int:
        return self.rows - self.dropped - self.indistinct

    def __str__(self) -> str:
        head = f"{self.rows:,} rows, the longest {self.longest:,} tokens"
        if not self.overlong:
            return f"{head}; none over max_length {self.max_length:,}" if self.max_length is not None else f"{head}; no max_length"
        parts = []
        if self.dropped:
            parts.append(f"{self.dropped:,} dropped")
        if self.shortened:
            parts.append(f"{self.shortened:,} {'prompts' if self.policy == 'truncate_prompt' else 'rows of responses'} cut")
        if self.indistinct:
            parts.append(f"{self.indistinct:,} dropped because their responses are equal once cut")
        share = 100 * self.overlong / self.rows
        return f"{head}; {self.overlong:,} ({share:.1f} %) over max_length {self.max_length:,}: {', '.join(parts)}; {self.kept:,} kept"


@dataclass(frozen=True, kw_only=True)
class Shortened:
    """A row after the policy: `row` is None where it is dropped, `reason` says what was done to it."""

    row: EncodedComparison | None
    reason: Literal["fits", "dropped", "shortened", "indistinct"]


def length_limit(max_length: int | None, positions: int | None) -> int | None:
    """The longest prompt + response in tokens; None for no limit.

    Args:
        max_length: what the user asked for.
        positions: what the model can read, which no wish raises.
    """
    limits = [limit for limit in (max_length, positions) if limit is not None]
    return min(limits) if limits else None


def way_out(limit: int | None, positions: int | None, otherwise: str) -> str:
    """What a user can do about rows over `limit`: `otherwise`, and raise it, unless the model reads no more."""
    if limit != positions:
        return f"Raise --max_length, {otherwise}"
    otherwise = otherwise.removeprefix("or ")
    return otherwise[0].upper() + otherwise[1:]


def shorten(
    row: EncodedComparison, *, max_length: int | None, policy: OverlongPolicy, positions: int | None = None, num_closing: int = 0
) -> Shortened:
    """`row` made to fit, or dropped where the policy says so.

    Args: as `cut_group`, with the policy `drop` beside the others. Pairs that are equal once cut go.

    Raises:
        UserError: as `cut_group`.
    """
    limit = length_limit(max_length, positions)
    if limit is None or row.longest <= limit:
        return Shortened(row=row, reason="fits")
    if policy == "drop":
        return Shortened(row=None, reason="dropped")
    cut = cut_group(row, max_length=max_length, positions=positions, policy=policy, num_closing=num_closing, where=row.where)
    ids = [response.ids for response in cut.responses]
    pairs = tuple(pair for pair in cut.pairs if not np.array_equal(ids[pair[0]], ids[pair[1]]))
    return Shortened(row=replace(cut, pairs=pairs), reason="shortened") if pairs else Shortened(row=None, reason="indistinct")


def cut_group(
    group: Group, *, max_length: int | None, policy: OverlongPolicy, num_closing: int, where: str, positions: int | None = None
) -> Group:
    """`group` with its prompt and longest response at most as long as `max_length` and `positions` allow.

    Args:
        max_length: in tokens; None for no limit.
        policy: `truncate_prompt`: the prompt loses tokens at its start, bos and system message first, until the longest response fits.
            `truncate_response`: responses lose tokens at their end, like a policy that ran out of tokens; the cut sentence ends at the
            last token kept. `error`: `UserError`.
        num_closing: 1 if the last token of a response is a boundary token, which stays at the end of what is kept.
        where: what a message calls it.
        positions: what the model can read; None for no limit.

    Raises:
        UserError: policy `error`; or no cut helps, because the part that is to stay whole fills the limit by itself.
    """
    limit = length_limit(max_length, positions)
    if limit is None or group.longest <= limit:
        return group
    bound = f"the model reads {limit}" if limit == positions else f"max_length is {limit}"
    if policy == "error":
        raise UserError(
            f"{where}: prompt and response are {group.longest} tokens, {bound}. "
            f"{way_out(limit, positions, 'or choose with --overlong what happens to such rows.')}"
        )
    is_prompt = policy == "truncate_prompt"
    cut = _cut_prompt(group, limit) if is_prompt else _cut_responses(group, limit, num_closing)
    if cut is None:
        fixed, size = ("response", group.longest - len(group.prompt_ids)) if is_prompt else ("prompt", len(group.prompt_ids))
        raise UserError(
            f"{where}: the {fixed} alone is {size} tokens and {bound}, so no {'prompt' if is_prompt else 'response'} could stay. "
            f"{way_out(limit, positions, 'delete the row, or choose another --overlong.')}"
        )
    return cut


def _cut_prompt(group: Group, limit: int) -> Group | None:
    room = limit - (group.longest - len(group.prompt_ids))
    return replace(group, prompt_ids=group.prompt_ids[-room:]) if room >= 1 else None


def _cut_responses(group: Group, limit: int, num_closing: int) -> Group | None:
    room = limit - len(group.prompt_ids)
    if room < 1 + num_closing:
        return None
    return replace(group, responses=tuple(_cut_response(response, room, num_closing) for response in group.responses))


def _cut_response(response: ResponseIds, room: int, num_closing: int) -> ResponseIds:
    if len(response.ids) <= room:
        return response
    body = room - num_closing
    if body <= response.opening:
        # Cut inside what belongs to no sentence: none is left.
        whole = response.ids[: response.opening]
        closed = np.concatenate([response.ids[:body], response.ids[len(response.ids) - num_closing :]])
        return response.cut(whole if len(whole) <= room else closed, response.sentence_ends[:0])
    ends = response.sentence_ends[response.sentence_ends < body]
    if len(ends) and ends[-1] == body - 1:
        return response.cut(response.ids[:body], ends)
    ids = np.concatenate([response.ids[:body], response.ids[len(response.ids) - num_closing :]])
    return response.cut(ids, np.append(ends, np.int32(room - 1)))
