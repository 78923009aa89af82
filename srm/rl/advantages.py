"""Advantages: per token with a value function, per sentence or response in a group without one.

Shape letters: `B` responses, `L` width of the padded responses, `G` groups, `T` tokens of all responses, `N` boundaries.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

import srm_kernels
from srm.rl.rewards import RewardKind, ToGo, rewards_to_go, sentence_rewards, whiten
from srm.scoring.token_ids import ScoredTokens

__all__ = ["group_advantages", "leave_one_out", "padded_gae", "token_group_advantages"]


def padded_gae(
    reward: Tensor, value: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95, whitening: bool = False
) -> tuple[Tensor, Tensor]:
    """Generalised advantages of padded responses (arXiv 1506.02438, through `srm_kernels.packed_gae`).

    Args:
        reward, value: [B, L], of each token.
        mask: bool or int [B, L], the policy's tokens; each row's are taken for neighbours.
        gamma, lam: discount, and the weight of longer returns.
        whitening: of the advantages over all tokens in `mask`.

    Returns:
        Advantages and returns, both fp32 [B, L], 0 outside `mask`.

    Raises:
        ValueError: the shapes differ.
    """
    if not reward.shape == value.shape == mask.shape or reward.dim() != 2:
        raise ValueError(
            "padded_gae: `reward`, `value` and `mask` must all be [B, L], "
            f"got {list(reward.shape)}, {list(value.shape)}, {list(mask.shape)}."
        )
    inside = mask.bool()
    lengths = inside.sum(1)
    cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    advantages, returns = srm_kernels.packed_gae(reward[inside], value[inside], cu_seqlens, gamma=gamma, lam=lam)
    padded = reward.new_zeros((2, *reward.shape), dtype=advantages.dtype)
    padded[0][inside], padded[1][inside] = advantages, returns
    return (whiten(padded[0], inside) if whitening else padded[0]), padded[1]


def leave_one_out(reward: Tensor, mask: Tensor, num_generations: int, *, gamma: float = 1.0) -> Tensor:
    """Each token's reward to go, minus what the other responses to the same prompt have to go at that place.

    A response that has ended keeps its last token's reward to go. With the whole reward on the last token this is the leave-one-out
    baseline of arXiv 2402.14740. The baseline depends on the other responses alone, so it leaves the policy gradient unbiased.

    Args:
        reward: [B, L].
        mask: bool or int [B, L], nonzero on the first tokens of each row, at least one.
        num_generations: at least 2; each run of so many rows answers one prompt.
        gamma: discount for each token.

    Returns:
        fp32 [B, L], 0 outside `mask`.

    Raises:
        ValueError: the rows do not divide into groups, or a row has no token.
    """
    if num_generations < 2 or reward.shape[0] % num_generations:
        raise ValueError(
            f"leave_one_out: {reward.shape[0]} responses do not divide into groups of num_generations={num_generations}, at least 2."
        )
    inside = mask.bool()
    last = inside.sum(1) - 1
    if (last < 0).any():
        raise ValueError(f"leave_one_out: response {int(last.argmin())} has no token in `mask`.")
    to_go, _ = padded_gae(reward, torch.zeros_like(reward), inside, gamma=gamma, lam=1.0)
    column = torch.arange(reward.shape[1], device=reward.device)
    held = to_go.gather(1, torch.minimum(column, last[:, None])).view(-1, num_generations, reward.shape[1])
    others = (held.sum(1, keepdim=True) - held) / (num_generations - 1)
    return torch.where(inside, to_go - others.view_as(to_go), 0)


def group_advantages(
    scored: ScoredTokens,
    group: Tensor,
    *,
    level: Literal["sentence", "response"] = "sentence",
    kind: RewardKind = "weighted",
    scale: bool = True,
    to_go: ToGo = "sum",
    mask: Tensor | None = None,
) -> Tensor:
    """Advantages of every token against the other responses to the same prompt.

    Args:
        scored: what `score_tokens` returned.
        group: int [B], which responses share a prompt.
        level: `sentence` compares what a response has to go from its i-th sentence with what the others have to go from theirs, which is 0
            where one has ended. `response` compares the response rewards, and all tokens of a response share one advantage
            (arXiv 2402.03300, section 4.1.2).
        kind: what a sentence earns, as in `sentence_rewards`; `sentence` or `weighted`.
        scale: divide by the group's standard deviation, not only subtract its mean.
        to_go: a token has the `sum` or the `min` over its own sentence and the later ones to go, or its `own` sentence's alone
            (`rewards_to_go`).
        mask: bool or int [B, L], the policy's tokens. Those behind the text (the end token) answer for ending there: they have 0 to go
            and are compared with the others' next sentence. A response's text where None.

    Returns:
        fp32 [B, L]. A response without text has no sentence. At sentence level it is compared by what its reward is above the prompt's part
        in the rewards of the others, and feels that on all of its tokens in `mask`, of which the end token is one.

    Raises:
        ValueError: an unknown choice, or shapes that do not match.
    """
    number, width = scored.reward.numel(), scored.width
    if not isinstance(group, Tensor):
        raise TypeError(f"group_advantages: `group` must be a tensor, such as torch.tensor([0, 0, 1, 1]), got {type(group).__name__}.")
    if group.shape != (number,):
        raise ValueError(f"group_advantages: `group` must be [{number}], one entry a response, got {list(group.shape)}.")
    if level not in ("sentence", "response"):
        raise ValueError(f"group_advantages: `level` must be sentence or response, got {level!r}.")
    if level == "sentence" and kind == "response":
        raise ValueError("group_advantages: `kind='response'` pays no sentence. Use level='response'.")
    if level == "response" and to_go != "sum":
        raise ValueError(f"group_advantages: to_go={to_go!r} is for sentences; with level='response' all tokens share one advantage.")
    if mask is not None and mask.shape != (number, width):
        raise ValueError(f"group_advantages: `mask` must be {[number, width]}, got {list(mask.shape)}.")
    column = torch.arange(width, device=scored.reward.device)
    inside = column < scored.lengths[:, None] if mask is None else mask.bool()
    owner = group.to(scored.reward.device).unique(return_inverse=True)[1]
    if level == "response":
        reward = scored.reward[:, None]
        return torch.where(inside, _compared(reward, torch.ones_like(reward, dtype=torch.bool), owner, scale), 0.0)
    going, is_compared = _by_index(scored, kind, to_go, owner)
    advantages = _compared(going, is_compared, owner, scale)
    return torch.where(inside, advantages.gather(1, _index_of(scored, column, opens=to_go != "own")), 0.0)


def _by_index(scored: ScoredTokens, kind: RewardKind, to_go: ToGo, owner: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 and bool [B, most sentences + 2], what each response has to go from its i-th sentence, and where it has one.

    Index 0 is the prompt's and has nothing to go, nor has what lies behind the last sentence. A response without text has its reward at 1.
    """
    row, first = scored.response_index, scored.cu_boundaries[:-1]
    counts = scored.cu_boundaries.diff()
    is_empty = counts == 1
    shape = (counts.numel(), 1 + (int(counts.max()) if counts.numel() else 1))
    going, is_compared = scored.reward.new_zeros(shape, dtype=torch.float32), scored.is_sentence.new_zeros(shape)
    place = torch.arange(row.numel(), device=row.device) - first[row]
    going[row, place] = torch.where(scored.is_sentence, rewards_to_go(sentence_rewards(scored, kind), scored, to_go), 0)
    is_compared[row, place] = scored.is_sentence
    going[is_empty, 1] = _without_text(scored, kind, owner, is_empty)[is_empty]
    is_compared[is_empty, 1] = True
    return going, is_compared


