"""verl 0.9.1's own reward loop: our manager and reward function in its Ray actors, our estimator in its trainer's arithmetic."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import ray
import torch
import verl
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.experimental.reward_loop import RewardLoopManager
from verl.trainer import main_ppo
from verl.trainer.ppo.core_algos import FixedKLController, kl_penalty
from verl.trainer.ppo.ray_trainer import apply_kl_penalty, compute_advantage
from verl.trainer.ppo.reward import load_reward_manager
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.dataset import RLHFDataset

from srm import SentenceRewardModel, UserError
from srm.rl import ToGo, group_advantages, token_level_rewards
from srm.rl.losses import reference_kl
from tests.example_scripts import arguments_of, load

PROMPTS = ["Why is bread salty?", "Where does the cat sit?"] * 2
RESPONSES = ["It needs salt. Flour alone is dull.", "No, it is wrong!", "", "Bread is white. It is old. Salt is dear!"]
HOME = "pkg://srm.integrations.verl"


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    # A cluster of its own, whatever else runs on this machine.
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def settings(folder: Path, *more: str) -> DictConfig:
    """verl's configuration, with what a user would type behind its command."""
    path = Path(verl.__file__).parent / "trainer" / "config"
    with initialize_config_dir(str(path), version_base=None):
        return compose("ppo_trainer", [f"actor_rollout_ref.model.path={folder}", "reward.num_workers=2", *more])


def as_manager(**kwargs: str) -> list[str]:
    named = ["reward.reward_manager.source=importlib", "reward.reward_manager.name=SentenceRewardManager"]
    named.append(f"reward.reward_manager.module.path={HOME}")
    return [*named, *(f"+reward.reward_kwargs.{name}={value}" for name, value in kwargs.items())]


def rollouts(model: SentenceRewardModel) -> DataProto:
    """What verl's rollouts hold: prompts padded on the left, responses on the right, each with an end token."""
    end = model.tokenizer.eos_token_id
    prompts = [model.encoder.encode_prompt(prompt) for prompt in PROMPTS]
    responses = [[*(model.encoder.encode_responses([text])[0].ids if text else ()), end] for text in RESPONSES]
    left, right = max(map(len, prompts)), max(map(len, responses)) + 2
    masks = [
        [0] * (left - len(prompt)) + [1] * (len(prompt) + len(response)) + [0] * (right - len(response))
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    tensors = {
        "prompts": torch.tensor([[end] * (left - len(row)) + list(row) for row in prompts]),
        "responses": torch.tensor([[*row, *[end] * (right - len(row))] for row in responses]),
        "attention_mask": torch.tensor(masks),
    }
    tensors["response_mask"] = tensors["attention_mask"][:, left:]
    objects = {
        "raw_prompt": np.array([[{"role": "user", "content": prompt}] for prompt in PROMPTS], dtype=object),
        "data_source": np.array(["any"] * 4, dtype=object),
        "reward_model": np.array([{"ground_truth": ""}] * 4, dtype=object),
        "extra_info": np.array([{"prompt": prompt} for prompt in PROMPTS], dtype=object),
        "uid": np.array(["b", "a", "b", "a"], dtype=object),
    }
    return DataProto.from_dict(tensors, objects)


def expected_tokens(model: SentenceRewardModel, data: DataProto) -> Any:
    left = data.batch["prompts"].shape[1]
    mask = data.batch["attention_mask"]
    return model.score_tokens(
        data.batch["prompts"], data.batch["responses"], prompt_mask=mask[:, :left], response_lengths=mask[:, left:].sum(1)
    )


def rewards_of_actors(config: DictConfig, data: DataProto) -> DataProto:
    loop = RewardLoopManager(config)
    try:
        return loop.compute_rm_score(data)
    finally:
        for worker in loop.reward_loop_workers:
            ray.kill(worker)


@pytest.mark.usefixtures("ray_session")
def test_dense_rewards_of_a_batch_from_real_actors(model: SentenceRewardModel, folder: Path, url: str) -> None:
    data = rollouts(model)
    answer = rewards_of_actors(settings(folder, *as_manager(url=url)), data)
    torch.testing.assert_close(answer.batch["rm_scores"], token_level_rewards(expected_tokens(model, data)), atol=1e-5, rtol=1e-5)
    assert answer.non_tensor_batch["num_sentences"].tolist() == [2, 1, 0, 3]


@pytest.mark.parametrize("kind", ["weighted", "sentence", "response"])
def test_one_sample_gets_one_number(model: SentenceRewardModel, folder: Path, url: str, kind: str) -> None:
    """As verl's agent loop asks while other samples are still being written."""
    data = rollouts(model)
    manager = load_reward_manager(settings(folder, *as_manager(url=url, kind=kind)), model.tokenizer)

    async def ask() -> list[dict[str, Any]]:
        return await asyncio.gather(*(manager.run_single(data[i : i + 1]) for i in range(4)))

    answers = asyncio.run(ask())
    dense = manager.assemble_rm_scores(data, [answer["reward_score"] for answer in answers])
    expected = token_level_rewards(expected_tokens(model, data), kind=kind)
    if kind == "response":
        # The one without text has it on its end token.
        expected[2, 0] = expected_tokens(model, data).reward[2]
    torch.testing.assert_close(dense, expected, atol=1e-5, rtol=1e-5)
    for answer, reward in zip(answers, expected_tokens(model, data).reward.tolist(), strict=True):
        output = AgentLoopOutput(prompt_ids=[1], response_ids=[1, 2], response_mask=[1, 1], metrics=AgentLoopMetrics())
        output.reward_score = answer["reward_score"]
        assert output.as_dict()["rm_scores"].tolist() == pytest.approx([0.0, reward], abs=1e-5)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("where", ["url", "model"])
def test_compute_score_in_real_actors(model: SentenceRewardModel, folder: Path, url: str, where: str) -> None:
    """64 samples at once, an empty one in every four."""
    data = DataProto.concat([rollouts(model)] * 16)
    value = url if where == "url" else folder
    flags = [f"reward.custom_reward_function.path={HOME}", f"+reward.custom_reward_function.reward_kwargs.{where}={value}"]
    got = rewards_of_actors(settings(folder, *flags), data).batch["rm_scores"].sum(1)
    torch.testing.assert_close(got, expected_tokens(model, data).reward, atol=1e-5, rtol=1e-5)


def test_dense_rewards_reach_the_advantages(model: SentenceRewardModel, folder: Path) -> None:
    data = rollouts(model)
    scored = expected_tokens(model, data)
    dense = token_level_rewards(scored)
    config = settings(folder).algorithm
    for name in ("old_log_probs", "ref_log_prob", "values"):
        data.batch[name] = 0.1 * torch.randn(dense.shape, generator=torch.Generator().manual_seed(len(name)))
    data.batch["token_level_scores"] = dense
    mask = data.batch["response_mask"].bool()
    penalty = (data.batch["old_log_probs"] - data.batch["ref_log_prob"]) * mask
    data, _ = apply_kl_penalty(data, FixedKLController(0.5))
    torch.testing.assert_close(data.batch["token_level_rewards"], dense - 0.5 * penalty)
    # With a discount of 0 an advantage is the token's reward less its value, so what each sentence earned is still there.
    gae = compute_advantage(data, "gae", gamma=0.0, lam=1.0, config=config)
    earned = (gae.batch["returns"])[mask]
    torch.testing.assert_close(earned, data.batch["token_level_rewards"][mask], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "to_go"), [("srm", "sum"), ("srm_min", "min"), ("srm_own", "own")])
