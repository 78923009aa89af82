"""DPO's implicit reward (arXiv 2305.18290) by sentence: `beta * (log pi - log pi_ref)`, summed over a sentence's tokens.

Shape letters: `M` response tokens, `V` vocabulary.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from srm.data import EncodedResponse, ResponseEncoder, ResponseRow
from srm.data.answers import AnswerTokens
from srm.data.boundary import RowCheck, check_row
from srm.data.schema import Granularity
from srm.data.template import ChatFormat
from srm.errors import UserError
from srm.modeling.adapter import find_adapter, merge_adapter, read_adapter
from srm.modeling.alias import resolve_model_name
from srm.modeling.config import SentenceRewardConfig, positions_of
from srm.modeling.loading import check_tokenizer_fits, list_end_tokens, load_tokenizer, load_whole
from srm.modeling.reader import make_encoder
from srm.packing import PackingMode, PromptGroup, ResponseIds, UnsupportedBackboneError, check_decoder, pack, probe, run_to_logits
from srm.packing.backbone import num_embeddings
from srm.scoring.batching import split_passes
from srm.scoring.file import RowSettings, ScoredRows
from srm.scoring.guards import check_ids, not_finite
from srm.scoring.results import ScoredResponse, ScoredSentence
from srm.scoring.text import encode_groups

__all__ = ["ImplicitRewardModel", "policy_check"]

logger = logging.getLogger(__name__)

# Numbers in the logits of one pass at most: 1 GiB in float32.
_MOST_LOGITS = 2**28
# Rows whose log-probabilities are worked out together, in float32.
_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """What `encode_groups` asks a configuration."""

    granularity: Granularity = "sentence"
    max_positions: int | None


class ImplicitRewardModel:
    """A policy and its reference, which reward a response as DPO does.

    The response's reward is that of TRL's `rewards/chosen`: over its tokens and those that the chat template ends it with. A sentence has
    the part of its tokens. What other tokens earn, the ending's and those of a thought that has no sentence, is `prompt_reward`.

    Args:
        policy: a folder, or a name on the hub: a causal language model, or a LoRA adapter of one. Its tokenizer writes the prompts.
        ref_model: the model that the policy's training began with, in the same forms.
        beta: what the policy was trained with.
        dtype: of the weights; `auto` is the one they were saved in.
        device: where both run.

    Raises:
        UserError: one cannot be loaded, their tokens differ, or the policy's tokenizer has no chat template.
    """

    def __init__(self, policy: str, ref_model: str, *, beta: float = 0.1, dtype: torch.dtype | str = "auto", device: str = "cpu") -> None:
        self.beta = beta
        self.tokenizer = _load_tokenizer(policy, ref_model)
        self.policy = _load(policy, dtype).eval().to(device)
        self.reference = _load(ref_model, dtype).eval().to(device)
        check_tokenizer_fits(policy, self.tokenizer, self.policy)
        limits = [positions for model in (self.policy, self.reference) if (positions := positions_of(model.config)) is not None]
        room = min(limits) - len(self._ending) if limits else None
        self.config = _Limits(max_positions=room)

    @cached_property
    def encoder(self) -> ResponseEncoder:
        """Writes prompts in the policy's chat template, and cuts responses into `punkt` sentences."""
        return make_encoder(SentenceRewardConfig(backbone_config=self.policy.config), self.tokenizer)

    @cached_property
    def _ending(self) -> np.ndarray:
        """int32, what the chat template writes behind an answer, as ids."""
        return np.array(self.tokenizer(self.encoder.format.behind, add_special_tokens=False)["input_ids"], dtype=np.int32)

    @property
    def num_embeddings(self) -> int:
        """How many token ids both models have an embedding for."""
        return min(num_embeddings(self.policy), num_embeddings(self.reference))

    def packing_mode(self, asked: PackingMode | None = None) -> PackingMode:
        """The mode that runs where `asked` was asked for by name, or nothing was (None).

        Args:
            asked: None is `shared` where both models can run packed, else `none`, with one line in the log.

        Raises:
            UserError: one of them is no causal decoder.
            UnsupportedBackboneError: a packed mode was asked for, and one of them cannot run packed.
        """
        models = (self.policy.base_model, self.reference.base_model)
        for model in models:
            check_decoder(model)
        try:
            for model in models if asked != "none" else ():
                probe(model)
        except UnsupportedBackboneError as error:
            if asked is not None:
                raise
            logger.warning("%s cannot run packed (%s), so it runs padded: packing none", error.backbone, error.reason)
            return "none"
        return asked or "shared"

    def score_rows(self, rows: Iterable[ResponseRow], settings: RowSettings) -> Iterator[ScoredRows]:
        """Score rows, in order.

        Args:
            rows: taken as they are needed.
            settings: how they are scored. Passes are smaller than `tokens_per_batch` where logits would take more than 1 GiB.

        Returns:
            Rows with their scores.

        Raises:
            UserError: a row that cannot be scored.
        """
        waiting: deque[tuple[ResponseRow, EncodedResponse]] = deque()

        def groups() -> Iterator[PromptGroup]:
            for row in rows:
                [group] = encode_groups(
                    self, row.prompt, [row.response], where=[row.where], max_length=settings.max_length, overlong=settings.overlong
                )
                response = cast(EncodedResponse, group.responses[0])
                ids = np.concatenate([response.ids, self._ending])
                check_ids(self.num_embeddings, row.where, ids)
                waiting.append((row, response))
                yield PromptGroup(
                    prompt_ids=group.prompt_ids, responses=[ResponseIds(ids=ids, sentence_ends=np.arange(len(ids), dtype=np.int32))]
                )

        mode = self.packing_mode(settings.packing)
        most = max(1, min(settings.tokens_per_batch, _MOST_LOGITS // self.policy.config.get_text_config().vocab_size))
        for parts in split_passes(groups(), tokens_per_batch=most, packing=mode):
            scored = [waiting.popleft() for _ in parts]
            ratios = self._log_ratios([part.group for part in parts], mode, [row.where for row, _ in scored])
            yield [(row, self._read_off(response, ratio)) for (row, response), ratio in zip(scored, ratios, strict=True)]

    @torch.no_grad()
    def _log_ratios(self, groups: Sequence[PromptGroup], mode: PackingMode, where: Sequence[str]) -> list[Tensor]:
        """Of each group's only response, float64 on the CPU, `log pi - log pi_ref` of its tokens."""
        responses = [group.responses[0].ids for group in groups]
        batch = pack(groups, mode=mode, pad_token_id=self.tokenizer.pad_token_id or 0).to(self.policy.device)
        # Every token is a boundary, and so is the prompt's last one. Each says what comes next; behind the last one nothing does.
        has_next = torch.ones_like(batch.boundaries, dtype=torch.bool)
        has_next[batch.cu_boundaries[1:].long() - 1] = False
        rows_M = batch.boundaries[has_next]
        ids_M = torch.from_numpy(np.concatenate(responses)).long().to(rows_M.device)
        found = []
        for model in (self.policy, self.reference):
            logprobs = _logprobs(run_to_logits(model, batch, rows_M)[0], ids_M).cpu().double().split([len(ids) for ids in responses])
            for place, some in zip(where, logprobs, strict=True):
                if not some.isfinite().all():
                    raise not_finite(model, place, some[~some.isfinite()][0].item())
            found.append(logprobs)
        return [policy - reference for policy, reference in zip(*found, strict=True)]

    def _read_off(self, response: EncodedResponse, ratio: Tensor) -> ScoredResponse:
        edges = [response.opening, *(end + 1 for end in response.sentence_ends.tolist())]
        earned = [self.beta * math.fsum(ratio[start:end].tolist()) for start, end in pairwise(edges)]
        outside = [*ratio[: edges[0]].tolist(), *ratio[edges[-1] :].tolist()]
        sentences = tuple(
            ScoredSentence(
                text=response.text[span.start : span.end], start=span.start, end=span.end, reward=reward, weight=1.0, weighted_reward=reward
            )
            for span, reward in zip(response.spans, earned, strict=True)
        )
        rest = self.beta * math.fsum(outside)
        reward = math.fsum([rest, *earned])
        return ScoredResponse(reward=reward, prompt_reward=rest, prompt_weight=1.0, sentences=sentences, truncated=response.truncated)


def policy_check(policy: str, ref_model: str) -> RowCheck:
    """What finds rows that a policy cannot read; its tokenizer is enough for that.

    Args:
        policy: a folder, or a name on the hub.
        ref_model: its reference.

    Raises:
        UserError: no tokenizer could be loaded, it has no chat template, or the reference has other tokens.
    """
    tokenizer = _load_tokenizer(policy, ref_model)
    form = ChatFormat(tokenizer)
    return partial(check_row, form, AnswerTokens(tokenizer, form))


def _logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """fp32 [M], the log-probabilities of `ids` [M] in `logits` [M, V]."""
    parts = []
    for some, chosen in zip(logits.split(_ROWS), ids.split(_ROWS), strict=True):
        whole = some.float()
        parts.append(whole.gather(-1, chosen[:, None])[:, 0] - whole.logsumexp(-1))
    return torch.cat(parts)


def _load_tokenizer(policy: str, ref_model: str) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(resolve_model_name(policy))
    if tokenizer.chat_template is None:
        raise UserError(
            f"{policy}: its tokenizer has no chat template, so there is no telling how the policy reads a prompt. Save one "
            "(chat_template.jinja) beside its tokenizer."
        )
    if load_tokenizer(resolve_model_name(ref_model)).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"--ref_model {ref_model}: its tokens are not those of the policy {policy}, so their log-probabilities cannot be compared. "
            "Give the model that the policy's training began with."
        )
    return tokenizer


def _load(name: str, dtype: torch.dtype | str) -> PreTrainedModel:
    """The language model at `name`; one with a LoRA adapter merged."""
    path = resolve_model_name(name)
    folder = find_adapter(path)
    load: Any = AutoModelForCausalLM.from_pretrained
    if folder is None:
        model: PreTrainedModel = load_whole(load, path, dtype=dtype)[0]
    else:
        adapter = read_adapter(folder)
        at = {} if adapter.revision is None else {"revision": adapter.revision}
        path = resolve_model_name(str(adapter.base_model_name_or_path))
        model = merge_adapter(load_whole(load, path, dtype=dtype, **at)[0], folder)
    list_end_tokens(model.config, path)
    return model
