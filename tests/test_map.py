"""CONTRIBUTING.md's map is the tree."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def named() -> dict[str, set[str]]:
    """What the map names at the top ("") and inside each of its folders."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text.split("## The map of rooms", 1)[1].split("```")[1]
    found: dict[str, set[str]] = {"": set()}
    folder = ""
    for indent, name in re.findall(r"^( *)([\w.]+/?) ", block, re.MULTILINE):
        if not indent:
            folder = name
            found[""].add(name)
        else:
            found.setdefault(folder, set()).add(name)
    return found


def there(folder: str) -> set[str]:
    """Folders, with a slash, and files that git tracks or would, directly in `folder`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder or "."]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    inside = {line.removeprefix(folder) for line in listed.stdout.splitlines() if (ROOT / line).exists()}
    return {name.split("/")[0] + "/" if "/" in name else name for name in inside}


def test_every_folder_is_on_the_map_and_nothing_else() -> None:
    on_map = named()
    hidden_or_file = {name for name in there("") if name.startswith(".") or not name.endswith("/")}
    assert on_map[""] == there("") - hidden_or_file
    for package in ("srm/", "srm_kernels/"):
        modules = {name for name in there(package) if not name.startswith(("_", "py.typed"))}
        assert on_map[package] == modules
