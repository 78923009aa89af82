"""The last layer on boundary rows, from every surface: the rewards are those of all rows, and the setting turns it off."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from srm import SentenceRewardModel
from srm.cli import score as srm_score
from srm.cli import train as srm_train
from srm.data import encode_comparisons, read_comparisons
from srm.modeling import SentenceRewardConfig, SentenceRewardForSequenceClassification
from srm.serving import create_app
from srm.training import RewardConfig, SentenceRewardTrainer

PROMPTS = ["Where does the cat sit?", "Why?"]
RESPONSES = [["The cat sat on the mat. It was warm there.", "Bread needs salt."], ["The bread is warm. Bread needs time."]]
PAIR = {"prompt": PROMPTS[0], "chosen": RESPONSES[0][0], "rejected": "No, it is wrong!"}


@contextmanager
def shares(model: SentenceRewardModel) -> Iterator[list[float]]:
    """Of each pass in this block, how many of its tokens the last layer's MLP ran on, as a share."""
    found: list[float] = []
    layers, tokens = model.backbone.layers, []

    def count(module: Any, args: Any, output: torch.Tensor) -> None:
        tokens.append(output.shape[:2].numel())
        if module is layers[-1].mlp.down_proj:
            found.append(tokens[-1] / tokens[0])
            tokens.clear()

    handles = [layers[0].mlp.down_proj.register_forward_hook(count), layers[-1].mlp.down_proj.register_forward_hook(count)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def trainer_of(model: SentenceRewardModel, folder: Path, **settings: Any) -> SentenceRewardTrainer:
    path = folder / "pairs.jsonl"
    path.write_text((json.dumps(PAIR) + "\n") * 4)
    rows = encode_comparisons(read_comparisons(str(path)), model.encoder, max_length=200, progress=False)[0]
    usual: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "report_to": "none", "max_steps": 2}
    return SentenceRewardTrainer(model, RewardConfig(output_dir=str(folder / "run"), **usual, **settings), rows)


def flat(scored: Any) -> list[float]:
    return [number for group in scored for one in group for number in (one.reward, one.prompt_reward, *(s.reward for s in one.sentences))]


def by_score(model: SentenceRewardModel, folder: Path, **settings: Any) -> list[float]:
    return flat(model.score(PROMPTS, RESPONSES, **settings))


def by_tokens(model: SentenceRewardModel, folder: Path, **settings: Any) -> list[float]:
    ids = [model.encoder.encode_prompt(prompt) for prompt in PROMPTS]
    found = model.score_tokens(
        ids, [one.ids.tolist() for one in model.encoder.encode_responses([each[0] for each in RESPONSES])], **settings
    )
    return [*found.reward.tolist(), *found.sentence_reward.tolist()]


def by_server(model: SentenceRewardModel, folder: Path, **settings: Any) -> list[float]:
    with TestClient(create_app(model, **settings)) as client:
        rows = [{"prompt": prompt, "response": response} for prompt, each in zip(PROMPTS, RESPONSES, strict=True) for response in each]
        return [one["reward"] for one in client.post("/v1/rewards", json={"rows": rows}).json()["rewards"]]


def by_classifier(model: SentenceRewardModel, folder: Path) -> list[float]:
    model.__class__ = SentenceRewardForSequenceClassification
    conversation = [{"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": RESPONSES[0][0]}]
    ids = model.tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)["input_ids"]
    return model(ids).logits.flatten().tolist()


def by_training(model: SentenceRewardModel, folder: Path, **settings: Any) -> list[float]:
    trainer = trainer_of(model, folder, learning_rate=1e-3, lr_scheduler_type="constant", logging_steps=1, **settings)
    trainer.train()
    return [entry[name] for entry in trainer.state.log_history for name in ("loss", "grad_norm") if name in entry]


SURFACES: dict[str, tuple[Callable[..., list[float]], dict[str, Any]]] = {
    "score": (by_score, {}),
    "score padded": (by_score, {"packing": "none"}),
    "score_tokens": (by_tokens, {"packing": "packed"}),
    "server": (by_server, {}),
    "classifier": (by_classifier, {}),
    "training": (by_training, {}),
    "training padded": (by_training, {"packing": "none"}),
    "training with gradient checkpointing": (by_training, {"gradient_checkpointing": True}),
    "training in passes": (by_training, {"tokens_per_batch": 60}),
}


