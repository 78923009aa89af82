"""One text, one reward: through `score`, `stream`, `score_tokens`, the adapters and the server's rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from srm import SentenceRewardModel, UserError
from srm.data import Conversation
from srm.integrations.openrlhf import answer_request
from srm.packing import PromptGroup
from srm.scoring.run import score_all
from srm.scoring.token_ids import encode_ids

USER = [{"role": "user", "content": "Where is Paris?"}]
TEXT = "It is in France. It was warm."
MARKS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<stop>")
# A turn ends with another token than the tokenizer's eos.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone whose generation config lists a third end token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT], trainers.BpeTrainer(special_tokens=list(MARKS), initial_alphabet=alphabet, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>", bos_token="<bos>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        initializer_range=0.2,
        eos_token_id=tokenizer.convert_tokens_to_ids("I"),  # an ordinary word, as untrained configurations name one
    )
    path = tmp_path_factory.mktemp("turns")
    LlamaModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    stop = tokenizer.convert_tokens_to_ids("<stop>")
    GenerationConfig(eos_token_id=[tokenizer.eos_token_id, stop]).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path, awake_model: Callable[..., SentenceRewardModel]) -> SentenceRewardModel:
    return awake_model(folder)


def reward(model: SentenceRewardModel, prompt: Any = USER, text: Any = TEXT) -> float:
    return model.score([prompt], [text])[0].reward  # type: ignore[union-attr]


U2 = {"role": "user", "content": "And Rome?"}
A = {"role": "assistant", "content": "It is in France."}
B = {"role": "assistant", "content": "It was warm. It is in Italy."}


def test_a_response_of_several_messages(model: SentenceRewardModel) -> None:
    """Its reward is that of the ids that the chat template writes, with boundaries in the assistant's turns."""
    (scored,) = model.score([USER], [[A, U2, B]])
    encoded = model.encoder.encode_response(USER, [A, U2, B])
    assert [sentence.text for sentence in scored.sentences] == ["It is in France.", "It was warm. ", "It is in Italy."]
    assert all(encoded.text[sentence.start : sentence.end] == sentence.text for sentence in scored.sentences)
    group = PromptGroup(prompt_ids=model.encoder.encode_prompt(USER), responses=[encoded])
    assert score_all(model, [group], tokens_per_batch=4096, packing=None, show_progress=False)[0][0].reward == pytest.approx(
        scored.reward, abs=1e-6
    )
    # Beside others that answer the same and that answer more, in any order.
    ((first, second, third),) = model.score([USER], [[TEXT, [A, U2, B], [U2, A]]])
    assert second.reward == pytest.approx(scored.reward, abs=1e-5)
    assert first.reward == pytest.approx(reward(model), abs=1e-5)
    assert third.reward == pytest.approx(reward(model, [*USER, U2], A["content"]), abs=1e-5)
    with pytest.raises(UserError, match="score: row 0: `response` ends with a message of the role user"):
        model.score([USER], [[A, U2]])


def test_each_response_may_bring_what_it_answers(model: SentenceRewardModel) -> None:
    ((first, second),) = model.score([[]], [[[*USER, A], [U2, B]]])
    assert first.reward == pytest.approx(reward(model, USER, A["content"]), abs=1e-5)
    assert second.reward == pytest.approx(reward(model, [U2], B["content"]), abs=1e-5)
    with pytest.raises(UserError, match="`prompt` is an empty list"):
        model.score([[]], [["It is."]])


def test_an_answer_goes_on_from_the_prompt(model: SentenceRewardModel) -> None:
    prompt = [*USER, {"role": "assistant", "content": "It is"}]
    want = pytest.approx(reward(model, prompt, " in France. It was warm."), abs=1e-5)
    assert want != reward(model)
    assert reward(model, prompt, [{"role": "assistant", "content": " in France. It was warm."}]) == want
    with model.stream(prompt) as stream:
        for part in (" in Fra", "nce. It was", " warm."):
            stream.feed(part)
        assert stream.close().reward == want
    ids = model.encoder.encode_response(prompt, " in France. It was warm.").ids.tolist()
    assert model.score_tokens([model.encoder.encode_prompt(prompt)], [ids]).reward.item() == want
    # Through text, for a policy with another vocabulary.
    policy = other_tokenizer(model)
    ids = policy(" in France. It was warm.")["input_ids"]
    assert model.score_tokens([[0]], [ids], tokenizer=policy, prompts=[prompt]).reward.item() == want


