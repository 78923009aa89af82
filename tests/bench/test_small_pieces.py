"""Host work of every batch, timed by pytest-benchmark so that a regression shows: run this file to see the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from srm.data import EncodedComparison, PairCollator
from srm.packing import ResponseIds
from srm.packing.gather import key_rows
from srm.packing.plan import AttentionPlan
from srm.segmentation import make_segmenter

pytest.importorskip("pytest_benchmark", reason="times with pytest-benchmark, from the extra `dev`")
pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=3, warmup=False)


@pytest.fixture(scope="module")
def rows() -> list[EncodedComparison]:
    """64 pairs of 87 + 235 + 197 tokens."""
    random = np.random.default_rng(0)

    def response(count: int) -> ResponseIds:
        ends = np.append(np.arange(26, count - 1, 27), count - 1).astype(np.int32)
        return ResponseIds(ids=random.integers(3, 1000, count, dtype=np.int32), sentence_ends=ends)

    return [
        EncodedComparison(
            prompt_ids=random.integers(3, 1000, 87, dtype=np.int32),
            responses=(response(235), response(197)),
            pairs=((0, 1, None),),
            where="here",
        )
        for _ in range(64)
    ]


def test_collating_64_pairs(benchmark: Any, rows: list[EncodedComparison]) -> None:
    batch = benchmark(PairCollator(packing="shared", pad_token_id=0), rows)["batch"]
    assert batch.num_tokens == 64 * (87 + 235 + 197)


def test_a_plan_from_its_batch(benchmark: Any, rows: list[EncodedComparison]) -> None:
    batch = PairCollator(packing="shared", pad_token_id=0)(rows)["batch"]
    plan = benchmark(lambda: AttentionPlan.from_batch(batch))
    assert plan.num_keys == 64 * (3 * 87 + 235 + 197)


def test_key_rows_of_64_pairs(benchmark: Any, rows: list[EncodedComparison]) -> None:
    plan = AttentionPlan.from_batch(PairCollator(packing="shared", pad_token_id=0)(rows)["batch"])
    lengths, parents = torch.tensor(plan.lengths), torch.tensor(plan.parents)
    found = benchmark(lambda: key_rows(lengths, parents, num_tokens=plan.num_tokens, num_keys=plan.num_keys, has_parents=True))
    assert found.index.numel() == plan.num_keys


def test_segmenting_a_page(benchmark: Any) -> None:
    segmenter = make_segmenter("punkt")
    page = "It was warm there. Dr. Smith paid 3.50 for bread, flour and salt! Is this right? No, it is wrong. " * 20
    spans = benchmark(segmenter.segment, page)
    assert "".join(page[span.start : span.end] for span in spans) == page
