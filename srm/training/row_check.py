"""What a row must be before it is trained or evaluated on: encoded, within the limit, and of ids that the model knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from srm.data import EncodedComparison
from srm.errors import UserError
from srm.scoring.guards import check_ids

if TYPE_CHECKING:
    from srm.modeling import SentenceRewardModel

__all__ = ["check_rows"]


def check_rows(rows: Sequence[EncodedComparison], model: SentenceRewardModel, max_length: int | None) -> None:
    """Refuse rows that the trainer cannot take.

    Args:
        rows: all of them.
        model: that reads them.
        max_length: most tokens of prompt + response; None for no limit.

    Raises:
        UserError: a row is not encoded, longer than `max_length`, or holds ids that the model has no embedding for.
    """
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, EncodedComparison):
            raise UserError(
                f"row {number} is a {type(row).__name__}, and SentenceRewardTrainer takes rows as tokens. Encode them first: "
                "`rows, report = encode_comparisons(read_comparisons('pairs.jsonl'), model.encoder, max_length=args.max_length)`, "
                "both of srm.data."
            )
        check_ids(model.num_embeddings, row.where, row.prompt_ids, *(response.ids for response in row.responses))
        longest = len(row.prompt_ids) + max(len(response.ids) for response in row.responses)
        if max_length is not None and longest > max_length:
            raise UserError(
                f"{row.where}: prompt and response have {longest:,} tokens, and max_length is {max_length:,}. Give encode_comparisons "
                f"max_length={max_length}, and `overlong`, which says what becomes of longer rows; or raise RewardConfig's max_length."
            )
