"""Ray: `SentenceRewardScorer` for `Dataset.map_batches`, and a file scored by workers on any number of machines (`srm-score --engine ray`).

`score_file` reads the input and writes the output on the machine where it is called. The input goes out as chunks of rows that follow each
other. Ray deals them to workers that hold the model, gives those of a dead worker to its successor, and hands the answers back in the order
of the input. So the output grows as with one process: it is its own record of what is done, and each engine goes on with the other's.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import torch

from srm import SentenceRewardModel
from srm.data import OverlongPolicy, ResponseRow, read_responses
from srm.data.rows import parse_responses
from srm.data.schema import BadRow, RawRow
from srm.devices import check_device
from srm.errors import UserError, check_choice
from srm.extras import name_the_extra
from srm.memory import keep_freed_memory
from srm.modeling.contents import model_contents
from srm.packing import LastLayerRows, PackingMode
from srm.runs.lock import hold
from srm.runs.places import check_files
from srm.scoring.file import RowSettings, ScoreFileSummary, by_prompt, check_resumed, prepare_output, score_rows
from srm.scoring.lines import append_lines, score_line
from srm_kernels import __version__

with name_the_extra("--engine ray"):
    import ray
    import ray.data
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

__all__ = ["SentenceRewardScorer", "score_file"]

# Rows of a chunk: about this many chunks a worker, for an even end, within limits that keep passes full and little to do again.
_CHUNKS_PER_WORKER, _FEWEST_ROWS, _MOST_ROWS = 8, 32, 512
_NUMBERS = ("reward", "prompt_reward", "prompt_weight")
_SENTENCE = pa.struct(
    [("text", pa.string()), ("start", pa.int64()), ("end", pa.int64())]
    + [(name, pa.float64()) for name in ("reward", "weight", "weighted_reward")]
)
_SCORES = pa.schema(
    [("label", pa.string()), *((name, pa.float64()) for name in _NUMBERS), ("sentences", pa.list_(_SENTENCE)), ("truncated", pa.bool_())]
)


class SentenceRewardScorer:
    """A callable class for `ray.data.Dataset.map_batches`: each actor loads the model once and scores batch after batch.

    Rows are what `srm-score` reads: a prompt with a response, a preference pair, or a list of responses. They keep their columns and get
    `label`, `reward`, `prompt_reward`, `prompt_weight`, `sentences` and `truncated`. A row with several responses becomes a row for each;
    `label` says which it is: `response`, `chosen`, `rejected`, or its number. `truncated` is true where `overlong` has cut.

    Use it with `batch_format="pyarrow"`, which leaves messages and lists as they are.

    Args:
        model: folder or name on the hub, to be found from every machine.
        device: `auto` is the GPU that Ray gives the actor (`num_gpus=1`), or the CPU where it gives none.
        dtype: of the backbone's weights, as in `SentenceRewardModel.from_pretrained`.
        packing: `shared`, `packed` or `none` by name, or None; see `SentenceRewardModel.packing_mode`.
        last_layer_rows: `boundaries` or `all`, or None; as the model was trained.
        tokens_per_batch: upper bound on the tokens of a pass, padding included.
        max_length: longest prompt + response in tokens; never more than the backbone's own limit.
        overlong: what happens to a longer one; see `srm.scoring.text.encode_groups`.

    Raises:
        UserError: no such model, no such device, or a setting that is none of its choices.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        packing: PackingMode | None = None,
        last_layer_rows: LastLayerRows | None = None,
        tokens_per_batch: int = 8192,
        max_length: int | None = None,
        overlong: OverlongPolicy = "error",
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        check_device(device, where="SentenceRewardScorer: device")
        _check_last_layer_rows("SentenceRewardScorer", last_layer_rows)
        if device == "cpu":
            keep_freed_memory()
        self.settings = RowSettings(overlong=overlong, max_length=max_length, packing=packing, tokens_per_batch=tokens_per_batch)
        self.model = SentenceRewardModel.from_pretrained(model, dtype=dtype).eval().to(device)
        self.model.config.last_layer_rows = last_layer_rows or self.model.config.last_layer_rows

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score a batch.

        Args:
            batch: rows with their columns.

        Returns:
            A row a response, in order.

        Raises:
            UserError: a row that cannot be scored, named by its id or its place in the batch; a column that has the name of a new one; a
                batch in another format.
        """
        if not isinstance(batch, pa.Table):
            raise UserError(
                f'SentenceRewardScorer: got a batch as {type(batch).__name__}. Pass batch_format="pyarrow" to map_batches: other formats '
                "change messages and lists."
            )
        if taken := sorted(set(batch.column_names) & set(_SCORES.names)):
            raise UserError(f"SentenceRewardScorer: the data has a column {taken[0]!r} already. Rename or drop it before map_batches.")
        rows = list(_rows_of(batch))
        scored = [pair for some in score_rows(self.model, rows, self.settings) for pair in some]
        scores = pa.Table.from_pylist(
            [{"label": row.label, **response.to_dict(), "truncated": response.truncated} for row, response in scored], schema=_SCORES
        )
        kept = batch.take(pa.array([row.row for row in rows], pa.int64()))
        for name in scores.column_names:
            kept = kept.append_column(name, scores[name])
        return kept


def _check_last_layer_rows(where: str, rows: str | None) -> None:
    if rows is not None:
        check_choice(f"{where}: `last_layer_rows`", rows, get_args(LastLayerRows))


def _rows_of(batch: pa.Table) -> Iterator[ResponseRow]:
    """The responses of a batch; `row` is the row's index in it."""
    for number, fields in enumerate(batch.to_pylist()):
        name = fields.get("id")
        where = f"row {number} of a batch" if name in (None, "") else f"the row with id {name!r}"
        try:
            yield from parse_responses(RawRow(where=where, id=str(number), number=number, fields=fields))
        except BadRow as bad:
            raise UserError(f"{bad.problem}. Fix the row, or filter it out before map_batches.") from None


