# ruff: noqa: RUF001  # Punctuation of other scripts is the subject of this file.
"""What every segmenter keeps to, settings and errors; the sentences themselves are in cases.txt."""

from __future__ import annotations

import ast
import copy
import dataclasses
import importlib
import json
import pickle
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srm.errors import UserError
from srm.segmentation import SegmentationConfig, Segmenter, Span, make_segmenter

PIECES = [
    *("The cat sat", "It was", "x = 1", "Dr", "e.g", "No", "U.S", "a", "Z", "好", "我是", "क्या", "42", "3.14", "1", "http://a.b/c?d"),
    *(".", "!", "?", "...", "…", "。", "？", "।", "؟", ",", ";", ":", "-", "—"),
    *("=", "$$", "\\[", "\\]", "🎉", "e\u0301", "\u200d", "\u00a0"),
    *('"', "'", "“", "”", "(", ")", "[1]", "*", "**", "_", "`", "```", "~~~", "|", "#", "##", ">", "- ", "1. ", "---", "{", "}"),
    *(" ", " ", " ", "  ", "\n", "\n", "\n\n", "\r\n", "\t", "    "),
]
MARKUP = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
ANY_TEXT = st.one_of(MARKUP, st.text(max_size=80))
SEGMENTERS = [
    make_segmenter("punkt"),
    make_segmenter("punkt", min_chars=0, max_chars=8, max_code_chars=8),
    make_segmenter("punkt", min_chars=30, max_chars=60),
    make_segmenter("newline"),
    make_segmenter("newline", min_chars=6, max_chars=12),
]


def cut(segmenter: Segmenter, text: str) -> list[str]:
    return [text[start:end] for start, end in segmenter.segment(text)]


