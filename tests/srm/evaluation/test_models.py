"""What `--model` names."""

from __future__ import annotations

from pathlib import Path

import pytest

from srm.errors import UserError
from srm.evaluation.models import ModelName, read_model_name


@pytest.mark.parametrize(
    ("text", "rival", "path"),
    [
        ("outputs/reward", None, "outputs/reward"),
        ("leave_one_out:outputs/reward", "leave_one_out", "outputs/reward"),
        ("shapley:org/name", "shapley", "org/name"),
        ("dpo:/models/a:b", "dpo", "/models/a:b"),
        ("./dpo:b", None, "./dpo:b"),
        ("C:/models", None, "C:/models"),
    ],
)
def test_a_rival_stands_before_its_model(text: str, rival: str | None, path: str) -> None:
    name = read_model_name(text)
    assert (name.rival, name.path) == (rival, path)
    assert name.with_path(path) == text


def test_words_before_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"--model loo:outputs: there is no folder of that name, and no such rival\. Write leave_one_out:MODEL, "
    ):
        read_model_name("loo:outputs")
    with pytest.raises(UserError, match=r"--model shapley:: names no model"):
        read_model_name("shapley:")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loo:outputs").mkdir()
    assert read_model_name("loo:outputs") == ModelName(rival=None, path="loo:outputs")
