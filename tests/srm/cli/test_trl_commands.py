"""What people type for `trl reward`, as srm-train: the commands of TRL 1.16's documentation, with other models and data alone."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from srm.cli.train import main
from srm.modeling import SentenceRewardModel
from srm.training.arguments import ModelArguments, RewardConfig, parse_arguments

# examples/scripts/reward_modeling.py, which trl's documentation and its CLI skill repeat.
FULL = """--model_name_or_path Qwen/Qwen2-0.5B-Instruct --dataset_name trl-lib/ultrafeedback_binarized --output_dir Qwen2-0.5B-Reward
    --per_device_train_batch_size 8 --num_train_epochs 1 --learning_rate 1.0e-5 --eval_strategy steps --eval_steps 50 --max_length 2048"""
LORA = """--model_name_or_path Qwen/Qwen2-0.5B-Instruct --dataset_name trl-lib/ultrafeedback_binarized
    --output_dir Qwen2-0.5B-Reward-LoRA --per_device_train_batch_size 8 --num_train_epochs 1 --learning_rate 1.0e-4
    --eval_strategy steps --eval_steps 50 --max_length 2048 --use_peft --lora_task_type SEQ_CLS --lora_r 32 --lora_alpha 16"""
# docs/source/clis.md and quickstart.md.
SHORT = "--model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name trl-lib/ultrafeedback_binarized"
# examples/cli_configs/example_config.yaml.
EXAMPLE_CONFIG = """
# env:
#   CUDA_VISIBLE_DEVICES: 0

model_name_or_path:
  Qwen/Qwen2.5-0.5B
dataset_name:
  stanfordnlp/imdb
report_to:
  none
learning_rate:
  0.0001
lr_scheduler_type:
  cosine
"""
MIXTURE_CONFIG = """
model_name_or_path: Qwen/Qwen2.5-0.5B
datasets:
  - path: trl-lib/tldr-preference
  - path: trl-lib/lm-human-preferences-sentiment
