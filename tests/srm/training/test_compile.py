"""--torch_compile: the backbone alone is compiled, packing stays on, and the losses are those of eager."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from srm.cli.train import main
from srm.modeling import SentenceRewardModel
from srm.packing import report
from srm.training import ModelArguments
from srm.training.lora import add_adapters


def graphs() -> int:
    """How many have been compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "settings", "lora"),
    [
        # What aot_eager traces, the tests of packing compile too.
        ("eager", {}, False),
        ("eager", {"packing": "none"}, False),
        ("eager", {"gradient_checkpointing": True, "bf16": True}, False),
        ("eager", {"tokens_per_batch": 150}, True),
    ],
    ids=["packed", "padded", "checkpointing and autocast", "LoRA and several passes"],
)
def test_losses_are_those_of_eager(new_model, rows, make_trainer, backend, settings, lora):
    def run(**compiled):
        """Losses of two epochs of six steps and an evaluation, and how many graphs there were after each step."""
        model = new_model(awake=True)
        model.backbone.layers = model.backbone.layers[:1]
        if lora:
            model = add_adapters(model, ModelArguments(use_peft=True, lora_r=4, lora_dropout=0.0))
        trainer = make_trainer(model, rows, eval_dataset=rows[:6], num_train_epochs=2, **settings, **compiled)
        compiled_after = [graphs()]
        step = trainer.training_step

        def counted(*args, **kwargs):
            loss = step(*args, **kwargs)
            compiled_after.append(graphs())
            return loss

        trainer.training_step = counted
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] + [trainer.evaluate()["eval_loss"]]
        return trainer, losses, compiled_after

    eager, expected, no_graphs = run()
    assert eager.compiled_with is None
    assert len(set(no_graphs)) == 1
    trainer, losses, compiled_after = run(torch_compile_backend=backend)
    assert trainer.compiled_with == backend
    assert compiled_after[1] > compiled_after[0], "nothing was compiled"
    # The second layout makes lengths dynamic, a short last batch the number of padded rows. From then on nothing compiles again.
    assert compiled_after[12] == compiled_after[6]
    assert report(trainer.reward_model.backbone).attention == ("sdpa" if settings.get("packing") == "none" else "srm_packed")
    assert len(expected) == 13
    assert losses == pytest.approx(expected, rel=0.02 if "bf16" in settings else 1e-4)


def test_accelerate_launch_may_ask_for_it(new_model, make_trainer, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
    trainer = make_trainer(new_model(), None)
    assert trainer.compiled_with == "aot_eager"
    assert trainer.reward_model.backbone._compiled_call_impl is not None
    assert trainer.model._compiled_call_impl is None
    assert trainer.accelerator.state.dynamo_plugin.backend.value == "NO", "accelerate would compile the whole model"


def test_the_command_says_so_and_saves_a_plain_model(tiny_backbone_dir, pairs_file, tmp_path, capsys):
    flags = ["--model_name_or_path", str(tiny_backbone_dir), "--dataset_name", str(pairs_file), "--attention_size", "8", "--use_cpu"]
    flags += ["--disable_tqdm", "true", "--max_steps", "2"]
    assert main([*flags, "--output_dir", str(tmp_path / "eager")]) == 0
    assert "compiled" not in capsys.readouterr().out
    assert main([*flags, "--output_dir", str(tmp_path / "compiled"), "--torch_compile", "--torch_compile_backend", "eager"]) == 0
    out = capsys.readouterr().out
    assert "the backbone compiled with eager" in out
    assert "attention: sdpa" in out
    eager, compiled = (load_file(tmp_path / name / "model.safetensors") for name in ("eager", "compiled"))
    assert eager.keys() == compiled.keys()
    assert SentenceRewardModel.from_pretrained(tmp_path / "compiled").score(["Is this right?"], ["It is warm."])[0].reward != 0
