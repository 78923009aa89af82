"""A script of bench/ has its folder first on the path when it runs, so none may be named like a package that anything imports."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

import pytest

# Where these libraries list the packages that they use if they are there; Hugging Face's `kernels` is one.
OPTIONAL = {
    "transformers": ("utils/import_utils.py",),
    "accelerate": ("utils/imports.py",),
    "peft": ("import_utils.py",),
    "huggingface_hub": ("utils/_runtime.py",),
    "torch_geometric": ("typing.py",),
}
NAMED = re.compile(r"""(?:is_package_available|find_spec)\(\s*["'](\w+)|^\s*(?:import|from) (\w+)""", re.MULTILINE)


def optional_packages(library: str) -> set[str]:
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        return set()
    files = (Path(spec.origin).parent / name for name in OPTIONAL[library])
    return {name for file in files if file.exists() for pair in NAMED.findall(file.read_text()) for name in pair if name}


def test_no_script_shadows_a_package(bench: Path) -> None:
    scripts = {path.stem for path in bench.glob("*.py")} - {"__init__"}
    assert "gpu" in scripts
    installed = {name for name in importlib.metadata.packages_distributions() if name.isidentifier()}
    taken = installed | sys.stdlib_module_names
    for library in OPTIONAL:
        taken |= optional_packages(library)
    assert not scripts & taken


@pytest.mark.parametrize("name", ["kernels", "flash_attn"])
def test_packages_that_are_not_installed_are_looked_for_too(name: str) -> None:
    assert name in optional_packages("transformers")
