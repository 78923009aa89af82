"""What a token answers for, where rewards are placed, and whitening by position: against loops over sentences and tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from srm.rl import (
    ToGo,
    group_advantages,
    leave_one_out,
    padded_gae,
    rewards_to_go,
    sum_form,
    token_group_advantages,
    token_level_rewards,
    whiten,
    whiten_by_position,
)
from srm.scoring.token_ids import ScoredTokens

FORMS = get_args(ToGo)
# The fourth response is without text, the last one begins with tokens of no sentence. In the second, one token ends two sentences.
LAYOUT: list[tuple[int, list[int]]] = [(0, [1, 2, 5]), (0, [3, 3, 4]), (0, [6]), (0, []), (2, [2, 5])]


def make(layout: list[tuple[int, list[int]]] = LAYOUT, seed: int = 0, width: int = 8) -> ScoredTokens:
    """Random rewards, and NaN where no sentence may look."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor([len(ends) for _, ends in layout])
    cu_boundaries = torch.cat([counts.new_zeros(1), (counts + 1).cumsum(0)])
    sentence_reward = torch.randn(int(cu_boundaries[-1]), generator=generator)
    sentence_reward[cu_boundaries[:-1][counts > 0]] = torch.nan
    opening = torch.tensor([count for count, _ in layout])
    return ScoredTokens(
        reward=torch.randn(len(layout), generator=generator),
        sentence_reward=sentence_reward,
        weight=torch.ones_like(sentence_reward),
        ends=torch.tensor([end for _, ends in layout for end in (-1, *ends)]),
        cu_boundaries=cu_boundaries,
        lengths=torch.tensor([ends[-1] + 1 if ends else 0 for _, ends in layout]),
        width=width,
        opening=opening if opening.any() else None,
    )


def sentences(scored: ScoredTokens, value: Tensor) -> list[list[tuple[int, int, float]]]:
    """Of each response: start, end and `value` [N] of what is a sentence on its tokens; those on one token are one, and add up."""
    cu = scored.cu_boundaries.tolist()
    found: list[list[tuple[int, int, float]]] = []
    for row in range(len(cu) - 1):
        start = 0 if scored.opening is None else int(scored.opening[row])
        found.append([])
        for index in range(cu[row] + 1, cu[row + 1]):
            end = int(scored.ends[index]) + 1
            if end == start and found[-1]:
                first, _, paid = found[-1].pop()
                found[-1].append((first, end, paid + float(value[index])))
            else:
                found[-1].append((start, end, float(value[index])))
            start = end
    return found


def to_go_loop(scored: ScoredTokens, value: Tensor, form: str) -> Tensor:
    """[B, L], what each token up to the last sentence answers for, as its name says."""
    wanted = torch.zeros(scored.reward.numel(), scored.width)
    for row, parts in enumerate(sentences(scored, value)):
        for token in range(parts[-1][1] if parts else 0):
            later = [paid for _, end, paid in parts if end > token]
            own = [paid for start, end, paid in parts if start <= token < end]
            wanted[row, token] = {"sum": sum(later), "min": min(later), "own": sum(own)}[form]
    return wanted


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", [LAYOUT, LAYOUT[:4], [(0, [])], [(3, [])], [(1, [1])]])
def test_the_sum_to_go_of_token_rewards_is_what_was_asked_for(layout: list[tuple[int, list[int]]], form: ToGo) -> None:
    for seed in range(5):
        scored = make(layout, seed)
        rewards = token_level_rewards(scored, kind="sentence", to_go=form)
        wanted = to_go_loop(scored, scored.sentence_reward, form)
        torch.testing.assert_close(rewards.flip(1).cumsum(1).flip(1), wanted)
        mask = torch.ones_like(rewards)
        returns = padded_gae(rewards, torch.randn_like(rewards), mask, lam=1.0)[1]
        torch.testing.assert_close(returns, wanted)


def test_the_minimum_is_never_above_its_sentence_and_falls_towards_the_beginning() -> None:
    scored = make([(0, list(range(20)))], width=20)
    going = rewards_to_go(scored.sentence_reward, scored, "min")[1:]
    assert (going <= scored.sentence_reward[1:]).all()
    assert (going.diff() >= 0).all()
    assert going[-1] == scored.sentence_reward[-1]
    assert going[0] == scored.sentence_reward[1:].min()


