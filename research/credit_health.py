"""Does the logged `mean_value_accuracy` tell sentence rewards that mean something from those that do not?

    python -m research.credit_health --input pairs_train.jsonl.gz --json research/results/credit_health_cpu.json

Trains heads on a frozen backbone from good and from bad starts, on pairs whose rejected answer has one bad sentence: of each generated
kind, and of --input's chosen answers with one sentence of another answer in them. Then compares the two accuracies, as training logs
them, with how well the sentence rewards find the bad sentence. Held-out pairs; generated ones are from the templates of training.
Needs the backbone, and without --input no data.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch

from bench import environment
from research.claim.features import Features, cached_features, frozen_model
from research.claim.heads import HEADS, Head, outputs, scored, train
from srm.data.files import RawRow, file_rows
from srm.data.synthetic import KINDS, Damage, SyntheticPair, generate_pairs
from srm.evaluation.credit import credit_report, judge
from srm.evaluation.suites import SuiteRow
from srm.segmentation import make_segmenter
from srm.training.credit_watch import CreditWatch
from srm.training.losses import mean_value


def _random(head: Head) -> Head:
    """The same from a start as torch's layers have it, with an attention as fast as the value."""
    return replace(head, arguments={**head.arguments, "random_start": True}, attention_share=1.0)


STARTS = {
    **{name: HEADS[name] for name in ("sentence", "paper's pooling", "paper")},
    **{f"{name}, random start": _random(HEADS[name]) for name in ("sentence", "paper's pooling", "paper")},
}
RATE, EPOCHS = 1e-3, 10


def main() -> None:
    arguments = _arguments()
    result: dict[str, Any] = environment.describe()
    result["settings"] = {name: value for name, value in vars(arguments).items() if name not in ("json", "features")}
    result["training"] = {"rate": RATE, "epochs": EPOCHS, "limit": CreditWatch().limit}
    result["runs"] = runs = []
    for task in [*KINDS, *(["swapped"] if arguments.input else [])]:
        pairs = _pairs(task, arguments)
        features = _features(task, pairs, arguments)
        scale = features["train"].scale
        for start, head in STARTS.items():
            for seed in range(arguments.num_seeds):
                trained = train(head, features["train"], scale, rate=RATE, epochs=EPOCHS, seed=seed)
                found = _judged(head, trained, features["test"], scale, pairs["test"])
                runs.append({"task": task, "start": start, "seed": seed, **found})
            _print(task, start, runs[-arguments.num_seeds :])
    result["summary"] = _summary(runs)
    print(json.dumps(result["summary"], indent=2))
    environment.write(arguments.json, result)


def _pairs(task: str, arguments: argparse.Namespace) -> dict[str, list[SyntheticPair]]:
    """For training and for measuring."""
    if task == "swapped":
        swapped = swapped_pairs(arguments.input, arguments.num_pairs + arguments.num_eval_pairs, seed=0)
        return {"train": swapped[: arguments.num_pairs], "test": swapped[arguments.num_pairs :]}
    sizes = {"train": arguments.num_pairs, "test": arguments.num_eval_pairs}
    return {name: generate_pairs(size, seed=place, kinds=(task,), multi_share=0.0) for place, (name, size) in enumerate(sizes.items())}