def score_file(
    model: str,
    source: str,
    output: Path,
    *,
    num_rows: int,
    num_workers: int,
    num_cpus: int,
    num_gpus: int,
    identity: dict[str, Any],
    settings: RowSettings,
    dtype: str = "auto",
    last_layer_rows: LastLayerRows | None = None,
    split: str = "train",
    overwrite: bool = False,
    left_out: Collection[int] = frozenset(),
    on_scored: Callable[[int], None] = lambda count: None,
) -> ScoreFileSummary:
    """`srm.scoring.file.score_file` on the cluster that Ray is connected to: the same file, and gone on with in the same way.

    Args:
        model: folder or name on the hub. Every worker must find the same one, which is compared by content.
        source: as in `srm.scoring.file.score_file`; read on this machine alone.
        output: as there; written on this machine.
        num_rows: responses in `source`.
        num_workers: actors, each with a model.
        num_cpus: cores of each, which are its threads.
        num_gpus: GPUs of each, 1 or 0.
        identity: as in `srm.scoring.file.score_file`.
        settings: how rows are scored.
        dtype: as in `SentenceRewardScorer`.
        last_layer_rows: as in `SentenceRewardScorer`.
        split: as in `srm.data.read_responses`.
        overwrite: begin anew where `output` exists.
        left_out: as in `srm.data.read_responses`.
        on_scored: called with the number of responses just written, the resumed ones first.

    Raises:
        UserError: as `srm.scoring.file.score_file`; another `last_layer_rows`; a worker without the model, or with another one.
    """
    _check_last_layer_rows("score_file", last_layer_rows)
    check_files({"output": output}, data={"source": source}, models={})
    with hold(output):
        num_resumed = prepare_output(output, identity | settings.decisive(), overwrite=overwrite)
        reading: dict[str, Any] = {"source": source, "split": split, "left_out": left_out}
        check_resumed(output, read_responses(**reading), num_resumed)
        on_scored(num_resumed)
        if num_resumed < num_rows:
            chunk_rows = (num_rows - num_resumed) // (num_workers * _CHUNKS_PER_WORKER)
            chunks = _Chunks(reading, num_resumed, min(max(chunk_rows, _FEWEST_ROWS), _MOST_ROWS))
            loading = {"model": model, "dtype": dtype, "last_layer_rows": last_layer_rows, "device": "cuda" if num_gpus else "cpu"}
            needs = {"num_cpus": num_cpus, "num_gpus": num_gpus}
            with closing(_scored(chunks, {**loading, **vars(settings)}, num_workers, needs)) as scored:
                _append(output, scored, num_resumed, num_rows, on_scored)
    return ScoreFileSummary(num_scored=num_rows - num_resumed, num_resumed=num_resumed)


