"""Score a policy's own token ids: segment, merge equal prompts, run, and put rewards on the policy's tokens.

Shape letters: `B` responses, `L` width of the padded responses, `N` boundaries (each response's index 0 is its prompt's).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srm.errors import UserError
from srm.modeling.scoring import max_positions, sentence_means
from srm.packing import PackedBatch, PackingMode, PromptGroup, ResponseIds, pack
from srm.segmentation import ByteTable, TokenSegmenter, content_lengths

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from srm.data import Prompt
    from srm.modeling.model import SentenceRewardModel

__all__ = ["ScoredTokens", "TokenRow", "run_rows", "score_tokens", "token_rows"]

_GROUP = 64


@dataclass(frozen=True, kw_only=True)
class ScoredTokens:
    """Rewards of a batch of responses, on the policy's tokens.

    reward: fp32 [B], the response rewards.
    sentence_reward: fp32 [N], `r_0 ... r_n` of each response; `r_0` is the prompt's, and no token earns it.
    attention: fp32 [N], `w_i`; a response's reward is the sum of `w_i * r_i`.
    ends: int64 [N], index into its response of each sentence's last token; -1 at each response's index 0.
    cu_sentences: int64 [B + 1], offsets into the three.
    lengths: int64 [B], tokens of each response that are text: those before its first end token.
    width: `L`, the width of the padded responses.

    Everything lies on the device of the ids.
    """

    reward: Tensor
    sentence_reward: Tensor
    attention: Tensor
    ends: Tensor
    cu_sentences: Tensor
    lengths: Tensor
    width: int

    @property
    def weighted_reward(self) -> Tensor:
        """fp32 [N], `w_i * r_i`."""
        return self.attention * self.sentence_reward

    @property
    def response_index(self) -> Tensor:
        """int64 [N], the response of each boundary."""
        return torch.repeat_interleave(self.cu_sentences.diff())

    @property
    def is_sentence(self) -> Tensor:
        """bool [N], False at each response's index 0."""
        return self.ends >= 0

    @property
    def spans(self) -> Tensor:
        """int64 [N, 2], tokens `start:end` of each sentence in its response; 0:0 at index 0."""
        before = torch.cat([self.ends[:1], self.ends[:-1]])
        start = torch.where(self.is_sentence, before + 1, 0)
        return torch.stack([start, self.ends + 1], dim=1)

    def to_padded(self, per_sentence: Tensor) -> Tensor:
        """[B, L] with `per_sentence` [N] on the last token of each sentence, 0 elsewhere; sentences that share a token sum."""
        kept = self.is_sentence
        flat = per_sentence.new_zeros(self.reward.numel() * self.width)
        flat.index_add_(0, (self.response_index * self.width + self.ends)[kept], per_sentence[kept])
        return flat.view(self.reward.numel(), self.width)


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """A response as the model reads it, and where its sentences end on the policy's tokens. No ids where there is no text.

    prompt, ids: what the model reads, boundary tokens included.
    model_ends: index into `ids` of each sentence's boundary. policy_ends: the same in what the policy wrote.
    """

    prompt: tuple[int, ...]
    ids: list[int]
    model_ends: list[int]
    policy_ends: list[int]


def score_tokens(
    model: SentenceRewardModel,
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
    padded, lengths = _responses(response_ids, response_lengths, policy)
    lengths = content_lengths(padded, _end_ids(policy), lengths)
    if len(prompt_ids) != padded.shape[0]:
        raise ValueError(f"score_tokens: {len(prompt_ids)} prompts and {padded.shape[0]} responses; each response needs its prompt.")
    is_own = tokenizer is None or tokenizer is model.tokenizer or _same_vocabulary(policy, model)
    if is_own:
        rows = _own_rows(model, policy, _prompts(prompt_ids, prompt_mask), padded, lengths)
    else:
        if prompts is None:
            raise ValueError(
                "score_tokens: the policy's tokenizer is not the reward model's, so `prompt_ids` mean nothing to it. "
                "Pass `prompts` too, as strings or messages."
            )
        rows = _other_rows(model, policy, prompts, padded, lengths)
    _check_lengths(model, rows)
    scored = run_rows(model, rows, tokens_per_batch, packing or model.config.packing)
    device = padded.device
    counts = torch.tensor([0, *(1 + len(row.policy_ends) for row in rows)])
    return ScoredTokens(
        reward=torch.stack([reward for reward, _, _ in scored]).to(device) if rows else torch.zeros(0, device=device),
        sentence_reward=torch.cat([torch.zeros(0), *(rewards for _, rewards, _ in scored)]).to(device),
        attention=torch.cat([torch.zeros(0), *(attention for _, _, attention in scored)]).to(device),
        ends=torch.tensor([end for row in rows for end in (-1, *row.policy_ends)], dtype=torch.int64, device=device),
        cu_sentences=counts.cumsum(0).to(device),
        lengths=lengths,
        width=padded.shape[1],
    )


def _end_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    return frozenset(token for token in (tokenizer.eos_token_id, tokenizer.pad_token_id) if token is not None)


def _same_vocabulary(policy: PreTrainedTokenizerBase, model: SentenceRewardModel) -> bool:
    return model.tokenizer is not None and policy.get_vocab() == model.tokenizer.get_vocab()


def _responses(
    ids: Tensor | Sequence[Sequence[int]], lengths: Tensor | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[Tensor, Tensor | None]:
    """Padded ids [B, L] and how many of each row may be text."""
    if isinstance(ids, Tensor):
        if ids.dim() != 2 or ids.is_floating_point():
            raise ValueError(f"score_tokens: `response_ids` must be integers [B, L] or lists, got {ids.dtype} {list(ids.shape)}.")
        return ids.to(torch.int64), lengths
    if lengths is not None:
        raise ValueError("score_tokens: `response_lengths` go with a padded tensor; lists of ids have their own lengths.")
    width = max(map(len, ids), default=0)
    padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], dtype=torch.int64).view(len(ids), width)
    return padded, torch.tensor([len(row) for row in ids], dtype=torch.int64)