def test_numbers_by_hand() -> None:
    scored = replace(make([(0, [1, 3, 4])]), sentence_reward=torch.tensor([9.0, 3.0, -1.0, 2.0]))
    paid = torch.tensor([0.0, 3.0, -1.0, 2.0])
    assert {form: rewards_to_go(paid, scored, form)[1:].tolist() for form in FORMS} == {
        "sum": [4, 1, 2],
        "min": [-1, -1, 2],
        "own": [3, -1, 2],
    }
    # -1 stays to go up to the bad sentence, whose end lifts it to 2, which the last one earns.
    assert sum_form(paid, scored, "min").tolist() == [0, 0, -3, 2]
    assert sum_form(paid, scored, "own").tolist() == [0, 4, -3, 2]
    assert sum_form(paid, scored, "sum") is paid


def test_leave_one_out_takes_the_minimum_without_a_change() -> None:
    """The baseline is the mean of what the others have to go at the same place; who has ended keeps the last token's."""
    scored = make([(0, [1, 3]), (0, [0, 1, 3])], width=4)
    wanted = to_go_loop(scored, scored.sentence_reward, "min")
    got = leave_one_out(token_level_rewards(scored, kind="sentence", to_go="min"), torch.ones(2, 4), 2)
    torch.testing.assert_close(got, wanted - wanted.flip(0))


def group_loop(scored: ScoredTokens, group: list[int], form: str, *, scale: bool) -> Tensor:
    """[B, L] of `group_advantages`, response by response and token by token: text, and one token behind it."""
    cu, paid = scored.cu_boundaries.tolist(), scored.sentence_reward.tolist()
    to_go: list[list[float]] = []
    for first, last in pairwise(cu):
        ends = scored.ends[first + 1 : last].tolist()
        # Sentences on one token are one where each is looked at by itself.
        alone = [sum(r for e, r in zip(ends, paid[first + 1 : last], strict=True) if e == end) for end in ends]
        of_form = {"sum": lambda i, own=paid[first + 1 : last]: sum(own[i:]), "min": lambda i, own=alone: min(own[i:])}
        to_go.append([of_form.get(form, lambda i, own=alone: own[i])(i) for i in range(len(ends))])
    wanted = torch.zeros(len(to_go), scored.width)
    for row, mine in enumerate(to_go):
        beside = [other for other, one in zip(to_go, group, strict=True) if one == group[row]]
        means = [sum(other[i] if i < len(other) else 0.0 for other in beside) / len(beside) for i in range(max(map(len, beside)))]
        spread = [value - means[i] for other in beside for i, value in enumerate(other)]
        size = math.sqrt(sum(x * x for x in spread) / max(1, len(spread) - 1)) if scale else 1.0
        ends = scored.ends[cu[row] + 1 : cu[row + 1]].tolist()
        opening = 0 if scored.opening is None or form != "own" else int(scored.opening[row])
        for token in range(opening, int(scored.lengths[row]) + 1):
            index = sum(end < token for end in ends)
            here = mine[index] if index < len(mine) else 0.0
            wanted[row, token] = (here - means[index]) / size if index < len(means) else 0.0
    return wanted


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [True, False])
def test_group_advantages_compare_what_sentences_of_one_index_have_to_go(form: ToGo, scale: bool) -> None:
    rows = [row for row in LAYOUT if row[1]]
    for seed in range(5):
        scored = make(rows, seed=seed)
        group = [0, 1, 0, 1]
        mask = torch.arange(scored.width) <= scored.lengths[:, None]
        got = group_advantages(scored, torch.tensor(group), kind="sentence", scale=scale, to_go=form, mask=mask)
        torch.testing.assert_close(got, group_loop(scored, group, form, scale=scale))


@pytest.mark.parametrize("form", FORMS)
def test_a_response_without_text_feels_the_same_in_every_form(form: ToGo) -> None:
    scored = make([(2, []), (0, [1])])
    scored = replace(scored, sentence_reward=torch.tensor([-3.0, -3.0, 5.0]), reward=torch.tensor([-3.0, 2.0]))
    mask = torch.tensor([[1] * 3 + [0] * 5, [1] * 3 + [0] * 5])
    got = group_advantages(scored, torch.zeros(2, dtype=torch.int64), kind="sentence", mask=mask, to_go=form)
    # The other one ends on its third token, where nobody has more to go.
    mask[1, 2] = 0
    torch.testing.assert_close(got, torch.tensor([[-1.0], [1.0]]) * mask / 2**0.5)


