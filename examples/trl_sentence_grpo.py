"""TRL's GRPO, where every sentence of a completion has an advantage of its own.

    pip install 'srm-kernels[trl]'
    python examples/trl_sentence_grpo.py --reward_model out/rm --output_dir outputs/sentence_grpo

Takes every flag of TRL's GRPOConfig. `--model` is the policy; `--dataset` is a name on the Hub, or a JSONL file whose rows have a `prompt`
of messages. With `accelerate launch` in front it runs on several GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from datasets import load_dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, TrlParser

from srm import SentenceRewardModel
from srm.integrations.trl import SentenceGRPOTrainer, SentenceRewardFunction


@dataclass
class Choices:
    reward_model: str
    model: str = "Qwen/Qwen2.5-0.5B-Instruct"
    dataset: str = "trl-lib/ultrafeedback-prompt"
    sentence_reward: Literal["weighted", "sentence"] = "weighted"
    to_go: Literal["sum", "min", "own"] = "sum"


def main(argv: list[str] | None = None) -> None:
    parser = TrlParser([Choices, GRPOConfig])
    parser.set_defaults(learning_rate=1e-6, max_completion_length=512, per_device_train_batch_size=8, num_generations=8, logging_steps=1)
    choices, config = parser.parse_args_and_config(argv)
    is_file = choices.dataset.endswith((".json", ".jsonl"))
    prompts = load_dataset("json", data_files=choices.dataset, split="train") if is_file else load_dataset(choices.dataset, split="train")

    reward_model = SentenceRewardModel.from_pretrained(choices.reward_model).to(config.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(choices.model)
    # Ids are read as they are where both have one vocabulary; else the reward model reads the text.
    is_shared = tokenizer.get_vocab() == reward_model.tokenizer.get_vocab()
    trainer = SentenceGRPOTrainer(
        model=choices.model,
        reward_funcs=SentenceRewardFunction(reward_model, tokenizer=None if is_shared else tokenizer),
        args=config,
        train_dataset=prompts,
        processing_class=tokenizer,
        sentence_reward=choices.sentence_reward,
        to_go=choices.to_go,
    )
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
