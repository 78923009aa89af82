"""Score a policy's own token ids: segment, run equal prompts once, and put rewards on the policy's tokens.

Shape letters: `B` responses, `L` width of the padded responses, `N` boundaries (each response's index 0 is its prompt's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from srm.data import Prompt
from srm.data.turns import answer_behind
from srm.errors import UserError
from srm.packing import PackingMode, PromptGroup, ResponseIds
from srm.packing.batch import IntArray
from srm.scoring.guards import check_ids, require_finite
from srm.scoring.integers import check_integers, integer_rows
from srm.scoring.protocol import Reader, RewardModel
from srm.scoring.run import score_all
from srm.segmentation import content_lengths
from srm.segmentation.tokens import opening_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["NO_TEXT", "PolicyResponse", "ScoredTokens", "encode_ids", "score_tokens"]

NO_TEXT = ResponseIds(ids=np.empty(0, np.int32), sentence_ends=np.empty(0, np.int32))
"""A response without text, or of white space alone: it gets its prompt's reward, and has no sentence."""


@dataclass(frozen=True, kw_only=True)
class ScoredTokens:
    """Rewards of a batch of responses, on the policy's tokens. Everything lies on the device of the ids.

    Attributes:
        reward: fp32 [B], the response rewards.
        sentence_reward: fp32 [N], `r_0 ... r_n` of each response; `r_0` is the prompt's, and no token earns it.
        weight: fp32 [N], `w_i`; a response's reward is the sum of `w_i * r_i`.
        ends: int64 [N], index into its response of each sentence's last token; -1 at each response's index 0.
        cu_boundaries: int64 [B + 1], offsets into the three.
        lengths: int64 [B], tokens of each response that are text: those before its first end token.
        width: `L`, the width of the padded responses.
        opening: int64 [B], tokens of each response before its first sentence, which belong to none; None where no response has any.
    """

    reward: Tensor
    sentence_reward: Tensor
    weight: Tensor
    ends: Tensor
    cu_boundaries: Tensor
    lengths: Tensor
    width: int
    opening: Tensor | None = None

    @property
    def weighted_reward(self) -> Tensor:
        """fp32 [N], `w_i * r_i`."""
        return self.weight * self.sentence_reward

    @property
    def response_index(self) -> Tensor:
        """int64 [N], the response of each boundary."""
        return torch.repeat_interleave(self.cu_boundaries.diff())

    @property
    def is_sentence(self) -> Tensor:
        """bool [N], False at each response's index 0."""
        return self.ends >= 0

    @property
    def spans(self) -> Tensor:
        """int64 [N, 2], tokens `start:end` of each sentence in its response; 0:0 at index 0."""
        before = self.ends if self.opening is None else torch.where(self.is_sentence, self.ends, self.opening[self.response_index] - 1)
        start = torch.where(self.is_sentence, torch.cat([before[:1], before[:-1]]) + 1, 0)
        return torch.stack([start, self.ends + 1], dim=1)

    def to_padded(self, per_sentence: Tensor) -> Tensor:
        """[B, L] with `per_sentence` [N] on the last token of each sentence, 0 elsewhere; sentences that share a token sum."""
        kept = self.is_sentence
        flat = per_sentence.new_zeros(self.reward.numel() * self.width)
        flat.index_add_(0, (self.response_index * self.width + self.ends)[kept], per_sentence[kept])
        return flat.view(self.reward.numel(), self.width)


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyResponse(ResponseIds):
    """A response as the model reads it, and where its sentences end on the policy's tokens.

    Attributes:
        policy_ends: int32 [sentences], index into the policy's own ids of each sentence's last token.
        policy_opening: how many of the policy's own ids stand before the first sentence and belong to none.
    """

    policy_ends: IntArray
    policy_opening: int = 0


