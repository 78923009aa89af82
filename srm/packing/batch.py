"""PackedBatch: what goes through the backbone.

Shape letters: `T` tokens run, `S` segments, `B` responses, `N` boundaries, `R` rows that hold one, `P` prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from srm_kernels import SentenceLayout

PackingMode = Literal["shared", "packed", "none"]
IntArray = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, eq=False)
class ResponseIds:
    """One response as token ids, with the last token of each sentence.

    Attributes:
        ids: int [tokens], any sequence; kept as an int32 array. Empty for a response without text.
        sentence_ends: int [sentences], index into `ids` of the last token of each sentence, strictly increasing; the last one is
            `len(ids) - 1`.
        opening: how many of the first ids belong to no sentence, such as those of a thinking block that is left out. Where there are any,
            the first boundary is the last of them, and not the prompt's last token.
    """

    ids: IntArray
    sentence_ends: IntArray
    opening: int = 0

    def __post_init__(self) -> None:
        _keep_as_arrays(self, "ids", "sentence_ends")

    def cut(self, ids: IntArray, sentence_ends: IntArray) -> Self:
        """The same response with only its first tokens and sentences.

        Args:
            ids: int32 [tokens], the first of the ids.
            sentence_ends: int32 [sentences], one for each sentence that stays; the last one may lie before where it was.
        """
        return replace(self, ids=ids, sentence_ends=sentence_ends, opening=min(self.opening, len(ids)))

    def every_token(self) -> ResponseIds:
        """The ids with a boundary at each of them, as models of `granularity="token"` read a response."""
        ends = np.arange(self.opening, len(self.ids), dtype=np.int32)
        return ResponseIds(ids=self.ids, sentence_ends=ends, opening=self.opening)


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptGroup:
    """One prompt and the responses that answer it: chosen and rejected, a group of samples, or one response.

    Attributes:
        prompt_ids: int [tokens], any sequence; kept as an int32 array. At least one: its last token carries the first boundary.
        responses: at least one.
    """

    prompt_ids: IntArray
    responses: Sequence[ResponseIds]

    def __post_init__(self) -> None:
        _keep_as_arrays(self, "prompt_ids")

    @property
    def prompt_key(self) -> bytes:
        """Equal for equal prompts."""
        return self.prompt_ids.tobytes()

    @property
    def longest(self) -> int:
        """Tokens of the prompt and its longest response."""
        return len(self.prompt_ids) + max(len(response.ids) for response in self.responses)


def _keep_as_arrays(of: object, *names: str) -> None:
    for name in names:
        value = getattr(of, name)
        if not (isinstance(value, np.ndarray) and value.dtype == np.int32):
            # Frozen, so that nobody else can: the same values in one form, small and quick to compare.
            object.__setattr__(of, name, np.asarray(value, dtype=np.int32))


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """Token ids with the layout that says who may attend to whom.

    In the modes `shared` and `packed` the tokens lie in one row without padding, cut into segments. A segment whose `parent` is -1
    attends to itself; one with a parent attends to all of the parent, then causally to itself. In the mode `none` there is one
    padded row a response, `attention_mask` marks the real tokens, and the segment fields are None.

    Attributes:
        input_ids: int64 [1, T] packed, or [B, L] padded on the right.
        position_ids: the same shape; a response continues its prompt's positions.
        layout: where the sentences end in the flattened `input_ids` (row-major): of each response b_0, the last token before the
            sentences, then their ends. int64 boundaries, int32 offsets.
        read: what `boundary_rows` gives, worked out on the host, behind the boundaries it belongs to; None where it was not.
        attention_mask: None packed, or bool [B, L].
        cu_seqlens: int32 [S + 1], the segments' offsets into the row; None when padded.
        parent: int32 [S], the index of the segment that holds the prompt, or -1; None when padded.
        segments: the segments' lengths and parents on the host, so that nobody waits for the device to learn them; None when padded.
        num_padded_tokens: what the same responses would have cost padded.
        num_packed_tokens: what they would have cost packed without prompt sharing.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: SentenceLayout
    read: tuple[Tensor, Tensor, SentenceLayout] | None = None
    attention_mask: Tensor | None = None
    cu_seqlens: Tensor | None = None
    parent: Tensor | None = None
    segments: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    num_padded_tokens: int = 0
    num_packed_tokens: int = 0

    @property
    def boundaries(self) -> Tensor:
        """int64 [N], those of the layout."""
        return self.layout.boundaries

    @property
    def cu_boundaries(self) -> Tensor:
        """int32 [B + 1], offsets of the responses into `boundaries`."""
        return self.layout.cu_boundaries

    @property
    def num_tokens(self) -> int:
        """Tokens the backbone runs, padding included."""
        return self.input_ids.numel()

    @property
    def num_responses(self) -> int:
        return self.layout.num_responses

    @property
    def boundary_rows(self) -> tuple[Tensor, SentenceLayout]:
        """The positions that hold a boundary, int64 [R], rising, each once; and the layout among those rows alone.

        Responses to one prompt share its last token. Waits for the device where nobody worked it out on the host.
        """
        if self.read is not None and self.read[0] is self.boundaries:
            return self.read[1:]
        return rows_of_layout(self.layout)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """The same batch on `device`. accelerate and `transformers.Trainer` call this by name.

        Args:
            device: where the tensors go.
            non_blocking: as in `torch.Tensor.to`.
        """
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), (Tensor, SentenceLayout))
        }
        if self.read is not None and self.read[0] is self.boundaries:
            rows, among = (part.to(device, non_blocking=non_blocking) for part in self.read[1:])
            moved["read"] = moved["layout"].boundaries, rows, among
        return replace(self, **moved)


def rows_of_layout(layout: SentenceLayout) -> tuple[Tensor, SentenceLayout]:
    """What `PackedBatch.boundary_rows` gives.

    Args:
        layout: of the boundaries among all tokens.
    """
    rows, index = layout.boundaries.unique(return_inverse=True)
    return rows, SentenceLayout(index, layout.cu_boundaries, layout.ascending)
