"""From settings to a trainer that is ready to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from srm.data import Prompt, Response, read_prompts
from srm.data.boundary import check_row
from srm.data.template import ChatFormat
from srm.errors import UserError
from srm.modeling import SentenceRewardModel
from srm.modeling.alias import resolve_model_name
from srm.modeling.config import SentenceRewardConfig, positions_of
from srm.modeling.loading import check_tokenizer_fits, load_tokenizer, load_whole, read_config
from srm.packing.backbone import num_embeddings
from srm.rl.arguments import RLConfig
from srm.rl.trainer import RLTrainer
from srm.scoring.guards import check_ids

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["build_trainer", "make_accelerator"]


def make_accelerator(config: RLConfig) -> Accelerator:
    """One process, or several that share the work with DDP.

    Raises:
        UserError: accelerate was set up to shard the weights.
    """
    from accelerate import Accelerator, DistributedType

    bf16 = config.bf16
    if bf16 is None:
        bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    # Unless told, accelerate takes the processes of a machine without an accelerator for runs of their own.
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=not torch.accelerator.is_available())
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise UserError(
            f"accelerate is set up for {accelerator.distributed_type.value}, and srm-rl needs the whole policy on each process. "
            "Launch it with DDP (accelerate launch --multi_gpu), or use TRL with srm.integrations.trl for larger models."
        )
    return accelerator


def build_trainer(
    config: RLConfig,
    accelerator: Accelerator,
    checkpoint: str | None = None,
    *,
    on_step: Callable[[dict[str, float]], None] = lambda log: None,
    say: Callable[[str], None] = lambda line: None,
) -> RLTrainer:
    """Load policy (from `checkpoint` where given), reference, reward model and prompts.

    say: gets a line for each thing that a user should know about them.

    Raises:
        UserError: one of them cannot be loaded, the policy cannot be packed, or prompt and response do not fit into the models.
    """
    name = resolve_model_name(config.model_name_or_path)
    with accelerator.main_process_first():
        reward_model = SentenceRewardModel.from_pretrained(config.reward_model_path, dtype=torch.float32)
        reference = _load_policy(name)
        policy = _load_policy(checkpoint or name)
        tokenizer = load_tokenizer(name)
        check_tokenizer_fits(name, tokenizer, policy)
        prompts = _encode_prompts(config, tokenizer, reward_model, say)
    for number, (_, ids) in enumerate(prompts, 1):
        check_ids(num_embeddings(policy), f"{config.dataset_name}: prompt {number} of those that are used", ids)
    _check_lengths(config, policy, reward_model, max(len(ids) for _, ids in prompts))
    say(
        f"{len(prompts):,} prompts; a step: {config.rollout_size // config.num_generations * accelerator.num_processes} of them, "
        f"{config.num_generations} responses each"
    )
    return RLTrainer(
        config,
        policy=policy,
        reference=reference,
        tokenizer=tokenizer,
        reward_model=reward_model,
        prompts=prompts,
        accelerator=accelerator,
        on_step=on_step,
    )


def _load_policy(name: str) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    if (Path(name) / "adapter_config.json").is_file():
        raise UserError(
            f"{name}: is a LoRA adapter, and srm-rl trains whole models. Merge it into its model first (peft: merge_and_unload)."
        )
    if isinstance(read_config(name, "Give a language model's folder, or a hub name."), SentenceRewardConfig):
        raise UserError(
            f"{name}: is a reward model, which writes no text. Give it as --reward_model_path, and the policy, a language model, "
            "as --model_name_or_path."
        )
    # float32 whatever the folder holds: Adam's small steps are lost in bf16 weights.
    policy, _ = load_whole(AutoModelForCausalLM.from_pretrained, name, dtype=torch.float32)
    return policy


def _encode_prompts(
    config: RLConfig, tokenizer: PreTrainedTokenizerBase, reward_model: SentenceRewardModel, say: Callable[[str], None]
) -> list[tuple[Prompt, list[int]]]:
    template, encoder = ChatFormat(tokenizer), reward_model.encoder

    def check(prompt: Prompt, responses: Sequence[Response]) -> None:
        # Both models read the prompts, each with its own template.
        for format in (template, encoder.format):
            check_row(format, encoder.answers, prompt, responses)

    prompts = read_prompts(
        config.dataset_name,
        split=config.dataset_train_split,
        config=config.dataset_config,
        skip_bad_rows=config.skip_bad_rows,
        check=check,
    )
    encoded = list(zip(prompts, template.prompt_ids([template.render(prompt) for prompt in prompts]), strict=True))
    kept = [(prompt, ids) for prompt, ids in encoded if len(ids) <= config.max_prompt_length]
    if not kept:
        shortest = min(len(ids) for _, ids in encoded)
        raise UserError(
            f"{config.dataset_name}: the shortest prompt has {shortest} tokens. Raise --max_prompt_length {config.max_prompt_length}."
        )
    if len(kept) < len(encoded):
        left_out = len(encoded) - len(kept)
        say(f"{left_out:,} of {len(encoded):,} prompts left out: more than --max_prompt_length {config.max_prompt_length} tokens")
    return kept


def _check_lengths(config: RLConfig, policy: PreTrainedModel, reward_model: SentenceRewardModel, longest: int) -> None:
    wanted = longest + config.max_completion_length
    limits = {
        "the policy": positions_of(policy.config),
        "the reward model": reward_model.config.max_positions,
    }
    for who, limit in limits.items():
        if limit is not None and wanted > limit:
            raise UserError(
                f"the longest prompt ({longest} tokens) and --max_completion_length {config.max_completion_length} make {wanted}, "
                f"{who} reads {limit}. Lower --max_prompt_length or --max_completion_length."
            )
