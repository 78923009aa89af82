"""What the last decoder layer saves where it runs on boundary rows alone: its share of a pass's products, per architecture.

    python bench/last_layer_products.py --json bench/results/last_layer_products.json

Counts weights, each of which makes two floating-point operations a token: all that stand in products outside the embedding, and of the last
layer those of the MLP, and of the queries and attention's output. Attention's own products of queries and keys are left out; they are as
before. `--rows` is the share of tokens that are boundaries. Needs no weights and no GPU: models are built on the meta device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import environment
import torch
from torch import nn
from transformers import AutoModel, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

__all__ = ["SHAPES", "saved"]

_LLAMA = {"vocab_size": 128_256, "rope_theta": 500_000.0}
SHAPES: dict[str, PretrainedConfig] = {
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3
    ),
    "Qwen3-0.6B": Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128
    ),
    "Llama-3.2-1B": LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, **_LLAMA
    ),
    "Qwen3-4B": Qwen3Config(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128
    ),
    "Qwen2.5-7B": Qwen2Config(
        hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4
    ),
    "Llama-3.1-8B": LlamaConfig(
        hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, **_LLAMA
    ),
    "Llama-3.1-70B": LlamaConfig(
        hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8, **_LLAMA
    ),
}


def saved(config: PretrainedConfig, rows: float) -> dict[str, float]:
    """Shares of a pass's products that are saved where the share `rows` of its tokens is read.

    Returns:
        `mlp`: by the MLP alone; `all`: with the queries and attention's output.
    """
    with torch.device("meta"):
        model: Any = AutoModel.from_config(config)
    layer = model.layers[-1]
    whole = len(model.layers) * _weights(layer)
    mlp = _weights(layer.mlp)
    return {
        name: (1 - rows) * count / whole
        for name, count in (("mlp", mlp), ("all", mlp + _weights(layer.self_attn.q_proj) + _weights(layer.self_attn.o_proj)))
    }


def _weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.dim() == 2)


def main(argv: Sequence[str] | None = None) -> None:
    parser = environment.parser(__doc__)
    parser.add_argument("--rows", type=float, default=1 / 27, help="share of tokens that are boundaries (default: one in 27)")
    arguments = parser.parse_args(argv)
    found = {name: saved(config, arguments.rows) for name, config in SHAPES.items()}
    for name, shares in found.items():
        print(f"{name:16} MLP {shares['mlp']:6.2%}   with queries and attention's output {shares['all']:6.2%}")
    environment.write(arguments.json, {**environment.describe(), "settings": environment.settings(arguments), "models": found})


if __name__ == "__main__":
    main()
