"""YAML files that people write: read in bounded time, and whatever is wrong with one is a line that names the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from srm.errors import UserError

__all__ = ["load_yaml"]

# PyYAML reads about 200 kB a second.
_LARGEST_FILE = 200_000


def load_yaml(file: Path, title: str) -> Any:
    """What a file of settings holds.

    Args:
        file: where it is.
        title: what a message calls it.

    Raises:
        UserError: it cannot be read, is too large, or is no YAML.
    """
    try:
        if file.exists() and not file.is_file():
            raise UserError(f"{title}: is no regular file. Give a YAML file.")
        with file.open("rb") as stream:
            content = stream.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise UserError(f"{title}: is larger than {_LARGEST_FILE // 1000} kB. Settings are a few `name: value` lines.")
        return yaml.load(content.decode("utf-8-sig"), Loader=_Loader)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{title}: cannot be read ({error.strerror}).") from error
    except RecursionError:
        raise UserError(f"{title}: not valid YAML (nested too deeply). Settings are `name: value` lines.") from None
    except Exception as error:
        # Of a number or a date that is none, PyYAML raises whatever Python does.
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{title}{line}: not valid YAML ({getattr(error, 'problem', None) or error}).") from error


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which let ten lines stand for gigabytes, and without a key that stands there twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not taken", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        value = super().construct_mapping(node, deep)
        if len(value) < len(node.value):
            names = [key.value for key, _ in node.value]
            twice = next((name for name in names if names.count(name) > 1), names[0])
            raise yaml.MarkedYAMLError(problem=f"{twice!r} stands there twice", problem_mark=node.start_mark)
        return value