def other_tokenizer(model: SentenceRewardModel) -> PreTrainedTokenizerFast:
    assert model.tokenizer is not None
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(["x"], trainers.BpeTrainer(special_tokens=["<e>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<e>")


@pytest.mark.parametrize("end", [(), ("<eos>",), ("<end_of_turn>",), ("<stop>",), ("<end_of_turn>", "<pad>", "I"), ("<pad>",)])
def test_a_policys_end_token_is_no_text(end: tuple[str, ...], model: SentenceRewardModel) -> None:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    prompt = model.encoder.encode_prompt(USER)
    ids = model.encoder.encode_responses([TEXT])[0].ids.tolist() + tokenizer.convert_tokens_to_ids(list(end))
    want = pytest.approx(reward(model), abs=1e-5)

    scored = model.score_tokens([prompt], [ids])
    assert scored.reward.item() == want
    assert scored.lengths.item() == len(ids) - len(end)
    # A tokenizer of its own with the same words, as trainers hold one.
    assert model.score_tokens([prompt], [ids], tokenizer=PreTrainedTokenizerFast.from_pretrained(model.name_or_path)).reward.item() == want
    # The rows of the server.
    ((row,),) = score_all(model, encode_ids(model, [prompt], [ids]), tokens_per_batch=8192, packing=None)
    assert row.reward == want
    rendered = model.encoder.format.render(USER)
    request = {"query": [rendered + TEXT + "".join(end)], "prompts": [rendered], "labels": [""]}
    assert answer_request(model, request)["rewards"] == [want]


@pytest.mark.parametrize("blank", ["", "\n", "  ", " \n\u3000", "<bos>"])
def test_white_space_alone_is_no_text(blank: str, model: SentenceRewardModel) -> None:
    assert model.tokenizer is not None
    prompt = model.encoder.encode_prompt(USER)
    ids = [*model.tokenizer(blank, add_special_tokens=False)["input_ids"], model.tokenizer.eos_token_id]
    want = pytest.approx(model.score_tokens([prompt], [[]]).reward.item(), abs=1e-6)
    own = model.score_tokens([prompt], [ids])
    policy = other_tokenizer(model)
    written = policy("" if blank == "<bos>" else blank)["input_ids"]
    other = model.score_tokens([[0]], [[*written, policy.eos_token_id]], tokenizer=policy, prompts=[USER])
    for scored in (own, other):
        assert scored.reward.item() == want
        assert scored.ends.tolist() == [-1]
    # The rows of the server, and beside a response with text.
    (row,), (whole,) = score_all(
        model, encode_ids(model, [prompt] * 2, [ids, model.tokenizer(TEXT)["input_ids"]]), tokens_per_batch=8192, packing=None
    )
    assert row.reward == want
    assert (len(row.sentence_reward), len(whole.sentence_reward)) == (1, 3)
    assert whole.reward == pytest.approx(reward(model), abs=1e-5)
    rendered = model.encoder.format.render(USER)
    if blank != "<bos>":
        assert answer_request(model, {"query": [rendered + blank], "prompts": [rendered], "labels": [""]})["rewards"] == [want]


@pytest.mark.parametrize("end", ["<eos>", "<end_of_turn>", "<stop>", "<end_of_turn>\n"])
def test_nor_is_one_that_is_spelled_out(end: str, model: SentenceRewardModel) -> None:
    want = pytest.approx(reward(model), abs=1e-5)
    assert reward(model, text=TEXT + end) == want
    with model.stream(USER) as stream:
        for piece in (TEXT[:20], TEXT[20:], end):
            stream.feed(piece)
    assert stream.close().reward == want


def test_the_end_tokens_are_saved_with_the_model(model: SentenceRewardModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert SentenceRewardModel.from_pretrained(tmp_path).encoder.answers.end_ids == model.encoder.answers.end_ids


def test_a_generation_config_that_is_not_sound(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config.json is not sound"):
        SentenceRewardModel.from_backbone(copy)
    (copy / "generation_config.json").unlink()
    made = SentenceRewardModel.from_backbone(copy)
    assert made.tokenizer is not None
    assert made.tokenizer.convert_tokens_to_ids("<stop>") not in made.encoder.answers.end_ids


def objects(*messages: Any) -> np.ndarray:
    array = np.empty(len(messages), dtype=object)
    array[:] = messages
    return array


FORMS = {
    "text": "Where is Paris?",
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Where is Paris?"}]}],
    "null fields": [{**USER[0], "tool_calls": None, "name": None}],
    "array": objects(*USER),
    "tuple": tuple(USER),
    "conversation": Conversation(USER),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_of_a_prompt_through_every_door(form: str, model: SentenceRewardModel) -> None:
    pytest.importorskip("trl")
    from srm.integrations.trl import SentenceRewardFunction

    prompt: Any = FORMS[form]
    want = pytest.approx(reward(model), abs=1e-5)
    ids = model.encoder.encode_responses([TEXT])[0].ids.tolist()
    assert reward(model, prompt) == want
    with model.stream(prompt) as stream:
        stream.feed(TEXT)
    assert stream.close().reward == want
    assert SentenceRewardFunction(model)([prompt], [TEXT], [ids]) == [want]


@pytest.mark.parametrize("answer", [TEXT, [{"role": "assistant", "content": TEXT}], objects({"role": "assistant", "content": TEXT})])
def test_every_form_of_an_answer(answer: Any, model: SentenceRewardModel) -> None:
    want = pytest.approx(reward(model), abs=1e-5)
    assert reward(model, text=answer) == want
    ((first, second),) = model.score([USER], [[answer, "No."]])
    assert first.reward == want
    assert second.reward != want


def test_score_takes_the_way_out_that_it_names(model: SentenceRewardModel) -> None:
    for response in ("It is warm.", "It is warm. " * 9000):
        with pytest.raises(UserError, match=r"max_length is 10\. Raise --max_length, .*choose with --overlong"):
            model.score(["Why?"], [response], max_length=10)
    (cut,) = model.score(["Why?"], ["It is warm. " * 40], max_length=60, overlong="truncate_response")
    assert cut.truncated
    assert not model.score(["Why?"], ["It is warm."], max_length=60, overlong="truncate_response")[0].truncated
    with pytest.raises(ValueError, match="score: `overlong` must be one of error, truncate_prompt, truncate_response, got 'drop'"):
        model.score(["Why?"], ["It is warm."], overlong="drop")
    with pytest.raises(UserError, match="`packing` must be one of shared, packed, none, got 'foo'"):
        model.score(["Why?"], ["It is warm."], packing="foo")


def test_an_end_token_alone_is_said_to_be_removed(model: SentenceRewardModel) -> None:
    end = model.tokenizer.eos_token  # type: ignore[union-attr]
    with pytest.raises(UserError, match="is empty once its end token is removed"):
        model.score(["Why?"], [end])
