"""DeepSpeed's own ZeRO-2 and ZeRO-3 in two processes on the CPU: the losses of DDP, folders that load, and runs that go on."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

from srm.modeling import SentenceRewardModel

REPO = Path(__file__).resolve().parents[2]
SHIPPED = REPO / "examples" / "configs" / "accelerate_deepspeed_zero3.yaml"
GOOD = ("The cat sat on the mat.", "It was warm there.", "Bread needs flour, water, salt and time.", "The bread is warm.")
AUTO = {
    "bf16": {"enabled": "auto"},
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto"),
}
ZERO2 = {**AUTO, "zero_optimization": {"stage": 2}}
# Shards the smallest weights too, which ZeRO-3 keeps whole by default: all of a model as small as this one.
ZERO3 = {
    **AUTO,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True},
}
PROMPTS = ["Is this right?", "Where does the cat sit?"]
ANSWERS = ["It is warm. No, it is wrong!", "The cat sat on the mat. It was warm there. No, it is wrong!"]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Of a process that runs DeepSpeed on the CPU.

    It compiles its exchange through shared memory where it first starts, which takes a minute: here, and kept beside the wheels.
    """
    compiled = Path(sys.prefix) / "torch_extensions"
    # Left by a run that was killed, for which all later ones would wait.
    for lock in compiled.glob("*/lock"):
        lock.unlink()
    variables = {
        **{"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(compiled)},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    build = "from deepspeed.accelerator import get_accelerator; get_accelerator().create_op_builder('ShareMemCommBuilder').load()"
    subprocess.run([sys.executable, "-c", build], env={**os.environ, **variables}, check=True, timeout=900)
    return variables


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, rows = random.Random(0), []
    for _ in range(22):
        good = [rng.choice(GOOD) for _ in range(rng.randint(1, 4))]
        bad = [*good[:1], "No, it is wrong!", *good[1:]]
        prompt = "Is this right?" + " Really?" * rng.randint(0, 3)
        rows.append(json.dumps({"prompt": prompt, "chosen": " ".join(good), "rejected": " ".join(bad)}) + "\n")
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(rows))
    return path


@pytest.fixture
def flags(tiny_backbone_dir: Path, pairs: Path) -> Callable[..., dict[str, Any]]:
    usual = {
        **{"model_name_or_path": tiny_backbone_dir, "dataset_name": pairs, "eval_dataset_name": pairs, "attention_size": 8},
        # Adam's usual 1e-8 makes whole steps of gradients that are rounding alone, where those of a pair cancel in its prompt.
        **{"learning_rate": 1e-3, "adam_epsilon": 1e-4, "logging_steps": 1, "save_steps": 2, "disable_tqdm": "true"},
    }
    return lambda **more: {**usual, **more}


@pytest.fixture
def in_two_processes(fork: Callable[..., Any], environment: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """in_two_processes(flags, **variables): srm-train in two processes, forked from one that has the imports; gives what they print."""

    def run(settings: dict[str, Any], *, code: int = 0, **variables: str) -> str:
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        ranks = [
            fork(
                "srm.cli.train",
                *words,
                output=tmp_path / f"rank{rank}",
                **{**environment, **variables, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            )
            for rank in range(2)
        ]
        ranks[0].join(600)
        out, err = ("".join((tmp_path / f"rank{rank}.{kind}").read_text() for rank in range(2)) for kind in ("out", "err"))
        assert ranks[0].exitcode == code, err[-5000:]
        for process in ranks:
            # As torchrun would, where the first one gave up.
            process.join(None if code == 0 else 0)
            process.kill()
        return out + err

    return run


@pytest.fixture
def deepspeed_file(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def write(config: dict[str, Any]) -> Path:
        path = tmp_path / "deepspeed.json"
        path.write_text(json.dumps(config))
        return path

    return write


def history(run: Path) -> list[dict[str, float]]:
    kept = {"loss", "accuracy", "grad_norm", "learning_rate", "eval_loss", "eval_accuracy", "eval_margin"}
    entries = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [{name: value for name, value in entry.items() if name in kept} for entry in entries]


def assert_same_run(ours: Path, theirs: Path, tolerance: float) -> None:
    for one, two in zip(history(ours), history(theirs), strict=True):
        assert one == pytest.approx(two, rel=tolerance)
    # All of them together: in a single reward sentences cancel, and what bf16 has rounded differs from CPU to CPU.
    mine, others = (sentence_rewards(run) for run in (ours, theirs))
    assert (mine - others).norm() <= tolerance * others.norm()
    assert others.norm() > 0


def sentence_rewards(run: Path) -> torch.Tensor:
    responses = SentenceRewardModel.from_pretrained(run).score(PROMPTS, ANSWERS)
    return torch.tensor([reward for one in responses for reward in (one.prompt_reward, *(sentence.reward for sentence in one.sentences))])


def saved_head(run: Path) -> dict[str, torch.Tensor]:
    (file,) = run.glob("*.safetensors")
    return {name: weight for name, weight in load_file(file).items() if "head." in name}


def test_losses_of_ddp_and_a_resume(flags: Any, in_two_processes: Any, deepspeed_file: Any, tmp_path: Path) -> None:
    """ZeRO-2 and ZeRO-3, several passes a step; then again from the shards of the second step of three."""
    ddp = tmp_path / "ddp"
    in_two_processes(flags(output_dir=ddp, per_device_train_batch_size=4))
    for name, config in (("zero2", ZERO2), ("zero3", ZERO3)):
        run, file = tmp_path / name, deepspeed_file(config)
        settings = flags(output_dir=run, per_device_train_batch_size=4, tokens_per_batch=150, deepspeed=file)
        for more in ({}, {"resume_from_checkpoint": run / "checkpoint-2"}):
            in_two_processes({**settings, **more})
            assert len(list((run / "checkpoint-2" / "global_step2").glob("*optim_states.pt"))) == 2, "nothing was sharded"
            assert_same_run(run, ddp, 1e-3)
            ours, theirs = (load_file(folder / "model.safetensors") for folder in (run, ddp))
            assert ours.keys() == theirs.keys()
            for key, weight in theirs.items():
                torch.testing.assert_close(ours[key], weight, rtol=1e-3, atol=1e-5)
            (run / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (ZERO2, {}),
        (ZERO3, {}),
        (ZERO3, {"use_peft": "true", "lora_r": 4, "boundary_token": "<END>", "gradient_checkpointing": "true"}),
    ],
    ids=["ZeRO-2", "ZeRO-3", "ZeRO-3 LoRA"],
)
def test_the_head_is_saved_in_float32_where_the_run_rounds_it(
    flags: Any, in_two_processes: Any, deepspeed_file: Any, tmp_path: Path, config: dict[str, Any], more: dict[str, Any]
) -> None:
    run, ddp = tmp_path / "run", tmp_path / "ddp"
    settings = flags(per_device_train_batch_size=4, bf16="true", **more)
    in_two_processes({**settings, "output_dir": ddp})
    in_two_processes({**settings, "output_dir": run, "deepspeed": deepspeed_file(config)})
    assert_same_run(run, ddp, 0.1)
    ours, theirs = saved_head(run), saved_head(ddp)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert weight.dtype == torch.float32
        assert weight.numel() == 1 or not torch.equal(weight, weight.bfloat16().float()), f"{name} is rounded"
        assert torch.equal(saved_head(run / "checkpoint-3")[name], weight)


def test_a_trained_model_goes_on(flags: Any, in_two_processes: Any, deepspeed_file: Any, awake_model: Any, tmp_path: Path) -> None:
    trained, run, ddp = tmp_path / "trained", tmp_path / "run", tmp_path / "ddp"
    awake_model(attention_size=8).save_pretrained(trained)
    settings = flags(model_name_or_path=trained, per_device_train_batch_size=4)
    in_two_processes({**settings, "output_dir": ddp})
    in_two_processes({**settings, "output_dir": run, "deepspeed": deepspeed_file(ZERO3)})
    assert_same_run(run, ddp, 1e-3)


def test_the_command_of_the_shipped_settings(flags: Any, environment: dict[str, str], tmp_path: Path) -> None:
    """As it stands in the file, on two processes: in bf16, which the settings say and the flags do not."""
    run = tmp_path / "run"
    (line,) = (line for line in SHIPPED.read_text().splitlines() if line.startswith("#   "))
    name, command, *words = line.lstrip("# ").replace("--num_processes 8", "--num_processes 2 --main_process_port 0").split()
    assert (name, command) == ("accelerate", "launch")
    # The later of two flags counts.
    more = [
        word for setting, value in flags(output_dir=run, per_device_train_batch_size=2).items() for word in (f"--{setting}", str(value))
    ]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *words, *more]
    done = subprocess.run(launch, cwd=REPO, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    assert f"model saved to {run}" in done.stdout
    assert history(run)[0]["loss"] > 0
    weights = load_file(run / "model.safetensors")
    assert {weight.dtype for name, weight in weights.items() if name.startswith("backbone.")} == {torch.bfloat16}
    assert SentenceRewardModel.from_pretrained(run).score(PROMPTS, ANSWERS)[0].reward != 0


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({**ZERO3, "zero_optimization": {"stage": 3}}, "stage3_gather_16bit_weights_on_model_save: true"),
        ({**ZERO2, "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}, "the head would learn at the backbone's rate"),
        ({**ZERO2, "bf16": {"enabled": True}}, "bf16.enabled=True"),
    ],
    ids=["sharded model", "optimizer of its own", "another precision"],
)
def test_settings_that_differ_are_refused(
    flags: Any, in_two_processes: Any, deepspeed_file: Any, tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    printed = in_two_processes(flags(output_dir=tmp_path / "run", deepspeed=deepspeed_file(config)), code=1)
    assert "srm-train: " in printed
    assert says in printed
    assert "Traceback" not in printed


def test_gradients_are_clipped_where_the_file_does_not_ask(flags: Any, in_two_processes: Any, deepspeed_file: Any, tmp_path: Path) -> None:
    """SGD, because Adam's steps hardly depend on the size of the gradients."""
    run, ddp = tmp_path / "run", tmp_path / "ddp"
    settings = flags(optim="sgd", max_grad_norm=0.01)
    in_two_processes({**settings, "output_dir": ddp})
    in_two_processes({**settings, "output_dir": run, "deepspeed": deepspeed_file(ZERO3)})
    assert_same_run(run, ddp, 1e-3)


def test_weights_that_overflow_are_not_saved(flags: Any, in_two_processes: Any, deepspeed_file: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = flags(output_dir=run, learning_rate=1e38, max_steps=1, eval_strategy="no", deepspeed=deepspeed_file(ZERO3))
    assert "weights became NaN or infinite" in in_two_processes(settings, code=1)
    assert not (run / "model.safetensors").exists()


def test_a_model_is_whole_where_zero3_is_set(tiny_backbone_dir: Path) -> None:
    """As for those who make their settings before their model, in Python."""
    settings = HfDeepSpeedConfig(ZERO3)
    model = SentenceRewardModel.from_backbone(tiny_backbone_dir, boundary_token="<END>")
    assert settings.is_zero3()
    assert is_deepspeed_zero3_enabled(), "the settings are active for all else"
    assert not any(hasattr(weight, "ds_id") for weight in model.parameters())
    assert model.packing_mode() == "shared"
