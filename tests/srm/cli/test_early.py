"""What can be known to fail fails before a model is loaded, and what the guide tells people to type works."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import srm.training.build
from srm.cli.train import main
from srm.training import early

ROOT = Path(__file__).resolve().parents[3]
Flags = Callable[..., list[str]]


@pytest.fixture
def flags(tiny_backbone_dir: Path, tmp_path: Path) -> Flags:
    """flags(*more, **instead): of a run of one step."""
    lines = [json.dumps({"prompt": f"Is it {index}?", "chosen": "It is.", "rejected": "No. It is not."}) for index in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))

    def make(*more: str, **instead: Any) -> list[str]:
        usual = {"model_name_or_path": tiny_backbone_dir, "dataset_name": tmp_path / "pairs.jsonl", "output_dir": tmp_path / "out"}
        usual |= {"max_steps": 1, "use_cpu": "true"}
        return [word for name, value in {**usual, **instead}.items() for word in (f"--{name}", str(value))] + list(more)

    return make


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a model, or as much as a tokenizer, is touched."""

    def touched(*arguments: Any, **settings: Any) -> None:
        pytest.fail("a model was touched")

    for name in ("build_model", "load_tokenizer"):
        monkeypatch.setattr(srm.training.build, name, touched)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset_name", "./piars.jsonl"], "piars.jsonl: no such file or folder. Check the path."),
        (["--dataset_name", "data/pairs/"], "data/pairs: no such file or folder"),
        (["--eval_dataset_name", "./gone.jsonl"], "gone.jsonl: no such file or folder"),
        (["--datasets", '[{"path": "gone.jsonl"}]'], "gone.jsonl: no such file or folder"),
        (
            ["--eval_strategy", "steps"],
            "--eval_strategy steps needs pairs to evaluate on, and pairs.jsonl is all training data. Add --eval_d",
        ),
        (["--metric_for_best_model", "foo"], "--metric_for_best_model foo: evaluations yield no such metric. Choose from loss, "),
        (["--metric_for_best_model", "eval_acuracy"], "no such metric; did you mean accuracy"),
        (["--report_to", "nonsense"], "--report_to nonsense: nonsense is not supported"),
        (["--model_name_or_path", "./gone"], "./gone: no such folder. Check the path."),
    ],
)
def test_a_run_that_cannot_be_is_refused(
    flags: Flags, no_model: None, more: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(flags(*more)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out" / "srm_train.yaml").exists()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--use_peft"], "srm-train: --use_peft: peft is not installed. Run: pip install 'srm-kernels[peft]'"),
        (["--use_liger_kernel"], "srm-train: --use_liger_kernel: liger_kernel is not installed. Run: pip install 'srm-kernels[liger]'"),
        (["--segmenter", "sat"], "srm-train: --segmenter sat: wtpsplit is not installed. Run: pip install 'srm-kernels[sat]'"),
        (["--segmenter", "punkt_tab"], "srm-train: --segmenter punkt_tab: nltk is not installed. Run: pip install 'srm-kernels[nltk]'"),
    ],
)
def test_a_missing_extra_is_told_first(
    flags: Flags, no_model: None, more: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    optional = {"peft", "liger_kernel", "wtpsplit", "nltk"}
    monkeypatch.setattr(early, "find_spec", lambda name: None if name in optional else importlib.util.find_spec(name))
    assert main(flags(*more)) == 1
    assert capsys.readouterr().err.splitlines() == [line]


def test_a_bad_row_is_found_first(flags: Flags, no_model: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p", "chosen": "a"}\n')
    assert main(flags()) == 1
    assert "pairs.jsonl line 2" in capsys.readouterr().err


def test_a_folder_that_is_not_empty_is_found_first(
    flags: Flags, no_model: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert main(flags()) == 1
    assert "is not empty. Go on with --resume_from_checkpoint true" in capsys.readouterr().err


def test_the_documented_lora_command_works_as_typed(
    tiny_backbone_dir: Path, flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another model, and one step; the rest is what the guide says."""
    pytest.importorskip("peft")
    guide = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^srm-train (--config examples/configs/train_lora\.yaml .*)$", guide, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    flags()
    small = ["--model_name_or_path", str(tiny_backbone_dir), "--max_steps", "1", "--use_cpu", "--lora_target_modules", "q_proj"]
    assert main([*shlex.split(command), *small]) == 0
    assert (tmp_path / "outputs" / "lora" / "adapter_model.safetensors").is_file()


@pytest.mark.usefixtures("no_model")
def test_no_way_to_the_hub_is_said_before_a_push(flags: Flags, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srm.hub._problem", lambda: "no route")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert main(flags("--push_to_hub")) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert "srm-train: --push_to_hub: https://huggingface.co cannot be reached: no network (no route). Connect. Or leave" in err


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="it is installed")
def test_deepspeed_names_its_extra(flags: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags("--deepspeed", "ds.json")) == 1
    assert "--deepspeed: deepspeed is not installed. Run: pip install 'srm-kernels[deepspeed]'" in capsys.readouterr().err
