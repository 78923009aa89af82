"""Scored responses as one HTML page, to read, sort and search.

The page is one file that asks the network for nothing: report.html with report.css and report.js inside, and the data as JSON that
report.js shows as text. A content security policy lets a browser run that one script and no other.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

from srm.data.schema import Prompt
from srm.runs.folders import write_whole
from srm.views.scored import Scored, Sentence, level_of

__all__ = ["Plot", "ReportPair", "Table", "is_page", "write_html"]

# (title, column names, rows); cells are text or numbers.
Table = tuple[str, Sequence[str], Sequence[Sequence[Any]]]
# (title, what a reader who cannot see it should know, the file's bytes, its type: image/png or image/svg+xml).
Plot = tuple[str, str, bytes, str]

_IMAGES = ("image/png", "image/svg+xml")
_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class ReportPair:
    """A prompt with two scored responses, or with one where `rejected` is None.

    Attributes:
        id: what the pair is called.
        section: what the pair is found by; empty where there is none.
        subset: likewise.
        prompt: text or chat messages.
        chosen: the scored response that should win, or the only one.
        rejected: the other one.
        marked: `{"start", "end", "kind"}` each, characters of the rejected response (of the only one, where there is one) that are known
            to be bad.
    """

    id: str
    section: str
    subset: str
    prompt: Prompt
    chosen: Scored
    rejected: Scored | None = None
    marked: Sequence[Mapping[str, Any]] = ()


def write_html(
    path: str | Path, pairs: Iterable[ReportPair], *, title: str, tables: Sequence[Table] = (), plots: Sequence[Plot] = ()
) -> None:
    """Write one page with the tables, the plots, and every pair: coloured, sortable, searchable. See docs/report.md.

    The file appears whole or not at all, and the same arguments give the same bytes.

    Args:
        path: the page.
        pairs: in the order of the list.
        title: of the page.
        tables: (title, column names, rows) each; cells are text or numbers.
        plots: (title, words for who cannot see it, the file's bytes, `image/png` or `image/svg+xml`) each.

    Raises:
        ValueError: a reward that is not finite, a row of a table without a cell for each column, or a plot that is neither PNG nor SVG.
    """
    data = {
        "tables": [_table(*table) for table in tables],
        "plots": [_plot(*plot) for plot in plots],
        "pairs": [_pair(pair) for pair in pairs],
    }
    style, script = (_HERE.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    page = Template(_HERE.joinpath("report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=_json_for_script(data),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)


def is_page(path: Path) -> bool:
    """Whether `path` is a page that `write_html` wrote, and not something else of the user's."""
    head = _HERE.joinpath("report.html").read_bytes().split(b"$")[0]
    with path.open("rb") as file:
        return file.read(len(head)) == head


def _pair(pair: ReportPair) -> dict[str, Any]:
    """What report.js reads. Text is cut into parts here, because JavaScript counts characters beyond the basic plane as two."""
    responses = [("chosen", pair.chosen), ("rejected", pair.rejected)] if pair.rejected is not None else [("response", pair.chosen)]
    for name, scored in responses:
        numbers = [
            scored.reward,
            scored.prompt_reward,
            scored.prompt_weight,
            *(value for s in scored.sentences for value in (s.reward, s.weight)),
        ]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(
                f"write_html: the {name} of pair {pair.id!r} has a reward that is not finite. Score it again, or leave it out."
            )
    margin = None if pair.rejected is None else pair.chosen.reward - pair.rejected.reward
    return {
        "id": pair.id,
        "section": pair.section,
        "subset": pair.subset,
        "prompt": _messages(pair.prompt),
        "margin": margin,
        "length": sum(len(sentence.text) for _, scored in responses for sentence in scored.sentences),
        "responses": [
            {
                "name": name,
                "reward": scored.reward,
                "prompt_reward": scored.prompt_reward,
                "prompt_weight": scored.prompt_weight,
                "level": level_of(scored),
                "sentences": [_sentence(sentence, pair.marked if scored is responses[-1][1] else ()) for sentence in scored.sentences],
            }
            for name, scored in responses
        ],
    }


def _messages(prompt: Prompt) -> list[tuple[str, str]]:
    """(role, text) each; plain text has the role ""."""
    return [("", prompt)] if isinstance(prompt, str) else [(message["role"], message["content"]) for message in prompt]


def _sentence(sentence: Sentence, marked: Sequence[Mapping[str, Any]]) -> tuple[float, float, list[tuple[str, str]]]:
    """Reward, weight, and the text without the white space behind it as (part, what is marked there or "")."""
    start, end = sentence.start, sentence.start + len(sentence.text.rstrip())
    spans = [(max(span["start"], start), min(span["end"], end), str(span["kind"]).replace("_", " ")) for span in marked]
    spans = [span for span in spans if span[0] < span[1]]
    cuts = sorted({start, end, *(place for span in spans for place in span[:2])})
    parts = []
    for a, b in pairwise(cuts):
        kinds = dict.fromkeys(kind for left, right, kind in spans if left <= a and b <= right)
        parts.append((sentence.text[a - start : b - start], ", ".join(kinds)))
    # Five digits are more than the page shows.
    return float(f"{sentence.reward:.5g}"), float(f"{sentence.weight:.5g}"), parts


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    for number, row in enumerate(rows, 1):
        if len(row) != len(columns):
            raise ValueError(f"write_html: row {number} of table {title!r} has {len(row)} cells, and there are {len(columns)} columns.")
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return {"title": title, "columns": list(columns), "rows": cells}


def _plot(title: str, alt: str, content: bytes, mime: str) -> dict[str, str]:
    if mime not in _IMAGES:
        raise ValueError(f"write_html: plot {title!r} must be {' or '.join(_IMAGES)}, got {mime!r}.")
    return {"title": title, "alt": alt, "source": f"data:{mime};base64,{base64.b64encode(content).decode()}"}


def _json_for_script(data: dict[str, Any]) -> str:
    # `<` never stands in JSON outside a string, and escaped there it can neither end the script nor begin a comment.
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
