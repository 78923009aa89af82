"""Run a model on groups of ids, pass by pass, and read off what its head says about each response.

Shape letters: `B` responses, `N` boundaries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from srm.packing import PackingMode, PromptGroup, ResponseIds, pack
from srm.scoring.batching import frugal_order, split_passes
from srm.scoring.protocol import HeadOutput, Reader, RewardModel

__all__ = ["ResponseScore", "score_all", "score_groups", "sentence_score"]


@dataclass(frozen=True, kw_only=True)
class ResponseScore:
    """What the head says about one response.

    Attributes:
        reward: of the response.
        sentence_reward: [1 + sentences], `r_i`; index 0 is the prompt's.
        weight: [1 + sentences], `w_i`.
    """

    reward: float
    sentence_reward: list[float]
    weight: list[float]

    @property
    def is_finite(self) -> bool:
        """Whether all of its numbers are numbers."""
        return all(map(math.isfinite, (self.reward, *self.sentence_reward, *self.weight)))


def score_groups(
    model: RewardModel, groups: Iterable[PromptGroup], *, tokens_per_batch: int, packing: PackingMode | None
) -> Iterator[list[ResponseScore]]:
    """Scores of each group's responses, in order. The model runs in eval mode, and has its own mode again afterwards.

    Args:
        model: the reward model.
        groups: prompts with their responses; taken as they are needed.
        tokens_per_batch: upper bound on the tokens of a pass, padding included; a single longer response still runs, alone.
        packing: `shared`, `packed` or `none` by name, or None; see `SentenceRewardModel.packing_mode`.

    Returns:
        For each group a score a response, as soon as its last one has run.

    Raises:
        UnsupportedBackboneError: packing was asked for by name, and the backbone cannot run packed.
    """
    mode = model.packing_mode(packing)
    was_training = model.training
    model.eval()
    waiting: list[ResponseScore] = []
    try:
        for parts in split_passes(groups, tokens_per_batch=tokens_per_batch, packing=mode):
            scores = iter(_run_pass(model, [part.group for part in parts], mode))
            for part in parts:
                waiting += islice(scores, len(part.group.responses))
                if part.is_last:
                    yield waiting
                    waiting = []
    finally:
        model.train(was_training)


def score_all(
    model: RewardModel,
    groups: Sequence[PromptGroup],
    *,
    tokens_per_batch: int,
    packing: PackingMode | None,
    show_progress: bool = False,
) -> list[list[ResponseScore]]:
    """`score_groups` of groups that are all there: they run in the order that costs the fewest tokens, and come back in their own.

    Args:
        model: the reward model.
        groups: prompts with their responses.
        tokens_per_batch: as in `score_groups`.
        packing: as in `score_groups`.
        show_progress: draw a progress bar on stderr.

    Returns:
        For each group a score a response.

    Raises:
        UnsupportedBackboneError: packing was asked for by name, and the backbone cannot run packed.
    """
    mode = model.packing_mode(packing)
    order = frugal_order(groups, mode)
    scored: Iterable[list[ResponseScore]] = score_groups(
        model, (groups[index] for index in order), tokens_per_batch=tokens_per_batch, packing=mode
    )
    by_group = dict(zip(order, _progress(scored, total=len(groups)) if show_progress else scored, strict=True))
    return [by_group[index] for index in range(len(groups))]


def _progress(scored: Iterable[list[ResponseScore]], total: int) -> Iterable[list[ResponseScore]]:
    # Late, because a caller without a terminal needs no rich.
    from rich.console import Console
    from rich.progress import track

    return track(scored, description="Scoring", total=total, console=Console(stderr=True))


@torch.no_grad()
def _run_pass(model: RewardModel, groups: Sequence[PromptGroup], mode: PackingMode) -> list[ResponseScore]:
    """Scores of the groups' responses, group by group."""
    responses = [response for group in groups for response in group.responses]
    if model.config.granularity == "token":
        groups = [replace(group, responses=[response.every_token() for response in group.responses]) for group in groups]
    batch = pack(groups, mode=mode, pad_token_id=model.encoder.tokenizer.pad_token_id or 0)
    reward_B, sentence_reward_N, weight_N = _on_cpu(model(batch.to(model.device)))
    counts = batch.cu_boundaries.diff().tolist()
    rows = zip(responses, reward_B.tolist(), sentence_reward_N.split(counts), weight_N.split(counts), strict=True)
    return [sentence_score(model, *row) for row in rows]


def _on_cpu(output: HeadOutput) -> tuple[Tensor, Tensor, Tensor]:
    assert output.reward is not None
    assert output.sentence_reward is not None
    assert output.weight is not None
    return output.reward.cpu(), output.sentence_reward.cpu(), output.weight.cpu()


def sentence_score(model: Reader, response: ResponseIds, reward: float, value: Tensor, weight: Tensor) -> ResponseScore:
    """A response's score from what the head says at its boundaries.

    A token-level model has a boundary at every token: a sentence gets the mean of its tokens' values and the sum of their weights.

    Args:
        model: the reward model, for its granularity.
        response: its ids, and where its sentences end.
        reward: the response's.
        value: fp32 [1 + boundaries] on the CPU, what the head says of each boundary.
        weight: fp32 [1 + boundaries] on the CPU.
    """
    if model.config.granularity == "token":
        edges = torch.tensor([response.opening - 2, response.opening - 1, *response.sentence_ends.tolist()])
        lengths = edges.diff()
        segment = torch.repeat_interleave(lengths)
        value = value.new_zeros(len(lengths)).scatter_add(0, segment, value) / lengths
        weight = weight.new_zeros(len(lengths)).scatter_add(0, segment, weight)
    return ResponseScore(reward=reward, sentence_reward=value.tolist(), weight=weight.tolist())
