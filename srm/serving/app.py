"""The HTTP side: routes, and what each error is answered with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from srm.integrations.openrlhf import answer_rows
from srm.modeling import SentenceRewardModel
from srm.packing import PackingMode, PromptGroup
from srm.scoring.run import ResponseScore, score_all
from srm.serving.batcher import Batcher, QueueFull, ScoringFailed
from srm.serving.gate import Gate
from srm.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from srm.serving.rows import BadField, encode_openrlhf, encode_rows, encode_slime, reward_of
from srm.serving.schema import OpenRLHFAnswer, OpenRLHFRequest, RewardAnswer, RewardRequest, SlimeRequest
from srm.serving.settings import ServerSettings
from srm_kernels import __version__

__all__ = ["create_app"]

_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The token is missing or wrong"},
    413: {"description": "The body is too large"},
    503: {"description": "The queue is full; `Retry-After` says in how many seconds to come back"},
}
# A body of megabytes may have a problem in every byte.
_MOST_PROBLEMS = 20
# What nginx calls a client that has closed its connection. Nobody reads it but the metrics.
_CLIENT_GONE = 499
_DOCS = files("srm.serving").joinpath("docs.html").read_text(encoding="utf-8")
_FROM_HERE_ALONE = "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


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
    app = FastAPI(title="srm-serve", version=__version__, summary=summary, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    _add_error_handlers(app)
    _add_reward_routes(app, model, settings, batcher, metrics)
    _add_status_routes(app, settings, batcher, metrics)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def bad_body(request: Request, error: RequestValidationError) -> Response:
        # Without the input that FastAPI echoes: it may be megabytes, or text that no answer can hold.
        return _refused([{name: problem[name] for name in ("type", "loc", "msg")} for problem in error.errors()[:_MOST_PROBLEMS]])

    @app.exception_handler(BadField)
    async def bad_field(request: Request, error: BadField) -> Response:
        return _refused([{"type": "value_error", "loc": ["body", *error.field], "msg": str(error)}])

    @app.exception_handler(QueueFull)
    async def queue_full(request: Request, error: QueueFull) -> Response:
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": str(error.retry_after)})

    @app.exception_handler(ScoringFailed)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, 500)


def _reading(kind: type[BaseModel]) -> APIRouter:
    """A router whose routes read their body as `kind` straight from the bytes.

    FastAPI would have `json` make objects of all of it first: of 16 MB of brackets, in seconds in which nobody else is answered.
    """

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def read(request: Request) -> Response:
                try:
                    body = await request.body()
                except ClientDisconnect:
                    return Response(status_code=_CLIENT_GONE)
                try:
                    # Where Starlette keeps what it has read.
                    request._json = kind.model_validate_json(body)
                except ValidationError as error:
                    problems = error.errors(include_url=False, include_context=False, include_input=False)
                    raise RequestValidationError([{**problem, "loc": ("body", *problem["loc"])} for problem in problems]) from None
                return await handle(request)

            return read

    return APIRouter(route_class=Route)


def _refused(problems: list[dict[str, Any]]) -> Response:
    """422. In ASCII, because a message may name a key that holds half a surrogate pair, which JSON can spell and UTF-8 cannot."""
    return Response(json.dumps({"detail": problems}), 422, media_type="application/json")


def _add_reward_routes(app: FastAPI, model: SentenceRewardModel, settings: ServerSettings, batcher: Batcher, metrics: Metrics) -> None:
    security = _security(settings)

    rows, samples, sample = _reading(RewardRequest), _reading(OpenRLHFRequest), _reading(SlimeRequest)

    @rows.post("/v1/rewards", response_model=RewardAnswer, responses=_ERRORS, dependencies=security)
    async def rewards(body: RewardRequest, request: Request) -> Response:
        """Rewards of responses and of their sentences, for rows of text, of messages, or of token ids."""
        _check_count(len(body.rows), "rows", settings)

        async def answer() -> Response:
            encoded = await batcher.encode(len(body.rows), encode_rows(model, body.rows, max_length=settings.max_length))
            scores = _finite(await batcher.score(encoded))
            return JSONResponse({"rewards": [reward_of(one, score) for one, score in zip(encoded, scores, strict=True)]})

        return await _unless_gone(request, answer)

    @samples.post("/get_reward", response_model=OpenRLHFAnswer, responses=_ERRORS, dependencies=security)
    async def get_reward(body: OpenRLHFRequest, request: Request) -> Response:
        """OpenRLHF's remote reward model: give this route's address as `--reward.remote_url`."""
        _check_count(len(body.query), "query", settings)

        async def answer() -> Response:
            slices = encode_openrlhf(model, body.model_dump(), max_length=settings.max_length, on_mended=metrics.mended)
            rows = await batcher.encode(len(body.query), slices)
            scores = _finite(await batcher.score(rows))
            return JSONResponse(answer_rows(rows, [score.reward for score in scores]))

        return await _unless_gone(request, answer)

    @sample.post("/remote_rm", response_model=float, responses=_ERRORS, dependencies=security)
    async def remote_rm(body: SlimeRequest, request: Request) -> Response:
        """slime's remote reward model: give this route's address as `--rm-url`, with `--rm-type remote_rm`."""

        async def answer() -> Response:
            rows = await batcher.encode(1, encode_slime(model, body, max_length=settings.max_length, on_mended=metrics.mended))
            (score,) = _finite(await batcher.score(rows))
            return JSONResponse(score.reward)

        return await _unless_gone(request, answer)

    for router in (rows, samples, sample):
        app.include_router(router)


def _add_status_routes(app: FastAPI, settings: ServerSettings, batcher: Batcher, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        """200 while rows can be scored."""
        is_well = batcher.is_running
        return JSONResponse({"status": "ok" if is_well else "the batcher has stopped", "version": __version__}, 200 if is_well else 503)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """The routes, to read and to try. FastAPI's own page comes from a server in the internet."""
        return Response(_DOCS, media_type="text/html", headers={"Content-Security-Policy": _FROM_HERE_ALONE})

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
