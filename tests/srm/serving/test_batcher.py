"""What the batcher runs together, how long it waits, and who gets which score."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("prometheus_client", reason="the server needs the extra `serve`")

from srm.packing import PackingMode, PromptGroup, ResponseIds
from srm.scoring.run import ResponseScore
from srm.serving.batcher import Batcher, QueueFull, ScoringFailed
from srm.serving.metrics import Metrics
from srm.serving.settings import ServerSettings


def row(prompt: int, number: int, length: int = 10) -> PromptGroup:
    """Prompts of 100 tokens."""
    return PromptGroup(prompt_ids=[prompt] * 100, responses=[ResponseIds(ids=[number] * length, sentence_ends=[length - 1])])


def number_of(row: PromptGroup) -> int:
    return int(row.responses[0].ids[0])


class Recorder:
    """Scores a row with its number, and keeps the batches. Waits for `release` before each."""

    def __init__(self, is_held: bool = False) -> None:
        self.batches: list[list[tuple[int, int]]] = []
        self.release = threading.Event()
        if not is_held:
            self.release.set()

    def __call__(self, rows: list[PromptGroup]) -> list[ResponseScore]:
        self.batches.append([(int(row.prompt_ids[0]), number_of(row)) for row in rows])
        assert self.release.wait(30)
        return [ResponseScore(reward=float(number_of(row)), sentence_reward=[], weight=[]) for row in rows]


def run(
    recorder: Callable[..., Any], work: Callable[[Batcher], Coroutine[Any, Any, Any]], *, packing: PackingMode = "shared", **settings: Any
) -> Any:
    async def main() -> Any:
        batcher = Batcher(recorder, ServerSettings(**settings), Metrics(), packing=packing)
        batcher.start()
        try:
            return await work(batcher)
        finally:
            await batcher.close()

    return asyncio.run(main())


async def while_first_runs(batcher: Batcher, recorder: Recorder, rows: list[PromptGroup]) -> list[float]:
    """Rewards of `rows`, which come one by one while the model is busy with a row of prompt 0."""
    first = asyncio.create_task(batcher.score([row(0, 0)]))
    while not recorder.batches:
        await asyncio.sleep(0.001)
    rest = [asyncio.create_task(batcher.score([one])) for one in rows]
    await asyncio.sleep(0.01)
    recorder.release.set()
    await first
    return [scores[0].reward for scores in await asyncio.gather(*rest)]


def test_equal_prompts_run_together_within_the_budget():
    recorder = Recorder(is_held=True)
    rows = [row(1 + number % 2, number) for number in range(1, 9)]
    rewards = run(recorder, lambda batcher: while_first_runs(batcher, recorder, rows), tokens_per_batch=250)
    assert rewards == list(range(1, 9))
    # 100 + 4 x 10 tokens of prompt 2, then prompt 1 and one of its rows fill 250.
    assert recorder.batches == [[(0, 0)], [(2, 1), (2, 3), (2, 5), (2, 7), (1, 2)], [(1, 4), (1, 6), (1, 8)]]


@pytest.mark.parametrize("packing", ["packed", "none"])
def test_prompts_that_are_not_shared_count_for_every_row(packing: PackingMode):
    recorder = Recorder(is_held=True)
    rows = [row(1, number) for number in range(1, 6)]
    rewards = run(recorder, lambda batcher: while_first_runs(batcher, recorder, rows), tokens_per_batch=250, packing=packing)
    assert rewards == [1, 2, 3, 4, 5]
    assert [len(batch) for batch in recorder.batches] == [1, 2, 2, 1]


def test_padding_counts():
    recorder = Recorder(is_held=True)
    rows = [row(1, 1), row(1, 2, length=40), row(1, 3), row(1, 4)]
    # Padded, the second row makes the first one cost 140 as well.
    assert run(recorder, lambda batcher: while_first_runs(batcher, recorder, rows), tokens_per_batch=250, packing="none") == [1, 2, 3, 4]
    assert [len(batch) for batch in recorder.batches] == [1, 1, 1, 2]


def test_a_popular_prompt_does_not_hold_up_the_others():
    recorder = Recorder(is_held=True)
    rows = [*(row(1, number) for number in range(1, 13)), row(2, 20)]
    rewards = run(recorder, lambda batcher: while_first_runs(batcher, recorder, rows), tokens_per_batch=140)
    assert rewards == [*range(1, 13), 20]
    popular = [(1, number) for number in range(1, 13)]
    assert recorder.batches == [[(0, 0)], popular[:4], [(2, 20)], popular[4:8], popular[8:]]


def test_without_batching_every_row_runs_alone():
    recorder = Recorder(is_held=True)
    rows = [row(1, number) for number in range(1, 6)]
    assert run(recorder, lambda batcher: while_first_runs(batcher, recorder, rows), batching=False) == [1, 2, 3, 4, 5]
    assert [len(batch) for batch in recorder.batches] == [1] * 6


def test_a_row_beyond_the_budget_runs_alone():
    recorder = Recorder(is_held=True)
    rows = [row(1, 1), row(2, 2, length=500), row(3, 3)]
    assert run(recorder, lambda batcher: while_first_runs(batcher, recorder, rows), tokens_per_batch=250) == [1, 2, 3]
    assert recorder.batches == [[(0, 0)], [(1, 1)], [(2, 2)], [(3, 3)]]


def test_a_lone_client_never_waits():
    async def work(batcher: Batcher) -> float:
        started = time.perf_counter()
        for number in range(20):
            await batcher.score([row(1, number)])
        return time.perf_counter() - started

    # Twenty waits would take 200 seconds.
    assert run(Recorder(), work, max_wait_ms=10_000) < 10


def test_clients_of_the_last_batch_are_waited_for():
    recorder = Recorder()

    async def work(batcher: Batcher) -> None:
        await batcher.score([row(1, 1), row(1, 2)])
        # The wait is 5 % of it.
        batcher._last_seconds = 100.0
        first = asyncio.create_task(batcher.score([row(2, 3)]))
        await asyncio.sleep(0.1)
        assert len(recorder.batches) == 1, "did not wait"
        await asyncio.gather(first, batcher.score([row(2, 4)]))

    run(recorder, work, max_wait_ms=0)
    assert recorder.batches[1:] == [[(2, 3), (2, 4)]]


def test_a_crowd_that_keeps_coming_is_waited_for():
    recorder = Recorder()

    async def work(batcher: Batcher) -> None:
        await batcher.score([row(1, 1), row(1, 2)])
        batcher._last_seconds = 100.0
        crowd = []
        for number in range(3, 8):
            crowd.append(asyncio.create_task(batcher.score([row(2, number)])))
            await asyncio.sleep(0.01)
        await asyncio.gather(*crowd)

    run(recorder, work, max_wait_ms=0)
    # More than the last batch had.
    assert recorder.batches[1:] == [[(2, number) for number in range(3, 8)]]


def test_clients_who_do_not_come_back_are_given_up():
    async def work(batcher: Batcher) -> float:
        await batcher.score([row(1, 1), row(1, 2)])
        started = time.perf_counter()
        await batcher.score([row(2, 3)])
        return time.perf_counter() - started

    assert run(Recorder(), work, max_wait_ms=200) > 0.19


def test_requests_being_encoded_are_waited_for():
    recorder, may_go = Recorder(), threading.Event()

    async def encoded(batcher: Batcher) -> None:
        await batcher.encode(1, ([may_go.wait(30)] for _ in range(1)))
        await batcher.score([row(1, 2)])

    async def work(batcher: Batcher) -> None:
        batcher._last_seconds = 100.0
        slow = asyncio.create_task(encoded(batcher))
        await asyncio.sleep(0.01)
        fast = asyncio.create_task(batcher.score([row(1, 1)]))
        await asyncio.sleep(0.1)
        assert batcher.num_waiting == 2
        may_go.set()
        await asyncio.gather(slow, fast)

    run(recorder, work, max_wait_ms=0)
    assert recorder.batches == [[(1, 1), (1, 2)]]


def test_a_full_queue_refuses_and_says_when_to_come_back():
    recorder = Recorder(is_held=True)

    async def work(batcher: Batcher) -> None:
        batcher._last_seconds = 1.2
        running = asyncio.create_task(batcher.score([row(1, 1)]))
        while not recorder.batches:
            await asyncio.sleep(0.001)
        waiting = asyncio.create_task(batcher.score([row(1, 1), row(1, 2)]))
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull) as full:
            await batcher.encode(2, iter([]))
        assert full.value.retry_after == 2
        await batcher.encode(1, iter([]))
        recorder.release.set()
        await asyncio.gather(running, waiting)
        assert batcher.num_waiting == 0

    run(recorder, work, max_queue=3)


def test_requests_take_turns_at_being_encoded():
    order: list[str] = []

    def slices(name: str, count: int) -> Iterator[list[str]]:
        for number in range(count):
            order.append(name)
            time.sleep(0.002)
            yield [f"{name}{number}"]

    async def work(batcher: Batcher) -> None:
        large = asyncio.create_task(batcher.encode(1, slices("large", 200)))
        await asyncio.sleep(0.01)
        assert await batcher.encode(1, slices("small", 2)) == ["small0", "small1"]
        assert not large.done()
        assert await large == [f"large{number}" for number in range(200)]

    run(Recorder(), work)
    first = order.index("small")
    assert order[first : first + 3] == ["small", "large", "small"]


def test_a_request_that_is_given_up_is_not_encoded_to_its_end():
    seen: list[int] = []

    def slices() -> Iterator[list[int]]:
        for number in range(1000):
            seen.append(number)
            time.sleep(0.002)
            yield [number]

    async def work(batcher: Batcher) -> None:
        large = asyncio.create_task(batcher.encode(1, slices()))
        while len(seen) < 2:  # however slow the machine is
            await asyncio.sleep(0.002)
        large.cancel()
        await asyncio.gather(large, return_exceptions=True)
        stopped = len(seen)
        await asyncio.sleep(0.05)
        assert len(seen) <= stopped + 1
        assert batcher.num_waiting == 0

    run(Recorder(), work)
    assert 1 < len(seen) < 1000


def test_a_batch_that_fails_fails_alone(caplog):
    def fails_on_seven(rows: list[PromptGroup]) -> list[ResponseScore]:
        if any(number_of(row) == 7 for row in rows):
            raise RuntimeError("no memory left")
        return [ResponseScore(reward=float(number_of(row)), sentence_reward=[], weight=[]) for row in rows]

    async def work(batcher: Batcher) -> list[float]:
        with pytest.raises(ScoringFailed, match="in the server's log"):
            await batcher.score([row(1, 7), row(1, 8)])
        assert batcher.is_running
        return [score.reward for score in await batcher.score([row(1, 8)])]

    assert run(fails_on_seven, work) == [8.0]
    assert "no memory left" in caplog.text


def test_random_traffic_gets_its_own_scores_and_leaves_nothing_behind():
    """Thousands of requests of one to three rows, some of which are given up at a random moment."""
    recorder = Recorder()

    async def client(batcher: Batcher, number: int, chance: random.Random) -> bool:
        rows = [row(chance.randrange(50), 10 * number + part, length=chance.randrange(1, 30)) for part in range(chance.randrange(1, 4))]
        await asyncio.sleep(chance.random() / 2)
        task = asyncio.create_task(batcher.score(rows))
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() / 100)
            if task.cancel():
                return False
        assert [score.reward for score in await task] == [float(number_of(one)) for one in rows]
        return True

    async def work(batcher: Batcher) -> list[bool]:
        answered = await asyncio.gather(*(client(batcher, number, random.Random(number)) for number in range(4000)))
        await asyncio.sleep(0.05)
        assert (batcher.num_waiting, batcher._waiting_tokens(), batcher._queue) == (0, 0, {})
        return answered

    answered = run(recorder, work, tokens_per_batch=2000, max_queue=100_000)
    assert 3200 <= sum(answered) <= 4000
    assert any(not one for one in answered)
    assert max(map(len, recorder.batches)) > 1
    ran = [number for batch in recorder.batches for _, number in batch]
    assert len(ran) == len(set(ran)), "a row ran twice"
