"""srm-train from its flags to the saved model, and the line that each bad input gets."""

from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from srm.cli.train import main
from srm.modeling import SentenceRewardModel

GOOD = ("The cat sat on the mat.", "It was warm there.", "Bread needs flour, water, salt and time.", "The bread is warm.", "It is warm.")


def row(index: int) -> dict[str, Any]:
    sentences = [GOOD[(index + step) % len(GOOD)] for step in range(1 + index % 4)]
    spoiled = [*sentences[: index % 2], "No, it is wrong!", *sentences[index % 2 :]]
    return {"prompt": "Is this right?" + " Really?" * (index % 3), "chosen": " ".join(sentences), "rejected": " ".join(spoiled)}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(entry if isinstance(entry, str) else json.dumps(entry) + "\n" for entry in rows))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", [row(index) for index in range(21)])


@pytest.fixture
def flags(tiny_backbone_dir: Path, pairs: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """flags(*more, **instead): the flags of a run of a few seconds; keyword arguments replace or add some."""

    def make(*more: str, **instead: Any) -> list[str]:
        usual = {
            "model_name_or_path": tiny_backbone_dir,
            "dataset_name": pairs,
            "output_dir": tmp_path / "out",
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "attention_size": 8,
            "logging_steps": 1,
            "disable_tqdm": "true",
            "use_cpu": "true",
        }
        return [word for name, value in {**usual, **instead}.items() for word in (f"--{name}", str(value))] + list(more)

    return make


def losses(output: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((output / "trainer_state.json").read_text())["log_history"] if "loss" in entry]


def test_from_pairs_to_a_model_that_scores(flags, pairs, tmp_path, capsys):
    assert main(flags(num_train_epochs=2, eval_dataset_name=pairs, max_eval_pairs=8)) == 0
    out = capsys.readouterr().out
    assert "training data: 21 pairs; 21 rows, the longest" in out
    assert "evaluation data: 8 pairs" in out
    # No list of what a CPU cannot run.
    assert "attention: sdpa in float32 on cpu: one scaled_dot_product_attention call per segment (passed over 5 others: it runs" in out
    assert "flash" not in out
    assert f"model saved to {tmp_path / 'out'}" in out
    assert "eval_accuracy" in out.splitlines()[-2]
    model = SentenceRewardModel.from_pretrained(tmp_path / "out")
    assert model.score(["Is this right?"], ["It is warm. No, it is wrong!"])[0].reward != 0
    assert not (tmp_path / "out" / ".incomplete").exists()


def test_a_line_a_step_and_the_dict_for_who_debugs(flags, pairs, tmp_path, capsys):
    run = ["--eval_strategy", "steps", "--eval_steps", "2"]
    assert main(flags(*run, eval_dataset_name=pairs, max_steps=2)) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("step ")]
    assert lines[0].startswith("step 1/2  loss 0.693  acc 0.500  margin  0.000  lr 1.0e-03  ")
    assert re.fullmatch(r"step 2/2  loss 0\.\d{3}  acc \d\.\d{3}  margin [ -]\d\.\d{3}  evaluation", lines[2])
    assert len(lines) == 4
    assert "'loss'" not in out
    assert main(flags("--log_level", "debug", max_steps=1, output_dir=tmp_path / "debug")) == 0
    out = capsys.readouterr().out
    assert "step 1/1  loss 0.693" in out
    assert "'mean_value_loss': '0.6931'" in out


def test_the_saved_settings_repeat_the_run(flags, tmp_path):
    assert main(flags("--gradient_checkpointing", rope_theta="none", max_steps=3)) == 0
    settings = tmp_path / "out" / "srm_train.yaml"
    assert yaml.safe_load(settings.read_text())["rope_theta"] is None
    assert main(["--config", str(settings), "--output_dir", str(tmp_path / "again")]) == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_flags_win_over_the_file(flags, tmp_path):
    config = tmp_path / "train.yaml"
    config.write_text("max_steps: 5\npooling: last\n")
    assert main(flags("--config", str(config), max_steps=1)) == 0
    assert len(losses(tmp_path / "out")) == 1
    assert SentenceRewardModel.from_pretrained(tmp_path / "out").config.pooling == "last"


