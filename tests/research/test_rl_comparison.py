"""The comparison's table and plot, from runs made up here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from research import rl_comparison
from research.rl_comparison import REPO, plot, table
from srm.rl.arguments import parse_rl_config


def made_up() -> dict[str, Any]:
    """Four steps of two prompts each, four prompts: a pass is two steps."""
    runs = []
    for kind, slope in (("sentence", 1.0), ("response", 0.5)):
        for seed in (0, 1):
            steps = [
                {"episodes": 8 * (at + 1), "reward": slope * at + seed, "kl": at, "length": 30.0, "entropy": 2.0, "seconds": 1.5}
                for at in range(4)
            ]
            runs.append({"reward": kind, "seed": seed, "seconds": 1.0, "settings": {"num_generations": 4}, "steps": steps})
    return {"num_prompts": 4, "seeds": [0, 1], "device": "a test", "runs": runs}


def test_table_compares_the_first_and_the_last_pass() -> None:
    head, sentence, response = table(made_up()).splitlines()
    assert head.split() == ["--reward", "reward,", "first", "pass", "last", "pass", "kl", "length", "entropy", "s/step"]
    # Means of steps 0, 1 and of 2, 3, and those of the second seed one higher.
    assert sentence.split()[:10] == ["sentence", "1.00", "±", "0.50", "3.00", "±", "0.50", "2.50", "±", "0.00"]
    assert response.split()[:7] == ["response", "0.75", "±", "0.50", "1.75", "±", "0.50"]


def test_plot_is_written(tmp_path: Path) -> None:
    plot(made_up(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_stopped_comparison_keeps_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, began = tmp_path / "rl.json", []

    def run(kind: str, seed: int, *_: Any) -> dict[str, Any]:
        began.append((seed, kind))
        if len(began) == 2:
            raise KeyboardInterrupt
        return next(one for one in made_up()["runs"] if (one["seed"], one["reward"]) == (seed, kind))

    def call(*words: str) -> None:
        command = ["--reward_model", str(tmp_path), "--json", str(out), "--seeds", "0", "1", "--num_prompts", "4", "--resume"]
        monkeypatch.setattr("sys.argv", ["rl_comparison.py", *command, *words])
        rl_comparison.main()

    monkeypatch.setattr(rl_comparison, "_run", run)
    with pytest.raises(KeyboardInterrupt):
        call()
    call()
    assert began == [(0, "sentence"), (0, "response"), (0, "response"), (1, "sentence"), (1, "response")]
    assert len(json.loads(out.read_text())["runs"]) == 4
    call()
    assert len(began) == 5
    # Other flags are another comparison.
    call("--max_steps", "2")
    assert len(began) == 9
    # And so is another reward model in the same place.
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    call("--max_steps", "2")
    assert len(began) == 13


def test_no_run_begins_that_would_end_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    began = []

    def run(kind: str, seed: int, *_: Any) -> dict[str, Any]:
        began.append((seed, kind))
        return next(one for one in made_up()["runs"] if (one["seed"], one["reward"]) == (seed, kind)) | {"seconds": 50.0}

    def call(minutes: str) -> None:
        words = [
            "--reward_model",
            str(tmp_path),
            "--json",
            str(tmp_path / "rl.json"),
            "--seeds",
            "0",
            "1",
            "--num_prompts",
            "4",
            "--resume",
        ]
        monkeypatch.setattr("sys.argv", ["rl_comparison.py", *words, "--minutes", minutes])
        rl_comparison.main()

    monkeypatch.setattr(rl_comparison, "_run", run)
    # Nothing is known of the first run's time; of the second one it is.
    with pytest.raises(SystemExit) as ended:
        call("0.5")
    assert (ended.value.code, began) == (75, [(0, "sentence")])
    assert "1 of 4 runs are done" in capsys.readouterr().err
    call("1")
    assert len(began) == 4


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_example_it_runs_is_readable_by_the_command(name: str) -> None:
    file = REPO / "examples" / "rl" / rl_comparison.BUDGETS[name][1]
    config = parse_rl_config(["--config", str(file)])
    written = yaml.safe_load(file.read_text())
    assert all(getattr(config, name) == value for name, value in written.items())
