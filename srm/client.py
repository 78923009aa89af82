"""Clients of `srm-serve`, blocking and asynchronous: httpx comes with the first one made, torch with the first `score_tokens`."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Sequence
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from srm.errors import UserError
from srm.extras import name_the_extra
from srm.scoring.integers import integer_rows
from srm.scoring.results import ScoredResponse, ScoredSentence, problem_in

if TYPE_CHECKING:
    from types import ModuleType

    import httpx

    from srm.data import Prompt, Response
    from srm.scoring.token_ids import ScoredTokens

__all__ = ["AsyncClient", "Client", "RequestRefused", "ServerError", "ServerUnavailable"]

_CONNECTIONS = 256
_FIRST_DELAY, _LONGEST_DELAY = 0.25, 4.0
# Characters of what a server says that go into a message.
_LONGEST_DETAIL = 500
_SENTENCE = ("text", "start", "end", "reward", "weight", "weighted_reward")


class RequestRefused(UserError):
    """The server will not score this request, however often it comes.

    Args:
        message: what is wrong, with the row and the field.
        status: the HTTP status: 401, 413, 422, ...
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ServerError(UserError):
    """What answered has no reward routes, or is at fault."""


class ServerUnavailable(ServerError):
    """The server could not be reached, was too busy for too long, or failed."""