def test_a_trained_model_is_trained_further(flags, tmp_path, capsys):
    assert main(flags(max_steps=2, pooling="sum")) == 0
    assert main(flags(model_name_or_path=tmp_path / "out", output_dir=tmp_path / "more", max_steps=2)) == 0
    assert SentenceRewardModel.from_pretrained(tmp_path / "more").config.pooling == "sum"
    # Went on where the first one stopped, not at zero rewards.
    assert losses(tmp_path / "more")[0] != pytest.approx(math.log(2), abs=1e-5)
    assert main(flags(model_name_or_path=tmp_path / "out", output_dir=tmp_path / "other", pooling="mean")) == 1
    assert "is a reward model trained with pooling='sum', and --pooling asks for 'mean'" in capsys.readouterr().err


def test_lora_from_the_command_line(flags, tmp_path, capsys):
    pytest.importorskip("peft")
    assert main(flags("--use_peft", max_steps=3, lora_r=4)) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    model = SentenceRewardModel.from_pretrained(tmp_path / "out")
    assert model.head.value.weight.abs().sum() > 0
    # An adapter is a trained model, too.
    assert main(flags("--use_peft", model_name_or_path=tmp_path / "out", output_dir=tmp_path / "more", max_steps=1)) == 0


@pytest.mark.parametrize("packing", ["packed", "none"])
def test_other_packings_give_the_same_loss(flags, tmp_path, packing, capsys):
    assert main(flags(max_steps=4)) == 0
    assert main(flags(max_steps=4, packing=packing, output_dir=tmp_path / packing)) == 0
    assert f"packing {packing}:" in capsys.readouterr().out
    assert losses(tmp_path / packing) == pytest.approx(losses(tmp_path / "out"), rel=1e-4)


def test_early_stopping(flags, pairs, tmp_path):
    more = "--eval_strategy steps --eval_steps 1 --save_steps 1 --load_best_model_at_end --metric_for_best_model eval_accuracy"
    more += " --early_stopping_patience 2"
    # Learning rates of zero never get better.
    still = dict.fromkeys(("learning_rate", "head_learning_rate", "attention_learning_rate"), 0.0)
    assert main(flags(*more.split(), eval_dataset_name=pairs, num_train_epochs=3, **still)) == 0
    assert len(losses(tmp_path / "out")) == 3


def test_resume_and_overwrite(flags, tmp_path, capsys):
    assert main(flags(max_steps=4, save_steps=2)) == 0
    finished = load_file(tmp_path / "out" / "model.safetensors")
    assert main(flags(max_steps=4, save_steps=2)) == 1
    assert "holds a run up to checkpoint-4. Go on with --resume_from_checkpoint true" in capsys.readouterr().err
    assert main(flags(max_steps=4, save_steps=2, resume_from_checkpoint=tmp_path / "out" / "checkpoint-2")) == 0
    assert "resuming from" in capsys.readouterr().out
    resumed = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(finished[name], resumed[name]) for name in finished)
    assert main(flags("--overwrite_output_dir", max_steps=1, save_strategy="no")) == 0
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    assert main(flags("--resume_from_checkpoint", max_steps=1, output_dir=tmp_path / "new")) == 0
    assert "yet: starting at step 0" in capsys.readouterr().out


def test_a_resume_says_what_has_changed(flags, pairs, tmp_path, capsys):
    assert main(flags(max_steps=2, save_steps=2)) == 0
    assert main(flags("--resume_from_checkpoint", max_steps=4, save_steps=2, learning_rate=2e-3, logging_steps=2)) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not as when this run began: ")]
    assert [note.split(": ")[1] for note in notes] == ["learning_rate was 0.001, is 0.002", "max_steps was 2, is 4"]
    write(pairs, [row(index) for index in range(1, 22)])
    assert main(flags("--resume_from_checkpoint", max_steps=4, save_steps=2, learning_rate=2e-3)) == 0
    assert re.search(r"the training rows were 21 of [\d,]+ tokens, are 21 of [\d,]+ tokens, and not the same", capsys.readouterr().out)


def test_a_refused_resume_leaves_the_record_alone(flags, pairs, tmp_path, capsys):
    assert main(flags(max_steps=2, save_steps=2)) == 0
    kept = {name: (tmp_path / "out" / name).read_text() for name in ("srm_train.yaml", "srm_train_rows.json")}
    write(pairs, [row(index) for index in range(1, 22)])
    assert main(flags("--resume_from_checkpoint", max_steps=4, pooling="mean")) == 1
    assert "Resume with the model settings of the run" in capsys.readouterr().err
    assert {name: (tmp_path / "out" / name).read_text() for name in kept} == kept
    # So the next one still says what is not as it was, and the card names both.
    assert main(flags("--resume_from_checkpoint", max_steps=3)) == 0
    assert "the training rows were" in capsys.readouterr().out
    assert "| before a resume | pairs.jsonl (21 rows) |" in (tmp_path / "out" / "README.md").read_text()
    assert main(flags("--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-3"), max_steps=4)) == 0
    assert "| before a resume | pairs.jsonl (21 rows) |" in (tmp_path / "out" / "README.md").read_text()


