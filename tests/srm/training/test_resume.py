"""A run that was stopped or killed at any moment goes on to the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from srm.errors import UserError
from srm.training import ModelArguments
from srm.training.lora import add_adapters

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

# Four steps an epoch (22 rows, six a step), dropout on, a checkpoint every other step, the oldest of two deleted.
SETTINGS = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "disable_dropout": False,
    "lr_scheduler_type": "cosine",
}


def same_weights(first: Path, second: Path) -> bool:
    one, two = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


@pytest.fixture
def dropout_model(new_model):
    def make():
        model = new_model()
        for layer in model.backbone.layers:
            layer.self_attn.attention_dropout = 0.1
        return model

    return make


def losses(trainer) -> dict[int, list[float]]:
    """What was logged of each step, but for times."""
    keys = ("loss", "accuracy", "margin", "grad_norm", "learning_rate")
    return {entry["step"]: [entry[key] for key in keys] for entry in trainer.state.log_history if "loss" in entry}


@pytest.mark.parametrize(
    "split",
    [{}, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}, {"tokens_per_batch": 150}],
    ids=["one pass a step", "accumulation", "a limit on tokens"],
)
def test_a_stopped_run_ends_as_if_it_had_not_stopped(dropout_model, rows, make_trainer, tmp_path, split):
    def trainer(name: str, *callbacks: TrainerCallback):
        return make_trainer(dropout_model(), rows, callbacks=list(callbacks), output_dir=str(tmp_path / name), **{**SETTINGS, **split})

    whole = trainer("whole")
    whole.train()
    whole.save_model()
    for name, stop in {"within an epoch": 2, "between epochs": 4, "in the second epoch": 6}.items():
        trainer(name, StopAfter(stop)).train()
        # A fresh process would have other random states than the run that goes on.
        torch.manual_seed(123)
        resumed = trainer(name)
        resumed.train(resume_from_checkpoint=True)
        resumed.save_model()
        assert resumed.state.global_step == whole.state.global_step == 8, name
        assert same_weights(tmp_path / "whole", tmp_path / name), name
        # And so do the logs of the steps after the resume.
        assert losses(resumed) == losses(whole), name


# Where the four saves (after steps 2, 4, 6, 8) and the final one of the run below can die, with what must be left.
MOMENTS = {
    "before the first checkpoint": (["srm.training.trainer:SentenceRewardTrainer.training_step", 2], []),
    "in a step": (["srm.training.trainer:SentenceRewardTrainer.training_step", 7], ["checkpoint-4", "checkpoint-6"]),
    "weights written, optimizer not": (["srm.training.trainer:SentenceRewardTrainer._save_optimizer_and_scheduler", 2], ["checkpoint-2"]),
    "all but the random state written": (
        ["srm.training.trainer:SentenceRewardTrainer._save_rng_state", 3],
        ["checkpoint-2", "checkpoint-4"],
    ),
    "written, not published": (["srm.training.saving:publish_folder", 3], ["checkpoint-2", "checkpoint-4"]),
    "published, the oldest not deleted": (["srm.training.saving:rotate", 3], ["checkpoint-2", "checkpoint-4", "checkpoint-6"]),
    "while the oldest is deleted": (["srm.runs.folders:_discard", 1], ["checkpoint-2", "checkpoint-4", "checkpoint-6"]),
    "final model written, not published": (["srm.training.saving:publish_model", 1], ["checkpoint-6", "checkpoint-8"]),
    # The first two replacements are the record of the run.
    "final model half published": (["pathlib:Path.replace", 4], ["checkpoint-6", "checkpoint-8"]),
}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of one process")
def test_kill_9_at_any_moment(tiny_backbone_dir, pairs_file, fork, tmp_path, monkeypatch):
    def argv(name: str, *more: str) -> list[str]:
        flags = "--per_device_train_batch_size 6 --num_train_epochs 2 --save_steps 2 --save_total_limit 2"
        flags += " --learning_rate 1e-3 --attention_size 8"
        where = ["--model_name_or_path", str(tiny_backbone_dir), "--dataset_name", str(pairs_file), "--output_dir", str(tmp_path / name)]
        return [*where, *flags.split(), "--use_cpu", "--disable_tqdm", "true", *more]

    outside = {f"after {share} of the time": (["share", share], None) for share in (0.4, 0.7)}
    moments = {**MOMENTS, **outside}
    runs = [{"argv": argv("whole"), "moment": None}]
    for name, (moment, _) in moments.items():
        runs += [{"argv": argv(name), "moment": moment}, {"argv": argv(name, "--resume_from_checkpoint", "true"), "moment": None}]
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    fork("killed_runs", json.dumps(runs), output=tmp_path / "killed_runs", **ENVIRONMENT).join(300)
    said = (tmp_path / "killed_runs.err").read_text()[-3000:]
    reports = [json.loads(line) for line in (tmp_path / "killed_runs.out").read_text().splitlines()]
    assert len(reports) == len(runs), said
    assert reports[0] == {"status": 0, "checkpoints": ["checkpoint-6", "checkpoint-8"]}, said
    for index, (name, (_, left)) in enumerate(moments.items()):
        killed, resumed = reports[1 + 2 * index : 3 + 2 * index]
        if left is not None:
            assert killed == {"status": -9, "checkpoints": sorted(left)}, name
        assert resumed == {"status": 0, "checkpoints": ["checkpoint-6", "checkpoint-8"]}, f"{name}: {said}"
        assert same_weights(tmp_path / "whole", tmp_path / name), name
        assert not (tmp_path / name / ".incomplete").exists(), name


def test_the_best_checkpoint_is_named_where_it_ends_up(new_model, rows, make_trainer, tmp_path):
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "save_total_limit": 1,
    }
    trainer = make_trainer(new_model(), rows, eval_dataset=rows[:6], **{**SETTINGS, **settings})
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path / "run"
    assert best.is_dir()
    saved = json.loads((best / "trainer_state.json").read_text())
    assert saved["best_model_checkpoint"] == str(best)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == [best.name]
    assert torch.equal(load_file(best / "model.safetensors")["head.value.weight"], trainer.reward_model.head.value.weight)


def test_a_full_disk_keeps_the_last_checkpoint(new_model, rows, make_trainer, tmp_path, monkeypatch):
    save = torch.save
    saves = []

    def full(what, where, *args, **kwargs):
        saves.append(where)
        # The second checkpoint's optimizer does not fit.
        save(what, "/dev/full" if len([path for path in saves if "optimizer" in str(path)]) == 2 else where, *args, **kwargs)

    if not Path("/dev/full").is_char_device():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(torch, "save", full)
    trainer = make_trainer(new_model(), rows, **SETTINGS)
    with pytest.raises(UserError, match=r"no space left on the disk of .*run: checkpoint-4 could not be written\. Free some, then go on"):
        trainer.train()
    assert sorted(path.name for path in (tmp_path / "run").glob("**/checkpoint-*")) == ["checkpoint-2"]


def test_another_models_checkpoint_is_refused(new_model, rows, make_trainer, tmp_path):
    make_trainer(new_model(), rows, **SETTINGS).train()
    other = make_trainer(new_model(pooling="mean"), rows, **SETTINGS)
    with pytest.raises(UserError, match=r"4 without a place in the model \(head.key.bias, .* Resume with the model settings"):
        other.train(resume_from_checkpoint=True)


def test_checkpoints_go_to_the_hub_from_where_they_end_up(new_model, rows, make_trainer, monkeypatch):
    from transformers import Trainer

    pushed = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self: None)
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: pushed.append((Path(folder).name, Path(folder).is_dir())))
    monkeypatch.setattr(Trainer, "_finish_current_push", lambda self: None)
    make_trainer(new_model(), rows, push_to_hub=True, max_steps=2, **SETTINGS).train()
    assert pushed == [("checkpoint-2", True)]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.fixture(scope="module")
def checkpoint(tiny_backbone_dir, pairs_file, tmp_path_factory):
    """What a run leaves after two of four steps."""
    from srm.data import encode_comparisons, read_comparisons
    from srm.modeling import SentenceRewardModel
    from srm.training import RewardConfig, SentenceRewardTrainer

    run = tmp_path_factory.mktemp("run")
    model = SentenceRewardModel.from_backbone(tiny_backbone_dir, attention_size=8)
    rows = encode_comparisons(read_comparisons(str(pairs_file)), model.encoder, max_length=200, progress=False)[0]
    config = RewardConfig(output_dir=str(run), use_cpu=True, disable_tqdm=True, save_steps=2, max_steps=2)
    SentenceRewardTrainer(model, config, rows).train()
    return run / "checkpoint-2"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors"])
@pytest.mark.parametrize("how", [Path.unlink, cut], ids=["gone", "cut"])
def test_a_checkpoint_that_is_not_whole_is_not_resumed(new_model, rows, make_trainer, checkpoint, tmp_path, name, how):
    """Trainer would go on with a new optimizer, schedule or random state, and say nothing."""
    copy = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint-2"))
    how(copy / name)
    trainer = make_trainer(new_model(), rows, max_steps=4)
    lacking = rf"holds (no {name}|the model only)|no checkpoint there|cannot be resumed \(|no model could be loaded"
    said = rf"^(--resume_from_checkpoint )?{re.escape(str(copy))}: ({lacking})"
    with pytest.raises(UserError, match=said) as error:
        trainer.train(resume_from_checkpoint=str(copy))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "deepseek_v3"])
def test_experts_are_resumed_bit_for_bit(tiny_tokenizer_dir, rows, make_trainer, tmp_path, kind):
    """Files hold them one by one, the model in one tensor. The best checkpoint is loaded at the end, too."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    from srm.modeling import SentenceRewardModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "num_experts_per_tok": 2, "vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": None}
    routed = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    latent = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    own = {"qwen3_moe": {"num_experts": 4, "head_dim": 8}, "mixtral": {"num_local_experts": 4}, "deepseek_v3": routed | latent}
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(kind, **sizes, **own[kind])).save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2, "eval_strategy": "steps", "eval_steps": 2}

    def trainer(name: str, **more):
        torch.manual_seed(0)
        model = SentenceRewardModel.from_backbone(tmp_path / "backbone", attention_size=8)
        return make_trainer(model, rows, eval_dataset=rows[:4], output_dir=str(tmp_path / name), **settings, **more)

    whole = trainer("whole", load_best_model_at_end=True, metric_for_best_model="eval_loss")
    whole.train()
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert "experts.1." in "".join(load_file(tmp_path / "whole" / "checkpoint-4" / "model.safetensors"))
    assert same_weights(tmp_path / "whole" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4")
    best = SentenceRewardModel.from_pretrained(whole.state.best_model_checkpoint).state_dict()
    assert all(torch.equal(weight, best[name]) for name, weight in whole.model.state_dict().items())


def test_adapters_do_not_resume_a_whole_model(new_model, make_trainer, rows, checkpoint, tmp_path):
    pytest.importorskip("peft")
    folder = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    trainer = make_trainer(add_adapters(new_model(), ModelArguments(use_peft=True)), rows, **SETTINGS)
    with pytest.raises(UserError, match=r"was written without --use_peft, and this run is with it\. Resume with the model settings"):
        trainer.train(resume_from_checkpoint=str(folder))
