"""Where the sentences end: `SentenceLayout`, and the checks that index tensors must pass.

Shape letters: `T` packed tokens, `N` boundaries, `B` responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["SentenceLayout", "check_cu", "cu_from_lengths"]

INDEX_DTYPES = (torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class SentenceLayout:
    """Token positions of all sentence boundaries in a packed batch.

    boundaries: int32 or int64 [N], positions in the flattened tokens. For each response: the last prompt token `b_0`, then the last
        token of each sentence, strictly increasing. Responses may share `b_0`.
    cu_boundaries: int32 or int64 [B + 1], offsets into `boundaries`: response `b` owns `boundaries[cu[b]:cu[b + 1]]`.

    Construction checks types and shapes only, which costs no device synchronisation; `validate` checks the values.
    """

    boundaries: Tensor
    cu_boundaries: Tensor

    def __post_init__(self) -> None:
        check_index("SentenceLayout", "boundaries", self.boundaries)
        check_index("SentenceLayout", "cu_boundaries", self.cu_boundaries)
        if self.cu_boundaries.numel() == 0:
            raise ValueError("SentenceLayout: `cu_boundaries` must have B + 1 entries, got none. No responses is `[0]`.")
        if self.boundaries.device != self.cu_boundaries.device:
            raise ValueError(
                f"SentenceLayout: `boundaries` is on {self.boundaries.device} and `cu_boundaries` on {self.cu_boundaries.device}. "
                "Move both with `layout.to(device)`."
            )

    @property
    def num_responses(self) -> int:
        """B."""
        return self.cu_boundaries.numel() - 1

    @property
    def num_boundaries(self) -> int:
        """N."""
        return self.boundaries.numel()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SentenceLayout:
        """The same layout on `device`."""
        return SentenceLayout(
            self.boundaries.to(device, non_blocking=non_blocking), self.cu_boundaries.to(device, non_blocking=non_blocking)
        )

    def validate(self, num_tokens: int) -> None:
        """Checks every value against `num_tokens` = T; raises ValueError naming the response. Synchronises with the device."""
        boundaries = self.boundaries.detach().to("cpu", torch.int64)
        cu = self.cu_boundaries.detach().to("cpu", torch.int64)
        check_cu("SentenceLayout", "cu_boundaries", cu, boundaries.numel(), "len(boundaries)")
        outside = ((boundaries < 0) | (boundaries >= num_tokens)).nonzero().flatten()
        if outside.numel():
            n = int(outside[0])
            raise ValueError(
                f"SentenceLayout: `boundaries` must lie in [0, {num_tokens}), got {int(boundaries[n])} at index {n} "
                f"(response {_response_of(cu, n)})."
            )
        step_N = boundaries.diff()
        starts = cu[1:-1]  # A step into the first boundary of a response may go down: siblings share their prompt.
        inside = torch.ones_like(step_N, dtype=torch.bool)
        inside[starts[(starts > 0) & (starts < boundaries.numel())] - 1] = False
        falling = ((step_N <= 0) & inside).nonzero().flatten()
        if falling.numel():
            n = int(falling[0])
            raise ValueError(
                f"SentenceLayout: `boundaries` must increase strictly inside a response, got {int(boundaries[n])} then "
                f"{int(boundaries[n + 1])} at index {n + 1} (response {_response_of(cu, n)})."
            )


def cu_from_lengths(lengths: Tensor | Sequence[int]) -> Tensor:
    """Offsets int32 [B + 1] from `lengths` [B]: `[0, l_0, l_0 + l_1, …]`, on the device of `lengths`.

    Inverse: `cu.diff()`. No device synchronisation; a sequence of Python ints is checked for negatives and its sum.
    """
    if not isinstance(lengths, Tensor):
        for response, length in enumerate(lengths):
            if length < 0:
                raise ValueError(f"cu_from_lengths: `lengths` must not be negative, got {length} (response {response}).")
        if sum(lengths) > torch.iinfo(torch.int32).max:
            raise ValueError(f"cu_from_lengths: `lengths` must sum to less than 2**31, got {sum(lengths)}. Sum them up in int64 yourself.")
        lengths = torch.tensor(list(lengths), dtype=torch.int64)
    check_index("cu_from_lengths", "lengths", lengths)
    cu = torch.zeros(lengths.numel() + 1, dtype=torch.int32, device=lengths.device)
    torch.cumsum(lengths, 0, dtype=torch.int32, out=cu[1:])
    return cu


def check_index(op: str, name: str, index: Tensor) -> None:
    """Type, dtype and rank of an index tensor; no device synchronisation."""
    if not isinstance(index, Tensor):
        raise TypeError(f"{op}: `{name}` must be a tensor, got {type(index).__name__}.")
    if index.dtype not in INDEX_DTYPES:
        raise TypeError(f"{op}: `{name}` must be int32 or int64, got {index.dtype}.")
    if index.dim() != 1:
        raise ValueError(f"{op}: `{name}` must have one dimension, got shape {tuple(index.shape)}.")


def check_cu(op: str, name: str, cu: Tensor, total: int, total_name: str) -> None:
    """The values of an offsets tensor: starts at 0, never falls, ends at `total`. Synchronises with the device."""
    offsets = cu.tolist()  # In Python: the checks run at every call on the CPU, where each op on a tensor costs more than all of them.
    if offsets[0] != 0:
        raise ValueError(f"{op}: `{name}` must start at 0, got {offsets[0]} (response 0).")
    for b, (start, end) in enumerate(pairwise(offsets)):
        if end < start:
            raise ValueError(f"{op}: `{name}` must not fall, got {start} then {end} (response {b}).")
    if offsets[-1] != total:
        raise ValueError(
            f"{op}: `{name}` must end at {total_name}={total}, got {offsets[-1]} (response {len(offsets) - 2}). "
            f"Drop the padding, or rebuild `{name}` with `cu_from_lengths`."
        )


def _response_of(cu: Tensor, n: int) -> int:
    return int(torch.searchsorted(cu, torch.tensor(n), right=True)) - 1