def test_a_resume_with_nothing_left_to_do(flags, tmp_path, capsys):
    """21 rows, four a step: behind the fourth step the epoch has two more, which Trainer would take."""
    assert main(flags(max_steps=4, save_steps=4)) == 0
    finished = load_file(tmp_path / "out" / "model.safetensors")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| steps | 4 |" in card
    capsys.readouterr()
    assert main(flags("--resume_from_checkpoint", max_steps=4, learning_rate=2e-3)) == 0
    out = capsys.readouterr().out
    assert "nothing is left to do: 4 of 4 steps are done. Raise --max_steps or --num_train_epochs to go on." in out
    assert "train_loss" not in out
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert (state["global_step"], [log["train_loss"] for log in state["log_history"][-1:] if "train_loss" in log]) == (4, [])
    resumed = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(finished[name], resumed[name]) for name in finished)
    # No step was taken at the new rate.
    assert (tmp_path / "out" / "README.md").read_text() == card
    assert main(flags("--resume_from_checkpoint", max_steps=1)) == 1
    assert "checkpoint-4: 4 steps are done, and --max_steps or --num_train_epochs ask for 1. Raise them" in capsys.readouterr().err
    assert (tmp_path / "out" / "README.md").read_text() == card


BAD_ROWS = {
    "malformed JSON": ('{"prompt": "a", "chosen": \n', ["line 3"]),
    "missing column": ({"prompt": "a", "chosen": "b"}, ["line 3", "rejected"]),
    "empty response": ({"prompt": "a", "chosen": "", "rejected": "b"}, ["line 3", "chosen"]),
    "identical pair": ({"prompt": "a", "chosen": "b", "rejected": "b"}, ["line 3"]),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_named_or_skipped(flags, tmp_path, name, capsys, caplog):
    bad, words = BAD_ROWS[name]
    data = write(tmp_path / "bad.jsonl", [row(0), row(1), bad, row(2), row(3)])
    assert main(flags(dataset_name=data)) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("srm-train: ")
    assert all(word in line for word in ["bad.jsonl", *words, "--skip_bad_rows"])
    assert not (tmp_path / "out").exists(), "a run that never began leaves nothing behind"
    assert main(flags("--skip_bad_rows", dataset_name=data, max_steps=1)) == 0
    assert "training data: 4 pairs" in capsys.readouterr().out
    assert "dropped 1 of 5 rows" in caplog.text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dataset_name": "/nowhere/pairs.jsonl"}, ["/nowhere/pairs.jsonl"]),
        ({"model_name_or_path": "/nowhere/model"}, ["/nowhere/model"]),
        ({"overlong": "error", "max_length": 20}, ["pairs.jsonl line", "20"]),
        ({"max_length": 4}, ["max_length"]),
        ({"learning_rate": 1e30}, ["the loss became", "at step", "Lower --learning_rate"]),
        ({"granularity": "token", "pooling": "mean"}, ["granularity='token'", "pooling"]),
        ({"eval_strategy": "epoch"}, ["--eval_strategy epoch needs pairs to evaluate on", "Add --eval_dataset_name"]),
        ({"lerning_rate": 1}, ["did you mean --learning_rate?"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_gets_one_line(flags, more, words, capsys):
    assert main(flags(**more)) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("srm-train: ")
    assert all(word in line for word in words), line


def test_nan_keeps_the_last_good_checkpoint(flags, tmp_path, capsys, monkeypatch):
    from srm.training import SentenceRewardTrainer

    step = SentenceRewardTrainer.training_step

    def poisoned(self, model, inputs, *args):
        if self.state.global_step == 4:
            with torch.no_grad():
                self.reward_model.head.value.weight.fill_(math.nan)
        return step(self, model, inputs, *args)

    monkeypatch.setattr(SentenceRewardTrainer, "training_step", poisoned)
    assert main(flags(save_steps=2)) == 1
    assert "srm-train: the loss became nan at step 5" in capsys.readouterr().err
    monkeypatch.undo()
    # Still there, still good, and the run goes on from it.
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert main(flags("--resume_from_checkpoint", save_steps=2)) == 0


@pytest.mark.slow
def test_two_processes_are_one(flags, pairs, fork, tmp_path):
    """21 rows, four a step: the last step has one row, so the second process runs a filler. Slots of two rows run in several passes."""
    common = {"num_train_epochs": 2, "eval_dataset_name": pairs, "per_device_eval_batch_size": 4}
    assert main(flags(**common)) == 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "CUDA_VISIBLE_DEVICES": ""}
    argv = flags(**common, per_device_train_batch_size=2, tokens_per_batch=150, output_dir=tmp_path / "two")
    # As a launcher starts them.
    ranks = [fork("srm.cli.train", *argv, output=tmp_path / str(rank), RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in range(2)]
    for rank, process in enumerate(ranks):
        process.join(300)
        assert process.exitcode == 0, (tmp_path / f"{rank}.err").read_text()[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "out"), rel=1e-5)
    states = [json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"] for name in ("out", "two")]
    names = ("accuracy", "margin", "chosen_reward_std", "sentences_per_response", "attention_entropy")
    for one, two in zip(*states, strict=True):
        assert one.keys() == two.keys()
        for name in {*names, "eval_loss", *(f"eval_{name}" for name in names)} & one.keys():
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "two"))
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-3, atol=1e-5)


