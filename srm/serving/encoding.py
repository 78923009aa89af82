"""Requests become rows beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["Encoded", "EncodingThread"]

Encoded = TypeVar("Encoded")


class EncodingThread:
    """Encodes for all requests of an event loop. One thread, because fast tokenizers change their own settings between calls.

    Args:
        on_done: called after each request, encoded or not.
    """

    def __init__(self, on_done: Callable[[], None] = lambda: None) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="srm-encode")
        self._on_done = on_done
        self.num_rows = 0
        """Rows that are being encoded, or wait for it."""

    async def run(self, num_rows: int, slices: Iterator[Sequence[Encoded]]) -> list[Encoded]:
        """All that `slices` yields, one after the other.

        Each slice queues anew for the thread, so that a large request does not keep small ones waiting; cancelled, it ends with the slice
        that runs.

        Args:
            num_rows: how many rows there will be.
            slices: encodes as it is asked for the next one.
        """
        self.num_rows += num_rows
        encoded: list[Encoded] = []
        try:
            while (part := await asyncio.get_running_loop().run_in_executor(self._thread, next, slices, None)) is not None:
                encoded += part
            return encoded
        finally:
            self.num_rows -= num_rows
            self._on_done()

    def close(self) -> None:
        """Stop. What has not begun is given up."""
        self._thread.shutdown(cancel_futures=True)
