"""bench/gpu.py: parts run one after the other, each within its limit, whatever becomes of the others."""

import fcntl
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture
def gpu(load):
    return load("gpu")


def python(gpu, name, code, share=1.0):
    return gpu.Part(name=name, command=(sys.executable, "-c", code), share=share)


def test_a_failing_part_does_not_stop_the_next(gpu):
    parts = [python(gpu, "bad", "print('on fire'); print('---'); raise SystemExit(3)"), python(gpu, "good", "print('all is well')")]
    bad, good = gpu.run_parts(parts, 60)
    assert (bad.exit_code, bad.verdict, bad.summary) == (3, "failed with exit code 3", "on fire")
    assert (good.exit_code, good.verdict, good.summary) == (0, "passed", "all is well")


def test_a_part_is_stopped_with_its_children(gpu, tmp_path):
    held = tmp_path / "held"
    # The system takes a lock from whoever dies.
    child = f"import fcntl, time; file = open({str(held)!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX); time.sleep(60)"
    code = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    slow, after = gpu.run_parts([python(gpu, "slow", code, share=0.2), python(gpu, "after", "print('next')")], 15)
    assert slow.exit_code is None
    assert slow.verdict == "stopped at its time limit"
    assert slow.summary == "begun"
    assert after.exit_code == 0
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_part_knows_its_time(gpu):
    (part,) = gpu.run_parts([gpu.Part(name="a", command=(sys.executable, "-c", "print('{seconds}', '{minutes}')"), share=0.5)], 100)
    assert part.summary == "40 0.67"


def test_the_parts_name_scripts_and_options_that_exist(gpu, bench, tmp_path):
    parts = {part.name: part.command for part in gpu.gpu_parts(tmp_path, "pairs.jsonl")}
    assert list(parts) == ["tests", "kernels", "throughput"]
    assert "gpu" in parts["tests"]
    for name, script in (("kernels", "kernels.py"), ("throughput", "throughput.py")):
        assert Path(parts[name][1]) == bench / script
        options = {option for option in parts[name] if option.startswith("--")} - {"--json"}  # `environment.parser` has that one
        assert all(f'"{option}"' in (bench / script).read_text() for option in options), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
@pytest.mark.parametrize("name", ["gpu", "kernels"])
def test_without_a_gpu_it_says_so(load, name, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    with pytest.raises(SystemExit, match=f"bench/{name}.py: no CUDA device"):
        load(name).main()
