"""What slime's rollout manager asks of us, on samples as it keeps them; tests/peers/test_slime.py runs it inside slime."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from srm import SentenceRewardModel, UserError
from srm.integrations.slime import group_rewards, reward
from srm.rl import group_advantages
from tests.servers import in_thread

PROMPTS = ["Why is bread salty?", "Where does the cat sit?"]
RESPONSES = ["It needs salt. Flour alone is dull.", "Is it right? No!", "No, it is wrong!", "Bread is white. It is old. Salt is dear!"]


@pytest.mark.parametrize("scale", [True, False])
def test_sentences_of_a_rollout_are_compared(awake_model: Callable[[], SentenceRewardModel], tiny_backbone_dir: Path, scale: bool) -> None:
    """The two prompts' answers lie alternately."""
    model = awake_model()
    prompts = [model.encoder.encode_prompt(prompt) for prompt in PROMPTS] * 2
    responses = [[*ids, model.tokenizer.eos_token_id] for ids in model.tokenizer(RESPONSES, add_special_tokens=False)["input_ids"]]
    samples = [
        SimpleNamespace(metadata={"prompt": PROMPTS[number % 2]}, tokens=[*prompt, *ids], response_length=len(ids), group_index=number % 2)
        for number, (prompt, ids) in enumerate(zip(prompts, responses, strict=True))
    ]

    async def score(args: Namespace) -> None:
        for sample, answer in zip(samples, await asyncio.gather(*(reward(args, sample) for sample in samples)), strict=True):
            sample.reward = answer

    with in_thread(model) as url:
        args = Namespace(hf_checkpoint=str(tiny_backbone_dir), rm_url=url, grpo_std_normalization=scale)
        asyncio.run(score(args))
    raw, advantages = group_rewards(args, samples)
    scored = model.score_tokens(prompts, responses)
    assert raw == pytest.approx(scored.reward.tolist(), abs=1e-5)
    mask = torch.arange(scored.width) < torch.tensor([[len(ids)] for ids in responses])
    expected = group_advantages(scored, torch.tensor([0, 1, 0, 1]), scale=scale, mask=mask)
    for got, ours, own in zip(advantages, expected, mask, strict=True):
        torch.testing.assert_close(got, ours[own], atol=1e-5, rtol=1e-4)
    # What the file of --custom-config-path sets.
    args.srm_to_go = "min"
    least = group_advantages(scored, torch.tensor([0, 1, 0, 1]), scale=scale, to_go="min", mask=mask)
    for got, ours, own in zip(group_rewards(args, samples)[1], least, mask, strict=True):
        torch.testing.assert_close(got, ours[own], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(least, expected, atol=1e-3)
    args.srm_to_go = "max"
    with pytest.raises(UserError, match="srm_to_go in the file of --custom-config-path must be one of sum, min, own, got 'max'"):
        group_rewards(args, samples)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="give each row of the data a `metadata` with its `prompt`"):
        asyncio.run(reward(Namespace(), SimpleNamespace(metadata=None)))
    with pytest.raises(UserError, match=r"needs --custom-rm-path srm\.integrations\.slime\.reward, and --reward-key reward"):
        group_rewards(Namespace(), [SimpleNamespace(reward=0.5)])