@pytest.mark.parametrize("segmenter", SEGMENTERS)
@given(text=ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_spans_cover_the_text_in_order(segmenter: Segmenter, text: str) -> None:
    spans = segmenter.segment(text)
    assert "".join(text[start:end] for start, end in spans) == text
    assert [span.start for span in spans[1:]] == [span.end for span in spans[:-1]]
    assert all(start < end for start, end in spans)
    assert bool(spans) == bool(text)
    assert segmenter.segment_batch([text, "", text]) == [spans, [], spans]
    # White space belongs to the sentence before it.
    assert not any(text[start].isspace() for start, _ in spans[1:])


@pytest.mark.parametrize("segmenter", SEGMENTERS)
@given(text=ANY_TEXT)
@settings(max_examples=100, deadline=None)
def test_limits_hold(segmenter: Segmenter, text: str) -> None:
    config = segmenter.config
    sentences = cut(segmenter, text)
    assert all(len(sentence.rstrip()) <= max(config.max_chars, config.max_code_chars) for sentence in sentences)
    if len(text) <= config.max_chars and len(sentences) > 1:
        # Nothing was split, so each sentence has what `min_chars` asks for.
        assert all(sum(c.isalnum() for c in sentence) >= config.min_chars for sentence in sentences)


PLAIN_PARAGRAPH = st.lists(
    st.tuples(
        st.sampled_from(["The cat sat", "It rained", "We left (late)", 'He said "no"', "Why not"]), st.sampled_from([".", "!", "?", "..."])
    ),
    min_size=1,
    max_size=5,
).map(lambda sentences: " ".join(words + mark for words, mark in sentences))


@given(paragraphs=st.lists(PLAIN_PARAGRAPH, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_paragraphs_do_not_depend_on_each_other(punkt: Segmenter, paragraphs: list[str]) -> None:
    text = "\n\n".join(paragraphs)
    assert [sentence.rstrip() for sentence in cut(punkt, text)] == [s.rstrip() for paragraph in paragraphs for s in cut(punkt, paragraph)]


@given(paragraph=PLAIN_PARAGRAPH)
@settings(max_examples=60, deadline=None)
def test_a_sentence_of_plain_prose_is_one_sentence(punkt: Segmenter, paragraph: str) -> None:
    for sentence in cut(punkt, paragraph):
        assert cut(punkt, sentence) == [sentence]


@given(text=ANY_TEXT)
@settings(max_examples=100, deadline=None)
def test_a_line_is_one_line(text: str) -> None:
    segmenter = make_segmenter("newline", min_chars=0)
    sentences = cut(segmenter, text)
    assert [s.strip() for s in sentences if s.strip()] == [line.strip() for line in text.split("\n") if line.strip()]
    for sentence in sentences:
        assert cut(segmenter, sentence) == [sentence]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One.\r\nTwo.\r\n\r\nThree\r\n", ["One.\r\n", "Two.\r\n\r\n", "Three\r\n"]),
        ("# Plan\r\nWe go.\r\n---\r\nWe see.", ["# Plan\r\n", "We go.\r\n---\r\n", "We see."]),
        ("- One\r\n- Two\r\n", ["- One\r\n", "- Two\r\n"]),
        ("```\r\na. B\r\n```\r\nDone.", ["```\r\na. B\r\n```\r\n", "Done."]),
        ("One.\u00a0Two.\u00a0Three.", ["One.\u00a0", "Two.\u00a0", "Three."]),
        ("一。\u3000二。", ["一。\u3000", "二。"]),
        ("Vraiment\u202f? Oui.", ["Vraiment\u202f? ", "Oui."]),
    ],
)
def test_white_space_that_an_editor_would_not_show(punkt: Segmenter, text: str, expected: list[str]) -> None:
    assert cut(punkt, text) == expected


def test_empty_and_blank(punkt: Segmenter) -> None:
    assert punkt.segment("") == []
    assert make_segmenter("newline").segment("") == []
    assert punkt.segment(" \n\t ") == [Span(0, 4)]
    assert punkt.segment("...") == [Span(0, 3)]


def test_newline_looks_at_nothing_but_lines() -> None:
    text = "  One. Two.\n\n1.\n```\n\n  Three"
    assert cut(make_segmenter("newline", min_chars=0), text) == ["  One. Two.\n\n", "1.\n", "```\n\n  ", "Three"]


def test_the_example_in_the_docs(punkt: Segmenter) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "segmentation.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    text = ast.literal_eval(code.split("text = ")[1].split("\n")[0])
    assert f"# {punkt.segment(text)}".replace("start=", "").replace("end=", "") in code
    for field in dataclasses.fields(SegmentationConfig)[1:]:
        written = "none" if field.default == () else f"`{field.default}`" if isinstance(field.default, str) else str(field.default)
        assert f"| `{field.name}` | {written} |" in page


def test_own_abbreviations() -> None:
    text = "See Abschn. Zwei there."
    assert len(make_segmenter().segment(text)) == 2
    for written in ("abschn", "Abschn."):
        assert len(make_segmenter(abbreviations=[written]).segment(text)) == 1


DEGENERATE = {
    "letters": "a",
    "line breaks": "\n",
    "spaces": " ",
    "full stops": ".",
    "marks and spaces": "! ",
    "spaced full stops": ". ",
    "quotes": '"',
    "full stop and quote": '." ',
    "brackets": ".)",
    "open brackets": "(",
    "stars": "*",
    "bold": "** ",
    "underscores": "_",
    "backticks": "`",
    "fences": "```\n",
    "bars": "|\n",
    "rules": "- ",
    "numbers": "1. ",
    "number lines": "1.\n",
    "footnotes": "x.[1]",
    "ellipses": "... A ",
    "dollars": "$$\n",
    "CJK": "好",
    "CJK stops": "。",
    "combining marks": "\u0301",
    "joiners": "\u200d",
    "emoji": "🎉",
    "commas": ", ",
    "code": "x = 1;\n",
}


@pytest.mark.parametrize("unit", DEGENERATE.values(), ids=DEGENERATE)
def test_time_is_linear(punkt: Segmenter, unit: str) -> None:
    """Quadratic time would take minutes for the long text; processor time, so that a busy machine does not matter."""
    short, long = (unit * (size // len(unit)) for size in (3_000, 100_000))
    punkt.segment(short)
    began = time.process_time()
    spans = punkt.segment(long)
    assert time.process_time() - began < 20
    assert spans[-1].end == len(long)
    assert all(len(long[start:end].rstrip()) <= punkt.config.max_code_chars for start, end in spans)


def test_config_survives_json() -> None:
    segmenter = make_segmenter("punkt", min_chars=3, abbreviations=["abschn"])
    again = make_segmenter(**json.loads(json.dumps(segmenter.config.to_dict())))
    assert again.config == segmenter.config
    assert again.config.abbreviations == ("abschn",)
    assert hash(again.config) == hash(segmenter.config)


@pytest.mark.parametrize("name", ["punkt", "newline"])
def test_segmenters_travel_to_worker_processes(name: str) -> None:
    segmenter = make_segmenter(name, max_chars=20)
    for twin in (pickle.loads(pickle.dumps(segmenter)), copy.deepcopy(segmenter)):
        assert twin.config == segmenter.config
        assert twin.segment("One. Two is a longer sentence.") == segmenter.segment("One. Two is a longer sentence.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "spacy"}, "unknown name 'spacy'. Choose one of punkt, punkt_tab, sat, newline"),
        ({"min_chars": -1}, "`min_chars` must be an integer of at least 0, got -1"),
        ({"max_chars": 0}, "`max_chars` must be an integer of at least 8, got 0"),
        ({"max_code_chars": 10.5}, "`max_code_chars` must be an integer of at least 8, got 10.5"),
        ({"max_chars": True}, "`max_chars` must be an integer of at least 8, got True"),
        ({"abbreviations": "abschn"}, "`abbreviations` must be a list of words, got 'abschn'"),
        ({"abbreviations": [1]}, r"`abbreviations` must be a list of words, got \[1\]"),
        ({"language": None}, "`language` must be a string, got None"),
        ({"sat_model": 3}, "`sat_model` must be a string, got 3"),
        ({"abbreviations": 5}, "`abbreviations` must be a list of words, got 5"),
        ({"colour": "red"}, r"unknown setting colour\. Choose from name, min_chars, max_chars"),
    ],
)
def test_wrong_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_segmenter(**settings)  # type: ignore[arg-type]  # wrong on purpose


def test_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        SegmentationConfig().min_chars = 2  # type: ignore[misc]  # wrong on purpose


def test_import_is_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("srm.segmentation")]:
        monkeypatch.delitem(sys.modules, module)
    for absent in ("nltk", "nltk.tokenize.punkt", "wtpsplit"):
        monkeypatch.setitem(sys.modules, absent, None)
    fresh = importlib.import_module("srm.segmentation")
    assert fresh.make_segmenter("newline").segment("a") == [(0, 1)]
    assert fresh.make_segmenter("punkt").segment("A. B") == [(0, 4)]


def test_punkt_tab_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk.data

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(UserError, match=r"'english' is not on this machine\. Get it with `python -m nltk.downloader punkt_tab`"):
        make_segmenter("punkt_tab")
    with pytest.raises(UserError, match=r"'\.\./x' is not on this machine"):
        make_segmenter("punkt_tab", language="../x")


def test_punkt_tab_uses_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model of the form NLTK downloads, that knows one abbreviation."""
    import nltk.data

    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name, content in {"abbrev_types.txt": "abschn\n", "collocations.tab": "", "sent_starters.txt": "", "ortho_context.tab": ""}.items():
        (folder / name).write_text(content)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    segmenter = make_segmenter("punkt_tab")
    text = "See Abschn. Zwei. 你好。- Done\n\n- One. Two"
    assert cut(segmenter, text) == ["See Abschn. Zwei. ", "你好。", "- Done\n\n", "- One. ", "Two"]


def test_real_responses(punkt: Segmenter, shared_data: Path) -> None:
    """Sentences of real answers have a sensible size, and few of them are cut inside a line without a terminator."""
    import gzip

    with gzip.open(shared_data / "pairs_test.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["chosen"] for _, line in zip(range(2000), lines, strict=False)]
    lengths = []
    for text in texts:
        sentences = cut(punkt, text)
        assert "".join(sentences) == text
        lengths += [len(sentence.strip()) for sentence in sentences]
    lengths.sort()
    assert 50 < lengths[len(lengths) // 2] < 110
    assert sum(length < 4 for length in lengths) < len(lengths) * 0.01
    assert sum(length > 300 for length in lengths) < len(lengths) * 0.06
