"""Lengths beyond the positions, ids beyond the embeddings and numbers that are none stop with one line that names the row."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BloomConfig, GPT2Config, LlamaConfig, MambaConfig, MistralConfig, MptConfig

from srm import SentenceRewardModel, UserError
from srm.cli.score import main as srm_score
from srm.data import read_comparisons
from srm.modeling.config import positions_of
from srm.serving.rows import BadField, encode_rows
from srm.serving.schema import IdsRow, TextRow

LONG = "It was warm there. " * 40


# Positions


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (LlamaConfig(max_position_embeddings=64), 64),
        (MistralConfig(max_position_embeddings=64, sliding_window=16), 64),
        (GPT2Config(n_positions=64), 64),
        (MptConfig(max_seq_len=64), 64),
        (MambaConfig(), None),
        (BloomConfig(), None),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_positions_of_a_model(config: Any, positions: int | None) -> None:
    assert positions_of(config) == positions


@pytest.fixture(scope="module")
def learned(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory, awake_model: Callable[..., SentenceRewardModel]) -> Path:
    """A reward model with 64 learned positions."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    folder = tmp_path_factory.mktemp("learned")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=None, eos_token_id=None)
    AutoModel.from_config(config).save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    awake_model(folder / "backbone").save_pretrained(folder / "model")
    return folder / "model"


@pytest.mark.parametrize("max_length", [None, 64, 5000])
def test_no_length_goes_beyond_the_positions(learned: Path, max_length: int | None) -> None:
    model = SentenceRewardModel.from_pretrained(learned)
    for call in (
        lambda: model.score(["Hi", "Hi"], ["Yes.", LONG], max_length=max_length),
        lambda: model.stream("Hi", max_length=max_length).feed(LONG),
        lambda: model.score_tokens([[5]], [[5] * 64]),
        lambda: list(encode_rows(model, [TextRow(prompt="Hi", response=LONG)], max_length=max_length)),
    ):
        with pytest.raises(UserError, match="64") as raised:
            call()
        assert "aise --max_length" not in str(raised.value)
    assert model.score(["Hi"], ["Yes."], max_length=max_length)[0].sentences


@pytest.mark.parametrize("overlong", ["error", "truncate_prompt", "truncate_response"])
def test_nor_does_srm_score(learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overlong: str) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"prompt": "Hi", "response": LONG}) + "\n")
    argv = ["--model", str(learned), "--input", str(source), "--output", str(tmp_path / "out.jsonl")]
    code = srm_score([*argv, "--max_length", "5000", "--overlong", overlong])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "aise --max_length" not in said
    if overlong == "truncate_response":
        assert code == 0
    else:
        assert code == 1
        assert "the model reads 64" in said


# Ids


@pytest.fixture
def narrow(model: SentenceRewardModel) -> SentenceRewardModel:
    """A model whose tokenizer has learned a token that its embeddings have not."""
    model.tokenizer.add_tokens(["<new>"])
    return model


def test_a_token_without_an_embedding_is_refused_where_it_is_used(narrow: SentenceRewardModel) -> None:
    assert narrow.score(["Hi"], ["Yes."])[0].sentences
    new = narrow.tokenizer.convert_tokens_to_ids("<new>")
    said = f"the token id {new} has no embedding, the model knows 0 to {new - 1}"
    with pytest.raises(UserError, match=f"score: row 1: {said}"):
        narrow.score(["Hi", "Hi"], ["Yes.", "It is <new>."])
    with pytest.raises(UserError, match=f"score: row 0, response 1: {said}"):
        narrow.score(["Hi"], [["Yes.", "It is <new>."]])
    with pytest.raises(UserError, match=f"score: row 0: {said}"):
        narrow.score(["<new>"], ["Yes."])
    with pytest.raises(UserError, match=f"stream: {said}"):
        narrow.stream("<new>")
    with pytest.raises(UserError, match=f"prompt 1 and its response: {said}"):
        narrow.score_tokens([[5], [6]], [[7], [new]])
    for row in (TextRow(prompt="Hi", response="<new>"), IdsRow(prompt_ids=[5], response_ids=[new])):
        with pytest.raises(BadField):
            list(encode_rows(narrow, [row], max_length=None))


