"""Who trains: our trainer in each packing mode, and trl's RewardTrainer as it comes and grouped by length, step by step in turn (turns.py).

What is timed is all that a trainer does for a step: collating, both passes, clipping, the optimizer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from providers import Batch, Contender, Models, Rows, ours_rewards
from torch import Tensor
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from turns import Turns
from workloads import padded_tokens, real_tokens

from srm.packing import PackingMode
from srm.scoring.batching import pass_cost

__all__ = ["TRL", "ours_trainer", "trl_trainer"]

TRL = ("trl", "trl-grouped")


def ours_trainer(
    models: Models, rows: Rows, *, packing: PackingMode, batch_size: int, pass_size: int, choose: Callable[[list[Batch]], list[Batch]]
) -> tuple[Contender, list[Batch], Turns]:
    """Our trainer on the batches that `choose` picks from a random epoch, each in passes of `pass_size` pairs: the same gradient."""
    from srm.training import RewardConfig, SentenceRewardTrainer
    from srm.training.sampling import GlobalBatchSampler

    def tokens(part: Rows) -> int:
        passes = GlobalBatchSampler(
            part, packing=packing, batch_size=pass_size, accumulation_steps=batch_size // pass_size, order="sequential"
        )
        return sum(pass_cost([part[i] for i in one], packing) for (one,) in passes)

    epoch = _batches(rows, _random(rows, batch_size), tokens)
    chosen = choose(epoch)
    model = models.reward_model(models.copy_of_backbone())
    args = RewardConfig(**_settings(models, pass_size), gradient_accumulation_steps=batch_size // pass_size, packing=packing)
    trainer = SentenceRewardTrainer(model, args, [row for batch in chosen for row in batch.items])
    turns = Turns(trainer)
    contender = Contender(
        batches=epoch, run=turns.step, rewards=lambda rows: ours_rewards(models, model, rows, packing), backbone=model.backbone
    )
    return contender, chosen, turns


def trl_trainer(
    models: Models, rows: Rows, *, grouped: bool, batch_size: int, choose: Callable[[list[Batch]], list[Batch]]
) -> tuple[Contender, list[Batch], Turns]:
    """trl's trainer with its defaults, on the batches that `choose` picks from the epoch that its sampler would draw."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    order = _by_length(rows, batch_size) if grouped else _random(rows, batch_size)
    epoch = _batches(rows, order, padded_tokens)
    chosen = choose(epoch)
    data = [_trl_row(row) for batch in chosen for row in batch.items]
    model = models.peer()
    trainer = RewardTrainer(
        model, RewardConfig(**_settings(models, batch_size)), train_dataset=Dataset.from_list(data), processing_class=models.tokenizer
    )

    def rewards(rows: Rows) -> Tensor:
        collated = trainer.data_collator([_trl_row(row) for row in rows])
        inputs = {name: value.to(models.device) for name, value in collated.items()}
        with torch.no_grad():
            chosen_then_rejected = model(**inputs, use_cache=False).logits[:, 0].float().cpu()
        return chosen_then_rejected.reshape(2, -1).T.flatten()

    turns = Turns(trainer)
    contender = Contender(batches=epoch, run=turns.step, rewards=rewards, backbone=model.base_model, note=_note(trainer, model))
    return contender, chosen, turns


def _settings(models: Models, batch_size: int) -> dict[str, Any]:
    """What every trainer is told; the rest is its own default. The batches come in the order they were chosen in."""
    return {
        "output_dir": tempfile.mkdtemp(prefix="throughput_"),
        "per_device_train_batch_size": batch_size,
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 1,
        "learning_rate": 1e-6,
        # The rows are cut already, all providers get the same.
        "max_length": None,
        "bf16": True,
        "use_cpu": models.device.type == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
    }


def _note(trainer: Trainer, model: PreTrainedModel) -> str | None:
    args: Any = trainer.args
    if getattr(args, "gradient_checkpointing", None) or getattr(args, "activation_checkpointing", None):
        return "gradient checkpointing is on by default: the forward pass runs twice, a third more work, for less memory"
    return None


def _trl_row(row: Any) -> dict[str, list[int]]:
    chosen, rejected = ([*row.prompt_ids.tolist(), *response.ids.tolist()] for response in row.responses)
    return {"chosen_ids": chosen, "rejected_ids": rejected}


def _batches(rows: Rows, order: Sequence[Sequence[int]], tokens: Callable[[Rows], int]) -> list[Batch]:
    """Whole batches of `order`, which is a list of rows by batch."""
    return [Batch(items=part, tokens=tokens(part), real_tokens=real_tokens(part)) for part in ([rows[i] for i in batch] for batch in order)]


def _random(rows: Rows, batch_size: int) -> list[list[int]]:
    return _cut(torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist(), batch_size)


def _by_length(rows: Rows, batch_size: int) -> list[list[int]]:
    """What `train_sampling_strategy="group_by_length"` draws, told the length of the longer sequence of each pair."""
    lengths = [row.longest for row in rows]
    return _cut(list(LengthGroupedSampler(batch_size, lengths=lengths, generator=torch.Generator().manual_seed(0))), batch_size)


def _cut(order: list[int], batch_size: int) -> list[list[int]]:
    return [order[start : start + batch_size] for start in range(0, len(order) - batch_size + 1, batch_size)]
