"""The demo on a tiny random backbone: every step runs, what it saves works, and it says what to do next."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from srm import SentenceRewardModel
from srm.cli import demo as module
from srm.cli.demo import DemoSettings, demo, main
from srm.data.synthetic import generate_pairs

ARGUMENTS = ["--num_pairs", "6", "--num_eval_pairs", "5", "--batch_size", "2", "--seed", "3"]


@pytest.fixture(scope="module")
def backbone(tiny_backbone_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny backbone with room for answers of a hundred words, which its tokenizer spells letter by letter."""
    from transformers import AutoModel, AutoTokenizer

    path = tmp_path_factory.mktemp("long_backbone")
    model = AutoModel.from_pretrained(tiny_backbone_dir)
    model.config.max_position_embeddings = 2048
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_backbone_dir).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def finished(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder of one demo, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    console = Console(file=io.StringIO(), width=100)
    settings = DemoSettings(
        model_name_or_path=str(backbone), output_dir=folder, num_pairs=6, num_eval_pairs=5, batch_size=2, seed=3, learning_rate=1e-2
    )
    demo(settings, console)
    return folder, console.file.getvalue()


def test_demo_ends_with_everything_it_promises(finished: tuple[Path, str]) -> None:
    folder, text = finished
    report = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    before, after = report["before"], report["after"]
    # The head starts at zero: every pair ties, and so does every sentence.
    assert before["accuracy"] == 0.5
    assert before["credit"]["overall"]["auc"] == 0.5
    assert f"{after['accuracy']:.1%}" in text
    assert f"{after['longer_wins']:.1%}" in text
    assert f"{after['credit']['overall']['auc']:.3f}" in text
    for kind in after["credit"]["by_kind"]:
        assert kind.replace("_", " ") in text
    assert "chosen, reward" in text
    assert "<< " in text
    assert "srm-score --model" in text
    assert str(folder / "model") in text
    assert (folder / "pair.svg").read_text(encoding="utf-8").startswith("<svg")


def test_training_moved_the_model(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    report = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    model = SentenceRewardModel.from_pretrained(folder / "model")
    assert model.head.value.weight.abs().max() > 0
    assert report["settings"]["learning_rate"] == 1e-2
    pairs = generate_pairs(5, split="test", seed=3)
    scored = model.score([pair.prompt for pair in pairs], [[pair.chosen, pair.rejected] for pair in pairs])
    wins = sum((chosen.reward > rejected.reward) + (chosen.reward == rejected.reward) / 2 for chosen, rejected in scored)
    # The saved model is the one that was measured; bf16 autocast in the demo may turn a near tie.
    assert wins / 5 == pytest.approx(report["after"]["accuracy"], abs=0.21)


def test_pairs_are_written_for_other_commands(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    for name, num_pairs in (("train", 6), ("test", 5)):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert rows == [pair.to_row() for pair in generate_pairs(num_pairs, split=name, seed=3)]


def test_second_run_replaces_the_first(backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(backbone), "--output_dir", str(tmp_path / "out"), *ARGUMENTS]
    assert main(arguments) == 0
    first = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    assert main(arguments) == 0
    # The same seed trains the same weights.
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == first
    assert "Traceback" not in capsys.readouterr().err


def test_folder_with_other_things_is_left_alone(backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("mine", encoding="utf-8")
    assert main(["--model", str(backbone), "--output_dir", str(tmp_path), *ARGUMENTS]) == 1
    error = capsys.readouterr().err
    assert "srm-demo: --output_dir" in error
    assert "was not written by the demo" in error
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert main(["--model", str(backbone), "--output_dir", str(tmp_path / "thesis.tex"), *ARGUMENTS]) == 1
    assert "is a file" in capsys.readouterr().err


def test_numbers_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--num_pairs", "0"]) == 1
    assert "--num_pairs must be at least 1 and at most 2,147,483,647, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "fast"),
    [("fpu avx2 avx512f", False), ("fpu avx512_bf16", True), ("avx512f amx_bf16 amx_tile", True), (None, False)],
)
def test_bf16_only_where_the_cpu_multiplies_it(flags: str | None, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(path: Path, encoding: str) -> str:
        assert str(path) == "/proc/cpuinfo"
        if flags is None:
            raise FileNotFoundError(path)
        return f"model name\t: Some CPU\nflags\t\t: {flags}\n"

    monkeypatch.setattr(Path, "read_text", read_text)
    assert module.cpu_is_fast_at_bf16() is fast


def test_shown_pair_has_the_median_margin() -> None:
    class Answer:
        def __init__(self, reward: float) -> None:
            self.reward = reward

    margins = [3.0, -1.0, 0.5, 9.0, 1.0]
    result = type("Result", (), {"scored": [(Answer(margin), Answer(0.0)) for margin in margins]})
    assert margins[module._typical(result)] == 1.0
