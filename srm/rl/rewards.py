"""Token-level rewards: what each token of a response is paid.

Shape letters: `B` responses, `L` width of the padded responses, `N` boundaries.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from srm.scoring.token_ids import ScoredTokens
from srm_kernels import SentenceLayout, token_rewards

__all__ = ["RewardKind", "sentence_rewards", "token_level_rewards", "whiten"]

RewardKind = Literal["weighted", "sentence", "response"]


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
    """`value` with variance 1 over `mask` (population variance), and mean 0 unless `shift_mean` is off.

    Args:
        value: floating point, any shape.
        mask: bool, the same shape.
        shift_mean: whether the mean becomes 0, too.

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


def token_level_rewards(
    scored: ScoredTokens,
    *,
    kind: RewardKind = "weighted",
    whitening: Literal["none", "scale", "full"] = "none",
    logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    mask: Tensor | None = None,
    kl_coef: float = 0.0,
    estimator: Literal["k1", "k2", "k3"] = "k1",
) -> Tensor:
    """Each sentence's reward on its last token, minus the KL penalty of each token.

    Args:
        scored: what `score_tokens` returned.
        kind: as in `sentence_rewards`.
        whitening: of the sentences' rewards over the batch, before they are placed. `scale`: variance 1; `full`: mean 0 as well.
        logprobs, ref_logprobs: [B, L], log-probabilities of the tokens under the policy and the reference; needed with `kl_coef`.
        mask: bool or int [B, L], the tokens the policy answers for, its end token included; others earn no penalty. A response's text
            where None.
        kl_coef, estimator: as in `srm_kernels.token_rewards`.

    Returns:
        fp32 [B, L].

    Raises:
        ValueError: an unknown choice, shapes that do not match, or a penalty without log-probabilities.
    """
    shape = (scored.reward.numel(), scored.width)
    paid = sentence_rewards(scored, kind)
    if whitening not in ("none", "scale", "full"):
        raise ValueError(f"token_level_rewards: `whitening` must be none, scale or full, got {whitening!r}.")
    if whitening != "none":
        if kind == "response":
            last = torch.zeros_like(scored.is_sentence)
            last[scored.cu_boundaries[1:] - 1] = True
            paid = whiten(paid, last & scored.is_sentence, shift_mean=whitening == "full")
        else:
            paid = whiten(paid, scored.is_sentence, shift_mean=whitening == "full")
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
    # Index 0 earns nothing wherever it lies; in its row's first place the order stays.
    position = scored.response_index * scored.width + scored.ends.clamp(min=0)
    layout = SentenceLayout(position, scored.cu_boundaries, ascending=True)
    flat = token_rewards(paid, layout, layout.cu_boundaries, policy.flatten(), reference.flatten(), kl_coef, estimator)
    return flat.view(shape)
