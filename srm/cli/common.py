"""What every command does with an error that its user can mend: one line, no traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from srm.errors import UserError
from srm.extras import EXTRAS, way_to_install

__all__ = ["run"]

Command = Callable[[Sequence[str]], int | None]


def run(command: Command, argv: Sequence[str] | None = None, *, name: str | None = None, needs: Sequence[str] = ()) -> int:
    """Run `command` with the arguments and return the exit code for the shell.

    A `UserError`, a package of an extra that is not installed, or a full disk becomes one line on stderr that begins with the
    command's name, and exit code 1; Ctrl-C exit code 130. Anything else is our bug and keeps its traceback.

    Args:
        command: takes the arguments without the program's name; returns the exit code, or None for 0.
        argv: the arguments; those of the process where None.
        name: the command's name; `srm-train` for a function of the module `srm.cli.train` where None.
        needs: modules of `srm.extras.EXTRAS` without which it cannot even say what its flags are: looked for before slow imports.
    """
    name = name or _name_of(command)
    for module in needs:
        if find_spec(module) is None:
            return _fail(name, way_to_install(module))
    try:
        return command(sys.argv[1:] if argv is None else argv) or 0
    except UserError as error:
        return _fail(name, " ".join(str(error).split()))
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return _fail(name, way_to_install(error.name))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" for {error.filename}" if error.filename else ""
        return _fail(name, f"no space left on the disk{where}. Free some, or write to another one.")
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def _name_of(command: Command) -> str:
    """`srm-train` for srm.cli.train, also when it runs as `python -m srm.cli.train`."""
    scope = getattr(command, "__globals__", {})
    spec = scope.get("__spec__")
    module = spec.name if spec is not None else scope.get("__name__", "srm")
    return f"srm-{module.rsplit('.', 1)[-1]}"


def _fail(name: str, message: str) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return 1
