"""Which rows make up which step does not depend on who computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st

from srm.packing import PackingMode, PromptGroup, ResponseIds
from srm.scoring.batching import pass_cost
from srm.training.sampling import GlobalBatchSampler, RowDataset


def sampler_of(lengths: Sequence[int], *, packing: PackingMode = "shared", **kwargs: Any) -> GlobalBatchSampler:
    """Over rows of these many tokens, no two with a prompt in common."""
    empty = ResponseIds(ids=[], sentence_ends=[])
    rows = [PromptGroup(prompt_ids=[index] * length, responses=[empty]) for index, length in enumerate(lengths, 1)]
    return GlobalBatchSampler(rows, packing=packing, **kwargs)


def shards(sampler: GlobalBatchSampler, processes: int) -> list[list[list[list[int]]]]:
    """The slots that accelerate gives each process, a slot being a list of passes."""
    return [list(BatchSamplerShard(sampler, num_processes=processes, process_index=index)) for index in range(processes)]


def one_pass_each(sampler: GlobalBatchSampler) -> list[list[int]]:
    """The slots of a sampler without a limit on tokens."""
    return [rows for (rows,) in sampler]


def global_batches(rows: int, *, per_process: int, processes: int, steps: int, **kwargs) -> list[set[int]]:
    sampler = sampler_of([1] * rows, batch_size=per_process, num_processes=processes, accumulation_steps=steps, **kwargs)
    mine = shards(sampler, processes)
    assert len({len(batches) for batches in mine}) == 1, "every process must run the same number of batches"
    assert len(mine[0]) * processes == len(sampler)
    starts = range(0, len(mine[0]), steps)
    grouped = [[slot for slots in mine for slot in slots[start : start + steps]] for start in starts]
    assert all(len(rows) <= per_process for group in grouped for slot in group for rows in slot)
    return [{index for slot in group for rows in slot for index in rows if index >= 0} for group in grouped]


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 15, 16, 17, 22])
@pytest.mark.parametrize("order", ["random", "sequential", "group_by_length"])
def test_steps_hold_the_same_rows_however_the_work_is_split(rows, order):
    splits = [(8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 8, 1), (1, 2, 4)]
    one, *others = [global_batches(rows, per_process=p, processes=n, steps=s, order=order, seed=3) for p, n, s in splits]
    assert set().union(*one) == set(range(rows))
    assert sum(map(len, one)) == rows
    for other in others:
        assert other == one


@given(rows=st.integers(1, 60), per_process=st.integers(1, 5), processes=st.integers(1, 5), steps=st.integers(1, 4))
def test_every_row_comes_once_and_fillers_only_in_empty_places(rows, per_process, processes, steps):
    sampler = sampler_of([1] * rows, batch_size=per_process, num_processes=processes, accumulation_steps=steps, order="sequential")
    batches = one_pass_each(sampler)
    assert len(batches) == len(sampler)
    assert sorted(index for batch in batches for index in batch if index >= 0) == list(range(rows))
    fillers = [batch for batch in batches if any(index < 0 for index in batch)]
    assert all(len(batch) == 1 for batch in fillers)
    assert len(fillers) < processes


def test_epochs_differ_and_repeat_themselves():
    sampler = sampler_of([1] * 20, batch_size=4, seed=1)
    assert len(sampler) == 5, "one process, and no accumulation, where nothing is said"
    first = list(sampler)
    sampler.epoch = 1
    second = list(sampler)
    assert first != second
    sampler.epoch = 0
    assert list(sampler) == first
    assert list(sampler_of([1] * 20, batch_size=4, seed=2)) != first


def test_short_last_batch_can_be_left_out():
    sampler = sampler_of([1] * 10, batch_size=2, num_processes=2, drop_last=True)
    assert len(list(sampler)) == len(sampler) == 4


def test_group_by_length_puts_like_with_like():
    def spread(order: str) -> float:
        batches = one_pass_each(sampler_of(list(range(1, 65)), batch_size=4, order=order, seed=0))
        return sum(max(batch) - min(batch) for batch in batches) / len(batches)

    assert spread("group_by_length") < spread("random") / 2


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=80),
    per_process=st.integers(1, 4),
    processes=st.integers(1, 4),
    steps=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_slots_run_about_as_many_tokens(lengths, per_process, processes, steps, seed):
    split = {"batch_size": per_process, "num_processes": processes, "accumulation_steps": steps}
    sampler = sampler_of(lengths, **split, seed=seed)
    plain = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    slots = iter(one_pass_each(sampler))
    for start in range(0, len(plain), sampler.global_size):
        rows = plain[start : start + sampler.global_size]
        dealt = [next(slots) for _ in range(sampler._slots_of(len(rows)))]
        assert sorted(row for slot in dealt for row in slot if row >= 0) == sorted(rows), "a global batch is cut, then dealt"
        tokens = [sum(lengths[row] for row in slot if row >= 0) for slot in dealt]
        # One row too many is what a slot can be ahead, unless the others are full and cannot take it.
        if all(len(slot) < per_process for slot in dealt):
            assert max(tokens) - min(tokens) <= max(lengths[row] for row in rows)
    assert next(slots, None) is None


def test_dealing_evens_out_real_lengths():
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.randn(512, generator=generator) * 0.9 + 6).exp().int().clamp(10, 1500).tolist()

    def spread(batches: list[list[int]]) -> float:
        """Mean over steps of the fullest slot, against the mean slot."""
        tokens = torch.tensor([[sum(lengths[row] for row in slot) for slot in batches[start : start + 4]] for start in range(0, 128, 4)])
        return float((tokens.amax(1) / tokens.float().mean(1)).mean())

    dealt = one_pass_each(sampler_of(lengths, batch_size=4, num_processes=4, seed=1))
    order = torch.randperm(512, generator=torch.Generator().manual_seed(1)).tolist()
    assert spread(dealt) < 1.1 < 1.3 < spread([order[start : start + 4] for start in range(0, 512, 4)])


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=60),
    per_process=st.integers(1, 6),
    processes=st.integers(1, 3),
    steps=st.integers(1, 3),
    limit=st.integers(1, 1500),
)
def test_passes_stay_within_the_limit_and_processes_in_step(lengths, per_process, processes, steps, limit):
    split = {"batch_size": per_process, "num_processes": processes, "accumulation_steps": steps, "seed": 3}
    sampler = sampler_of(lengths, max_tokens=limit, **split)
    free = sampler_of(lengths, **split)
    slots = list(sampler)
    assert slots == list(sampler)
    assert len(slots) == len(sampler) == len(free), "steps are counted in slots, with a limit and without"
    passes = [rows for slot in slots for rows in slot]
    assert all(len(rows) == 1 or sum(lengths[row] for row in rows) <= limit for rows in passes)
    assert all(len(rows) <= per_process for rows in passes)
    for turn in zip(*[iter(slots)] * processes, strict=True):
        assert len({len(slot) for slot in turn}) == 1, "processes that share weights must run the same number of passes"

    def by_step(slots: list[list[list[int]]]) -> list[list[int]]:
        size = processes * steps
        return [
            sorted(row for slot in slots[start : start + size] for rows in slot for row in rows if row >= 0)
            for start in range(0, len(slots), size)
        ]

    assert by_step(slots) == by_step(list(free)), "a step holds the rows that the seed draws"


def test_a_limit_costs_few_passes_and_little_spread():
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.randn(512, generator=generator) * 0.9 + 6).exp().int().clamp(10, 1500).tolist()
    slots = list(sampler_of(lengths, batch_size=16, num_processes=2, max_tokens=3000, seed=1))
    fullest = needed = 0.0
    for step in zip(slots[::2], slots[1::2], strict=True):
        tokens = [sum(lengths[row] for row in rows) for slot in step for rows in slot]
        fullest += max(tokens) / (sum(tokens) / len(tokens))
        needed += len(tokens) / (sum(tokens) / 3000)
    # 1 would be passes of equal length, and passes filled to the brim; that a slot has a whole number of them costs most of the rest.
    assert fullest / 16 < 1.02
    assert needed / 16 < 1.3


def test_without_a_limit_a_slot_is_one_pass():
    slots = list(sampler_of([5, 1, 9, 2], batch_size=4, order="sequential"))
    assert slots == [[[2, 0, 3, 1]]]
    assert list(sampler_of([5, 1, 9, 2], batch_size=4, order="sequential", max_tokens=9)) == [[[2], [0, 3, 1]]]
    # Each of three rows is over the limit: two processes run two passes each, one of them a filler.
    over = list(sampler_of([5, 5, 9], batch_size=2, num_processes=2, order="sequential", max_tokens=1))
    assert over == [[[2], [1]], [[0], [~0]]]
    # The filler is the shortest row, wherever it stands.
    over = list(sampler_of([9, 8, 5], batch_size=2, num_processes=2, order="sequential", max_tokens=1))
    assert over == [[[0], [2]], [[1], [~2]]]
    # One long row does not make passes for the others.
    assert list(sampler_of([900, 3, 3, 3], batch_size=4, order="sequential", max_tokens=9)) == [[[0], [1, 2, 3]]]


@pytest.mark.parametrize(("packing", "passes"), [("shared", 1), ("packed", 2), ("none", 3)])
def test_the_limit_counts_what_a_pass_runs(packing: PackingMode, passes: int):
    """Prompts in common once, prompts of siblings twice, or padding to the longest."""
    short, long = (ResponseIds(ids=[9] * length, sentence_ends=[length - 1]) for length in (2, 8))
    rows = [PromptGroup(prompt_ids=[1, 2, 3, 4, 5], responses=[short, response]) for response in (short, short, short, long)]
    # 27 tokens; 34 and 28; padded, the longest row makes each of its neighbours cost 26, too.
    slots = list(GlobalBatchSampler(rows, packing=packing, batch_size=4, order="sequential", max_tokens=40))
    assert len(slots[0]) == passes
    assert all(len(part) == 1 or pass_cost([rows[row] for row in part], packing) <= 40 for part in slots[0])


def test_rows_know_whether_they_count():
    dataset = RowDataset(["a", "b"])
    assert dataset[[0, 1, ~1]] == [("a", True), ("b", True), ("b", False)]
    assert len(dataset) == 2
