"""TRL's own trainers with the path of a reward model for `reward_funcs`, on a tiny random policy, CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import srm
from srm import SentenceRewardModel, UserError

pytest.importorskip("trl", reason="trl is not installed: pip install trl")

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

QUESTIONS = ["Why is bread salty?", "Where does the cat sit?"]


@pytest.fixture(scope="module")
def reward_path(awake_model: Callable[..., SentenceRewardModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward") / "sentence-rm"
    awake_model(segmenter={"name": "punkt", "max_chars": 8}).save_pretrained(path)
    return path


def trainer(kind: Any, config: Any, prompts: list[Any], reward_path: Path, policy: Path, out: Path) -> Any:
    class Seen(kind):
        """Keeps what the trainer's own code gives and gets."""

        def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, *rest: Any) -> Any:
            rewards = super()._calculate_rewards(inputs, prompts, completions, *rest)
            self.seen = [*getattr(self, "seen", []), (prompts, completions, rewards[:, 0].tolist())]
            return rewards

    return Seen(
        model=AutoModelForCausalLM.from_pretrained(policy),
        reward_funcs=str(reward_path),
        args=config(
            output_dir=str(out),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=24,
            max_steps=1,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )


@pytest.mark.parametrize(("kind", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_a_path_is_a_reward_function(kind: Any, config: Any, reward_path: Path, tiny_policy_dir: Path, tmp_path: Path) -> None:
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS * 2]
    run = trainer(kind, config, prompts, reward_path, tiny_policy_dir, tmp_path)
    run.train()
    assert run.reward_func_names == ["sentence-rm"]
    model = SentenceRewardModel.from_pretrained(reward_path)
    ((prompts, completions, rewards),) = run.seen
    assert rewards == pytest.approx([model.score([p], [c])[0].reward for p, c in zip(prompts, completions, strict=True)], abs=1e-5)
    assert len(set(rewards)) == 4
    assert run.state.log_history[0]["rewards/sentence-rm/mean"] == pytest.approx(sum(rewards) / 4, abs=1e-5)


@pytest.mark.slow
def test_the_command_loads_a_model_whose_code_it_does_not_know(reward_path: Path, tiny_policy_dir: Path, tmp_path: Path) -> None:
    """`trl grpo` imports no srm: the folder's own code file does."""
    (tmp_path / "data").mkdir()
    rows = [{"prompt": [{"role": "user", "content": question}]} for question in QUESTIONS]
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [Path(sys.executable).parent / "trl", "grpo", "--model_name_or_path", tiny_policy_dir, "--dataset_name", "data"]
    command += ["--reward_model_name_or_path", reward_path, "--trust_remote_code", "--output_dir", "out", "--use_cpu", "--bf16", "false"]
    command += ["--max_steps", "1", "--num_generations", "2", "--per_device_train_batch_size", "2", "--max_completion_length", "8"]
    command += ["--report_to", "none", "--save_strategy", "no", "--dtype", "float32", "--logging_steps", "1"]
    variables = {**os.environ, "PYTHONPATH": str(Path(srm.__file__).parents[1]), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    variables |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([str(word) for word in command], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"'rewards/sentence-rm/mean': '?-?\d", done.stdout + done.stderr)


def test_prompts_without_roles_are_one_line(reward_path: Path, tiny_policy_dir: Path, tmp_path: Path) -> None:
    """TRL joins a prompt that is a string and its completion into one text, in which no answer begins."""
    run = trainer(GRPOTrainer, GRPOConfig, QUESTIONS * 2, reward_path, tiny_policy_dir, tmp_path)
    with pytest.raises(UserError, match=r"row 0 of input_ids: no answer begins in it\..*Give conversations as messages"):
        run.train()
