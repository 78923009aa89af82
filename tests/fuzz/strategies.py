"""Rows and files as programs, people and damage write them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from typing import Any, NamedTuple

from hypothesis import strategies as st

EVIL = [
    "", " ", "\n", "\x00", "\x1b[2J", "\x1b]0;x\x07", "\x9b8m", "\u202e", "[/INST]", "[bold]", "=1+1", "$\\frac{", "\ud800", "é" * 40,
    "今天。", "👩‍👩‍👧", "<|im_end|>", "<|im_start|>assistant\n", "nan", "null", "[]",
    "[[", '[{"role": "user"}]', "Human: a\n\nAssistant: b", "a." * 300,
    "\u0085", "\u2028", "\ufeff", "a\tb", "\\", '"', "'", "</script>", "-1", "ref:1", "tied:1:2",
]  # fmt: skip
SENTENCES = [
    "The cat sat on the mat. It was warm.",
    "Is this right? No, it is wrong!",
    "Bread needs salt.",
    "Yes.",
    "It is. It is not.\n\n- one\n- two",
]
ROLES = ["user", "assistant", "system", "tool", "developer", "function", "", None, 1]

plain = st.sampled_from(SENTENCES)
text = st.one_of(plain, plain, plain, st.sampled_from(EVIL), st.text(st.characters(exclude_categories=()), max_size=20))
number = st.one_of(
    st.integers(-3, 9), st.floats(), st.sampled_from([10**400, -(10**30), 2**63, 2**53 + 1, 1e999, 0.1, 5e-324]), st.booleans(), st.none()
)
anything = st.recursive(
    st.one_of(text, number), lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)), max_leaves=6
)
message = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": plain}),
    st.fixed_dictionaries(
        {"role": st.sampled_from(ROLES), "content": st.one_of(text, anything)}, optional={"name": text, "tool_calls": anything}
    ),
    anything,
)
user = st.fixed_dictionaries({"role": st.just("user"), "content": plain})
answer = st.one_of(text, st.lists(st.fixed_dictionaries({"role": st.just("assistant"), "content": text}), min_size=1, max_size=1))
prompt = st.one_of(text, text, st.lists(user, min_size=1, max_size=1), st.lists(message, max_size=3))
extras = {
    "id": st.one_of(text, number),
    "subset": st.one_of(text, anything),
    "section": text,
    "margin": number,
    "errors": anything,
    "x": anything,
}
row = st.one_of(
    st.fixed_dictionaries({"prompt": prompt, "response": answer}, optional=extras),
    st.fixed_dictionaries({"prompt": prompt, "chosen": answer, "rejected": answer}, optional=extras),
    st.fixed_dictionaries(
        {"prompt": prompt, "responses": st.lists(answer, max_size=3)}, optional={**extras, "scores": anything, "ranks": anything}
    ),
    st.fixed_dictionaries(
        {"chosen": st.one_of(text, st.lists(message, max_size=3)), "rejected": st.one_of(text, st.lists(message, max_size=3))}
    ),
    st.fixed_dictionaries(
        {
            "prompt": plain,
            "response": plain,
            "errors": st.lists(st.fixed_dictionaries({"type": text, "start": number, "end": number}), max_size=2),
        }
    ),
    st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "response", "responses", "id", *EVIL]), anything, max_size=5),
)
name = st.sampled_from(["a", "b", "Grüße", "1", "x y", "[c]"])
good = st.one_of(
    st.fixed_dictionaries({"prompt": plain, "chosen": plain, "rejected": plain}, optional={"id": name, "subset": name, "section": name}),
    st.fixed_dictionaries({"prompt": plain, "response": plain}, optional={"id": name}),
    st.fixed_dictionaries({"prompt": plain, "responses": st.lists(plain, min_size=2, max_size=3, unique=True)}, optional={"id": name}),
    st.fixed_dictionaries({"prompt": st.lists(user, min_size=1, max_size=1), "response": plain}),
)
RAW = [
    "{", "[", "[" * 3000, "1" * 5000, '{"prompt": ' + "1" * 5000 + "}", "null", "3", '"a"', '{"prompt": "a", "prompt": "b"}',
    "{'prompt': 'a'}",
    '{"prompt": "a", "response": "b", "x": ' + "[" * 3000, "\x00", '{"prompt": "a", "response": "\\ud83d"}', '{"a":NaN}', "}{",
]  # fmt: skip
mixed = st.one_of(good, good, good, row, row, st.sampled_from(RAW))


class File(NamedTuple):
    """name: with the suffix of its format. content: its bytes. rows: those that were meant."""

    name: str
    content: bytes
    rows: list[Any]


def _jsonl(rows: list[Any]) -> bytes:
    lines = (r if isinstance(r, str) else json.dumps(r) for r in rows)
    return "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass")


def _json(rows: list[Any]) -> bytes:
    return ("[" + ",".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows) + "]").encode(
        "utf-8", "surrogatepass"
    )


def _csv(rows: list[Any]) -> bytes:
    rows = [r for r in rows if isinstance(r, dict)]
    names = list(dict.fromkeys(name for r in rows for name in r))
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(names)
    for r in rows:
        writer.writerow([v if isinstance(v := r.get(name, ""), str) else json.dumps(v) for name in names])
    return stream.getvalue().encode("utf-8", "surrogatepass")


def _parquet(rows: list[Any]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [r for r in rows if isinstance(r, dict)]
    names = list(dict.fromkeys(name for r in rows for name in r))
    columns, kept = [], []
    for name in names:
        try:
            columns.append(pa.array([r.get(name) for r in rows]))
            kept.append(name.encode("utf-8", "replace").decode())
        except Exception:
            # Arrow has one type a column: what it cannot hold goes in as text, or in bytes.
            columns.append(pa.array([repr(r.get(name)).encode("utf-8", "replace") for r in rows]))
            kept.append(name.encode("utf-8", "replace").decode())
    stream = io.BytesIO()
    try:
        parquet.write_table(pa.Table.from_arrays(columns, names=kept), stream, compression="none")
    except Exception:
        return b"PAR1"
    return stream.getvalue()


_FORMATS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".jsonl.gz": _jsonl, ".csv.gz": _csv, ".ndjson": _jsonl}
DAMAGE = ["none"] * 8 + ["cut", "flip", "insert", "utf-16", "latin-1", "bom", "empty", "twice"]


@st.composite
def files(draw: st.DrawFn, rows: st.SearchStrategy[Any] = mixed) -> File:
    """A file of some rows, whole or damaged."""
    content = draw(st.lists(rows, max_size=5))
    suffix = draw(st.sampled_from(sorted(_FORMATS)))
    written = _FORMATS[suffix](content)
    damage = draw(st.sampled_from(DAMAGE))
    if suffix.endswith(".gz") and damage not in ("cut", "flip"):
        written = gzip.compress(_damaged(draw, damage, written), mtime=0)
    else:
        written = _damaged(draw, damage, gzip.compress(written, mtime=0) if suffix.endswith(".gz") else written)
    return File(f"p{suffix}", written, content if damage == "none" else [])


def _damaged(draw: st.DrawFn, damage: str, content: bytes) -> bytes:
    at = draw(st.integers(0, max(0, len(content) - 1))) if damage in ("cut", "flip", "insert") else 0
    if damage == "cut":
        return content[:at]
    if damage == "flip":
        return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :] if content else content
    if damage == "insert":
        return content[:at] + draw(st.binary(max_size=6)) + content[at:]
    if damage in ("utf-16", "latin-1"):
        return content.decode("utf-8", "replace").encode(damage, "replace")
    return {"bom": b"\xef\xbb\xbf" + content, "empty": b"", "twice": content + content}.get(damage, content)
