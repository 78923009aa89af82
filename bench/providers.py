"""Who scores: our model in each packing mode, and the strongest padded set-up, single sequences sorted by length.

All run the same backbone weights. `rewards` uses one linear layer on the last token, which is our head at `granularity="response"` and the
score layer of `AutoModelForSequenceClassification`, so that the numbers can be compared. What is timed for us is the sentence-level head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, PreTrainedModel
from workloads import real_tokens

from srm.data import EncodedComparison, PairCollator
from srm.modeling import SentenceRewardConfig, SentenceRewardModel
from srm.modeling.alias import resolve_model_name
from srm.packing import LastLayerRows, PackingMode, report
from srm.scoring.batching import pass_cost

__all__ = ["OURS", "Batch", "Contender", "Models", "Rows", "batches_by_budget", "hf_padded", "ours", "ours_both_passes", "ours_rewards"]

# How each of ours lays responses out, and which rows its last layer runs on.
OURS: dict[str, tuple[PackingMode, LastLayerRows]] = {
    "shared": ("shared", "boundaries"),
    "shared-all-rows": ("shared", "all"),
    "packed": ("packed", "boundaries"),
    "none": ("none", "boundaries"),
}
Rows = Sequence[EncodedComparison]

# Random weights: a shape for tests, that of SmolLM2-135M, and that of a Llama of one billion weights.
_SHAPES: dict[str, dict[str, int]] = {
    "random-tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300},
    "random-smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "vocab_size": 49_152,
    },
    "random-llama-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "vocab_size": 128_256,
    },
}
_KV_HEADS = {"random-tiny": 2, "random-smollm2-135m": 3, "random-llama-1b": 8}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one call runs. tokens: those the backbone runs, padding included; real_tokens: prompt and response of each response."""

    items: Any
    tokens: int
    real_tokens: int


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One provider in one mode.

    batches: all of an epoch over the rows. run: does the work of one of them. rewards: of each response, for the check.
    backbone: its forward passes are counted, to hold the provider to the tokens it claims.
    """

    batches: list[Batch]
    run: Callable[[Batch], object]
    rewards: Callable[[Rows], Tensor]
    backbone: torch.nn.Module
    note: str | None = None


class Models:
    """One backbone by name, and the reward models on copies of it."""

    def __init__(self, name: str, *, dtype: torch.dtype, device: torch.device) -> None:
        self.device = device
        # Which packed attention ran, once there is a model.
        self.attention: str | None = None
        torch.manual_seed(0)
        if name in _SHAPES:
            config = LlamaConfig(**_SHAPES[name], num_key_value_heads=_KV_HEADS[name], max_position_embeddings=131_072, pad_token_id=2)
            # Drawn where it will run: a billion normal numbers take one CPU core a minute and a half. In its dtype from the start, as
            # `to` would round the rotary frequencies too.
            with device:
                self.backbone: PreTrainedModel = AutoModel.from_config(config, dtype=dtype)
            self.tokenizer = _any_tokenizer()
        else:
            path = resolve_model_name(name)
            self.backbone = AutoModel.from_pretrained(path, dtype=dtype)
            self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.config = self.backbone.config
        # Exact in bf16, so that heads of different dtypes are the same.
        self.score_weight = torch.randn(1, self.config.hidden_size).div(self.config.hidden_size**0.5).bfloat16()

    @property
    def num_weights(self) -> int:
        """Weights outside the embedding: each makes two floating-point operations a token and forward pass."""
        return sum(p.numel() for p in self.backbone.parameters()) - sum(
            p.numel() for p in self.backbone.get_input_embeddings().parameters()
        )

    def copy_of_backbone(self) -> PreTrainedModel:
        return copy.deepcopy(self.backbone).to(self.device)

    def reward_model(self, backbone: PreTrainedModel, **settings: Any) -> SentenceRewardModel:
        """Ours on `backbone`, the value head at `score_weight`; `settings` are those of its config."""
        model = SentenceRewardModel(SentenceRewardConfig(backbone_config=backbone.config, **settings), backbone=backbone)
        with torch.no_grad():
            model.head.value.weight.copy_(self.score_weight)
        model.tokenizer = self.tokenizer
        model = model.eval().to(self.device)
        # Proved now, so that it is neither counted nor timed later.
        model.packing_mode("shared")
        self.attention = report(backbone).backend
        return model

    def peer(self, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """`AutoModelForSequenceClassification` with one output and the same weights."""
        config = copy.deepcopy(self.config)
        config.num_labels, config.pad_token_id = 1, self.pad_token_id
        with self.device:
            model = AutoModelForSequenceClassification.from_config(config, dtype=dtype or self.backbone.dtype)
        model.base_model.load_state_dict(self.backbone.state_dict())
        with torch.no_grad():
            model.score.weight.copy_(self.score_weight)
        return model.eval().to(self.device)

    @cached_property
    def pad_token_id(self) -> int:
        return self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id

    def reference(self, rows: Rows, dtype: torch.dtype = torch.float32) -> Tensor:
        """fp32, the rewards of each response by the peer in `dtype`, one by one."""
        model = self.peer(dtype)
        with torch.no_grad():
            rewards = [model(input_ids=ids.to(self.device)[None], use_cache=False).logits[:, 0] for ids in _sequences(rows)]
        return torch.cat(rewards).float().cpu()


def ours(models: Models, rows: Rows, *, provider: str, budget: int) -> Contender:
    """`SentenceRewardModel` on batches of whole rows."""
    packing, last_layer_rows = OURS[provider]
    model = models.reward_model(models.copy_of_backbone(), last_layer_rows=last_layer_rows)
    model.packing_mode(packing)
    collate = PairCollator(packing=packing, pad_token_id=models.pad_token_id)

    @torch.inference_mode()
    def run(batch: Batch) -> Tensor:
        return model(collate(batch.items)["batch"].to(models.device)).reward.cpu()

    return Contender(
        batches=[
            Batch(items=part, tokens=pass_cost(part, packing), real_tokens=real_tokens(part))
            for part in batches_by_budget(rows, lambda part: pass_cost(part, packing), budget)
        ],
        run=run,
        rewards=lambda rows: ours_rewards(models, model, rows, packing),
        backbone=model.backbone,
    )


def ours_both_passes(models: Models, rows: Rows, *, provider: str, budget: int, checkpointing: bool = False) -> Contender:
    """The same batches forward and backward, as a training step runs them, without an optimizer. checkpointing: of every layer."""
    packing, last_layer_rows = OURS[provider]
    scorer = ours(models, rows, provider=provider, budget=budget)
    model = models.reward_model(scorer.backbone, last_layer_rows=last_layer_rows)
    if checkpointing:
        model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    collate = PairCollator(packing=packing, pad_token_id=models.pad_token_id)

    def run(batch: Batch) -> None:
        # The check has left the backbone in eval mode, in which nothing is checkpointed.
        model.train()
        model(collate(batch.items)["batch"].to(models.device)).reward.sum().backward()
        model.zero_grad(set_to_none=True)

    return replace(scorer, run=run)


def ours_rewards(models: Models, model: SentenceRewardModel, rows: Rows, packing: PackingMode) -> Tensor:
    """Response-level rewards on the backbone of `model`."""
    collate = PairCollator(packing=packing, pad_token_id=models.pad_token_id)
    with torch.no_grad():
        response_level = models.reward_model(model.backbone, granularity="response", last_layer_rows=model.config.last_layer_rows)
        return response_level(collate(rows)["batch"].to(models.device)).reward.cpu()


def hf_padded(models: Models, rows: Rows, *, budget: int) -> Contender:
    """`AutoModelForSequenceClassification` on single sequences sorted by length, as many as fit the same number of tokens."""
    model = models.peer()

    def score(sequences: Sequence[Tensor]) -> Tensor:
        ids = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=models.pad_token_id)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(s) for s in sequences])[:, None]
        logits = model(input_ids=ids.to(models.device), attention_mask=mask.long().to(models.device), use_cache=False).logits
        return logits[:, 0].float().cpu()

    @torch.inference_mode()
    def run(batch: Batch) -> Tensor:
        return score(batch.items)

    def tokens(part: Sequence[Tensor]) -> int:
        return len(part) * max(map(len, part))

    parts = batches_by_budget(sorted(_sequences(rows), key=len), tokens, budget)
    return Contender(
        batches=[Batch(items=part, tokens=tokens(part), real_tokens=sum(map(len, part))) for part in parts],
        run=run,
        rewards=lambda rows: run(Batch(items=_sequences(rows), tokens=0, real_tokens=0)),
        backbone=model.base_model,
    )


def batches_by_budget(items: Sequence[Any], tokens: Callable[[Any], int], budget: int) -> Iterator[list[Any]]:
    """`items` in order, in batches of at most `budget` tokens; a larger item is alone."""
    batch: list[Any] = []
    for item in items:
        if batch and tokens([*batch, item]) > budget:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _sequences(rows: Rows) -> list[Tensor]:
    """int64 [prompt + response] of each response."""
    return [torch.tensor([*row.prompt_ids.tolist(), *response.ids.tolist()]) for row in rows for response in row.responses]


def _any_tokenizer() -> Any:
    """For random weights: what trainers ask of a tokenizer before they train on ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")), bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
