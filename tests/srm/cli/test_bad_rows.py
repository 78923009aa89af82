"""A row that the model's chat template refuses: found in the first pass of every command, named, and left out on demand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from srm import SentenceRewardModel
from srm.cli import eval, rl, score, train
from srm.scoring.lines import read_scores

STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GOOD = [{"prompt": f"Is it warm, {n} times?", "chosen": f"It was warm, {n} times.", "rejected": f"No, {n} is wrong!"} for n in range(4)]
BAD = {**GOOD[0], "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]}
ALTERNATE = {**GOOD[0], "prompt": [{"role": "user", "content": "Hi"}, {"role": "user", "content": "You."}]}


@pytest.fixture(scope="module")
def folders(
    tiny_policy_dir: Path, awake_model: Callable[..., SentenceRewardModel], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A policy, and a reward model on its backbone, with a template that takes neither system messages nor two users in a row."""
    folder = tmp_path_factory.mktemp("strict")
    policy, reward = folder / "policy", folder / "reward"
    shutil.copytree(tiny_policy_dir, policy)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template = STRICT
    tokenizer.save_pretrained(policy)
    awake_model(policy, attention_size=8).save_pretrained(reward)
    return {"policy": policy, "reward": reward}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*GOOD, BAD, *GOOD, ALTERNATE]))
    return path


def command(name: str, folders: dict[str, Path], pairs: Path, *more: str) -> int:
    out = str(pairs.with_name("out"))
    quick = ["--max_steps", "1", "--save_steps", "9", "--output_dir", out, "--dataset_name", str(pairs)]
    argv = {
        "srm-train": ["--model_name_or_path", str(folders["policy"]), "--report_to", "none", "--disable_tqdm", "true", *quick],
        "srm-score": ["--model", str(folders["reward"]), "--input", str(pairs), "--output", out, "--tokens_per_batch", "60"],
        "srm-eval": ["--model", str(folders["reward"]), "--suite", str(pairs), "--output_dir", out, "--draws", "100"],
        "srm-rl": [
            *("--model_name_or_path", str(folders["policy"]), "--reward_model_path", str(folders["reward"]), *quick),
            *("--max_completion_length", "8", "--per_device_train_batch_size", "4"),
        ],
    }
    mains = {"srm-train": train.main, "srm-score": score.main, "srm-eval": eval.main, "srm-rl": rl.main}
    return mains[name]([*argv[name], *more])


@pytest.mark.parametrize("name", ["srm-train", "srm-score", "srm-eval", "srm-rl"])
def test_a_row_that_the_template_refuses(name: str, folders: dict[str, Path], pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(name, folders, pairs) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"{name}: {pairs} line 5: the chat template refuses the messages (system, user): System role not supported.")
    assert line.endswith("or pass --skip_bad_rows to drop such rows and list them.")
    assert not pairs.with_name("out").is_file() or pairs.with_name("out").stat().st_size == 0


@pytest.mark.parametrize("name", ["srm-train", "srm-score", "srm-eval", "srm-rl"])
def test_such_rows_are_left_out_on_demand(
    name: str, folders: dict[str, Path], pairs: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert command(name, folders, pairs, "--skip_bad_rows") == 0, capsys.readouterr().err
    # Once, whatever the number of passes.
    (said,) = [record.getMessage() for record in caplog.records if "that cannot be used" in record.getMessage()]
    assert "dropped 2 of 10 rows" in said
    assert "Conversation roles must alternate" in said
    if name == "srm-score":
        scored = [line["id"] for line in read_scores(pairs.with_name("out"))]
        assert scored == [f"p-{n}/{label}" for n in (1, 2, 3, 4, 6, 7, 8, 9) for label in ("chosen", "rejected")]
        # Run again, it has nothing to do, and the parts of the presentation agree with the file.
        assert command(name, folders, pairs, "--skip_bad_rows", "--show") == 0
    if name == "srm-eval":
        assert len(pairs.with_name("out").joinpath("responses.jsonl").read_text().splitlines()) == 16
