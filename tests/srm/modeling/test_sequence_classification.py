"""A saved reward model in transformers' own hands: AutoModelForSequenceClassification and pipeline."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import srm
from srm import SentenceRewardModel, UserError
from srm.evaluation.classifier import is_classifier
from srm.modeling import SentenceRewardForSequenceClassification
from srm.packing import PromptGroup, ResponseIds, pack

CONVERSATIONS: list[tuple[Any, str]] = [
    ("Is this right?", "No, it is wrong! The cat sat on the mat. It was warm there."),
    ([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Salt."}, {"role": "user", "content": "And?"}], "Time."),
    ("Is this right?", "Yes. Bread needs flour."),
]


@pytest.fixture(scope="module")
def folder(awake_model: Callable[..., SentenceRewardModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classifier") / "model"
    awake_model().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def classifier(folder: Path) -> SentenceRewardForSequenceClassification:
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)


def texts(tokenizer: Any, conversations: list[tuple[Any, str]] = CONVERSATIONS) -> list[str]:
    return [
        tokenizer.apply_chat_template(
            [*([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt), {"role": "assistant", "content": answer}],
            tokenize=False,
        )
        for prompt, answer in conversations
    ]


def rewards(model: SentenceRewardModel, conversations: list[tuple[Any, str]] = CONVERSATIONS) -> list[float]:
    return [one.reward for one in model.score([prompt for prompt, _ in conversations], [answer for _, answer in conversations])]  # type: ignore[union-attr]


def logits(classifier: Any, tokenizer: Any, side: str = "right", **changes: Any) -> list[float]:
    inputs = tokenizer(texts(tokenizer), return_tensors="pt", padding=True, padding_side=side, add_special_tokens=False)
    found = classifier(**{**inputs, **changes}).logits
    assert found.shape == (len(CONVERSATIONS), 1)
    assert found.dtype == torch.float32
    return found[:, 0].tolist()


def test_every_weight_is_loaded_and_the_config_is_a_classifiers(folder: Path, classifier: SentenceRewardForSequenceClassification) -> None:
    _, info = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    saved = SentenceRewardModel.from_pretrained(folder).state_dict()
    loaded = classifier.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert classifier.config.num_labels == 1
    assert classifier.config.pad_token_id == tokenizer.pad_token_id
    assert not classifier.training


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mask", ["given", "none", "bool"])
def test_logits_are_rewards(side: str, mask: str, folder: Path, classifier: SentenceRewardForSequenceClassification) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts(tokenizer), return_tensors="pt", padding=True, padding_side=side)["attention_mask"]
    changes = {"given": {}, "none": {"attention_mask": None}, "bool": {"attention_mask": inputs.bool()}}[mask]
    found = logits(classifier, tokenizer, side, **changes)
    assert found == pytest.approx(rewards(SentenceRewardModel.from_pretrained(folder)), abs=1e-5)
    assert rewards(classifier) == pytest.approx(found, abs=1e-5)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "config",
    [{"granularity": "response"}, {"granularity": "token"}, {"boundary_token": "<END>"}, {"pooling": "attention", "packing": "none"}],
)
def test_every_kind_of_reward_model(config: dict[str, Any], awake_model: Callable[..., SentenceRewardModel], tmp_path: Path) -> None:
    awake_model(**config).save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert logits(classifier, AutoTokenizer.from_pretrained(tmp_path)) == pytest.approx(
        rewards(SentenceRewardModel.from_pretrained(tmp_path)), abs=1e-5
    )


def test_the_dtype_is_the_backbones(folder: Path) -> None:
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    assert classifier.backbone.dtype == torch.bfloat16
    assert {weight.dtype for weight in classifier.head.parameters()} == {torch.float32}
    half = SentenceRewardModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert logits(classifier, AutoTokenizer.from_pretrained(folder)) == pytest.approx(rewards(half), abs=1e-5)


def test_what_it_saves_is_the_reward_model_again(classifier: SentenceRewardForSequenceClassification, tmp_path: Path) -> None:
    classifier.save_pretrained(tmp_path)
    assert rewards(SentenceRewardModel.from_pretrained(tmp_path)) == pytest.approx(rewards(classifier), abs=1e-6)
    # srm-eval reads its sentences.
    assert not is_classifier(str(tmp_path))


def test_a_folder_brings_the_code_for_programs_that_do_not_import_srm(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, transformers\n"
        "assert 'srm' not in sys.modules\n"
        "load = transformers.AutoModelForSequenceClassification.from_pretrained\n"
        "model = load(sys.argv[1], trust_remote_code=True)\n"
        "print(model.score(['Is this right?'], ['Yes. No.'])[0].reward)\n"
        "model.save_pretrained(sys.argv[2])\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(Path(srm.__file__).parents[1]), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "again")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    want = SentenceRewardModel.from_pretrained(folder).score(["Is this right?"], ["Yes. No."])[0].reward
    assert float(done.stdout.split()[-1]) == pytest.approx(want, abs=1e-6)
    # What it saves imports srm again, and is no copy of srm's files.
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == {"modeling_srm.py"}
    assert (tmp_path / "again" / "modeling_srm.py").read_text() == (folder / "modeling_srm.py").read_text()


def test_pipeline_gives_rewards(folder: Path) -> None:
    classify = pipeline("text-classification", model=str(folder), device="cpu")
    found = classify(texts(classify.tokenizer), batch_size=2)
    assert [one["label"] for one in found] == ["reward"] * 3
    assert [one["score"] for one in found] == pytest.approx(rewards(classify.model), abs=1e-5)


def test_an_empty_answer_gets_its_prompts_share(folder: Path, classifier: SentenceRewardForSequenceClassification) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts(tokenizer, [("Is this right?", "")]), return_tensors="pt")
    alone = classifier.score_tokens([classifier.encoder.encode_prompt("Is this right?")], [[]]).reward
    assert classifier(**inputs).logits[:, 0].tolist() == pytest.approx(alone.tolist(), abs=1e-5)


def test_it_still_takes_packed_batches(classifier: SentenceRewardForSequenceClassification) -> None:
    group = PromptGroup(prompt_ids=[5, 6, 7], responses=[ResponseIds(ids=[9, 10], sentence_ends=[1])])
    batch = pack([group], mode="packed", pad_token_id=0)
    assert classifier(batch).reward.shape == (1,)


def test_text_without_an_answer_is_one_line(folder: Path, classifier: SentenceRewardForSequenceClassification) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(UserError, match="row 1 of input_ids: no answer begins in it"):
        classifier(**tokenizer([*texts(tokenizer)[:1], "The cat sat."], return_tensors="pt", padding=True))


def test_a_conversation_that_is_too_long_is_one_line(folder: Path, classifier: SentenceRewardForSequenceClassification) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(UserError, match=r"row 0 of input_ids: the conversation has \d+ tokens, the model reads 256"):
        classifier(**tokenizer(texts(tokenizer, [("Why?", "The cat sat. " * 60)]), return_tensors="pt"))


def test_a_reward_that_is_no_number_is_one_line(folder: Path) -> None:
    broken = AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = broken.tokenizer(texts(broken.tokenizer)[:1], return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        broken.head.value.bias.fill_(torch.nan)
    with pytest.raises(UserError, match=r"row 0 of input_ids: the reward became nan; the weight head\.value\.bias"):
        broken(**inputs)


def test_a_token_without_an_embedding_is_one_line(folder: Path) -> None:
    narrow = AutoModelForSequenceClassification.from_pretrained(folder)
    narrow.tokenizer.add_tokens(["<new>"])
    new = narrow.tokenizer.convert_tokens_to_ids("<new>")
    narrow.backbone.resize_token_embeddings(new)
    conversations = [*CONVERSATIONS[:1], ("Is this right?", "It is <new>.")]
    inputs = narrow.tokenizer(texts(narrow.tokenizer, conversations), return_tensors="pt", padding=True, add_special_tokens=False)
    with pytest.raises(UserError, match=f"row 1 of input_ids: the token id {new} has no embedding"):
        narrow(**inputs)


def test_it_does_not_pretend_to_train(folder: Path) -> None:
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(UserError, match="has no gradients"):
        logits(classifier, tokenizer)
    with torch.no_grad():
        assert logits(classifier, tokenizer) == pytest.approx(rewards(classifier), abs=1e-5)
    assert classifier.training


def test_arguments_that_mean_nothing_are_refused(folder: Path, classifier: SentenceRewardForSequenceClassification) -> None:
    with pytest.raises(UserError, match="num_labels is 3, and a reward is one number"):
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    with pytest.raises(TypeError, match="labels"):
        classifier(torch.ones(1, 4, dtype=torch.int64), labels=torch.ones(1))
    with pytest.raises(ValueError, match=r"must be \[B, L\], got \[1, 4\] and \[1, 3\]"):
        classifier(torch.ones(1, 4, dtype=torch.int64), torch.ones(1, 3))


def test_a_plain_decoder_is_no_reward_model(tiny_backbone_dir: Path) -> None:
    with pytest.raises(UserError, match="is a plain llama model"):
        SentenceRewardForSequenceClassification.from_pretrained(tiny_backbone_dir)
