"""Settings of a run: flags and a YAML file into dataclasses, back into the YAML file that documents the run, and what changed since."""

from __future__ import annotations

import json
import typing
from argparse import SUPPRESS, Action
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool
from transformers.trainer_pt_utils import AcceleratorConfig

from srm.errors import UserError, first_line
from srm.runs.limits import check_limits, check_text
from srm.runs.parser import Parser, did_you_mean
from srm.runs.yaml_file import load_yaml

__all__ = ["Command", "environment_of", "json_value", "parse_settings", "setting", "settings_changes", "split_settings", "to_yaml"]

# A token must not end up in a file that people pass around. The rest is said of one start, not of the run, or repeats
# gradient_checkpointing.
_NOT_WRITTEN = (
    "hub_token",
    "local_rank",
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
)
_NONE_WORDS = ("none", "null")
_REST = "further settings, most of them of transformers' TrainingArguments"
# Of the file alone, and not a setting: see `environment_of`.
_ENVIRONMENT = "env"


def setting(default: Any, help: str, **metadata: Any) -> Any:
    """A field of a dataclass of settings.

    Args:
        default: its value where nothing is given; not a list or mapping.
        help: for --help.
        **metadata: further keys of the field's metadata.
    """
    return field(default=default, metadata={"help": help, **metadata})


def json_value(name: str, text: str, kind: type, example: str) -> Any:
    """The value of a setting that is JSON.

    Args:
        name: of the setting.
        text: its value as given.
        kind: `dict` or `list`.
        example: of a value, for the message.

    Raises:
        UserError: no JSON, or of another kind.
    """
    what = f"a JSON {'object' if kind is dict else 'list'} such as '{example}'"
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"--{name} must be {what}, got {text!r} ({first_line(error)}).") from error
    if not isinstance(value, kind):
        raise UserError(f"--{name} must be {what}, got {text!r}.")
    return value


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that takes settings.

    Attributes:
        prog: its name.
        description: what it does, for --help.
        guide: the page of docs, for --help.
        groups: dataclasses whose fields are the settings.
        needed: settings that must not be empty, each with an example for the error message. With `datasets|dataset_name` one of both.
        sections: what --help shows: titles, with the names of settings. --help_all shows the others, too.
        briefs: what --help says of settings that are not ours.
        elsewhere: gives the names of another program's settings. Where there is such a program, the file may have `env`, too.
    """

    prog: str
    description: str
    guide: str
    groups: tuple[type, ...]
    needed: Mapping[str, str]
    sections: Mapping[str, Sequence[str]]
    briefs: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Callable[[], Collection[str]] | None = None


def parse_settings(command: Command, argv: Sequence[str]) -> tuple[Any, ...]:
    """One instance of each of its dataclasses: what `argv` gives, on top of the YAML file after `--config`, on top of the defaults.

    In both, `none` (YAML: `null`) sets an optional setting to nothing, and a switch may stand alone (`--bf16`) or with a value.

    Args:
        command: whose settings they are.
        argv: the command line without the command's name.

    Raises:
        UserError: an unknown setting (the nearest known one is named), a value of the wrong type, or a needed one that is missing.
    """
    parser = _Parser(command)
    config, argv = _split_config(argv)
    words = _checked_words(parser, config, argv)
    try:
        *settings, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True, look_for_args_file=False)
    except UserError:
        raise
    except Exception as error:
        # TrainingArguments explains itself, in several lines at times; of what it hands to json or torch it does not.
        name = "" if isinstance(error, (ValueError, ImportError)) else f"the settings cannot be used ({type(error).__name__}): "
        raise UserError(name + " ".join(str(error).split())) from error
    if unknown:
        raise parser.unknown(unknown[0])
    _require(command.needed, {name: value for group in settings for name, value in vars(group).items()})
    return tuple(settings)


def split_settings(command: Command, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take another program's settings out of a command line and its YAML file, and look at ours as far as that goes without a device.

    Args:
        command: as in `parse_settings`; its `elsewhere` knows the other program's settings.
        argv: as there.

    Returns:
        The other program's words, those of the file first; and `argv` without them, the file still in it.

    Raises:
        UserError: as `parse_settings`.
    """
    elsewhere = command.elsewhere
    assert elsewhere is not None, "there is another program"
    parser = _Parser(command)
    config, rest = _split_config(argv)
    words = _checked_words(parser, config, rest)
    namespace, unknown = parser.parse_known_args(words)
    for word, before in zip(unknown, ["", *unknown], strict=False):
        if not (word.startswith("-") or before.startswith("-")):
            raise parser.unknown(word)
    if unknown:
        check_limits(vars(namespace))
        _require(command.needed, vars(namespace))
    from_file = [
        word
        for name, value in (_file_settings(config) if config else {}).items()
        if name not in parser.settings() and name in elsewhere() and value not in (None, False)
        for word in ([f"--{name}"] if value is True else [f"--{name}={value}"])
    ]
    left = iter(unknown)
    following = next(left, None)
    kept = []
    for word in argv:
        # In the order they have there: a value such as 2 may stand behind a setting of ours, too.
        if word == following:
            following = next(left, None)
        else:
            kept.append(word)
    return [*from_file, *unknown], kept


