"""Pairs of unusual shape, from text to gradients: every packing mode gives what each response gives when it runs alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from srm.data import PairCollator, encode_comparisons
from srm.data.schema import Comparison, Prompt
from srm.modeling import SentenceRewardModel
from srm.packing import PromptGroup, ResponseIds, pack
from srm.training.losses import reward_loss

LONG = "Bread needs flour, water, salt and time. Is it warm? It is."
TURNS: Prompt = [
    {"role": "system", "content": "Answer shortly."},
    {"role": "user", "content": "Is bread warm?"},
    {"role": "assistant", "content": "It was. Not now."},
    {"role": "user", "content": "Why?"},
]
# Name: prompt, chosen, rejected.
SHAPES: dict[str, tuple[Prompt, str, str]] = {
    "prompt longer than responses": (LONG * 2, "Yes. It is.", "No."),
    "responses longer than prompt": ("Why?", LONG * 2, f"No. {LONG} No."),
    "several turns": (TURNS, "It cooled. So it goes.", "Wrong!"),
    "one token each": ("y or n?", "y", "n"),
    "empty prompt": ("", "The cat sat. It was warm.", "No."),
    "empty prompt, one token each": ("", "y", "n"),
}
# With the second template nothing but the text is written, so an empty prompt has no token of its own.
TEMPLATES = {"chat": None, "bare": "{% for m in messages %}{{ m['content'] }}{% endfor %}"}


def gradients(model: SentenceRewardModel, loss: Tensor, *, retain_graph: bool = False) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward(retain_graph=retain_graph)
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("names", [*([name] for name in SHAPES), list(SHAPES)], ids=lambda names: names[0] if len(names) == 1 else "all")
def test_every_mode_is_one_response_at_a_time(new_model: Callable[..., SentenceRewardModel], names: list[str], template: str) -> None:
    model: Any = new_model(awake=True).double()
    model.tokenizer.chat_template = TEMPLATES[template] or model.tokenizer.chat_template
    comparisons = [
        Comparison(prompt=prompt, responses=(chosen, rejected), pairs=((0, 1, None),), id=name, where=name)
        for name, (prompt, chosen, rejected) in ((name, SHAPES[name]) for name in names)
    ]
    rows, report = encode_comparisons(comparisons, model.encoder, max_length=256, progress=False)
    assert report.kept == len(names)
    for name, row in zip(names, rows, strict=True):
        if "one token" in name:
            assert [len(response.ids) for response in row.responses] == [1, 1]
        if "longer" in name:
            prompt_is_longer = {len(row.prompt_ids) > len(response.ids) for response in row.responses}
            assert prompt_is_longer == {name.startswith("prompt")}
        if "empty" in name and template == "bare":
            assert row.prompt_ids.tolist() == [model.tokenizer.bos_token_id]

    alone = []
    for row in rows:
        for response in row.responses:
            ids = ResponseIds(ids=response.ids.tolist(), sentence_ends=response.sentence_ends.tolist())
            alone.append(model(pack([PromptGroup(prompt_ids=row.prompt_ids.tolist(), responses=[ids])], mode="none", pad_token_id=0)))
    reward = torch.cat([output.reward for output in alone])
    # The backbone's norms compute in fp32 whatever the dtype. A pair shares its prompt, where the gradients of its two sides nearly cancel
    # and their rounding does not: that is as large as one side's says.
    size = max(float(gradient.abs().max()) for gradient in gradients(model, reward[0::2].mean(), retain_graph=True).values())
    expected = gradients(model, -torch.nn.functional.logsigmoid(reward[0::2] - reward[1::2]).mean())
    assert expected

    for mode in ("shared", "packed", "none"):
        inputs = PairCollator(packing=mode, pad_token_id=0)(rows)
        output = model(inputs["batch"])
        torch.testing.assert_close(output.reward, reward, atol=1e-6, rtol=0)
        torch.testing.assert_close(output.sentence_reward, torch.cat([x.sentence_reward for x in alone]), atol=1e-6, rtol=0)
        actual = gradients(model, reward_loss(output, inputs["batch"].cu_boundaries, inputs["pairs"]).objective)
        assert actual.keys() == expected.keys()
        errors = {name: float((actual[name] - gradient).abs().max()) for name, gradient in expected.items()}
        assert max(errors.values()) < 1e-5 * size, (mode, errors)


def test_scores_of_the_same_shapes_agree(new_model: Callable[..., SentenceRewardModel]) -> None:
    model = new_model(awake=True)
    # `score` refuses an empty prompt, as files do.
    shapes = [shape for shape in SHAPES.values() if shape[0]]
    prompts = [prompt for prompt, _, _ in shapes]
    groups = [[chosen, rejected] for _, chosen, rejected in shapes]
    expected = [[model.score([prompt], [text])[0].reward for text in group] for prompt, group in zip(prompts, groups, strict=True)]
    for mode in ("shared", "packed", "none"):
        scored = model.score(prompts, groups, packing=mode)
        assert [[response.reward for response in group] for group in scored] == [pytest.approx(group, abs=1e-5) for group in expected]
