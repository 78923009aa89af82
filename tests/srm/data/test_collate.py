"""Batches: which pairs compare which responses, and with what margin and weight."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from srm.data import EncodedComparison, PairCollator
from srm.data.schema import Pair
from srm.packing import PackedBatch, ResponseIds


def response(length: int, ends: list[int]) -> ResponseIds:
    return ResponseIds(ids=np.arange(10, 10 + length, dtype=np.int32), sentence_ends=np.array(ends, dtype=np.int32))


def comparison(prompt: int, *responses: ResponseIds, pairs: tuple[Pair, ...] = ((0, 1, None),)) -> EncodedComparison:
    return EncodedComparison(prompt_ids=np.arange(prompt, dtype=np.int32), responses=responses, pairs=pairs, where="here")


PAIR = comparison(3, response(4, [1, 3]), response(2, [1]))
MARGIN = comparison(2, response(2, [1]), response(3, [2]), pairs=((0, 1, 0.5),))
LIST = comparison(1, response(1, [0]), response(2, [1]), response(3, [2]), pairs=((2, 0, None), (2, 1, None), (0, 1, None)))


def collate(*comparisons: EncodedComparison, **arguments: str) -> dict:
    return PairCollator(pad_token_id=0, **arguments)(list(comparisons))


def test_pairs_count_over_the_batch() -> None:
    result = collate(PAIR, LIST, MARGIN)
    assert result["pairs"].tolist() == [[0, 1], [4, 2], [4, 3], [2, 3], [5, 6]]
    assert result["pairs"].dtype == torch.int64
    batch = result["batch"]
    assert isinstance(batch, PackedBatch)
    assert batch.num_responses == 7
    assert batch.input_ids.tolist() == [
        [*range(3), 10, 11, 12, 13, 10, 11, 0, 10, 10, 11, 10, 11, 12, *range(2), 10, 11, 10, 11, 12],
    ]


def test_a_list_counts_as_much_as_a_pair() -> None:
    weight = collate(PAIR, LIST)["weight"]
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, torch.tensor([1, 1 / 3, 1 / 3, 1 / 3]))
    assert collate(PAIR, MARGIN)["weight"] is None


def test_margins() -> None:
    assert collate(PAIR, LIST)["margin"] is None
    margin = collate(PAIR, MARGIN)["margin"]
    assert margin.dtype == torch.float32
    assert margin.tolist() == [0, 0.5]


@pytest.mark.parametrize("granularity", ["sentence", "response"])
def test_boundaries_are_sentence_ends(granularity: str) -> None:
    batch = collate(PAIR, granularity=granularity)["batch"]
    assert batch.boundaries.tolist() == [2, 4, 6, 2, 8]
    assert batch.cu_boundaries.tolist() == [0, 3, 5]


def test_token_granularity_has_every_token() -> None:
    batch = collate(PAIR, granularity="token")["batch"]
    assert batch.boundaries.tolist() == [2, 3, 4, 5, 6, 2, 7, 8]
    assert batch.cu_boundaries.tolist() == [0, 5, 8]


@pytest.mark.parametrize(("packing", "shape"), [("shared", (1, 9)), ("packed", (1, 12)), ("none", (2, 7))])
def test_packing(packing: str, shape: tuple[int, int]) -> None:
    assert collate(PAIR, packing=packing)["batch"].input_ids.shape == shape


def test_padding() -> None:
    batch = PairCollator(packing="none", pad_token_id=77)([PAIR])["batch"]
    assert batch.input_ids[1].tolist() == [0, 1, 2, 10, 11, 77, 77]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"packing": "tight"}, "`packing` must be one of shared, packed, none, got 'tight'"),
        ({"granularity": "word"}, "`granularity` must be one of sentence, response, token, got 'word'"),
    ],
)
def test_bad_arguments(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairCollator(pad_token_id=0, **arguments)


def test_in_a_data_loader() -> None:
    collator = pickle.loads(pickle.dumps(PairCollator(pad_token_id=0)))
    batches = list(DataLoader([PAIR, MARGIN, LIST], batch_size=2, collate_fn=collator))
    assert [batch["pairs"].tolist() for batch in batches] == [[[0, 1], [2, 3]], [[2, 0], [2, 1], [0, 1]]]


def test_in_a_data_loader_with_a_worker() -> None:
    (batch,) = DataLoader([PAIR, LIST], batch_size=2, collate_fn=PairCollator(pad_token_id=0), num_workers=1)
    assert batch["batch"].num_responses == 5
