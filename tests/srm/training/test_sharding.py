"""Sharded training: the accelerate settings that are shipped, and two processes that hold half of the weights each."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.run
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from srm.cli.train import main
from srm.modeling import SentenceRewardModel
from srm.training import RewardConfig

REPO = Path(__file__).resolve().parents[3]
CONFIGS = REPO / "examples" / "configs"


@pytest.mark.parametrize(
    ("name", "kind", "part", "values"),
    [
        ("accelerate_fsdp2.yaml", DistributedType.FSDP, "fsdp_config", {"fsdp_version": 2, "fsdp_reshard_after_forward": True}),
        ("accelerate_deepspeed_zero3.yaml", DistributedType.DEEPSPEED, "deepspeed_config", {"zero_stage": 3}),
    ],
)
def test_accelerate_knows_every_shipped_setting(name: str, kind: DistributedType, part: str, values: dict[str, object]) -> None:
    config = load_config_from_file(str(CONFIGS / name))  # refuses keys it does not know
    assert config.distributed_type == kind
    assert getattr(config, part).items() >= values.items()
    assert config.mixed_precision == "bf16"


@pytest.mark.parametrize(
    ("variables", "flags", "expected"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {}, (True, False)),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {"bf16": False}, (False, False)),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, {"bf16": True}, (True, False)),
        ({}, {}, (False, False)),
    ],
)
def test_the_launcher_decides_the_precision_where_no_flag_does(
    variables: dict[str, str], flags: dict[str, bool], expected: tuple[bool, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = RewardConfig(output_dir=str(tmp_path), use_cpu=True, **flags)
    assert (config.bf16, config.fp16) == expected


def test_the_model_names_the_layers_to_shard(tiny_backbone_dir: Path) -> None:
    model = SentenceRewardModel.from_backbone(tiny_backbone_dir)
    assert "LlamaDecoderLayer" in model._no_split_modules


@pytest.fixture
def flags(tiny_backbone_dir: Path, pairs_file: Path) -> Callable[..., list[str]]:
    usual = {
        **{"model_name_or_path": tiny_backbone_dir, "dataset_name": pairs_file, "eval_dataset_name": pairs_file, "attention_size": 8},
        **{"learning_rate": 1e-3, "logging_steps": 1, "disable_tqdm": "true", "use_cpu": "true", "bf16": "false"},
    }

    def make(**more: object) -> list[str]:
        return [word for name, value in {**usual, **more}.items() for word in (f"--{name}", str(value))]

    return make


@pytest.fixture
def launch(fork: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """launch("bf16", *flags): what srm-train prints in two processes of `accelerate launch` with the shipped settings."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    settings = ["--config_file", str(CONFIGS / "accelerate_fsdp2.yaml"), "--num_processes", "2", "--main_process_port", "0"]

    def start(arguments: argparse.Namespace) -> None:
        """In place of torchrun: the same environment, in forks of a process that has imported torch and transformers."""
        place = {"WORLD_SIZE": str(arguments.nproc_per_node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(arguments.master_port)}
        ours = {name: value for name, value in os.environ.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
        assert ours["FSDP_VERSION"] == "2"
        ranks = [
            fork(
                arguments.training_script,
                *arguments.training_script_args,
                output=tmp_path / f"rank{rank}",
                **{**ours, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            )
            for rank in range(int(arguments.nproc_per_node))
        ]
        for rank, process in enumerate(ranks):
            process.join(300)
            assert process.exitcode == 0, (tmp_path / f"rank{rank}.err").read_text()[-3000:]

    monkeypatch.setattr(torch.distributed.run, "run", start)

    def run(precision: str, *argv: str) -> str:
        launch_command(launch_command_parser().parse_args([*settings, "--mixed_precision", precision, "fsdp_run", *argv]))
        return "".join((tmp_path / f"rank{rank}.out").read_text() for rank in range(2))

    return run


def assert_same_history(run: Path, other: Path, tolerance: float) -> None:
    histories = [json.loads((path / "trainer_state.json").read_text())["log_history"] for path in (run, other)]
    for ours, theirs in zip(*histories, strict=True):
        for name in {"loss", "accuracy", "grad_norm", "eval_loss", "eval_accuracy", "eval_margin"} & ours.keys():
            assert theirs[name] == pytest.approx(ours[name], rel=tolerance), name


@pytest.mark.slow
def test_two_shards_are_one_process(flags: Callable[..., list[str]], launch: Callable[..., str], tmp_path: Path) -> None:
    """FSDP2 with the shipped settings: several passes a step, an evaluation, a sharded checkpoint that is gone on from.

    The shards run their last layer on boundary rows, the one process on all.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    # Adam's usual 1e-8 makes whole steps of gradients that are rounding alone, where those of a pair cancel in its prompt.
    usual = {"adam_epsilon": 1e-4}
    assert main(flags(output_dir=one, per_device_train_batch_size=8, last_layer_rows="all", **usual)) == 0
    sharded = flags(output_dir=two, per_device_train_batch_size=4, tokens_per_batch=150, save_steps=2, **usual)
    # The second run goes on from the shards of the first one's second step of three.
    for more in ([], ["--resume_from_checkpoint", str(two / "checkpoint-2")]):
        assert "last layer on boundary rows: queries, attention output, MLP and norm" in launch("no", *sharded, *more)
        assert (two / "checkpoint-2" / "pytorch_model_fsdp_0").is_dir(), "nothing was sharded"
        assert_same_history(one, two, 1e-3)
        first, second = (load_file(path / "model.safetensors") for path in (one, two))
        assert first.keys() == second.keys()
        for name, weight in first.items():
            torch.testing.assert_close(second[name], weight, rtol=1e-3, atol=1e-5)
        (two / "model.safetensors").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"use_peft": "true", "lora_r": 4, "gradient_checkpointing": "true"}], ids=["full", "LoRA"])
def test_rewards_stay_in_float32_where_shards_are_rounded(
    flags: Callable[..., list[str]], launch: Callable[..., str], tmp_path: Path, more: dict[str, object]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(flags(output_dir=one, per_device_train_batch_size=8, bf16="true", last_layer_rows="all", **more)) == 0
    out = launch("bf16", *flags(output_dir=two, per_device_train_batch_size=4, bf16="true", **more))
    assert "rewards: torch.float32" in out
    assert "torch.bfloat16" not in out
    assert_same_history(one, two, 0.1)
    saved = load_file(two / ("adapter_model.safetensors" if more else "model.safetensors"))
    (head,) = (weight for name, weight in saved.items() if name.endswith("head.value.weight"))
    assert head.dtype == torch.float32
    assert not torch.equal(head, head.bfloat16().float()), "what is trained and saved is not rounded"
    first, second = (SentenceRewardModel.from_pretrained(run).score(["Is this right?"], ["It is warm."])[0] for run in (one, two))
    assert second.reward == pytest.approx(first.reward, rel=0.1) != 0
