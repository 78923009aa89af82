"""The loop: draw prompts, write responses, score them, learn from them, write down how it went.

Shape letters: `B` responses of a step on one process, `L` width of the padded responses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from srm.errors import UserError
from srm.packing.backbone import restore
from srm.rl.arguments import RLConfig
from srm.rl.losses import clipped_policy_loss, clipped_value_loss, reference_kl, reinforce_loss
from srm.rl.policy import Policy, Responses, TokenStats, generate
from srm.rl.rollout import Rollout, make_rollout
from srm.rl.state import RunFolder
from srm.runs.folders import claim
from srm.runs.lock import hold_together
from srm.segmentation import turn_end_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from srm.data import Prompt
    from srm.modeling import SentenceRewardModel
    from srm.scoring.token_ids import ScoredTokens

__all__ = ["RLTrainer"]

Log = dict[str, float]


class RLTrainer:
    """REINFORCE, PPO or GRPO on the rewards of a sentence-level reward model.

    The policy stays in evaluation mode, without dropout, so that the probabilities of the update are those of the sampling.

    Args:
        config: the settings.
        policy: a causal language model in float32; it is trained in place.
        reference: its frozen copy.
        tokenizer: the policy's.
        reward_model: in evaluation mode; its vocabulary may be another one.
        prompts: each with its token ids for the policy.
        on_step: called with each step's log by the first process.
    """

    def __init__(
        self,
        config: RLConfig,
        *,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        reward_model: SentenceRewardModel,
        prompts: Sequence[tuple[Prompt, list[int]]],
        accelerator: Accelerator,
        on_step: Callable[[Log], None] = lambda log: None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.on_step = on_step
        self.end_ids = _end_ids(policy, tokenizer)
        # Masks come from end tokens, so the padding may be any id, one of these too.
        self.pad_id = self.end_ids[0] if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        device = accelerator.device
        self.reward_model = torch.nn.Module.to(reward_model, device).eval()
        self.reference = Policy(torch.nn.Module.to(reference, device), packing=config.packing).eval().requires_grad_(False)
        self.inner = Policy(torch.nn.Module.to(policy, device), value_head=config.algorithm == "ppo", packing=config.packing).eval()
        optimizer, scheduler = _optimizer(self.inner, config)
        self.policy, self.optimizer = accelerator.prepare(self.inner, optimizer)
        self.scheduler = scheduler
        self.folder = RunFolder(config, accelerator, [ids for _, ids in prompts])
        self._owns_folder = False

    def own(self) -> None:
        """Say that what lies in the output directory may be replaced: the caller has looked."""
        self._owns_folder = True

    def train(self, checkpoint: str | None = None) -> None:
        """Run up to step `max_steps`, and save the policy.

        Args:
            checkpoint: a folder `checkpoint-N` to go on from, whose weights the policy was loaded with (`build_trainer`).

        Raises:
            UserError: the output directory is not empty, and neither `checkpoint` nor `overwrite_output_dir` says what to do with that;
                another run is writing there; gradients became NaN or infinite; or the disk is full (the last checkpoint stays good).
        """
        with hold_together(self.config.output_dir, writes=self.accelerator.is_main_process):
            self._claim(checkpoint)
            self._train(checkpoint)

    def _claim(self, checkpoint: str | None) -> None:
        """Refuse to write where srm-rl would, when the folder is written into for the first time."""
        if not self._owns_folder:
            claim(
                self.config.output_dir,
                checkpoint,
                overwrite=self.config.overwrite_output_dir,
                writes=self.accelerator.is_main_process,
                wait=self.accelerator.wait_for_everyone,
            )
        self.own()

    def _train(self, checkpoint: str | None) -> None:
        set_seed(self.config.seed + self.accelerator.process_index)
        first = self.folder.restore(checkpoint, self.inner, self.optimizer, self.scheduler) if checkpoint else 0
        self.folder.start_log(first)
        for step in range(first + 1, self.config.max_steps + 1):
            log = self._step(step)
            self.folder.write_log(log)
            if self.accelerator.is_main_process:
                self.on_step(log)
            if step % self.config.save_steps == 0 or step == self.config.max_steps:
                self.folder.save_checkpoint(step, self.inner, self.tokenizer, self.optimizer, self.scheduler)
        self.folder.save_model(self.inner, self.tokenizer)
        # Whoever has the policy may go on with it.
        restore(self.inner.model)

    def _step(self, step: int) -> Log:
        started = time.perf_counter()
        rollout, log = self._collect(step)
        log |= self._update(rollout, step)
        names = list(log)
        means = self.accelerator.reduce(torch.tensor([log[name] for name in names], device=self.accelerator.device), "mean").tolist()
        episodes = step * self.config.rollout_size * self.accelerator.num_processes
        rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        seconds = time.perf_counter() - started
        return {"step": step, "episodes": episodes, **dict(zip(names, means, strict=True)), "learning_rate": rate, "seconds": seconds}

    def _collect(self, step: int) -> tuple[Rollout, Log]:
        """Responses of the current policy with their advantages, and what they are like."""
        config = self.config
        drawn = [self.prompts[index] for index in self._draw(step)]
        with self.accelerator.autocast():
            try:
                responses = generate(
                    self.inner.model,
                    [ids for _, ids in drawn],
                    num_generations=config.num_generations,
                    max_completion_length=config.max_completion_length,
                    temperature=config.temperature,
                    end_ids=self.end_ids,
                    pad_id=self.pad_id,
                )
            except RuntimeError as error:
                # torch's words for probabilities that are no numbers.
                if "probability tensor contains" not in str(error):
                    raise
                raise UserError(
                    f"the policy's probabilities became NaN or infinite before step {step}, so it can write nothing. "
                    "Lower --learning_rate, then go on with --resume_from_checkpoint true."
                ) from error
            scored = self._score([row for row in drawn for _ in range(config.num_generations)], responses)
            stats, reference = self._statistics(self.inner, responses), self._statistics(self.reference, responses)
        mask = responses.mask
        # A deviation is no mean over processes, as the rest of the log is.
        rewards = self.accelerator.gather(scored.reward)
        kl = torch.where(mask, stats.logprobs - reference.logprobs, 0).sum(1)
        log = {
            "reward": float(scored.reward.mean()),
            "reward_std": float(rewards.std()) if rewards.numel() > 1 else 0.0,
            "kl": float(kl.mean()),
            "length": float(mask.sum(1).float().mean()),
            "entropy": float(stats.entropy[mask].mean()),
            "finished": float((mask.sum(1) > responses.text_lengths).float().mean()),
            "sentences": float(scored.is_sentence.float().sum() / mask.shape[0]),
        }
        return make_rollout(responses, scored, stats, reference.logprobs, config), log

    def _draw(self, step: int) -> Iterator[int]:
        """Indices of this process's prompts: an epoch goes through all of them, in an order that depends on seed and epoch alone."""
        count = self.config.rollout_size // self.config.num_generations
        start = ((step - 1) * self.accelerator.num_processes + self.accelerator.process_index) * count
        for place in range(start, start + count):
            epoch, at = divmod(place, len(self.prompts))
            generator = torch.Generator().manual_seed(self.config.seed + epoch)
            yield int(torch.randperm(len(self.prompts), generator=generator)[at])

    def _score(self, drawn: Sequence[tuple[Prompt, list[int]]], responses: Responses) -> ScoredTokens:
        return self.reward_model.score_tokens(
            [ids for _, ids in drawn],
            responses.response_ids,
            # The policy may have end tokens that its tokenizer does not name.
            response_lengths=responses.text_lengths,
            tokenizer=self.tokenizer,
            prompts=[prompt for prompt, _ in drawn],
        )

    @torch.no_grad()
    def _statistics(self, policy: Policy, responses: Responses) -> TokenStats:
        passes = zip(*(part.split(self.config.per_device_train_batch_size) for part in responses), strict=True)
        parts = [policy(Responses(*part), self.config.temperature) for part in passes]
        return TokenStats(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _update(self, rollout: Rollout, step: int) -> Log:
        """Learn from `rollout`: once, or `num_ppo_epochs` times in `num_mini_batches` parts. The log holds means over the updates."""
        repeats = self.config.algorithm != "reinforce"
        count = rollout.logprobs.shape[0]
        sums: dict[str, float] = {}
        updates = 0
        for _ in range(self.config.num_ppo_epochs if repeats else 1):
            order = _shuffled(count, self.config.num_generations) if repeats else torch.arange(count)
            for rows in order.to(self.accelerator.device).chunk(self.config.num_mini_batches):
                for name, value in self._optimize(rollout.take(rows), step).items():
                    sums[name] = sums.get(name, 0.0) + value
                updates += 1
        return {name: value / updates for name, value in sums.items()}

    def _optimize(self, batch: Rollout, step: int) -> Log:
        """One update of the weights, on the mean loss over the tokens of `batch`."""
        # DDP averages gradients over processes, so the mean number of tokens makes every token count alike.
        num_tokens = self.accelerator.reduce(batch.responses.mask.sum().float(), "mean")
        sums: dict[str, Tensor] = {}
        passes = torch.arange(batch.logprobs.shape[0], device=self.accelerator.device).split(self.config.per_device_train_batch_size)
        for rows in passes:
            is_last = rows is passes[-1]
            with nullcontext() if is_last else self.accelerator.no_sync(self.policy):
                parts = self._loss(batch.take(rows))
                self.accelerator.backward(parts["loss"] / num_tokens)
            for name, part in parts.items():
                sums[name] = sums.get(name, torch.zeros_like(part)) + part.detach()
        norm = float(self.accelerator.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm))
        if norm - norm != 0:
            raise UserError(
                f"the gradient's norm became {norm} at step {step}. Lower --learning_rate, then go on with --resume_from_checkpoint true."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {**{name: float(total / num_tokens) for name, total in sums.items()}, "grad_norm": norm}

    def _loss(self, batch: Rollout) -> dict[str, Tensor]:
        """`loss` and what else is worth knowing, each a sum over the tokens of `batch`."""
        config, responses = self.config, batch.responses
        stats = self.policy(responses, config.temperature)
        if config.algorithm == "reinforce":
            return {"loss": reinforce_loss(stats.logprobs, batch.advantages, responses.mask)}
        policy_loss, num_clipped = clipped_policy_loss(
            stats.logprobs, batch.logprobs, batch.advantages, responses.mask, cliprange=config.cliprange
        )
        log_ratio = torch.where(responses.mask, stats.logprobs - batch.logprobs, 0).detach()
        parts = {
            "clip_fraction": num_clipped,
            # How far the updates have moved away from the policy that wrote the responses (k3).
            "policy_kl": (log_ratio.expm1() - log_ratio).sum(),
        }
        if config.algorithm == "grpo":
            estimator = config.resolved_kl_estimator
            assert estimator != "k1", "refused with grpo"
            penalty = reference_kl(stats.logprobs, batch.ref_logprobs, responses.mask, estimator)
            return {"loss": policy_loss + config.kl_coef * penalty, **parts}
        value_loss = clipped_value_loss(stats.value, batch.value, batch.returns, responses.mask, cliprange=config.cliprange_value)
        return {"loss": policy_loss + config.vf_coef * value_loss, "value_loss": value_loss, **parts}


def _end_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a response: the model's own, the tokenizer's and its template's."""
    config = getattr(policy, "generation_config", None)
    own = getattr(config, "eos_token_id", None)
    ids = {*(own if isinstance(own, (list, tuple)) else [own]), *turn_end_ids(tokenizer)} - {None}
    if not ids:
        raise UserError(
            "the policy has no end token, neither in its generation config nor in its tokenizer, so no response could end. "
            "Set eos_token in tokenizer_config.json."
        )
    return sorted(ids)


def _shuffled(count: int, size: int) -> Tensor:
    """int64 [count], all rows in an order in which groups of `size` stay together, so that a pass runs their prompt once."""
    groups = torch.randperm(count // size)[:, None]
    return (groups * size + torch.rand(count // size, size).argsort(1)).flatten()


def _optimizer(policy: Policy, config: RLConfig) -> tuple[torch.optim.Optimizer, Any]:
    from transformers import get_scheduler

    groups: list[dict[str, Any]] = [{"params": list(policy.model.parameters()), "lr": config.learning_rate}]
    if policy.value_head is not None:
        groups.append({"params": list(policy.value_head.parameters()), "lr": config.resolved_head_learning_rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    # Stepped once a step by us, not once an update, whatever the number of processes.
    return optimizer, get_scheduler(config.lr_scheduler_type, optimizer, config.warmup_steps, config.max_steps)
