"""What kernels execute may not grow unnoticed: no clock, no GPU, and the same numbers on every machine."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton")

import triton

from . import counts
from .count_cases import CASES
from .counts import COUNTS, PAGE, count, main, moved, table

COMMITTED = json.loads(COUNTS.read_text())


@pytest.mark.skipif(
    triton.__version__ != COMMITTED["triton"], reason=f"the counts are of Triton {COMMITTED['triton']}, this is {triton.__version__}"
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op} {case.size}")
def test_nothing_has_risen(case):
    now = count(case)
    assert set(now) == {key for key in COMMITTED["counts"] if (key.split(" | ")[0], key.split(" | ")[2]) == (case.op, case.size)}
    rose = list(moved(now, COMMITTED["counts"]))
    assert not rose, "\n".join([*rose, "If it must be: python -m tests.ptx.counts --write --reason ..."])
    fell = list(moved(now, COMMITTED["counts"], -1))
    assert not fell, "\n".join(["Better! Hold it with: python -m tests.ptx.counts --write", *fell])


def test_the_page_has_the_table():
    assert table(COMMITTED["counts"]) in PAGE.read_text()


def test_every_rise_has_its_reason():
    for update in COMMITTED["reasons"]:
        assert update["reason"].strip()
        assert update["rose"]


ROW = {"launches": 1, "warp_instructions": 1000}


def test_three_per_cent():
    before = {"op": ROW, "gone": ROW}
    assert list(moved({"op": ROW | {"warp_instructions": 1030}}, before)) == []
    assert list(moved({"op": ROW | {"warp_instructions": 1031}}, before)) == ["op: warp_instructions 1,000 -> 1,031"]
    assert list(moved({"op": ROW | {"warp_instructions": 970}}, before, -1)) == []
    assert list(moved({"op": ROW | {"warp_instructions": 969}}, before, -1)) == ["op: warp_instructions 1,000 -> 969"]
    assert list(moved({"op": ROW | {"launches": 2}}, before)) == ["op: launches 1 -> 2"]
    assert list(moved({"new": ROW}, before)) == []


def test_a_rise_is_written_with_a_reason_only(tmp_path, monkeypatch, capsys):
    case = next(case for case in CASES if case.op == "difference_rewards")
    committed = {key: row for key, row in COMMITTED["counts"].items() if key.startswith("difference_rewards | ") and case.size in key}
    lower = {key: row | {"warp_instructions": row["warp_instructions"] // 2} for key, row in committed.items()}
    stored, page = tmp_path / "counts.json", tmp_path / "page.md"
    stored.write_text(json.dumps({"counts": lower, "reasons": [{"reason": "an old one", "rose": ["x"]}]}))
    page.write_text("before\n<!-- counts -->\nold\n<!-- /counts -->\nafter\n")
    for name, value in {"CASES": [case], "COUNTS": stored, "PAGE": page}.items():
        monkeypatch.setattr(counts, name, value)
    assert main(["--write"]) == 1
    assert "Nothing written: say why with --reason." in capsys.readouterr().err
    assert json.loads(stored.read_text())["counts"] == lower
    assert main(["--write", "--reason", "a second pass, for accuracy"]) == 0
    written = json.loads(stored.read_text())
    assert [update["reason"] for update in written["reasons"]] == ["an old one", "a second pass, for accuracy"]
    assert len(written["reasons"][1]["rose"]) == 2
    assert page.read_text() == f"before\n<!-- counts -->\n{table(written['counts'])}\n<!-- /counts -->\nafter\n"


def test_what_cannot_be_written_is_refused(capsys):
    for arguments in (["--op", "gather"], ["--target", "80"]):
        with pytest.raises(SystemExit):
            main(["--write", *arguments])
        assert "--write takes all ops, for the table's own target" in capsys.readouterr().err
