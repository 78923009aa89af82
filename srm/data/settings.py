"""Columns beside the prompt that say how the chat template writes it: `tools` and `chat_template_kwargs`, as trl reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from srm.data.messages import MEDIA, check_prompt, plain
from srm.data.schema import Conversation, Prompt, RowProblem
from srm.errors import UserError

__all__ = ["SETTING_COLUMNS", "columns_of", "with_columns", "with_settings"]

SETTING_COLUMNS = frozenset({"tools", "chat_template_kwargs"})
# What the caller of a template decides itself.
_RESERVED = frozenset(
    {"conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation"}
    | {"max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs", "tools"}
)


def with_settings(prompt: Prompt, fields: Mapping[str, Any]) -> Prompt:
    """`prompt` with what the row's `tools` and `chat_template_kwargs` give to the template.

    Args:
        prompt: of the row.
        fields: the row's columns.

    Returns:
        The prompt as it is where there is neither, else a `Conversation`.

    Raises:
        RowProblem: a column of another form, or one of pictures or sounds, which nothing would read.
    """
    for name in sorted(MEDIA & fields.keys()):
        if plain(fields[name]):
            raise RowProblem(
                f"`{name}` belongs to the prompt, and only text can be scored", "Delete the row, or the column where it means nothing"
            )
    settings = _object(fields.get("chat_template_kwargs"), "chat_template_kwargs", dict, "an object")
    tools = _object(fields.get("tools"), "tools", list, "a list")
    if reserved := sorted(map(str, settings.keys() & _RESERVED)):
        raise RowProblem(f"`chat_template_kwargs` sets `{reserved[0]}`, which is not for a row to say", "Take it out")
    if tools and not all(isinstance(tool, dict) for tool in tools):
        raise RowProblem("`tools` must be a list of JSON schemas")
    if not (settings or tools):
        return prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return Conversation(messages, **settings, **({"tools": tools} if tools else {}))


def columns_of(prompt: Prompt) -> dict[str, Any]:
    """The columns that `with_settings` makes of `prompt` what it is; none for most.

    Args:
        prompt: of a row.
    """
    settings = dict(prompt.settings) if isinstance(prompt, Conversation) else {}
    tools = settings.pop("tools", None)
    return {**({"tools": tools} if tools else {}), **({"chat_template_kwargs": settings} if settings else {})}


def with_columns(prompts: Sequence[Any], columns: Mapping[str, Any]) -> list[Prompt]:
    """`with_settings` of each of `prompts`, in any form that a file may hold.

    Args:
        prompts: one a row.
        columns: the rows' other columns, each a list with an entry a row.

    Raises:
        UserError: a prompt or a setting that cannot be used.
    """
    given = {name: values for name, values in columns.items() if name in SETTING_COLUMNS and isinstance(values, (list, tuple))}
    try:
        return [
            with_settings(check_prompt(prompt), {name: values[row] for name, values in given.items()}) for row, prompt in enumerate(prompts)
        ]
    except RowProblem as problem:
        raise UserError(f"{problem}. {problem.fix}.") from None


def _object(value: Any, name: str, kind: type, expected: str) -> Any:
    """A column's value, which may be JSON in a string, as in CSV files; empty where there is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            raise RowProblem(f"`{name}` must be {expected}, and is text that is no JSON: {value[:40]!r}") from None
    value = plain(value)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise RowProblem(f"`{name}` must be {expected}, got {type(value).__name__}")
    return value
