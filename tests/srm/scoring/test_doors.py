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
from srm.integrations.verl import SentenceRewardManager, compute_score
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


@pytest.mark.parametrize("end", ["<eos>", "<end_of_turn>", "<stop>", "<end_of_turn>\n"])
def test_nor_is_one_that_is_spelled_out(end: str, model: SentenceRewardModel) -> None:
    want = pytest.approx(reward(model), abs=1e-5)
    assert reward(model, text=TEXT + end) == want
    with model.stream(USER) as stream:
        for piece in (TEXT[:20], TEXT[20:], end):
            stream.feed(piece)
    assert stream.close().reward == want
    assert compute_score("x", TEXT + end, None, {"prompt": USER}, model=model) == want


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
    assert compute_score("x", TEXT, None, {"prompt": prompt}, model=model) == want
    assert SentenceRewardFunction(model)([prompt], [TEXT], [ids]) == [want]


@pytest.mark.parametrize("answer", [TEXT, [{"role": "assistant", "content": TEXT}], objects({"role": "assistant", "content": TEXT})])
def test_every_form_of_an_answer(answer: Any, model: SentenceRewardModel) -> None:
    want = pytest.approx(reward(model), abs=1e-5)
    assert reward(model, text=answer) == want
    ((first, second),) = model.score([USER], [[answer, "No."]])
    assert first.reward == want
    assert second.reward != want


@pytest.mark.parametrize("raw", ["array", "null fields"])
def test_verls_raw_prompts(raw: str, model: SentenceRewardModel, folder: Path) -> None:
    """Another vocabulary: the prompts are read from verl's array of arrays."""
    policy = PreTrainedTokenizerFast.from_pretrained(folder)
    policy.add_tokens(["<extra>"])
    prompt = torch.tensor([model.encoder.encode_prompt(USER)])
    response = torch.tensor([policy(TEXT + "<end_of_turn>", add_special_tokens=False)["input_ids"]])
    batch = {
        "prompts": prompt,
        "responses": response,
        "attention_mask": torch.ones(1, prompt.shape[1] + response.shape[1], dtype=torch.int64),
    }
    data = type("Data", (), {"batch": batch, "non_tensor_batch": {"raw_prompt": objects(FORMS[raw])}})()
    rewards = SentenceRewardManager(policy, model=model)(data, return_dict=True)
    assert isinstance(rewards, dict)
    assert rewards["reward_extra_info"]["response_reward"] == [pytest.approx(reward(model), abs=1e-5)]


@pytest.mark.parametrize(
    ("prompt", "answer", "message"),
    [
        ("", TEXT, "`prompt` is empty"),
        ([*USER, {"role": "assistant", "content": "b"}], TEXT, "`prompt` ends with an assistant message"),
        ([{"role": "user", "content": [{"type": "image"}]}], TEXT, "content that is not text"),
        (5, TEXT, "`prompt` must be a string or a list of messages"),
        (USER, [{"role": "assistant", "content": "a", "reasoning_content": "b"}], "`response` has `reasoning_content` beside"),
        ("[{'role': 'user', 'content': 'Hi'}]", TEXT, "`prompt` is messages written as text"),
        (USER, None, "`response` is null"),
        (USER, [None], "`response` is null"),
    ],
)
def test_what_files_refuse_is_refused(prompt: Any, answer: Any, message: str, model: SentenceRewardModel) -> None:
    with pytest.raises(UserError, match=message):
        model.score([prompt], [answer])


def test_a_policy_may_write_anything(model: SentenceRewardModel) -> None:
    """In a file this is a mistake; a policy's answer must not stop a run."""
    text = "[{'role': 'user', 'content': 'Hi'}]"
    rendered = model.encoder.format.render(USER)
    request = {"query": [rendered + text], "prompts": [rendered], "labels": [""]}
    assert answer_request(model, request)["rewards"] == [pytest.approx(reward(model, text=text), abs=1e-5)]


def test_a_policy_that_writes_its_own_header(folder: Path, awake_model: Callable[..., SentenceRewardModel]) -> None:
    """The template's generation prompt is empty: the header is the prompt's end, whoever wrote it."""
    model = awake_model(folder)
    assert model.tokenizer is not None
    model.tokenizer.chat_template = TEMPLATE.split("{% if add")[0]
    prompt, ids = model.encoder.encode_prompt(USER), model.encoder.encode_responses([TEXT])[0].ids.tolist()
    header = model.tokenizer("<start_of_turn>assistant\n", add_special_tokens=False)["input_ids"]
    assert prompt[-len(header) :] == header
    want = model.score_tokens([prompt], [ids])
    own = model.score_tokens([prompt[: -len(header)], prompt, prompt], [[*header, *ids], [*header, *ids], ids])
    torch.testing.assert_close(own.reward, want.reward.expand(3), atol=1e-5, rtol=0)
    ends = want.ends[1:].tolist()
    assert own.ends.tolist() == [-1, *(end + len(header) for end in ends), -1, *(end + len(header) for end in ends), -1, *ends]
    assert reward(model) == pytest.approx(want.reward.item(), abs=1e-5)
    rendered, spelled = model.encoder.format.render(USER), "<start_of_turn>assistant\n"
    bare = rendered.removesuffix(spelled)
    request = {"query": [rendered + TEXT, rendered + TEXT, rendered + spelled + TEXT], "prompts": [bare, rendered, rendered], "labels": []}
    assert answer_request(model, request)["rewards"] == pytest.approx([want.reward.item()] * 3, abs=1e-5)
