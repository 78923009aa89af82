"""What a server is told when it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from srm.errors import UserError
from srm.integrations.openrlhf import check_policy_ends
from srm.runs.limits import check_limits

__all__ = ["ServerSettings"]


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How requests are batched, and what is refused.

    Attributes:
        tokens_per_batch: bound on the tokens of one forward pass, padding included; a single longer row still runs, alone.
        max_wait_ms: longest wait for more requests before a batch, while more are to be expected; 5 % of the last batch's run time where
            that is longer.
        batching: False runs every row in a pass of its own, for comparison.
        max_queue: rows that may wait; what comes beyond is answered with 503. Also the most rows of one request.
        max_length: longest prompt + response in tokens; the backbone's own limit where None.
        max_body_mb: largest request body, in units of 1,000,000 bytes.
        receive_seconds: how long a request may take to come in whole, and a second more for each 100,000 bytes of it.
        max_half_sent: connections whose request has not come in whole; beyond, the one that waits longest is closed, once it has had a
            second.
        policy_ends: what ends a response of OpenRLHF's or slime's policy, beside the reward model's own end tokens.
        token: what requests must bring, as `Authorization: Bearer <token>` or as the password of a URL; None asks for nothing.
    """

    tokens_per_batch: int = 8192
    max_wait_ms: float = 5.0
    batching: bool = True
    max_queue: int = 4096
    max_length: int | None = None
    max_body_mb: float = 16.0
    receive_seconds: float = 30.0
    max_half_sent: int = 1024
    policy_ends: Sequence[str] = ()
    token: str | None = None

    def __post_init__(self) -> None:
        check_limits(vars(self))
        check_policy_ends(self.policy_ends)
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip() == self.token != ""):
            raise UserError("the token must be printable ASCII without space around it, and not empty. Choose another one.")
