"""Fresh environments with the wheel in them, as its users have: nothing here is imported from the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints-cpu.txt"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment in `folder`; what runs in it runs there, and does not see the checkout."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Environment:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        return cls(folder=folder)

    def path(self, command: str) -> str:
        return str(self.folder / "bin" / command)

    def run(self, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """The finished process of a command of the environment."""
        variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        return subprocess.run(
            [self.path(command), *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=variables | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
            check=False,
        )

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        """The finished process of `python -c code`."""
        return self.run("python", "-c", code)

    def install(self, *arguments: str | Path) -> None:
        done = self.run("python", "-m", "pip", "install", "--quiet", "--progress-bar", "off", "--disable-pip-version-check", *arguments)
        assert done.returncode == 0, done.stderr

    def copy(self, folder: Path) -> Environment:
        """The same again, for something else to be installed into it. Commands that are there already stay those of this one."""
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True, copy_function=os.link)
        return Environment(folder=folder)

    def packages(self) -> set[str]:
        listed = self.run("python", "-m", "pip", "list", "--format", "json", "--disable-pip-version-check")
        return {package["name"] for package in json.loads(listed.stdout)}


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist, and with the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    (path,) = distributions.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def torch_alone(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The build of torch that suits this machine, and what it brings."""
    environment = Environment.create(tmp_path_factory.mktemp("torch_alone"))
    subprocess.run([ROOT / "scripts" / "install_torch.sh", environment.path("python")], check=True)
    return environment


@pytest.fixture(scope="session")
def with_torch(wheel: Path, torch_alone: Environment, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """torch and the wheel."""
    environment = torch_alone.copy(tmp_path_factory.mktemp("with_torch"))
    environment.install(wheel)
    return environment


@pytest.fixture(scope="session")
def with_httpx(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """httpx and the wheel, without torch."""
    environment = Environment.create(tmp_path_factory.mktemp("with_httpx"))
    environment.install("--no-deps", wheel)
    environment.install("-c", CONSTRAINTS, "httpx")
    return environment


@pytest.fixture(scope="session")
def with_stack(wheel: Path, torch_alone: Environment, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel with its extra `srm`."""
    environment = torch_alone.copy(tmp_path_factory.mktemp("with_stack"))
    environment.install("-c", CONSTRAINTS, f"{wheel}[srm]")
    return environment
