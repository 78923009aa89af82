"""research/claim/top_layers.py on a tiny model: the upper layers on cached activations are the whole model, and every run is done once."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from research.claim import dpo, dpo_credit, summary, top_layers
from research.claim.activations import cached_activations, lower_layers, upper_model, whole_model
from research.claim.summary import over_seeds
from srm import SentenceRewardModel
from srm.packing import PromptGroup
from srm.scoring.run import ResponseScore, score_all
from srm.scoring.text import encode_groups

PROMPTS = ["Why is bread salty?", "Where does the cat sit?", "Why is bread salty?"]
ANSWERS = [["It needs salt. Flour alone is dull.", "Ask a baker."], ["On the mat. It is warm there. It purrs."], ["Nobody knows. Really."]]


@pytest.fixture
def whole(tiny_backbone_dir: Path) -> SentenceRewardModel:
    return SentenceRewardModel.from_backbone(tiny_backbone_dir).eval()


@pytest.fixture
def groups(whole: SentenceRewardModel) -> list[PromptGroup]:
    return [
        group
        for prompt, answers in zip(PROMPTS, ANSWERS, strict=True)
        for group in encode_groups(whole, prompt, answers, where=answers, max_length=None)
    ]


def _rewards(model: SentenceRewardModel, groups: list[PromptGroup]) -> torch.Tensor:
    scores: list[list[ResponseScore]] = score_all(model, groups, tokens_per_batch=4096, packing="shared")
    return torch.tensor([value for group in scores for score in group for value in (score.reward, *score.sentence_reward)])


def _awake(model: SentenceRewardModel) -> SentenceRewardModel:
    torch.manual_seed(3)
    for weight in model.head.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    # Other layers than those it came with, as after training.
    for weight in model.backbone.layers.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return model.eval()


@pytest.mark.parametrize("granularity", ["sentence", "response", "token"])
def test_upper_layers_on_the_table_are_the_whole_model(
    granularity: str, whole: SentenceRewardModel, groups: list[PromptGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rounded, the two differ by as much as bf16 does.
    monkeypatch.setattr("research.claim.activations.DTYPE", torch.float32)
    activations = cached_activations(tmp_path, groups, lambda: lower_layers(whole.backbone, 1))
    # Two groups share a prompt, which is there once.
    assert len(activations.table) == sum(len(r.ids) for g in groups for r in g.responses) + len(groups[0].prompt_ids) + len(
        groups[1].prompt_ids
    )
    upper = _awake(upper_model(whole, 1, activations.table, granularity=granularity))
    got = _rewards(upper, activations.rows_of(groups))
    expected = _rewards(whole_model(whole, upper), groups)
    assert expected.std() > 0.05
    assert (got - expected).abs().max() < 1e-5
    again = cached_activations(tmp_path, groups, lambda: pytest.fail("computed twice"))
    assert torch.equal(_rewards(upper, again.rows_of(groups)), got)


@pytest.fixture
def tied_dir(tiny_backbone_dir: Path, tmp_path: Path) -> Path:
    """A decoder whose output has the embedding's weights, as SmolLM2's has."""
    folder = tmp_path / "tied"
    shutil.copytree(tiny_backbone_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    return folder


def test_a_policy_learns_and_its_rewards_are_those_of_the_whole_one(
    tied_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (top_layers, dpo_credit):
        monkeypatch.setattr(module, "NUM_TRAINED", 1)
    monkeypatch.setattr("research.claim.activations.DTYPE", torch.float32)
    folders = ["--data", data, "--output_dir", tmp_path / "work"]
    monkeypatch.setattr("sys.argv", ["dpo_credit.py", "--dry", "--model_name_or_path", str(tied_dir), *map(str, folders)])
    small = dataclasses.replace(top_layers.DRY, max_chars=5000, score_max_length=256)
    study = dpo_credit.PolicyStudy(dpo_credit._arguments(), small, dpo_credit.FILES)
    texts, weight = study.texts("train"), study.output_weight
    policy = dpo.policy(study.whole, 1, texts.activations.table).eval()
    assert all(not reward.any() for reward in dpo.implicit_rewards(policy, weight, texts))
    # Log-probabilities are those of the whole language model.
    language_model = LlamaForCausalLM.from_pretrained(tied_dir)
    language_model.model.load_state_dict(study.whole.backbone.state_dict())
    language_model.tie_weights()
    group = texts.groups[0]
    ids = torch.from_numpy(np.concatenate([group.prompt_ids, group.responses[0].ids])).long()[None]
    logprobs = language_model(ids).logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(-1)
    expected = logprobs.gather(-1, ids[0, len(group.prompt_ids) :, None])[:, 0]
    assert texts.reference[0] == pytest.approx(expected.detach(), abs=0.05)
    dpo.train_policy(policy, weight, texts, rate=1e-2, seed=0, batch=4)
    rewards = torch.stack([reward.sum() for reward in dpo.implicit_rewards(policy, weight, texts)]).view(-1, 2)
    assert (rewards[:, 0] - rewards[:, 1]).mean() > 0.1
    marked = study.texts("spans")
    earned = dpo.implicit_rewards(policy, weight, marked)
    responses = dpo.scored(marked.groups, earned)
    assert max(len(response.sentences) for response in responses) > 1
    for response, tokens in zip(responses, earned, strict=True):
        total = tokens.sum().item()
        assert response.reward == pytest.approx(total, abs=1e-4)
        assert response.prompt_reward + sum(sentence.reward for sentence in response.sentences) == pytest.approx(total, abs=1e-4)


def test_a_group_that_would_be_split_is_refused(
    whole: SentenceRewardModel, groups: list[PromptGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("research.claim.activations.TOKENS_PER_BATCH", 20)
    with pytest.raises(ValueError, match="more than 20 tokens"):
        cached_activations(tmp_path, groups, lambda: lower_layers(whole.backbone, 1))


def test_seeds_are_drawn_with_prompts() -> None:
    # Two seeds far apart, no spread over prompts: an interval of prompts alone would have no width.
    traces = [np.zeros(1001), np.ones(1001)]
    pooled = over_seeds(traces)
    assert pooled[0] == 0.5
    assert {0.0, 0.5, 1.0} == set(pooled[1:])
    assert np.array_equal(over_seeds([trace + 1 for trace in traces]) - pooled, np.ones(1001))
    assert np.array_equal(over_seeds([traces[1]]), traces[1])


def test_every_run_is_done_once_and_reported(data: Path, tied_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_layers, "NUM_TRAINED", 1)
    monkeypatch.setattr(
        top_layers,
        "DRY",
        dataclasses.replace(top_layers.DRY, max_chars=5000, train_pairs=6, score_max_length=256, learning_rates=(1e-3, 1e-2)),
    )
    result = tmp_path / "results" / "top_layers.json"
    folders = ["--data", data, "--output_dir", tmp_path / "work", "--json", result, "--save_models", tmp_path / "models"]
    monkeypatch.setattr("sys.argv", ["top_layers.py", "--dry", "--model_name_or_path", str(tied_dir), *map(str, folders)])
    monkeypatch.setattr(summary, "plot", lambda *arguments: None)
    done: list[str] = []
    finish = top_layers.Study.finish
    monkeypatch.setattr(top_layers.Study, "finish", lambda study, run: (done.append(run.name), finish(study, run)))
    top_layers.main()
    found = json.loads(result.read_text())
    tuned = sum(len(rates) for rates in found["tuning_accuracy"].values())
    assert len(done) == len(set(done)) == tuned + len(found["runs"])
    assert len(found["rows"]["sentence"]["seeds"]["suite"]) == 2
    assert {"test", "suite"} <= found["rows"]["sentence"]["minus_response"].keys()
    # What is saved is what was scored.
    run = next(run for run in found["runs"] if run["variant"] == "sentence")
    name = f"sentence-lr{run['learning_rate']:g}-seed{run['seed']}"
    scores = [json.loads(line) for line in (tmp_path / "work" / "runs" / name / "spans.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (tmp_path / "work" / "data" / "spans.jsonl").read_text().splitlines()]
    model = SentenceRewardModel.from_pretrained(tmp_path / "models" / name)
    cut = {"max_length": 256, "overlong": "truncate_response"}
    groups = [group for row in rows for group in encode_groups(model, row["prompt"], [row["response"]], where=["row"], **cut)]
    rewards = [one.reward for group in score_all(model, groups, tokens_per_batch=4096, packing="shared") for one in group]
    assert rewards == pytest.approx([line["reward"] for line in scores], abs=0.05 * float(np.std(rewards)))
    done.clear()
    top_layers.main()
    assert done == []


def test_the_credit_of_a_tuned_policy_is_reported(data: Path, tied_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (top_layers, dpo_credit):
        monkeypatch.setattr(module, "NUM_TRAINED", 1)
    monkeypatch.setattr(dpo_credit, "DRY", dataclasses.replace(top_layers.DRY, max_chars=5000, train_pairs=6, score_max_length=256))
    result = tmp_path / "dpo_credit.json"
    folders = ["--data", data, "--output_dir", tmp_path / "work", "--json", result]
    flags = ["--dry", "--tuning_pairs", "4", "--model_name_or_path", str(tied_dir)]
    monkeypatch.setattr("sys.argv", ["dpo_credit.py", *flags, *map(str, folders)])
    done: list[str] = []
    finish = dpo_credit.PolicyStudy.finish
    monkeypatch.setattr(dpo_credit.PolicyStudy, "finish", lambda study, run: (done.append(run.name), finish(study, run)))
    dpo_credit.main()
    found = json.loads(result.read_text())
    assert len(done) == len(found["runs"]) == len(found["tuning_accuracy"]) == 2
    assert found["tuning_accuracy"][f"{found['learning_rate']:g}"] == max(found["tuning_accuracy"].values())
    assert 0 <= found["credit"]["auc"]["low"] <= found["credit"]["auc"]["estimate"] <= found["credit"]["auc"]["high"] <= 1
    dpo_credit.main()
    assert len(done) == 2
