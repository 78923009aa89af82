"""Requests in, batches out: rows wait in a queue ordered by prompt, and one thread runs the model.

While the model runs, rows gather by themselves. When it is free they go at once, unless more are to be expected: requests that are being
encoded, or the clients of the last batch, who have their answers and may ask again. That wait is bounded by what it can cost.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from srm.packing import PackingMode, PromptGroup
from srm.scoring.batching import PassCost
from srm.scoring.run import ResponseScore
from srm.serving.encoding import Encoded, EncodingThread
from srm.serving.errors import QueueFull, ScoringFailed

if TYPE_CHECKING:
    from srm.serving.metrics import Metrics
    from srm.serving.settings import ServerSettings

__all__ = ["Batcher"]

logger = logging.getLogger(__name__)

# The wait for more rows, as a share of what the last batch took: so much is lost at most when none come.
_WAIT_SHARE = 0.05
# How long nobody has to come before a crowd counts as complete, as a share of the longest wait.
_LULL_SHARE = 0.1

Run = Callable[[list[PromptGroup]], list[ResponseScore]]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Waiting:
    """A prompt with one response, in the queue, and who waits for its score."""

    row: PromptGroup
    score: asyncio.Future[ResponseScore]


class Batcher:
    """Collects rows of many requests into batches.

    Args:
        run: scores a batch; called in a thread of its own, one batch at a time.
        packing: how a batch is run, and so what it costs.

    All methods belong to one event loop.
    """

    def __init__(self, run: Run, settings: ServerSettings, metrics: Metrics, *, packing: PackingMode) -> None:
        self._run = run
        self._packing: PackingMode = packing
        self._settings = settings
        self._metrics = metrics
        self._encoding = EncodingThread(lambda: self._changed.set())
        self._model_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="srm-model")
        # By prompt, in the order in which the prompts came; rows are dict keys for their order and for cheap removal.
        self._queue: dict[bytes, dict[_Waiting, None]] = {}
        self._num_waiting = self._last_rows = 0
        # Of all that waits, as one batch; None where something has left since, and it must be counted anew.
        self._cost: PassCost | None = PassCost(packing)
        self._last_seconds = 0.0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Rows that wait for the model or are being encoded."""
        return self._num_waiting + self._encoding.num_rows

    @property
    def is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def close(self) -> None:
        """Stop. What still waits is given up; a batch that runs is waited for."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._encoding.close()
        self._model_thread.shutdown(cancel_futures=True)

    async def encode(self, num_rows: int, slices: Iterator[Sequence[Encoded]]) -> list[Encoded]:
        """All that `slices` yields. `num_rows` are counted as expected until then.

        Raises:
            QueueFull: there is no room for them.
        """
        if self.num_waiting + num_rows > self._settings.max_queue:
            raise QueueFull(max(1, math.ceil(self._last_seconds)))
        return await self._encoding.run(num_rows, slices)

    async def score(self, rows: Sequence[PromptGroup]) -> list[ResponseScore]:
        """Scores of `rows`, in order. Cancelled, it takes those that have not run yet out of the queue.

        Raises:
            ScoringFailed: the model raised an error.
        """
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(row=row, score=loop.create_future()) for row in rows]
        for one in waiting:
            self._add(one)
        try:
            return await asyncio.gather(*(one.score for one in waiting))
        finally:
            self._metrics.dropped.inc(sum(self._remove(one) for one in waiting))

    def _add(self, one: _Waiting) -> None:
        self._queue.setdefault(one.row.prompt_key, {})[one] = None
        if self._cost is not None:
            self._cost.add(one.row)
        self._num_waiting += 1
        self._changed.set()

    def _remove(self, one: _Waiting) -> bool:
        """Whether `one` was still in the queue."""
        rows = self._queue.get(one.row.prompt_key, {})
        if one not in rows:
            return False
        del rows[one]
        if not rows:
            del self._queue[one.row.prompt_key]
        self._cost = None
        self._num_waiting -= 1
        return True

    def _waiting_tokens(self) -> int:
        """Tokens of all that waits, run as one batch."""
        if self._cost is None:
            self._cost = PassCost(self._packing)
            for rows in self._queue.values():
                for one in rows:
                    self._cost.add(one.row)
        return self._cost.tokens

    async def _serve(self) -> None:
        while True:
            self._changed.clear()
            if not self._queue:
                await self._changed.wait()
                continue
            await self._wait_for_more()
            batch, tokens = self._take()
            if batch:
                await self._run_batch(batch, tokens)

    async def _wait_for_more(self) -> None:
        patience = max(self._settings.max_wait_ms / 1000, _WAIT_SHARE * self._last_seconds)
        deadline = time.perf_counter() + patience
        lull = 0.0
        while self._settings.batching and self._waiting_tokens() < self._settings.tokens_per_batch:
            is_expecting = self._encoding.num_rows > 0 or self._num_waiting < self._last_rows
            left = deadline - time.perf_counter()
            wait = left if is_expecting else min(left, lull)
            if wait <= 0:
                return
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except asyncio.TimeoutError:
                return
            # Somebody came: others may be right behind.
            lull = _LULL_SHARE * patience

    def _take(self) -> tuple[list[_Waiting], int]:
        """The next batch, out of the queue, and its tokens: the prompt that waits longest with its rows, then the next, while they fit."""
        batch: list[_Waiting] = []
        cost = PassCost(self._packing)
        for prompt, rows in list(self._queue.items()):
            for one in list(rows):
                is_full = cost.after(one.row) > self._settings.tokens_per_batch or not self._settings.batching
                if batch and is_full:
                    if batch[-1].row.prompt_key == prompt:
                        # Its other rows wait behind the other prompts, or a popular prompt would keep them waiting for ever.
                        self._queue[prompt] = self._queue.pop(prompt)
                    return batch, cost.tokens
                cost.add(one.row)
                batch.append(one)
                self._remove(one)
        return batch, cost.tokens

    async def _run_batch(self, batch: list[_Waiting], tokens: int) -> None:
        rows = [one.row for one in batch]
        started = time.perf_counter()
        try:
            scores = await asyncio.get_running_loop().run_in_executor(self._model_thread, self._run, rows)
        except Exception:
            # One batch that fails must not stop the server: its requests are told, and the log has the reason.
            logger.exception("a batch of %d rows failed", len(batch))
            self._metrics.model_errors.inc()
            self._answer(batch, ScoringFailed("the model raised an error, which is in the server's log"))
            return
        self._last_rows, self._last_seconds = len(batch), time.perf_counter() - started
        self._metrics.observe_batch(len(rows), tokens, self._last_seconds)
        self._answer(batch, scores)

    @staticmethod
    def _answer(batch: list[_Waiting], scores: Sequence[ResponseScore] | Exception) -> None:
        for index, one in enumerate(batch):
            # Whoever has gone has cancelled it.
            if one.score.done():
                continue
            if isinstance(scores, Exception):
                one.score.set_exception(scores)
            else:
                one.score.set_result(scores[index])
