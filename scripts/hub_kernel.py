"""Lay srm_kernels out for the Hugging Face kernel hub, from the sources as they are.

python scripts/hub_kernel.py OUT            # a kernel-builder project: build.toml, flake.nix, CARD.md, torch-ext/srm_kernels
python scripts/hub_kernel.py OUT --build    # and build/torch-*, as kernel-builder makes them, for `kernels.get_local_kernel(OUT)`

The hub loads several builds of a kernel into one process, so each registers its ops under a namespace of its own: `_ops.py` has it, and a
build brings another one. `kernel-builder` needs nix; `--build` needs Python alone, because nothing here is compiled.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "srm_kernels"
BACKENDS = ("cpu", "cuda")
# What only the project's own checks use.
LEFT_OUT = ("compile_check.py", "compile_case.py", "cases.py", "py.typed", "__pycache__")
# kernel-builder writes the same two names.
OPS = '''import torch

ops = torch.ops.{id}


def add_op_namespace_prefix(op_name: str) -> str:
    """The name of an op in the namespace of this build."""
    return f"{id}::{{op_name}}"
'''
# Older releases of `kernels` import the folder with the kernel's name.
COMPATIBILITY = '''"""The same module, for older releases of kernels."""

import importlib.util
import sys
from pathlib import Path

_path = Path(__file__).resolve().parents[1] / "__init__.py"
_name = f"{abs(hash(_path)):x}"
_spec = importlib.util.spec_from_file_location(_name, _path)
_module = importlib.util.module_from_spec(_spec)
sys.modules[_name] = _module
_spec.loader.exec_module(_module)
globals().update(vars(_module))
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the project goes; must not exist")
    parser.add_argument("--build", action="store_true", help="write build/torch-* too")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        sys.exit(f"scripts/hub_kernel.py: {arguments.folder} exists. Name a new folder, or remove it.")
    write_project(arguments.folder)
    if arguments.build:
        for backend in BACKENDS:
            write_build(arguments.folder, backend)
    print(f"{arguments.folder}: {', '.join(sorted(path.name for path in arguments.folder.iterdir()))}")


def write_project(folder: Path) -> None:
    """What kernel-builder reads."""
    shutil.copytree(ROOT / "hub", folder)
    shutil.copy(ROOT / "LICENSE", folder)
    copy_sources(folder / "torch-ext" / NAME)
    # kernel-builder brings its own.
    (folder / "torch-ext" / NAME / "_ops.py").unlink()


def copy_sources(target: Path) -> None:
    shutil.copytree(ROOT / NAME, target, ignore=shutil.ignore_patterns(*LEFT_OUT))


def write_build(folder: Path, backend: str) -> None:
    """One variant, which Python alone can make: sources, the namespace of their ops, and the metadata."""
    variant = folder / "build" / f"torch-{backend}"
    copy_sources(variant)
    sources = sorted(path for path in variant.rglob("*.py") if path.name != "_ops.py")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    identity = f"_{NAME}_{backend}_{digest[:7]}"
    (variant / "_ops.py").write_text(OPS.format(id=identity), encoding="utf-8")
    (variant / NAME).mkdir()
    (variant / NAME / "__init__.py").write_text(COMPATIBILITY, encoding="utf-8")
    files = sorted(path for path in variant.rglob("*") if path.is_file())
    metadata = {
        "name": NAME.replace("_", "-"),
        "id": identity,
        "version": 0,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {
            "algorithm": "sha256",
            "files": {path.relative_to(variant).as_posix(): _digest(path) for path in files},
        },
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def _digest(path: Path) -> str:
    return base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()


if __name__ == "__main__":
    main()
