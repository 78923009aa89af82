"""What keeps a request from being answered, when the request itself is sound."""

from __future__ import annotations

__all__ = ["QueueFull", "ScoringFailed"]


class QueueFull(RuntimeError):
    """Too many rows wait. retry_after: seconds until there should be room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class ScoringFailed(RuntimeError):
    """The model raised an error, which is in the server's log."""
