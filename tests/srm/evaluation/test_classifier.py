"""Plain reward models: one output, a chat template, padded batches of like length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

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
    import json

    for name in ("config.json", "tokenizer_config.json"):
        fields = json.loads((folder / name).read_text())
        fields.pop("pad_token", None)
        fields.pop("pad_token_id", None)
        (folder / name).write_text(json.dumps(fields))
    model = ClassifierModel(str(folder))
    assert model.model.config.pad_token_id == model.tokenizer.eos_token_id
    alone = [model.score([prompt], [response])[0] for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    assert model.score(PROMPTS, RESPONSES) == pytest.approx(alone, abs=1e-5)


def test_a_classifier_is_loaded_whole(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight for name, weight in weights.items() if name != "score.weight"}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"1 missing \(score.weight\)"):
        ClassifierModel(str(folder))


def test_an_adapter_of_trl_is_a_classifier(tiny_policy_dir: Path, tmp_path: Path) -> None:
    """`trl reward --use_peft` saves the adapter and the output layer; the model below is a language model without one."""
    peft = pytest.importorskip("peft")
    base = AutoModelForSequenceClassification.from_pretrained(tiny_policy_dir, num_labels=1)
    base.config.pad_token_id = 0
    adapted = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score"]))
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.3)
    adapted.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_policy_dir).save_pretrained(tmp_path)
    assert is_classifier(str(tmp_path))
    model = ClassifierModel(str(tmp_path))
    with torch.no_grad():
        expected = adapted.eval()(torch.tensor([model._encode("Hi", "There.")])).logits.item()
    assert model.score(["Hi"], ["There."]) == pytest.approx([expected], abs=1e-5)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file({name: weight for name, weight in weights.items() if "score" not in name}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="the adapter could not be loaded"):
        ClassifierModel(str(tmp_path))
