"""Token-level rewards: what each token of a response is paid.

Shape letters: `B` responses, `L` width of the padded responses, `N` boundaries.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from srm.scoring.token_ids import ScoredTokens
from srm_kernels import token_rewards

__all__ = [
    "Placement",
    "RewardKind",
    "ToGo",
    "Whitening",
    "rewards_to_go",
    "sentence_rewards",
    "sum_form",
    "token_level_rewards",
    "whiten",
    "whiten_by_position",
]

RewardKind = Literal["weighted", "sentence", "response"]
ToGo = Literal["sum", "min", "own"]
Placement = Literal["last", "even"]
Whitening = Literal["none", "scale", "full", "position"]


def sentence_rewards(scored: ScoredTokens, kind: RewardKind = "weighted") -> Tensor:
    """What each sentence is paid.

    Args:
        scored: what `score_tokens` returned.
        kind: `weighted` `w_i * r_i`, `sentence` `r_i`, `response` the response's reward on its last sentence and 0 on the others.

    Returns:
        fp32 [N], 0 at each response's index 0. A response without text has no sentence to pay.

    Raises:
        ValueError: another `kind`.
    """
    if kind not in get_args(RewardKind):
        raise ValueError(f"sentence_rewards: `kind` must be one of {', '.join(get_args(RewardKind))}, got {kind!r}.")
    if kind == "response":
        paid = torch.zeros_like(scored.sentence_reward)
        # The last boundary of each response; where that is index 0, `is_sentence` clears it again.
        paid[scored.cu_boundaries[1:] - 1] = scored.reward
    else:
        paid = scored.weighted_reward if kind == "weighted" else scored.sentence_reward
    return torch.where(scored.is_sentence, paid, 0)


def whiten(value: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """`value` with its deviations from the mean over `mask` scaled to variance 1 (population variance), and with mean 0 or its own mean.

    Args:
        value: floating point, any shape.
        mask: bool, the same shape.
        shift_mean: the mean becomes 0; where off, it is added back as it was, as in TRL's `masked_whiten`.

    Returns:
        The same shape and dtype, 0 outside `mask`. Values that are all alike become 0, or stay as they are where the mean is kept: there is
        nothing to scale.
    """
    count = mask.sum().clamp(min=1)
    value = torch.where(mask, value, 0)
    mean = value.sum() / count
    spread = ((value - mean).square() * mask).sum() / count
    # Rounding leaves a spread of this size in equal numbers; dividing by it would make noise of them.
    is_flat = spread.sqrt() <= 1e-6 * (1 + mean.abs())
    scale = torch.where(is_flat, torch.ones_like(spread), spread).rsqrt()
    white = (value - mean) * scale
    return (white if shift_mean else white + mean) * mask


def whiten_by_position(value: Tensor, position: Tensor, mask: Tensor) -> Tensor:
    """`value` less the mean of its position, over the deviation of its position; then with mean 0 and variance 1 over `mask`.

    Mean and deviation are straight lines in `log p`, where `p` is a sentence's position, as in arXiv 2501.02790. There the lines are
    fitted once to a data set, here by least squares to the batch itself. A batch has too few sentences at one position to take their
    deviation, so its line is fitted to the sizes of what the line of the mean leaves over. What is constant between the two falls out in
    the end, where the variance becomes 1.

    Args:
        value: floating point [N].
        position: [N], `i / n` for the i-th of n sentences, above 0 where `mask` is.
        mask: bool [N].

    Returns:
        The shape and dtype of `value`, 0 outside `mask`. No deviation is taken for less than a tenth of the mean one, so that a line near 0
        makes no sentence huge. Where all positions are the same this is `whiten`. Values that lie on the line of the mean become 0: those
        of one sentence or of two at different positions always do.
    """
    value = torch.where(mask, value, 0)
    place = torch.where(mask, position, 1).log()
    rest = torch.where(mask, value - _line(value, place, mask), 0)
    count = mask.sum().clamp(min=1)
    size = rest.abs()
    mean_size = size.sum() / count
    # Rounding leaves so much of numbers on a line.
    is_flat = mean_size <= 1e-6 * (1 + value.abs().sum() / count)
    deviation = torch.maximum(_line(size, place, mask), 0.1 * mean_size)
    return whiten(torch.where(is_flat, 0, rest / torch.where(is_flat, 1, deviation)), mask)


def _line(value: Tensor, at: Tensor, mask: Tensor) -> Tensor:
    """[N], the straight line through `value` over `at` by least squares on `mask`; the mean where all of `at` are alike."""
    count = mask.sum().clamp(min=1)
    middle = (at * mask).sum() / count
    centred = (at - middle) * mask
    spread = centred.square().sum()
    is_flat = (spread / count).sqrt() <= 1e-6 * (1 + middle.abs())
    slope = torch.where(is_flat, 0, (centred * value).sum() / torch.where(is_flat, 1, spread))
    return (value * mask).sum() / count + slope * centred


def rewards_to_go(paid: Tensor, scored: ScoredTokens, to_go: ToGo = "sum") -> Tensor:
    """What each sentence has to go: the sum or the minimum of its own reward and the later ones' of its response, or its own alone.

    `min` is the value of PURE (arXiv 2504.15275), the minimum of future rewards, and exactly that. Their code takes a softmax-weighted
    sum in its place, which comes near the minimum over the whole response up to its worst step, and near 0 behind it.

    Args:
        paid: floating point [N], each sentence's reward.
        scored: whose sentences they are. Those that end on the same token are one, which earns their sum.
        to_go: `sum`, `min` or `own`.

    Returns:
        The shape and dtype of `paid`. At index 0 of a response with text it means nothing.

    Raises:
        ValueError: another `to_go`.
    """
    if to_go not in get_args(ToGo):
        raise ValueError(f"rewards_to_go: `to_go` must be one of {', '.join(get_args(ToGo))}, got {to_go!r}.")
    if not paid.numel():
        return paid
    if to_go != "sum":
        paid, _ = _merged(paid, scored)
    if to_go == "own":
        return paid
    row = scored.response_index
    from_end = scored.cu_boundaries[1:][row] - 1 - torch.arange(paid.numel(), device=paid.device)
    # Counted from the end, so that the padding comes last and nobody reads it.
    wide = paid.new_zeros(scored.reward.numel(), int(from_end.max()) + 1)
    wide[row, from_end] = paid
    gathered = wide.cummin(1).values if to_go == "min" else wide.cumsum(1)
    return gathered[row, from_end]


def _merged(paid: Tensor, scored: ScoredTokens) -> tuple[Tensor, Tensor]:
    """[N], what the sentences on each one's last token earn together, and bool [N], whether it is the first of them."""
    is_first = (scored.ends.diff(prepend=scored.ends.new_full((1,), -1)) != 0) | ~scored.is_sentence
    one = is_first.cumsum(0) - 1
    return torch.zeros_like(paid).index_add_(0, one, paid)[one], is_first


