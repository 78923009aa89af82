"""Packed attention with the `flash_attn` packages, where one is installed: 4 on Blackwell, 3 on Hopper, 2 anywhere from Ampere on.

Shape letters: `H` query heads, `G` key and value heads, `T` tokens, `E` head width.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from srm.packing.backends.need import Need
from srm.packing.backends.varlen import hardware_refuses, rows_of
from srm.packing.plan import AttentionPlan

__all__ = ["FLASH_2", "FLASH_3", "FLASH_4", "FlashAttention", "adapt"]


@dataclass(frozen=True, kw_only=True)
class FlashAttention:
    """One of the packages as a backend.

    Args:
        NAME: what it is called in logs.
        distribution: what is installed.
        module: where `flash_attn_varlen_func` is.
        generations: major compute capabilities it is for.
        widths: head widths it has kernels for; None for every multiple of 8 up to 256.
        caps: whether it has a backward pass for capped scores.
    """

    NAME: str
    distribution: str
    module: str
    generations: tuple[int, ...]
    widths: tuple[int, ...] | None = None
    caps: bool = True

    @property
    def REASON(self) -> str:
        """How it computes."""
        return f"{self.module}.flash_attn_varlen_func, one call a layer"

    def refuse(self, need: Need) -> str | None:
        """Why this backend cannot do a call.

        Args:
            need: what the call needs.

        Returns:
            The reason, or None where it can.
        """
        reason = hardware_refuses(need)
        if reason is not None:
            return reason
        generation = torch.cuda.get_device_capability(need.device)[0]
        if generation not in self.generations:
            return f"it is not for GPUs of compute capability {generation}"
        if self.widths is not None and need.width not in self.widths:
            return f"it has no kernel for head width {need.width}"
        if need.sinks:
            return "it has no sinks"
        if need.softcap is not None and not self.caps:
            return "it has no backward pass for capped scores (`softcap`)"
        function = _function(self.distribution, self.module)
        if function is None:
            return f"{self.distribution} is not installed"
        parameters = inspect.signature(function).parameters
        for wanted, parameter, what in (
            (need.softcap is not None, "softcap", "caps no scores (`softcap`)"),
            (need.dropout > 0, "dropout_p", "has no attention dropout"),
            (need.window is not None, "window_size", "has no sliding window"),
        ):
            if wanted and parameter not in parameters:
                return f"the installed {self.distribution} {what}"
        return None

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: AttentionPlan,
        *,
        scaling: float | None,
        dropout: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Packed attention in one call, after a gather of keys and values.

        Args:
            query: [1, H, T, E].
            key: [1, G, T, E].
            value: [1, G, T, E].
            plan: the segments of the row, T tokens.
            scaling: what scores are multiplied with; None for `E ** -0.5`.
            dropout: share of the weights to drop.
            window: how many tokens a query sees, itself included; None for all.
            softcap: what the scores are capped at; None for no cap.
            sinks: None, see `refuse`.

        Returns:
            [1, T, H, E].
        """
        assert sinks is None
        function = _function(self.distribution, self.module)
        assert function is not None, "`refuse` looked"
        rows = plan.key_rows(query.device)
        q, k, v = rows_of(query, key, value, plan)
        settings = adapt(function, plan, scaling=scaling, dropout=dropout, window=window, softcap=softcap)
        output = function(q, k, v, cu_seqlens_q=rows.cu_queries, cu_seqlens_k=rows.cu_keys, **settings)
        # Some releases give the log-sum-exp too.
        return (output[0] if isinstance(output, tuple) else output)[None]


def adapt(
    function: Callable[..., Any],
    plan: AttentionPlan,
    *,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> dict[str, Any]:
    """How one release of `flash_attn_varlen_func` wants to be called.

    Args:
        function: that release's.
        plan: the segments of the row.
        scaling: what scores are multiplied with; None for the package's own, `E ** -0.5`.
        dropout: share of the weights to drop.
        window: how many tokens a query sees, itself included; None for all.
        softcap: what the scores are capped at; None for no cap.

    Returns:
        The keyword arguments beside the tensors and their offsets.
    """
    parameters = inspect.signature(function).parameters
    settings: dict[str, Any] = {"softmax_scale": scaling, "causal": True}
    # The newest release works the longest segments out by itself.
    settings |= {name: value for name, value in (("max_seqlen_q", plan.max_queries), ("max_seqlen_k", plan.max_keys)) if name in parameters}
    if window is not None:
        # The kernels count the tokens before the query, transformers counts the query too.
        settings["window_size"] = (window - 1, 0)
    if softcap is not None:
        settings["softcap"] = softcap
    if dropout:
        settings["dropout_p"] = dropout
    return settings


@lru_cache(maxsize=8)
def _function(distribution: str, module: str) -> Callable[..., Any] | None:
    """`flash_attn_varlen_func`, or None where the package is not installed. A package that is there and broken raises."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    return importlib.import_module(module).flash_attn_varlen_func


# Its function takes `softcap`, and its backward pass then fails.
FLASH_4 = FlashAttention(
    NAME="flash_attn_4", distribution="flash-attn-4", module="flash_attn.cute", generations=(10, 11), widths=(64, 96, 128), caps=False
)
FLASH_3 = FlashAttention(NAME="flash_attn_3", distribution="flash-attn-3", module="flash_attn_interface", generations=(9,))
FLASH_2 = FlashAttention(NAME="flash_attn_2", distribution="flash-attn", module="flash_attn", generations=(8, 9, 10, 11, 12))
