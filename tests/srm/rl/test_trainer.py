"""The loop: it learns, counts tokens and not passes, and goes on after an interruption as if there had been none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from srm.errors import UserError
from srm.packing.backbone import restore
from srm.rl.arguments import RLConfig
from srm.rl.card import policy_card
from srm.rl.rollout import Rollout
from srm.rl.trainer import RLTrainer

NewConfig = Callable[..., RLConfig]
NewTrainer = Callable[..., RLTrainer]


def logs(folder: str | Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    # Time is the one thing that is not the same twice.
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize(
    ("algorithm", "reward"), [("reinforce", "sentence"), ("reinforce", "response"), ("ppo", "sentence"), ("grpo", "sentence")]
)
def test_the_reward_rises_at_bounded_kl(new_config: NewConfig, new_trainer: NewTrainer, algorithm: str, reward: str) -> None:
    config = new_config(algorithm=algorithm, reward=reward, max_steps=35, save_steps=1000, kl_coef=0.01, learning_rate=1e-2)
    new_trainer(config).train()
    steps = logs(config.output_dir)
    assert [step["step"] for step in steps] == list(range(1, 36))
    assert steps[-1]["episodes"] == 35 * 16
    first, last = (sum(step["reward"] for step in part) / 5 for part in (steps[:5], steps[-5:]))
    assert first < 0.65
    assert last > 0.85
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-4)
    # Half of the vocabulary in each of eight tokens takes 8 log 2.
    assert 3 < steps[-1]["kl"] < 40


@pytest.mark.parametrize("algorithm", ["reinforce", "grpo"])
def test_a_price_on_kl_keeps_the_policy_near(new_config: NewConfig, new_trainer: NewTrainer, algorithm: str, tmp_path: Path) -> None:
    found = []
    for kl_coef in (0.0, 2.0):
        config = new_config(algorithm=algorithm, max_steps=15, save_steps=1000, kl_coef=kl_coef, output_dir=str(tmp_path / str(kl_coef)))
        new_trainer(config).train()
        found.append(sum(step["kl"] for step in logs(config.output_dir)[-3:]))
    assert found[1] < 0.5 * found[0]


def test_the_policy_has_a_card_whose_lines_run(
    new_config: NewConfig, new_trainer: NewTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = new_config(max_steps=1, output_dir=str(tmp_path / "policy"), reward_model_path="me/reward", dataset_name=str(tmp_path))
    new_trainer(config).train()
    card = (tmp_path / "policy" / "README.md").read_text()
    assert "| reward model | me/reward |" in card
    assert "| credit | sum to go, on the last token |" in card
    assert str(tmp_path) not in card
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    exec(card.split("```python\n")[1].split("```")[0])
    assert capsys.readouterr().out.startswith("Where is Paris?")


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        (
            {"to_go": "min", "whitening": "position"},
            ["| credit | min to go, on the last token, whitening position |", "| price of KL | 0.1, k1 in the reward |"],
        ),
        ({"algorithm": "grpo", "to_go": "own"}, ["| credit | own to go |", "| price of KL | 0.1, k2 in the loss |"]),
        ({"reward": "response"}, ["| reward | response |"]),
    ],
)
def test_the_card_says_how_credit_was_given(new_config: NewConfig, settings: dict[str, Any], rows: list[str]) -> None:
    card = policy_card(new_config(**settings))
    assert all(row in card for row in rows)
    assert ("| credit |" in card) == ("reward" not in settings)


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo", "grpo"])
def test_resumed_is_as_uninterrupted(new_config: NewConfig, new_trainer: NewTrainer, algorithm: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    class Killed(Exception):
        pass

    def kill_at_step_4(log: dict[str, float]) -> None:
        if log["step"] == 4:
            raise Killed

    settings: dict[str, Any] = {"algorithm": algorithm, "max_steps": 5, "save_steps": 2, "lr_scheduler_type": "linear", "warmup_steps": 2}
    whole = new_config(**settings, output_dir=str(tmp_path / "whole"))
    new_trainer(whole).train()
    broken = new_config(**settings, output_dir=str(tmp_path / "broken"))
    with pytest.raises(Killed):
        new_trainer(broken, on_step=kill_at_step_4).train()
    # Killed behind the checkpoint, in the middle of a line.
    with (tmp_path / "broken" / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')
    assert len(logs_until_broken(tmp_path / "broken")) == 4
    checkpoint = tmp_path / "broken" / "checkpoint-2"
    new_trainer(broken, policy=AutoModelForCausalLM.from_pretrained(checkpoint)).train(str(checkpoint))
    assert logs(broken.output_dir) == logs(whole.output_dir)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(run.output_dir).state_dict() for run in (broken, whole))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert not (tmp_path / "broken" / ".incomplete").exists()
    # Of the checkpoints, two stay.
    assert sorted(path.name for path in (tmp_path / "whole").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


def logs_until_broken(folder: Path) -> list[str]:
    return [line for line in (folder / "log.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]


def resume(new_trainer: NewTrainer, config: RLConfig, step: int) -> RLTrainer:
    from transformers import AutoModelForCausalLM

    checkpoint = Path(config.output_dir) / f"checkpoint-{step}"
    trainer = new_trainer(config, policy=AutoModelForCausalLM.from_pretrained(checkpoint))
    trainer.train(str(checkpoint))
    return trainer


def test_a_resumed_run_has_the_learning_rates_it_is_given(new_config: NewConfig, new_trainer: NewTrainer) -> None:
    settings: dict[str, Any] = {"algorithm": "ppo", "lr_scheduler_type": "linear"}
    new_trainer(new_config(**settings, max_steps=2, learning_rate=1e-3)).train()
    other = new_config(**settings, max_steps=4, learning_rate=1e-4, head_learning_rate=5e-4)
    trainer = resume(new_trainer, other, 2)
    # Half of the four steps are done, not all of the two that the run began with.
    assert [step["learning_rate"] for step in logs(other.output_dir)] == pytest.approx([1e-3, 5e-4, 5e-5, 2.5e-5])
    assert trainer.scheduler.base_lrs == [1e-4, 5e-4]
    assert [group["initial_lr"] for group in trainer.optimizer.param_groups] == [1e-4, 5e-4]


def test_a_resumed_run_steps_as_far_as_its_rate_says(new_config: NewConfig, new_trainer: NewTrainer) -> None:
    """In the weights, not only in the log."""
    from transformers import AutoModelForCausalLM

    new_trainer(new_config(max_steps=1)).train()
    resume(new_trainer, new_config(max_steps=2, learning_rate=1e-12), 1)
    before, after = (
        AutoModelForCausalLM.from_pretrained(Path(new_config().output_dir) / f"checkpoint-{step}").state_dict() for step in (1, 2)
    )
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-9


def test_fewer_steps_than_are_done_are_refused(new_config: NewConfig, new_trainer: NewTrainer) -> None:
    new_trainer(new_config(max_steps=3)).train()
    before = logs(new_config().output_dir)
    with pytest.raises(UserError, match=r"checkpoint-3: 3 steps are done, and --max_steps asks for 1\. Raise it"):
        resume(new_trainer, new_config(max_steps=1), 3)
    assert logs(new_config().output_dir) == before


def test_the_number_of_steps_matters_where_the_rate_depends_on_it(new_config: NewConfig, new_trainer: NewTrainer) -> None:
    new_trainer(new_config(max_steps=1, lr_scheduler_type="cosine")).train()
    folder = new_trainer(new_config(max_steps=2, lr_scheduler_type="cosine")).folder
    assert list(folder.changes(str(folder.path / "checkpoint-1"))) == ["max_steps was 1, is 2"]


def test_a_checkpoint_of_the_other_algorithm_is_refused(new_config: NewConfig, new_trainer: NewTrainer, tmp_path: Path) -> None:
    first = new_config(max_steps=1, save_steps=1)
    new_trainer(first).train()
    other = new_config(algorithm="ppo", max_steps=2)
    with pytest.raises(UserError, match="written by the other --algorithm"):
        new_trainer(other).train(str(Path(first.output_dir) / "checkpoint-1"))


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo", "grpo"])
def test_the_size_of_a_pass_does_not_matter(new_config: NewConfig, new_trainer: NewTrainer, tmp_path: Path, algorithm: str) -> None:
    found = []
    for size, passes in ((8, 1), (2, 4)):
        config = new_config(
            algorithm=algorithm,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=passes,
            max_steps=2,
            output_dir=str(tmp_path / str(size)),
        )
        new_trainer(config).train()
        found.append(logs(config.output_dir))
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo", "grpo"])
def test_a_pass_holds_whole_groups(new_config: NewConfig, new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch, algorithm: str) -> None:
    config = new_config(algorithm=algorithm, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    trainer = new_trainer(config)
    rollout, _ = trainer._collect(1)
    passes, loss = [], trainer._loss

    def note(batch: Rollout) -> dict[str, Tensor]:
        passes.append(batch.responses.ids.tolist())
        return loss(batch)

    monkeypatch.setattr(trainer, "_loss", note)
    trainer._update(rollout, 1)
    groups = rollout.responses.ids.unflatten(0, (-1, config.num_generations)).tolist()
    assert all(sorted(part) in [sorted(group) for group in groups] for part in passes)
    epochs = [passes[start : start + len(groups)] for start in range(0, len(passes), len(groups))]
    assert all(sorted(row for part in epoch for row in part) == sorted(rollout.responses.ids.tolist()) for epoch in epochs)
    # Each in an order of its own, groups and rows.
    assert algorithm == "reinforce" or (len(epochs) == 2 and epochs[0] != epochs[1])


def test_reinforce_takes_the_gradient_of_the_mean_over_tokens(new_config: NewConfig, new_trainer: NewTrainer) -> None:
    trainer = new_trainer(new_config(max_grad_norm=1e9))
    torch.manual_seed(0)
    rollout, _ = trainer._collect(1)
    responses = rollout.responses
    names = [name for name, _ in trainer.inner.model.named_parameters()]
    restore(trainer.inner.model)
    log_p = trainer.inner.model(responses.ids, attention_mask=responses.attention_mask).logits.log_softmax(-1)
    taken = log_p[:, -responses.mask.shape[1] - 1 : -1].gather(-1, responses.response_ids[..., None])[..., 0]
    loss = -(rollout.advantages * taken * responses.mask).sum() / responses.mask.sum()
    gradients = torch.autograd.grad(loss, list(trainer.inner.model.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    log = trainer._update(rollout, 1)
    assert log["loss"] == pytest.approx(loss.item(), abs=1e-4)
    assert log["grad_norm"] == pytest.approx(norm.item(), rel=1e-2)
    assert len(names) == len(gradients)


def test_the_deviation_of_rewards_is_that_of_all_processes(
    new_config: NewConfig, new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer(new_config())
    gathered = []

    def gather(rewards: Tensor) -> Tensor:
        gathered.append(torch.cat([rewards, rewards + 3]))
        return gathered[-1]

    monkeypatch.setattr(trainer.accelerator, "gather", gather)
    _, log = trainer._collect(1)
    assert log["reward_std"] == pytest.approx(float(gathered[0].std()))


def test_every_prompt_comes_once_an_epoch(new_config: NewConfig, new_trainer: NewTrainer) -> None:
    trainer = new_trainer(new_config())
    drawn = [index for step in range(1, 6) for index in trainer._draw(step)]
    assert len(drawn) == 20
    epochs = [drawn[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert list(trainer._draw(3)) == drawn[8:12]


def test_a_gradient_that_is_no_number_stops_the_run(
    new_config: NewConfig, new_trainer: NewTrainer, load_policy: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srm.rl.trainer.reinforce_loss", lambda logprobs, *_: (logprobs * torch.nan).sum())
    config = new_config(save_steps=1)
    with pytest.raises(UserError, match=r"gradient's norm became nan at step 1\. Lower --learning_rate"):
        new_trainer(config).train()
    assert not list(Path(config.output_dir).glob("checkpoint-*"))


@pytest.mark.parametrize("how", ["gone", "cut"])
@pytest.mark.parametrize("name", ["training.pt", "rng_state_0.pth", "trainer_state.json"])
def test_a_checkpoint_that_is_not_whole_is_not_resumed(
    new_config: NewConfig, new_trainer: NewTrainer, tmp_path: Path, name: str, how: str
) -> None:
    config = new_config(max_steps=1)
    new_trainer(config).train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    whole = (checkpoint / name).read_bytes()
    (checkpoint / name).unlink()
    if how == "cut":
        (checkpoint / name).write_bytes(whole[: len(whole) // 2])
    trainer = new_trainer(config)
    # Whoever calls `train` is told of some of these before.
    trainer.own()
    with pytest.raises(UserError, match=f"holds no {name}, so the run" if how == "gone" else r"cannot be resumed \("):
        trainer.train(str(checkpoint))


def policy_in(folder: str | Path) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()


def test_a_policy_is_not_trained_over(new_config: NewConfig, new_trainer: NewTrainer) -> None:
    """From Python, too: in the words of srm-rl, and before anything is written."""
    config = new_config(max_steps=1)
    trainer = new_trainer(config)
    trainer.train()
    before = policy_in(config.output_dir), logs(config.output_dir)
    with pytest.raises(UserError, match=r"holds a run up to checkpoint-1\. Go on with --resume_from_checkpoint true, start anew with"):
        new_trainer(config).train()
    assert (policy_in(config.output_dir), logs(config.output_dir)) == before
    # Its own folder stays its own.
    trainer.train()
    fresh = new_config(max_steps=2, save_steps=2, overwrite_output_dir=True)
    new_trainer(fresh).train()
    assert [path.name for path in Path(fresh.output_dir).glob("checkpoint-*")] == ["checkpoint-2"]
    assert policy_in(config.output_dir) != before[0]


def test_a_folder_of_something_else_is_left_alone(new_config: NewConfig, new_trainer: NewTrainer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"--output_dir .*out is not empty\."):
        new_trainer(new_config()).train()
    (out / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds config\.json, and no settings of a run that wrote it"):
        new_trainer(new_config(overwrite_output_dir=True)).train()
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "notes.txt"]


def test_the_checkpoint_to_go_on_from_is_not_deleted(new_config: NewConfig, new_trainer: NewTrainer) -> None:
    first = new_config(max_steps=1)
    new_trainer(first).train()
    checkpoint = Path(first.output_dir) / "checkpoint-1"
    with pytest.raises(UserError, match="Drop one of them"):
        new_trainer(new_config(max_steps=2, overwrite_output_dir=True)).train(str(checkpoint))
    assert checkpoint.is_dir()