def sum_form(paid: Tensor, scored: ScoredTokens, to_go: ToGo) -> Tensor:
    """Rewards whose plain sum to go is what `to_go` asks for, so that whatever sums rewards (GAE, REINFORCE) needs no change.

    A sentence gets what it has to go less what the next one has. All sums to go follow, as every term between cancels.

    Args:
        paid: fp32 [N], each sentence's reward, 0 at each response's index 0.
        scored: whose sentences they are.
        to_go: as in `rewards_to_go`.

    Returns:
        fp32 [N]. Index 0 stands for the tokens before the first sentence, which `own` gives nothing: it takes back what the first sentence
        has to go. It is 0 otherwise.
    """
    if to_go == "sum":
        return paid
    kept = scored.is_sentence
    going = torch.where(kept, rewards_to_go(paid, scored, to_go), 0)
    # Behind a response's last sentence comes the next one's index 0, which has nothing to go.
    following = torch.cat([going[1:], going.new_zeros(1)])[: going.numel()]
    if to_go == "own" and scored.opening is not None:
        kept = kept | (scored.opening > 0)[scored.response_index]
    return torch.where(kept, going - following, 0)


def token_level_rewards(
    scored: ScoredTokens,
    *,
    kind: RewardKind = "weighted",
    whitening: Whitening = "none",
    to_go: ToGo = "sum",
    placement: Placement = "last",
    logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    mask: Tensor | None = None,
    kl_coef: float = 0.0,
    estimator: Literal["k1", "k2", "k3"] = "k1",
) -> Tensor:
    """Each sentence's reward on its tokens, minus the KL penalty of each token.

    Args:
        scored: what `score_tokens` returned.
        kind: as in `sentence_rewards`.
        whitening: of the sentences' rewards over the batch, before all else. `scale`: deviations from the mean are scaled to variance 1,
            and the mean is added back; `full`: mean 0 and variance 1; `position`: both for the position in the response
            (`whiten_by_position`).
        to_go: what the sum of a token's and later rewards is to be, the penalty apart: the `sum` or the `min` of the rewards of its
            sentence and the later ones, or its `own` sentence's alone (`sum_form`). It holds without a discount.
        placement: on the `last` token of a sentence, or in `even` parts on all of its tokens. Sentences that end on the same token are one.
        logprobs, ref_logprobs: [B, L], log-probabilities of the tokens under the policy and the reference; needed with `kl_coef`.
        mask: bool or int [B, L], the tokens the policy answers for, its end token included; others earn no penalty. A response's text
            where None.
        kl_coef, estimator: as in `srm_kernels.token_rewards`.

    Returns:
        fp32 [B, L].

    Raises:
        ValueError: an unknown choice, choices that do not go together, shapes that do not match, or a penalty without log-probabilities.
    """
    shape = (scored.reward.numel(), scored.width)
    _check_choices(kind, whitening, to_go, placement)
    paid = sum_form(_whitened(sentence_rewards(scored, kind), scored, kind, whitening), scored, to_go)
    if kl_coef and (logprobs is None or ref_logprobs is None):
        raise ValueError(f"token_level_rewards: kl_coef={kl_coef} needs `logprobs` and `ref_logprobs`, each {list(shape)}.")
    for name, given in (("logprobs", logprobs), ("ref_logprobs", ref_logprobs), ("mask", mask)):
        if given is not None and given.shape != shape:
            raise ValueError(f"token_level_rewards: `{name}` must be {list(shape)}, the shape of the responses, got {list(given.shape)}.")
    zeros = paid.new_zeros(shape)
    if mask is None:
        mask = torch.arange(scored.width, device=paid.device) < scored.lengths[:, None]
    if logprobs is None or ref_logprobs is None:
        logprobs = ref_logprobs = zeros
    # Padding may hold anything, -inf included: where the two are equal there is no penalty.
    policy, reference = (torch.where(mask.bool(), x.to(paid.device), zeros) for x in (logprobs, ref_logprobs))
    if not zeros.numel():
        return zeros
    # Index 0 earns nothing wherever it lies: in its row's first place.
    position = scored.response_index * scored.width + scored.ends.clamp(min=0)
    on_ends = torch.zeros_like(paid) if placement == "even" else paid
    flat = token_rewards(on_ends, position, scored.cu_boundaries, policy.flatten(), reference.flatten(), kl_coef, estimator)
    if placement == "even":
        return flat.view(shape) + _spread(paid, scored)
    if scored.opening is not None:
        before = torch.arange(shape[0], device=paid.device) * scored.width + (scored.opening - 1).clamp(min=0)
        flat = flat.index_add(0, before, paid[scored.cu_boundaries[:-1]])
    return flat.view(shape)


