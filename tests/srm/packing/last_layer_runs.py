"""Runs of a last layer on boundary rows alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srm.packing import LastLayer, prove_last_layer, run_to_boundaries


def proved(model: Any, mode: str) -> LastLayer:
    proof = prove_last_layer(model, packed=mode != "none")
    assert proof.rows == "boundaries", proof.reason
    return proof


def boundary_states(model: Any, batch: Any) -> Tensor:
    hidden, layout = run_to_boundaries(model, batch)
    assert hidden.shape[0] == batch.boundaries.unique().numel() < batch.num_tokens
    assert torch.equal(layout.cu_boundaries, batch.cu_boundaries)
    return hidden[layout.boundaries]
