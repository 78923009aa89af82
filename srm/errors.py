"""The one exception for mistakes a user can mend.

Command-line tools print its message as a single line and exit 1; everything else keeps its traceback, because it is our bug.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["UserError", "check_choice", "first_line"]


class UserError(ValueError):
    """Input or settings that the user can mend.

    The message is one line: what is wrong, where (file and row), what was expected, what came, and the way out.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # By default a worker process's error is made again from its finished message, which constructors with other arguments do not take.
        return _again, (type(self), self.args, self.__dict__)


def check_choice(what: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a setting that is none of its choices.

    Args:
        what: what the message calls it, such as "score: `overlong`".
        value: what was given.
        choices: what it may be.

    Raises:
        UserError: it is none of them.
    """
    if value not in choices:
        raise UserError(f"{what} must be one of {', '.join(choices)}, got {value!r}.")


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, as a part of a sentence: its first line without the full stop, or its kind.

    Args:
        error: whatever was raised.
    """
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _again(kind: type[UserError], args: tuple[Any, ...], state: dict[str, Any]) -> UserError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error