@pytest.mark.parametrize("form", FORMS)
def test_hosts_that_keep_token_rewards_have_the_same_forms(form: ToGo) -> None:
    scored = make([(0, [1, 2, 5]), (0, [6]), (0, [0, 1, 7])])
    scored = replace(scored, sentence_reward=torch.where(scored.is_sentence, scored.sentence_reward, 0))
    mask, group = torch.ones(3, 8), torch.tensor([0, 0, 0])
    expected = group_advantages(scored, group, kind="sentence", mask=mask, to_go=form)
    got = token_group_advantages(scored.to_padded(scored.sentence_reward), mask, group, to_go=form)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("form", FORMS)
def test_token_rewards_do_not_tell_where_thoughts_end(form: ToGo) -> None:
    """Their tokens count to the first sentence, which differs from `group_advantages` in `own` alone."""
    scored = make([(2, [3, 6]), (0, [1]), (3, [4, 5])])
    scored = replace(scored, sentence_reward=torch.where(scored.is_sentence, scored.sentence_reward, 0))
    mask, group = torch.ones(3, 8), torch.tensor([0, 0, 0])
    expected = group_advantages(scored, group, kind="sentence", mask=mask, to_go=form)
    for row, end in ((0, 2), (2, 3)):
        assert (expected[row, :end] == (0 if form == "own" else expected[row, end])).all()
        expected[row, :end] = expected[row, end]
    got = token_group_advantages(scored.to_padded(scored.sentence_reward), mask, group, to_go=form)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("form", ["sum", "min"])
def test_even_parts_lie_on_a_sentences_own_tokens_and_sum_to_its_reward(form: ToGo) -> None:
    for seed in range(5):
        scored = make(seed=seed)
        last, even = (token_level_rewards(scored, kind="sentence", placement=place, to_go=form) for place in ("last", "even"))
        wanted = torch.zeros_like(even)
        for row, parts in enumerate(sentences(scored, sum_form(scored.sentence_reward.nan_to_num(), scored, form))):
            for start, end, paid in parts:
                wanted[row, start:end] = paid / (end - start)
                torch.testing.assert_close(even[row, start:end].sum(), last[row, start:end].sum())
        torch.testing.assert_close(even, wanted)
    # Where one token ends two sentences, they are one.
    scored = replace(make([(0, [3, 3])]), sentence_reward=torch.tensor([0.0, -1.0, 0.5]))
    assert token_level_rewards(scored, kind="sentence", to_go=form, placement="even")[0].tolist() == [-0.125] * 4 + [0] * 4


def test_the_penalty_stays_where_it_was_in_every_form() -> None:
    scored = make()
    logprobs, reference = torch.randn(2, 5, 8)
    mask = torch.ones(5, 8)
    more: dict[str, Any] = {"logprobs": logprobs, "ref_logprobs": reference, "mask": mask, "kl_coef": 0.3}
    for choice in ({"placement": "even"}, {"to_go": "min"}, {"to_go": "own"}, {"whitening": "position"}):
        paid = token_level_rewards(scored, kind="sentence", **choice)  # type: ignore[arg-type]
        got = token_level_rewards(scored, kind="sentence", **choice, **more)  # type: ignore[arg-type]
        torch.testing.assert_close(got, paid - 0.3 * (logprobs - reference))


def position_loop(value: list[float], position: list[float]) -> list[float]:
    """Two straight lines in log p by numpy's least squares, floor and final whitening as the docstring has them, in fp64."""
    import numpy as np

    at, r = np.log(position), np.asarray(value)
    rest = r - np.polyval(np.polyfit(at, r, 1), at)
    size = np.abs(rest)
    deviation = np.maximum(np.polyval(np.polyfit(at, size, 1), at), 0.1 * size.mean())
    white = rest / deviation
    return ((white - white.mean()) / white.std()).tolist()  # type: ignore[no-any-return]


def test_whitening_by_position_is_two_lines_in_the_logarithm_of_the_position() -> None:
    for seed in range(5):
        layout: list[tuple[int, list[int]]] = [(0, list(range(n))) for n in (3, 1, 5, 0, 8, 2)]
        scored = make(layout, seed)
        kept = scored.is_sentence
        position = [(index + 1) / len(ends) for _, ends in layout for index in range(len(ends))]
        wanted = torch.tensor(position_loop(scored.sentence_reward[kept].tolist(), position))
        got = token_level_rewards(scored, kind="sentence", whitening="position")
        torch.testing.assert_close(got[got != 0], wanted, atol=1e-4, rtol=1e-4)
        # It does not see what unit the rewards have, nor a trend in log p that all responses share.
        shifted = torch.full_like(scored.sentence_reward, torch.nan)
        shifted[kept] = 7 * scored.sentence_reward[kept] + 2 - 3 * torch.tensor(position).log()
        again = token_level_rewards(replace(scored, sentence_reward=shifted), kind="sentence", whitening="position")
        torch.testing.assert_close(again, got, atol=1e-4, rtol=1e-4)


