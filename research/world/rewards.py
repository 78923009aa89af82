"""Where the rewards of a study come from: the oracle, or reward models of this library that it labelled the pairs for.

Shape letters: `B` responses, `L` width of the padded responses, `N` boundaries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from research.world.grammar import Answer, Facts, Verdict, draw_answer, draw_facts, judge, outcome, reward
from research.world.policy import Speech
from srm import SentenceRewardModel
from srm.data import EncodedComparison
from srm.data.synthetic.draw import Draw
from srm.evaluation.credit import JudgedResponse, credit_report
from srm.packing import ResponseIds
from srm.rl import RewardKind
from srm.rl.policy import Responses
from srm.scoring.token_ids import ScoredTokens
from srm.training import RewardConfig, SentenceRewardTrainer

__all__ = ["MODELS", "SOURCES", "Oracle", "Scorer", "Source", "labelled_pairs", "model_scorer", "train_reward_model"]

Scorer = Callable[[Sequence[Sequence[int]], Responses], ScoredTokens]
"""Prompts, one a response, and responses to rewards."""


@dataclass(frozen=True)
class Source:
    """model: of `MODELS`; None is the oracle. level, kind: as in `srm.rl.group_advantages`."""

    model: str | None
    level: Literal["sentence", "response"]
    kind: RewardKind = "weighted"


SOURCES = {
    "oracle_sentence": Source(None, "sentence"),
    "oracle_response": Source(None, "response"),
    "model_sentence": Source("sentence", "sentence"),
    "model_response": Source("response", "response"),
    "differences": Source("response", "sentence"),
    "paper": Source("paper", "sentence"),
    # The same model as `model_sentence`: r_i in place of w_i * r_i, and its response reward.
    "model_sentence_r": Source("sentence", "sentence", "sentence"),
    "model_sentence_total": Source("sentence", "response"),
}

# What differs from the recipe: of the model, and of its training.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sentence": ({}, {}),
    "response": ({"granularity": "response"}, {}),
    "paper": ({"pooling": "attention"}, {"mean_value_coefficient": 0.0, "sentence_reward_l2": 0.0}),
}


class Oracle:
    """Scores responses by `judge`: `r_i` of each sentence is `reward` of its verdict, all weights are 1, the prompt has no part."""

    def __init__(self, speech: Speech) -> None:
        self.speech = speech

    def verdicts(self, facts: Facts, ids: Sequence[int]) -> list[Verdict]:
        """Of each sentence of the response `ids`, which has no end token."""
        return judge(facts, self.speech.sentences(ids)[0])

    def scorer(self, facts: Sequence[Facts]) -> Scorer:
        """For responses to `facts`, one each."""

        def score(prompts: Sequence[Sequence[int]], responses: Responses) -> ScoredTokens:
            rows = zip(facts, texts_of(responses), strict=True)
            judged = [(self.verdicts(of, ids), self.speech.sentences(ids)[1]) for of, ids in rows]
            earned = [[0.0, *map(reward, verdicts)] for verdicts, _ in judged]
            return ScoredTokens(
                reward=torch.tensor([sum(row) for row in earned]),
                sentence_reward=torch.tensor([one for row in earned for one in row]),
                weight=torch.ones(sum(map(len, earned))),
                ends=torch.tensor([end for _, ends in judged for end in (-1, *ends)]),
                cu_boundaries=torch.tensor([0, *map(len, earned)]).cumsum(0),
                lengths=responses.text_lengths,
                width=responses.mask.shape[1],
            )

        return score


def texts_of(responses: Responses) -> list[list[int]]:
    """The ids of each response before its end token."""
    rows = zip(responses.response_ids.tolist(), responses.text_lengths.tolist(), strict=True)
    return [ids[:length] for ids, length in rows]


def model_scorer(model: SentenceRewardModel) -> Scorer:
    """`model.score_tokens`, as a policy's trainer calls it."""

    def score(prompts: Sequence[Sequence[int]], responses: Responses) -> ScoredTokens:
        return model.score_tokens(prompts, responses.response_ids, response_lengths=responses.text_lengths)

    return score


