"""What every command does with an error that its user can mend: one line, no traceback."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TextIO

from srm.errors import UserError
from srm.extras import EXTRAS, way_to_install
from srm.runs.limits import check_text
from srm.views.visible import visible

__all__ = ["LOG_FORMAT", "run", "say"]

_LONGEST_LINE = 2000
LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"

Command = Callable[[Sequence[str]], int | None]


class _Once(logging.Filter):
    """A warning that came already says nothing new: the tokenizer of the first pass is the model's too."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new = message not in self._said
        self._said.add(message)
        return is_new


class _VisibleFormatter(logging.Formatter):
    """Warnings quote rows and paths."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def say(line: str, *, file: TextIO | None = None) -> None:
    """Print a line of a command that draws no views; in a terminal it breaks between words."""
    text, file = visible(line), file or sys.stdout
    if file.isatty():
        text = textwrap.fill(text, shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False)
    # In one write, newline and all: `print` makes two, and lines of several processes would join.
    file.write(text + "\n")
    file.flush()


def run(
    command: Command,
    argv: Sequence[str] | None = None,
    *,
    name: str | None = None,
    needs: Sequence[str] = (),
    log_format: str = LOG_FORMAT,
) -> int:
    """Run `command` with the arguments and return the exit code for the shell.

    A `UserError`, a package of an extra that is not installed, a full disk, or a file that the system refuses becomes one line on stderr
    that begins with the command's name, and exit code 1; Ctrl-C exit code 130; a reader of our output that has gone, such as `head`,
    exit code 1 without a word. Anything else is our bug and keeps its traceback.

    Args:
        command: takes the arguments without the program's name; returns the exit code, or None for 0.
        argv: the arguments; those of the process where None.
        name: the command's name; `srm-train` for a function of the module `srm.cli.train` where None.
        log_format: of warnings on stderr.
        needs: modules of `srm.extras.EXTRAS` without which it cannot even say what its flags are: looked for before slow imports.
    """
    name = name or _name_of(command)
    for module in needs:
        if find_spec(module) is None:
            return _fail(name, way_to_install(module))
    handler = logging.StreamHandler()
    handler.setFormatter(_VisibleFormatter(log_format))
    handler.addFilter(_Once())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    argv = sys.argv[1:] if argv is None else argv
    try:
        for word, before in zip(argv, ["the command's name", *argv], strict=False):
            check_text(word, before)
        return command(argv) or 0
    except UserError as error:
        return _fail(name, str(error))
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return _fail(name, way_to_install(error.name))
    except BrokenPipeError:
        # Python would complain once more when it flushes the closed stream at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        return _fail(name, _refused(error))
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: interrupted\n")
        return 130


def _refused(error: OSError) -> str:
    """What to say of a disk that is full or a file that the system refuses; raises what is no fault of the user's places."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if error.filename else ""
        return f"no space left on the disk{where}. Free some, or write to another one."
    if error.filename is None or error.strerror is None:
        raise error
    return f"{error.filename}: {error.strerror.lower()}. Check the path and its permissions."


def _name_of(command: Command) -> str:
    """`srm-train` for srm.cli.train, also when it runs as `python -m srm.cli.train`."""
    scope = getattr(command, "__globals__", {})
    spec = scope.get("__spec__")
    module = spec.name if spec is not None else scope.get("__name__", "srm")
    return f"srm-{module.rsplit('.', 1)[-1]}"


def _fail(name: str, message: str) -> int:
    line = " ".join(message.split())
    if len(line) > _LONGEST_LINE:
        # It quotes what came, which may be megabytes.
        line = f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 2 :]}"
    say(f"{name}: {line}", file=sys.stderr)
    return 1
