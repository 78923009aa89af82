"""Ray's own cluster of two nodes on this machine: files scored in order and once whoever is killed, `map_batches`, and Serve's replicas."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import ray
from pyarrow import parquet
from ray.cluster_utils import Cluster

from srm import Client, SentenceRewardModel, UserError
from srm.cli.cluster import Workers, plan_workers
from srm.cli.score import main
from srm.client import RequestRefused
from srm.integrations.ray import SentenceRewardScorer
from srm.scoring.lines import read_scores
from tests.docstrings import problems
from tests.servers import free_url, wait_until

NUM_ROWS = 900
# A pass a response: then what a response scores cannot depend on the chunk it is in, and files are equal to the byte.
ONE_A_PASS = ["--tokens_per_batch", "1", "--packing", "packed"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and a second node, with a core each: room for two workers."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
    made.add_node(num_cpus=1, object_store_memory=100 << 20)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture
def connected(cluster: Cluster) -> Iterator[None]:
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two files, JSONL and Parquet; prompts of three responses, pairs and messages among them."""
    folder = tmp_path_factory.mktemp("rows")
    rows: list[dict[str, Any]] = [
        {"id": f"row-{i}", "prompt": f"Question {i // 3}?", "response": f"Answer {i} is here. " + "It was warm. " * (10 + i % 7)}
        for i in range(NUM_ROWS)
    ]
    half = NUM_ROWS // 2
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:half]))
    parquet.write_table(pa.Table.from_pylist(rows[half:]), folder / "b.parquet")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one process writes."""
    output = tmp_path_factory.mktemp("whole") / "scores.jsonl"
    assert main(["--model", str(folder), "--input", str(source), "--output", str(output), "--device", "cpu", *ONE_A_PASS]) == 0
    return output.read_bytes()


@pytest.fixture
def flags(cluster: Cluster, folder: Path, source: Path) -> Callable[..., list[str]]:
    """flags(output, *more): of srm-score on the cluster."""

    def make(output: Path, *more: str, engine: str = "ray") -> list[str]:
        where = ["--engine", "ray", "--address", cluster.address] if engine == "ray" else []
        return ["--model", str(folder), "--input", str(source), "--output", str(output), "--device", "cpu", *ONE_A_PASS, *where, *more]

    return make


@pytest.fixture
def score(flags: Callable[..., list[str]]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """score(output, *flags): srm-score on the cluster, started in a process that can be killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: Any, **engine: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "srm.cli.score", *flags(*words, **engine)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> str:
    """What it prints, once it has ended well."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-5000:]
    return out + err


def num_lines(output: Path) -> int:
    return output.read_bytes().count(b"\n") if output.exists() else 0


def workers() -> dict[int, str]:
    """Process id -> node of the actors that score."""
    from ray.util.state import list_actors

    return {actor.pid: actor.node_id for actor in list_actors(filters=[("state", "=", "ALIVE")]) if "ChunkScorer" in actor.class_name}


def test_a_file_is_that_of_one_process(flags: Any, whole: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "scores.jsonl"
    assert main(flags(output)) == 0
    assert output.read_bytes() == whole
    assert f"{NUM_ROWS} responses scored: " in capsys.readouterr().err
    # Nothing is left to do, by either engine.
    for engine in ("ray", "local"):
        assert main(flags(output, engine=engine)) == 0
        assert f"({NUM_ROWS} of them by an earlier run)" in " ".join(capsys.readouterr().err.split())
    assert output.read_bytes() == whole


@pytest.mark.usefixtures("connected")
def test_a_worker_is_killed_midway(score: Any, whole: bytes, tmp_path: Path) -> None:
    output = tmp_path / "scores.jsonl"
    process = score(output)
    wait_until(lambda: num_lines(output) and len(workers()) == 2)
    before = workers()
    assert len(set(before.values())) == 2, "the two are not on two nodes"
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    written = num_lines(output)
    finish(process)
    assert 0 < written < NUM_ROWS
    assert output.read_bytes() == whole


@pytest.mark.usefixtures("connected")
def test_a_node_is_lost_and_another_joins(cluster: Cluster, score: Any, whole: bytes, tmp_path: Path) -> None:
    """With all that its store held."""
    output = tmp_path / "scores.jsonl"
    process = score(output)
    wait_until(lambda: num_lines(output) and len(workers()) == 2)
    (second,) = (node for node in cluster.list_all_nodes() if node is not cluster.head_node)
    cluster.remove_node(second, allow_graceful=False)
    written = num_lines(output)
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    finish(process)
    assert 0 < written < NUM_ROWS
    assert output.read_bytes() == whole


def test_the_command_is_killed_and_run_again(score: Any, whole: bytes, tmp_path: Path) -> None:
    output = tmp_path / "scores.jsonl"
    for engine in ("local", "ray"):
        process, before = score(output, engine=engine), num_lines(output)
        wait_until(lambda before=before: num_lines(output) > before)
        process.kill()
        process.wait()
        assert before < num_lines(output) < NUM_ROWS
    with output.open("a") as file:
        file.write('{"id": "row-')
    resumed = num_lines(output)
    assert f"({resumed} of them by an earlier run)" in finish(score(output))
    assert output.read_bytes() == whole


def test_full_passes_round_alone(flags: Any, whole: bytes, tmp_path: Path) -> None:
    """With the passes that users run, which a chunk's end cuts short."""
    output, expected = tmp_path / "scores.jsonl", [json.loads(line) for line in whole.splitlines()]
    assert main(flags(output, "--tokens_per_batch", "4096", "--packing", "shared", "--num_workers", "1")) == 0
    found = list(read_scores(output))
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    assert [row["reward"] for row in found] == pytest.approx([row["reward"] for row in expected], abs=1e-5)


