"""What a call of packed attention needs, by which a backend is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Need"]


@dataclass(frozen=True, kw_only=True)
class Need:
    """One attention call, without its lengths.

    Args:
        device: where it runs.
        dtype: of the computation; autocast's where that is on.
        width: of one head's query and key.
        value_width: of one head's value.
        window: how many tokens a query sees, itself included; None for all.
        softcap: scores become `softcap * tanh(score / softcap)`; None for no cap.
        dropout: share of the weights to drop.
        sinks: whether each query has a score that leads to no value.
    """

    device: torch.device
    dtype: torch.dtype
    width: int
    value_width: int
    window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0
    sinks: bool = False

    @classmethod
    def of_call(
        cls, query: Tensor, key: Tensor, value: Tensor, *, window: int | None, softcap: float | None, dropout: float, sinks: bool = False
    ) -> Need:
        """What a call with these tensors needs.

        Args:
            query: [1, H, T, E].
            key: [1, G, T, E].
            value: [1, G, T, E], which may have another width.
            window: how many tokens a query sees, itself included; None for all.
            softcap: what the scores are capped at; None for no cap.
            dropout: share of the weights to drop.
            sinks: whether each query has a score that leads to no value.

        Returns:
            The need, in autocast's dtype where that is on.
        """
        kind = query.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        return cls(
            device=query.device,
            dtype=dtype,
            width=key.shape[-1],
            value_width=value.shape[-1],
            window=window,
            softcap=softcap,
            dropout=dropout,
            sinks=sinks,
        )

    @classmethod
    def of_model(cls, model: PreTrainedModel, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Need:
        """What the attention that a config describes needs; a model's layers may need less.

        Args:
            model: the model, whose weights are not looked at.
            device: where it will run, if not where it is now.
            dtype: in what it will run, if not as it is now.

        Returns:
            The need, without dropout.
        """
        config = model.config.get_text_config()
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            device=device or model.device,
            dtype=dtype or model.dtype,
            width=width,
            value_width=getattr(config, "v_head_dim", None) or width,
            window=getattr(config, "sliding_window", None),
            softcap=getattr(config, "attn_logit_softcapping", None),
            # No config says so; the layers have a parameter of this name.
            sinks=any(name.endswith(".sinks") for name, _ in model.named_parameters()),
        )
