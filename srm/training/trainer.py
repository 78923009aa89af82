"""SentenceRewardTrainer: transformers.Trainer on preference pairs.

Shape letters: `B` responses, `P` pairs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from srm.data import EncodedComparison, PairCollator
from srm.errors import UserError
from srm.modeling import SentenceRewardModel
from srm.training.accelerate_setup import (
    compile_backbone,
    float32_weights,
    keep_rewards_in_float32,
    place_model,
    settle_deepspeed,
    settle_trainer,
)
from srm.training.arguments import RewardConfig
from srm.training.credit_watch import CreditWatch
from srm.training.dropout import disable_dropout
from srm.training.loss_check import LossGuard, require_finite_logs
from srm.training.losses import reward_loss
from srm.training.metrics import RewardMetrics
from srm.training.row_check import check_rows
from srm.training.sampling import GlobalBatchSampler, PassCollator, RowDataset
from srm.training.savers import offloaded_activations, use_liger_kernels
from srm.training.saving import AtomicSavingTrainer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import TrainerControl, TrainerState

__all__ = ["SentenceRewardTrainer"]

Rows = Sequence[EncodedComparison]


class SentenceRewardTrainer(AtomicSavingTrainer):
    """Trains a `SentenceRewardModel`, or one with LoRA adapters, on encoded comparisons.

    The loss is the mean over the pairs of a global batch, whatever the split into processes, accumulation steps and packed rows;
    a ranking counts as one row, its pairs share the weight. Everything else is `transformers.Trainer`'s.

    Args:
        model: the reward model, with its tokenizer.
        args: the settings.
        train_dataset: encoded comparisons (`srm.data.encode_comparisons`), none longer than `args.max_length`.
        eval_dataset: the same, or a dict of several by name.
        callbacks, optimizers: as in `transformers.Trainer`.
    """

    args: RewardConfig
    # compute_loss divides by the pairs of the whole global batch itself.
    loss_is_scaled_for_ga = True
    # Of the last pass, as `compute_loss` scales it.
    _pair_loss: Tensor

    def __init__(
        self,
        model: SentenceRewardModel | PeftModel,
        args: RewardConfig,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | Mapping[str, Rows] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ) -> None:
        self.reward_model = reward_model_of(model)
        self.reward_model.config.last_layer_rows = args.last_layer_rows or self.reward_model.config.last_layer_rows
        # Before anything is sharded or compiled: the proof runs the model.
        place_model(self.reward_model, args)
        self.reward_model.packing_mode(args.packing)
        settle_trainer(args)
        if args.n_gpu > 1:
            # Trainer would use DataParallel, which cannot split a packed batch.
            args._n_gpu = 1
        if args.disable_dropout:
            disable_dropout(self.reward_model.backbone)
        if args.use_liger_kernel:
            use_liger_kernels(self.reward_model.backbone, args.liger_kernel_config)
        if self.reward_model.tokenizer is None:
            raise UserError("the model has no tokenizer. Set `model.tokenizer`: it is saved with the model, and pads batches.")
        # Else Trainer copies them itself, and warns as if something were wrong.
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(self.reward_model.config, name, getattr(self.reward_model.tokenizer, name))
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=self.reward_model.tokenizer,
            callbacks=[_EpochCallback(self), *(callbacks or [])],
            optimizers=optimizers,
        )
        keep_rewards_in_float32(self.accelerator)
        settle_deepspeed(self.accelerator, args.max_grad_norm)
        self.compiled_with = compile_backbone(
            self.accelerator, self.reward_model.backbone, backend=args.torch_compile_backend, mode=args.torch_compile_mode
        )
        # Older releases of transformers read this in place of `loss_is_scaled_for_ga`.
        self.model_accepts_loss_kwargs = True
        self.train_sampler: GlobalBatchSampler | None = None
        self._collator = PassCollator(
            PairCollator(
                packing=args.packing,
                pad_token_id=_pad_token_id(self.reward_model),
                granularity=self.reward_model.config.granularity,
            )
        )
        self._guard = LossGuard()
        self._credit = CreditWatch()
        self._train_metrics = RewardMetrics.of(self.reward_model, args.device)
        self._eval_metrics = RewardMetrics.of(self.reward_model, args.device)
        self._window_start = time.perf_counter()

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process, in the order that the seed and the epoch decide."""
        rows = cast(Rows, self.train_dataset)
        if not rows:
            raise UserError("there is no row to train on.")
        check_rows(rows, self.reward_model, self.args.max_length)
        self.train_sampler = GlobalBatchSampler(
            rows,
            packing=self.args.packing,
            batch_size=self._train_batch_size,
            num_processes=self.accelerator.num_processes,
            accumulation_steps=self.args.gradient_accumulation_steps,
            max_tokens=self.args.tokens_per_batch,
            order=self.args.train_sampling_strategy,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            drop_last=self.args.dataloader_drop_last,
        )
        if not len(self.train_sampler):
            raise UserError(
                f"{len(rows)} rows are fewer than one global batch of {self.train_sampler.global_size}, and "
                "--dataloader_drop_last leaves out what does not fill one. Drop the flag or make the batch smaller."
            )
        return self._loader(rows, self.train_sampler)

    # Rows are a plain sequence, where Trainer has a torch Dataset.
    def get_eval_dataloader(self, eval_dataset: str | Rows | None = None) -> DataLoader:  # type: ignore[override]
        """Batches of this process of the evaluation rows, in their order; a name picks one of several sets."""
        ours: Any = self.eval_dataset
        return self.get_test_dataloader(
            ours[eval_dataset] if isinstance(eval_dataset, str) else ours if eval_dataset is None else eval_dataset
        )

    def get_test_dataloader(self, test_dataset: Rows) -> DataLoader:  # type: ignore[override]
        """Batches of this process of `test_dataset`, in its order."""
        if not test_dataset:
            raise UserError("there is no row to evaluate on.")
        check_rows(test_dataset, self.reward_model, self.args.max_length)
        sampler = GlobalBatchSampler(
            test_dataset,
            packing=self.args.packing,
            batch_size=self.args.eval_batch_size,
            num_processes=self.accelerator.num_processes,
            max_tokens=self.args.tokens_per_batch,
            order="sequential",
        )
        return self._loader(test_dataset, sampler)

    def _loader(self, rows: Rows, sampler: GlobalBatchSampler) -> DataLoader:
        args = self.args
        loader = DataLoader(
            RowDataset(rows),
            batch_sampler=sampler,
            collate_fn=self._collator,
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare_data_loader(loader)

    # Loss

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Tensor | None]:
        """The batches of one optimizer step, and the weight of all pairs in it, of every process."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        # full, because a copy from the host would wait for the device.
        weight = torch.full((), sum(part["num_items"] for parts in batches for part in parts), device=device, dtype=torch.float32)
        return batches, self.accelerator.reduce(weight, reduction="sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The batch's share of what the global batch minimises; without `num_items_in_batch`, its own mean."""
        batch = inputs["batch"].to(self.args.device)
        pairs = inputs["pairs"].to(self.args.device)
        margin, weight = (_to(inputs[name], self.args.device) for name in ("margin", "weight"))
        output = model(batch=batch)
        loss = reward_loss(
            output,
            batch.cu_boundaries,
            pairs,
            margin=margin,
            weight=weight,
            label_smoothing=self.args.label_smoothing_factor,
            centering=self.args.center_rewards_coefficient or 0.0,
            **self.args.sentence_terms(self.reward_model.config.granularity),
        )
        # A filler (see sampling.py) weighs nothing and is not counted.
        if inputs["num_items"]:
            metrics = self._train_metrics if self.model.training else self._eval_metrics
            metrics.add(output, batch, pairs, weight, loss)
        objective, self._pair_loss = loss.objective, loss.pair_loss
        if num_items_in_batch is not None:
            # DDP and FSDP average the gradients of the processes; the sum is wanted.
            share = inputs["num_items"] * self.accelerator.num_processes / num_items_in_batch
            objective, self._pair_loss = objective * share, self._pair_loss * share
        return (objective, output) if return_outputs else objective

    # The loader gives a list, a batch for each pass of a slot (see sampling.py), where Trainer has a dict.
    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: Sequence[dict[str, Any]], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of every pass; stops the run at a loss that is no number.

        Returns:
            The pair loss alone, of which Trainer logs the mean: so `loss` is the same thing in training and evaluation.
        """
        *others, last = inputs
        objectives: list[Tensor] = []
        pair_losses: list[Tensor] = []

        def step(part: dict[str, Any]) -> None:
            objectives.append(super(SentenceRewardTrainer, self).training_step(model, part, num_items_in_batch))
            pair_losses.append(self._pair_loss)

        with offloaded_activations(self.model, self.args.activation_offloading):
            if others:
                state = self.accelerator.gradient_state
                synchronise = state.sync_gradients
                # DeepSpeed takes a step where this is set; the others look at the context.
                state._set_sync_gradients(False)
                with self.accelerator.no_sync(model):
                    for part in others:
                        step(part)
                state._set_sync_gradients(synchronise)
            step(last)
        self._guard.watch(torch.stack(objectives).sum(), self.state.global_step + 1)
        return torch.stack(pair_losses).sum()

    # Optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimizer, with the head's value and its attention in groups of their own, each at its learning rate."""
        created = self.optimizer is None
        optimizer = super().create_optimizer(*([] if model is None else [model]))
        if created:
            names = {id(weight): name for name, weight in (model or self.model).named_parameters()}
            for group in list(optimizer.param_groups):
                weights = group["params"]
                group["params"] = [weight for weight in weights if _is_backbone(names[id(weight)])]
                head = [weight for weight in weights if not _is_backbone(names[id(weight)])]
                value = [weight for weight in head if ".value." in names[id(weight)]]
                attention = [weight for weight in head if ".value." not in names[id(weight)]]
                optimizer.add_param_group({**group, "params": value, "lr": self.args.resolved_head_learning_rate})
                optimizer.add_param_group({**group, "params": attention, "lr": self.args.attention_learning_rate})
            optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    # Logging, evaluation and saving

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's; a training step's logs gain the reward metrics since the last one."""
        if "loss" in logs:
            self._guard.settle()
            metrics = self._train_metrics.read(self.accelerator, time.perf_counter() - self._window_start)
            require_finite_logs(metrics, f"step {self.state.global_step}")
            # The warning is about what the attention does.
            if self.is_world_process_zero() and self._train_metrics.has_attention:
                self._credit.add(*self._train_metrics.last_correct, self.state.global_step)
            # Trainer's own loss is the same number, averaged over steps rather than pairs.
            logs |= {name: value for name, value in metrics.items() if name != "loss"}
            self._window_start = time.perf_counter()
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As Trainer's; the metrics are exact means over the pairs, and predictions are not kept."""
        self._guard.settle()
        started = time.perf_counter()
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        metrics = self._eval_metrics.read(self.accelerator)
        require_finite_logs(metrics, f"evaluation at step {self.state.global_step}")
        assert output.metrics is not None
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        self._window_start += time.perf_counter() - started
        return output

    def prediction_step(  # type: ignore[override]
        self, model: nn.Module, inputs: Sequence[dict[str, Any]], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """The mean of the passes' losses, which only Trainer's loop asks for: what is reported is in the metrics, exact over the pairs."""
        with torch.no_grad(), self.compute_loss_context_manager():
            losses = [self.compute_loss(model, part) for part in inputs]
        return torch.stack(losses).mean(), None, None

    def floating_point_ops(self, inputs: Sequence[Mapping[str, Any]]) -> int:  # type: ignore[override]
        """Of a forward and backward pass, without attention's: 6 per token and weight outside the embedding."""
        return 6 * sum(part["batch"].num_tokens for part in inputs) * self._num_weights

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `transformers.Trainer.train`.

        Raises:
            UserError: the loss or a weight became NaN, or the disk is full. The last checkpoint stays good.
        """
        embedding = self.reward_model.get_input_embeddings()
        self._num_weights = sum(weight.numel() for weight in self.model.parameters()) - sum(
            weight.numel() for weight in embedding.parameters()
        )
        self._window_start = time.perf_counter()
        return super().train(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._guard.settle()
        started = time.perf_counter()
        super()._save_checkpoint(model, trial)
        self._window_start += time.perf_counter() - started

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.is_deepspeed_enabled:
            # `state_dict` has the head as rounded as the rest, on the process that saves.
            head = float32_weights((name, weight) for name, weight in self.model.named_parameters() if not _is_backbone(name))
            state_dict = state_dict and {**state_dict, **head}
        super()._save(output_dir, state_dict)


class _EpochCallback(TrainerCallback):
    """Tells the sampler which epoch begins; also after a resume, where it may begin in its middle."""

    def __init__(self, trainer: SentenceRewardTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        sampler = self.trainer.train_sampler
        assert sampler is not None
        steps = -(-len(sampler) // (sampler.num_processes * args.gradient_accumulation_steps))
        sampler.epoch = state.global_step // steps


def reward_model_of(model: SentenceRewardModel | PeftModel) -> SentenceRewardModel:
    """The reward model inside `model`."""
    inner: Any = getattr(model, "get_base_model", lambda: model)()
    if not isinstance(inner, SentenceRewardModel):
        raise TypeError(
            f"SentenceRewardTrainer: `model` must be a SentenceRewardModel, or a PeftModel around one, got {type(inner).__name__}."
        )
    return inner


def _is_backbone(name: str) -> bool:
    return "backbone." in name


def _pad_token_id(model: SentenceRewardModel) -> int:
    # Any id will do where there is none: the mask hides padding.
    return getattr(model.tokenizer, "pad_token_id", None) or 0


def _to(value: Tensor | None, device: torch.device) -> Tensor | None:
    return None if value is None else value.to(device, non_blocking=True)
