"""What hosts with a policy of their own share: the rewards of one response, from a server or a model, on the policy's token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, get_args
from weakref import WeakKeyDictionary

import torch

from srm.client import AsyncClient
from srm.errors import UserError
from srm.modeling import SentenceRewardModel
from srm.rl import RewardKind
from srm.scoring.results import ScoredResponse
from srm.segmentation import Span, TokenSegmenter, content_lengths, sentence_ends_from_offsets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from srm.data import Prompt

__all__ = ["PolicyRewards", "RewardSource"]

_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str | None], AsyncClient]] = WeakKeyDictionary()
_models: dict[str, SentenceRewardModel] = {}
_loading = Lock()


class RewardSource:
    """A running `srm-serve`, or a model in this process.

    Args:
        url: the server's address.
        token: the server's, if it has one.
        model: in place of `url`: a folder or a name on the Hub. It is loaded once a process, when the first response is there.

    Raises:
        UserError: neither or both of `url` and `model`.
    """

    def __init__(self, *, url: str | None = None, token: str | None = None, model: str | None = None) -> None:
        if (url is None) == (model is None):
            raise UserError(f"the reward model: give `url` of a running srm-serve, or `model`, one of the two; got {url=}, {model=}.")
        self._url, self._token, self._model = url, token, model

    async def score(self, prompt: Prompt, text: str) -> ScoredResponse:
        """The rewards of one response; many may be under way at once.

        Args:
            prompt: text or messages.
            text: the response. Without text it earns what its prompt does.
        """
        if self._url is None:
            return await asyncio.to_thread(partial(_score, self._model or "", prompt, text))
        # A client's connections belong to an event loop.
        clients = _clients.setdefault(asyncio.get_running_loop(), {})
        if (self._url, self._token) not in clients:
            clients[self._url, self._token] = AsyncClient(self._url, token=self._token)
        return (await clients[self._url, self._token].score([prompt], [text]))[0]  # type: ignore[return-value]  # One response for one.


class PolicyRewards:
    """What each token of a policy's response earns. The policy's vocabulary need not be the reward model's.

    Args:
        tokenizer: the policy's.
        kind: what a sentence earns, as in `srm.rl.sentence_rewards`. With `response`, a response without text has its reward on its end
            token.
        source: `url` (and `token`) or `model`, as in `RewardSource`.

    Raises:
        UserError: another `kind`, or what `RewardSource` refuses.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, kind: RewardKind = "weighted", **source: str | None) -> None:
        if kind not in get_args(RewardKind):
            raise UserError(f"`kind` must be one of {', '.join(get_args(RewardKind))}, got {kind!r}.")
        self._kind = kind
        self._source = RewardSource(**source)
        self._segmenter = TokenSegmenter(tokenizer)

    async def score(self, prompt: Prompt, ids: Sequence[int]) -> tuple[ScoredResponse, list[float]]:
        """The rewards of one response.

        Args:
            prompt: text or messages.
            ids: the response as the policy wrote it. Its text ends before the first end token.

        Returns:
            The response with its sentences, and what each of `ids` earned. A sentence's reward is on the token that writes its last
            character.
        """
        written = torch.tensor(ids, dtype=torch.int64)
        length = int(content_lengths(written[None], self._segmenter.end_ids)[0])
        text, offsets = self._segmenter.table.decode(written[:length])
        scored = await self._source.score(prompt, text)
        paid = [0.0] * len(ids)
        spans = [Span(sentence.start, sentence.end) for sentence in scored.sentences]
        ends, owners = sentence_ends_from_offsets(spans, offsets, text=text) if spans else ([], [])
        if self._kind == "response" and paid:
            paid[ends[-1] if ends else min(length, len(ids) - 1)] = scored.reward
            return scored, paid
        for end, owner in zip(ends, owners, strict=True):
            # More than one where a single token of the policy writes the end of two.
            inside = (sentence for sentence in scored.sentences if owner.start <= sentence.start < owner.end)
            paid[end] = sum(one.weighted_reward if self._kind == "weighted" else one.reward for one in inside)
        return scored, paid


def _score(name: str, prompt: Any, text: str) -> ScoredResponse:
    # One at a time: hosts ask for many samples at once, and each would load the model.
    with _loading:
        if name not in _models:
            model = SentenceRewardModel.from_pretrained(name)
            _models[name] = (model.to("cuda") if torch.cuda.is_available() else model).eval()  # type: ignore[arg-type]  # transformers wraps `to`
        model = _models[name]
        if text.strip():
            return model.score([prompt], [text])[0]  # type: ignore[return-value]
        encoder = model.encoder
        ids = encoder.encode_prompt(prompt)
        # `score_tokens` puts the model's boundary token behind the prompt itself.
        scored = model.score_tokens([ids[: len(ids) - len(encoder.boundary_ids)]], [[]])
    reward, weight = scored.sentence_reward.item(), scored.weight.item()
    return ScoredResponse(reward=scored.reward.item(), prompt_reward=reward, prompt_weight=weight, sentences=())
