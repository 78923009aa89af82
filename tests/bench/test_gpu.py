"""bench/gpu.py: parts by priority, each within its time, whatever becomes of the others; and a run that goes on where another ended."""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import environment

BACKBONES = ["llama-1b", "smollm2-135m", "groups", "groups-cascade", "long-groups", "long-groups-cascade"]
PARTS = ["tests", "attention-tests", "sanitizer", "ops", *BACKBONES, "claim", "reward-model", "rl"]


@pytest.fixture
def gpu(load: Callable[[str], Any]) -> Any:
    return load("gpu")


@pytest.fixture
def part(gpu: Any) -> Callable[..., Any]:
    def make(name: str, code: str, seconds: float = 30, **more: Any) -> Any:
        return gpu.Part(name=name, command=("{python}", "-c", code), seconds=seconds, **{"least": 1, **more})

    return make


@pytest.fixture
def run(gpu: Any, tmp_path: Path) -> Callable[..., list[Any]]:
    return lambda parts, seconds=60.0, known=None: list(gpu.run_parts(parts, seconds, tmp_path, known or {}))


@pytest.fixture
def limits(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Each part's limit in seconds, on a clock on which a part takes as many as its code says."""
    now = [0.0]
    seen: dict[str, float] = {}

    def pretend(part: Any, limit: float, folder: Path) -> Any:
        seen[part.name] = limit
        now[0] += min(limit, float(part.command[-1]))
        return gpu.Outcome(name=part.name, command=list(part.command), exit_code=0, verdict="passed")

    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(gpu, "_run", pretend)
    return seen


def test_a_failing_part_does_not_stop_the_next(run, part, tmp_path):
    bad, good = run([part("bad", "print('on fire'); print('---'); raise SystemExit(3)"), part("good", "print('all is well')")])
    assert (bad.exit_code, bad.verdict, bad.summary) == (3, "failed with exit code 3", "on fire")
    assert (good.exit_code, good.verdict, good.summary) == (0, "passed", "all is well")
    assert bad.is_bad
    assert not good.is_bad
    assert (tmp_path / "bad.log").read_text() == "on fire\n---\n"


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def shell(request):
    """A shell has what it starts with `&` ignore SIGINT."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("shell")
def test_a_part_is_stopped_with_its_children(gpu, run, part, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    held = tmp_path / "held"
    # The system takes a lock from whoever dies. The parent is asked first, and may still write what it has.
    child = f"import fcntl, time; file = open({str(held)!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX); time.sleep(60)"
    code = (
        f"import os, subprocess, sys, time; print('begun', flush=True); subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"try: time.sleep(60)\nexcept KeyboardInterrupt: open({str(tmp_path / 'asked')!r}, 'w')"
    )
    slow, after = run([part("slow", code, seconds=3), part("after", "print('next')")])
    assert slow.exit_code is None
    assert slow.verdict == "stopped at its time limit"
    assert slow.summary == "begun"
    assert slow.is_bad
    assert (tmp_path / "asked").exists()
    assert after.exit_code == 0
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_part_knows_its_time_and_its_folder(run, part, tmp_path):
    (one,) = run([part("a", "print('{seconds}', '{minutes}', '{out}')")], seconds=100)
    assert one.summary == f"85 1.42 {tmp_path}"
    assert one.command[2] == "print('{seconds}', '{minutes}', '{out}')", "the folder may lie elsewhere when the run goes on"


def test_what_a_part_leaves_over_goes_to_the_next(run, part, limits):
    run([part("a", "10", seconds=100), part("b", "150", seconds=60), part("c", "5", seconds=40), part("d", "5", seconds=10)], seconds=300)
    # a leaves 90 to b; b takes all of its 150; c has its own 40; nobody comes after d.
    assert limits == {"a": 100, "b": 150, "c": 40, "d": 300 - 165}


def test_without_time_the_last_ones_are_not_begun(run, part, limits):
    parts = [part("a", "100", seconds=100), part("b", "20", seconds=60), part("c", "5", least=30)]
    *_, c = run(parts, seconds=140)
    assert limits == {"a": 100, "b": 40}
    assert c.verdict == "not begun: wants 30 s at least, and 20 s are left"
    assert not c.is_bad
    assert c.exit_code is None


def test_what_cannot_run_or_has_passed_takes_no_time_from_the_others(gpu, run, part, limits):
    a, b, c = part("a", "10", seconds=50), part("b", "1", missing="needs --model"), part("c", "10", seconds=50)
    passed = gpu.Outcome(name="a", command=list(a.command), exit_code=0, verdict="passed")
    kept, absent, _ = run([a, b, c], seconds=80, known={"a": passed})
    assert kept is passed
    assert absent.verdict == "not begun: needs --model"
    assert limits == {"c": 80}


def test_a_part_waits_for_what_another_makes(run, part, limits, tmp_path):
    (late,) = run([part("late", "1", uses=("model", "early"))])
    assert late.verdict == "not begun: model is not there, which the part early makes"
    (tmp_path / "model").mkdir()
    run([part("late", "1", uses=("model", "early"))])
    assert list(limits) == ["late"]


def test_only_what_passed_with_the_same_command_is_not_run_again(gpu, run, part, limits):
    a = part("a", "1")

    def known(**changes: Any) -> dict[str, Any]:
        outcome = {"name": "a", "command": list(a.command), "exit_code": 0, "verdict": "passed"}
        return {"a": gpu.Outcome(**{**outcome, **changes})}

    run([a], known=known())
    assert limits == {}
    for changes in ({"exit_code": 1}, {"exit_code": None}, {"exit_code": environment.UNFINISHED}, {"command": ["other"]}):
        run([a], known=known(**changes))
        assert limits.pop("a")


def call(gpu: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output_dir", str(folder), "--dry_run", "--model", str(folder / "m"), *words])
    (folder / "m").mkdir(exist_ok=True, parents=True)
    (folder / "m" / "config.json").touch()
    return gpu.main()


def test_a_killed_run_leaves_what_it_had_and_goes_on(gpu, part, tmp_path, monkeypatch):
    counted = tmp_path / "counted"
    first = part("first", f"open({str(counted)!r}, 'a').write('1'); print('done')")
    second = part("second", "import time; time.sleep(1.5)")
    monkeypatch.setattr(gpu, "gpu_parts", lambda setup: [first, second])
    process = multiprocessing.get_context("fork").Process(target=call, args=(gpu, monkeypatch, tmp_path / "out"))
    process.start()
    report = tmp_path / "out" / "gpu.json"
    while not (report.exists() and (tmp_path / "out" / "second.log").exists()):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [record["verdict"] for record in json.loads(report.read_text())["parts"]] == ["passed"]
    assert call(gpu, monkeypatch, tmp_path / "out") == 0
    assert [record["verdict"] for record in json.loads(report.read_text())["parts"]] == ["passed", "passed"]
    assert counted.read_text() == "1"
    assert "| second | passed |" in (tmp_path / "out" / "gpu.md").read_text()


def test_the_report_names_what_is_left(gpu, part, tmp_path, monkeypatch, capsys):
    parts = [part("a", "pass"), part("b", "raise SystemExit(1)"), part("c", "pass", missing="needs --data_dir")]
    monkeypatch.setattr(gpu, "gpu_parts", lambda setup: parts)
    assert call(gpu, monkeypatch, tmp_path) == 1
    assert "The same command goes on with b, c." in capsys.readouterr().out
    # One part alone keeps what is known of the others.
    assert call(gpu, monkeypatch, tmp_path, "--only", "a") == 1
    assert len(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == 3
    with pytest.raises(SystemExit, match=r"--only: no part d; there are a, b, c"):
        call(gpu, monkeypatch, tmp_path, "--only", "d")


def load_parts(gpu: Any) -> Any:
    return sys.modules["gpu_parts"]


def test_correctness_first_then_ops_backbones_claim_and_policies(gpu):
    parts = load_parts(gpu)
    assert [one.name for one in parts.gpu_parts(parts.Setup())] == PARTS
    assert [one.name for one in parts.gpu_parts(parts.Setup(dry=True))] == PARTS


def test_the_first_nine_minutes_are_correctness_ops_and_backbones(gpu):
    parts = load_parts(gpu)
    first = [one for one in parts.gpu_parts(parts.Setup()) if one.name in PARTS[:-3]]
    assert sum(one.seconds for one in first) <= 540


def test_the_plan_lists_the_parts_with_their_seconds(gpu, bench):
    page = (bench.parent / "docs" / "gpu-plan.md").read_text().split("## The parts")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| ([\d +]+)", page, re.MULTILINE)
    listed = {
        name.strip("`"): float(seconds)
        for names, added in rows
        for name, seconds in zip(names.split(", "), added.split(" + "), strict=True)
    }
    parts = load_parts(gpu)
    assert listed == {one.name: one.seconds for one in parts.gpu_parts(parts.Setup())}


def test_what_is_missing_is_named(gpu):
    parts = load_parts(gpu)
    bare = {one.name: one for one in parts.gpu_parts(parts.Setup(), has=lambda name: False)}
    assert bare["tests"].missing == bare["sanitizer"].missing == "needs pytest and hypothesis (pip install pytest hypothesis)"
    assert "-n" not in bare["tests"].command
    assert bare["claim"].missing == "needs --model and --data_dir"
    assert bare["rl"].missing == bare["reward-model"].missing == "needs --model"
    assert [name for name, one in bare.items() if one.missing is None] == ["ops", *BACKBONES]
    whole = parts.gpu_parts(parts.Setup(model=Path("m"), data=Path("d")), has=lambda name: True)
    assert all(one.missing is None for one in whole)


def test_files_of_tests_stay_on_one_worker_and_leave_a_report(gpu, bench):
    parts = load_parts(gpu)
    tests, attention, sanitizer, *_ = parts.gpu_parts(parts.Setup(), has=lambda name: True)
    assert "--dist loadfile" in " ".join(tests.command)
    for part in (tests, attention, sanitizer):
        assert f"--junitxml {{out}}/{part.name}.xml" in " ".join(part.command)
    marked = {path for path in bench.parent.glob("tests/srm*/**/test_*.py") if "mark.gpu" in path.read_text()}
    given = [bench.parent / word for word in (*tests.command, *attention.command) if word.startswith("tests/")]
    assert marked
    assert all(any(path.is_relative_to(place) for place in given) for path in marked)


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize("model", [None, Path("/m")])
def test_every_command_is_one_that_its_script_takes(gpu, load, monkeypatch, dry, model):
    from research import rl_comparison
    from research.claim import compare
    from srm.cli import demo
    from srm.rl.arguments import parse_rl_config

    parts = load_parts(gpu)
    scripts = {"bench/ops.py": load("ops"), "research.claim.compare": compare, "research.rl_comparison": rl_comparison}
    for one in parts.gpu_parts(parts.Setup(model=model, data=Path("/d"), dry=dry), has=lambda name: True):
        words = [word.replace("{out}", "/o").replace("{seconds}", "60").replace("{minutes}", "1") for word in one.command]
        words = words[words.index("{python}") :]
        name, arguments = (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        if name == "bench/throughput.py":
            taken = load("throughput")._arguments(arguments)
            assert taken.resume
            assert taken.json == Path(f"/o/{one.name}.json")
            assert ("SRM_PACKED_ATTENTION=cascade" in one.command) == one.name.endswith("cascade")
        elif name == "srm.cli.demo":
            demo._parse(arguments)
        elif name == "pytest":
            assert all((Path(gpu.ROOT) / word).exists() for word in arguments if word.startswith("tests/"))
        else:
            taken = scripts.pop(name)._arguments()
            if isinstance(taken, tuple):
                config, flags = taken[0].config, taken[1]
                assert parse_rl_config(["--config", str(config), "--bf16", "false", *flags]).max_completion_length == (8 if dry else 128)
            else:
                assert isinstance(taken, argparse.Namespace)
    assert not scripts


def test_what_is_named_must_be_there(gpu, tmp_path, monkeypatch):
    for words, message in ((["--model", "nowhere"], "no config.json there"), (["--data_dir", str(tmp_path)], "no pairs_train.jsonl.gz, ")):
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry_run", *words])
        with pytest.raises(SystemExit, match=message):
            gpu.main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
@pytest.mark.parametrize("name", ["gpu", "ops"])
def test_without_a_gpu_it_says_so(load, name, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    with pytest.raises(SystemExit, match=f"bench/{name}.py: no CUDA device"):
        load(name).main()


def test_without_git_the_commit_is_unknown_or_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.describe()["commit"] == "unknown"
    monkeypatch.setenv("SRM_COMMIT", "0123abc")
    assert environment.describe()["commit"] == "0123abc"


def test_a_result_is_written_whole_or_not_at_all(monkeypatch, tmp_path):
    file = tmp_path / "out.json"
    environment.write(file, {"a": 1})
    with pytest.raises(TypeError):
        environment.write(file, {"a": object()})
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        environment.write(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}


def test_what_another_commit_or_machine_wrote_is_not_kept(tmp_path, capsys):
    file = tmp_path / "out.json"
    assert environment.read_as_here(file) == {}
    environment.write(file, {**environment.describe(), "a": 1})
    assert environment.read_as_here(file)["a"] == 1
    environment.write(file, {**environment.describe(), "device": "another", "a": 1})
    assert environment.read_as_here(file) == {}
    assert "nothing of it is kept" in capsys.readouterr().err
