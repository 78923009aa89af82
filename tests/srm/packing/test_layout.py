"""pack(): token ids, positions, segments, boundaries and counters in each mode, and its refusals."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from srm.packing import PromptGroup, ResponseIds, UnsupportedBackboneError, pack
from srm_kernels import SentenceLayout

GROUPS = [
    PromptGroup(
        prompt_ids=[11, 12, 13],
        responses=[ResponseIds(ids=[21, 22], sentence_ends=[0, 1]), ResponseIds(ids=[31, 32, 33, 34], sentence_ends=[3])],
    ),
    PromptGroup(prompt_ids=[41], responses=[ResponseIds(ids=[51], sentence_ends=[0])]),
]
# Prompt ends and sentence ends of the three responses, as tokens: the same in every mode.
BOUNDARY_TOKENS = [13, 21, 22, 13, 34, 41, 51]


def test_shared() -> None:
    batch = pack(GROUPS, mode="shared", pad_token_id=0)
    assert batch.input_ids.tolist() == [[11, 12, 13, 21, 22, 31, 32, 33, 34, 41, 51]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 6, 0, 1]]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 9, 10, 11]
    assert batch.parent.tolist() == [-1, 0, 0, -1, 3]
    assert batch.attention_mask is None
    # Siblings share their first boundary.
    assert batch.boundaries.tolist() == [2, 3, 4, 2, 8, 9, 10]


def test_packed() -> None:
    batch = pack(GROUPS, mode="packed", pad_token_id=0)
    assert batch.input_ids.tolist() == [[11, 12, 13, 21, 22, 11, 12, 13, 31, 32, 33, 34, 41, 51]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 0, 1]]
    assert batch.cu_seqlens.tolist() == [0, 5, 12, 14]
    assert batch.parent.tolist() == [-1, -1, -1]
    assert batch.boundaries.tolist() == [2, 3, 4, 7, 11, 12, 13]


def test_padded() -> None:
    batch = pack(GROUPS, mode="none", pad_token_id=9)
    assert batch.input_ids.tolist() == [[11, 12, 13, 21, 22, 9, 9], [11, 12, 13, 31, 32, 33, 34], [41, 51, 9, 9, 9, 9, 9]]
    assert batch.attention_mask.tolist() == [[True] * 5 + [False] * 2, [True] * 7, [True] * 2 + [False] * 5]
    assert batch.position_ids[1].tolist() == list(range(7))
    assert batch.cu_seqlens is None
    assert batch.parent is None
    assert batch.boundaries.tolist() == [2, 3, 4, 9, 13, 14, 15]


@pytest.mark.parametrize("mode", ["shared", "packed", "none"])
def test_the_boundaries_are_sorted_before_they_go_to_a_device(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = pack(GROUPS, mode=mode, pad_token_id=0).to("meta")
    monkeypatch.setattr(torch, "sort", None)
    assert moved.boundaries.device.type == moved.layout.order.indices.device.type == "meta"


@pytest.mark.parametrize(("mode", "num_tokens"), [("shared", 11), ("packed", 14), ("none", 21)])
def test_counters_dtypes_and_boundary_tokens(mode: str, num_tokens: int) -> None:
    batch = pack(GROUPS, mode=mode, pad_token_id=0)
    assert (batch.num_tokens, batch.num_packed_tokens, batch.num_padded_tokens) == (num_tokens, 14, 21)
    assert batch.num_responses == 3
    assert batch.cu_boundaries.tolist() == [0, 3, 5, 7]
    assert batch.input_ids.flatten()[batch.boundaries].tolist() == BOUNDARY_TOKENS
    assert (batch.boundaries.dtype, batch.cu_boundaries.dtype) == (torch.int64, torch.int32)
    if mode != "none":
        assert (batch.cu_seqlens.dtype, batch.parent.dtype) == (torch.int32, torch.int32)


@pytest.mark.parametrize("mode", ["shared", "packed", "none"])
def test_boundaries_on_ragged_groups(mode: str, make_groups: Callable[..., Any], token_rows: Callable[..., Any]) -> None:
    groups = make_groups()
    batch = pack(groups, mode=mode, pad_token_id=0)
    pairs = [(group, response) for group in groups for response in group.responses]
    expected = []
    for rows, (group, response) in zip(token_rows(groups, batch), pairs, strict=True):
        prompt = len(group.prompt_ids)
        assert batch.input_ids.flatten()[rows].tolist() == [*group.prompt_ids, *response.ids]
        assert batch.position_ids.flatten()[rows].tolist() == list(range(prompt + len(response.ids)))
        expected += [rows[prompt - 1], *(rows[prompt + end] for end in response.sentence_ends)]
    assert batch.boundaries.tolist() == expected
    # Once each, although siblings share a prompt's last token.
    rows, among = batch.boundary_rows
    assert rows.tolist() == sorted(set(expected))
    assert rows[among.boundaries].tolist() == expected
    assert among.cu_boundaries is batch.cu_boundaries
    assert batch.read is not None
    # Of a batch with other boundaries they are worked out anew, and not those of before.
    other = dataclasses.replace(batch, layout=SentenceLayout(torch.tensor([3, 5, 5]), torch.tensor([0, 2, 3])))
    for each in (other, other.to("cpu")):
        rows, among = each.boundary_rows
        assert (rows.tolist(), among.boundaries.tolist(), among.cu_boundaries.tolist()) == ([3, 5], [0, 1, 1], [0, 2, 3])


def test_batch_moves_as_a_whole() -> None:
    batch = pack(GROUPS, pad_token_id=0).to("meta")
    for name in ("input_ids", "position_ids", "boundaries", "cu_boundaries", "cu_seqlens", "parent"):
        assert getattr(batch, name).device.type == "meta"
    rows, among = batch.boundary_rows
    assert [part.device.type for part in (rows, among.boundaries, among.cu_boundaries)] == ["meta"] * 3, "worked out on the host"
    assert batch.attention_mask is None
    assert batch.num_packed_tokens == 14


def test_batch_survives_a_worker_process() -> None:
    batch = pickle.loads(pickle.dumps(pack(GROUPS, pad_token_id=0)))
    assert batch.read[0] is batch.boundaries
    assert batch.boundaries.tolist() == [2, 3, 4, 2, 8, 9, 10]


def test_refusal_survives_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(UnsupportedBackboneError("Some", "it may")))
    assert str(error) == "Some cannot run packed: it may. Use --packing none (one padded row per response)."


def response(ids: list[int], ends: list[int]) -> ResponseIds:
    return ResponseIds(ids=ids, sentence_ends=ends)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "at least one group, got none"),
        ([PromptGroup(prompt_ids=[], responses=[response([1], [0])])], "group 0 has an empty prompt"),
        ([GROUPS[0], PromptGroup(prompt_ids=[1], responses=[])], "group 1 has no responses"),
        ([PromptGroup(prompt_ids=[1], responses=[response([1], [0]), response([], [0])])], "group 0, response 1: .* last token, -1, got"),
        ([PromptGroup(prompt_ids=[1], responses=[response([1, 2], [])])], r"`sentence_ends` must rise .* 1, got \[\]"),
        ([PromptGroup(prompt_ids=[1], responses=[response([1, 2], [0])])], r"to the last token, 1, got \[0\]"),
        ([PromptGroup(prompt_ids=[1], responses=[response([1, 2], [1, 1])])], r"rise strictly .* got \[1, 1\]"),
        ([PromptGroup(prompt_ids=[1], responses=[response([1, 2], [-1, 1])])], r"rise strictly .* got \[-1, 1\]"),
    ],
)
@pytest.mark.parametrize("mode", ["shared", "packed", "none"])
def test_bad_groups(groups: list[PromptGroup], message: str, mode: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(groups, mode=mode, pad_token_id=0)


@pytest.mark.parametrize(
    ("mode", "boundaries", "segments"),
    [("shared", [1, 1, 2, 3], ((2, 1, 1), (-1, 0, -1))), ("packed", [1, 3, 4, 5], ((2, 3, 1), (-1, -1, -1))), ("none", [1, 4, 5, 6], None)],
)
def test_a_response_without_ids_has_its_prompts_boundary(mode: str, boundaries: list[int], segments: Any) -> None:
    empty = response([], [])
    groups = [PromptGroup(prompt_ids=[1, 2], responses=[empty, response([3], [0])]), PromptGroup(prompt_ids=[4], responses=[empty])]
    batch = pack(groups, mode=mode, pad_token_id=0)
    assert batch.boundaries.tolist() == boundaries
    assert batch.cu_boundaries.tolist() == [0, 1, 3, 4]
    assert batch.segments == segments


@pytest.mark.parametrize("ids", [[1, 2], (1, 2), np.array([1, 2]), np.array([1, 2], dtype=np.int32)])
def test_ids_are_kept_as_one_type(ids: Any) -> None:
    """Equal prompts have equal keys however they came, and what is small already is not copied."""
    one, group = response(ids, [1]), PromptGroup(prompt_ids=ids, responses=[response([1], [0])])
    assert one.ids.dtype == one.sentence_ends.dtype == group.prompt_ids.dtype == np.int32
    assert group.prompt_key == PromptGroup(prompt_ids=[1, 2], responses=group.responses).prompt_key
    assert (group.prompt_ids is ids) == (isinstance(ids, np.ndarray) and ids.dtype == np.int32)


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="must be one of shared, packed, none, got 'pairs'"):
        pack(GROUPS, mode="pairs", pad_token_id=0)


def test_equal_prompts_of_several_groups_are_run_once() -> None:
    one, other = ResponseIds(ids=[5, 6], sentence_ends=[1]), ResponseIds(ids=[7], sentence_ends=[0])
    groups = [
        PromptGroup(prompt_ids=[1, 2, 3], responses=[one]),
        PromptGroup(prompt_ids=[1, 2], responses=[one]),
        PromptGroup(prompt_ids=[1, 2, 3], responses=[other, one]),
    ]
    batch = pack(groups, mode="shared", pad_token_id=0)
    assert batch.input_ids.tolist() == [[1, 2, 3, 5, 6, 1, 2, 5, 6, 7, 5, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 3, 3, 4]]
    assert batch.parent.tolist() == [-1, 0, -1, 2, 0, 0]
    assert batch.boundaries.tolist() == [2, 4, 6, 8, 2, 9, 2, 11]
    assert batch.segments == (tuple(batch.cu_seqlens.diff().tolist()), tuple(batch.parent.tolist()))