def labelled_pairs(speech: Speech, count: int, *, seed: str) -> list[tuple[Facts, Answer, Answer]]:
    """Facts, the better and the worse of two answers of the generator, as the oracle says; equal ones are left out."""
    draw, pairs = Draw("world", "pairs", seed), []
    while len(pairs) < count:
        facts = draw_facts(draw)
        answers = sorted((draw_answer(facts, draw) for _ in range(2)), key=lambda answer: -outcome(facts, answer.verdicts))
        if all(answer.sentences for answer in answers) and outcome(facts, answers[0].verdicts) > outcome(facts, answers[1].verdicts):
            pairs.append((facts, answers[0], answers[1]))
    return pairs


def train_reward_model(
    name: str, speech: Speech, start: Path, folder: Path, *, seed: int, num_pairs: int, num_eval_pairs: int, **settings: Any
) -> dict[str, Any]:
    """Train reward model `name` of `MODELS` on the start policy's backbone, and save it in `folder` with what it reached, `quality.json`.

    settings: of `RewardConfig`, where they are not the recipe's.
    """
    config, losses = MODELS[name]
    torch.manual_seed(seed)
    model = SentenceRewardModel.from_backbone(start, **config)
    rows = [_encoded(speech, *pair, where=f"pair {index}") for index, pair in enumerate(labelled_pairs(speech, num_pairs, seed=str(seed)))]
    with TemporaryDirectory() as work:
        arguments = RewardConfig(
            output_dir=work,
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            **{**losses, **settings},
        )
        SentenceRewardTrainer(model, arguments, rows).train()
    model.save_pretrained(folder)
    quality = _quality(model.eval(), speech, labelled_pairs(speech, num_eval_pairs, seed="held out"))
    (folder / "quality.json").write_text(json.dumps(quality))
    return quality


def _encoded(speech: Speech, facts: Facts, better: Answer, worse: Answer, *, where: str) -> EncodedComparison:
    return EncodedComparison(
        prompt_ids=np.array(speech.prompt(facts)),
        responses=[_response(speech, answer) for answer in (better, worse)],
        pairs=((0, 1, None),),
        where=where,
    )


def _response(speech: Speech, answer: Answer) -> ResponseIds:
    ids = speech.response(answer)
    return ResponseIds(ids=np.array(ids), sentence_ends=np.array(speech.sentences(ids)[1]))


def _quality(model: SentenceRewardModel, speech: Speech, pairs: Sequence[tuple[Facts, Answer, Answer]]) -> dict[str, float]:
    """On held-out pairs: how often the better one wins, and how well `w_i * r_i` (`auc`) and `r_i` (`auc_r`) find each kind of fault."""
    prompts = [speech.prompt(facts) for facts, *_ in pairs for _ in range(2)]
    answers = [answer for _, *both in pairs for answer in both]
    scored = model.score_tokens(prompts, [speech.response(answer) for answer in answers])
    first, second = scored.reward.view(-1, 2).unbind(1)
    found = {"accuracy": float((first > second).float().mean())}
    for name, paid in (("auc", scored.weighted_reward), ("auc_r", scored.sentence_reward)):
        rows = [part[1:].tolist() for part in paid.split(scored.cu_boundaries.diff().tolist())]
        judged = (
            JudgedResponse(rewards=tuple(row), kinds=tuple(None if kind == "good" else kind for kind in answer.verdicts))
            for row, answer in zip(rows, answers, strict=True)
        )
        report = credit_report(judged)
        found[name] = report.overall.auc
        found[f"pooled_{name}"] = report.overall.pooled_auc
        found |= {f"{name}_{kind}": summary.auc for kind, summary in report.by_kind.items()}
    return found
