"""srm-rl from its flags to the saved policy, and the line that each bad input gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srm import SentenceRewardModel
from srm.cli.rl import main

Flags = Callable[..., list[str]]


@pytest.fixture(scope="module")
def models(
    tiny_policy_dir: Path, awake_model: Callable[..., SentenceRewardModel], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Folders of a policy and of a reward model with a head that is not zero."""
    reward_model = tmp_path_factory.mktemp("reward_model")
    awake_model(attention_size=8).save_pretrained(reward_model)
    return tiny_policy_dir, reward_model


@pytest.fixture
def flags(models: tuple[Path, Path], tmp_path: Path) -> Flags:
    """flags(*more, **instead): the flags of a run of a second."""
    prompts = tmp_path / "prompts.jsonl"
    rows: list[dict[str, Any]] = [{"prompt": f"Is the cat warm, {number} times?"} for number in range(6)]
    rows.append({"prompt": [{"role": "user", "content": "It was warm there. " * 20}]})
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(*more: str, **instead: Any) -> list[str]:
        usual = {
            "model_name_or_path": models[0],
            "reward_model_path": models[1],
            "dataset_name": prompts,
            "output_dir": tmp_path / "out",
            "max_completion_length": 12,
            "max_prompt_length": 60,
            "max_steps": 3,
            "save_steps": 2,
            "learning_rate": 1e-3,
        }
        return [word for name, value in {**usual, **instead}.items() for word in (f"--{name}", str(value))] + list(more)

    return make


@pytest.mark.parametrize("more", [[], ["--algorithm", "ppo", "--num_ppo_epochs", "2", "--reward", "response"]])
def test_a_run_leaves_a_policy_and_its_log(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], models: tuple[Path, Path]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(flags(*more)) == 0
    out, err = capsys.readouterr()
    assert "1 of 7 prompts left out: more than --max_prompt_length 60 tokens" in out
    # transformers' bar for each file would run through ours.
    assert "Writing model shards" not in out + err
    assert "step 3/3  reward" in out
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["episodes"] for line in lines] == [8, 16, 24]
    assert {"reward", "kl", "length", "entropy", "loss", "grad_norm", "learning_rate"} <= lines[0].keys()
    before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (models[0], tmp_path / "out"))
    assert any(not before[name].equal(after[name]) for name in before)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(AutoTokenizer.from_pretrained(models[0]))


def test_resume_goes_on_and_says_what_has_changed(flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags("--resume_from_checkpoint", "true", max_steps=2)) == 0
    assert "no checkpoint in" in capsys.readouterr().out
    first = (tmp_path / "out" / "log.jsonl").read_text()
    assert main(flags()) == 1
    assert "holds a run up to checkpoint-2. Go on with --resume_from_checkpoint true" in capsys.readouterr().err
    assert main(flags("--resume_from_checkpoint", "true", kl_coef=0.2)) == 0
    out = capsys.readouterr().out
    assert "resuming from" in out
    assert "not as when this run began: kl_coef was 0.1, is 0.2" in out
    assert "max_steps was" not in out
    assert "are not the same" not in out
    log = (tmp_path / "out" / "log.jsonl").read_text()
    assert log.startswith(first)
    assert len(log.splitlines()) == 3
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "Is it?"}\n')
    assert main(flags("--resume_from_checkpoint", "true", max_steps=4, kl_coef=0.2)) == 0
    assert f"not as when this run began: the prompts of {tmp_path / 'prompts.jsonl'} are not the same\n" in capsys.readouterr().out
    assert main(flags("--overwrite_output_dir", max_steps=1)) == 0
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        ({"dataset_name": "missing.jsonl"}, "missing.jsonl"),
        ({"reward_model_path": "/nowhere/reward"}, "/nowhere/reward"),
        ({"model_name_or_path": "/nowhere/policy"}, "/nowhere/policy: no such folder. Check the path."),
        ({"max_prompt_length": 2}, "Raise --max_prompt_length 2"),
        ({"max_completion_length": 500}, "make .*, the policy reads 256. Lower --max_prompt_length or --max_completion_length"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    flags: Flags, capsys: pytest.CaptureFixture[str], instead: dict[str, Any], message: str
) -> None:
    import re

    assert main(flags(**instead)) == 1
    err = capsys.readouterr().err
    line = next(line for line in err.splitlines() if line.startswith("srm-rl: "))
    assert re.search(message, line)


def test_a_reward_model_is_no_policy(flags: Flags, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(model_name_or_path=models[1])) == 1
    assert f"srm-rl: {models[1]}: is a reward model, which writes no text. Give it as --reward_model_path" in capsys.readouterr().err


def test_a_policy_that_cannot_be_packed_needs_packing_none(
    flags: Flags, models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(models[0])
    # On the CPU nothing runs packed attention with a cap on its scores.
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        attn_logit_softcapping=50.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    capped = tmp_path / "capped"
    Gemma2ForCausalLM(config).save_pretrained(capped)
    tokenizer.save_pretrained(capped)
    assert main(flags(model_name_or_path=capped, max_steps=1)) == 1
    assert "Use --packing none" in capsys.readouterr().err
    assert main(flags(model_name_or_path=capped, max_steps=1, packing="none")) == 0


def test_a_policy_may_write_ids_that_are_no_tokens(flags: Flags, models: tuple[Path, Path], tmp_path: Path) -> None:
    """Where embeddings are padded beyond the tokenizer; half of these are."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(models[0])
    folders = tmp_path / "policy", tmp_path / "reward"
    config = AutoConfig.from_pretrained(models[0], vocab_size=2 * len(tokenizer))
    LlamaForCausalLM(config).save_pretrained(folders[0])
    tokenizer.save_pretrained(folders[0])
    SentenceRewardModel.from_backbone(folders[0]).save_pretrained(folders[1])
    assert main(flags(model_name_or_path=folders[0], reward_model_path=folders[1], max_steps=1)) == 0


def test_an_edited_log_is_one_line(flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags()) == 0
    log = tmp_path / "out" / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    for bad in ("{}\n", "\n", "[1]\n", '{"step": "x"}\n', "\x1b\n"):
        log.write_text(lines[0] + bad + lines[1])
        assert main(flags("--resume_from_checkpoint", "true")) == 1
        assert "log.jsonl line 2: is not what srm-rl writes" in capsys.readouterr().err


def test_a_rate_that_blows_up_is_one_line(flags: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(learning_rate=1e30)) == 1
    assert "Lower --learning_rate" in capsys.readouterr().err.splitlines()[-1]
