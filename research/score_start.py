"""What does the score of a plain reward model say at the ends of sentences, before any training of ours?

    python -m research.score_start --json research/results/score_start_cpu.json

Trains a classifier with TRL's RewardTrainer on generated pairs, then starts a sentence-level model at its score (`--init_value_from`) and
compares the two on held-out pairs, whose bad sentences are known. The classifier reads its score behind the end of the turn; the
sentence-level model reads values at the last tokens of sentences, or at an end of turn put there (`--boundary_token`). Needs trl.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import environment
from srm import SentenceRewardModel
from srm.data.synthetic import SyntheticPair, generate_pairs
from srm.evaluation.classifier import ClassifierModel
from srm.evaluation.generated import measure
from srm.evaluation.pairs import won
from srm.modeling import ScoredResponse
from srm.modeling.alias import resolve_model_name


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _arguments(argv)
    folder = arguments.output_dir / "classifier"
    if not (folder / "config.json").exists():
        _train_classifier(folder, arguments)
    pairs = generate_pairs(arguments.num_eval_pairs, split="test", seed=0)
    classifier = ClassifierModel(str(folder), dtype="float32")
    own = [classifier.score([pair.prompt for pair in pairs], [getattr(pair, side) for pair in pairs]) for side in ("chosen", "rejected")]
    end = str(classifier.tokenizer.eos_token)
    result: dict[str, Any] = {
        **environment.describe(),
        "settings": environment.settings(arguments),
        "classifier": {"accuracy": _accuracy(own[0], own[1]), "spread": statistics.pstdev(own[0] + own[1])},
        "end of turn": end,
        "at step 0": {
            "at the ends of sentences": _at_step_0(folder, own, pairs),
            "at an end of turn behind each sentence": _at_step_0(folder, own, pairs, boundary_token=end),
        },
    }
    print(json.dumps({name: result[name] for name in ("classifier", "at step 0")}, indent=2))
    environment.write(arguments.json, result)


def _train_classifier(folder: Path, arguments: Any) -> None:
    """TRL's trainer on all weights."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    path = resolve_model_name(arguments.model_name_or_path)
    turn = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    rows = [
        {name: [{"role": role, "content": getattr(pair, name)}] for name, role in turn.items()}
        for pair in generate_pairs(arguments.num_pairs, split="train", seed=0)
    ]
    trainer = RewardTrainer(
        path,
        RewardConfig(
            output_dir=str(folder),
            learning_rate=arguments.learning_rate,
            num_train_epochs=arguments.num_train_epochs,
            per_device_train_batch_size=8,
            warmup_steps=6,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            seed=0,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(path),
    )
    trainer.train()
    trainer.save_model(str(folder))


def _at_step_0(folder: Path, own: list[list[float]], pairs: Sequence[SyntheticPair], **variant: Any) -> dict[str, Any]:
    """What the untrained sentence-level model says, beside what the classifier says of the same answers."""
    model = SentenceRewardModel.from_backbone(folder, head_init="score", **variant).eval()
    measured = measure(model, pairs)
    last = [[_last_value(pair[side]) for pair in measured.scored] for side in (0, 1)]
    return {
        "accuracy of the last value": _accuracy(*last),
        "accuracy of the reward, the mean of the values": measured.accuracy,
        "correlation of the last value with the classifier's score": statistics.correlation(last[0] + last[1], own[0] + own[1]),
        "mean difference of the last value to the classifier's score": statistics.fmean(
            abs(a - b) for a, b in zip(last[0] + last[1], own[0] + own[1], strict=True)
        ),
        "credit": measured.credit.to_dict()["overall"],
    }


def _last_value(response: ScoredResponse) -> float:
    """Sentence rewards are differences of values, so they add up to the last one."""
    return response.prompt_reward + sum(sentence.reward for sentence in response.sentences)


def _accuracy(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    return statistics.fmean(won(good, bad) for good, bad in zip(chosen, rejected, strict=True))


def _arguments(argv: Sequence[str] | None) -> Any:
    parser = environment.parser(__doc__)
    parser.add_argument("--model_name_or_path", default="smollm2-135m", help="what the classifier is trained on (default: %(default)s)")
    parser.add_argument("--num_pairs", type=int, default=520, help="generated pairs to train the classifier on (default: %(default)s)")
    parser.add_argument("--num_eval_pairs", type=int, default=120, help="held-out pairs (default: %(default)s)")
    parser.add_argument("--learning_rate", type=float, default=2e-5, help="of the classifier (default: %(default)s)")
    parser.add_argument("--num_train_epochs", type=int, default=1, help="of the classifier (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/score_start"), help="where the classifier is kept")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