def score_tokens(
    model: RewardModel,
    prompt_ids: Tensor | Sequence[Sequence[int]],
    response_ids: Tensor | Sequence[Sequence[int]],
    *,
    prompt_mask: Tensor | None = None,
    response_lengths: Tensor | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prompts: Sequence[Prompt] | None = None,
    tokens_per_batch: int = 8192,
    packing: PackingMode | None = None,
) -> ScoredTokens:
    """See `SentenceRewardModel.score_tokens`."""
    policy = tokenizer or model.tokenizer
    if policy is None:
        raise UserError("score_tokens: the model has no tokenizer, so the ids have no text. Set `model.tokenizer` or pass `tokenizer`.")
    padded, lengths = _responses(response_ids, response_lengths)
    is_own = tokenizer is None or tokenizer is model.tokenizer or _same_vocabulary(policy, model)
    lengths = content_lengths(padded, _end_ids(model, policy, is_own=is_own), lengths)
    if len(prompt_ids) != padded.shape[0]:
        raise ValueError(f"score_tokens: {len(prompt_ids)} prompts and {padded.shape[0]} responses; each response needs its prompt.")
    if is_own:
        groups = _own_groups(model, policy, _prompts(prompt_ids, prompt_mask), padded, lengths)
    elif prompts is None:
        raise ValueError(
            "score_tokens: the policy's tokenizer is not the reward model's, so `prompt_ids` mean nothing to it. "
            "Pass `prompts` too, as strings or messages."
        )
    else:
        groups = _other_groups(model, policy, prompts, padded, lengths)
    _check_lengths(model, groups)
    places = [f"score_tokens: prompt {index} and its response" for index in range(len(groups))]
    scores = [score for (score,) in score_all(model, groups, tokens_per_batch=tokens_per_batch, packing=packing)]
    require_finite(model, scores, places)
    ends = [_policy_ends(group) for group in groups]
    openings = [getattr(group.responses[0], "policy_opening", 0) for group in groups]
    device = padded.device
    return ScoredTokens(
        reward=torch.tensor([score.reward for score in scores], device=device),
        sentence_reward=torch.tensor([reward for score in scores for reward in score.sentence_reward], device=device),
        weight=torch.tensor([weight for score in scores for weight in score.weight], device=device),
        ends=torch.tensor([end for row in ends for end in (-1, *row)], dtype=torch.int64, device=device),
        cu_boundaries=torch.tensor([0, *(1 + len(row) for row in ends)], device=device).cumsum(0),
        lengths=lengths,
        width=padded.shape[1],
        opening=torch.tensor(openings, dtype=torch.int64, device=device) if any(openings) else None,
    )


