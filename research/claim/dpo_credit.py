"""Does the implicit reward of a policy that DPO trains find the errors that people marked?

    python -m research.claim.dpo_credit --data FOLDER --json research/results/claim/dpo_credit.json

The policy trains as the levels of `top_layers.py` do, with its tuning's number of pairs: SmolLM2's last layers on 1,000 pairs. It is tuned
on other pairs, and its reward is split by sentence on the responses with marked errors. Stopped? The same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import torch

from bench import environment
from research.claim import dpo
from research.claim.activations import is_fast_at_bf16
from research.claim.runs import Run, scores_of
from research.claim.summary import accuracy
from research.claim.top_layers import DRY, NUM_TRAINED, SIZE, Study, study_parser, take
from srm import ScoredResponse, SentenceRewardModel
from srm.evaluation.intervals import interval
from srm.evaluation.score_suite import read_rewards, read_scored
from srm.evaluation.spans import evaluate_spans

PAIRS = 1000
FILES = ("train", "tune", "spans")
BATCH = 8


class PolicyStudy(Study):
    """Runs of a policy in place of a reward model."""

    def _train(self, run: Run) -> tuple[SentenceRewardModel, str]:
        texts = self.texts("train")
        model = dpo.policy(self.whole, NUM_TRAINED, texts.activations.table)
        dpo.train_policy(model, self.output_weight, texts, rate=run.learning_rate, seed=run.seed, batch=BATCH)
        return model, f"dpo beta {dpo.BETA} batch {BATCH} learning rate {run.learning_rate:g} seed {run.seed}"

    def _score(self, model: SentenceRewardModel, suite: str) -> list[ScoredResponse]:
        texts = self.texts(suite)
        return dpo.scored(texts.groups, dpo.implicit_rewards(model, self.output_weight, texts))

    @property
    def output_weight(self) -> torch.Tensor:
        """[V, D], of the decoder's output."""
        if not self.whole.backbone.config.tie_word_embeddings:
            raise ValueError(f"{self.name}: its output has weights of its own, which a backbone comes without.")
        return self.whole.backbone.embed_tokens.weight.detach()

    def texts(self, name: str) -> dpo.Texts:
        """A file, and what the reference says of it."""
        activations, groups, path = self.activations(name), self.groups[name], self.output / "reference" / f"{name}.pt"
        start = dpo.policy(self.whole, NUM_TRAINED, activations.table)
        return dpo.Texts(groups, activations, dpo.reference_logprobs(path, start, self.output_weight, groups, activations))


def main() -> None:
    arguments = _arguments()
    full = DRY if arguments.dry else SIZE
    size = dataclasses.replace(full, train_pairs=min(full.train_pairs or PAIRS, PAIRS), test_pairs=arguments.tuning_pairs)
    study = PolicyStudy(arguments, size, FILES)
    runs = [Run(variant="dpo", learning_rate=rate, seed=size.seeds[0], suites=("tune", "spans")) for rate in size.learning_rates]
    for run in runs:
        if not study.is_done(run) and not take(study, run):
            raise SystemExit(f"{run.name}: another process is at it. Start this one again when that is done.")
    result = _result(study, runs)
    environment.write(arguments.json, result | {"settings": environment.settings(arguments)})
    print(json.dumps({name: result[name] for name in ("tuning_accuracy", "learning_rate", "credit")}, indent=2))


def _result(study: PolicyStudy, runs: list[Run]) -> dict[str, Any]:
    suite = study.suites["tune"]
    tuned = {run: accuracy(suite, read_rewards(suite.rows, scores_of(run, study.folder, "tune"))) for run in runs}
    best = max(tuned, key=tuned.__getitem__)
    scored = read_scored([row.to_suite_row() for row in study.spans], scores_of(best, study.folder, "spans"))
    found = evaluate_spans(study.spans, {best.name: [response for (response,) in scored]}, draws=2000)[best.name]
    return {
        **environment.describe(),
        "model": study.name,
        "layers_trained": NUM_TRAINED,
        "bf16": is_fast_at_bf16(study.whole.device),
        "size": dataclasses.asdict(study.size),
        "rows_used": {name: len(groups) for name, groups in study.groups.items()},
        "tuning_accuracy": {f"{run.learning_rate:g}": value for run, value in tuned.items()},
        "learning_rate": best.learning_rate,
        "runs": [json.loads((study.folder / run.name / "train.json").read_text()) for run in runs],
        "credit": {"auc": interval(found.traces["auc"]).to_dict(), "given_position": interval(found.at_place.trace).to_dict()},
    }


def _arguments() -> argparse.Namespace:
    parser = study_parser(__doc__, "outputs/dpo_credit")
    parser.add_argument("--tuning_pairs", type=int, default=300, help="pairs on which the learning rate is chosen")
    return parser.parse_args()


if __name__ == "__main__":
    main()
