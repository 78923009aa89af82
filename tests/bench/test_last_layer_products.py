"""bench/last_layer_products.py against PyTorch's own counter of operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, LlamaConfig, Qwen3Config

from srm.packing import PromptGroup, ResponseIds, pack, prove_last_layer, run_backbone, run_to_boundaries

TINY = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_implementation": "eager",
}


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
def test_the_count_is_what_runs(kind: Any, load: Any) -> None:
    config = kind(**TINY, head_dim=16)
    model = AutoModel.from_config(config).eval()
    assert prove_last_layer(model, packed=True).inside == ("queries", "attention output")
    response = ResponseIds(ids=np.arange(3, 43), sentence_ends=[9, 19, 39])
    batch = pack([PromptGroup(prompt_ids=np.arange(3, 13), responses=[response, response])], pad_token_id=0)

    def products(run: Any) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run(model, batch)
        return sum(count for operator, count in counter.get_flop_counts()["Global"].items() if operator == torch.ops.aten.mm)

    every = products(run_backbone)
    saved = load("last_layer_products").saved(config, batch.boundary_rows[0].numel() / batch.num_tokens)
    assert (every - products(run_to_boundaries)) / every == pytest.approx(saved["all"], rel=1e-6)
    assert saved["mlp"] < saved["all"]


def test_the_table_names_what_it_was_asked_for(load: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    load("last_layer_products").main(["--json", str(tmp_path / "out.json"), "--rows", "1"])
    assert "SmolLM2-135M     MLP  0.00%" in capsys.readouterr().out
