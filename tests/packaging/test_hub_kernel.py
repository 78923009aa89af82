"""The layout for the kernel hub, in the hub's own loader: beside the installed package, and beside another build of itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tomllib

if TYPE_CHECKING:
    from conftest import Environment

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "hub_kernel.py"
TWICE = """
_plain = difference_rewards_reference

def difference_rewards_reference(value, cu_boundaries):
    return 2 * _plain(value, cu_boundaries)
"""
LOAD = """
import json, sys
from pathlib import Path
import torch
import srm_kernels
from kernels import get_local_kernel
first, second = (get_local_kernel(Path(folder), backend="cpu") for folder in FOLDERS)
value = torch.tensor([0.0, 1.0, 3.0, 0.0, -2.0])
cu = srm_kernels.cu_from_lengths([3, 2])
results = [module.difference_rewards(value, cu).tolist() for module in (srm_kernels, first, second)]
names = {}
for op in torch._C._dispatch_get_all_op_names():
    namespace, name = op.split("::")
    names.setdefault(namespace, set()).add(name)
ours = {namespace: sorted(found) for namespace, found in names.items() if "srm_kernels" in namespace}
torch.library.opcheck(getattr(torch.ops, first.__name__).difference_rewards, (value, cu, "auto"))
print(json.dumps({"results": results, "ops": ours, "ids": [first.__name__, second.__name__]}))
"""


@pytest.fixture(scope="session")
def with_kernels(with_torch: Environment, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel, torch, and the hub's loader."""
    environment = with_torch.copy(tmp_path_factory.mktemp("with_kernels"))
    environment.install("kernels>=0.17")
    return environment


def laid_out(folder: Path) -> Path:
    subprocess.run([sys.executable, SCRIPT, folder, "--build"], check=True, capture_output=True)
    return folder


def test_a_hub_build_lives_beside_the_package_and_beside_another_build(with_kernels: Environment, tmp_path: Path) -> None:
    """A copy with names of its own: one that registered the package's would take the place of its ops, here with twice the reward."""
    first, second = laid_out(tmp_path / "first"), tmp_path / "second"
    edited = tmp_path / "edited"
    for name in ("srm_kernels", "hub", "scripts"):
        shutil.copytree(ROOT / name, edited / name)
    shutil.copy(ROOT / "LICENSE", edited)
    reference = edited / "srm_kernels" / "ops" / "difference_rewards" / "reference.py"
    reference.write_text(reference.read_text(encoding="utf-8") + TWICE, encoding="utf-8")
    subprocess.run([sys.executable, edited / "scripts" / "hub_kernel.py", second, "--build"], check=True, capture_output=True)
    done = with_kernels.python(LOAD.replace("FOLDERS", repr([str(first), str(second)])))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["results"] == [[0, 1, 2, 0, -2], [0, 1, 2, 0, -2], [0, 2, 4, 0, -4]]
    one, two = found["ids"]
    assert one != two
    assert set(found["ops"]) == {"srm_kernels", one, two}
    assert found["ops"][one] == found["ops"][two] == found["ops"]["srm_kernels"]


def test_the_project_is_as_kernel_builder_wants_it(tmp_path: Path) -> None:
    folder = laid_out(tmp_path / "hub")
    general = tomllib.loads((folder / "build.toml").read_text(encoding="utf-8"))["general"]
    sources = folder / "torch-ext" / general["name"].replace("-", "_")
    assert (sources / "__init__.py").is_file()
    assert not (sources / "_ops.py").exists(), "the builder writes it"
    variants = sorted(path.name for path in (folder / "build").iterdir())
    assert variants == sorted(f"torch-{backend}" for backend in general["backends"])
    for path in sources.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) srm", text, re.MULTILINE), f"{path.name}: imports from the kernel itself must be relative"
        assert "srm_kernels::" not in text, f"{path.name}: names of ops go through add_op_namespace_prefix"
