"""RewardBench's own command, `rewardbench`, on a sentence-level reward model. It takes what that takes:

python examples/run_rewardbench.py --model FOLDER --dataset pairs.jsonl --load_json --torch_dtype float32

Needs `pip install --no-deps rewardbench==0.1.4 fschat wandb` and `setuptools<81`. With transformers 5 the command does not start by itself:
for models of others it imports names that transformers and TRL have removed since.
"""

from __future__ import annotations

import sys

import torch
import transformers
import trl
from transformers.models.llama import modeling_llama

# From here on AutoModelForSequenceClassification knows our models.
import srm  # noqa: F401


def give_names_back() -> None:
    """Two texts of documentation, and a class that its SkyVL model makes an instance of."""
    for module, name, value in (
        (modeling_llama, "LLAMA_INPUTS_DOCSTRING", ""),
        (modeling_llama, "_CONFIG_FOR_DOC", "LlamaConfig"),
        (trl, "AutoModelForCausalLMWithValueHead", None),
    ):
        if not hasattr(module, name):
            setattr(module, name, value)


def main() -> None:
    """Run `rewardbench` with this process's arguments."""
    give_names_back()
    from rewardbench import REWARD_MODEL_CONFIG, rewardbench

    # It loads models in 8 bits unless they are listed, and its own pipeline runs on a GPU alone.
    builder = REWARD_MODEL_CONFIG["default"]["pipeline_builder"] if torch.cuda.is_available() else transformers.pipeline
    model = sys.argv[sys.argv.index("--model") + 1] if "--model" in sys.argv[:-1] else ""
    REWARD_MODEL_CONFIG[model] = {**REWARD_MODEL_CONFIG["default"], "pipeline_builder": builder, "quantized": False}
    rewardbench.main()


if __name__ == "__main__":
    main()
