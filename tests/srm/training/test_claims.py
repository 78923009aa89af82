"""The trainer of Python refuses a folder where srm-train refuses it: a model is not lost by running a cell again."""

from __future__ import annotations

from pathlib import Path

import pytest

from srm.errors import UserError

REFUSED = r"--output_dir .*run is not empty\. Go on with --resume_from_checkpoint true, start anew with --overwrite_output_dir, or give"
SAVES = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_model_is_not_trained_over(new_model, rows, make_trainer, run):
    trainer = make_trainer(new_model(), rows, max_steps=1)
    trainer.train()
    trainer.save_model()
    # Its own folder stays its own.
    trainer.train()
    trainer.save_model()
    before = weights(run)
    again = make_trainer(new_model(awake=True), rows, max_steps=1)
    for write in (again.train, again.save_model):
        with pytest.raises(UserError, match=REFUSED):
            write()
    assert weights(run) == before
    fresh = make_trainer(new_model(awake=True), rows, max_steps=1, overwrite_output_dir=True)
    fresh.train()
    fresh.save_model()
    assert weights(run) != before


def test_a_run_up_to_a_checkpoint_is_gone_on_with_or_left(new_model, rows, make_trainer, run):
    make_trainer(new_model(), rows, max_steps=1, **SAVES).train()
    with pytest.raises(UserError, match=r"holds a run up to checkpoint-1\. Go on with --resume_from_checkpoint true"):
        make_trainer(new_model(), rows, max_steps=2, **SAVES).train()
    resumed = make_trainer(new_model(), rows, max_steps=2, **SAVES)
    resumed.train(resume_from_checkpoint=True)
    resumed.save_model()
    assert (run / "checkpoint-2").is_dir()
    make_trainer(new_model(), rows, max_steps=1, overwrite_output_dir=True).train()
    assert not list(run.glob("checkpoint-*"))


def test_somebody_elses_model_is_not_overwritten_even_when_asked(new_model, rows, make_trainer, run):
    run.mkdir()
    (run / "config.json").write_text("{}")
    for write in ("train", "save_model"):
        with pytest.raises(UserError, match=r"holds config\.json, and no settings of a run that wrote it"):
            getattr(make_trainer(new_model(), rows, max_steps=1, overwrite_output_dir=True), write)()


def test_a_folder_to_save_into_is_looked_at_too(new_model, rows, make_trainer, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    trainer = make_trainer(new_model(), rows)
    with pytest.raises(UserError, match=r"--output_dir .*other is not empty"):
        trainer.save_model(str(other))
    trainer.save_model(str(tmp_path / "new"))
    assert (tmp_path / "new" / "model.safetensors").is_file()


def test_evaluation_needs_no_empty_folder_and_its_logs_fill_none(new_model, rows, make_trainer, run):
    pytest.importorskip("tensorboard")
    trainer = make_trainer(new_model(), rows, eval_dataset=rows, max_steps=1, report_to="tensorboard")
    trainer.evaluate()
    trainer.train()
    trainer.save_model()
    assert make_trainer(new_model(), None, eval_dataset=rows).evaluate()["eval_loss"] > 0
