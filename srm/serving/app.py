"""The HTTP side: routes, and what each error is answered with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer

from srm.integrations.openrlhf import answer_rows
from srm.modeling import SentenceRewardModel
from srm.packing import PackingMode, PromptGroup
from srm.scoring.run import ResponseScore, score_all
from srm.serving.batcher import Batcher, QueueFull, ScoringFailed
from srm.serving.gate import Gate
from srm.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from srm.serving.rows import BadField, encode_openrlhf, encode_rows, reward_of
from srm.serving.schema import OpenRLHFAnswer, OpenRLHFRequest, RewardAnswer, RewardRequest
from srm.serving.settings import ServerSettings
from srm_kernels import __version__

__all__ = ["create_app"]

_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The token is missing or wrong"},
    413: {"description": "The body is too large"},
    503: {"description": "The queue is full; `Retry-After` says in how many seconds to come back"},
}
# What nginx calls a client that has closed its connection. Nobody reads it but the metrics.
_CLIENT_GONE = 499


def create_app(model: SentenceRewardModel, settings: ServerSettings | None = None, *, packing: PackingMode | None = None) -> FastAPI:
    """The server's ASGI application.

    Args:
        model: the reward model.
        settings: how requests are batched, and what is refused; the defaults where None.
        packing: `shared`, `packed` or `none` by name, or None; see `SentenceRewardModel.packing_mode`.

    Raises:
        UnsupportedBackboneError: packing was asked for by name, and the backbone cannot run packed.
    """
    settings = settings or ServerSettings()
    metrics = Metrics()
    mode = model.packing_mode(packing)

    def run(rows: Sequence[PromptGroup]) -> list[ResponseScore]:
        return [score for (score,) in score_all(model, rows, tokens_per_batch=settings.tokens_per_batch, packing=mode)]

    batcher = Batcher(run, settings, metrics, packing=mode)
    metrics.watch_queue(lambda: batcher.num_waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.close()

    summary = "Rewards of responses and of each of their sentences"
    app = FastAPI(title="srm-serve", version=__version__, summary=summary, lifespan=lifespan, redoc_url=None)
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    _add_error_handlers(app)
    _add_reward_routes(app, model, settings, batcher)
    _add_status_routes(app, settings, batcher, metrics)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def bad_body(request: Request, error: RequestValidationError) -> Response:
        # Without the input that FastAPI echoes: it may be megabytes, or text that no answer can hold.
        return JSONResponse({"detail": [{name: problem[name] for name in ("type", "loc", "msg")} for problem in error.errors()]}, 422)

    @app.exception_handler(BadField)
    async def bad_field(request: Request, error: BadField) -> Response:
        return JSONResponse({"detail": [{"type": "value_error", "loc": ["body", *error.field], "msg": str(error)}]}, 422)

    @app.exception_handler(QueueFull)
    async def queue_full(request: Request, error: QueueFull) -> Response:
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": str(error.retry_after)})

    @app.exception_handler(ScoringFailed)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, 500)


def _add_reward_routes(app: FastAPI, model: SentenceRewardModel, settings: ServerSettings, batcher: Batcher) -> None:
    security = _security(settings)

    @app.post("/v1/rewards", response_model=RewardAnswer, responses=_ERRORS, dependencies=security)
    async def rewards(body: RewardRequest, request: Request) -> Response:
        """Rewards of responses and of their sentences, for rows of text, of messages, or of token ids."""
        _check_count(len(body.rows), "rows", settings)
        encode = partial(encode_rows, model, body.rows, max_length=settings.max_length)

        async def answer() -> Response:
            encoded = await batcher.encode(len(body.rows), encode)
            scores = _finite(await batcher.score(encoded))
            return JSONResponse({"rewards": [reward_of(one, score) for one, score in zip(encoded, scores, strict=True)]})

        return await _unless_gone(request, answer)

    @app.post("/get_reward", response_model=OpenRLHFAnswer, responses=_ERRORS, dependencies=security)
    async def get_reward(body: OpenRLHFRequest, request: Request) -> Response:
        """OpenRLHF's remote reward model: give this route's address as `--remote_rm_url`."""
        _check_count(len(body.query), "query", settings)
        encode = partial(encode_openrlhf, model, body.model_dump(), max_length=settings.max_length)

        async def answer() -> Response:
            rows = await batcher.encode(len(body.query), encode)
            scores = _finite(await batcher.score(rows))
            return JSONResponse(answer_rows(rows, [score.reward for score in scores]))

        return await _unless_gone(request, answer)


def _add_status_routes(app: FastAPI, settings: ServerSettings, batcher: Batcher, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        """200 while rows can be scored."""
        is_well = batcher.is_running
        return JSONResponse({"status": "ok" if is_well else "the batcher has stopped", "version": __version__}, 200 if is_well else 503)

    @app.get("/metrics", dependencies=_security(settings))
    async def metrics_text() -> Response:
        """Counts and times for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _security(settings: ServerSettings) -> list[Any]:
    """The gate asks for the token; this tells the documentation's page that there is one."""
    return [Security(HTTPBearer(auto_error=False))] if settings.token is not None else []


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
