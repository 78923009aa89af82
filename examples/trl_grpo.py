"""TRL's GRPO, with a sentence-level reward model as its reward: one number a completion.

    pip install 'srm-kernels[trl]'
    python examples/trl_grpo.py --reward_model out/rm --output_dir outputs/grpo

Takes every flag of TRL's GRPOConfig. `--model` is the policy; `--dataset` is a name on the Hub, or a JSONL file whose rows have a `prompt`
of messages. With `accelerate launch` in front it runs on several GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer, TrlParser

# From here on TRL finds our models by their path.
import srm  # noqa: F401


@dataclass
class Choices:
    reward_model: str
    model: str = "Qwen/Qwen2.5-0.5B-Instruct"
    dataset: str = "trl-lib/ultrafeedback-prompt"


def main(argv: list[str] | None = None) -> None:
    parser = TrlParser([Choices, GRPOConfig])
    parser.set_defaults(learning_rate=1e-6, max_completion_length=512, per_device_train_batch_size=8, num_generations=8, logging_steps=1)
    choices, config = parser.parse_args_and_config(argv)
    is_file = choices.dataset.endswith((".json", ".jsonl"))
    prompts = load_dataset("json", data_files=choices.dataset, split="train") if is_file else load_dataset(choices.dataset, split="train")
    trainer = GRPOTrainer(model=choices.model, reward_funcs=choices.reward_model, args=config, train_dataset=prompts)
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