"""
QUIET = ["--disable_tqdm", "true", "--use_cpu", "true"]


@pytest.fixture
def here(tiny_backbone_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place with data/train.jsonl and data/test.jsonl, where commands run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for split, count in (("train", 20), ("test", 6)):
        rows = ({"prompt": f"Is {index} right?", "chosen": "It is warm. Yes.", "rejected": "No, it is wrong!"} for index in range(count))
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def local(text: str, model: Path) -> str:
    for name in ("Qwen/Qwen2-0.5B-Instruct", "Qwen/Qwen2.5-0.5B"):
        text = text.replace(name, str(model))
    for name in ("trl-lib/ultrafeedback_binarized", "stanfordnlp/imdb"):
        text = text.replace(name, "data")
    return text.replace("trl-lib/tldr-preference", "data/train.jsonl").replace("trl-lib/lm-human-preferences-sentiment", "data/test.jsonl")


@pytest.mark.parametrize(
    ("command", "output"),
    [(FULL, "Qwen2-0.5B-Reward"), (LORA, "Qwen2-0.5B-Reward-LoRA"), (SHORT, "trainer_output")],
    ids=["full", "lora", "short"],
)
def test_commands(here, tiny_backbone_dir, command, output, capsys):
    if "--use_peft" in command:
        pytest.importorskip("peft")
    assert main([*shlex.split(local(command, tiny_backbone_dir)), *QUIET]) == 0
    out = capsys.readouterr().out
    assert f"model saved to {output}" in out
    assert ("evaluation data: 6 pairs" in out) == ("--eval_strategy" in command)
    assert out.count("--lora_task_type has no effect: the head is always trained and saved with an adapter") == ("--use_peft" in command)
    assert SentenceRewardModel.from_pretrained(here / output).score(["Hi"], ["Yes. No."])


@pytest.mark.parametrize("text", [EXAMPLE_CONFIG, MIXTURE_CONFIG])
def test_config_files(here, tiny_backbone_dir, text, capsys):
    (here / "reward_config.yaml").write_text(local(text, tiny_backbone_dir))
    assert main(["--config", "reward_config.yaml", *QUIET]) == 0
    assert f"training data: {26 if 'datasets' in text else 20} pairs" in capsys.readouterr().out
    # And the record of the run is a file for --config, too.
    assert main(["--config", "trainer_output/srm_train.yaml", "--output_dir", "again"]) == 0
    first, second = (load_file(here / name / "model.safetensors") for name in ("trainer_output", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_setting_of_a_mixture(here, tiny_backbone_dir, capsys):
    settings = {
        "model_name_or_path": str(tiny_backbone_dir),
        "datasets": [
            {"path": "json", "data_files": "data/train.jsonl", "split": "train[:10]", "columns": ["prompt", "chosen", "rejected"]},
            {"path": "json", "name": "default", "data_dir": "data", "split": "test"},
            {"path": "data", "split": "test"},
        ],
        "streaming": False,
        "test_split_size": 0.25,
        "dataset_name": "someone/data",
        "max_pairs": 15,
        "eval_strategy": "epoch",
    }
    (here / "reward_config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["--config", "reward_config.yaml", *QUIET]) == 0
    out = capsys.readouterr().out
    # 22 rows: 6 set aside, and of the 16 others 15 are wanted.
    assert "training data: 15 pairs" in out
    assert "evaluation data: 6 pairs" in out
    assert "--dataset_name has no effect: the mixture in `datasets` is read instead" in out
    assert "| training data | json, data |" in (here / "trainer_output" / "README.md").read_text()


def test_the_test_split_is_the_same_when_a_run_is_resumed(here, tiny_backbone_dir, capsys):
    words = [
        "--model_name_or_path",
        str(tiny_backbone_dir),
        "--datasets",
        '[{"path": "data/train.jsonl"}]',
        "--test_split_size",
        "5",
        *QUIET,
    ]
    words += ["--save_steps", "1", "--max_steps", "2"]
    assert main(words) == 0
    assert main([*words, "--resume_from_checkpoint", "trainer_output/checkpoint-1"]) == 0
    out = capsys.readouterr().out
    assert "resuming from" in out
    assert "not as when this run began" not in out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--datasets", "[{]"], "--datasets must be a JSON list such as"),
        (["--datasets", '[{"path": "data", "splits": "x"}]'], "datasets, entry 1: unknown setting 'splits'; did you mean split?"),
        (
            ["--datasets", '[{"path": "data"}]', "--eval_strategy", "epoch"],
            "is all training data. Add --eval_dataset_name or --test_split_size",
        ),
        (["--dataset_name", "data", "--test_split_size", "0.1"], "--test_split_size is about a mixture, and there are no `datasets`"),
        (["--dataset_name", "data", "--streaming"], "there are no `datasets`. For --dataset_name, use --dataset_streaming."),
        (["--datasets", '[{"path": "data"}]', "--test_split_size", "0"], "--test_split_size must be above 0"),
        (
            ["--datasets", '[{"path": "data/train.jsonl"}]', "--output_dir", "data"],
            "holds data/train.jsonl, which datasets (data/train.jsonl)",
        ),
        (["--dataset_name", "data", "--load_in_4bit"], "only adapters can be trained. Add --use_peft."),
        (["--dataset_name", "data", "--load_in_4bit", "--load_in_8bit"], "exclude each other"),
        (["--dataset_name", "data", "--model_init_kwargs", "[1]"], "--model_init_kwargs must be a JSON object such as"),
        (["--dataset_name", "data", "--model_init_kwargs", '{"dtype": "float33"}'], "float33"),
        (["--dataset_name", "data", "--model_init_kwargs", '{"quantization_config": {}}'], "say by --load_in_4bit or --load_in_8bit"),
        (["--dataset_name", "data", "--eos_token", "</s>"], "--eos_token '</s>': the tokenizer has no such token"),
        (["--dataset_name", "data", "--chat_template_path", "gone.jinja"], "--chat_template_path gone.jinja: cannot be read"),
        (["--dataset_name", "data", "--chat_template_path", "./gone"], "./gone: no such folder. Check the path."),
        (
            ["--dataset_name", "data", "--use_liger_kernel"],
            "--use_liger_kernel: liger_kernel is not installed. Run: pip install 'srm-kernels[liger]'",
        ),
    ],
)
def test_what_is_wrong_is_one_line(here, tiny_backbone_dir, more, said, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["--model_name_or_path", str(tiny_backbone_dir), *more, *QUIET]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("srm-train: "))
    assert said in line


def test_quantization_needs_its_package(monkeypatch):
    monkeypatch.setattr("srm.training.model_arguments.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--load_in_8bit: bitsandbytes is not installed\. Run: pip install 'srm-kernels\[quant\]'"):
        ModelArguments(load_in_8bit=True, use_peft=True)


def test_what_has_no_meaning_is_said_once(here, tiny_backbone_dir, capsys):
    words = shlex.split(
        "--dataset_num_proc 4 --ignore_bias_buffers --pad_to_multiple_of 8 --lora_task_type SEQ_CLS --bnb_4bit_quant_type fp4 "
        "--use_bnb_nested_quant --bnb_4bit_quant_storage uint8 --attn_implementation flash_attention_2 --lora_target_modules q_proj "
        "--lora_r 8 --use_dora --dataset_config english"
    )
    words += ["--model_init_kwargs", '{"device_map": "auto", "use_cache": false, "dtype": null}']
    assert main(["--model_name_or_path", str(tiny_backbone_dir), "--dataset_name", "data", *words, *QUIET]) == 0
    said = [line.split(" has no effect: ")[0] for line in capsys.readouterr().out.splitlines() if " has no effect: " in line]
    flags = [word for word in words if word.startswith("--") and word != "--model_init_kwargs"]
    assert sorted(said) == sorted([*flags, "--model_init_kwargs device_map"])


def test_what_trl_takes_by_default_is_said_nowhere(here, tiny_backbone_dir, capsys):
    assert main(["--model_name_or_path", str(tiny_backbone_dir), "--dataset_name", "data", "--pad_to_multiple_of", "auto", *QUIET]) == 0
    assert "has no effect" not in capsys.readouterr().out


def test_every_flag_of_trl_is_known(tmp_path):
    """Of the release that is installed: a new flag fails here, and gets its row in docs/training.md."""
    trl = pytest.importorskip("trl")
    from dataclasses import fields

    ours = {
        entry.name for group in parse_arguments(["--model_name_or_path", "m", "--dataset_name", "d", *QUIET]) for entry in fields(group)
    }
    for group in (trl.ScriptArguments, trl.RewardConfig, trl.ModelConfig, trl.DatasetMixtureConfig):
        assert {entry.name for entry in fields(group)} <= ours


def saved(folder: Path) -> Any:
    return SentenceRewardModel.from_pretrained(folder)


def test_tokens_end_answers_and_are_saved(here, tiny_backbone_dir, capsys):
    words = ["--model_name_or_path", str(tiny_backbone_dir), "--dataset_name", "data", "--eos_token", "<|endoftext|>", "--pad_token", "?"]
    for more in ([], ["--model_name_or_path", "trainer_output", "--output_dir", "more", "--pad_token", "<|im_start|>"]):
        assert main([*words, *more, *QUIET]) == 0
    model = saved(here / "trainer_output")
    tokenizer = model.tokenizer
    assert (tokenizer.eos_token, tokenizer.pad_token, saved(here / "more").tokenizer.pad_token) == ("<|endoftext|>", "?", "<|im_start|>")
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("?"))
    ends = model.encoder.answers.end_ids
    assert tokenizer.eos_token_id in ends
    # The template's stays one.
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ends
    before = SentenceRewardModel.from_backbone(tiny_backbone_dir)
    assert tokenizer.eos_token_id not in before.encoder.answers.end_ids


def test_the_template_of_another_tokenizer(here, tiny_backbone_dir, tiny_tokenizer_dir, capsys):
    from transformers import AutoTokenizer

    words = ["--model_name_or_path", str(tiny_backbone_dir), "--dataset_name", "data", "--chat_template_path", "other", *QUIET]
    other = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    other.chat_template = other.chat_template.replace("assistant\\n", "assistant:\\n").replace("\nassistant\n", "\nassistant:\n")
    other.save_pretrained(here / "other")
    assert main(words) == 0
    assert saved(here / "trainer_output").tokenizer.chat_template == other.chat_template
    other.add_tokens(["<|answer|>"], special_tokens=True)
    other.chat_template += "<|answer|>"
    other.save_pretrained(here / "other")
    assert main([*words, "--overwrite_output_dir"]) == 1
    assert "its template writes '<|answer|>', which is no token of the model that is trained" in capsys.readouterr().err
    other.chat_template = None
    other.save_pretrained(here / "bare")
    assert main([*words, "--overwrite_output_dir", "--chat_template_path", "bare"]) == 1
    assert "bare: the tokenizer there has no chat template" in capsys.readouterr().err


def test_arguments_of_from_pretrained_win(here, tiny_backbone_dir, capsys):
    words = ["--model_name_or_path", str(tiny_backbone_dir), "--dataset_name", "data", *QUIET]
    assert main([*words, "--model_init_kwargs", '{"dtype": "bfloat16", "num_hidden_layers": 1}', "--max_steps", "1"]) == 1
    # A layer too many in the file.
    assert "the weights do not make up the model of config.json" in capsys.readouterr().err
    assert main([*words, "--model_init_kwargs", '{"dtype": "bfloat16", "rms_norm_eps": 0.01}', "--max_steps", "1"]) == 0
    model = saved(here / "trainer_output")
    assert model.config.backbone_config.rms_norm_eps == 0.01
    assert load_file(here / "trainer_output" / "model.safetensors")["backbone.norm.weight"].dtype == torch.bfloat16
    pytest.importorskip("peft")
    assert main([*words, "--use_peft", "--model_init_kwargs", '{"rms_norm_eps": 0.01}', "--output_dir", "lora"]) == 1
    assert "'rms_norm_eps' would be forgotten when the saved adapter is loaded" in capsys.readouterr().err


def test_offloaded_activations_change_nothing(here, tiny_backbone_dir, monkeypatch):
    from srm.training import savers

    monkeypatch.setattr(savers, "_LEAST_NUMBERS", 1)
    words = ["--model_name_or_path", str(tiny_backbone_dir), "--dataset_name", "data", "--learning_rate", "1e-3", *QUIET]
    assert main(words) == 0
    moved = []
    monkeypatch.setattr(savers, "_moved", lambda tensor: moved.append(tensor) or tensor.clone())
    assert main([*words, "--activation_offloading", "--output_dir", "other"]) == 0
    assert moved
    first, second = (load_file(here / name / "model.safetensors") for name in ("trainer_output", "other"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_default_output_is_that_of_transformers():
    assert RewardConfig(use_cpu=True).output_dir == "trainer_output"
