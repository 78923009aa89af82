"""One row to a `Comparison` or to the responses it holds, with every check on the way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from srm.data.conversations import is_conversation, split_conversations, split_strings
from srm.data.messages import check_is_text, check_prompt, whole_text
from srm.data.responses import check_response, own_prompt
from srm.data.schema import BadRow, Comparison, Pair, Prompt, RawRow, Response, ResponseRow, RowProblem
from srm.data.settings import SETTING_COLUMNS, with_settings

__all__ = ["check_has_prompt", "parse_parts", "parse_responses", "parse_row", "row_id"]

_PAIR = ("chosen", "rejected")
_USED = frozenset({"id", "prompt", "chosen", "rejected", "margin", "responses", "scores", "ranks"}) | SETTING_COLUMNS
_FORMS = "prompt + chosen + rejected, chosen + rejected that share their prompt, or prompt + responses"


def parse_row(fields: Mapping[str, Any], *, where: str, id: str) -> Comparison:
    """The comparison that one row states.

    Args:
        fields: the row's columns, in one of the forms of docs/data.md; a row with `chosen` and `rejected` is read as a pair even if it
            has `responses` too.
        where: file and row, for messages.
        id: what the row is called if it has no column `id`.

    Raises:
        BadRow: the row cannot be used; a `UserError` of one line.
    """
    try:
        own_id = row_id(fields, id)
        extra = {name: value for name, value in fields.items() if name not in _USED}
        if _has(fields, *_PAIR):
            prompt, responses = _prompt_and_responses(fields, [fields[name] for name in _PAIR], _PAIR)
            if responses[0] == responses[1]:
                raise RowProblem("`chosen` and `rejected` are identical")
            pairs: tuple[Pair, ...] = ((0, 1, _margin(fields.get("margin"))),)
        elif _has(fields, "responses"):
            prompt, responses = _listed_responses(fields, least=2)
            pairs = _ranked_pairs(fields, responses)
        else:
            raise RowProblem(_missing(fields, _FORMS, pairs=True))
        return Comparison(prompt=prompt, responses=responses, pairs=pairs, id=own_id, where=where, extra=extra)
    except RowProblem as problem:
        raise BadRow(where, problem) from None


def parse_responses(row: RawRow) -> Iterator[ResponseRow]:
    """The responses of one row, to be scored: of a plain row, a pair or a list. Ties and identical responses are fine here.

    Raises `BadRow` before the first response where the row cannot be used.
    """
    own_id, labels, prompt, responses, extra = parse_parts(row)
    for label, response in zip(labels, responses, strict=True):
        name = own_id if label == "response" else f"{own_id}/{label}"
        own, answer = own_prompt(prompt, response)
        yield ResponseRow(id=name, row_id=own_id, row=row.number, label=label, prompt=own, response=answer, where=row.where, extra=extra)


def parse_parts(row: RawRow) -> tuple[str, Sequence[str], Prompt, tuple[Response, ...], dict[str, Any]]:
    """The id, the responses' labels, the prompt, the responses and the other columns of a row for scoring, as `Comparison` has them.

    Args:
        row: of a file.

    Raises:
        BadRow: the row cannot be used.
    """
    fields = row.fields
    try:
        own_id = row_id(fields, row.id)
        _check_one_form(fields)
        if _has(fields, *_PAIR):
            prompt, responses = _prompt_and_responses(fields, [fields[name] for name in _PAIR], _PAIR)
            labels: Sequence[str] = _PAIR
            used = {"id", "prompt", *_PAIR}
        elif _has(fields, "response"):
            prompt, responses = _prompt_and_responses(fields, [fields["response"]], ("response",))
            labels, used = ("response",), {"id", "prompt", "response"}
        elif _has(fields, "responses"):
            prompt, responses = _listed_responses(fields, least=1)
            labels, used = [str(number) for number in range(1, len(responses) + 1)], {"id", "prompt", "responses"}
        else:
            raise RowProblem(_missing(fields, f"prompt + response, {_FORMS}", pairs=False))
    except RowProblem as problem:
        raise BadRow(row.where, problem) from None
    return own_id, labels, prompt, responses, {name: value for name, value in fields.items() if name not in used | SETTING_COLUMNS}


def check_has_prompt(fields: Mapping[str, Any]) -> None:
    """Raise `RowProblem` where a row without the column `prompt` has no responses that share a prompt either.

    Args:
        fields: the row's columns.
    """
    if not _has(fields, *_PAIR) and not _has(fields, "responses"):
        expected = "prompt alone, or chosen + rejected that share their prompt"
        raise RowProblem(f"there is no `prompt` ({_found(fields)}; expected {expected}{_hint(fields, pairs=True)})")


def _check_one_form(fields: Mapping[str, Any]) -> None:
    """Of a row with `response` and other responses, some would go unscored. Arrow writes null where a row has no such column."""
    others = [name for name in (*_PAIR, "responses") if fields.get(name) is not None]
    if fields.get("response") is not None and others:
        names = " and ".join(f"`{name}`" for name in ("response", *others))
        raise RowProblem(f"there are {names}, and a row has one form", "Keep one of them, or write two rows")


def _has(fields: Mapping[str, Any], *names: str) -> bool:
    return all(name in fields for name in names)


def _missing(fields: Mapping[str, Any], expected: str, *, pairs: bool) -> str:
    lacking = [name for name in _PAIR if name not in fields]
    what = f"there is no `{lacking[0]}`" if len(lacking) == 1 else "there are no responses"
    return f"{what} ({_found(fields)}; expected {expected}{_hint(fields, pairs=pairs)})"


def _found(fields: Mapping[str, Any]) -> str:
    return f"columns found: {', '.join(fields) or 'none'}"


def _hint(fields: Mapping[str, Any], *, pairs: bool) -> str:
    """What a column with an unknown name was probably meant to be."""
    for name in fields:
        meant = name.strip().lower()
        if meant != name and meant in _USED | {"response"} and meant not in fields:
            return f"; rename {name!r} to {meant}"
    for name in fields:
        if name in ("messages", "conversations"):
            whole = "a pair needs two conversations, `chosen` and `rejected`" if pairs else "rename it to response to score its last answer"
            return f"; `{name}` is one whole conversation: {whole}"
    return ""


def row_id(fields: Mapping[str, Any], default: str) -> str:
    """The row's own id as text, or `default`; a `RowProblem` where it is neither text nor an integer."""
    value = fields.get("id")
    if value is None or value == "":
        return default
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowProblem(f"`id` must be a string or an integer, got {value!r}")
    return whole_text(str(value), "`id`")


