"""The reward call split into its parts: through the text, as it had to be done before, and on the policy's token ids.

    python bench/reward_call.py --input pairs_test.jsonl.gz --json bench/results/reward_call_cpu.json

before: decode the ids, `model.score` the text, find each sentence's last token again. after: `model.score_tokens`. Both are the
library's own calls with a clock around their parts. Everything but the forward runs on all responses, in turns, and the median of the
rounds counts. The forward is the same in both; it is timed on the first `--forward_responses` and scaled by tokens. Without --input it
needs no data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import environment
import numpy as np
import torch
from torch import Tensor

from srm import ScoredResponse, SentenceRewardModel
from srm.modeling import ScoredTokens
from srm.modeling import model as model_module
from srm.packing import PackedBatch, PromptGroup, ResponseIds, pack, run_to_boundaries
from srm.scoring import run as run_module
from srm.segmentation import ByteTable
from srm_kernels import SentenceLayout

PARTS = ("detokenise", "retokenise", "segment", "pack", "forward", "head", "scatter", "rest")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a policy wrote.

    prompts: G of them, each answered by as many responses. response_ids: int64 [B, L], padded with the end token. lengths: int64 [B].
    """

    prompts: list[str]
    prompt_ids: list[list[int]]
    response_ids: Tensor
    lengths: Tensor

    @property
    def group(self) -> int:
        return len(self.response_ids) // len(self.prompts)

    @property
    def rows(self) -> list[list[int]]:
        return [row[:length] for row, length in zip(self.response_ids.tolist(), self.lengths.tolist(), strict=True)]


class Clock:
    """Seconds by part. A part that runs inside another one is taken out of it."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)

        return timed

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.spent[self._open[-1]] += now - self._since
        self._since = now


def main() -> None:
    parser = environment.parser(__doc__)
    parser.add_argument("--input", help="pairs whose responses of about the wanted length to take; generated ones where it is not given")
    parser.add_argument("--model", default="smollm2-135m", help="backbone of the reward model")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the backbone")
    parser.add_argument("--responses", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=500, help="of a response, about")
    parser.add_argument("--group", type=int, default=8, help="responses to a prompt")
    parser.add_argument("--forward_responses", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    model = SentenceRewardModel.from_backbone(arguments.model, dtype=getattr(torch, arguments.dtype)).eval()
    model.packing_mode("shared")  # proved now, so that it is not timed
    work = find_work(model, arguments)
    agreement = check(model, work)
    print(json.dumps(agreement), flush=True)
    forward = time_forward(model, work, min(arguments.forward_responses, arguments.responses), arguments.rounds)
    parts = {name: {**spent, "forward": forward["milliseconds"]} for name, spent in time_host(model, work, arguments.rounds).items()}
    result = {
        **environment.describe(),
        "command": {name: value for name, value in vars(arguments).items() if name not in ("json", "input")},
        "responses": len(work.response_ids),
        "response_tokens": int(work.lengths.sum()),
        "prompt_tokens": sum(map(len, work.prompt_ids)),
        "agreement": agreement,
        "forward": forward,
        "milliseconds": {name: {part: round(spent.get(part, 0.0), 1) for part in PARTS} for name, spent in parts.items()},
        "milliseconds_without_forward": {name: round(sum(spent.values()) - spent["forward"], 1) for name, spent in parts.items()},
        "milliseconds_in_all": {name: round(sum(spent.values()), 1) for name, spent in parts.items()},
    }
    print(json.dumps(result, indent=2))
    environment.write(arguments.json, result)


def find_work(model: SentenceRewardModel, arguments: argparse.Namespace) -> Work:
    """Responses whose ids come back when their text is tokenised again, those with a length nearest to the wanted one."""
    tokenizer = model.encoder.tokenizer
    prompts, texts = (read if arguments.input else generate)(arguments)
    rows: list[tuple[str, list[int]]] = []
    for prompt, ids in zip(prompts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
        if ids and tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"] == ids:
            rows.append((prompt, ids))
    rows = sorted(rows, key=lambda row: abs(len(row[1]) - arguments.tokens))[: arguments.responses]
    if len(rows) < arguments.responses:
        raise SystemExit(f"reward_call: only {len(rows)} responses to time, --responses {arguments.responses}. Give a larger --input.")
    if arguments.responses % arguments.group:
        raise SystemExit(f"reward_call: --responses {arguments.responses} must be a multiple of --group {arguments.group}.")
    lengths = torch.tensor([len(ids) for _, ids in rows])
    end = tokenizer.eos_token_id
    # Every row ends with the end token, as a policy's does.
    padded = torch.tensor([[*ids, *[end] * (int(lengths.max()) + 1 - len(ids))] for _, ids in rows])
    asked = [prompt for prompt, _ in rows[:: arguments.group]]
    return Work(prompts=asked, prompt_ids=[model.encoder.encode_prompt(prompt) for prompt in asked], response_ids=padded, lengths=lengths)


def read(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    from srm.data import read_responses

    rows = [row for row in read_responses(arguments.input) if row.response.strip()]
    # Tokens are about four characters: only responses near the wanted length are worth tokenising.
    rows.sort(key=lambda row: abs(len(row.response) - 4.2 * arguments.tokens))
    rows = rows[: 3 * arguments.responses]
    prompts = [row.prompt if isinstance(row.prompt, str) else row.prompt[-1]["content"] for row in rows]
    return prompts, [row.response for row in rows]


def generate(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    from srm.data.synthetic import generate_pairs

    words = max(1, int(0.75 * arguments.tokens))
    prompts, texts, text = [], [], ""
    for pair in generate_pairs(arguments.responses * (2 + words // 30), split="train"):
        text = f"{text}\n\n{pair.chosen}" if text else pair.chosen
        if len(text.split()) >= words:
            prompts.append(pair.prompt)
            texts.append(text)
            text = ""
    return prompts, texts


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Of each token: bytes int64 [V] it writes; blank bool [V], whether they are all white space."""

    bytes: Tensor
    blank: Tensor

    @classmethod
    def of(cls, model: SentenceRewardModel) -> Vocabulary:
        table = ByteTable.from_tokenizer(model.encoder.tokenizer)
        return cls(
            bytes=torch.tensor([len(token) for token in table.tokens]), blank=torch.tensor([token.isspace() for token in table.tokens])
        )


