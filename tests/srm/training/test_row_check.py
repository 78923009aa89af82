"""Rows that the trainer cannot take get one line."""

from __future__ import annotations

import pytest

from srm.errors import UserError
from srm.training import RewardConfig
from srm.training.metrics import METRICS


@pytest.mark.parametrize("evaluated", [False, True])
def test_rows_over_the_limit_are_refused(new_model, rows, make_trainer, evaluated):
    longest = max(len(row.prompt_ids) + len(response.ids) for row in rows for response in row.responses)
    trainer = make_trainer(new_model(), rows, eval_dataset=rows, max_length=longest - 1, overlong="error")
    with pytest.raises(UserError, match=rf"pairs.jsonl.* have {longest} tokens, and max_length is {longest - 1}. Give encode_comparisons"):
        trainer.evaluate() if evaluated else trainer.train()
    assert make_trainer(new_model(), rows, max_length=longest, max_steps=1).train().global_step == 1


def test_rows_of_text_are_refused(new_model, make_trainer):
    row = {"prompt": "Where?", "chosen": "Here.", "rejected": "There."}
    with pytest.raises(UserError, match=r"row 1 is a dict, .* Encode them first: `rows, report = encode_comparisons\("):
        make_trainer(new_model(), [row]).train()


@pytest.mark.parametrize("name", ["overlong", "packing", "last_layer_rows"])
def test_choices_are_checked_when_the_settings_are_made(tmp_path, name):
    with pytest.raises(UserError, match=f"--{name} must be one of .*, got 'x'"):
        RewardConfig(output_dir=str(tmp_path), **{name: "x"})


def test_metrics_are_named_before_they_are_there(new_model, rows, make_trainer):
    got = {name.removeprefix("eval_") for name in make_trainer(new_model(), rows, eval_dataset=rows).evaluate()}
    assert got <= {*METRICS, "runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch"}
