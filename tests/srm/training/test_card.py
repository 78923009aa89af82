"""The card beside a saved model says what it is, where it comes from and how to use it."""

from __future__ import annotations

import pytest
import yaml

from srm import SentenceRewardModel
from srm.training import ModelArguments
from srm.training.lora import add_adapters


@pytest.mark.parametrize("peft", [False, True])
def test_a_saved_model_has_a_card(new_model, rows, make_trainer, tmp_path, peft):
    model = new_model()
    model.name_or_path = "someone/base"
    if peft:
        pytest.importorskip("peft")
        model = add_adapters(model, ModelArguments(use_peft=True))
    trainer = make_trainer(model, rows, eval_dataset=rows[:4], max_steps=1, learning_rate=3e-4, hub_model_id="me/reward")
    trainer.data_name = "someone/pairs|x"
    trainer.train()
    accuracy = trainer.evaluate()["eval_accuracy"]
    trainer.save_model()
    card = (tmp_path / "run" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "someone/base"
    assert "SentenceRewardModel.from_pretrained('me/reward')" in text
    for key, value in {
        "base model": "someone/base",
        "training data": r"someone/pairs\|x",
        "rows": len(rows),
        "steps": 1,
        "learning rate": "0.0003, head 0.003, attention 5e-06",
        "evaluation: accuracy": f"{accuracy:.4g}",
    }.items():
        assert f"| {key} | {value} |" in text
    # What goes to the hub is the same, and Trainer's own draft is not asked.
    (tmp_path / "run" / "README.md").unlink()
    trainer.create_model_card(model_name="x")
    assert (tmp_path / "run" / "README.md").read_text() == card
    # Its metadata may be asked for.
    trainer.create_model_card(license="mit", tags="mine")
    front = yaml.safe_load((tmp_path / "run" / "README.md").read_text().split("---\n")[1])
    assert front["license"] == "mit"
    assert front["tags"] == ["reward-model", "sentence-level", "srm", "mine"]


def test_a_card_names_no_place_on_this_machine(new_model, rows, make_trainer, tmp_path):
    trainer = make_trainer(new_model(), rows)
    trainer.data_name = str(tmp_path)
    trainer.save_model()
    card = (tmp_path / "run" / "README.md").read_text()
    assert str(tmp_path) not in card
    assert "base_model" not in card
    assert SentenceRewardModel.from_pretrained(tmp_path / "run").tokenizer is not None
