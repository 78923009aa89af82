"""Settings: what is refused, and with which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srm.errors import UserError
from srm.rl.arguments import RLConfig, parse_rl_config

NEEDED = ["--model_name_or_path", "p", "--reward_model_path", "r", "--dataset_name", "d", "--output_dir", "o"]


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "rl.yaml"
    file.write_text("algorithm: ppo\nkl_coef: 0.2\nlearning_rate: 1.0e-5\nsave_total_limit: null\n")
    config = parse_rl_config([*NEEDED, "--config", str(file), "--kl_coef", "0.1"])
    assert (config.algorithm, config.kl_coef, config.learning_rate, config.save_total_limit) == ("ppo", 0.1, 1e-5, None)
    assert config.resolved_head_learning_rate == pytest.approx(1e-4)
    assert parse_rl_config([*NEEDED, "--resume_from_checkpoint"]).resume_from_checkpoint == "true"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cliprange": 0.1}, "--cliprange is a setting of --algorithm ppo or grpo, got reinforce"),
        ({"num_mini_batches": 2}, "--num_mini_batches is a setting of --algorithm ppo or grpo, got reinforce"),
        ({"lam": 0.5}, "--lam is a setting of --algorithm ppo, got reinforce"),
        ({"algorithm": "grpo", "vf_coef": 0.5}, "--vf_coef is a setting of --algorithm ppo, got grpo"),
        ({"algorithm": "grpo", "gamma": 0.5}, "--gamma is a setting of --algorithm reinforce or ppo, got grpo"),
        ({"algorithm": "grpo", "kl_estimator": "k1"}, "--kl_estimator k1 in the loss of --algorithm grpo has a gradient of mean 0"),
        ({"algorithm": "grpo", "whitening": "full"}, "--whitening is a setting of --algorithm reinforce or ppo, got grpo"),
        ({"algorithm": "grpo", "num_generations": 1}, "--num_generations must be at least 2 with --algorithm grpo, got 1"),
        ({"reward": "response", "sentence_reward": "sentence"}, "--sentence_reward sentence is a setting of --reward sentence"),
        ({"reward": "response", "to_go": "min"}, "--to_go min is a setting of --reward sentence"),
        ({"reward": "response", "reward_placement": "even"}, "--reward_placement even is a setting of --reward sentence"),
        ({"reward": "response", "whitening": "position"}, "--whitening position is a setting of --reward sentence"),
        ({"to_go": "min", "gamma": 0.9}, "--to_go min knows no discount, got --gamma 0.9"),
        ({"to_go": "own", "reward_placement": "even"}, "--reward_placement even has nothing to spread"),
        ({"num_generations": 1}, "--num_generations must be at least 2 with --algorithm reinforce, got 1"),
        ({"num_generations": 3}, "collects 16 responses .* --num_generations 3 does not divide"),
        ({"temperature": 0.0}, "--temperature must be at least 0.01 and at most .*, got 0.0"),
        ({"temperature": 1e-40}, "--temperature must be at least 0.01 and at most .*, got 1e-40"),
        ({"max_steps": 0}, "--max_steps must be at least 1 and at most .*, got 0"),
        ({"kl_coef": -1.0}, "--kl_coef must be at least 0 and at most .*, got -1.0"),
        ({"gamma": 1.5}, "--gamma must be at least 0 and at most 1, got 1.5"),
        ({"kl_coef": float("nan")}, "--kl_coef must be at least 0 and at most .*, got nan"),
    ],
)
def test_settings_that_are_refused(new_config: Callable[..., RLConfig], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        new_config(**settings)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (NEEDED[:2] + NEEDED[4:], "--reward_model_path is missing"),
        (NEEDED[:6], "--output_dir is missing"),
        ([*NEEDED, "--kl_coeff", "1"], "unknown argument '--kl_coeff'; did you mean --kl_coef"),
        ([*NEEDED, "--reward", "token"], "argument --reward: invalid choice: 'token'"),
    ],
)
def test_flags_that_are_refused(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_rl_config(argv)
