"""verl: `compute_score` gives a response its reward, `SentenceRewardManager` each sentence its own, and `srm` compares them in groups.

Runs inside verl, which imports it by the path `pkg://srm.integrations.verl` (written against 0.9.1). Shape letters: `B` responses,
`L` width of the padded responses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.trainer.ppo.core_algos import register_adv_est

from srm.client import AsyncClient
from srm.errors import UserError
from srm.modeling import SentenceRewardModel
from srm.rl import RewardKind, group_advantages
from srm.scoring.results import ScoredResponse
from srm.scoring.token_ids import ScoredTokens
from srm.segmentation import Span, TokenSegmenter, content_lengths, sentence_ends_from_offsets

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from transformers import PreTrainedTokenizerBase

    from srm.data import Prompt

__all__ = ["SentenceRewardManager", "TokenRewards", "compute_score", "sentence_group_advantages"]

_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str | None], AsyncClient]] = WeakKeyDictionary()
_models: dict[str, SentenceRewardModel] = {}
_loading = Lock()


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    token: str | None = None,
    model: str | None = None,
    **_: Any,
) -> dict[str, float]:
    """The response reward of one solution, as verl's `reward.custom_reward_function`.

    Args:
        data_source, ground_truth: verl passes them; a reward model asks neither.
        solution_str: the response. Without text it earns what its prompt does.
        extra_info: must hold `prompt`, a string or a list of messages.
        url, token: of a running `srm-serve`, which batches what all of verl's workers ask. Among the function's `reward_kwargs`.
        model: in place of `url`: a folder or a name on the Hub. Each of verl's workers loads it once.

    Returns:
        `score`, the response reward, and `num_sentences`.

    Raises:
        UserError: no prompt, or neither or both of `url` and `model`.
    """
    if not extra_info or "prompt" not in extra_info:
        raise UserError("compute_score: `extra_info` must hold the prompt. Add a `prompt` to the `extra_info` of each row of the data.")
    scored = await _scorer(url, token, model)(_plain(extra_info["prompt"]), solution_str)
    return {"score": scored.reward, "num_sentences": float(len(scored.sentences))}


class TokenRewards(float):
    """A response's reward, as verl's streaming path wants it, that carries what each token earned to the path that wants that.

    Attributes:
        paid: what each token of the response earned, [tokens].
    """

    paid: list[float]

    def __new__(cls, reward: float, paid: list[float]) -> TokenRewards:
        self = super().__new__(cls, reward)
        self.paid = paid
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenRewards, (float(self), self.paid)


@register("srm")
class SentenceRewardManager(RewardManagerBase):
    """Asks a sentence-level reward model for the rewards of verl's rollouts.

    verl's `reward.reward_kwargs` holds `url` (and `token`) of a running `srm-serve`, or `model`, and may hold `kind`, what a sentence earns
    (see `srm.rl.sentence_rewards`).

    Where verl asks for a whole batch (`compute_rm_score`), every sentence's last token gets its reward. Where it asks sample by sample,
    while others are still being written, it takes one number a sample: the response reward, on the last token.

    Args:
        config: verl's whole configuration.
        tokenizer: the policy's. Its vocabulary need not be the reward model's.
        compute_score, reward_router_address, reward_model_tokenizer: verl passes them to every manager; this one asks none of them.

    Raises:
        UserError: `reward.reward_kwargs` lacks both `url` and `model`, has both, or names another `kind`.
    """

    def __init__(
        self,
        config: DictConfig,
        tokenizer: PreTrainedTokenizerBase,
        compute_score: object,
        reward_router_address: str | None = None,
        reward_model_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__(config, tokenizer, compute_score)
        settings = dict(config.reward.get("reward_kwargs") or {})
        self.kind: RewardKind = settings.pop("kind", "weighted")
        if self.kind not in get_args(RewardKind):
            raise UserError(f"reward.reward_kwargs.kind must be one of {', '.join(get_args(RewardKind))}, got {self.kind!r}.")
        if unknown := sorted(set(settings) - {"url", "token", "model"}):
            raise UserError(f"reward.reward_kwargs: unknown setting {', '.join(unknown)}. Choose from url, token, model, kind.")
        _one_of(settings.get("url"), settings.get("model"))
        self._settings = settings
        self._segmenter = TokenSegmenter(tokenizer)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Rewards of one sample.

        Args:
            data: one or more turns of one trajectory, of which the last is scored. `batch` holds `responses` and `attention_mask`,
                `non_tensor_batch` the `raw_prompt`, messages or a string.

        Returns:
            `reward_score`, a `TokenRewards`, and `reward_extra_info` with `num_sentences`.

        Raises:
            UserError: no `raw_prompt`.
        """
        item = data[-1:][0]
        if "raw_prompt" not in item.non_tensor_batch:
            raise UserError("SentenceRewardManager: the batch has no `raw_prompt`. Set data.return_raw_chat=True.")
        ids = item.batch["responses"]
        ids = ids[: int(item.batch["attention_mask"][-len(ids) :].sum())]
        length = int(content_lengths(ids[None], self._segmenter.end_ids)[0])
        text, offsets = self._segmenter.table.decode(ids[:length])
        scored = await _scorer(**self._settings)(_plain(item.non_tensor_batch["raw_prompt"]), text)
        paid = [0.0] * len(ids)
        spans = [Span(sentence.start, sentence.end) for sentence in scored.sentences]
        found = sentence_ends_from_offsets(spans, offsets, text=text) if spans else ((), ())
        for end, span in zip(*found, strict=True):
            # More than one where a single token of the policy writes the end of two.
            paid[end] = sum(self._earned(scored, number) for number, inner in enumerate(spans) if span.start <= inner.start < span.end)
        return {"reward_score": TokenRewards(scored.reward, paid), "reward_extra_info": {"num_sentences": len(spans)}}

    def _earned(self, scored: ScoredResponse, number: int) -> float:
        sentence = scored.sentences[number]
        if self.kind == "response":
            return scored.reward if number == len(scored.sentences) - 1 else 0.0
        return sentence.weighted_reward if self.kind == "weighted" else sentence.reward

    @classmethod
    def assemble_rm_scores(cls, data: DataProto, scores: list[TokenRewards]) -> Tensor:
        """What each token of a batch earned.

        Args:
            data: `batch["responses"]` is [B, L].
            scores: of `run_single`, one a response.

        Returns:
            fp32 [B, L], each sentence's reward on its last token.
        """
        rewards = torch.zeros_like(data.batch["responses"], dtype=torch.float32)
        for row, score in zip(rewards, scores, strict=True):
            row[: len(score.paid)] = row.new_tensor(score.paid)
        return rewards


