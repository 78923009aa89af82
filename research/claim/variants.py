"""What is compared, and how much of it: variants as flags of srm-train, budgets as sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["ABLATIONS", "BUDGETS", "GRANULARITIES", "OWN_RATES", "PUBLISHED", "VARIANTS", "Budget"]

# Each is trained and evaluated; the differences are against `response`.
GRANULARITIES = {
    "sentence": "--granularity sentence",
    "response": "--granularity response",
    "token": "--granularity token",
}
# What each part of the sentence-level recipe is worth: the same but for one thing.
ABLATIONS = {
    "paper": "--pooling attention --mean_value_coefficient 0 --sentence_reward_l2 0",
    "paper's pooling": "--pooling attention",
    "mean pooling": "--pooling mean",
    "no differencing": "--difference false",
    "no RoPE": "--rope_theta none",
    "no prompt index": "--include_prompt false",
    "<END> token": "--boundary_token <END>",
    "newline sentences": "--segmenter newline",
}
# The authors' recipe with all of its settings, but for data, batch and lengths, which are the budget's. It needs `--sft`.
PUBLISHED = {"paper as published": "--config examples/configs/paper.yaml --gradient_accumulation_steps 1"}
# Not the sentence level's.
OWN_RATES = {"paper as published": 3e-6}
VARIANTS = {**GRANULARITIES, **ABLATIONS, **PUBLISHED}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is trained and evaluated.

    train_pairs, test_pairs, suite_pairs, span_responses: rows, drawn with a fixed seed; None for all.
    max_chars: rows whose prompt and responses together are longer are left out before the draw; None for no limit.
    learning_rates: each granularity is trained with each on `tune_pairs` pairs, and its best on the tuning pairs is taken; one: no tuning.
    seeds: of the granularities; ablations run on the first.
    max_length, score_max_length: tokens of a training row (longer ones are dropped), and of a scored one (longer responses are cut).
    flags: further ones of srm-train, the same for every run.
    """

    train_pairs: int | None
    test_pairs: int | None
    suite_pairs: int | None
    span_responses: int | None
    max_chars: int | None
    learning_rates: tuple[float, ...]
    tune_pairs: int | None
    seeds: tuple[int, ...]
    flags: str
    max_length: int = 1024
    score_max_length: int = 2048


# 20 minutes on two cores: shows that everything runs, and cannot tell the variants apart.
CPU = Budget(
    train_pairs=128,
    test_pairs=100,
    suite_pairs=100,
    span_responses=30,
    max_chars=900,
    learning_rates=(5e-5,),
    tune_pairs=None,
    seeds=(0,),
    flags="--per_device_train_batch_size 4 --bf16",
)
BUDGETS = {
    # A few pairs: shows that everything starts, with a model of any size.
    "dry": Budget(
        train_pairs=8,
        test_pairs=6,
        suite_pairs=10,
        span_responses=10,
        max_chars=2000,
        learning_rates=(1e-5,),
        tune_pairs=None,
        seeds=(0,),
        max_length=256,
        score_max_length=256,
        flags="--per_device_train_batch_size 4 --attention_size 8 --overlong truncate_response",
    ),
    "cpu": CPU,
    # Half an hour a run on one core: tells models apart that are some points from each other. Ask for the variants that matter.
    "cpu_hours": replace(CPU, train_pairs=1000, test_pairs=1000, suite_pairs=1000, span_responses=100, seeds=(0, 1, 2)),
    # About three minutes a full run on one H100.
    "gpu": Budget(
        train_pairs=None,
        test_pairs=2000,
        suite_pairs=None,
        span_responses=None,
        max_chars=None,
        learning_rates=(1e-5, 2e-5, 5e-5),
        tune_pairs=6000,
        seeds=(0, 1, 2),
        flags="--per_device_train_batch_size 16 --gradient_accumulation_steps 2 --bf16",
    ),
}
