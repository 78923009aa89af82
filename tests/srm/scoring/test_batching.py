"""What a pass costs is what pack() lays out, and passes are as full as the limit lets them be."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srm.packing import PackingMode, PromptGroup, ResponseIds, pack
from srm.scoring.batching import PassCost, frugal_order, pass_cost, split_passes

MODES = get_args(PackingMode)


def group(prompt: int, *responses: int, token: int = 1) -> PromptGroup:
    """A prompt and responses of these many tokens; prompts of one length and `token` are equal."""
    made = [ResponseIds(ids=[9] * length, sentence_ends=[length - 1] if length else []) for length in responses]
    return PromptGroup(prompt_ids=[token] * prompt, responses=made)


GROUPS = st.lists(
    st.builds(
        lambda prompt, responses, token: group(prompt, *responses, token=token),
        st.integers(1, 4),
        st.lists(st.integers(0, 6), min_size=1, max_size=5),
        st.integers(1, 2),
    ),
    min_size=1,
    max_size=6,
)


@given(GROUPS, st.sampled_from(MODES))
def test_the_cost_is_what_is_laid_out(groups: list[PromptGroup], packing: PackingMode) -> None:
    assert pass_cost(groups, packing) == pack(groups, mode=packing, pad_token_id=0).num_tokens
    # Told before the last group joins, whole or in part.
    *first, last = groups
    cost = PassCost(packing)
    for one in first:
        cost.add(one)
    assert cost.tokens == pass_cost(first, packing)
    for count in range(1, len(last.responses) + 1):
        part = PromptGroup(prompt_ids=last.prompt_ids, responses=last.responses[:count])
        assert cost.after(last, count) == pass_cost([*first, part], packing)


@given(GROUPS, st.sampled_from(MODES), st.integers(1, 40))
def test_passes_hold_all_in_order_and_stay_within_the_limit(groups: list[PromptGroup], packing: PackingMode, limit: int) -> None:
    passes = list(split_passes(groups, tokens_per_batch=limit, packing=packing))
    parts = [part for one in passes for part in one]
    assert [r for part in parts for r in part.group.responses] == [r for one in groups for r in one.responses]
    assert sum(part.is_last for part in parts) == len(groups)
    whole = iter(groups)
    for part in parts:
        assert not part.is_last or part.group.responses[-1] is next(whole).responses[-1]
    for one in passes:
        assert one, "a pass runs something"
        taken = [part.group for part in one]
        assert pass_cost(taken, packing) <= limit or sum(len(part.responses) for part in taken) == 1


@pytest.mark.parametrize(("packing", "limit"), [("shared", 15), ("packed", 21), ("none", 24)])
def test_the_limit_itself_is_allowed(packing: PackingMode, limit: int) -> None:
    """Three responses of 5, 2 and 5 tokens to a prompt of 3."""
    one = group(3, 5, 2, 5)
    assert pass_cost([one], packing) == limit
    assert len(list(split_passes([one], tokens_per_batch=limit, packing=packing))) == 1
    pieces = [len(part.group.responses) for (part,) in split_passes([one], tokens_per_batch=limit - 1, packing=packing)]
    assert pieces == [2, 1], "as many as fit, then the rest"
    # The same for the last place of a pass that holds another group already.
    full = limit + pass_cost([group(3, 5, token=2)], packing)
    groups = [group(3, 5, token=2), one]
    assert [len(parts) for parts in split_passes(groups, tokens_per_batch=full, packing=packing)] == [2]
    assert [len(parts) for parts in split_passes(groups, tokens_per_batch=full - 1, packing=packing)] == [1, 1]


def test_nothing_makes_no_pass() -> None:
    assert list(split_passes([], tokens_per_batch=9, packing="shared")) == []


def test_a_response_over_the_limit_is_a_pass_of_its_own() -> None:
    pieces = [len(part.group.responses) for (part,) in split_passes([group(9, 1, 1, 1)], tokens_per_batch=1, packing="shared")]
    assert pieces == [1, 1, 1]


def test_the_order_puts_like_with_like() -> None:
    groups = [group(2, 9), group(1, 4, token=2), group(2, 3), group(1, 1, 6, token=2)]
    assert frugal_order(groups, "shared") == frugal_order(groups, "packed") == [0, 2, 1, 3]
    assert frugal_order(groups, "none") == [1, 2, 3, 0]
