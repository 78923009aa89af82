"""Inputs for trying a command: a model of a few thousand random weights with its tokenizer, and the files of research/claim.

python bench/tiny.py outputs/tiny      # writes outputs/tiny/model and outputs/tiny/data
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import torch

from srm.data.synthetic import generate_pairs

__all__ = ["save_backbone", "save_pairs", "save_tokenizer"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tokenizer(path: Path) -> None:
    """A byte-level BPE tokenizer with a ChatML-like template, trained on a few lines of our own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    lines = ["The cat sat on the mat. It was warm there.", "Is this right? No, it is wrong!", "Bread needs flour, water, salt and time."]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(lines * 4, trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(path)


def save_backbone(path: Path, tokenizer_dir: Path, *, causal: bool = False) -> None:
    """A random two-layer Llama with grouped-query attention, and that tokenizer. causal: as a language model, for longer texts."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaModel

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024 if causal else 256,
        initializer_range=0.2,
    )
    if causal:
        config.eos_token_id = tokenizer.eos_token_id
    (LlamaForCausalLM if causal else LlamaModel)(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


def save_pairs(folder: Path) -> None:
    """Generated pairs: 12 to train on, 24 to test, 16 of a suite in two sections and with marked errors."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test, suite = (generate_pairs(count, split=split) for count, split in ((12, "train"), (24, "test"), (16, "test")))
    files: dict[str, list[dict[str, Any]]] = {
        "pairs_train": [pair.to_row() for pair in train],
        "pairs_test": [pair.to_row() for pair in test],
        "suite_dev": [{**pair.to_row(), "section": "AB"[index % 2], "subset": pair.domain} for index, pair in enumerate(suite)],
        "error_spans": [
            {
                "prompt": pair.prompt,
                "response": pair.rejected,
                "errors": [{"type": bad["kind"], "start": bad["start"], "end": bad["end"]} for bad in pair.to_row()["damaged"]],
            }
            for pair in suite
        ],
    }
    for name, rows in files.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(sys.argv[1])
    save_tokenizer(folder / "tokenizer")
    save_backbone(folder / "model", folder / "tokenizer", causal=True)
    save_pairs(folder / "data")


if __name__ == "__main__":
    main()