def refused(capsys: pytest.CaptureFixture[str], *command: Any) -> str:
    capsys.readouterr()
    assert main([str(word) for word in command]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed.splitlines()[-1]


def test_what_a_user_can_mend_is_one_line(cluster: Cluster, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "Is it warm?", "response": "It was warm. " * (400 if i in (120, 130) else 2)} for i in range(140)]
    bad = tmp_path / "rows.jsonl"
    bad.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"prompt": "Is it warm?"}\n')
    place = ["--model", folder, "--input", bad, "--output", tmp_path / "scores.jsonl", "--device", "cpu"]
    on_ray = [*place, "--engine", "ray", "--address", cluster.address]
    # A bad row, before anything is scored; and of two that are too long the first, in whatever order workers come to them.
    for mend in (lambda: None, lambda: bad.write_text("".join(json.dumps(row) + "\n" for row in rows))):
        mend()
        told = refused(capsys, *on_ray)
        (tmp_path / "scores.jsonl").unlink(missing_ok=True)
        (tmp_path / "scores.jsonl.meta.json").unlink(missing_ok=True)
        assert told == refused(capsys, *place)
        assert "rows.jsonl line 1" in told
    for address, says in [
        ("127.0.0.1:1", "nothing answers there"),
        ("nowhere.invalid:6379", "nothing answers there"),
        ("nowhere", "give HOST:PORT of the cluster's head, auto, or local"),
        ("ray://127.0.0.1:10001", "a Ray client has no place for input and output"),
    ]:
        assert says in refused(capsys, *place, "--engine", "ray", "--address", address)
    assert "no machine of the Ray cluster has a GPU" in refused(capsys, *place, *on_ray[-4:], "--device", "cuda")
    assert "Ray gives each worker its GPU" in refused(capsys, *place, *on_ray[-4:], "--device", "cuda:1")
    assert "--num_workers is for --engine ray" in refused(capsys, *place, "--num_workers", "2")


