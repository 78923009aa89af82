"""What a forward pass costs, and how groups are split into passes that stay below a limit.

Everything that bounds a pass counts here: scoring of text, ids and files, the server, sequence classifiers, and training.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from srm.errors import UserError
from srm.packing import PackingMode, PromptGroup

__all__ = ["GroupPart", "PassCost", "frugal_order", "pass_cost", "split_passes"]


class PassCost:
    """Tokens that one forward pass runs, padding included, as groups join it.

    Args:
        packing: `shared` runs each distinct prompt once, `packed` once a response, `none` pads every response to the longest one.
    """

    def __init__(self, packing: PackingMode) -> None:
        self.packing = packing
        self.tokens = 0
        self._rows = self._longest = 0
        self._prompts: set[bytes] = set()

    def after(self, group: PromptGroup, count: int | None = None) -> int:
        """Tokens of the pass once `group` has joined it.

        Args:
            group: a prompt with its responses.
            count: only so many of its first responses; all of them where None.
        """
        lengths = [len(response.ids) for response in group.responses[:count]]
        prompt = len(group.prompt_ids)
        if self.packing == "none":
            return (self._rows + len(lengths)) * max(self._longest, prompt + max(lengths))
        if self.packing == "packed":
            return self.tokens + sum(lengths) + len(lengths) * prompt
        return self.tokens + sum(lengths) + (0 if group.prompt_key in self._prompts else prompt)

    def add(self, group: PromptGroup) -> None:
        """Let `group` join the pass."""
        self.tokens = self.after(group)
        self._rows += len(group.responses)
        self._longest = max(self._longest, group.longest)
        self._prompts.add(group.prompt_key)


def pass_cost(groups: Iterable[PromptGroup], packing: PackingMode) -> int:
    """Tokens that one forward pass over `groups` runs, padding included.

    Args:
        groups: prompts with their responses.
        packing: `shared`, `packed` or `none`.
    """
    cost = PassCost(packing)
    for group in groups:
        cost.add(group)
    return cost.tokens


@dataclass(frozen=True, kw_only=True)
class GroupPart:
    """Some of a group's responses, with its prompt.

    Attributes:
        group: the prompt and those responses.
        is_last: whether no more of the group's responses follow.
    """

    group: PromptGroup
    is_last: bool


def split_passes(groups: Iterable[PromptGroup], *, tokens_per_batch: int, packing: PackingMode) -> Iterator[list[GroupPart]]:
    """`groups`, in order, as passes of at most `tokens_per_batch` tokens.

    A group goes into one pass where it can, because what is split runs its prompt again. A single response with more tokens than the
    limit is a pass of its own.

    Args:
        groups: prompts with their responses; taken as they are needed.
        tokens_per_batch: upper bound on the tokens of a pass, padding included.
        packing: `shared`, `packed` or `none`.

    Returns:
        The parts of groups that each pass runs.

    Raises:
        UserError: a limit below 1.
    """
    if isinstance(tokens_per_batch, bool) or not isinstance(tokens_per_batch, int) or tokens_per_batch < 1:
        raise UserError(f"`tokens_per_batch` must be a whole number, 1 or more, got {tokens_per_batch!r}. The default is 8192.")
    parts: list[GroupPart] = []
    cost = PassCost(packing)
    for group in groups:
        rest = group
        while rest.responses:
            if parts and cost.after(rest) > tokens_per_batch:
                yield parts
                parts, cost = [], PassCost(packing)
            count = _how_many_fit(cost, rest, tokens_per_batch)
            part, rest = (replace(rest, responses=some) for some in (rest.responses[:count], rest.responses[count:]))
            cost.add(part)
            parts.append(GroupPart(group=part, is_last=not rest.responses))
    if parts:
        yield parts


def _how_many_fit(cost: PassCost, group: PromptGroup, limit: int) -> int:
    """The largest number of the group's first responses that stay within `limit`, at least one."""
    number = len(group.responses)
    if cost.after(group) <= limit:
        return number
    return max(1, bisect_right(range(1, number), limit, key=lambda count: cost.after(group, count)))


def frugal_order(groups: Sequence[PromptGroup], packing: PackingMode) -> list[int]:
    """The order of `groups` that runs the fewest tokens: equal prompts together, or, padded, like lengths together.

    Args:
        groups: prompts with their responses.
        packing: `shared`, `packed` or `none`.

    Returns:
        Indices into `groups`.
    """
    if packing == "none":
        return sorted(range(len(groups)), key=lambda index: groups[index].longest)
    first: dict[bytes, int] = {}
    return sorted(range(len(groups)), key=lambda index: first.setdefault(groups[index].prompt_key, index))