def environment_of(argv: Sequence[str]) -> dict[str, str]:
    """The environment variables below `env` in the YAML file after `--config`; none where there is no such file.

    Raises:
        UserError: the file cannot be read, or `env` holds no names with values.
    """
    config, _ = _split_config(argv)
    env = _file_settings(config).get(_ENVIRONMENT) if config else None
    if env is None:
        return {}
    if not isinstance(env, dict) or any(isinstance(value, (dict, list, type(None))) for value in env.values()):
        raise UserError(f"{config}: env must hold `NAME: value` lines, one for each environment variable, got {env!r}.")
    for name, value in env.items():
        if not str(name) or "=" in str(name) or "\0" in f"{name}{value}":
            raise UserError(f"{config}: env: {str(name)!r} can be no environment variable. Rename it.")
    return {str(name): str(value) for name, value in env.items()}


def to_yaml(*settings: Any) -> str:
    """Settings (dataclasses) as a file that `--config` reads back: our own, and those of TrainingArguments that are not the default."""
    written: dict[str, Any] = {}
    for group in settings:
        for entry in fields(group):
            value = _plain(getattr(group, entry.name))
            own = entry.name in type(group).__annotations__
            # TrainingArguments fills in some defaults as empty lists and the like: those say nothing either.
            changed = (value or None) != (_plain(_default(entry)) or None)
            if entry.name not in _NOT_WRITTEN and (own or changed):
                written[entry.name] = value
    if written.get("accelerator_config", {}).items() <= _plain(AcceleratorConfig()).items():
        written.pop("accelerator_config", None)
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True, width=120)


def settings_changes(file: Path, *settings: Any, ignored: Collection[str]) -> Iterator[str]:
    """One line for each setting that differs from those of an earlier run.

    Args:
        file: what `to_yaml` wrote; where there is no such file, nothing differs.
        *settings: those of this run.
        ignored: settings that do not change what the run computes.
    """
    if not file.is_file():
        return
    before = load_yaml(file, str(file))
    if not isinstance(before, dict):
        raise UserError(f"{file}: must hold the settings of the run, and was changed. Put it back, or delete it.")
    now = yaml.safe_load(to_yaml(*settings))
    for name in sorted({str(name) for name in before} | now.keys()):
        if name not in ignored and before.get(name) != now.get(name):
            yield f"{name} was {before.get(name)!r}, is {now.get(name)!r}"


class _Parser(Parser, HfArgumentParser):
    """Flags of dataclasses, with `none` for optional numbers, and bare switches."""

    def __init__(self, command: Command) -> None:
        super().__init__(
            command.groups,
            prog=command.prog,
            needed=[f"--{names.split('|')[-1]}" for names in command.needed],
            description=command.description,
            epilog=f"The guide is {command.guide}.",
        )
        # Taken out before anything is parsed.
        self.add_argument("--config", metavar="FILE", default=SUPPRESS, help="YAML file with settings; flags win over it")
        self.where = ""
        self.sections = command.sections
        self.elsewhere = command.elsewhere or (lambda: ())
        if self._rest():
            self.add_argument("--help_all", action=_HelpAll, nargs=0, default=SUPPRESS, help="show all settings, TrainingArguments' too")
        hints = {name: hint for group in command.groups for name, hint in typing.get_type_hints(group).items()}
        for action in self._actions:
            if action.type is string_to_bool:
                # A setting that may be unset still works as a bare switch.
                action.nargs, action.const = "?", True
            action.help = command.briefs.get(action.dest, action.help)
            if action.dest == "resume_from_checkpoint":
                action.nargs, action.const = "?", "true"
            # What takes a name or a path keeps its NAME.
            place = {"_dir": "FOLDER", "path": "PATH"}.get(action.dest.removesuffix("_or_path")[-4:], action.metavar)
            action.metavar = "JSON" if "dict[" in str(hints.get(action.dest)) else place
            if action.dest == "report_to":
                action.nargs = "+"
            elif NoneType in typing.get_args(hints.get(action.dest)) and callable(action.type):
                action.type = _or_none(action.type)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.where}{message}")

    def knows(self, word: str) -> bool:
        return super().knows(word) or _name_of(word) in self.elsewhere()

    def flags(self) -> list[str]:
        return [*super().flags(), *(f"--{name}" for name in self.elsewhere())]

    def settings(self) -> dict[str, Action]:
        return {action.dest: action for action in reversed(self._actions) if action.dest not in ("help", "help_all", "config")}

    def format_help(self) -> str:
        return self._format(self.sections)

    def format_help_all(self) -> str:
        return self._format({**self.sections, _REST: self._rest()})

    def _rest(self) -> list[str]:
        shown = {name for names in self.sections.values() for name in names}
        return [name for name in dict.fromkeys(action.dest for action in self._actions) if name not in {*shown, "help", "help_all"}]

    def _format(self, sections: Mapping[str, Sequence[str]]) -> str:
        actions = {action.dest: action for action in reversed(self._actions)}
        helps = {"help": [name for name in ("help", "help_all") if name in actions]}
        return self.format_sections((title, [actions[name] for name in names]) for title, names in {**sections, **helps}.items())


