"""Clients of `srm-serve`, blocking and asynchronous: httpx comes with the first one made, torch with the first `score_tokens`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from srm.errors import UserError
from srm.extras import name_the_extra
from srm.scoring.results import ScoredResponse, ScoredSentence

if TYPE_CHECKING:
    from types import ModuleType

    import httpx

    from srm.data import Prompt
    from srm.scoring.token_ids import ScoredTokens

__all__ = ["AsyncClient", "Client", "RequestRefused", "ServerUnavailable"]

_CONNECTIONS = 256
_FIRST_DELAY, _LONGEST_DELAY = 0.25, 4.0


class RequestRefused(UserError):
    """The server will not score this request, however often it comes.

    Args:
        message: what is wrong, with the row and the field.
        status: the HTTP status: 401, 413, 422, ...
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ServerUnavailable(UserError):
    """The server could not be reached, was too busy for too long, or failed."""


class Client:
    """Asks a running `srm-serve` for rewards.

    Args:
        url: the server's address, as `http://localhost:8000`.
        token: the server's, if it has one.
        timeout: seconds to wait for an answer.
        retry_seconds: how long, from the first failure on, to go on trying where the server is too busy (503, after the time it names)
            or cannot be reached, as while it restarts. Rewards have no side effect, so a request that was under way is sent again.

    Raises:
        UserError: httpx is missing, or the address is none.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 180.0, retry_seconds: float = 60.0) -> None:
        self._retry_seconds = retry_seconds
        self._http: httpx.Client = _httpx().Client(**_settings(url, token, timeout))

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str] | Sequence[Sequence[str]]
    ) -> list[ScoredResponse] | list[list[ScoredResponse]]:
        """Rewards of responses and of their sentences; takes and returns what `SentenceRewardModel.score` does.

        Args:
            prompts: one a row, a string or a list of `{"role", "content"}` messages.
            responses: for each prompt a response, or a list of responses.

        Returns:
            One `ScoredResponse` a response, nested as `responses` is.

        Raises:
            ValueError: lengths that do not match.
            RequestRefused: what the server will not score, naming the row.
            ServerUnavailable: no answer within `retry_seconds`.
        """
        return _texts_of(self._post({"rows": _text_rows(prompts, responses)}), responses)

    def score_tokens(self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> ScoredTokens:
        """Rewards on ids of the reward model's tokenizer.

        Args:
            prompt_ids: the ids of each prompt, unpadded.
            response_ids: the ids of each response, unpadded.

        Returns:
            What `SentenceRewardModel.score_tokens` returns, on the CPU.

        Raises:
            ValueError: lengths that do not match.
            RequestRefused: what the server will not score, naming the row.
            ServerUnavailable: no answer within `retry_seconds`.
        """
        return _tokens_of(self._post({"rows": _ids_rows(prompt_ids, response_ids)}), response_ids)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _post(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        attempts = _Attempts(self._http, self._retry_seconds)
        while True:
            try:
                answer = attempts.after_answer(self._http.post("/v1/rewards", json=body))
            except _httpx().TransportError as error:
                answer = attempts.after_error(error)
            if not isinstance(answer, float):
                return answer
            sleep(answer)


class AsyncClient:
    """`Client` for asyncio, with the same methods. Up to 256 calls are under way at once; more wait their turn.

    Args:
        url: the server's address, as `http://localhost:8000`.
        token: the server's, if it has one.
        timeout: seconds to wait for an answer.
        retry_seconds: how long, from the first failure on, to go on trying; see `Client`.

    Raises:
        UserError: httpx is missing, or the address is none.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 180.0, retry_seconds: float = 60.0) -> None:
        self._retry_seconds = retry_seconds
        self._http: httpx.AsyncClient = _httpx().AsyncClient(**_settings(url, token, timeout))

    async def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str] | Sequence[Sequence[str]]
    ) -> list[ScoredResponse] | list[list[ScoredResponse]]:
        """See `Client.score`."""
        return _texts_of(await self._post({"rows": _text_rows(prompts, responses)}), responses)

    async def score_tokens(self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> ScoredTokens:
        """See `Client.score_tokens`."""
        return _tokens_of(await self._post({"rows": _ids_rows(prompt_ids, response_ids)}), response_ids)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _post(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        attempts = _Attempts(self._http, self._retry_seconds)
        while True:
            try:
                answer = attempts.after_answer(await self._http.post("/v1/rewards", json=body))
            except _httpx().TransportError as error:
                answer = attempts.after_error(error)
            if not isinstance(answer, float):
                return answer
            await asyncio.sleep(answer)


class _Attempts:
    """What comes of one attempt after the other, the same for both clients."""

    def __init__(self, http: httpx.Client | httpx.AsyncClient, retry_seconds: float) -> None:
        self._url = str(http.base_url).rstrip("/")
        self._retry_seconds = retry_seconds
        self._deadline: float | None = None
        self._delay = _FIRST_DELAY

    def after_answer(self, answer: httpx.Response) -> list[dict[str, Any]] | float:
        """The rewards, or how many seconds to wait before the next attempt."""
        if answer.status_code == 200:
            return answer.json()["rewards"]
        if answer.status_code == 503:
            after = answer.headers.get("Retry-After", "")
            return self._wait("is too busy", float(after) if after.isdecimal() else self._backoff())
        if answer.status_code >= 500:
            raise ServerUnavailable(f"{self._url} failed with {answer.status_code}: {_detail(answer)}. Its log says more.")
        raise RequestRefused(f"{self._url} answered {answer.status_code}: {_detail(answer)}", answer.status_code)

    def after_error(self, error: httpx.TransportError) -> float:
        """How many seconds to wait before the next attempt."""
        if isinstance(error, (_httpx().NetworkError, _httpx().RemoteProtocolError)):
            return self._wait(f"cannot be reached ({str(error) or type(error).__name__})", self._backoff())
        raise ServerUnavailable(f"{self._url}: {type(error).__name__} {error}. Is `timeout` long enough?") from error

    def _wait(self, problem: str, delay: float) -> float:
        now = monotonic()
        if self._deadline is None:
            # From the first failure on: what was waited for an answer before says nothing about how long the trouble lasts.
            self._deadline = now + self._retry_seconds
        if now + delay > self._deadline:
            raise ServerUnavailable(f"{self._url} {problem}, and trying for {self._retry_seconds:g} s did not help.")
        return delay

    def _backoff(self) -> float:
        delay, self._delay = self._delay, min(2 * self._delay, _LONGEST_DELAY)
        return delay


def _httpx() -> ModuleType:
    with name_the_extra("srm.Client"):
        import httpx
    return httpx


def _settings(url: str, token: str | None, timeout: float) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise UserError(f"the server's address must begin with http:// or https://, got {url!r}.")
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    # All connections stay open: each belongs to a caller who asks again. More calls than that wait for a free one, however long.
    limits = _httpx().Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
    return {"base_url": url, "headers": headers, "timeout": _httpx().Timeout(timeout, pool=None), "limits": limits}


def _detail(response: httpx.Response) -> str:
    """What the server says is wrong, fields first."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return response.text[:200].strip() or response.reason_phrase
    if not isinstance(detail, list):
        return str(detail)
    return "; ".join(f"`{'.'.join(map(str, problem['loc'][1:]))}`: {problem['msg']}" for problem in detail)


def _check_lengths(prompts: Sequence[Any], responses: Sequence[Any]) -> None:
    if isinstance(prompts, str) or isinstance(responses, str):
        raise ValueError("Client: `prompts` and `responses` must be lists, got a string. Write score([prompt], [response]).")
    if len(prompts) != len(responses):
        raise ValueError(f"Client: {len(prompts)} prompts and {len(responses)} responses; each prompt needs its response(s).")


def _text_rows(prompts: Sequence[Prompt], responses: Sequence[str] | Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    _check_lengths(prompts, responses)
    if len({isinstance(entry, str) for entry in responses}) > 1:
        raise ValueError("Client.score: `responses` mixes strings and lists; use one form for all.")
    return [
        {"prompt": prompt, "response": response, **_settings_of(prompt)}
        for prompt, answers in zip(prompts, responses, strict=True)
        for response in ([answers] if isinstance(answers, str) else answers)
    ]


def _settings_of(prompt: Prompt) -> dict[str, Any]:
    """What a `srm.data.Conversation` gives to the chat template; the client runs where that cannot be imported."""
    settings = dict(getattr(prompt, "settings", {}))
    tools = settings.pop("tools", None)
    return {**({"tools": tools} if tools else {}), **({"chat_template_kwargs": settings} if settings else {})}


def _texts_of(
    rewards: list[dict[str, Any]], responses: Sequence[str] | Sequence[Sequence[str]]
) -> list[ScoredResponse] | list[list[ScoredResponse]]:
    scored = (
        ScoredResponse(
            reward=row["reward"],
            prompt_reward=row["prompt_reward"],
            sentences=tuple(ScoredSentence(**sentence) for sentence in row["sentences"]),
        )
        for row in rewards
    )
    if all(isinstance(entry, str) for entry in responses):
        return list(scored)
    return [[next(scored) for _ in answers] for answers in responses]


def _ids_rows(prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    _check_lengths(prompt_ids, response_ids)
    return [{"prompt_ids": list(prompt), "response_ids": list(response)} for prompt, response in zip(prompt_ids, response_ids, strict=True)]


def _tokens_of(rewards: list[dict[str, Any]], response_ids: Sequence[Sequence[int]]) -> ScoredTokens:
    with name_the_extra("srm.Client.score_tokens"):
        import torch

        from srm.scoring.token_ids import ScoredTokens

    ends = [[sentence["end"] - 1 for sentence in row["sentences"]] for row in rewards]
    counts = [0, *(1 + len(row) for row in ends)]
    opening = [row["sentences"][0]["start"] if row["sentences"] else 0 for row in rewards]
    return ScoredTokens(
        reward=torch.tensor([row["reward"] for row in rewards]),
        sentence_reward=torch.tensor([r for row in rewards for r in (row["prompt_reward"], *_each(row, "reward"))]),
        weight=torch.tensor([a for row in rewards for a in (row["prompt_weight"], *_each(row, "weight"))]),
        ends=torch.tensor([end for row in ends for end in (-1, *row)], dtype=torch.int64),
        cu_boundaries=torch.tensor(counts).cumsum(0),
        # The text of a response ends with its last sentence.
        lengths=torch.tensor([row[-1] + 1 if row else 0 for row in ends], dtype=torch.int64),
        width=max(map(len, response_ids), default=0),
        opening=torch.tensor(opening) if any(opening) else None,
    )


def _each(row: dict[str, Any], name: str) -> list[float]:
    return [sentence[name] for sentence in row["sentences"]]
