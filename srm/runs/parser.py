"""The command line of every command: an unknown flag is found first and the nearest one named, and --help is short enough to be read."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from srm.errors import UserError
from srm.runs.limits import check_limits

__all__ = ["Parser", "did_you_mean"]

_WIDEST = 120
# A flag that is not longer has its help beside it.
_FLAG_COLUMNS = 32
# Between a flag and its value, where lines are broken.
_GLUE = "\0"
_FLAG = re.compile(r"--\S+|-[A-Za-z]\S*")
_METAVARS = {"int": "N", "float": "X", "Path": "PATH", "str": "NAME"}


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are `UserError`, which takes whole names of flags and numbers within `srm.runs.limits` only.

    A misspelt flag is refused before anything else is looked at: what else seems wrong may come of it.

    Args:
        *arguments: as argparse's.
        needed: flags that a command needs beside those that are required, for --help.
        **settings: as argparse's.
    """

    def __init__(self, *arguments: Any, needed: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, "formatter_class": _Help, **settings})
        self._optionals.title = "help"
        self._needed = needed

    def error(self, message: str) -> NoReturn:
        """Raise `message`, as what a user can mend."""
        raise UserError(f"{message}. See --help for all flags.")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]  # argparse overloads it
        """As argparse's, but flags that are not known raise.

        Args:
            args: the words; those of the process where None.
            namespace: as argparse's.
        """
        words = sys.argv[1:] if args is None else list(args)
        if not {"-h", "--help"} & set(words):
            for word in _flags_of(words):
                if not self.knows(word):
                    raise self.unknown(word)
        return super().parse_known_args(words, namespace)

    def parse_args(self, *arguments: Any, **settings: Any) -> Any:
        """As argparse's; numbers out of range are refused.

        Args:
            *arguments: as argparse's.
            **settings: as argparse's.
        """
        parsed = super().parse_args(*arguments, **settings)
        check_limits(vars(parsed))
        return parsed

    def knows(self, word: str) -> bool:
        """Whether `word` is one of its flags, with or without a value behind `=`."""
        return word.split("=", 1)[0] in self._option_string_actions

    def flags(self) -> list[str]:
        """Every flag, as people are told of it."""
        return [flag for action in self._actions for flag in _told(action) if flag.startswith("--")]

    def unknown(self, word: str) -> UserError:
        """The error of a word that is none of its flags."""
        near = did_you_mean(word.split("=", 1)[0], self.flags()) if word.startswith("-") else "."
        return UserError(f"unknown argument {word!r}{near} See --help for all of them.")

    def format_help(self) -> str:
        """The text of --help."""
        positionals, optionals, *groups = self._action_groups
        return self.format_sections((str(group.title), group._group_actions) for group in (positionals, *groups, optionals))

    def format_sections(self, sections: Iterable[tuple[str, Iterable[argparse.Action]]]) -> str:
        """The text of --help.

        Args:
            sections: title and flags of each.
        """
        formatter = self._get_formatter()
        needed = [action for action in self._actions if action.required or action.option_strings[0] in self._needed]
        words = [f"{action.option_strings[0]} {_metavar(action)}".replace(" ", _GLUE) for action in needed]
        usage = textwrap.fill(" ".join([self.prog, *words, "[flags]"]), _columns() - 7, subsequent_indent=" " * 9, break_on_hyphens=False)
        formatter.add_usage(usage.replace(_GLUE, " "), [], [])
        formatter.add_text(self.description)
        for title, actions in sections:
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


class _Help(argparse.HelpFormatter):
    """Flags in one column, what they are for in the other, with the default in brackets where that says something."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=_FLAG_COLUMNS, width=_columns())

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return f"{', '.join(_told(action))} {_metavar(action)}".rstrip()

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").removesuffix(".")
        is_said = action.default in (None, "", argparse.SUPPRESS) or action.default is False or text.endswith("]") or action.required
        default = _plain(action.default).replace("%", "%%")
        return text if is_said else f"{text} [{default}]"


def _columns() -> int:
    return min(shutil.get_terminal_size().columns, _WIDEST) - 1


def did_you_mean(name: str, known: Collection[str]) -> str:
    """`; did you mean --x?`, or a full stop where nothing is near.

    Args:
        name: what came, with or without dashes.
        known: the names that are taken, as a person is to be told of them.
    """
    near = _nearest(_bare(name), {_bare(one): one for one in known})
    return f"; did you mean {' or '.join(near)}?" if near else "."


def _nearest(name: str, known: Mapping[str, str]) -> list[str]:
    """Those whose edit distance is the least or nearly so; where all are far, those that contain what came."""
    distances = {bare: _edit_distance(name, bare) for bare in known}
    least = min(distances.values(), default=0)
    if least <= len(name) // 2:
        near = [bare for bare in known if distances[bare] <= 1.25 * least]
    else:
        near = [bare for bare in known if len(name) > 2 and name in bare]
    return [known[bare] for bare in near[:3]]


def _edit_distance(one: str, other: str) -> int:
    """How many letters must be put in, left out or changed (Levenshtein)."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, start=1):
        before, row[0] = row[0], number
        for place, wanted in enumerate(other, start=1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (letter != wanted))
    return row[-1]


def _bare(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def _flags_of(words: Sequence[str]) -> Iterator[str]:
    """The words that argparse takes for flags: never values, however they were meant."""
    for word in words:
        if word == "--":
            return
        if _FLAG.fullmatch(word.split("=", 1)[0]):
            yield word


def _told(action: argparse.Action) -> list[str]:
    """Its names but for those with dashes in place of underscores, which are taken, too."""
    return [flag for flag in action.option_strings if "-" not in flag.lstrip("-")]


def _metavar(action: argparse.Action) -> str:
    """What stands for its value in --help."""
    if action.nargs == 0 or (action.const is True and not action.default):
        # A switch, which stands alone.
        return ""
    choices = "|".join(map(str, action.choices or ()))
    kind = getattr(action.type, "__name__", "str")
    name = str(action.metavar or (choices if 0 < len(choices) <= 50 else _METAVARS.get(kind, "VALUE")))
    if action.const is True:
        return "true|false"
    return f"[{name}]" if action.nargs == "?" else f"{name} ..." if action.nargs == "+" else name


def _plain(value: Any) -> str:
    value = getattr(value, "value", value)
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