def test_the_estimator_compares_sentences(model: SentenceRewardModel, folder: Path, name: str, to_go: ToGo) -> None:
    # Registers it, as the reward manager's path does in verl's own processes.
    import srm.integrations.verl  # noqa: F401

    data = rollouts(model)
    scored = expected_tokens(model, data)
    data.batch["token_level_rewards"] = token_level_rewards(scored)
    config = settings(folder, f"algorithm.adv_estimator={name}").algorithm
    got = compute_advantage(data, config.adv_estimator, config=config).batch["advantages"]
    group = torch.tensor([0, 1, 0, 1])
    expected = group_advantages(scored, group, to_go=to_go, mask=data.batch["response_mask"])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert got[3].unique().numel() > 2
    config.use_kl_in_reward = True
    with pytest.raises(UserError, match=rf"adv_estimator={name} needs algorithm\.use_kl_in_reward=False"):
        compute_advantage(data, config.adv_estimator, config=config)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_its_price_of_kl_is_what_the_docs_say(estimator: Literal["k2", "k3"]) -> None:
    """docs/rl.md sends people to verl's k2 for the penalty in the loss."""
    logprobs, reference = -torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    ours = reference_kl(logprobs, reference, torch.ones(3, 5, dtype=torch.bool), estimator)
    torch.testing.assert_close(kl_penalty(logprobs, reference, estimator).sum(), ours)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "give `url` of a running srm-serve, or `model`, one of the two; got url=None, model=None"),
        ({"url": "http://a", "model": "b"}, "one of the two"),
        ({"url": "http://a", "kind": "mean"}, "`kind` must be one of weighted, sentence, response, got 'mean'"),
        ({"url": "http://a", "batch": "2"}, "unknown setting batch. Choose from url, token, model, kind"),
    ],
)
def test_wrong_settings(model: SentenceRewardModel, folder: Path, kwargs: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_reward_manager(settings(folder, *as_manager(**kwargs)), model.tokenizer)


def test_the_example_is_a_command_of_verl(
    model: SentenceRewardModel, folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """examples/verl_ppo.sh: verl reads its settings and its prompts, and scores with the server that it names."""
    for split in ("train", "test"):
        rows = [load("prompts").row_of(prompt) for prompt in PROMPTS]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    chosen = {"REWARD_URL": url, "POLICY": str(folder), "PROMPTS": str(tmp_path)}
    module, name, *arguments = arguments_of("verl_ppo.sh", tmp_path, "trainer.n_gpus_per_node=4", "--cfg", "job", **chosen)
    assert [module, name] == ["-m", "verl.trainer.main_ppo"]
    monkeypatch.setattr(sys, "argv", ["main_ppo.py", *arguments])
    capsys.readouterr()
    main_ppo.main()
    config = OmegaConf.create(capsys.readouterr().out)
    assert config.trainer.n_gpus_per_node == 4
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    data = rollouts(model)[:1]
    row = RLHFDataset(config.data.train_files, model.tokenizer, config.data)[0]
    assert row["extra_info"]["prompt"] == row["raw_prompt"]
    data.non_tensor_batch["raw_prompt"] = np.array([row["raw_prompt"]], dtype=object)
    answer = asyncio.run(load_reward_manager(config, model.tokenizer).run_single(data))
    assert answer["reward_score"] == pytest.approx(expected_tokens(model, data).reward.item(), abs=1e-5)
