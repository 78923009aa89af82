"""The chosen answers of preference pairs, as rows that `trl sft` takes: a `prompt` and a `completion`, both of messages.

    python examples/chosen_answers.py pairs.jsonl outputs/chosen/train.jsonl

Reads what srm-train reads, a ranking's best answer included. An answer that its prompt begins is left out, and counted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from srm.data import Comparison, Prompt, Response, read_comparisons


def main(argv: Sequence[str] | None = None) -> None:
    source, target = sys.argv[1:] if argv is None else argv
    output = Path(target)
    output.parent.mkdir(parents=True, exist_ok=True)
    comparisons = list(read_comparisons(source))
    rows = list(chosen_answers(comparisons))
    output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{output}: {len(rows)} chosen answers; {len(comparisons) - len(rows)} that their prompt begins left out")


def chosen_answers(comparisons: Sequence[Comparison]) -> Iterator[dict[str, Any]]:
    """A row for each comparison, its best answer."""
    for comparison in comparisons:
        beaten = {worse for _, worse, _ in comparison.pairs}
        best = next(index for index in range(len(comparison.responses)) if index not in beaten)
        messages = [*_messages(comparison.prompt, "user"), *_messages(comparison.responses[best], "assistant")]
        begin = next(index for index in range(len(_messages(comparison.prompt, "user")), len(messages)) if _is_answer(messages[index]))
        if not _is_answer(messages[begin - 1]):
            yield {"prompt": messages[:begin], "completion": messages[begin:]}


def _messages(content: Prompt | Response, role: str) -> list[Any]:
    return [{"role": role, "content": content}] if isinstance(content, str) else list(content)


def _is_answer(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant"


if __name__ == "__main__":
    main()
