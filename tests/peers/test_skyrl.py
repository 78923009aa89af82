"""SkyRL 0.3.0's own generator and trainer: rewards of sentences, from its rollouts to its advantages."""

from __future__ import annotations

import asyncio
import json
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typing_extensions

if sys.version_info < (3, 12):
    # SkyRL puts `typing.TypedDict` into pydantic's models, and pydantic takes none but this one on older Pythons.
    typing.TypedDict = typing_extensions.TypedDict

from skyrl.backends.skyrl_train.training_batch import TrainingInputBatch
from skyrl.backends.skyrl_train.utils.ppo_utils import compute_approx_kl
from skyrl.train.config import SkyRLTrainConfig
from skyrl.train.dataset import PromptDataset
from skyrl.train.dataset.preprocess import convert_prompts_responses_to_batch_tensors
from skyrl.train.generators.utils import prepare_generator_input
from skyrl.train.trainer import RayPPOTrainer
from skyrl.train.utils import validate_cfg

from srm import SentenceRewardModel, UserError
from srm.rl import group_advantages, token_level_rewards
from srm.rl.losses import reference_kl
from srm.scoring.token_ids import ScoredTokens
from tests.example_scripts import load
from tests.servers import in_thread

PROMPTS = ["Why is bread salty?", "Where does the cat sit?"]
RESPONSES = ["It needs salt. Flour alone is dull.", "No, it is wrong!", "", "Bread is white. It is old. Salt is dear!"]


class Written:
    """In vLLM's place: what the policy writes. Everything that happens with it is SkyRL's."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    async def generate(self, batch: dict[str, Any], model: str | None = None) -> dict[str, Any]:
        # The first two responses answer the first prompt.
        prompt, repetition = batch["session_ids"][0].split("_")
        text = RESPONSES[2 * int(prompt) + int(repetition)]
        ids = [*self._tokenizer(text, add_special_tokens=False)["input_ids"], self._tokenizer.eos_token_id]
        return {"responses": [text], "response_ids": [ids], "stop_reasons": ["stop"], "response_logprobs": [[-1.0] * len(ids)]}

    async def finish_session(self, session_id: str) -> None:
        pass


@pytest.fixture(scope="module")
def url(model: SentenceRewardModel) -> Iterator[str]:
    with in_thread(model) as address:
        yield address


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("skyrl_grpo")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": [{"role": "user", "content": text}]}) + "\n" for text in PROMPTS), encoding="utf-8")
    return path


def settings(example: ModuleType, prompts: Path, *more: str) -> SkyRLTrainConfig:
    """What the example makes of a command line: two prompts a step, two responses each."""
    small = ["trainer.train_batch_size=2", "trainer.policy_mini_batch_size=2", "generator.n_samples_per_prompt=2"]
    small += ["trainer.enable_ray_gpu_monitor=false", "generator.inference_engine.enable_ray_prometheus_stats=false"]
    small += ["data.dataloader.num_workers=0", f"data.train_data=['{prompts}']", *more]
    cfg = example.Config.from_cli_overrides([*example.DEFAULTS, *small])
    validate_cfg(cfg)
    return cfg


def rolled_out(example: ModuleType, cfg: SkyRLTrainConfig, model: SentenceRewardModel) -> tuple[RayPPOTrainer, TrainingInputBatch]:
    """A step of SkyRL's trainer as far as its advantages: rollouts, rewards, tensors. Only the policy is not there."""
    tokenizer = model.tokenizer
    engine = Written(tokenizer)
    dataset = PromptDataset(cfg.data.train_data, tokenizer, cfg.trainer.max_prompt_length, num_workers=1)
    generator = example.Experiment.get_generator(None, cfg, tokenizer, engine)
    given = {"tokenizer": tokenizer, "train_dataset": dataset, "inference_engine_client": engine, "generator": generator}
    trainer = RayPPOTrainer(cfg, None, **given)
    batch = dataset.collate_fn([dataset[0], dataset[1]])
    asked, uids = prepare_generator_input(batch, 2, None, cfg.environment.env_class, "train", 1)
    output, uids = trainer.postprocess_generator_output(asyncio.run(trainer.generate(asked)), uids)
    names = ("sequences", "attention_mask", "response_mask", "rewards", "loss_mask", "rollout_logprobs")
    columns = [output[name] for name in ("prompt_token_ids", "response_ids", "rewards", "loss_masks", "rollout_logprobs")]
    data = TrainingInputBatch(dict(zip(names, convert_prompts_responses_to_batch_tensors(tokenizer, *columns)[:6], strict=True)))
    data["values"] = None
    data.metadata = {"uids": uids, "avg_response_length": 0.0}
    return trainer, data


def expected(model: SentenceRewardModel) -> tuple[ScoredTokens, torch.Tensor]:
    """`score_tokens` of the same rollouts, and the policy's tokens, padded on the right."""
    end = model.tokenizer.eos_token_id
    responses = [[*(model.encoder.encode_responses([text])[0].ids.tolist() if text else ()), end] for text in RESPONSES]
    scored = model.score_tokens([model.encoder.encode_prompt(prompt) for prompt in PROMPTS for _ in range(2)], responses)
    return scored, torch.arange(scored.width) < torch.tensor([[len(row)] for row in responses])


