"""The routes that answer with rewards, the same on `srm-serve` and on vLLM's server, and what each error is answered with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from srm.integrations.openrlhf import answer_rows
from srm.packing import PromptGroup
from srm.scoring.protocol import Reader
from srm.scoring.run import ResponseScore
from srm.serving.encoding import Encoded
from srm.serving.errors import QueueFull, ScoringFailed
from srm.serving.metrics import Metrics
from srm.serving.rows import BadField, encode_openrlhf, encode_rows, encode_slime, reward_of
from srm.serving.schema import TAGS, OpenRLHFAnswer, OpenRLHFRequest, RewardAnswer, RewardRequest, SlimeRequest
from srm.serving.settings import ServerSettings

__all__ = ["REWARD_ROUTES", "RewardService", "Scorer", "reward_routers"]

REWARD_ROUTES = frozenset({"/v1/rewards", "/get_reward", "/remote_rm"})
"""The paths of all of them."""

_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The token is missing or wrong"},
    413: {"description": "The body is too large"},
    503: {"description": "The queue is full; `Retry-After` says in how many seconds to come back"},
}
# A body of megabytes may have a problem in every byte.
_MOST_PROBLEMS = 20
# What nginx calls a client that has closed its connection. Nobody reads it but the metrics.
_CLIENT_GONE = 499


class Scorer(Protocol):
    """What runs the model."""

    async def encode(self, num_rows: int, slices: Iterator[Sequence[Encoded]]) -> list[Encoded]:
        """All that `slices` yields, worked out beside the event loop; `QueueFull` where there is no room for `num_rows` more."""
        ...

    async def score(self, rows: Sequence[PromptGroup]) -> list[ResponseScore]:
        """Scores of `rows`, each a prompt with one response, in order. Cancelled, it gives up what has not run."""
        ...


@dataclass(frozen=True, kw_only=True)
class RewardService:
    """What the routes work with: who reads a request, who scores it, and what is refused and counted."""

    reader: Reader
    scorer: Scorer
    settings: ServerSettings
    metrics: Metrics


def reward_routers(service: Callable[[], RewardService], dependencies: Sequence[Any] = ()) -> list[APIRouter]:
    """The routers of `REWARD_ROUTES`.

    Args:
        service: called with each request.
        dependencies: FastAPI's, of each route.
    """
    rows, samples, sample = _reading(RewardRequest), _reading(OpenRLHFRequest), _reading(SlimeRequest)

    @rows.post("/v1/rewards", response_model=RewardAnswer, responses=_ERRORS, dependencies=dependencies)
    async def rewards(body: RewardRequest, request: Request) -> Response:
        """Rewards of responses and of their sentences, for rows of text, of messages, or of token ids."""
        of = service()
        _check_count(len(body.rows), "rows", of.settings)

        async def answer() -> Response:
            slices = encode_rows(of.reader, body.rows, max_length=of.settings.max_length)
            encoded = await of.scorer.encode(len(body.rows), slices)
            scores = _finite(await of.scorer.score(encoded))
            return JSONResponse({"rewards": [reward_of(one, score) for one, score in zip(encoded, scores, strict=True)]})

        return await _unless_gone(request, answer)

    @samples.post("/get_reward", response_model=OpenRLHFAnswer, responses=_ERRORS, dependencies=dependencies)
    async def get_reward(body: OpenRLHFRequest, request: Request) -> Response:
        """OpenRLHF's remote reward model: give this route's address as `--reward.remote_url`."""
        of = service()
        _check_count(len(body.query), "query", of.settings)

        async def answer() -> Response:
            settings = of.settings
            slices = encode_openrlhf(
                of.reader,
                body.model_dump(),
                max_length=settings.max_length,
                policy_ends=settings.policy_ends,
                on_mended=of.metrics.mended,
            )
            encoded = await of.scorer.encode(len(body.query), slices)
            scores = _finite(await of.scorer.score(encoded))
            return JSONResponse(answer_rows(encoded, [score.reward for score in scores]))

        return await _unless_gone(request, answer)

    @sample.post("/remote_rm", response_model=float, responses=_ERRORS, dependencies=dependencies)
    async def remote_rm(body: SlimeRequest, request: Request) -> Response:
        """slime's remote reward model: give this route's address as `--rm-url`, with `--rm-type remote_rm`."""
        of = service()

        async def answer() -> Response:
            settings = of.settings
            slices = encode_slime(
                of.reader, body, max_length=settings.max_length, policy_ends=settings.policy_ends, on_mended=of.metrics.mended
            )
            (score,) = _finite(await of.scorer.score(await of.scorer.encode(1, slices)))
            return JSONResponse(score.reward)

        return await _unless_gone(request, answer)

    return [rows, samples, sample]


def _reading(kind: type[BaseModel]) -> APIRouter:
    """A router whose routes read their body as `kind` straight from the bytes, and answer their errors themselves.

    FastAPI would have `json` make objects of all of it first: of 16 MB of brackets, in seconds in which nobody else is answered. And the
    application around the routes may have words of its own for errors, which `srm.Client` does not know.
    """

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def read(request: Request) -> Response:
                try:
                    body = await request.body()
                    _check_content_type(request.headers.get("content-type", ""))
                    # Where Starlette keeps what it has read.
                    request._json = kind.model_validate_json(body)
                    return await handle(request)
                except Exception as error:
                    return _answer_to(error)

            return read

    return APIRouter(route_class=Route)


def _check_content_type(value: str) -> None:
    """Refuse what FastAPI would not read as JSON, as what a browser may send from any page is not."""
    main, _, sub = value.partition(";")[0].strip().lower().partition("/")
    if main != "application" or not (sub == "json" or sub.endswith("+json")):
        raise BadField((), f"send Content-Type: application/json, got {value[:80]!r}" if value else "send Content-Type: application/json")


def _answer_to(error: Exception) -> Response:
    """What a request is answered that ended with `error`; raises what is none of a request's."""
    match error:
        case ClientDisconnect():
            return Response(status_code=_CLIENT_GONE)
        case ValidationError():
            # Without the input: it may be megabytes, or text that no answer can hold.
            problems = error.errors(include_url=False, include_context=False, include_input=False)[:_MOST_PROBLEMS]
            return _refused(
                [
                    {
                        "type": problem["type"],
                        "loc": ["body", *(part for part in problem["loc"] if part not in TAGS)],
                        "msg": problem["msg"],
                    }
                    for problem in problems
                ]
            )
        case BadField():
            return _refused([{"type": "value_error", "loc": ["body", *error.field], "msg": str(error)}])
        case QueueFull():
            return JSONResponse({"detail": str(error)}, 503, {"Retry-After": str(error.retry_after)})
        case ScoringFailed():
            return JSONResponse({"detail": str(error)}, 500)
        case HTTPException():
            return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
    raise error


def _refused(problems: list[dict[str, Any]]) -> Response:
    """422. In ASCII, because a message may name a key that holds half a surrogate pair, which JSON can spell and UTF-8 cannot."""
    return Response(json.dumps({"detail": problems}), 422, media_type="application/json")


def _check_count(count: int, field: str, settings: ServerSettings) -> None:
    if count > settings.max_queue:
        raise BadField((field,), f"{count} rows in a request, and this server queues at most {settings.max_queue}. Send fewer at a time.")


def _finite(scores: list[ResponseScore]) -> list[ResponseScore]:
    """`scores`, unless there is one that JSON has no word for."""
    for score in scores:
        if not score.is_finite:
            raise ScoringFailed(f"the model's reward is {score.reward}; its weights or its dtype are at fault")
    return scores


async def _unless_gone(request: Request, work: Callable[[], Coroutine[Any, Any, Response]]) -> Response:
    """What `work` answers. It is cancelled when the client closes its connection."""
    working = asyncio.ensure_future(work())
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else Response(status_code=_CLIENT_GONE)
    finally:
        working.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