def before(model: SentenceRewardModel, work: Work, clock: Clock, vocabulary: Vocabulary) -> Tensor:
    """[B, L], `w_i * r_i` on each sentence's last token, through the text."""
    with clock.part("detokenise"):
        texts = model.encoder.tokenizer.batch_decode(work.response_ids, skip_special_tokens=True)
    nested = [texts[start : start + work.group] for start in range(0, len(texts), work.group)]
    scored = [one for group in model.score(work.prompts, nested) for one in group]  # type: ignore[union-attr]  # nested as `nested` is
    with clock.part("scatter"):
        return on_tokens(work, texts, scored, vocabulary)


def on_tokens(work: Work, texts: list[str], scored: list[ScoredResponse], vocabulary: Vocabulary) -> Tensor:
    """Rewards by character on each sentence's last token: the one that writes its last visible character, or blank ones behind it."""
    out = torch.zeros(work.response_ids.shape)
    width = out.shape[1]
    last_byte = (vocabulary.bytes[work.response_ids].cumsum(1) - 1).numpy()
    black = torch.where(vocabulary.blank[work.response_ids], width, torch.arange(width))
    next_black = black.flip(1).cummin(1).values.flip(1)
    for row, (text, one) in enumerate(zip(texts, scored, strict=True)):
        visible = [len(text[: sentence.start + len(sentence.text.rstrip())].encode()) - 1 for sentence in one.sentences]
        # The end token behind every row is not blank, so there is always a next one.
        token = next_black[row, 1 + torch.from_numpy(np.searchsorted(last_byte[row], visible))] - 1
        out[row].index_add_(0, token, torch.tensor([sentence.weighted_reward for sentence in one.sentences]))
    return out


def after(model: SentenceRewardModel, work: Work, clock: Clock) -> ScoredTokens:
    prompt_ids = [ids for ids in work.prompt_ids for _ in range(work.group)]
    scored = model.score_tokens(prompt_ids, work.response_ids)
    with clock.part("scatter"):
        scored.to_padded(scored.weighted_reward)
    return scored