def _check_choices(kind: RewardKind, whitening: Whitening, to_go: ToGo, placement: Placement) -> None:
    for name, value, choices in (("whitening", whitening, Whitening), ("to_go", to_go, ToGo), ("placement", placement, Placement)):
        if value not in get_args(choices):
            raise ValueError(f"token_level_rewards: `{name}` must be one of {', '.join(get_args(choices))}, got {value!r}.")
        if kind == "response" and value in ("position", "min", "own", "even"):
            raise ValueError(
                f"token_level_rewards: {name}={value!r} is for rewards of sentences, and kind='response' pays the last token alone."
            )
    if to_go == "own" and placement == "even":
        raise ValueError(
            "token_level_rewards: to_go='own' gives all tokens of a sentence its whole reward, so there is nothing to spread. "
            "Use placement='last'."
        )


def _whitened(paid: Tensor, scored: ScoredTokens, kind: RewardKind, whitening: Whitening) -> Tensor:
    if whitening == "none":
        return paid
    is_paid = scored.is_sentence
    if kind == "response":
        is_last = torch.zeros_like(is_paid)
        is_last[scored.cu_boundaries[1:] - 1] = True
        is_paid = is_paid & is_last
    if whitening == "position":
        row = scored.response_index
        first = scored.cu_boundaries[:-1][row]
        index = torch.arange(paid.numel(), device=paid.device) - first
        return whiten_by_position(paid, index / (scored.cu_boundaries.diff()[row] - 1), is_paid)
    return whiten(paid, is_paid, shift_mean=whitening == "full")


def _spread(paid: Tensor, scored: ScoredTokens) -> Tensor:
    """fp32 [B, L], each sentence's reward in equal parts on its tokens; those that end on the same token are one."""
    width = scored.width
    paid, is_first = _merged(paid, scored)
    kept = scored.is_sentence & is_first
    spans = scored.spans[kept]
    start, end = torch.minimum(spans[:, 0], spans[:, 1] - 1), spans[:, 1]
    lengths = end - start
    sentence = torch.repeat_interleave(lengths)
    # Counting tokens through, less those of the sentences before, is a token's place in its sentence.
    place = torch.arange(sentence.numel(), device=paid.device) - (lengths.cumsum(0) - lengths)[sentence]
    token = (scored.response_index[kept] * width + start)[sentence] + place
    part = (paid[kept] / lengths)[sentence]
    return paid.new_zeros(scored.reward.numel() * width).index_add_(0, token, part).view(-1, width)