@register_adv_est("srm")
def sentence_group_advantages(
    token_level_rewards: Tensor, response_mask: Tensor, index: np.ndarray, config: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """`srm.rl.group_advantages` at sentence level as verl's `algorithm.adv_estimator=srm`: GRPO, RLOO and the baseline of REINFORCE++ sum
    a response's rewards before they compare them.

    Args:
        token_level_rewards: [B, L], each sentence's reward on its last token, 0 elsewhere. A reward that is exactly 0 is no sentence's.
        response_mask: [B, L], the policy's tokens.
        index: [B], the same for responses to one prompt; verl's `uid`.
        config: verl's `algorithm`: `norm_adv_by_std_in_grpo` scales by the group's standard deviation.

    Returns:
        Advantages, twice, fp32 [B, L].

    Raises:
        UserError: `algorithm.use_kl_in_reward`, which pays every token, so that sentences cannot be told from tokens.
    """
    settings = config or {}
    if settings.get("use_kl_in_reward", False):
        raise UserError("algorithm.adv_estimator=srm needs algorithm.use_kl_in_reward=False. Use actor.use_kl_loss=True for the penalty.")
    is_end = token_level_rewards != 0
    counts = is_end.sum(1)
    # Every response has the prompt's boundary before its sentences, which earns nothing.
    cu_boundaries = torch.cat([counts.new_zeros(1), (counts + 1).cumsum(0)])
    num, device = int(cu_boundaries[-1]), token_level_rewards.device
    earned, ends = torch.zeros(num, device=device), torch.full((num,), -1, device=device)
    is_sentence = torch.ones(num, dtype=torch.bool, device=device).index_fill_(0, cu_boundaries[:-1], False)
    earned[is_sentence], ends[is_sentence] = token_level_rewards[is_end].float(), is_end.nonzero()[:, 1]
    scored = ScoredTokens(
        reward=token_level_rewards.float().sum(1),
        sentence_reward=earned,
        weight=torch.ones_like(earned),
        ends=ends,
        cu_boundaries=cu_boundaries,
        lengths=response_mask.sum(1),
        width=response_mask.shape[1],
    )
    group = torch.from_numpy(np.unique(index, return_inverse=True)[1])
    scale = settings.get("norm_adv_by_std_in_grpo", True)
    advantages = group_advantages(scored, group, kind="sentence", scale=scale, mask=response_mask)
    return advantages, advantages


def _one_of(url: str | None, model: str | None) -> None:
    if (url is None) == (model is None):
        raise UserError(f"the reward model: give `url` of a running srm-serve, or `model`, one of the two; got {url=}, {model=}.")


def _scorer(
    url: str | None = None, token: str | None = None, model: str | None = None
) -> Callable[[Prompt, str], Awaitable[ScoredResponse]]:
    """From a prompt and a response to its rewards."""
    _one_of(url, model)
    if url is not None:
        # A client's connections belong to an event loop.
        clients = _clients.setdefault(asyncio.get_running_loop(), {})
        if (url, token) not in clients:
            clients[url, token] = AsyncClient(url, token=token)
        return partial(_ask, clients[url, token])
    return partial(asyncio.to_thread, partial(_score, model or ""))


async def _ask(client: AsyncClient, prompt: Prompt, text: str) -> ScoredResponse:
    return (await client.score([prompt], [text]))[0]  # type: ignore[return-value]  # One response for one.


def _score(name: str, prompt: Prompt, text: str) -> ScoredResponse:
    # One at a time: verl asks for many samples at once, and each would load the model.
    with _loading:
        if name not in _models:
            model = SentenceRewardModel.from_pretrained(name)
            _models[name] = (model.to("cuda") if torch.cuda.is_available() else model).eval()  # type: ignore[arg-type]  # transformers wraps `to`
        model = _models[name]
        if text.strip():
            return model.score([prompt], [text])[0]  # type: ignore[return-value]
        scored = model.score_tokens([model.encoder.encode_prompt(prompt)], [[]])
    return ScoredResponse(reward=scored.reward.item(), prompt_reward=scored.sentence_reward.item(), sentences=())


def _plain(prompt: Any) -> Prompt:
    """verl keeps messages in an array of objects."""
    return prompt if isinstance(prompt, str) else list(prompt)
