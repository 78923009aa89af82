"""What keeps a wrong number out: ids without an embedding before the model runs, and rewards that are no numbers after it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from srm.errors import UserError
from srm.scoring.protocol import RewardModel
from srm.scoring.run import ResponseScore

__all__ = ["check_ids", "not_finite", "require_finite"]


def check_ids(num_embeddings: int, where: str, *parts: Sequence[int] | NDArray[np.integer]) -> None:
    """Refuse token ids for which a backbone has no embedding: on a CPU an IndexError, on a GPU the end of the process.

    Args:
        num_embeddings: how many ids the model that will read them has an embedding for.
        where: what a message calls their row.
        *parts: ids of the prompt and of the responses.

    Raises:
        UserError: there is such an id.
    """
    for ids in map(np.asarray, parts):
        if ids.size and not 0 <= ids.min() <= ids.max() < num_embeddings:
            unknown = ids[np.argmax((ids < 0) | (ids >= num_embeddings))]
            raise UserError(
                f"{where}: the token id {unknown} has no embedding, the model knows 0 to {num_embeddings - 1}. "
                "Use the tokenizer that belongs to the model, or drop the row."
            )


def require_finite(model: RewardModel, scores: Iterable[ResponseScore], where: Iterable[str]) -> None:
    """Refuse rewards that are NaN or infinite: JSON has no word for them, and every mean over them is lost.

    Args:
        model: what gave them; its weights are looked at once one is bad.
        scores: of responses.
        where: what a message calls each.

    Raises:
        UserError: one of them is not finite.
    """
    for score, place in zip(scores, where, strict=True):
        if not score.is_finite:
            numbers = (score.reward, *score.sentence_reward, *score.weight)
            raise not_finite(cast(nn.Module, model), place, next(number for number in numbers if not math.isfinite(number)))


def not_finite(model: nn.Module, where: str, number: float) -> UserError:
    """The error for a reward that is no number, with its cause as far as the weights tell it.

    Args:
        model: what gave it.
        where: what the message calls the response.
        number: NaN or infinity.
    """
    bad = next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None)
    dtypes: Sequence[str] = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters()})
    cause = (
        f"the weight {bad} holds NaN or infinity: use another checkpoint"
        if bad
        else (f"the weights are finite, so the states overflow in {'/'.join(dtypes)}: use another --dtype, or leave the row out")
    )
    return UserError(f"{where}: the reward became {number}; {cause}.")
