"""Text of data and paths is shown as it stands by every command: no markup, no escape sequences, on either stream."""

from __future__ import annotations

import ast
import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import srm
from srm import SentenceRewardModel
from srm.cli import eval, score
from srm.cli.common import _VisibleFormatter
from srm.cli.terminal import Terminal

EVIL = "\x1b]0;owned\x07 [/INST] \x1b[2J [/bold] \x1b]52;c;eA==\x07 \x9b8m \u202e [red]x"


@pytest.fixture(scope="module")
def model_dir(awake_model: Callable[..., SentenceRewardModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    awake_model().save_pretrained(path)
    return path


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def harmless(text: str) -> bool:
    return not any(character in text for character in "\x1b\x07\x9b\u202e")


def test_srm_score_shows_words_as_they_are(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"subset": EVIL, "section": EVIL, "prompt": EVIL, "chosen": f"It is. {EVIL}", "rejected": "No."}
    marked = {"id": EVIL, "prompt": EVIL, "response": EVIL, "errors": [{"start": 0, "end": 5, "type": EVIL}]}
    source = write(tmp_path / "run[" / "1]" / "p.jsonl", row, marked)
    folder = tmp_path / "out[" / "1]" / "\x1b[8m"
    folder.mkdir(parents=True)
    argv = ["--model", str(model_dir), "--input", source, "--output", str(folder / "o.jsonl"), "--html", str(folder / "o.html"), "--show"]
    assert score.main(argv) == 0
    out, err = capsys.readouterr()
    assert harmless(out + err)
    assert out.count("[/INST]") >= 5
    assert "[/1]" in err.replace("\n", "")
    # The page holds it as data, which its script shows as text.
    assert "<" not in json.dumps(EVIL)


def test_srm_eval_shows_words_as_they_are(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"subset": f"{EVIL}{n % 2}", "section": EVIL, "prompt": f"p{n}", "chosen": "a b.", "rejected": "c"} for n in range(4)]
    source = write(tmp_path / "[/suite].jsonl", *rows)
    assert eval.main(["--model", str(model_dir), "--suite", source, "--output_dir", str(tmp_path / "e[/x]"), "--draws", "100"]) == 0
    out, err = capsys.readouterr()
    assert harmless(out + err)
    assert "[/INST]" in out


def test_names_of_the_data_are_no_formulas(model_dir: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    names = ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "$\\frac{", "plain", "今天"]
    rows = [{"subset": name, "prompt": f"p{name}", "chosen": "a b.", "rejected": "c"} for name in names]
    rows += [{**row, "section": row["subset"]} for row in rows]
    source = write(tmp_path / "$x^{.jsonl", *rows)
    assert eval.main(["--model", str(model_dir), "--suite", source, "--output_dir", str(tmp_path / "e"), "--draws", "100"]) == 0
    with (tmp_path / "e" / "results.csv").open(newline="", encoding="utf-8") as file:
        cells = {cell for line in csv.reader(file) for cell in line[:3]}
    assert not [cell for cell in cells if cell.lstrip().startswith(("=", "+", "-", "@"))]
    assert {"'=1+1", "'\t=1"} <= cells
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


@pytest.mark.parametrize(("main", "flags"), [(score.main, ("--input", "--output")), (eval.main, ("--suite", "--output_dir"))])
def test_errors_show_words_as_they_are(
    main: Callable[..., int], flags: tuple[str, str], model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "\x1b[2J.jsonl", {"prompt": "p", EVIL: 1})
    assert main(["--model", str(model_dir), flags[0], source, flags[1], str(tmp_path / "o")]) == 1
    err = capsys.readouterr().err
    assert harmless(err)
    assert r"\x1b[2J.jsonl line 1" in err


def test_warnings_show_words_as_they_are() -> None:
    record = logging.LogRecord("srm", logging.WARNING, "", 0, "%s: dropped", (EVIL,), None)
    assert harmless(_VisibleFormatter("%(message)s").format(record))


def test_a_terminal_takes_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table("[bold]head", title=EVIL)
    table.add_row("[/x]")
    console = Terminal(width=200)
    console.print(table)
    console.print(":smile:", EVIL)
    out = capsys.readouterr().out
    assert harmless(out)
    assert all(word in out for word in ("[bold]head", "[/x]", ":smile:", "[red]x"))


def test_commands_and_views_print_through_terminal() -> None:
    """Consoles of their own would take markup. Bars with fixed words need none of this."""
    root = Path(srm.__file__).parent
    allowed = {"cli/terminal.py", "views/terminal.py", "data/dataset.py", "scoring/run.py"}
    for path in sorted(root.rglob("*.py")):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        names = {getattr(call, "id", getattr(call, "attr", "")) for call in calls}
        name = path.relative_to(root).as_posix()
        assert "Console" not in names or name in allowed, name
        if name.startswith("cli/"):
            assert "print" not in {getattr(call, "id", "") for call in calls} or name in ("cli/common.py", "cli/train.py"), name
