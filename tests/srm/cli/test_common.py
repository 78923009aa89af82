"""Errors that a user can mend become one line; the rest keeps its traceback."""

from __future__ import annotations

import errno

import pytest

from srm.cli.common import run, say
from srm.errors import UserError
from srm.extras import MissingPackage


def raising(error: BaseException):
    def command(argv):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("pairs.jsonl line 3: `chosen` is empty.\nFix it."), 1, "srm-x: pairs.jsonl line 3: `chosen` is empty. Fix it.\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/f"),
            1,
            "srm-x: no space left on the disk for out/f. Free some, or write to another one.\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root/out.jsonl"),
            1,
            "srm-x: /root/out.jsonl: permission denied. Check the path and its permissions.\n",
        ),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "out"), 1, "srm-x: out: is a directory. Check the path and its permissions.\n"),
        (UserError("a\x1b]52;c;x\x07b\u202e"), 1, "srm-x: a\\x1b]52;c;x\\x07b\\u202e\n"),
        (KeyboardInterrupt(), 130, "srm-x: interrupted\n"),
        (ModuleNotFoundError("none", name="trl"), 1, "srm-x: trl is not installed. Run: pip install 'srm-kernels[trl]'\n"),
        (MissingPackage("--use_peft: peft is not installed.", name="peft"), 1, "srm-x: --use_peft: peft is not installed.\n"),
    ],
)
def test_one_line_and_an_exit_code(error, code, line, capsys):
    assert run(raising(error), [], name="srm-x") == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("ours"),
        OSError(errno.EACCES, "denied"),
        ModuleNotFoundError("of no extra", name="srm.typo"),
        ImportError("part", name="trl"),
    ],
)
def test_our_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run(raising(error), [])


def test_arguments_and_exit_codes_pass_through(monkeypatch):
    seen = []
    assert run(lambda argv: seen.append(list(argv)), ["a", "b"]) == 0
    monkeypatch.setattr("sys.argv", ["srm-x", "c"])
    assert run(lambda argv: seen.append(list(argv)) or 7) == 7
    assert seen == [["a", "b"], ["c"]]


def test_the_name_is_the_modules(capsys):
    scope = {"__name__": "srm.cli.score", "UserError": UserError}
    exec("def command(argv): raise UserError('no')", scope)
    assert run(scope["command"], []) == 1
    assert capsys.readouterr().err == "srm-score: no\n"


def test_a_line_breaks_between_words_in_a_terminal_alone(monkeypatch, capsys):
    line = "attention: sdpa in float32 on cpu: a call per segment (passed over 5 others), see outputs/a-name-with-hyphens-that-stays-whole"
    say(line)
    assert capsys.readouterr().out == line + "\n"
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    say(line)
    shown = capsys.readouterr().out.splitlines()
    assert " ".join(shown) == line
    assert len(shown) == 3
    assert shown[-1] == "outputs/a-name-with-hyphens-that-stays-whole"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert run(raising(UserError(line)), [], name="srm-x") == 1
    assert capsys.readouterr().err.splitlines()[0] == "srm-x: attention: sdpa in float32 on cpu: a call"