class _HelpAll(Action):
    def __call__(self, parser: Any, *arguments: Any) -> None:
        print(parser.format_help_all(), end="")
        parser.exit()


def _or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def converted(text: str) -> Any:
        return None if isinstance(text, str) and text.lower() in _NONE_WORDS else convert(text)

    # argparse names the type in its messages by this.
    converted.__name__ = getattr(convert, "__name__", "value").replace("string_to_bool", "true or false")
    return converted


def _split_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    config, rest, words = None, [], iter(argv)
    for word in words:
        if word == "--config":
            config = next(words, None)
            if config is None:
                raise UserError("--config needs a YAML file after it.")
        elif word.startswith("--config="):
            config = word.split("=", 1)[1]
        else:
            rest.append(word)
    return config, rest


def _name_of(word: str) -> str:
    return word.lstrip("-").split("=")[0].replace("-", "_")


def _checked_words(parser: _Parser, config: str | None, argv: Sequence[str]) -> list[str]:
    """The file's settings as flags, then the command line, which wins."""
    from_file = list(_file_arguments(parser, config)) if config else []
    if from_file:
        # Once by itself, so that a wrong value names the file.
        parser.where = f"{config}: "
        parser.parse_known_args(from_file)
        parser.where = ""
    return [*from_file, *argv]


def _require(needed: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    for names, example in needed.items():
        *_, name = names.split("|")
        if not any(settings.get(one) for one in names.split("|")):
            raise UserError(f"--{name} is missing. Add it, for example --{name} {example}, or set {name} in the --config file.")


def _file_settings(config: str) -> dict[str, Any]:
    content = load_yaml(Path(config), f"--config {config}")
    if not isinstance(content, dict):
        raise UserError(f"{config}: must hold `name: value` lines, got {type(content).__name__}.")
    return {str(name): value for name, value in content.items()}


def _file_arguments(parser: _Parser, config: str) -> Iterator[str]:
    """The YAML file's settings as the flags that would say the same."""
    known, elsewhere = parser.settings(), parser.elsewhere()
    for name, value in _file_settings(config).items():
        if name in known:
            yield from _as_flag(config, known[name], value)
        elif not (name in elsewhere or (elsewhere and name == _ENVIRONMENT)):
            raise UserError(f"{config}: unknown setting {name!r}{did_you_mean(name, [*known, *elsewhere])}")


def _as_flag(config: str, action: Action, value: Any) -> Iterator[str]:
    flag = f"--{action.dest}"
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            check_text(text, f"{config}: {action.dest}")
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(entry, dict) for entry in value)):
        yield f"{flag}={_json(config, action.dest, value)}"
    elif isinstance(value, list):
        if action.nargs != "+":
            raise UserError(f"{config}: {action.dest} takes one value, got a list {value!r}.")
        # An empty list says the same as leaving the setting out.
        yield from [flag, *(str(entry) for entry in value)] if value else []
    elif value is None:
        if action.default is not None:
            yield f"{flag}=none"
    else:
        # `flag=value`, because a value may begin with a dash.
        yield f"{flag}={str(value).lower() if isinstance(value, bool) else value}"


def _json(config: str, name: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{config}: {name} must hold text, numbers and lists ({error}).") from None


def _default(entry: Field[Any]) -> Any:
    return entry.default_factory() if entry.default_factory is not MISSING else entry.default


def _plain(value: Any) -> Any:
    """A value that YAML can hold and the parser can read back."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    return str(value)