def _index_of(scored: ScoredTokens, column: Tensor, *, opens: bool) -> Tensor:
    """int64 [B, L], the index of the sentence of each token of `column` [L], counted from 1; behind the last one it is one more.

    Tokens before the first sentence are its own where `opens`, else they are index 0's.
    """
    row, first = scored.response_index, scored.cu_boundaries[:-1]
    counts = scored.cu_boundaries.diff()
    ends = scored.ends
    if scored.opening is not None and not opens:
        # All tokens of a response without text feel its reward.
        ends = torch.where(scored.is_sentence | (counts == 1)[row], ends, scored.opening[row] - 1)
    wide = ends.new_full((counts.numel(), int(counts.max()) if counts.numel() else 0), scored.width)
    wide[row, torch.arange(row.numel(), device=row.device) - first[row]] = ends
    return torch.searchsorted(wide, column.expand(counts.numel(), -1).contiguous())


def token_group_advantages(reward: Tensor, mask: Tensor, group: Tensor, *, scale: bool = True, to_go: ToGo = "sum") -> Tensor:
    """`group_advantages` at sentence level for a host that keeps only what each token earned.

    Token rewards do not tell everything, so two things differ. Where a reward model leaves thoughts out, their tokens count to the first
    sentence, also with `own`, where `group_advantages` gives them 0. A response without text is compared by what its tokens earned, which
    is 0 in `token_level_rewards`; `group_advantages` compares it by what its reward is above the prompt's part in the others. That is 0
    too, but for `weighted` rewards of models with `pooling="attention"`.

    Args:
        reward: [B, L], each sentence's reward on its last token, 0 elsewhere. A reward that is exactly 0 is no sentence's.
        mask: bool or int [B, L], the policy's tokens, wherever in a row they lie.
        group: int [B], which responses share a prompt.
        scale, to_go: as in `group_advantages`.

    Returns:
        fp32 [B, L].

    Raises:
        ValueError: shapes that do not match.
    """
    is_end = reward != 0
    counts = is_end.sum(1)
    # Every response has the prompt's boundary before its sentences, which earns nothing.
    cu_boundaries = torch.cat([counts.new_zeros(1), (counts + 1).cumsum(0)])
    num = int(cu_boundaries[-1])
    earned, ends = reward.new_zeros(num, dtype=torch.float32), counts.new_full((num,), -1)
    is_sentence = torch.ones_like(ends, dtype=torch.bool).index_fill_(0, cu_boundaries[:-1], False)
    earned[is_sentence], ends[is_sentence] = reward[is_end].float(), is_end.nonzero()[:, 1]
    scored = ScoredTokens(
        reward=reward.float().sum(1),
        sentence_reward=earned,
        weight=torch.ones_like(earned),
        ends=ends,
        cu_boundaries=cu_boundaries,
        lengths=mask.sum(1),
        width=reward.shape[1],
    )
    return group_advantages(scored, group, kind="sentence", scale=scale, to_go=to_go, mask=mask)