class Client:
    """Asks a running `srm-serve`, or a vLLM server with its routes, for rewards.

    Args:
        url: the server's address, as `http://localhost:8000`.
        token: the server's, if it has one. It may also be the password in `url`, which no message and no log shows.
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
        self, prompts: Sequence[Prompt], responses: Sequence[Response] | Sequence[Sequence[Response]]
    ) -> list[ScoredResponse] | list[list[ScoredResponse]]:
        """Rewards of responses and of their sentences; takes and returns what `SentenceRewardModel.score` does.

        Args:
            prompts: one a row, a string or a list of `{"role", "content"}` messages.
            responses: for each prompt a response, text or messages, or a list of responses.

        Returns:
            One `ScoredResponse` a response, nested as `responses` is.

        Raises:
            ValueError: lengths that do not match.
            RequestRefused: what the server will not score, naming the row.
            ServerUnavailable: no answer within `retry_seconds`.
            ServerError: an answer that does not hold the rewards of these rows.
        """
        return _texts_of(self._post(_text_rows(prompts, responses)), responses)

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
            ServerError: an answer that does not hold the rewards of these rows.
        """
        return _tokens_of(self._post(_ids_rows(prompt_ids, response_ids)), response_ids)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _post(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        attempts = _Attempts(self._http, self._retry_seconds, rows)
        while True:
            try:
                answer = attempts.after_answer(self._http.post("/v1/rewards", content=attempts.body))
            except _httpx().RequestError as error:
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
        self, prompts: Sequence[Prompt], responses: Sequence[Response] | Sequence[Sequence[Response]]
    ) -> list[ScoredResponse] | list[list[ScoredResponse]]:
        """See `Client.score`."""
        return _texts_of(await self._post(_text_rows(prompts, responses)), responses)

    async def score_tokens(self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> ScoredTokens:
        """See `Client.score_tokens`."""
        return _tokens_of(await self._post(_ids_rows(prompt_ids, response_ids)), response_ids)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _post(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        attempts = _Attempts(self._http, self._retry_seconds, rows)
        while True:
            try:
                answer = attempts.after_answer(await self._http.post("/v1/rewards", content=attempts.body))
            except _httpx().RequestError as error:
                answer = attempts.after_error(error)
            if not isinstance(answer, float):
                return answer
            await asyncio.sleep(answer)


class _Attempts:
    """What comes of one attempt after the other, the same for both clients."""

    def __init__(self, http: httpx.Client | httpx.AsyncClient, retry_seconds: float, rows: list[dict[str, Any]]) -> None:
        self.body = _body(rows)
        self._rows = rows
        self._url = str(http.base_url).rstrip("/")
        self._retry_seconds = retry_seconds
        self._deadline: float | None = None
        self._delay = _FIRST_DELAY

    def after_answer(self, answer: httpx.Response) -> list[dict[str, Any]] | float:
        """The rewards, or how many seconds to wait before the next attempt."""
        if answer.status_code == 200:
            return self._checked(answer)
        if answer.status_code == 503:
            after = answer.headers.get("Retry-After", "")
            return self._wait("is too busy", float(after) if after.isdecimal() else self._backoff())
        if answer.status_code >= 500:
            raise ServerUnavailable(f"{self._url} failed with {answer.status_code}: {_detail(answer)}. Its log says more.")
        if answer.status_code == 404:
            raise ServerError(
                f"{self._url} has no /v1/rewards. Give the address of an srm-serve, or start vLLM with VLLM_PLUGINS=srm in its environment."
            )
        if answer.status_code >= 400:
            raise RequestRefused(f"{self._url} answered {answer.status_code}: {_detail(answer)}", answer.status_code)
        place = answer.headers.get("Location")
        sent_on = (
            f" and sends on to {_without_password(place)}: give the address of the srm-serve itself." if place else ", which is no answer."
        )
        raise ServerError(f"{self._url} answered {answer.status_code}{sent_on}")

    def _checked(self, answer: httpx.Response) -> list[dict[str, Any]]:
        """The rewards, if that is what they are: one a row, with finite numbers and places in the row."""
        try:
            rewards = answer.json()["rewards"]
        except (ValueError, KeyError, TypeError, RecursionError):
            begins = f"begins with {answer.text[:60]!r}" if answer.content else "is empty"
            raise ServerError(
                f"{self._url} is no srm-serve: its answer has no `rewards`, it {begins}. Give the server's address."
            ) from None
        if not isinstance(rewards, list) or len(rewards) != len(self._rows):
            got = f"{len(rewards)} rewards" if isinstance(rewards, list) else type(rewards).__name__
            raise ServerError(f"{self._url} answered {len(self._rows)} rows with {got}. Is the server of another version?")
        for index, (row, reward) in enumerate(zip(self._rows, rewards, strict=True)):
            if (problem := problem_in(reward, row["response"] if "response" in row else row["response_ids"])) is not None:
                raise ServerError(f"{self._url} answered row {index} with {problem}. Is the server of another version?")
        return rewards

    def after_error(self, error: httpx.RequestError) -> float:
        """How many seconds to wait before the next attempt."""
        # A host that starts again may drop what comes to it, so nobody answers in time.
        if isinstance(error, (_httpx().NetworkError, _httpx().RemoteProtocolError, _httpx().ConnectTimeout)):
            return self._wait(f"cannot be reached ({str(error) or type(error).__name__})", self._backoff())
        if isinstance(error, _httpx().TimeoutException):
            raise ServerUnavailable(f"{self._url}: {type(error).__name__} {error}. Is `timeout` long enough?") from error
        raise ServerError(f"{self._url}: {type(error).__name__} {error}. Is it the address of an srm-serve?") from error

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
    try:
        address = _httpx().URL(url)
        # The password goes into a header, because httpx writes addresses into its log.
        base_url = address.copy_with(username=None, password=None)
        is_good = address.scheme in ("http", "https") and address.host and "@" not in str(base_url)
    except (TypeError, ValueError, _httpx().InvalidURL):
        is_good = False
    if not is_good:
        shown = _without_password(str(url))
        raise UserError(
            f"the server's address must begin with http:// or https://, and a password in it be percent-encoded, got {shown!r}."
        )
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise UserError("the token must be printable ASCII without space around it, and not empty.")
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    elif address.userinfo:
        headers["Authorization"] = "Basic " + b64encode(f"{address.username}:{address.password}".encode()).decode()
    # All connections stay open: each belongs to a caller who asks again. More calls than that wait for a free one, however long.
    limits = _httpx().Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
    return {"base_url": base_url, "headers": headers, "timeout": _httpx().Timeout(timeout, pool=None), "limits": limits}


def _without_password(url: str) -> str:
    """`url` for a message, also where it is none."""
    head, at, rest = url.rpartition("@")
    scheme, slashes, _ = head.partition("//")
    return f"{scheme}{slashes}***@{rest}" if at and slashes else f"***@{rest}" if at else url


def _body(rows: list[dict[str, Any]]) -> bytes:
    written = []
    for index, row in enumerate(rows):
        try:
            written.append(json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(
                f"Client: row {index} cannot be written as JSON ({error}). Prompts and responses are text or messages."
            ) from None
    return b'{"rows":[' + b",".join(written) + b"]}"


def _detail(response: httpx.Response) -> str:
    """What the server says is wrong, fields first."""
    try:
        detail = response.json()["detail"]
        if isinstance(detail, list):
            detail = "; ".join(f"`{'.'.join(map(str, problem['loc'][1:])) or 'body'}`: {problem['msg']}" for problem in detail)
    except (ValueError, KeyError, TypeError, RecursionError):
        detail = response.text.strip() or response.reason_phrase
    return str(detail)[:_LONGEST_DETAIL]


def _check_lengths(prompts: Sequence[Any], responses: Sequence[Any]) -> None:
    if isinstance(prompts, str) or isinstance(responses, str):
        raise ValueError("Client: `prompts` and `responses` must be lists, got a string. Write score([prompt], [response]).")
    if len(prompts) != len(responses):
        raise ValueError(f"Client: {len(prompts)} prompts and {len(responses)} responses; each prompt needs its response(s).")


def _text_rows(prompts: Sequence[Prompt], responses: Sequence[Response] | Sequence[Sequence[Response]]) -> list[dict[str, Any]]:
    _check_lengths(prompts, responses)
    if len({_is_one(entry) for entry in responses}) > 1:
        raise ValueError("Client.score: `responses` mixes strings and lists; use one form for all.")
    return [
        {"prompt": prompt, "response": response, **_settings_of(prompt)}
        for prompt, answers in zip(prompts, responses, strict=True)
        for response in ([answers] if _is_one(answers) else answers)
    ]


def _is_one(entry: Any) -> bool:
    """Whether an entry is one response, text or messages, and not several."""
    return isinstance(entry, str) or (len(entry) > 0 and isinstance(entry[0], dict))


def _settings_of(prompt: Prompt) -> dict[str, Any]:
    """What a `srm.data.Conversation` gives to the chat template; the client runs where that cannot be imported."""
    settings = dict(getattr(prompt, "settings", {}))
    tools = settings.pop("tools", None)
    return {**({"tools": tools} if tools else {}), **({"chat_template_kwargs": settings} if settings else {})}


def _texts_of(
    rewards: list[dict[str, Any]], responses: Sequence[Response] | Sequence[Sequence[Response]]
) -> list[ScoredResponse] | list[list[ScoredResponse]]:
    scored = (
        ScoredResponse(
            reward=row["reward"],
            prompt_reward=row["prompt_reward"],
            prompt_weight=row["prompt_weight"],
            sentences=tuple(ScoredSentence(**{name: sentence[name] for name in _SENTENCE}) for sentence in row["sentences"]),
        )
        for row in rewards
    )
    if all(map(_is_one, responses)):
        return list(scored)
    return [[next(scored) for _ in answers] for answers in responses]


def _ids_rows(prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    _check_lengths(prompt_ids, response_ids)
    prompts = integer_rows("Client.score_tokens: `prompt_ids`", prompt_ids)
    responses = integer_rows("Client.score_tokens: `response_ids`", response_ids)
    return [{"prompt_ids": prompt, "response_ids": response} for prompt, response in zip(prompts, responses, strict=True)]


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
