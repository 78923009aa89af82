"""The application of `srm-serve`: the reward routes before a batcher, and what tells how it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Security
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer

from srm.modeling import SentenceRewardModel
from srm.packing import PackingMode, PromptGroup
from srm.scoring.run import ResponseScore, score_all
from srm.serving.batcher import Batcher
from srm.serving.gate import Gate
from srm.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from srm.serving.routes import RewardService, reward_routers
from srm.serving.settings import ServerSettings
from srm_kernels import __version__

__all__ = ["create_app"]

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
    tokens = [] if settings.token is None else [settings.token]
    app.add_middleware(Gate, tokens=tokens, max_body_mb=settings.max_body_mb, metrics=metrics)
    service = RewardService(reader=model, scorer=batcher, settings=settings, metrics=metrics)
    for router in reward_routers(lambda: service, _security(settings)):
        app.include_router(router)
    _add_status_routes(app, settings, batcher, metrics)
    return app


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
