from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

import srm
from srm import SentenceRewardModel, UserError
from srm.packing import PromptGroup, ResponseIds, pack

GROUPS = [
    PromptGroup(
        prompt_ids=[5, 6, 7, 8],
        responses=[ResponseIds(ids=[9, 10, 11, 12], sentence_ends=[1, 3]), ResponseIds(ids=[20, 21], sentence_ends=[1])],
    ),
    PromptGroup(prompt_ids=[30, 31], responses=[ResponseIds(ids=[32, 33, 34], sentence_ends=[0, 2])]),
]


def batch(mode: str = "shared"):
    return pack(GROUPS, mode=mode, pad_token_id=0)


def rotated(x: torch.Tensor, index: int, theta: float) -> torch.Tensor:
    """`x` [A] as A / 2 complex numbers, each turned by its angle."""
    angle = index * theta ** (-torch.arange(0, len(x), 2) / len(x))
    return torch.view_as_complex(x.reshape(-1, 2)) * torch.polar(torch.ones_like(angle), angle)


def reward_by_hand(model: SentenceRewardModel, rows: torch.Tensor) -> float:
    """The formulas of docs/method.md on the hidden states [n + 1, D] at the boundaries."""
    head, last = model.head, len(rows) - 1
    value, key, query = head.value(rows)[:, 0], head.key(rows), head.query(rows[-1:])[0]
    q = rotated(query, last, head.rope_theta)
    scores = torch.stack([(q * rotated(k, i, head.rope_theta).conj()).real.sum() for i, k in enumerate(key)]) / len(query) ** 0.5
    pooled = {"value_attention": value, "attention": torch.cat([value[:1], value.diff()])}[head.pooling]
    return (scores.softmax(0) * pooled).sum().item()


def by_hand(model: SentenceRewardModel) -> list[float]:
    """Each response run by itself through the plain backbone."""
    backbone = AutoModel.from_pretrained(model.name_or_path)
    rewards = []
    for group in GROUPS:
        for response in group.responses:
            hidden = backbone(input_ids=torch.tensor([[*group.prompt_ids, *response.ids]])).last_hidden_state[0]
            boundaries = [len(group.prompt_ids) - 1, *(len(group.prompt_ids) + end for end in response.sentence_ends)]
            rewards.append(reward_by_hand(model, hidden[boundaries]))
    return rewards


@pytest.mark.parametrize("mode", ["shared", "packed", "none"])
@pytest.mark.parametrize("pooling", ["value_attention", "attention"])
def test_forward_is_the_formula(model: SentenceRewardModel, mode: str, pooling: str) -> None:
    model.head.pooling = pooling
    output = model(batch(mode))
    torch.testing.assert_close(output.reward.tolist(), by_hand(model), atol=1e-5, rtol=1e-4)
    weighted = output.weight * output.sentence_reward
    torch.testing.assert_close(torch.stack([part.sum() for part in weighted.split([3, 2, 3])]), output.reward)


def test_starts_at_zero(tiny_backbone_dir: Path) -> None:
    output = SentenceRewardModel.from_backbone(tiny_backbone_dir)(batch())
    assert output.reward.abs().max() == 0
    # Uniform attention over three values: the prompt's counts in all of it, the last sentence's reward in a third.
    torch.testing.assert_close(output.weight[:3], torch.tensor([1, 2 / 3, 1 / 3]), atol=1e-3, rtol=0)


def test_from_backbone_keeps_the_pretrained_weights(tiny_backbone_dir: Path) -> None:
    plain = AutoModel.from_pretrained(tiny_backbone_dir)
    model = SentenceRewardModel.from_backbone(tiny_backbone_dir)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(model.backbone.get_parameter(name), parameter, atol=0, rtol=0)


def test_save_and_load(model: SentenceRewardModel, tmp_path: Path) -> None:
    expected = model(batch())
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    for loaded in (SentenceRewardModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert isinstance(loaded, SentenceRewardModel)
        assert not loaded.training
        assert loaded.tokenizer.chat_template == model.tokenizer.chat_template
        torch.testing.assert_close(loaded(batch()).sentence_reward, expected.sentence_reward, atol=0, rtol=0)


def test_head_stays_in_float32_when_the_backbone_does_not(model: SentenceRewardModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = SentenceRewardModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.backbone.dtype == torch.bfloat16
    assert loaded.head.value.weight.dtype == torch.float32
    torch.testing.assert_close(loaded.head.value.weight, model.head.value.weight, atol=0, rtol=0)
    assert loaded(batch()).reward.dtype == torch.float32


def test_loads_in_a_fresh_process_through_automodel(model: SentenceRewardModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    code = f"import srm; from transformers import AutoModel; print(type(AutoModel.from_pretrained({str(tmp_path)!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(srm.__file__).parents[1])
    assert done.stdout.strip() == "SentenceRewardModel"


def test_boundary_token_gets_an_embedding_and_survives_saving(tiny_backbone_dir: Path, tmp_path: Path) -> None:
    model = SentenceRewardModel.from_backbone(tiny_backbone_dir, boundary_token="<END>")
    token = model.tokenizer.convert_tokens_to_ids("<END>")
    assert token == len(model.tokenizer) - 1
    assert model.get_input_embeddings().weight.shape[0] > token
    model.save_pretrained(tmp_path)
    loaded = SentenceRewardModel.from_pretrained(tmp_path)
    assert loaded.tokenizer.convert_tokens_to_ids("<END>") == token
    assert [s.text for s in loaded.score(["Hi"], ["One is here. Two is there."])[0].sentences] == ["One is here. ", "Two is there."]


def test_errors_name_the_way_out(tiny_backbone_dir: Path, model: SentenceRewardModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder\. Check the path"):
        SentenceRewardModel.from_backbone(tmp_path / "nowhere")
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is a trained reward model already. Load it with"):
        SentenceRewardModel.from_backbone(tmp_path)
    model.tokenizer = None
    with pytest.raises(UserError, match="no tokenizer was found beside the weights"):
        model.score(["Hi"], ["There."])
