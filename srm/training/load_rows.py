"""The rows that `srm-train` trains and evaluates on, read and encoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from srm.data import Comparison, EncodedComparison, encode_comparisons, read_comparisons, read_mixture
from srm.data.mixture import set_aside
from srm.data.read import first_pairs

if TYPE_CHECKING:
    from srm.modeling import SentenceRewardModel
    from srm.training.arguments import RewardConfig
    from srm.training.data_arguments import DataArguments

__all__ = ["encode_rows", "read_rows"]

Rows = list[EncodedComparison]
Comparisons = list[Comparison]


def read_rows(data: DataArguments, config: RewardConfig) -> tuple[Comparisons, Comparisons | None]:
    """Training rows, and those to evaluate on where there are such. It takes no model, so that data can be at fault before one is loaded.

    Args:
        data: where they come from.
        config: of the run.

    Raises:
        UserError: data that cannot be read.
    """
    # Each process reads for itself; the first one first, so that a download happens once.
    with config.main_process_first(desc="reading the data"):
        train = _read_training(data)
        evaluation: Comparisons | None = None
        if data.test_split_size is not None:
            train, evaluation = set_aside(train, data.test_split_size, seed=config.seed if config.data_seed is None else config.data_seed)
            train, evaluation = list(first_pairs(train, data.max_pairs)), list(first_pairs(evaluation, data.max_eval_pairs))
        elif data.eval_dataset_name is not None or config.eval_strategy != "no":
            evaluation = _read_split(data, data.eval_dataset_name or str(data.dataset_name), data.dataset_test_split, data.max_eval_pairs)
    return train, evaluation


def encode_rows(
    comparisons: Comparisons, kind: str, data: DataArguments, config: RewardConfig, model: SentenceRewardModel, tell: Callable[[str], None]
) -> Rows:
    """The rows as `model` reads them.

    Args:
        comparisons: from `read_rows`.
        kind: what to call them.
        data: settings of the data.
        config: of the run.
        model: that reads them.
        tell: gets a line on what became of rows over the limit.

    Raises:
        UserError: rows that the model's template cannot write.
    """
    rows, report = encode_comparisons(
        comparisons,
        model.encoder,
        max_length=config.max_length,
        positions=model.config.max_positions,
        overlong=config.overlong,
        skip_bad_rows=data.skip_bad_rows,
        progress=None if config.process_index == 0 and not config.disable_tqdm else False,
    )
    tell(f"{kind} data: {sum(len(row.pairs) for row in rows):,} pairs; {report}")
    return rows


def _read_training(data: DataArguments) -> list[Comparison]:
    if parts := data.parts:
        # A test set is drawn from all rows.
        max_pairs = data.max_pairs if data.test_split_size is None else None
        return read_mixture(parts, streaming=data.streaming, max_pairs=max_pairs, skip_bad_rows=data.skip_bad_rows)
    assert data.dataset_name is not None
    return _read_split(data, data.dataset_name, data.dataset_train_split, data.max_pairs)


def _read_split(data: DataArguments, source: str, split: str, max_pairs: int | None) -> list[Comparison]:
    return read_comparisons(
        source,
        split=split,
        config=data.dataset_config,
        streaming=data.dataset_streaming,
        max_pairs=max_pairs,
        skip_bad_rows=data.skip_bad_rows,
    )
