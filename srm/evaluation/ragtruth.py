"""RAGTruth (arXiv 2401.00396) as rows with marked errors.

github.com/ParticleMedia/RAGTruth, README.md: the folder `dataset` has `response.jsonl` and `source_info.jsonl`, joined by `source_id`. As
in its `baseline/prepare_dataset.py`, responses are those of the split test with quality good, and every label counts, those with
`implicit_true` too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from srm.data.files import file_rows
from srm.data.schema import BadRow, RawRow, RowProblem
from srm.errors import UserError

__all__ = ["is_ragtruth", "ragtruth_rows"]

_RESPONSES, _SOURCES = "response.jsonl", "source_info.jsonl"


def is_ragtruth(source: str) -> bool:
    """Whether `source` is a folder with RAGTruth's two files."""
    folder = Path(source)
    return (folder / _RESPONSES).is_file() and (folder / _SOURCES).is_file()


def ragtruth_rows(source: str) -> Iterator[RawRow | BadRow]:
    """The responses of the split test with quality good, as rows with `prompt`, `response` and `errors`.

    Args:
        source: the folder.

    Raises:
        UserError: a file that cannot be read, a source that cannot be used, or no response of that split.
    """
    prompts = dict(map(_prompt, file_rows(Path(source) / _SOURCES)))
    number = 0
    for raw in file_rows(Path(source) / _RESPONSES):
        if isinstance(raw, BadRow):
            yield raw
        elif raw.fields.get("split") == "test" and raw.fields.get("quality") == "good":
            number += 1
            try:
                yield RawRow(where=raw.where, id=raw.id, number=number, fields=_fields(raw.fields, prompts))
            except RowProblem as problem:
                yield BadRow(raw.where, problem)
    if not number:
        raise UserError(f"{source}: {_RESPONSES} has no row with split 'test' and quality 'good'. Clone the repository again.")


def _prompt(raw: RawRow | BadRow) -> tuple[str, Any]:
    if isinstance(raw, BadRow):
        raise raw
    missing = [name for name in ("source_id", "prompt") if name not in raw.fields]
    if missing:
        raise UserError(f"{raw.where}: there is no `{missing[0]}`. Clone the repository again.")
    return str(raw.fields["source_id"]), raw.fields["prompt"]


def _fields(fields: Mapping[str, Any], prompts: Mapping[str, Any]) -> dict[str, Any]:
    missing = [name for name in ("source_id", "response", "labels") if name not in fields]
    if missing:
        raise RowProblem(f"there is no `{missing[0]}` (columns found: {', '.join(fields)})")
    source_id = str(fields["source_id"])
    if source_id not in prompts:
        raise RowProblem(f"`source_id` {source_id!r} is not in {_SOURCES}")
    labels = fields["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, dict) for label in labels):
        raise RowProblem("`labels` must be a list of objects")
    for label in labels:
        found, said = str(fields["response"])[label.get("start") : label.get("end")], label.get("text")
        if isinstance(said, str) and found.strip() != said.strip():
            raise RowProblem(f"`labels`: the response has {found!r} where the label says {said!r}")
    errors = [{"type": label.get("label_type"), "start": label.get("start"), "end": label.get("end")} for label in labels]
    return {"id": fields.get("id"), "prompt": prompts[source_id], "response": fields["response"], "errors": errors}
