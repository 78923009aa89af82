"""`SentenceRewardHead`: the head as a module, with its weights and their start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...backend import Backend, check_backend
from ...layout import SentenceLayout
from ...pooling import ATTENTION_POOLINGS, POOLINGS, Pooling, check_pooling
from ..sentence_attention_pool.op import check_width
from .op import SentenceRewardHeadOutput, sentence_reward_head

__all__ = ["SentenceRewardHead"]

START_STD = 0.001


class SentenceRewardHead(nn.Module):
    """Scores every sentence and response of a packed batch; `sentence_reward_head` with its weights (arXiv 2503.04793, section 3).

    It starts with all values at zero and the attention near uniform. From a random start Bradley-Terry finds, about as often, the
    solution in which the value jumps *up* at a bad sentence and the attention picks the drop that follows: same accuracy, inverted credit.

    Args:
        hidden_size: D.
        attention_size: A, width of query and key; even where `rope_theta` is set.
        pooling: as in `sentence_reward_head`; only a head that attends has `query` and `key`.
        rope_theta: as in `sentence_reward_head`.
        include_prompt: as in `sentence_reward_head`.
        difference: as in `sentence_reward_head`.
        backend: what runs: `"auto"`, `"triton"` or `"torch"`.

    Raises:
        ValueError: another pooling or backend, no `attention_size`, an odd one with `rope_theta`, or a `rope_theta` that is not positive.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        attention_size: int = 256,
        pooling: Pooling = "value_attention",
        rope_theta: float | None = 1e4,
        include_prompt: bool = True,
        difference: bool = True,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        check_pooling("SentenceRewardHead", pooling, POOLINGS)
        check_backend("SentenceRewardHead", backend)
        attends = pooling in ATTENTION_POOLINGS
        if attends:
            check_width("SentenceRewardHead", "attention_size", attention_size, rope_theta)
        self.hidden_size = hidden_size
        self.attention_size = attention_size
        self.pooling: Pooling = pooling
        self.rope_theta = rope_theta
        self.include_prompt = include_prompt
        self.difference = difference
        self.backend: Backend = backend
        self.value = nn.Linear(hidden_size, 1)
        if attends:
            self.query = nn.Linear(hidden_size, attention_size)
            self.key = nn.Linear(hidden_size, attention_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Value at zero; query and key weights from N(0, 0.001), their biases zero."""
        with torch.no_grad():
            self.value.weight.zero_()
            self.value.bias.zero_()
            if self.pooling in ATTENTION_POOLINGS:
                for projection in (self.query, self.key):
                    projection.weight.normal_(0.0, START_STD)
                    projection.bias.zero_()

    def forward(self, hidden: Tensor, layout: SentenceLayout) -> SentenceRewardHeadOutput:
        """Scores a batch.

        Args:
            hidden: [T, D], final hidden states; fp16, bf16, fp32 or fp64.
            layout: where the sentences end.

        Returns:
            `reward` [B], `sentence_reward` [N], `weight` [N], `value` [N], all fp32 (fp64 for fp64).

        Raises:
            TypeError: `value`, `query` or `key` is no `nn.Linear`, as when an adapter wraps it; and what `sentence_reward_head` raises.
        """
        weights = []
        for name in ("value", "query", "key") if self.pooling in ATTENTION_POOLINGS else ("value",):
            child = getattr(self, name)
            # The weights are read, not called through the child, so a wrapper around it would be skipped without a word.
            if not isinstance(child, nn.Linear):
                raise TypeError(
                    f"SentenceRewardHead: `{name}` must be nn.Linear, got {type(child).__name__}. "
                    "Leave the head out of the adapter's target modules and train it whole (peft: `modules_to_save`)."
                )
            weights += [child.weight, child.bias]
        return sentence_reward_head(
            hidden,
            layout,
            *weights,
            pooling=self.pooling,
            rope_theta=self.rope_theta,
            include_prompt=self.include_prompt,
            difference=self.difference,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"pooling={self.pooling}, rope_theta={self.rope_theta}, include_prompt={self.include_prompt}, "
            f"difference={self.difference}, backend={self.backend}"
        )