def test_a_port_of_something_else(folder: Path, url: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--model", folder, "--input", source, "--output", tmp_path / "scores.jsonl", "--engine", "ray"]
    assert "what answers there is no Ray cluster" in refused(capsys, *place, "--address", url.removeprefix("http://"))


@pytest.mark.usefixtures("connected")
def test_workers_of_a_cluster() -> None:
    assert plan_workers("auto") == Workers(num_workers=2, num_cpus=1, num_gpus=0)
    assert plan_workers("cpu", 1) == Workers(num_workers=1, num_cpus=1, num_gpus=0)
    with pytest.raises(UserError, match=r"has a GPU and a CPU for a worker \(2 machines\)"):
        plan_workers("cuda")


@pytest.mark.usefixtures("connected")
def test_map_batches(model: SentenceRewardModel, folder: Path, source: Path, tmp_path: Path) -> None:
    """As a user writes it, on files that Ray reads and writes itself."""
    scored = ray.data.read_parquet(source / "b.parquet").map_batches(
        SentenceRewardScorer,
        fn_constructor_kwargs={"model": str(folder), "tokens_per_batch": 1},
        # The other core is for Ray's reading and writing.
        compute=ray.data.ActorPoolStrategy(size=1),
        batch_size=64,
        batch_format="pyarrow",
    )
    scored.write_parquet(tmp_path / "scores")
    found = {row["id"]: row for row in parquet.read_table(tmp_path / "scores").to_pylist()}
    rows = parquet.read_table(source / "b.parquet").to_pylist()
    assert found.keys() == {row["id"] for row in rows}
    assert len(found) == parquet.read_table(tmp_path / "scores").num_rows
    for row in rows[::50]:
        assert found[row["id"]]["response"] == row["response"]
        (expected,) = model.score([row["prompt"]], [row["response"]])
        got = found[row["id"]]
        assert got["reward"] == pytest.approx(expected.reward, abs=1e-5)
        assert [one["text"] for one in got["sentences"]] == [one.text for one in expected.sentences]


def test_pairs_and_messages_in_a_batch(model: SentenceRewardModel, folder: Path) -> None:
    ask = [{"role": "user", "content": "Is it warm?"}]
    rows = [{"prompt": ask, "chosen": [{"role": "assistant", "content": f"It is {i}."}], "rejected": None, "n": i} for i in range(3)]
    for row in rows:
        row["rejected"] = [{"role": "assistant", "content": "No, it is wrong!"}]
    scorer = SentenceRewardScorer(str(folder), device="cpu")
    table = scorer(pa.Table.from_pylist(rows))
    assert table.column("label").to_pylist() == ["chosen", "rejected"] * 3
    assert table.column("n").to_pylist() == [0, 0, 1, 1, 2, 2]
    expected = [one.reward for i in range(3) for one in model.score([ask], [[f"It is {i}.", "No, it is wrong!"]])[0]]
    assert table.column("reward").to_pylist() == pytest.approx(expected, abs=1e-5)
    assert scorer(pa.Table.from_pylist(rows).slice(0, 0)).num_rows == 0
    cutting = SentenceRewardScorer(str(folder), device="cpu", max_length=40, overlong="truncate_response")
    cut = cutting(pa.table({"prompt": ["Is it warm?"] * 2, "response": ["Yes.", "It was warm. " * 40]}))
    assert cut.column("truncated").to_pylist() == [False, True]
    with pytest.raises(UserError, match=r"got a batch as dict. Pass batch_format=\"pyarrow\""):
        scorer({"prompt": []})
    with pytest.raises(UserError, match="the data has a column 'reward' already"):
        scorer(pa.table({"prompt": ["a"], "response": ["b"], "reward": [1.0]}))
    with pytest.raises(UserError, match=r"row 1 of a batch: .* Fix the row, or filter it out before map_batches"):
        scorer(pa.table({"prompt": ["a", "a"], "response": ["b", None]}))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"overlong": "foo"}, "`overlong` must be one of error, truncate_prompt, truncate_response, got 'foo'"),
        ({"overlong": "drop"}, "`overlong` must be one of error, truncate_prompt, truncate_response, got 'drop'"),
        ({"packing": "foo"}, "`packing` must be one of shared, packed, none, got 'foo'"),
        ({"last_layer_rows": "foo"}, "SentenceRewardScorer: `last_layer_rows` must be one of boundaries, all, got 'foo'"),
        ({"dtype": "foo"}, "`dtype` must be auto or a dtype of torch"),
        ({"device": "foo"}, "SentenceRewardScorer: device foo: no such device here. Give one of cpu"),
        ({"device": "cuda:99"}, "SentenceRewardScorer: device cuda:99: no such device here. Give one of cpu"),
    ],
)
def test_settings_that_there_are_not_are_refused_before_a_batch(folder: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SentenceRewardScorer(str(folder), **{"device": "cpu", **wrong})


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def num_scored(url: str) -> int:
    """Requests that the replica has scored which this one comes to."""
    text = httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer secret"}).text
    lines = [line for line in text.splitlines() if line.startswith("srm_requests_total{") and "/v1/rewards" in line]
    return sum(int(float(line.split()[-1])) for line in lines if 'status="200"' in line)


def test_replicas_behind_one_address(model: SentenceRewardModel, folder: Path, tmp_path: Path) -> None:
    """`serve run`, as its file says; requests reach both replicas, and a token is asked for."""
    url = free_url()
    shipped = (Path(__file__).parents[2] / "examples" / "ray_serve.yaml").read_text()
    changes = {
        "port: 8000": f"port: {url.rpartition(':')[2]}",
        "model: outputs/reward": f"model: {folder}\n      device: cpu\n      policy_ends: [</s>, <e>]",
    }
    changes["num_replicas: 4"] = "num_replicas: 2"
    for old, new in changes.items():
        assert shipped.count(old) == 1
        shipped = shipped.replace(old, new)
    (tmp_path / "serve.yaml").write_text(shipped)
    environment = {**os.environ, "SRM_TOKEN": "secret", "RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(tmp_path / "serve.yaml")]

    def listen_to_interrupts() -> None:
        """A shell's job in the background ignores them, and so does what it starts."""
        signal.signal(signal.SIGINT, signal.default_int_handler)

    options: dict[str, Any] = {"env": environment, "preexec_fn": listen_to_interrupts}
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, **options) as server:
        try:
            # Until all is deployed, Serve answers with 404.
            wait_until(lambda: answers(url))
            prompts, responses = [f"Question {i}?" for i in range(40)], [f"Answer {i}. It was warm." for i in range(40)]
            with pytest.raises(RequestRefused, match="401"), Client(url) as client:
                client.score(prompts, responses)
            expected = model.score(prompts, responses)
            sent = 0

            def both_have_scored() -> bool:
                """The second replica may still be loading."""
                nonlocal sent
                for prompt, response, wanted in zip(prompts, responses, expected, strict=True):
                    (found,) = client.score([prompt], [response])
                    assert found.reward == pytest.approx(wanted.reward, abs=1e-5)
                    assert [one.text for one in found.sentences] == [one.text for one in wanted.sentences]
                sent += len(prompts)
                return 0 < num_scored(url) < sent

            with Client(url, token="secret") as client:
                wait_until(both_have_scored)
            prompt = model.encoder.format.render(prompts[0])
            request = {"query": [f"{prompt}{responses[0]}<e>"], "prompts": [prompt]}
            answer = httpx.post(f"{url}/get_reward", json=request, headers={"Authorization": "Bearer secret"}, timeout=60).json()
            assert answer["rewards"] == pytest.approx([expected[0].reward], abs=1e-5)
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(300)
            finally:
                # Else the `with` waits for it forever.
                server.kill()


def test_replicas_without_a_file_are_refused() -> None:
    """Serve builds such an application before it connects."""
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "srm.cli.replicas:app", "model=outputs/reward"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "Run `serve run examples/ray_serve.yaml`" in done.stderr


@pytest.mark.parametrize("thing", [SentenceRewardScorer, plan_workers, Workers])
def test_docstrings(thing: Any) -> None:
    assert problems(thing) == []
