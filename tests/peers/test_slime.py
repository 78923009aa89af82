"""slime's own code, from a checkout of it: from its prompts over its rewards to its advantages.

It has no wheel: `SLIME=CHECKOUT scripts/test_peers.sh slime` runs this, on commit 624b824a898ab0ec1fcb4d373004c7f3852bf515 (0.3.1).
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

sys.path.append(os.environ["SLIME"])

from megatron.core import mpu
from slime.backends.megatron_utils.loss import compute_advantages_and_returns
from slime.ray.rollout import RolloutManager
from slime.rollout.rm_hub import async_rm
from slime.utils.arguments import get_slime_extra_args_provider
from slime.utils.data import Dataset, process_rollout_data
from slime.utils.types import Sample

from srm import SentenceRewardModel, UserError
from srm.rl import group_advantages
from tests.example_scripts import arguments_of, load
from tests.servers import in_thread

PROMPTS = ["Why is bread salty?", "Where does the cat sit?"]
RESPONSES = ["It needs salt. Flour alone is dull.", "No, it is wrong!", "Bread is white. It is old. Salt is dear!", "Is it right? No!"]


@pytest.fixture(scope="module")
def url(model: SentenceRewardModel) -> Iterator[str]:
    with in_thread(model) as address:
        yield address


@pytest.fixture(scope="module")
def megatron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Megatron's groups, of one process."""
    where = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{where}", rank=0, world_size=1)
    mpu.initialize_model_parallel()
    yield
    mpu.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def settings(folder: Path, url: str, tmp_path: Path, *typed: str) -> argparse.Namespace:
    """What slime's own parser makes of examples/slime.sh."""
    rows = [load("prompts").row_of(prompt) for prompt in PROMPTS]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    chosen = {"REWARD_URL": url, "POLICY": str(folder), "PROMPTS": str(tmp_path)}
    small = ["--rollout-batch-size", "2", "--n-samples-per-prompt", "2", "--global-batch-size", "4"]
    script, *arguments = arguments_of("slime.sh", tmp_path, *small, *typed, **chosen)
    assert script == "train.py"
    parser = get_slime_extra_args_provider()(argparse.ArgumentParser())
    return parser.parse_known_args(arguments)[0]


def rollout(args: argparse.Namespace, model: SentenceRewardModel) -> list[Sample]:
    """What slime's rollout leaves, scored by slime: two responses to each prompt of its data set, each with its end token."""
    tokenizer = model.tokenizer
    dataset = Dataset(
        args.prompt_data,
        tokenizer,
        None,
        None,
        prompt_key=args.input_key,
        metadata_key=args.metadata_key,
        apply_chat_template=args.apply_chat_template,
    )
    samples = []
    for number, response in enumerate(RESPONSES):
        sample = copy.deepcopy(dataset[number // 2])
        sample.index, sample.group_index = number, number // 2
        sample.tokens = tokenizer.encode(sample.prompt, add_special_tokens=False)
        ids = [*tokenizer.encode(response, add_special_tokens=False), tokenizer.eos_token_id]
        sample.append_response_tokens(args, tokens=ids, log_probs=[-1.0] * len(ids), text=response + tokenizer.eos_token)
        samples.append(sample)

    async def score() -> None:
        for sample, reward in zip(samples, await asyncio.gather(*(async_rm(args, sample) for sample in samples)), strict=True):
            sample.reward = reward

    asyncio.run(score())
    return samples


def train_data(args: argparse.Namespace, samples: list[Sample]) -> dict[str, Any]:
    """What slime's rollout manager hands to the only process that trains."""
    manager = object.__new__(RolloutManager.__ray_metadata__.modified_class)
    manager.args = args
    manager.custom_convert_samples_to_train_data_func = None
    manager.custom_reward_post_process_func = sys.modules["slime.utils.misc"].load_function(args.custom_reward_post_process_path)
    manager.set_train_parallel_config({"dp_size": 1, "cp_size": 1, "vpp_size": 1, "microbatch_group_size_per_vp_stage": 1})
    refs = manager._split_train_data_by_dp(manager._convert_samples_to_train_data(samples))
    return process_rollout_data(args, refs, 0, 1)


def test_its_remote_reward_model_is_our_server(model: SentenceRewardModel, folder: Path, url: str, tmp_path: Path) -> None:
    args = settings(folder, url, tmp_path, "--rm-type", "remote_rm", "--rm-url", f"{url}/remote_rm")
    args.custom_rm_path = None
    expected = [scored.reward for scored in model.score([prompt for prompt in PROMPTS for _ in range(2)], RESPONSES)]
    assert [sample.reward for sample in rollout(args, model)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.usefixtures("megatron")
def test_sentences_keep_their_advantages(model: SentenceRewardModel, folder: Path, url: str, tmp_path: Path) -> None:
    args = settings(folder, url, tmp_path)
    samples = rollout(args, model)
    responses = [sample.tokens[-sample.response_length :] for sample in samples]
    scored = model.score_tokens([model.encoder.encode_prompt(prompt) for prompt in PROMPTS for _ in range(2)], responses)
    assert [sample.get_reward_value(args) for sample in samples] == pytest.approx(scored.reward.tolist(), abs=1e-5)
    mask = torch.arange(scored.width) < torch.tensor([[len(row)] for row in responses])
    expected = group_advantages(scored, torch.tensor([0, 0, 1, 1]), mask=mask)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        data = train_data(args, samples)
    finally:
        ray.shutdown()
    assert data["raw_reward"] == pytest.approx(scored.reward.tolist(), abs=1e-5)
    args.normalize_advantages = False
    data["log_probs"] = [torch.zeros(len(row)) for row in responses]
    compute_advantages_and_returns(args, data)
    for got, ours, own in zip(data["advantages"], expected, mask, strict=True):
        torch.testing.assert_close(got, ours[own], atol=1e-5, rtol=1e-4)
    args.kl_coef = 0.1
    data["ref_log_probs"] = data["log_probs"]
    with pytest.raises(UserError, match="Use --use-kl-loss"):
        compute_advantages_and_returns(args, data)


def test_wrong_samples(model: SentenceRewardModel, folder: Path, url: str, tmp_path: Path) -> None:
    args = settings(folder, url, tmp_path)
    with pytest.raises(UserError, match="give each row of the data a `metadata` with its `prompt`"):
        asyncio.run(async_rm(args, Sample(prompt="Why?")))
    manager = SimpleNamespace(
        args=args, custom_reward_post_process_func=sys.modules["slime.utils.misc"].load_function(args.custom_reward_post_process_path)
    )
    with pytest.raises(UserError, match=r"needs --custom-rm-path srm\.integrations\.slime\.reward"):
        RolloutManager.__ray_metadata__.modified_class._post_process_rewards(manager, [Sample(reward=0.5)])
