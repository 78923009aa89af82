"""Rewards of a response while it is being written: the backbone keeps its key-value cache, and each sentence is scored once it is complete.

Shape letters: `T` response tokens run so far, `D` hidden size.
"""

from __future__ import annotations

import copy
import re
from functools import partial
from itertools import takewhile
from types import TracebackType

import torch
from torch import Tensor
from transformers import DynamicCache

from srm.data import EncodedResponse, Prompt
from srm.data.overlong import length_limit
from srm.data.turns import answer_behind
from srm.errors import UserError
from srm.scoring.cache_check import check_cache, run_cached
from srm.scoring.guards import check_ids, require_finite
from srm.scoring.protocol import RewardModel
from srm.scoring.results import ScoredResponse, ScoredSentence
from srm.scoring.run import sentence_score
from srm.scoring.text import read_off, without_sentences
from srm.scoring.token_ids import NO_TEXT
from srm_kernels import SentenceLayout

__all__ = ["RewardStream"]

# What must stand behind a sentence before its end is believed: a whole word, or as much of one as any rule reads.
_SHOWN = re.compile(r"\S+\s|\S{16}")


class RewardStream:
    """One response to one prompt, scored sentence by sentence. Made by `SentenceRewardModel.stream`.

    Feed it text as it comes; `close` it when the response is finished, or use it in a `with` statement, which closes it.

    Tokens and sentences are always those of the whole text so far. Where more text changes one that was run already, the cache goes back to
    what is still true.

    Args:
        model: the reward model, in eval mode.
        prompt: text or chat messages; it runs at once.
        max_length: longest prompt + response in tokens; never more than the backbone's own limit.

    Attributes:
        text: what was fed.
        sentences: those that are complete, with their rewards. Their `weight` is that of a response that ends with the last of them.
        reward: the response reward of the text up to the last complete sentence; of the prompt alone where there is none.
        prompt_reward: `r_0`.

    Raises:
        UserError: a prompt that is too long, or a backbone without a cache of keys and values.
    """

    def __init__(self, model: RewardModel, prompt: Prompt, *, max_length: int | None = None) -> None:
        # Nothing runs packed here, but the backbone has to be a causal decoder.
        model.packing_mode("none")
        check_cache(model)
        self._model = model
        self._segmenter = model.encoder.segmenter.without_limits()
        self._limit = length_limit(max_length, model.config.max_positions)
        self._prompt_length = 0
        self._ids: list[int] = []
        self._closed = False
        self.text = ""
        rendered = model.encoder.render(prompt)
        self._as_answer = partial(answer_behind, prompt, rendered)
        (prompt_ids,) = model.encoder.encode_prompts([rendered])
        self._check_length(len(prompt_ids))
        self._cache = DynamicCache()
        # Row 0 is the prompt's last token, row 1 + t the response's token t.
        self._hidden_TD = self._run(prompt_ids)[-1:]
        self._prompt_length = len(prompt_ids)
        self._scored = self._score(None)

    @property
    def sentences(self) -> tuple[ScoredSentence, ...]:
        return self._scored.sentences

    @property
    def reward(self) -> float:
        return self._scored.reward

    @property
    def prompt_reward(self) -> float:
        return self._scored.prompt_reward

    def feed(self, text: str) -> list[ScoredSentence]:
        """Adds `text` to the response; returns the sentences that are complete now and were not before.

        A sentence is complete when a whole word stands behind it. Text that comes later may still show, rarely, that a line was code or a
        number began a list. Then sentences are taken back; the ones in their place begin before the end of one returned earlier.

        Raises:
            UserError: the response is too long with its prompt, or `text` is no string. The stream is then as it was before the call.
            ValueError: the stream is closed.
        """
        self._check_open("feed")
        if not isinstance(text, str):
            raise UserError(f"stream: `feed` takes text, got {type(text).__name__}. Pass a string.")
        whole = self.text + text
        response = self._complete(whole)
        if response is None:
            if self.sentences:
                self._advance([])
                self._scored = self._score(None)
            self.text = whole
            return []
        known = self._known(response)
        if not known == len(response.spans) == len(self.sentences):
            self._advance(response.ids.tolist())
            self._scored = self._score(response)
        self.text = whole
        return list(self.sentences[known:])

    def close(self) -> ScoredResponse:
        """The score of the finished response, as `model.score` gives it; the cache is freed. Once closed, returns the same again.

        Raises:
            UserError: there is no text, or too much of it.
        """
        if self._closed:
            return self._scored
        if not self.text.strip():
            raise UserError("stream: the response is empty. A reward needs at least one sentence: feed some text before closing.")
        response = self._model.encoder.encode_responses([self._as_answer(self.text)])[0]
        self._advance(response.ids.tolist())
        self._scored = self._score(response)
        self._free()
        return self._scored

    def fork(self) -> RewardStream:
        """A second stream at the same point. Costs no copy: the two share what is in the cache and grow apart from here."""
        self._check_open("fork")
        twin = copy.copy(self)
        twin._cache = copy.copy(self._cache)
        # A layer replaces its tensors when it grows and never writes into them.
        twin._cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        return twin

    def __enter__(self) -> RewardStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._free()

    def _complete(self, text: str) -> EncodedResponse | None:
        """The sentences of `text` that are known to be complete; None where there is none.

        A long sentence is split evenly, so that its pieces are known only when its end is.
        """
        ends = [span.end for span in self._segmenter.segment(text)[:-1]]
        shown = max((end for end in ends if _SHOWN.match(text, end)), default=0)
        # A character has four bytes at most, which may be a token each, and a boundary token behind it. Only what can be too long
        # is tokenised before a sentence is complete.
        may_be_long = self._limit is not None and self._prompt_length + 5 * len(text) > self._limit and text.strip()
        if not shown and not may_be_long:
            return None
        response = self._model.encoder.encode_responses([self._as_answer(text)])[0]
        self._check_length(self._prompt_length + len(response.ids))
        if not shown:
            return None
        count = sum(span.end <= shown for span in response.spans)
        if not count:
            return None
        stop = response.sentence_ends[count - 1] + 1
        return response.cut(response.ids[:stop], response.sentence_ends[:count])

    def _known(self, response: EncodedResponse) -> int:
        """How many sentences of `response` were known before and have not changed."""
        same = _common(self._ids, response.ids.tolist())
        pairs = zip(self.sentences, response.spans, response.sentence_ends, strict=False)
        return sum(1 for _ in takewhile(lambda pair: (pair[0].start, pair[0].end) == pair[1] and pair[2] < same, pairs))

    def _advance(self, ids: list[int]) -> None:
        """Runs the response's `ids` that are not in the cache, after those that are no longer true have left it."""
        self._check_length(self._prompt_length + len(ids))
        same = _common(self._ids, ids)
        if same < len(self._ids):
            self._cache.crop(same - len(self._ids))
            self._hidden_TD = self._hidden_TD[: 1 + same]
        self._ids = ids[:same]
        if same < len(ids):
            self._hidden_TD = torch.cat([self._hidden_TD, self._run(ids[same:])])
            self._ids = ids

    def _run(self, ids: list[int]) -> Tensor:
        """Hidden states [T, D] of `ids`, the next ones behind what is in the cache."""
        check_ids(self._model.num_embeddings, "stream", ids)
        return run_cached(self._model, ids, self._cache)

    @torch.no_grad()
    def _score(self, response: EncodedResponse | None) -> ScoredResponse:
        """What the head says about the tokens run, which are those of `response`, or of the prompt alone where None."""
        read = NO_TEXT if response is None else response
        ends = (read.every_token() if self._model.config.granularity == "token" else read).sentence_ends
        device = self._hidden_TD.device
        rows_N = torch.tensor([read.opening, *(ends + 1).tolist()], device=device)
        layout = SentenceLayout(rows_N, torch.tensor([0, rows_N.numel()], device=device))
        reward, rewards, weight, _ = (tensor.cpu() for tensor in self._model.head(self._hidden_TD, layout))
        score = sentence_score(self._model, read, float(reward), rewards, weight)
        require_finite(self._model, [score], ["stream: the response" if response else "stream: the prompt"])
        if response is None:
            return without_sentences(score)
        return read_off(response, score)

    def _check_length(self, length: int) -> None:
        if self._limit is not None and length > self._limit:
            raise UserError(
                f"stream: prompt and response are {length} tokens, the limit is {self._limit}. "
                "Close the stream before, or use a model with a longer context."
            )

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise ValueError(f"stream: `{what}` on a closed stream. Open a new one with `model.stream(prompt)`.")

    def _free(self) -> None:
        self._closed = True
        self._cache, self._hidden_TD = DynamicCache(), self._hidden_TD[:0]


def _common(old: list[int], new: list[int]) -> int:
    """How many ids at the front are the same."""
    return next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
