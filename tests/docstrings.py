"""Do docstrings name what they must? Google style, as mkdocstrings reads it: one name a line, in order, under the right heading."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

__all__ = ["documented", "problems", "public_names", "sections"]

_HEADING = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):\n((?:    .*\n|\n)+)", re.MULTILINE)
_POINTER = re.compile(r"See `[\w.]+`\.")
_NAME = re.compile(r"^    \*{0,2}(\w+):", re.MULTILINE)


def sections(thing: Any) -> dict[str, str]:
    """Heading -> what stands under it."""
    return dict(_HEADING.findall((inspect.getdoc(thing) or "") + "\n"))


def documented(thing: Any, heading: str) -> list[str]:
    """The names under `heading`, in order."""
    return _NAME.findall(sections(thing).get(heading, ""))


def problems(thing: Any) -> list[str]:
    """What the docstring of a public function or class, and of the methods that the class itself defines, does not name."""
    if inspect.isfunction(thing):
        return list(_of_function(thing, thing.__qualname__))
    found = list(_of_class(thing))
    for name, member in vars(thing).items():
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if inspect.isfunction(function) and not name.startswith("_"):
            found += _of_function(function, f"{thing.__name__}.{name}")
    return found


def public_names(module: ModuleType) -> dict[str, Any]:
    """The classes and functions in a module's `__all__`."""
    members = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    return {name: member for name, member in members.items() if inspect.isfunction(member) or inspect.isclass(member)}


def _of_function(function: Callable[..., Any], name: str) -> Iterator[str]:
    if not (doc := inspect.getdoc(function)):
        yield f"{name}: no docstring"
        return
    # The other end of the same call says it.
    if _POINTER.fullmatch(doc):
        return
    parameters = [parameter for parameter in inspect.signature(function).parameters if parameter not in ("self", "cls")]
    listed = documented(function, "Args")
    # One parameter is often said in the first line.
    if listed != parameters and (listed or len(parameters) > 1):
        yield f"{name}: Args should be {parameters}, got {listed}"


def _of_class(thing: type) -> Iterator[str]:
    name = thing.__name__
    if not vars(thing).get("__doc__") or (hasattr(thing, "__dataclass_fields__") and thing.__doc__.startswith(f"{name}(")):
        yield f"{name}: no docstring"
        return
    fields = _fields(thing)
    # transformers makes a dataclass of every configuration, also of one that has an `__init__` and no fields.
    if fields:
        listed = documented(thing, "Attributes")
        # A subclass may say more of the fields that it inherits.
        with_inherited = [field for base in reversed(thing.__mro__) for field in _fields(base) or []]
        if listed not in (fields, with_inherited):
            yield f"{name}: Attributes should be {fields}, got {listed}"
    elif "__init__" in vars(thing) and not getattr(thing, "_is_protocol", False):
        parameters = [parameter for parameter in inspect.signature(thing.__init__).parameters if parameter != "self"]
        listed = documented(thing, "Args")
        if listed != parameters and (listed or len(parameters) > 1):
            yield f"{name}: Args should be {parameters}, got {listed}"


def _fields(thing: type) -> list[str] | None:
    """Public fields of a dataclass, a NamedTuple or a TypedDict that the class itself states; None for other classes."""
    is_record = "__dataclass_fields__" in vars(thing) or hasattr(thing, "_fields") or hasattr(thing, "__required_keys__")
    return [field for field in inspect.get_annotations(thing) if not field.startswith("_")] if is_record else None
