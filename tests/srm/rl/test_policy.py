"""Log-probabilities, entropies and value against one response at a time; where a response ends; what sampling follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from srm.packing import PackingMode
from srm.rl.policy import Policy, generate, mark

END, OTHER_END = 2, 0


@pytest.mark.parametrize("packing", ["shared", "packed", "none"])
def test_statistics_are_those_of_each_response_alone(load_policy: Callable[[], Any], packing: PackingMode) -> None:
    policy = Policy(load_policy(), value_head=True, packing=packing)
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    prompts = [[5, 6, 7, 8, 9], [10, 11], [12], [10, 11]]
    texts = [[20, 21, END, END], [22, 23, 24, 25], [END, END, END, END], [22, 26, 27, END]]
    width = 5
    ids = torch.tensor([[END] * (width - len(prompt)) + prompt + text for prompt, text in zip(prompts, texts, strict=True)])
    prompt_mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    responses = mark(ids, prompt_mask, [END])
    temperature = 0.7
    stats = policy(responses, temperature)
    model = load_policy()
    for row, (prompt, text, length) in enumerate(zip(prompts, texts, (3, 4, 1, 4), strict=True)):
        alone = torch.tensor([prompt + text[:length]])
        output = model(alone, output_hidden_states=True)
        log_p = (output.logits[0] / temperature).log_softmax(-1)
        for at in range(length):
            before = len(prompt) + at - 1
            torch.testing.assert_close(stats.logprobs[row, at], log_p[before, text[at]], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(stats.entropy[row, at], -(log_p[before].exp() * log_p[before]).sum(), atol=1e-5, rtol=1e-5)
            value = policy.value_head(output.hidden_states[-1][0, before])[0]
            torch.testing.assert_close(stats.value[row, at], value, atol=1e-5, rtol=1e-5)
        assert not any(part[row, length:].any() for part in stats)
    assert stats.logprobs.requires_grad
    assert not stats.entropy.requires_grad


def test_without_a_head_values_are_zero(load_policy: Callable[[], Any]) -> None:
    stats = Policy(load_policy())(mark(torch.tensor([[3, 4, 5]]), torch.ones(1, 1, dtype=torch.int64), [END]), 1.0)
    assert stats.value.tolist() == [[0, 0]]


def test_a_response_ends_with_its_first_end_token() -> None:
    ids = torch.tensor([[9, 3, 4, END, END], [9, 3, END, 4, 5], [9, 3, 4, 5, 6], [9, OTHER_END, 3, END, 1], [9, 3, 4, 5, END]])
    got = mark(ids, torch.ones(5, 1, dtype=torch.int64), [OTHER_END, END])
    assert got.mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert got.text_lengths.tolist() == [2, 1, 4, 0, 3]
    assert got.attention_mask[:, 0].tolist() == [1] * 5
    assert got.attention_mask[:, 1:].bool().equal(got.mask)
    assert got.response_ids.equal(ids[:, 1:])


def test_sampling_does_not_follow_the_models_own_settings(load_policy: Callable[[], Any]) -> None:
    def write(model: Any) -> torch.Tensor:
        torch.manual_seed(3)
        settings: dict[str, Any] = {"num_generations": 3, "max_completion_length": 6, "temperature": 1.0, "end_ids": [END], "pad_id": END}
        return generate(model, [[5, 6, 7], [8]], **settings).ids

    model = load_policy()
    plain = write(model)
    assert plain.shape[0] == 6
    # Those of a prompt stand together, behind the prompt as it was given.
    assert plain[:3, :3].tolist() == [[5, 6, 7]] * 3
    assert plain[3:, :3].tolist() == [[END, END, 8]] * 3
    model.generation_config.repetition_penalty = 100.0
    model.generation_config.suppress_tokens = plain[:, 3:].unique().tolist()
    own = model.generation_config
    assert write(model).equal(plain)
    assert model.generation_config is own
