"""Token ids to a PackedBatch, in each of the three modes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from srm.packing.batch import IntArray, PackedBatch, PackingMode, PromptGroup, ResponseIds, rows_of_layout
from srm_kernels import SentenceLayout

__all__ = ["pack"]


def pack(groups: Sequence[PromptGroup], *, mode: PackingMode = "shared", pad_token_id: int) -> PackedBatch:
    """Lay `groups` out as one batch; responses keep their order, group by group.

    A response without ids has one boundary, its prompt's.

    Args:
        groups: prompts with their responses.
        mode: `shared` runs each prompt once for all of its responses, also where several groups have the same one; `packed` repeats it
            before each response without padding; `none` gives each response a row of its own, padded on the right.
        pad_token_id: what rows are padded with in the mode `none`.

    Returns:
        The batch, on the CPU.

    Raises:
        ValueError: an unknown mode, no groups, a group without responses, an empty prompt, or sentence ends that do not rise strictly to
            the response's last token. The message names the group and the response.
    """
    if mode not in get_args(PackingMode):
        raise ValueError(f"pack: `mode` must be one of {', '.join(get_args(PackingMode))}, got {mode!r}.")
    _validate(groups)
    lengths = [len(group.prompt_ids) + len(response.ids) for group, response in _responses(groups)]
    if mode == "none":
        fields, prompt_starts = _padded(groups, lengths, pad_token_id)
        response_starts = _behind_prompts(groups, prompt_starts)
    else:
        fields, prompt_starts, response_starts = _shared(groups) if mode == "shared" else _packed(groups, lengths)
    boundaries: list[Any] = []
    for (group, response), prompt_start, response_start in zip(_responses(groups), prompt_starts, response_starts, strict=True):
        first = response_start + response.opening if response.opening else prompt_start + len(group.prompt_ids)
        boundaries += [[first - 1], response_start + response.sentence_ends]
    counts = [1 + len(response.sentence_ends) for _, response in _responses(groups)]
    layout = SentenceLayout(_tensor(np.concatenate(boundaries)), torch.tensor([0, *accumulate(counts)], dtype=torch.int32))
    return PackedBatch(
        **fields,
        layout=layout,
        # Here and not where they are needed, because a device would have to be asked how many there are.
        read=(layout.boundaries, *rows_of_layout(layout)),
        num_padded_tokens=len(lengths) * max(lengths),
        num_packed_tokens=sum(lengths),
    )


def _responses(groups: Sequence[PromptGroup]) -> Iterator[tuple[PromptGroup, ResponseIds]]:
    return ((group, response) for group in groups for response in group.responses)


def _validate(groups: Sequence[PromptGroup]) -> None:
    if not groups:
        raise ValueError("pack: `groups` must hold at least one group, got none.")
    for g, group in enumerate(groups):
        if not len(group.prompt_ids):
            raise ValueError(f"pack: group {g} has an empty prompt; its last token carries the first boundary, so it needs one.")
        if not group.responses:
            raise ValueError(f"pack: group {g} has no responses; drop the group.")
        for r, response in enumerate(group.responses):
            # In Python: a response has a dozen sentences, and a call of numpy costs more than all of them.
            ends = response.sentence_ends.tolist()
            before = response.opening - 1
            rising = all(a < b for a, b in zip([before, *ends], ends, strict=False))
            if not rising or (ends[-1] if ends else before) != len(response.ids) - 1:
                raise ValueError(
                    f"pack: group {g}, response {r}: `sentence_ends` must rise strictly from {response.opening} or more to the last token, "
                    f"{len(response.ids) - 1}, got {ends}."
                )


def _shared(groups: Sequence[PromptGroup]) -> tuple[dict[str, Any], list[int], list[int]]:
    """One segment a prompt, then one a response, whose positions go on from the prompt's. Equal prompts are one."""
    segments: list[IntArray] = []
    first_positions: list[int] = []
    parents: list[int] = []
    prompt_starts: list[int] = []
    response_starts: list[int] = []
    # Where a prompt lies in the row, and which segment it is.
    places: dict[bytes, tuple[int, int]] = {}
    total = 0
    for group in groups:
        if group.prompt_key not in places:
            places[group.prompt_key] = total, len(segments)
            segments.append(group.prompt_ids)
            first_positions.append(0)
            parents.append(-1)
            total += len(group.prompt_ids)
        prompt_start, prompt_segment = places[group.prompt_key]
        for response in group.responses:
            prompt_starts.append(prompt_start)
            response_starts.append(total)
            if not len(response.ids):
                continue
            segments.append(response.ids)
            first_positions.append(len(group.prompt_ids))
            parents.append(prompt_segment)
            total += len(response.ids)
    return _row(segments, first_positions, [len(segment) for segment in segments], parents), prompt_starts, response_starts


def _packed(groups: Sequence[PromptGroup], lengths: list[int]) -> tuple[dict[str, Any], list[int], list[int]]:
    """One segment a response, with the prompt repeated before it."""
    parts = [part for group, response in _responses(groups) for part in (group.prompt_ids, response.ids)]
    prompt_starts = [0, *accumulate(lengths)][:-1]
    return _row(parts, [0] * len(lengths), lengths, [-1] * len(lengths)), prompt_starts, _behind_prompts(groups, prompt_starts)


def _behind_prompts(groups: Sequence[PromptGroup], prompt_starts: Sequence[int]) -> list[int]:
    return [start + len(group.prompt_ids) for start, (group, _) in zip(prompt_starts, _responses(groups), strict=True)]


def _row(parts: list[IntArray], first_positions: list[int], lengths: list[int], parents: list[int]) -> dict[str, Any]:
    positions = np.concatenate([np.arange(first, first + length) for first, length in zip(first_positions, lengths, strict=True)])
    return {
        "input_ids": _tensor(np.concatenate(parts))[None],
        "position_ids": _tensor(positions)[None],
        "cu_seqlens": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        "parent": torch.tensor(parents, dtype=torch.int32),
        "segments": (tuple(lengths), tuple(parents)),
    }


def _padded(groups: Sequence[PromptGroup], lengths: list[int], pad_token_id: int) -> tuple[dict[str, Any], list[int]]:
    longest = max(lengths)
    ids = np.full((len(lengths), longest), pad_token_id, dtype=np.int64)
    for row, (group, response) in zip(ids, _responses(groups), strict=True):
        prompt_length = len(group.prompt_ids)
        row[:prompt_length] = group.prompt_ids
        row[prompt_length : prompt_length + len(response.ids)] = response.ids
    column = torch.arange(longest)
    fields = {
        "input_ids": torch.from_numpy(ids),
        # Padding sits on the right, so it only ever continues the count and no real token sees it.
        "position_ids": column.expand(len(lengths), longest).contiguous(),
        "attention_mask": column < torch.tensor(lengths)[:, None],
    }
    return fields, [row * longest for row in range(len(lengths))]


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
