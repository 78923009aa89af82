"""bench/ops.py on tiny sizes: what it writes, and that nothing wrong gets a time."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def ops():
    """The script as a module, its neighbours importable as they are when it runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        import ops

        yield ops


@pytest.fixture
def case(ops):
    def make(op, width=0):
        setting = ops.Setting(
            op=op,
            lengths=ops.lengths.pack_lengths(ops.lengths.generated_groups(50), 512),
            width=width,
            dtype=torch.float32,
            device=torch.device("cpu"),
            backend="torch",
            compile=lambda name, function, **options: function,
        )
        return ops.make_case(setting)

    return make


def test_smoke_run(ops, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ops.py", "--smoke", "--budget", "0", "--output_dir", str(tmp_path)])
    assert ops.main() == 0
    result = json.loads((tmp_path / "ops_smoke.json").read_text())
    assert {"device", "packages", "commit", "copy_gb_per_s", "targets", "ours", "lengths"} <= result.keys()
    assert result["smoke"]
    by_op = {cell["op"]: cell["providers"] for cell in result["cells"]}
    assert len(by_op) == 9
    for providers in by_op.values():
        ours = providers["srm_kernels"]
        assert set(ours["modes"]) == {"forward", "backward", "both"}
        for timed in ours["modes"].values():
            assert 0 < timed["p20_ms"] <= timed["median_ms"] <= timed["p80_ms"]
            assert timed["share_of_copy"] == pytest.approx(timed["gb_per_s"] / result["copy_gb_per_s"])
        assert "reference, torch.compile" in providers
    assert set(by_op["packed_gae"]["Python loop"]["modes"]) == {"forward"}
    assert "the times mean nothing" in (tmp_path / "ops_smoke.md").read_text()
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["ops_smoke_bandwidth.png", "ops_smoke_times.png"]


def test_a_wrong_result_gets_no_time_and_fails_the_run(ops, case):
    softmax = case("segment_softmax")
    name = "padded, masked"
    right = softmax.providers[name]

    def off_by_a_thousandth(**inputs):
        (weight,) = right.run(**inputs)
        return (weight * 1.001,)

    cell = {"op": "segment_softmax", "width": 0, "num_tokens": 512}
    providers = {**softmax.providers, name: dataclasses.replace(right, run=off_by_a_thousandth)}
    cell |= ops.measure(dataclasses.replace(softmax, providers=providers), torch.device("cpu"), 1.0, 0.0)
    assert "modes" not in cell["providers"][name]
    assert "wrong" in cell["providers"][name]["problem"]
    assert "modes" in cell["providers"]["srm_kernels"]
    (problem,) = ops.op_report.problems({"cells": [cell]})
    assert name in problem


def test_a_wrong_gradient_is_seen_too(ops, case):
    gather = case("gather_boundaries", 16)
    right = gather.providers["srm_kernels"]

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    wrong = dataclasses.replace(right, run=lambda hidden: right.run(Twice.apply(hidden)))
    expected = ops.define(gather)
    assert ops.verify(right, gather, expected)["problem"] is None
    assert "wrong" in ops.verify(wrong, gather, expected)["problem"]


def test_a_run_that_is_cut_short_has_a_cell_of_each_goal(ops):
    cells = list(ops.op_grid.cells())
    assert len(set(cells)) == len(cells)
    first = cells[: len(ops.op_grid.GOALS)]
    assert [op for op, _, _ in first] == list(ops.op_grid.GOALS)
    assert {num_tokens for _, _, num_tokens in first} == {65536}
    # What docs/kernels.md has goals for, at all sizes that it names, before the odd widths.
    named = {(op, d, t) for op in ("sentence_reward_head", "gather_boundaries") for d in (2048, 4096) for t in (16384, 65536, 262144)}
    assert named <= set(cells[:45])
    assert {width for op, width, _ in cells if op == "bradley_terry_loss"} == {64, 4096}
    assert {width for op, width, _ in cells if op == "segment_softmax"} == {0, 16}
    assert len(list(ops.op_grid.cells("gather"))) == 12


def test_one_compilation_serves_all_token_counts_of_a_width_whatever_runs_in_between(ops, monkeypatch):
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    compiler = ops.Compiler(count)

    def double(x):
        return 2 * x

    for num_tokens in (5, 7, 9):
        for width in (16, 24, 32):
            x = torch.ones(num_tokens, width)
            torch._dynamo.maybe_mark_dynamic(x, 0)
            for op in ("a", "b"):
                assert compiler.for_width(op, width)("double", double)(x).sum() == 2 * num_tokens * width
    assert len(compiled) == 6


def test_a_stopped_run_goes_on_and_measures_nothing_twice(ops, tmp_path, monkeypatch):
    measured = []

    def measure(case, *_, **__):
        measured.append(case.sizes)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return {"sizes": case.sizes, "providers": {}}

    command = ["ops.py", "--smoke", "--resume", "--budget", "0", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(ops, "measure", measure)
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(KeyboardInterrupt):
        ops.main()
    left = json.loads((tmp_path / "ops_smoke.json").read_text())
    assert len(left["cells"]) == 2, "what was measured is on the disk as soon as it is"
    assert ops.main() == 0
    assert len(measured) == 3 + 7
    result = json.loads((tmp_path / "ops_smoke.json").read_text())
    assert len(result["cells"]) == 9
    assert result["cells"][:2] == left["cells"]
    # Of other code nothing is kept.
    monkeypatch.setenv("SRM_COMMIT", "another")
    assert ops.main() == 0
    assert len(measured) == 10 + 9


def test_a_size_that_does_not_fit_does_not_end_the_run(ops, tmp_path, monkeypatch):
    def measure(case, *_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(ops, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["ops.py", "--smoke", "--op", "difference", "--output_dir", str(tmp_path)])
    assert ops.main() == 0
    (cell,) = json.loads((tmp_path / "ops_smoke.json").read_text())["cells"]
    assert cell["skipped"] == "out of GPU memory"


def test_what_raises_is_reported_and_the_others_go_on(ops, case):
    softmax = case("segment_softmax")
    eager = softmax.providers["reference, eager"]

    def broken(**inputs):
        raise RuntimeError("no such instruction\nsecond line")

    providers = {"srm_kernels": softmax.providers["srm_kernels"], "reference, eager": dataclasses.replace(eager, run=broken)}
    measured = ops.measure(dataclasses.replace(softmax, providers=providers), torch.device("cpu"), 1.0, 0.0)["providers"]
    assert measured["reference, eager"] == {"problem": "failed: RuntimeError: no such instruction"}
    assert "modes" in measured["srm_kernels"]


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        # Rows are read and written once; the backward reads N rows and writes T.
        ("gather_boundaries", lambda s: (2 * s["N"] * 16 * 4 + 8 * s["N"], (s["N"] + s["T"]) * 16 * 4 + 8 * s["N"])),
        ("segment_softmax", lambda s: (8 * s["N"], 12 * s["N"])),
        ("packed_gae", lambda s: (16 * s["T"], 16 * s["T"])),
    ],
)
def test_bytes_that_must_move(case, op, expected):
    made = case(op, 16 if op == "gather_boundaries" else 0)
    assert made.bytes == expected(made.sizes)


def test_packed_lengths_are_a_valid_layout(ops):
    packed = ops.lengths.pack_lengths(ops.lengths.generated_groups(200), 16384)
    packed.layout.validate(16384)
    assert int(packed.cu_seqlens[-1]) == 16384
    # Siblings share their prompt's last token, and a boundary comes about every 25 tokens.
    assert packed.layout.boundaries.unique().numel() < packed.layout.num_boundaries
    assert 15 < 16384 / packed.layout.num_boundaries < 35


def test_lengths_of_real_pairs(ops, shared_data):
    groups = ops.lengths.real_groups(str(shared_data / "pairs_test.jsonl.gz"), count=20)
    assert len(groups) == 20
    assert all(len(group.responses) == 2 and group.num_tokens > 2 for group in groups)


def test_targets_name_what_is_slower_and_what_was_not_measured(ops):
    def timed(ms):
        return {"problem": None, "modes": {"forward": {"median_ms": ms, "share_of_copy": 0.5}}}

    cell = {"op": "token_rewards", "sizes": {"T": 9}, "providers": {"srm_kernels": timed(2.0), "reference, torch.compile": timed(1.0)}}
    rows = ops.op_report.targets({"cells": [cell], "l2_bytes": 1})
    assert {row["met"] for row in rows[:-1]} == {"not measured"}
    assert rows[-1]["met"] == "no"
    assert rows[-1]["measured"] == "token_rewards T=9 forward 0.50x"


def test_the_table_has_host_times_and_graphs(ops):
    def timed(ms, host):
        times = {"median_ms": ms, "p20_ms": ms, "p80_ms": ms, "host_ms": host, "share_of_copy": 0.5}
        return {"problem": None, "modes": {"forward": times}}

    names = (
        "srm_kernels",
        "reference, torch.compile",
        "srm_kernels, CUDA graph",
        "reference, torch.compile, CUDA graph",
        "reference, eager",
    )
    providers = {name: timed(ms, host) for name, ms, host in zip(names, (2.0, 4.0, 1.0, 3.0, 8.0), (0.11, 0.2, 0.3, 0.4, 0.5), strict=True)}
    cell = {"op": "token_rewards", "sizes": {"T": 9}, "providers": providers}
    result = {
        "smoke": False,
        "device": "d",
        "packages": {},
        "commit": "c",
        "time": "t",
        "copy_gb_per_s": 1.0,
        "lengths": "l",
        "l2_bytes": 1,
    }
    result |= {"cells": [cell]}
    result["targets"] = ops.op_report.targets(result)
    (row,) = [line for line in ops.op_report.table(result) if line.startswith("| token_rewards")]
    assert [part.strip() for part in row.split("|")[4:-1]] == ["2 (2 to 2)", "0.11", "50%", "2.00x", "4.00x", "", "1", "3.00x"]
    assert [target["met"] for target in result["targets"][-2:]] == ["yes", "yes"]


def test_the_head_on_one_core(ops):
    import op_cpu

    cell = op_cpu.measure_head(512, rounds=2)
    assert cell["sizes"]["T"] == 512
    for mode in ("forward", "both"):
        times = cell["milliseconds"][mode]
        assert times["ours"] > 0
        assert times["plain"] > 0
        assert cell["ratio"][mode] > 0


def test_no_time_for_a_head_that_is_wrong(ops, monkeypatch):
    import op_cpu

    monkeypatch.setattr(ops, "verify", lambda provider, case, expected: {"problem": "wrong: by far"})
    with pytest.raises(SystemExit, match="ours: wrong: by far"):
        op_cpu.measure_head(512, rounds=2)


def test_what_is_not_here_is_left_out_with_its_reason(ops):
    from op_packages import LeftOut, installed

    def of_another_torch():
        raise OSError("libtorch_cuda.so: undefined symbol\nmore")

    def without_a_kernel():
        raise LeftOut("has no kernel for cuda")

    def not_there():
        import no_such_package  # noqa: F401

    made, left_out = installed({"a": lambda: 1, "b": not_there, "c": of_another_torch, "d": without_a_kernel})
    assert made == {"a": 1}
    assert left_out == {
        "b": "not installed (No module named 'no_such_package')",
        "c": "libtorch_cuda.so: undefined symbol",
        "d": "has no kernel for cuda",
    }


@pytest.mark.parametrize("op", ["segment_softmax", "difference_rewards", "sentence_pool"])
def test_other_packages_are_right_where_they_are_installed(ops, case, op):
    """FBGEMM, pyg-lib and PyG are no one's dependency here; all have passed this."""
    made = case(op)
    expected = ops.define(made)
    theirs = [name for name in made.providers if name.startswith(("FBGEMM", "pyg-lib", "PyG"))]
    if not theirs:
        pytest.skip(f"neither FBGEMM nor PyG is installed: {dict(made.left_out)}")
    for name in theirs:
        assert ops.verify(made.providers[name], made, expected)["problem"] is None


@pytest.fixture
def captured(ops, monkeypatch):
    """Stands in for a device: what replays `run` into the tensors of its first call, or the function given in its place."""

    def flat(outputs):
        return [x for part in outputs for x in (part if isinstance(part, tuple) else (part,))]

    def capture(run):
        outputs = run()

        @torch.no_grad()
        def replay():
            with torch.enable_grad():
                again = run()
            for x, new in zip(flat(outputs), flat(again), strict=True):
                x.copy_(new)

        return replay, outputs

    monkeypatch.setattr(ops.op_graphs, "_captured", capture)
    return lambda broken: monkeypatch.setattr(ops.op_graphs, "_captured", broken)


def test_a_graph_is_verified_on_what_its_replay_writes(ops, case, captured):
    softmax = case("segment_softmax")
    expected = ops.define(softmax)
    provider = softmax.providers["srm_kernels"]
    record, jobs = ops.op_graphs.capture(provider, softmax, expected, required=True)
    assert record["problem"] is None
    assert set(jobs) == {"forward", "both"}
    # A graph that captured nothing leaves the poison.
    captured(lambda run: (lambda: None, run()))
    record, jobs = ops.op_graphs.capture(provider, softmax, expected, required=True)
    assert record["problem"].startswith("wrong")
    assert jobs == {}


@pytest.mark.parametrize("required", [True, False])
def test_what_cannot_be_captured_is_a_failure_of_ours_alone(ops, case, captured, required):
    def refuse(run):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    captured(refuse)
    softmax = case("segment_softmax")
    record, jobs = ops.op_graphs.capture(softmax.providers["srm_kernels"], softmax, ops.define(softmax), required=required)
    assert record["problem"] == "cannot be captured: RuntimeError: operation not permitted when stream is capturing"
    assert jobs == {}
    cell = {"op": "segment_softmax", "sizes": {"T": 512}, "providers": {"a, CUDA graph": record}}
    assert bool(ops.op_report.problems({"cells": [cell]})) == required