def swapped_pairs(source: str, count: int, *, seed: int) -> list[SyntheticPair]:
    """`count` chosen answers of 4 to 12 sentences, and beside each the same with one sentence swapped for one of the next answer."""
    segmenter = make_segmenter("punkt")
    rows = [row.fields for row in file_rows(Path(source)) if isinstance(row, RawRow)]
    random = Random(seed)
    random.shuffle(rows)
    answers = []
    for row in rows:
        sentences = tuple(row["chosen"][start:end].strip() for start, end in segmenter.segment(row["chosen"]))
        if 4 <= len(sentences) <= 12 and len(row["prompt"]) + len(row["chosen"]) < 2000 and all(sentences):
            answers.append((row, sentences))
        if len(answers) > count:
            break
    else:
        sys.exit(f"credit_health: {source} has {len(answers)} fitting answers, and {count + 1} are needed")
    pairs = []
    for (row, sentences), (_, others) in pairwise(answers):
        bad = random.randrange(len(sentences))
        pairs.append(
            SyntheticPair(
                id=row["id"],
                domain="swapped",
                prompt=row["prompt"],
                chosen_sentences=sentences,
                rejected_sentences=(*sentences[:bad], random.choice(others), *sentences[bad + 1 :]),
                damaged=(Damage(sentence=bad, kind="off_topic"),),
            )
        )
    return pairs


def _features(task: str, pairs: Mapping[str, Sequence[SyntheticPair]], arguments: argparse.Namespace) -> dict[str, Features]:
    model = frozen_model(arguments.model)
    found = {}
    for name, of in pairs.items():
        rows = [
            SuiteRow(
                id=pair.id,
                prompt=pair.prompt,
                responses=(pair.chosen, pair.rejected),
                num_correct=1,
                section=task,
                subset=task,
                unit=pair.id,
            )
            for pair in of
        ]
        found[name] = cached_features(arguments.features / f"{task}-{name}-{len(of)}.pt", model, rows, max_length=2048)
    return found


def _judged(head: Head, trained: torch.nn.Module, features: Features, scale: float, pairs: Sequence[SyntheticPair]) -> dict[str, Any]:
    """Both accuracies, and the credit of the rejected answers' sentences."""
    output = outputs(head, trained, features, scale)
    reward, by_mean_value = output.reward.view(-1, 2), mean_value(output.value, features.cu_boundaries).view(-1, 2)
    rejected = scored(features, output)[1::2]
    credit = credit_report(judge(bad, pair.to_row()["damaged"]) for bad, pair in zip(rejected, pairs, strict=True)).overall
    accuracy, of_mean_value = (float((scores[:, 0] > scores[:, 1]).float().mean()) for scores in (reward, by_mean_value))
    return {
        "accuracy": accuracy,
        "mean_value_accuracy": of_mean_value,
        "auc": credit.auc,
        "hit_rate": credit.hit_rate,
        "would_warn": accuracy - of_mean_value > CreditWatch().limit,
    }


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the runs that rank well, `accuracy` 0.8 or more: credit where training would have warned, and where not."""
    able = [run for run in runs if run["accuracy"] >= 0.8]
    summary: dict[str, Any] = {"runs": len(runs), "accuracy of 0.8 or more": len(able)}
    for name, warned in (("warned", True), ("not warned", False)):
        aucs = sorted(run["auc"] for run in able if run["would_warn"] is warned)
        summary[name] = {"runs": len(aucs), "inverted (AUC below 0.5)": sum(auc < 0.5 for auc in aucs)}
        if aucs:
            summary[name] |= {"AUC, least": aucs[0], "AUC, median": aucs[len(aucs) // 2], "AUC, most": aucs[-1]}
    return summary


def _print(task: str, start: str, runs: Sequence[Mapping[str, Any]]) -> None:
    def show(run: Mapping[str, Any]) -> str:
        return f"{run['accuracy']:.2f}/{run['mean_value_accuracy']:.2f} AUC {run['auc']:.2f}{' warns' if run['would_warn'] else ''}"

    print(f"{task}, {start}: {'  '.join(map(show, runs))}", flush=True)


def _arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = environment.parser(__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--input", help="pairs file, a row `prompt`, `chosen`, `id` each, to swap sentences in")
    parser.add_argument("--num_seeds", type=int, default=5)
    parser.add_argument("--num_pairs", type=int, default=400)
    parser.add_argument("--num_eval_pairs", type=int, default=150)
    parser.add_argument("--features", type=Path, default=Path("outputs/credit_health"), help="folder of the backbone's features")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