def encode_ids(model: Reader, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> list[PromptGroup]:
    """Ids in the reward model's own vocabulary as groups. The caller sees to it that they are not too long.

    Args:
        model: the reward model.
        prompt_ids: the ids of each prompt.
        response_ids: the ids of each response; its text ends before the first end or pad id.

    Returns:
        A group of one `PolicyResponse` for each response, in order.
    """
    padded, lengths = _responses(response_ids, None)
    lengths = content_lengths(padded, model.encoder.answers.end_ids, lengths)
    return _own_groups(model, model.encoder.tokenizer, _prompts(prompt_ids, None), padded, lengths)


def _end_ids(model: Reader, policy: PreTrainedTokenizerBase, *, is_own: bool) -> frozenset[int]:
    """The ids that end the policy's answers; `is_own`: they are ids of the reward model as well."""
    if policy is model.tokenizer:
        return model.encoder.answers.end_ids
    return model.encoder.token_segmenter(policy).end_ids | (model.encoder.answers.end_ids if is_own else frozenset())


def _same_vocabulary(policy: PreTrainedTokenizerBase, model: Reader) -> bool:
    return model.tokenizer is not None and policy.get_vocab() == model.tokenizer.get_vocab()


def _responses(ids: Tensor | Sequence[Sequence[int]], lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Padded ids [B, L] and how many of each row may be text."""
    if isinstance(ids, Tensor):
        _check_padded("response_ids", ids)
        if lengths is not None:
            check_integers("score_tokens: `response_lengths`", lengths)
        return ids.to(torch.int64), lengths
    if lengths is not None:
        raise ValueError("score_tokens: `response_lengths` go with a padded tensor; lists of ids have their own lengths.")
    rows = integer_rows("score_tokens: `response_ids`", ids)
    width = max(map(len, rows), default=0)
    try:
        padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.int64).view(len(rows), width)
    except (OverflowError, RuntimeError, ValueError):
        raise UserError(
            "score_tokens: `response_ids` hold an id of more than 64 bits. Use the tokenizer that belongs to the model."
        ) from None
    return padded, torch.tensor([len(row) for row in rows], dtype=torch.int64)


def _check_padded(name: str, ids: Tensor) -> None:
    if ids.dim() != 2:
        raise ValueError(f"score_tokens: `{name}` must be [B, L] or lists, got {list(ids.shape)}.")
    check_integers(f"score_tokens: `{name}`", ids)


def _prompts(ids: Tensor | Sequence[Sequence[int]], mask: Tensor | None) -> list[tuple[int, ...]]:
    if isinstance(ids, Tensor):
        _check_padded("prompt_ids", ids)
        if mask is None:
            return [tuple(row) for row in ids.tolist()]
        if mask.shape != ids.shape:
            raise ValueError(f"score_tokens: `prompt_mask` must have the shape of `prompt_ids`, {list(ids.shape)}, got {list(mask.shape)}.")
        check_integers("score_tokens: `prompt_mask`", mask, or_bool=True)
        return [tuple(row[keep].tolist()) for row, keep in zip(ids, mask.bool(), strict=True)]
    if mask is not None:
        raise ValueError("score_tokens: `prompt_mask` goes with a padded tensor; lists of ids need none.")
    return [tuple(row) for row in integer_rows("score_tokens: `prompt_ids`", ids)]


def _own_groups(
    model: Reader, policy: PreTrainedTokenizerBase, prompts: list[tuple[int, ...]], padded: Tensor, lengths: Tensor
) -> list[PromptGroup]:
    """Responses of a policy with the reward model's vocabulary: its ids are what the model reads."""
    encoder = model.encoder
    opened = [encoder.answers.split_header(*row) for row in zip(prompts, padded.tolist(), strict=True)] if encoder.format.header else []
    skipped = [count for _, count in opened] or [0] * len(prompts)
    if any(skipped):
        prompts = [tuple(prompt) for prompt, _ in opened]
        count = torch.tensor(skipped, device=padded.device)
        padded = padded.gather(1, (torch.arange(padded.shape[1], device=padded.device) + count[:, None]).clamp(max=padded.shape[1] - 1))
        lengths = (lengths - count).clamp(min=0)
    groups = []
    wide = padded.cpu().numpy()
    for index, (prompt, length) in enumerate(zip(prompts, lengths.tolist(), strict=True)):
        # Before they become int32, where a large id would turn into another.
        check_ids(model.num_embeddings, f"score_tokens: prompt {index} and its response", prompt, wide[index, :length])
    found = encoder.token_segmenter(policy).segment(padded, lengths)
    texts = zip(found.tolist(), found.opening.tolist(), found.is_blank.tolist(), strict=True)
    for prompt, ids, length, (ends, opening, is_blank), first in zip(
        prompts, wide.astype(np.int32), lengths.tolist(), texts, skipped, strict=True
    ):
        response = NO_TEXT
        if not is_blank:
            # The model may have been trained with a token of its own behind each sentence. The policy's ids are copied, not changed.
            marked, marks, marked_opening = encoder.with_boundaries(ids[:length].copy(), np.asarray(ends, dtype=np.int32), opening)
            response = PolicyResponse(
                ids=marked,
                sentence_ends=marks,
                opening=marked_opening,
                policy_ends=np.asarray(ends, dtype=np.int32) + np.int32(first),
                policy_opening=opening + first if opening else 0,
            )
        groups.append(PromptGroup(prompt_ids=np.array([*prompt, *encoder.boundary_ids], dtype=np.int32), responses=[response]))
    return groups


def _other_groups(
    model: Reader, policy: PreTrainedTokenizerBase, prompts: Sequence[Prompt], padded: Tensor, lengths: Tensor
) -> list[PromptGroup]:
    """Responses of a policy with another vocabulary: its text in the model's tokens, sentences found on the policy's through characters."""
    table = model.encoder.token_segmenter(policy).table
    groups = []
    for prompt, ids, length in zip(prompts, padded.cpu(), lengths.tolist(), strict=True):
        rendered = model.encoder.render(prompt)
        text, offsets = table.decode(ids[:length])
        response = NO_TEXT
        # Where there is no text the policy may still have written tokens, but nothing to pay them for.
        if text.strip():
            encoded = model.encoder.encode_responses([answer_behind(prompt, rendered, text)])[0]
            policy_ends = np.array([_token_at(offsets, text, start, end) for start, end in encoded.spans], dtype=np.int32)
            response = PolicyResponse(
                ids=encoded.ids,
                sentence_ends=encoded.sentence_ends,
                opening=encoded.opening,
                policy_ends=policy_ends,
                policy_opening=opening_tokens(encoded.spans, offsets, text) if encoded.opening else 0,
            )
        (prompt_ids,) = model.encoder.encode_prompts([rendered])
        groups.append(PromptGroup(prompt_ids=np.array(prompt_ids, dtype=np.int32), responses=[response]))
        check_ids(model.num_embeddings, f"score_tokens: prompt {len(groups) - 1} and its response", groups[-1].prompt_ids, response.ids)
    return groups


def _token_at(offsets: list[tuple[int, int]], text: str, start: int, end: int) -> int:
    """The token that writes the last character of the sentence `text[start:end]` that is not white space."""
    last = start + len(text[start:end].rstrip()) - 1
    return next(index for index in range(len(offsets) - 1, -1, -1) if offsets[index][0] <= last < offsets[index][1])


def _policy_ends(group: PromptGroup) -> list[int]:
    response = group.responses[0]
    return response.policy_ends.tolist() if isinstance(response, PolicyResponse) else []


def _check_lengths(model: Reader, groups: Sequence[PromptGroup]) -> None:
    limit = model.config.max_positions
    for index, group in enumerate(groups):
        if not len(group.prompt_ids):
            raise ValueError(f"score_tokens: prompt {index} is empty; its last token carries the first boundary.")
        if limit is not None and group.longest > limit:
            raise UserError(
                f"score_tokens: prompt {index} and its response have {group.longest} tokens, the reward model reads {limit}. "
                "Generate shorter responses, or use a reward model with a longer context."
            )
