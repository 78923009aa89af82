"""What a row of preference data becomes, whatever form it came in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from srm.errors import UserError

__all__ = [
    "BadRow",
    "Comparison",
    "Conversation",
    "Granularity",
    "Message",
    "Pair",
    "Prompt",
    "RawRow",
    "Response",
    "ResponseRow",
    "RowProblem",
]

# {"role": ..., "content": ...}, with what else a chat template may read, such as `name` or `tool_calls`.
Message = dict[str, Any]
Prompt = str | list[Message]  # a `Conversation` among the lists
# A list ends with an assistant message.
Response = str | list[Message]
# What the loss is trained on: the rewards of sentences, the value at the last token, or the mean over the values of all tokens.
Granularity = Literal["sentence", "response", "token"]
_LONGEST_PROBLEM = 400
# Index of the better response, of the worse one, and by how much the first should win (None: no margin).
Pair = tuple[int, int, float | None]


class Conversation(list[Message]):
    """Messages, and what else the chat template is given, such as `tools` or `enable_thinking`.

    Args:
        messages: of the conversation.
        **settings: keyword arguments of the template. `tools` is a list of JSON schemas.
    """

    def __init__(self, messages: Iterable[Message] = (), **settings: Any) -> None:
        super().__init__(messages)
        self.settings = settings

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list) and super().__eq__(other) and self.settings == getattr(other, "settings", {})

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None


class RowProblem(ValueError):
    """What is wrong with one row; whoever knows the file and the row number turns it into a `BadRow`.

    fix: what the user can do about it, without the full stop.
    """

    FIX: ClassVar[str] = "Fix or delete the row"

    def __init__(self, problem: str, fix: str = FIX) -> None:
        super().__init__(problem)
        self.fix = fix


class BadRow(UserError):
    """A row that cannot be used; the other rows of the file can.

    problem: the message without the way out, for a list of dropped rows.
    """

    def __init__(self, where: str, problem: RowProblem) -> None:
        text = " ".join(str(problem).split())
        if len(text) > _LONGEST_PROBLEM:
            # What a row holds may be megabytes.
            text = f"{text[: _LONGEST_PROBLEM - 100]} ... {text[-90:]}"
        self.problem = f"{where}: {text}"
        super().__init__(f"{self.problem}. {problem.fix}, or pass --skip_bad_rows to drop such rows and list them.")


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """One row as the file has it.

    where: file and row, for messages.
    id: what the row is called if it has no `id` column.
    """

    where: str
    id: str
    number: int
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Responses to one prompt, and which of them are better than which.

    Attributes:
        prompt: text or chat messages; no message where the responses share none.
        responses: at least two: texts, or messages where several belong to the response. Those before the first assistant message are what
            that response answers, beside the prompt.
        pairs: (better, worse, margin) as indices into `responses`. A plain preference pair has the responses (chosen, rejected) and the
            pairs ((0, 1, margin),); a ranking has all pairs of responses that do not tie.
        id: the row's own, or its file and number.
        where: file and row, for messages.
        extra: the row's other columns, such as subset, section or source.
    """

    prompt: Prompt
    responses: tuple[Response, ...]
    pairs: tuple[Pair, ...]
    id: str
    where: str
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError(f"Comparison: {self.where}: `pairs` must hold at least one pair, got none.")
        for better, worse, _ in self.pairs:
            if better == worse or not (0 <= better < len(self.responses) and 0 <= worse < len(self.responses)):
                raise ValueError(
                    f"Comparison: {self.where}: a pair must name two of the {len(self.responses)} responses, got ({better}, {worse})."
                )


@dataclass(frozen=True, kw_only=True)
class ResponseRow:
    """One response to score.

    Attributes:
        id: unique within its row's id: the row's own for a plain response, `<row id>/chosen`, `<row id>/rejected` for a pair,
            `<row id>/1`, `<row id>/2`, ... for a list.
        row_id: id of the input row. Responses of a row follow each other, and most share their prompt.
        row: number of the input row, from 1, over all files.
        label: `response`, `chosen`, `rejected`, or the response's number in its list.
        prompt: text or chat messages.
        response: what to score: text, or several messages, the first and the last of them the assistant's.
        where: file and row, for messages.
        extra: the row's other columns.
    """

    id: str
    row_id: str
    row: int
    label: str
    prompt: Prompt
    response: Response
    where: str
    extra: dict[str, Any] = field(default_factory=dict)