def _append(output: Path, scored: Iterator[dict[str, Any]], first: int, num_rows: int, on_scored: Callable[[int], None]) -> None:
    """Write the lines of chunks that must follow each other from row `first` to the last one."""
    position = first
    with output.open("a", encoding="utf-8") as file:
        for chunk in scored:
            if chunk["problem"]:
                raise UserError(chunk["problem"])
            if chunk["first"] != position:
                raise RuntimeError(f"Ray gave rows from {chunk['first']} on, where those from {position} on were due.")
            append_lines(file, chunk["lines"])
            position += len(chunk["lines"])
            on_scored(len(chunk["lines"]))
    if position != num_rows:
        raise UserError(f"{output}: the input had {num_rows} responses at first, and {position} later. Run the command again.")


def _scored(chunks: _Chunks, loading: dict[str, Any], num_workers: int, needs: dict[str, int]) -> Generator[dict[str, Any], None, None]:
    """What `_ChunkScorer` says of each chunk, in order."""
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    # A block is a chunk: Ray joins what it reads, and cuts what comes out, only where a block has more rows than one.
    context.target_max_block_size = 1
    # The command has its own bar, which counts responses.
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    name = loading["model"]
    if Path(name).is_dir():
        loading["model"] = str(Path(name).resolve())
    # Reading takes no core, or a machine whose cores all belong to workers would never read.
    with ray.data.DataContext.current(context):
        read = ray.data.read_datasource(chunks, override_num_blocks=1, num_cpus=0, label_selector=here)
    scored = read.map_batches(
        _ChunkScorer,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=num_workers),
        fn_constructor_args=({"srm-kernels": __version__, **model_contents(name)}, loading),
        **needs,
    )
    # Closed before the connection is, or Ray makes a new one in order to clean up.
    with closing(iter(scored.iter_batches(batch_size=None, batch_format="pyarrow"))) as tables:
        for table in tables:
            yield from table.to_pylist()


class _Chunks(Datasource):
    """The input from row `first` on, as tables of one row: a chunk, as the number of its first row and its pickled rows."""

    def __init__(self, reading: dict[str, Any], first: int, chunk_rows: int) -> None:
        super().__init__()
        self.reading, self.first, self.chunk_rows = reading, first, chunk_rows
        # Messages name files as the command did.
        self.folder = os.getcwd()

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One, whose blocks go out as they are read."""
        return [ReadTask(self._read, BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None))]

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown."""
        return None

    def _read(self) -> Iterator[pa.Table]:
        os.chdir(self.folder)
        first = self.first
        try:
            for rows in self._chunks():
                yield _table(first=first, rows=pickle.dumps(rows), problem="")
                first += len(rows)
        except UserError as error:
            yield _table(first=first, rows=pickle.dumps([]), problem=str(error))

    def _chunks(self) -> Iterator[list[ResponseRow]]:
        chunk: list[ResponseRow] = []
        for same_prompt in by_prompt(islice(read_responses(**self.reading), self.first, None)):
            chunk += same_prompt
            if len(chunk) >= self.chunk_rows:
                yield chunk
                chunk = []
        if chunk:
            yield chunk


class _ChunkScorer:
    """Scores chunks. What the user can mend comes back as text: so the first in the input is told, and without a traceback."""

    def __init__(self, expected: dict[str, str | None], loading: dict[str, Any]) -> None:
        self.problem = ""
        try:
            # Before it is loaded: what is hashed is what is loaded then.
            found = {"srm-kernels": __version__, **model_contents(loading["model"])}
            self.scorer = SentenceRewardScorer(**loading)
            _check_same(loading["model"], expected, found)
        except UserError as error:
            self.problem = f"{error} (on {socket.gethostname()})"

    def __call__(self, chunk: pa.Table) -> pa.Table:
        (told,) = chunk.to_pylist()
        problem, lines = told["problem"] or self.problem, []
        if not problem:
            try:
                rows = pickle.loads(told["rows"])
                lines = [score_line(*pair) for some in score_rows(self.scorer.model, rows, self.scorer.settings) for pair in some]
            except UserError as error:
                problem, lines = str(error), []
        return _table(first=told["first"], lines=lines, problem=problem)


def _check_same(model: str, expected: dict[str, str | None], found: dict[str, str | None]) -> None:
    """Refuse a worker that would give other scores than the command's own machine."""
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{model}: a worker has another {name} ({found.get(name)}) than the machine of the command ({expected.get(name)}). "
                "Give all machines the same model and the same release."
            )


def _table(**values: Any) -> pa.Table:
    """One row."""
    types = {"first": pa.int64(), "rows": pa.binary(), "lines": pa.list_(pa.string()), "problem": pa.string()}
    return pa.table({name: pa.array([value], types[name]) for name, value in values.items()})
