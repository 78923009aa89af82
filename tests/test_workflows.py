"""GitHub's workflows, which no test can run, name what is there: targets of the Makefile, scripts, and the Pythons of the package."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each job's name, and its steps for each value of its matrix."""
    for name, job in workflow["jobs"].items():
        matrix = job.get("strategy", {}).get("matrix", {"": [""]})
        ((key, values),) = matrix.items()
        for value in values:
            for step in job["steps"]:
                yield name, {k: str(v).replace(f"${{{{ matrix.{key} }}}}", str(value)) for k, v in step.items()}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_runs_is_there(path: Path) -> None:
    seen = 0
    for job, step in steps(load(path)):
        for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
            seen += 1
            assert target in TARGETS, f"{job}: make {target}"
        for script in re.findall(r"\bscripts/[\w.]+", step.get("run", "")):
            assert (ROOT / script).is_file(), f"{job}: {script}"
        assert "${{" not in step.get("run", ""), f"{job}: what is put into a command unquoted may be anybody's text"
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"]), f"{job}: {step['uses']}"
    assert seen


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_no_more_rights_than_its_jobs_ask_for(path: Path) -> None:
    workflow = load(path)
    assert set(workflow["permissions"].values()) <= {"read"}
    for name, job in workflow["jobs"].items():
        writes = "write" in job.get("permissions", {}).values()
        # Whoever may publish runs nothing that was just installed.
        assert not (writes and any("make" in step.get("run", "") for step in job["steps"])), name


def test_the_pythons_are_those_of_the_package() -> None:
    tested = load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    declared = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert tested == declared