@pytest.mark.parametrize("surface", SURFACES)
def test_every_surface_gives_what_all_rows_give(surface: str, awake_model: Callable[..., SentenceRewardModel], tmp_path: Path) -> None:
    run, settings = SURFACES[surface]
    found = {}
    for rows in ("boundaries", "all"):
        model = awake_model(last_layer_rows=rows)
        # Now, because the proof runs the layer on few rows, too.
        model.packing_mode(settings.get("packing"))
        with shares(model) as ran:
            found[rows] = run(model, tmp_path, **settings)
        assert min(ran) < 0.7 if rows == "boundaries" else set(ran) == {1.0}, ran
    assert len(found["all"]) > 0
    assert any(found["all"])
    torch.testing.assert_close(found["boundaries"], found["all"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("granularity", ["response", "token"])
def test_every_granularity(granularity: str, awake_model: Callable[..., SentenceRewardModel]) -> None:
    """At token level all tokens of the responses are boundaries: the prompts' rows alone are left out."""
    model = awake_model(granularity=granularity)
    with shares(model) as ran:
        found = flat(model.score(PROMPTS, RESPONSES))
    assert ran[-1] < 1
    model.config.last_layer_rows = "all"
    torch.testing.assert_close(found, flat(model.score(PROMPTS, RESPONSES)), rtol=1e-4, atol=1e-6)


def test_a_stream_runs_on_all_rows_after_scoring(awake_model: Callable[..., SentenceRewardModel]) -> None:
    model = awake_model()
    scored = model.score(PROMPTS[:1], [RESPONSES[0][0]])[0]
    with shares(model) as ran, model.stream(PROMPTS[0]) as stream:
        stream.feed(RESPONSES[0][0])
        closed = stream.close()
    assert closed.reward == pytest.approx(scored.reward, abs=1e-5)
    assert ran[-1] == 1


def test_the_setting_is_saved_and_checked(awake_model: Callable[..., SentenceRewardModel], tmp_path: Path) -> None:
    assert SentenceRewardConfig().last_layer_rows == "boundaries"
    awake_model(last_layer_rows="all").save_pretrained(tmp_path)
    assert SentenceRewardModel.from_pretrained(tmp_path).config.last_layer_rows == "all"
    with pytest.raises(ValueError, match="`last_layer_rows` must be one of boundaries, all, got 'some'"):
        SentenceRewardConfig(last_layer_rows="some")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("on_model", "asked", "runs"), [("all", None, "all"), ("all", "boundaries", "boundaries"), ("boundaries", "all", "all")]
)
def test_a_trainer_takes_the_models_setting_unless_it_has_one(
    on_model: Any, asked: Any, runs: str, awake_model: Callable[..., SentenceRewardModel], tmp_path: Path
) -> None:
    model = awake_model(last_layer_rows=on_model)
    trainer_of(model, tmp_path, last_layer_rows=asked)
    assert model.config.last_layer_rows == runs


@pytest.mark.parametrize("packing", ["shared", "none"])
@pytest.mark.parametrize("rows", ["boundaries", "all"])
def test_srm_train_says_which_rows_run(
    packing: str, rows: str, tiny_backbone_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text((json.dumps(PAIR) + "\n") * 4)
    flags = {
        "model_name_or_path": tiny_backbone_dir,
        "dataset_name": pairs,
        "output_dir": tmp_path / "out",
        "packing": packing,
        "last_layer_rows": rows,
        "attention_size": 8,
        "max_steps": 1,
        "use_cpu": "true",
        "disable_tqdm": "true",
    }
    assert srm_train.main([word for name, value in flags.items() for word in (f"--{name}", str(value))]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "last layer on" in line)
    parts = "last layer on boundary rows: queries, attention output, MLP and norm" if rows == "boundaries" else "last layer on all rows"
    assert parts in line
    assert SentenceRewardModel.from_pretrained(tmp_path / "out").config.last_layer_rows == rows


def test_srm_score_takes_the_setting(
    awake_model: Callable[..., SentenceRewardModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    awake_model().save_pretrained(tmp_path / "model")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps(PAIR) + "\n")
    loaded: list[SentenceRewardModel] = []
    load = srm_score.load_model
    monkeypatch.setattr(srm_score, "load_model", lambda *arguments: (loaded.append(load(*arguments)), loaded[-1])[1])
    rewards = {}
    for rows in ("boundaries", "all"):
        output = tmp_path / f"{rows}.jsonl"
        flags = ["--model", str(tmp_path / "model"), "--input", str(pairs), "--output", str(output), "--last_layer_rows", rows]
        assert srm_score.main([*flags, "--device", "cpu"]) == 0
        rewards[rows] = [json.loads(line)["reward"] for line in output.read_text().splitlines()]
    assert [model.config.last_layer_rows for model in loaded] == ["boundaries", "all"]
    assert rewards["boundaries"] == pytest.approx(rewards["all"], abs=1e-6)