def _without_text(scored: ScoredTokens, kind: RewardKind, owner: Tensor, is_empty: Tensor) -> Tensor:
    """[B], what responses without text earned: their reward, less the mean of the prompt's part in the group's responses with text.

    No sentence earns the prompt's part, so the rewards of sentences lack it too.
    """
    part = (scored.weighted_reward if kind == "weighted" else scored.sentence_reward)[scored.cu_boundaries[:-1]]
    # A group without any text has nothing to compare with but itself.
    beside = torch.where(is_empty, 0.0, part), (~is_empty).to(part.dtype)
    total, count = (part.new_zeros(int(owner.max()) + 1 if owner.numel() else 0).index_add(0, owner, one) for one in beside)
    return part - (total / count.clamp(min=1))[owner]


def _compared(value: Tensor, is_compared: Tensor, owner: Tensor, scale: bool) -> Tensor:
    """`value` [B, n] minus the mean of its group and column, over the group's standard deviation where `scale`; equal ones become 0.

    The deviation is that of the places in `is_compared` [B, n], in the square mean with one less than their number.
    """
    size = int(owner.max()) + 1 if owner.numel() else 0

    def summed(part: Tensor) -> Tensor:
        return part.new_zeros(size, *part.shape[1:]).index_add(0, owner, part)

    mean = summed(value) / summed(torch.ones_like(owner))[:, None]
    centred = value - mean[owner]
    if not scale:
        return centred
    squares, number = summed((centred.square() * is_compared).sum(1)), summed(is_compared.sum(1))
    deviation = (squares / (number - 1).clamp(min=1)).sqrt()[owner, None]
    # Rounding leaves a spread of this size in equal numbers.
    is_flat = deviation <= 1e-6 * (1 + mean.abs().amax(1))[owner, None]
    return torch.where(is_flat, 0.0, centred / deviation)
