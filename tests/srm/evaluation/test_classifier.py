"""Plain reward models: one output, a chat template, padded batches of like length."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from srm import SentenceRewardModel
from srm.errors import UserError
from srm.evaluation.classifier import ClassifierModel, is_classifier

PROMPTS = ["Is it warm?", [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Bread?"}], "Why?"]
RESPONSES = ["It was warm there.", "Bread needs flour, water, salt and time. Bread needs time.", "No."]


def build(path: Path, tokenizer_dir: Path, *, num_labels: int = 1, positions: int = 256) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
        initializer_range=0.2,
        num_labels=num_labels,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer_dir: Path) -> Path:
    return build(tmp_path / "classifier", tiny_tokenizer_dir)


def test_kinds_of_model(folder: Path, tiny_backbone_dir: Path, tmp_path: Path) -> None:
    assert is_classifier(str(folder))
    assert not is_classifier(str(tiny_backbone_dir))
    with pytest.raises(UserError, match="no model could be loaded"):
        is_classifier(str(tmp_path))


def test_rewards_are_the_model_s_own(folder: Path) -> None:
    """Each row alone, written out with the template, through the class that transformers has for it."""
    model = ClassifierModel(str(folder))
    reference = LlamaForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in [*turns, {"role": "assistant", "content": response}])
        with torch.no_grad():
            expected.append(reference(torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])).logits.item())
    assert model.score(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 3


@pytest.mark.parametrize("tokens_per_batch", [1, 100, 8192])
def test_batches_do_not_change_a_reward(folder: Path, tokens_per_batch: int) -> None:
    model = ClassifierModel(str(folder))
    alone = [model.score([prompt], [response])[0] for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    assert model.score(PROMPTS, RESPONSES, tokens_per_batch=tokens_per_batch) == pytest.approx(alone, abs=1e-5)


def test_too_long_a_row_is_named_or_cut(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    model = ClassifierModel(str(build(tmp_path / "short", tiny_tokenizer_dir, positions=40)))
    long, short = "Bread needs salt. " * 30, "No."
    with pytest.raises(UserError, match=r"here: prompt and response are \d+ tokens, the limit is 40"):
        model.score(["Hi"], [long], where=["here"])
    # Cut on the right, what follows the cut does not matter; on the left, what comes before it.
    right = model.score(["Hi", "Hi"], [long, long + short], overlong="truncate_response")
    assert right[0] == right[1]
    left = model.score([long, short + long], [short, short], overlong="truncate_prompt")
    assert left[0] == left[1]
    assert right[0] != left[0]


def test_models_that_are_no_reward_models(tmp_path: Path, tiny_tokenizer_dir: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"has 2 outputs, and a reward model has one \(num_labels=1\)"):
        ClassifierModel(str(build(tmp_path / "two", tiny_tokenizer_dir, num_labels=2)))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="its tokenizer has no chat template"):
        ClassifierModel(str(folder))


def test_a_model_without_a_pad_token(folder: Path) -> None:
    """It reads the reward at the last token that is not eos, in a batch and alone."""
    for name in ("config.json", "tokenizer_config.json"):
        fields = json.loads((folder / name).read_text())
        fields.pop("pad_token", None)
        fields.pop("pad_token_id", None)
        (folder / name).write_text(json.dumps(fields))
    model = ClassifierModel(str(folder))
    assert model.model.config.pad_token_id == model.tokenizer.eos_token_id
    alone = [model.score([prompt], [response])[0] for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    assert model.score(PROMPTS, RESPONSES) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("pad", [5, -1])
def test_a_configuration_with_another_pad_token_than_its_tokenizer(folder: Path, pad: int) -> None:
    """Rows are padded with the token behind which the model looks, and with the tokenizer's where it has no such token."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": pad}))
    model = ClassifierModel(str(folder))
    assert model.tokenizer.pad_token_id not in (pad, None)
    assert model.pad_token_id == (pad if pad > 0 else model.tokenizer.pad_token_id)
    alone = [model.score([prompt], [response])[0] for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    assert model.score(PROMPTS, RESPONSES) == pytest.approx(alone, abs=1e-5)


def test_a_classifier_is_loaded_whole(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight for name, weight in weights.items() if name != "score.weight"}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"1 missing \(score.weight\)"):
        ClassifierModel(str(folder))


@pytest.fixture(scope="module")
def trl_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Any]]:
    """trl_adapter(base, **settings): what TRL's RewardTrainer leaves after two steps with LoRA, and the trainer."""
    pytest.importorskip("peft")
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from peft import LoraConfig

    def train(base: Path, **settings: Any) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp("trl")
        arguments = trl.RewardConfig(
            output_dir=str(folder), max_steps=2, learning_rate=1e-1, bf16=False, report_to=[], use_cpu=True, disable_tqdm=True
        )
        say = [{"role": "user", "content": "Is it warm?"}], "It was warm there.", "No, it is wrong!"
        row = {"prompt": say[0]} | {
            key: [{"role": "assistant", "content": text}] for key, text in zip(("chosen", "rejected"), say[1:], strict=True)
        }
        adapter = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], **settings)
        trainer = trl.RewardTrainer(model=str(base), args=arguments, train_dataset=Dataset.from_list([row] * 4), peft_config=adapter)
        trainer.train()
        trainer.save_model()
        return folder, trainer

    return train


def trl_rewards(trainer: Any) -> list[float]:
    """Of the first row, as TRL itself has tokenized it, by the model that it holds."""
    row, model = trainer.train_dataset[0], trainer.model.eval()
    with torch.no_grad():
        return [float(model(torch.tensor([row[f"{name}_ids"]])).logits[0, 0]) for name in ("chosen", "rejected")]


def test_an_adapter_of_trl_is_a_classifier(trl_adapter: Callable[..., tuple[Path, Any]], tiny_policy_dir: Path) -> None:
    """`trl reward --use_peft --lora_task_type SEQ_CLS` saves the adapter and the output layer; the model below has none."""
    folder, trainer = trl_adapter(tiny_policy_dir, task_type="SEQ_CLS")
    assert is_classifier(str(folder))
    expected = trl_rewards(trainer)
    assert expected[0] != expected[1]
    found = ClassifierModel(str(folder)).score(["Is it warm?"] * 2, ["It was warm there.", "No, it is wrong!"])
    assert found == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match=r"a sequence classifier, whose reward is one number and has no sentences\. srm-eval reads it"):
        SentenceRewardModel.from_pretrained(folder)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: weight for name, weight in weights.items() if "score" not in name}, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="the adapter could not be loaded"):
        ClassifierModel(str(folder))


def test_an_adapter_of_trl_without_a_task(trl_adapter: Callable[..., tuple[Path, Any]], tiny_policy_dir: Path, folder: Path) -> None:
    """peft then saves no output layer: it is the base's own, or it is lost and no number means anything."""
    on_classifier, trainer = trl_adapter(folder)
    found = ClassifierModel(str(on_classifier)).score(["Is it warm?"] * 2, ["It was warm there.", "No, it is wrong!"])
    assert found == pytest.approx(trl_rewards(trainer), abs=1e-5)
    lost, _ = trl_adapter(tiny_policy_dir)
    assert is_classifier(str(lost))
    with pytest.raises(UserError, match=r"saved without the output layer that gives the reward \(score.weight\).*--lora_task_type SEQ_CLS"):
        ClassifierModel(str(lost))