def check(model: SentenceRewardModel, work: Work) -> dict[str, object]:
    """The boundaries of both ways, before anything is timed; ends the run where they do not agree."""
    texts = model.encoder.tokenizer.batch_decode(work.response_ids, skip_special_tokens=True)
    encoded = model.encoder.encode_responses(texts)
    if [one.ids.tolist() for one in encoded] != work.rows:
        raise SystemExit("reward_call: the text way reads other ids than the policy wrote; nothing is timed.")
    found = model.encoder.token_segmenter(model.encoder.tokenizer).segment(work.response_ids, work.lengths).tolist()
    if [one.sentence_ends.tolist() for one in encoded] != found:
        raise SystemExit("reward_call: the two ways find other sentences; nothing is timed.")
    return {"same_ids": True, "same_boundaries": sum(map(len, found))}


def time_host(model: SentenceRewardModel, work: Work, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of every part but the forward, which hands out random hidden states instead."""
    hidden = torch.randn(1, model.config.hidden_size)
    vocabulary = Vocabulary.of(model)
    spent: dict[str, list[Counter[str]]] = {"before": [], "after": []}
    for round_ in range(-1, rounds):
        for name in ("before", "after") if round_ % 2 else ("after", "before"):
            clock = Clock()
            with patched(model, clock, hidden), clock.part("rest"):
                before(model, work, clock, vocabulary) if name == "before" else after(model, work, clock)
            # The first round warms up. What stands in for the forward is no part of the call.
            if round_ >= 0:
                del clock.spent["forward"]
                spent[name].append(clock.spent)
    return {
        name: {part: 1e3 * statistics.median(one[part] for one in counters) for part in {part for one in counters for part in one}}
        for name, counters in spent.items()
    }


@contextmanager
def patched(model: SentenceRewardModel, clock: Clock, hidden: Tensor) -> Iterator[None]:
    """Clocks around the parts of `score` and `score_tokens`."""
    encoder, around = model.encoder, clock.around
    segmenter = encoder.token_segmenter(encoder.tokenizer)

    def no_forward(backbone: torch.nn.Module, batch: PackedBatch, **settings: Any) -> tuple[Tensor, SentenceLayout]:
        with clock.part("forward"):
            rows, layout = batch.boundary_rows
            return hidden.repeat(len(rows), 1), layout

    with (
        patch.object(encoder, "encode_prompt", around("retokenise", encoder.encode_prompt)),
        patch.object(encoder, "encode_responses", around("retokenise", encoder.encode_responses)),
        patch.object(encoder.segmenter, "segment_batch", around("segment", encoder.segmenter.segment_batch)),
        patch.object(segmenter, "segment", around("segment", segmenter.segment)),
        patch.object(run_module, "pack", around("pack", run_module.pack)),
        patch.object(model.head, "forward", around("head", model.head.forward)),
        patch.object(model_module, "run_to_boundaries", no_forward),
    ):
        yield


@torch.no_grad()
def time_forward(model: SentenceRewardModel, work: Work, responses: int, rounds: int) -> dict[str, float]:
    """The backbone on the first groups, and that scaled by tokens to all of them."""
    rows = work.rows
    groups = [
        PromptGroup(
            prompt_ids=prompt_ids,
            responses=[ResponseIds(ids=ids, sentence_ends=[len(ids) - 1]) for ids in rows[at * work.group : (at + 1) * work.group]],
        )
        for at, prompt_ids in enumerate(work.prompt_ids)
    ]
    timed = groups[: -(-responses // work.group)]
    # One batch a group of about 4,000 tokens, as `tokens_per_batch` allows at most twice that.
    batches = [pack([group], pad_token_id=0) for group in timed]
    seconds = []
    for round_ in range(-1, rounds):
        began = time.perf_counter()
        for batch in batches[:1] if round_ < 0 else batches:
            run_to_boundaries(model.backbone, batch)
        if round_ >= 0:
            seconds.append(time.perf_counter() - began)
    run = sum(batch.num_tokens for batch in batches)
    total = sum(len(group.prompt_ids) + sum(len(one.ids) for one in group.responses) for group in groups)
    median = statistics.median(seconds)
    return {
        "timed_tokens": run,
        "timed_milliseconds": round(1e3 * median, 1),
        "all_tokens": total,
        "scaled_by": round(total / run, 3),
        "milliseconds": round(1e3 * median * total / run, 1),
    }


if __name__ == "__main__":
    main()
