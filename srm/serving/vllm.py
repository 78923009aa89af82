"""The reward routes on vLLM's server: `VLLM_PLUGINS=srm vllm serve FOLDER --runner pooling`.

vLLM finds `RewardRoutes` through the entry point `vllm.endpoint_plugins`. Its engine batches, caches prefixes and shards; it runs
`srm.integrations.vllm.model`, which gives the value, key and query of each boundary. What follows from them is worked out here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import numpy as np
from prometheus_client import REGISTRY
from torch import Tensor
from vllm import PoolingParams, envs
from vllm.inputs import tokens_input

from srm.errors import UserError
from srm.integrations.vllm import ARCHITECTURE, BOUNDARIES, TASK
from srm.modeling import ModelReader, SentenceRewardConfig
from srm.modeling.loading import load_tokenizer
from srm.packing import PromptGroup, pack
from srm.packing.batch import IntArray
from srm.scoring.run import ResponseScore, sentence_score
from srm.serving.encoding import Encoded, EncodingThread
from srm.serving.errors import QueueFull, ScoringFailed
from srm.serving.gate import Gate
from srm.serving.metrics import Metrics
from srm.serving.routes import REWARD_ROUTES, RewardService, reward_routers
from srm.serving.settings import ServerSettings
from srm_kernels import sentence_attention_pool, sentence_pool

if TYPE_CHECKING:
    from argparse import Namespace

    from fastapi import FastAPI
    from starlette.datastructures import State
    from vllm.engine.protocol import EngineClient

__all__ = ["EngineScorer", "RewardRoutes"]

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# Seconds after which a client that found the queue full comes back.
_RETRY_AFTER = 1


class RewardRoutes:
    """A `vllm.plugins.endpoint_plugins.interface.EndpointPlugin`: the routes of `srm-serve`, for a reward model that vLLM serves."""

    name = "srm"
    required_tasks = (TASK,)

    def __init__(self) -> None:
        self._service: RewardService | None = None
        # The registry that vLLM's /metrics shows.
        self._metrics = Metrics(REGISTRY)

    def attach_router(self, app: FastAPI) -> None:
        """Adds the routes, with the key that vLLM was given and a bound on the body before them."""
        # vLLM itself asks for the key under /v1 alone.
        tokens = [key for key in (app.state.args.api_key or [envs.VLLM_API_KEY]) if key]
        app.add_middleware(Gate, tokens=tokens, max_body_mb=ServerSettings().max_body_mb, metrics=self._metrics, paths=REWARD_ROUTES)
        for router in reward_routers(self._running_service):
            app.include_router(router)

    async def init_state(self, engine_client: EngineClient | None, state: State, args: Namespace) -> None:
        """Makes the service, once the engine is there.

        Raises:
            UserError: what vLLM serves is no reward model.
        """
        assert engine_client is not None, "vLLM's render server has none of the tasks that `required_tasks` asks for"
        model = engine_client.model_config
        config = model.hf_config
        if not isinstance(config, SentenceRewardConfig):
            raise UserError(
                f"{model.model}: is a {config.model_type} model, and VLLM_PLUGINS names srm, whose routes need a reward model "
                f"({ARCHITECTURE}). Serve the folder that srm-train saved, or take srm out of VLLM_PLUGINS."
            )
        revision = {} if model.tokenizer_revision is None else {"revision": model.tokenizer_revision}
        reader = ModelReader(config, load_tokenizer(str(model.tokenizer), **revision))
        settings = ServerSettings(max_length=model.max_model_len)
        scorer = EngineScorer(engine_client, reader, max_queue=settings.max_queue)
        self._metrics.watch_queue(lambda: scorer.num_waiting)
        self._service = RewardService(reader=reader, scorer=scorer, settings=settings, metrics=self._metrics)

    def _running_service(self) -> RewardService:
        assert self._service is not None, "vLLM calls `init_state` before it serves"
        return self._service


class EngineScorer:
    """Scores rows with vLLM's engine. Each row is a request of its own; equal prompts meet in the prefix cache.

    Args:
        engine: vLLM's.
        reader: of the model that it runs.
        max_queue: rows under way; beyond, requests are refused.
    """

    def __init__(self, engine: EngineClient, reader: ModelReader, *, max_queue: int) -> None:
        self._engine = engine
        self._reader = reader
        self._max_queue = max_queue
        self._encoding = EncodingThread()
        self._num_running = 0
        head = reader.config.head_arguments()
        self._pooling: Any = head["pooling"]
        self._of_pool = {name: head[name] for name in ("include_prompt", "difference")}
        self._rope_theta = head["rope_theta"]
        self._block_size = int(engine.vllm_config.cache_config.block_size)

    @property
    def num_waiting(self) -> int:
        """Rows that are being encoded, or that the engine has."""
        return self._num_running + self._encoding.num_rows

    async def encode(self, num_rows: int, slices: Iterator[Sequence[Encoded]]) -> list[Encoded]:
        """See `srm.serving.routes.Scorer`."""
        if self.num_waiting + num_rows > self._max_queue:
            raise QueueFull(_RETRY_AFTER)
        return await self._encoding.run(num_rows, slices)

    async def score(self, rows: Sequence[PromptGroup]) -> list[ResponseScore]:
        """See `srm.serving.routes.Scorer`. Cancelled, it aborts its requests in the engine.

        Raises:
            ScoringFailed: the engine raised an error.
        """
        self._num_running += len(rows)
        try:
            return await _together(self._score(row) for row in rows)
        except Exception:
            logger.exception("vLLM's engine failed with a request of %d rows", len(rows))
            raise ScoringFailed("the engine raised an error, which is in the server's log") from None
        finally:
            self._num_running -= len(rows)

    async def _score(self, row: PromptGroup) -> ResponseScore:
        (response,) = row.responses
        read = response.every_token() if self._reader.config.granularity == "token" else response
        batch = pack([PromptGroup(prompt_ids=row.prompt_ids, responses=[read])], mode="packed", pad_token_id=0)
        head_N = await self._read_head(batch.input_ids[0].numpy(), batch.boundaries.numpy())
        reward, sentence_reward_N, weight_N = self._pool(head_N, batch.cu_boundaries)
        return sentence_score(self._reader, response, reward.item(), sentence_reward_N, weight_N)

    def _pool(self, head_N: Tensor, cu_boundaries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, key, query = head_N[:, 0], *head_N[:, 1:].chunk(2, dim=1)
        if not key.shape[1]:
            return sentence_pool(value, cu_boundaries, self._pooling, **self._of_pool)
        return sentence_attention_pool(query[-1:], key, value, cu_boundaries, self._rope_theta, pooling=self._pooling, **self._of_pool)

    async def _read_head(self, ids: IntArray, boundaries: IntArray) -> Tensor:
        """Value, key and query at each boundary, fp32 [N, 1 + 2A].

        Where the prefix cache has a boundary's token, its hidden state is asked for again: the last token of a request always runs, so a
        request that ends there costs the tokens of a block at most. With many of those, one that leaves the cache alone costs less.
        """
        rows = await self._ask(ids, boundaries)
        missing = np.flatnonzero(rows[:, 0].numpy() == 0)
        if len(missing) * self._block_size < len(ids):
            again = await _together(self._ask(ids[: boundaries[one] + 1], boundaries[one : one + 1]) for one in missing)
            for one, row in zip(missing, again, strict=True):
                rows[one] = row[0]
        else:
            last = missing[-1] + 1
            rows[:last] = await self._ask(ids[: boundaries[last - 1] + 1], boundaries[:last], reads_cache=False)
        if not rows[:, 0].all():
            raise RuntimeError(f"vLLM gave no hidden states for the tokens {boundaries[rows[:, 0].numpy() == 0].tolist()} of {len(ids)}")
        return rows[:, 1:]

    async def _ask(self, ids: IntArray, boundaries: IntArray, *, reads_cache: bool = True) -> Tensor:
        """The rows of `BoundaryPooler` for one request."""
        params = PoolingParams(
            task=TASK, use_activation=False, skip_reading_prefix_cache=not reads_cache, extra_kwargs={BOUNDARIES: boundaries.tolist()}
        )
        async for output in self._engine.encode(tokens_input(ids.tolist()), params, f"srm-{uuid4().hex}"):
            # The engine gives one, when it is done.
            return output.outputs.data.float()
        raise RuntimeError("vLLM's engine ended a request without an output")


async def _together(work: Iterable[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """What each gives, in order. When one fails, or nobody waits any more, the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
