"""The table of extras is true to pyproject.toml and to what the code imports. What a user sees: tests/packaging."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import srm
from srm.extras import EXTRAS, MissingPackage, name_the_extra

ROOT = Path(srm.__file__).parents[1]
tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")


def test_every_extra_can_be_installed() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) - {""} == set(extras) - {"dev", "docs"}


def test_every_package_that_srm_imports_has_its_extra() -> None:
    imported = set()
    for path in (ROOT / "srm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.partition(".")[0] for name in names}
    # These import their adapters themselves.
    hosts = {"omegaconf", "skyrl", "skyrl_gym", "slime", "verl"}
    assert imported - set(sys.stdlib_module_names) - {"srm", "srm_kernels"} - hosts <= set(EXTRAS)


def test_only_what_is_missing_as_a_whole_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'srm\.typo'$"), name_the_extra("x"):
        import srm.typo  # noqa: F401
    with pytest.raises(MissingPackage, match=r"^inner: ") as caught, name_the_extra("outer"), name_the_extra("inner"):
        raise ModuleNotFoundError("No module named 'nltk'", name="nltk")
    assert caught.value.name == "nltk"