def _prompts(ids: Tensor | Sequence[Sequence[int]], mask: Tensor | None) -> list[tuple[int, ...]]:
    if isinstance(ids, Tensor):
        if mask is None:
            return [tuple(row) for row in ids.tolist()]
        if mask.shape != ids.shape:
            raise ValueError(f"score_tokens: `prompt_mask` must have the shape of `prompt_ids`, {list(ids.shape)}, got {list(mask.shape)}.")
        return [tuple(row[keep].tolist()) for row, keep in zip(ids, mask.bool(), strict=True)]
    if mask is not None:
        raise ValueError("score_tokens: `prompt_mask` goes with a padded tensor; lists of ids need none.")
    return [tuple(row) for row in ids]


def token_rows(model: SentenceRewardModel, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> list[TokenRow]:
    """Rows of ids in the reward model's own vocabulary, ready for `run_rows`. Whoever calls sees to it that they are not too long."""
    policy = model.encoder.tokenizer
    padded, lengths = _responses(response_ids, None, policy)
    return _own_rows(model, policy, _prompts(prompt_ids, None), padded, content_lengths(padded, _end_ids(policy), lengths))


def _own_rows(
    model: SentenceRewardModel, policy: PreTrainedTokenizerBase, prompts: list[tuple[int, ...]], padded: Tensor, lengths: Tensor
) -> list[TokenRow]:
    """Rows of a policy with the reward model's vocabulary: its ids are what the model reads."""
    boundary = tuple(model.encoder.boundary_ids)
    all_ends = _sentence_ends(model, policy, padded, lengths)
    rows = []
    for prompt, ids, length, ends in zip(prompts, padded.tolist(), lengths.tolist(), all_ends, strict=True):
        text, model_ends = ids[:length], ends
        if boundary:
            # The model was trained with a token of its own behind each sentence. The policy's ids are copied, not changed.
            text, model_ends = [], []
            for start, end in zip([0, *(end + 1 for end in ends)], ends, strict=False):
                text += [*ids[start : end + 1], *boundary]
                model_ends.append(len(text) - 1)
        rows.append(TokenRow(prompt=(*prompt, *boundary), ids=text, model_ends=model_ends, policy_ends=ends))
    return rows


def _sentence_ends(model: SentenceRewardModel, policy: PreTrainedTokenizerBase, padded: Tensor, lengths: Tensor) -> list[list[int]]:
    """The last token of each sentence."""
    return _segmenter(model, policy).segment(padded, lengths).tolist()


def _segmenter(model: SentenceRewardModel, policy: PreTrainedTokenizerBase) -> TokenSegmenter:
    """The token segmenter of this tokenizer, kept on the model: its table takes a while to build."""
    kept = model.__dict__.get("_token_segmenter")
    if kept is None or kept[0] is not policy:
        kept = (policy, TokenSegmenter(policy, model.encoder.segmenter))
        model.__dict__["_token_segmenter"] = kept
    return kept[1]


def _other_rows(
    model: SentenceRewardModel, policy: PreTrainedTokenizerBase, prompts: Sequence[Prompt], padded: Tensor, lengths: Tensor
) -> list[TokenRow]:
    """Rows of a policy with another vocabulary: its text in the model's tokens, the sentences found on the policy's through characters."""
    table = ByteTable.from_tokenizer(policy)
    rows = []
    for prompt, ids, length in zip(prompts, padded.cpu(), lengths.tolist(), strict=True):
        text, offsets = table.decode(ids[:length])
        prompt_ids = tuple(model.encoder.encode_prompt(prompt))
        if not text.strip():
            # No sentence of the model's; the policy still wrote tokens, but nothing to pay them for.
            rows.append(TokenRow(prompt=prompt_ids, ids=[], model_ends=[], policy_ends=[]))
            continue
        encoded = model.encoder.encode_responses([text])[0]
        policy_ends = [_token_at(offsets, text, start, end) for start, end in encoded.spans]
        rows.append(TokenRow(prompt=prompt_ids, ids=encoded.ids, model_ends=encoded.sentence_ends, policy_ends=policy_ends))
    return rows


def _token_at(offsets: list[tuple[int, int]], text: str, start: int, end: int) -> int:
    """The token that writes the last character of the sentence `text[start:end]` that is not white space."""
    last = start + len(text[start:end].rstrip()) - 1
    return next(index for index in range(len(offsets) - 1, -1, -1) if offsets[index][0] <= last < offsets[index][1])


def _check_lengths(model: SentenceRewardModel, rows: list[TokenRow]) -> None:
    limit = max_positions(model)
    for index, row in enumerate(rows):
        if not row.prompt:
            raise ValueError(f"score_tokens: prompt {index} is empty; its last token carries the first boundary.")
        if limit is not None and len(row.prompt) + len(row.ids) > limit:
            raise ValueError(
                f"score_tokens: prompt {index} and its response have {len(row.prompt) + len(row.ids)} tokens, "
                f"the reward model reads {limit}. "
                "Generate shorter responses, or use a reward model with a longer context."
            )


def _batches(rows: list[TokenRow], tokens_per_batch: int) -> Iterator[list[list[int]]]:
    """Indices of rows, grouped by prompt, in batches of about `tokens_per_batch` tokens."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.prompt, []).append(index)
    batch: list[list[int]] = []
    tokens = 0
    for prompt, members in groups.items():
        is_new = True
        for index in members:
            size = max(len(rows[index].ids), 1)
            is_full = is_new is False and len(batch[-1]) == _GROUP
            cost = size + len(prompt) * (is_new or is_full)
            if batch and tokens + cost > tokens_per_batch:
                yield batch
                batch, tokens, is_new, cost = [], 0, True, size + len(prompt)
            if is_new or is_full:
                batch.append([])
            batch[-1].append(index)
            tokens, is_new = tokens + cost, False
    if batch:
        yield batch


@torch.no_grad()
def run_rows(
    model: SentenceRewardModel, rows: list[TokenRow], tokens_per_batch: int, packing: PackingMode
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Reward [], sentence rewards [1 + n] and attention [1 + n] of every row, in order, on the CPU. Equal prompts run together."""
    by_token = model.config.granularity == "token"
    results: list[tuple[Tensor, Tensor, Tensor] | None] = [None] * len(rows)
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(rows, tokens_per_batch):
            members = [rows[index] for group in batch for index in group]
            groups = [
                PromptGroup(prompt_ids=rows[group[0]].prompt, responses=[_response_ids(rows[index], by_token) for index in group])
                for group in batch
            ]
            packed = _without_text(pack(groups, mode=packing, pad_token_id=model.encoder.tokenizer.pad_token_id or 0), members)
            output = model(packed.to(model.device))
            cu = packed.cu_boundaries.tolist()
            rewards, values, weights = output.reward.cpu(), output.sentence_reward.cpu(), output.attention.cpu()
            for at, (index, row) in enumerate(zip([index for group in batch for index in group], members, strict=True)):
                value, weight = values[cu[at] : cu[at + 1]], weights[cu[at] : cu[at + 1]]
                if by_token and row.ids:
                    value, weight = sentence_means(value, weight, row.model_ends)
                results[index] = (rewards[at], value, weight)
    finally:
        model.train(was_training)
    return [result for result in results if result is not None]


def _response_ids(row: TokenRow, by_token: bool) -> ResponseIds:
    if not row.ids:
        # A place holder: nothing attends to it, and `_without_text` drops its boundary.
        return ResponseIds(ids=row.prompt[-1:], sentence_ends=[0])
    return ResponseIds(ids=row.ids, sentence_ends=range(len(row.ids)) if by_token else row.model_ends)


def _without_text(packed: PackedBatch, members: list[TokenRow]) -> PackedBatch:
    """`packed` without the boundaries of place holders: a response without text has its prompt's boundary only."""
    empty = torch.tensor([not row.ids for row in members])
    if not empty.any():
        return packed
    keep = torch.ones_like(packed.boundaries, dtype=torch.bool)
    keep[packed.cu_boundaries[1:][empty].long() - 1] = False
    counts = packed.cu_boundaries.diff() - empty.int()
    cu = torch.cat([packed.cu_boundaries[:1], counts.cumsum(0, dtype=torch.int32)])
    return replace(packed, boundaries=packed.boundaries[keep], cu_boundaries=cu)