def _prompt_and_responses(fields: Mapping[str, Any], values: Sequence[Any], names: Sequence[str]) -> tuple[Prompt, tuple[Response, ...]]:
    prompt, responses = _split(fields, values, names)
    return with_settings(prompt, fields), responses


def _split(fields: Mapping[str, Any], values: Sequence[Any], names: Sequence[str]) -> tuple[Prompt, tuple[Response, ...]]:
    if any(is_conversation(value) for value in values):
        return split_conversations(fields.get("prompt"), values, names)
    answers = tuple(check_response(value, name) for value, name in zip(values, names, strict=True))
    for value, name in zip(values, names, strict=True):
        if isinstance(value, str):
            check_is_text(value, name)
    if "prompt" in fields:
        return check_prompt(fields["prompt"]), answers
    hint = _hint(fields, pairs=True)
    # Beside a column `Prompt`, what two texts share is no prompt.
    if tuple(names) == _PAIR and all(isinstance(value, str) for value in values) and not hint.endswith(" to prompt"):
        return split_strings(values[0], values[1])
    raise RowProblem(f"there is no `prompt` ({_found(fields)}{hint})", "Add the column")


def _listed_responses(fields: Mapping[str, Any], *, least: int) -> tuple[Prompt, tuple[Response, ...]]:
    values = fields["responses"]
    if not isinstance(values, (list, tuple)):
        raise RowProblem(f"`responses` must be a list, got {type(values).__name__}")
    if len(values) < least:
        raise RowProblem(f"`responses` must hold at least {least}, got {len(values)}")
    return _prompt_and_responses(fields, values, [f"responses[{index}]" for index in range(len(values))])


def _ranked_pairs(fields: Mapping[str, Any], responses: Sequence[Response]) -> tuple[Pair, ...]:
    """All (better, worse) pairs of a ranking. Ties make none."""
    if fields.get("margin") is not None:
        raise RowProblem("`margin` belongs to a chosen/rejected pair, not to a list of `responses`", "Delete the column")
    given = [name for name in ("scores", "ranks") if fields.get(name) is not None]
    if len(given) == 2:
        raise RowProblem("there are both `scores` and `ranks`", "Delete one of the columns")
    if not given:
        goodness: list[float] = [-float(index) for index in range(len(responses))]
    else:
        numbers = _numbers(fields[given[0]], given[0], len(responses))
        # Rank 1 is the best.
        goodness = numbers if given[0] == "scores" else [-number for number in numbers]
    indices = range(len(responses))
    pairs = tuple((i, j, None) for i in indices for j in indices if goodness[i] > goodness[j])
    if not pairs:
        raise RowProblem(f"all {len(responses)} responses tie, so there is nothing to compare")
    for i, j, _ in pairs:
        if responses[i] == responses[j]:
            raise RowProblem(f"`responses[{min(i, j)}]` and `responses[{max(i, j)}]` are identical but ranked differently")
    return pairs


def _numbers(values: Any, name: str, length: int) -> list[float]:
    if not isinstance(values, (list, tuple)) or len(values) != length:
        got = f"{len(values)}" if isinstance(values, (list, tuple)) else type(values).__name__
        raise RowProblem(f"`{name}` must be a list of {length} numbers, one for each response, got {got}")
    return [_number(value, f"{name}[{index}]") for index, value in enumerate(values)]


def _margin(value: Any) -> float | None:
    return None if value is None else _number(value, "margin")


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowProblem(f"`{name}` must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        raise RowProblem(f"`{name}` must be a number that fits into 64 bits, and is larger") from None
    if not math.isfinite(number):
        raise RowProblem(f"`{name}` must be finite, got {value!r}")
    return number
