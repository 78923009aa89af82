"""SentenceLayout and cu_from_lengths: what passes, and what each failure says."""

import pytest
import torch

from srm_kernels import SentenceLayout, cu_from_lengths


def layout(boundaries: list[int], cu: list[int]) -> SentenceLayout:
    return SentenceLayout(torch.tensor(boundaries, dtype=torch.int64), torch.tensor(cu, dtype=torch.int32))


def test_offsets_from_lengths():
    for lengths in ([3, 0, 2], map(int, "302"), torch.tensor([3, 0, 2]), torch.tensor([3, 0, 2], dtype=torch.int32)):
        cu = cu_from_lengths(lengths)
        assert cu.dtype == torch.int32
        assert cu.tolist() == [0, 3, 3, 5]
        assert cu.diff().tolist() == [3, 0, 2]
    assert cu_from_lengths([]).tolist() == [0]
    with pytest.raises(ValueError, match=r"`lengths` must not be negative, got -1 \(response 1\)"):
        cu_from_lengths([2, -1])
    with pytest.raises(ValueError, match=r"`lengths` must not be negative, got -1 \(response 1\)"):
        cu_from_lengths(torch.tensor([2, -1]))
    with pytest.raises(TypeError, match=r"`lengths` must be integers, got 3\.7 \(response 1\)"):
        cu_from_lengths([3, 3.7])
    assert cu_from_lengths([2**31 - 1]).tolist() == [0, 2**31 - 1]
    with pytest.raises(ValueError, match=r"`lengths` must sum to less than 2\*\*31, got 2147483648"):
        cu_from_lengths([2**31 - 1, 1])
    with pytest.raises(TypeError, match=r"`lengths` must be int32 or int64, got torch\.float32"):
        cu_from_lengths(torch.ones(2))


@pytest.mark.parametrize(
    ("boundaries", "cu"),
    [([], [0]), ([], [0, 0]), ([3], [0, 1]), ([3, 5, 3, 4], [0, 2, 4]), ([3, 5, 1, 2], [0, 2, 2, 4, 4]), ([0, 9], [0, 2])],
)
def test_valid(boundaries, cu):
    given = layout(boundaries, cu)
    given.validate(10)
    assert (given.num_boundaries, given.num_responses) == (len(boundaries), len(cu) - 1)


@pytest.mark.parametrize(
    ("boundaries", "cu", "message"),
    [
        ([3, 10], [0, 2], r"^SentenceLayout: `boundaries` must lie in \[0, 10\), got 10 at index 1 \(response 0\)"),
        ([3, 12], [0, 1, 2], r"`boundaries` must lie in \[0, 10\), got 12 at index 1 \(response 1\)"),
        ([3, -1], [0, 2], r"got -1 at index 1 \(response 0\)"),
        ([3, 5, 7, 7], [0, 2, 4], r"increase strictly inside a response, got 7 then 7 at index 3 \(response 1\)"),
        ([5, 3], [0, 0, 2, 2], r"got 5 then 3 at index 1 \(response 1\)"),
        ([3, 5], [0, 1], r"^SentenceLayout: `cu_boundaries` must end at len\(boundaries\)=2, got 1 \(response 0\)"),
        ([3, 5], [1, 2], r"`cu_boundaries` must start at 0, got 1"),
        ([3, 5], [0, 2, 1, 2], r"`cu_boundaries` must not fall, got 2 then 1 \(response 1\)"),
    ],
)
def test_invalid(boundaries, cu, message):
    with pytest.raises(ValueError, match=message):
        layout(boundaries, cu).validate(10)


def test_construction_checks_types():
    with pytest.raises(TypeError, match=r"SentenceLayout: `boundaries` must be int32 or int64, got torch\.float32"):
        SentenceLayout(torch.ones(2), torch.tensor([0, 2]))
    with pytest.raises(TypeError, match="`cu_boundaries` must be a tensor, got list"):
        SentenceLayout(torch.tensor([1]), [0, 1])
    with pytest.raises(ValueError, match=r"`boundaries` must have one dimension, got shape \(1, 1\)"):
        SentenceLayout(torch.tensor([[1]]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="must have B \\+ 1 entries, got none"):
        SentenceLayout(torch.tensor([1]), torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="is on cpu and `cu_boundaries` on meta"):
        SentenceLayout(torch.tensor([1]), torch.tensor([0, 1], device="meta"))


def test_to_moves_both_and_the_layout_is_frozen():
    moved = layout([1], [0, 1]).to("meta")
    assert moved.boundaries.device.type == moved.cu_boundaries.device.type == "meta"
    with pytest.raises(AttributeError):
        moved.boundaries = torch.tensor([2])
