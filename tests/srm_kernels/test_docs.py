"""docs/kernels.md runs and names the arguments that the ops have; docstrings name each argument, the result, and the errors."""

import inspect
import re
from pathlib import Path

import pytest

import srm_kernels
from tests.docstrings import documented, problems, sections

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)\((.*?)\)` \|", PAGE, re.MULTILINE)


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["hidden"].grad[[11, 19, 24, 31, 39]].any(1).all()
    assert names["advantages"].shape == (40,)
    assert "cpu: torch" in capsys.readouterr().out


def test_the_table_has_every_op():
    ops = {name for name in srm_kernels.__all__ if inspect.isfunction(getattr(srm_kernels, name))}
    assert {name for name, _ in ROWS} == ops - {"backend_report", "cu_from_lengths"}


@pytest.mark.parametrize(("name", "arguments"), ROWS)
def test_the_table_names_arguments_in_their_order(name, arguments):
    parameters = inspect.signature(getattr(srm_kernels, name)).parameters
    # Shapes in brackets have commas of their own, and one argument has two of them.
    shown = re.findall(r"(\w+)(?:=[\w.-]+)?(?:, |$)", re.sub(r"\[.*?\]( or )?", "", arguments))
    positional = [argument for argument in parameters if argument in shown]
    assert shown == positional
    for argument, default in re.findall(r"(\w+)=([\w.-]+)", arguments):
        assert parameters[argument].default == pytest.approx(eval(default)) if default != "None" else parameters[argument].default is None


DOCUMENTED = [name for name in srm_kernels.__all__ if inspect.isfunction(getattr(srm_kernels, name))] + [
    "SentenceLayout",
    "SentenceRewardHead",
]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstrings_name_every_argument(name):
    public = getattr(srm_kernels, name)
    said = sections(public)
    assert documented(public, "Args") == list(inspect.signature(public).parameters)
    assert "Returns" in said or inspect.isclass(public)
    assert "Raises" in said or name == "backend_report"


@pytest.mark.parametrize("name", ["BackendReport", "SentenceRewardHeadOutput"])
def test_docstrings_name_every_field(name):
    assert problems(getattr(srm_kernels, name)) == []
