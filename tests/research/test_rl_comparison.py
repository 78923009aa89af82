"""The comparison's table and plot, from runs made up here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

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
            runs.append({"reward": kind, "seed": seed, "settings": {"num_generations": 4}, "steps": steps})
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


def test_the_example_it_runs_is_readable_by_the_command() -> None:
    file = REPO / "examples" / "rl" / "cpu.yaml"
    config = parse_rl_config(["--config", str(file)])
    written = yaml.safe_load(file.read_text())
    assert all(getattr(config, name) == value for name, value in written.items())