def test_an_embedding_without_a_token_is_a_token_without_text(awake_model: Callable[..., SentenceRewardModel]) -> None:
    """Policies whose embedding is padded beyond the tokenizer may write such ids."""
    model = awake_model()
    size = len(model.tokenizer)
    model.backbone.resize_token_embeddings(size + 8)
    first, second = (model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Yes. ", "It is."))
    prompt, ids = model.encoder.encode_prompt("Hi"), [*first, size + 3, *second]
    ends = [len(first), len(ids) - 1]
    assert model.score_tokens([prompt], [ids]).ends.tolist() == [-1, *ends]
    ((row,),) = encode_rows(model, [IdsRow(prompt_ids=prompt, response_ids=ids)], max_length=None)
    assert row.responses[0].sentence_ends.tolist() == ends
    # With another vocabulary the model reads text, in which there is nothing of it.
    other = copy.deepcopy(model.tokenizer)
    other.add_tokens(["<new>"])
    reward = model.score_tokens([prompt], [ids], tokenizer=other, prompts=["Hi"]).reward.item()
    assert reward == pytest.approx(model.score(["Hi"], ["Yes. It is."])[0].reward, abs=1e-5)


def test_ids_behind_the_text_may_be_anything(model: SentenceRewardModel) -> None:
    padded = torch.tensor([[7, 8, -100, 10**6]])
    assert model.score_tokens([[5]], padded, response_lengths=torch.tensor([2])).reward.isfinite().all()


def test_training_names_the_row(narrow: SentenceRewardModel, tmp_path: Path) -> None:
    from srm.data import encode_comparisons
    from srm.training import RewardConfig, SentenceRewardTrainer

    path = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": "Hi", "chosen": "Yes.", "rejected": text} for text in ("No.", "No <new>.")]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    rows, _ = encode_comparisons(read_comparisons(str(path)), narrow.encoder, max_length=None, progress=False)
    config = RewardConfig(output_dir=str(tmp_path / "out"), use_cpu=True, disable_tqdm=True, save_strategy="no")
    trainer = SentenceRewardTrainer(narrow, config, rows, rows)
    for run in (trainer.train, trainer.evaluate):
        with pytest.raises(UserError, match=r"pairs.jsonl line 2: the token id \d+ has no embedding"):
            run()


# Numbers


@pytest.fixture(params=[torch.nan, torch.inf])
def broken(model: SentenceRewardModel, request: pytest.FixtureRequest) -> SentenceRewardModel:
    """A model that says no number of any text with an exclamation mark."""
    mark = model.tokenizer("!")["input_ids"][0]
    # Before it is broken: the proof draws ids of its own.
    model.packing_mode()
    with torch.no_grad():
        model.get_input_embeddings().weight[mark] = request.param
    return model


CAUSE = r"the reward became (nan|-?inf); the weight backbone\.embed_tokens\.weight holds NaN or infinity: use another checkpoint"


def test_a_reward_that_is_no_number_names_its_row(broken: SentenceRewardModel, tmp_path: Path) -> None:
    # Alone, because a sibling or a neighbour in a padded row may be lost with it.
    assert broken.score(["Hi"], ["Yes."])[0].sentences
    with pytest.raises(UserError, match=f"score: row 1: {CAUSE}"):
        broken.score(["Hi", "Ho"], ["Yes.", "Yes!"])
    mark = broken.tokenizer("!")["input_ids"][0]
    with pytest.raises(UserError, match=f"score_tokens: prompt 1 and its response: {CAUSE}"):
        broken.score_tokens([[5], [6]], [[7], [mark]])
    stream = broken.stream("Hi")
    stream.feed("Yes!")
    with pytest.raises(UserError, match=f"stream: the response: {CAUSE}"):
        stream.close()
    with pytest.raises(UserError, match=f"stream: the prompt: {CAUSE}"):
        broken.stream("Hi!")


def test_no_file_ever_holds_one(broken: SentenceRewardModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken.save_pretrained(tmp_path / "model")
    source, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": text, "response": text}) + "\n" for text in ("Yes.", "Yes!", "Well.")))
    argv = ["--model", str(tmp_path / "model"), "--input", str(source), "--output", str(output), "--tokens_per_batch", "1"]
    assert srm_score([*argv, "--packing", "none"]) == 1
    assert "rows.jsonl line 2: the reward became" in capsys.readouterr().err
    assert [json.loads(line)["sentences"][0]["text"] for line in output.read_text().splitlines()] == ["Yes."]
    assert not {"NaN", "Infinity"} & set(output.read_text().replace(",", " ").split())


def test_a_layer_that_is_no_number_is_named(model: SentenceRewardModel) -> None:
    with torch.no_grad():
        model.backbone.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    for call in (lambda: model.score(["Hi"], ["Yes."]), lambda: model.stream("Hi"), lambda: model.score_tokens([[5]], [[7]])):
        with pytest.raises(UserError, match=r"are NaN or infinite, because the weight layers\.1\.mlp\.up_proj\.weight is"):
            call()


def test_an_evaluation_reports_no_such_number(broken: SentenceRewardModel, tmp_path: Path) -> None:
    from srm.data import encode_comparisons
    from srm.training import RewardConfig, SentenceRewardTrainer

    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "Hi", "chosen": "Yes.", "rejected": "No!"}) + "\n")
    rows, _ = encode_comparisons(read_comparisons(str(path)), broken.encoder, max_length=None, progress=False)
    config = RewardConfig(output_dir=str(tmp_path / "out"), use_cpu=True, disable_tqdm=True, save_strategy="no")
    with pytest.raises(UserError, match=r"evaluation at step 0: \w+ became nan"):
        SentenceRewardTrainer(broken, config, rows, rows).evaluate()