def test_whitening_by_position_takes_mean_and_deviation_away() -> None:
    generator = torch.Generator().manual_seed(0)
    position = torch.arange(1, 6).repeat(4000) / 5
    rewards = 1 - 2 * position.log() + (2 + position.log()) * torch.randn(20000, generator=generator)
    white = whiten_by_position(rewards, position, torch.ones(20000, dtype=torch.bool)).view(-1, 5)
    torch.testing.assert_close(white.mean(0), torch.zeros(5), atol=0.05, rtol=0)
    torch.testing.assert_close(white.std(0), torch.ones(5), atol=0.05, rtol=0)
    plain = whiten(rewards, torch.ones(20000, dtype=torch.bool)).view(-1, 5)
    assert plain.mean(0).abs().max() > 0.5


def test_whitening_by_position_where_there_is_little_to_fit() -> None:
    every = torch.ones(4, dtype=torch.bool)
    value, alike = torch.tensor([1.0, -2.0, 4.0, 3.0]), torch.ones(4)
    # One place: plain whitening. One sentence, or two at different places: on the line. None at all.
    torch.testing.assert_close(whiten_by_position(value, alike, every), whiten(value, every))
    assert whiten_by_position(torch.tensor([5.0]), torch.tensor([1.0]), every[:1]).tolist() == [0]
    assert whiten_by_position(torch.tensor([5.0, 7.0]), torch.tensor([0.5, 1.0]), every[:2]).tolist() == [0, 0]
    assert whiten_by_position(torch.zeros(0), torch.zeros(0), every[:0]).numel() == 0
    on_line = 0.1 + 0.7 * torch.tensor([0.25, 0.5, 0.75, 1.0]).log()
    assert whiten_by_position(on_line, torch.tensor([0.25, 0.5, 0.75, 1.0]), every).abs().max() == 0
    # What stands outside the mask takes no part.
    beside = whiten_by_position(torch.tensor([1.0, -2.0, torch.nan, 3.0]), torch.tensor([0.5, 1, 0, 1]), torch.tensor([1, 1, 0, 1]).bool())
    torch.testing.assert_close(beside[[0, 1, 3]], whiten_by_position(value[[0, 1, 3]], torch.tensor([0.5, 1, 1]), every[:3]))
    assert beside[2] == 0


def test_a_deviation_that_runs_to_zero_makes_no_sentence_huge() -> None:
    """The line of the deviation is below 0 at the last position, where the rewards are nearly alike."""
    position = torch.tensor([0.01, 0.01, 0.5, 0.5, 1.0, 1.0])
    value = torch.tensor([10.0, -10.0, 0.1, -0.1, 0.1, -0.1])
    size = value.abs()
    fitted = torch.linalg.lstsq(torch.stack([position.log(), torch.ones(6)], 1), size[:, None]).solution
    assert fitted[0] * math.log(1.0) + fitted[1] < 0.1 * size.mean()
    white = whiten_by_position(value, position, torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(white, torch.tensor(position_loop(value.tolist(), position.tolist())), atol=1e-4, rtol=1e-4)
    assert white.isfinite().all()
    assert white[-2:].abs().max() < white[:2].abs().max()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"to_go": "max"}, "`to_go` must be one of sum, min, own, got 'max'"),
        ({"placement": "first"}, "`placement` must be one of last, even, got 'first'"),
        ({"whitening": "yes"}, "`whitening` must be one of none, scale, full, position, got 'yes'"),
        ({"to_go": "own", "placement": "even"}, "to_go='own' gives all tokens of a sentence its whole reward"),
        ({"kind": "response", "to_go": "min"}, "to_go='min' is for rewards of sentences"),
        ({"kind": "response", "placement": "even"}, "placement='even' is for rewards of sentences"),
        ({"kind": "response", "whitening": "position"}, "whitening='position' is for rewards of sentences"),
    ],
)
def test_choices_that_are_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_level_rewards(make(), **choice)


def test_advantages_refuse_a_form_of_no_meaning() -> None:
    group = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match="`to_go` must be one of sum, min, own, got True"):
        group_advantages(make(), group, to_go=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="to_go='own' is for sentences; with level='response'"):
        group_advantages(make(), group, level="response", to_go="own")
