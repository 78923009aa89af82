"""Where the sentences end: `SentenceLayout`, and the checks that index tensors must pass.

Shape letters: `T` packed tokens, `N` boundaries, `B` responses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .backend import debug_enabled

__all__ = [
    "BoundaryOrder",
    "SentenceLayout",
    "check_index",
    "check_offset_count",
    "check_offset_values",
    "cu_from_lengths",
    "values_readable",
]

INDEX_DTYPES = (torch.int32, torch.int64)


class BoundaryOrder(NamedTuple):
    """The boundaries of a layout, sorted.

    Attributes:
        positions: [N], `boundaries[indices]`, which never fall.
        indices: int64 [N], where each stands in `boundaries`. Equal ones keep their order.
        version: PyTorch's count of writes into `boundaries` when they were sorted; None where it does not matter.
    """

    positions: Tensor
    indices: Tensor
    version: int | None

    def describes(self, boundaries: Tensor) -> bool:
        """Whether it still is the order of `boundaries`: not once they were written to. In a CUDA graph nobody knows when they will be."""
        if self.version is None:
            return True
        return not _is_captured(boundaries) and not boundaries.is_inference() and boundaries._version == self.version


@dataclass(frozen=True, eq=False)
class SentenceLayout:
    """Where the sentences of a packed batch end.

    Construction checks types and shapes only, which costs no device synchronisation; `validate` checks the values.

    Args:
        boundaries: int32 or int64 [N], positions in the flattened tokens. For each response: the last prompt token `b_0`, then the last
            token of each sentence, strictly increasing. Responses may share `b_0`.
        cu_boundaries: int32 or int64 [B + 1], offsets in boundaries: response `b` owns
            `boundaries[cu_boundaries[b]:cu_boundaries[b + 1]]`.
        ascending: a promise that `boundaries` never fall, across responses too, so that nobody has to sort them. Checked on the CPU.

    Raises:
        TypeError: no tensor, or one of another dtype.
        ValueError: shapes that cannot be a layout, tensors on two devices, or a promise that is not kept.
    """

    boundaries: Tensor
    cu_boundaries: Tensor
    ascending: bool = False
    # Kept by each layout, but no field: FSDP2 rebuilds the dataclasses among a module's arguments from their fields.
    _order: ClassVar[BoundaryOrder | None] = None

    def __post_init__(self) -> None:
        check_index("SentenceLayout", "boundaries", self.boundaries)
        check_index("SentenceLayout", "cu_boundaries", self.cu_boundaries)
        check_offset_count("SentenceLayout", "cu_boundaries", self.cu_boundaries, self.boundaries.numel(), "len(boundaries)")
        if self.boundaries.device != self.cu_boundaries.device:
            raise ValueError(
                f"SentenceLayout: `boundaries` is on {self.boundaries.device} and `cu_boundaries` on {self.cu_boundaries.device}. "
                "Move one with `.to(device)`."
            )
        if values_readable(self.boundaries):
            self._check_promise()

    def __reduce__(self) -> tuple[type[SentenceLayout], tuple[Tensor, Tensor, bool]]:
        # The order stays behind: the writes into a copy are counted anew.
        return SentenceLayout, (self.boundaries, self.cu_boundaries, self.ascending)

    @property
    def order(self) -> BoundaryOrder | None:
        """The sorted boundaries, for the kernels that ask for them: sorted once and kept. No device synchronisation.

        None where each op has to sort for itself: in a CUDA graph, whose boundaries may change between replays, in a compiled graph whose
        layout was not sorted before, and for inference tensors, whose writes nobody counts.
        """
        boundaries, is_compiled = self.boundaries, torch.compiler.is_compiling()
        # The ops ask `describes` again when they run: a compiled graph cannot count writes.
        if self._order is not None and (is_compiled or self._order.describes(boundaries)):
            return self._order
        may_keep = not (is_compiled or _is_captured(boundaries) or boundaries.is_inference())
        if not self.ascending and not may_keep:
            return None
        if self.ascending or (values_readable(boundaries) and _never_falls(boundaries)):
            positions, indices = boundaries, torch.arange(boundaries.numel(), device=boundaries.device)
        else:
            positions, indices = torch.sort(boundaries, stable=True)
        order = BoundaryOrder(positions, indices, None if self.ascending else boundaries._version)
        if may_keep:
            object.__setattr__(self, "_order", order)
        return order

    @property
    def num_responses(self) -> int:
        """B."""
        return self.cu_boundaries.numel() - 1

    @property
    def num_boundaries(self) -> int:
        """N."""
        return self.boundaries.numel()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SentenceLayout:
        """The same layout on another device. What comes from the CPU is sorted there, so that the device has nothing to sort.

        Args:
            device: where all tensors go.
            non_blocking: as in `torch.Tensor.to`.

        Returns:
            A new layout; tensors that are there already are shared.
        """
        boundaries, cu_boundaries = (x.to(device, non_blocking=non_blocking) for x in (self.boundaries, self.cu_boundaries))
        moved = SentenceLayout(boundaries, cu_boundaries, self.ascending)
        if torch.compiler.is_compiling() or boundaries.is_inference():
            return moved
        if boundaries is self.boundaries:
            object.__setattr__(moved, "_order", self._order)
        elif self.boundaries.device.type == "cpu" and (order := self.order) is not None:
            positions = boundaries if order.positions is self.boundaries else order.positions.to(device, non_blocking=non_blocking)
            indices, version = order.indices.to(device, non_blocking=non_blocking), None if self.ascending else boundaries._version
            object.__setattr__(moved, "_order", BoundaryOrder(positions, indices, version))
        return moved

    def validate(self, num_tokens: int) -> None:
        """Checks every value. Synchronises with the device.

        Args:
            num_tokens: T, which the boundaries must be below.

        Raises:
            ValueError: a value that is wrong; it names the response.
        """
        self._check_promise()
        boundaries = self.boundaries.detach().to("cpu", torch.int64)
        offsets = self.cu_boundaries.detach().to("cpu", torch.int64)
        check_offset_values("SentenceLayout", "cu_boundaries", offsets, boundaries.numel(), "len(boundaries)")
        outside = ((boundaries < 0) | (boundaries >= num_tokens)).nonzero().flatten()
        if outside.numel():
            n = int(outside[0])
            raise ValueError(
                f"SentenceLayout: `boundaries` must lie in [0, {num_tokens}), got {int(boundaries[n])} at index {n} "
                f"(response {_response_of(offsets, n)})."
            )
        step_N = boundaries.diff()
        starts = offsets[1:-1]  # A step into the first boundary of a response may go down: siblings share their prompt.
        inside = torch.ones_like(step_N, dtype=torch.bool)
        inside[starts[(starts > 0) & (starts < boundaries.numel())] - 1] = False
        falling = ((step_N <= 0) & inside).nonzero().flatten()
        if falling.numel():
            n = int(falling[0])
            raise ValueError(
                f"SentenceLayout: `boundaries` must increase strictly inside a response, got {int(boundaries[n])} then "
                f"{int(boundaries[n + 1])} at index {n + 1} (response {_response_of(offsets, n)})."
            )

    def _check_promise(self) -> None:
        if self.ascending and not _never_falls(self.boundaries):
            raise ValueError("SentenceLayout: `ascending=True`, but `boundaries` fall somewhere. Leave it out, and they are sorted.")


def cu_from_lengths(lengths: Tensor | Iterable[int]) -> Tensor:
    """Offsets `[0, l_0, l_0 + l_1, …]` from lengths. Inverse: `offsets.diff()`. No device synchronisation.

    Args:
        lengths: [B], int32 or int64, or Python ints. On the CPU they are checked for negatives and for their sum.

    Returns:
        int32 [B + 1], on the device of `lengths`.

    Raises:
        TypeError: a tensor of another dtype, or a length that is no integer.
        ValueError: a negative length, or a sum from 2³¹ on.
    """
    if not isinstance(lengths, Tensor):
        lengths = list(lengths)
        for response, length in enumerate(lengths):
            if not hasattr(length, "__index__"):
                raise TypeError(f"cu_from_lengths: `lengths` must be integers, got {length!r} (response {response}).")
        lengths = torch.tensor(lengths, dtype=torch.int64)
    check_index("cu_from_lengths", "lengths", lengths)
    if lengths.numel() and values_readable(lengths):
        if (least := int(lengths.min())) < 0:
            raise ValueError(f"cu_from_lengths: `lengths` must not be negative, got {least} (response {int(lengths.argmin())}).")
        if (total := int(lengths.sum())) > torch.iinfo(torch.int32).max:
            raise ValueError(f"cu_from_lengths: `lengths` must sum to less than 2**31, got {total}. Sum them up in int64 yourself.")
    offsets = torch.zeros(lengths.numel() + 1, dtype=torch.int32, device=lengths.device)
    torch.cumsum(lengths, 0, dtype=torch.int32, out=offsets[1:])
    return offsets


def values_readable(*tensors: Tensor) -> bool:
    """Whether the values of index tensors may be read: free of cost on the CPU, a synchronisation elsewhere (debug mode only).

    Not while a graph is traced, where tensors have no values.
    """
    if torch.compiler.is_compiling():
        return False
    # Those that dispatch by themselves (fake tensors, for instance) need not have values; nor do those on the device "meta".
    return all(
        type(x).__torch_dispatch__ is Tensor.__torch_dispatch__
        and (x.device.type == "cpu" or (debug_enabled() and x.device.type != "meta"))
        for x in tensors
    )


def check_index(op: str, name: str, index: Tensor) -> None:
    """Type, dtype and rank of an index tensor; no device synchronisation."""
    if not isinstance(index, Tensor):
        raise TypeError(f"{op}: `{name}` must be a tensor, got {type(index).__name__}.")
    if not torch.compiler.is_compiling() and hasattr(index, "full_tensor"):  # A DTensor, without importing torch.distributed for it.
        raise TypeError(f"{op}: `{name}` is a DTensor, and the op needs the whole. Pass `{name}.full_tensor()`.")
    if index.dtype not in INDEX_DTYPES:
        raise TypeError(f"{op}: `{name}` must be int32 or int64, got {index.dtype}.")
    if index.dim() != 1:
        raise ValueError(f"{op}: `{name}` must have one dimension, got shape {tuple(index.shape)}.")


def check_offset_count(op: str, name: str, offsets: Tensor, total: int, total_name: str) -> None:
    """What the shape alone says about an offsets tensor: it has an entry, and more than one where there is something to own."""
    if offsets.numel() == 0:
        raise ValueError(f"{op}: `{name}` must have B + 1 entries, got none. Those of an empty batch are `[0]`.")
    if offsets.numel() == 1 and total > 0:
        raise ValueError(
            f"{op}: `{name}` must have B + 1 entries, got 1, so B = 0, but {total_name}={total}. Rebuild it with `cu_from_lengths`."
        )


def check_offset_values(op: str, name: str, offsets: Tensor, total: int, total_name: str) -> None:
    """The values of an offsets tensor: starts at 0, never falls, ends at `total`. Synchronises with the device."""
    bounds = offsets.tolist()  # In Python: the checks run at every call on the CPU, where each op on a tensor costs more than all of them.
    if bounds[0] != 0:
        raise ValueError(f"{op}: `{name}` must start at 0, got {bounds[0]} (response 0).")
    for b, (start, end) in enumerate(pairwise(bounds)):
        if end < start:
            raise ValueError(f"{op}: `{name}` must not fall, got {start} then {end} (response {b}).")
    if bounds[-1] != total:
        raise ValueError(
            f"{op}: `{name}` must end at {total_name}={total}, got {bounds[-1]} (response {len(bounds) - 2}). "
            f"Drop the padding, or rebuild `{name}` with `cu_from_lengths`."
        )


def _never_falls(boundaries: Tensor) -> bool:
    return bool((boundaries[1:] >= boundaries[:-1]).all())


def _is_captured(boundaries: Tensor) -> bool:
    return boundaries.is_cuda and torch.cuda.is_current_stream_capturing()


def _response_of(offsets: Tensor, n: int) -> int:
    return int(torch.searchsorted(offsets, torch.tensor(n), right=True)) - 1