def test_a_lone_process_is_pointed_out(flags, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert main(flags(max_steps=1)) == 0
    assert "has started one process only" in capsys.readouterr().err


def test_help_names_our_flags(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert all(
        f"--{name}" in out
        for name in ("granularity", "head_learning_rate", "overlong", "packing", "center_rewards_coefficient", "use_peft")
    )
    assert "--num_processes 2" in out
    assert "The guide is docs/training.md." in " ".join(out.split())


def test_edited_records_are_one_line(flags, tmp_path, capsys):
    assert main(flags(max_steps=2, save_steps=1)) == 0
    for name, texts in {
        "srm_train_rows.json": ("{", "[]", "{}", '{"rows": "x", "tokens": 1}', "\x00", "[" * 3000),
        "srm_train.yaml": ("[", "- 1", "a: *b"),
    }.items():
        record = tmp_path / "out" / name
        whole = record.read_text()
        for text in texts:
            record.write_text(text)
            capsys.readouterr()
            assert main(flags("--resume_from_checkpoint", "true", max_steps=3)) == 1
            err = capsys.readouterr().err.splitlines()[-1]
            assert err.startswith(f"srm-train: {record}")
        record.write_text(whole)


def test_services_that_are_not_there_are_one_line(flags, capsys):
    assert main(flags(report_to="wandb", max_steps=1)) == 1
    assert "WandbCallback requires wandb" in capsys.readouterr().err.splitlines()[-1]


def test_from_a_reward_model_s_score(flags, tiny_backbone_dir, tmp_path, capsys):
    """One name gives backbone and score, and the settings that are written repeat it."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    source = tmp_path / "classifier"
    LlamaForSequenceClassification(AutoConfig.from_pretrained(tiny_backbone_dir, num_labels=1)).save_pretrained(source)
    AutoTokenizer.from_pretrained(tiny_backbone_dir).save_pretrained(source)
    named = flags(init_value_from=source, max_steps=1, learning_rate=1e-5)
    at = named.index("--model_name_or_path")
    assert main(named[:at] + named[at + 2 :]) == 0
    trained, score = (load_file(path / "model.safetensors") for path in (tmp_path / "out", source))
    # One small step away from where it started, and not at zero.
    assert (trained["head.value.weight"] - score["score.weight"]).abs().max() < 1e-3 < score["score.weight"].abs().max()
    assert losses(tmp_path / "out")[0] != pytest.approx(math.log(2), abs=1e-5)
    settings = yaml.safe_load((tmp_path / "out" / "srm_train.yaml").read_text())
    assert settings["init_value_from"] == settings["model_name_or_path"] == str(source)
    capsys.readouterr()
    assert main(flags(init_value_from=tiny_backbone_dir, output_dir=tmp_path / "other")) == 1
    assert "is no sequence classifier (LlamaModel), so it has no score to start from" in capsys.readouterr().err


def test_what_is_read_of_a_folder_is_said(flags, pairs, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_bytes(pairs.read_bytes())
    assert main(flags(dataset_name=folder, max_steps=1, max_pairs=4, eval_strategy="epoch", max_eval_pairs=4)) == 0
    out = capsys.readouterr().out
    for split in ("train", "test"):
        assert f"reading split {split} of {folder} (it has test, train): {split}.jsonl\n" in out