@pytest.mark.parametrize("kind", ["weighted", "sentence"])
def test_each_sentence_of_a_rollout_is_paid(model: SentenceRewardModel, url: str, example: ModuleType, prompts: Path, kind: str) -> None:
    trainer, data = rolled_out(example, settings(example, prompts, f"srm.url={url}", f"srm.kind={kind}"), model)
    scored, mask = expected(model)
    dense = token_level_rewards(scored, kind=kind)
    # SkyRL pads responses on the left.
    for row, inside, ours, own in zip(data["rewards"], data["response_mask"], dense, mask, strict=True):
        torch.testing.assert_close(row[inside.bool()], ours[own], atol=1e-5, rtol=1e-5)
    assert [int((row != 0).sum()) for row in data["rewards"]] == [2, 1, 0, 3]
    assert trainer.all_metrics["reward/avg_raw_reward"] == pytest.approx(dense.sum(1).mean().item(), abs=1e-5)


def test_one_reward_a_response(model: SentenceRewardModel, url: str, example: ModuleType, prompts: Path) -> None:
    """Empty answers have theirs, too."""
    _, data = rolled_out(example, settings(example, prompts, f"srm.url={url}", "srm.kind=response"), model)
    torch.testing.assert_close(data["rewards"].sum(1), expected(model)[0].reward, atol=1e-5, rtol=1e-5)


def test_its_advantages_keep_the_sentences(model: SentenceRewardModel, url: str, example: ModuleType, prompts: Path) -> None:
    """Our estimator compares sentences, and REINFORCE++ and GAE get them whole."""
    trainer, data = rolled_out(example, settings(example, prompts, f"srm.url={url}", "trainer.algorithm.advantage_estimator=srm"), model)
    scored, mask = expected(model)
    inside, rewards = data["response_mask"].bool(), data["rewards"].clone()
    got = trainer.compute_advantages_and_returns(data)["advantages"]
    ours = group_advantages(scored, torch.tensor([0, 0, 1, 1]), mask=mask)
    # The one response without text knows nothing of its prompt's part here; the others must agree.
    for row in (0, 1):
        torch.testing.assert_close(got[row][inside[row]], ours[row][mask[row]], atol=1e-5, rtol=1e-4)
    assert got[3].unique().numel() > 2
    for to_go in ("min", "own"):
        trainer.cfg.trainer.algorithm.advantage_estimator = f"srm_{to_go}"
        data["rewards"] = rewards.clone()
        got = trainer.compute_advantages_and_returns(data)["advantages"]
        ours = group_advantages(scored, torch.tensor([0, 0, 1, 1]), to_go=to_go, mask=mask)
        for row in (0, 1):
            torch.testing.assert_close(got[row][inside[row]], ours[row][mask[row]], atol=1e-5, rtol=1e-4)

    trainer.cfg.trainer.algorithm.advantage_estimator = "reinforce++"
    trainer.cfg.trainer.algorithm.gamma = 0.0
    data["rewards"] = rewards
    torch.testing.assert_close(trainer.compute_advantages_and_returns(data)["returns"], rewards)
    trainer.cfg.trainer.algorithm.advantage_estimator = "gae"
    data["values"] = 0.1 * torch.randn(rewards.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(trainer.compute_advantages_and_returns(data)["returns"][inside], rewards[inside])


def test_its_price_of_kl_is_what_the_docs_say() -> None:
    """docs/rl.md sends people to SkyRL's k2 for the penalty in the loss."""
    logprobs, reference = -torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    ours = reference_kl(logprobs, reference, torch.ones(3, 5, dtype=torch.bool), "k2")
    torch.testing.assert_close(compute_approx_kl(logprobs, reference, kl_estimator_type="k2").sum(), ours)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give `url` of a running srm-serve, or `model`, one of the two"),
        (["srm.url=http://a", "srm.kind=mean"], "`kind` must be one of weighted, sentence, response, got 'mean'"),
        (["srm.url=http://a", "generator.batched=true"], r"Set generator\.batched=False"),
        (["srm.url=http://a", "generator.max_turns=3", "generator.max_input_length=512"], r"Set generator\.max_turns=1"),
    ],
)
def test_wrong_settings(model: SentenceRewardModel, example: ModuleType, prompts: Path, flags: list[str], message: str) -> None:
    cfg = settings(example, prompts, *flags)
    with pytest.raises(UserError, match=message):
        example.Experiment.get_generator(None, cfg, model.tokenizer, None)


def test_a_penalty_on_every_token_is_refused(model: SentenceRewardModel, url: str, example: ModuleType, prompts: Path) -> None:
    flags = ["trainer.algorithm.advantage_estimator=srm", "trainer.algorithm.use_kl_in_reward=true", "trainer.algorithm.use_kl_loss=false"]
    trainer, data = rolled_out(example, settings(example, prompts, f"srm.url={url}", *flags), model)
    with pytest.raises(UserError, match=r"needs trainer\.algorithm\.use_kl_in_reward=false"):
        trainer.compute_advantages_and_returns(data)
