"""verl's reward manager and custom reward function, on the shapes verl documents."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from srm import SentenceRewardModel, UserError
from srm.integrations.verl import SentenceRewardManager, compute_score, register

PROMPTS = ["Why is bread salty?", "Where does the cat sit?"]
RESPONSES = ["It needs salt. Flour alone is dull.", "No, it is wrong!"]


@pytest.fixture
def data(model: SentenceRewardModel) -> SimpleNamespace:
    """What `DataProto` holds: prompts padded on the left, responses on the right, with an end token."""
    pad = model.tokenizer.pad_token_id  # type: ignore[union-attr]
    prompts = [model.encoder.encode_prompt(prompt) for prompt in PROMPTS]
    responses = [[*encoded.ids, pad] for encoded in model.encoder.encode_responses(RESPONSES)]
    left, right = max(map(len, prompts)), max(map(len, responses)) + 2
    return SimpleNamespace(
        batch={
            "prompts": torch.tensor([[pad] * (left - len(row)) + row for row in prompts]),
            "responses": torch.tensor([row + [pad] * (right - len(row)) for row in responses]),
            "attention_mask": torch.tensor(
                [
                    [0] * (left - len(prompt)) + [1] * (len(prompt) + len(response)) + [0] * (right - len(response))
                    for prompt, response in zip(prompts, responses, strict=True)
                ]
            ),
        },
        non_tensor_batch={"raw_prompt": np.array([[{"role": "user", "content": prompt}] for prompt in PROMPTS], dtype=object)},
    )


@pytest.mark.parametrize("kind", ["weighted", "sentence", "response"])
def test_dense_rewards(model: SentenceRewardModel, data: SimpleNamespace, kind: str) -> None:
    manager = SentenceRewardManager(model.tokenizer, 1, None, "data_source", model=model, kind=kind)
    rewards = manager(data)
    assert isinstance(rewards, torch.Tensor)
    assert rewards.shape == data.batch["responses"].shape
    assert rewards.dtype == torch.float32
    for row, scored in zip(rewards, model.score(PROMPTS, RESPONSES), strict=True):
        paid = {
            "weighted": [s.weighted_reward for s in scored.sentences],
            "sentence": [s.reward for s in scored.sentences],
            "response": [scored.reward],
        }[kind]
        assert row[row != 0].tolist() == pytest.approx(paid, abs=1e-5)
    both = manager(data, return_dict=True)
    assert torch.equal(both["reward_tensor"], rewards)
    assert both["reward_extra_info"]["num_sentences"] == [2, 1]


def test_a_response_ends_where_the_mask_does(model: SentenceRewardModel, data: SimpleNamespace) -> None:
    """Not at the first end token: a response that was cut has none, and what pads it may be anything."""
    responses, mask = data.batch["responses"], data.batch["attention_mask"]
    expected = SentenceRewardManager(model.tokenizer, model=model)(data)
    no_end = next(token for token in range(10, 300) if token not in model.tokenizer.all_special_ids)  # type: ignore[union-attr]
    width = data.batch["prompts"].shape[1]
    ends = mask[:, width:].sum(1) - 1
    # The end token itself and all behind it are text to whoever does not look at the mask.
    mask[torch.arange(2), width + ends] = 0
    responses[mask[:, width:] == 0] = no_end
    torch.testing.assert_close(SentenceRewardManager(model.tokenizer, model=model)(data), expected, atol=1e-5, rtol=1e-5)


def test_compute_score(model: SentenceRewardModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    expected = model.score(PROMPTS[:1], RESPONSES[:1])[0].reward
    info = {"prompt": PROMPTS[0]}
    assert compute_score("any", RESPONSES[0], None, info, model=model) == pytest.approx(expected, abs=1e-5)
    assert compute_score("any", RESPONSES[0], None, extra_info=info, model=str(tmp_path)) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match="must hold the prompt"):
        compute_score("any", RESPONSES[0], None, model=model)


def test_register(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, object] = {}
    package = ModuleType("verl.workers.reward_manager")
    package.register = lambda name: lambda cls: known.setdefault(name, cls)  # type: ignore[attr-defined]  # verl's decorator
    for name, module in (("verl", ModuleType("verl")), ("verl.workers", ModuleType("verl.workers")), (package.__name__, package)):
        monkeypatch.setitem(sys.modules, name, module)
    register("sentences")
    assert known == {"sentences": SentenceRewardManager}
