"""The boundary around rows: whatever goes wrong while one is read, rendered or tokenised is that row's fault, with its file and number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from srm.data.answers import AnswerTokens
from srm.data.schema import BadRow, Prompt, Response, RowProblem
from srm.data.template import ChatFormat
from srm.data.turns import Turns, read_answers
from srm.errors import UserError

__all__ = ["BadRows", "RowCheck", "as_bad_row", "check_row"]

logger = logging.getLogger(__name__)

# Raises whatever is wrong with a prompt and its responses.
RowCheck = Callable[[Prompt, Sequence[Response]], None]

_LISTED = 5
# Enough text to see that tokens come out of it; a long row is tokenised once, and not here.
_HEAD = 4096


def as_bad_row(where: str, error: Exception) -> BadRow:
    """`error`, which a row has caused, as the line that names the row.

    Args:
        where: file and row.
        error: anything that reading, checking, rendering or tokenising raised.
    """
    if isinstance(error, BadRow):
        return error
    if isinstance(error, RowProblem):
        return BadRow(where, error)
    text = str(error).strip().rstrip(".").removesuffix(f". {RowProblem.FIX}")
    if isinstance(error, UserError):
        return BadRow(where, RowProblem(text))
    return BadRow(where, RowProblem(f"cannot be used ({type(error).__name__}{': ' if text else ''}{text})"))


class BadRows:
    """What becomes of rows that cannot be used: the first one stops the command, or all are left out, counted and listed.

    source: what the report calls the data. skip: leave them out.
    """

    def __init__(self, source: str, skip: bool) -> None:
        self.source = source
        self.skip = skip
        self.count = 0
        self._listed: list[str] = []

    def add(self, bad: BadRow) -> None:
        """Count `bad`, or raise it where rows must not be left out."""
        if not self.skip:
            raise bad
        self.count += 1
        if len(self._listed) < _LISTED:
            self._listed.append(bad.problem)

    def report(self, num_rows: int) -> None:
        """Log how many of `num_rows` were left out, and the first few."""
        if self.count:
            more = f"; and {self.count - len(self._listed)} more" if self.count > len(self._listed) else ""
            listed = "; ".join(self._listed)
            logger.warning("%s: dropped %d of %d rows that cannot be used: %s%s", self.source, self.count, num_rows, listed, more)

    def require_some(self, num_rows: int) -> None:
        """Raise `UserError` where no row is left of `num_rows`."""
        if self.count and self.count == num_rows:
            first = self._listed[0]
            raise UserError(
                f"{self.source}: none of the {num_rows} rows can be used. The first: {first}. docs/data.md has the forms of a row."
            )


def check_row(format: ChatFormat, answers: AnswerTokens, prompt: Prompt, responses: Sequence[Response] = ()) -> None:
    """Raise what is wrong with a row for a tokenizer: a prompt that its template refuses, or a text that no tokens come from.

    It costs little, so that a first pass over a file can find such rows before hours of work.

    Args:
        format: the tokenizer's chat template.
        answers: how it reads an answer.
        prompt: text or chat messages.
        responses: what answers it, in the forms of `srm.data.responses.check_response`.
    """
    read = list(read_answers(format, answers, prompt, responses))
    for rendered in dict.fromkeys(rendered for rendered, _ in read) or [format.render(prompt)]:
        rendered.encode()
        format.prompt_ids([rendered[:_HEAD]])
    for _, answer in read:
        text = answer.text if isinstance(answer, Turns) else answer
        text = answers.words_of(text)
        if not any(answers.encode([text[start : start + _HEAD]])[0][0] for start in range(0, len(text), _HEAD)):
            raise RowProblem(f"the tokenizer makes no token of the response {text[:40]!r}")
